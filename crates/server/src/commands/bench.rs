//! `unanimity bench`: how many transactions a second this machine commits over HTTP, beside what
//! bare round trips through the same client and server libraries reach in the same run.
//!
//! Everything runs on this machine as processes of their own: this load generator, a coordinator
//! with its journal and history on disk, and two participants that vote yes and keep nothing. The
//! load is a closed loop: each of N initiators begins its next transaction when it has the outcome
//! of the last. A transaction with two branches is five round trips (one from the initiator, two
//! prepares, two commits), so the ceiling is a fifth of the bare round trips.
//!
//! What transfers cost that get in each other's way is measured in `contention`.

mod contention;
mod databases;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use axum::routing::post;
use serde_json::{Value, json};
use unanimity_sdk::api::{BranchRequest, Json, Outcome, TransactionRequest};
use unanimity_sdk::{
    BranchContext, Client, ClientOptions, MemoryParticipant, MemoryService, ServiceResult, Vote,
};

use super::Ended;
use crate::demo::fleet::Process;
use crate::demo::percentile_ms;
use crate::draw::{FAINT, HEADING, paint};
use crate::inbound::{self, InboundLimits};

/// Round trips in one transaction of two branches.
const ROUND_TRIPS: f64 = 5.0;

/// What `bench` takes.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct BenchArguments {
    /// How long each measurement runs, in seconds.
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// How many initiators at once, one measurement each: 1, 16 and 128 if left out. With
    /// `--contention` or `--databases` only the first counts, and it is 64 if left out.
    #[arg(long, value_delimiter = ',')]
    concurrency: Vec<usize>,
    /// Measure transfers that get in each other's way instead: by locking accounts (the older wait,
    /// or the younger), optimistically, and by reservation.
    #[arg(long)]
    contention: bool,
    /// Measure transfers between two PostgreSQL databases instead: plain and not atomic, and in the
    /// ways that make them so.
    #[arg(long, conflicts_with = "contention")]
    databases: bool,
    /// How many accounts each bank has, with `--contention`. One in a hundred is hot.
    #[arg(long, default_value_t = 1_000)]
    accounts: u32,
    /// How many runs for each line, of which the median counts, with `--contention`.
    #[arg(long, default_value_t = 1)]
    rounds: u32,
    /// The shares in percent of transfers between hot accounts, with `--contention`: one run each.
    #[arg(long, value_delimiter = ',', default_value = "0,20,50,80,95")]
    hot_percent: Vec<u64>,
    /// Answer in JSON.
    #[arg(long)]
    json: bool,
}

/// How many initiators unless the command line says otherwise.
const INITIATORS: [usize; 3] = [1, 16, 128];

/// What one closed loop measured.
struct Measured {
    per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    failures: usize,
}

/// Runs the bench.
pub(crate) async fn bench(arguments: BenchArguments) -> Ended {
    let folder = std::env::temp_dir().join(format!("unanimity-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let ended = if arguments.databases {
        databases::databases(&arguments, &folder).await
    } else if arguments.contention {
        contention::contention(&arguments, &folder).await
    } else {
        measure(&arguments, &folder).await
    };
    // dropped: a folder that is gone already needs no removing.
    let _ = std::fs::remove_dir_all(&folder);
    ended
}

async fn measure(arguments: &BenchArguments, folder: &std::path::Path) -> Ended {
    let program = std::env::current_exe()?;
    let text = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let data = folder.join("data").display().to_string();
    let serve = text(&["serve", "--data-folder", &data, "--log-level", "warn"]);
    let mut coordinator = Process::new("coordinator", &program, folder, serve);
    let idle = || text(&["bench-participant"]);
    let mut first = Process::new("participant-1", &program, folder, idle());
    let mut second = Process::new("participant-2", &program, folder, idle());
    for process in [&mut coordinator, &mut first, &mut second] {
        process.start().await?;
    }
    let idle_kib = resident_kib(&coordinator);
    if !arguments.json {
        anstream::println!(
            "{}",
            paint(HEADING, "HTTP, two participants, journal and history on disk")
        );
        anstream::println!(
            "{:>11} {:>13} {:>9} {:>9} {:>18} {:>9}",
            "initiators",
            "committed/s",
            "p50 ms",
            "p99 ms",
            "ceiling (trips/5)",
            "ratio"
        );
    }
    let mut rows = Vec::new();
    let given = &arguments.concurrency;
    for concurrency in if given.is_empty() { &INITIATORS[..] } else { given } {
        let row = one_row(arguments, *concurrency, &coordinator, [&first, &second]).await?;
        if !arguments.json {
            anstream::println!(
                "{:>11} {:>13.0} {:>9.2} {:>9.2} {:>18.0} {:>8.0}%",
                concurrency,
                row["committed_per_second"].as_f64().unwrap_or_default(),
                row["p50_ms"].as_f64().unwrap_or_default(),
                row["p99_ms"].as_f64().unwrap_or_default(),
                row["ceiling_per_second"].as_f64().unwrap_or_default(),
                row["ratio"].as_f64().unwrap_or_default() * 100.0
            );
        }
        rows.push(row);
    }
    let loaded_kib = resident_kib(&coordinator);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let answer = json!({
        "rows": rows, "cores": cores, "seconds": arguments.seconds,
        "coordinator_idle_kib": idle_kib, "coordinator_loaded_kib": loaded_kib,
        "version": env!("CARGO_PKG_VERSION"),
    });
    if arguments.json {
        anstream::println!("{}", serde_json::to_string_pretty(&answer)?);
    } else {
        let note = format!(
            "{cores} cores for all processes; the coordinator's memory: {:.1} MB idle, {:.1} MB \
             after \
             the load; every commit is on disk before it is told",
            idle_kib as f64 / 1024.0,
            loaded_kib as f64 / 1024.0
        );
        anstream::println!("{}", paint(FAINT, note));
    }
    for process in [&mut coordinator, &mut first, &mut second] {
        process.stop().await?;
    }
    let failures = rows.iter().any(|row| row["failures"] != 0);
    Ok(if failures { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn one_row(
    arguments: &BenchArguments,
    concurrency: usize,
    coordinator: &Process,
    participants: [&Process; 2],
) -> anyhow::Result<Value> {
    let seconds = arguments.seconds;
    let options = ClientOptions { requests_max: concurrency.max(1), ..ClientOptions::default() };
    let request = Arc::new(transfer(participants));
    let echo = Client::with_options(&participants[0].url(), None, options.clone())?;
    let bare = {
        let request = Arc::clone(&request);
        closed_loop(concurrency, seconds, move || {
            let (echo, request) = (echo.clone(), Arc::clone(&request));
            async move { echo.post_json::<Value>("/echo", &*request).await.is_ok() }
        })
        .await?
    };
    let client = Client::with_options(&coordinator.url(), None, options)?;
    let measured = closed_loop(concurrency, seconds, move || {
        let (client, request) = (client.clone(), Arc::clone(&request));
        async move {
            let begun = client.begin(&request).await;
            begun.is_ok_and(|begun| begun.outcome == Some(Outcome::Commit))
        }
    })
    .await?;
    let ceiling = bare.per_second / ROUND_TRIPS;
    Ok(json!({
        "initiators": concurrency,
        "committed_per_second": measured.per_second,
        "p50_ms": measured.p50_ms,
        "p99_ms": measured.p99_ms,
        "failures": measured.failures + bare.failures,
        "round_trips_per_second": bare.per_second,
        "round_trip_p50_ms": bare.p50_ms,
        "ceiling_per_second": ceiling,
        "ratio": measured.per_second / ceiling,
    }))
}

fn transfer(participants: [&Process; 2]) -> TransactionRequest {
    let branches =
        ["debit", "credit"].iter().zip(participants).map(|(name, participant)| BranchRequest {
            name: (*name).to_owned(),
            participant: format!("{}/transactions", participant.url()),
            payload: Json::from_value(&json!({ "account": "A-17", "amount": 500 }))
                .unwrap_or_default(),
            ..BranchRequest::default()
        });
    TransactionRequest { branches: branches.collect(), ..TransactionRequest::default() }
}

/// So many workers, each beginning its next turn when the last has ended, for so many seconds.
async fn closed_loop<F, T>(concurrency: usize, seconds: u64, turn: F) -> anyhow::Result<Measured>
where
    F: Fn() -> T + Clone + Send + 'static,
    T: Future<Output = bool> + Send,
{
    let failures = Arc::new(AtomicUsize::new(0));
    let started = Instant::now();
    let warm = started + Duration::from_millis(500);
    let end = warm + Duration::from_secs(seconds);
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..concurrency {
        let (turn, failures) = (turn.clone(), Arc::clone(&failures));
        workers.spawn(async move {
            let mut latencies_us = Vec::new();
            loop {
                let begun = Instant::now();
                if begun >= end {
                    return latencies_us;
                }
                if !turn().await {
                    failures.fetch_add(1, Ordering::Relaxed);
                } else if begun >= warm {
                    latencies_us.push(u64::try_from(begun.elapsed().as_micros()).unwrap_or(0));
                }
            }
        });
    }
    let mut latencies_us: Vec<u64> = Vec::new();
    while let Some(worker) = workers.join_next().await {
        latencies_us.extend(worker.context("a worker of the bench")?);
    }
    latencies_us.sort_unstable();
    Ok(Measured {
        per_second: latencies_us.len() as f64 / seconds as f64,
        p50_ms: percentile_ms(&latencies_us, 50),
        p99_ms: percentile_ms(&latencies_us, 99),
        failures: failures.load(Ordering::Relaxed),
    })
}

/// The resident memory of a process, in KiB; 0 where the system does not say.
fn resident_kib(process: &Process) -> u64 {
    let status = process.id().map(|id| std::fs::read_to_string(format!("/proc/{id}/status")));
    let status = status.and_then(Result::ok).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().split(' ').next()?.parse().ok()).unwrap_or(0)
}

/// A service that agrees to everything and keeps nothing but the guard.
struct Agreeable;

impl MemoryService for Agreeable {
    fn prepare(&self, _branch: &BranchContext, _payload: &[u8]) -> ServiceResult<Vote> {
        Ok(Vote::Yes)
    }

    fn commit(&self, _branch: &BranchContext, _payload: &[u8]) -> ServiceResult<()> {
        Ok(())
    }

    fn rollback(&self, _branch: &BranchContext, _payload: &[u8]) -> ServiceResult<()> {
        Ok(())
    }
}

/// What `bench-participant` takes.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ParticipantArguments {
    /// Where to listen.
    #[arg(long)]
    listen: std::net::SocketAddr,
}

/// The participant of the bench, and the echo that the ceiling is measured against.
pub(crate) async fn participant(arguments: ParticipantArguments) -> Ended {
    let listener = tokio::net::TcpListener::bind(arguments.listen).await?;
    anstream::println!("listening on http://{}", listener.local_addr()?);
    let participant = Arc::new(MemoryParticipant::with_settled_max(Agreeable, 10_000));
    let router = axum::Router::new()
        .route("/echo", post(|body: axum::body::Bytes| async { body }))
        .nest("/transactions", unanimity_sdk::router(participant));
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let shutdown = async move { terminate.recv().await.unwrap_or(()) };
    inbound::serve(listener, router, InboundLimits::default(), shutdown).await?;
    Ok(ExitCode::SUCCESS)
}
