//! Decides what a service with a MariaDB or MySQL database sees: its own trait, the participant
//! that puts the guard before it, and questions about the guard. The guard's rows lie in the same
//! database and are written in the same local transaction as the service's work. The course of a
//! call is left to [`crate::sql`], connections and local transactions to `store`, the SQL to
//! `guard_table`.

pub(crate) mod guard_table;
mod local_work;
pub(crate) mod service;
pub(crate) mod store;

use std::fmt;
use std::sync::Arc;

pub use mysql_async;
use mysql_async::Conn;

use self::service::Serving;
use self::store::MariaDbStore;
use crate::guard_rows::{GuardCounts, GuardEntry};
use crate::participant::{Answering, CallError, Doubting, InDoubt, Participant, Request};
use crate::prune::Prunable;
use crate::sql::engine::Engine;
use crate::sql::{SqlOpenError, SqlOptions};
use crate::tally::Counters;

pub use self::local_work::{LocalWorkError, create_guard_table, inquiry_router, record_local_work};
pub use self::service::MariaDbService;

/// A participant whose guard and whose service's data lie in one MariaDB database.
///
/// Several processes may serve the same database.
pub struct MariaDbParticipant<S> {
    engine: Arc<Engine<MariaDbStore, Serving<S>>>,
}

impl<S> fmt::Debug for MariaDbParticipant<S> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("MariaDbParticipant").finish_non_exhaustive()
    }
}

impl<S: MariaDbService> MariaDbParticipant<S> {
    /// Connects, and brings the guard's and the service's tables up to date.
    ///
    /// # Errors
    /// [`SqlOpenError`].
    pub async fn open(url: &str, service: S) -> Result<Self, SqlOpenError> {
        Self::open_with(url, service, SqlOptions::default()).await
    }

    /// The same, with limits of its own.
    ///
    /// # Errors
    /// [`SqlOpenError`].
    pub async fn open_with(
        url: &str,
        service: S,
        options: SqlOptions,
    ) -> Result<Self, SqlOpenError> {
        let store = MariaDbStore::new(store::options(url)?, &options);
        let engine = Arc::new(Engine::new(store, Serving(service), options));
        let mut borrowed = engine.pool.take().await?;
        let local = &mut borrowed.connection;
        if !engine.options.without_durability {
            store::check_durable(local).await?;
        }
        let service = &engine.service.0;
        service::migrate(local, async |local: &mut Conn| service.migrate(local).await).await?;
        engine.pool.give_back(borrowed);
        Ok(Self { engine })
    }

    /// The service behind the guard.
    #[must_use]
    pub fn service(&self) -> &S {
        &self.engine.service.0
    }

    /// Reads the service's tables outside the calls of transactions.
    ///
    /// # Errors
    /// [`CallError`] where there is no connection; the query's own, as [`CallError::Failed`].
    pub async fn read<T, E: fmt::Display>(
        &self,
        query: impl AsyncFnOnce(&mut Conn) -> Result<T, E>,
    ) -> Result<T, CallError> {
        MariaDbStore::read(&self.engine.pool, query).await
    }

    /// Every branch in doubt, the oldest first.
    ///
    /// # Errors
    /// As [`MariaDbParticipant::read`].
    pub async fn in_doubt(&self) -> Result<Vec<InDoubt>, CallError> {
        self.read(guard_table::in_doubt).await
    }

    /// A page of guard rows in the order of transaction and branch, behind the pair `after`.
    ///
    /// # Errors
    /// As [`MariaDbParticipant::read`].
    pub async fn guard_entries(
        &self,
        after: Option<(String, String)>,
        rows_max: u32,
    ) -> Result<Vec<GuardEntry>, CallError> {
        self.read(async |local: &mut Conn| {
            guard_table::entries(local, after.as_ref(), None, rows_max).await
        })
        .await
    }

    /// How many branches stand where.
    ///
    /// # Errors
    /// As [`MariaDbParticipant::read`].
    pub async fn guard_counts(&self) -> Result<GuardCounts, CallError> {
        self.read(guard_table::counts).await
    }

    /// What this participant has done since its process started.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.engine.counters()
    }
}

impl<S: MariaDbService> Participant for MariaDbParticipant<S> {
    fn call(&self, request: Request) -> Answering<'_> {
        Box::pin(Arc::clone(&self.engine).call(request))
    }
}

impl<S: MariaDbService> Doubting for MariaDbParticipant<S> {
    fn in_doubt(&self) -> Answering<'_, Vec<InDoubt>> {
        Box::pin(Self::in_doubt(self))
    }
}

impl<S: MariaDbService> Prunable for MariaDbParticipant<S> {
    fn settled_before(
        &self,
        before_ms: u64,
        after: Option<(String, String)>,
        rows_max: u32,
    ) -> Answering<'_, Vec<GuardEntry>> {
        Box::pin(self.read(async move |local: &mut Conn| {
            guard_table::entries(local, after.as_ref(), Some(before_ms), rows_max).await
        }))
    }

    fn forget(&self, rows: Vec<GuardEntry>) -> Answering<'_, u64> {
        Box::pin(self.read(async move |local: &mut Conn| {
            let mut removed = 0;
            for row in &rows {
                removed += guard_table::forget(local, row).await?;
            }
            Ok::<_, mysql_async::Error>(removed)
        }))
    }
}
