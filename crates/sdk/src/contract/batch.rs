//! Decides what several calls in one request look like over HTTP, and their answers: a JSON
//! document with the calls, and a line of JSON for each answer (NDJSON), in any order. What a call
//! and an answer mean is the same as alone. When calls go together is the coordinator's to decide,
//! and whether it takes them like that the participant's, which offers it.

use std::borrow::Cow;

use http::{HeaderName, StatusCode};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use unanimity_core::{Operation, PAYLOAD_BYTES_MAX};

use super::Written;
use crate::api::Object;

/// In an answer: how many calls the participant takes in one request.
pub const BATCH_HEADER: HeaderName = HeaderName::from_static("unanimity-batch");
/// Where batches go: `POST {participant}/batch`.
pub const BATCH_PATH: &str = "batch";
/// The media type of a batch's answers.
pub const NDJSON: &str = "application/x-ndjson";
/// How many calls a participant of the SDK takes in one request, unless it says otherwise.
pub const BATCH_CALLS_MAX: usize = 256;
/// A batch that has as many bytes as this is closed.
pub const BATCH_BYTES: usize = 256 * 1024;
/// The most bytes of one batch: one call more may hold as much as a payload may have.
pub const BATCH_BODY_BYTES_MAX: usize = BATCH_BYTES + PAYLOAD_BYTES_MAX + 16 * 1024;
/// The most bytes of a line beside the answer's body that it carries.
pub const LINE_BYTES_MORE: usize = 256;

/// Whether an answer to the whole batch says that none of its calls was taken: whoever gave it does
/// not know batches, or cannot read this one.
#[must_use]
pub const fn took_none(status: StatusCode) -> bool {
    matches!(status.as_u16(), 400 | 404 | 405 | 413 | 415 | 501)
}

/// A call as it goes into a batch.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// What is asked for.
    pub operation: Operation,
    /// The transaction's id.
    pub transaction: &'a str,
    /// The branch's name.
    pub branch: &'a str,
    /// The how-manieth time, from 1.
    pub attempt: u32,
    /// W3C trace context.
    pub traceparent: &'a str,
    /// What was decided, where a deferred branch is executed.
    pub outcome: Option<&'static str>,
    /// The payload, where the operation carries one.
    pub payload: Option<&'a RawValue>,
}

/// A batch as it is written, call by call.
#[derive(Debug)]
pub struct Writer {
    text: Vec<u8>,
    calls: usize,
}

impl Default for Writer {
    fn default() -> Self {
        Self { text: br#"{"calls":["#.to_vec(), calls: 0 }
    }
}

impl Writer {
    /// Writes one more call, whose number is how many stand before it.
    pub fn push(&mut self, entry: &Entry<'_>) {
        let text = &mut self.text;
        if self.calls > 0 {
            text.push(b',');
        }
        text.extend_from_slice(br#"{"number":"#);
        put_number(text, self.calls as u64);
        text.extend_from_slice(br#","operation":""#);
        text.extend_from_slice(entry.operation.as_str().as_bytes());
        text.extend_from_slice(br#"","transaction":"#);
        put_text(text, entry.transaction);
        text.extend_from_slice(br#","branch":"#);
        put_text(text, entry.branch);
        text.extend_from_slice(br#","attempt":"#);
        put_number(text, entry.attempt.into());
        text.extend_from_slice(br#","traceparent":"#);
        put_text(text, entry.traceparent);
        if let Some(outcome) = entry.outcome {
            text.extend_from_slice(br#","outcome":"#);
            put_text(text, outcome);
        }
        if let Some(payload) = entry.payload {
            text.extend_from_slice(br#","payload":"#);
            text.extend_from_slice(payload.get().as_bytes());
        }
        text.push(b'}');
        self.calls += 1;
    }

    /// How many bytes it has.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.text.len()
    }

    /// The request's body.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.text.extend_from_slice(b"]}");
        self.text
    }
}

/// Decimal digits, without the machinery of formatting.
fn put_number(text: &mut Vec<u8>, number: u64) {
    let mut digits = [0; 20];
    let (mut rest, mut first) = (number, digits.len());
    loop {
        first -= 1;
        digits[first] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    text.extend_from_slice(&digits[first..]);
}

/// A JSON string. Ids hold nothing that has to be escaped; who hands in something else is safe too.
fn put_text(text: &mut Vec<u8>, value: &str) {
    let plain = |byte: u8| (b' '..=b'~').contains(&byte) && byte != b'"' && byte != b'\\';
    if value.bytes().all(plain) {
        text.push(b'"');
        text.extend_from_slice(value.as_bytes());
        text.push(b'"');
    } else {
        text.extend_from_slice(serde_json::Value::from(value).to_string().as_bytes());
    }
}

/// The calls of a batch as they arrive. What else a call holds is for others: a trace, an outcome.
#[derive(Debug, Deserialize)]
pub(crate) struct Calls<'a> {
    #[serde(borrow)]
    pub(crate) calls: Vec<Object<Call<'a>>>,
}

/// One call, not yet judged.
#[derive(Debug, Deserialize)]
pub(crate) struct Call<'a> {
    pub(crate) number: u64,
    #[serde(borrow)]
    pub(crate) operation: Cow<'a, str>,
    #[serde(borrow)]
    pub(crate) transaction: Cow<'a, str>,
    #[serde(borrow)]
    pub(crate) branch: Cow<'a, str>,
    pub(crate) attempt: u64,
    #[serde(borrow, default, deserialize_with = "there")]
    pub(crate) payload: Option<&'a RawValue>,
}

/// A value that is there, `null` too: to leave it out is something else.
fn there<'de: 'a, 'a, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<&'a RawValue>, D::Error> {
    Deserialize::deserialize(deserializer).map(Some)
}

/// Writes the answer to the call of a number, as a line.
pub(crate) fn write_line(text: &mut Vec<u8>, number: u64, answer: &Written) {
    text.extend_from_slice(br#"{"number":"#);
    put_number(text, number);
    text.extend_from_slice(br#","status":"#);
    put_number(text, answer.status.as_u16().into());
    text.extend_from_slice(br#","body":"#);
    // In JSON the end of a line can only be white space.
    text.extend(
        answer.body.iter().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { *byte }),
    );
    text.extend_from_slice(b"}\n");
}

/// The answer to the call of a number.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Line<'a> {
    /// Which call.
    pub number: u64,
    status: u16,
    #[serde(borrow, default, deserialize_with = "there")]
    body: Option<&'a RawValue>,
}

impl<'a> Line<'a> {
    /// Reads a line; `None` if it is none.
    #[must_use]
    pub fn read(line: &'a [u8]) -> Option<Self> {
        let Object(line): Object<Self> = serde_json::from_slice(line).ok()?;
        (100..600).contains(&line.status).then_some(line)
    }

    /// The status, as it would have come alone.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// The body, as it would have come alone.
    #[must_use]
    pub fn body(&self) -> &'a [u8] {
        self.body.map_or(b"", |body| body.get().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use unanimity_core::guard::Reply;

    use super::*;

    fn entry<'a>(transaction: &'a str, payload: Option<&'a RawValue>) -> Entry<'a> {
        Entry {
            operation: Operation::Prepare,
            transaction,
            branch: "debit",
            attempt: 12,
            traceparent: "00-1-2-01",
            outcome: None,
            payload,
        }
    }

    #[test]
    fn what_is_written_is_read_and_a_payload_is_the_same_to_the_byte() {
        for payload in [None, Some("null"), Some(r#"{"b" : 1.50,"a":[ "\n" ]}"#)] {
            let raw = payload.map(|text| serde_json::from_str::<&RawValue>(text).unwrap());
            let mut writer = Writer::default();
            writer.push(&entry("t-1", raw));
            writer.push(&Entry { outcome: Some("commit"), ..entry("odd \"\u{7f}\n", raw) });
            let (bytes, text) = (writer.bytes(), writer.finish());
            assert_eq!(text.len(), bytes + 2);
            let read: Calls<'_> = serde_json::from_slice(&text).unwrap();
            for (number, transaction) in [(0, "t-1"), (1, "odd \"\u{7f}\n")] {
                let Object(call) = &read.calls[number];
                assert_eq!((call.number, call.transaction.as_ref()), (number as u64, transaction));
                assert_eq!((call.operation.as_ref(), call.attempt), ("prepare", 12));
                assert_eq!(call.payload.map(RawValue::get), payload);
            }
        }
        assert_eq!(Writer::default().finish(), br#"{"calls":[]}"#);
    }

    #[test]
    fn an_answer_is_one_line_whatever_its_result_looks_like() {
        let answer = crate::contract::written(Ok(Reply::Yes(Some("{\n\"a\":\r\n1}".into()))));
        let mut text = Vec::new();
        write_line(&mut text, 3, &answer);
        assert_eq!(text.iter().filter(|byte| **byte == b'\n').count(), 1);
        let line = Line::read(&text).unwrap();
        assert_eq!((line.number, line.status()), (3, StatusCode::OK));
        assert_eq!(line.body(), br#"{"vote":"yes","result":{ "a":  1}}"#);
    }

    #[test]
    fn numbers_are_written_as_they_are() {
        for number in [0, 7, 10, 99, 100, u64::MAX] {
            let mut text = Vec::new();
            put_number(&mut text, number);
            assert_eq!(text, number.to_string().as_bytes());
        }
    }

    #[test]
    fn a_line_is_an_answer_or_it_is_none() {
        let line = Line::read(br#"{"status":200,"else":[],"number":7,"body": {"vote" : "yes"} }"#);
        let line = line.unwrap();
        assert_eq!((line.number, line.status()), (7, StatusCode::OK));
        assert_eq!(line.body(), br#"{"vote" : "yes"}"#);
        assert_eq!(Line::read(br#"{"number":0,"status":204}"#).unwrap().body(), b"");
        assert_eq!(
            Line::read(br#"{"number":0,"status":204,"body":null}"#).unwrap().body(),
            b"null"
        );
        for none in [
            "",
            "{}",
            r#"{"number":0}"#,
            r#"{"number":-1,"status":200}"#,
            r#"{"number":0,"status":99}"#,
            r#"{"number":0,"status":600}"#,
            r#"{"number":0,"status":200} {}"#,
            r#"{"number":0,"number":1,"status":200}"#,
            r#"{"number":0,"status":200,"body":{"#,
        ] {
            assert!(Line::read(none.as_bytes()).is_none(), "{none}");
        }
    }
}
