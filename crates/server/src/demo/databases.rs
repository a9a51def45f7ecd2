//! `unanimity demo --postgres --mariadb`: money moves between a PostgreSQL and a MariaDB that the
//! demo starts itself. There is no service: the coordinator runs each transfer's statements in both
//! databases. Each server and the coordinator is killed once in the middle (SIGKILL) and started
//! again; then the books are held against the history, and nothing may be left in doubt.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::bail;
use serde_json::json;
use unanimity::core::splitmix64;
use unanimity_databases::Make;
use unanimity_sdk::api::{Outcome, TransactionRequest, Wait};
use unanimity_sdk::{Client, TransactionId};

use super::fleet::Process;
use super::ledger::{ACCOUNTS, Ledger, server};
use super::{DemoArguments, settle};
use crate::commands::Ended;
use crate::databases::listing::InDoubtView;
use crate::draw::{BAD, FAINT, GOOD, HEADING, paint};

/// How many transfers run unless somebody says otherwise.
const TRANSFERS: usize = 2_000;
/// How long one transfer may go without an outcome.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two tries of an initiator whose request had no answer.
const PAUSE: Duration = Duration::from_millis(50);
/// What no account has, in cents.
const TOO_MUCH_CENTS: i64 = 100_000_000;

/// What the initiators were told: each transfer's outcome.
type Told = BTreeMap<String, Outcome>;

/// Runs the demo over the databases that the arguments name.
pub(super) async fn told(arguments: &DemoArguments, seed: u64, folder: &Path) -> Ended {
    let say = |text: String| {
        if !arguments.json {
            anstream::println!("{text}");
        }
    };
    std::fs::create_dir_all(folder)?;
    say(paint(HEADING, "Money between two databases, and no service: starting the servers"));
    let ledgers = ledgers(arguments).await?;
    let mut coordinator = coordinator(&ledgers, folder).await?;
    say(format!(
        "   left:  {}\n   right: {}\n   the coordinator at {}, which alone knows their passwords",
        ledgers[0].described(),
        ledgers[1].described(),
        coordinator.url()
    ));
    let client = Client::new(&coordinator.url(), None)?;
    if !arguments.json {
        two_transfers(&client, &ledgers).await?;
    }
    let before = money(&ledgers).await?;
    let transfers = arguments.transfers.unwrap_or(TRANSFERS);
    say(paint(HEADING, format!("\n3. {transfers} transfers, and everything is killed once")));
    let started = Instant::now();
    let told = storm(arguments, seed, transfers, &client, &ledgers, &mut coordinator, &say).await?;
    let took = started.elapsed();
    settle(&client).await?;
    let wrong = judge(&client, &ledgers, &told, before).await?;
    report(arguments, &told, &wrong, before, took, seed)?;
    coordinator.stop().await?;
    Ok(if wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn ledgers(arguments: &DemoArguments) -> anyhow::Result<[Ledger; 2]> {
    let (left, right) = match (arguments.postgres, arguments.mariadb) {
        (true, true) => tokio::try_join!(server(Make::PostgreSql), server(Make::MariaDb))?,
        (postgres, _) => {
            let one = server(if postgres { Make::PostgreSql } else { Make::MariaDb }).await?;
            (std::sync::Arc::clone(&one), one)
        }
    };
    Ok([Ledger::open("left", left, "left").await?, Ledger::open("right", right, "right").await?])
}

async fn coordinator(ledgers: &[Ledger; 2], folder: &Path) -> anyhow::Result<Process> {
    let mut config = String::new();
    for ledger in ledgers {
        config.push_str(&format!(
            "[databases.{}]\nurl = {:?}\nstatements = \"any\"\nsweep_ms = 1000\norphan_ms = 5000\n",
            ledger.name,
            ledger.url()
        ));
    }
    let path = folder.join("unanimity.toml");
    std::fs::write(&path, config)?;
    let (path, data) = (path.display().to_string(), folder.join("coordinator"));
    let data = data.display().to_string();
    let flags = "--retry-delay-ms 20 --retry-delay-max-ms 500 --parked-retry-delay-ms 1000";
    let words = ["serve", "--config", &path, "--data-folder", &data];
    let words = words.into_iter().chain(flags.split(' ')).map(str::to_owned).collect();
    let program = std::env::current_exe()?;
    let mut coordinator = Process::new("coordinator", &program, folder, words);
    coordinator.start().await?;
    Ok(coordinator)
}

fn transfer(ledgers: &[Ledger; 2], id: &str, accounts: [i64; 2], cents: i64) -> TransactionRequest {
    let [left, right] = ledgers;
    let branches = vec![left.branch(id, accounts[0], -cents), right.branch(id, accounts[1], cents)];
    TransactionRequest { id: Some(id.to_owned()), branches, ..TransactionRequest::default() }
}

async fn two_transfers(client: &Client, ledgers: &[Ledger; 2]) -> anyhow::Result<()> {
    let cases = [
        ("1. 100.00 from an account on the left to one on the right", "demo-commits", 10_000),
        ("2. More than the account has: nothing happens anywhere", "demo-refused", TOO_MUCH_CENTS),
    ];
    for (title, id, cents) in cases {
        anstream::println!("\n{}", paint(HEADING, title));
        let mut request = transfer(ledgers, id, [1, 1], cents);
        request.wait = Some(Wait::Completed);
        let begun = client.begin(&request).await?;
        let timeline = client.timeline(&TransactionId::new(&begun.id)?).await?;
        for line in crate::draw::transaction(&begun, &timeline).lines() {
            anstream::println!("   {line}");
        }
    }
    Ok(())
}

async fn money(ledgers: &[Ledger; 2]) -> anyhow::Result<i64> {
    Ok(ledgers[0].money().await? + ledgers[1].money().await?)
}

/// All transfers, and three kills: of each server and of the coordinator.
async fn storm(
    arguments: &DemoArguments,
    seed: u64,
    transfers: usize,
    client: &Client,
    ledgers: &[Ledger; 2],
    coordinator: &mut Process,
    say: &impl Fn(String),
) -> anyhow::Result<Told> {
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let workers = (0..arguments.concurrency.max(1)).map(|_| async {
        let mut told = Told::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= transfers {
                return anyhow::Ok(told);
            }
            let request = drawn(ledgers, seed, number);
            let id = request.id.clone().unwrap_or_default();
            told.insert(id, outcome(client, &request).await?);
            done.fetch_add(1, Ordering::Relaxed);
        }
    });
    let killing = async {
        for victim in 0..3 {
            let wanted = transfers * (victim + 1) / 4;
            while done.load(Ordering::Relaxed) < wanted {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let killed = kill(victim, ledgers, coordinator).await?;
            say(format!("   after {wanted} transfers: {killed}"));
        }
        anyhow::Ok(())
    };
    let (told, ()) = tokio::try_join!(futures_util::future::try_join_all(workers), killing)?;
    Ok(told.into_iter().flatten().collect())
}

async fn kill(
    victim: usize,
    ledgers: &[Ledger; 2],
    coordinator: &mut Process,
) -> anyhow::Result<String> {
    let started = Instant::now();
    let name = match ledgers.get(victim) {
        Some(ledger) => {
            let server = std::sync::Arc::clone(&ledger.server);
            let again = move || {
                server.kill();
                server.start_again().map(|()| server.make().name())
            };
            tokio::task::spawn_blocking(again).await??
        }
        None => {
            coordinator.kill().await?;
            coordinator.start().await?;
            "the coordinator"
        }
    };
    let back_ms = started.elapsed().as_millis();
    Ok(format!("{name} killed (SIGKILL), and back after {back_ms} ms"))
}

/// The transfer of that number; one in twenty asks for more than there is.
fn drawn(ledgers: &[Ledger; 2], seed: u64, number: usize) -> TransactionRequest {
    let random = splitmix64(splitmix64(seed) ^ number as u64);
    let account = |bits: u64| i64::try_from(bits % ACCOUNTS.unsigned_abs()).unwrap_or(0);
    let cents = match random % 20 {
        0 => TOO_MUCH_CENTS,
        _ => 1 + account(random >> 16) % 90, // What there always is enough of.
    };
    let cents = if random >> 63 == 1 { -cents } else { cents };
    let accounts = [account(random >> 8), account(random >> 32)];
    let mut request = transfer(ledgers, &format!("demo-{number}"), accounts, cents);
    request.prepare_timeout_ms = Some(5_000);
    request
}

/// Asks under the same id until there is an outcome.
async fn outcome(client: &Client, request: &TransactionRequest) -> anyhow::Result<Outcome> {
    let started = Instant::now();
    loop {
        if let Ok(begun) = client.begin(request).await
            && let Some(outcome) = begun.outcome
        {
            return Ok(outcome);
        }
        if started.elapsed() > PATIENCE {
            bail!("{} has no outcome after {} s", id_of(request), PATIENCE.as_secs());
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn id_of(request: &TransactionRequest) -> &str {
    request.id.as_deref().unwrap_or_default()
}

/// What is wrong: money, entries that do not fit the outcomes, anything left in doubt.
async fn judge(
    client: &Client,
    ledgers: &[Ledger; 2],
    told: &Told,
    before: i64,
) -> anyhow::Result<Vec<String>> {
    let mut wrong = Vec::new();
    let after = money(ledgers).await?;
    if after != before {
        wrong.push(format!("money: {before} cents before, {after} after"));
    }
    let committed: BTreeSet<String> = told
        .iter()
        .filter(|(_, outcome)| **outcome == Outcome::Commit)
        .map(|(id, _)| id.clone())
        .collect();
    if committed.is_empty() {
        wrong.push("not one transfer was committed".to_owned());
    }
    for ledger in ledgers {
        let mut entries = ledger.entries().await?;
        entries.retain(|id| told.contains_key(id));
        if entries != committed {
            let (more, less) =
                (few(entries.difference(&committed)), few(committed.difference(&entries)));
            wrong.push(format!("{}: entries too many: {more}; missing: {less}", ledger.name));
        }
    }
    let view: InDoubtView = client.get_json("/v1/databases/in-doubt").await?;
    for database in view.databases {
        let left = database.prepared.len();
        if left != 0 || database.error.is_some() {
            let error = database.error.unwrap_or_default();
            wrong.push(format!("{}: {left} branches left in doubt {error}", database.name));
        }
    }
    Ok(wrong)
}

/// The first few of them, to be looked for in the history.
fn few<'a>(ids: impl Iterator<Item = &'a String>) -> String {
    let ids: Vec<&str> = ids.map(String::as_str).collect();
    let named = ids.iter().take(5).copied().collect::<Vec<_>>().join(", ");
    match ids.len() {
        0 => "none".to_owned(),
        1..=5 => named,
        more => format!("{named} and {} others", more - 5),
    }
}

fn report(
    arguments: &DemoArguments,
    told: &Told,
    wrong: &[String],
    before: i64,
    took: Duration,
    seed: u64,
) -> anyhow::Result<()> {
    let committed = told.values().filter(|outcome| **outcome == Outcome::Commit).count();
    let rolled_back = told.len() - committed;
    if arguments.json {
        let answer = json!({
            "committed": committed, "rolled_back": rolled_back, "money_cents": before,
            "wrong": wrong, "seconds": took.as_secs_f64(), "seed": seed,
        });
        anstream::println!("{}", serde_json::to_string_pretty(&answer)?);
        return Ok(());
    }
    anstream::println!(
        "\n{}\n   {committed} committed, {rolled_back} rolled back, in {:.1} s (seed {seed})",
        paint(HEADING, "4. The books"),
        took.as_secs_f64(),
    );
    if wrong.is_empty() {
        let sums = format!(
            "   {}.{:02} before and after; each database has an entry of every committed transfer \
             and of no other;\n   nothing is left in doubt",
            before / 100,
            before % 100
        );
        anstream::println!("{}", paint(GOOD, sums));
        anstream::println!("{}", paint(FAINT, "   unanimity in-doubt lists what is prepared"));
    }
    for one in wrong {
        anstream::println!("{}", paint(BAD, format!("   WRONG: {one}")));
    }
    Ok(())
}
