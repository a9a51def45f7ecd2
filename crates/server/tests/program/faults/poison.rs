//! A transaction that the program itself breaks on: after three attempts it is set aside, the
//! others go on, and after an upgrade it is taken up again. The switch `UNANIMITY_PANIC_AT` is the
//! mistake in the program; taking it away is the upgrade.

use serde_json::{Value, json};

use crate::actor::{Actor, Hold};
use crate::ask::{Coordinator, request, run, with};
use crate::setup::until;

/// What the program breaks on from its next start on; empty: nothing, it was upgraded.
fn breaks_on(coordinator: &mut Coordinator, what: &str) {
    coordinator.before = format!("export UNANIMITY_PANIC_AT={what}");
    if what.is_empty() {
        coordinator.before = "unset UNANIMITY_PANIC_AT".to_owned();
    }
}

/// Starts it, and waits until it has ended with an error that says what it broke on.
async fn breaks(coordinator: &mut Coordinator, word: &str) {
    let ended = match coordinator.try_start_again().await {
        Some(ended) => ended,
        None => coordinator.take().ended().await,
    };
    assert_eq!(ended.status, 1, "{}", ended.stderr);
    assert!(ended.stderr.contains(&format!("{word} transaction poison")), "{}", ended.stderr);
}

/// Others begin and end as ever.
async fn others_go_on(coordinator: &Coordinator, actor: &Actor, id: &str) {
    let asked = with(request(id, &actor.two()), &[("wait", json!("completed"))]);
    assert_eq!(coordinator.ask.begin(&asked).await.json()["outcome"], "commit");
}

async fn explained(coordinator: &Coordinator) -> Value {
    coordinator.ask.get("/v1/transactions/poison/explain").await.json()
}

/// A coordinator with a transaction that is decided to commit, and not complete.
async fn with_a_decided_one(actor: &Actor) -> Coordinator {
    let mut coordinator = Coordinator::start(&[]).await;
    actor.hold(Hold::Operation("commit"));
    let begun = coordinator.ask.begin(&request("poison", &actor.two())).await;
    assert_eq!(begun.json()["outcome"], "commit");
    coordinator.kill().await;
    actor.hold(Hold::Nobody);
    coordinator
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_breaks_the_program_three_times_is_set_aside_and_the_others_go_on() {
    let actor = Actor::start().await;
    let mut coordinator = with_a_decided_one(&actor).await;
    breaks_on(&mut coordinator, "handling:poison");
    for _ in 0..3 {
        breaks(&mut coordinator, "handling").await;
    }
    let called = actor.count("commit", "poison");
    coordinator.start_again().await;
    others_go_on(&coordinator, &actor, "other").await;

    let ask = &coordinator.ask;
    let shown = ask.shown("poison").await;
    assert_eq!((&shown["stage"], &shown["outcome"]), (&json!("set_aside"), &json!("commit")));
    assert_eq!(
        (&shown["set_aside"]["panics"], &shown["set_aside"]["read"]),
        (&json!(3), &json!(true))
    );
    let explanation = explained(&coordinator).await.to_string();
    for words in [
        "Set aside",
        "broke 3 times while handling it",
        "a test asked for this",
        "decided to commit",
        "unanimity retry poison",
    ] {
        assert!(explanation.contains(words), "{words:?} in {explanation}");
    }
    assert_eq!(ask.list("state=set_aside").await.0, ["poison"]);
    let stuck = run(&["stuck", "--url", &coordinator.url]).await;
    assert!(stuck.stdout.contains("poison  set aside, decided to commit"), "{}", stuck.stdout);
    let metrics = ask.get("/metrics").await.text();
    assert!(metrics.contains("\nunanimity_transactions_set_aside 1"), "{metrics}");

    // What is known may be told; nothing changes it.
    assert_eq!(ask.get("/v1/transactions/poison/decision").await.json()["decision"], "commit");
    let again = ask.begin(&request("poison", &actor.two())).await;
    assert_eq!((again.status, &again.json()["stage"]), (200, &json!("set_aside")));
    for (rest, body) in [
        ("rollback", json!({})),
        ("commit", json!({})),
        ("branches", json!({"name": "c", "participant": actor.at("c")})),
        ("branches/a/resolve", json!({"as": "committed", "by": "test"})),
    ] {
        let refused = ask.about("poison", rest, &body).await;
        assert_eq!((refused.status, &*refused.problem().0), (409, "set_aside"), "{rest}");
    }
    assert_eq!(actor.count("commit", "poison"), called, "no call leaves for it");

    // It does not hold a stop up, it is still set aside after the upgrade, and then it can end.
    assert_eq!(coordinator.stop().await.status, 0);
    breaks_on(&mut coordinator, "");
    coordinator.start_again().await;
    assert_eq!(coordinator.ask.shown("poison").await["stage"], "set_aside");
    let retried = run(&["retry", "poison", "--url", &coordinator.url]).await;
    assert!(retried.stdout.contains("it was set aside"), "{retried:?}");
    assert_eq!(coordinator.ask.ended("poison").await["outcome"], "commit");
    assert!(actor.count("commit", "poison") > called);
    coordinator.kill().await;
    coordinator.start_again().await;
    let shown = coordinator.ask.shown("poison").await;
    assert_eq!((&shown["stage"], &shown["set_aside"]), (&json!("ended"), &Value::Null));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_cannot_be_read_back_is_passed_over_and_kept() {
    let actor = Actor::start().await;
    let mut coordinator = with_a_decided_one(&actor).await;
    breaks_on(&mut coordinator, "replaying:poison");
    for _ in 0..3 {
        breaks(&mut coordinator, "replaying").await;
    }
    coordinator.start_again().await;
    others_go_on(&coordinator, &actor, "other").await;
    let ask = &coordinator.ask;
    let (ids, page) = ask.list("state=set_aside").await;
    let listed = &page["transactions"][0];
    assert_eq!((&*ids, &listed["set_aside"]["read"]), (&["poison".to_owned()][..], &json!(false)));
    // It is committed, and somebody was told: nobody is told to roll back, or that it is undecided.
    for path in ["/v1/transactions/poison", "/v1/transactions/poison/decision"] {
        let refused = ask.get(path).await;
        assert_eq!((refused.status, &*refused.problem().0), (409, "set_aside"));
    }
    let again = ask.begin(&request("poison", &actor.two())).await;
    assert_eq!((again.status, &*again.problem().0), (409, "set_aside"));

    // Its records are kept, and read after an upgrade.
    breaks_on(&mut coordinator, "");
    coordinator.kill().await;
    coordinator.start_again().await;
    let retried = coordinator.ask.about("poison", "retry", &json!({})).await.json();
    assert_eq!(
        (&retried["stage"], &retried["set_aside"]["panics"]),
        (&json!("set_aside"), &json!(0))
    );
    let next = explained(&coordinator).await["next"].as_str().unwrap().to_owned();
    assert!(next.contains("next start"), "{next}");
    coordinator.kill().await;
    coordinator.start_again().await;
    assert_eq!(coordinator.ask.ended("poison").await["outcome"], "commit");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_cannot_go_into_the_history_stays_out_of_it_and_known() {
    stays_out_of_the_history("archiving:poison").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_cannot_be_packed_stays_out_of_the_history_and_known() {
    stays_out_of_the_history("packing:poison").await;
}

async fn stays_out_of_the_history(where_it_breaks: &str) {
    let actor = Actor::start().await;
    let mut coordinator = Coordinator::start(&["--panics-per-transaction-max", "2"]).await;
    coordinator.kill().await;
    breaks_on(&mut coordinator, where_it_breaks);
    coordinator.start_again().await;
    let asked = request("poison", &actor.two());
    assert_eq!(coordinator.ask.begin(&asked).await.json()["outcome"], "commit");
    let ended = coordinator.take().ended().await;
    assert!(ended.stderr.contains("archiving transaction poison"), "{}", ended.stderr);
    breaks(&mut coordinator, "archiving").await;
    coordinator.start_again().await;
    others_go_on(&coordinator, &actor, "other").await;
    let shown = coordinator.ask.shown("poison").await;
    assert_eq!((&shown["stage"], &shown["set_aside"]["panics"]), (&json!("ended"), &json!(2)));
    assert_eq!(coordinator.stop().await.status, 0);
    breaks_on(&mut coordinator, "");
    coordinator.start_again().await;
    coordinator.ask.about("poison", "retry", &json!({})).await;
    coordinator.kill().await;
    coordinator.start_again().await;
    until("it to be in the history", async || {
        let shown = coordinator.ask.shown("poison").await;
        shown["set_aside"].is_null().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_breaks_the_program_three_times_is_refused() {
    let actor = Actor::start().await;
    let mut coordinator = Coordinator::start(&[]).await;
    coordinator.kill().await;
    breaks_on(&mut coordinator, "handling:poison");
    let asked = request("poison", &actor.two());
    for _ in 0..3 {
        coordinator.start_again().await;
        let post = [("content-type", &b"application/json"[..])];
        // Whether this is answered before the end is a matter of chance.
        let answer =
            coordinator.ask.try_send("POST", "/v1/transactions", &post, asked.to_string()).await;
        assert!(answer.is_err() || answer.is_ok_and(|answer| answer.status == 503));
        assert_eq!(coordinator.take().ended().await.status, 1);
    }
    coordinator.start_again().await;
    let refused = coordinator.ask.begin(&asked).await;
    assert_eq!((refused.status, &*refused.problem().0), (409, "set_aside"));
    others_go_on(&coordinator, &actor, "other").await;
    breaks_on(&mut coordinator, "");
    coordinator.kill().await;
    coordinator.start_again().await;
    coordinator.ask.about("poison", "retry", &json!({})).await;
    assert_eq!(coordinator.ask.begin(&asked).await.json()["outcome"], "commit");
}
