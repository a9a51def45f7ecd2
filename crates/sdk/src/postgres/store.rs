//! Decides how PostgreSQL carries a call: how connections are made, where local transactions begin
//! and end, and what its errors mean.
//!
//! 1. Beginning and claim leave together: one round trip.
//! 2. Once a statement has failed, PostgreSQL answers a COMMIT with a rollback, and that without an
//!    error. So the commit goes behind a savepoint, which a failed local transaction refuses, and
//!    one that the service has ended as well.

use std::error::Error as _;
use std::time::Duration;

use tokio_postgres::config::SslMode;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Config, NoTls};
use unanimity_core::Operation;
use unanimity_core::guard::GuardRow;

use super::{PostgresLocal, guard_table};
use crate::service::ServiceError;
use crate::sql::engine::{Key, Opened, Store, expected};
use crate::sql::{SqlError, SqlOpenError, SqlOptions};

/// How long a claim waits for a row that may lie in a prepared transaction, in milliseconds.
const CLAIM_TIMEOUT_MS: u64 = 100;
const COMMIT: &str = "SAVEPOINT unanimity_end; COMMIT";

/// PostgreSQL, as one participant uses it.
pub(crate) struct PostgresStore {
    config: Config,
    begin: String,
    setup: String,
    lock_timeout_ms: u64,
}

/// Reads a URL, and refuses what the SDK cannot do.
pub(crate) fn config(url: &str) -> Result<Config, SqlOpenError> {
    let config: Config = url.parse().map_err(|error: tokio_postgres::Error| {
        let cause = error.source().map_or_else(String::new, |cause| format!(": {cause}"));
        SqlOpenError::Url(format!("{error}{cause}"))
    })?;
    match config.get_ssl_mode() {
        SslMode::Disable | SslMode::Prefer => Ok(config),
        // It can grow: whatever is more than "prefer" cannot be had.
        _ => Err(SqlOpenError::Tls),
    }
}

/// Refuses a database whose commits can be lost.
pub(crate) async fn check_durable(local: &PostgresLocal) -> Result<(), SqlOpenError> {
    let row = local.row("SELECT current_setting('fsync')", &[]).await.map_err(|e| classify(&e))?;
    match row.and_then(|row| row.try_get::<_, String>(0).ok()).as_deref() {
        Some("off") => Err(SqlOpenError::NotDurable("fsync = on".to_owned())),
        Some(_) | None => Ok(()),
    }
}

impl PostgresStore {
    pub(crate) fn new(mut config: Config, options: &SqlOptions) -> Self {
        if config.get_application_name().is_none() {
            config.application_name("unanimity-sdk");
        }
        config.connect_timeout(Duration::from_millis(options.connect_timeout_ms));
        config.tcp_user_timeout(Duration::from_millis(options.call_timeout_ms));
        // To PostgreSQL 0 means for ever.
        let (statement, lock) = (options.statement_timeout_ms, options.lock_timeout_ms.max(1));
        let idle = options.call_timeout_ms;
        // A database may be set not to wait for the disk where nobody asks for it; here somebody
        // does. Whatever waits for more than the disk stays.
        let setup = format!(
            "SET statement_timeout = {statement}; SET lock_timeout = {lock}; \
             SET idle_in_transaction_session_timeout = {idle}; \
             SELECT set_config('synchronous_commit', 'on', false) \
             WHERE current_setting('synchronous_commit') = 'off'"
        );
        let begin = format!("BEGIN ISOLATION LEVEL {}", options.isolation.sql());
        Self { config, begin, setup, lock_timeout_ms: lock }
    }

    pub(crate) async fn begin(&self, local: &PostgresLocal) -> Result<(), tokio_postgres::Error> {
        local.batch_execute(&self.begin).await
    }

    /// Begins, and claims the row; or locks the one that is there.
    pub(crate) async fn claim(
        &self,
        local: &PostgresLocal,
        key: Key<'_>,
        row: GuardRow,
    ) -> Result<Opened, SqlError> {
        let statement = local.prepared(guard_table::CLAIM).await.map_err(|e| classify(&e))?;
        let claim = guard_table::claim(&**local, &statement, key, &row);
        let (begun, claimed) = tokio::join!(self.begin(local), claim);
        self.claimed(local, key, &row, (begun, claimed)).await
    }

    /// The same, but a row that somebody else is writing is waited for only a moment: if it lies in
    /// a prepared transaction, that may last. The service's own statements wait as long as ever.
    pub(crate) async fn claim_impatiently(
        &self,
        local: &PostgresLocal,
        key: Key<'_>,
        row: GuardRow,
    ) -> Result<Opened, SqlError> {
        let statement = local.prepared(guard_table::CLAIM).await.map_err(|e| classify(&e))?;
        let impatient = self.lock_timeout_ms.min(CLAIM_TIMEOUT_MS);
        let begin = format!("{}; SET LOCAL lock_timeout = {impatient}", self.begin);
        let after = format!("SET LOCAL lock_timeout = {}", self.lock_timeout_ms);
        let claim = guard_table::claim(&**local, &statement, key, &row);
        // All three leave together. If the claim fails, so does what comes after it.
        let (begun, claimed, _) =
            tokio::join!(local.batch_execute(&begin), claim, local.batch_execute(&after));
        self.claimed(local, key, &row, (begun, claimed)).await
    }

    async fn claimed(
        &self,
        local: &PostgresLocal,
        key: Key<'_>,
        row: &GuardRow,
        (begun, claimed): (Result<(), tokio_postgres::Error>, Result<bool, tokio_postgres::Error>),
    ) -> Result<Opened, SqlError> {
        begun.map_err(|e| classify(&e))?;
        if claimed.map_err(|e| classify(&e))? {
            return Ok(Opened { found: None, claimed: Some(row.clone()), mark: 0 });
        }
        let statement = local.prepared(guard_table::LOCK).await.map_err(|e| classify(&e))?;
        let found = guard_table::lock(&**local, &statement, key).await.map_err(|e| classify(&e))?;
        let gone = || SqlError::Again("the branch's row has just been removed".to_owned());
        let found = read(found)?.ok_or_else(gone)?;
        Ok(Opened { found: Some(found), claimed: None, mark: 0 })
    }
}

fn read(row: Option<tokio_postgres::Row>) -> Result<Option<GuardRow>, SqlError> {
    let row = row.map(|row| guard_table::guard_row(&row, 0)).transpose();
    row.map_err(|error| SqlError::Refused(error.to_string()))
}

impl Store for PostgresStore {
    type Connection = PostgresLocal;

    async fn connect(&self) -> Result<PostgresLocal, SqlError> {
        let (client, connection) =
            self.config.connect(NoTls).await.map_err(|error| classify(&error))?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to PostgreSQL has ended");
            }
        });
        client.batch_execute(&self.setup).await.map_err(|error| classify(&error))?;
        Ok(PostgresLocal::new(client))
    }

    fn is_open(local: &PostgresLocal) -> bool {
        !local.is_closed()
    }

    async fn close(&self, local: PostgresLocal) {
        drop(local);
    }

    async fn open(
        &self,
        local: &mut PostgresLocal,
        key: Key<'_>,
        operation: Operation,
    ) -> Result<Opened, SqlError> {
        if let Some(row) = expected(operation) {
            return self.claim(local, key, row).await;
        }
        let statement = local.prepared(guard_table::LOCK).await.map_err(|e| classify(&e))?;
        let lock = guard_table::lock(&**local, &statement, key);
        let (begun, found) = tokio::join!(self.begin(local), lock);
        begun.map_err(|e| classify(&e))?;
        let found = read(found.map_err(|e| classify(&e))?)?;
        Ok(Opened { found, claimed: None, mark: 0 })
    }

    async fn write(
        &self,
        local: &mut PostgresLocal,
        key: Key<'_>,
        row: &GuardRow,
        _: &Opened,
    ) -> Result<(), SqlError> {
        if guard_table::write(local, key, row).await.map_err(|error| classify(&error))? {
            return Ok(());
        }
        Err(SqlError::Failed("the branch's row has gone in the middle of a call".to_owned()))
    }

    /// A mark behind every claim would be a round trip for every call, for the sake of those that
    /// say no.
    async fn undo_work(&self, local: &mut PostgresLocal) -> Result<bool, SqlError> {
        self.abandon(local).await?;
        Ok(false)
    }

    async fn commit(&self, local: &mut PostgresLocal) -> Result<(), SqlError> {
        local.batch_execute(COMMIT).await.map_err(|error| classify(&error))
    }

    async fn abandon(&self, local: &mut PostgresLocal) -> Result<(), SqlError> {
        local.batch_execute("ROLLBACK").await.map_err(|error| classify(&error))
    }

    fn classify(&self, error: &ServiceError) -> SqlError {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&**error);
        while let Some(found) = cause {
            if let Some(of_database) = found.downcast_ref::<tokio_postgres::Error>() {
                return classify(of_database);
            }
            cause = found.source();
        }
        SqlError::Refused(error.to_string())
    }
}

/// What an error of PostgreSQL means.
pub(crate) fn classify(error: &tokio_postgres::Error) -> SqlError {
    let Some(told) = error.as_db_error() else {
        let cause = error.source().map_or_else(String::new, |cause| format!(": {cause}"));
        let text = format!("{error}{cause}");
        let by_io = error.source().is_some_and(|cause| cause.is::<std::io::Error>());
        let lost = error.is_closed() || by_io;
        return if lost { SqlError::Lost(text) } else { SqlError::Failed(text) };
    };
    let code = told.code();
    let text = format!("{} (SQLSTATE {})", told.message(), code.code());
    match code {
        code if *code == SqlState::T_R_SERIALIZATION_FAILURE
            || *code == SqlState::T_R_DEADLOCK_DETECTED =>
        {
            SqlError::Again(text)
        }
        // The second is a prepared transaction that another session is finishing.
        code if *code == SqlState::LOCK_NOT_AVAILABLE
            || *code == SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE =>
        {
            SqlError::Busy(text)
        }
        code if *code == SqlState::IN_FAILED_SQL_TRANSACTION => SqlError::Failed(format!(
            "the service went on after an error of the database in the same call: {text}"
        )),
        code if *code == SqlState::NO_ACTIVE_SQL_TRANSACTION => {
            SqlError::Failed(format!("the service ended the local transaction itself: {text}"))
        }
        code => by_class(code.code(), text),
    }
}

fn by_class(code: &str, text: String) -> SqlError {
    match &code[..code.len().min(2)] {
        // Connections that broke; a server that stops, has crashed, or is starting.
        "08" => SqlError::Lost(text),
        "57" if code != "57014" => SqlError::Lost(text),
        // No room: connections, memory, disk.
        "53" => SqlError::Busy(text),
        // Values, constraints, SQL, what functions raise, and statements that took too long.
        "22" | "23" | "42" | "44" | "P0" | "57" => SqlError::Refused(text),
        _ => SqlError::Failed(text),
    }
}
