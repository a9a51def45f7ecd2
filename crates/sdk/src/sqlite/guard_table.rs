//! Decides how the guard's rows lie in SQLite, and nothing else: every function here is one
//! statement on the caller's connection, inside whatever transaction the caller has open.

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row, params};
use unanimity_core::TransactionId;
use unanimity_core::guard::{GuardRow, GuardState};

use crate::guard_rows::{GuardCounts, GuardEntry};
use crate::participant::InDoubt;

/// The table. One row for each branch that this participant has ever heard of; `state` is the
/// number of a [`GuardState`], `note` the reason of a no or the JSON result of a yes, `at_ms` the
/// time of the last change in milliseconds since the Unix epoch. The partial index makes the
/// question "what is in doubt" cost as much as there is in doubt, and a settled row costs it
/// nothing.
const CREATE: &str = "
    CREATE TABLE IF NOT EXISTS unanimity_guard (
        transaction_id TEXT NOT NULL,
        branch TEXT NOT NULL,
        state INTEGER NOT NULL,
        note TEXT,
        at_ms INTEGER NOT NULL,
        PRIMARY KEY (transaction_id, branch)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS unanimity_guard_prepared ON unanimity_guard (at_ms)
        WHERE state = 1;";

pub(crate) fn create(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(CREATE)
}

pub(crate) fn read(
    connection: &Connection,
    transaction: &TransactionId,
    branch: &str,
) -> rusqlite::Result<Option<GuardRow>> {
    let sql = "SELECT state, note FROM unanimity_guard WHERE transaction_id = ?1 AND branch = ?2";
    let mut statement = connection.prepare_cached(sql)?;
    statement.query_row(params![transaction.as_str(), branch], |row| guard_row(row, 0)).optional()
}

pub(crate) fn write(
    connection: &Connection,
    transaction: &TransactionId,
    branch: &str,
    row: &GuardRow,
    at_ms: u64,
) -> rusqlite::Result<()> {
    let sql = "INSERT INTO unanimity_guard (transaction_id, branch, state, note, at_ms) \
               VALUES (?1, ?2, ?3, ?4, ?5) \
               ON CONFLICT DO UPDATE SET state = excluded.state, note = excluded.note, \
                                         at_ms = excluded.at_ms";
    let at_ms = i64::try_from(at_ms).unwrap_or(i64::MAX);
    let mut statement = connection.prepare_cached(sql)?;
    statement.execute(params![transaction.as_str(), branch, row.state as u8, row.note, at_ms])?;
    Ok(())
}

pub(super) fn in_doubt(connection: &Connection) -> rusqlite::Result<Vec<InDoubt>> {
    let sql = "SELECT transaction_id, branch, at_ms FROM unanimity_guard \
               WHERE state = 1 ORDER BY at_ms";
    let mut statement = connection.prepare_cached(sql)?;
    let rows = statement.query_map([], |row| {
        Ok(InDoubt {
            transaction: transaction_id(row, 0)?,
            branch: row.get(1)?,
            since_ms: unsigned(row, 2)?,
        })
    })?;
    rows.collect()
}

pub(super) fn entries(
    connection: &Connection,
    after: Option<(&str, &str)>,
    settled_before_ms: Option<u64>,
    rows_max: u32,
) -> rusqlite::Result<Vec<GuardEntry>> {
    let sql = "SELECT transaction_id, branch, state, note, at_ms FROM unanimity_guard \
               WHERE (transaction_id, branch) > (?1, ?2) \
               AND (?4 IS NULL OR (at_ms < ?4 AND state <> 1)) \
               ORDER BY transaction_id, branch LIMIT ?3";
    let (transaction, branch) = after.unwrap_or(("", ""));
    let before_ms = settled_before_ms.map(|ms| i64::try_from(ms).unwrap_or(i64::MAX));
    let mut statement = connection.prepare_cached(sql)?;
    let rows = statement.query_map(params![transaction, branch, rows_max, before_ms], |row| {
        Ok(GuardEntry {
            transaction: transaction_id(row, 0)?,
            branch: row.get(1)?,
            row: guard_row(row, 2)?,
            at_ms: unsigned(row, 4)?,
        })
    })?;
    rows.collect()
}

/// Removes a row if it is still as it was read.
pub(super) fn forget(connection: &Connection, entry: &GuardEntry) -> rusqlite::Result<u64> {
    let sql = "DELETE FROM unanimity_guard \
               WHERE transaction_id = ?1 AND branch = ?2 AND state = ?3 AND at_ms = ?4";
    let at_ms = i64::try_from(entry.at_ms).unwrap_or(i64::MAX);
    let state = entry.row.state as u8;
    let mut statement = connection.prepare_cached(sql)?;
    let removed =
        statement.execute(params![entry.transaction.as_str(), &*entry.branch, state, at_ms])?;
    Ok(removed as u64)
}

pub(super) fn counts(connection: &Connection) -> rusqlite::Result<GuardCounts> {
    let mut counts = GuardCounts::default();
    let sql = "SELECT state, count(*) FROM unanimity_guard GROUP BY state";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let count = unsigned(row, 1)?;
        counts.put(state(row, 0)?, count);
    }
    Ok(counts)
}

fn guard_row(row: &Row<'_>, column: usize) -> rusqlite::Result<GuardRow> {
    Ok(GuardRow { state: state(row, column)?, note: row.get(column + 1)? })
}

/// A number that this version does not know is an error, never guessed at.
fn state(row: &Row<'_>, column: usize) -> rusqlite::Result<GuardState> {
    let number: i64 = row.get(column)?;
    let known = u8::try_from(number).ok().and_then(GuardState::from_number);
    known.ok_or_else(|| {
        let text = format!("guard state {number} is of a newer version of this program");
        rusqlite::Error::FromSqlConversionFailure(column, Type::Integer, text.into())
    })
}

fn transaction_id(row: &Row<'_>, column: usize) -> rusqlite::Result<TransactionId> {
    let text = row.get_ref(column)?.as_str()?;
    TransactionId::new(text).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(error))
    })
}

/// SQLite knows no unsigned numbers; ours stay far below its largest.
fn unsigned(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    Ok(u64::try_from(row.get::<_, i64>(column)?).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> String {
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    fn published() -> String {
        words(include_str!("../../../../docs/guard-table.md"))
    }

    #[test]
    fn the_table_is_the_one_that_is_published() {
        let sql = words(CREATE);
        let table = sql.split(';').find(|one| one.contains("CREATE TABLE")).unwrap();
        let (_, table) = table.split_once("CREATE TABLE").unwrap();
        assert!(published().contains(&format!("CREATE TABLE{table}")), "{table}");
    }
}
