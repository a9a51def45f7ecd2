//! Every parser of bytes from outside, each with what must hold for any bytes at all: it never
//! panics, what it accepts is read back as it was, and two readers of the same thing agree. The
//! fuzzer (`fuzz/`) and the ordinary tests (`tests/corpus.rs`) call the very same functions; which
//! bytes they try is theirs.

#![allow(clippy::expect_used, reason = "a target says by a panic what does not hold")]

mod answers;
mod batches;
mod bytes;
mod journal;
pub mod mutate;
mod requests;
mod words;

/// One parser with its property.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, and that of its folder in `fuzz/corpus`.
    pub name: &'static str,
    /// Tries bytes and says whether they were accepted. Panics if what must hold does not.
    pub run: fn(&[u8]) -> bool,
}

/// All of them.
pub const TARGETS: [Target; 21] = [
    Target { name: "journal_batch", run: journal::batch },
    Target { name: "journal_record", run: journal::record },
    Target { name: "journal_replay", run: journal::replay },
    Target { name: "write_ahead_log", run: journal::write_ahead_log },
    Target { name: "request_begin", run: requests::begin },
    Target { name: "request_enlist", run: requests::enlist },
    Target { name: "request_resolve", run: requests::resolve },
    Target { name: "request_query", run: requests::query },
    Target { name: "request_key", run: requests::key },
    Target { name: "references", run: answers::references },
    Target { name: "participant_answer", run: answers::participant },
    Target { name: "participant_call", run: answers::call },
    Target { name: "batch_line", run: batches::line },
    Target { name: "batch_calls", run: batches::calls },
    Target { name: "stream_calls", run: batches::message },
    Target { name: "coordinator_answer", run: answers::coordinator },
    Target { name: "configuration", run: words::configuration },
    Target { name: "address", run: words::address },
    Target { name: "policy", run: words::policy },
    Target { name: "id", run: words::id },
    Target { name: "trace", run: words::trace },
];

/// The target of this name.
///
/// # Panics
/// If there is none.
#[must_use]
pub fn target(name: &str) -> Target {
    TARGETS.into_iter().find(|target| target.name == name).expect("a target of this name")
}
