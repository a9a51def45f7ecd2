//! `unanimity bench --contention`: what the ways to keep transfers out of each other's way cost,
//! from no contention to a lot of it.
//!
//! For each share of hot transfers and each way, a coordinator and two banks are started anew, as
//! processes with files on disk, and N initiators transfer money between the banks in a closed
//! loop. A hot transfer is between two of the hot accounts (one in a hundred at each bank); the
//! others are between any two. A transfer that is rolled back for somebody else's sake is begun
//! again as a new transaction after a short random pause, with the time of its first try in the
//! payload (except where the younger wait), and its latency counts from that first try. At the end
//! of each run all money must be there.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};
use unanimity::core::splitmix64;
use unanimity_bank::{Payload, Total};
use unanimity_sdk::api::{BranchRequest, Json, Outcome, TransactionRequest, TransactionStatus};
use unanimity_sdk::resource::Conflict;
use unanimity_sdk::{Client, ClientOptions, now_ms};

use super::BenchArguments;
use crate::commands::Ended;
use crate::demo::fleet::{Carriage, Fleet, FleetOptions};
use crate::demo::{money, percentile_ms, settle};
use crate::draw::{FAINT, HEADING, paint};

/// The ways, by the words of the bank's command line. With `locking` the older wait, with
/// `queueing` the younger. The last is not about locks at all: it shows what transfers cost that
/// never conflict.
const WAYS: [&str; 4] = ["locking", "queueing", "optimistic", "reservation"];
/// How many initiators unless the command line says otherwise.
const INITIATORS: usize = 64;
/// What each account begins with, in cents: so much that nobody is ever refused for want of money.
const BALANCE_CENTS: i64 = 10_000_000;
/// The longest pause before a transfer is begun again, in microseconds; the first is a 32nd of it.
const PAUSE_MAX_US: u64 = 32_000;
/// Left out of the figures at the beginning of a run.
const WARM_UP: Duration = Duration::from_millis(500);
/// One way overtakes another by so much at least; less is noise.
const MARGIN: f64 = 1.05;

/// What one run is like.
#[derive(Clone, Debug)]
struct Load {
    participants: [String; 2],
    /// Whether a transfer that is begun again counts as old as its first try.
    ages: bool,
    accounts: u64,
    hot_percent: u64,
    seed: u64,
    begin: Instant,
    end: Instant,
}

/// What came of one run, or of one initiator in it.
#[derive(Debug, Default)]
struct Tally {
    latencies_us: Vec<u64>,
    /// Attempts that were rolled back, by why.
    aborts: BTreeMap<String, u64>,
    /// Requests that had no answer.
    failures: u64,
}

impl Tally {
    fn aborted(&self) -> u64 {
        self.aborts.values().sum()
    }

    fn add(&mut self, other: Self) {
        self.latencies_us.extend(other.latencies_us);
        for (why, count) in other.aborts {
            *self.aborts.entry(why).or_default() += count;
        }
        self.failures += other.failures;
    }
}

/// Runs it, in `folder`.
pub(super) async fn contention(arguments: &BenchArguments, folder: &Path) -> Ended {
    let initiators = arguments.concurrency.first().copied().unwrap_or(INITIATORS);
    if arguments.accounts == 0 || arguments.hot_percent.iter().any(|share| *share > 100) {
        bail!("--accounts must be at least 1, and each --hot-percent at most 100");
    }
    if !arguments.json {
        anstream::println!("{}", heading(arguments, initiators));
    }
    let (mut rows, mut sound) = (Vec::new(), true);
    for hot_percent in &arguments.hot_percent {
        for way in WAYS {
            let mut runs = Vec::new();
            for _ in 0..arguments.rounds.max(1) {
                let run = one_run(arguments, folder, way, *hot_percent, initiators).await?;
                sound &= run["money_conserved"] == true && run["failures"] == 0;
                runs.push(run);
            }
            let row = median(runs);
            if !arguments.json {
                anstream::println!("{}", line(&row));
            }
            rows.push(row);
        }
    }
    let crossings = ["locking", "queueing"].map(|way| (way, crossing(&rows, way)));
    if arguments.json {
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let answer = json!({
            "rows": rows, "initiators": initiators, "accounts_per_bank": arguments.accounts,
            "hot_accounts_per_bank": hot_accounts(arguments.accounts), "cores": cores,
            "seconds": arguments.seconds, "rounds": arguments.rounds.max(1),
            "crossing_hot_percent": crossings.iter().map(|(way, (share, _))| (*way, *share))
                .collect::<BTreeMap<_, _>>(),
            "version": env!("CARGO_PKG_VERSION"),
        });
        anstream::println!("{}", serde_json::to_string_pretty(&answer)?);
    } else {
        anstream::println!();
        for (_, (_, words)) in &crossings {
            anstream::println!("{words}");
        }
        let kept = "all money was there after each run";
        let lost = "SOMETHING IS WRONG: money is missing, or requests had no answer";
        anstream::println!("{}", paint(FAINT, if sound { kept } else { lost }));
    }
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn heading(arguments: &BenchArguments, initiators: usize) -> String {
    let title = format!(
        "Transfers between two banks of {} accounts each, {initiators} initiators, {} s a run",
        arguments.accounts, arguments.seconds
    );
    let hot = hot_accounts(arguments.accounts);
    format!(
        "{}\n{}\n{:>5} {:>12} {:>12} {:>9} {:>9} {:>9}  {}",
        paint(HEADING, title),
        paint(FAINT, format!("hot: the share of transfers between {hot} accounts of each bank")),
        "hot",
        "accounts by",
        "committed/s",
        "aborts",
        "p50 ms",
        "p99 ms",
        "why"
    )
}

fn line(row: &Value) -> String {
    let number = |name: &str| row[name].as_f64().unwrap_or_default();
    let mut aborts: Vec<String> = Vec::new();
    for (why, count) in row["aborts"].as_object().into_iter().flatten() {
        aborts.push(format!("{why} {count}"));
    }
    if row["money_conserved"] != true {
        aborts.push("MONEY IS MISSING".to_owned());
    }
    format!(
        "{:>4}% {:>12} {:>12.0} {:>8.1}% {:>9.1} {:>9.1}  {}",
        row["hot_percent"],
        row["accounts_by"].as_str().unwrap_or_default(),
        number("committed_per_second"),
        number("abort_rate") * 100.0,
        number("p50_ms"),
        number("p99_ms"),
        paint(FAINT, aborts.join(", "))
    )
}

/// The run in the middle, by what was committed: one that something else on the machine has
/// disturbed does not count.
fn median(mut runs: Vec<Value>) -> Value {
    let rate = |run: &Value| run["committed_per_second"].as_f64().unwrap_or_default();
    runs.sort_by(|one, other| rate(one).total_cmp(&rate(other)));
    runs.swap_remove(runs.len() / 2)
}

/// One account in a hundred, and one at least.
fn hot_accounts(accounts: u32) -> u64 {
    u64::from(accounts / 100).max(1)
}

async fn one_run(
    arguments: &BenchArguments,
    folder: &Path,
    way: &str,
    hot_percent: u64,
    initiators: usize,
) -> anyhow::Result<Value> {
    let folder = folder.join("run");
    let flags = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let options = FleetOptions {
        program: std::env::current_exe()?,
        folder: folder.clone(),
        accounts: arguments.accounts,
        balance: BALANCE_CENTS,
        faults: String::new(),
        seed: 1,
        coordinator_flags: flags("--log-level warn"),
        bank_flags: flags(&format!("--accounts-by {way}")),
        carriage: Carriage::Http,
    };
    let mut fleet = Fleet::start(&options).await?;
    let banks = fleet.banks()?;
    let before = money(&banks).await?;
    let begin = Instant::now() + WARM_UP;
    let load = Load {
        participants: fleet.participants(),
        ages: way != "queueing",
        accounts: u64::from(arguments.accounts),
        hot_percent,
        seed: splitmix64(hot_percent),
        begin,
        end: begin + Duration::from_secs(arguments.seconds),
    };
    let options = ClientOptions { requests_max: initiators.max(1), ..ClientOptions::default() };
    let client = Client::with_options(&fleet.processes[0].url(), None, options)?;
    let mut tally = run(&client, load, initiators).await?;
    settle(&client).await?;
    let conserved = money(&banks).await? == before && in_doubt(&banks).await? == 0;
    fleet.stop().await?;
    std::fs::remove_dir_all(&folder)?;
    tally.latencies_us.sort_unstable();
    let committed = tally.latencies_us.len();
    let attempts = tally.aborted() + committed as u64;
    Ok(json!({
        "hot_percent": hot_percent,
        "accounts_by": way,
        "committed_per_second": committed as f64 / arguments.seconds as f64,
        "abort_rate": tally.aborted() as f64 / attempts.max(1) as f64,
        "aborts": tally.aborts,
        "p50_ms": percentile_ms(&tally.latencies_us, 50),
        "p99_ms": percentile_ms(&tally.latencies_us, 99),
        "failures": tally.failures,
        "money_conserved": conserved,
    }))
}

async fn in_doubt(banks: &[Client; 2]) -> anyhow::Result<u64> {
    let mut in_doubt = 0;
    for bank in banks {
        in_doubt += bank.get_json::<Total>("/total").await?.in_doubt;
    }
    Ok(in_doubt)
}

async fn run(client: &Client, load: Load, initiators: usize) -> anyhow::Result<Tally> {
    let load = Arc::new(load);
    let mut workers = tokio::task::JoinSet::new();
    for worker in 0..initiators {
        let (client, load) = (client.clone(), Arc::clone(&load));
        workers.spawn(async move { initiate(&client, &load, worker as u64).await });
    }
    let mut tally = Tally::default();
    while let Some(worker) = workers.join_next().await {
        tally.add(worker.context("an initiator of the bench")?);
    }
    Ok(tally)
}

/// One initiator: transfer after transfer, each until it is committed.
async fn initiate(client: &Client, load: &Load, worker: u64) -> Tally {
    let mut tally = Tally::default();
    let mut state = splitmix64(load.seed ^ splitmix64(worker + 1));
    let mut draw = move |below: u64| {
        state = splitmix64(state);
        state % below
    };
    loop {
        let (first, since_ms) = (Instant::now(), now_ms());
        let request = transfer(load, &mut draw, since_ms);
        for attempt in 0_u32.. {
            if Instant::now() >= load.end {
                return tally;
            }
            let answer = client.begin(&request).await;
            let now = Instant::now();
            let counts = now >= load.begin && now < load.end;
            match answer.map(|status| (status.outcome, status)) {
                Ok((Some(Outcome::Commit), _)) => {
                    if counts {
                        let took = u64::try_from((now - first).as_micros()).unwrap_or(u64::MAX);
                        tally.latencies_us.push(took);
                    }
                    break;
                }
                Ok((Some(Outcome::Rollback), status)) => {
                    if counts {
                        *tally.aborts.entry(why(&status)).or_default() += 1;
                    }
                }
                Ok((None, _)) | Err(_) => tally.failures += 1,
            }
            let pause_us = (PAUSE_MAX_US >> 5_u32.saturating_sub(attempt)).max(1);
            tokio::time::sleep(Duration::from_micros(draw(pause_us))).await;
        }
    }
}

/// The conflict's code, or what else it was.
fn why(status: &TransactionStatus) -> String {
    let Some(reason) = &status.reason else { return "unknown".to_owned() };
    let conflict = reason.detail.as_deref().and_then(Conflict::of);
    conflict.map_or_else(|| reason.code.clone(), |conflict| conflict.code().to_owned())
}

fn transfer(load: &Load, draw: &mut impl FnMut(u64) -> u64, since_ms: u64) -> TransactionRequest {
    let hot = draw(100) < load.hot_percent;
    let among = if hot { (load.accounts / 100).max(1) } else { load.accounts };
    let (from, cents) = (usize::from(draw(2) == 1), i64::try_from(draw(100)).unwrap_or(0) + 1);
    let mut branch = |name: &str, bank: usize, amount: i64| {
        let account = format!("{}-{}", ["A", "B"][bank], draw(among) + 1);
        let payload =
            Payload { account, amount, since_ms: load.ages.then_some(since_ms), version: None };
        BranchRequest {
            name: name.to_owned(),
            participant: load.participants[bank].clone(),
            payload: Json::from_value(&payload).unwrap_or_default(),
            ..BranchRequest::default()
        }
    };
    let branches = vec![branch("debit", from, -cents), branch("credit", 1 - from, cents)];
    TransactionRequest { branches, ..TransactionRequest::default() }
}

/// The share of hot transfers from which on `way` is ahead of optimistic, where it is not at the
/// first, and a sentence about it.
fn crossing(rows: &[Value], way: &str) -> (Option<u64>, String) {
    let rate = |share: &Value, way: &str| {
        let row = rows.iter().find(|row| row["hot_percent"] == *share && row["accounts_by"] == way);
        row.and_then(|row| row["committed_per_second"].as_f64()).unwrap_or_default()
    };
    let mut shares: Vec<&Value> = rows.iter().map(|row| &row["hot_percent"]).collect();
    shares.dedup();
    let leads =
        |share: &Value, one: &str, other: &str| rate(share, one) > rate(share, other) * MARGIN;
    let ahead: Vec<bool> = shares.iter().map(|share| leads(share, way, "optimistic")).collect();
    let behind = shares.iter().any(|share| leads(share, "optimistic", way));
    let from = ahead.iter().rposition(|ahead| !*ahead).map_or(0, |last| last + 1);
    match Some(from).filter(|from| *from < ahead.len()) {
        Some(0) => (None, format!("{way} is ahead of optimistic everywhere")),
        Some(place) => {
            let share = shares[place];
            (
                share.as_u64(),
                format!("{way} is ahead of optimistic from {share} % hot transfers on"),
            )
        }
        None if behind => {
            (None, format!("{way} and optimistic do not cross: it is not ahead for good"))
        }
        None => (None, format!("{way} and optimistic do not cross: neither is ahead for good")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(rates: &[(u64, u64, u64)], expected: Option<u64>, part: &str) {
        let row = |hot_percent: u64, way: &str, rate: u64| {
            let (accounts_by, committed_per_second) = (way, rate);
            json!({
                "hot_percent": hot_percent,
                "accounts_by": accounts_by,
                "committed_per_second": committed_per_second,
            })
        };
        let rows: Vec<Value> = rates
            .iter()
            .flat_map(|(share, locking, optimistic)| {
                [row(*share, "locking", *locking), row(*share, "optimistic", *optimistic)]
            })
            .collect();
        let (share, words) = crossing(&rows, "locking");
        assert_eq!(share, expected, "{words}");
        assert!(words.contains(part), "{words}");
    }

    #[test]
    fn the_crossing_is_where_locking_comes_ahead() {
        check(&[(0, 100, 104), (50, 100, 90), (95, 50, 20)], Some(50), "from 50 %");
        check(&[(0, 100, 104), (50, 100, 98)], None, "neither is ahead for good");
        check(&[(0, 100, 120), (50, 100, 120)], None, "it is not ahead for good");
        check(&[(0, 100, 120), (20, 90, 80), (50, 100, 120)], None, "it is not ahead for good");
        check(&[(0, 120, 100), (50, 120, 100)], None, "everywhere");
    }
}
