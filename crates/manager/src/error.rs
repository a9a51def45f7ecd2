//! Decides what can go wrong for those who embed the manager, each with a stable code.

use unanimity_core::{EnlistRefusal, IdError, PlanError, ResolveRefusal, Stage, TransactionId};
use unanimity_journal::JournalError;

use crate::history::HistoryError;
use crate::view::TransactionView;

/// Said of a transaction that nothing reaches.
const SET_ASIDE: &str = "the transaction is set aside: the coordinator broke on it, and leaves it \
    alone until somebody has it taken up again";

/// Why the manager could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data folder cannot be made or locked.
    #[error("data folder {path}: {message}")]
    Folder {
        /// Which folder.
        path: String,
        /// What is wrong and what to do.
        message: String,
    },
    /// Another coordinator works on the same data folder.
    #[error(
        "data folder {path} is in use by another coordinator; stop it, or choose another folder"
    )]
    InUse {
        /// Which folder.
        path: String,
    },
    /// A configuration value cannot be used.
    #[error("{0}")]
    Configuration(String),
    /// The data folder was made with another number of shards.
    #[error(
        "the data folder was made with {found} shards and the configuration says {wanted}: an id \
         names its shard, so the number cannot change; set it back to {found}"
    )]
    Shards {
        /// How many it was made with.
        found: u16,
        /// How many the configuration asks for.
        wanted: u16,
    },
    /// The journal is gone although the folder was used before.
    #[error(
        "journal {path} is missing or empty, but the folder was used before: transactions that \
         were committed would be taken for unknown; restore it from a copy, or use a new folder"
    )]
    JournalMissing {
        /// Which file.
        path: String,
    },
    /// The journal is older than the history: it was put back to an earlier state, or is another's.
    #[error(
        "the journal of shard {shard} ends at position {ends}, but the history holds what ended at \
         position {archived_up_to}: it is an older copy, or another folder's, and would take \
         transactions that were committed for unknown; put the latest journal back"
    )]
    JournalBehind {
        /// Which shard.
        shard: u16,
        /// The journal's last position.
        ends: u64,
        /// The position that the history knows of.
        archived_up_to: u64,
    },
    /// The journal cannot be opened or read.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The journal reads well, but its records cannot be what a coordinator wrote.
    #[error("the journal of shard {shard} is damaged at position {position}: {message}")]
    Records {
        /// Which shard.
        shard: u16,
        /// In which batch.
        position: u64,
        /// What does not fit.
        message: String,
    },
    /// The program broke on a transaction while it read its records back. It is on record: after
    /// some more attempts the transaction is set aside.
    #[error(
        "reading transaction {transaction} back from the journal of shard {shard} broke an \
         invariant: {message}"
    )]
    Panicked {
        /// Which shard.
        shard: u16,
        /// Which transaction.
        transaction: TransactionId,
        /// What the panic says.
        message: String,
    },
    /// The history cannot be opened.
    #[error(transparent)]
    History(#[from] HistoryError),
}

impl StartError {
    /// The stable code.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Folder { .. } => "data_folder",
            Self::InUse { .. } => "data_in_use",
            Self::Configuration(_) => "configuration",
            Self::Shards { .. } => "shards_changed",
            Self::JournalMissing { .. } => "journal_missing",
            Self::JournalBehind { .. } => "journal_behind",
            Self::Journal(error) => error.code(),
            Self::Records { .. } => "journal_corrupt",
            Self::Panicked { .. } => "panicked",
            Self::History(_) => "history",
        }
    }
}

/// Why a transaction could not begin.
#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    /// The id is not a name.
    #[error("the transaction id {0}")]
    Id(IdError),
    /// The plan is not acceptable.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The id was used by another request.
    #[error("the id {0} was used before, by a transaction with other content; choose a new one")]
    IdReused(String),
    /// A transaction of this id is set aside and could not be read.
    #[error("transaction {0} is set aside: the coordinator broke on it, and leaves it alone")]
    SetAside(String),
    /// As many transactions are live as the configuration allows.
    #[error("as many transactions are live as the configuration allows; try again later")]
    AtCapacity,
    /// More is begun than can be carried out: beginnings have waited too long for too long.
    #[error(
        "the coordinator is overloaded: beginnings wait for longer than they may; nothing was \
         begun; try again later"
    )]
    Overloaded,
    /// More is asked of this participant than it does: calls to it have waited too long for too
    /// long.
    #[error(
        "participant {0} is asked for more than it does: calls to it wait for longer than they \
         may; nothing was begun; try again later"
    )]
    ParticipantBusy(String),
    /// The disk has less room than is kept for the transactions that are live.
    #[error(
        "the coordinator's disk is nearly full: what is left is for transactions that are live; \
         make room, and try again"
    )]
    DiskNearlyFull,
    /// The manager does not work any more.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl BeginError {
    /// The error, counted if it is a request to come again later.
    pub(crate) fn counted(self) -> Self {
        let reason = match &self {
            Self::AtCapacity => "at_capacity",
            Self::Overloaded => "overloaded",
            Self::ParticipantBusy(_) => "participant_busy",
            Self::DiskNearlyFull => "disk_nearly_full",
            Self::Id(_)
            | Self::Plan(_)
            | Self::IdReused(_)
            | Self::SetAside(_)
            | Self::Unavailable(_) => return self,
        };
        Self::counter(reason).increment(1);
        self
    }

    /// Counts the refusals for a reason. To look it up costs more than most refusals.
    pub(crate) fn counter(reason: &'static str) -> metrics::Counter {
        metrics::counter!("unanimity_beginnings_refused_total", "reason" => reason)
    }
}

/// Why a branch could not be enlisted.
#[derive(Debug, thiserror::Error)]
pub enum EnlistError {
    /// The coordinator refuses it.
    #[error("{}", refusal_text(.0))]
    Refused(EnlistRefusal),
    /// The manager does not work any more.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl From<EnlistRefusal> for EnlistError {
    fn from(refusal: EnlistRefusal) -> Self {
        Self::Refused(refusal)
    }
}

fn refusal_text(refusal: &EnlistRefusal) -> String {
    match refusal {
        EnlistRefusal::Unknown => "there is no such live transaction".to_owned(),
        EnlistRefusal::NotOpen(Stage::SetAside) => SET_ASIDE.to_owned(),
        EnlistRefusal::NotOpen(stage) => {
            format!("the transaction is {}; it takes no branches any more", stage.as_str())
        }
        EnlistRefusal::Conflict => {
            "a branch of this name is enlisted with other content; choose another name".to_owned()
        }
        EnlistRefusal::Plan(error) => error.to_string(),
    }
}

impl EnlistError {
    /// The stable code.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Refused(EnlistRefusal::Unknown) => "transaction_unknown",
            Self::Refused(EnlistRefusal::NotOpen(Stage::SetAside)) => "set_aside",
            Self::Refused(EnlistRefusal::NotOpen(_)) => "not_open",
            Self::Refused(EnlistRefusal::Conflict) => "branch_conflict",
            Self::Refused(EnlistRefusal::Plan(error)) => error.code,
            Self::Unavailable(unavailable) => unavailable.code(),
        }
    }

    pub(crate) fn too_many_branches(most: usize) -> Self {
        let message = format!("the transaction has {most} branches, and no more are allowed");
        let (code, field) = ("too_many_branches", "branches".to_owned());
        Self::Refused(EnlistRefusal::Plan(PlanError { code, field, message }))
    }

    pub(crate) fn unknown_branch(field: &'static str, name: &str) -> Self {
        let code = if field == "after" { "after_unknown" } else { "reference_unknown" };
        let message = format!("there is no branch {name:?} in this transaction");
        Self::Refused(EnlistRefusal::Plan(PlanError { code, field: field.to_owned(), message }))
    }
}

/// Why an interactive transaction could not be asked to commit.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// Nobody has a record of it.
    #[error("there is no such transaction")]
    Unknown,
    /// It was begun whole.
    #[error("the transaction was begun whole: it commits by itself when every branch agrees")]
    Whole,
    /// It is set aside.
    #[error("{SET_ASIDE}")]
    SetAside,
    /// It had been rolled back before it was asked to commit.
    #[error("the transaction was rolled back before this request")]
    RolledBack(Box<TransactionView>),
    /// The manager does not work any more.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl CommitError {
    /// The stable code.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Unknown => "transaction_unknown",
            Self::Whole => "not_interactive",
            Self::SetAside => "set_aside",
            Self::RolledBack(_) => "already_decided",
            Self::Unavailable(unavailable) => unavailable.code(),
        }
    }
}

/// Why an operator's word on a branch was not taken.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The coordinator refuses it.
    #[error("{}", resolve_text(*.0))]
    Refused(ResolveRefusal),
    /// The transaction has ended: nothing is left to settle. Says what is on record.
    #[error("{0}")]
    Ended(String),
    /// The manager does not work any more.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl From<ResolveRefusal> for ResolveError {
    fn from(refusal: ResolveRefusal) -> Self {
        Self::Refused(refusal)
    }
}

const fn resolve_text(refusal: ResolveRefusal) -> &'static str {
    match refusal {
        ResolveRefusal::Unknown => "there is no such live transaction",
        ResolveRefusal::NoSuchBranch => "the transaction has no such branch",
        ResolveRefusal::Undecided => {
            "the transaction is undecided, and the coordinator can decide it: roll it back instead"
        }
        ResolveRefusal::Settled => "the branch has nothing left to settle",
        ResolveRefusal::SetAside => SET_ASIDE,
        ResolveRefusal::ReasonMissing => {
            "this contradicts the decision and makes the outcome mixed: give a reason"
        }
    }
}

impl ResolveError {
    /// Why nothing can be settled at a branch of a transaction that has ended.
    pub(crate) fn ended(known: &TransactionView, branch: &str) -> Self {
        let Some(branch) = known.branches.iter().find(|one| one.name == branch) else {
            return ResolveRefusal::NoSuchBranch.into();
        };
        let word = branch.resolution.as_ref().map_or_else(
            || "nobody settled the branch by hand".to_owned(),
            |word| format!("the branch was settled as {} by {}", word.settled_as, word.by),
        );
        let outcome = known.outcome.as_deref().unwrap_or("no outcome");
        Self::Ended(format!("the transaction has ended; on record: {outcome}; {word}"))
    }

    /// The stable code.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => match refusal {
                ResolveRefusal::Unknown => "transaction_unknown",
                ResolveRefusal::NoSuchBranch => "branch_unknown",
                ResolveRefusal::Undecided => "undecided",
                ResolveRefusal::Settled => "branch_settled",
                ResolveRefusal::SetAside => "set_aside",
                ResolveRefusal::ReasonMissing => "reason_missing",
            },
            Self::Ended(_) => "branch_settled",
            Self::Unavailable(unavailable) => unavailable.code(),
        }
    }
}

impl Unavailable {
    /// The stable code.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Stopping => "stopping",
            Self::ShardFailed => "shard_failed",
            Self::HistoryFailed => "history",
        }
    }
}

/// Why the manager does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// It is being stopped.
    #[error("the coordinator is stopping")]
    Stopping,
    /// A shard's journal failed: it must be restarted, which recovers it.
    #[error("the shard's journal failed; restart the coordinator to recover it")]
    ShardFailed,
    /// The history cannot be read.
    #[error("the history cannot be read")]
    HistoryFailed,
}
