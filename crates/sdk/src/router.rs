//! Decides how a call over HTTP becomes a [`Request`]: which headers it needs and what is refused
//! before the participant hears of it. Answers are written by [`crate::contract`]; several calls in
//! one request are [`batch`]'s.

mod batch;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, State};
use axum::routing::post;
use bytes::Bytes;
use http::header::InvalidHeaderValue;
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use unanimity_core::guard::Reply;
use unanimity_core::{Operation, TransactionId, check_id};

use crate::api::Problem;
use crate::contract::batch::{BATCH_BODY_BYTES_MAX, BATCH_CALLS_MAX, BATCH_HEADER, BATCH_PATH};
use crate::contract::{
    ATTEMPT_HEADER, BODY_BYTES_MAX, BRANCH_HEADER, STREAM_HEADER, TRANSACTION_HEADER, write_answer,
    write_problem,
};
use crate::participant::{CallError, Participant, Request};

/// What a participant over HTTP offers beside the operations.
#[derive(Clone, Debug)]
pub struct RouterOptions {
    /// How many calls it takes in one request. With fewer than two it offers no batches.
    pub batch_calls_max: usize,
    /// Where it serves a stream, such as `grpc://accounts:7102/accounts`: the coordinator then
    /// calls it there, if it can.
    pub stream: Option<String>,
}

impl Default for RouterOptions {
    fn default() -> Self {
        Self { batch_calls_max: BATCH_CALLS_MAX, stream: None }
    }
}

/// Mounts a participant: `POST /prepare`, `/commit`, `/rollback`, `/execute`, `/compensate`,
/// `/commit_one_phase` and `/inquire`, and `/batch` for several of them in one request, which it
/// offers in every answer.
///
/// Nest it where the service likes (`Router::new().nest("/transactions", router(participant))`);
/// the URL of that place is what an initiator names as the branch's participant.
pub fn router(participant: Arc<dyn Participant>) -> Router {
    mount(Served::new(participant, BATCH_CALLS_MAX, None))
}

/// The same, and says in every answer where the participant serves a stream, such as
/// `grpc://accounts:7102/accounts`: the coordinator then calls it there, if it can.
///
/// # Errors
/// If the address cannot be a header.
pub fn router_with_stream(
    participant: Arc<dyn Participant>,
    stream: &str,
) -> Result<Router, InvalidHeaderValue> {
    let stream = Some(stream.to_owned());
    router_with_options(participant, &RouterOptions { stream, ..RouterOptions::default() })
}

/// The same, offering what the options say.
///
/// # Errors
/// If the stream's address cannot be a header.
pub fn router_with_options(
    participant: Arc<dyn Participant>,
    options: &RouterOptions,
) -> Result<Router, InvalidHeaderValue> {
    let stream = options.stream.as_deref().map(HeaderValue::from_str).transpose()?;
    Ok(mount(Served::new(participant, options.batch_calls_max, stream)))
}

/// A participant, and what every answer offers.
struct Served {
    participant: Arc<dyn Participant>,
    batch_calls_max: usize,
    batch: Option<HeaderValue>,
    stream: Option<HeaderValue>,
    /// What batches still have to be answered.
    owed: batch::Owed,
}

impl Served {
    fn new(
        participant: Arc<dyn Participant>,
        batch_calls_max: usize,
        stream: Option<HeaderValue>,
    ) -> Arc<Self> {
        let batch = (batch_calls_max > 1).then(|| HeaderValue::from(batch_calls_max));
        Arc::new(Self { participant, batch_calls_max, batch, stream, owed: batch::Owed::default() })
    }

    /// Puts what is offered into an answer.
    fn offers(&self, mut response: Response<Body>) -> Response<Body> {
        let offers = [(BATCH_HEADER, &self.batch), (STREAM_HEADER, &self.stream)];
        for (name, value) in offers {
            if let Some(value) = value {
                response.headers_mut().insert(name, value.clone());
            }
        }
        response
    }
}

fn mount(served: Arc<Served>) -> Router {
    let mut router = Router::new();
    for operation in Operation::ALL {
        let handler = move |State(served): State<Arc<Served>>,
                            headers: HeaderMap,
                            body: Result<Bytes, BytesRejection>| async move {
            served.offers(answer(&served.participant, operation, headers, body).await)
        };
        router = router.route(&format!("/{}", operation.as_str()), post(handler));
    }
    router = router.layer(DefaultBodyLimit::max(BODY_BYTES_MAX));
    if served.batch.is_some() {
        let batches = post(batch::answer).layer(DefaultBodyLimit::max(BATCH_BODY_BYTES_MAX));
        router = router.route(&format!("/{BATCH_PATH}"), batches);
    }
    router.with_state(served)
}

async fn answer(
    participant: &Arc<dyn Participant>,
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
    log(&transaction, &branch, operation, &answer);
    write_answer(answer)
}

/// Tells people what a call came to.
fn log(
    transaction: &TransactionId,
    branch: &str,
    operation: Operation,
    answer: &Result<Reply, CallError>,
) {
    let operation = operation.as_str();
    match answer {
        Ok(reply) => tracing::debug!(%transaction, %branch, operation, ?reply, "answered"),
        Err(CallError::Contradiction(contradiction)) => {
            let code = contradiction.code();
            tracing::error!(%transaction, %branch, operation, code, "refused");
        }
        Err(CallError::Busy(what)) => {
            tracing::debug!(%transaction, %branch, operation, %what, "busy");
        }
        Err(CallError::Failed(error)) => {
            tracing::warn!(%transaction, %branch, operation, %error, "failed");
        }
    }
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
    let payload = readable(body)?;
    Ok(Request { transaction, branch: branch.into(), operation, attempt, payload })
}

/// A body, or why there is none.
fn readable(body: Result<Bytes, BytesRejection>) -> Result<Bytes, Box<Problem>> {
    body.map_err(|rejection| {
        let status = rejection.status().as_u16();
        let code = if status == 413 { "body_too_large" } else { "body_unreadable" };
        Box::new(Problem::new(status, code, "The body cannot be taken", rejection.body_text()))
    })
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
