//! Branches that the database prepares: what is answered, what outlives what, and the traps of each
//! make of server.

use std::sync::Arc;

use tokio::sync::Barrier;
use unanimity_databases::{Database, DatabaseOptions, Make};
use unanimity_sdk::battery::{self, Verdict};
use unanimity_sdk::mariadb::mysql_async::prelude::Queryable;
use unanimity_sdk::sql::{Isolation, SqlOptions};
use unanimity_sdk::xa::name::BranchName;
use unanimity_sdk::xa::owner;
use unanimity_sdk::xa::postgres::PostgresXaParticipant;
use unanimity_sdk::{Doubting, Operation, Request, axum, router};

use crate::house::House;
use crate::place::{Place, start};
use crate::service::{Diary, name, open_xa};
use crate::support::{play, request, text};

const LATE: &str = unanimity_sdk::guard::LATE_REASON;

/// Nobody waits long for a lock.
fn impatient() -> SqlOptions {
    SqlOptions { lock_timeout_ms: 500, ..SqlOptions::default() }
}

async fn open(place: &Place) -> Arc<dyn Doubting> {
    open_xa(place, Diary::default(), impatient()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_is_as_the_guard_says_and_work_is_seen_with_the_commit() {
    let late = format!("ack no({LATE}) already_rolled_back");
    let no_result = "failed(a branch that the database prepares has no result) yes ack";
    let cases = [
        ("prepare prepare prepare", "yes yes yes", ""),
        ("prepare commit commit", "yes ack ack", "prepare"),
        ("prepare commit prepare", "yes ack yes", "prepare"),
        ("prepare rollback rollback", "yes ack ack", ""),
        ("rollback rollback", "ack ack", ""),
        ("rollback prepare commit", &late, ""),
        ("commit prepare commit", "never_prepared yes ack", "prepare"),
        ("prepare commit rollback", "yes ack already_committed", "prepare"),
        ("prepare:no prepare rollback", "no(said no) no(said no) ack", ""),
        ("prepare:read_only prepare commit", "read_only read_only ack", ""),
        ("prepare:error prepare commit", "failed(said error) yes ack", "prepare"),
        ("prepare:busy prepare commit", "busy(seat 7 is held) yes ack", "prepare"),
        (
            "prepare:panic prepare commit",
            "failed(the service panicked: said panic) yes ack",
            "prepare",
        ),
        ("prepare:result prepare commit", no_result, "prepare"),
        ("commit_one_phase commit_one_phase", "yes yes", "commit_one_phase"),
        ("commit_one_phase rollback", "yes already_committed", "commit_one_phase"),
        ("prepare commit_one_phase commit", "yes wrong_kind ack", "prepare"),
        ("execute", "failed(this service does not support execute)", ""),
    ];
    for make in Make::ALL {
        let place = Place::new(make).await;
        let participant = open(&place).await;
        for (number, (script, expected, worked)) in cases.iter().enumerate() {
            let transaction = format!("t-{number}");
            let answers = play(&*participant, &transaction, script).await;
            assert_eq!(answers, *expected, "{make:?} {script}");
            assert_eq!(place.diary(&transaction).await, *worked, "{make:?} {script}");
        }
        let in_doubt = participant.in_doubt().await.unwrap();
        let names: Vec<_> = in_doubt.iter().map(|branch| branch.transaction.as_str()).collect();
        assert_eq!(names, ["t-0"], "{make:?}");
        assert!(in_doubt[0].since_ms > 0);
        // Another process of the service, while the first lives.
        assert_eq!(play(&*open(&place).await, "t-0", "commit").await, "ack", "{make:?}");
        assert_eq!(place.diary("t-0").await, "prepare");
        assert_eq!(participant.in_doubt().await.unwrap(), []);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_battery_holds_with_restarts_between_the_phases() {
    for make in Make::ALL {
        let place = Place::new(make).await;
        let participant = open(&place).await;
        let counted = place.clone();
        let house = House::open(move || {
            let place = counted.clone();
            let shown = move || {
                let place = place.clone();
                async move { place.text("SELECT concat(count(*), '') FROM diary").await }
            };
            router(Arc::clone(&participant) as _).route("/stock", axum::routing::get(shown))
        });
        let house = house.await;
        let report = battery::play(&house.url(""), "{}", &house.options(false)).await;
        let fails = report.rules(Verdict::Fails);
        assert!(report.rules(Verdict::NotPlayed).is_empty(), "{report}");
        assert_eq!(fails, Vec::<&str>::new(), "{make:?} {report}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_prepared_survives_the_server() {
    for make in Make::ALL {
        let server = tokio::task::spawn_blocking(move || start(make)).await.unwrap();
        let place = Place::on(&server).await;
        let participant = open(&place).await;
        assert_eq!(play(&*participant, "kept", "prepare:add:1").await, "yes");
        assert_eq!(play(&*participant, "undone", "prepare:add:2").await, "yes");
        let server = tokio::task::spawn_blocking(move || {
            server.kill();
            server.start_again().unwrap();
            server
        });
        let _server = server.await.unwrap();
        assert_eq!(participant.in_doubt().await.unwrap().len(), 2, "{make:?}");
        assert_eq!(play(&*participant, "kept", "commit").await, "ack", "{make:?}");
        assert_eq!(
            play(&*participant, "undone", "rollback prepare").await,
            format!("ack no({LATE})")
        );
        assert_eq!((&*place.diary("kept").await, &*place.diary("undone").await), ("prepare", ""));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_database_rolls_back_is_a_no_with_its_reason() {
    for make in Make::ALL {
        let place = Place::new(make).await;
        let service = Diary { meet: Some(Arc::new(Barrier::new(2))), ..Diary::default() };
        let options = SqlOptions { lock_timeout_ms: 20_000, ..SqlOptions::default() };
        let participant = open_xa(&place, service, options).await.unwrap();
        let ask = |transaction: &'static str, payload: &'static str| {
            let participant = Arc::clone(&participant);
            tokio::spawn(async move {
                text(participant.call(request(transaction, Operation::Prepare, payload)).await)
            })
        };
        let (one, other) = (ask("a", "add:1,2"), ask("b", "add:2,1"));
        let mut answers = [("a", one.await.unwrap()), ("b", other.await.unwrap())];
        answers.sort_by_key(|(_, answer)| answer != "yes");
        let [(winner, yes), (loser, no)] = answers;
        assert_eq!(yes, "yes", "{make:?}");
        assert!(no.starts_with("no(the database rolled the branch back: "), "{make:?}: {no}");
        assert!(no.to_lowercase().contains("deadlock"), "{make:?}: {no}");
        assert_eq!(play(&*participant, loser, "prepare rollback").await, format!("{no} ack"));
        assert_eq!(play(&*participant, winner, "commit").await, "ack");

        let impatient = open(&place).await;
        assert_eq!(play(&*impatient, "holds", "prepare:add:1").await, "yes");
        let no = play(&*impatient, "waits", "prepare:add:1").await;
        assert!(no.starts_with("no(the database rolled the branch back: "), "{make:?}: {no}");
        assert!(no.to_lowercase().contains("lock"), "{make:?}: {no}");
        assert_eq!(play(&*impatient, "holds", "rollback").await, "ack");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_serialization_failure_is_a_no_with_its_reason() {
    let place = Place::new(Make::PostgreSql).await;
    let service = Diary { meet: Some(Arc::new(Barrier::new(2))), ..Diary::default() };
    let options = SqlOptions { isolation: Isolation::RepeatableRead, ..SqlOptions::default() };
    let participant = open_xa(&place, service, options).await.unwrap();
    let first = Arc::clone(&participant);
    // Both have begun when one of them commits what the other then wants to change.
    let waits = tokio::spawn(async move {
        text(first.call(request("waits", Operation::Prepare, "add:2,1")).await)
    });
    let one = text(participant.call(request("a", Operation::Prepare, "add:1,1")).await);
    assert_eq!(one, "yes");
    assert_eq!(play(&*participant, "a", "commit").await, "ack");
    let no = waits.await.unwrap();
    assert!(no.starts_with("no(the database rolled the branch back: "), "{no}");
    assert!(no.contains("could not serialize access"), "{no}");
}

/// PostgreSQL would take the prepare for a rollback and say nothing.
#[tokio::test(flavor = "multi_thread")]
async fn an_error_that_the_service_overlooks_is_never_a_yes() {
    let place = Place::new(Make::PostgreSql).await;
    let participant = open(&place).await;
    let answers = play(&*participant, "t", "prepare:swallow prepare commit").await;
    assert!(answers.starts_with("failed(the service went on after an error"), "{answers}");
    assert!(answers.ends_with(" yes ack"), "{answers}");
    assert_eq!(place.diary("t").await, "prepare");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_room_for_prepared_transactions_is_refused_with_the_setting() {
    let server = tokio::task::spawn_blocking(|| {
        let options = DatabaseOptions { prepared_transactions_max: 0, ..Default::default() };
        Database::start(Make::PostgreSql, &options).unwrap()
    });
    let server = server.await.unwrap();
    let place = Place::on(&server).await;
    let refused = open_xa(&place, Diary::default(), impatient()).await.err().unwrap();
    assert_eq!(refused.code(), "database_cannot_prepare");
    assert!(refused.to_string().contains("max_prepared_transactions"), "{refused}");
}

/// The names of prepared transactions are the whole server's, but only their own database can
/// finish them.
#[tokio::test(flavor = "multi_thread")]
async fn a_branch_of_another_database_of_the_server_is_not_taken_for_gone() {
    let (here, there) = (Place::new(Make::PostgreSql).await, Place::new(Make::PostgreSql).await);
    let (here_opened, service) = (open(&here).await, name(&here));
    let there_opened =
        PostgresXaParticipant::open(&there.url, &service, Diary::default(), impatient());
    let there_opened = there_opened.await.unwrap();
    assert_eq!(play(&*here_opened, "elsewhere", "prepare").await, "yes");
    for operation in ["commit", "rollback"] {
        let script: &'static str = if operation == "commit" { "commit" } else { "rollback" };
        let answer = play(&there_opened, "elsewhere", script).await;
        assert!(answer.starts_with("failed(") && answer.contains("another database"), "{answer}");
    }
    assert_eq!(Doubting::in_doubt(&there_opened).await.unwrap(), []);
    assert_eq!(play(&*here_opened, "elsewhere", "commit").await, "ack");
    assert_eq!(here.diary("elsewhere").await, "prepare");
}

/// MariaDB says XAER_NOTA of a branch whose session lives, as of one that never was.
#[tokio::test(flavor = "multi_thread")]
async fn a_branch_in_the_hands_of_a_living_session_is_unknown_and_not_gone() {
    let place = Place::new(Make::MariaDb).await;
    let participant = open(&place).await;
    let mut session = place.mariadb().await;
    let xid = BranchName::new(owner(&name(&place)), "held", "b").xid().sql();
    session.query_drop(format!("XA START {xid}")).await.unwrap();
    let row = "INSERT INTO unanimity_guard VALUES ('held', 'b', 2, NULL, 1, 0)";
    session.query_drop(row).await.unwrap();
    session.query_drop(format!("XA END {xid}; XA PREPARE {xid}")).await.unwrap();

    for operation in [Operation::Commit, Operation::Rollback] {
        let answer = text(participant.call(request("held", operation, "")).await);
        assert!(answer.starts_with("busy("), "{operation:?}: {answer}");
    }
    let repeated = Request { attempt: 2, ..request("held", Operation::Prepare, "") };
    assert_eq!(text(participant.call(repeated).await), "yes");
    session.disconnect().await.unwrap();
    let mut answer = String::new();
    for _ in 0..50 {
        // The session's end is noticed by the server in its own time.
        answer = text(participant.call(request("held", Operation::Commit, "")).await);
        if answer == "ack" {
            break;
        }
    }
    assert_eq!(answer, "ack");
}

#[tokio::test(flavor = "multi_thread")]
async fn branches_of_others_are_left_alone() {
    for make in Make::ALL {
        let place = Place::new(make).await;
        let participant = open(&place).await;
        let other = BranchName::new(owner("another service"), "foreign", "b");
        let finish = match make {
            Make::PostgreSql => {
                let sql = "BEGIN; INSERT INTO diary (id) VALUES ('foreign'); PREPARE TRANSACTION";
                place.run(&format!("{sql} '{}'", other.gid())).await;
                format!("ROLLBACK PREPARED '{}'", other.gid())
            }
            Make::MariaDb => {
                let xid = other.xid().sql();
                let insert = "INSERT INTO diary (id) VALUES ('foreign')";
                place
                    .run(&format!("XA START {xid}; {insert}; XA END {xid}; XA PREPARE {xid}"))
                    .await;
                format!("XA ROLLBACK {xid}")
            }
        };
        assert_eq!(participant.in_doubt().await.unwrap(), [], "{make:?}");
        assert_eq!(play(&*participant, "foreign", "commit").await, "never_prepared", "{make:?}");
        assert_eq!(play(&*participant, "foreign", "rollback").await, "ack", "{make:?}");
        // It is still there: only its own name ends it.
        place.run(&finish).await;
    }
}
