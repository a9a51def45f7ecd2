//! Decides what can go wrong with a journal and how it is told: one variant and one stable code per
//! cause, each message with the place and the way out. What to do about it is left to the caller;
//! whatever the engine calls poisoning, the caller answers by ending the shard.

use std::path::PathBuf;

use crate::ShardId;

/// Why a journal operation failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// Another process, or another engine in this one, has the journal open.
    #[error(
        "journal {} is in use by another process or engine; stop that one first, or give this one \
         its own file", path.display()
    )]
    InUse {
        /// The journal's file.
        path: PathBuf,
    },
    /// The position is not the next free one: somebody else has appended, or the caller is
    /// confused.
    #[error(
        "shard {shard} of journal {}: position {position} was offered, but {next} is the next free \
         one; another coordinator has taken over this shard, so stop and do not retry",
        path.display()
    )]
    Conflict {
        /// The journal's file.
        path: PathBuf,
        /// The shard appended to.
        shard: ShardId,
        /// The position that the caller offered.
        position: u64,
        /// The position that would have been accepted.
        next: u64,
    },
    /// A position is asked for or needed that the journal does not hold.
    #[error(
        "shard {shard} of journal {}: position {expected} is needed, but {found} is what comes \
         next there; if nothing was asked for beyond the journal's bounds, batches are missing: \
         restore the whole file from a copy", path.display()
    )]
    Gap {
        /// The journal's file.
        path: PathBuf,
        /// The shard read.
        shard: ShardId,
        /// The position that is missing.
        expected: u64,
        /// The nearest position that could have been given instead.
        found: u64,
    },
    /// Stored bytes are not what was written.
    #[error(
        "journal {} is damaged at {place}: {detail}; nothing was skipped or repaired: restore the \
         whole file (with its -wal file, if it has one) from a copy", path.display()
    )]
    Corrupt {
        /// The journal's file.
        path: PathBuf,
        /// Shard and position, or the part of the file.
        place: String,
        /// What is wrong there.
        detail: String,
    },
    /// A newer release has written this.
    #[error(
        "journal {} has format version {found}, and this program reads up to {supported}; use the \
         release that wrote it, or a later one", path.display()
    )]
    NewerVersion {
        /// The journal's file.
        path: PathBuf,
        /// The version found.
        found: u32,
        /// The newest version that this program reads.
        supported: u32,
    },
    /// The file is something else than a journal.
    #[error(
        "{} is not a journal of Unanimity ({detail}); it was left as it is: name another file",
        path.display()
    )]
    ForeignFile {
        /// The file.
        path: PathBuf,
        /// What it looks like instead.
        detail: String,
    },
    /// No space, quota or inode is left.
    #[error("no space left for journal {} ({message}); free some and start again", path.display())]
    DiskFull {
        /// The journal's file.
        path: PathBuf,
        /// The storage's own words.
        message: String,
    },
    /// The file, its folder or its file system may not be written.
    #[error(
        "journal {} may not be written ({message}); grant write permission on the file and on its \
         folder and start again", path.display()
    )]
    ReadOnly {
        /// The journal's file.
        path: PathBuf,
        /// The storage's own words.
        message: String,
    },
    /// The storage failed in some other way.
    #[error("journal {}: {message}; check the path and the disk, and start again", path.display())]
    Io {
        /// The journal's file.
        path: PathBuf,
        /// The storage's own words.
        message: String,
    },
    /// The batch is larger than an engine takes.
    #[error(
        "shard {shard} of journal {}: a batch of {bytes} bytes is more than the {bytes_max} \
         allowed; append fewer records at once", path.display()
    )]
    TooLarge {
        /// The journal's file.
        path: PathBuf,
        /// The shard appended to.
        shard: ShardId,
        /// The size of the refused batch.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// An earlier write failed; what is stored is known only after a reopen.
    #[error(
        "journal {} has stopped after a failed write ({cause}); end this shard and open the \
         journal anew", path.display()
    )]
    Poisoned {
        /// The journal's file.
        path: PathBuf,
        /// The message of the failure.
        cause: String,
    },
}

impl JournalError {
    /// The stable code that logs and the wire carry.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::InUse { .. } => "journal_in_use",
            Self::Conflict { .. } => "journal_conflict",
            Self::Gap { .. } => "journal_gap",
            Self::Corrupt { .. } => "journal_corrupt",
            Self::NewerVersion { .. } => "journal_newer_version",
            Self::ForeignFile { .. } => "journal_foreign_file",
            Self::DiskFull { .. } => "journal_disk_full",
            Self::ReadOnly { .. } => "journal_read_only",
            Self::Io { .. } => "journal_io",
            Self::TooLarge { .. } => "journal_too_large",
            Self::Poisoned { .. } => "journal_poisoned",
        }
    }

    /// Whether this refuses a request and leaves the storage as it was, so that the engine may go
    /// on. Anything else that happens during a write poisons the engine.
    pub(crate) const fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::Conflict { .. }
                | Self::Gap { .. }
                | Self::TooLarge { .. }
                | Self::Poisoned { .. }
        )
    }
}
