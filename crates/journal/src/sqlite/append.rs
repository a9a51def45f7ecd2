//! Appends one batch, and verifies within the same transaction that the storage ends where it must.
//!
//! Nearly always it is known where it ends. Then one statement does it all, and is a transaction by
//! itself: with statements that begin, ask, insert and commit, a processor that comes from
//! something else spends more time on fetching SQLite's code than on all that it does with it.

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior, params};

use super::failure::failure;
use super::tail::{POSITION_MAX, forget, key, load_tail};
use crate::batch::{self, GENESIS};
use crate::chain::Tail;
use crate::{JournalError, ShardId};

/// Inserts nothing if the shard's last key is another one: without bytes a row is ignored.
const INSERT_BEHIND: &str = "INSERT OR IGNORE INTO batches (key, bytes) VALUES (?1, \
     CASE WHEN (SELECT max(key) FROM batches WHERE key BETWEEN ?3 AND ?4) IS ?5 THEN ?2 END)";

/// Appends behind `tail` and returns the new one. `None`: the storage does not end there, and
/// nothing was written.
pub(super) fn append_behind(
    connection: &Connection,
    path: &Path,
    shard: ShardId,
    tail: Tail,
    records: &[&[u8]],
) -> Result<Option<Tail>, JournalError> {
    if !connection.is_autocommit() {
        // A transaction was left open: the statement would be a part of it, and not durable when it
        // returns. To begin another one fails.
        return Ok(None);
    }
    let bytes = batch::encode(shard, tail.next, tail.checksum, records);
    let last = (tail.first < tail.next).then(|| key(shard, tail.next - 1));
    let (from, to) = (key(shard, 0), key(shard, POSITION_MAX));
    let inserted = connection
        .prepare_cached(INSERT_BEHIND)
        .and_then(|mut insert| {
            insert.execute(params![key(shard, tail.next), bytes, from, to, last])
        })
        .map_err(|error| failure(path, error))?;
    Ok((inserted == 1).then(|| behind(tail, &bytes)))
}

/// Asks the storage where it ends, and appends if that is at `position`; forgets what lies before
/// `before`, if anything is to be forgotten. Returns the new tail.
pub(super) fn append_anew(
    connection: &mut Connection,
    path: &Path,
    shard: ShardId,
    (position, records): (u64, &[&[u8]]),
    before: Option<u64>,
) -> Result<Tail, JournalError> {
    let fail = |error| failure(path, error);
    let transaction =
        connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(fail)?;
    let tail = load_tail(&transaction, path, shard)?;
    tail.check_free(path, shard, position)?;
    let tail = match before {
        Some(before) => forget(&transaction, path, shard, tail, before)?,
        None => tail,
    };
    let bytes = batch::encode(shard, position, tail.checksum, records);
    transaction
        .prepare_cached("INSERT INTO batches (key, bytes) VALUES (?1, ?2)")
        .and_then(|mut insert| insert.execute(params![key(shard, position), bytes]))
        .map_err(fail)?;
    transaction.commit().map_err(fail)?;
    Ok(behind(tail, &bytes))
}

/// The tail once `bytes` lie there.
fn behind(tail: Tail, bytes: &[u8]) -> Tail {
    let checksum = batch::stored_checksum(bytes).unwrap_or(GENESIS);
    Tail { next: tail.next + 1, checksum, ..tail }
}
