//! Decides what a service with a PostgreSQL database implements, and which of its functions an
//! operation calls. That each is called at most once is the guard's business.

use unanimity_core::Operation;
use unanimity_core::guard::Work;

use super::PostgresLocal;
use super::guard_table::CREATE;
use super::store::{PostgresStore, classify};
use crate::service::{BranchContext, ServiceResult, Vote, unsupported};
use crate::sql::SqlOpenError;
use crate::sql::engine::Works;

/// A service whose data lie in a PostgreSQL database.
///
/// Every call runs inside a local transaction that the SDK has begun and will commit; what `local`
/// is used for belongs to it. Several calls run at the same time, each on a connection of its own.
/// Hand on the database's errors with `?`, and do not go on after one: by them the SDK knows
/// whether to try the call again, which after a deadlock or a serialization failure it does. Keep
/// no state outside the database.
///
/// The functions can be written as `async fn`.
pub trait PostgresService: Send + Sync + 'static {
    /// Creates or updates the service's tables. Runs at every start, by one process at a time.
    ///
    /// # Errors
    /// Any; the participant does not open.
    fn migrate(&self, local: &PostgresLocal) -> impl Future<Output = ServiceResult<()>> + Send;

    /// Does the work so that it can be committed and can be undone, whatever happens, and votes.
    ///
    /// # Errors
    /// Anything that is not a no: this call is undone, and the coordinator tries again.
    fn prepare(
        &self,
        local: &PostgresLocal,
        branch: &BranchContext,
        payload: &[u8],
    ) -> impl Future<Output = ServiceResult<Vote>> + Send;

    /// Makes the prepared work final. `payload` is empty unless the branch asks for it in phase
    /// two, and is always empty where an inquiry found the decision out.
    ///
    /// # Errors
    /// This call is undone, and the coordinator tries again until it succeeds.
    fn commit(
        &self,
        local: &PostgresLocal,
        branch: &BranchContext,
        payload: &[u8],
    ) -> impl Future<Output = ServiceResult<()>> + Send;

    /// Undoes the prepared work; `payload` as for commit.
    ///
    /// # Errors
    /// This call is undone, and the coordinator tries again until it succeeds.
    fn rollback(
        &self,
        local: &PostgresLocal,
        branch: &BranchContext,
        payload: &[u8],
    ) -> impl Future<Output = ServiceResult<()>> + Send;

    /// Does the work, visibly. Not supported unless the service offers it.
    ///
    /// # Errors
    /// Anything that is not a no: this call is undone, and the coordinator tries again.
    fn execute(
        &self,
        _local: &PostgresLocal,
        _branch: &BranchContext,
        _payload: &[u8],
    ) -> impl Future<Output = ServiceResult<Vote>> + Send {
        async { unsupported("execute") }
    }

    /// Undoes executed work. Not supported unless the service offers it.
    ///
    /// # Errors
    /// This call is undone, and the coordinator tries again until it succeeds.
    fn compensate(
        &self,
        _local: &PostgresLocal,
        _branch: &BranchContext,
        _payload: &[u8],
    ) -> impl Future<Output = ServiceResult<()>> + Send {
        async { unsupported("compensate") }
    }
}

/// A service, as the engine calls it.
pub(crate) struct Serving<S>(pub(crate) S);

impl<S: PostgresService> Works<PostgresStore> for Serving<S> {
    async fn work(
        &self,
        local: &mut PostgresLocal,
        branch: &BranchContext,
        payload: &[u8],
    ) -> ServiceResult<Work> {
        let done = |()| Work::Done(None);
        let Self(service) = self;
        match branch.operation {
            Operation::Prepare => {
                service.prepare(local, branch, payload).await?.into_work(Operation::Prepare)
            }
            Operation::Execute => {
                service.execute(local, branch, payload).await?.into_work(Operation::Execute)
            }
            Operation::Commit => service.commit(local, branch, payload).await.map(done),
            Operation::Rollback => service.rollback(local, branch, payload).await.map(done),
            Operation::Compensate => service.compensate(local, branch, payload).await.map(done),
            Operation::CommitOnePhase => {
                let vote = service.prepare(local, branch, payload).await?;
                let work = vote.into_work(Operation::Prepare)?;
                if matches!(work, Work::Done(_)) {
                    service.commit(local, branch, payload).await?;
                }
                Ok(work)
            }
            Operation::Inquire => Err("an inquiry does no work".into()),
        }
    }
}

/// Brings the guard's and the service's tables up to date, in one transaction that no other process
/// is in at the same time.
pub(crate) async fn migrate(
    local: &PostgresLocal,
    service: impl AsyncFnOnce(&PostgresLocal) -> ServiceResult<()>,
) -> Result<(), SqlOpenError> {
    let database = |error: tokio_postgres::Error| SqlOpenError::from(classify(&error));
    local.batch_execute("BEGIN").await.map_err(database)?;
    local.batch_execute(CREATE).await.map_err(database)?;
    let migrated = service(local).await;
    migrated.map_err(|error| SqlOpenError::Migration(error.to_string()))?;
    // A savepoint, because a failed transaction takes a COMMIT for a rollback.
    local.batch_execute("SAVEPOINT unanimity_end; COMMIT").await.map_err(database)
}
