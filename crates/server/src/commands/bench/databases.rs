//! `unanimity bench --databases`: what atomicity costs. One transfer is a change of an account in
//! each of two PostgreSQL databases, of a server that the bench starts itself. It is measured as
//! two plain local transactions side by side, with nobody to make them one (the floor: what the
//! databases themselves can do from here), and in the ways that make them one. Beside each way
//! stands what the databases alone make of its statements, sent by hand from here without a
//! coordinator, a service or a decision on record: whatever coordinates them, the way cannot do
//! better than that.
//!
//! The load is a closed loop of N initiators, as in the rest of the bench. Accounts are many, so
//! that transfers seldom meet. At the end all money must be there.

use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};
use tokio_postgres::types::ToSql;
use tokio_postgres::{NoTls, Statement};
use unanimity::core::splitmix64;
use unanimity_databases::{Database, DatabaseOptions, Make};
use unanimity_sdk::api::{BranchRequest, Json, Outcome, TransactionRequest};
use unanimity_sdk::{Client, ClientOptions};

use super::BenchArguments;
use super::measure::{Load, Measured, Turn, Window, measure};
use super::usage::Usage;
use crate::commands::Ended;
use crate::demo::fleet::Process;
use crate::draw::{FAINT, HEADING, paint};

/// How many initiators unless the command line says otherwise.
const INITIATORS: usize = 64;
/// How many accounts each database has.
const ACCOUNTS: u64 = 10_000;
const BALANCE: i64 = 1_000_000;
const CHANGE: &str =
    "UPDATE account SET balance = balance + $1 WHERE id = $2 AND balance + $1 >= 0";
/// The databases of the plain transfers and of the database participants.
const NAMES: [&str; 2] = ["first", "second"];
/// Those of the services with a guard, and of those that use the XA helper.
const GUARDED: [&str; 2] = ["guarded_a", "guarded_b"];
const XA: [&str; 2] = ["xa_a", "xa_b"];

/// Runs it, in `folder`.
pub(super) async fn databases(arguments: &BenchArguments, folder: &Path) -> Ended {
    let initiators = arguments.concurrency.first().copied().unwrap_or(INITIATORS).max(1);
    let options = DatabaseOptions {
        databases: [NAMES, GUARDED, XA].concat().into_iter().map(str::to_owned).collect(),
        connections_max: u32::try_from(initiators * 6 + 50).unwrap_or(1_000),
        prepared_transactions_max: u32::try_from(initiators * 4 + 50).unwrap_or(1_000),
        ..DatabaseOptions::default()
    };
    let started = tokio::task::spawn_blocking(move || Database::start(Make::PostgreSql, &options));
    let server = started.await??;
    for name in NAMES {
        fill(&server.url_of(name)).await?;
    }
    let floor = by_hand(arguments, &server, initiators, ByHand::Plain).await?;
    let twice = by_hand(arguments, &server, initiators, ByHand::Twice).await?;
    let prepared = by_hand(arguments, &server, initiators, ByHand::Prepared).await?;
    let mut rows = vec![
        row("plain, not atomic", &floor, &floor, None),
        row("two local transactions, by hand", &twice, &floor, None),
        row("prepared transactions, by hand", &prepared, &floor, None),
    ];
    for (way, names, flags, alone) in [
        ("services with a guard", GUARDED, &[][..], &twice),
        ("services with XA", XA, &["--xa"], &prepared),
    ] {
        let measured = services(arguments, &server, folder, initiators, names, flags).await?;
        rows.push(row(way, &measured, &floor, Some(alone)));
    }
    let atomic = participants(arguments, &server, folder, initiators).await?;
    rows.push(row("database participants", &atomic, &floor, Some(&prepared)));
    let sound = money(&server).await? == 6 * BALANCE * i64::try_from(ACCOUNTS)?;
    tell(arguments, &rows, initiators, sound)?;
    let failures = rows.iter().any(|row| row["failures"] != 0);
    Ok(if sound && !failures { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn row(way: &str, measured: &Measured, floor: &Measured, alone: Option<&Measured>) -> Value {
    json!({
        "way": way,
        "committed_per_second": measured.per_second,
        "p50_ms": measured.latency.p50_ms,
        "p99_ms": measured.latency.p99_ms,
        "failures": measured.failed,
        "of_floor": measured.per_second / floor.per_second,
        "of_databases_alone": alone.map(|alone| measured.per_second / alone.per_second),
    })
}

fn tell(
    arguments: &BenchArguments,
    rows: &[Value],
    initiators: usize,
    sound: bool,
) -> anyhow::Result<()> {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    if arguments.json {
        let answer = json!({
            "rows": rows, "initiators": initiators, "accounts": ACCOUNTS, "cores": cores,
            "seconds": arguments.seconds, "money_conserved": sound,
            "version": env!("CARGO_PKG_VERSION"),
        });
        anstream::println!("{}", serde_json::to_string_pretty(&answer)?);
        return Ok(());
    }
    let title = format!("Transfers between two PostgreSQL databases, {initiators} initiators");
    anstream::println!("{}", paint(HEADING, title));
    let heads = ["", "committed/s", "p50 ms", "p99 ms", "of the floor", "of its own by hand"];
    let [way, rate, p50, p99, share, alone] = heads;
    anstream::println!("{way:<32} {rate:>12} {p50:>9} {p99:>9} {share:>13} {alone:>19}");
    for row in rows {
        let number = |name: &str| row[name].as_f64().unwrap_or_default();
        anstream::println!(
            "{:<32} {:>12.0} {:>9.1} {:>9.1} {:>12.0}% {:>19}",
            row["way"].as_str().unwrap_or_default(),
            number("committed_per_second"),
            number("p50_ms"),
            number("p99_ms"),
            number("of_floor") * 100.0,
            row["of_databases_alone"]
                .as_f64()
                .map_or(String::new(), |share| format!("{:.0}%", share * 100.0)),
        );
    }
    let kept = if sound { "all money was there at the end" } else { "MONEY IS MISSING" };
    let note = format!("{cores} cores for all processes, PostgreSQL's included; {kept}");
    anstream::println!("{}", paint(FAINT, note));
    Ok(())
}

async fn connect(url: &str) -> anyhow::Result<tokio_postgres::Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.context("PostgreSQL")?;
    // How a connection ends is told to whoever uses it.
    tokio::spawn(async move { drop(connection.await) });
    Ok(client)
}

async fn fill(url: &str) -> anyhow::Result<()> {
    let client = connect(url).await?;
    let sql = format!(
        "CREATE TABLE account (id bigint PRIMARY KEY, balance bigint NOT NULL); \
         CREATE TABLE held (id text PRIMARY KEY, account bigint NOT NULL, amount bigint NOT NULL); \
         INSERT INTO account SELECT n, {BALANCE} FROM generate_series(0, {}) n; \
         VACUUM ANALYZE account",
        ACCOUNTS - 1
    );
    for one in sql.split("; ") {
        client.batch_execute(one).await?;
    }
    Ok(())
}

async fn money(server: &Database) -> anyhow::Result<i64> {
    let mut sum = 0;
    for name in [NAMES, GUARDED, XA].concat() {
        let client = connect(&server.url_of(name)).await?;
        let row = client.query_one("SELECT sum(balance)::bigint FROM account", &[]).await?;
        sum += row.get::<_, i64>(0);
    }
    Ok(sum)
}

/// So many initiators, each beginning its next transfer when the last is done.
async fn closed_loop<F, T>(initiators: usize, seconds: u64, turn: F) -> anyhow::Result<Measured>
where
    F: Fn() -> T + Clone + Send + Sync + 'static,
    T: Future<Output = bool> + Send + 'static,
{
    let window = Window::of(Duration::from_secs(seconds));
    let turn = move || {
        let turned = turn();
        async move { if turned.await { Turn::Done } else { Turn::Failed } }
    };
    measure(Load::Closed(initiators), window, async || Usage::default(), turn).await
}

/// A pair of accounts and an amount, another one each time.
fn draw(number: &AtomicU64) -> (i64, i64, i64) {
    let random = splitmix64(number.fetch_add(1, Ordering::Relaxed));
    let account = |bits: u64| i64::try_from(bits % ACCOUNTS).unwrap_or(0);
    let amount = 1 + i64::try_from(random % 9).unwrap_or(0);
    (account(random >> 8), account(random >> 32), amount)
}

/// What is sent to the two databases of a transfer, without anybody to coordinate it.
#[derive(Clone, Copy)]
enum ByHand {
    /// The change alone: whatever comes in between stays.
    Plain,
    /// A local transaction that holds, and one that changes: what a service with a guard does.
    Twice,
    /// A transaction that is prepared, and committed when both are.
    Prepared,
}

/// A connection with its statements: the change, and what holds and lets go.
struct Ready {
    client: tokio_postgres::Client,
    change: Statement,
    hold: Statement,
    let_go: Statement,
}

impl Ready {
    async fn connect(url: &str) -> anyhow::Result<Self> {
        let client = connect(url).await?;
        client.batch_execute("SET lock_timeout = '200ms'").await?;
        let change = client.prepare(CHANGE).await?;
        let hold = client.prepare("INSERT INTO held VALUES ($1, $2, $3)").await?;
        let let_go = client.prepare("DELETE FROM held WHERE id = $1").await?;
        Ok(Self { client, change, hold, let_go })
    }

    /// The statements of each phase go out together and cost one round trip.
    async fn phase_one(&self, way: ByHand, id: &String, account: i64, amount: i64) -> bool {
        let client = &self.client;
        match way {
            ByHand::Plain => {
                matches!(client.execute(&self.change, &[&amount, &account]).await, Ok(1))
            }
            ByHand::Twice => {
                let parameters: [&(dyn ToSql + Sync); 3] = [id, &account, &amount];
                let (begun, held, ended) = tokio::join!(
                    client.batch_execute("BEGIN"),
                    client.execute(&self.hold, &parameters),
                    client.batch_execute("COMMIT"),
                );
                matches!((begun, held, ended), (Ok(()), Ok(1), Ok(())))
            }
            ByHand::Prepared => {
                let (prepare, parameters) = (
                    format!("PREPARE TRANSACTION '{id}'"),
                    [&amount as &(dyn ToSql + Sync), &account],
                );
                let (begun, changed, ended) = tokio::join!(
                    client.batch_execute("BEGIN"),
                    client.execute(&self.change, &parameters),
                    client.batch_execute(&prepare),
                );
                matches!((begun, changed, ended), (Ok(()), Ok(1), Ok(())))
            }
        }
    }

    async fn undo(&self, id: &str) -> bool {
        self.client.batch_execute(&format!("ROLLBACK PREPARED '{id}'")).await.is_ok()
    }

    async fn phase_two(&self, way: ByHand, id: &String, account: i64, amount: i64) -> bool {
        let client = &self.client;
        match way {
            ByHand::Plain => true,
            ByHand::Twice => {
                let (ids, parameters): ([&(dyn ToSql + Sync); 1], [&(dyn ToSql + Sync); 2]) =
                    ([id], [&amount, &account]);
                let (begun, let_go, changed, ended) = tokio::join!(
                    client.batch_execute("BEGIN"),
                    client.execute(&self.let_go, &ids),
                    client.execute(&self.change, &parameters),
                    client.batch_execute("COMMIT"),
                );
                matches!((begun, let_go, changed, ended), (Ok(()), Ok(1), Ok(1), Ok(())))
            }
            ByHand::Prepared => {
                client.batch_execute(&format!("COMMIT PREPARED '{id}'")).await.is_ok()
            }
        }
    }
}

/// Each transfer as the databases alone do it.
async fn by_hand(
    arguments: &BenchArguments,
    server: &Database,
    initiators: usize,
    way: ByHand,
) -> anyhow::Result<Measured> {
    let mut pairs = Vec::new();
    for _ in 0..initiators {
        let mut pair = Vec::new();
        for name in NAMES {
            pair.push(Ready::connect(&server.url_of(name)).await?);
        }
        pairs.push(pair);
    }
    let (pairs, number) = (Arc::new(Mutex::new(pairs)), Arc::new(AtomicU64::new(1)));
    closed_loop(initiators, arguments.seconds, move || {
        let (pairs, number) = (Arc::clone(&pairs), Arc::clone(&number));
        async move {
            let taken = pairs.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some(pair) = taken else { return false };
            let moved = moved(&pair, &number, way).await;
            pairs.lock().unwrap_or_else(PoisonError::into_inner).push(pair);
            moved
        }
    })
    .await
}

async fn moved(pair: &[Ready], number: &AtomicU64, way: ByHand) -> bool {
    let [first, second] = pair else { return false };
    let (from, to, amount) = draw(number);
    // Names of what is prepared are the server's, and not the database's.
    let own = number.fetch_add(1, Ordering::Relaxed);
    let ids = [format!("by-hand-{own}-a"), format!("by-hand-{own}-b")];
    // Two that wait for each other in different databases are seen by neither: whoever has waited
    // too long gives up, and begins anew.
    loop {
        let (done, other) = tokio::join!(
            first.phase_one(way, &ids[0], from, -amount),
            second.phase_one(way, &ids[1], to, amount)
        );
        match (way, done, other) {
            (_, true, true) => break,
            (ByHand::Prepared, true, false) if first.undo(&ids[0]).await => {}
            (ByHand::Prepared, false, true) if second.undo(&ids[1]).await => {}
            (ByHand::Prepared, false, false) => {}
            _ => return false, // What is not prepared waits for nobody.
        }
    }
    let (done, other) = tokio::join!(
        first.phase_two(way, &ids[0], from, -amount),
        second.phase_two(way, &ids[1], to, amount)
    );
    done && other
}

/// Two services, each with its accounts in a database of its own.
async fn services(
    arguments: &BenchArguments,
    server: &Database,
    folder: &Path,
    initiators: usize,
    names: [&str; 2],
    flags: &[&str],
) -> anyhow::Result<Measured> {
    let program = std::env::current_exe()?;
    let folder = folder.join(names[0]);
    std::fs::create_dir_all(&folder)?;
    let data = folder.join("coordinator").display().to_string();
    let words = ["serve", "--data-folder", &data, "--log-level", "warn"].map(str::to_owned);
    let mut coordinator = Process::new("coordinator", &program, &folder, words.into());
    coordinator.start().await?;
    let mut banks = Vec::new();
    for (process, bank, name) in [("bank-a", "A", names[0]), ("bank-b", "B", names[1])] {
        let (url, connections) = (server.url_of(name), initiators.to_string());
        let (accounts, balance) = (ACCOUNTS.to_string(), BALANCE.to_string());
        let coordinator = coordinator.url();
        let words = ["bank", "--name", bank, "--database", &url, "--accounts", &accounts];
        let more = ["--balance", &balance, "--connections-max", &connections, "--coordinator"];
        let words = words.into_iter().chain(more).chain([coordinator.as_str()]);
        let words = words.chain(flags.iter().copied()).map(str::to_owned).collect();
        let mut bank = Process::new(process, &program, &folder, words);
        bank.start().await?;
        banks.push(bank);
    }
    let at = |bank: &Process| format!("{}/transactions", bank.url());
    let participants = [at(&banks[0]), at(&banks[1])];
    let measured = load(arguments, &coordinator, initiators, move |number| {
        let (from, to, amount) = draw(number);
        let branches = [("A", from, -amount), ("B", to, amount)].into_iter().zip(&participants);
        let branches = branches.map(|((bank, account, amount), participant)| BranchRequest {
            name: bank.to_owned(),
            participant: participant.clone(),
            payload: Json::from_value(
                &json!({"account": format!("{bank}-{}", account + 1), "amount": amount}),
            )
            .unwrap_or_default(),
            ..BranchRequest::default()
        });
        TransactionRequest { branches: branches.collect(), ..TransactionRequest::default() }
    })
    .await?;
    coordinator.stop().await?;
    for bank in &mut banks {
        bank.stop().await?;
    }
    Ok(measured)
}

/// N initiators in a closed loop, each request made anew.
async fn load(
    arguments: &BenchArguments,
    coordinator: &Process,
    initiators: usize,
    request: impl Fn(&AtomicU64) -> TransactionRequest + Send + Sync + 'static,
) -> anyhow::Result<Measured> {
    let options = ClientOptions { requests_max: initiators, ..ClientOptions::default() };
    let client = Client::with_options(&coordinator.url(), None, options)?;
    let (number, request) = (Arc::new(AtomicU64::new(1 << 40)), Arc::new(request));
    closed_loop(initiators, arguments.seconds, move || {
        let (client, number, request) = (client.clone(), Arc::clone(&number), Arc::clone(&request));
        async move {
            let begun = client.begin(&request(&number)).await;
            begun.is_ok_and(|begun| begun.outcome == Some(Outcome::Commit))
        }
    })
    .await
}

/// The coordinator prepares and commits both.
async fn participants(
    arguments: &BenchArguments,
    server: &Database,
    folder: &Path,
    initiators: usize,
) -> anyhow::Result<Measured> {
    let mut config = String::new();
    for name in NAMES {
        config.push_str(&format!(
            "[databases.{name}]\nurl = {:?}\nstatements = [{CHANGE:?}]\npool_max = {}\n",
            server.url_of(name),
            (initiators * 2).max(8),
        ));
    }
    let path = folder.join("databases.toml");
    std::fs::write(&path, config)?;
    let words = ["serve", "--config", &path.display().to_string(), "--data-folder"];
    let mut words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    words.push(folder.join("databases").display().to_string());
    words.extend(["--log-level", "warn"].map(str::to_owned));
    let mut coordinator = Process::new("coordinator", &std::env::current_exe()?, folder, words);
    coordinator.start().await?;
    let measured = load(arguments, &coordinator, initiators, transfer).await?;
    coordinator.stop().await?;
    Ok(measured)
}

fn transfer(number: &AtomicU64) -> TransactionRequest {
    let (from, to, amount) = draw(number);
    let branches = [("debit", NAMES[0], -amount, from), ("credit", NAMES[1], amount, to)];
    let branches = branches.map(|(name, database, amount, account)| BranchRequest {
        name: name.to_owned(),
        participant: format!("db:{database}"),
        payload: Json::from_value(&json!({"statements": [
            {"sql": CHANGE, "parameters": [amount, account], "rows": 1}
        ]}))
        .unwrap_or_default(),
        ..BranchRequest::default()
    });
    TransactionRequest { branches: branches.into(), ..TransactionRequest::default() }
}
