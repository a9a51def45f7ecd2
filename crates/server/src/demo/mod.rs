//! `unanimity demo`: the whole thing at work in half a minute. A coordinator and two banks run as
//! processes of their own; one transfer commits, one is refused, thousands run while everything is
//! killed; then every account and every transaction is checked.

pub mod chaos;
mod databases;
mod explained;
pub mod fleet;
mod ledger;
mod left;
pub mod load;
pub mod orders;
mod readers;
pub mod verdict;
pub mod witness;

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::sync::watch;
use unanimity::core::{Outcome, Stage, splitmix64};
use unanimity_bank::{AccountsBy, Total};
use unanimity_judge::{Judge, Line};
use unanimity_sdk::api::TransactionList;
use unanimity_sdk::{Client, TransactionId};

use self::chaos::{ChaosOptions, Killed};
use self::explained::Explained;
use self::fleet::{Carriage, Fleet, FleetOptions};
use self::load::{Acknowledged, LoadOptions, Progress};
use self::orders::Orders;
use self::verdict::Verdict;
use crate::commands::Ended;
use crate::draw::{BAD, FAINT, GOOD, HEADING, paint};

/// How long open transactions may take to end once nothing fails any more.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(60);
/// How often is looked whether they have.
const SETTLE_LOOK: Duration = Duration::from_millis(100);

/// What every account begins with, in cents.
const BALANCE_CENTS: i64 = 100_000;

/// The banks' faults unless somebody says otherwise.
const FAULTS: &str = "vote_no=0.02,error_before=0.02,error_after=0.02,lost_answer=0.02,\
                      delay=0.002:1500";

const STORM: &str =
    "   The banks refuse, err, answer late or not at all, and each of the three programs is
   killed (SIGKILL) at random moments and started again. Whoever lost an answer asks
   again under the same id.";

/// What `demo` takes.
#[derive(Clone, Debug, clap::Args)]
pub struct DemoArguments {
    /// How many transfers run while everything fails: 16,000, or with `--postgres` or `--mariadb`
    /// 2,000, if left out.
    #[arg(long)]
    pub transfers: Option<usize>,
    /// Moves money between databases instead, which the demo starts itself: a PostgreSQL and, with
    /// `--mariadb`, a MariaDB. Each is killed once.
    #[arg(long)]
    pub postgres: bool,
    /// The same with a MariaDB.
    #[arg(long)]
    pub mariadb: bool,
    /// How many transfers run at once.
    #[arg(long, default_value_t = 64)]
    pub concurrency: usize,
    /// How many times a process is killed, at most.
    #[arg(long, default_value_t = 1_000)]
    pub kills_max: usize,
    /// How many times a process must be killed before the transfers may end.
    #[arg(long, default_value_t = 0)]
    pub kills_min: usize,
    /// The least time between two kills, in milliseconds.
    #[arg(long, default_value_t = 300)]
    pub pause_min_ms: u64,
    /// The most time between two kills, in milliseconds.
    #[arg(long, default_value_t = 900)]
    pub pause_max_ms: u64,
    /// The banks' faults, each with its probability.
    #[arg(long, default_value = FAULTS)]
    pub faults: String,
    /// Mixes two-phase, compensable and deferred branches, commits in one phase, and messages of
    /// an initiator with a database of its own, rather than two-phase transfers only.
    #[arg(long)]
    pub mixed: bool,
    /// Asks every live transaction all the time what it waits for, and counts one that does not
    /// know as an error.
    #[arg(long)]
    pub explain: bool,
    /// How the banks keep transfers out of each other's way.
    #[arg(long, value_enum, default_value_t)]
    pub accounts_by: AccountsBy,
    /// How the banks are called: over HTTP, over streams that the coordinator opens (grpc), or over
    /// streams that the banks open (stream).
    #[arg(long, value_enum, default_value_t)]
    pub carriage: Carriage,
    /// Repeats a run's transfers, faults and kills; drawn if left out.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Keeps journal, history, databases and logs in this folder.
    #[arg(long)]
    pub keep: Option<PathBuf>,
    /// Answer in JSON, only at the end.
    #[arg(long)]
    pub json: bool,
}

impl DemoArguments {
    /// How many transfers between the banks run.
    #[must_use]
    pub fn transfers(&self) -> usize {
        self.transfers.unwrap_or(16_000)
    }
}

/// What a run came to, for those who run it from a program.
#[derive(Debug)]
pub struct Run {
    /// What was found at the end.
    pub verdict: Verdict,
    /// What the initiators were told.
    pub acknowledged: Acknowledged,
    /// What was killed.
    pub killed: Killed,
    /// How long the transfers took.
    pub took: Duration,
    /// All money before, in cents.
    pub money_before_cents: i64,
    /// What the coordinator and the banks say has happened, as it was judged.
    pub trace: Vec<Line>,
}

/// Runs the demo.
pub(crate) async fn demo(arguments: DemoArguments) -> Ended {
    let seed = arguments.seed.unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0 % 1_000_000);
    let own = std::env::temp_dir().join(format!("unanimity-demo-{}", std::process::id()));
    let folder = arguments.keep.clone().unwrap_or_else(|| own.clone());
    let telling = async {
        if arguments.postgres || arguments.mariadb {
            databases::told(&arguments, seed, &folder).await
        } else {
            told(&arguments, seed, &folder).await
        }
    };
    let ended = tokio::select! {
        ended = telling => ended,
        // The processes end with this one's handles to them.
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    if arguments.keep.is_none() {
        // dropped: a folder that is gone already needs no removing.
        let _ = std::fs::remove_dir_all(&own);
    }
    ended
}

async fn told(arguments: &DemoArguments, seed: u64, folder: &Path) -> Ended {
    let quiet = arguments.json;
    let say = |text: String| {
        if !quiet {
            anstream::println!("{text}");
        }
    };
    let options = fleet_options(arguments, seed, folder)?;
    let mut fleet = Fleet::start(&options).await?;
    say(introduction(&fleet, folder, arguments));
    if !quiet {
        two_transfers(&fleet).await?;
    }
    let heading = format!(
        "\n5. {} transfers, {} at a time, while everything fails",
        arguments.transfers(),
        arguments.concurrency
    );
    say(paint(HEADING, heading));
    say(STORM.to_owned());
    let run = storm(&mut fleet, arguments, seed, quiet).await?;
    fleet.stop().await?;
    if arguments.keep.is_some() {
        witness::write(&folder.join("trace.jsonl"), &run.trace)?;
    }
    if quiet {
        anstream::println!("{}", serde_json::to_string_pretty(&as_json(&run, seed))?);
    } else {
        anstream::print!("{}", table(&run, seed, arguments));
    }
    Ok(if run.verdict.wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The processes that a run of these arguments needs.
///
/// # Errors
/// If this program does not know its own path.
pub fn fleet_options(
    arguments: &DemoArguments,
    seed: u64,
    folder: &Path,
) -> anyhow::Result<FleetOptions> {
    let flags = "--retry-delay-ms 20 --retry-delay-max-ms 300 --attempt-timeout-ms 1000";
    Ok(FleetOptions {
        program: std::env::current_exe()?,
        folder: folder.to_path_buf(),
        accounts: 500,
        balance: BALANCE_CENTS,
        faults: arguments.faults.clone(),
        seed,
        coordinator_flags: flags.split(' ').map(str::to_owned).collect(),
        bank_flags: vec![
            "--journal".to_owned(),
            "--accounts-by".to_owned(),
            arguments.accounts_by.to_string(),
        ],
        carriage: arguments.carriage,
    })
}

fn introduction(fleet: &Fleet, folder: &Path, arguments: &DemoArguments) -> String {
    let [coordinator, bank_a, bank_b] = &fleet.processes;
    let kept =
        if arguments.keep.is_some() { "kept" } else { "removed at the end; --keep DIR keeps them" };
    format!(
        "{}\n   Three programs run on this machine, each with files of its own:\n   the \
         coordinator at {}, bank A at {} and bank B at {}.\n   A transfer takes money from an \
         account at one bank and gives it to an account at the other:\n   both must happen, or \
         neither.\n   {}",
        paint(HEADING, "Unanimity: all parts of a transaction happen, or none"),
        coordinator.url(),
        bank_a.url(),
        bank_b.url(),
        paint(FAINT, format!("files: {} ({kept})", folder.display()))
    )
}

/// One transfer that commits and one that is refused, each with the command that repeats it.
async fn two_transfers(fleet: &Fleet) -> anyhow::Result<()> {
    let (client, participants) = (fleet.client()?, fleet.participants());
    let accounts = ["A-1", "B-1"];
    let transfer = |id, cents| load::transfer(id, &participants, accounts, cents, 5_000);
    let order = |id, courier| load::order(id, &participants, courier);
    let cases = [
        (
            "1. A transfer of 100.00 from account A-1 to account B-1",
            transfer("demo-commits", 10_000),
        ),
        (
            "2. A transfer of 9,999.00, which account A-1 does not have",
            transfer("demo-refused", 999_900),
        ),
        (
            "3. An order: money is reserved (two-phase), a courier booked (compensable), and a \
             receipt sent (deferred)",
            order("demo-order", "B-1"),
        ),
        (
            "4. The same, and no courier comes: the money is free again, no receipt is sent",
            order("demo-order-refused", "nobody"),
        ),
    ];
    for (title, mut request) in cases {
        anstream::println!("\n{}", paint(HEADING, title));
        request.wait = Some(unanimity_sdk::api::Wait::Completed);
        let begun = client.begin(&request).await?;
        let timeline = client.timeline(&TransactionId::new(&begun.id)?).await?;
        for line in crate::draw::transaction(&begun, &timeline).lines() {
            anstream::println!("   {line}");
        }
        request.id = None;
        let body = serde_json::to_string(&request)?;
        let url = fleet.processes[0].url();
        let curl = format!(
            "again, while this runs:\n   curl {url}/v1/transactions -H 'Content-Type: \
             application/json' \\\n     -d '{body}'"
        );
        anstream::println!("   {}", paint(FAINT, curl));
    }
    Ok(())
}

/// The transfers, the kills, the wait until everything has ended, and the verdict.
///
/// # Errors
/// If a process does not come back, or something cannot be read.
pub async fn storm(
    fleet: &mut Fleet,
    arguments: &DemoArguments,
    seed: u64,
    quiet: bool,
) -> anyhow::Result<Run> {
    let (client, banks) = (fleet.client()?, fleet.banks()?);
    let participants = fleet.participants();
    let money_before_cents = money(&banks).await?;
    let orders = match arguments.mixed {
        true => Some(Arc::new(Orders::start(&fleet.folder).await?)),
        false => None,
    };
    let load = LoadOptions {
        transfers: arguments.transfers(),
        concurrency: arguments.concurrency,
        seed,
        accounts: 500,
        prepare_timeout_ms: 1_000,
        orders: orders.clone(),
    };
    let chaos = chaos(arguments, seed);
    let started = Instant::now();
    let progress = Arc::new(Progress::default());
    progress.go_on(arguments.kills_min > 0);
    let (end, ended) = watch::channel(false);
    let bar = bar(arguments.transfers(), quiet);
    let transfers = async {
        load::run(&client, &participants, &load, &progress).await;
        end.send_replace(true);
    };
    let watching = show(&bar, &progress, arguments.transfers(), end.subscribe());
    let explaining = async {
        match arguments.explain {
            true => explained::all(&client, ended.clone()).await,
            false => Explained::default(),
        }
    };
    let reading = readers::all(&client, seed, &progress, ended.clone());
    let raging = chaos::rage(fleet, &chaos, &progress, ended.clone());
    let ((), (), explained, reads, killed) =
        tokio::join!(transfers, watching, explaining, reading, raging);
    let took = started.elapsed();
    bar.finish_and_clear();
    let mut killed = killed?;
    settle(&client).await?;
    for process in &fleet.processes[1..] {
        chaos::note_counters(&mut killed, &process.url()).await;
    }
    let acknowledged = progress.take();
    let (orders, before) = (orders.as_deref(), money_before_cents);
    let mut verdict = verdict::judge(&client, &banks, orders, &acknowledged, before).await?;
    let running = fleet.processes.iter().filter_map(|one| Some((one.name(), one.id()?)));
    let left = running.flat_map(|(name, id)| left::of(name, id, load.concurrency)).collect();
    verdict.reads = reads.len();
    let told = witness::Told { acknowledged: &acknowledged, reads };
    let trace = witness::trace(&client, &banks, orders, told, left).await?;
    let trace = hear(&mut verdict, trace);
    verdict.explained = explained.asked;
    verdict.wrong.extend(explained.wrong);
    let (known, started) = (acknowledged.outcomes.len(), progress.started());
    if known != started {
        verdict.wrong.push(format!("{known} of {started} outcomes are known"));
    }
    let contradictions = contradictions(&killed, &verdict);
    if contradictions != 0 {
        verdict.wrong.push(format!("the banks saw {contradictions} contradictions"));
    }
    Ok(Run { verdict, acknowledged, killed, took, money_before_cents, trace })
}

const fn chaos(arguments: &DemoArguments, seed: u64) -> ChaosOptions {
    ChaosOptions {
        kills_max: arguments.kills_max,
        kills_min: arguments.kills_min,
        pause_min_ms: arguments.pause_min_ms,
        pause_max_ms: arguments.pause_max_ms,
        down_max_ms: 150,
        seed: splitmix64(seed),
    }
}

/// What a client was told, in the core's words.
const fn outcome(told: unanimity_sdk::api::Outcome) -> Outcome {
    match told {
        unanimity_sdk::api::Outcome::Commit => Outcome::Commit,
        unanimity_sdk::api::Outcome::Rollback => Outcome::Rollback,
    }
}

/// In milliseconds since the Unix epoch.
fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Judges everybody's history.
fn hear(verdict: &mut Verdict, trace: Vec<Line>) -> Vec<Line> {
    let mut judge = Judge::new();
    for line in &trace {
        judge.take(line);
    }
    verdict.wrong.extend(judge.found().iter().map(|finding| format!("judge: {finding}")));
    verdict.judged_lines = judge.lines();
    trace
}

/// How often a bank had to refuse what it should never have been asked. Who commits in one phase
/// may be asked to roll back afterwards: what is final is the answer to that.
const fn contradictions(killed: &Killed, verdict: &Verdict) -> u64 {
    let asked = if verdict.in_one_phase > 0 { 0 } else { killed.already_committed };
    killed.contradictions + asked
}

fn bar(transfers: usize, quiet: bool) -> ProgressBar {
    let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new(transfers as u64) };
    let template = "   [{bar:40}] {pos}/{len} transfers, {elapsed}";
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style.progress_chars("=> ")),
        Err(_) => bar,
    }
}

/// Moves the bar until the transfers are done; without a terminal, a line for every quarter.
async fn show(
    bar: &ProgressBar,
    progress: &Progress,
    transfers: usize,
    mut end: watch::Receiver<bool>,
) {
    let mut quarter = 1;
    loop {
        let done = progress.done();
        bar.set_position(done as u64);
        let plain = bar.is_hidden() && bar.length().is_some();
        if plain && done * 4 >= transfers * quarter && quarter <= 4 {
            anstream::println!("   {done} of {transfers} transfers have their outcome");
            quarter += 1;
        }
        let tick = tokio::time::sleep(Duration::from_millis(50));
        tokio::select! {
            _ = end.wait_for(|end| *end) => return,
            () = tick => {}
        }
    }
}

/// All money of both banks, in cents.
pub(crate) async fn money(banks: &[Client; 2]) -> anyhow::Result<i64> {
    let mut sum = 0;
    for bank in banks {
        sum += bank.get_json::<Total>("/total").await.context("a bank's totals")?.balance;
    }
    Ok(sum)
}

/// Every stage of a transaction that has not ended.
pub(crate) fn live_stages() -> impl Iterator<Item = &'static str> {
    Stage::ALL.into_iter().filter(|stage| stage.is_live()).map(Stage::as_str)
}

/// Waits until no transaction is open, for as long as is fair.
pub(crate) async fn settle(client: &Client) -> anyhow::Result<()> {
    let started = Instant::now();
    while started.elapsed() < SETTLE_TIMEOUT {
        let mut open = 0;
        for state in live_stages() {
            let page: TransactionList = client.list(&format!("state={state}&limit=1")).await?;
            open += page.transactions.len();
        }
        if open == 0 {
            return Ok(());
        }
        tokio::time::sleep(SETTLE_LOOK).await;
    }
    Ok(()) // The verdict counts what is open still.
}

/// A percentile of sorted microseconds, in milliseconds.
pub(crate) fn percentile_ms(sorted_us: &[u64], percent: usize) -> f64 {
    let place = (sorted_us.len() * percent / 100).min(sorted_us.len().saturating_sub(1));
    sorted_us.get(place).map_or(0.0, |us| *us as f64 / 1_000.0)
}

fn as_json(run: &Run, seed: u64) -> serde_json::Value {
    let mut latencies = run.acknowledged.latencies_us.clone();
    latencies.sort_unstable();
    serde_json::json!({
        "seed": seed,
        "transactions": run.verdict.transactions,
        "committed": run.verdict.committed,
        "rolled_back": run.verdict.rolled_back,
        "recovered": run.verdict.recovered,
        "in_one_phase": run.verdict.in_one_phase,
        "settled_by_participant": run.verdict.settled,
        "orders": run.verdict.orders,
        "open": run.verdict.open,
        "kills": run.killed.kills,
        "duplicates_absorbed": run.killed.duplicates_absorbed,
        "asked_again": run.acknowledged.asked_again,
        "latency_p50_ms": percentile_ms(&latencies, 50),
        "latency_p99_ms": percentile_ms(&latencies, 99),
        "judged_lines": run.verdict.judged_lines,
        "money_before_cents": run.money_before_cents,
        "money_after_cents": run.verdict.money_cents,
        "seconds": run.took.as_secs_f64(),
        "wrong": run.verdict.wrong,
    })
}

/// The closing table.
fn table(run: &Run, seed: u64, arguments: &DemoArguments) -> String {
    let mut text = format!("\n{}\n", paint(HEADING, "What came of it"));
    let mut row = |name: &str, value: String| {
        // Writing to a String cannot fail.
        writeln!(text, "   {name:<34} {value}").unwrap_or(());
    };
    let verdict = &run.verdict;
    row("committed", verdict.committed.to_string());
    for (code, count) in &verdict.rolled_back {
        let why = match code.as_str() {
            "voted_no" => "a bank refused",
            "prepare_timeout" => "a bank was silent for too long",
            "coordinator_restarted" => "coordinator killed before deciding",
            other => crate::draw::reason_in_words(other),
        };
        row(&format!("rolled back: {why}"), count.to_string());
    }
    let kills: Vec<String> =
        run.killed.kills.iter().map(|(name, count)| format!("{name} {count}")).collect();
    row("programs killed", format!("{} ({})", run.killed.total(), kills.join(", ")));
    row("taken up again after a kill", verdict.recovered.to_string());
    row("requests repeated by initiators", run.acknowledged.asked_again.to_string());
    row("repeated calls absorbed by banks", run.killed.duplicates_absorbed.to_string());
    let mut latencies = run.acknowledged.latencies_us.clone();
    latencies.sort_unstable();
    let (p50, p99) = (percentile_ms(&latencies, 50), percentile_ms(&latencies, 99));
    row(
        "time to the outcome, p50 / p99",
        format!("{p50:.0} ms / {p99:.0} ms (with all the failures)"),
    );
    let per_second = arguments.transfers() as f64 / run.took.as_secs_f64();
    row("transfers a second, likewise", format!("{per_second:.0}"));
    row("events of everybody's history judged", verdict.judged_lines.to_string());
    row("money before", cents(run.money_before_cents));
    row("money after", cents(verdict.money_cents));
    row("transactions left open", verdict.open.to_string());
    if verdict.wrong.is_empty() {
        let all_well = "every transaction ended, both banks agree with the coordinator on each, \
            and \
                        not a cent is missing";
        writeln!(text, "\n   {}: {all_well}.", paint(GOOD, "All is well")).unwrap_or(());
    } else {
        writeln!(text, "\n   {}:", paint(BAD, "Something is wrong")).unwrap_or(());
        for wrong in verdict.wrong.iter().take(20) {
            writeln!(text, "   - {wrong}").unwrap_or(());
        }
    }
    let again = format!("the same transfers, faults and kills again: unanimity demo --seed {seed}");
    writeln!(text, "   {}", paint(FAINT, again)).unwrap_or(());
    text
}

fn cents(cents: i64) -> String {
    let (whole, rest) = (cents / 100, (cents % 100).abs());
    let digits = whole.to_string();
    let mut grouped = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    format!("{grouped}.{rest:02}")
}
