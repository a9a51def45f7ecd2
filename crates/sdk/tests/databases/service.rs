//! A service that writes down every piece of work it does, in either make of database, and does
//! what its payload says.

use std::sync::Arc;

use tokio::sync::Barrier;
use unanimity_databases::Make;
use unanimity_sdk::mariadb::mysql_async::Conn;
use unanimity_sdk::mariadb::mysql_async::prelude::Queryable;
use unanimity_sdk::mariadb::{MariaDbParticipant, MariaDbService};
use unanimity_sdk::postgres::{PostgresLocal, PostgresParticipant, PostgresService};
use unanimity_sdk::prune::Prunable;
use unanimity_sdk::sql::{SqlOpenError, SqlOptions};
use unanimity_sdk::xa::mariadb::{MariaDbXaParticipant, MariaDbXaService};
use unanimity_sdk::xa::postgres::{PostgresXaParticipant, PostgresXaService};
use unanimity_sdk::{BranchContext, Busy, Counters, Doubting, GuardEntry, ServiceResult, Vote};

use crate::place::Place;

/// The service. Where two branches have to be in the middle of their work at the same time, they
/// meet at the barrier, on their first attempt only.
#[derive(Clone, Default)]
pub struct Diary {
    pub meet: Option<Arc<Barrier>>,
    /// Called in the middle of all work.
    pub on_work: Option<Arc<dyn Fn() + Send + Sync>>,
}

const CREATE_POSTGRES: &str = "
    CREATE TABLE IF NOT EXISTS diary
        (number bigserial PRIMARY KEY, id text, branch text, what text);
    CREATE TABLE IF NOT EXISTS counter (id integer PRIMARY KEY, n bigint NOT NULL);
    INSERT INTO counter VALUES (1, 0), (2, 0) ON CONFLICT DO NOTHING;";
const CREATE_MARIADB: [&str; 3] = [
    "CREATE TABLE IF NOT EXISTS diary
        (number BIGINT AUTO_INCREMENT PRIMARY KEY, id VARCHAR(128), branch VARCHAR(128),
         what VARCHAR(32))",
    "CREATE TABLE IF NOT EXISTS counter (id INTEGER PRIMARY KEY, n BIGINT NOT NULL)",
    "INSERT IGNORE INTO counter VALUES (1, 0), (2, 0)",
];

fn vote(payload: &[u8]) -> ServiceResult<Vote> {
    match payload {
        b"no" => Ok(Vote::no("said no")),
        b"zero" => Ok(Vote::no("said\0no")),
        b"read_only" => Ok(Vote::ReadOnly),
        b"result" => Ok(Vote::YesWith(serde_json::json!({"seat": 7}))),
        b"error" => Err("said error".into()),
        b"busy" => Err(Busy("seat 7 is held".to_owned()).into()),
        b"panic" => panic!("said panic"),
        _ => Ok(Vote::Yes),
    }
}

/// The counters that a payload such as `add:1,2` names, in that order.
fn counters(payload: &[u8]) -> Vec<i32> {
    let text = String::from_utf8_lossy(payload);
    let Some(list) = text.strip_prefix("add:") else { return Vec::new() };
    list.split(',').map(|word| word.parse().unwrap()).collect()
}

impl Diary {
    async fn rendezvous(&self, branch: &BranchContext) {
        if branch.attempt == 1
            && let Some(barrier) = &self.meet
        {
            // A second try finds nobody to meet, and must not wait for ever.
            let wait = tokio::time::timeout(std::time::Duration::from_secs(2), barrier.wait());
            let _ = wait.await;
        }
    }

    async fn in_postgres(
        &self,
        local: &PostgresLocal,
        branch: &BranchContext,
        payload: &[u8],
    ) -> ServiceResult<()> {
        let what = branch.operation.as_str();
        self.on_work.iter().for_each(|on_work| on_work());
        let sql = "INSERT INTO diary (id, branch, what) VALUES ($1, $2, $3)";
        local.run(sql, &[&branch.transaction.as_str(), &&*branch.branch, &what]).await?;
        for (position, id) in counters(payload).into_iter().enumerate() {
            if position == 1 {
                self.rendezvous(branch).await;
            }
            // Read and written apart, so that what is lost at READ COMMITTED is seen to be lost.
            let row = local.row("SELECT n FROM counter WHERE id = $1 FOR UPDATE", &[&id]).await?;
            let n: i64 = row.ok_or("no counter")?.try_get(0)?;
            local.run("UPDATE counter SET n = $2 WHERE id = $1", &[&id, &(n + 1)]).await?;
        }
        match payload {
            b"swallow" => drop(local.batch_execute("SELECT 1 / 0").await),
            b"end" => local.batch_execute("ROLLBACK").await?,
            b"refused" => local.batch_execute("SELECT 1 / 0").await?,
            _ => {}
        }
        Ok(())
    }

    async fn in_mariadb(
        &self,
        local: &mut Conn,
        branch: &BranchContext,
        payload: &[u8],
    ) -> ServiceResult<()> {
        let what = branch.operation.as_str();
        self.on_work.iter().for_each(|on_work| on_work());
        let sql = "INSERT INTO diary (id, branch, what) VALUES (?, ?, ?)";
        local.exec_drop(sql, (branch.transaction.as_str(), &*branch.branch, what)).await?;
        let mut met = false;
        for (position, id) in counters(payload).into_iter().enumerate() {
            if position == 1 {
                self.rendezvous(branch).await;
            }
            let sql = "SELECT n FROM counter WHERE id = ? FOR UPDATE";
            let row: Result<Option<i64>, _> = local.exec_first(sql, (id,)).await;
            if payload.ends_with(b",2,2") && row.is_err() {
                // Goes on as if nothing were.
                met = true;
                continue;
            }
            let n = row?.ok_or("no counter")?;
            local.exec_drop("UPDATE counter SET n = ? WHERE id = ?", (n + 1, id)).await?;
        }
        if met {
            local.exec_drop("UPDATE counter SET n = n + 100 WHERE id = 1", ()).await?;
        }
        match payload {
            b"swallow" => drop(local.query_drop("SELECT no_such_column").await),
            b"end" => local.query_drop("ROLLBACK").await?,
            b"ddl" => {
                local.query_drop("CREATE TABLE IF NOT EXISTS other (n INTEGER)").await?;
                return Err("after the statement".into());
            }
            b"refused" => local.query_drop("SELECT no_such_column").await?,
            _ => {}
        }
        Ok(())
    }
}

impl PostgresService for Diary {
    async fn migrate(&self, local: &PostgresLocal) -> ServiceResult<()> {
        Ok(local.batch_execute(CREATE_POSTGRES).await?)
    }

    async fn prepare(
        &self,
        local: &PostgresLocal,
        branch: &BranchContext,
        payload: &[u8],
    ) -> ServiceResult<Vote> {
        self.in_postgres(local, branch, payload).await?;
        vote(payload)
    }

    async fn commit(
        &self,
        local: &PostgresLocal,
        branch: &BranchContext,
        payload: &[u8],
    ) -> ServiceResult<()> {
        self.in_postgres(local, branch, payload).await
    }

    async fn rollback(
        &self,
        local: &PostgresLocal,
        branch: &BranchContext,
        payload: &[u8],
    ) -> ServiceResult<()> {
        self.in_postgres(local, branch, payload).await
    }

    async fn execute(
        &self,
        local: &PostgresLocal,
        branch: &BranchContext,
        payload: &[u8],
    ) -> ServiceResult<Vote> {
        self.in_postgres(local, branch, payload).await?;
        vote(payload)
    }

    async fn compensate(
        &self,
        local: &PostgresLocal,
        branch: &BranchContext,
        payload: &[u8],
    ) -> ServiceResult<()> {
        self.in_postgres(local, branch, payload).await
    }
}

impl MariaDbService for Diary {
    async fn migrate(&self, local: &mut Conn) -> ServiceResult<()> {
        for sql in CREATE_MARIADB {
            local.query_drop(sql).await?;
        }
        Ok(())
    }

    async fn prepare(
        &self,
        local: &mut Conn,
        branch: &BranchContext,
        payload: &[u8],
    ) -> ServiceResult<Vote> {
        self.in_mariadb(local, branch, payload).await?;
        vote(payload)
    }

    async fn commit(
        &self,
        local: &mut Conn,
        branch: &BranchContext,
        payload: &[u8],
    ) -> ServiceResult<()> {
        self.in_mariadb(local, branch, payload).await
    }

    async fn rollback(
        &self,
        local: &mut Conn,
        branch: &BranchContext,
        payload: &[u8],
    ) -> ServiceResult<()> {
        self.in_mariadb(local, branch, payload).await
    }

    async fn execute(
        &self,
        local: &mut Conn,
        branch: &BranchContext,
        payload: &[u8],
    ) -> ServiceResult<Vote> {
        self.in_mariadb(local, branch, payload).await?;
        vote(payload)
    }

    async fn compensate(
        &self,
        local: &mut Conn,
        branch: &BranchContext,
        payload: &[u8],
    ) -> ServiceResult<()> {
        self.in_mariadb(local, branch, payload).await
    }
}

impl PostgresXaService for Diary {
    async fn migrate(&self, local: &PostgresLocal) -> ServiceResult<()> {
        PostgresService::migrate(self, local).await
    }

    async fn work(
        &self,
        local: &PostgresLocal,
        branch: &BranchContext,
        payload: &[u8],
    ) -> ServiceResult<Vote> {
        PostgresService::prepare(self, local, branch, payload).await
    }
}

impl MariaDbXaService for Diary {
    async fn migrate(&self, local: &mut Conn) -> ServiceResult<()> {
        MariaDbService::migrate(self, local).await
    }

    async fn work(
        &self,
        local: &mut Conn,
        branch: &BranchContext,
        payload: &[u8],
    ) -> ServiceResult<Vote> {
        MariaDbService::prepare(self, local, branch, payload).await
    }
}

/// The name by which the service's branches are known to the server. Each test has its own: on
/// MariaDB they are the whole server's.
pub fn name(place: &Place) -> String {
    format!("diary {}", place.url)
}

/// The service with branches that the database prepares: what is called, and what forgets.
pub async fn xa(
    place: &Place,
    service: Diary,
    options: SqlOptions,
) -> Result<(Arc<dyn Doubting>, Arc<dyn Prunable>), SqlOpenError> {
    let (url, name) = (&place.url, name(place));
    Ok(match place.make {
        Make::PostgreSql => {
            let opened = PostgresXaParticipant::open(url, &name, service, options).await?;
            let opened = Arc::new(opened);
            (Arc::clone(&opened) as _, opened)
        }
        Make::MariaDb => {
            let opened = MariaDbXaParticipant::open(url, &name, service, options).await?;
            let opened = Arc::new(opened);
            (Arc::clone(&opened) as _, opened)
        }
    })
}

/// The same, to be called only.
pub async fn open_xa(
    place: &Place,
    service: Diary,
    options: SqlOptions,
) -> Result<Arc<dyn Doubting>, SqlOpenError> {
    Ok(xa(place, service, options).await?.0)
}

/// The service behind its guard, in either make.
pub enum Opened {
    Postgres(Arc<PostgresParticipant<Diary>>),
    MariaDb(Arc<MariaDbParticipant<Diary>>),
}

impl Opened {
    pub async fn try_with(
        place: &Place,
        service: Diary,
        options: SqlOptions,
    ) -> Result<Self, SqlOpenError> {
        let url = &place.url;
        Ok(match place.make {
            Make::PostgreSql => {
                let opened = PostgresParticipant::open_with(url, service, options).await?;
                Self::Postgres(Arc::new(opened))
            }
            Make::MariaDb => {
                let opened = MariaDbParticipant::open_with(url, service, options).await?;
                Self::MariaDb(Arc::new(opened))
            }
        })
    }

    pub async fn with(place: &Place, options: SqlOptions) -> Self {
        Self::try_with(place, Diary::default(), options).await.unwrap()
    }

    pub async fn new(place: &Place) -> Self {
        Self::with(place, SqlOptions::default()).await
    }

    pub fn participant(&self) -> Arc<dyn Doubting> {
        match self {
            Self::Postgres(participant) => Arc::clone(participant) as _,
            Self::MariaDb(participant) => Arc::clone(participant) as _,
        }
    }

    pub fn counters(&self) -> Counters {
        match self {
            Self::Postgres(participant) => participant.counters(),
            Self::MariaDb(participant) => participant.counters(),
        }
    }

    pub async fn entries(&self, rows_max: u32) -> Vec<GuardEntry> {
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            let page = match self {
                Self::Postgres(participant) => participant.guard_entries(after, rows_max).await,
                Self::MariaDb(participant) => participant.guard_entries(after, rows_max).await,
            };
            let page = page.unwrap();
            let Some(last) = page.last() else { return all };
            after = Some((last.transaction.to_string(), last.branch.to_string()));
            all.extend(page);
        }
    }

    pub async fn counts(&self) -> unanimity_sdk::GuardCounts {
        match self {
            Self::Postgres(participant) => participant.guard_counts().await.unwrap(),
            Self::MariaDb(participant) => participant.guard_counts().await.unwrap(),
        }
    }
}
