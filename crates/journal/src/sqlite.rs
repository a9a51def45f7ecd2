//! The embedded default engine: one SQLite file in WAL mode with `synchronous=FULL`. It decides how
//! batches lie in tables and when the write-ahead log is checkpointed; whether a file is ours is
//! left to `open`, whether its write-ahead log is whole to `wal`.
//!
//! How it lies:
//! - `batches(key, bytes)`: `key` is the shard in the upper 16 bits and the position in the lower
//!   48; `bytes` as [`crate::batch`] says. One integer key is the fastest of the layouts that were
//!   measured (a composite key WITHOUT ROWID costs half as much again for a batch of 50 kB). The
//!   next free position is not stored but derived, so that an append touches one tree only.
//! - `shards(shard, first, previous, checksum)`: a row once a shard was truncated: the first
//!   position kept and the checksum of the batch before it. `checksum` is a CRC-32 over the other
//!   three.
//!
//! The write-ahead log, as a story:
//! 1. SQLite's own automatic checkpoint is off: it would run inside a commit, and it swallows a
//!    failing sync.
//! 2. Instead an append that finds many pages not yet checkpointed does that first (`frames` says
//!    how many are). If it fails, the append fails, nothing of it is written, and the engine is
//!    poisoned.
//! 3. A write-ahead log inherited from an earlier process is never appended to: it is emptied into
//!    the file ([`Engine::harden`]) before the first write. So its end can be judged at the next
//!    open.

mod append;
mod failure;
mod frames;
mod open;
mod room;
mod tail;
#[cfg(test)]
mod tests;
mod wal;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, TransactionBehavior, params};

use crate::batch;
use crate::chain::{Chain, Tail};
use crate::poison::Poison;
use crate::{Batch, Bounds, Engine, JournalError, Receipt, ShardId};
use append::{append_anew, append_behind};
use failure::failure;
use frames::Frames;
use room::Room;
use tail::{POSITION_MAX, forget, key, load_checksums, load_tail, position};

pub use wal::scan_write_ahead_log;

/// A journal in one SQLite file, held exclusively from [`SqliteEngine::open`] until it is dropped.
///
/// One file may carry several shards, but they then share one sync after another: give each its
/// own.
#[derive(Debug)]
pub struct SqliteEngine {
    connection: Connection,
    path: PathBuf,
    /// What the storage is known to hold; checked against it within each append's transaction.
    tails: BTreeMap<ShardId, Tail>,
    /// The next position of each shard whose end was known at the last checkpoint.
    marks: BTreeMap<ShardId, u64>,
    /// The write-ahead log may hold pages that this process has not synced.
    inherited: bool,
    frames: Frames,
    room: Room,
    poison: Poison,
}

impl SqliteEngine {
    /// Opens the journal at `path`, or creates it; its folder must exist. The whole file is checked
    /// for structural damage, which takes about as long as reading it once.
    ///
    /// # Errors
    /// [`JournalError::InUse`], [`JournalError::ForeignFile`], [`JournalError::NewerVersion`],
    /// [`JournalError::Corrupt`], [`JournalError::ReadOnly`], [`JournalError::DiskFull`] or
    /// [`JournalError::Io`]. A file that is refused is left as it is.
    pub fn open(path: &Path) -> Result<Self, JournalError> {
        let (connection, path) = open::open(path)?;
        let frames = Frames::of(&connection);
        let (tails, room) = (BTreeMap::new(), Room::default());
        let (marks, poison) = (BTreeMap::new(), Poison::default());
        Ok(Self { connection, path, tails, marks, inherited: true, frames, room, poison })
    }

    /// Runs a write; poisons the engine unless it succeeds or was refused with nothing written.
    fn write<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, JournalError>,
    ) -> Result<T, JournalError> {
        self.poison.check(&self.path)?;
        let outcome = work(self);
        if self.poison.take_in(&outcome) {
            self.tails.clear();
            // Closing must not try what has just failed. That this can fail too changes nothing: a
            // checkpoint writes only what was synced before.
            drop(self.connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true));
        }
        outcome
    }

    fn append_checked(
        &mut self,
        shard: ShardId,
        (position, records): (u64, &[&[u8]]),
        before: Option<u64>,
    ) -> Result<Receipt, JournalError> {
        // What is known of the storage is verified by the statement that appends.
        let known = self.tails.get(&shard).filter(|tail| tail.next == position);
        let appended = match (known, before) {
            (Some(tail), None) => {
                append_behind(&self.connection, &self.path, shard, *tail, records)?
            }
            (None, _) | (_, Some(_)) => None,
        };
        let tail = match appended {
            Some(tail) => tail,
            None => {
                let batch = (position, records);
                append_anew(&mut self.connection, &self.path, shard, batch, before)?
            }
        };
        self.frames.committed();
        self.tails.insert(shard, tail);
        Ok(Receipt::new(shard, position))
    }

    fn truncate_checked(&mut self, shard: ShardId, before: u64) -> Result<(), JournalError> {
        let path = &self.path;
        let fail = |error| failure(path, error);
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(fail)?;
        let tail = load_tail(&transaction, path, shard)?;
        let tail = forget(&transaction, path, shard, tail, before)?;
        transaction.commit().map_err(fail)?;
        self.frames.committed();
        self.tails.insert(shard, tail);
        Ok(())
    }

    /// Brings the write-ahead log into a state in which so many bytes may be appended to it.
    fn settle_wal(&mut self, batch_bytes: usize) -> Result<(), JournalError> {
        if self.inherited {
            self.checkpoint("TRUNCATE")?;
        }
        if self.is_log_full() {
            // PASSIVE keeps the file's length: overwriting blocks that exist syncs faster.
            self.checkpoint("PASSIVE")?;
        }
        self.room.make(&self.path, self.frames.pending(), batch_bytes as u64)
    }

    fn is_log_full(&self) -> bool {
        let (mut appended, mut kept) = (0, 0);
        for (shard, tail) in &self.tails {
            let mark = self.marks.get(shard).copied().unwrap_or(tail.first);
            appended += tail.next - mark;
            kept += tail.next - mark.max(tail.first);
        }
        self.frames.are_full(appended, kept)
    }

    /// Writes all pages of the write-ahead log into the file and syncs it.
    fn checkpoint(&mut self, mode: &str) -> Result<(), JournalError> {
        let row = self
            .connection
            .prepare_cached(&format!("PRAGMA wal_checkpoint({mode})"))
            .and_then(|mut pragma| {
                pragma.query_row([], |row| {
                    Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?))
                })
            })
            .map_err(|error| failure(&self.path, error))?;
        // An incomplete checkpoint is no error to SQLite: only its result row tells. (-1 pages: the
        // file is not in WAL mode.)
        let (busy, pages, done) = row;
        if busy != 0 || pages != done || pages < 0 {
            let message = format!("the checkpoint ended early: {row:?} is (busy, pages, done)");
            return Err(JournalError::Io { path: self.path.clone(), message });
        }
        self.inherited = false;
        self.frames.checkpointed();
        self.marks = self.tails.iter().map(|(shard, tail)| (*shard, tail.next)).collect();
        if mode == "TRUNCATE" {
            self.room.forget();
        }
        Ok(())
    }
}

impl Engine for SqliteEngine {
    fn append_and_truncate(
        &mut self,
        shard: ShardId,
        position: u64,
        records: &[&[u8]],
        before: Option<u64>,
    ) -> Result<Receipt, JournalError> {
        self.write(|engine| {
            batch::check_size(&engine.path, shard, records)?;
            engine.settle_wal(batch::encoded_bytes(records).unwrap_or(0))?;
            engine.append_checked(shard, (position, records), before)
        })
    }

    fn is_due(&self) -> bool {
        self.inherited || self.is_log_full()
    }

    fn read(
        &mut self,
        shard: ShardId,
        from: u64,
        each: &mut dyn FnMut(Batch<'_>) -> Result<(), JournalError>,
    ) -> Result<(), JournalError> {
        self.poison.check(&self.path)?;
        let path = self.path.as_path();
        let fail = |error| failure(path, error);
        let tail = load_tail(&self.connection, path, shard)?;
        tail.check_inside(path, shard, from)?;
        let previous = if from == tail.first {
            tail.first_previous
        } else {
            load_checksums(&self.connection, path, shard, from - 1)?.1
        };
        let mut chain = Chain::new(path, shard, from, previous);
        let mut select = self
            .connection
            .prepare_cached(
                "SELECT key, bytes FROM batches WHERE key BETWEEN ?1 AND ?2 ORDER BY key",
            )
            .map_err(fail)?;
        let range = params![key(shard, from), key(shard, POSITION_MAX)];
        let mut rows = select.query(range).map_err(fail)?;
        while let Some(row) = rows.next().map_err(fail)? {
            let position = position(row.get(0).map_err(fail)?);
            let bytes = row.get_ref(1).map_err(fail)?.as_blob();
            let bytes = bytes.map_err(|error| failure(path, error.into()))?;
            each(chain.admit(position, bytes)?)?;
        }
        Ok(())
    }

    fn bounds(&mut self, shard: ShardId) -> Result<Bounds, JournalError> {
        self.poison.check(&self.path)?;
        let tail = load_tail(&self.connection, &self.path, shard)?;
        Ok(Bounds { first: tail.first, next: tail.next })
    }

    fn truncate(&mut self, shard: ShardId, before: u64) -> Result<(), JournalError> {
        self.write(|engine| {
            engine.settle_wal(0)?;
            engine.truncate_checked(shard, before)
        })
    }

    /// A full checkpoint: every page of the write-ahead log is written into the file, which is
    /// synced, and the log is emptied. All shards of the file are hardened by it.
    fn harden(&mut self, _shard: ShardId) -> Result<(), JournalError> {
        self.write(|engine| engine.checkpoint("TRUNCATE"))
    }
}
