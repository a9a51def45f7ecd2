//! The server is killed in the middle of everything and started again: what was answered stays
//! true, what was not answered is found out by asking again, and nothing is done twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::task::JoinSet;
use unanimity_databases::{Database, Make};
use unanimity_sdk::guard::GuardState;
use unanimity_sdk::sql::SqlOptions;
use unanimity_sdk::{CallError, Doubting, Operation, Request};

use crate::place::{Place, start};
use crate::service::{Diary, Opened, open_xa};
use crate::support::{id, request, text};

const ROUNDS: usize = 3;
const BRANCHES: usize = 24;

/// A branch, and which of its two calls was answered.
type Answered = (String, bool, bool);

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_loses_nothing_that_was_answered_and_does_nothing_twice() {
    for make in Make::ALL {
        for xa in [false, true] {
            rounds(make, xa).await;
        }
    }
}

async fn rounds(make: Make, xa: bool) {
    let server = Arc::new(tokio::task::spawn_blocking(move || start(make)).await.unwrap());
    let place = Place::on(&server).await;
    // After so many pieces of work the server dies, while others are in the middle of theirs.
    let (worked, kill_at) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(usize::MAX)));
    let service = Diary { on_work: Some(killer(&server, &worked, &kill_at)), ..Diary::default() };
    // A prepared branch of the killed server may hold its row until the server has recovered.
    let options =
        SqlOptions { connections_max: 8, lock_timeout_ms: 1_000, ..SqlOptions::default() };
    let reader = Opened::new(&place).await;
    let participant = if xa {
        open_xa(&place, service, options).await.unwrap()
    } else {
        Opened::try_with(&place, service, options).await.unwrap().participant()
    };
    for round in 0..ROUNDS {
        kill_at.store(worked.load(Ordering::SeqCst) + 4 + 5 * round, Ordering::SeqCst);
        let answered = one_round(&participant, round).await;
        let again = Arc::clone(&server);
        let started = tokio::task::spawn_blocking(move || {
            // Dead already, unless the round had too little work left.
            again.kill();
            again.start_again()
        });
        started.await.unwrap().unwrap();
        let all = answered.iter().all(|(_, prepared, committed)| *prepared && *committed);
        assert!(!all, "{make:?}: the kill in round {round} came too late");
        for (name, prepared, committed) in answered {
            let told = format!("{make:?}, xa: {xa}, {name}");
            let entries = reader.entries(1_000).await;
            let row = entries.iter().find(|entry| entry.transaction.as_str() == name);
            let state = row.map(|row| row.row.state);
            // A branch that the database has prepared has no row that can be seen.
            assert!(!prepared || xa || state.is_some(), "{told}: answered, and forgotten");
            let kept = !committed || state == Some(GuardState::Committed);
            assert!(kept, "{told}: committed, and is {state:?}");
            assert_eq!(insist(&participant, &name, Operation::Prepare).await, "yes", "{told}");
            assert_eq!(insist(&participant, &name, Operation::Commit).await, "ack", "{told}");
            let done = if xa { "prepare" } else { "prepare commit" };
            assert_eq!(place.diary(&name).await, done, "{told}");
        }
    }
    let counts = reader.counts().await;
    assert_eq!(counts.committed, (ROUNDS * BRANCHES) as u64, "{make:?}");
    assert_eq!(participant.in_doubt().await.unwrap(), [], "{make:?}");
}

async fn one_round(participant: &Arc<dyn Doubting>, round: usize) -> Vec<Answered> {
    let mut calls = JoinSet::new();
    for number in 0..BRANCHES {
        let participant = Arc::clone(participant);
        let name = format!("t-{round}-{number}");
        calls.spawn(async move {
            let asked = async |operation| {
                let request = request("t", operation, "");
                participant.call(Request { transaction: id(&name), ..request }).await.is_ok()
            };
            let prepared = asked(Operation::Prepare).await;
            let committed = prepared && asked(Operation::Commit).await;
            (name, prepared, committed)
        });
    }
    calls.join_all().await
}

/// As the coordinator does: again, until there is an answer.
async fn insist(participant: &Arc<dyn Doubting>, name: &str, operation: Operation) -> String {
    let mut answer = Err(CallError::Failed(String::new()));
    for attempt in 2..30 {
        let request = Request { transaction: id(name), attempt, ..request("t", operation, "") };
        answer = participant.call(request).await;
        if !matches!(answer, Err(CallError::Failed(_) | CallError::Busy(_))) {
            break;
        }
    }
    text(answer)
}

/// Kills the server in the middle of a piece of work, and so of others' work and commits.
fn killer(
    server: &Arc<Database>,
    worked: &Arc<AtomicUsize>,
    kill_at: &Arc<AtomicUsize>,
) -> Arc<dyn Fn() + Send + Sync> {
    let (server, worked, kill_at) = (Arc::clone(server), Arc::clone(worked), Arc::clone(kill_at));
    Arc::new(move || {
        if worked.fetch_add(1, Ordering::SeqCst) == kill_at.load(Ordering::SeqCst) {
            server.kill();
        }
    })
}
