//! The audit trail: ended transactions with their full timeline, in ordinary SQL tables that anyone
//! can open. Written in large batches by a thread of its own, off the commit path; the journal
//! forgets a transaction only after it is durable here.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension, params};
use tokio::sync::mpsc::UnboundedSender;
use unanimity_core::{Transaction, TransactionId};

use crate::crash_point::crash_point;
use crate::filter::{Cursor, Filter};
use crate::rewrite::rewrite_log;
use crate::view::{TimelineView, TransactionView};

/// The version of the tables. A newer one is refused.
const HISTORY_VERSION: i64 = 1;
/// At most this many transactions are written in one storage transaction.
const WRITE_BATCH_MAX: usize = 4_096;

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
    CREATE TABLE IF NOT EXISTS transactions (
        id TEXT PRIMARY KEY,
        begun_at_ms INTEGER NOT NULL,
        decided_at_ms INTEGER,
        ended_at_ms INTEGER NOT NULL,
        outcome TEXT NOT NULL,
        reason TEXT NOT NULL,
        reason_detail TEXT,
        fingerprint BLOB NOT NULL,
        document TEXT NOT NULL,  -- the transaction as JSON, as GET /v1/transactions/{id} answers
        timeline TEXT NOT NULL   -- its events as JSON, as GET /v1/transactions/{id}/events answers
    ) STRICT;
    CREATE INDEX IF NOT EXISTS transactions_by_begin ON transactions (begun_at_ms DESC, id DESC);
    CREATE TABLE IF NOT EXISTS participants (
        participant TEXT NOT NULL,
        begun_at_ms INTEGER NOT NULL,
        transaction_id TEXT NOT NULL,
        PRIMARY KEY (participant, begun_at_ms, transaction_id)
    ) WITHOUT ROWID, STRICT;
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
        let opened = match self {
            Self::File(path) => Connection::open(path),
            Self::Memory(name) => {
                let flags = OpenFlags::default() | OpenFlags::SQLITE_OPEN_URI;
                let uri = format!("file:{name}?mode=memory&cache=shared");
                Connection::open_with_flags(uri, flags)
            }
        };
        opened.map_err(|source| self.error(source))
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
    connection
        .query_row("PRAGMA journal_mode = WAL", [], |row| row.get::<_, String>(0))
        .map_err(error)?;
    connection.pragma_update(None, "synchronous", "FULL").map_err(error)?;
    connection.execute_batch(TABLES).map_err(error)?;
    connection.pragma_update(None, "user_version", HISTORY_VERSION).map_err(error)?;
    Ok(())
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

/// A batch of ended transactions to write, and whom to tell when they are durable.
pub(crate) struct ArchiveRequest {
    pub(crate) transactions: Vec<Arc<Transaction>>,
    pub(crate) done: ArchiveReply,
}

/// What writing came to: the ids once they are durable, or why they are not and never will be.
type Archived = Result<Vec<TransactionId>, String>;

/// The answer that is owed for a request. If the request is lost, by a panic of the history's
/// thread, the answer is that.
pub(crate) struct ArchiveReply {
    sender: UnboundedSender<Archived>,
    told: bool,
}

impl ArchiveReply {
    pub(crate) const fn new(sender: UnboundedSender<Archived>) -> Self {
        Self { sender, told: false }
    }

    fn tell(&mut self, archived: Archived) {
        self.told = true;
        // dropped: a shard that has stopped wants no answer; recovery archives again.
        let _ = self.sender.send(archived);
    }
}

impl Drop for ArchiveReply {
    fn drop(&mut self) {
        if !self.told {
            self.tell(Err("the history's thread has ended".to_owned()));
        }
    }
}

/// Writes until every sender is gone. Requests that wait together share one storage transaction.
pub(crate) fn write_history(mut connection: Connection, requests: &mpsc::Receiver<ArchiveRequest>) {
    while let Ok(first) = requests.recv() {
        let mut count = first.transactions.len();
        let mut batch = vec![first];
        while count < WRITE_BATCH_MAX {
            let Ok(next) = requests.try_recv() else { break };
            count += next.transactions.len();
            batch.push(next);
        }
        crash_point("before_history_write");
        let written = write_batch(&mut connection, &batch);
        crash_point("after_history_write");
        for mut request in batch {
            let ids = request.transactions.iter().map(|ended| ended.id.clone()).collect();
            request.done.tell(written.as_ref().map(|()| ids).map_err(ToString::to_string));
        }
        if let Err(error) = written {
            tracing::error!(%error, "the history cannot be written; the coordinator stops");
            return;
        }
    }
}

fn write_batch(connection: &mut Connection, batch: &[ArchiveRequest]) -> rusqlite::Result<()> {
    let storage = connection.transaction()?;
    {
        // A transaction that was written before a crash and is recovered is written again: the
        // later version is at least as complete.
        let mut insert = storage.prepare_cached(
            "INSERT OR REPLACE INTO transactions (id, begun_at_ms, decided_at_ms, ended_at_ms, \
             outcome, reason, reason_detail, fingerprint, document, timeline) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        )?;
        let mut insert_participant = storage.prepare_cached(
            "INSERT OR IGNORE INTO participants (participant, begun_at_ms, transaction_id) \
             VALUES (?1, ?2, ?3)",
        )?;
        for ended in batch.iter().flat_map(|request| &request.transactions) {
            let view = TransactionView::of(ended);
            let reason = view.reason.as_ref();
            let outcome = view.outcome.as_deref().unwrap_or("rollback");
            insert.execute(params![
                view.id,
                clamp(view.begun_at_ms),
                view.decided_at_ms.map(clamp),
                clamp(view.ended_at_ms.unwrap_or(view.begun_at_ms)),
                outcome,
                reason.map_or("", |reason| reason.code.as_str()),
                reason.and_then(|reason| reason.detail.as_deref()),
                ended.fingerprint.to_le_bytes(),
                json(&view),
                json(&TimelineView::of(ended)),
            ])?;
            for branch in &ended.branches {
                let participant = &*branch.plan.participant;
                insert_participant.execute(params![
                    participant,
                    clamp(view.begun_at_ms),
                    view.id
                ])?;
            }
        }
    }
    storage.commit()
}

fn json(value: &impl serde::Serialize) -> String {
    match serde_json::to_string(value) {
        Ok(text) => text,
        Err(error) => panic!("our own views are always JSON: {error}"),
    }
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
            let mut query = connection.prepare_cached(
                "SELECT fingerprint, document, timeline FROM transactions WHERE id = ?1",
            )?;
            query.query_row([id], stored).optional()
        })?;
        row.map(|row| row.read(with_timeline)).transpose()
    }

    /// Ended transactions that pass a filter, latest first, at most `limit`.
    pub(crate) fn list(&self, filter: &Filter, limit: usize) -> Result<Vec<Ended>, HistoryError> {
        if filter.stage.as_deref().is_some_and(|stage| stage != "ended") {
            return Ok(Vec::new());
        }
        let before = filter.cursor.clone().unwrap_or_else(Cursor::latest);
        let joined = "SELECT fingerprint, document, timeline FROM transactions AS t";
        let participant = " JOIN participants AS p ON p.transaction_id = t.id \
             AND p.begun_at_ms = t.begun_at_ms AND p.participant = ?6";
        let condition = " WHERE (t.begun_at_ms, t.id) < (?1, ?2) \
             AND t.begun_at_ms >= ?3 AND t.begun_at_ms < ?4 AND (?5 IS NULL OR t.outcome = ?5) \
             ORDER BY t.begun_at_ms DESC, t.id DESC LIMIT ?7";
        let by_participant = filter.participant.is_some();
        // ?6 is bound either way, so that the places of the parameters do not shift.
        let no_participant = " JOIN (SELECT ?6 AS unused)";
        let middle = if by_participant { participant } else { no_participant };
        let rows = self.with(|connection| {
            let mut query = connection.prepare_cached(&format!("{joined}{middle}{condition}"))?;
            let rows = query.query_map(
                params![
                    clamp(before.begun_at_ms),
                    before.id,
                    clamp(filter.begun_from_ms.unwrap_or(0)),
                    clamp(filter.begun_until_ms.unwrap_or(u64::MAX)),
                    filter.outcome,
                    filter.participant.as_deref().unwrap_or(""),
                    i64::try_from(limit).unwrap_or(i64::MAX),
                ],
                stored,
            )?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        })?;
        rows.into_iter().map(|row| row.read(filter.with_timeline)).collect()
    }
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

    /// Hands every ended transaction over with its timeline, the first begun first, until `take`
    /// breaks off.
    pub(crate) fn each(
        &self,
        mut take: impl FnMut(Ended) -> ControlFlow<()>,
    ) -> Result<(), HistoryError> {
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let error = |source| self.place.error(source);
        let sql = "SELECT fingerprint, document, timeline FROM transactions \
             ORDER BY begun_at_ms, id";
        let mut query = connection.prepare(sql).map_err(error)?;
        let mut rows = query.query([]).map_err(error)?;
        while let Some(row) = rows.next().map_err(error)? {
            if take(stored(row).map_err(error)?.read(true)?).is_break() {
                break;
            }
        }
        Ok(())
    }
}

fn clamp(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

/// A row as it is stored.
struct Stored {
    fingerprint: Vec<u8>,
    document: String,
    timeline: String,
}

fn stored(row: &rusqlite::Row<'_>) -> rusqlite::Result<Stored> {
    Ok(Stored { fingerprint: row.get(0)?, document: row.get(1)?, timeline: row.get(2)? })
}

impl Stored {
    fn read(self, with_timeline: bool) -> Result<Ended, HistoryError> {
        let broken = |message: String| HistoryError::Document { id: "?".to_owned(), message };
        let view: TransactionView =
            serde_json::from_str(&self.document).map_err(|error| broken(error.to_string()))?;
        let timeline = if with_timeline {
            let read = serde_json::from_str(&self.timeline);
            Some(read.map_err(|error| broken(error.to_string()))?)
        } else {
            None
        };
        let bytes: [u8; 16] = self
            .fingerprint
            .try_into()
            .map_err(|_| broken("its fingerprint has another length".to_owned()))?;
        Ok(Ended { fingerprint: u128::from_le_bytes(bytes), view, timeline })
    }
}
