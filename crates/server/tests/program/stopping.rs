//! Stopping in good order: what was accepted is finished, what cannot be is taken up by the next
//! start.

use serde_json::{Value, json};

use crate::actor::{Actor, Hold};
use crate::ask::{Coordinator, request, soon, with};
use crate::setup::until;

#[tokio::test]
async fn told_to_stop_under_load_it_finishes_what_it_accepted() {
    let flags = ["--connections-per-participant-max", "200", "--attempt-timeout-ms", "60000"];
    let timeouts = ["--prepare-timeout-ms", "60000", "--stop-timeout-ms", "60000"];
    let actor = Actor::start().await;
    let mut coordinator = Coordinator::start(&[flags, timeouts].concat()).await;
    actor.hold(Hold::Everybody);
    let mut waiting = Vec::new();
    for number in 0..60 {
        let wait = ["completed", "outcome", "accepted"][number % 3];
        let asked = request(&format!("t-{number}"), &actor.two());
        let asked = with(asked, &[("wait", json!(wait))]);
        let ask = coordinator.ask.clone();
        waiting.push(tokio::spawn(async move { ask.begin(&asked).await }));
    }
    until("every prepare", async || (actor.held() == 120).then_some(())).await;
    let running = coordinator.take();
    running.signal("TERM").await;
    // Nobody new is let in.
    until("the door to be closed", async || {
        let answer = coordinator.ask.try_send("GET", "/readyz", &[], "").await;
        answer.map_or(Some(()), |answer| (answer.status == 503).then_some(()))
    })
    .await;
    actor.hold(Hold::Nobody);
    for (number, answer) in waiting.into_iter().enumerate() {
        let answer = soon(answer).await.unwrap();
        let shown = answer.json();
        let (status, outcome) =
            if number % 3 == 2 { (202, Value::Null) } else { (200, json!("commit")) };
        assert_eq!((answer.status, &shown["outcome"]), (status, &outcome), "{number}: {shown}");
    }
    let ended = running.ended().await;
    assert_eq!(ended.status, 0, "{ended:?}");
    // Also those whose initiators did not wait are complete, before the program ended.
    let commits = actor.seen().iter().filter(|seen| seen.operation == "commit").count();
    assert_eq!(commits, 120);
    coordinator.start_again().await;
    let (ids, page) = coordinator.ask.list("limit=1000").await;
    assert_eq!(ids.len(), 60);
    for one in page["transactions"].as_array().unwrap() {
        assert_eq!((&one["outcome"], &one["completed"]), (&json!("commit"), &json!(true)));
    }
}

#[tokio::test]
async fn told_to_stop_it_does_not_wait_for_ever() {
    let flags = ["--stop-timeout-ms", "100", "--prepare-timeout-ms", "600000"];
    let (actor, mut coordinator) = (Actor::start().await, Coordinator::start(&flags).await);
    actor.hold(Hold::Everybody);
    let accepted = with(request("t", &actor.two()), &[("wait", json!("accepted"))]);
    coordinator.ask.begin(&accepted).await;
    until("both prepares", async || (actor.held() == 2).then_some(())).await;
    for signal in ["TERM", "INT"] {
        let running = coordinator.take();
        running.signal(signal).await;
        let ended = running.ended().await;
        assert_eq!(ended.status, 0, "{ended:?}");
        coordinator.start_again().await;
    }
    let ended = coordinator.ask.ended("t").await;
    assert_eq!(ended["reason"]["code"], "coordinator_restarted");
    actor.hold(Hold::Nobody);
}
