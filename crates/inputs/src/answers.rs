//! What participants are sent and what they answer, and what an initiator reads of the coordinator.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use http_body_util::BodyExt;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tower::ServiceExt;
use unanimity_core::{Answer, Operation, REASON_BYTES_MAX};
use unanimity_sdk::api::{DecisionAnswer, Problem, Timeline, TransactionList, TransactionStatus};
use unanimity_sdk::contract::{ATTEMPT_HEADER, BRANCH_HEADER, Response, TRANSACTION_HEADER, judge};
use unanimity_sdk::guard::Reply;
use unanimity_sdk::{Answering, Participant, router};
use unanimity_server::outbound::references::{fill, names};

use crate::bytes::{Parts, text};

fn operation(number: u8) -> Operation {
    Operation::ALL[usize::from(number) % Operation::ALL.len()]
}

const STATUSES: [u16; 12] = [200, 204, 409, 422, 404, 405, 501, 500, 503, 429, 307, 599];

/// A participant's answer: a choice of operation, status and headers, and then the body. Texts come
/// out short and printable, results as JSON on one line, and nothing but 200 and 204 is a yes.
pub fn participant(bytes: &[u8]) -> bool {
    let mut parts = Parts(bytes);
    let operation = operation(parts.byte());
    let status = STATUSES[usize::from(parts.byte()) % STATUSES.len()];
    let mut headers = HeaderMap::new();
    let choice = parts.byte();
    if choice & 1 != 0 {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    if choice & 2 != 0 {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("Text/HTML; a=b"));
    }
    let code = StatusCode::from_u16(status).expect("a status");
    let answer = judge(operation, Response::new(code, &headers, parts.0));
    assert_eq!(answer, judge(operation, Response::new(code, &headers, parts.0)));
    let is_good = matches!(status, 200 | 204);
    match answer {
        Answer::Yes(result) => {
            assert!(is_good, "{status} is a yes");
            if let Some(result) = result {
                check_result(parts.0, &result);
            }
            true
        }
        Answer::Read(result) => {
            assert!(is_good, "{status} is a yes");
            check_result(parts.0, &result);
            true
        }
        Answer::ReadOnly | Answer::Acknowledged => {
            assert!(is_good, "{status} is a yes");
            true
        }
        Answer::No(text) | Answer::Unknown(text) | Answer::Contradiction(_, text) => {
            assert!(text.len() <= REASON_BYTES_MAX, "{} bytes", text.len());
            assert!(!text.chars().any(char::is_control), "{text:?}");
            false
        }
        Answer::Unsupported | Answer::Unsent(_) => false,
    }
}

/// The kept result says what the body said, on one line. What JSON's grammar allows and a program
/// cannot hold (a number beyond all, half a surrogate pair) is kept as it was written.
fn check_result(body: &[u8], result: &str) {
    assert!(is_json(result), "{result:?}");
    assert!(!result.contains(['\n', '\r']), "{result:?}");
    let Ok(whole) = serde_json::from_slice::<serde_json::Value>(body) else { return };
    let value: serde_json::Value = serde_json::from_str(result).expect("a part of what was read");
    assert_eq!(whole["result"], value);
}

/// References in a payload: filling them leaves JSON, and what has none stays as it was.
pub fn references(bytes: &[u8]) -> bool {
    let mut parts = Parts(bytes);
    let result = text(parts.line()).filter(|text| is_json(text)).unwrap_or("{\"id\":7}");
    let Some(payload) = text(parts.0).filter(|text| is_json(text)) else { return false };
    let Ok(named) = names(payload) else { return false };
    let results: Vec<(Arc<str>, Option<Arc<str>>)> =
        named.iter().map(|name| (name.as_str().into(), Some(result.into()))).collect();
    let filled = fill(payload, &results, false).expect("a field that is missing is null");
    assert!(is_json(&filled), "{filled}");
    if let Ok(strict) = fill(payload, &results, true) {
        assert_eq!(strict, filled);
    }
    if named.is_empty() && !payload.contains("$result") {
        assert_eq!(filled, payload.trim());
    }
    assert!(fill(payload, &[], true).is_err() || named.is_empty(), "{named:?}");
    !named.is_empty()
}

fn is_json(text: &str) -> bool {
    serde_json::from_str::<&serde_json::value::RawValue>(text).is_ok()
}

/// Says yes to all that reaches it.
struct Willing;

impl Participant for Willing {
    fn call(&self, _: unanimity_sdk::Request) -> Answering<'_> {
        Box::pin(async { Ok(Reply::Yes(None)) })
    }
}

/// What a participant's router answers.
pub fn asked_of_router(request: Request<axum::body::Body>) -> (StatusCode, Vec<u8>) {
    let answering = async {
        let response = router(Arc::new(Willing)).oneshot(request).await.expect("never fails");
        let (head, body) = response.into_parts();
        (head.status, body.collect().await.expect("a whole body").to_bytes().into())
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(answering)
}

/// A call as a participant's router takes it: an operation, three lines of headers, the body. It
/// answers with a yes or names what is wrong.
pub fn call(bytes: &[u8]) -> bool {
    let mut parts = Parts(bytes);
    let path = format!("/{}", operation(parts.byte()).as_str());
    let mut request = Request::post(path);
    for name in [TRANSACTION_HEADER, BRANCH_HEADER, ATTEMPT_HEADER] {
        let Ok(value) = HeaderValue::from_bytes(parts.line()) else { return false };
        request = request.header(name, value);
    }
    let request = request.body(axum::body::Body::from(parts.0.to_vec())).expect("a request");
    let (status, body) = asked_of_router(request);
    let body: serde_json::Value = serde_json::from_slice(&body).expect("an answer in JSON");
    match status.as_u16() {
        200 => assert_eq!(body["vote"], "yes"),
        400 | 413 => assert!(body["code"].is_string(), "{body}"),
        other => panic!("{other}: {body}"),
    }
    status == StatusCode::OK
}

/// What a client of the coordinator reads: written again, it is read as the same.
pub fn coordinator(bytes: &[u8]) -> bool {
    let mut parts = Parts(bytes);
    match parts.byte() % 5 {
        0 => again::<TransactionStatus>(parts.0),
        1 => again::<TransactionList>(parts.0),
        2 => again::<Timeline>(parts.0),
        3 => again::<DecisionAnswer>(parts.0),
        _ => again::<Problem>(parts.0),
    }
}

fn again<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(bytes: &[u8]) -> bool {
    let Ok(read) = serde_json::from_slice::<T>(bytes) else { return false };
    let written = serde_json::to_vec(&read).expect("what was read can be written");
    let other: T = serde_json::from_slice(&written).expect("what was written can be read");
    assert_eq!(other, read);
    true
}
