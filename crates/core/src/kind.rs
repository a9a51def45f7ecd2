//! The words of the protocol: what sort of promise a branch makes, and what a coordinator asks of a
//! participant. When what is asked is `phase_one`'s and `phase_two`'s.

/// What sort of promise a branch makes. Numbers are for storage and are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Prepare, then commit or rollback.
    TwoPhase = 1,
    /// Execute, and compensate if the rest fails.
    Compensable = 2,
    /// Execute only after the decision to commit, until it succeeds.
    Deferred = 3,
    /// The initiator's own local work: committed by the initiator itself before it asks for the
    /// commit, and asked after if it falls silent. What it did decides.
    Local = 4,
}

impl Kind {
    /// The word on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TwoPhase => "two_phase",
            Self::Compensable => "compensable",
            Self::Deferred => "deferred",
            Self::Local => "local",
        }
    }
}

/// What a coordinator asks of a participant. Numbers are for storage and never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Operation {
    /// Do the work so that it can be committed and can be undone, and vote.
    Prepare = 1,
    /// Make the prepared work final.
    Commit = 2,
    /// Undo the prepared work.
    Rollback = 3,
    /// Do the work, visibly.
    Execute = 4,
    /// Undo executed work.
    Compensate = 5,
    /// Prepare and commit in one: the participant alone decides (one-phase commit).
    CommitOnePhase = 6,
    /// Say whether the local work is there; if it is not, see to it that it never will be.
    Inquire = 7,
}

impl Operation {
    /// Every operation, in the order of their numbers.
    pub const ALL: [Self; 7] = [
        Self::Prepare,
        Self::Commit,
        Self::Rollback,
        Self::Execute,
        Self::Compensate,
        Self::CommitOnePhase,
        Self::Inquire,
    ];

    /// The word on the wire and in a participant's path.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Prepare => "prepare",
            Self::Commit => "commit",
            Self::Rollback => "rollback",
            Self::Execute => "execute",
            Self::Compensate => "compensate",
            Self::CommitOnePhase => "commit_one_phase",
            Self::Inquire => "inquire",
        }
    }

    /// The operation that a word names.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|operation| operation.as_str() == word)
    }

    /// Whether the branch's payload travels with this operation. A service that has voted keeps
    /// what it needs, so commit and rollback send none unless the branch asks for it.
    #[must_use]
    pub const fn carries_payload(self) -> bool {
        match self {
            Self::Prepare | Self::Execute | Self::Compensate | Self::CommitOnePhase => true,
            Self::Commit | Self::Rollback | Self::Inquire => false,
        }
    }
}
