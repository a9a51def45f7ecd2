//! Databases as participants: a branch whose participant is `db:NAME` is carried out by the
//! coordinator itself, as a prepared transaction in that database.
//!
//! This file decides which call goes to which database and what an operation means there. What a
//! payload says is [`work`]'s, how a branch lives in PostgreSQL or MariaDB `postgres`'s and
//! `mariadb`'s, and what becomes of what was left prepared the `sweeper`'s. Which databases there
//! are, the configuration says; a request can only name them.

mod calendar;
pub mod listing;
mod mariadb;
mod pool;
mod postgres;
mod result;
mod sweeper;
mod turn;
pub mod work;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::{OnceCell, watch};
use unanimity::core::guard::Contradiction;
use unanimity::core::{Answer, BranchPlan, Call, Kind, Operation};
use unanimity::{CallFuture, TransactionManager, Transport};
use unanimity_sdk::xa::name::BranchName;

use self::listing::{DatabaseView, InDoubtView, Prepared, PreparedView, Whose};
use self::mariadb::Mariadb;
use self::postgres::Postgres;
use self::work::{Refusal, Work};
use crate::config::{DatabaseConfig, Dialect};
use crate::outbound::references;

/// The scheme of a participant that is a database.
pub const SCHEME: &str = "db";
/// The table in which every branch has a row. It is the coordinator's own.
pub const TABLE: &str = "unanimity_branch";

/// Why a database cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// It does not answer now; it may later.
    Down(String),
    /// It is set up so that it cannot work, or it refuses the coordinator.
    Refused(String),
}

impl Unusable {
    fn text(&self) -> &str {
        match self {
            Self::Down(text) | Self::Refused(text) => text,
        }
    }
}

/// A branch under the name that it has inside a database.
struct Branch {
    name: BranchName,
    gid: String,
    xid: String,
}

impl Branch {
    fn new(name: BranchName) -> Self {
        let gid = name.gid();
        // Ids and names have no quotes; it goes into statements that take no parameters.
        assert!(gid.bytes().all(|byte| byte.is_ascii_graphic() && !b"'\\\"".contains(&byte)));
        let xid = name.xid().sql();
        Self { name, gid, xid }
    }

    fn gid(&self) -> &str {
        &self.gid
    }

    /// The arguments of an XA statement.
    fn xid(&self) -> &str {
        &self.xid
    }
}

/// What a statement came to.
#[derive(Debug, Default)]
struct Ran {
    /// How many rows it touched or gave back.
    affected: u64,
    /// What it gave back, as far as it is kept; `None` where a statement gives nothing back.
    rows: Option<Vec<Value>>,
}

/// The server that a database is on.
enum Server {
    Postgres(Postgres),
    Mariadb(Mariadb),
}

/// One database.
struct Database {
    config: DatabaseConfig,
    server: Server,
    /// Set once the database was found to be usable.
    checked: OnceCell<()>,
    /// When the sweeper has first seen what is prepared there now.
    first_seen: Mutex<HashMap<String, Instant>>,
}

impl Database {
    fn new(config: DatabaseConfig) -> Self {
        let server = match config.dialect {
            Dialect::Postgres => Server::Postgres(Postgres::new(config.clone())),
            Dialect::Mariadb => Server::Mariadb(Mariadb::new(config.clone())),
        };
        Self { config, server, checked: OnceCell::new(), first_seen: Mutex::default() }
    }

    async fn check(&self) -> Result<(), Unusable> {
        let check = async || match &self.server {
            Server::Postgres(postgres) => postgres.check().await,
            Server::Mariadb(mariadb) => mariadb.check().await,
        };
        self.checked.get_or_try_init(check).await.copied()
    }

    /// Everything that is prepared there.
    async fn list(&self, details: bool) -> Result<Vec<Prepared>, String> {
        match &self.server {
            Server::Postgres(postgres) => postgres.list(details).await,
            Server::Mariadb(mariadb) => mariadb.list().await,
        }
    }

    /// The gids of a coordinator's rows that are older than that.
    async fn old_rows(
        &self,
        prefix: &str,
        age: Duration,
        most: i64,
    ) -> Result<Vec<String>, String> {
        match &self.server {
            Server::Postgres(postgres) => postgres.old_rows(prefix, age, most).await,
            Server::Mariadb(mariadb) => mariadb.old_rows(prefix, age, most).await,
        }
    }

    /// Removes rows.
    async fn forget_rows(&self, gids: &[String]) -> Result<(), String> {
        match &self.server {
            Server::Postgres(postgres) => postgres.forget_rows(gids).await,
            Server::Mariadb(mariadb) => mariadb.forget_rows(gids).await,
        }
    }

    fn first_seen(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.first_seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How old something prepared is: as the database says, or else since it was first seen.
    fn age_ms(&self, prepared: &Prepared) -> Option<u64> {
        let since = |first: &Instant| u64::try_from(first.elapsed().as_millis()).ok();
        prepared.age_ms.or_else(|| self.first_seen().get(&prepared.name).and_then(since))
    }

    async fn prepare(&self, branch: &Branch, work: &Work, may_write: bool) -> Answer {
        match &self.server {
            Server::Postgres(postgres) => postgres.prepare(branch, work, may_write).await,
            Server::Mariadb(mariadb) => mariadb.prepare(branch, work, may_write).await,
        }
    }

    async fn commit(&self, branch: &Branch) -> Answer {
        match &self.server {
            Server::Postgres(postgres) => postgres.commit(branch).await,
            Server::Mariadb(mariadb) => mariadb.commit(branch).await,
        }
    }

    async fn rollback(&self, branch: &Branch) -> Answer {
        match &self.server {
            Server::Postgres(postgres) => postgres.rollback(branch).await,
            Server::Mariadb(mariadb) => mariadb.rollback(branch).await,
        }
    }
}

/// Looks into a database that need not belong to any coordinator: nothing is written, and no table
/// is needed.
///
/// # Errors
/// Why it cannot be looked into.
pub async fn look_into(config: &DatabaseConfig) -> Result<InDoubtView, String> {
    let database = Database::new(config.clone());
    let all = database.list(true).await?;
    let view = |one: Prepared| {
        let whose = Whose::of(one.branch.as_ref(), None);
        PreparedView::of(one, whose, "only shown".to_owned())
    };
    Ok(InDoubtView {
        databases: vec![DatabaseView {
            name: config.name.clone(),
            place: config.place.clone(),
            error: None,
            prepared: all.into_iter().map(view).collect(),
        }],
    })
}

/// All databases of one coordinator. Cloning gives another handle.
#[derive(Clone)]
pub struct Databases {
    all: Arc<BTreeMap<String, Database>>,
    /// The coordinator's id, once it is known.
    coordinator: watch::Sender<Option<u64>>,
}

impl Databases {
    /// The databases of a configuration; nothing is connected yet.
    #[must_use]
    pub fn new(configured: &BTreeMap<String, DatabaseConfig>) -> Self {
        let all = configured.iter().map(|(name, one)| (name.clone(), Database::new(one.clone())));
        Self { all: Arc::new(all.collect()), coordinator: watch::Sender::new(None) }
    }

    /// Whether every database can be used. One that does not answer is no reason to stop: it is
    /// asked again when it is needed.
    ///
    /// # Errors
    /// What is wrong with one that is set up so that it cannot work.
    pub async fn check(&self) -> Result<(), String> {
        for (name, database) in self.all.iter() {
            match database.check().await {
                Ok(()) => {}
                Err(Unusable::Down(text)) => {
                    tracing::warn!(database = name, %text, "a database does not answer");
                }
                Err(Unusable::Refused(text)) => {
                    let place = &database.config.place;
                    return Err(format!(
                        "database {name} ({place}): {text} (code database_refused)"
                    ));
                }
            }
        }
        Ok(())
    }

    /// Says whose databases these are: calls wait until that is said. And looks, from then on, for
    /// what was left prepared. To be called within a tokio runtime.
    pub fn attach(&self, manager: &TransactionManager) {
        self.coordinator.send_replace(Some(manager.coordinator_id()));
        for name in self.all.keys() {
            let (all, name, manager) = (Arc::clone(&self.all), name.clone(), manager.clone());
            tokio::spawn(async move {
                if let Some(database) = all.get(&name) {
                    sweeper::run(database, &manager).await;
                }
            });
        }
    }

    /// What is prepared in every database now.
    pub async fn in_doubt(&self, manager: &TransactionManager) -> InDoubtView {
        let shown = self.all.values().map(|database| sweeper::show(database, manager));
        InDoubtView { databases: futures_util::future::join_all(shown).await }
    }

    async fn coordinator(&self) -> Option<u64> {
        let mut known = self.coordinator.subscribe();
        known.wait_for(Option::is_some).await.ok().and_then(|known| *known)
    }

    fn find(&self, participant: &str) -> Result<&Database, Refusal> {
        let name = participant.strip_prefix("db:").unwrap_or_default();
        self.all.get(name).ok_or_else(|| {
            let text = format!("no database is configured as {name:?} ([databases.NAME])");
            ("database_unknown", text)
        })
    }

    async fn carry(&self, call: Call) -> Answer {
        let database = match self.find(&call.plan.participant) {
            Ok(database) => database,
            Err((_, text)) => return Answer::Unsent(text.into()),
        };
        let Some(coordinator) = self.coordinator().await else {
            return Answer::Unsent("the coordinator is stopping".into());
        };
        if let Err(unusable) = database.check().await {
            return Answer::Unsent(unusable.text().into());
        }
        let name = BranchName::new(coordinator, call.transaction.as_str(), &call.plan.name);
        let branch = Branch::new(name);
        match call.operation {
            Operation::Prepare | Operation::CommitOnePhase => match work(&call, database) {
                // To commit in one phase leaves no trace of what was done; only reading needs none.
                Ok(work) if call.operation == Operation::CommitOnePhase && !work.reads() => {
                    Answer::Unsupported
                }
                Ok(work) => {
                    let may_write = call.operation == Operation::Prepare;
                    database.prepare(&branch, &work, may_write).await
                }
                Err(reason) => Answer::No(reason.into()),
            },
            Operation::Commit => database.commit(&branch).await,
            Operation::Rollback => database.rollback(&branch).await,
            Operation::Execute | Operation::Compensate | Operation::Inquire => {
                let text = "a database's branch is two_phase";
                Answer::Contradiction(Contradiction::WrongKind, text.into())
            }
        }
    }
}

/// What a call asks for, with the results of other branches in it.
fn work(call: &Call, database: &Database) -> Result<Work, String> {
    let payload = call.payload.as_deref().unwrap_or_default();
    let text = std::str::from_utf8(payload).map_err(|error| error.to_string())?;
    let filled = if call.results.is_empty() {
        text.to_owned()
    } else {
        references::fill(text, &call.results, true)?
    };
    let read = Work::read(filled.as_bytes(), &database.config.allowed);
    read.map_err(|(code, text)| format!("{code}: {text}"))
}

impl Transport for Databases {
    fn call(&self, call: Call) -> CallFuture<'_> {
        Box::pin(self.carry(call))
    }

    fn check(&self, participant: &str) -> Result<(), Refusal> {
        self.find(participant).map(drop)
    }

    fn check_branch(&self, branch: &BranchPlan) -> Result<(), Refusal> {
        let database = self.find(&branch.participant)?;
        if branch.kind != Kind::TwoPhase || branch.by_initiator {
            let text = "a database's branch is of the kind two_phase, and the coordinator does its \
                        phase one";
            return Err(("database_two_phase_only", text.into()));
        }
        Work::read(&branch.payload, &database.config.allowed).map(drop)
    }
}
