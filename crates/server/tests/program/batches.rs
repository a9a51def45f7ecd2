//! Participants that take several calls in one request: under load calls do go together, and the
//! money is right, also where batches are refused on their way, or break off in the middle.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use unanimity_sdk::{
    BranchContext, MemoryParticipant, MemoryService, ServiceResult, Vote, axum, router,
};

use crate::ask::{Coordinator, request, soon, with};

/// An account, and how often each transaction has done what.
#[derive(Default)]
struct Account {
    books: Mutex<Books>,
}

#[derive(Default)]
struct Books {
    balance: i64,
    held: BTreeMap<String, i64>,
    done: BTreeMap<String, usize>,
}

impl Account {
    fn settle(&self, branch: &BranchContext, commits: bool) {
        let mut books = self.books.lock().unwrap();
        books.note(branch);
        let held = books.held.remove(branch.transaction.as_str()).unwrap_or(0);
        books.balance += if commits { held } else { 0 };
    }
}

impl Books {
    fn note(&mut self, branch: &BranchContext) {
        let line = format!("{} {}", branch.operation.as_str(), branch.transaction);
        *self.done.entry(line).or_default() += 1;
    }
}

impl MemoryService for Account {
    fn prepare(&self, branch: &BranchContext, payload: &[u8]) -> ServiceResult<Vote> {
        let payload: Value = serde_json::from_slice(payload)?;
        let Some(amount) = payload["amount"].as_i64() else { return Ok(Vote::no("no amount")) };
        let mut books = self.books.lock().unwrap();
        books.note(branch);
        books.held.insert(branch.transaction.to_string(), amount);
        Ok(Vote::Yes)
    }

    fn commit(&self, branch: &BranchContext, _: &[u8]) -> ServiceResult<()> {
        self.settle(branch, true);
        Ok(())
    }

    fn rollback(&self, branch: &BranchContext, _: &[u8]) -> ServiceResult<()> {
        self.settle(branch, false);
        Ok(())
    }
}

/// What stands before a participant, and does to batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Does {
    /// Passes everything on.
    Passes,
    /// Knows single calls only.
    Refuses,
    /// Passes every batch on, and of every second one only half of the answers back.
    BreaksOff,
}

#[derive(Debug)]
struct Between {
    does: Does,
    batches: AtomicUsize,
    calls_in_batches: AtomicUsize,
    single: AtomicUsize,
    /// Whether requests have to wait before they are passed on.
    holds: watch::Sender<bool>,
}

async fn between(State(it): State<Arc<Between>>, asked: Request, next: Next) -> Response {
    // dropped: it can only say that the sender is gone, and this holds it.
    drop(it.holds.subscribe().wait_for(|holds| !holds).await);
    if asked.uri().path() != "/batch" {
        it.single.fetch_add(1, Ordering::SeqCst);
        return next.run(asked).await;
    }
    let number = it.batches.fetch_add(1, Ordering::SeqCst);
    if it.does == Does::Refuses {
        return StatusCode::NOT_FOUND.into_response();
    }
    let answer = next.run(asked).await;
    let (head, body) = answer.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let lines = body.iter().filter(|byte| **byte == b'\n').count();
    it.calls_in_batches.fetch_add(lines, Ordering::SeqCst);
    if it.does == Does::Passes || number % 2 == 0 {
        return Response::from_parts(head, Body::from(body));
    }
    let half = Ok(body.slice(..body.len() / 2));
    let cut = Err(std::io::Error::other("cut off"));
    let mut response = Response::new(Body::from_stream(futures_util::stream::iter([half, cut])));
    let media = head.headers["content-type"].clone();
    response.headers_mut().insert("content-type", media);
    response
}

struct Bank {
    participant: Arc<MemoryParticipant<Account>>,
    between: Arc<Between>,
    url: String,
}

impl Bank {
    async fn start(does: Does) -> Self {
        let participant = Arc::new(MemoryParticipant::new(Account::default()));
        let counter = || AtomicUsize::new(0);
        let (batches, calls_in_batches, single) = (counter(), counter(), counter());
        let (holds, _) = watch::channel(false);
        let between_ = Arc::new(Between { does, batches, calls_in_batches, single, holds });
        let app =
            router(participant.clone()).layer(from_fn_with_state(Arc::clone(&between_), between));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { participant, between: between_, url }
    }

    fn batches(&self) -> usize {
        self.between.batches.load(Ordering::SeqCst)
    }
}

/// Transfers one unit of money in each of these transactions at once, of which every eighth is
/// refused by the second bank; gives back how many committed.
async fn transfer(coordinator: &Coordinator, banks: &[Bank; 2], numbers: Range<usize>) -> usize {
    let mut running = JoinSet::new();
    for number in numbers {
        let urls = [banks[0].url.clone(), banks[1].url.clone()];
        let mut asked = request(&format!("t-{number}"), &urls);
        asked["branches"][0]["payload"] = json!({"amount": -1});
        let refused = number % 8 == 7;
        asked["branches"][1]["payload"] = if refused { json!({}) } else { json!({"amount": 1}) };
        let asked = with(asked, &[("wait", json!("completed"))]);
        let ask = coordinator.ask.clone();
        running.spawn(async move {
            let shown = ask.begin(&asked).await.json();
            assert_eq!(shown["completed"], true, "{shown}");
            let expected = if refused { "rollback" } else { "commit" };
            assert_eq!(shown["outcome"], expected, "{shown}");
            usize::from(!refused)
        });
    }
    running.join_all().await.into_iter().sum()
}

/// The money is where the outcomes say, and nothing was done twice.
fn check(banks: &[Bank; 2], committed: usize) {
    let committed = i64::try_from(committed).unwrap();
    for (bank, sign) in banks.iter().zip([-1, 1]) {
        let books = bank.participant.service().books.lock().unwrap();
        assert_eq!((books.balance, books.held.len()), (sign * committed, 0));
        let twice: Vec<_> = books.done.iter().filter(|(_, times)| **times != 1).collect();
        assert!(twice.is_empty(), "{twice:?}");
    }
}

fn hold(banks: &[Bank; 2], holds: bool) {
    for bank in banks {
        bank.between.holds.send_replace(holds);
    }
}

/// Until so many transactions have begun, and their first calls are on their way.
async fn all_begun(coordinator: &Coordinator, count: usize) {
    let told = format!("unanimity_transactions_begun_total {count}\n");
    while !coordinator.ask.get("/metrics").await.text().contains(&told) {
        tokio::task::yield_now().await;
    }
}

/// Transfers so that all are begun before any of their calls is answered: their prepares have to
/// wait, and gather.
async fn gathered(coordinator: &Coordinator, banks: &[Bank; 2], numbers: Range<usize>) -> usize {
    hold(banks, true);
    let released = async {
        soon(all_begun(coordinator, numbers.end)).await;
        hold(banks, false);
    };
    tokio::join!(transfer(coordinator, banks, numbers.clone()), released).0
}

async fn played(does: Does, flags: &[&str]) -> [Bank; 2] {
    // They are begun all at once, and none is to be refused on a slow machine.
    let patient = ["--prepare-timeout-ms", "30000", "--queue-delay-target-ms", "0"];
    let few = ["--connections-per-participant-max", "8"];
    let flags = [&["--retry-delay-ms", "20"], &patient[..], &few[..], flags].concat();
    let coordinator = Coordinator::start(&flags).await;
    let banks = [Bank::start(does).await, Bank::start(does).await];
    // From the first answers it is known that both take batches, and from a first batch that they
    // arrive.
    let mut committed = transfer(&coordinator, &banks, 0..1).await;
    committed += gathered(&coordinator, &banks, 1..50).await;
    committed += gathered(&coordinator, &banks, 50..400).await;
    assert_eq!(committed, 350);
    check(&banks, committed);
    let metrics = coordinator.ask.get("/metrics").await.text();
    let told = metrics.contains("unanimity_participant_batch_calls_count");
    assert_eq!(told, banks.iter().any(|bank| bank.batches() > 0), "{metrics}");
    banks
}

#[tokio::test]
async fn under_load_calls_go_together_and_the_money_is_right() {
    for bank in played(Does::Passes, &[]).await {
        let together = bank.between.calls_in_batches.load(Ordering::SeqCst);
        // Of the 350 that gathered last, the prepares alone: one for each connection may have left
        // before the others came, and one may be left over.
        assert!(together >= 350 - 8 - 1, "{:?}", bank.between);
        assert!(together >= 2 * bank.batches(), "{:?}", bank.between);
    }
}

#[tokio::test]
async fn a_coordinator_that_is_told_not_to_sends_each_call_alone() {
    for bank in played(Does::Passes, &["--batch-calls-max", "1"]).await {
        assert_eq!(bank.batches(), 0);
    }
}

#[tokio::test]
async fn where_something_between_knows_single_calls_only_no_call_is_lost_or_late() {
    for bank in played(Does::Refuses, &[]).await {
        assert!(bank.batches() > 0);
        assert_eq!(bank.between.calls_in_batches.load(Ordering::SeqCst), 0);
    }
}

#[tokio::test]
async fn what_a_batch_carried_that_broke_off_is_asked_again_and_done_once() {
    for bank in played(Does::BreaksOff, &[]).await {
        assert!(bank.batches() > 1, "{:?}", bank.between);
    }
}
