//! The server is killed in the middle of everything and started again: what was answered stays
//! true, what was not answered is found out by asking again, and nothing is done twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::task::JoinSet;
use unanimity_databases::Make;
use unanimity_sdk::sql::SqlOptions;
use unanimity_sdk::{CallError, Moment, Operation, Request};

use crate::place::{Place, start};
use crate::service::Opened;
use crate::support::{id, request, text};

const ROUNDS: usize = 4;
const BRANCHES: usize = 24;

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_server_loses_nothing_that_was_answered_and_does_nothing_twice() {
    for make in Make::ALL {
        let server = Arc::new(tokio::task::spawn_blocking(move || start(make)).await.unwrap());
        let place = Place::on(&server).await;
        let commits = Arc::new(AtomicUsize::new(0));
        // So many commits after the round's beginning, the server dies, while others commit.
        let kill_at = Arc::new(AtomicUsize::new(usize::MAX));
        let options = SqlOptions {
            moment_hook: Some(killer(&server, &commits, &kill_at)),
            connections_max: 8,
            ..SqlOptions::default()
        };
        let opened = Opened::with(&place, options).await;
        for round in 0..ROUNDS {
            kill_at.store(commits.load(Ordering::SeqCst) + 5 + 7 * round, Ordering::SeqCst);
            let mut calls = JoinSet::new();
            for number in 0..BRANCHES {
                let participant = opened.participant();
                let name = format!("t-{round}-{number}");
                calls.spawn(async move {
                    let asked = async |operation| {
                        let request = request("t", operation, "");
                        participant.call(Request { transaction: id(&name), ..request }).await
                    };
                    let prepared = asked(Operation::Prepare).await;
                    let committed = match prepared {
                        Ok(_) => Some(asked(Operation::Commit).await),
                        Err(_) => None,
                    };
                    (name, prepared, committed)
                });
            }
            let first = calls.join_all().await;
            let again = Arc::clone(&server);
            let started = tokio::task::spawn_blocking(move || {
                // Dead already, unless the round had too few commits left.
                again.kill();
                again.start_again()
            });
            started.await.unwrap().unwrap();
            let failed = first.iter().filter(|(_, prepared, committed)| {
                prepared.is_err() || committed.as_ref().is_some_and(Result::is_err)
            });
            assert!(failed.count() > 0, "{make:?}: the kill in round {round} came too late");
            for (name, prepared, committed) in first {
                check(
                    &place,
                    &opened,
                    &name,
                    prepared.is_ok(),
                    committed.is_some_and(|c| c.is_ok()),
                )
                .await;
            }
        }
        let counts = opened.counts().await;
        assert_eq!(counts.committed, (ROUNDS * BRANCHES) as u64, "{make:?}");
        assert_eq!(counts.prepared, 0, "{make:?}");
    }
}

/// Asks again what may or may not have been done, and reads what was.
async fn check(place: &Place, opened: &Opened, name: &str, prepared: bool, committed: bool) {
    let entries = opened.entries(1_000).await;
    let row = entries.iter().find(|entry| entry.transaction.as_str() == name);
    assert!(!prepared || row.is_some(), "{name} was answered, and is forgotten");
    let state = row.map(|row| row.row.state);
    assert!(
        !committed || state == Some(unanimity_sdk::guard::GuardState::Committed),
        "{name} was committed, and is {state:?}"
    );
    for (operation, expected) in [(Operation::Prepare, "yes"), (Operation::Commit, "ack")] {
        let mut answer = Err(CallError::Failed(String::new()));
        // The pool may still hold connections to the server that died.
        for _ in 0..20 {
            let request = Request { transaction: id(name), ..request("t", operation, "") };
            answer = opened.participant().call(request).await;
            if answer.is_ok() {
                break;
            }
        }
        assert_eq!(text(answer), expected, "{name} {operation:?}");
    }
    assert_eq!(place.diary(name).await, "prepare commit", "{name}");
}

/// Kills the server on a thread of its own, so that it comes in the middle of the others' commits.
fn killer(
    server: &Arc<unanimity_databases::Database>,
    commits: &Arc<AtomicUsize>,
    kill_at: &Arc<AtomicUsize>,
) -> unanimity_sdk::MomentHook {
    let (server, commits, kill_at) = (Arc::clone(server), Arc::clone(commits), Arc::clone(kill_at));
    Arc::new(move |moment| {
        if matches!(moment, Moment::BeforeCommit { .. })
            && commits.fetch_add(1, Ordering::SeqCst) == kill_at.load(Ordering::SeqCst)
        {
            let server = Arc::clone(&server);
            std::thread::spawn(move || server.kill());
        }
        Ok(())
    })
}
