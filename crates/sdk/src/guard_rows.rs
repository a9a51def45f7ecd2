//! Decides how the rows of a guard's table are told to people and audits, whatever database they
//! lie in.

use std::sync::Arc;

use unanimity_core::TransactionId;
use unanimity_core::guard::{GuardRow, GuardState};

/// One row of the guard table, for audits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuardEntry {
    /// Of which transaction.
    pub transaction: TransactionId,
    /// Which branch of it.
    pub branch: Arc<str>,
    /// Where it stands, and its note.
    pub row: GuardRow,
    /// When it last changed, in milliseconds since the Unix epoch.
    pub at_ms: u64,
}

/// How many branches stand where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuardCounts {
    /// Prepared and in doubt.
    pub prepared: u64,
    /// Committed.
    pub committed: u64,
    /// Rolled back, also where nothing was ever prepared.
    pub rolled_back: u64,
    /// Voted no.
    pub voted_no: u64,
    /// Voted read-only.
    pub read_only: u64,
    /// Executed.
    pub executed: u64,
    /// Compensated, also where nothing was ever executed.
    pub compensated: u64,
}

impl GuardCounts {
    /// Sets the count of the rows in one state.
    pub(crate) const fn put(&mut self, state: GuardState, count: u64) {
        match state {
            GuardState::Prepared => self.prepared = count,
            GuardState::Committed => self.committed = count,
            GuardState::RolledBack => self.rolled_back = count,
            GuardState::VotedNo => self.voted_no = count,
            GuardState::ReadOnly => self.read_only = count,
            GuardState::Executed => self.executed = count,
            GuardState::Compensated => self.compensated = count,
        }
    }
}
