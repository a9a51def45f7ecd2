//! Measures one participant: prepare and commit of one-row transactions, straight into the guard
//! and over HTTP on loopback, by the number of callers at a time.
//!
//! `cargo run --release -p unanimity-sdk --example throughput`

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use unanimity_sdk::contract::{ATTEMPT_HEADER, BRANCH_HEADER, Response, TRANSACTION_HEADER, judge};
use unanimity_sdk::rusqlite::{Connection, params};
use unanimity_sdk::{
    Answer, BranchContext, Operation, Participant, Request, ServiceError, ServiceResult,
    SqliteParticipant, SqliteService, TransactionId, Vote, router,
};

struct OneRow;

impl SqliteService for OneRow {
    fn migrate(&self, db: &Connection) -> ServiceResult<()> {
        Ok(db
            .execute_batch("CREATE TABLE IF NOT EXISTS work (id TEXT PRIMARY KEY, done INTEGER)")?)
    }

    fn prepare(&self, db: &Connection, at: &BranchContext, _: &[u8]) -> ServiceResult<Vote> {
        let mut insert = db.prepare_cached("INSERT INTO work VALUES (?1, 0)")?;
        insert.execute([at.transaction.as_str()])?;
        Ok(Vote::Yes)
    }

    fn commit(&self, db: &Connection, at: &BranchContext, _: &[u8]) -> ServiceResult<()> {
        let mut update = db.prepare_cached("UPDATE work SET done = 1 WHERE id = ?1")?;
        update.execute(params![at.transaction.as_str()])?;
        Ok(())
    }

    fn rollback(&self, _: &Connection, _: &BranchContext, _: &[u8]) -> ServiceResult<()> {
        Ok(())
    }
}

type Http = Client<HttpConnector, Full<Bytes>>;

/// One call, straight or over HTTP.
async fn call(
    participant: &SqliteParticipant,
    http: Option<(&Http, &str)>,
    request: Request,
) -> ServiceResult<()> {
    let Some((http, url)) = http else {
        participant.call(request).await?;
        return Ok(());
    };
    let operation = request.operation;
    let sent = http::Request::post(format!("{url}/{}", operation.as_str()))
        .header(TRANSACTION_HEADER, request.transaction.as_str())
        .header(BRANCH_HEADER, &*request.branch)
        .header(ATTEMPT_HEADER, request.attempt)
        .body(Full::new(request.payload))?;
    let response = http.request(sent).await?;
    let (head, body) = response.into_parts();
    let body = body.collect().await?.to_bytes();
    match judge(operation, Response::new(head.status, &head.headers, &body)) {
        Answer::Yes(_) | Answer::Acknowledged => Ok(()),
        other => Err(format!("answered {other:?}").into()),
    }
}

/// Prepares and commits for two seconds with `callers` at a time.
async fn measure(
    participant: &Arc<SqliteParticipant>,
    url: Option<&str>,
    callers: usize,
) -> ServiceResult<()> {
    let (begun, groups) = (Instant::now(), participant.counters().groups);
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let until = begun + Duration::from_secs(2);
    let client: Http = Client::builder(TokioExecutor::new()).build_http();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..callers {
        let participant = Arc::clone(participant);
        let (client, url) = (client.clone(), url.map(str::to_owned));
        tasks.spawn(async move {
            let mut calls = 0_u64;
            while Instant::now() < until {
                let id = format!("transaction-{}", NEXT.fetch_add(1, Ordering::Relaxed));
                for operation in [Operation::Prepare, Operation::Commit] {
                    let transaction = TransactionId::new(&id)?;
                    let (branch, attempt, payload) = ("b".into(), 1, Bytes::new());
                    let request = Request { transaction, branch, operation, attempt, payload };
                    call(&participant, url.as_deref().map(|url| (&client, url)), request).await?;
                    calls += 1;
                }
            }
            Ok::<u64, ServiceError>(calls)
        });
    }
    let mut calls = 0;
    while let Some(done) = tasks.join_next().await {
        calls += done??;
    }
    let seconds = begun.elapsed().as_secs_f64();
    let groups = participant.counters().groups - groups;
    let carriage = if url.is_some() { "HTTP" } else { "direct" };
    println!(
        "{carriage:>6} {callers:>5} callers: {:>8.0} calls/s, {:>6.1} calls per local commit, \
         {:.2} ms a call",
        calls as f64 / seconds,
        calls as f64 / groups as f64,
        seconds * 1_000.0 * callers as f64 / calls as f64,
    );
    Ok(())
}

#[tokio::main]
async fn main() -> ServiceResult<()> {
    let folder = std::env::temp_dir().join(format!("unanimity-throughput-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let participant = Arc::new(SqliteParticipant::open(folder.join("participant.db"), OneRow)?);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    let app = router(Arc::clone(&participant) as _);
    tokio::spawn(async move { axum::serve(listener, app).await });
    for callers in [1, 16, 64, 256, 1_024] {
        measure(&participant, None, callers).await?;
    }
    for callers in [1, 16, 64, 256] {
        measure(&participant, Some(&url), callers).await?;
    }
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}
