//! The inquiry after a restart, against a coordinator that only knows decisions.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::get;
use tokio::net::TcpListener;
use unanimity_sdk::api::{Decision, DecisionAnswer};
use unanimity_sdk::inquiry::{Inquiry, InquiryOptions, InquiryProgress, spawn};
use unanimity_sdk::{Client, SqliteParticipant, axum};

use crate::support::{Folder, diary, open, play};

/// The answers still to be given, by transaction; an unknown one is rolled back.
type Decisions = Arc<Mutex<BTreeMap<String, Vec<Decision>>>>;

async fn decide(
    State(decisions): State<Decisions>,
    Path(id): Path<String>,
) -> axum::Json<DecisionAnswer> {
    let mut decisions = decisions.lock().unwrap();
    let decision = decisions
        .get_mut(&id)
        .map_or(Decision::Rollback, |left| if left.len() > 1 { left.remove(0) } else { left[0] });
    axum::Json(DecisionAnswer { decision })
}

fn serve(listener: TcpListener, decisions: Decisions) {
    let app =
        Router::new().route("/v1/transactions/{id}/decision", get(decide)).with_state(decisions);
    tokio::spawn(async move { axum::serve(listener, app).await });
}

fn decisions(entries: &[(&str, &[Decision])]) -> Decisions {
    let entries = entries.iter().map(|(id, answers)| ((*id).to_owned(), answers.to_vec()));
    Arc::new(Mutex::new(entries.collect()))
}

fn inquire(participant: &Arc<SqliteParticipant>, url: &str, in_doubt_after_ms: u64) -> Inquiry {
    let options = InquiryOptions { in_doubt_after_ms, delay_ms: 1, delay_max_ms: 10, seed: 1 };
    let participant = Arc::clone(participant);
    spawn(participant, Client::new(url, None).unwrap(), options)
}

async fn wait_for(inquiry: &Inquiry, condition: impl FnMut(&InquiryProgress) -> bool) {
    let mut progress = inquiry.progress();
    let reached = tokio::time::timeout(Duration::from_secs(30), progress.wait_for(condition));
    reached.await.expect("the inquiry gets nowhere").unwrap();
}

async fn bind() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    (listener, url)
}

const FAR_MS: u64 = 3_600_000;

#[tokio::test]
async fn after_a_restart_every_branch_in_doubt_is_settled_as_decided() {
    let folder = Folder::new();
    let before = open(&folder.file());
    for name in ["committed", "slow", "forgotten"] {
        assert_eq!(play(&before, name, "prepare").await, "yes");
    }
    drop(before);
    let participant = Arc::new(open(&folder.file()));
    let (listener, url) = bind().await;
    let pending_first = [Decision::Pending, Decision::Pending, Decision::Commit];
    serve(listener, decisions(&[("committed", &[Decision::Commit]), ("slow", &pending_first)]));
    let inquiry = inquire(&participant, &url, FAR_MS);
    wait_for(&inquiry, |progress| progress.settled == 3).await;
    assert_eq!(diary(&participant, "committed").await, "prepare commit");
    assert_eq!(diary(&participant, "slow").await, "prepare commit");
    assert_eq!(diary(&participant, "forgotten").await, "prepare rollback");
    assert!(participant.in_doubt().await.unwrap().is_empty());
    assert_eq!(inquiry.progress().borrow().unanswered, 2);
}

#[tokio::test]
async fn a_coordinator_that_is_down_is_asked_until_it_is_back() {
    let folder = Folder::new();
    let participant = Arc::new(open(&folder.file()));
    for name in ["a", "b"] {
        assert_eq!(play(&*participant, name, "prepare").await, "yes");
    }
    let (listener, url) = bind().await;
    let address = listener.local_addr().unwrap();
    drop(listener);
    let inquiry = inquire(&participant, &url, FAR_MS);
    wait_for(&inquiry, |progress| progress.rounds >= 3).await;
    assert_eq!(participant.in_doubt().await.unwrap().len(), 2);
    let commits = [("a", &[Decision::Commit][..]), ("b", &[Decision::Commit][..])];
    serve(TcpListener::bind(address).await.unwrap(), decisions(&commits));
    wait_for(&inquiry, |progress| progress.settled == 2).await;
    assert_eq!(play(&*participant, "a", "commit").await, "ack");
}

#[tokio::test]
async fn a_branch_that_stays_in_doubt_for_too_long_is_asked_about() {
    let folder = Folder::new();
    let participant = Arc::new(open(&folder.file()));
    let (listener, url) = bind().await;
    serve(listener, decisions(&[("late", &[Decision::Commit])]));
    let inquiry = inquire(&participant, &url, 1);
    wait_for(&inquiry, |progress| progress.rounds >= 1).await;
    assert_eq!(play(&*participant, "late", "prepare").await, "yes");
    wait_for(&inquiry, |progress| progress.settled == 1).await;
    assert_eq!(diary(&participant, "late").await, "prepare commit");
}

#[tokio::test]
async fn a_fresh_branch_is_left_to_the_coordinator() {
    let folder = Folder::new();
    let participant = Arc::new(open(&folder.file()));
    let (listener, url) = bind().await;
    serve(listener, decisions(&[]));
    // It looks twice in that time, so the second look finds the branch about half as old.
    let inquiry = inquire(&participant, &url, 3_000);
    wait_for(&inquiry, |progress| progress.rounds == 1).await;
    assert_eq!(play(&*participant, "fresh", "prepare").await, "yes");
    wait_for(&inquiry, |progress| progress.rounds == 2).await;
    assert_eq!(inquiry.progress().borrow().asked, 0);
    assert_eq!(play(&*participant, "fresh", "commit").await, "ack");
}
