//! Decides how locks, versions and values lie in SQLite, and nothing else: every function here is
//! one statement on the caller's connection, inside whatever transaction the caller has open.

use rusqlite::types::{Type, Value};
use rusqlite::{Connection, OptionalExtension, params};
use unanimity_core::TransactionId;

use super::age::Age;
use super::plan::Access;
use crate::service::BranchContext;

/// The tables. `unanimity_lock` has one row for each key that a prepared branch holds: `access` is
/// the number of an [`Access`], `born_ms` the age's, and `value` is what commit stores where
/// `writes` is 1. `unanimity_version` counts the changes of a key; a key without a row is at 0.
/// `unanimity_value` is for services that have no tables of their own.
const CREATE: &str = "
    CREATE TABLE IF NOT EXISTS unanimity_lock (
        key TEXT NOT NULL,
        transaction_id TEXT NOT NULL,
        branch TEXT NOT NULL,
        access INTEGER NOT NULL,
        born_ms INTEGER NOT NULL,
        writes INTEGER NOT NULL,
        value ANY,
        PRIMARY KEY (key, transaction_id, branch)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS unanimity_lock_branch
        ON unanimity_lock (transaction_id, branch);
    CREATE TABLE IF NOT EXISTS unanimity_version (
        key TEXT PRIMARY KEY,
        version INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS unanimity_value (
        key TEXT PRIMARY KEY,
        value ANY NOT NULL
    ) STRICT, WITHOUT ROWID;";

/// Who holds a key, and how.
pub(super) struct Holder {
    pub(super) age: Age,
    pub(super) access: Access,
}

/// A lock taken out again: the key, and what commit stores if it stores anything.
pub(super) struct Held {
    pub(super) key: String,
    pub(super) pending: Option<Value>,
}

pub(super) fn create(database: &Connection) -> rusqlite::Result<()> {
    database.execute_batch(CREATE)
}

pub(super) fn holders(database: &Connection, key: &str) -> rusqlite::Result<Vec<Holder>> {
    let sql = "SELECT transaction_id, born_ms, access FROM unanimity_lock WHERE key = ?1";
    let mut statement = database.prepare_cached(sql)?;
    let rows = statement.query_map([key], |row| {
        let transaction = TransactionId::new(row.get_ref(0)?.as_str()?).map_err(|error| {
            rusqlite::Error::FromSqlConversionFailure(0, Type::Text, Box::new(error))
        })?;
        let number: i64 = row.get(2)?;
        let access = Access::from_number(number).ok_or_else(|| {
            let text = format!("access {number} is of a newer version of this program");
            rusqlite::Error::FromSqlConversionFailure(2, Type::Integer, text.into())
        })?;
        Ok(Holder { age: Age::stored(row.get(1)?, transaction), access })
    })?;
    rows.collect()
}

pub(super) fn lock(
    database: &Connection,
    key: &str,
    branch: &BranchContext,
    access: Access,
    age: &Age,
    pending: Option<&Value>,
) -> rusqlite::Result<()> {
    let sql = "INSERT INTO unanimity_lock VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
    let (transaction, name) = (branch.transaction.as_str(), &*branch.branch);
    let (access, writes) = (access as u8, pending.is_some());
    let row = params![key, transaction, name, access, age.born_ms(), writes, pending];
    database.prepare_cached(sql)?.execute(row)?;
    Ok(())
}

/// Takes out everything that a branch holds.
pub(super) fn unlock(database: &Connection, branch: &BranchContext) -> rusqlite::Result<Vec<Held>> {
    let sql = "DELETE FROM unanimity_lock WHERE transaction_id = ?1 AND branch = ?2 \
               RETURNING key, writes, value";
    let mut statement = database.prepare_cached(sql)?;
    let rows =
        statement.query_map(params![branch.transaction.as_str(), &*branch.branch], |row| {
            let pending = if row.get(1)? { Some(row.get(2)?) } else { None };
            Ok(Held { key: row.get(0)?, pending })
        })?;
    rows.collect()
}

pub(super) fn locked_keys(database: &Connection) -> rusqlite::Result<u64> {
    let count: i64 =
        database.query_row("SELECT count(*) FROM unanimity_lock", [], |row| row.get(0))?;
    Ok(u64::try_from(count).unwrap_or(0))
}

pub(super) fn version(database: &Connection, key: &str) -> rusqlite::Result<i64> {
    let sql = "SELECT version FROM unanimity_version WHERE key = ?1";
    let found = database.prepare_cached(sql)?.query_row([key], |row| row.get(0)).optional()?;
    Ok(found.unwrap_or(0))
}

pub(super) fn raise_version(database: &Connection, key: &str) -> rusqlite::Result<()> {
    let sql = "INSERT INTO unanimity_version VALUES (?1, 1) \
               ON CONFLICT DO UPDATE SET version = version + 1";
    database.prepare_cached(sql)?.execute([key])?;
    Ok(())
}

pub(super) fn value(database: &Connection, key: &str) -> rusqlite::Result<Value> {
    let sql = "SELECT value FROM unanimity_value WHERE key = ?1";
    let found = database.prepare_cached(sql)?.query_row([key], |row| row.get(0)).optional()?;
    Ok(found.unwrap_or(Value::Null))
}

/// Nothing is stored as no row at all.
pub(super) fn set_value(database: &Connection, key: &str, value: &Value) -> rusqlite::Result<()> {
    if *value == Value::Null {
        let sql = "DELETE FROM unanimity_value WHERE key = ?1";
        database.prepare_cached(sql)?.execute([key])?;
        return Ok(());
    }
    let sql = "INSERT INTO unanimity_value VALUES (?1, ?2) \
               ON CONFLICT DO UPDATE SET value = excluded.value";
    database.prepare_cached(sql)?.execute(params![key, value])?;
    Ok(())
}
