//! Branches that PostgreSQL prepares (`PREPARE TRANSACTION`): the service's trait, the participant,
//! and the statements. The course of a call is left to `engine`.
//!
//! 1. A prepared transaction can be finished in the database that it was prepared in, and in no
//!    other of the same server; all processes of a service have to use the same URL.
//! 2. Once a statement has failed, PostgreSQL answers a PREPARE with a rollback, and that without
//!    an error. So it goes behind a savepoint, which a failed transaction refuses.
//! 3. A second prepare of the same branch would wait for the row of the first, until the decision.
//!    So a repeated call looks for the name first, and one that has waited a moment in vain looks
//!    then.

use std::fmt;
use std::sync::Arc;

use tokio_postgres::error::SqlState;
use unanimity_core::guard::Work;

use super::engine::{Finished, Started, XaEngine, XaStore, in_doubt, row_within, within};
use super::name::BranchName;
use crate::guard_rows::{GuardCounts, GuardEntry};
use crate::participant::{Answering, CallError, Doubting, InDoubt, Participant, Request};
use crate::postgres::store::{self, PostgresStore, classify};
use crate::postgres::{PostgresLocal, guard_table, service};
use crate::prune::Prunable;
use crate::service::{BranchContext, ServiceResult, Vote};
use crate::sql::engine::{Engine, Key, Store, Works};
use crate::sql::{SqlError, SqlOpenError, SqlOptions};
use crate::tally::Counters;

/// A service whose branches PostgreSQL prepares.
///
/// What is said of [`crate::postgres::PostgresService`] about `local` and about errors holds here.
/// A deadlock, a lock timeout or a serialization failure makes the branch vote no.
pub trait PostgresXaService: Send + Sync + 'static {
    /// Creates or updates the service's tables. Runs at every start, by one process at a time.
    ///
    /// # Errors
    /// Any; the participant does not open.
    fn migrate(&self, local: &PostgresLocal) -> impl Future<Output = ServiceResult<()>> + Send;

    /// Does the work, which the decision makes final or undoes, and votes. The rows that it has
    /// written stay locked until then. [`Vote::YesWith`] is an error: the database keeps no result.
    ///
    /// # Errors
    /// Anything that is not a no: this call is undone, and the coordinator tries again.
    fn work(
        &self,
        local: &PostgresLocal,
        branch: &BranchContext,
        payload: &[u8],
    ) -> impl Future<Output = ServiceResult<Vote>> + Send;
}

/// A participant whose branches PostgreSQL prepares.
///
/// Several processes may serve the same database.
pub struct PostgresXaParticipant<S> {
    engine: Arc<XaEngine<PostgresStore, Serving<S>>>,
}

impl<S> fmt::Debug for PostgresXaParticipant<S> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("PostgresXaParticipant").finish_non_exhaustive()
    }
}

struct Serving<S>(S);

impl<S: PostgresXaService> Works<PostgresStore> for Serving<S> {
    async fn work(
        &self,
        local: &mut PostgresLocal,
        branch: &BranchContext,
        payload: &[u8],
    ) -> ServiceResult<Work> {
        within(branch, self.0.work(local, branch, payload)).await
    }
}

impl<S: PostgresXaService> PostgresXaParticipant<S> {
    /// Connects, and brings the guard's and the service's tables up to date. `name` is the
    /// service's: see [`super::owner`].
    ///
    /// # Errors
    /// [`SqlOpenError`]; [`SqlOpenError::CannotPrepare`] where the server has no room for prepared
    /// transactions.
    pub async fn open(
        url: &str,
        name: &str,
        service: S,
        options: SqlOptions,
    ) -> Result<Self, SqlOpenError> {
        let store = PostgresStore::new(store::config(url)?, &options);
        let engine = Engine::new(store, Serving(service), options);
        let borrowed = engine.pool.take().await?;
        let local = &borrowed.connection;
        if !engine.options.without_durability {
            store::check_durable(local).await?;
        }
        check_prepares(local).await?;
        let serving = &engine.service.0;
        service::migrate(local, async |local: &PostgresLocal| serving.migrate(local).await).await?;
        engine.pool.give_back(borrowed);
        Ok(Self { engine: Arc::new(XaEngine { engine, owner: super::owner(name) }) })
    }

    /// The service behind the guard.
    #[must_use]
    pub fn service(&self) -> &S {
        &self.engine.engine.service.0
    }

    /// Reads the service's tables outside the calls of transactions. Leave no local transaction
    /// open.
    ///
    /// # Errors
    /// [`CallError`] where there is no connection; the query's own, as [`CallError::Failed`].
    pub async fn read<T, E: fmt::Display>(
        &self,
        query: impl AsyncFnOnce(&PostgresLocal) -> Result<T, E>,
    ) -> Result<T, CallError> {
        let pool = &self.engine.engine.pool;
        let borrowed = pool.take().await?;
        let answer = query(&borrowed.connection).await;
        if answer.is_ok() {
            pool.give_back(borrowed);
        }
        answer.map_err(|error| CallError::Failed(error.to_string()))
    }

    /// A page of guard rows in the order of transaction and branch, behind the pair `after`. What
    /// is prepared has none: see [`Doubting::in_doubt`].
    ///
    /// # Errors
    /// As [`PostgresXaParticipant::read`].
    pub async fn guard_entries(
        &self,
        after: Option<(String, String)>,
        rows_max: u32,
    ) -> Result<Vec<GuardEntry>, CallError> {
        self.read(async |local: &PostgresLocal| {
            guard_table::entries(local, after.as_ref(), None, rows_max).await
        })
        .await
    }

    /// How many branches stand where, but for those that are prepared.
    ///
    /// # Errors
    /// As [`PostgresXaParticipant::read`].
    pub async fn guard_counts(&self) -> Result<GuardCounts, CallError> {
        self.read(guard_table::counts).await
    }

    /// What this participant has done since its process started.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.engine.engine.counters()
    }
}

async fn check_prepares(local: &PostgresLocal) -> Result<(), SqlOpenError> {
    let sql = "SELECT current_setting('max_prepared_transactions')";
    let row = local.row(sql, &[]).await.map_err(|error| classify(&error))?;
    match row.and_then(|row| row.try_get::<_, String>(0).ok()).as_deref() {
        Some("0") => Err(SqlOpenError::CannotPrepare(
            "max_prepared_transactions = 100 or more in postgresql.conf, and start the server anew"
                .to_owned(),
        )),
        Some(_) | None => Ok(()),
    }
}

impl<S: PostgresXaService> Participant for PostgresXaParticipant<S> {
    fn call(&self, request: Request) -> Answering<'_> {
        Box::pin(Arc::clone(&self.engine).call(request))
    }
}

impl<S: PostgresXaService> Doubting for PostgresXaParticipant<S> {
    fn in_doubt(&self) -> Answering<'_, Vec<InDoubt>> {
        Box::pin(self.engine.in_doubt())
    }
}

impl<S: PostgresXaService> Prunable for PostgresXaParticipant<S> {
    fn settled_before(
        &self,
        before_ms: u64,
        after: Option<(String, String)>,
        rows_max: u32,
    ) -> Answering<'_, Vec<GuardEntry>> {
        Box::pin(self.read(async move |local: &PostgresLocal| {
            guard_table::entries(local, after.as_ref(), Some(before_ms), rows_max).await
        }))
    }

    fn forget(&self, rows: Vec<GuardEntry>) -> Answering<'_, u64> {
        Box::pin(self.read(async move |local: &PostgresLocal| {
            let mut removed = 0;
            for row in &rows {
                removed += guard_table::forget(local, row).await?;
            }
            Ok::<_, tokio_postgres::Error>(removed)
        }))
    }
}

/// The name as a literal. It is made of letters, digits and a few marks, none of which can end it.
fn literal(name: &BranchName) -> String {
    let gid = name.gid();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._:-/~".contains(&byte);
    assert!(gid.bytes().all(plain), "a name that has to be quoted: {gid:?}");
    format!("'{gid}'")
}

impl XaStore for PostgresStore {
    const LETS_GO: bool = true;

    async fn start(
        &self,
        local: &mut PostgresLocal,
        name: &BranchName,
        key: Key<'_>,
        attempt: u32,
    ) -> Result<Started, SqlError> {
        if attempt != 1 && self.is_prepared(local, name).await? {
            return Ok(Started::Prepared);
        }
        match self.claim_impatiently(local, key, row_within()).await {
            Ok(opened) if opened.found.is_some() => {
                self.abandon(local).await?;
                Ok(Started::Known)
            }
            Ok(_) => Ok(Started::Claimed),
            Err(SqlError::Busy(text)) => {
                self.abandon(local).await?;
                let prepared = self.is_prepared(local, name).await?;
                if prepared { Ok(Started::Prepared) } else { Err(SqlError::Busy(text)) }
            }
            Err(error) => Err(error),
        }
    }

    async fn prepare(&self, local: &mut PostgresLocal, name: &BranchName) -> Result<(), SqlError> {
        let sql = format!("SAVEPOINT unanimity_end; PREPARE TRANSACTION {}", literal(name));
        local.batch_execute(&sql).await.map_err(|error| classify(&error))
    }

    async fn undo(&self, local: &mut PostgresLocal, _: &BranchName) -> Result<(), SqlError> {
        self.abandon(local).await
    }

    async fn finish(
        &self,
        local: &mut PostgresLocal,
        name: &BranchName,
        commit: bool,
    ) -> Result<Finished, SqlError> {
        let word = if commit { "COMMIT" } else { "ROLLBACK" };
        match local.batch_execute(&format!("{word} PREPARED {}", literal(name))).await {
            Ok(()) => Ok(Finished::Done),
            Err(error) if error.code() == Some(&SqlState::UNDEFINED_OBJECT) => {
                Ok(Finished::Unknown)
            }
            Err(error) => Err(classify(&error)),
        }
    }

    async fn is_prepared(
        &self,
        local: &mut PostgresLocal,
        name: &BranchName,
    ) -> Result<bool, SqlError> {
        let sql = "SELECT 1 FROM pg_prepared_xacts WHERE gid = $1";
        let row = local.row(sql, &[&name.gid()]).await;
        Ok(row.map_err(|error| classify(&error))?.is_some())
    }

    async fn prepared(
        &self,
        local: &mut PostgresLocal,
        owner: u64,
    ) -> Result<Vec<InDoubt>, SqlError> {
        let sql = "SELECT gid, (extract(epoch FROM prepared) * 1000)::bigint \
                   FROM pg_prepared_xacts WHERE database = current_database() ORDER BY prepared";
        let rows = local.rows(sql, &[]).await.map_err(|error| classify(&error))?;
        let branch = |row: &tokio_postgres::Row| {
            let name = BranchName::of_gid(row.try_get(0).ok()?)?;
            let since_ms = u64::try_from(row.try_get::<_, i64>(1).ok()?).unwrap_or(0);
            in_doubt(&name, owner, since_ms)
        };
        Ok(rows.iter().filter_map(branch).collect())
    }
}
