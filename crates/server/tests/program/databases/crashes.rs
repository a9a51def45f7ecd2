//! A mixed load over two database servers, while each server and the coordinator is killed with
//! SIGKILL again and again: databases as participants, services with a guard in a database of
//! theirs, and services that have the database prepare their branches. At the end every row that a
//! branch has written is held against the history, and nothing is left prepared but what was
//! foreign from the beginning.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::{Value, json};
use unanimity_databases::{Database, DatabaseOptions, Make};
use unanimity_server::demo::fleet::Process;

use super::world::{Look, die_and_start_again, own, statement};
use crate::ask::{Ask, Coordinator, JSON};
use crate::faults::long;
use crate::setup::{Folder, program, until};

const CLIENTS: usize = 6;
const ACCOUNTS: usize = 10;
const BALANCE: i64 = 1_000_000;
/// What was prepared by hand before the load, under a name that is nobody's of ours.
const FOREIGN: [&str; 2] = ["somebody else's work", "X'666f726569676e',X'00ff',99"];

/// One place where money is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Postgres(usize),
    Mariadb(usize),
    /// One of [`BANKS`].
    Bank(usize),
}

const PLACES: [Place; 8] = [
    Place::Postgres(0),
    Place::Postgres(1),
    Place::Mariadb(0),
    Place::Mariadb(1),
    Place::Bank(0),
    Place::Bank(1),
    Place::Bank(2),
    Place::Bank(3),
];

/// The services: on which server, and whether the database prepares their branches.
const BANKS: [(usize, bool); 4] = [(0, false), (1, false), (0, true), (1, true)];
const BANK_NAMES: [&str; 4] = ["guard_pg", "guard_my", "xa_pg", "xa_my"];

impl Place {
    fn participant(self, banks: &[String]) -> String {
        match self {
            Self::Postgres(number) => format!("db:pg{number}"),
            Self::Mariadb(number) => format!("db:my{number}"),
            Self::Bank(number) => banks[number].clone(),
        }
    }

    fn work(self, id: &str, account: usize, amount: i64) -> Value {
        let make = match self {
            Self::Bank(_) => {
                return json!({"account": format!("A-{}", account + 1), "amount": amount});
            }
            Self::Postgres(_) => Make::PostgreSql,
            Self::Mariadb(_) => Make::MariaDb,
        };
        let change =
            "UPDATE account SET balance = balance + $1 WHERE id = $2 AND balance + $3 >= 0";
        let entry = "INSERT INTO entry (transaction_id, amount) VALUES ($1, $2)";
        json!({"statements": [
            statement(make, change, json!([amount, account, amount]), json!(1)),
            statement(make, entry, json!([id, amount]), json!(1)),
        ]})
    }
}

/// A small generator, so that a run can be told by its seed.
struct Draw(u64);

impl Draw {
    fn below(&mut self, most: usize) -> usize {
        self.0 = unanimity_sdk::splitmix64(self.0);
        usize::try_from(self.0 % u64::try_from(most).unwrap()).unwrap()
    }
}

/// A transfer between two places; every tenth asks for more than there is.
fn request(id: &str, banks: &[String], draw: &mut Draw) -> (Value, [Place; 2]) {
    let from = PLACES[draw.below(PLACES.len())];
    let others: Vec<Place> = PLACES.into_iter().filter(|place| *place != from).collect();
    let to = others[draw.below(others.len())];
    let amount =
        if draw.below(10) == 0 { BALANCE * 3 } else { i64::try_from(1 + draw.below(100)).unwrap() };
    let branches = [("from", from, -amount), ("to", to, amount)].map(|(name, place, amount)| {
        let account = draw.below(ACCOUNTS);
        json!({"name": name, "participant": place.participant(banks),
            "payload": place.work(id, account, amount)})
    });
    let request = json!({"id": id, "branches": branches, "prepare_timeout_ms": 4_000,
        "attempt_timeout_ms": 2_000, "wait": "outcome"});
    (request, [from, to])
}

/// Makes the tables of one database.
async fn fill(url: &str) {
    let mut look = Look::into(url).await;
    look.rows("CREATE TABLE account (id int PRIMARY KEY, balance bigint NOT NULL)").await;
    look.rows(
        "CREATE TABLE entry (transaction_id varchar(100) PRIMARY KEY, amount bigint NOT NULL)",
    )
    .await;
    for account in 0..ACCOUNTS {
        look.rows(&format!("INSERT INTO account VALUES ({account}, {BALANCE})")).await;
    }
    look.rows("CREATE TABLE untouched (id int PRIMARY KEY)").await;
}

async fn prepare_foreign(make: Make, url: &str) {
    let mut look = Look::into(url).await;
    let insert = "INSERT INTO untouched VALUES (1)";
    let sql = match make {
        Make::PostgreSql => {
            let name = FOREIGN[0].replace('\'', "''");
            vec!["BEGIN".into(), insert.into(), format!("PREPARE TRANSACTION '{name}'")]
        }
        Make::MariaDb => {
            let name = FOREIGN[1];
            let (start, end) = (format!("XA START {name}"), format!("XA END {name}"));
            vec![start, insert.into(), end, format!("XA PREPARE {name}")]
        }
    };
    for one in sql {
        look.rows(&one).await;
    }
}

/// Everything that is killed.
struct Ensemble {
    servers: [Arc<Database>; 2],
    urls: BTreeMap<Place, String>,
    coordinator: tokio::sync::Mutex<Coordinator>,
    banks: Vec<Process>,
    ask: Ask,
}

impl Ensemble {
    async fn start(folder: &Folder) -> Self {
        let names = || vec!["first".to_owned(), "second".to_owned()];
        let all = [names(), BANK_NAMES.map(str::to_owned).to_vec()].concat();
        let options = || DatabaseOptions { databases: all.clone(), ..DatabaseOptions::default() };
        let servers = [own(Make::PostgreSql, options()).await, own(Make::MariaDb, options()).await];
        let mut urls = BTreeMap::new();
        let mut config = String::new();
        for (number, name) in names().iter().enumerate() {
            let (postgres, mariadb) = (servers[0].url_of(name), servers[1].url_of(name));
            for (short, url) in [("pg", &postgres), ("my", &mariadb)] {
                fill(url).await;
                config.push_str(&format!(
                    "[databases.{short}{number}]\nurl = {url:?}\nstatements = \"any\"\n\
                     sweep_ms = 300\norphan_ms = 3000\nlock_timeout_ms = 1000\npool_max = 12\n"
                ));
            }
            urls.insert(Place::Postgres(number), postgres);
            urls.insert(Place::Mariadb(number), mariadb);
        }
        prepare_foreign(Make::PostgreSql, &urls[&Place::Postgres(0)]).await;
        prepare_foreign(Make::MariaDb, &urls[&Place::Mariadb(0)]).await;
        let path = folder.path().join("unanimity.toml");
        std::fs::write(&path, config).unwrap();
        let path = path.display().to_string();
        let flags = [
            "--config",
            &path,
            "--retry-delay-ms",
            "50",
            "--retry-delay-max-ms",
            "500",
            "--parked-retry-delay-ms",
            "500",
        ];
        let coordinator = Coordinator::start(&flags).await;
        let mut banks = Vec::new();
        for (name, (server, xa)) in BANK_NAMES.into_iter().zip(BANKS) {
            let url = servers[server].url_of(name);
            let mut arguments: Vec<&str> =
                vec!["bank", "--database", &url, "--coordinator", &coordinator.url];
            arguments.extend("--accounts 10 --balance 1000000 --in-doubt-after-ms 2000".split(' '));
            arguments.extend("--lock-timeout-ms 1000 --connections-max 8".split(' '));
            arguments.extend(xa.then_some("--xa"));
            let arguments = arguments.into_iter().map(str::to_owned).collect();
            let mut bank = Process::new(name, program(), folder.path(), arguments);
            bank.start().await.unwrap();
            banks.push(bank);
        }
        let ask = Ask::anybody(&coordinator.url);
        Self { servers, urls, coordinator: tokio::sync::Mutex::new(coordinator), banks, ask }
    }

    /// Kills one of the three and starts it again.
    async fn kill(&self, victim: usize) {
        match self.servers.get(victim) {
            Some(server) => die_and_start_again(server).await,
            None => {
                let mut coordinator = self.coordinator.lock().await;
                coordinator.kill().await;
                coordinator.start_again().await;
            }
        }
    }

    /// Asks until there is an outcome.
    async fn outcome(&self, request: &Value) -> String {
        let body = request.to_string();
        until("an outcome", async || {
            let sent = self.ask.try_send("POST", "/v1/transactions", &JSON, body.clone()).await;
            let answer = sent.ok().filter(|answer| [200, 202].contains(&answer.status))?;
            answer.json()["outcome"].as_str().map(str::to_owned)
        })
        .await
    }
}

/// What the clients were told: for each transaction its places and its outcome.
type Told = BTreeMap<String, ([Place; 2], String)>;

async fn client(
    ensemble: &Ensemble,
    number: usize,
    banks: &[String],
    stop: &AtomicBool,
    done: &AtomicUsize,
) -> Told {
    let (mut told, mut draw) = (Told::new(), Draw(7 + u64::try_from(number).unwrap()));
    for turn in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let id = format!("c{number}-{turn}");
        let (request, places) = request(&id, banks, &mut draw);
        let outcome = ensemble.outcome(&request).await;
        told.insert(id, (places, outcome));
        done.fetch_add(1, Ordering::Relaxed);
    }
    told
}

/// The rows that branches have written in one place: the transactions that it says are committed.
async fn written(ensemble: &Ensemble, place: Place) -> BTreeSet<String> {
    if let Place::Bank(number) = place {
        let bank = Ask::anybody(&ensemble.banks[number].url());
        let text = bank.get("/branches").await.text();
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let committed = lines.filter(|line| line["state"] == "committed");
        return committed.map(|line| line["transaction"].as_str().unwrap().to_owned()).collect();
    }
    let mut look = Look::into(&ensemble.urls[&place]).await;
    let rows = look.rows("SELECT transaction_id FROM entry").await;
    let sums = look
        .rows(
            "SELECT (SELECT SUM(balance) FROM account) - COALESCE(SUM(amount), 0) FROM \
        entry",
        )
        .await;
    assert_eq!(sums[0][0], (BALANCE * i64::try_from(ACCOUNTS).unwrap()).to_string(), "{place:?}");
    rows.into_iter().map(|mut row| row.remove(0)).collect()
}

/// Every branch that the history says is committed has its row, and nobody else has one.
async fn judge(ensemble: &Ensemble, told: &Told) {
    for id in told.keys() {
        let shown = until("the transaction to complete", async || {
            let sent =
                ensemble.ask.try_send("GET", &format!("/v1/transactions/{id}"), &[], "").await;
            Some(sent.ok()?.json()).filter(|shown| shown["completed"] == true)
        })
        .await;
        assert_eq!(shown["outcome"], told[id].1.as_str(), "{shown}");
        assert!(shown["heuristic"].is_null(), "{shown}");
    }
    for place in PLACES {
        let committed = |(id, (places, outcome)): (&String, &([Place; 2], String))| {
            (places.contains(&place) && outcome == "commit").then(|| id.clone())
        };
        let expected: BTreeSet<String> = told.iter().filter_map(committed).collect();
        let found = written(ensemble, place).await;
        let missing: Vec<_> = expected.difference(&found).collect();
        let surplus: Vec<_> = found.difference(&expected).collect();
        let mut courses = String::new();
        for id in missing.iter().chain(&surplus) {
            let course = format!("/v1/transactions/{id}/timeline");
            courses.push_str(&ensemble.ask.get(&course).await.text());
        }
        assert!(
            missing.is_empty() && surplus.is_empty(),
            "{place:?}: {missing:?} {surplus:?}\n{courses}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn databases_and_history_agree_whatever_is_killed() {
    let kills_each = if long() { 100 } else { 3 };
    let folder = Folder::new();
    let ensemble = Ensemble::start(&folder).await;
    let banks: Vec<String> =
        ensemble.banks.iter().map(|bank| format!("{}/transactions", bank.url())).collect();
    let (stop, done) = (AtomicBool::new(false), AtomicUsize::new(0));
    let clients = (0..CLIENTS).map(|number| client(&ensemble, number, &banks, &stop, &done));
    let killing = async {
        for kill in 0..kills_each * 3 {
            // Each kill falls into running work: so many transactions must have gone on meanwhile.
            let wanted = done.load(Ordering::Relaxed) + 20 + kill % 7;
            until("work to go on", async || (done.load(Ordering::Relaxed) >= wanted).then_some(()))
                .await;
            ensemble.kill(kill % 3).await;
        }
        stop.store(true, Ordering::Relaxed);
    };
    let (told, ()) = tokio::join!(futures_util::future::join_all(clients), killing);
    let told: Told = told.into_iter().flatten().collect();
    judge(&ensemble, &told).await;
    let mut left = Vec::new();
    for (server, expected) in ensemble.servers.iter().zip(["somebody else's work", "foreign"]) {
        let mut look = Look::into(&server.url_of("first")).await;
        let prepared = until("only the foreign branch to be left", async || {
            let prepared = look.prepared().await;
            (prepared.len() == 1).then_some(prepared)
        })
        .await;
        assert!(prepared[0].contains(expected), "{prepared:?}");
        left.extend(prepared);
        assert_eq!(look.number("SELECT COUNT(*) FROM untouched").await, 0);
    }
    let committed = told.values().filter(|(_, outcome)| outcome == "commit").count();
    println!("{} kills of each, {} transactions, {committed} committed", kills_each, told.len());
    assert!(committed > 0 && committed < told.len());
}
