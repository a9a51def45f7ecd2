//! Decides the course of a call for a branch that the database prepares.
//!
//! 1. Prepare: the branch is started and the row claimed in it, the service works, the branch is
//!    prepared. Where the name is prepared already, the answer is yes again.
//! 2. What the database rolls back by itself (deadlock, lock timeout, serialization failure) is a
//!    no with that reason. A no is remembered by a row in an ordinary local transaction.
//! 3. Commit and rollback: by name, on any connection. Where there is no such name, the row says
//!    what has become of the branch.
//! 4. Rollback: the name first, then the row, in two steps, for the database has no one step. If a
//!    late prepare comes in between, its row holds the key: the second step waits for it in vain,
//!    the coordinator is told to come again, and the next rollback finds the name.
//! 5. A connection that is lost in the middle leaves the outcome unknown; the next call looks.

use std::sync::Arc;
use std::time::Duration;

use unanimity_core::guard::{Contradiction, GuardRow, GuardState, Reply, Work};
use unanimity_core::{Operation, REASON_BYTES_MAX, TransactionId};

use super::name::BranchName;
use crate::contract::cut;
use crate::moment::Moment;
use crate::participant::{CallError, InDoubt, Request};
use crate::service::{BranchContext, Busy, ServiceError, ServiceResult, unsupported};
use crate::sql::SqlError;
use crate::sql::engine::{Answer, Engine, Key, Store, Works, key, panicked};
use crate::sql::pool::Borrowed;
use crate::tally::count;

/// What the start of a branch has found.
pub(crate) enum Started {
    /// Nothing: the row is claimed, the service may work.
    Claimed,
    /// A row: the branch is not started.
    Known,
    /// The branch itself, prepared.
    Prepared,
}

/// Whether there was a prepared branch of that name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Finished {
    Done,
    /// Not as far as this database can tell.
    Unknown,
}

/// A make of database that can prepare.
pub(crate) trait XaStore: Store {
    fn start(
        &self,
        connection: &mut Self::Connection,
        name: &BranchName,
        key: Key<'_>,
        attempt: u32,
    ) -> impl Future<Output = Result<Started, SqlError>> + Send;

    /// Whether a connection has nothing more to do with a branch that it has prepared. Where it
    /// has, it is closed.
    const LETS_GO: bool;

    /// Prepares what was started.
    fn prepare(
        &self,
        connection: &mut Self::Connection,
        name: &BranchName,
    ) -> impl Future<Output = Result<(), SqlError>> + Send;

    /// Rolls back what was started.
    fn undo(
        &self,
        connection: &mut Self::Connection,
        name: &BranchName,
    ) -> impl Future<Output = Result<(), SqlError>> + Send;

    /// Commits or rolls back what is prepared.
    fn finish(
        &self,
        connection: &mut Self::Connection,
        name: &BranchName,
        commit: bool,
    ) -> impl Future<Output = Result<Finished, SqlError>> + Send;

    fn is_prepared(
        &self,
        connection: &mut Self::Connection,
        name: &BranchName,
    ) -> impl Future<Output = Result<bool, SqlError>> + Send;

    /// Everything that is prepared here under this owner's number.
    fn prepared(
        &self,
        connection: &mut Self::Connection,
        owner: u64,
    ) -> impl Future<Output = Result<Vec<InDoubt>, SqlError>> + Send;
}

/// The row in a prepared branch: it is seen when the branch is committed.
pub(crate) const fn row_within() -> GuardRow {
    GuardRow { state: GuardState::Committed, note: None }
}

/// A service whose branches the database prepares.
pub(crate) struct XaEngine<S: Store, W> {
    pub(crate) engine: Engine<S, W>,
    pub(crate) owner: u64,
}

/// Does something that can be done twice on a connection. One that has failed is closed; where it
/// was lost, another one is tried. A macro, because a closure that borrows the connection across an
/// await cannot be shown to be `Send`.
macro_rules! on_some_connection {
    ($pool:expr, $borrowed:ident => $action:expr) => {{
        let mut $borrowed = $pool.take().await?;
        match $action.await {
            Err(SqlError::Lost(_)) => {
                $pool.forget_idle();
                drop($borrowed);
                let mut $borrowed = $pool.take().await?;
                let done = $action.await?;
                (done, $borrowed)
            }
            done => (done?, $borrowed),
        }
    }};
}

impl<S: XaStore, W: Works<S>> XaEngine<S, W> {
    pub(crate) async fn call(self: Arc<Self>, request: Request) -> Answer {
        let this = Arc::clone(&self);
        let task = tokio::spawn(async move {
            let engine = &this.engine;
            let Some(_place) = engine.pool.enter() else {
                return Err(CallError::Busy("too many calls are waiting; try again later".into()));
            };
            let _turn = engine.keys.turn(&request.transaction, &request.branch).await;
            this.answer(&request).await
        });
        let answer = task.await.unwrap_or_else(|error| Err(CallError::Failed(panicked(error))));
        answer.inspect_err(|error| self.engine.tally.count_error(error))
    }

    pub(crate) async fn in_doubt(&self) -> Result<Vec<InDoubt>, CallError> {
        let pool = &self.engine.pool;
        let (found, borrowed) = on_some_connection!(pool, borrowed => {
            pool.store.prepared(&mut borrowed.connection, self.owner)
        });
        pool.give_back(borrowed);
        Ok(found)
    }

    async fn answer(&self, request: &Request) -> Answer {
        match request.operation {
            Operation::Prepare => self.prepare(request).await,
            Operation::Commit => match self.finish(request, true).await? {
                Finished::Done if S::LETS_GO => {
                    count(&self.engine.tally.applied);
                    Ok(Reply::Acknowledged)
                }
                // The word of a server for a branch that another session has prepared is believed
                // when its row shows it: see `mariadb`.
                Finished::Done => self.engine.answer(request, None).await,
                Finished::Unknown => self.engine.answer(request, None).await,
            },
            Operation::Rollback => {
                self.finish(request, false).await?;
                self.engine.answer(request, None).await
            }
            Operation::CommitOnePhase | Operation::Inquire => {
                if self.is_prepared(request).await? {
                    return Err(CallError::Contradiction(Contradiction::WrongKind));
                }
                self.engine.answer(request, None).await
            }
            Operation::Execute | Operation::Compensate => {
                let word = request.operation.as_str();
                Err(CallError::Failed(format!("this service does not support {word}")))
            }
        }
    }

    fn name(&self, request: &Request) -> BranchName {
        BranchName::new(self.owner, request.transaction.as_str(), &request.branch)
    }

    /// By name.
    async fn finish(&self, request: &Request, commit: bool) -> Result<Finished, CallError> {
        let (pool, name) = (&self.engine.pool, self.name(request));
        let (finished, borrowed) = on_some_connection!(pool, borrowed => {
            self.in_time(pool.store.finish(&mut borrowed.connection, &name, commit))
        });
        pool.give_back(borrowed);
        Ok(finished)
    }

    async fn is_prepared(&self, request: &Request) -> Result<bool, CallError> {
        let (pool, name) = (&self.engine.pool, self.name(request));
        let (found, borrowed) = on_some_connection!(pool, borrowed => {
            self.in_time(pool.store.is_prepared(&mut borrowed.connection, &name))
        });
        pool.give_back(borrowed);
        Ok(found)
    }

    async fn in_time<T>(
        &self,
        action: impl Future<Output = Result<T, SqlError>>,
    ) -> Result<T, SqlError> {
        let limit = Duration::from_millis(self.engine.options.call_timeout_ms);
        let late = |_| SqlError::Lost("the call took too long".to_owned());
        tokio::time::timeout(limit, action).await.map_err(late)?
    }

    async fn prepare(&self, request: &Request) -> Answer {
        let (pool, name) = (&self.engine.pool, self.name(request));
        let (started, borrowed) = on_some_connection!(pool, borrowed => {
            let connection = &mut borrowed.connection;
            self.in_time(pool.store.start(connection, &name, key(request), request.attempt))
        });
        match started {
            Started::Prepared => {
                pool.give_back(borrowed);
                count(&self.engine.tally.repeated);
                Ok(Reply::Yes(None))
            }
            Started::Known => {
                pool.give_back(borrowed);
                self.engine.answer(request, None).await
            }
            Started::Claimed => self.work(request, &name, borrowed).await,
        }
    }

    async fn work(
        &self,
        request: &Request,
        name: &BranchName,
        mut borrowed: Borrowed<S>,
    ) -> Answer {
        let (pool, branch) = (&self.engine.pool, BranchContext::from(request));
        let connection = &mut borrowed.connection;
        let work = self.engine.service.work(connection, &branch, &request.payload);
        let worked = self.in_time(async { Ok(work.await) }).await?;
        let no = match worked {
            Ok(Work::Done(None)) => {
                self.engine.reach(Moment::BeforeCommit { calls: 1 })?;
                match self.in_time(pool.store.prepare(connection, name)).await {
                    Ok(()) => {
                        self.engine.reach(Moment::AfterCommit { calls: 1 })?;
                        match S::LETS_GO {
                            true => pool.give_back(borrowed),
                            false => pool.close(borrowed).await,
                        }
                        count(&self.engine.tally.applied);
                        return Ok(Reply::Yes(None));
                    }
                    Err(SqlError::Again(text)) => Ok(rolled_back(&text)),
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(Work::Done(Some(_))) => {
                Err(CallError::Failed("a branch that the database prepares has no result".into()))
            }
            Ok(refusal) => Ok(refusal),
            Err(error) => self.failed(&error),
        };
        pool.store.undo(&mut borrowed.connection, name).await?;
        pool.give_back(borrowed);
        self.engine.answer(request, Some(no?)).await
    }

    /// What the database rolls back by itself is a no; anything else, a failure.
    fn failed(&self, error: &ServiceError) -> Result<Work, CallError> {
        if let Some(Busy(what)) = error.downcast_ref::<Busy>() {
            return Err(CallError::Busy(what.clone()));
        }
        match self.engine.pool.store.classify(error) {
            SqlError::Again(text) | SqlError::Busy(text) => Ok(rolled_back(&text)),
            error => Err(error.into()),
        }
    }
}

fn rolled_back(text: &str) -> Work {
    Work::No(cut(&format!("the database rolled the branch back: {text}"), REASON_BYTES_MAX))
}

/// What of a service's work the guarded local transactions do: a branch that commits in one phase
/// needs no prepare.
pub(crate) async fn within<F>(branch: &BranchContext, work: F) -> ServiceResult<Work>
where
    F: Future<Output = ServiceResult<crate::Vote>>,
{
    match branch.operation {
        Operation::Prepare | Operation::CommitOnePhase => work.await?.into_work(Operation::Prepare),
        other => unsupported(other.as_str()),
    }
}

/// The branch, if it is this owner's. One whose name is a digest cannot be asked about; its
/// decision comes from the coordinator.
pub(crate) fn in_doubt(name: &BranchName, owner: u64, since_ms: u64) -> Option<InDoubt> {
    let transaction = TransactionId::new(&name.transaction).ok()?;
    let whole = unanimity_core::check_id(&name.branch).is_ok();
    (name.coordinator == owner && whole).then(|| InDoubt {
        transaction,
        branch: name.branch.as_str().into(),
        since_ms,
    })
}
