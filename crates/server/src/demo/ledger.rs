//! A bank that is only a database: tables in a PostgreSQL or MariaDB of the demo's own, changed by
//! the coordinator itself. Decides which statements a transfer consists of, and looks at the books
//! past the coordinator.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::Context;
use mysql_async::prelude::Queryable as _;
use serde_json::json;
use tokio_postgres::NoTls;
use unanimity_databases::{Database, DatabaseOptions, Make};
use unanimity_sdk::api::{BranchRequest, Json};

/// How many accounts each ledger has.
pub(super) const ACCOUNTS: i64 = 200;
/// What each account begins with, in cents.
const BALANCE_CENTS: i64 = 100_000;

/// One of the two places that money is in.
#[derive(Clone)]
pub(super) struct Ledger {
    /// The name of its database in the coordinator's configuration.
    pub(super) name: &'static str,
    /// Its server, which the other ledger may share.
    pub(super) server: Arc<Database>,
    database: &'static str,
}

/// A connection to a ledger, past the coordinator.
enum Books {
    Postgres(tokio_postgres::Client),
    Mariadb(Box<mysql_async::Conn>),
}

/// Starts a server with room for two ledgers.
///
/// # Errors
/// If it is not there, or does not start.
pub(super) async fn server(make: Make) -> anyhow::Result<Arc<Database>> {
    let options = DatabaseOptions {
        databases: vec!["left".to_owned(), "right".to_owned()],
        ..DatabaseOptions::default()
    };
    let started = tokio::task::spawn_blocking(move || Database::start(make, &options)).await?;
    Ok(Arc::new(started.with_context(|| format!("cannot start {}", make.name()))?))
}

impl Ledger {
    /// Makes a ledger's tables and accounts.
    ///
    /// # Errors
    /// If the database does not work.
    pub(super) async fn open(
        name: &'static str,
        server: Arc<Database>,
        database: &'static str,
    ) -> anyhow::Result<Self> {
        let ledger = Self { name, server, database };
        let mut books = ledger.books().await?;
        books.run("CREATE TABLE account (id bigint PRIMARY KEY, balance bigint NOT NULL)").await?;
        let entries = "CREATE TABLE entry (transaction_id varchar(128) PRIMARY KEY, cents bigint \
                       NOT NULL)";
        books.run(entries).await?;
        let rows: Vec<String> =
            (0..ACCOUNTS).map(|account| format!("({account}, {BALANCE_CENTS})")).collect();
        books.run(&format!("INSERT INTO account VALUES {}", rows.join(","))).await?;
        Ok(ledger)
    }

    /// Where it is, with its password: for the coordinator's configuration.
    pub(super) fn url(&self) -> String {
        self.server.url_of(self.database)
    }

    /// What it is, for people.
    pub(super) fn described(&self) -> String {
        let (make, port) = (self.server.make().name(), self.server.port());
        format!("{make} (database {}, port {port})", self.database)
    }

    /// A branch that adds to an account, which must not fall below zero, and writes an entry.
    pub(super) fn branch(&self, id: &str, account: i64, cents: i64) -> BranchRequest {
        let (change, entry) = match self.server.make() {
            Make::PostgreSql => (
                "UPDATE account SET balance = balance + $1 WHERE id = $2 AND balance + $1 >= 0",
                "INSERT INTO entry (transaction_id, cents) VALUES ($1, $2)",
            ),
            Make::MariaDb => (
                "UPDATE account SET balance = balance + ? WHERE id = ? AND balance + ? >= 0",
                "INSERT INTO entry (transaction_id, cents) VALUES (?, ?)",
            ),
        };
        let mut parameters = vec![cents, account];
        if self.server.make() == Make::MariaDb {
            parameters.push(cents);
        }
        let payload = json!({"statements": [
            {"sql": change, "parameters": parameters, "rows": 1},
            {"sql": entry, "parameters": [id, cents], "rows": 1},
        ]});
        BranchRequest {
            name: self.name.to_owned(),
            participant: format!("db:{}", self.name),
            payload: Json::from_value(&payload).unwrap_or_default(),
            ..BranchRequest::default()
        }
    }

    /// All its money, in cents.
    ///
    /// # Errors
    /// If the database does not work.
    pub(super) async fn money(&self) -> anyhow::Result<i64> {
        self.books().await?.number("SELECT SUM(balance) FROM account").await
    }

    /// The transactions that have written an entry.
    ///
    /// # Errors
    /// If the database does not work.
    pub(super) async fn entries(&self) -> anyhow::Result<BTreeSet<String>> {
        let texts = self.books().await?.texts("SELECT transaction_id FROM entry").await?;
        Ok(texts.into_iter().collect())
    }

    async fn books(&self) -> anyhow::Result<Books> {
        let url = self.url();
        Ok(match self.server.make() {
            Make::PostgreSql => {
                let (client, connection) = tokio_postgres::connect(&url, NoTls).await?;
                // How a connection ends is told to whoever uses it.
                tokio::spawn(async move { drop(connection.await) });
                Books::Postgres(client)
            }
            Make::MariaDb => Books::Mariadb(Box::new(mysql_async::Conn::from_url(url).await?)),
        })
    }
}

impl Books {
    async fn run(&mut self, sql: &str) -> anyhow::Result<()> {
        match self {
            Self::Postgres(client) => client.batch_execute(sql).await?,
            Self::Mariadb(connection) => connection.query_drop(sql).await?,
        }
        Ok(())
    }

    async fn texts(&mut self, sql: &str) -> anyhow::Result<Vec<String>> {
        Ok(match self {
            Self::Postgres(client) => {
                let messages = client.simple_query(sql).await?;
                let text = |message| match message {
                    tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
                    _ => None, // How many rows there were.
                };
                messages.into_iter().filter_map(text).collect()
            }
            Self::Mariadb(connection) => connection.query(sql).await?,
        })
    }

    async fn number(&mut self, sql: &str) -> anyhow::Result<i64> {
        let texts = self.texts(sql).await?;
        Ok(texts.first().context("no row")?.parse()?)
    }
}
