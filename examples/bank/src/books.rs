//! Decides where a bank's accounts lie, and how they are read: in a SQLite file, in PostgreSQL or
//! in MariaDB, and in the last two with a guard or with branches that the database prepares.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Row, params};
use unanimity_sdk::guard::GuardState;
use unanimity_sdk::mariadb::MariaDbParticipant;
use unanimity_sdk::mariadb::mysql_async::prelude::Queryable;
use unanimity_sdk::mariadb::mysql_async::{self, Conn};
use unanimity_sdk::postgres::{PostgresLocal, PostgresParticipant, tokio_postgres};
use unanimity_sdk::prune::Prunable;
use unanimity_sdk::xa::mariadb::MariaDbXaParticipant;
use unanimity_sdk::xa::postgres::PostgresXaParticipant;
use unanimity_sdk::{
    CallError, Counters, Doubting, GuardEntry, ResourceParticipant, SqliteParticipant,
};

use crate::http::{AccountView, Total};
use crate::journal::{self, JournalLine};
use crate::service::AccountService;

/// The participant: what is called, and the accounts behind it, which are read.
#[derive(Clone)]
pub struct Books {
    /// What is called.
    pub participant: Arc<dyn Doubting>,
    pub(crate) accounts: Accounts,
}

impl std::fmt::Debug for Books {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Books").finish_non_exhaustive()
    }
}

/// Where the accounts are.
#[derive(Clone)]
pub(crate) enum Accounts {
    Sqlite(Arc<SqliteParticipant>),
    /// In SQLite too, as keys of the SDK's resource layer, with versions.
    Keyed(Arc<SqliteParticipant>),
    Postgres(Arc<PostgresParticipant<AccountService>>),
    PostgresXa(Arc<PostgresXaParticipant<AccountService>>),
    MariaDb(Arc<MariaDbParticipant<AccountService>>),
    MariaDbXa(Arc<MariaDbXaParticipant<AccountService>>),
}

/// All sums and counts in one statement, so that they are of one moment: the accounts in a row with
/// the number 0, the guard's rows by their states. The casts are there because sums grow wider.
const TOTAL_POSTGRES: &str = "
    SELECT 0::bigint, coalesce(sum(balance), 0)::bigint, coalesce(sum(reserved), 0)::bigint,
        count(*)
    FROM account
    UNION ALL SELECT state::bigint, 0, 0, count(*) FROM unanimity_guard GROUP BY state";
const TOTAL_MARIADB: &str = "
    SELECT 0, CAST(coalesce(sum(balance), 0) AS SIGNED), CAST(coalesce(sum(reserved), 0) AS SIGNED),
        count(*)
    FROM account
    UNION ALL SELECT state, 0, 0, count(*) FROM unanimity_guard GROUP BY state";

/// Runs a query on whichever participant has the accounts; the first argument of the arms is what
/// the query works on.
macro_rules! read {
    ($accounts:expr, |$sqlite:ident, $keyed:ident| $in_sqlite:expr,
     |$postgres:ident| $in_postgres:expr, |$mariadb:ident| $in_mariadb:expr) => {
        match $accounts {
            Accounts::Sqlite(file) => {
                let $keyed = false;
                file.read(move |$sqlite| $in_sqlite).await
            }
            Accounts::Keyed(file) => {
                let $keyed = true;
                file.read(move |$sqlite| $in_sqlite).await
            }
            Accounts::Postgres(database) => {
                database.read(async |$postgres: &PostgresLocal| $in_postgres).await
            }
            Accounts::PostgresXa(database) => {
                database.read(async |$postgres: &PostgresLocal| $in_postgres).await
            }
            Accounts::MariaDb(database) => {
                database.read(async |$mariadb: &mut Conn| $in_mariadb).await
            }
            Accounts::MariaDbXa(database) => {
                database.read(async |$mariadb: &mut Conn| $in_mariadb).await
            }
        }
    };
}

impl Books {
    /// The guard, to be made to forget.
    pub(crate) fn guard(&self) -> Arc<dyn Prunable> {
        match &self.accounts {
            Accounts::Sqlite(file) | Accounts::Keyed(file) => Arc::clone(file) as _,
            Accounts::Postgres(database) => Arc::clone(database) as _,
            Accounts::PostgresXa(database) => Arc::clone(database) as _,
            Accounts::MariaDb(database) => Arc::clone(database) as _,
            Accounts::MariaDbXa(database) => Arc::clone(database) as _,
        }
    }

    /// One account; none if there is no such account.
    ///
    /// # Errors
    /// [`CallError::Failed`] with the database's error.
    pub async fn account(&self, id: String) -> Result<Option<AccountView>, CallError> {
        let found = self.page(id, true, 1).await?;
        Ok(found.into_iter().next())
    }

    /// At most `limit` accounts behind `after`, in the order of their names.
    ///
    /// # Errors
    /// [`CallError::Failed`] with the database's error.
    pub async fn accounts(&self, after: String, limit: u32) -> Result<Vec<AccountView>, CallError> {
        self.page(after, false, limit).await
    }

    async fn page(
        &self,
        id: String,
        itself: bool,
        limit: u32,
    ) -> Result<Vec<AccountView>, CallError> {
        let from = if itself { "=" } else { ">" };
        let sql = format!("SELECT id, balance, reserved FROM account WHERE id {from} $1 ");
        let sql = sql + "ORDER BY id LIMIT ";
        read!(
            &self.accounts,
            |sqlite, keyed| {
                let mut statement = sqlite.prepare_cached(&(sql + "?2"))?;
                let rows = statement.query_map(params![id, limit], view)?;
                rows.map(|account| with_version(sqlite, keyed, account?)).collect()
            },
            |postgres| {
                let rows = postgres.rows(&(sql + "$2"), &[&id, &i64::from(limit)]).await?;
                rows.iter().map(view_of_postgres).collect::<Result<Vec<_>, tokio_postgres::Error>>()
            },
            |mariadb| {
                let sql = sql.replace("$1", "?") + "?";
                let rows: Vec<(String, i64, i64)> = mariadb.exec(sql, (id, limit)).await?;
                let view = |(id, balance, reserved)| AccountView::new(id, balance, reserved);
                Ok::<_, mysql_async::Error>(rows.into_iter().map(view).collect())
            }
        )
    }

    /// The bank as a whole.
    ///
    /// # Errors
    /// [`CallError::Failed`] with the database's error.
    pub async fn total(&self) -> Result<Total, CallError> {
        let total = read!(
            &self.accounts,
            |sqlite, _keyed| read_total(sqlite),
            |postgres| {
                let mut total = Total::default();
                for row in postgres.rows(TOTAL_POSTGRES, &[]).await? {
                    let (balance, reserved) = (row.try_get(1)?, row.try_get(2)?);
                    total.put(row.try_get(0)?, balance, reserved, row.try_get(3)?);
                }
                Ok::<_, tokio_postgres::Error>(total)
            },
            |mariadb| {
                let mut total = Total::default();
                let rows: Vec<(i64, i64, i64, i64)> = mariadb.query(TOTAL_MARIADB).await?;
                for (state, balance, reserved, count) in rows {
                    total.put(state, balance, reserved, count);
                }
                Ok::<_, mysql_async::Error>(total)
            }
        )?;
        let prepared = match &self.accounts {
            Accounts::PostgresXa(_) | Accounts::MariaDbXa(_) => self.prepared().await?,
            _ => total.prepared,
        };
        let counters = self.counters();
        Ok(Total {
            in_doubt: prepared,
            prepared,
            duplicates_absorbed: counters.repeated,
            contradictions: counters.refused,
            already_committed: counters.already_committed,
            ..total
        })
    }

    /// What the database has prepared, of which there are no rows.
    async fn prepared(&self) -> Result<u64, CallError> {
        Ok(self.participant.in_doubt().await?.len() as u64)
    }

    /// A page of guard rows in the order of transaction and branch, behind the pair `after`.
    ///
    /// # Errors
    /// [`CallError::Failed`] with the database's error.
    pub async fn guard_entries(
        &self,
        after: Option<(String, String)>,
        rows_max: u32,
    ) -> Result<Vec<GuardEntry>, CallError> {
        match &self.accounts {
            Accounts::Sqlite(file) | Accounts::Keyed(file) => {
                file.guard_entries(after, rows_max).await
            }
            Accounts::Postgres(database) => database.guard_entries(after, rows_max).await,
            Accounts::PostgresXa(database) => database.guard_entries(after, rows_max).await,
            Accounts::MariaDb(database) => database.guard_entries(after, rows_max).await,
            Accounts::MariaDbXa(database) => database.guard_entries(after, rows_max).await,
        }
    }

    /// The next lines of the journal after a number; none if no journal is kept.
    pub(crate) async fn journal_lines(&self, after: i64) -> Result<Vec<JournalLine>, CallError> {
        match &self.accounts {
            Accounts::Sqlite(file) | Accounts::Keyed(file) => {
                file.read(move |database| journal::lines(database, after)).await
            }
            Accounts::Postgres(_)
            | Accounts::PostgresXa(_)
            | Accounts::MariaDb(_)
            | Accounts::MariaDbXa(_) => Ok(Vec::new()),
        }
    }

    /// What the participant has done since its process started.
    #[must_use]
    pub fn counters(&self) -> Counters {
        match &self.accounts {
            Accounts::Sqlite(file) | Accounts::Keyed(file) => file.counters(),
            Accounts::Postgres(database) => database.counters(),
            Accounts::PostgresXa(database) => database.counters(),
            Accounts::MariaDb(database) => database.counters(),
            Accounts::MariaDbXa(database) => database.counters(),
        }
    }
}

fn view(row: &Row<'_>) -> rusqlite::Result<AccountView> {
    Ok(AccountView::new(row.get(0)?, row.get(1)?, row.get(2)?))
}

fn view_of_postgres(row: &tokio_postgres::Row) -> Result<AccountView, tokio_postgres::Error> {
    Ok(AccountView::new(row.try_get(0)?, row.try_get(1)?, row.try_get(2)?))
}

fn with_version(
    database: &Connection,
    keyed: bool,
    account: AccountView,
) -> rusqlite::Result<AccountView> {
    let version = || ResourceParticipant::version(database, &account.id);
    let version = keyed.then(version).transpose()?;
    Ok(AccountView { version, ..account })
}

fn read_total(database: &Connection) -> rusqlite::Result<Total> {
    let guard = SqliteParticipant::count_guard_rows(database)?;
    let sql = "SELECT coalesce(sum(balance), 0), coalesce(sum(reserved), 0), count(*) FROM account";
    let sums = database
        .query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?, u64::from(row.get::<_, u32>(2)?))));
    let (balance, reserved, accounts) = sums.optional()?.unwrap_or_default();
    Ok(Total {
        balance,
        reserved,
        accounts,
        prepared: guard.prepared,
        committed: guard.committed,
        rolled_back: guard.rolled_back,
        voted_no: guard.voted_no,
        executed: guard.executed,
        compensated: guard.compensated,
        ..Total::default()
    })
}

impl Total {
    /// Puts in one line of the statement: the accounts for the number 0, else a state's count.
    fn put(&mut self, state: i64, balance: i64, reserved: i64, count: i64) {
        let count = u64::try_from(count).unwrap_or(0);
        let state = u8::try_from(state).unwrap_or(u8::MAX);
        match GuardState::from_number(state) {
            None if state == 0 => {
                (self.balance, self.reserved, self.accounts) = (balance, reserved, count);
            }
            None | Some(GuardState::ReadOnly) => {}
            Some(GuardState::Prepared) => self.prepared = count,
            Some(GuardState::Committed) => self.committed = count,
            Some(GuardState::RolledBack) => self.rolled_back = count,
            Some(GuardState::VotedNo) => self.voted_no = count,
            Some(GuardState::Executed) => self.executed = count,
            Some(GuardState::Compensated) => self.compensated = count,
        }
    }
}
