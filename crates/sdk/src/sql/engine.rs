//! Decides the course of a call: the guard's row is claimed first, then judged, then the service
//! works, then the row is settled, all in one local transaction, and nothing is answered before it
//! is committed.
//!
//! 1. The row is written before the service works (a claim), so that two calls for one branch meet
//!    at the row's key and never both work. What is there already is read under its lock, and the
//!    rules in [`unanimity_core::guard`] judge it.
//! 2. Where the database rolls the local transaction back for the sake of others (deadlock,
//!    serialization failure), the whole of it is tried again, claim and all, a bounded number of
//!    times.
//! 3. A no leaves nothing of the service's work. Where a store rolls the whole local transaction
//!    back for it, the no is remembered in another one, which is judged anew: in between somebody
//!    else may have settled the branch.
//! 4. A connection that is lost while the commit is under way leaves the outcome unknown: the next
//!    claim finds the row, or not. The call itself makes the next claim, once: after a restart of
//!    the server every idle connection is such a one.
//! 5. A call runs on a task of its own: a caller that goes away does not leave it half done.

use std::sync::Arc;
use std::time::Duration;

use unanimity_core::guard::{GuardRow, GuardState, Reply, Verdict, Work, judge, settle};
use unanimity_core::{Mutations, Operation, TransactionId, splitmix64};

use super::keys::Keys;
use super::pool::{Borrowed, Pool};
use super::{SqlError, SqlOptions};
use crate::moment::Moment;
use crate::participant::{CallError, Request};
use crate::service::{BranchContext, Busy, ServiceError, ServiceResult};
use crate::tally::{Counters, Tally, count};

/// The first pause before a call is tried again, in milliseconds. It doubles, with jitter.
const PAUSE_MS: u64 = 2;

/// A branch, as the guard's table knows it.
#[derive(Clone, Copy)]
pub(crate) struct Key<'a> {
    pub(crate) transaction: &'a TransactionId,
    pub(crate) branch: &'a str,
}

/// What a local transaction has found of its branch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Opened {
    /// The row that was there.
    pub(crate) found: Option<GuardRow>,
    /// The row as the claim has written it; none if there was one already, or none was written.
    pub(crate) claimed: Option<GuardRow>,
    /// By what the row is known to be the one that was opened.
    pub(crate) mark: u64,
}

/// A make of database: how its connections are had, and how the guard's row lies in it.
pub(crate) trait Store: Send + Sync + 'static {
    /// A connection, used by one call at a time.
    type Connection: Send + 'static;

    fn connect(&self) -> impl Future<Output = Result<Self::Connection, SqlError>> + Send;

    fn is_open(connection: &Self::Connection) -> bool;

    /// Takes leave of the server.
    fn close(&self, connection: Self::Connection) -> impl Future<Output = ()> + Send;

    /// Begins a local transaction and claims the row, or locks the one that is there. A commit
    /// claims nothing.
    fn open(
        &self,
        connection: &mut Self::Connection,
        key: Key<'_>,
        operation: Operation,
    ) -> impl Future<Output = Result<Opened, SqlError>> + Send;

    /// Writes the row. Fails if the local transaction is not any more the one that was opened.
    fn write(
        &self,
        connection: &mut Self::Connection,
        key: Key<'_>,
        row: &GuardRow,
        opened: &Opened,
    ) -> impl Future<Output = Result<(), SqlError>> + Send;

    /// Undoes the service's work: up to the claim, if the answer is true, or the whole local
    /// transaction.
    fn undo_work(
        &self,
        connection: &mut Self::Connection,
    ) -> impl Future<Output = Result<bool, SqlError>> + Send;

    /// Commits. Fails if the database has turned it into a rollback.
    fn commit(
        &self,
        connection: &mut Self::Connection,
    ) -> impl Future<Output = Result<(), SqlError>> + Send;

    /// Rolls back whatever is open.
    fn abandon(
        &self,
        connection: &mut Self::Connection,
    ) -> impl Future<Output = Result<(), SqlError>> + Send;

    /// What an error of the service means, which may be one of the database underneath.
    fn classify(&self, error: &ServiceError) -> SqlError;
}

/// A service's work, whichever operation it is for.
pub(crate) trait Works<S: Store>: Send + Sync + 'static {
    fn work(
        &self,
        connection: &mut S::Connection,
        branch: &BranchContext,
        payload: &[u8],
    ) -> impl Future<Output = ServiceResult<Work>> + Send;
}

/// A service behind its guard.
pub(crate) struct Engine<S: Store, W> {
    pub(crate) pool: Pool<S>,
    pub(crate) service: W,
    pub(crate) options: SqlOptions,
    pub(crate) tally: Tally,
    pub(crate) keys: Arc<Keys>,
}

pub(crate) type Answer = Result<Reply, CallError>;

impl<S: Store, W: Works<S>> Engine<S, W> {
    pub(crate) fn new(store: S, service: W, options: SqlOptions) -> Self {
        let pool = Pool::new(store, &options);
        Self { pool, service, options, tally: Tally::default(), keys: Arc::default() }
    }

    pub(crate) fn counters(&self) -> Counters {
        self.tally.counters()
    }

    /// Answers one operation, on a task of its own.
    pub(crate) async fn call(self: Arc<Self>, request: Request) -> Answer {
        let engine = Arc::clone(&self);
        let task = tokio::spawn(async move {
            let Some(_place) = engine.pool.enter() else {
                return Err(CallError::Busy("too many calls are waiting; try again later".into()));
            };
            let _turn = engine.keys.turn(&request.transaction, &request.branch).await;
            engine.answer(&request, None).await
        });
        let answer = task.await.unwrap_or_else(|error| Err(CallError::Failed(panicked(error))));
        answer.inspect_err(|error| self.tally.count_error(error))
    }

    /// `decided` is the service's no of a local transaction that was rolled back.
    pub(crate) async fn answer(&self, request: &Request, decided: Option<Work>) -> Answer {
        let decided = decided.map(storable);
        let (mut tried, mut lost) = (1, false);
        loop {
            match self.attempt(request, decided.clone()).await {
                Ok(answer) => return answer,
                Err(SqlError::Again(_)) if tried < self.options.tries_max => {}
                Err(SqlError::Lost(_)) if !lost => {
                    lost = true;
                    self.pool.forget_idle();
                }
                Err(error) => return Err(error.into()),
            }
            tokio::time::sleep(pause(request, tried)).await;
            tried += 1;
        }
    }

    /// One attempt on one connection, which is given back only if nothing has gone wrong with it.
    async fn attempt(&self, request: &Request, decided: Option<Work>) -> Result<Answer, SqlError> {
        let mut borrowed = self.pool.take().await?;
        let limit = Duration::from_millis(self.options.call_timeout_ms);
        let course = self.course(&mut borrowed.connection, request, decided);
        let ended = tokio::time::timeout(limit, course).await;
        let ended = ended.unwrap_or_else(|_| Err(SqlError::Lost("the call took too long".into())));
        self.put_away(borrowed, &ended).await;
        ended
    }

    /// After a failure the local transaction is rolled back. A connection that cannot even do that
    /// is closed; so is one whose failure is not understood, because the cause may lie in it.
    async fn put_away(&self, mut borrowed: Borrowed<S>, ended: &Result<Answer, SqlError>) {
        let sound = match ended {
            Ok(Ok(_) | Err(CallError::Contradiction(_))) => true,
            Ok(Err(CallError::Busy(_) | CallError::Failed(_)))
            | Err(SqlError::Again(_) | SqlError::Busy(_) | SqlError::Refused(_)) => {
                self.pool.store.abandon(&mut borrowed.connection).await.is_ok()
            }
            Err(SqlError::Lost(_) | SqlError::Failed(_)) => false,
        };
        if sound {
            self.pool.give_back(borrowed);
        }
    }

    async fn course(
        &self,
        connection: &mut S::Connection,
        request: &Request,
        decided: Option<Work>,
    ) -> Result<Answer, SqlError> {
        let (store, key) = (&self.pool.store, key(request));
        let opened = store.open(connection, key, request.operation).await?;
        match judge(opened.found.as_ref(), request.operation, Mutations::default()) {
            Verdict::Repeat(reply) => {
                store.commit(connection).await?;
                count(&self.tally.repeated);
                Ok(Ok(reply))
            }
            Verdict::Refuse(contradiction) => {
                // What is refused rests on the row, if there is one: it has to be durable.
                match opened.found {
                    Some(_) => store.commit(connection).await?,
                    None => store.abandon(connection).await?,
                }
                Ok(Err(CallError::Contradiction(contradiction)))
            }
            Verdict::Remember(row, reply) => {
                self.settle(connection, key, &row, &opened).await?;
                count(&self.tally.remembered);
                Ok(Ok(reply))
            }
            Verdict::Apply => self.apply(connection, request, opened, decided).await,
        }
    }

    async fn apply(
        &self,
        connection: &mut S::Connection,
        request: &Request,
        opened: Opened,
        decided: Option<Work>,
    ) -> Result<Answer, SqlError> {
        let refusal = |work: &Work| matches!(work, Work::No(_) | Work::ReadOnly);
        let work = match decided {
            Some(work) => work,
            None => {
                let branch = BranchContext::from(request);
                match self.service.work(connection, &branch, &request.payload).await {
                    Ok(work) if refusal(&work) => {
                        let work = storable(work);
                        if !self.pool.store.undo_work(connection).await? {
                            let again = self.course(connection, request, Some(work));
                            return Box::pin(again).await;
                        }
                        work
                    }
                    Ok(work) => work,
                    Err(error) => return self.service_error(&error),
                }
            }
        };
        let (row, reply) = settle(request.operation, work);
        self.settle(connection, key(request), &row, &opened).await?;
        count(&self.tally.applied);
        Ok(Ok(reply))
    }

    fn service_error(&self, error: &ServiceError) -> Result<Answer, SqlError> {
        if let Some(Busy(what)) = error.downcast_ref::<Busy>() {
            return Ok(Err(CallError::Busy(what.clone())));
        }
        Err(self.pool.store.classify(error))
    }

    async fn settle(
        &self,
        connection: &mut S::Connection,
        key: Key<'_>,
        row: &GuardRow,
        opened: &Opened,
    ) -> Result<(), SqlError> {
        let store = &self.pool.store;
        if opened.claimed.as_ref() != Some(row) {
            store.write(connection, key, row, opened).await?;
        }
        self.reach(Moment::BeforeCommit { calls: 1 })?;
        store.commit(connection).await?;
        count(&self.tally.groups);
        self.reach(Moment::AfterCommit { calls: 1 })
    }

    pub(crate) fn reach(&self, moment: Moment) -> Result<(), SqlError> {
        let hook = self.options.moment_hook.as_ref();
        hook.map_or(Ok(()), |hook| hook(moment)).map_err(SqlError::Failed)
    }
}

/// The first answer has to be the one that is repeated, so what a database cannot hold (PostgreSQL:
/// the character 0) is in neither.
fn storable(work: Work) -> Work {
    match work {
        Work::No(reason) => Work::No(reason.replace('\0', "\u{fffd}")),
        Work::Done(_) | Work::ReadOnly => work,
    }
}

pub(crate) fn key(request: &Request) -> Key<'_> {
    Key { transaction: &request.transaction, branch: &request.branch }
}

/// The row that most calls of an operation end with. A commit claims nothing: where there is no
/// row, it is refused.
pub(crate) fn expected(operation: Operation) -> Option<GuardRow> {
    let state = match operation {
        Operation::Prepare => GuardState::Prepared,
        Operation::Commit => return None,
        Operation::CommitOnePhase => GuardState::Committed,
        Operation::Rollback | Operation::Inquire => GuardState::RolledBack,
        Operation::Execute => GuardState::Executed,
        Operation::Compensate => GuardState::Compensated,
    };
    Some(GuardRow { state, note: None })
}

fn pause(request: &Request, tried: u32) -> Duration {
    let span = PAUSE_MS << tried.min(6);
    let seed = request
        .transaction
        .as_str()
        .bytes()
        .fold(u64::from(tried), |seed, byte| splitmix64(seed ^ u64::from(byte)));
    Duration::from_millis(span / 2 + seed % span)
}

pub(crate) fn panicked(error: tokio::task::JoinError) -> String {
    let Ok(panic) = error.try_into_panic() else { return "the call was cancelled".to_owned() };
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    format!("the service panicked: {}", text.unwrap_or("no message"))
}
