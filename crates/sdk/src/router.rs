//! Decides how a call over HTTP becomes a [`Request`]: which headers it needs and what is refused
//! before the participant hears of it. Answers are written by [`crate::contract`].

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, State};
use axum::routing::post;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use unanimity_core::{Operation, TransactionId, check_id};

use crate::api::Problem;
use crate::contract::{
    ATTEMPT_HEADER, BODY_BYTES_MAX, BRANCH_HEADER, STREAM_HEADER, TRANSACTION_HEADER, write_answer,
    write_problem,
};
use crate::participant::{CallError, Participant, Request};

/// Mounts a participant: `POST /prepare`, `/commit`, `/rollback`, `/execute`, `/compensate`,
/// `/commit_one_phase` and `/inquire`.
///
/// Nest it where the service likes (`Router::new().nest("/transactions", router(participant))`);
/// the URL of that place is what an initiator names as the branch's participant.
pub fn router(participant: Arc<dyn Participant>) -> Router {
    let mut router = Router::new();
    for operation in Operation::ALL {
        let handler = move |State(participant): State<Arc<dyn Participant>>,
                            headers: HeaderMap,
                            body: Result<Bytes, BytesRejection>| {
            answer(participant, operation, headers, body)
        };
        router = router.route(&format!("/{}", operation.as_str()), post(handler));
    }
    router.layer(DefaultBodyLimit::max(BODY_BYTES_MAX)).with_state(participant)
}

/// The same, and says in every answer where the participant serves a stream, such as
/// `grpc://accounts:7102/accounts`: the coordinator then calls it there, if it can.
///
/// # Errors
/// If the address cannot be a header.
pub fn router_with_stream(
    participant: Arc<dyn Participant>,
    stream: &str,
) -> Result<Router, http::header::InvalidHeaderValue> {
    let stream = HeaderValue::from_str(stream)?;
    let offer = move |mut response: Response<Body>| {
        response.headers_mut().insert(STREAM_HEADER, stream.clone());
        std::future::ready(response)
    };
    Ok(router(participant).layer(axum::middleware::map_response(offer)))
}

async fn answer(
    participant: Arc<dyn Participant>,
    operation: Operation,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response<Body> {
    let request = match read_request(operation, &headers, body) {
        Ok(request) => request,
        Err(problem) => return write_problem(&problem),
    };
    let (transaction, branch) = (request.transaction.clone(), Arc::clone(&request.branch));
    let answer = participant.call(request).await;
    match &answer {
        Ok(reply) => {
            let operation = operation.as_str();
            tracing::debug!(%transaction, %branch, operation, ?reply, "answered");
        }
        Err(CallError::Contradiction(contradiction)) => {
            let code = contradiction.code();
            tracing::error!(%transaction, %branch, operation = operation.as_str(), code, "refused");
        }
        Err(CallError::Busy(what)) => {
            tracing::debug!(%transaction, %branch, operation = operation.as_str(), %what, "busy");
        }
        Err(CallError::Failed(error)) => {
            tracing::warn!(%transaction, %branch, operation = operation.as_str(), %error, "failed");
        }
    }
    write_answer(answer)
}

/// Reads a call's headers and body.
fn read_request(
    operation: Operation,
    headers: &HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Request, Box<Problem>> {
    let transaction = TransactionId::new(header(headers, &TRANSACTION_HEADER)?)
        .map_err(|error| invalid(&TRANSACTION_HEADER, &error.to_string()))?;
    let branch = header(headers, &BRANCH_HEADER)?;
    check_id(branch).map_err(|error| invalid(&BRANCH_HEADER, &error.to_string()))?;
    let attempt = header(headers, &ATTEMPT_HEADER)?.parse().ok().filter(|attempt| *attempt > 0);
    let attempt: u32 =
        attempt.ok_or_else(|| invalid(&ATTEMPT_HEADER, "must be a whole number from 1"))?;
    let payload = body.map_err(|rejection| {
        let status = rejection.status().as_u16();
        let code = if status == 413 { "body_too_large" } else { "body_unreadable" };
        Box::new(Problem::new(status, code, "The body cannot be taken", rejection.body_text()))
    })?;
    Ok(Request { transaction, branch: branch.into(), operation, attempt, payload })
}

/// The one value of a header. A repeated one is refused: two readers could choose differently.
fn header<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<&'a str, Box<Problem>> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else {
        let detail = format!("the header {name} is missing");
        return Err(problem("header_missing", name, detail));
    };
    if values.next().is_some() {
        return Err(invalid(name, "is given more than once"));
    }
    value.to_str().map_err(|_| invalid(name, "is not plain ASCII"))
}

fn invalid(name: &HeaderName, what: &str) -> Box<Problem> {
    problem("header_invalid", name, format!("the header {name} {what}"))
}

fn problem(code: &str, name: &HeaderName, detail: String) -> Box<Problem> {
    let title = "The call is not understood";
    Box::new(Problem::new(400, code, title, detail).with_field(name.as_str()))
}
