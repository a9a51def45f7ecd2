//! Decides how MariaDB and MySQL carry a call: how connections are made, where local transactions
//! begin and end, and what the errors mean.
//!
//! 1. Connections do not commit by themselves (`autocommit = 0`), so the claim begins the local
//!    transaction, without a round trip of its own. More than that: a deadlock ends the local
//!    transaction on the spot, and what a service that overlooks it does next is not committed
//!    piece by piece.
//! 2. Such a call is found out when its row is settled: the row is not the one any more that was
//!    claimed (see `changes` in `guard_table`), and the rest is rolled back.

use std::time::Duration;

use mysql_async::prelude::Queryable;
use mysql_async::{Conn, DriverError, Opts, OptsBuilder, ServerError};
use unanimity_core::Operation;
use unanimity_core::guard::GuardRow;

use super::guard_table;
use crate::participant::CallError;
use crate::service::ServiceError;
use crate::sql::engine::{Key, Opened, Store};
use crate::sql::pool::Pool;
use crate::sql::{SqlError, SqlOpenError, SqlOptions};

/// How many prepared statements each connection keeps.
const STATEMENTS_MAX: usize = 128;
/// What a claimed row says until it is settled.
const CLAIMED: u8 = 0;
/// The error for a savepoint that has gone with its local transaction.
const NO_SAVEPOINT: u16 = 1305;
const ENDED: &str = "the database ended the local transaction in the middle of the call";

/// MariaDB or MySQL, as one participant uses it.
pub(crate) struct MariaDbStore {
    options: Opts,
    setup: String,
}

/// Reads a URL, and refuses what the SDK cannot do.
pub(crate) fn options(url: &str) -> Result<Opts, SqlOpenError> {
    let options = Opts::from_url(url).map_err(|error| match error {
        mysql_async::UrlError::FeatureRequired { .. } => SqlOpenError::Tls,
        error => SqlOpenError::Url(error.to_string()),
    })?;
    match options.ssl_opts() {
        Some(_) => Err(SqlOpenError::Tls),
        None => Ok(options),
    }
}

/// Refuses a database whose commits can be lost.
pub(crate) async fn check_durable(local: &mut Conn) -> Result<(), SqlOpenError> {
    let sql = "SELECT @@GLOBAL.innodb_flush_log_at_trx_commit";
    let found: Option<u8> = local.query_first(sql).await.map_err(|error| classify(&error))?;
    match found {
        Some(0 | 2) => {
            Err(SqlOpenError::NotDurable("innodb_flush_log_at_trx_commit = 1".to_owned()))
        }
        Some(_) | None => Ok(()),
    }
}

impl MariaDbStore {
    pub(crate) fn new(options: Opts, limits: &SqlOptions) -> Self {
        let options = OptsBuilder::from_opts(options)
            // The claim tells new rows from old ones by what counts as changed.
            .client_found_rows(false)
            .stmt_cache_size(STATEMENTS_MAX)
            .tcp_keepalive(Some(Duration::from_secs(30)))
            .prefer_socket(false);
        let lock_s = limits.lock_timeout_ms.div_ceil(1_000);
        let statement_s = limits.statement_timeout_ms.div_ceil(1_000).max(1);
        // What is in the comment, only MariaDB reads.
        let setup = format!(
            "SET SESSION TRANSACTION ISOLATION LEVEL {}; \
             SET SESSION autocommit = 0, innodb_lock_wait_timeout = {lock_s} \
             /*M! , max_statement_time = {statement_s} */",
            limits.isolation.sql()
        );
        Self { options: options.into(), setup }
    }

    /// Reads, and ends the local transaction that a read begins.
    pub(crate) async fn read<T, E>(
        pool: &Pool<Self>,
        query: impl AsyncFnOnce(&mut Conn) -> Result<T, E>,
    ) -> Result<T, CallError>
    where
        E: std::fmt::Display,
    {
        let mut borrowed = pool.take().await?;
        // Only a question shows whether a connection that was idle still lives.
        if pool.store.abandon(&mut borrowed.connection).await.is_err() {
            pool.forget_idle();
            drop(borrowed);
            borrowed = pool.take().await?;
        }
        let answer = query(&mut borrowed.connection).await;
        if answer.is_ok() && pool.store.abandon(&mut borrowed.connection).await.is_ok() {
            pool.give_back(borrowed);
        }
        answer.map_err(|error| CallError::Failed(error.to_string()))
    }
}

impl Store for MariaDbStore {
    type Connection = Conn;

    async fn connect(&self) -> Result<Conn, SqlError> {
        let mut local = Conn::new(self.options.clone()).await.map_err(|e| classify(&e))?;
        local.query_drop(&self.setup).await.map_err(|error| classify(&error))?;
        Ok(local)
    }

    async fn close(&self, local: Conn) {
        if let Err(error) = local.disconnect().await {
            tracing::debug!(%error, "a connection to MariaDB has not ended in order");
        }
    }

    fn is_open(local: &Conn) -> bool {
        !local.is_disconnected()
    }

    async fn open(&self, local: &mut Conn, key: Key<'_>, _: Operation) -> Result<Opened, SqlError> {
        if guard_table::claim_and_mark(local, key, CLAIMED).await.map_err(|e| classify(&e))? {
            return Ok(Opened { found: None, claimed: None, mark: 0 });
        }
        let row = guard_table::lock(local, key).await.map_err(|e| classify(&e))?;
        let gone = || SqlError::Again("the branch's row has just been removed".to_owned());
        let row = row.ok_or_else(gone)?;
        let unreadable = |error: ServiceError| SqlError::Refused(error.to_string());
        let found = guard_table::guard_row(&row, 0).map_err(unreadable)?;
        let mark = guard_table::column(&row, 2).map_err(unreadable)?;
        Ok(Opened { found: Some(found), claimed: None, mark })
    }

    async fn write(
        &self,
        local: &mut Conn,
        key: Key<'_>,
        row: &GuardRow,
        opened: &Opened,
    ) -> Result<(), SqlError> {
        let written = guard_table::write(local, key, row, opened.mark).await;
        if written.map_err(|error| classify(&error))? {
            return Ok(());
        }
        Err(SqlError::Again(ENDED.to_owned()))
    }

    async fn undo_work(&self, local: &mut Conn) -> Result<bool, SqlError> {
        let undone = local.query_drop("ROLLBACK TO SAVEPOINT unanimity_claim").await;
        undone.map(|()| true).map_err(|error| match &error {
            mysql_async::Error::Server(told) if told.code == NO_SAVEPOINT => {
                SqlError::Again(ENDED.to_owned())
            }
            error => classify(error),
        })
    }

    async fn commit(&self, local: &mut Conn) -> Result<(), SqlError> {
        local.query_drop("COMMIT").await.map_err(|error| classify(&error))
    }

    async fn abandon(&self, local: &mut Conn) -> Result<(), SqlError> {
        local.query_drop("ROLLBACK").await.map_err(|error| classify(&error))
    }

    fn classify(&self, error: &ServiceError) -> SqlError {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&**error);
        while let Some(found) = cause {
            if let Some(of_database) = found.downcast_ref::<mysql_async::Error>() {
                return classify(of_database);
            }
            cause = found.source();
        }
        SqlError::Refused(error.to_string())
    }
}

/// What an error of MariaDB or MySQL means.
pub(crate) fn classify(error: &mysql_async::Error) -> SqlError {
    match error {
        mysql_async::Error::Server(told) => by_code(told),
        mysql_async::Error::Io(_) | mysql_async::Error::Driver(DriverError::ConnectionClosed) => {
            SqlError::Lost(error.to_string())
        }
        _ => SqlError::Failed(error.to_string()),
    }
}

fn by_code(told: &ServerError) -> SqlError {
    let text = format!("{} (error {}, SQLSTATE {})", told.message, told.code, told.state);
    match told.code {
        // Deadlock; a row that was changed since the snapshot, at REPEATABLE READ; and an XA branch
        // that the database has rolled back, for whichever reason.
        1213 | 1020 | 1402 | 1613 | 1614 => SqlError::Again(text),
        // Lock wait timeout; too many connections, of all or of this user; an XA branch that is in
        // another session's hands.
        1205 | 1040 | 1203 | 1226 | 1399 | 1440 => SqlError::Busy(text),
        // The server stops, or has ended the connection.
        1053 | 1927 | 3159 | 4031 => SqlError::Lost(text),
        // A statement that took too long.
        1969 | 3024 => SqlError::Refused(text),
        _ => match told.state.get(..2) {
            Some("22" | "23" | "42" | "45") => SqlError::Refused(text),
            Some(_) | None => SqlError::Failed(text),
        },
    }
}
