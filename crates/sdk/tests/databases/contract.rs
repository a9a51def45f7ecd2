//! The guard's promises in each make of database, at each isolation level: what is answered, and
//! how often the service worked.

use std::sync::Arc;

use unanimity_databases::Make;
use unanimity_sdk::battery::{self, Verdict};
use unanimity_sdk::sql::{Isolation, SqlOptions};
use unanimity_sdk::{axum, router};

use crate::house::House;
use crate::place::{Place, start};
use crate::service::{Diary, Opened};
use crate::support::play;

const LATE: &str = unanimity_sdk::guard::LATE_REASON;

/// What is held, and what is done, as the diary tells it.
const EFFECT: &str = "
    SELECT concat(
        coalesce(sum(CASE what WHEN 'prepare' THEN 1 WHEN 'commit' THEN -1
                     WHEN 'rollback' THEN -1 ELSE 0 END), 0), ' ',
        coalesce(sum(CASE what WHEN 'commit' THEN 1 WHEN 'execute' THEN 1
                     WHEN 'compensate' THEN -1 ELSE 0 END), 0))
    FROM diary";

fn at(isolation: Isolation) -> SqlOptions {
    SqlOptions { isolation, ..SqlOptions::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_and_every_piece_of_work_is_as_in_sqlite() {
    let late = format!("ack no({LATE}) already_rolled_back");
    let never = format!("ack no({LATE})");
    let not_there = format!("no({}) no({LATE})", unanimity_sdk::guard::NOT_THERE_REASON);
    let result = r#"yes({"seat":7}) yes({"seat":7})"#;
    let cases = [
        ("prepare prepare prepare", "yes yes yes", "prepare"),
        ("prepare commit commit commit", "yes ack ack ack", "prepare commit"),
        ("prepare rollback rollback rollback", "yes ack ack ack", "prepare rollback"),
        ("execute execute execute", "yes yes yes", "execute"),
        ("execute compensate compensate", "yes ack ack", "execute compensate"),
        ("rollback rollback rollback", "ack ack ack", ""),
        ("prepare:result prepare", result, "prepare"),
        ("rollback prepare commit", &late, ""),
        ("compensate execute", &never, ""),
        ("commit", "never_prepared", ""),
        ("commit prepare commit", "never_prepared yes ack", "prepare commit"),
        ("prepare commit rollback", "yes ack already_committed", "prepare commit"),
        ("prepare execute", "yes wrong_kind", "prepare"),
        ("prepare:no prepare rollback", "no(said no) no(said no) ack", ""),
        ("prepare:zero prepare", "no(said\u{fffd}no) no(said\u{fffd}no)", ""),
        ("prepare:read_only commit", "read_only ack", ""),
        ("prepare:error prepare", "failed(said error) yes", "prepare"),
        ("prepare:busy prepare", "busy(seat 7 is held) yes", "prepare"),
        ("prepare:panic prepare", "failed(the service panicked: said panic) yes", "prepare"),
        ("execute:no execute:no execute", "no(said no) no(said no) yes", "execute"),
        ("execute:no compensate execute", "no(said no) ack no(said no)", ""),
        ("commit_one_phase commit_one_phase", "yes yes", "commit_one_phase commit_one_phase"),
        ("commit_one_phase:no commit_one_phase", "no(said no) no(said no)", ""),
        ("inquire commit_one_phase", &not_there, ""),
    ];
    for make in Make::ALL {
        let place = Place::new(make).await;
        for isolation in Isolation::ALL {
            let opened = Opened::with(&place, at(isolation)).await;
            let participant = opened.participant();
            for (number, (script, expected, worked)) in cases.iter().enumerate() {
                let transaction = format!("{}-{number}", isolation.sql().replace(' ', "-"));
                let answers = play(&*participant, &transaction, script).await;
                let told = format!("{make:?} {isolation:?} {script}");
                assert_eq!(answers, *expected, "{told}");
                assert_eq!(place.diary(&transaction).await, *worked, "{told}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_battery_holds_with_restarts_between_the_phases() {
    for make in Make::ALL {
        for isolation in Isolation::ALL {
            let place = Place::new(make).await;
            let opened = Opened::with(&place, at(isolation)).await;
            let opened = Arc::new(opened);
            let counted = place.clone();
            let house = House::open(move || {
                let place = counted.clone();
                let shown = move || {
                    let place = place.clone();
                    async move { place.text(EFFECT).await }
                };
                router(opened.participant()).route("/stock", axum::routing::get(shown))
            });
            let house = house.await;
            for compensable in [false, true] {
                let report = battery::play(&house.url(""), "{}", &house.options(compensable)).await;
                let fails = report.rules(Verdict::Fails);
                assert!(report.rules(Verdict::NotPlayed).is_empty(), "{report}");
                assert_eq!(fails, Vec::<&str>::new(), "{make:?} {isolation:?} {report}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_that_the_service_overlooks_is_never_a_yes() {
    let postgres = Place::new(Make::PostgreSql).await;
    let opened = Opened::new(&postgres).await;
    let answers = play(&*opened.participant(), "t", "prepare:swallow prepare commit").await;
    assert!(answers.starts_with("failed(the service went on after an error"), "{answers}");
    assert!(answers.ends_with(" yes ack"), "{answers}");
    assert_eq!(postgres.diary("t").await, "prepare commit");

    // MariaDB undoes the failed statement alone, and the rest is whole.
    let mariadb = Place::new(Make::MariaDb).await;
    let opened = Opened::new(&mariadb).await;
    assert_eq!(play(&*opened.participant(), "t", "prepare:swallow commit").await, "yes ack");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_ends_the_local_transaction_is_never_answered_yes() {
    for make in Make::ALL {
        let place = Place::new(make).await;
        let opened = Opened::new(&place).await;
        let answers = play(&*opened.participant(), "t", "prepare:end").await;
        assert!(answers.contains("ended the local transaction"), "{answers}");
        assert_eq!(play(&*opened.participant(), "t", "prepare commit").await, "yes ack");
        assert_eq!(place.diary("t").await, "prepare commit");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_a_statement_committed_half_way_is_found_out() {
    let place = Place::new(Make::MariaDb).await;
    let opened = Opened::new(&place).await;
    let answers = play(&*opened.participant(), "t", "prepare:ddl prepare rollback").await;
    let answers: Vec<_> = answers.split(") ").collect();
    assert_eq!(answers[0], "failed(after the statement");
    assert!(answers[1].contains("committed before it was done"), "{answers:?}");
    assert!(answers[2].contains("committed before it was done"), "{answers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_statement_costs_the_call_and_not_the_connection() {
    for make in Make::ALL {
        let place = Place::new(make).await;
        let options = SqlOptions { connections_max: 1, ..SqlOptions::default() };
        let opened = Opened::with(&place, options).await;
        let session = match make {
            Make::PostgreSql => {
                "SELECT string_agg(pid::text, ' ') FROM pg_stat_activity \
                 WHERE datname = current_database() AND application_name = 'unanimity-sdk'"
            }
            Make::MariaDb => {
                "SELECT group_concat(id) FROM information_schema.processlist \
                 WHERE db = database() AND id <> connection_id()"
            }
        };
        let before = place.text(session).await;
        let answer = play(&*opened.participant(), "t", "prepare:refused").await;
        assert!(answer.starts_with("failed("), "{answer}");
        assert_eq!(play(&*opened.participant(), "t", "prepare commit").await, "yes ack");
        assert_eq!(place.text(session).await, before, "{make:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_doubt_and_what_is_on_record_can_be_read() {
    for make in Make::ALL {
        let place = Place::new(make).await;
        let opened = Opened::new(&place).await;
        for (transaction, script) in
            [("a", "prepare"), ("b", "prepare commit"), ("c", "rollback"), ("d", "prepare:no")]
        {
            play(&*opened.participant(), transaction, script).await;
        }
        let in_doubt = opened.participant().in_doubt().await.unwrap();
        let names: Vec<_> = in_doubt.iter().map(|branch| branch.transaction.as_str()).collect();
        assert_eq!(names, ["a"], "{make:?}");
        assert!(in_doubt[0].since_ms > 0);
        for rows_max in [1, 3, 100] {
            let entries = opened.entries(rows_max).await;
            let names: Vec<_> = entries.iter().map(|entry| entry.transaction.as_str()).collect();
            assert_eq!(names, ["a", "b", "c", "d"], "{make:?} by {rows_max}");
            assert_eq!(entries[3].row.note.as_deref(), Some("said no"));
        }
        let counts = opened.counts().await;
        assert_eq!((counts.prepared, counts.committed), (1, 1));
        assert_eq!((counts.rolled_back, counts.voted_no), (1, 1));
        let counters = opened.counters();
        assert_eq!((counters.applied, counters.remembered), (4, 1), "{make:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_used_is_refused_with_a_code() {
    for make in Make::ALL {
        let place = Place::new(make).await;
        let (before, name) = place.url.rsplit_once('/').unwrap();
        let tls = if make == Make::PostgreSql { "sslmode=require" } else { "require_ssl=true" };
        let cases = [
            ("no url at all".to_owned(), "database_url"),
            (format!("{}?{tls}", place.url), "database_tls"),
            (format!("{before}/no_such_database"), "database_unusable"),
            (
                format!("{}://unanimity:wrong@127.0.0.1:1/{name}", make.scheme()),
                "database_unusable",
            ),
        ];
        for (url, code) in cases {
            let place = Place { make, url };
            let opened = Opened::try_with(&place, Diary::default(), SqlOptions::default()).await;
            let Err(error) = opened else { panic!("{} was taken", place.url) };
            assert_eq!(error.code(), code, "{make:?}: {error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_does_not_wait_for_the_disk_is_refused() {
    for (make, name, value) in
        [(Make::PostgreSql, "fsync", "off"), (Make::MariaDb, "innodb-flush-log-at-trx-commit", "2")]
    {
        let server = tokio::task::spawn_blocking(move || {
            let server = start(make);
            server.kill();
            server.set(name, value);
            server.start_again().unwrap();
            server
        });
        let server = server.await.unwrap();
        let place = Place::on(&server).await;
        let open = async |options| Opened::try_with(&place, Diary::default(), options).await;
        let refused = open(SqlOptions::default()).await.err().unwrap();
        assert_eq!(refused.code(), "database_not_durable", "{refused}");
        open(SqlOptions { without_durability: true, ..SqlOptions::default() }).await.unwrap();
    }
}

/// MariaDB shows a commit to others before its log is written. What is answered from a row that
/// another call has written must not go with the server.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_answered_again_is_durable_even_if_it_was_only_shown() {
    let server = tokio::task::spawn_blocking(|| start(Make::MariaDb)).await.unwrap();
    let place = Place::on(&server).await;
    let opened = Opened::new(&place).await;
    // What is committed now is written when somebody else's commit is.
    let late = "SET GLOBAL innodb_flush_log_at_trx_commit = 0, innodb_flush_log_at_timeout = 2700";
    place.run(late).await;
    assert_eq!(play(&*opened.participant(), "shown", "execute").await, "yes");
    place.run("SET GLOBAL innodb_flush_log_at_trx_commit = 1").await;
    assert_eq!(play(&*opened.participant(), "shown", "execute").await, "yes");
    let again = move || {
        server.kill();
        server.start_again().unwrap();
        server
    };
    let _server = tokio::task::spawn_blocking(again).await.unwrap();
    assert_eq!(place.diary("shown").await, "execute");
}
