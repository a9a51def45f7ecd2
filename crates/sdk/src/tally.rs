//! Decides what a participant counts of its own work.

use std::sync::atomic::{AtomicU64, Ordering};

use unanimity_core::guard::Contradiction;

use crate::participant::CallError;

/// What a participant has done since its process started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Calls that the service worked for.
    pub applied: u64,
    /// Rollbacks and compensations of branches that nobody had heard of.
    pub remembered: u64,
    /// Duplicates: answered as the first time, without work.
    pub repeated: u64,
    /// Contradictions.
    pub refused: u64,
    /// Rollbacks of branches that are committed. Where one committed in one phase it is the answer
    /// that the coordinator asks for, and no contradiction.
    pub already_committed: u64,
    /// Calls that failed on their own.
    pub failed: u64,
    /// Calls for which the service was busy.
    pub busy: u64,
    /// Local commits; every other number divided by this one is the gain of group commit.
    pub groups: u64,
}

/// The counters, while they count.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) applied: AtomicU64,
    pub(crate) remembered: AtomicU64,
    pub(crate) repeated: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) committed: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) busy: AtomicU64,
    pub(crate) groups: AtomicU64,
}

/// Counts one.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Tally {
    pub(crate) fn counters(&self) -> Counters {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counters {
            applied: read(&self.applied),
            remembered: read(&self.remembered),
            repeated: read(&self.repeated),
            refused: read(&self.refused),
            already_committed: read(&self.committed),
            failed: read(&self.failed),
            busy: read(&self.busy),
            groups: read(&self.groups),
        }
    }

    /// Counts a call that was not answered with a reply.
    pub(crate) fn count_error(&self, error: &CallError) {
        count(match error {
            CallError::Contradiction(Contradiction::AlreadyCommitted) => &self.committed,
            CallError::Contradiction(_) => &self.refused,
            CallError::Failed(_) => &self.failed,
            CallError::Busy(_) => &self.busy,
        });
    }
}
