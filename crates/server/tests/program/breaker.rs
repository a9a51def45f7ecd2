//! A participant that is gone, as an operator sees it: its calls are held back, `explain` says so
//! and when it is probed, the metrics count, and everything ends once it is back.

use serde_json::json;

use crate::actor::Actor;
use crate::ask::{Coordinator, request, run, with};
use crate::setup::until;

#[tokio::test]
async fn a_participant_that_is_gone_is_held_back_explained_and_taken_up_again() {
    let actor = Actor::start().await;
    let flags = ["--retry-delay-ms", "10", "--retry-delay-max-ms", "20", "--breaker-failures", "3"];
    let more = ["--breaker-probe-ms", "8000", "--park-after-attempts", "65535"];
    let coordinator = Coordinator::start(&[&flags[..], &more].concat()).await;
    let ask = &coordinator.ask;
    actor.phase_two(503);
    ask.begin(&request("stuck", &actor.two())).await;
    let held = "held back: http://127.0.0.1:";
    let explained = until("calls to be held back", async || {
        let explained = ask.get("/v1/transactions/stuck/explain").await.json();
        let error = explained["awaited"][0]["last_error"].as_str().unwrap_or_default().to_owned();
        error.starts_with(held).then_some(explained)
    })
    .await;
    let awaited = &explained["awaited"][0];
    let (error, next) =
        (awaited["last_error"].as_str().unwrap(), awaited["next"].as_str().unwrap());
    assert!(error.contains("is probed every 8000 ms; last error: HTTP 503"), "{explained}");
    assert!(next.contains(" fails since 2") && next.contains("probe"), "{explained}");
    let shown = run(&["explain", "stuck", "--url", &coordinator.url]).await;
    assert!(shown.stdout.contains("fails since 2") && shown.stdout.contains(held), "{shown:?}");
    // The other participant at another address is untouched.
    let other = Actor::start().await;
    let completed = [("wait", json!("completed"))];
    let served = ask.begin(&with(request("served", &other.two()), &completed)).await;
    assert_eq!((served.status, &served.json()["outcome"]), (200, &json!("commit")));
    let metrics = ask.get("/metrics").await.text();
    assert!(metrics.contains("\nunanimity_breakers_open 1\n"), "{metrics}");
    let counter = "\nunanimity_calls_held_back_total ";
    assert!(metrics.contains(counter), "{metrics}");
    let calls = actor.count("commit", "stuck");
    until("more calls to be held back", async || {
        let now = ask.get("/metrics").await.text();
        let count = |text: &str| -> Option<u64> {
            text.split_once(counter)?.1.lines().next()?.trim().parse().ok()
        };
        (count(&now)? >= count(&metrics)? + 20).then_some(())
    })
    .await;
    // At most a probe or two have gone meanwhile.
    assert!(actor.count("commit", "stuck") <= calls + 3, "{calls}");
    actor.phase_two(200);
    ask.ended("stuck").await;
    let metrics = ask.get("/metrics").await.text();
    assert!(metrics.contains("\nunanimity_breakers_open 0\n"), "{metrics}");
}
