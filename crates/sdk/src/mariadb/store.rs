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
use crate::service::ServiceError;
use crate::sql::engine::{Key, Opened, Store};
use crate::sql::{SqlError, SqlOpenError, SqlOptions};

/// How many prepared statements each connection keeps.
const STATEMENTS_MAX: usize = 128;
/// What a claimed row says until it is settled.
const CLAIMED: u8 = 0;

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
        let lock_s = limits.lock_timeout_ms.div_ceil(1_000).max(1);
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

    /// Makes a connection what it has to be, also after it was reset.
    pub(crate) async fn set_up(&self, local: &mut Conn) -> Result<(), SqlError> {
        local.query_drop(&self.setup).await.map_err(|error| classify(&error))
    }
}

impl Store for MariaDbStore {
    type Connection = Conn;

    async fn connect(&self) -> Result<Conn, SqlError> {
        let mut local = Conn::new(self.options.clone()).await.map_err(|e| classify(&e))?;
        self.set_up(&mut local).await?;
        Ok(local)
    }

    fn is_open(local: &Conn) -> bool {
        !local.is_disconnected()
    }

    async fn open(&self, local: &mut Conn, key: Key<'_>, _: Operation) -> Result<Opened, SqlError> {
        if guard_table::claim(local, key, CLAIMED).await.map_err(|e| classify(&e))? {
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
        let text = "the database ended the local transaction in the middle of the call";
        Err(SqlError::Again(text.to_owned()))
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
        // Deadlock; and, at REPEATABLE READ, a row that was changed since the snapshot.
        1213 | 1020 => SqlError::Again(text),
        // Lock wait timeout; too many connections, of all or of this user.
        1205 | 1040 | 1203 | 1226 => SqlError::Busy(text),
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
