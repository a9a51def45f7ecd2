//! The contract over HTTP: headers, statuses and bodies, read back as the coordinator reads them.

use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use tower::ServiceExt;
use unanimity_sdk::contract::{self, BODY_BYTES_MAX};
use unanimity_sdk::{Answer, MemoryParticipant, Operation, axum, router};

use crate::support::Plain;

/// A call whose headers are given as `name: value` lines.
async fn call(app: &axum::Router, path: &str, headers: &str, body: Body) -> Response<Body> {
    let mut request = Request::post(path);
    for line in headers.lines() {
        let (name, value) = line.split_once(": ").unwrap();
        request = request.header(name, value);
    }
    app.clone().oneshot(request.body(body).unwrap()).await.unwrap()
}

/// What the coordinator makes of an answer, in a word, with the participant's own.
fn judged(operation: Operation, (status, media, body): &(u16, String, Bytes)) -> String {
    let mut headers = http::HeaderMap::new();
    headers.insert("content-type", media.parse().unwrap());
    let status = http::StatusCode::from_u16(*status).unwrap();
    match contract::judge(operation, contract::Response::new(status, &headers, body)) {
        Answer::Yes(None) => "yes".to_owned(),
        Answer::Yes(Some(result)) => format!("yes({result})"),
        Answer::ReadOnly => "read_only".to_owned(),
        Answer::No(reason) => format!("no({reason})"),
        Answer::Acknowledged => "ack".to_owned(),
        Answer::Contradiction(contradiction, _) => contradiction.code().to_owned(),
        Answer::Unknown(_) => "unknown".to_owned(),
        other => panic!("{other:?}"),
    }
}

async fn parts(response: Response<Body>) -> (u16, String, Bytes) {
    let media = response.headers()["content-type"].to_str().unwrap().to_owned();
    let status = response.status().as_u16();
    (status, media, response.into_body().collect().await.unwrap().to_bytes())
}

fn app() -> axum::Router {
    router(Arc::new(MemoryParticipant::new(Plain)))
}

const GOOD: &str = "unanimity-transaction: t\nunanimity-branch: b\nunanimity-attempt: 1";

#[tokio::test]
async fn answers_have_the_statuses_of_the_contract() {
    let problem = "application/problem+json";
    let json = "application/json";
    let app = app();
    for (operation, payload, status, media, part, read) in [
        ("commit", "", 409, problem, r#""code":"never_prepared""#, "never_prepared"),
        ("prepare", "panic", 500, problem, r#""code":"service_failed""#, "unknown"),
        ("prepare", "busy", 503, problem, r#""code":"service_busy""#, "unknown"),
        (
            "prepare",
            "result",
            200,
            json,
            r#"{"vote":"yes","result":{"seat":7}}"#,
            r#"yes({"seat":7})"#,
        ),
        ("commit", "", 200, json, "{}", "ack"),
        ("rollback", "", 409, problem, r#""code":"already_committed""#, "already_committed"),
    ] {
        let answer =
            parts(call(&app, &format!("/{operation}"), GOOD, Body::from(payload)).await).await;
        let (found, found_media, body) = &answer;
        let shown = String::from_utf8_lossy(body);
        assert_eq!((*found, found_media.as_str()), (status, media), "{operation}: {shown}");
        assert!(shown.contains(part), "{shown} has no {part}");
        let operation = Operation::from_word(operation).unwrap();
        assert_eq!(judged(operation, &answer), read, "{shown}");
    }
}

#[tokio::test]
async fn votes_travel_word_for_word() {
    for (payload, expected) in [("no", "no(said no)"), ("read_only", "read_only"), ("", "yes")] {
        let answer = parts(call(&app(), "/prepare", GOOD, Body::from(payload)).await).await;
        assert_eq!(judged(Operation::Prepare, &answer), expected);
    }
}

#[tokio::test]
async fn headers_that_are_missing_or_wrong_are_named() {
    let long = format!("{GOOD}x").replace(": t", &format!(": {}", "x".repeat(129)));
    for (headers, code, field) in [
        ("", "header_missing", "unanimity-transaction"),
        ("unanimity-transaction: t", "header_missing", "unanimity-branch"),
        ("unanimity-transaction: t\nunanimity-branch: b", "header_missing", "unanimity-attempt"),
        (&GOOD.replace(": t", ": two words"), "header_invalid", "unanimity-transaction"),
        (&GOOD.replace(": b", ": a/b"), "header_invalid", "unanimity-branch"),
        (&GOOD.replace(": 1", ": 0"), "header_invalid", "unanimity-attempt"),
        (&GOOD.replace(": 1", ": -1"), "header_invalid", "unanimity-attempt"),
        (&GOOD.replace(": 1", ": many"), "header_invalid", "unanimity-attempt"),
        (&format!("{GOOD}\nunanimity-branch: c"), "header_invalid", "unanimity-branch"),
        (&long, "header_invalid", "unanimity-transaction"),
    ] {
        let (status, media, body) =
            parts(call(&app(), "/prepare", headers, Body::empty()).await).await;
        let problem: unanimity_sdk::api::Problem = serde_json::from_slice(&body).unwrap();
        assert_eq!((status, media.as_str()), (400, "application/problem+json"), "{headers}");
        assert_eq!((&*problem.code, problem.field.as_deref()), (code, Some(field)), "{headers}");
    }
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_and_one_at_the_limit_is_not() {
    for (bytes, expected) in [(BODY_BYTES_MAX, 200), (BODY_BYTES_MAX + 1, 413)] {
        let body = Body::from(vec![b'x'; bytes]);
        let (status, _, body) = parts(call(&app(), "/prepare", GOOD, body).await).await;
        assert_eq!(status, expected, "{}", String::from_utf8_lossy(&body));
    }
}
