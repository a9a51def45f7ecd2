//! One connection to PostgreSQL: how it is made and set up, and how statements run on it. What a
//! branch's statements mean together is decided in the parent module.
//!
//! A session is read-only unless a transaction says otherwise. That is what makes it safe to send a
//! whole branch without waiting: were the BEGIN to fail, the statements after it, which are then
//! transactions of their own, could change nothing.

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::maybe_done;
use serde_json::Value;
use tokio::task::AbortHandle;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, Error, NoTls, Statement};

use super::trouble::said;
use super::values::{self, Parameter};
use crate::config::DatabaseConfig;
use crate::databases::Ran;

/// The most statements that one connection keeps prepared.
const STATEMENTS_MAX: usize = 256;

/// A connection to PostgreSQL.
pub(super) struct Session {
    pub(super) client: Client,
    driver: AbortHandle,
    statements: HashMap<String, Statement>,
}

impl Drop for Session {
    fn drop(&mut self) {
        // Closes the socket at once: what is under way on it ends with it.
        self.driver.abort();
    }
}

/// Why there is no connection.
#[derive(Debug)]
pub(super) enum NoSession {
    /// The server does not answer, or not now.
    Down(String),
    /// The server refuses: who asks, or for what, is wrong.
    Refused(String),
}

impl NoSession {
    pub(super) fn text(self) -> String {
        match self {
            Self::Down(text) | Self::Refused(text) => text,
        }
    }
}

/// Reads a configured address.
pub(super) fn config(database: &DatabaseConfig) -> Result<Config, String> {
    // The error quotes no value.
    let read = database.url.expose().parse::<Config>();
    let mut config = read.map_err(|error| format!("url cannot be used: {}", said(&error)))?;
    if config.get_ssl_mode() == tokio_postgres::config::SslMode::Require {
        return Err("url asks for sslmode=require, and connections here have no TLS".into());
    }
    config.application_name("unanimity");
    config.connect_timeout(Duration::from_millis(database.connect_timeout_ms));
    config.tcp_user_timeout(Duration::from_millis(database.statement_timeout_ms.max(5_000)));
    Ok(config)
}

impl Session {
    /// Connects and sets the session up.
    pub(super) async fn open(database: &DatabaseConfig) -> Result<Self, NoSession> {
        let config = config(database).map_err(NoSession::Refused)?;
        let limit = Duration::from_millis(database.connect_timeout_ms);
        let opened = tokio::time::timeout(limit, Self::connect(&config, database)).await;
        let late = || NoSession::Down(format!("no connection within {} ms", limit.as_millis()));
        opened.unwrap_or_else(|_| Err(late()))
    }

    async fn connect(config: &Config, database: &DatabaseConfig) -> Result<Self, NoSession> {
        let (client, connection) =
            config.connect(NoTls).await.map_err(|error| no_session(&error))?;
        // How a connection ends is told to whoever waits on it.
        let driver = tokio::spawn(async move { drop(connection.await) }).abort_handle();
        let session = Self { client, driver, statements: HashMap::new() };
        let set = format!(
            "SET default_transaction_read_only = on; SET statement_timeout = {}; \
             SET lock_timeout = {}; SET idle_in_transaction_session_timeout = {}",
            database.statement_timeout_ms,
            database.lock_timeout_ms,
            database.statement_timeout_ms.saturating_mul(2),
        );
        session.client.batch_execute(&set).await.map_err(|error| no_session(&error))?;
        // dropped: a server older than 14 does not know it, and is slower to see that we are gone.
        let _ = session.client.batch_execute("SET client_connection_check_interval = 500").await;
        Ok(session)
    }

    /// Prepares a statement, or finds it prepared.
    pub(super) async fn statement(&mut self, sql: &str) -> Result<Statement, Error> {
        if let Some(statement) = self.statements.get(sql) {
            return Ok(statement.clone());
        }
        let statement = self.client.prepare(sql).await?;
        if self.statements.len() >= STATEMENTS_MAX {
            self.statements.clear();
        }
        self.statements.insert(sql.to_owned(), statement.clone());
        Ok(statement)
    }

    /// Forgets what is prepared: a table has changed under it.
    pub(super) fn forget_statements(&mut self) {
        self.statements.clear();
        self.client.clear_type_cache();
    }

    /// Runs one statement, and keeps at most so many rows of what it gives back.
    pub(super) async fn run(
        &self,
        statement: &Statement,
        parameters: &[Value],
        rows_max: usize,
    ) -> Result<Ran, Error> {
        let parameters = parameters.iter().map(Parameter);
        let stream = self.client.query_raw(statement, parameters).await?;
        let mut stream = std::pin::pin!(stream);
        let gives = !statement.columns().is_empty();
        let mut ran = Ran { affected: 0, rows: gives.then(Vec::new) };
        while let Some(row) = stream.next().await {
            let row = row?;
            // What is too much is read and let go, so that the connection can be used again.
            if let Some(rows) = ran.rows.as_mut().filter(|rows| rows.len() <= rows_max) {
                rows.push(values::row(&row)?);
            }
        }
        ran.affected = stream.rows_affected().unwrap_or(0);
        Ok(ran)
    }
}

/// What is running on a connection.
pub(super) type Running<'a> = Pin<Box<dyn Future<Output = Result<Ran, Error>> + Send + 'a>>;

/// Sends everything in this order and without waiting in between, then waits for all of it.
pub(super) async fn all_in_order(running: Vec<Running<'_>>) -> Vec<Result<Ran, Error>> {
    let mut running: Vec<_> = running.into_iter().map(|one| Box::pin(maybe_done(one))).collect();
    poll_fn(|context| {
        let mut all = true;
        // A request leaves when its future is polled for the first time: here, one after another.
        for one in &mut running {
            all &= one.as_mut().poll(context).is_ready();
        }
        if all { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    running.iter_mut().filter_map(|one| one.as_mut().take_output()).collect()
}

fn no_session(error: &Error) -> NoSession {
    let refused = [
        SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
        SqlState::INVALID_PASSWORD,
        SqlState::INVALID_CATALOG_NAME,
        SqlState::INSUFFICIENT_PRIVILEGE,
    ];
    let text = format!("cannot connect: {}", said(error));
    if error.code().is_some_and(|code| refused.contains(code)) {
        NoSession::Refused(text)
    } else {
        NoSession::Down(text)
    }
}

#[cfg(test)]
mod tests {
    use tokio_postgres::error::SqlState;
    use unanimity_databases::{Database, DatabaseOptions, Make};

    use super::Session;
    use crate::config::DatabaseConfig;

    /// What is sent right behind a BEGIN that has failed must change nothing.
    #[tokio::test]
    async fn outside_a_transaction_nothing_can_be_changed() {
        let start = || Database::start(Make::PostgreSql, &DatabaseOptions::default());
        let server = tokio::task::spawn_blocking(start).await.unwrap().unwrap();
        let config = DatabaseConfig::to_look_into(&server.url()).unwrap();
        let session = Session::open(&config).await.unwrap();
        let make = "CREATE TABLE t (a int)";
        let refused = session.client.batch_execute(make).await.unwrap_err();
        assert_eq!(refused.code(), Some(&SqlState::READ_ONLY_SQL_TRANSACTION));
        let whole = format!("BEGIN READ WRITE; {make}; COMMIT");
        session.client.batch_execute(&whole).await.unwrap();
    }
}
