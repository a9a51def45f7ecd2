//! Several calls at once, as they are sent and answered: in one request over HTTP, and in one
//! message of a stream.

use axum::body::Body;
use http::Request;
use prost::Message;
use serde::Deserialize;
use unanimity_sdk::contract::batch::{BATCH_PATH, Line};
use unanimity_sdk::stream::Calls;

use crate::answers::asked_of_router;

/// A line of a batch's answer: what is one has a status that could have come alone, and a body that
/// is JSON or nothing.
pub fn line(bytes: &[u8]) -> bool {
    let Some(line) = Line::read(bytes) else { return false };
    assert!((100..600).contains(&line.status().as_u16()), "{}", line.status());
    let body = line.body();
    assert!(body.is_empty() || serde_json::from_slice::<serde::de::IgnoredAny>(body).is_ok());
    true
}

/// A batch as this test reads it.
#[derive(Deserialize)]
struct Asked {
    calls: Vec<Numbered>,
}

#[derive(Deserialize)]
struct Numbered {
    number: u64,
}

/// A batch as a participant's router takes it: it answers each call once, by the numbers that were
/// given, or it takes none and names what is wrong.
pub fn calls(bytes: &[u8]) -> bool {
    let request = Request::post(format!("/{BATCH_PATH}"));
    let request = request.body(Body::from(bytes.to_vec())).expect("a request");
    let (status, body) = asked_of_router(request);
    if status.as_u16() != 200 {
        assert!(matches!(status.as_u16(), 400 | 413), "{status}");
        let body: serde_json::Value = serde_json::from_slice(&body).expect("a problem");
        assert!(body["code"].is_string(), "{body}");
        return false;
    }
    let asked: Asked = serde_json::from_slice(bytes).expect("what was taken has calls");
    let mut numbers: Vec<u64> = asked.calls.iter().map(|call| call.number).collect();
    let lines = body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let mut told: Vec<u64> =
        lines.map(|line| Line::read(line).expect("a line of an answer").number).collect();
    numbers.sort_unstable();
    told.sort_unstable();
    assert_eq!(told, numbers);
    !told.is_empty()
}

/// A message with calls: what is read and written again is read as the same.
pub fn message(bytes: &[u8]) -> bool {
    let Ok(calls) = Calls::decode(bytes) else { return false };
    let written = calls.encode_to_vec();
    assert_eq!(written.len(), calls.encoded_len());
    assert_eq!(Calls::decode(written.as_slice()).as_ref(), Ok(&calls));
    !calls.calls.is_empty()
}
