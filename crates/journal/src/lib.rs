//! The coordinator's durable log: a numbered sequence of batches per shard, with one operation that
//! matters, compare-and-append. This crate decides when a batch is durable, whether what is read
//! back is what was written, and who may append; what the records mean, when to checkpoint, and
//! what to do after a failure is left to the manager.
//!
//! The parts:
//! - [`Engine`]: the contract. [`LogEngine`] keeps it in one file, of a format of its own;
//!   [`SqliteEngine`], the older one, in one of SQLite; [`MemoryEngine`] in memory, with the faults
//!   that tests and the simulator need.
//! - [`batch`]: the bytes of a batch, the same in every engine.
//! - [`JournalError`]: every cause of failure, each with a stable code.
//!
//! ```
//! use unanimity_journal::{Engine, JournalError, SqliteEngine};
//! # fn main() -> Result<(), JournalError> {
//! # let folder = std::env::temp_dir().join(format!("unanimity-journal-doc-{}",
//! std::process::id()));
//! # std::fs::create_dir_all(&folder).ok();
//! # let path = folder.join("shard-0.journal");
//! let mut journal = SqliteEngine::open(&path)?;
//! let receipt = journal.append(0, 1, &[b"begun", b"decided"])?;
//! assert_eq!((receipt.shard(), receipt.position()), (0, 1));
//! drop(journal);
//!
//! // After a restart: read, harden what was read, and only then act on it.
//! let mut journal = SqliteEngine::open(&path)?;
//! let first = journal.bounds(0)?.first;
//! let mut records = Vec::new();
//! journal.read(0, first, &mut |batch| {
//!     records.extend(batch.records.iter().map(|record| record.to_vec()));
//!     Ok(())
//! })?;
//! journal.harden(0)?;
//! assert_eq!(records, [b"begun".to_vec(), b"decided".to_vec()]);
//! assert_eq!(journal.bounds(0)?.next, 2);
//! # drop(journal);
//! # std::fs::remove_dir_all(&folder).ok();
//! # Ok(())
//! # }
//! ```

pub mod batch;
mod chain;
mod error;
mod io;
mod log;
mod memory;
mod mutation;
mod poison;
mod sqlite;

pub use error::JournalError;
pub use log::LogEngine;
pub use memory::{AppendFault, MemoryEngine};
pub use mutation::{Mutation, Mutations};
pub use sqlite::{SqliteEngine, scan_write_ahead_log};

/// Names a shard: one coordinator's own sequence of batches.
pub type ShardId = u16;

/// Proof that everything of a shard up to and including a position is durable. Only an engine can
/// make one, so whatever asks for it cannot run too early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    shard: ShardId,
    position: u64,
}

impl Receipt {
    pub(crate) const fn new(shard: ShardId, position: u64) -> Self {
        Self { shard, position }
    }

    /// The shard.
    #[must_use]
    pub const fn shard(&self) -> ShardId {
        self.shard
    }

    /// The last position that is durable.
    #[must_use]
    pub const fn position(&self) -> u64 {
        self.position
    }
}

/// One numbered batch as read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch<'a> {
    /// Its number; the first of a shard is 1.
    pub position: u64,
    /// Its records, as they were appended.
    pub records: Vec<&'a [u8]>,
}

/// What a shard's journal holds: the positions from `first` up to, and without, `next`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// The first position still kept; 1 in a fresh journal. Equal to `next` where nothing is kept.
    pub first: u64,
    /// The next free position.
    pub next: u64,
}

/// Compare-and-append: what a storage must offer to carry a journal.
///
/// After a failed write or sync (anything but [`JournalError::Conflict`], [`JournalError::Gap`] and
/// [`JournalError::TooLarge`]) an engine is poisoned: whether the write is durable is unknown, and
/// every later call fails with [`JournalError::Poisoned`]. Recovery is to drop it and open anew.
pub trait Engine: Send + 'static {
    /// Appends a batch; durable when it returns.
    ///
    /// # Errors
    /// [`JournalError::Conflict`] if `position` is not the next free one: nothing was written, and
    /// somebody else owns the shard now. [`JournalError::TooLarge`] beyond
    /// [`batch::BATCH_BYTES_MAX`]: nothing was written. Anything else: the outcome is unknown.
    fn append(
        &mut self,
        shard: ShardId,
        position: u64,
        records: &[&[u8]],
    ) -> Result<Receipt, JournalError> {
        self.append_and_truncate(shard, position, records, None)
    }

    /// Appends a batch and forgets all batches before `before`, if any are to be forgotten, both in
    /// one storage transaction: a truncation that shares the sync of an append costs nobody a wait.
    ///
    /// # Errors
    /// Those of [`Engine::append`]. [`JournalError::Gap`] if `before` is beyond `position`: nothing
    /// was written, and nothing forgotten.
    fn append_and_truncate(
        &mut self,
        shard: ShardId,
        position: u64,
        records: &[&[u8]],
        before: Option<u64>,
    ) -> Result<Receipt, JournalError>;

    /// Whether the next append will take longer, because much is to be tidied up with it. Who wraps
    /// an engine hands this on.
    fn is_due(&self) -> bool {
        false
    }

    /// Hands over all batches from `from` on, in order, one at a time, so that recovery of millions
    /// needs the memory of one. `from` may be anything from `first` to `next` of
    /// [`Engine::bounds`].
    ///
    /// # Errors
    /// Whatever `each` fails with. [`JournalError::Gap`] if `from` lies outside the bounds or a
    /// position is missing; [`JournalError::Corrupt`] or [`JournalError::NewerVersion`] for a batch
    /// that is not sound. Nothing is ever skipped.
    fn read(
        &mut self,
        shard: ShardId,
        from: u64,
        each: &mut dyn FnMut(Batch<'_>) -> Result<(), JournalError>,
    ) -> Result<(), JournalError>;

    /// The first position still kept and the next free one.
    ///
    /// # Errors
    /// If the storage cannot be read or its last batch is not sound.
    fn bounds(&mut self, shard: ShardId) -> Result<Bounds, JournalError>;

    /// Forgets all batches before `before`, which becomes `first` in the same storage transaction.
    /// Going backwards changes nothing.
    ///
    /// # Errors
    /// [`JournalError::Gap`] if `before` is beyond `next`: nothing was changed.
    fn truncate(&mut self, shard: ShardId, before: u64) -> Result<(), JournalError>;

    /// Makes everything that [`Engine::read`] has shown durable again: after a failed sync the page
    /// cache can show what the disk does not hold. To be called after recovery's read and before
    /// anything acts on it.
    ///
    /// # Errors
    /// If it cannot be made durable; nothing that was read may then be acted on.
    fn harden(&mut self, shard: ShardId) -> Result<(), JournalError>;
}
