//! The demo's initiator with a database of its own: it keeps orders, sends one message for each (a
//! deferred branch), and answers the coordinator's inquiries. Now and then it falls silent, before
//! its local transaction or after it; the message must go out if, and only if, the order is there.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use unanimity_sdk::api::{TransactionRequest, TransactionStatus};
use unanimity_sdk::rusqlite::{Connection, TransactionBehavior};
use unanimity_sdk::{
    Client, ClientError, LocalWorkError, TransactionId, axum, create_local_work_table,
    inquiry_router, record_local_work,
};

/// How long a local transaction waits for another to end.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the initiator waits before it looks for an outcome again.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The database, and the server that answers inquiries from it.
#[derive(Debug)]
pub struct Orders {
    file: PathBuf,
    url: String,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Orders {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn open(file: &Path) -> unanimity_sdk::rusqlite::Result<Connection> {
    let database = Connection::open(file)?;
    database.busy_timeout(BUSY_TIMEOUT)?;
    Ok(database)
}

/// An order and the row that says so, in one local transaction. Whether it is there: not if the
/// coordinator was told before that it never will be.
fn place(file: &Path, id: &TransactionId, cents: i64) -> anyhow::Result<bool> {
    let mut database = open(file)?;
    let local = database.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let row = "INSERT OR IGNORE INTO orders (id, cents) VALUES (?1, ?2)";
    local.execute(row, (id.as_str(), cents))?;
    match record_local_work(&local, id) {
        Ok(()) => local.commit().map(|()| true).context("the local commit"),
        Err(LocalWorkError::TooLate(_)) => Ok(false), // Dropping it rolls back.
        Err(LocalWorkError::Database(error)) => Err(error.into()),
    }
}

impl Orders {
    /// Makes the database in this folder, and begins to answer.
    ///
    /// # Errors
    /// If the file or the port cannot be had.
    pub async fn start(folder: &Path) -> anyhow::Result<Self> {
        let file = folder.join("orders.db");
        let database = open(&file).context("the initiator's database")?;
        database.execute_batch(
            "PRAGMA journal_mode = WAL;
             CREATE TABLE IF NOT EXISTS orders (id TEXT PRIMARY KEY, cents INTEGER NOT NULL)",
        )?;
        create_local_work_table(&database)?;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let inquired = file.clone();
        let router = inquiry_router(move || open(&inquired));
        let server = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(%error, "inquiries are not answered any more");
            }
        });
        Ok(Self { file, url, server })
    }

    /// Every order that is there: its transaction, and its cents.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn all(&self) -> anyhow::Result<Vec<(String, i64)>> {
        let database = open(&self.file)?;
        let mut rows = database.prepare("SELECT id, cents FROM orders ORDER BY id")?;
        let found = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(found.collect::<Result<_, _>>()?)
    }

    /// What is known of every local work: its transaction, its branch, the number of its state, and
    /// when it came to that, in milliseconds since the Unix epoch.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn rows(&self) -> anyhow::Result<Vec<(String, String, u8, u64)>> {
        let database = open(&self.file)?;
        let sql = "SELECT transaction_id, branch, state, at_ms FROM unanimity_guard";
        let mut rows = database.prepare(sql)?;
        let found = rows.query_map([], |row| {
            let at_ms = u64::try_from(row.get::<_, i64>(3)?).unwrap_or(0);
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, at_ms))
        })?;
        Ok(found.collect::<Result<_, _>>()?)
    }

    async fn place(&self, id: &TransactionId, cents: i64) -> Result<bool, ClientError> {
        let (file, id) = (self.file.clone(), id.clone());
        let placed = tokio::task::spawn_blocking(move || place(&file, &id, cents)).await;
        let failed = |error: String| ClientError::NoAnswer(format!("the local work: {error}"));
        placed
            .map_err(|error| failed(error.to_string()))?
            .map_err(|error| failed(error.to_string()))
    }

    /// One way through a transaction whose only branch at a participant is the message. Every step
    /// may be taken again, so whoever lost an answer begins anew.
    pub(super) async fn send(
        &self,
        client: &Client,
        request: &TransactionRequest,
        cents: i64,
    ) -> Result<TransactionStatus, ClientError> {
        let name = request.id.clone().unwrap_or_default();
        let id =
            TransactionId::new(&name).map_err(|error| ClientError::Unusable(error.to_string()))?;
        let inquiry = Some(self.url.clone());
        let empty = TransactionRequest { branches: Vec::new(), inquiry, ..request.clone() };
        let begun = client.begin(&empty).await?;
        if begun.outcome.is_some() {
            return Ok(begun);
        }
        let (open, mood) = (client.join(id.clone()), Mood::of(&name));
        for branch in &request.branches {
            match open.enlist(branch).await {
                Err(error) if matches!(error.code(), Some("not_open" | "transaction_unknown")) => {
                    return client.get(&id, Some(LOOK_AGAIN)).await;
                }
                enlisted => enlisted?,
            };
        }
        let silent = mood == Mood::SilentBefore
            || !self.place(&id, cents).await?
            || mood == Mood::SilentAfter;
        if silent {
            return client.get(&id, Some(LOOK_AGAIN)).await;
        }
        match open.commit().await {
            Err(error) if error.code() == Some("already_decided") => client.get(&id, None).await,
            committed => committed,
        }
    }
}

/// How far an initiator goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mood {
    SilentBefore,
    SilentAfter,
    Speaks,
}

impl Mood {
    /// The same for a transaction whenever it is tried: half of them fall silent.
    fn of(name: &str) -> Self {
        match name.bytes().map(u32::from).sum::<u32>() % 4 {
            0 => Self::SilentBefore,
            1 => Self::SilentAfter,
            _ => Self::Speaks, // 2 and 3.
        }
    }
}
