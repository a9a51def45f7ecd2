//! Decides how an initiator with a SQLite database of its own sends messages that go out if, and
//! only if, its local transaction commits (a two-phase message, without an outbox to poll):
//!
//! 1. It opens an interactive transaction with `inquiry` set, and enlists its deferred branches.
//! 2. In its local transaction it does its work and calls [`record_local_work`], which writes one
//!    row of the guard's table; then it commits locally, and asks the coordinator to commit.
//! 3. If it falls silent, the coordinator asks [`inquiry_router`], which looks for the row. Where
//!    there is none it writes that there never will be: a local transaction that is late fails at
//!    step 2, and rolls back.

use std::sync::Arc;

use axum::Router;
use rusqlite::{Connection, TransactionBehavior};
use unanimity_core::guard::{Contradiction, GuardRow, GuardState, Reply, Verdict, judge};
use unanimity_core::{Mutations, Operation, TransactionId};

use crate::INITIATOR_BRANCH;
use crate::participant::{Answering, CallError, Participant, Request, now_ms};
use crate::router::router;
use crate::sqlite::guard_table;

/// Why local work may not be committed.
#[derive(Debug, thiserror::Error)]
pub enum LocalWorkError {
    /// The coordinator has asked and was told that it is not there: roll back locally.
    #[error("transaction {0} was given up before the local work was there: roll back locally")]
    TooLate(TransactionId),
    /// The database failed.
    #[error(transparent)]
    Database(#[from] rusqlite::Error),
}

/// Makes the guard's table, if it is not there. To be called once, before anything else here.
///
/// # Errors
/// The database's.
pub fn create_local_work_table(connection: &Connection) -> rusqlite::Result<()> {
    guard_table::create(connection)
}

/// Writes that the local work of `transaction` is there, within the caller's own transaction: both
/// are committed, or neither.
///
/// # Errors
/// [`LocalWorkError::TooLate`]: the caller must roll back.
pub fn record_local_work(
    connection: &rusqlite::Transaction<'_>,
    transaction: &TransactionId,
) -> Result<(), LocalWorkError> {
    let row = guard_table::read(connection, transaction, INITIATOR_BRANCH)?;
    match judge(row.as_ref(), Operation::CommitOnePhase, Mutations::default()) {
        Verdict::Apply => {
            let row = GuardRow { state: GuardState::Committed, note: None };
            guard_table::write(connection, transaction, INITIATOR_BRANCH, &row, now_ms())?;
            Ok(())
        }
        Verdict::Repeat(Reply::Yes(_)) => Ok(()),
        Verdict::Repeat(_) | Verdict::Remember(..) | Verdict::Refuse(_) => {
            Err(LocalWorkError::TooLate(transaction.clone()))
        }
    }
}

/// Answers the coordinator's inquiries: `POST /inquire`. `open` gives a connection to the database
/// that the local work is in; it is called for each inquiry, which is rare.
pub fn inquiry_router(
    open: impl Fn() -> rusqlite::Result<Connection> + Send + Sync + 'static,
) -> Router {
    router(Arc::new(LocalWork { open: Arc::new(open) }))
}

type Open = dyn Fn() -> rusqlite::Result<Connection> + Send + Sync;

struct LocalWork {
    open: Arc<Open>,
}

impl Participant for LocalWork {
    fn call(&self, request: Request) -> Answering<'_> {
        let open = Arc::clone(&self.open);
        Box::pin(async move {
            if request.operation != Operation::Inquire {
                return Err(CallError::Contradiction(Contradiction::WrongKind));
            }
            let asked = tokio::task::spawn_blocking(move || inquire(&*open, &request)).await;
            let asked = asked.map_err(|error| CallError::Failed(error.to_string()))?;
            asked.map_err(|error| CallError::Failed(error.to_string()))?
        })
    }
}

/// Looks for the row, and writes that there never will be one where it is missing. The write lock
/// is taken first, so that no local transaction commits in between.
fn inquire(open: &Open, request: &Request) -> rusqlite::Result<Result<Reply, CallError>> {
    let mut connection = open()?;
    let local = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let row = guard_table::read(&local, &request.transaction, &request.branch)?;
    let reply = match judge(row.as_ref(), Operation::Inquire, Mutations::default()) {
        Verdict::Repeat(reply) => reply,
        Verdict::Remember(row, reply) => {
            guard_table::write(&local, &request.transaction, &request.branch, &row, now_ms())?;
            reply
        }
        Verdict::Refuse(contradiction) => {
            return Ok(Err(CallError::Contradiction(contradiction)));
        }
        Verdict::Apply => return Ok(Err(CallError::Failed("an inquiry does no work".into()))),
    };
    local.commit()?;
    Ok(Ok(reply))
}
