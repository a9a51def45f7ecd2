//! The labelled points at which a test may end the process, as SIGKILL would: no destructor runs,
//! no buffer is flushed. The switch exists only with the feature `crash-points`; without it, a
//! point is nothing at all.
//!
//! `UNANIMITY_CRASH_AT=before_append:3` ends the process the third time it passes that point;
//! `UNANIMITY_CRASH_AT=append_decided` without a number, the first time.

/// The labelled points of a shard, in the order in which one transaction passes them.
pub const CRASH_POINTS: [&str; 10] = [
    "before_begun_append",
    "after_begun_append",
    "before_prepare_call",
    "after_prepare_call",
    "before_decided_append",
    "after_decided_append",
    "between_commit_calls",
    "after_commit_call",
    "before_history_write",
    "after_history_write",
];

/// Ends the process if a test asked for it at this point.
#[cfg(feature = "crash-points")]
pub(crate) fn crash_point(label: &str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    static WANTED: OnceLock<Option<(String, AtomicU64)>> = OnceLock::new();
    debug_assert!(CRASH_POINTS.contains(&label), "{label} is not in the list");
    let wanted = WANTED.get_or_init(|| {
        let text = std::env::var("UNANIMITY_CRASH_AT").ok()?;
        let (label, times) = text.split_once(':').unwrap_or((&text, "1"));
        Some((label.to_owned(), AtomicU64::new(times.parse().unwrap_or(1))))
    });
    let Some((wanted, times_left)) = wanted else { return };
    if wanted == label && times_left.fetch_sub(1, Ordering::SeqCst) == 1 {
        std::process::abort();
    }
}

/// Nothing, in a shipped program.
#[cfg(not(feature = "crash-points"))]
#[inline(always)]
pub(crate) const fn crash_point(_label: &str) {}

/// Panics if a test asked for it while this is done with this transaction:
/// `UNANIMITY_PANIC_AT=handling:ID`.
#[cfg(feature = "crash-points")]
pub(crate) fn panic_point(doing: &str, id: &unanimity_core::TransactionId) {
    use std::sync::OnceLock;

    static WANTED: OnceLock<Option<String>> = OnceLock::new();
    let Some(wanted) = WANTED.get_or_init(|| std::env::var("UNANIMITY_PANIC_AT").ok()) else {
        return;
    };
    if wanted.split_once(':') == Some((doing, id.as_str())) {
        panic!("a test asked for this while {doing} {id}");
    }
}

/// Nothing, in a shipped program.
#[cfg(not(feature = "crash-points"))]
#[inline(always)]
pub(crate) const fn panic_point(_doing: &str, _id: &unanimity_core::TransactionId) {}
