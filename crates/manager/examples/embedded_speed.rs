//! How fast the manager is by itself: transactions of two branches whose participants answer at
//! once, in one process, with journal and history in a folder. For profiling; the bench of the
//! program compares the same with its ceilings.
//!
//! `cargo run --release -p unanimity --example embedded_speed -- [CONCURRENCY] [SECONDS] [SHARDS]
//! [disk|memory] [one|own|several|each]`: the journal in a folder or nowhere, and the shards on one
//! thread with those who begin, on threads of their own, among them on two, or each on a thread of
//! its own with a share of them.

use std::collections::BTreeMap;
use std::future::ready;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use unanimity::core::{Answer, BranchPlan, Call, Kind, Operation, Options, Plan};
use unanimity::{
    BeginError, BeginRequest, CallFuture, ManagerConfig, Storage, TransactionManager, Transport,
    Wait,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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

/// The processor time of each kind of thread so far, by its name, in seconds.
fn cpu_seconds() -> BTreeMap<String, f64> {
    let mut by_name = BTreeMap::new();
    for task in std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        let Some((name, rest)) = stat.rsplit_once(')') else { continue };
        let name = name.split_once('(').map_or("", |(_, name)| name).to_owned();
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok());
        let ticks = ticks(11).unwrap_or(0.0) + ticks(12).unwrap_or(0.0);
        *by_name.entry(name).or_default() += ticks / 100.0;
    }
    by_name
}

/// The half, 99 % and 99.9 % took at most so long.
fn latency(mut taken_us: Vec<u32>) -> [u32; 3] {
    taken_us.sort_unstable();
    let share = |part: f64| {
        let at = (taken_us.len() as f64 * part) as usize;
        taken_us.get(at).copied().unwrap_or(0)
    };
    [0.5, 0.99, 0.999].map(share)
}

/// Begins one transaction after the other; how long each took.
async fn initiate(
    manager: TransactionManager,
    committed: Arc<AtomicU64>,
    end: Instant,
) -> Result<Vec<u32>, BeginError> {
    let (mut taken_us, mut asked_at) = (Vec::new(), Instant::now());
    while asked_at < end {
        let request = BeginRequest::new(plan(), Wait::Outcome);
        let begun = manager.begin_and_tell(request).await?;
        let now = Instant::now();
        if begun.committed() {
            committed.fetch_add(1, Ordering::Relaxed);
            taken_us.push((now - asked_at).as_micros() as u32);
        }
        asked_at = now;
    }
    Ok(taken_us)
}

/// Runtimes of one thread each, which drive them until the process ends.
fn a_thread_each(count: u64) -> std::io::Result<Vec<Handle>> {
    let started = (0..count).map(|_| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let thread = std::thread::Builder::new().name("each".to_owned());
        thread.spawn(move || runtime.block_on(std::future::pending::<()>()))?;
        Ok(handle)
    });
    started.collect()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let argument = |at: usize, default: u64| {
        std::env::args().nth(at).and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let (concurrency, seconds, shards) = (argument(1, 1_024), argument(2, 5), argument(3, 1));
    let says = |at: usize, word: &str| std::env::args().nth(at).is_some_and(|text| text == word);
    let (memory, own) = (says(4, "memory"), says(5, "own"));
    let folder = PathBuf::from(format!("target/embedded-speed-{}", std::process::id()));
    let apart = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(shards as usize)
        .thread_name("shard")
        .enable_all()
        .build()?;
    let runtime = if says(5, "several") {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?
    } else {
        tokio::runtime::Builder::new_current_thread().enable_all().build()?
    };
    let each = a_thread_each(if says(5, "each") { shards } else { 0 })?;
    let committed = Arc::new(AtomicU64::new(0));
    let (rate, cpu, [half, most, nearly_all]) = runtime
        .block_on(async {
            let storage = if memory { Storage::Memory } else { Storage::Folder(folder.clone()) };
            let config = ManagerConfig {
                storage,
                shards: shards as u16,
                runtimes: each.clone(),
                owns_runtime: true,
                queue_delay_target_ms: 0, // A profiler may make it slow; nothing is refused.
                ..ManagerConfig::default()
            };
            let manager = {
                let _within = own.then(|| apart.enter());
                TransactionManager::start(config, Arc::new(AtOnce))?
            };
            let end = Instant::now() + Duration::from_secs(seconds);
            let (start, cpu) = (Instant::now(), cpu_seconds());
            let initiator = |number: u64| {
                let here = Handle::current();
                let runtime = each.get((number % shards) as usize).unwrap_or(&here);
                runtime.spawn(initiate(manager.clone(), Arc::clone(&committed), end))
            };
            let tasks: Vec<_> = (0..concurrency).map(initiator).collect();
            let mut taken_us = Vec::new();
            for task in tasks {
                taken_us.extend(task.await??);
            }
            let taken = start.elapsed().as_secs_f64();
            let count = committed.load(Ordering::Relaxed) as f64;
            let of_each = |(name, seconds): (String, f64)| {
                let before = cpu.get(&name).copied().unwrap_or(0.0);
                (name, (seconds - before) * 1e6 / count)
            };
            let cpu: BTreeMap<String, f64> = cpu_seconds().into_iter().map(of_each).collect();
            manager.stop(Duration::from_secs(20)).await;
            let latency = latency(taken_us);
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>((count / taken, cpu, latency))
        })
        .map_err(|error| error.to_string())?;
    let all: f64 = cpu.values().sum();
    println!("{rate:.0} committed/s, {all:.2} CPU us each, {shards} shards, {concurrency} at once");
    println!("{half} us p50, {most} us p99, {nearly_all} us p99.9");
    for (name, us) in cpu.iter().filter(|(_, us)| **us >= 0.05) {
        println!("{us:>8.2} us {name}");
    }
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    Ok(())
}
