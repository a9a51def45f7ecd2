//! Decides what a service works with: a connection inside a local transaction that the SDK has
//! begun, with its statements prepared once and kept.

use std::collections::HashMap;
use std::fmt;
use std::ops::Deref;
use std::sync::{Mutex, PoisonError};

use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Error, Row, Statement};

/// How many prepared statements are kept; with more, all are prepared anew.
const STATEMENTS_MAX: usize = 256;

/// A connection to PostgreSQL inside a local transaction.
///
/// Whatever is done with it belongs to the local transaction, which the SDK has begun and will
/// commit: never begin, commit or roll back one here. Savepoints are the service's to use. The
/// methods here prepare a statement once for each connection; those of [`Client`], which this
/// derefs to, prepare it each time.
pub struct PostgresLocal {
    client: Client,
    statements: Mutex<HashMap<String, Statement>>,
}

impl fmt::Debug for PostgresLocal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("PostgresLocal").finish_non_exhaustive()
    }
}

impl Deref for PostgresLocal {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl PostgresLocal {
    pub(crate) fn new(client: Client) -> Self {
        Self { client, statements: Mutex::default() }
    }

    /// The statement, prepared on this connection now or earlier.
    ///
    /// # Errors
    /// The database's.
    pub async fn prepared(&self, sql: &str) -> Result<Statement, Error> {
        if let Some(statement) = self.known(sql) {
            return Ok(statement);
        }
        let statement = self.client.prepare(sql).await?;
        let mut statements = self.statements.lock().unwrap_or_else(PoisonError::into_inner);
        if statements.len() >= STATEMENTS_MAX {
            statements.clear();
        }
        statements.insert(sql.to_owned(), statement.clone());
        Ok(statement)
    }

    fn known(&self, sql: &str) -> Option<Statement> {
        self.statements.lock().unwrap_or_else(PoisonError::into_inner).get(sql).cloned()
    }

    /// Runs a prepared statement; gives the number of rows that it touched.
    ///
    /// # Errors
    /// The database's.
    pub async fn run(&self, sql: &str, values: &[&(dyn ToSql + Sync)]) -> Result<u64, Error> {
        let statement = self.prepared(sql).await?;
        self.client.execute(&statement, values).await
    }

    /// The rows of a prepared query.
    ///
    /// # Errors
    /// The database's.
    pub async fn rows(&self, sql: &str, values: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, Error> {
        let statement = self.prepared(sql).await?;
        self.client.query(&statement, values).await
    }

    /// The row of a prepared query that finds at most one.
    ///
    /// # Errors
    /// The database's; also where there are several.
    pub async fn row(
        &self,
        sql: &str,
        values: &[&(dyn ToSql + Sync)],
    ) -> Result<Option<Row>, Error> {
        let statement = self.prepared(sql).await?;
        self.client.query_opt(&statement, values).await
    }
}
