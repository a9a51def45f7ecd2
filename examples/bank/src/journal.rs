//! Decides how the bank keeps a journal of what its branches did, for audits: a line for each
//! change of a guard row, with what the same call has moved in the accounts. Triggers write it, in
//! the local transaction of the change itself, so it neither misses one nor depends on what the
//! service's code says of itself.

use rusqlite::{Connection, Row};
use serde::{Deserialize, Serialize};
use unanimity_sdk::guard::GuardState;

/// How many lines are read at a time.
const PAGE_LINES: u32 = 10_000;

/// The service works first, and the guard's row is written last: so what has been moved since the
/// last row is this row's. A branch of this bank touches one account.
const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS moved (
        account TEXT NOT NULL,
        balance INTEGER NOT NULL,
        reserved INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE IF NOT EXISTS journal (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        at_ms INTEGER NOT NULL,
        transaction_id TEXT NOT NULL,
        branch TEXT NOT NULL,
        before INTEGER,
        state INTEGER NOT NULL,
        account TEXT,
        balance INTEGER,
        reserved INTEGER
    ) STRICT;
    CREATE TRIGGER IF NOT EXISTS journal_moved AFTER UPDATE ON account
    WHEN NEW.balance <> OLD.balance OR NEW.reserved <> OLD.reserved BEGIN
        INSERT INTO moved VALUES
            (NEW.id, NEW.balance - OLD.balance, NEW.reserved - OLD.reserved);
    END;
    CREATE TRIGGER IF NOT EXISTS journal_first AFTER INSERT ON unanimity_guard BEGIN
        INSERT INTO journal
            (at_ms, transaction_id, branch, before, state, account, balance, reserved)
        SELECT NEW.at_ms, NEW.transaction_id, NEW.branch, NULL, NEW.state,
            max(account), sum(balance), sum(reserved) FROM moved;
        DELETE FROM moved;
    END;
    CREATE TRIGGER IF NOT EXISTS journal_next AFTER UPDATE ON unanimity_guard BEGIN
        INSERT INTO journal
            (at_ms, transaction_id, branch, before, state, account, balance, reserved)
        SELECT NEW.at_ms, NEW.transaction_id, NEW.branch, OLD.state, NEW.state,
            max(account), sum(balance), sum(reserved) FROM moved;
        DELETE FROM moved;
    END;";

/// One change of a guard row, and what the same call has moved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalLine {
    /// Its number; they grow.
    pub number: i64,
    /// When, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// The transaction's id.
    pub transaction: String,
    /// The branch's name.
    pub branch: String,
    /// Where it stood before, in the words of [`crate::BranchLine::state`]; nowhere, if this is the
    /// first that was heard of it.
    pub before: Option<String>,
    /// Where it stands now.
    pub state: String,
    /// The account that was changed, if one was.
    pub account: Option<String>,
    /// By how much its balance was changed, in cents; what is reserved is part of it.
    pub balance: i64,
    /// By how much its reservations were changed, in cents.
    pub reserved: i64,
}

pub(crate) fn create(database: &Connection) -> rusqlite::Result<()> {
    database.execute_batch(TABLES)
}

/// The next lines after a number; none if no journal is kept.
pub(crate) fn lines(database: &Connection, after: i64) -> rusqlite::Result<Vec<JournalLine>> {
    let sql = "SELECT count(*) FROM sqlite_schema WHERE name = 'journal'";
    if database.query_row(sql, [], |row| row.get::<_, u32>(0))? == 0 {
        return Ok(Vec::new());
    }
    let sql = "SELECT number, at_ms, transaction_id, branch, before, state, account, balance, \
               reserved FROM journal WHERE number > ?1 ORDER BY number LIMIT ?2";
    let mut statement = database.prepare_cached(sql)?;
    statement.query_map((after, PAGE_LINES), line)?.collect()
}

fn line(row: &Row<'_>) -> rusqlite::Result<JournalLine> {
    let word = |number: Option<u8>| number.map(|number| word(number).to_owned());
    Ok(JournalLine {
        number: row.get(0)?,
        at_ms: u64::try_from(row.get::<_, i64>(1)?).unwrap_or(0),
        transaction: row.get(2)?,
        branch: row.get(3)?,
        before: word(row.get(4)?),
        state: word(row.get(5)?).unwrap_or_default(),
        account: row.get(6)?,
        balance: row.get::<_, Option<i64>>(7)?.unwrap_or(0),
        reserved: row.get::<_, Option<i64>>(8)?.unwrap_or(0),
    })
}

fn word(number: u8) -> &'static str {
    GuardState::from_number(number).map_or("unknown", crate::http::state_word)
}
