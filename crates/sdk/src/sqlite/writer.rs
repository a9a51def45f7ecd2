//! Decides in which local transaction a call's work and its guard row become durable, and when its
//! answer may leave: group commit on one thread that owns the connection.
//!
//! One group is one `BEGIN IMMEDIATE`, a savepoint for each call that does work, and one `COMMIT`.
//! 1. Whatever has queued up while the last group was being synced becomes the next group.
//! 2. A call that fails or panics is rolled back to its savepoint; its neighbours do not notice.
//! 3. No answer leaves before the `COMMIT` has returned. If it fails, every answer of the group
//!    is a failure, also those that only repeated a row: that row may stem from the same group.
//! 4. After an error of the disk no group is tried again. A later sync could succeed without the
//!    pages that the failed one has dropped, so only a restart, which reads the file anew, is safe.

use std::path::Path;
use std::sync::Arc;

use rusqlite::{Connection, ErrorCode};
use tokio::sync::mpsc;
use unanimity_core::guard::{Reply, Verdict, Work, judge, settle};
use unanimity_core::{Mutations, Operation};

use super::{OpenError, SqliteOptions, SqliteService, guard_table};
use crate::moment::Moment;
use crate::participant::{CallError, OwedAnswer, Request, now_ms};
use crate::service::{BranchContext, ServiceResult, isolated};
use crate::tally::{Tally, count};

/// After so many calls the write-ahead log is copied back into the database file.
const CHECKPOINT_CALLS: usize = 1_000;
/// How many prepared statements are kept: the guard's few and room for the service's.
const STATEMENTS_MAX: usize = 128;

pub(super) type Answer = Result<Reply, CallError>;

/// One call on its way to the writer.
pub(super) struct Job {
    pub(super) request: Request,
    pub(super) owed: OwedAnswer,
}

pub(super) struct Writer<S> {
    connection: Connection,
    service: S,
    options: SqliteOptions,
    jobs: mpsc::Receiver<Job>,
    tally: Arc<Tally>,
    /// Why nothing is written any more.
    stopped: Option<String>,
    calls_since_checkpoint: usize,
}

/// Opens the file, makes everything in it durable, and brings both the guard's and the service's
/// tables up to date in one transaction.
pub(super) fn open(
    path: &Path,
    service: &impl SqliteService,
    options: &SqliteOptions,
) -> Result<Connection, OpenError> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(std::time::Duration::from_millis(options.busy_timeout_ms))?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    let mode: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    if mode != "wal" {
        return Err(OpenError::JournalMode(mode));
    }
    // Checkpoints are made by `checkpoint` below: the automatic ones hide their errors.
    connection.execute_batch("PRAGMA synchronous = FULL; PRAGMA wal_autocheckpoint = 0;")?;
    // A predecessor whose last sync failed may have left rows that only the page cache holds. They
    // are copied into the database file and synced before anybody is answered from them.
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    let transaction = rusqlite::Transaction::new_unchecked(
        &connection,
        rusqlite::TransactionBehavior::Immediate,
    )?;
    guard_table::create(&transaction)?;
    service.migrate(&transaction).map_err(|error| OpenError::Migration(error.to_string()))?;
    transaction.commit()?;
    Ok(connection)
}

impl<S: SqliteService> Writer<S> {
    pub(super) fn new(
        connection: Connection,
        service: S,
        options: SqliteOptions,
        jobs: mpsc::Receiver<Job>,
        tally: Arc<Tally>,
    ) -> Self {
        Self { connection, service, options, jobs, tally, stopped: None, calls_since_checkpoint: 0 }
    }

    /// Serves groups until every handle is gone.
    pub(super) fn run(mut self) {
        while let Some(first) = self.jobs.blocking_recv() {
            let group = self.gather(first);
            let answers = match self.commit_group(&group) {
                Ok(answers) => answers,
                Err(error) => {
                    tracing::error!(%error, calls = group.len(), "a group failed");
                    group.iter().map(|_| Err(CallError::Failed(error.clone()))).collect()
                }
            };
            self.calls_since_checkpoint += group.len();
            for (job, answer) in group.into_iter().zip(answers) {
                job.owed.settle(answer);
            }
            self.checkpoint_if_due();
        }
    }

    fn gather(&mut self, first: Job) -> Vec<Job> {
        let mut group = vec![first];
        while group.len() < self.options.group_calls_max
            && let Ok(next) = self.jobs.try_recv()
        {
            group.push(next);
        }
        group
    }

    fn commit_group(&mut self, group: &[Job]) -> Result<Vec<Answer>, String> {
        if let Some(reason) = &self.stopped {
            return Err(format!("this participant has stopped until its restart: {reason}"));
        }
        let result = self.try_commit(group);
        if result.is_err() && !self.connection.is_autocommit() {
            self.or_stop(|connection| connection.execute_batch("ROLLBACK"))?;
        }
        result
    }

    fn try_commit(&mut self, group: &[Job]) -> Result<Vec<Answer>, String> {
        self.or_stop(|connection| connection.execute_batch("BEGIN IMMEDIATE"))?;
        let mut answers = Vec::with_capacity(group.len());
        for job in group {
            answers.push(self.answer(&job.request));
            if self.connection.is_autocommit() {
                return Err("the local transaction ended inside a call: the disk is full, or the \
                            service ended it itself"
                    .to_owned());
            }
        }
        self.reach(Moment::BeforeCommit { calls: group.len() })?;
        self.or_stop(|connection| connection.execute_batch("COMMIT"))?;
        count(&self.tally.groups);
        self.reach(Moment::AfterCommit { calls: group.len() })?;
        Ok(answers)
    }

    fn reach(&self, moment: Moment) -> Result<(), String> {
        self.options.moment_hook.as_ref().map_or(Ok(()), |hook| hook(moment))
    }

    /// Does something to the database as a whole; an error of the disk stops the writer.
    fn or_stop<T>(
        &mut self,
        action: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, String> {
        action(&self.connection).map_err(|error| {
            let fatal = matches!(
                error.sqlite_error_code(),
                Some(
                    ErrorCode::SystemIoFailure
                        | ErrorCode::DatabaseCorrupt
                        | ErrorCode::NotADatabase
                )
            );
            if fatal {
                self.stopped = Some(error.to_string());
            }
            error.to_string()
        })
    }

    /// After the answers have left, so that nobody waits for it. A reader can only delay it.
    fn checkpoint_if_due(&mut self) {
        if self.calls_since_checkpoint < CHECKPOINT_CALLS || self.stopped.is_some() {
            return;
        }
        self.calls_since_checkpoint = 0;
        let checkpoint = "PRAGMA wal_checkpoint(PASSIVE)";
        let done = self.or_stop(|connection| connection.query_row(checkpoint, [], |_| Ok(())));
        if let Err(error) = done {
            tracing::error!(%error, "the write-ahead log cannot be copied back");
        }
    }

    fn answer(&self, request: &Request) -> Answer {
        let found = guard_table::read(&self.connection, &request.transaction, &request.branch);
        let row = found.map_err(|error| self.failed(error.to_string()))?;
        match judge(row.as_ref(), request.operation, Mutations::default()) {
            Verdict::Repeat(reply) => {
                count(&self.tally.repeated);
                Ok(reply)
            }
            Verdict::Refuse(contradiction) => {
                let error = CallError::Contradiction(contradiction);
                self.tally.count_error(&error);
                Err(error)
            }
            Verdict::Remember(row, reply) => {
                self.write(request, &row).map_err(|error| self.failed(error.to_string()))?;
                count(&self.tally.remembered);
                Ok(reply)
            }
            Verdict::Apply => {
                let reply =
                    self.apply(request).inspect_err(|error| self.tally.count_error(error))?;
                count(&self.tally.applied);
                Ok(reply)
            }
        }
    }

    fn failed(&self, error: String) -> CallError {
        count(&self.tally.failed);
        CallError::Failed(error)
    }

    fn write(
        &self,
        request: &Request,
        row: &unanimity_core::guard::GuardRow,
    ) -> rusqlite::Result<()> {
        guard_table::write(&self.connection, &request.transaction, &request.branch, row, now_ms())
    }

    /// The service's work and the guard's row, both or neither. If undoing fails too, SQLite has
    /// ended the whole transaction, and `try_commit` sees that.
    fn apply(&self, request: &Request) -> Result<Reply, CallError> {
        self.savepoint("SAVEPOINT unanimity_call")?;
        let settled = isolated(|| self.work(request)).and_then(|work| {
            if matches!(work, Work::No(_) | Work::ReadOnly) {
                self.savepoint("ROLLBACK TO unanimity_call")?;
            }
            let (row, reply) = settle(request.operation, work);
            self.write(request, &row).map_err(|error| CallError::Failed(error.to_string()))?;
            Ok(reply)
        });
        if settled.is_err() && !self.connection.is_autocommit() {
            self.savepoint("ROLLBACK TO unanimity_call")?;
        }
        if !self.connection.is_autocommit() {
            self.savepoint("RELEASE unanimity_call")?;
        }
        settled
    }

    fn savepoint(&self, sql: &str) -> Result<(), CallError> {
        let done =
            self.connection.prepare_cached(sql).and_then(|mut statement| statement.execute([]));
        done.map(|_| ()).map_err(|error| CallError::Failed(error.to_string()))
    }

    fn work(&self, request: &Request) -> ServiceResult<Work> {
        let (branch, payload) = (BranchContext::from(request), &request.payload);
        let (database, service) = (&self.connection, &self.service);
        let done = |()| Work::Done(None);
        match request.operation {
            Operation::Prepare => {
                service.prepare(database, &branch, payload)?.into_work(Operation::Prepare)
            }
            Operation::Execute => {
                service.execute(database, &branch, payload)?.into_work(Operation::Execute)
            }
            Operation::Commit => service.commit(database, &branch, payload).map(done),
            Operation::Rollback => service.rollback(database, &branch, payload).map(done),
            Operation::Compensate => service.compensate(database, &branch, payload).map(done),
            Operation::CommitOnePhase => {
                let vote = service.prepare(database, &branch, payload)?;
                let work = vote.into_work(Operation::Prepare)?;
                if matches!(work, Work::Done(_)) {
                    service.commit(database, &branch, payload)?;
                }
                Ok(work)
            }
            Operation::Inquire => Err("an inquiry does no work".into()),
        }
    }
}
