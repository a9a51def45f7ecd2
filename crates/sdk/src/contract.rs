//! Decides what the operations look like as HTTP: header names, limits, and how an answer is
//! written. Both ends use it, so they cannot drift apart: the router of a participant writes with
//! [`write_answer`]; the coordinator, and an initiator that calls a participant itself, read with
//! [`judge`]. How several calls share a request is [`batch`]'s.

pub mod batch;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderName, StatusCode, header};
use serde::Serialize;
use serde_json::value::RawValue;
use unanimity_core::PAYLOAD_BYTES_MAX;
use unanimity_core::guard::{Contradiction, Reply};

pub use crate::answer::{Response, clean, judge};
use crate::api::Problem;
use crate::participant::CallError;

/// Carries the transaction's id.
pub const TRANSACTION_HEADER: HeaderName = HeaderName::from_static("unanimity-transaction");
/// Carries the branch's name.
pub const BRANCH_HEADER: HeaderName = HeaderName::from_static("unanimity-branch");
/// Carries the how-manieth time this operation is asked for, from 1.
pub const ATTEMPT_HEADER: HeaderName = HeaderName::from_static("unanimity-attempt");
/// In an answer: where the participant serves a stream, which the coordinator then uses for later
/// calls if it can.
pub const STREAM_HEADER: HeaderName = HeaderName::from_static("unanimity-stream");
/// The media type of a payload and of an answer.
pub const JSON: &str = "application/json";
/// The media type of a problem document (RFC 9457).
pub const PROBLEM_JSON: &str = "application/problem+json";
/// The most bytes that a call's body may have.
pub const BODY_BYTES_MAX: usize = PAYLOAD_BYTES_MAX;
/// The most bytes that the coordinator reads of an answer; longer ones count as no answer.
pub const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// The most bytes of JSON that a vote's result may have, so that its answer stays within
/// [`ANSWER_BYTES_MAX`].
pub const RESULT_BYTES_MAX: usize = 32 * 1024;

/// The body of a 200.
#[derive(Serialize)]
struct VoteBody<'a> {
    vote: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<&'a RawValue>,
}

/// The body of a no: a problem document with the vote and its reason beside it.
#[derive(Serialize)]
struct NoBody<'a> {
    #[serde(flatten)]
    problem: Problem,
    vote: &'a str,
    reason: &'a str,
}

/// An answer that is written and has no carriage yet: it may become a response, or a line.
pub(crate) struct Written {
    status: StatusCode,
    media: &'static str,
    body: Bytes,
}

impl Written {
    /// How many bytes its body has.
    pub(crate) const fn bytes(&self) -> usize {
        self.body.len()
    }
}

/// Writes what a participant answers as an HTTP response.
#[must_use]
pub fn write_answer(answer: Result<Reply, CallError>) -> http::Response<Body> {
    respond(written(answer))
}

/// What a participant answers, as every carriage over HTTP writes it.
pub(crate) fn written(answer: Result<Reply, CallError>) -> Written {
    match answer {
        Ok(Reply::Yes(None)) => ready(r#"{"vote":"yes"}"#),
        Ok(Reply::Yes(Some(result))) => written_yes(&result),
        Ok(Reply::ReadOnly) => ready(r#"{"vote":"read_only"}"#),
        Ok(Reply::No(reason)) => {
            let problem = Problem::new(409, "voted_no", "The branch voted no", reason.as_str());
            json(
                StatusCode::CONFLICT,
                PROBLEM_JSON,
                &NoBody { problem, vote: "no", reason: &reason },
            )
        }
        Ok(Reply::Acknowledged) => ready("{}"),
        Err(CallError::Contradiction(contradiction)) => {
            written_problem(&contradiction_problem(contradiction))
        }
        Err(CallError::Failed(message)) => {
            written_problem(&Problem::new(500, "service_failed", "The service failed", message))
        }
        Err(CallError::Busy(message)) => {
            written_problem(&Problem::new(503, "service_busy", "The service is busy", message))
        }
    }
}

const fn ready(body: &'static str) -> Written {
    Written { status: StatusCode::OK, media: JSON, body: Bytes::from_static(body.as_bytes()) }
}

/// A guard's note is JSON if it came from a [`crate::Vote`]; one from elsewhere that is not JSON
/// goes out as a JSON string.
fn written_yes(result: &str) -> Written {
    let quoted = || RawValue::from_string(serde_json::Value::from(result).to_string()).ok();
    let raw = serde_json::from_str::<Box<RawValue>>(result).ok().or_else(quoted);
    json(StatusCode::OK, JSON, &VoteBody { vote: "yes", result: raw.as_deref() })
}

fn contradiction_problem(contradiction: Contradiction) -> Problem {
    let detail = match contradiction {
        Contradiction::NeverPrepared => {
            "this branch was never prepared here: either this participant has lost its memory, or \
             it is not the one that voted"
        }
        Contradiction::AlreadyRolledBack => "this branch is rolled back here; it cannot commit",
        Contradiction::AlreadyCommitted => "this branch is committed here; it cannot roll back",
        Contradiction::WrongKind => {
            "this branch is of another kind: prepare, commit and rollback belong together, and so \
             do execute and compensate"
        }
    };
    Problem::new(409, contradiction.code(), "The operation contradicts what was done here", detail)
}

/// Writes a problem document as an HTTP response.
#[must_use]
pub fn write_problem(problem: &Problem) -> http::Response<Body> {
    respond(written_problem(problem))
}

pub(crate) fn written_problem(problem: &Problem) -> Written {
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    json(status, PROBLEM_JSON, problem)
}

fn json(status: StatusCode, media: &'static str, body: &impl Serialize) -> Written {
    // Our own types hold nothing that JSON cannot; an empty body would still have the right status.
    Written { status, media, body: serde_json::to_vec(body).unwrap_or_default().into() }
}

fn respond(written: Written) -> http::Response<Body> {
    let mut response = http::Response::new(Body::from(written.body));
    *response.status_mut() = written.status;
    let media = http::HeaderValue::from_static(written.media);
    response.headers_mut().insert(header::CONTENT_TYPE, media);
    response
}

/// Whether JSON is nested deeper than `depth_max`, without recursion. Text that is not JSON may be
/// misjudged, which does no harm: it is refused in any case.
#[must_use]
pub fn json_depth_exceeds(json: &[u8], depth_max: usize) -> bool {
    let mut depth = 0_usize;
    let mut in_string = false;
    let mut escaped = false;
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'{' | b'[' => {
                depth += 1;
                if depth > depth_max {
                    return true;
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

/// Cuts a text to at most `bytes_max` bytes, at a character's border.
#[must_use]
pub fn cut(text: &str, bytes_max: usize) -> String {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_between_characters() {
        assert_eq!(cut("aä", 2), "a");
        assert_eq!(cut("aä", 3), "aä");
        assert_eq!(cut("", 0), "");
    }
}
