//! Decides what can go wrong for those who embed the manager, each with a stable code.

use unanimity_core::{IdError, PlanError};
use unanimity_journal::JournalError;

use crate::history::HistoryError;

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
            Self::Journal(error) => error.code(),
            Self::Records { .. } => "journal_corrupt",
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
    /// As many transactions are live as the configuration allows.
    #[error("as many transactions are live as the configuration allows; try again later")]
    AtCapacity,
    /// The manager does not work any more.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
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
