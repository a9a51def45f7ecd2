//! What can be decided about a transaction, and for which reasons. Who decides when is
//! `phase_one`'s and `timers`'.

use crate::Millis;

/// What became of a transaction. Numbers are for storage and are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Outcome {
    /// All of it.
    Commit = 1,
    /// None of it.
    Rollback = 2,
}

impl Outcome {
    /// The word on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Commit => "commit",
            Self::Rollback => "rollback",
        }
    }
}

/// Why the decision was what it was.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Every branch voted yes or read-only, and every execute succeeded.
    AllYes,
    /// A branch said no.
    No {
        /// Which.
        branch: u16,
        /// In its words.
        text: Box<str>,
    },
    /// Not every prepare had voted when their time was over.
    PrepareTimeout,
    /// Not every execute had succeeded when their time was over.
    ExecuteTimeout,
    /// The limit for the whole transaction passed before a decision.
    Timeout,
    /// The coordinator stopped before the decision and came back.
    Restarted,
    /// Somebody asked for it.
    Requested(Box<str>),
    /// The initiator of an interactive transaction fell silent.
    Abandoned,
    /// The participant that alone decides was asked, and has committed.
    Settled,
}

impl Reason {
    /// The stable code on the wire.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::AllYes => "all_yes",
            Self::No { .. } => "voted_no",
            Self::PrepareTimeout => "prepare_timeout",
            Self::ExecuteTimeout => "execute_timeout",
            Self::Timeout => "timeout",
            Self::Restarted => "coordinator_restarted",
            Self::Requested(_) => "requested",
            Self::Abandoned => "abandoned",
            Self::Settled => "settled_by_participant",
        }
    }

    /// The branch that it names, if it names one.
    pub(crate) const fn branch(&self) -> Option<u16> {
        match self {
            Self::No { branch, .. } => Some(*branch),
            Self::AllYes
            | Self::PrepareTimeout
            | Self::ExecuteTimeout
            | Self::Timeout
            | Self::Restarted
            | Self::Requested(_)
            | Self::Abandoned
            | Self::Settled => None,
        }
    }
}

/// The decision: taken once, never changed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Decision {
    /// Which.
    pub outcome: Outcome,
    /// Why.
    pub reason: Reason,
    /// When.
    pub at: Millis,
}
