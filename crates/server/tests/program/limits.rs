//! What one transaction may cost others, what a message may do that comes again, and what the
//! coordinator may take: the limits, measured on the real program.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use unanimity_bank::Total;
use unanimity_server::demo::fleet::Fleet;
use unanimity_server::demo::load::transfer;

use crate::actor::{Actor, Hold};
use crate::ask::{Answer, Ask, Coordinator, request, soon, with};
use crate::setup::{Folder, completed, fleet, until};

/// Runs so many transactions, some at a time; every one must commit.
async fn all_commit(ask: &Ask, actor: &Actor, count: usize) {
    let mut running = JoinSet::new();
    for number in 0..count {
        let (ask, asked) = (ask.clone(), request(&format!("other-{number}"), &actor.two()));
        running.spawn(async move { ask.begin(&asked).await.json()["outcome"] == "commit" });
        if running.len() >= 50 {
            assert!(running.join_next().await.unwrap().unwrap());
        }
    }
    assert!(running.join_all().await.into_iter().all(|committed| committed));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_participant_that_hangs_in_prepare_costs_nobody_else_anything() {
    let flags = ["--attempt-timeout-ms", "600000"];
    let (hanging, healthy) = (Actor::start().await, Actor::start().await);
    let coordinator = Coordinator::start(&flags).await;
    let ask = &coordinator.ask;
    hanging.hold(Hold::Everybody);
    // More than there are connections to the participant that hangs.
    for number in 0..100 {
        let fields = [("prepare_timeout_ms", json!(600_000)), ("wait", json!("accepted"))];
        let participants = [healthy.at("a"), hanging.at("b")];
        ask.begin(&with(request(&format!("hung-{number}"), &participants), &fields)).await;
    }
    // This one's time runs out while the others run.
    let fields = [("prepare_timeout_ms", json!(400)), ("wait", json!("accepted"))];
    ask.begin(&with(request("timed", &[healthy.at("a"), hanging.at("b")]), &fields)).await;
    until("the hanging prepares", async || (hanging.held() >= 64).then_some(())).await;
    all_commit(ask, &healthy, 1_000).await;
    let (ids, _) = ask.list("state=preparing&limit=1000").await;
    assert_eq!(ids.iter().filter(|id| id.starts_with("hung-")).count(), 100);
    let timed = until("the timeout", async || {
        Some(ask.shown("timed").await).filter(|shown| shown["outcome"] == "rollback")
    })
    .await;
    assert_eq!(timed["reason"]["code"], "prepare_timeout");
    let took_ms = timed["decided_at_ms"].as_u64().unwrap() - timed["begun_at_ms"].as_u64().unwrap();
    assert!(took_ms >= 400, "{took_ms}");
    hanging.hold(Hold::Nobody);
    for number in 0..100 {
        assert_eq!(ask.ended(&format!("hung-{number}")).await["outcome"], "commit");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_prepare_that_hangs_leaves_its_participant_to_the_others() {
    let (actor, coordinator) = (Actor::start().await, Coordinator::start(&[]).await);
    actor.hold(Hold::Only("hung".to_owned()));
    let fields = [("prepare_timeout_ms", json!(600_000)), ("wait", json!("accepted"))];
    coordinator.ask.begin(&with(request("hung", &actor.two()), &fields)).await;
    until("the hanging prepares", async || (actor.held() >= 2).then_some(())).await;
    all_commit(&coordinator.ask, &actor, 1_000).await;
    assert_eq!(coordinator.ask.shown("hung").await["stage"], "preparing");
    actor.hold(Hold::Nobody);
    assert_eq!(coordinator.ask.ended("hung").await["outcome"], "commit");
}

/// Forwards every call three times to a bank, and answers as the bank did at last.
#[derive(Clone)]
struct Thrice {
    bank: Ask,
    /// Answers to a repetition that are not the first one's, and should be.
    strange: Arc<Mutex<Vec<String>>>,
}

impl Thrice {
    /// Starts it; gives back its address.
    async fn start(bank: &str, strange: &Arc<Mutex<Vec<String>>>) -> String {
        let thrice = Self { bank: Ask::anybody(bank), strange: Arc::clone(strange) };
        let router = Router::new().route("/{operation}", post(forward)).with_state(thrice);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        url
    }
}

async fn forward(
    State(thrice): State<Thrice>,
    Path(operation): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let answers = three_times(&thrice.bank, &operation, &headers, &body).await;
    for (one, next) in answers.iter().zip(&answers[1..]) {
        // A rollback may come between two prepares: the later one is refused then.
        let overtaken = (operation.as_str(), one.status, next.status) == ("prepare", 200, 409);
        if !overtaken && (one.status, &one.body) != (next.status, &next.body) {
            thrice.strange.lock().unwrap().push(format!("{operation}: {one:?} {next:?}"));
        }
    }
    let status = http::StatusCode::from_u16(answers[2].status).unwrap();
    (status, answers[2].body.clone()).into_response()
}

async fn three_times(
    bank: &Ask,
    operation: &str,
    headers: &HeaderMap,
    body: &Bytes,
) -> Vec<Answer> {
    let ours = |name: &str| name.starts_with("unanimity-") || name == "content-type";
    let headers: Vec<(&str, &[u8])> = headers
        .iter()
        .filter(|(name, _)| ours(name.as_str()))
        .map(|(name, value)| (name.as_str(), value.as_bytes()))
        .collect();
    let mut answers = Vec::new();
    for _ in 0..3 {
        let path = format!("/transactions/{operation}");
        answers.push(bank.send("POST", &path, &headers, body.clone()).await);
    }
    answers
}

async fn totals(fleet: &Fleet) -> [Total; 2] {
    let [a, b] = fleet.banks().unwrap();
    [a.get_json("/total").await.unwrap(), b.get_json("/total").await.unwrap()]
}

async fn balance(fleet: &Fleet, bank: usize, account: &str) -> (i64, i64) {
    let path = format!("/accounts/{account}");
    let account: Value = fleet.banks().unwrap()[bank].get_json(&path).await.unwrap();
    (account["balance"].as_i64().unwrap(), account["reserved"].as_i64().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_message_delivered_three_times_leaves_the_same_balances() {
    let folder = Folder::new();
    let mut fleet = fleet(&folder).await;
    let client = fleet.client().unwrap();
    let strange = Arc::default();
    let participants = [
        Thrice::start(&fleet.processes[1].url(), &strange).await,
        Thrice::start(&fleet.processes[2].url(), &strange).await,
    ];
    // 30 commit, 10 are refused by A for lack of money, 10 by B for want of an account.
    for number in 0..50 {
        let (cents, to) = match number % 5 {
            0 => (10_000_000, "B-2"),
            1 => (100, "B-nobody"),
            _ => (100, "B-2"),
        };
        let asked = transfer(&format!("t-{number}"), &participants, ["A-1", to], cents, 30_000);
        client.begin(&asked).await.unwrap();
    }
    for number in 0..50 {
        completed(&client, &format!("t-{number}")).await;
    }
    assert_eq!(balance(&fleet, 0, "A-1").await, (100_000 - 3_000, 0));
    assert_eq!(balance(&fleet, 1, "B-2").await, (100_000 + 3_000, 0));
    let [a, b] = totals(&fleet).await;
    assert_eq!((a.balance + b.balance, a.reserved, b.reserved), (20_000_000, 0, 0));
    assert_eq!((a.committed, b.committed, a.in_doubt, b.in_doubt), (30, 30, 0, 0));
    assert_eq!((a.contradictions, b.contradictions), (0, 0));
    assert_eq!((a.already_committed, b.already_committed), (0, 0));
    assert_eq!(*strange.lock().unwrap(), Vec::<String>::new());
    // Each bank has done 30 prepares and 30 commits, at least, and each was repeated twice.
    assert!(a.duplicates_absorbed >= 120 && b.duplicates_absorbed >= 120, "{a:?} {b:?}");
    fleet.stop().await.unwrap();
}

#[tokio::test]
async fn messages_that_come_again_around_a_real_transaction_change_nothing() {
    let folder = Folder::new();
    let mut fleet = fleet(&folder).await;
    let client = fleet.client().unwrap();
    let banks = [1, 2].map(|number: usize| Ask::anybody(&fleet.processes[number].url()));
    let deliver = async |bank: usize, id: &str, operation: &str, cents: i64| {
        let (branch, account) = [("debit", "A-1"), ("credit", "B-1")][bank];
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("unanimity-transaction", id),
            ("unanimity-branch", branch),
            ("unanimity-attempt", "1"),
            ("content-type", "application/json"),
        ] {
            headers.insert(http::HeaderName::from_static(name), value.parse().unwrap());
        }
        let body = json!({"account": account, "amount": cents}).to_string().into();
        let answers = three_times(&banks[bank], operation, &headers, &body).await;
        let alike = |answer: &Answer| (answer.status, answer.body.clone());
        assert!(answers.iter().all(|one| alike(one) == alike(&answers[0])), "{answers:?}");
        answers[0].status
    };
    let both =
        async |fleet: &Fleet| [balance(fleet, 0, "A-1").await, balance(fleet, 1, "B-1").await];
    // Prepares that come before the coordinator's own, which are then the repeated ones.
    assert_eq!(
        (deliver(0, "yes", "prepare", -700).await, deliver(1, "yes", "prepare", 700).await),
        (200, 200)
    );
    assert_eq!(both(&fleet).await, [(100_000, 700), (100_000, 0)]);
    let asked =
        |id: &str, cents| transfer(id, &fleet.participants(), ["A-1", "B-1"], cents, 30_000);
    client.begin(&asked("yes", 700)).await.unwrap();
    completed(&client, "yes").await;
    let moved = [(99_300, 0), (100_700, 0)];
    assert_eq!(both(&fleet).await, moved);
    for (operation, status) in
        [("prepare", 200), ("commit", 200), ("rollback", 409), ("commit", 200)]
    {
        for bank in [0, 1] {
            let cents = [-700, 700][bank];
            assert_eq!(deliver(bank, "yes", operation, cents).await, status, "{operation}");
        }
        assert_eq!(both(&fleet).await, moved, "{operation}");
    }
    // The rollback overtakes everything: what comes later is refused.
    assert_eq!(deliver(1, "no", "rollback", 700).await, 200);
    let refused = client.begin(&asked("no", 700)).await.unwrap();
    assert_eq!(refused.outcome, Some(unanimity_sdk::api::Outcome::Rollback));
    completed(&client, "no").await;
    for (operation, status) in
        [("prepare", 409), ("rollback", 200), ("commit", 409), ("rollback", 200)]
    {
        for bank in [0, 1] {
            let found = deliver(bank, "no", operation, [-700, 700][bank]).await;
            // Whether A had prepared when B refused is chance; it is rolled back either way.
            let prepared = bank == 0 && operation == "prepare" && found == 200;
            assert!(found == status || prepared, "{operation} at {bank}: {found}");
        }
        assert_eq!(both(&fleet).await, moved, "{operation}");
    }
    fleet.stop().await.unwrap();
}

/// Resident memory of a process, in KiB: now, and the most that it has been.
fn resident_kib(id: u32) -> (u64, u64) {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let number = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    (number("VmRSS:"), number("VmHWM:"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_concurrent_transactions_fit_into_100_mb_and_none_into_25() {
    // On a busy machine a thousand at once wait for longer than others should: none is refused.
    let flags = ["--queue-delay-target-ms", "0"];
    let (actor, coordinator) = (Actor::start().await, Coordinator::start(&flags).await);
    let ask = &coordinator.ask;
    let (idle, _) = resident_kib(coordinator.id());
    println!("idle: {idle} KiB");
    assert!(idle * 1024 < 25_000_000, "{idle} KiB");
    actor.hold(Hold::Everybody);
    let mut running = JoinSet::new();
    for number in 0..1_000 {
        let asked = request(&format!("t-{number}"), &actor.two());
        let mut asked = with(asked, &[("prepare_timeout_ms", json!(600_000))]);
        asked["branches"][0]["payload"] = json!("x".repeat(1_000));
        let ask = ask.clone();
        running.spawn(async move { ask.begin(&asked).await.json()["outcome"] == "commit" });
    }
    until("1,000 live transactions", async || {
        (ask.list("state=preparing&limit=1000").await.0.len() == 1_000).then_some(())
    })
    .await;
    let (held, _) = resident_kib(coordinator.id());
    actor.hold(Hold::Nobody);
    let committed = soon(running.join_all()).await;
    assert!(committed.len() == 1_000 && committed.into_iter().all(|committed| committed));
    let (after, most) = resident_kib(coordinator.id());
    println!("1,000 held: {held} KiB; afterwards {after} KiB, at most {most} KiB");
    assert!(most * 1024 < 100_000_000, "{most} KiB");
}

#[tokio::test]
async fn at_capacity_the_next_is_refused_and_later_is_not() {
    let flags = ["--live-transactions-max", "20"];
    let (actor, coordinator) = (Actor::start().await, Coordinator::start(&flags).await);
    let ask = &coordinator.ask;
    actor.hold(Hold::Everybody);
    let accepted = |number: usize| {
        let fields = [("prepare_timeout_ms", json!(600_000)), ("wait", json!("accepted"))];
        with(request(&format!("t-{number}"), &actor.two()), &fields)
    };
    for number in 0..20 {
        assert_eq!(ask.begin(&accepted(number)).await.status, 202);
    }
    for _ in 0..3 {
        let refused = ask.begin(&accepted(20)).await;
        assert_eq!((refused.status, &*refused.problem().0), (429, "at_capacity"));
        let after_s: u64 = refused.header("retry-after").parse().unwrap();
        assert!((1..=60).contains(&after_s), "{after_s}");
    }
    // Nothing of it was begun, and what is live can be asked for and is ready all the same.
    assert_eq!(ask.get("/v1/transactions/t-20").await.status, 404);
    assert_eq!(ask.begin(&accepted(7)).await.status, 202);
    assert_eq!(ask.get("/readyz").await.status, 200);
    assert_eq!(ask.list("limit=1000").await.0.len(), 20);
    // One goes, one may come.
    ask.send("POST", "/v1/transactions/t-3/rollback", &[], "").await;
    ask.ended("t-3").await;
    assert_eq!(ask.begin(&accepted(20)).await.status, 202);
    assert_eq!(ask.begin(&accepted(21)).await.status, 429);
    actor.hold(Hold::Nobody);
    for number in (0..21).filter(|number| *number != 3) {
        assert_eq!(ask.ended(&format!("t-{number}")).await["outcome"], "commit");
    }
    assert_eq!(ask.begin(&accepted(21)).await.status, 202);
    assert_eq!(ask.ended("t-21").await["outcome"], "commit");
}

#[tokio::test]
async fn a_client_beyond_the_connections_gets_its_turn() {
    let limits = ["--connections-max", "4", "--idle-timeout-ms", "600000"];
    let flags = [&limits[..], &["--header-timeout-ms", "600000"]].concat();
    let coordinator = Coordinator::start(&flags).await;
    let address = coordinator.url.trim_start_matches("http://").to_owned();
    let mut idle = Vec::new();
    for _ in 0..12 {
        idle.push(tokio::net::TcpStream::connect(&address).await.unwrap());
    }
    // They say nothing, and make room for one that does.
    let new = Ask::anybody(&coordinator.url);
    let answer = tokio::time::timeout(Duration::from_secs(50), new.get("/livez")).await;
    assert_eq!(answer.expect("a turn in time").status, 200);
    drop(idle);
}
