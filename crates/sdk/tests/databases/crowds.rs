//! Many branches at the same time, at every isolation level, from several participants on one
//! database, as several processes would be: nothing is done twice, nothing gets stuck, and the
//! guard itself causes no deadlock.

use std::sync::Arc;

use tokio::sync::Barrier;
use tokio::task::JoinSet;
use unanimity_databases::Make;
use unanimity_sdk::guard::Reply;
use unanimity_sdk::sql::{Isolation, SqlOptions};
use unanimity_sdk::{CallError, Operation, Participant, Request};

use crate::place::{Place, start};
use crate::service::{Diary, Opened};
use crate::support::{id, play, request, text};

/// Participants that know nothing of each other.
async fn processes(place: &Place, isolation: Isolation, count: usize) -> Vec<Opened> {
    let mut all = Vec::new();
    for _ in 0..count {
        let options = SqlOptions { isolation, connections_max: 8, ..SqlOptions::default() };
        all.push(Opened::with(place, options).await);
    }
    all
}

/// As the coordinator does: again, until there is an answer.
async fn insist(participant: &dyn Participant, mut request: Request) -> String {
    for attempt in 1..100 {
        request.attempt = attempt;
        match participant.call(request.clone()).await {
            Err(CallError::Busy(_)) => {}
            answer => return text(answer),
        }
    }
    panic!("busy for ever: {request:?}");
}

async fn server_of_its_own(make: Make) -> unanimity_databases::Database {
    tokio::task::spawn_blocking(move || start(make)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_of_branches_and_duplicates_meets_no_deadlock_and_works_once() {
    for make in Make::ALL {
        // MariaDB counts deadlocks for the whole server.
        let server = server_of_its_own(make).await;
        for isolation in Isolation::ALL {
            let place = Place::on(&server).await;
            let processes = processes(&place, isolation, 3).await;
            let mut crowd = JoinSet::new();
            for number in 0..120 {
                let processes: Vec<_> = processes.iter().map(Opened::participant).collect();
                crowd.spawn(async move { one_of_the_crowd(&processes, number).await });
            }
            crowd.join_all().await;
            let told = format!("{make:?} {isolation:?}");
            let twice = "SELECT count(*) FROM (SELECT id FROM diary GROUP BY id, branch, what \
                         HAVING count(*) > 1) AS twice";
            assert_eq!(place.text(&as_text(make, twice)).await, "0", "{told}");
            let worked: u64 = processes.iter().map(|one| one.counters().applied).sum();
            assert_eq!(worked, 120 * 2 - 30, "{told}: a quarter voted no, and no more");
            assert_eq!(place.deadlocks().await, 0, "{told}");
        }
    }
}

fn as_text(make: Make, sql: &str) -> String {
    match make {
        Make::PostgreSql => sql.replacen("count(*)", "count(*)::text", 1),
        Make::MariaDb => sql.to_owned(),
    }
}

/// Each call goes to every process at once. What is asked decides what is answered, by whomever.
async fn one_of_the_crowd(processes: &[Arc<dyn unanimity_sdk::Doubting>], number: u32) {
    let transaction = format!("t-{}", number * 7919 % 1000);
    let no = number.is_multiple_of(4);
    let vote = if no { "no" } else { "yes" };
    let phase_two = if no || number % 4 == 1 { Operation::Rollback } else { Operation::Commit };
    for (operation, payload) in [(Operation::Prepare, vote), (phase_two, "")] {
        let mut calls = JoinSet::new();
        for process in processes {
            let (process, transaction) = (Arc::clone(process), transaction.clone());
            calls.spawn(async move {
                let request = Request { payload: payload.into(), ..request("t", operation, "") };
                let request = Request { transaction: id(&transaction), ..request };
                insist(&*process, request).await
            });
        }
        let expected = match operation {
            Operation::Prepare if no => "no(said no)",
            Operation::Prepare => "yes",
            _ => "ack",
        };
        for answer in calls.join_all().await {
            assert_eq!(answer, expected, "{transaction} {operation:?}");
        }
    }
}

/// Whoever comes first decides: a rollback that overtakes the prepare, or is overtaken.
#[tokio::test(flavor = "multi_thread")]
async fn prepare_and_rollback_at_once_end_in_one_of_two_ways() {
    for make in Make::ALL {
        let place = Place::new(make).await;
        for isolation in Isolation::ALL {
            let processes = processes(&place, isolation, 2).await;
            for round in 0..20 {
                let name = format!("{}-{round}", isolation.sql().replace(' ', "-"));
                let ask = |process: usize, operation| {
                    let participant = processes[process].participant();
                    let request = Request { transaction: id(&name), ..request("t", operation, "") };
                    tokio::spawn(async move { insist(&*participant, request).await })
                };
                let (prepare, rollback) =
                    (ask(round % 2, Operation::Prepare), ask(1 - round % 2, Operation::Rollback));
                let (prepare, rollback) = (prepare.await.unwrap(), rollback.await.unwrap());
                assert_eq!(rollback, "ack");
                let diary = place.diary(&name).await;
                match prepare.as_str() {
                    "yes" => assert_eq!(diary, "prepare rollback"),
                    answer => assert!(answer.starts_with("no(") && diary.is_empty(), "{answer}"),
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadlock_in_the_services_own_rows_is_tried_again_whole() {
    for make in Make::ALL {
        let server = server_of_its_own(make).await;
        for isolation in Isolation::ALL {
            let place = Place::on(&server).await;
            let service = Diary { meet: Some(Arc::new(Barrier::new(2))), ..Diary::default() };
            let options = SqlOptions { isolation, ..SqlOptions::default() };
            let opened = Opened::try_with(&place, service, options).await.unwrap();
            let ask = |transaction: &'static str, payload: &'static str| {
                let participant = opened.participant();
                tokio::spawn(async move {
                    participant.call(request(transaction, Operation::Prepare, payload)).await
                })
            };
            let before = place.deadlocks().await;
            let (one, other) = (ask("a", "add:1,2"), ask("b", "add:2,1"));
            for answer in [one.await.unwrap(), other.await.unwrap()] {
                assert_eq!(answer, Ok(Reply::Yes(None)), "{make:?} {isolation:?}");
            }
            let sum =
                as_text(make, "SELECT sum(n) FROM counter").replace("sum(n)", SUM[make as usize]);
            assert_eq!(place.text(&sum).await, "4", "{make:?} {isolation:?}");
            assert_eq!(
                (place.diary("a").await, place.diary("b").await),
                ("prepare".into(), "prepare".into())
            );
            if make == Make::MariaDb {
                // PostgreSQL tells its statistics late.
                assert!(place.deadlocks().await > before);
            }
        }
    }
}

const SUM: [&str; 2] = ["sum(n)::text", "sum(n)"];

/// Without a lock on what is read, two that add at once fail to be put in a row at these levels:
/// one of them is tried again.
#[tokio::test(flavor = "multi_thread")]
async fn additions_that_conflict_are_all_there_in_the_end() {
    for make in Make::ALL {
        for isolation in Isolation::ALL {
            let place = Place::new(make).await;
            let options = SqlOptions {
                isolation,
                tries_max: 100,
                connections_max: 4,
                ..SqlOptions::default()
            };
            let opened = Opened::with(&place, options).await;
            let mut crowd = JoinSet::new();
            for number in 0..24 {
                let participant = opened.participant();
                crowd.spawn(async move {
                    let transaction = id(&format!("t-{number}"));
                    let request = request("t", Operation::Execute, "add:1");
                    insist(&*participant, Request { transaction, ..request }).await
                });
            }
            for answer in crowd.join_all().await {
                assert_eq!(answer, "yes", "{make:?} {isolation:?}");
            }
            let n = if make == Make::PostgreSql { "n::text" } else { "n" };
            let n = place.text(&format!("SELECT {n} FROM counter WHERE id = 1")).await;
            assert_eq!(n, "24", "{make:?} {isolation:?}");
        }
    }
}

/// The service overlooks that a deadlock has ended its local transaction, and goes on: nothing of
/// what it does then may remain. In a prepare the branch's row is gone with the rest; in a commit
/// it is there, but as it was before.
#[tokio::test(flavor = "multi_thread")]
async fn a_deadlock_that_the_service_overlooks_leaves_nothing_half_done() {
    for (operation, answer) in
        [(Operation::Prepare, Reply::Yes(None)), (Operation::Commit, Reply::Acknowledged)]
    {
        let place = Place::new(Make::MariaDb).await;
        if operation == Operation::Commit {
            let opened = Opened::new(&place).await;
            for transaction in ["a", "b"] {
                play(&*opened.participant(), transaction, "prepare").await;
            }
        }
        let service = Diary { meet: Some(Arc::new(Barrier::new(2))), ..Diary::default() };
        let opened = Opened::try_with(&place, service, SqlOptions::default()).await.unwrap();
        let ask = |transaction: &'static str, payload: &'static str| {
            let participant = opened.participant();
            tokio::spawn(
                async move { participant.call(request(transaction, operation, payload)).await },
            )
        };
        let before = place.deadlocks().await;
        // Both go on after a deadlock; one of the two is its victim.
        let (one, other) = (ask("a", "add:1,2,2"), ask("b", "add:2,1,2,2"));
        for answered in [one.await.unwrap(), other.await.unwrap()] {
            assert_eq!(answered.as_ref(), Ok(&answer), "{operation:?}");
        }
        assert!(place.deadlocks().await > before);
        let worked = if operation == Operation::Prepare { "prepare" } else { "prepare commit" };
        for transaction in ["a", "b"] {
            assert_eq!(place.diary(transaction).await, worked, "{operation:?}");
        }
        // 3 and 4 additions; one that went on half-way would have added 100.
        assert_eq!(place.text("SELECT sum(n) FROM counter").await, "7", "{operation:?}");
    }
}
