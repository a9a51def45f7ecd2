//! A coordinator with two databases of a real server, and a way to look into them past it.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, Mutex};

use mysql_async::prelude::Queryable;
use serde_json::{Value, json};
use tokio_postgres::{NoTls, SimpleQueryMessage};
use unanimity_databases::{Database, DatabaseOptions, Make};

use crate::ask::{Answer, Coordinator, Ended, run};
use crate::setup::Folder;

/// The names of the two databases in the configuration.
pub const NAMES: [&str; 2] = ["one", "two"];
/// What every account holds at first.
pub const BALANCE: i64 = 1_000;

/// A look into a database, past the coordinator.
pub enum Look {
    Postgres(tokio_postgres::Client),
    Mariadb(Box<mysql_async::Conn>),
}

impl Look {
    pub async fn into(url: &str) -> Self {
        if url.starts_with("postgres") {
            let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
            tokio::spawn(async move { drop(connection.await) });
            return Self::Postgres(client);
        }
        Self::Mariadb(Box::new(mysql_async::Conn::from_url(url).await.unwrap()))
    }

    /// Runs statements; the rows of the last, as texts.
    pub async fn try_rows(&mut self, sql: &str) -> Result<Vec<Vec<String>>, String> {
        match self {
            Self::Postgres(client) => {
                let messages = client.simple_query(sql).await.map_err(|error| {
                    error.as_db_error().map_or(error.to_string(), |error| error.message().into())
                })?;
                let rows = messages.into_iter().filter_map(|message| match message {
                    SimpleQueryMessage::Row(row) => Some(
                        (0..row.len()).map(|at| row.get(at).unwrap_or("NULL").to_owned()).collect(),
                    ),
                    _ => None, // The number of rows, and where a statement ends.
                });
                Ok(rows.collect())
            }
            Self::Mariadb(connection) => {
                let rows: Vec<mysql_async::Row> =
                    connection.query(sql).await.map_err(|error| error.to_string())?;
                let text = |value: mysql_async::Value| match value {
                    mysql_async::Value::Bytes(bytes) => {
                        String::from_utf8_lossy(&bytes).into_owned()
                    }
                    mysql_async::Value::NULL => "NULL".to_owned(),
                    other => other.as_sql(false).trim_matches('\'').to_owned(),
                };
                Ok(rows
                    .into_iter()
                    .map(|row| row.unwrap().into_iter().map(text).collect())
                    .collect())
            }
        }
    }

    pub async fn rows(&mut self, sql: &str) -> Vec<Vec<String>> {
        self.try_rows(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    pub async fn number(&mut self, sql: &str) -> i64 {
        self.rows(sql).await[0][0].parse().unwrap()
    }

    /// The names of all that is prepared in this server.
    pub async fn prepared(&mut self) -> Vec<String> {
        let sql = match self {
            Self::Postgres(_) => "SELECT gid FROM pg_prepared_xacts ORDER BY gid",
            Self::Mariadb(_) => "XA RECOVER",
        };
        self.rows(sql).await.into_iter().filter_map(|row| row.last().cloned()).collect()
    }
}

/// Servers that many tests share, each with databases of its own in them. They end with the
/// program.
static SERVERS: LazyLock<Mutex<Vec<Arc<Database>>>> = LazyLock::new(Mutex::default);

/// The server of that make that the tests share.
pub async fn shared(make: Make) -> Arc<Database> {
    let find = move || {
        let mut servers = SERVERS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(server) = servers.iter().find(|server| server.make() == make) {
            return Arc::clone(server);
        }
        let server = Arc::new(Database::start(make, &DatabaseOptions::default()).unwrap());
        servers.push(Arc::clone(&server));
        server
    };
    tokio::task::spawn_blocking(find).await.unwrap()
}

/// A server of a test's own.
pub async fn own(make: Make, options: DatabaseOptions) -> Arc<Database> {
    let start = move || Arc::new(Database::start(make, &options).unwrap());
    tokio::task::spawn_blocking(start).await.unwrap()
}

/// The server dies, and starts again.
pub async fn die_and_start_again(server: &Arc<Database>) {
    let server = Arc::clone(server);
    let again = move || {
        server.kill();
        server.start_again().unwrap();
    };
    tokio::task::spawn_blocking(again).await.unwrap();
}

/// A coordinator over two databases of one server, each with four accounts.
pub struct World {
    pub coordinator: Coordinator,
    pub server: Arc<Database>,
    /// Where the two databases are.
    pub urls: [String; 2],
}

/// Settings that make tests quick.
pub const QUICK: &str = "statement_timeout_ms = 3000\nlock_timeout_ms = 400\nsweep_ms = 100\n\
                         orphan_ms = 200\n";

impl World {
    pub async fn start(make: Make) -> Self {
        Self::over(shared(make).await, QUICK).await
    }

    /// With more settings for each database.
    pub async fn over(server: Arc<Database>, settings: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let mut urls = [String::new(), String::new()];
        for url in &mut urls {
            let name = format!("t{}", NUMBER.fetch_add(1, Ordering::Relaxed));
            Look::into(&server.url()).await.rows(&format!("CREATE DATABASE {name}")).await;
            *url = server.url_of(&name);
            let mut look = Look::into(url).await;
            let table = "CREATE TABLE account (id varchar(20) PRIMARY KEY, balance bigint NOT \
                         NULL, CHECK (balance >= 0))";
            look.rows(table).await;
            for account in ["A", "B", "C", "D"] {
                let row = format!("INSERT INTO account VALUES ('{account}', {BALANCE})");
                look.rows(&row).await;
            }
        }
        let coordinator = Self::coordinate(&urls, settings).await;
        Self { coordinator, server, urls }
    }

    /// The same databases under another coordinator, which reaches them by other ways.
    pub async fn with_urls(self, urls: &[String; 2], settings: &str) -> Self {
        let coordinator = Self::coordinate(urls, settings).await;
        Self { coordinator, ..self }
    }

    /// The id that the coordinator keeps in its data folder.
    pub fn coordinator_id(&self) -> String {
        let history = self.coordinator.data().join("history.db");
        let history = unanimity_sdk::rusqlite::Connection::open(history).unwrap();
        let sql = "SELECT printf('%016x', value) FROM meta WHERE name = 'coordinator'";
        history.query_row(sql, [], |row| row.get(0)).unwrap()
    }

    async fn coordinate(urls: &[String; 2], settings: &str) -> Coordinator {
        let config = config(urls, settings);
        let folder = Folder::new();
        let path = folder.path().join("unanimity.toml");
        std::fs::write(&path, config).unwrap();
        let (path, data) = (path.display().to_string(), folder.path().join("data"));
        let flags = ["--config", &path, "--retry-delay-ms", "20", "--retry-delay-max-ms", "200"];
        Coordinator::start_in(folder, &data, "", &flags).await
    }

    pub async fn look(&self, which: usize) -> Look {
        Look::into(&self.urls[which]).await
    }

    pub async fn balance(&self, which: usize, account: &str) -> i64 {
        let sql = format!("SELECT balance FROM account WHERE id = '{account}'");
        self.look(which).await.number(&sql).await
    }

    pub async fn begin(&self, request: &Value) -> Answer {
        self.coordinator.ask.begin(request).await
    }

    /// A statement in the words of this server.
    pub fn statement(&self, sql: &str, parameters: Value, rows: Value) -> Value {
        statement(self.server.make(), sql, parameters, rows)
    }

    /// Adds to an account, which must be there and stay above zero.
    pub fn change(&self, account: &str, amount: i64) -> Value {
        change(self.server.make(), account, amount)
    }

    /// A transfer from an account of the first database to the same of the second.
    pub fn transfer(&self, id: &str, account: &str, amount: i64) -> Value {
        let branches = [
            branch("from", "db:one", vec![self.change(account, -amount)]),
            branch("to", "db:two", vec![self.change(account, amount)]),
        ];
        json!({"id": id, "branches": branches, "wait": "completed"})
    }
}

/// The sections of a configuration for these databases.
pub fn config(urls: &[String; 2], settings: &str) -> String {
    let mut config = String::new();
    let any = if settings.contains("statements =") { "" } else { "statements = \"any\"\n" };
    for (name, url) in NAMES.iter().zip(urls) {
        write!(config, "[databases.{name}]\nurl = {url:?}\n{any}{settings}").unwrap();
    }
    config
}

pub fn statement(make: Make, sql: &str, parameters: Value, rows: Value) -> Value {
    let mut sql = sql.to_owned();
    if make == Make::MariaDb {
        for number in 1..=9 {
            sql = sql.replace(&format!("${number}"), "?");
        }
    }
    let mut statement = json!({"sql": sql, "parameters": parameters});
    if !rows.is_null() {
        statement["rows"] = rows;
    }
    statement
}

pub fn change(make: Make, account: &str, amount: i64) -> Value {
    let sql = "UPDATE account SET balance = balance + $1 WHERE id = $2";
    statement(make, sql, json!([amount, account]), json!(1))
}

pub fn branch(name: &str, participant: &str, statements: Vec<Value>) -> Value {
    json!({"name": name, "participant": participant, "payload": {"statements": statements}})
}

/// Starts a coordinator over one database although it cannot; gives back how it ended.
pub async fn start_in_vain(url: &str) -> Ended {
    let folder = Folder::new();
    let path = folder.path().join("unanimity.toml");
    let config = format!("[databases.one]\nurl = {url:?}\nstatements = \"any\"\n");
    std::fs::write(&path, config).unwrap();
    let (path, data) = (path.display().to_string(), folder.path().join("data"));
    let data = data.display().to_string();
    run(&["serve", "--listen-address", "127.0.0.1:0", "--data-folder", &data, "--config", &path])
        .await
}
