//! Decides what a service with a SQLite file sees: its own trait, the participant that puts the
//! guard before it, and questions about the guard. The guard's rows lie in the same file and are
//! written in the same local transaction as the service's work, so neither can be there without the
//! other. Groups, savepoints and the order of things are left to `writer`, the SQL to
//! `guard_table`.

pub(crate) mod guard_table;
mod writer;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, TransactionBehavior};
use tokio::sync::mpsc;

use self::writer::{Job, Writer};
use crate::guard_rows::{GuardCounts, GuardEntry};
use crate::moment::MomentHook;
use crate::participant::{
    Answering, CallError, Doubting, InDoubt, OwedAnswer, Participant, Request,
};
use crate::prune::Prunable;
use crate::service::{BranchContext, ServiceResult, Vote, unsupported};
use crate::tally::{Counters, Tally};

/// A service whose data lie in a SQLite file.
///
/// Every call runs on one thread, inside a transaction that the SDK has begun and will commit; what
/// `database` is used for belongs to that transaction. Never begin, commit or roll back one here.
/// Keep no state outside the database: a call whose local transaction fails is undone in the
/// database only.
pub trait SqliteService: Send + 'static {
    /// Creates or updates the service's tables. Runs at every start, in one transaction.
    ///
    /// # Errors
    /// Any; the participant does not open.
    fn migrate(&self, database: &Connection) -> ServiceResult<()>;

    /// Does the work so that it can be committed and can be undone, whatever happens, and votes.
    ///
    /// # Errors
    /// Anything that is not a no: this call is undone, and the coordinator tries again.
    fn prepare(
        &self,
        database: &Connection,
        branch: &BranchContext,
        payload: &[u8],
    ) -> ServiceResult<Vote>;

    /// Makes the prepared work final. `payload` is empty unless the branch asks for it in phase
    /// two, and is always empty where an inquiry found the decision out.
    ///
    /// # Errors
    /// This call is undone, and the coordinator tries again until it succeeds.
    fn commit(
        &self,
        database: &Connection,
        branch: &BranchContext,
        payload: &[u8],
    ) -> ServiceResult<()>;

    /// Undoes the prepared work; `payload` as for commit.
    ///
    /// # Errors
    /// This call is undone, and the coordinator tries again until it succeeds.
    fn rollback(
        &self,
        database: &Connection,
        branch: &BranchContext,
        payload: &[u8],
    ) -> ServiceResult<()>;

    /// Does the work, visibly. Not supported unless the service offers it.
    ///
    /// # Errors
    /// Anything that is not a no: this call is undone, and the coordinator tries again.
    fn execute(
        &self,
        _database: &Connection,
        _branch: &BranchContext,
        _payload: &[u8],
    ) -> ServiceResult<Vote> {
        unsupported("execute")
    }

    /// Undoes executed work. Not supported unless the service offers it.
    ///
    /// # Errors
    /// This call is undone, and the coordinator tries again until it succeeds.
    fn compensate(
        &self,
        _database: &Connection,
        _branch: &BranchContext,
        _payload: &[u8],
    ) -> ServiceResult<()> {
        unsupported("compensate")
    }
}

/// A participant's limits.
#[derive(Clone)]
pub struct SqliteOptions {
    /// The most calls that wait for the writer; further ones fail at once and are tried again.
    pub queue_calls_max: usize,
    /// The most calls in one group.
    pub group_calls_max: usize,
    /// How long another process may hold the file's lock, in milliseconds.
    pub busy_timeout_ms: u64,
    /// For tests only: called around every commit, on the writer's thread.
    pub moment_hook: Option<MomentHook>,
}

impl Default for SqliteOptions {
    fn default() -> Self {
        Self {
            queue_calls_max: 4_096,
            group_calls_max: 256,
            busy_timeout_ms: 5_000,
            moment_hook: None,
        }
    }
}

impl fmt::Debug for SqliteOptions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("SqliteOptions")
            .field("queue_calls_max", &self.queue_calls_max)
            .field("group_calls_max", &self.group_calls_max)
            .field("busy_timeout_ms", &self.busy_timeout_ms)
            .finish_non_exhaustive()
    }
}

/// Why a participant does not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file cannot be opened, read or written.
    #[error("the database cannot be opened: {0}")]
    Database(#[from] rusqlite::Error),
    /// The file is not on a file system that can hold a write-ahead log.
    #[error("the database is in journal mode {0:?}; a participant needs a file in mode \"wal\"")]
    JournalMode(String),
    /// The service's own tables could not be brought up to date.
    #[error("the service's tables cannot be brought up to date: {0}")]
    Migration(String),
    /// The writer's thread could not be started.
    #[error("the writer's thread cannot be started: {0}")]
    Thread(#[from] std::io::Error),
}

/// A participant whose guard and whose service's data lie in one SQLite file.
///
/// Several processes may open the same file; SQLite's lock puts their groups in a row, and the
/// guard is read inside the lock.
pub struct SqliteParticipant {
    jobs: mpsc::Sender<Job>,
    reader: Arc<Mutex<Connection>>,
    tally: Arc<Tally>,
    /// For what is written apart from the calls.
    path: PathBuf,
    busy_timeout_ms: u64,
}

impl fmt::Debug for SqliteParticipant {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("SqliteParticipant").finish_non_exhaustive()
    }
}

impl SqliteParticipant {
    /// Opens or creates the file and starts the writer, with the default limits.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(path: impl AsRef<Path>, service: impl SqliteService) -> Result<Self, OpenError> {
        Self::open_with(path, service, SqliteOptions::default())
    }

    /// The same, with limits of its own.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open_with(
        path: impl AsRef<Path>,
        service: impl SqliteService,
        options: SqliteOptions,
    ) -> Result<Self, OpenError> {
        let path = path.as_ref();
        let connection = writer::open(path, &service, &options)?;
        let busy_timeout_ms = options.busy_timeout_ms;
        let reader = open_reader(path, busy_timeout_ms)?;
        let (jobs, queue) = mpsc::channel(options.queue_calls_max);
        let tally = Arc::new(Tally::default());
        let writer = Writer::new(connection, service, options, queue, Arc::clone(&tally));
        thread::Builder::new().name("unanimity-writer".to_owned()).spawn(|| writer.run())?;
        let (reader, path) = (Arc::new(Mutex::new(reader)), path.to_owned());
        Ok(Self { jobs, reader, tally, path, busy_timeout_ms })
    }

    /// Reads the service's tables, and the guard's, in one snapshot of what is committed.
    ///
    /// # Errors
    /// [`CallError::Failed`] with SQLite's error.
    pub async fn read<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, CallError> {
        let reader = Arc::clone(&self.reader);
        let task = tokio::task::spawn_blocking(move || {
            let mut connection = reader.lock().unwrap_or_else(PoisonError::into_inner);
            let snapshot = connection.transaction_with_behavior(TransactionBehavior::Deferred)?;
            query(&snapshot)
        });
        let failed = |error: &dyn fmt::Display| CallError::Failed(error.to_string());
        task.await.map_err(|error| failed(&error))?.map_err(|error| failed(&error))
    }

    /// Every branch in doubt, the oldest first.
    ///
    /// # Errors
    /// As [`SqliteParticipant::read`].
    pub async fn in_doubt(&self) -> Result<Vec<InDoubt>, CallError> {
        self.read(guard_table::in_doubt).await
    }

    /// A page of guard rows in the order of transaction and branch, behind the pair `after`.
    ///
    /// # Errors
    /// As [`SqliteParticipant::read`].
    pub async fn guard_entries(
        &self,
        after: Option<(String, String)>,
        rows_max: u32,
    ) -> Result<Vec<GuardEntry>, CallError> {
        self.read(move |connection| {
            let after = after.as_ref().map(|(transaction, branch)| (&**transaction, &**branch));
            guard_table::entries(connection, after, None, rows_max)
        })
        .await
    }

    /// How many branches stand where. For use inside [`SqliteParticipant::read`], beside the
    /// service's own numbers.
    ///
    /// # Errors
    /// SQLite's error.
    pub fn count_guard_rows(connection: &Connection) -> rusqlite::Result<GuardCounts> {
        guard_table::counts(connection)
    }

    /// What this participant has done since its process started.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.tally.counters()
    }
}

fn open_reader(path: &Path, busy_timeout_ms: u64) -> rusqlite::Result<Connection> {
    // Not read-only: a write-ahead log needs its shared memory file to be created if it is missing.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(Duration::from_millis(busy_timeout_ms))?;
    connection.execute_batch("PRAGMA query_only = ON")?;
    Ok(connection)
}

impl Participant for SqliteParticipant {
    fn call(&self, request: Request) -> Answering<'_> {
        let (owed, answered) = OwedAnswer::waited_for();
        self.enqueue(request, owed);
        Box::pin(async move {
            let gone = || CallError::Failed("the writer's thread has ended".to_owned());
            answered.await.map_err(|_| gone())?
        })
    }

    fn take(&self, request: Request, owed: OwedAnswer) -> Option<(Request, OwedAnswer)> {
        self.enqueue(request, owed);
        None
    }
}

impl SqliteParticipant {
    /// Puts a call before the writer, or answers why not.
    fn enqueue(&self, request: Request, owed: OwedAnswer) {
        let (job, why) = match self.jobs.try_send(Job { request, owed }) {
            Ok(()) => return,
            Err(mpsc::error::TrySendError::Full(job)) => {
                (job, "too many calls are waiting; try again later")
            }
            Err(mpsc::error::TrySendError::Closed(job)) => (job, "the writer's thread has ended"),
        };
        job.owed.settle(Err(CallError::Failed(why.to_owned())));
    }
}

impl Doubting for SqliteParticipant {
    fn in_doubt(&self) -> Answering<'_, Vec<InDoubt>> {
        Box::pin(Self::in_doubt(self))
    }
}

impl Prunable for SqliteParticipant {
    fn settled_before(
        &self,
        before_ms: u64,
        after: Option<(String, String)>,
        rows_max: u32,
    ) -> Answering<'_, Vec<GuardEntry>> {
        Box::pin(self.read(move |connection| {
            let after = after.as_ref().map(|(transaction, branch)| (&**transaction, &**branch));
            guard_table::entries(connection, after, Some(before_ms), rows_max)
        }))
    }

    /// On a connection of its own, between two groups: SQLite's lock keeps them apart.
    fn forget(&self, rows: Vec<GuardEntry>) -> Answering<'_, u64> {
        let (path, busy_timeout_ms) = (self.path.clone(), self.busy_timeout_ms);
        Box::pin(async move {
            let task = tokio::task::spawn_blocking(move || forget(&path, busy_timeout_ms, &rows));
            let failed = |error: &dyn fmt::Display| CallError::Failed(error.to_string());
            task.await.map_err(|error| failed(&error))?.map_err(|error| failed(&error))
        })
    }
}

fn forget(path: &Path, busy_timeout_ms: u64, rows: &[GuardEntry]) -> rusqlite::Result<u64> {
    let mut connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    connection.busy_timeout(Duration::from_millis(busy_timeout_ms))?;
    let local = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut removed = 0;
    for row in rows {
        removed += guard_table::forget(&local, row)?;
    }
    local.commit()?;
    Ok(removed)
}
