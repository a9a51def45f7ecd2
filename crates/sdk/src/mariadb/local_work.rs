//! Decides how an initiator with a MariaDB database of its own sends messages that go out if,
//! and only if, its local transaction commits. The steps are those of the SDK's SQLite version:
//! `record_local_work` in the local transaction, and `inquiry_router` for the coordinator's
//! questions.

use std::sync::Arc;

use axum::Router;
use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Transaction};
use unanimity_core::guard::{Contradiction, GuardState, Reply, Verdict, judge};
use unanimity_core::{Mutations, Operation, TransactionId};

use super::{MariaDbParticipant, MariaDbService, guard_table};
use crate::INITIATOR_BRANCH;
use crate::participant::{Answering, CallError, Participant, Request};
use crate::router::router;
use crate::service::{BranchContext, ServiceResult, Vote, unsupported};
use crate::sql::engine::Key;
use crate::sql::{SqlOpenError, SqlOptions};

/// Why local work may not be committed.
#[derive(Debug, thiserror::Error)]
pub enum LocalWorkError {
    /// The coordinator has asked and was told that it is not there: roll back locally.
    #[error("transaction {0} was given up before the local work was there: roll back locally")]
    TooLate(TransactionId),
    /// The database failed.
    #[error(transparent)]
    Database(#[from] mysql_async::Error),
    /// The row is not one that this version can read.
    #[error("the guard's row cannot be read: {0}")]
    Row(String),
}

/// Makes the guard's table, if it is not there. To be called once, before anything else here.
///
/// # Errors
/// The database's.
pub async fn create_guard_table(client: &mut Conn) -> Result<(), mysql_async::Error> {
    client.query_drop(guard_table::CREATE).await
}

/// Writes that the local work of `transaction` is there, within the caller's own transaction: both
/// are committed, or neither.
///
/// # Errors
/// [`LocalWorkError::TooLate`]: the caller must roll back.
pub async fn record_local_work(
    local: &mut Transaction<'_>,
    transaction: &TransactionId,
) -> Result<(), LocalWorkError> {
    let key = Key { transaction, branch: INITIATOR_BRANCH };
    if guard_table::claim(local, key, GuardState::Committed as u8).await? {
        return Ok(());
    }
    let found = guard_table::lock(local, key).await?;
    let found = found.map(|row| guard_table::guard_row(&row, 0)).transpose();
    let found = found.map_err(|error| LocalWorkError::Row(error.to_string()))?;
    match judge(found.as_ref(), Operation::CommitOnePhase, Mutations::default()) {
        Verdict::Repeat(Reply::Yes(_)) => Ok(()),
        Verdict::Apply | Verdict::Repeat(_) | Verdict::Remember(..) | Verdict::Refuse(_) => {
            Err(LocalWorkError::TooLate(transaction.clone()))
        }
    }
}

/// Answers the coordinator's inquiries, `POST /inquire`, from the database that the local work is
/// in.
///
/// # Errors
/// [`SqlOpenError`].
pub async fn inquiry_router(url: &str, options: SqlOptions) -> Result<Router, SqlOpenError> {
    let participant = MariaDbParticipant::open_with(url, Nothing, options).await?;
    Ok(router(Arc::new(LocalWork(participant))))
}

struct LocalWork(MariaDbParticipant<Nothing>);

impl Participant for LocalWork {
    fn call(&self, request: Request) -> Answering<'_> {
        if request.operation == Operation::Inquire {
            return self.0.call(request);
        }
        Box::pin(async { Err(CallError::Contradiction(Contradiction::WrongKind)) })
    }
}

/// A service that is only asked.
struct Nothing;

impl MariaDbService for Nothing {
    async fn migrate(&self, _: &mut Conn) -> ServiceResult<()> {
        Ok(())
    }

    async fn prepare(&self, _: &mut Conn, _: &BranchContext, _: &[u8]) -> ServiceResult<Vote> {
        unsupported("prepare")
    }

    async fn commit(&self, _: &mut Conn, _: &BranchContext, _: &[u8]) -> ServiceResult<()> {
        unsupported("commit")
    }

    async fn rollback(&self, _: &mut Conn, _: &BranchContext, _: &[u8]) -> ServiceResult<()> {
        unsupported("rollback")
    }
}
