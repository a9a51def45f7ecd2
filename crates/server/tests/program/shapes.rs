//! What the API says of itself, and whether it and the SDK's types agree with what is sent.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use unanimity_sdk::api::{
    DecisionAnswer, Problem, Timeline, TransactionList, TransactionRequest, TransactionStatus,
};

use crate::actor::{Actor, Hold};
use crate::ask::{Coordinator, request, with};
use crate::setup::until;

/// Where the routes are: whatever stands there must be described.
const ROUTES: &str = include_str!("../../src/api/mod.rs");

#[tokio::test]
async fn every_route_is_described() {
    let coordinator = Coordinator::start(&[]).await;
    let description = coordinator.ask.get("/openapi.json").await.json();
    assert!(description["openapi"].as_str().unwrap().starts_with("3."));
    let mut count = 0;
    for line in ROUTES.lines().filter_map(|line| line.trim().strip_prefix(".route(\"")) {
        let (path, handlers) = line.split_once('"').unwrap();
        for method in ["get", "post"] {
            if handlers.contains(&format!("{method}(")) {
                let described = &description["paths"][path][method];
                assert!(described["responses"].is_object(), "{method} {path} is not described");
                assert!(described["summary"].is_string() || described["description"].is_string());
                count += 1;
            }
        }
    }
    let paths = description["paths"].as_object().unwrap().values();
    let described: usize = paths.map(|item| item.as_object().unwrap().len()).sum();
    assert_eq!(described, count, "a path is described that is no route");
    assert!(count >= 13, "{count}");
}

/// The type must have a place for every field that was sent, and every field of the type must have
/// been sent.
fn same<T: Serialize + DeserializeOwned>(sent: &Value) {
    let read: T = serde_json::from_value(sent.clone()).unwrap_or_else(|e| panic!("{e}: {sent}"));
    assert_eq!(&serde_json::to_value(&read).unwrap(), sent);
}

#[tokio::test]
async fn the_sdk_reads_every_field_that_is_sent_and_no_other() {
    let flags = ["--retry-delay-ms", "600000", "--retry-delay-max-ms", "600000"];
    let (actor, coordinator) = (Actor::start().await, Coordinator::start(&flags).await);
    let ask = &coordinator.ask;
    let begin = async |id: &str, wait: &str| {
        let asked = with(request(id, &actor.two()), &[("wait", json!(wait))]);
        same::<TransactionRequest>(&asked);
        ask.begin(&asked).await.json()
    };
    same::<TransactionStatus>(&begin("committed", "completed").await);
    actor.vote(409);
    same::<TransactionStatus>(&begin("refused", "completed").await);
    actor.vote(200);
    actor.phase_two(500);
    begin("committing", "outcome").await;
    until("both commits to fail", async || {
        let shown = ask.shown("committing").await;
        let failed = |n: usize| shown["branches"][n]["retry_at_ms"].is_u64();
        (failed(0) && failed(1)).then_some(())
    })
    .await;
    actor.hold(Hold::Everybody);
    same::<TransactionStatus>(&begin("preparing", "accepted").await);
    for id in ["committed", "refused", "committing", "preparing"] {
        let shown = ask.shown(id).await;
        same::<TransactionStatus>(&shown);
        assert_eq!(
            shown["branches"][0]["result"],
            if id.starts_with("commit") { json!({"seat": 7}) } else { Value::Null }
        );
        same::<Timeline>(&ask.get(&format!("/v1/transactions/{id}/events")).await.json());
        same::<DecisionAnswer>(&ask.get(&format!("/v1/transactions/{id}/decision")).await.json());
    }
    same::<TransactionList>(&ask.get("/v1/transactions").await.json());
    same::<TransactionList>(&ask.get("/v1/transactions?limit=1").await.json());
    let problem = ask.get("/v1/transactions?limit=0").await;
    assert_eq!(problem.status, 400);
    same::<Problem>(&problem.json());
    // An old client understands a page with events too.
    let page = ask.get("/v1/transactions?events=true").await.json();
    assert!(serde_json::from_value::<TransactionList>(page).is_ok());
}

#[tokio::test]
async fn a_participants_result_is_passed_on() {
    let (actor, coordinator) = (Actor::start().await, Coordinator::start(&[]).await);
    let completed = with(request("t", &actor.two()), &[("wait", json!("completed"))]);
    let shown = coordinator.ask.begin(&completed).await.json();
    assert_eq!(shown["branches"][1]["result"], json!({"seat": 7}), "{shown}");
    let client = coordinator.client();
    let id = unanimity_sdk::TransactionId::new("t").unwrap();
    let status = client.get(&id, None).await.unwrap();
    assert_eq!(status.branches[0].result.as_ref().unwrap().as_str(), r#"{"seat":7}"#);
}

#[tokio::test]
async fn probes_and_metrics_say_how_it_is() {
    let (actor, coordinator) = (Actor::start().await, Coordinator::start(&[]).await);
    let ask = &coordinator.ask;
    let completed = [("wait", json!("completed"))];
    ask.begin(&with(request("yes", &actor.two()), &completed)).await;
    actor.vote(409);
    ask.begin(&with(request("no", &actor.two()), &completed)).await;
    for (path, body) in [("/livez", "ok\n"), ("/readyz", "ready\n")] {
        let answer = ask.get(path).await;
        assert_eq!((answer.status, &*answer.text()), (200, body));
    }
    // A shard publishes what it counts at the end of its turn, a moment after it has answered.
    let metrics = until("both transactions are counted", async || {
        let metrics = ask.get("/metrics").await;
        assert_eq!(metrics.header("content-type"), "text/plain; version=0.0.4");
        let metrics = metrics.text();
        let ended = "\nunanimity_transactions_ended_total 2\n";
        metrics.contains(ended).then_some(metrics)
    })
    .await;
    for line in [
        "# TYPE unanimity_transactions_begun_total counter",
        "# TYPE unanimity_transactions_decided_total counter",
        "# TYPE unanimity_transactions_ended_total counter",
        "# TYPE unanimity_transaction_seconds summary",
        "# TYPE unanimity_journal_batch_records summary",
        "unanimity_transactions_begun_total 2",
        "unanimity_transactions_ended_total 2",
        r#"unanimity_transactions_decided_total{outcome="commit",reason="all_yes"} 1"#,
        r#"unanimity_transactions_decided_total{outcome="rollback",reason="voted_no"} 1"#,
        "unanimity_transaction_seconds_count 2",
    ] {
        assert!(metrics.lines().any(|found| found == line), "no {line} in\n{metrics}");
    }
}

#[tokio::test]
async fn every_error_code_has_a_page() {
    let coordinator = Coordinator::start(&[]).await;
    for doc in unanimity_server::problem::CODES {
        let page = coordinator.ask.get(&format!("/errors/{}", doc.code)).await;
        assert_eq!(page.status, 200, "{}", doc.code);
        let text = page.text();
        assert!(text.contains(doc.meaning) && text.contains(doc.remedy), "{text}");
    }
    let unknown = coordinator.ask.get("/errors/no_such_code").await;
    assert_eq!((unknown.status, &*unknown.problem().0), (404, "not_found"));
}
