//! The initiators' API over gRPC: the same checks, the same codes, the same transactions as over
//! HTTP.

use std::time::Duration;

use http::Uri;
use hyper_util::client::legacy::Client as Connections;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use unanimity_sdk::ClientError;
use unanimity_sdk::api::TransactionRequest;
use unanimity_sdk::stream::transactions_client::TransactionsClient;
use unanimity_sdk::stream::{
    BeginRequest, BranchRequest, CommitRequest, Decision, DecisionRequest, EnlistRequest,
    GetRequest, RollbackRequest, StreamClient, Transaction, Wait,
};

use crate::actor::{Actor, Hold};
use crate::ask::{Coordinator, request, with};
use crate::setup::until;

type Grpc = TransactionsClient<Connections<HttpConnector, tonic::body::Body>>;

fn grpc(coordinator: &Coordinator) -> Grpc {
    let connections =
        Connections::builder(TokioExecutor::new()).http2_only(true).build(HttpConnector::new());
    TransactionsClient::with_origin(connections, coordinator.url.parse::<Uri>().unwrap())
}

/// What JSON says, as a message.
fn message(json: &Value) -> BeginRequest {
    let request: TransactionRequest = serde_json::from_value(json.clone()).unwrap();
    BeginRequest::from(&request)
}

fn stream(coordinator: &Coordinator) -> StreamClient {
    StreamClient::new(&coordinator.url, None).unwrap()
}

#[tokio::test]
async fn a_transaction_begun_over_grpc_is_as_over_http() {
    let (actor, coordinator) = (Actor::start().await, Coordinator::start(&[]).await);
    let mut grpc = grpc(&coordinator);
    let asked = with(request("t", &actor.two()), &[("wait", json!("completed"))]);
    let begun = grpc.begin(message(&asked)).await.unwrap().into_inner();
    assert_eq!((begun.outcome(), begun.completed), (Decision::Commit, true));
    assert_eq!(begun.reason_code, "all_yes");
    let shown: Value = serde_json::from_str(&begun.json).unwrap();
    assert_eq!(shown, coordinator.ask.shown("t").await);
    let got = grpc.get(GetRequest { id: "t".into(), wait_ms: 10_000 }).await.unwrap().into_inner();
    assert_eq!(got, begun);
    let decision = |id: &str| DecisionRequest { id: id.into() };
    let told = grpc.decision(decision("t")).await.unwrap().into_inner();
    assert_eq!(told.decision(), Decision::Commit);
    let presumed = grpc.decision(decision("unknown")).await.unwrap().into_inner();
    assert_eq!(presumed.decision(), Decision::Rollback);
    assert_eq!(actor.count("prepare", "t"), 2);
}

#[tokio::test]
async fn an_interactive_transaction_goes_over_grpc_too() {
    let (actor, coordinator) = (Actor::start().await, Coordinator::start(&[]).await);
    let mut grpc = grpc(&coordinator);
    for id in ["kept", "dropped"] {
        let open =
            BeginRequest { id: Some(id.into()), interactive: true, ..BeginRequest::default() };
        assert_eq!(grpc.begin(open).await.unwrap().into_inner().stage, "open");
        for name in ["a", "b"] {
            let branch = BranchRequest {
                name: name.into(),
                participant: actor.at(name),
                ..BranchRequest::default()
            };
            let enlist = EnlistRequest { id: id.into(), branch: Some(branch) };
            grpc.enlist(enlist).await.unwrap();
        }
    }
    let commit = CommitRequest { id: "kept".into(), wait: Wait::Completed as i32 };
    let committed = grpc.commit(commit).await.unwrap().into_inner();
    assert_eq!((committed.outcome(), committed.completed), (Decision::Commit, true));
    let rolled_back = grpc.rollback(RollbackRequest { id: "dropped".into() }).await.unwrap();
    assert_eq!(rolled_back.into_inner().outcome(), Decision::Rollback);
    let late = grpc.rollback(RollbackRequest { id: "kept".into() }).await.unwrap_err();
    assert_eq!(late.metadata().get("unanimity-code").unwrap(), "already_decided");
    assert_eq!(late.code(), tonic::Code::FailedPrecondition);
}

/// Requests that are refused, each for another reason.
fn refused(actor: &Actor) -> Vec<Value> {
    let good = request("r", &actor.two());
    let branch = |fields: &[(&str, Value)]| {
        let mut changed = good.clone();
        changed["branches"][1] = with(changed["branches"][1].clone(), fields);
        changed
    };
    let deep = (0..40).fold(json!(1), |inner, _| json!([inner]));
    vec![
        with(good.clone(), &[("branches", json!([]))]),
        with(good.clone(), &[("id", json!("two words"))]),
        with(good.clone(), &[("prepare_timeout_ms", json!(0))]),
        branch(&[("name", json!("a"))]),
        branch(&[("name", json!(""))]),
        branch(&[("participant", json!("ftp://x"))]),
        branch(&[("participant", json!("http://10.1.1.1/"))]),
        branch(&[("after", json!(["nobody"]))]),
        branch(&[("payload", json!({"$result": "x"}))]),
        branch(&[("payload", deep)]),
        branch(&[("kind", json!("local"))]),
    ]
}

#[tokio::test]
async fn what_is_refused_over_http_is_refused_over_grpc_with_the_same_code_and_place() {
    let (actor, coordinator) = (Actor::start().await, Coordinator::start(&[]).await);
    let (mut grpc, stream) = (grpc(&coordinator), stream(&coordinator));
    for asked in refused(&actor) {
        let over_http = coordinator.ask.begin(&asked).await;
        let (code, field) = over_http.problem();
        let status = grpc.begin(message(&asked)).await.unwrap_err();
        let metadata = |name: &str| {
            let value = status.metadata().get(name);
            value.map_or(String::new(), |value| value.to_str().unwrap().to_owned())
        };
        let found = (metadata("unanimity-code"), metadata("unanimity-field"));
        assert_eq!(found, (code.clone(), field.clone()), "{asked}");
        assert_eq!(status.message(), over_http.json()["detail"], "{asked}");
        let refusal = stream.begin(message(&asked)).await.unwrap_err();
        let ClientError::Refused { status, code: found, field: place, .. } = refusal else {
            panic!("{refusal}")
        };
        assert_eq!((status, found, place.unwrap_or_default()), (over_http.status, code, field));
    }
    assert!(actor.seen().is_empty());
}

/// Requests with one id each, to be asked twice.
fn alike(actor: &Actor) -> Vec<Value> {
    let good = |id: &str| request(id, &actor.two());
    let mut full = with(
        good("full"),
        &[
            ("prepare_timeout_ms", json!(9_000)),
            ("execute_timeout_ms", json!(8_000)),
            ("timeout_ms", json!(60_000)),
            ("attempt_timeout_ms", json!(700)),
            ("retry_delay_ms", json!(30)),
            ("retry_delay_max_ms", json!(40)),
            ("notice", json!({"url": actor.at("n"), "on_rollback": true})),
        ],
    );
    full["branches"][1]["after"] = json!(["a"]);
    full["branches"][1]["kind"] = json!("compensable");
    full["branches"][0]["payload_in_phase_two"] = json!(true);
    full["branches"][0]["payload"] = json!({"b": [1.5, "ä\n", null], "a": {}});
    let one = with(request("one", &[actor.at("a")]), &[("one_phase", json!(false))]);
    vec![good("plain"), full, one]
}

#[tokio::test]
async fn the_same_request_over_either_is_the_same_transaction() {
    let (actor, coordinator) = (Actor::start().await, Coordinator::start(&[]).await);
    let stream = stream(&coordinator);
    actor.answer("execute", 200, &json!({}));
    for (place, asked) in alike(&actor).into_iter().enumerate() {
        let id = asked["id"].as_str().unwrap().to_owned();
        let http_first = place % 2 == 0;
        for over_http in [http_first, !http_first] {
            if over_http {
                let answer = coordinator.ask.begin(&asked).await;
                assert_eq!(answer.status, 200, "{}", answer.text());
            } else {
                stream.begin(message(&asked)).await.unwrap();
            }
        }
        coordinator.ask.ended(&id).await;
        assert_eq!(actor.count("prepare", &id), asked_to_prepare(&asked), "{asked}");
        // One digit more, and it is another request.
        let mut other = message(&asked);
        other.branches[0].payload = r#"{"of":"somebody else"}"#.into();
        let error = stream.begin(other).await.unwrap_err();
        assert_eq!(error.code(), Some("id_reused"));
    }
}

fn asked_to_prepare(asked: &Value) -> usize {
    let branches = asked["branches"].as_array().unwrap().iter();
    branches.filter(|branch| branch["kind"] != "compensable").count()
}

#[tokio::test]
async fn many_transactions_run_over_one_stream_each_with_its_own_wait() {
    // However busy the machine is: who is refused in an overload is not the question here.
    let flags = ["--queue-delay-target-ms", "0"];
    let (actor, coordinator) = (Actor::start().await, Coordinator::start(&flags).await);
    let stream = stream(&coordinator);
    let mut running = JoinSet::new();
    for number in 0..300 {
        let wait = ["outcome", "completed", "accepted"][number % 3];
        let asked = with(request(&format!("t-{number}"), &actor.two()), &[("wait", json!(wait))]);
        let (stream, mut asked) = (stream.clone(), message(&asked));
        // Half of them leave the id to the coordinator, which goes another way.
        asked.id = asked.id.filter(|_| number % 2 == 0);
        running.spawn(async move { (number, stream.begin(asked).await.unwrap()) });
    }
    let mut ids = std::collections::BTreeSet::new();
    for (number, shown) in running.join_all().await {
        let Transaction { ref id, completed, .. } = shown;
        assert!(ids.insert(id.clone()) && (number % 2 == 1 || *id == format!("t-{number}")));
        match number % 3 {
            0 => assert_eq!(shown.outcome(), Decision::Commit),
            1 => assert!(completed && shown.outcome() == Decision::Commit),
            _ => {}
        }
        assert_eq!(coordinator.ask.ended(id).await["outcome"], "commit");
    }
}

#[tokio::test]
async fn an_initiator_whose_stream_breaks_is_told_and_asks_again() {
    let (actor, mut coordinator) = (Actor::start().await, Coordinator::start(&[]).await);
    let stream = stream(&coordinator);
    actor.hold(Hold::Everybody);
    let asked = message(&request("t", &actor.two()));
    let (client, again) = (stream.clone(), asked.clone());
    let waiting = tokio::spawn(async move { client.begin(again).await });
    until("both prepares", async || (actor.held() == 2).then_some(())).await;
    coordinator.take().kill().await;
    let lost = waiting.await.unwrap().unwrap_err();
    assert!(matches!(lost, ClientError::NoAnswer(_)), "{lost}");
    actor.hold(Hold::Nobody);
    coordinator.start_again().await;
    let shown = until("the answer", async || stream.begin(asked.clone()).await.ok()).await;
    assert_eq!(shown.reason_code, "coordinator_restarted");
    assert_eq!(shown.outcome(), Decision::Rollback);
}

#[tokio::test]
async fn an_open_stream_does_not_keep_the_coordinator_from_stopping() {
    let (actor, mut coordinator) =
        (Actor::start().await, Coordinator::start(&["--stop-timeout-ms", "30000"]).await);
    let stream = stream(&coordinator);
    stream.begin(message(&request("t", &actor.two()))).await.unwrap();
    let running = coordinator.take();
    running.signal("TERM").await;
    let ended = tokio::time::timeout(Duration::from_secs(20), running.ended()).await;
    assert_eq!(ended.expect("well before its limit").status, 0);
}

#[tokio::test]
async fn without_the_token_nothing_is_answered() {
    let coordinator = Coordinator::start(&["--token", "0123456789abcdef"]).await;
    let refused = grpc(&coordinator).get(GetRequest { id: "t".into(), wait_ms: 0 }).await;
    let status = refused.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unauthenticated);
    assert_eq!(status.metadata().get("unanimity-code").unwrap(), "unauthorized");
    let with_token = StreamClient::new(&coordinator.url, Some("0123456789abcdef")).unwrap();
    let empty = with_token.begin(BeginRequest::default()).await.unwrap_err();
    assert!(matches!(empty, ClientError::Refused { .. }), "{empty}");
    let without = stream(&coordinator).begin(BeginRequest::default()).await.unwrap_err();
    assert!(matches!(without, ClientError::NoAnswer(_)), "{without}");
}
