//! Several calls in one request: each is answered as it would be alone, as soon as it is there.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;

use axum::body::Body;
use bytes::Bytes;
use http::{Request as HttpRequest, Response};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tower::ServiceExt;
use unanimity_sdk::contract::batch::{BATCH_BODY_BYTES_MAX, Line};
use unanimity_sdk::{
    Answering, MemoryParticipant, OwedAnswer, Participant, Request, RouterOptions, axum,
    guard::Reply, router, router_with_options,
};

use crate::groups::{gate, open};
use crate::support::{Folder, Plain};

async fn post(
    app: &axum::Router,
    path: &str,
    headers: &[(&str, &str)],
    body: Body,
) -> Response<Body> {
    let mut request = HttpRequest::post(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    app.clone().oneshot(request.body(body).unwrap()).await.unwrap()
}

async fn batch(app: &axum::Router, calls: &Value) -> Response<Body> {
    post(app, "/batch", &[], Body::from(json!({ "calls": calls }).to_string())).await
}

async fn read(response: Response<Body>) -> (u16, Bytes) {
    let status = response.status().as_u16();
    (status, response.into_body().collect().await.unwrap().to_bytes())
}

/// Lines by number: their status and body.
fn lines(body: &[u8]) -> Vec<(u64, u16, String)> {
    let mut found: Vec<_> = body
        .split_inclusive(|byte| *byte == b'\n')
        .map(|line| {
            let line = Line::read(line).unwrap();
            let body = String::from_utf8(line.body().to_vec()).unwrap();
            (line.number, line.status().as_u16(), body)
        })
        .collect();
    found.sort();
    found
}

fn call(number: usize, operation: &str, transaction: &str, payload: Value) -> Value {
    json!({"number": number, "operation": operation, "transaction": transaction, "branch": "b",
        "attempt": 1, "traceparent": "00-1-2-01", "payload": payload})
}

/// Votes as the payload says, which is JSON here.
fn app() -> axum::Router {
    router(Arc::new(MemoryParticipant::new(Plain)))
}

#[tokio::test]
async fn a_line_says_what_an_answer_alone_would() {
    let script = [
        ("commit", "t", "{}"),
        ("prepare", "t", r#""result""#),
        ("commit", "t", "{}"),
        ("rollback", "t", "{}"),
        ("prepare", "u", r#""no""#),
        ("prepare", "v", r#""panic""#),
        ("prepare", "v", r#""busy""#),
        ("prepare", "w", r#""read_only""#),
        ("prepare", "x", "null"),
        ("commit_one_phase", "y", "{}"),
        ("inquire", "y", "{}"),
    ];
    let (alone, together) = (app(), app());
    let (mut expected, mut calls) = (Vec::new(), Vec::new());
    for (number, (operation, transaction, payload)) in script.into_iter().enumerate() {
        let headers = [
            ("unanimity-transaction", transaction),
            ("unanimity-branch", "b"),
            ("unanimity-attempt", "1"),
        ];
        let path = format!("/{operation}");
        let (status, body) = read(post(&alone, &path, &headers, Body::from(payload)).await).await;
        expected.push((number as u64, status, String::from_utf8(body.to_vec()).unwrap()));
        calls.push(call(number, operation, transaction, serde_json::from_str(payload).unwrap()));
    }
    let response = batch(&together, &calls.into()).await;
    assert_eq!(response.headers()["content-type"], "application/x-ndjson");
    let (status, body) = read(response).await;
    assert_eq!((status, lines(&body)), (200, expected));
}

#[tokio::test]
async fn a_call_that_is_none_has_a_line_of_its_own() {
    let with = |number, field: &str, value: Value| {
        let mut call = call(number, "prepare", "t", json!({}));
        call[field] = value;
        call
    };
    let calls = json!([
        with(7, "operation", json!("prepair")),
        with(1, "transaction", json!("two words")),
        with(2, "branch", json!("a/b")),
        with(3, "attempt", json!(0)),
        with(4, "attempt", json!(u64::MAX)),
        with(5, "newer", json!([1])),
    ]);
    let (status, body) = read(batch(&app(), &calls).await).await;
    let found: Vec<(u64, u16, Value)> = lines(&body)
        .into_iter()
        .map(|(number, status, body)| {
            (number, status, serde_json::from_str::<Value>(&body).unwrap()["code"].clone())
        })
        .collect();
    let invalid = || json!("call_invalid");
    let expected = vec![
        (1, 400, invalid()),
        (2, 400, invalid()),
        (3, 400, invalid()),
        (4, 400, invalid()),
        (5, 200, Value::Null),
        (7, 404, json!("operation_unknown")),
    ];
    assert_eq!((status, found), (200, expected));
}

#[tokio::test]
async fn a_batch_that_cannot_be_taken_is_refused_whole() {
    let one = call(0, "prepare", "t", json!({}));
    let too_many = json!({ "calls": vec![one.clone(); 257] }).to_string();
    let large = " ".repeat(BATCH_BODY_BYTES_MAX + 1);
    let half = json!({"calls": [one, {"number": 1}]}).to_string();
    for (body, status, code) in [
        ("", 400, "batch_unreadable"),
        ("[]", 400, "batch_unreadable"),
        (&half, 400, "batch_unreadable"),
        (&too_many, 413, "batch_too_large"),
        (&large, 413, "body_too_large"),
    ] {
        let app = app();
        let found = read(post(&app, "/batch", &[], Body::from(body.to_owned())).await).await;
        let problem: Value = serde_json::from_slice(&found.1).unwrap();
        assert_eq!((found.0, &problem["code"]), (status, &json!(code)));
    }
    let (status, body) = read(batch(&app(), &json!([])).await).await;
    assert_eq!((status, body.len()), (200, 0));
}

#[tokio::test]
async fn every_answer_offers_batches_unless_the_service_wants_none() {
    let participant = || Arc::new(MemoryParticipant::new(Plain));
    let options = |batch_calls_max| RouterOptions {
        batch_calls_max,
        stream: Some("grpc://h:1/a".to_owned()),
    };
    let offers = |response: &Response<Body>| {
        let header =
            |name| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
        (header("unanimity-batch"), header("unanimity-stream"))
    };
    let calls = json!([call(0, "prepare", "t", json!({}))]);
    let text = |text: &str| Some(text.to_owned());
    for app in [app(), router_with_options(participant(), &options(16)).unwrap()] {
        let refused = offers(&post(&app, "/prepare", &[], Body::empty()).await);
        assert_eq!(offers(&batch(&app, &calls).await), refused);
        assert!([text("256"), text("16")].contains(&refused.0));
    }
    let never = router_with_options(participant(), &options(1)).unwrap();
    let offered = offers(&post(&never, "/prepare", &[], Body::empty()).await);
    assert_eq!(offered, (None, text("grpc://h:1/a")));
    assert_eq!(batch(&never, &calls).await.status(), 404);
}

/// A participant whose calls wait until they are told to go on, where the payload says so.
#[derive(Default)]
struct Slow {
    go: Notify,
    done: AtomicUsize,
}

impl Participant for Slow {
    fn call(&self, request: Request) -> Answering<'_> {
        Box::pin(async move {
            if request.payload.as_ref() == b"\"wait\"" {
                self.go.notified().await;
            }
            self.done.fetch_add(1, Ordering::SeqCst);
            Ok(Reply::Acknowledged)
        })
    }
}

fn one_slow_of_three() -> Value {
    json!([
        call(0, "commit", "t", json!({})),
        call(1, "commit", "u", json!("wait")),
        call(2, "commit", "v", json!({})),
    ])
}

#[tokio::test]
async fn a_slow_call_holds_up_no_answer_of_another() {
    let slow = Arc::new(Slow::default());
    let app = router(slow.clone());
    let mut body = batch(&app, &one_slow_of_three()).await.into_body();
    let mut found = Vec::new();
    while found.iter().filter(|byte| **byte == b'\n').count() < 2 {
        found.extend_from_slice(body.frame().await.unwrap().unwrap().data_ref().unwrap());
    }
    let numbers: Vec<u64> = lines(&found).into_iter().map(|line| line.0).collect();
    assert_eq!(numbers, [0, 2]);
    slow.go.notify_one();
    let rest = body.collect().await.unwrap().to_bytes();
    assert_eq!(lines(&rest), [(1, 200, "{}".to_owned())]);
}

#[tokio::test]
async fn who_asks_and_goes_away_has_asked_all_the_same() {
    let slow = Arc::new(Slow::default());
    let app = router(slow.clone());
    drop(batch(&app, &one_slow_of_three()).await);
    slow.go.notify_one();
    while slow.done.load(Ordering::SeqCst) < 3 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_in_one_request_shares_a_commit() {
    let folder = Folder::new();
    let (hook, groups, go_on) = gate();
    let participant = open(&folder, hook);
    let app = router(participant);
    let ask = |calls: Value| {
        let app = app.clone();
        tokio::spawn(async move { lines(&read(batch(&app, &calls).await).await.1).len() })
    };
    let first = ask(json!([call(0, "prepare", "first", json!({}))]));
    assert_eq!(groups.recv().unwrap(), 1);
    let many: Vec<Value> =
        (0..9).map(|number| call(number, "prepare", &format!("t-{number}"), json!({}))).collect();
    let many = many.into();
    let mut second = Box::pin(batch(&app, &many));
    // Polled once, all of it is before the writer.
    let polled = poll_fn(|context| Poll::Ready(second.as_mut().poll(context).is_pending()));
    assert!(polled.await, "no answer leaves before the commit");
    go_on.send(()).unwrap();
    assert_eq!(groups.recv().unwrap(), 9);
    go_on.send(()).unwrap();
    assert_eq!(lines(&read(second.await).await.1).len(), 9);
    assert_eq!(first.await.unwrap(), 1);
}

/// A participant whose calls go on for ever where the payload says so, that cannot even take some,
/// and that is long-winded about others.
struct Odd;

impl Participant for Odd {
    fn call(&self, request: Request) -> Answering<'_> {
        Box::pin(async move {
            match request.payload.as_ref() {
                b"\"for ever\"" => std::future::pending().await,
                b"\"at length\"" => Ok(Reply::No("x".repeat(65 * 1024))),
                _ => Ok(Reply::Acknowledged),
            }
        })
    }

    fn take(&self, request: Request, owed: OwedAnswer) -> Option<(Request, OwedAnswer)> {
        assert_ne!(request.payload.as_ref(), b"\"panic\"", "asked for");
        Some((request, owed))
    }
}

fn code(body: &str) -> String {
    serde_json::from_str::<Value>(body).unwrap()["code"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn a_call_that_cannot_be_taken_or_answered_costs_no_other_its_answer() {
    let payloads = ["well", "panic", "at length", "well"];
    let calls = payloads.into_iter().enumerate();
    let calls: Vec<Value> =
        calls.map(|(number, payload)| call(number, "prepare", "t", json!(payload))).collect();
    let (status, body) = read(batch(&router(Arc::new(Odd)), &calls.into()).await).await;
    let found: Vec<_> =
        lines(&body).into_iter().map(|(_, status, body)| (status, code(&body))).collect();
    let failed = |code: &str| (500, code.to_owned());
    let well = (200, String::new());
    let expected = vec![well.clone(), failed("service_failed"), failed("answer_too_large"), well];
    assert_eq!((status, found), (200, expected));
}

#[tokio::test]
async fn calls_that_nobody_waits_for_any_more_do_not_pile_up() {
    let options = RouterOptions { batch_calls_max: 4_096, ..RouterOptions::default() };
    let app = router_with_options(Arc::new(Odd), &options).unwrap();
    let many = |payload: &str| {
        (0..4_096).map(|number| call(number, "prepare", "t", json!(payload))).collect::<Vec<_>>()
    };
    // Answered calls are owed no more.
    for _ in 0..2 {
        assert_eq!(lines(&read(batch(&app, &many("well").into()).await).await.1).len(), 4_096);
    }
    let mut calls = many("for ever");
    calls[7] = call(7, "prepare", "t", json!("well"));
    drop(batch(&app, &calls.into()).await);
    let two = json!([call(0, "prepare", "t", json!("well")), call(1, "prepare", "u", json!(1))]);
    let found = lines(&read(batch(&app, &two).await).await.1);
    let found: Vec<_> = found.iter().map(|(_, status, body)| (*status, code(body))).collect();
    assert_eq!(found, [(200, String::new()), (503, "service_busy".to_owned())]);
}
