//! Decides how the guard's rows lie in MariaDB and MySQL, and nothing else: every function here is
//! one statement on the caller's connection, inside whatever transaction the caller has open. The
//! same SQL is published in docs/guard-table.md, for services in other languages.
//!
//! What InnoDB locks decides how the row is claimed:
//! 1. Never by a locking read: on a row that is not there it locks the gap, two such readers do not
//!    meet, and their inserts then wait for each other's gap.
//! 2. Never by a plain insert: where the row is there it takes a shared lock, and two who hold it
//!    and then want to write wait for each other.
//! 3. By an insert that changes the row where it is there: it takes the lock for writing at once,
//!    on this one row of the primary key.
//! 4. Once claimed, a row stays. Were it rolled back while two others wait for it, each of them
//!    would be left with the gap, and wait for the other's. So a no undoes the service's work up to
//!    the claim, and settles the row in the same local transaction.

use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Row};
use unanimity_core::TransactionId;
use unanimity_core::guard::{GuardRow, GuardState};

use crate::guard_rows::{GuardCounts, GuardEntry};
use crate::participant::{InDoubt, now_ms};
use crate::service::ServiceError;
use crate::sql::engine::Key;

/// As in SQLite, and two things more. `state` is 0 in a row that is claimed and not settled, which
/// nobody but its own local transaction ever sees. `changes` grows with every change: by it a call
/// knows that the row is still the one that it has claimed or locked, also after a deadlock that
/// ended its local transaction behind its back; and a call that finds all done writes it, because
/// InnoDB shows rows before they are on the disk, and an answer has to wait for that.
pub(crate) const CREATE: &str = "
    CREATE TABLE IF NOT EXISTS unanimity_guard (
        transaction_id VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
        branch VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
        state TINYINT UNSIGNED NOT NULL,
        note MEDIUMTEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin,
        at_ms BIGINT UNSIGNED NOT NULL,
        changes BIGINT UNSIGNED NOT NULL DEFAULT 0,
        PRIMARY KEY (transaction_id, branch),
        KEY unanimity_guard_state (state, at_ms)
    ) ENGINE = InnoDB";

/// Whether the table is there.
pub(crate) const EXISTS: &str = "SELECT 1 FROM information_schema.tables \
     WHERE table_schema = DATABASE() AND table_name = 'unanimity_guard'";

const CLAIM: &str = "INSERT INTO unanimity_guard (transaction_id, branch, state, note, at_ms) \
     VALUES (?, ?, ?, NULL, ?) ON DUPLICATE KEY UPDATE changes = changes + 1";
const LOCK: &str = "SELECT state, note, changes FROM unanimity_guard \
     WHERE transaction_id = ? AND branch = ? FOR UPDATE";
const WRITE: &str = "UPDATE unanimity_guard \
     SET state = ?, note = ?, at_ms = ?, changes = changes + 1 \
     WHERE transaction_id = ? AND branch = ? AND changes = ?";

type Result<T> = std::result::Result<T, mysql_async::Error>;

/// Writes a row if there is none; whether it did. If there is one, it is locked now, and counts one
/// change more.
pub(crate) async fn claim(
    connection: &mut impl Queryable,
    key: Key<'_>,
    state: u8,
) -> Result<bool> {
    let values = (key.transaction.as_str(), key.branch, state, now_ms());
    let claimed = connection.exec_iter(CLAIM, values).await?;
    let touched = claimed.affected_rows();
    claimed.drop_result().await?;
    Ok(touched == 1)
}

/// The same, and marks the place behind it, to which the service's work can be undone: one round
/// trip. The names go in as hexadecimal, so that nothing in them can end the statement.
pub(super) async fn claim_and_mark(connection: &mut Conn, key: Key<'_>, state: u8) -> Result<bool> {
    let (transaction, branch) = (hex(key.transaction.as_str()), hex(key.branch));
    let now_ms = now_ms();
    let sql = format!(
        "INSERT INTO unanimity_guard (transaction_id, branch, state, note, at_ms) \
         VALUES (X'{transaction}', X'{branch}', {state}, NULL, {now_ms}) \
         ON DUPLICATE KEY UPDATE changes = changes + 1; SAVEPOINT unanimity_claim"
    );
    let claimed = connection.query_iter(sql).await?;
    let touched = claimed.affected_rows();
    claimed.drop_result().await?;
    Ok(touched == 1)
}

fn hex(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads the row, which nobody else can change until the local transaction ends.
pub(crate) async fn lock(connection: &mut impl Queryable, key: Key<'_>) -> Result<Option<Row>> {
    connection.exec_first(LOCK, (key.transaction.as_str(), key.branch)).await
}

/// Changes the row that is there, if it has changed so often; whether it did.
pub(crate) async fn write(
    connection: &mut Conn,
    key: Key<'_>,
    row: &GuardRow,
    changes: u64,
) -> Result<bool> {
    let values =
        (row.state as u8, &row.note, now_ms(), key.transaction.as_str(), key.branch, changes);
    connection.exec_drop(WRITE, values).await?;
    Ok(connection.affected_rows() == 1)
}

pub(super) async fn in_doubt(
    connection: &mut Conn,
) -> std::result::Result<Vec<InDoubt>, ServiceError> {
    let sql = "SELECT transaction_id, branch, at_ms FROM unanimity_guard \
               WHERE state = 1 ORDER BY at_ms";
    let rows: Vec<(String, String, u64)> = connection.query(sql).await?;
    let branch = |(transaction, branch, since_ms): (String, String, u64)| {
        let transaction = transaction_id(&transaction)?;
        Ok(InDoubt { transaction, branch: branch.into(), since_ms })
    };
    rows.into_iter().map(branch).collect()
}

pub(crate) async fn entries(
    connection: &mut Conn,
    after: Option<&(String, String)>,
    settled_before_ms: Option<u64>,
    rows_max: u32,
) -> std::result::Result<Vec<GuardEntry>, ServiceError> {
    // Not as a comparison of pairs, for which no index is used.
    let sql = "SELECT state, note, transaction_id, branch, at_ms FROM unanimity_guard \
               WHERE transaction_id >= ? AND (transaction_id > ? OR branch > ?) \
               AND (? IS NULL OR (at_ms < ? AND state <> 1)) \
               ORDER BY transaction_id, branch LIMIT ?";
    let empty = (String::new(), String::new());
    let (transaction, branch) = after.unwrap_or(&empty);
    let before_ms = settled_before_ms;
    let values = (transaction, transaction, branch, before_ms, before_ms, rows_max);
    let rows: Vec<Row> = connection.exec(sql, values).await?;
    let entry = |row: &Row| {
        Ok(GuardEntry {
            transaction: transaction_id(&column::<String>(row, 2)?)?,
            branch: column::<String>(row, 3)?.into(),
            row: guard_row(row, 0)?,
            at_ms: column(row, 4)?,
        })
    };
    rows.iter().map(entry).collect()
}

/// Removes a row if it is still as it was read. By its whole key, so that no gap is locked.
pub(crate) async fn forget(connection: &mut Conn, entry: &GuardEntry) -> Result<u64> {
    let sql = "DELETE FROM unanimity_guard \
               WHERE transaction_id = ? AND branch = ? AND state = ? AND at_ms = ?";
    let state = entry.row.state as u8;
    let values = (entry.transaction.as_str(), &*entry.branch, state, entry.at_ms);
    connection.exec_drop(sql, values).await?;
    let removed = connection.affected_rows();
    connection.query_drop("COMMIT").await?;
    Ok(removed)
}

pub(crate) async fn counts(
    connection: &mut Conn,
) -> std::result::Result<GuardCounts, ServiceError> {
    let mut counts = GuardCounts::default();
    let sql = "SELECT state, count(*) FROM unanimity_guard GROUP BY state";
    let rows: Vec<(u8, u64)> = connection.query(sql).await?;
    for (number, count) in rows {
        counts.put(state(number)?, count);
    }
    Ok(counts)
}

/// The state and the note, from two columns side by side.
pub(crate) fn guard_row(row: &Row, first: usize) -> std::result::Result<GuardRow, ServiceError> {
    Ok(GuardRow { state: state(column(row, first)?)?, note: column(row, first + 1)? })
}

/// A column's value.
pub(crate) fn column<T: mysql_async::prelude::FromValue>(
    row: &Row,
    index: usize,
) -> std::result::Result<T, ServiceError> {
    let found = row.get_opt::<T, _>(index).ok_or("the guard's table lacks a column")?;
    found.map_err(|error| error.to_string().into())
}

/// A number that this version does not know is an error, never guessed at.
fn state(number: u8) -> std::result::Result<GuardState, ServiceError> {
    let known = GuardState::from_number(number);
    known.ok_or_else(|| match number {
        0 => {
            "a call was committed before it was done: by a statement that commits by itself?".into()
        }
        _ => format!("guard state {number} is of a newer version of this program").into(),
    })
}

fn transaction_id(text: &str) -> std::result::Result<TransactionId, ServiceError> {
    Ok(TransactionId::new(text).map_err(|error| error.to_string())?)
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
        for sql in [LOCK, WRITE] {
            assert!(published().contains(&words(sql)), "{sql}");
        }
    }
}
