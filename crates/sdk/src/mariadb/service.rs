//! Decides what a service with a MariaDB or MySQL database implements, and which of its functions
//! an operation calls. That each is called at most once is the guard's business.

use unanimity_core::Operation;
use unanimity_core::guard::Work;

use mysql_async::Conn;
use mysql_async::prelude::Queryable;

use super::guard_table::{CREATE, EXISTS};
use super::store::{MariaDbStore, classify};
use crate::service::{BranchContext, ServiceResult, Vote, unsupported};
use crate::sql::SqlOpenError;
use crate::sql::engine::Works;

/// One for each database of the server. The lock goes with the connection if it is not given back.
const LOCK: &str = "SELECT GET_LOCK(CONCAT('unanimity_migration:', MD5(DATABASE())), 60)";
const UNLOCK: &str = "DO RELEASE_LOCK(CONCAT('unanimity_migration:', MD5(DATABASE())))";

/// A service whose data lie in a MariaDB or MySQL database.
///
/// Every call runs inside a local transaction that the SDK has begun and will commit; what `local`
/// is used for belongs to it. Several calls run at the same time, each on a connection of its own.
/// Hand on the database's errors with `?`, and do not go on after one: by them the SDK knows
/// whether to try the call again, which after a deadlock or a serialization failure it does. Keep
/// no state outside the database. A statement that commits by itself (such as most of those that
/// change tables) has no place in a call.
///
/// What a statement has touched counts rows that it has *changed*: an update that leaves a row as
/// it was counts none.
///
/// The functions can be written as `async fn`.
pub trait MariaDbService: Send + Sync + 'static {
    /// Creates or updates the service's tables. Runs at every start, by one process at a time.
    ///
    /// # Errors
    /// Any; the participant does not open.
    fn migrate(&self, local: &mut Conn) -> impl Future<Output = ServiceResult<()>> + Send;

    /// Does the work so that it can be committed and can be undone, whatever happens, and votes.
    ///
    /// # Errors
    /// Anything that is not a no: this call is undone, and the coordinator tries again.
    fn prepare(
        &self,
        local: &mut Conn,
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
        local: &mut Conn,
        branch: &BranchContext,
        payload: &[u8],
    ) -> impl Future<Output = ServiceResult<()>> + Send;

    /// Undoes the prepared work; `payload` as for commit.
    ///
    /// # Errors
    /// This call is undone, and the coordinator tries again until it succeeds.
    fn rollback(
        &self,
        local: &mut Conn,
        branch: &BranchContext,
        payload: &[u8],
    ) -> impl Future<Output = ServiceResult<()>> + Send;

    /// Does the work, visibly. Not supported unless the service offers it.
    ///
    /// # Errors
    /// Anything that is not a no: this call is undone, and the coordinator tries again.
    fn execute(
        &self,
        _local: &mut Conn,
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
        _local: &mut Conn,
        _branch: &BranchContext,
        _payload: &[u8],
    ) -> impl Future<Output = ServiceResult<()>> + Send {
        async { unsupported("compensate") }
    }
}

/// A service, as the engine calls it.
pub(crate) struct Serving<S>(pub(crate) S);

impl<S: MariaDbService> Works<MariaDbStore> for Serving<S> {
    async fn work(
        &self,
        local: &mut Conn,
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

/// Brings the guard's and the service's tables up to date, by one process at a time. Changes of
/// tables commit by themselves here, so what a crash leaves half done the next start does again.
pub(crate) async fn migrate(
    local: &mut Conn,
    service: impl AsyncFnOnce(&mut Conn) -> ServiceResult<()>,
) -> Result<(), SqlOpenError> {
    let database = |error: mysql_async::Error| SqlOpenError::from(classify(&error));
    let locked = local.query_first::<Option<u8>, _>(LOCK).await.map_err(database)?;
    if locked.flatten() != Some(1) {
        let text = "another process is bringing the tables up to date";
        return Err(SqlOpenError::Migration(text.to_owned()));
    }
    // Not with IF NOT EXISTS alone: what creates may wait for prepared branches that use the table.
    if local.query_first::<u8, _>(EXISTS).await.map_err(database)?.is_none() {
        local.query_drop(CREATE).await.map_err(database)?;
    }
    let migrated = service(local).await;
    migrated.map_err(|error| SqlOpenError::Migration(error.to_string()))?;
    local.query_drop("COMMIT").await.map_err(database)?;
    local.query_drop(UNLOCK).await.map_err(database)?;
    // This too has begun a local transaction, and an XA branch can begin in none.
    local.query_drop("COMMIT").await.map_err(database)
}
