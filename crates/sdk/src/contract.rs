//! Decides what the operations look like as HTTP: header names, limits, and how an answer is
//! written and read. Both ends use it, so they cannot drift apart: the router of a participant
//! writes with [`write_answer`], the coordinator's client reads with [`read_answer`].

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderName, Response, StatusCode, header};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use unanimity_core::guard::{Contradiction, Reply};
use unanimity_core::{Operation, PAYLOAD_BYTES_MAX, REASON_BYTES_MAX};

use crate::api::Problem;
use crate::participant::CallError;

/// Carries the transaction's id.
pub const TRANSACTION_HEADER: HeaderName = HeaderName::from_static("unanimity-transaction");
/// Carries the branch's name.
pub const BRANCH_HEADER: HeaderName = HeaderName::from_static("unanimity-branch");
/// Carries the how-manieth time this operation is asked for, from 1.
pub const ATTEMPT_HEADER: HeaderName = HeaderName::from_static("unanimity-attempt");
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
#[derive(Serialize, Deserialize)]
struct VoteBody<'a> {
    vote: &'a str,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
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

/// Writes what a participant answers as an HTTP response.
#[must_use]
pub fn write_answer(answer: Result<Reply, CallError>) -> Response<Body> {
    match answer {
        Ok(Reply::Yes(result)) => write_yes(result.as_deref()),
        Ok(Reply::ReadOnly) => {
            json(StatusCode::OK, JSON, &VoteBody { vote: "read_only", result: None })
        }
        Ok(Reply::No(reason)) => {
            let problem = Problem::new(409, "voted_no", "The branch voted no", reason.as_str());
            json(
                StatusCode::CONFLICT,
                PROBLEM_JSON,
                &NoBody { problem, vote: "no", reason: &reason },
            )
        }
        Ok(Reply::Acknowledged) => json(StatusCode::OK, JSON, &serde_json::json!({})),
        Err(CallError::Contradiction(contradiction)) => {
            write_problem(&contradiction_problem(contradiction))
        }
        Err(CallError::Failed(message)) => {
            write_problem(&Problem::new(500, "service_failed", "The service failed", message))
        }
        Err(CallError::Busy(message)) => {
            write_problem(&Problem::new(503, "service_busy", "The service is busy", message))
        }
    }
}

/// A guard's note is JSON if it came from a [`crate::Vote`]; one from elsewhere that is not JSON
/// goes out as a JSON string.
fn write_yes(result: Option<&str>) -> Response<Body> {
    let quoted = |text: &str| RawValue::from_string(serde_json::Value::from(text).to_string()).ok();
    let raw = result
        .and_then(|text| serde_json::from_str::<Box<RawValue>>(text).ok().or_else(|| quoted(text)));
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
pub fn write_problem(problem: &Problem) -> Response<Body> {
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    json(status, PROBLEM_JSON, problem)
}

fn json(status: StatusCode, media: &'static str, body: &impl Serialize) -> Response<Body> {
    // Our own types hold nothing that JSON cannot; an empty body would still have the right status.
    let bytes = serde_json::to_vec(body).unwrap_or_default();
    let mut response = Response::new(Body::from(bytes));
    *response.status_mut() = status;
    let media = http::HeaderValue::from_static(media);
    response.headers_mut().insert(header::CONTENT_TYPE, media);
    response
}

/// Reads what a participant has answered to `operation`.
///
/// # Errors
/// A sentence for the timeline if this is no decisive answer: it may or may not have been done, and
/// the operation is to be tried again. Anything outside the closed set of answers counts as that,
/// never as a yes.
pub fn read_answer(operation: Operation, status: u16, body: &Bytes) -> Result<Reply, String> {
    let votes = matches!(
        operation,
        Operation::Prepare | Operation::Execute | Operation::CommitOnePhase | Operation::Inquire
    );
    match (status, votes) {
        (200, true) => read_vote(operation, body),
        (409 | 422, true) => Ok(Reply::No(cut(&read_reason(status, body), REASON_BYTES_MAX))),
        (200 | 204, false) => Ok(Reply::Acknowledged),
        _ => Err(cut(&format!("HTTP {status}: {}", read_reason(status, body)), REASON_BYTES_MAX)),
    }
}

fn read_vote(operation: Operation, body: &Bytes) -> Result<Reply, String> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(Reply::Yes(None));
    }
    let raw: &RawValue = serde_json::from_slice(body)
        .map_err(|error| format!("HTTP 200 with a body that is not JSON: {error}"))?;
    let Some(vote) = word_of(raw, "vote") else {
        // A service without an SDK may simply answer with its result.
        return Ok(Reply::Yes(Some(raw.get().to_owned())));
    };
    let result = serde_json::from_str::<VoteBody>(raw.get())
        .map_err(|error| format!("HTTP 200 with a vote that cannot be read: {error}"))?
        .result;
    match (vote.as_str(), operation) {
        ("yes", _) => Ok(Reply::Yes(result.map(|raw| raw.get().to_owned()))),
        ("read_only", Operation::Prepare | Operation::CommitOnePhase) => Ok(Reply::ReadOnly),
        _ => Err(format!("HTTP 200 to {} with the vote {vote:?}", operation.as_str())),
    }
}

/// The text of one member of a JSON object, if there is such a member.
fn word_of(raw: &RawValue, member: &str) -> Option<String> {
    let object: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(raw.get()).ok()?;
    let value = object.get(member)?;
    Some(value.as_str().map_or_else(|| value.to_string(), str::to_owned))
}

/// What a person should read of an answer that is not a yes.
fn read_reason(status: u16, body: &Bytes) -> String {
    let members = ["reason", "detail", "title"];
    let found = serde_json::from_slice::<&RawValue>(body)
        .ok()
        .and_then(|raw| members.iter().find_map(|member| word_of(raw, member)));
    let text = found.unwrap_or_else(|| String::from_utf8_lossy(body).trim().to_owned());
    if text.is_empty() { format!("no reason given (HTTP {status})") } else { text }
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
    use Operation::{Commit, Execute, Prepare};

    fn check(operation: Operation, status: u16, body: &'static str, expected: Result<Reply, &str>) {
        let found = read_answer(operation, status, &Bytes::from_static(body.as_bytes()));
        match (found, expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{body}"),
            (Err(found), Err(part)) => assert!(found.contains(part), "{found} has no {part:?}"),
            (found, expected) => panic!("{body}: {found:?} is not {expected:?}"),
        }
    }

    #[test]
    fn only_the_closed_set_of_answers_is_decisive() {
        let no = |reason: &str| Ok(Reply::No(reason.to_owned()));
        check(Prepare, 200, "", Ok(Reply::Yes(None)));
        check(Prepare, 200, r#"{"vote":"yes"}"#, Ok(Reply::Yes(None)));
        check(Prepare, 200, r#"{"vote":"read_only"}"#, Ok(Reply::ReadOnly));
        check(Execute, 200, r#"{"vote":"yes","result":1.10}"#, Ok(Reply::Yes(Some("1.10".into()))));
        check(Execute, 200, r#"{"id": 7}"#, Ok(Reply::Yes(Some(r#"{"id": 7}"#.into()))));
        check(Execute, 200, r#"{"vote":"read_only"}"#, Err("read_only"));
        check(Prepare, 200, r#"{"vote":"no"}"#, Err("\"no\""));
        check(Prepare, 200, r#"{"vote":7}"#, Err("cannot be read"));
        check(Prepare, 200, "<html>", Err("not JSON"));
        check(Prepare, 204, "", Err("HTTP 204"));
        check(Prepare, 302, "", Err("HTTP 302"));
        check(Prepare, 409, r#"{"reason":"overdrawn"}"#, no("overdrawn"));
        check(Prepare, 422, "overdrawn", no("overdrawn"));
        check(Prepare, 409, "", no("no reason given (HTTP 409)"));
        check(Prepare, 503, "down", Err("HTTP 503: down"));
        check(Commit, 200, "anything", Ok(Reply::Acknowledged));
        check(Commit, 204, "", Ok(Reply::Acknowledged));
        check(Commit, 409, r#"{"detail":"never"}"#, Err("HTTP 409: never"));
    }

    #[test]
    fn texts_are_cut_between_characters() {
        assert_eq!(cut("aä", 2), "a");
        assert_eq!(cut("aä", 3), "aä");
        assert_eq!(cut("", 0), "");
    }
}
