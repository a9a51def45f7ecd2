//! Decides how several calls in one request are taken and answered: each is read as one alone would
//! be, all are handed over without waiting for any, so that a store that commits in groups gets
//! them as a group, and each answer leaves as soon as it is there. What a batch looks like is
//! [`crate::contract::batch`]'s.
//!
//! Whoever asks may go away, and its calls go on: half of one may be done. So there is a bound on
//! the calls that are owed an answer, whether or not somebody still waits for it.

use std::convert::Infallible;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use axum::body::{Body, HttpBody};
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response};
use http_body::Frame;
use unanimity_core::guard::Reply;
use unanimity_core::{Operation, TransactionId, check_id};

use super::{Served, log, readable};
use crate::api::{Object, Problem};
use crate::contract::batch::{Call, Calls, NDJSON, write_line};
use crate::contract::{Written, write_problem, written, written_problem};
use crate::participant::{AnswerSink, CallError, OwedAnswer, Request};

/// The most calls of batches that are taken and not answered; more get status 503. As many as a
/// store lets wait.
const CALLS_OWED_MAX: usize = 4_096;
/// The most bytes of a line's body: the coordinator believes nothing after a longer one.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// How many calls of a participant's batches are taken and not answered.
#[derive(Debug, Default)]
pub(super) struct Owed(AtomicUsize);

impl Owed {
    /// One more, unless there are too many.
    fn begin(&self) -> bool {
        let more = |owed| (owed < CALLS_OWED_MAX).then_some(owed + 1);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    fn end(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Answers a batch.
pub(super) async fn answer(
    State(served): State<Arc<Served>>,
    body: Result<Bytes, BytesRejection>,
) -> Response<Body> {
    let response = match readable(body).and_then(|body| take(&served, &body)) {
        Ok(gathering) => gathering.response().await,
        Err(problem) => write_problem(&problem),
    };
    served.offers(response)
}

/// Takes in every call of a batch, or none.
fn take(served: &Arc<Served>, body: &[u8]) -> Result<Arc<Gathering>, Box<Problem>> {
    let problem = |status, code, detail: String| {
        Box::new(Problem::new(status, code, "The batch is not taken", detail))
    };
    let Object(Calls { calls }) = serde_json::from_slice(body)
        .map_err(|error| problem(400, "batch_unreadable", error.to_string()))?;
    if calls.len() > served.batch_calls_max {
        let most = served.batch_calls_max;
        return Err(problem(413, "batch_too_large", format!("it may have {most} calls")));
    }
    let (mut asked, mut requests) = (Vec::with_capacity(calls.len()), Vec::new());
    for Object(call) in calls {
        let request = request_of(&call);
        let about = request.as_ref().ok().map(|request| About {
            transaction: request.transaction.clone(),
            branch: Arc::clone(&request.branch),
            operation: request.operation,
        });
        asked.push(Asked { number: call.number, about });
        requests.push(request);
    }
    let gathering = Arc::new(Gathering::new(Arc::clone(served), asked));
    for (place, request) in requests.into_iter().enumerate() {
        match request {
            Ok(request) => hand_over(served, &gathering, place, request),
            Err(problem) => gathering.refused(place, &problem),
        }
    }
    Ok(gathering)
}

/// Hands one call to the participant. If that panics the call is answered by what it owes.
fn hand_over(served: &Served, gathering: &Arc<Gathering>, place: usize, request: Request) {
    if !served.owed.begin() {
        let most = format!("{CALLS_OWED_MAX} calls of batches are not answered yet");
        let problem = Problem::new(503, "service_busy", "The service is busy", most);
        return gathering.refused(place, &problem);
    }
    let owed = OwedAnswer::to_sink(place as u64, Arc::clone(gathering) as Arc<dyn AnswerSink>);
    let taken = catch_unwind(AssertUnwindSafe(|| served.participant.take(request, owed)));
    let Ok(Some((request, owed))) = taken else { return };
    let participant = Arc::clone(&served.participant);
    tokio::spawn(async move {
        let answer = participant.call(request).await;
        owed.settle(answer);
    });
}

/// Reads a call. What cannot be one is answered as it would be alone.
fn request_of(call: &Call<'_>) -> Result<Request, Box<Problem>> {
    let problem = |status, code, field: &str, what: &str| {
        let detail = format!("the call's {field} {what}");
        let problem = Problem::new(status, code, "The call is not understood", detail);
        Box::new(problem.with_field(field))
    };
    let invalid = |field: &str, what: &str| problem(400, "call_invalid", field, what);
    let operation = Operation::ALL.into_iter().find(|known| known.as_str() == call.operation);
    let operation = operation
        .ok_or_else(|| problem(404, "operation_unknown", "operation", "is not known here"))?;
    let transaction = TransactionId::new(&call.transaction)
        .map_err(|error| invalid("transaction", &error.to_string()))?;
    check_id(&call.branch).map_err(|error| invalid("branch", &error.to_string()))?;
    let attempt = u32::try_from(call.attempt).ok().filter(|attempt| *attempt > 0);
    let attempt = attempt.ok_or_else(|| invalid("attempt", "must be a whole number from 1"))?;
    let payload = call.payload.map_or_else(Bytes::new, |payload| {
        // A copy: a payload that is kept must not keep the whole batch.
        Bytes::copy_from_slice(payload.get().as_bytes())
    });
    Ok(Request { transaction, branch: (&*call.branch).into(), operation, attempt, payload })
}

/// Who asked for what.
struct Asked {
    number: u64,
    /// None for a call that could not be read.
    about: Option<About>,
}

struct About {
    transaction: TransactionId,
    branch: Arc<str>,
    operation: Operation,
}

/// The answers of one batch on their way out. Participants know a call by its place.
struct Gathering {
    served: Arc<Served>,
    asked: Vec<Asked>,
    state: Mutex<Gathered>,
}

struct Gathered {
    lines: Vec<u8>,
    /// How many calls have no answer yet.
    owed: usize,
    reader: Option<Waker>,
}

impl Gathering {
    fn new(served: Arc<Served>, asked: Vec<Asked>) -> Self {
        let state = Gathered { lines: Vec::new(), owed: asked.len(), reader: None };
        Self { served, asked, state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, Gathered> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, write: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.lock();
        write(&mut state.lines);
        state.owed -= 1;
        let reader = state.reader.take();
        drop(state);
        reader.into_iter().for_each(Waker::wake);
    }

    fn refused(&self, place: usize, problem: &Problem) {
        let number = self.asked[place].number;
        self.push(|lines| write_line(lines, number, &written_problem(problem)));
    }

    /// The lines that are there, and whether they are the last; pending while there are none.
    fn poll_lines(&self, context: &Context<'_>) -> Poll<(Bytes, bool)> {
        let mut state = self.lock();
        if state.lines.is_empty() && state.owed > 0 {
            state.reader = Some(context.waker().clone());
            return Poll::Pending;
        }
        let lines = std::mem::take(&mut state.lines);
        Poll::Ready((lines.into(), state.owed == 0))
    }

    /// Waits for the first lines: often they are all, and then the response has a length.
    async fn response(self: Arc<Self>) -> Response<Body> {
        let (first, complete) = poll_fn(|context| self.poll_lines(context)).await;
        let body = match complete {
            true => Body::from(first),
            false => Body::new(Rest { first: Some(first), gathering: Some(self) }),
        };
        let mut response = Response::new(body);
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(NDJSON));
        response
    }
}

impl AnswerSink for Gathering {
    fn answered(&self, place: u64, answer: Result<Reply, CallError>) {
        let Some(asked) = usize::try_from(place).ok().and_then(|place| self.asked.get(place))
        else {
            return;
        };
        if let Some(About { transaction, branch, operation }) = &asked.about {
            log(transaction, branch, *operation, &answer);
        }
        let answer = fitting(written(answer));
        self.served.owed.end();
        self.push(|lines| write_line(lines, asked.number, &answer));
    }
}

/// An answer that a line can carry: one that is too long would cost all after it theirs.
fn fitting(answer: Written) -> Written {
    let bytes = answer.bytes();
    if bytes <= ANSWER_BYTES_MAX {
        return answer;
    }
    let detail = format!("it has {bytes} bytes, and may have {ANSWER_BYTES_MAX}");
    written_problem(&Problem::new(500, "answer_too_large", "The answer is too large", detail))
}

/// A body whose lines come as the answers do.
struct Rest {
    first: Option<Bytes>,
    /// None when nothing more will come.
    gathering: Option<Arc<Gathering>>,
}

impl HttpBody for Rest {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        let Some(gathering) = &self.gathering else { return Poll::Ready(None) };
        let Poll::Ready((lines, complete)) = gathering.poll_lines(context) else {
            return Poll::Pending;
        };
        if complete {
            self.gathering = None;
        }
        Poll::Ready(Some(Ok(Frame::data(lines))))
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.gathering.is_none()
    }
}
