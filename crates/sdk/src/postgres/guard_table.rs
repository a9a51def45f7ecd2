//! Decides how the guard's rows lie in PostgreSQL, and nothing else: every function here is one
//! statement on the caller's connection, inside whatever transaction the caller has open. The same
//! SQL is published in docs/guard-table.md, for services in other languages.

use std::error::Error as _;

use tokio_postgres::{GenericClient, Row};
use unanimity_core::TransactionId;
use unanimity_core::guard::{GuardRow, GuardState};

use super::PostgresLocal;
use crate::guard_rows::{GuardCounts, GuardEntry};
use crate::participant::{InDoubt, now_ms};
use crate::service::ServiceError;
use crate::sql::engine::Key;

/// As in SQLite. The lock is there because two that create a table at once can fail, `IF NOT
/// EXISTS` notwithstanding. And what is there already is not created once more, because the lock
/// that creating an index takes, `IF NOT EXISTS` again notwithstanding, waits for every prepared
/// branch that has written to the table: a service could not start before its branches in doubt are
/// decided.
pub(super) const CREATE: &str = "
    SELECT pg_advisory_xact_lock(6153018478420386894);
    DO $create$ BEGIN
        IF to_regclass('unanimity_guard_prepared') IS NULL THEN
            CREATE TABLE IF NOT EXISTS unanimity_guard (
                transaction_id text COLLATE \"C\" NOT NULL,
                branch text COLLATE \"C\" NOT NULL,
                state smallint NOT NULL,
                note text,
                at_ms bigint NOT NULL,
                PRIMARY KEY (transaction_id, branch)
            );
            CREATE INDEX unanimity_guard_prepared ON unanimity_guard (at_ms) WHERE state = 1;
        END IF;
    END $create$;";

pub(crate) const CLAIM: &str = "INSERT INTO unanimity_guard \
     (transaction_id, branch, state, note, at_ms) \
     VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING";
pub(crate) const LOCK: &str = "SELECT state, note FROM unanimity_guard \
     WHERE transaction_id = $1 AND branch = $2 FOR UPDATE";
const WRITE: &str = "UPDATE unanimity_guard SET state = $3, note = $4, at_ms = $5 \
     WHERE transaction_id = $1 AND branch = $2";

type Result<T> = std::result::Result<T, tokio_postgres::Error>;

/// A number for a column that holds no unsigned ones.
fn now() -> i64 {
    i64::try_from(now_ms()).unwrap_or(i64::MAX)
}

/// Writes the row if there is none; whether it did.
pub(super) async fn claim(
    client: &impl GenericClient,
    statement: &tokio_postgres::Statement,
    key: Key<'_>,
    row: &GuardRow,
) -> Result<bool> {
    let state = i16::from(row.state as u8);
    let values: [&(dyn tokio_postgres::types::ToSql + Sync); 5] =
        [&key.transaction.as_str(), &key.branch, &state, &row.note, &now()];
    Ok(client.execute(statement, &values).await? == 1)
}

/// Reads the row, which nobody else can change until the local transaction ends.
pub(super) async fn lock(
    client: &impl GenericClient,
    statement: &tokio_postgres::Statement,
    key: Key<'_>,
) -> Result<Option<Row>> {
    client.query_opt(statement, &[&key.transaction.as_str(), &key.branch]).await
}

/// Changes the row that is there; whether there was one.
pub(super) async fn write(local: &PostgresLocal, key: Key<'_>, row: &GuardRow) -> Result<bool> {
    let state = i16::from(row.state as u8);
    let changed = local
        .run(WRITE, &[&key.transaction.as_str(), &key.branch, &state, &row.note, &now()])
        .await?;
    Ok(changed == 1)
}

pub(super) async fn in_doubt(
    local: &PostgresLocal,
) -> std::result::Result<Vec<InDoubt>, ServiceError> {
    let sql = "SELECT transaction_id, branch, at_ms FROM unanimity_guard \
               WHERE state = 1 ORDER BY at_ms";
    let rows = local.rows(sql, &[]).await.map_err(full)?;
    let branch = |row: &Row| {
        Ok(InDoubt {
            transaction: transaction_id(row, 0)?,
            branch: row.try_get::<_, &str>(1)?.into(),
            since_ms: unsigned(row, 2)?,
        })
    };
    rows.iter().map(branch).collect()
}

pub(crate) async fn entries(
    local: &PostgresLocal,
    after: Option<&(String, String)>,
    settled_before_ms: Option<u64>,
    rows_max: u32,
) -> std::result::Result<Vec<GuardEntry>, ServiceError> {
    let sql = "SELECT transaction_id, branch, state, note, at_ms FROM unanimity_guard \
               WHERE (transaction_id, branch) > ($1, $2) \
               AND ($4::bigint IS NULL OR (at_ms < $4 AND state <> 1)) \
               ORDER BY transaction_id, branch LIMIT $3";
    let empty = (String::new(), String::new());
    let (transaction, branch) = after.unwrap_or(&empty);
    let before_ms = settled_before_ms.map(|ms| i64::try_from(ms).unwrap_or(i64::MAX));
    let rows = local.rows(sql, &[transaction, branch, &i64::from(rows_max), &before_ms]).await;
    let entry = |row: &Row| {
        Ok(GuardEntry {
            transaction: transaction_id(row, 0)?,
            branch: row.try_get::<_, &str>(1)?.into(),
            row: guard_row(row, 2)?,
            at_ms: unsigned(row, 4)?,
        })
    };
    rows.map_err(full)?.iter().map(entry).collect()
}

/// Removes a row if it is still as it was read.
pub(crate) async fn forget(local: &PostgresLocal, entry: &GuardEntry) -> Result<u64> {
    let sql = "DELETE FROM unanimity_guard \
               WHERE transaction_id = $1 AND branch = $2 AND state = $3 AND at_ms = $4";
    let at_ms = i64::try_from(entry.at_ms).unwrap_or(i64::MAX);
    let state = i16::from(entry.row.state as u8);
    local.run(sql, &[&entry.transaction.as_str(), &&*entry.branch, &state, &at_ms]).await
}

pub(crate) async fn counts(
    local: &PostgresLocal,
) -> std::result::Result<GuardCounts, ServiceError> {
    let mut counts = GuardCounts::default();
    let sql = "SELECT state, count(*) FROM unanimity_guard GROUP BY state";
    for row in local.rows(sql, &[]).await.map_err(full)? {
        counts.put(state(&row, 0)?, unsigned(&row, 1)?);
    }
    Ok(counts)
}

/// The state and the note, from two columns side by side.
pub(super) fn guard_row(row: &Row, column: usize) -> std::result::Result<GuardRow, ServiceError> {
    Ok(GuardRow { state: state(row, column)?, note: row.try_get(column + 1)? })
}

/// A number that this version does not know is an error, never guessed at.
fn state(row: &Row, column: usize) -> std::result::Result<GuardState, ServiceError> {
    let number: i16 = row.try_get(column)?;
    let known = u8::try_from(number).ok().and_then(GuardState::from_number);
    let text = || format!("guard state {number} is of a newer version of this program");
    known.ok_or_else(|| text().into())
}

fn transaction_id(row: &Row, column: usize) -> std::result::Result<TransactionId, ServiceError> {
    Ok(TransactionId::new(row.try_get(column)?).map_err(|error| error.to_string())?)
}

fn unsigned(row: &Row, column: usize) -> std::result::Result<u64, ServiceError> {
    Ok(u64::try_from(row.try_get::<_, i64>(column)?).unwrap_or(0))
}

/// The error with the words of its cause: by itself it says only that there is one.
fn full(error: tokio_postgres::Error) -> ServiceError {
    match error.source() {
        Some(cause) => format!("{error}: {cause}").into(),
        None => error.into(),
    }
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

    #[test]
    fn what_is_published_is_what_is_run() {
        for sql in [CLAIM, LOCK, WRITE] {
            assert!(published().contains(&words(sql)), "{sql}");
        }
    }
}
