//! Names the points around a local commit where a test may crash or fail a participant.

use std::sync::Arc;

/// A labelled point around a group's commit, for tests that crash or fail there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Everything is written, nothing is durable, nobody is answered.
    BeforeCommit {
        /// How many calls are in the group.
        calls: usize,
    },
    /// Everything is durable, nobody is answered.
    AfterCommit {
        /// How many calls are in the group.
        calls: usize,
    },
}

/// What a test does at a [`Moment`]. An error counts as a failed commit: every call of the group is
/// answered with it.
pub type MomentHook = Arc<dyn Fn(Moment) -> Result<(), String> + Send + Sync>;
