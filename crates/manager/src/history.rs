//! The audit trail: ended transactions with their full timeline, in ordinary SQL tables that anyone
//! can open. Written in large batches by a thread of its own, off the commit path; the journal
//! forgets a transaction only after it is durable here.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension, params};

use crate::filter::{Cursor, Filter};
use crate::panics;
use crate::rewrite::rewrite_log;
use crate::view::{TimelineView, TransactionView};
use document::Columns;
pub(crate) use writing::{ArchiveReply, ArchiveRequest, HistoryWriter};

mod alike;
mod bundles;
mod courses;
mod document;
#[cfg(test)]
mod tests;
mod writing;

/// The version of the tables. A newer one is refused.
const HISTORY_VERSION: i64 = 3;
/// The bytes of a page in a history that is made new. Rows come to the end; with SQLite's usual
/// 4,096 much of the time went into beginning pages.
const PAGE_BYTES: i64 = 16_384;
/// After so many pages (8 MB of ours) in its write-ahead log SQLite writes them into the file,
/// within a commit of the history's thread. Nobody waits for that, but the journals share the disk:
/// with 32 MB an append that came meanwhile took 12 ms, with 8 MB 6, and as many are committed.
const WAL_PAGES: i64 = 512;
/// The writer's cache, in KiB: a whole batch has room, or it would be written twice.
const CACHE_KIB: i64 = 8_192;

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
    CREATE TABLE IF NOT EXISTS transactions (
        number INTEGER PRIMARY KEY,  -- in the order in which they were written
        id TEXT NOT NULL,
        begun_at_ms INTEGER NOT NULL,
        decided_at_ms INTEGER,
        ended_at_ms INTEGER NOT NULL,
        outcome TEXT NOT NULL,
        reason TEXT NOT NULL,
        reason_detail TEXT,
        fingerprint BLOB NOT NULL,   -- empty where the coordinator chose the id
        document TEXT NOT NULL,      -- branches and events as JSON; empty where a course has them
        timeline TEXT,               -- only in rows that version 1 has written
        course INTEGER,              -- the document's number in courses, if it is there
        times TEXT,                  -- then: the times of its events, as a list
        results TEXT                 -- then: the results of its branches, if any has one
    ) STRICT;
    CREATE UNIQUE INDEX IF NOT EXISTS transactions_by_id ON transactions (id);
    CREATE INDEX IF NOT EXISTS transactions_by_begin ON transactions (begun_at_ms);
    -- Which of the numbers (both included) may have a branch of this participant: one row for each
    -- batch that was written together.
    CREATE TABLE IF NOT EXISTS participants (
        participant TEXT NOT NULL,
        first_number INTEGER NOT NULL,
        last_number INTEGER NOT NULL,
        PRIMARY KEY (participant, first_number)
    ) WITHOUT ROWID, STRICT;
";

/// Everything that has ended, for whoever reads this by hand.
const VIEW: &str = "
    CREATE VIEW IF NOT EXISTS history AS
        SELECT t.id, t.begun_at_ms, t.decided_at_ms, t.ended_at_ms, t.outcome, t.reason,
            t.reason_detail, coalesce(c.document, t.document) AS document, t.times, t.results
        FROM transactions AS t LEFT JOIN courses AS c ON c.number = t.course
        UNION ALL
        SELECT json_extract(m.value, '$[0]'), json_extract(m.value, '$[1]'),
            json_extract(m.value, '$[1]') + json_extract(m.value, '$[2]'),
            json_extract(m.value, '$[1]') + json_extract(m.value, '$[3]'),
            b.outcome, b.reason, NULL, c.document,
            json_extract(m.value, '$[4]'), json_extract(m.value, '$[5]')
        FROM bundles AS b JOIN courses AS c ON c.number = b.course, json_each(b.members) AS m;
";

/// Version 2 had a whole document in each row.
const FROM_VERSION_2: &str = "
    ALTER TABLE transactions ADD COLUMN course INTEGER;
    ALTER TABLE transactions ADD COLUMN times TEXT;
    ALTER TABLE transactions ADD COLUMN results TEXT;
";

/// Version 1 had whole views as JSON, and a row for each participant of each transaction.
const FROM_VERSION_1: &str = "
    ALTER TABLE transactions RENAME TO transactions_1;
    ALTER TABLE participants RENAME TO participants_1;
    DROP INDEX transactions_by_begin;
";
const FROM_VERSION_1_ROWS: &str = "
    INSERT INTO transactions (id, begun_at_ms, decided_at_ms, ended_at_ms, outcome, reason,
        reason_detail, fingerprint, document, timeline)
        SELECT id, begun_at_ms, decided_at_ms, ended_at_ms, outcome, reason, reason_detail,
        fingerprint, document, timeline FROM transactions_1 ORDER BY begun_at_ms, id;
    INSERT OR IGNORE INTO participants
        SELECT p.participant, t.number, t.number FROM participants_1 AS p
        JOIN transactions AS t ON t.id = p.transaction_id;
    DROP TABLE transactions_1;
    DROP TABLE participants_1;
";

/// Why the history cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The file cannot be opened, read or written.
    #[error("history {path}: {source}")]
    Storage {
        /// Which file.
        path: PathBuf,
        /// What the storage says.
        source: rusqlite::Error,
    },
    /// Its write-ahead log cannot be made durable again.
    #[error("history {path}: its write-ahead log cannot be written: {source}")]
    Log {
        /// The history's file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The file was written by a newer version of this program.
    #[error("history {path} has version {found}; this program knows up to {HISTORY_VERSION}")]
    NewerVersion {
        /// Which file.
        path: PathBuf,
        /// Its version.
        found: i64,
    },
    /// A stored document cannot be read.
    #[error("history: transaction {id} cannot be read: {message}")]
    Document {
        /// Which transaction.
        id: String,
        /// What is wrong.
        message: String,
    },
}

/// A transaction as the history holds it.
#[derive(Clone, Debug)]
pub(crate) struct Ended {
    pub(crate) fingerprint: u128,
    pub(crate) view: TransactionView,
    pub(crate) timeline: Option<TimelineView>,
}

/// Where the history lives.
#[derive(Clone, Debug)]
pub(crate) enum HistoryPlace {
    File(PathBuf),
    /// Shared by name among the connections of one process; for tests and memory-only managers.
    Memory(String),
}

impl HistoryPlace {
    fn open(&self) -> Result<Connection, HistoryError> {
        self.connect().map_err(|source| self.error(source))
    }

    /// Another connection to it.
    pub(crate) fn connect(&self) -> rusqlite::Result<Connection> {
        match self {
            Self::File(path) => Connection::open(path),
            Self::Memory(name) => {
                let flags = OpenFlags::default() | OpenFlags::SQLITE_OPEN_URI;
                let uri = format!("file:{name}?mode=memory&cache=shared");
                Connection::open_with_flags(uri, flags)
            }
        }
    }

    pub(crate) fn error(&self, source: rusqlite::Error) -> HistoryError {
        let path = match self {
            Self::File(path) => path.clone(),
            Self::Memory(name) => Path::new(name).to_path_buf(),
        };
        HistoryError::Storage { path, source }
    }
}

/// Reads the history. Calls block: run them where blocking is allowed.
pub(crate) struct HistoryReader {
    place: HistoryPlace,
    connection: Mutex<Connection>,
}

/// Opens the history, making its tables where they are missing: a reader, and a connection for the
/// writer.
pub(crate) fn open_history(
    place: HistoryPlace,
) -> Result<(HistoryReader, Connection), HistoryError> {
    if let HistoryPlace::File(path) = &place {
        let failed = |source| HistoryError::Log { path: path.clone(), source };
        rewrite_log(path).map_err(failed)?;
    }
    let writer = place.open()?;
    prepare_tables(&place, &writer)?;
    let reader = place.open()?;
    reader.pragma_update(None, "query_only", true).map_err(|source| place.error(source))?;
    if matches!(place, HistoryPlace::Memory(_)) {
        // Connections that share a cache lock whole tables against each other and do not wait. A
        // reader that takes no lock sees at worst what is about to be committed.
        reader
            .pragma_update(None, "read_uncommitted", true)
            .map_err(|source| place.error(source))?;
    }
    reader.busy_timeout(Duration::from_secs(5)).map_err(|source| place.error(source))?;
    Ok((HistoryReader { place, connection: Mutex::new(reader) }, writer))
}

fn prepare_tables(place: &HistoryPlace, connection: &Connection) -> Result<(), HistoryError> {
    let error = |source| place.error(source);
    let found: i64 =
        connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(error)?;
    if found > HISTORY_VERSION {
        let HistoryError::Storage { path, .. } = place.error(rusqlite::Error::InvalidQuery) else {
            unreachable!("error() makes a storage error")
        };
        return Err(HistoryError::NewerVersion { path, found });
    }
    // Only a file without tables takes it.
    connection.pragma_update(None, "page_size", PAGE_BYTES).map_err(error)?;
    connection.pragma_update(None, "cache_size", -CACHE_KIB).map_err(error)?;
    connection
        .query_row("PRAGMA journal_mode = WAL", [], |row| row.get::<_, String>(0))
        .map_err(error)?;
    connection.pragma_update(None, "synchronous", "FULL").map_err(error)?;
    connection.pragma_update(None, "wal_autocheckpoint", WAL_PAGES).map_err(error)?;
    // All or nothing: an upgrade that is cut off begins anew at the next start.
    let upgrade = match found {
        1 => [FROM_VERSION_1, TABLES, FROM_VERSION_1_ROWS],
        2 => [FROM_VERSION_2, TABLES, ""],
        _ => ["", TABLES, ""], // A new one, or of this version: newer ones are refused.
    };
    let ([before, tables, after], panics) = (upgrade, panics::TABLE);
    let (courses, bundles) = (courses::TABLES, bundles::TABLES);
    let sql = format!(
        "BEGIN IMMEDIATE; {before} {tables} {courses} {bundles} {VIEW} {panics} {after} \
         PRAGMA user_version = {HISTORY_VERSION}; COMMIT"
    );
    connection.execute_batch(&sql).map_err(error)
}

/// The number of shards that this data folder was made with; `None` for one that was never used.
pub(crate) fn known_shards(connection: &Connection) -> Result<Option<u16>, rusqlite::Error> {
    let sql = "SELECT value FROM meta WHERE name = 'shards'";
    connection.query_row(sql, [], |row| row.get(0)).optional()
}

/// Remembers the number of shards, once their journals are there: from then on a missing journal is
/// a loss and not a beginning.
pub(crate) fn remember_shards(connection: &Connection, shards: u16) -> Result<(), rusqlite::Error> {
    let sql = "INSERT OR IGNORE INTO meta (name, value) VALUES ('shards', ?1)";
    connection.execute(sql, [shards]).map(drop)
}

/// The id of the coordinator that this data folder belongs to, made with the folder's first use:
/// what its branches are called by inside databases. Positive, as SQLite's numbers are signed.
pub(crate) fn coordinator_id(connection: &Connection) -> Result<u64, rusqlite::Error> {
    let random = uuid::Uuid::new_v4().as_u64_pair().1 >> 1;
    let sql = "INSERT OR IGNORE INTO meta (name, value) VALUES ('coordinator', ?1)";
    connection.execute(sql, [random.cast_signed()])?;
    let sql = "SELECT value FROM meta WHERE name = 'coordinator'";
    connection.query_row(sql, [], |row| row.get(0)).map(i64::cast_unsigned)
}

/// Up to which position of a shard's journal everything that ended is in the history; 0 if that was
/// never noted.
pub(crate) fn archived_up_to(connection: &Connection, shard: u16) -> Result<u64, rusqlite::Error> {
    let sql = "SELECT value FROM meta WHERE name = ?1";
    let found = connection.query_row(sql, [archived_name(shard)], |row| row.get(0)).optional()?;
    Ok(found.map_or(0, i64::cast_unsigned))
}

fn archived_name(shard: u16) -> String {
    format!("archived_up_to_{shard}")
}

impl HistoryReader {
    fn with<T>(
        &self,
        run: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, HistoryError> {
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        run(&connection).map_err(|source| self.place.error(source))
    }

    /// An ended transaction.
    pub(crate) fn get(&self, id: &str, with_timeline: bool) -> Result<Option<Ended>, HistoryError> {
        let row = self.with(|connection| {
            let mut query = connection.prepare_cached(&format!(
                "SELECT {COLUMNS} FROM transactions AS t WHERE id = ?1"
            ))?;
            query.query_row([id], stored).optional()
        })?;
        match row {
            Some(row) => row.read(with_timeline).map(Some),
            None => {
                let found = self.with(|connection| bundles::find(connection, id))?;
                found.read(id, with_timeline)
            }
        }
    }

    /// Ended transactions that pass a filter, latest first, at most `limit`.
    pub(crate) fn list(&self, filter: &Filter, limit: usize) -> Result<Vec<Ended>, HistoryError> {
        if filter.stage.as_deref().is_some_and(|stage| stage != "ended") {
            return Ok(Vec::new());
        }
        let before = filter.cursor.clone().unwrap_or_else(Cursor::latest);
        let participant = filter.participant.as_deref().unwrap_or("");
        let (rows, bundled) = self.with(|connection| {
            // Both at one moment: what is written again meanwhile would be in both, or in none.
            let connection = connection.unchecked_transaction()?;
            let (source, passes) = match &filter.participant {
                None => ("transactions AS t", "?6 IS ?6"),
                Some(participant) if is_rare(&connection, participant)? => OF_RARE_PARTICIPANT,
                Some(_) => OF_PARTICIPANT,
            };
            let mut query = connection.prepare_cached(&rows_sql(source, passes))?;
            let rows = query.query_map(
                params![
                    clamp(before.begun_at_ms),
                    before.id,
                    clamp(filter.begun_from_ms.unwrap_or(0)),
                    clamp(filter.begun_until_ms.unwrap_or(u64::MAX)),
                    filter.outcome,
                    participant,
                    i64::try_from(limit).unwrap_or(i64::MAX),
                ],
                stored,
            )?;
            let rows = rows.collect::<rusqlite::Result<Vec<_>>>()?;
            Ok((rows, bundles::list(&connection, filter, limit)?))
        })?;
        let rows = rows.into_iter().map(|row| row.read(filter.with_timeline));
        let mut found: Vec<Ended> = rows.collect::<Result<_, _>>()?;
        found.extend(bundled.read(filter.with_timeline)?);
        found.sort_by(|a, b| b.began().cmp(&a.began()));
        found.truncate(limit);
        Ok(found)
    }
}

impl Ended {
    /// Where it stands in the order of all.
    fn began(&self) -> (u64, &str) {
        (self.view.begun_at_ms, &self.view.id)
    }
}

/// The rows of a list, latest first.
fn rows_sql(source: &str, passes: &str) -> String {
    format!(
        "SELECT {COLUMNS} FROM {source} WHERE (t.begun_at_ms, t.id) < (?1, ?2) \
         AND t.begun_at_ms >= ?3 AND t.begun_at_ms < ?4 AND (?5 IS NULL OR t.outcome = ?5) \
         AND {passes} ORDER BY t.begun_at_ms DESC, t.id DESC LIMIT ?7"
    )
}

/// A batch says that one of its transactions has a branch of this participant; the document says
/// which. Asked of each transaction in the order of time: most will do.
const OF_PARTICIPANT: (&str, &str) = (
    "transactions AS t",
    "t.number <= (SELECT last_number FROM participants AS b WHERE b.participant = ?6 \
     AND b.first_number <= t.number ORDER BY b.first_number DESC LIMIT 1) \
     AND EXISTS (SELECT 1 FROM json_each(coalesce((SELECT c.document FROM courses AS c \
     WHERE c.number = t.course), t.document), '$.branches') \
     WHERE json_extract(value, '$.participant') = ?6)",
);
/// The same for one with few batches: only those are looked at.
const OF_RARE_PARTICIPANT: (&str, &str) = (
    "participants AS b CROSS JOIN transactions AS t \
     ON b.participant = ?6 AND t.number BETWEEN b.first_number AND b.last_number",
    "EXISTS (SELECT 1 FROM json_each(coalesce((SELECT c.document FROM courses AS c \
     WHERE c.number = t.course), t.document), '$.branches') \
     WHERE json_extract(value, '$.participant') = ?6)",
);
/// With no more batches than this a participant is rare.
const RARE_BATCHES_MAX: i64 = 256;

fn is_rare(connection: &Connection, participant: &str) -> rusqlite::Result<bool> {
    let sql = "SELECT count(*) FROM (SELECT 1 FROM participants WHERE participant = ?1 LIMIT ?2)";
    let mut query = connection.prepare_cached(sql)?;
    let found: i64 =
        query.query_row(params![participant, RARE_BATCHES_MAX + 1], |row| row.get(0))?;
    Ok(found <= RARE_BATCHES_MAX)
}

/// Opens a history that is there, for reading only.
pub(crate) fn open_to_read(path: PathBuf) -> Result<HistoryReader, HistoryError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let opened = Connection::open_with_flags(&path, flags);
    let place = HistoryPlace::File(path);
    let connection = opened.map_err(|source| place.error(source))?;
    let prepared = prepare_tables(&place, &connection)
        .and_then(|()| query_only(&connection).map_err(|source| place.error(source)));
    prepared.map(|()| HistoryReader { place, connection: Mutex::new(connection) })
}

fn query_only(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "query_only", true)
}

impl HistoryReader {
    /// The number of shards that the folder was made with.
    pub(crate) fn shards(&self) -> Result<Option<u16>, HistoryError> {
        self.with(known_shards)
    }

    /// How many ended transactions there are.
    pub(crate) fn count(&self) -> Result<u64, HistoryError> {
        let count = |row: &rusqlite::Row<'_>| row.get::<_, i64>(0);
        let sql = "SELECT (SELECT count(*) FROM transactions)
            + (SELECT coalesce(sum(count), 0) FROM bundles)";
        self.with(|connection| connection.query_row(sql, [], count)).map(i64::cast_unsigned)
    }

    /// Hands every ended transaction over with its timeline, the first begun first, until `take`
    /// breaks off.
    pub(crate) fn each(
        &self,
        mut take: impl FnMut(Ended) -> ControlFlow<()>,
    ) -> Result<(), HistoryError> {
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let error = |source| self.place.error(source);
        let sql = format!("SELECT {COLUMNS} FROM transactions AS t ORDER BY begun_at_ms, id");
        let mut rows = connection.prepare(&sql).map_err(error)?;
        let mut rows = rows.query_map([], stored).map_err(error)?;
        let mut bundles = connection.prepare(&bundles::in_order()).map_err(error)?;
        let mut bundles = bundles.query_map([], bundles::Next::of).map_err(error)?;
        let mut next_row =
            || rows.next().transpose().map_err(error)?.map(|row| row.read(true)).transpose();
        let mut next_bundle = || bundles.next().transpose().map_err(error);
        // Of the bundles, those members that may come before the next row and the next bundle.
        let mut waiting = BTreeMap::new();
        let (mut row, mut bundle) = (next_row()?, next_bundle()?);
        loop {
            let first_waiting = waiting
                .first_key_value()
                .map(|((begun, id), _): (&(u64, String), _)| (*begun, &**id));
            let first = row.as_ref().map(Ended::began).into_iter().chain(first_waiting).min();
            let is_due = |next: &mut bundles::Next| {
                first.is_none_or(|(begun, _)| next.first_begun_at_ms() <= begun)
            };
            if let Some(next) = bundle.take_if(is_due) {
                next.put(&mut waiting)?;
                bundle = next_bundle()?;
                continue;
            }
            let Some(first) = first else { return Ok(()) };
            let ended = if first_waiting == Some(first) {
                waiting.pop_first().map(|(_, ended)| ended)
            } else {
                std::mem::replace(&mut row, next_row()?)
            };
            if ended.is_some_and(|ended| take(ended).is_break()) {
                return Ok(());
            }
        }
    }
}

fn clamp(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

/// What [`stored`] reads of a row, in its order.
const COLUMNS: &str = "t.fingerprint, coalesce((SELECT c.document FROM courses AS c \
     WHERE c.number = t.course), t.document), t.timeline, t.id, t.begun_at_ms, \
     t.decided_at_ms, t.ended_at_ms, t.outcome, t.reason, t.reason_detail, t.times, t.results";

/// A row as it is stored.
struct Stored {
    fingerprint: Vec<u8>,
    document: String,
    /// There only in rows that version 1 has written, whose document is a whole view.
    timeline: Option<String>,
    /// These two are there only where the document is one that many share.
    times: Option<String>,
    results: Option<String>,
    columns: Columns,
}

fn stored(row: &rusqlite::Row<'_>) -> rusqlite::Result<Stored> {
    let ms = |column: usize| Ok::<_, rusqlite::Error>(row.get::<_, i64>(column)?.cast_unsigned());
    let columns = Columns {
        id: row.get(3)?,
        begun_at_ms: ms(4)?,
        decided_at_ms: row.get::<_, Option<i64>>(5)?.map(i64::cast_unsigned),
        ended_at_ms: ms(6)?,
        outcome: row.get(7)?,
        reason: row.get(8)?,
        reason_detail: row.get(9)?,
    };
    let (fingerprint, document, timeline) = (row.get(0)?, row.get(1)?, row.get(2)?);
    let (times, results) = (row.get(10)?, row.get(11)?);
    Ok(Stored { fingerprint, document, timeline, times, results, columns })
}

impl Stored {
    fn read(self, with_timeline: bool) -> Result<Ended, HistoryError> {
        let id = self.columns.id.clone();
        let broken = |message: String| HistoryError::Document { id: id.clone(), message };
        let unreadable = |error: serde_json::Error| broken(error.to_string());
        let (view, timeline) = match &self.timeline {
            None => {
                let beside = (self.times.as_deref(), self.results.as_deref());
                document::read(self.columns, &self.document, beside).map_err(unreadable)?
            }
            Some(timeline) => (
                serde_json::from_str(&self.document).map_err(unreadable)?,
                serde_json::from_str(timeline).map_err(unreadable)?,
            ),
        };
        let fingerprint = match <[u8; 16]>::try_from(self.fingerprint.as_slice()) {
            Ok(bytes) => u128::from_le_bytes(bytes),
            Err(_) if self.fingerprint.is_empty() => 0,
            Err(_) => return Err(broken("its fingerprint has another length".to_owned())),
        };
        Ok(Ended { fingerprint, view, timeline: with_timeline.then_some(timeline) })
    }
}
