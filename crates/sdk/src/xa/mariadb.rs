//! Branches that MariaDB or MySQL prepares (`XA`): the service's trait, the participant, and the
//! statements. The course of a call is left to `engine`.
//!
//! 1. MariaDB leaves a prepared branch in the hands of its session: to every other session it is
//!    unknown (`XAER_NOTA`) until that one ends. So the session is ended at once. (To reset it is
//!    not enough: MariaDB 10.11 then refuses the session's next branch.)
//! 2. Unknown is therefore not gone: it is looked up among all that is prepared, and one that is
//!    there is waited for a moment, for the server to notice the session's end.
//! 3. While the server takes leave of that session, there is a moment in which it says "done" to
//!    the `XA COMMIT` of another one and has committed nothing (seen with MariaDB 10.11). So a
//!    commit is acknowledged when the branch's row is there and nobody holds it.
//! 4. Servers that roll a prepared branch back when its session ends are refused.
//! 5. A branch's statements cannot include any that commit by themselves: the server refuses them.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mysql_async::prelude::Queryable;
use mysql_async::{Conn, Row};
use unanimity_core::guard::Work;

use super::engine::{Finished, Started, XaEngine, XaStore, in_doubt, row_within, within};
use super::name::{BranchName, Xid};
use crate::guard_rows::{GuardCounts, GuardEntry};
use crate::mariadb::store::{self, MariaDbStore, classify};
use crate::mariadb::{guard_table, service};
use crate::participant::{Answering, CallError, Doubting, InDoubt, Participant, Request, now_ms};
use crate::prune::Prunable;
use crate::service::{BranchContext, ServiceResult, Vote};
use crate::sql::engine::{Engine, Key, Works};
use crate::sql::{SqlError, SqlOpenError, SqlOptions};
use crate::tally::Counters;

/// No branch of that name is known to this session.
const XAER_NOTA: u16 = 1397;
/// How often a branch in another session's hands is looked at, after pauses that double from one
/// millisecond.
const LOOKS_MAX: u32 = 8;

/// A branch of that name is known to some session.
const XAER_DUPID: u16 = 1440;
/// The branch was rolled back by the server.
const XA_RBROLLBACK: u16 = 1402;

/// A service whose branches MariaDB or MySQL prepares.
///
/// What is said of [`crate::mariadb::MariaDbService`] about `local` and about errors holds here. A
/// deadlock or a lock timeout makes the branch vote no.
pub trait MariaDbXaService: Send + Sync + 'static {
    /// Creates or updates the service's tables. Runs at every start, by one process at a time.
    ///
    /// # Errors
    /// Any; the participant does not open.
    fn migrate(&self, local: &mut Conn) -> impl Future<Output = ServiceResult<()>> + Send;

    /// Does the work, which the decision makes final or undoes, and votes. The rows that it has
    /// written stay locked until then. [`Vote::YesWith`] is an error: the database keeps no result.
    ///
    /// # Errors
    /// Anything that is not a no: this call is undone, and the coordinator tries again.
    fn work(
        &self,
        local: &mut Conn,
        branch: &BranchContext,
        payload: &[u8],
    ) -> impl Future<Output = ServiceResult<Vote>> + Send;
}

/// A participant whose branches MariaDB or MySQL prepares.
///
/// Several processes may serve the same database.
pub struct MariaDbXaParticipant<S> {
    engine: Arc<XaEngine<MariaDbStore, Serving<S>>>,
    /// When a branch in doubt was first seen, in milliseconds since the Unix epoch: the server does
    /// not tell.
    seen: Mutex<HashMap<InDoubt, u64>>,
}

impl<S> fmt::Debug for MariaDbXaParticipant<S> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("MariaDbXaParticipant").finish_non_exhaustive()
    }
}

struct Serving<S>(S);

impl<S: MariaDbXaService> Works<MariaDbStore> for Serving<S> {
    async fn work(
        &self,
        local: &mut Conn,
        branch: &BranchContext,
        payload: &[u8],
    ) -> ServiceResult<Work> {
        within(branch, self.0.work(local, branch, payload)).await
    }
}

impl<S: MariaDbXaService> MariaDbXaParticipant<S> {
    /// Connects, and brings the guard's and the service's tables up to date. `name` is the
    /// service's: see [`super::owner`].
    ///
    /// # Errors
    /// [`SqlOpenError`]; [`SqlOpenError::TooOld`] where the server forgets prepared branches.
    pub async fn open(
        url: &str,
        name: &str,
        service: S,
        options: SqlOptions,
    ) -> Result<Self, SqlOpenError> {
        let store = MariaDbStore::new(store::options(url)?, &options);
        let engine = Engine::new(store, Serving(service), options);
        let mut borrowed = engine.pool.take().await?;
        let local = &mut borrowed.connection;
        let version: Option<String> =
            local.query_first("SELECT VERSION()").await.map_err(|error| classify(&error))?;
        check_version(&version.unwrap_or_default())?;
        if !engine.options.without_durability {
            store::check_durable(local).await?;
        }
        let serving = &engine.service.0;
        service::migrate(local, async |local: &mut Conn| serving.migrate(local).await).await?;
        engine.pool.give_back(borrowed);
        let engine = Arc::new(XaEngine { engine, owner: super::owner(name) });
        Ok(Self { engine, seen: Mutex::default() })
    }

    /// The service behind the guard.
    #[must_use]
    pub fn service(&self) -> &S {
        &self.engine.engine.service.0
    }

    /// Reads the service's tables outside the calls of transactions.
    ///
    /// # Errors
    /// [`CallError`] where there is no connection; the query's own, as [`CallError::Failed`].
    pub async fn read<T, E: fmt::Display>(
        &self,
        query: impl AsyncFnOnce(&mut Conn) -> Result<T, E>,
    ) -> Result<T, CallError> {
        MariaDbStore::read(&self.engine.engine.pool, query).await
    }

    /// A page of guard rows in the order of transaction and branch, behind the pair `after`. What
    /// is prepared has none: see [`Doubting::in_doubt`].
    ///
    /// # Errors
    /// As [`MariaDbXaParticipant::read`].
    pub async fn guard_entries(
        &self,
        after: Option<(String, String)>,
        rows_max: u32,
    ) -> Result<Vec<GuardEntry>, CallError> {
        self.read(async |local: &mut Conn| {
            guard_table::entries(local, after.as_ref(), None, rows_max).await
        })
        .await
    }

    /// How many branches stand where, but for those that are prepared.
    ///
    /// # Errors
    /// As [`MariaDbXaParticipant::read`].
    pub async fn guard_counts(&self) -> Result<GuardCounts, CallError> {
        self.read(guard_table::counts).await
    }

    /// What this participant has done since its process started.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.engine.engine.counters()
    }

    /// Puts in since when each branch has been seen.
    fn seen(&self, mut found: Vec<InDoubt>) -> Vec<InDoubt> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.retain(|branch, _| found.contains(branch));
        for branch in &mut found {
            branch.since_ms = *seen.entry(branch.clone()).or_insert_with(now_ms);
        }
        found.sort_by_key(|branch| branch.since_ms);
        found
    }
}

impl<S: MariaDbXaService> Participant for MariaDbXaParticipant<S> {
    fn call(&self, request: Request) -> Answering<'_> {
        Box::pin(Arc::clone(&self.engine).call(request))
    }
}

impl<S: MariaDbXaService> Doubting for MariaDbXaParticipant<S> {
    fn in_doubt(&self) -> Answering<'_, Vec<InDoubt>> {
        Box::pin(async { Ok(self.seen(self.engine.in_doubt().await?)) })
    }
}

impl<S: MariaDbXaService> Prunable for MariaDbXaParticipant<S> {
    fn settled_before(
        &self,
        before_ms: u64,
        after: Option<(String, String)>,
        rows_max: u32,
    ) -> Answering<'_, Vec<GuardEntry>> {
        Box::pin(self.read(async move |local: &mut Conn| {
            guard_table::entries(local, after.as_ref(), Some(before_ms), rows_max).await
        }))
    }

    fn forget(&self, rows: Vec<GuardEntry>) -> Answering<'_, u64> {
        Box::pin(self.read(async move |local: &mut Conn| {
            let mut removed = 0;
            for row in &rows {
                removed += guard_table::forget(local, row).await?;
            }
            Ok::<_, mysql_async::Error>(removed)
        }))
    }
}

/// Whether this version keeps what is prepared when the session ends.
fn check_version(version: &str) -> Result<(), SqlOpenError> {
    let numbers = version.split(|character: char| !character.is_ascii_digit());
    let mut numbers = numbers.map(|number| number.parse::<u32>().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    let found = (next(), next(), next());
    let (needed, least) = if version.contains("MariaDB") {
        ("MariaDB 10.5.2 or newer", (10, 5, 2))
    } else {
        ("MySQL 5.7.7 or newer", (5, 7, 7))
    };
    if found >= least {
        return Ok(());
    }
    Err(SqlOpenError::TooOld { found: version.to_owned(), needed })
}

/// A statement about the branch. The name goes in as hexadecimal.
fn xa(verb: &str, name: &BranchName) -> String {
    format!("XA {verb} {}", name.xid().sql())
}

/// The number of a server's error.
fn code(error: &mysql_async::Error) -> Option<u16> {
    match error {
        mysql_async::Error::Server(told) => Some(told.code),
        _ => None,
    }
}

/// Ends a branch that another session has prepared, which the server allows only to a session that
/// commits by itself. One round trip, if all goes well.
async fn by_name(local: &mut Conn, statement: &str) -> Result<(), mysql_async::Error> {
    let sql = format!("SET autocommit = 1; {statement}; SET autocommit = 0");
    let ended = local.query_drop(sql).await;
    if matches!(ended, Err(mysql_async::Error::Server(_))) {
        local.query_drop("SET autocommit = 0").await?;
    }
    ended
}

/// Everything that is prepared on this server.
async fn recover(local: &mut Conn) -> Result<Vec<Xid>, SqlError> {
    let rows: Vec<Row> = local.query("XA RECOVER").await.map_err(|error| classify(&error))?;
    let xid = |row: &Row| {
        let format_id = row.get_opt::<i64, _>(0)?.ok()?;
        let length = row.get_opt::<usize, _>(1)?.ok()?;
        let data = row.get_opt::<Vec<u8>, _>(3)?.ok()?;
        let (global, qualifier) = data.split_at_checked(length)?;
        Some(Xid { format_id, global: global.to_vec(), qualifier: qualifier.to_vec() })
    };
    Ok(rows.iter().filter_map(xid).collect())
}

impl MariaDbStore {
    /// Claims the row inside the branch.
    async fn claim_within(
        &self,
        local: &mut Conn,
        name: &BranchName,
        key: Key<'_>,
    ) -> Result<Started, SqlError> {
        let claimed = guard_table::claim(local, key, row_within().state as u8).await;
        match claimed.map_err(|error| classify(&error)) {
            Ok(true) => Ok(Started::Claimed),
            Ok(false) => {
                self.undo(local, name).await?;
                Ok(Started::Known)
            }
            Err(error @ (SqlError::Again(_) | SqlError::Busy(_))) => {
                self.undo(local, name).await?;
                // Nothing was done yet that the database could have rolled back for good.
                Err(SqlError::Busy(error.into_text()))
            }
            Err(error) => Err(error),
        }
    }
}

impl XaStore for MariaDbStore {
    const LETS_GO: bool = false;

    async fn start(
        &self,
        local: &mut Conn,
        name: &BranchName,
        key: Key<'_>,
        _: u32,
    ) -> Result<Started, SqlError> {
        match local.query_drop(xa("START", name)).await {
            Ok(()) => self.claim_within(local, name, key).await,
            Err(error) if code(&error) == Some(XAER_DUPID) => {
                let prepared = self.is_prepared(local, name).await?;
                let busy = || SqlError::Busy("the branch is being prepared".to_owned());
                if prepared { Ok(Started::Prepared) } else { Err(busy()) }
            }
            Err(error) => Err(classify(&error)),
        }
    }

    async fn prepare(&self, local: &mut Conn, name: &BranchName) -> Result<(), SqlError> {
        let sql = format!("{}; {}", xa("END", name), xa("PREPARE", name));
        local.query_drop(sql).await.map_err(|error| classify(&error))
    }

    async fn undo(&self, local: &mut Conn, name: &BranchName) -> Result<(), SqlError> {
        // It fails where the server has ended the branch for us; what counts is what follows.
        let ended = local.query_drop(xa("END", name)).await;
        match local.query_drop(xa("ROLLBACK", name)).await {
            Ok(()) => Ok(()),
            Err(error) if matches!(code(&error), Some(XAER_NOTA | XA_RBROLLBACK)) => Ok(()),
            Err(error) => {
                tracing::debug!(?ended, %error, "a branch cannot be rolled back in its session");
                Err(classify(&error))
            }
        }
    }

    async fn finish(
        &self,
        local: &mut Conn,
        name: &BranchName,
        commit: bool,
    ) -> Result<Finished, SqlError> {
        let statement = xa(if commit { "COMMIT" } else { "ROLLBACK" }, name);
        for looked in 0..LOOKS_MAX {
            match by_name(local, &statement).await {
                Ok(()) => return Ok(Finished::Done),
                Err(error) if code(&error) == Some(XA_RBROLLBACK) => return Ok(Finished::Unknown),
                Err(error) if code(&error) == Some(XAER_NOTA) => {}
                Err(error) => return Err(classify(&error)),
            }
            if !self.is_prepared(local, name).await? {
                return Ok(Finished::Unknown);
            }
            tokio::time::sleep(Duration::from_millis(1 << looked)).await;
        }
        let text = "the branch is prepared, and the session that prepared it has not ended";
        Err(SqlError::Busy(text.to_owned()))
    }

    async fn is_prepared(&self, local: &mut Conn, name: &BranchName) -> Result<bool, SqlError> {
        Ok(recover(local).await?.contains(&name.xid()))
    }

    async fn prepared(&self, local: &mut Conn, owner: u64) -> Result<Vec<InDoubt>, SqlError> {
        let found = recover(local).await?;
        let ours = found.iter().filter_map(BranchName::of_xid);
        Ok(ours.filter_map(|name| in_doubt(&name, owner, 0)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::check_version;

    fn check(version: &str, good: bool) {
        assert_eq!(check_version(version).is_ok(), good, "{version}");
    }

    #[test]
    fn versions_that_forget_what_is_prepared_are_refused() {
        check("10.11.19-MariaDB-0+deb12u1", true);
        check("10.5.2-MariaDB", true);
        check("11.4.1-MariaDB-log", true);
        check("10.5.1-MariaDB", false);
        check("10.4.30-MariaDB-log", false);
        check("8.0.36", true);
        check("5.7.7-log", true);
        check("5.7.6", false);
        check("5.6.51", false);
        check("", false);
    }
}
