//! How fast a start takes in what was live: a folder with so many transactions that are decided and
//! not acknowledged by one participant, which is gone; made at the first run, and only read from
//! then on. For profiling: `perf record -g` of the second run shows the start and nothing else. The
//! bench of the program (scenario *growth*) measures the same.
//!
//! `cargo run --release -p unanimity --example recovery_speed -- FOLDER [LIVE] [ENDED] [SHARDS]`

use std::future::ready;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use unanimity::core::{Answer, BranchPlan, Call, Kind, Operation, Options, Plan, RetryPolicy};
use unanimity::{
    BeginRequest, CallFuture, ManagerConfig, Storage, TransactionManager, Transport, Wait,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// A participant that prepares and is never reached again.
const GONE: &str = "in-process:gone";
/// Longer than anybody looks.
const RETRY_DELAY_MS: u64 = 24 * 3_600 * 1_000;

/// Participants that agree at once, but for the one that is gone.
struct AtOnce;

fn answer(call: &Call) -> Answer {
    match call.operation {
        Operation::Prepare | Operation::Execute => Answer::Yes(None),
        Operation::Commit if &*call.plan.participant == GONE => Answer::Unsent("gone".into()),
        _ => Answer::Acknowledged, // Phase two.
    }
}

impl Transport for AtOnce {
    fn call(&self, call: Call) -> CallFuture<'_> {
        Box::pin(ready(answer(&call)))
    }

    fn answer_at_once(&self, call: &Call) -> Option<Answer> {
        Some(answer(call))
    }

    fn check(&self, _: &str) -> Result<(), (&'static str, String)> {
        Ok(())
    }
}

/// A transfer of which the second participant is this one.
fn plan(second: &str) -> Plan {
    let branch = |name: &str, participant: &str| BranchPlan {
        payload: Arc::from(br#"{"account":"A-17","amount":500}"#.as_slice()),
        ..BranchPlan::new(name, participant, Kind::TwoPhase)
    };
    let branches = vec![branch("debit", "in-process:a"), branch("credit", second)];
    let (delay_ms, delay_max_ms) = (RETRY_DELAY_MS, RETRY_DELAY_MS);
    let retry = RetryPolicy { delay_ms, delay_max_ms, ..RetryPolicy::default() };
    Plan { open: false, branches, options: Options { retry, ..Options::default() } }
}

async fn fill(manager: &TransactionManager, second: &'static str, count: u64) -> Result<(), Error> {
    let next = Arc::new(AtomicU64::new(0));
    let mut tasks = Vec::new();
    for _ in 0..256 {
        let (manager, next) = (manager.clone(), Arc::clone(&next));
        tasks.push(tokio::spawn(async move {
            while next.fetch_add(1, Ordering::Relaxed) < count {
                manager.begin(BeginRequest::new(plan(second), Wait::Outcome)).await?;
            }
            Ok::<_, Error>(())
        }));
    }
    for task in tasks {
        task.await??;
    }
    Ok(())
}

/// Starts, and tells how long that took, and how long until a new transaction had its outcome.
async fn start(config: &ManagerConfig) -> Result<(TransactionManager, f64, f64), Error> {
    let started = Instant::now();
    let manager = TransactionManager::start(config.clone(), Arc::new(AtOnce))?;
    let read = started.elapsed().as_secs_f64();
    manager.begin(BeginRequest::new(plan("in-process:b"), Wait::Outcome)).await?;
    Ok((manager, read * 1_000.0, started.elapsed().as_secs_f64() * 1_000.0))
}

fn main() -> Result<(), Error> {
    let argument = |at: usize, default: u64| {
        std::env::args().nth(at).and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let folder = PathBuf::from(std::env::args().nth(1).ok_or("which folder?")?);
    let (live, ended, shards) = (argument(2, 1_000_000), argument(3, 0), argument(4, 1));
    let new = !folder.join("journal-0.log").exists();
    let config = ManagerConfig {
        storage: Storage::Folder(folder),
        shards: shards as u16,
        live_transactions_max: 10_000_000,
        queue_delay_target_ms: 0,
        ..ManagerConfig::default()
    };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let (manager, read, ready) = start(&config).await?;
        if new {
            fill(&manager, GONE, live).await?;
            fill(&manager, "in-process:b", ended).await?;
        } else {
            println!("read {read:.0} ms, ready {ready:.0} ms");
        }
        // As a crash does, but for what was on its way to the disk: what is live stays so.
        manager.stop(Duration::ZERO).await;
        Ok(())
    })
}
