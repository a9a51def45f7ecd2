//! How long one transaction takes while nothing else runs: two branches whose participants answer
//! at once, in one process, with journal and history in a folder, each begun a while after the one
//! before was told. Two appends and the hand-overs around them.
//!
//! `cargo run --release -p unanimity --example one_at_a_time -- [TRANSACTIONS] [PAUSE_US] [WORD]`;
//! with a fourth argument, without a disk.

use std::future::ready;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use unanimity::core::{Answer, BranchPlan, Call, Kind, Operation, Options, Plan};
use unanimity::{
    BeginRequest, CallFuture, ManagerConfig, Storage, TransactionManager, Transport, Wait,
};

fn answer(operation: Operation) -> Answer {
    match operation {
        Operation::Prepare | Operation::Execute => Answer::Yes(None),
        _ => Answer::Acknowledged, // Phase two.
    }
}

/// Participants that do nothing, at once.
struct AtOnce;

impl Transport for AtOnce {
    fn call(&self, call: Call) -> CallFuture<'_> {
        Box::pin(ready(answer(call.operation)))
    }

    fn answer_at_once(&self, call: &Call) -> Option<Answer> {
        Some(answer(call.operation))
    }

    fn check(&self, _: &str) -> Result<(), (&'static str, String)> {
        Ok(())
    }
}

fn plan() -> Plan {
    let branch = |name: &str| BranchPlan::new(name, "in-process", Kind::TwoPhase);
    Plan {
        open: false,
        branches: vec![branch("debit"), branch("credit")],
        options: Options::default(),
    }
}

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

async fn measure(storage: Storage, transactions: usize, pause: Duration) -> Outcome<Vec<u128>> {
    let config = ManagerConfig { storage, shards: 1, ..ManagerConfig::default() };
    let manager = TransactionManager::start(config, Arc::new(AtOnce))?;
    let mut others = vec![0_u64; 512 << 10];
    let mut taken = Vec::new();
    for _ in 0..transactions {
        std::thread::sleep(pause);
        others.iter_mut().for_each(|word| *word += 1);
        let start = Instant::now();
        manager.begin_and_tell(BeginRequest::new(plan(), Wait::Outcome)).await?;
        taken.push(start.elapsed().as_micros());
    }
    manager.stop(Duration::from_secs(20)).await;
    Ok(taken)
}

fn main() -> Outcome<()> {
    let argument = |at: usize, default: u64| {
        std::env::args().nth(at).and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let (transactions, pause) = (argument(1, 3_000), Duration::from_micros(argument(2, 300)));
    let folder = PathBuf::from(format!("target/one-at-a-time-{}", std::process::id()));
    let storage = match std::env::args().nth(3) {
        Some(_) => Storage::Memory,
        None => Storage::Folder(folder.clone()),
    };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut taken = runtime.block_on(measure(storage, transactions as usize, pause))?;
    taken.sort_unstable();
    let at = |share: f64| taken.get(((taken.len() as f64 - 1.0) * share) as usize);
    if let (Some(p50), Some(p90), Some(p99)) = (at(0.5), at(0.9), at(0.99)) {
        println!("p50 {p50} us, p90 {p90} us, p99 {p99} us");
    }
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    Ok(())
}
