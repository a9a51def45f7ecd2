//! Decides where a shard stands, as its rows tell: the first position kept, the last batch, and
//! their checksums. What is made of it is left to the engine.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension, params};

use super::failure::failure;
use crate::batch::GENESIS;
use crate::chain::{Tail, corrupt, sound};
use crate::{JournalError, ShardId};

const POSITION_BITS: u32 = 48;

pub(super) const POSITION_MAX: u64 = (1 << POSITION_BITS) - 1;

/// The key of a batch. Shards from 32,768 on make negative keys, in order all the same.
pub(super) fn key(shard: ShardId, position: u64) -> i64 {
    assert!(position <= POSITION_MAX, "a shard holds at most {POSITION_MAX} batches");
    (u64::from(shard) << POSITION_BITS | position).cast_signed()
}

pub(super) fn position(key: i64) -> u64 {
    key.cast_unsigned() & POSITION_MAX
}

pub(super) fn load_tail(
    connection: &Connection,
    path: &Path,
    shard: ShardId,
) -> Result<Tail, JournalError> {
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
pub(super) fn load_checksums(
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
pub(super) fn load_first(
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

/// Deletes the batches before `before`. To be called within a transaction; going backwards changes
/// nothing.
pub(super) fn forget(
    connection: &Connection,
    path: &Path,
    shard: ShardId,
    tail: Tail,
    before: u64,
) -> Result<Tail, JournalError> {
    if before <= tail.first {
        return Ok(tail);
    }
    tail.check_inside(path, shard, before)?;
    let first_previous = if before == tail.next {
        tail.checksum
    } else {
        load_checksums(connection, path, shard, before)?.0
    };
    connection
        .prepare_cached("DELETE FROM batches WHERE key BETWEEN ?1 AND ?2")
        .and_then(|mut delete| delete.execute([key(shard, tail.first), key(shard, before - 1)]))
        .and_then(|_| save_first(connection, shard, before, first_previous))
        .map_err(|error| failure(path, error))?;
    Ok(Tail { first: before, first_previous, ..tail })
}

fn first_checksum(shard: ShardId, first: u64, previous: u32) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&shard.to_le_bytes());
    hasher.update(&first.to_le_bytes());
    hasher.update(&previous.to_le_bytes());
    hasher.finalize()
}
