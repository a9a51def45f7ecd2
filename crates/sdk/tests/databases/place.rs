//! Where a test's data lie: a server of each make for all tests of this program, a database of its
//! own for each test, and ways to look at both.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use unanimity_databases::{Database, DatabaseOptions, Make};
use unanimity_sdk::mariadb::mysql_async::prelude::Queryable;
use unanimity_sdk::mariadb::mysql_async::{self, Conn};
use unanimity_sdk::postgres::tokio_postgres::{Client, NoTls};

/// The server that all tests share. It ends with the process.
fn shared(make: Make) -> &'static Database {
    static POSTGRESQL: OnceLock<Database> = OnceLock::new();
    static MARIADB: OnceLock<Database> = OnceLock::new();
    let server = match make {
        Make::PostgreSql => &POSTGRESQL,
        Make::MariaDb => &MARIADB,
    };
    server.get_or_init(|| start(make))
}

/// A server that a test has to itself.
pub fn start(make: Make) -> Database {
    Database::start(make, &DatabaseOptions::default()).unwrap()
}

/// A database.
#[derive(Clone, Debug)]
pub struct Place {
    pub make: Make,
    pub url: String,
}

impl Place {
    /// A new database on the shared server.
    pub async fn new(make: Make) -> Self {
        let server = tokio::task::spawn_blocking(move || shared(make)).await.unwrap();
        Self::on(server).await
    }

    /// A new database on this server.
    pub async fn on(server: &Database) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("place_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let make = server.make();
        let first = Self { make, url: server.url() };
        first.run(&format!("CREATE DATABASE {name}")).await;
        Self { make, url: server.url_of(&name) }
    }

    /// A connection of the test's own to PostgreSQL.
    pub async fn postgres(&self) -> Client {
        let (client, connection) =
            unanimity_sdk::postgres::tokio_postgres::connect(&self.url, NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    /// A connection of the test's own to MariaDB.
    pub async fn mariadb(&self) -> Conn {
        let options =
            mysql_async::OptsBuilder::from_opts(mysql_async::Opts::from_url(&self.url).unwrap());
        Conn::new(options.prefer_socket(false)).await.unwrap()
    }

    /// Runs statements, each by itself.
    pub async fn run(&self, sql: &str) {
        match self.make {
            Make::PostgreSql => self.postgres().await.batch_execute(sql).await.unwrap(),
            Make::MariaDb => {
                let mut connection = self.mariadb().await;
                connection.query_drop(sql).await.unwrap();
                connection.disconnect().await.unwrap();
            }
        }
    }

    /// The one text that a query gives.
    pub async fn text(&self, sql: &str) -> String {
        match self.make {
            Make::PostgreSql => {
                let row = self.postgres().await.query_one(sql, &[]).await.unwrap();
                row.get::<_, Option<String>>(0).unwrap_or_default()
            }
            Make::MariaDb => {
                let mut connection = self.mariadb().await;
                let found: Option<Option<String>> = connection.query_first(sql).await.unwrap();
                connection.disconnect().await.unwrap();
                found.flatten().unwrap_or_default()
            }
        }
    }

    /// What the diary says that was done for a transaction, in order.
    pub async fn diary(&self, transaction: &str) -> String {
        self.text(&match self.make {
            Make::PostgreSql => format!(
                "SELECT string_agg(what, ' ' ORDER BY number) FROM diary WHERE id = '{transaction}'"
            ),
            Make::MariaDb => format!(
                "SELECT group_concat(what ORDER BY number SEPARATOR ' ') FROM diary \
                 WHERE id = '{transaction}'"
            ),
        })
        .await
    }

    /// How many deadlocks the server itself has counted: PostgreSQL in this database, MariaDB in
    /// all of them.
    pub async fn deadlocks(&self) -> u64 {
        let counted = match self.make {
            Make::PostgreSql => {
                "SELECT deadlocks::text FROM pg_stat_database WHERE datname = current_database()"
            }
            Make::MariaDb => {
                "SELECT variable_value FROM information_schema.global_status \
                 WHERE variable_name = 'innodb_deadlocks'"
            }
        };
        self.text(counted).await.parse().unwrap()
    }
}
