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
//! 2. Instead an append that finds [`WAL_PAGES_MAX`] pages or more not yet checkpointed does that
//!    first. If it fails, the append fails, nothing of it is written, and the engine is poisoned.
//! 3. A write-ahead log inherited from an earlier process is never appended to: it is emptied into
//!    the file ([`Engine::harden`]) before the first write. So its end can be judged at the next
//!    open.

mod failure;
mod open;
mod room;
#[cfg(test)]
mod tests;
mod wal;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};

use crate::batch::{self, GENESIS};
use crate::chain::{Chain, Tail, corrupt, sound};
use crate::{Batch, Bounds, Engine, JournalError, Receipt, ShardId};
use failure::failure;
use room::Room;

pub use wal::scan_write_ahead_log;

/// Pages (of 4 kB) in the write-ahead log from which on an append empties it first: 16 MB. Measured
/// under batches of 50 kB: the one append that empties it takes 11 ms at 1024 pages, 32 ms at 4096,
/// 107 ms at 16384, and the mean falls by 6 % at each step. In between, truncation saves most of
/// the writing.
const WAL_PAGES_MAX: i64 = 4096;

const POSITION_BITS: u32 = 48;

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
    /// The write-ahead log may hold pages that this process has not synced.
    inherited: bool,
    room: Room,
    poison: Option<String>,
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
        let (tails, room) = (BTreeMap::new(), Room::default());
        Ok(Self { connection, path, tails, inherited: true, room, poison: None })
    }

    fn check_poison(&self) -> Result<(), JournalError> {
        match &self.poison {
            None => Ok(()),
            Some(cause) => {
                Err(JournalError::Poisoned { path: self.path.clone(), cause: cause.clone() })
            }
        }
    }

    /// Runs a write; poisons the engine unless it succeeds or was refused with nothing written.
    fn write<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, JournalError>,
    ) -> Result<T, JournalError> {
        self.check_poison()?;
        let outcome = work(self);
        if let Err(error) = &outcome
            && !error.is_refusal()
        {
            self.poison = Some(error.to_string());
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
        position: u64,
        records: &[&[u8]],
    ) -> Result<Receipt, JournalError> {
        let path = &self.path;
        let fail = |error| failure(path, error);
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(fail)?;
        let tail = current_tail(&transaction, path, shard, self.tails.get(&shard))?;
        tail.check_free(path, shard, position)?;
        let bytes = batch::encode(shard, position, tail.checksum, records);
        transaction
            .prepare_cached("INSERT INTO batches (key, bytes) VALUES (?1, ?2)")
            .and_then(|mut insert| insert.execute(params![key(shard, position), bytes]))
            .map_err(fail)?;
        transaction.commit().map_err(fail)?;
        let checksum = batch::stored_checksum(&bytes).unwrap_or(GENESIS);
        self.tails.insert(shard, Tail { next: position + 1, checksum, ..tail });
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
        if before <= tail.first {
            return Ok(());
        }
        tail.check_inside(path, shard, before)?;
        let first_previous = if before == tail.next {
            tail.checksum
        } else {
            load_checksums(&transaction, path, shard, before)?.0
        };
        transaction
            .prepare_cached("DELETE FROM batches WHERE key BETWEEN ?1 AND ?2")
            .and_then(|mut delete| {
                delete.execute(params![key(shard, tail.first), key(shard, before - 1)])
            })
            .map_err(fail)?;
        save_first(&transaction, shard, before, first_previous).map_err(fail)?;
        transaction.commit().map_err(fail)?;
        self.tails.insert(shard, Tail { first: before, first_previous, ..tail });
        Ok(())
    }

    /// Brings the write-ahead log into a state in which so many bytes may be appended to it.
    fn settle_wal(&mut self, batch_bytes: usize) -> Result<(), JournalError> {
        if self.inherited {
            self.checkpoint("TRUNCATE")?;
        }
        let (mut pages, mut done) = self.wal_pages()?;
        if pages - done >= WAL_PAGES_MAX {
            // PASSIVE keeps the file's length: overwriting blocks that exist syncs faster.
            self.checkpoint("PASSIVE")?;
            (pages, done) = self.wal_pages()?;
        }
        // A log that is in the file as a whole is written from its beginning again.
        let before = if pages == done { 0 } else { pages };
        self.room.make(&self.path, before.cast_unsigned(), batch_bytes as u64)
    }

    /// How many pages the write-ahead log has, and how many of them are in the file.
    fn wal_pages(&self) -> Result<(i64, i64), JournalError> {
        self.connection
            .prepare_cached("PRAGMA wal_checkpoint(NOOP)")
            .and_then(|mut pragma| pragma.query_row([], |row| Ok((row.get(1)?, row.get(2)?))))
            .map_err(|error| failure(&self.path, error))
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
        if mode == "TRUNCATE" {
            self.room.forget();
        }
        Ok(())
    }
}

impl Engine for SqliteEngine {
    fn append(
        &mut self,
        shard: ShardId,
        position: u64,
        records: &[&[u8]],
    ) -> Result<Receipt, JournalError> {
        self.write(|engine| {
            batch::check_size(&engine.path, shard, records)?;
            engine.settle_wal(batch::encoded_bytes(records).unwrap_or(0))?;
            engine.append_checked(shard, position, records)
        })
    }

    fn read(
        &mut self,
        shard: ShardId,
        from: u64,
        each: &mut dyn FnMut(Batch<'_>) -> Result<(), JournalError>,
    ) -> Result<(), JournalError> {
        self.check_poison()?;
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
        self.check_poison()?;
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

const POSITION_MAX: u64 = (1 << POSITION_BITS) - 1;

/// The key of a batch. Shards from 32,768 on make negative keys, in order all the same.
fn key(shard: ShardId, position: u64) -> i64 {
    assert!(position <= POSITION_MAX, "a shard holds at most {POSITION_MAX} batches");
    (u64::from(shard) << POSITION_BITS | position).cast_signed()
}

fn position(key: i64) -> u64 {
    key.cast_unsigned() & POSITION_MAX
}

/// The tail as cached, if the storage still ends there; otherwise as the storage has it.
fn current_tail(
    connection: &Connection,
    path: &Path,
    shard: ShardId,
    cached: Option<&Tail>,
) -> Result<Tail, JournalError> {
    let last: Option<i64> = connection
        .prepare_cached("SELECT max(key) FROM batches WHERE key BETWEEN ?1 AND ?2")
        .and_then(|mut select| {
            let range = params![key(shard, 0), key(shard, POSITION_MAX)];
            select.query_row(range, |row| row.get(0))
        })
        .map_err(|error| failure(path, error))?;
    match cached {
        Some(tail) if last.map_or(tail.first, |key| position(key) + 1) == tail.next => Ok(*tail),
        Some(_) | None => load_tail(connection, path, shard),
    }
}

fn load_tail(connection: &Connection, path: &Path, shard: ShardId) -> Result<Tail, JournalError> {
    let fail = |error| failure(path, error);
    let (first, first_previous) = load_first(connection, path, shard)?;
    let mut select = connection
        .prepare_cached(
            "SELECT key, bytes FROM batches WHERE key BETWEEN ?1 AND ?2 ORDER BY key DESC LIMIT 1",
        )
        .map_err(fail)?;
    let range = params![key(shard, 0), key(shard, POSITION_MAX)];
    let last: Option<(i64, Vec<u8>)> =
        select.query_row(range, |row| Ok((row.get(0)?, row.get(1)?))).optional().map_err(fail)?;
    let Some((key, bytes)) = last else {
        return Ok(Tail { first, first_previous, next: first, checksum: first_previous });
    };
    let position = position(key);
    if position < first {
        let detail = format!("a batch before the first one kept, {first}");
        return Err(corrupt(path, shard, position, detail));
    }
    let checksum = sound(path, shard, position, &bytes)?.checksum;
    Ok(Tail { first, first_previous, next: position + 1, checksum })
}

/// The checksums of a batch in the middle, its predecessor's and its own. It must be there.
fn load_checksums(
    connection: &Connection,
    path: &Path,
    shard: ShardId,
    position: u64,
) -> Result<(u32, u32), JournalError> {
    let bytes: Option<Vec<u8>> = connection
        .prepare_cached("SELECT bytes FROM batches WHERE key = ?1")
        .and_then(|mut select| {
            select.query_row([key(shard, position)], |row| row.get(0)).optional()
        })
        .map_err(|error| failure(path, error))?;
    let missing = || corrupt(path, shard, position, "the batch is missing".to_owned());
    let bytes = bytes.ok_or_else(missing)?;
    let batch = sound(path, shard, position, &bytes)?;
    Ok((batch.previous_checksum, batch.checksum))
}

/// The first position kept, and the checksum of the batch before it.
fn load_first(
    connection: &Connection,
    path: &Path,
    shard: ShardId,
) -> Result<(u64, u32), JournalError> {
    let row = connection
        .prepare_cached("SELECT first, previous, checksum FROM shards WHERE shard = ?1")
        .and_then(|mut select| {
            let columns = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
            select.query_row([shard], columns).optional()
        })
        .map_err(|error| failure(path, error))?;
    let Some((first, previous, checksum)) = row else { return Ok((1, GENESIS)) };
    let first = i64::cast_unsigned(first);
    if first_checksum(shard, first, previous) != checksum {
        let detail = "the record of what was forgotten has a wrong checksum".to_owned();
        return Err(corrupt(path, shard, first, detail));
    }
    Ok((first, previous))
}

fn save_first(
    connection: &Connection,
    shard: ShardId,
    first: u64,
    previous: u32,
) -> rusqlite::Result<()> {
    let checksum = first_checksum(shard, first, previous);
    connection
        .prepare_cached("INSERT OR REPLACE INTO shards VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![shard, first.cast_signed(), previous, checksum])?;
    Ok(())
}

fn first_checksum(shard: ShardId, first: u64, previous: u32) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&shard.to_le_bytes());
    hasher.update(&first.to_le_bytes());
    hasher.update(&previous.to_le_bytes());
    hasher.finalize()
}
