//! The scenario *growth*: what a transaction costs beside ten thousand, a hundred thousand and a
//! million others that are live (decided, and not acknowledged by a participant that is down), how
//! much memory each of those takes, how fast they are recovered, and what a transaction costs with
//! a million in the history. All within one process each, as in `embedded`.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use unanimity::core::Plan;
use unanimity::{BeginRequest, Filter, ManagerConfig, Storage, TransactionManager, Wait};

use super::BenchArguments;
use super::embedded::{Agreeing, GONE, STOP_TIMEOUT, commits, transfer};
use super::measure::{Load, Measured, Window};
use super::row::{Report, Row};
use super::usage::Usage;

/// How many initiators, while filling and while measuring.
const INITIATORS: usize = 256;
/// Room for what is measured beside the live ones.
const ROOM: u64 = 100_000;
/// So long nobody tries to reach the participant that is down: longer than the bench runs.
const RETRY_DELAY_MS: u64 = 24 * 3_600 * 1_000;

/// One case, which the bench gives a process of its own: memory is compared only in a fresh one,
/// and what starts anew is one.
#[derive(Clone, Copy, Debug, clap::Args)]
#[group(multiple = false)]
pub(super) struct Case {
    /// Measure beside so many live transactions, in this process.
    #[arg(long, hide = true)]
    live: Option<u64>,
    /// Measure how so many are recovered that the case before has left, in this process.
    #[arg(long, hide = true)]
    recover: Option<u64>,
    /// Measure with so many in the history, in this process.
    #[arg(long, hide = true)]
    history: Option<u64>,
}

/// Runs it: lines for each number of live transactions, and for a full history.
pub(super) async fn growth(
    arguments: &BenchArguments,
    folder: &Path,
    show: &mut impl FnMut(Row),
) -> anyhow::Result<()> {
    // What one process leaves to the next lies where both look.
    let left = arguments.folder.as_deref().unwrap_or(folder).join("left");
    let folder = folder.join("growth");
    match arguments.case {
        Case { live: Some(live), .. } => {
            show(beside_live(arguments, live, &folder, &left).await.context("growth")?);
        }
        Case { recover: Some(live), .. } => {
            show(recovered(arguments, live, &left).await.context("growth")?);
        }
        Case { history: Some(rows), .. } => {
            show(beside_history(arguments, rows, &folder).await.context("growth")?);
        }
        Case { live: None, recover: None, history: None } => {
            for (flag, count) in cases(arguments) {
                in_a_process(arguments, flag, count, &folder)
                    .await?
                    .into_iter()
                    .for_each(&mut *show);
            }
        }
    }
    Ok(())
}

fn cases(arguments: &BenchArguments) -> Vec<(&'static str, u64)> {
    if arguments.short {
        return vec![("--live", 500), ("--recover", 500), ("--history", 1_000)];
    }
    let live = [10_000, 100_000, 1_000_000].map(|live| [("--live", live), ("--recover", live)]);
    let mut cases = live.concat();
    cases.push(("--history", 1_000_000));
    cases.extend(arguments.long.then_some(("--history", 10_000_000)));
    cases
}

async fn in_a_process(
    arguments: &BenchArguments,
    flag: &str,
    count: u64,
    folder: &Path,
) -> anyhow::Result<Vec<Row>> {
    std::fs::create_dir_all(folder)?;
    let mut command = tokio::process::Command::new(std::env::current_exe()?);
    command.args(["bench", "growth", "--json", flag, &count.to_string(), "--folder"]).arg(folder);
    command.args(["--seconds", &arguments.seconds.to_string()]);
    command.args(["--shards", &arguments.shards.to_string()]);
    command.args(["--worker-threads", &arguments.worker_threads().to_string()]);
    command.args(arguments.short.then_some("--short"));
    let ended = command.kill_on_drop(true).stderr(std::process::Stdio::inherit()).output().await?;
    if !ended.status.success() {
        bail!("growth {flag} {count}: {}", ended.status);
    }
    let report: Report = serde_json::from_slice(&ended.stdout).context("growth's report")?;
    Ok(report.rows)
}

fn start(
    arguments: &BenchArguments,
    live: u64,
    folder: &Path,
) -> anyhow::Result<TransactionManager> {
    let most = usize::try_from((live + ROOM) * 2)?; // Shards fill unevenly.
    let config = ManagerConfig {
        storage: Storage::Folder(folder.to_path_buf()),
        shards: arguments.shards,
        live_transactions_max: most,
        ..ManagerConfig::default()
    };
    Ok(TransactionManager::start(config, Arc::new(Agreeing))?)
}

async fn beside_live(
    arguments: &BenchArguments,
    live: u64,
    folder: &Path,
    left: &Path,
) -> anyhow::Result<Row> {
    std::fs::create_dir_all(folder)?;
    let manager = start(arguments, live, folder)?;
    let before_kib = Usage::own().resident_kib;
    fill(&manager, in_doubt(), live).await?;
    let grown_kib = Usage::own().resident_kib.saturating_sub(before_kib);
    let measured = put_load_on(&manager, arguments.window()).await?;
    let mut row = Row::new("growth", Load::Closed(INITIATORS), &measured);
    row.case = format!("{live} live");
    row.live = Some(live);
    row.bytes_per_live = Some(grown_kib as f64 * 1_024.0 / live as f64);
    manager.stop(Duration::ZERO).await;
    drop(manager);
    std::fs::remove_dir_all(folder)?;
    leave(arguments, live, left).await?;
    Ok(row)
}

/// A folder in which so many are live and nothing else is. (What ended beside those above is in
/// that journal too, three records each, and would be read with them.)
async fn leave(arguments: &BenchArguments, live: u64, folder: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder)?;
    let manager = start(arguments, live, folder)?;
    fill(&manager, in_doubt(), live).await?;
    // What is live stays so. The files are tidy after it, and in the system's cache.
    manager.stop(Duration::ZERO).await;
    Ok(())
}

/// The time from opening the files until the first new transaction has its outcome.
async fn recovered(arguments: &BenchArguments, live: u64, folder: &Path) -> anyhow::Result<Row> {
    let started = Instant::now();
    let manager = start(arguments, live, folder)?;
    let read = started.elapsed();
    manager.begin(BeginRequest::new(transfer(), Wait::Outcome)).await?;
    let ready = started.elapsed();
    let resident_kib = Usage::own().resident_kib;
    let found = manager.list(Filter::default(), 2).await?;
    manager.stop(Duration::ZERO).await;
    drop(manager);
    std::fs::remove_dir_all(folder)?;
    if found.transactions.len() < 2 {
        bail!("of {live} that were live only what has just begun is there");
    }
    let row = Row {
        scenario: "growth".to_owned(),
        case: format!("recovery of {live}"),
        per_second: live as f64 / ready.as_secs_f64(),
        recovery_ms: Some((read.as_secs_f64() * 1_000.0, ready.as_secs_f64() * 1_000.0)),
        resident_kib,
        ..Row::default()
    };
    Ok(row)
}

async fn beside_history(
    arguments: &BenchArguments,
    rows: u64,
    folder: &Path,
) -> anyhow::Result<Row> {
    std::fs::create_dir_all(folder)?;
    let manager = start(arguments, 0, folder)?;
    fill(&manager, transfer(), rows).await?;
    let measured = put_load_on(&manager, arguments.window()).await?;
    manager.stop(STOP_TIMEOUT).await;
    drop(manager);
    let (ended, found) = (rows + measured.done_in_all, unanimity::count_history(folder)?);
    std::fs::remove_dir_all(folder)?;
    if found != ended {
        bail!("{ended} transactions have ended, but {found} are in the history");
    }
    let row = Row::new("growth", Load::Closed(INITIATORS), &measured);
    Ok(Row { case: format!("{rows} in the history"), ..row })
}

async fn put_load_on(manager: &TransactionManager, window: Window) -> anyhow::Result<Measured> {
    let load = (Load::Closed(INITIATORS), window);
    let measured = commits(manager, transfer(), load, async || Usage::own()).await?;
    if measured.failed > 0 {
        bail!("{} transactions did not commit", measured.failed);
    }
    Ok(measured)
}

/// Begins so many, each until it is decided.
async fn fill(manager: &TransactionManager, plan: Plan, count: u64) -> anyhow::Result<()> {
    let (plan, next) = (Arc::new(plan), Arc::new(AtomicU64::new(0)));
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..INITIATORS {
        let (manager, plan, next) = (manager.clone(), Arc::clone(&plan), Arc::clone(&next));
        workers.spawn(async move {
            while next.fetch_add(1, Ordering::Relaxed) < count {
                let mut request = BeginRequest::new((*plan).clone(), Wait::Outcome);
                while let Err(error) = manager.begin(request).await {
                    if !super::embedded::comes_later(&error) {
                        return Err(anyhow::Error::from(error));
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    request = BeginRequest::new((*plan).clone(), Wait::Outcome);
                }
            }
            Ok(())
        });
    }
    while let Some(worker) = workers.join_next().await {
        worker??;
    }
    Ok(())
}

/// Prepared by both, and acknowledged by one of them only.
fn in_doubt() -> Plan {
    let mut plan = transfer();
    plan.branches[1].participant = Arc::from(GONE);
    plan.options.retry.delay_ms = RETRY_DELAY_MS;
    plan.options.retry.delay_max_ms = RETRY_DELAY_MS;
    plan
}
