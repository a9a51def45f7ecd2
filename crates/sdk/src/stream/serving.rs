//! Decides how a participant serves one stream, whoever opened it: batches of calls are taken in
//! one by one without a task or a timer for each, answers gather while the last batch of them is
//! being written, and go out together. How many calls may be owed an answer at a time is bounded;
//! at the bound no further batch is read, and HTTP/2's flow control holds the coordinator back.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use axum::Router;
use futures_core::Stream;
use tonic::{Request as GrpcRequest, Response as GrpcResponse, Status, Streaming};
use unanimity_core::guard::Reply;
use unanimity_core::{Operation, TransactionId, check_id};

use super::frames::{Call, Calls};
use super::generated::participant_server::{self, ParticipantServer};
use super::generated::{Answer, AnswerKind, Answers};
use super::{BATCH_BYTES, BATCH_ENTRIES_MAX, MESSAGE_BYTES_MAX, write_answer};
use crate::participant::{AnswerSink, CallError, OwedAnswer, Participant, Request};

/// The most calls of one stream that may be owed an answer before no more are read.
const OWED_MAX: usize = 16_384;

/// Mounts a participant to be dialed: a coordinator calls it as `grpc://HOST:PORT/NAME`, whatever
/// the name. The server must speak HTTP/2 without TLS, as `axum::serve` does; [`crate::router`] may
/// stand beside it.
pub fn router(participant: Arc<dyn Participant>) -> Router {
    let server = ParticipantServer::new(Dialable { participant });
    let server = server.max_decoding_message_size(MESSAGE_BYTES_MAX);
    Router::new().route_service("/unanimity.v1.Participant/{*method}", server)
}

struct Dialable {
    participant: Arc<dyn Participant>,
}

#[tonic::async_trait]
impl participant_server::Participant for Dialable {
    type ServeStream = Written;

    async fn serve(
        &self,
        request: GrpcRequest<Streaming<Calls>>,
    ) -> Result<GrpcResponse<Written>, Status> {
        let outgoing = Arc::new(Outgoing::default());
        let reading =
            read(request.into_inner(), Arc::clone(&self.participant), Arc::clone(&outgoing));
        tokio::spawn(reading);
        Ok(GrpcResponse::new(Written(outgoing)))
    }
}

/// Takes in calls until the stream ends.
pub(super) async fn read(
    mut incoming: Streaming<Calls>,
    participant: Arc<dyn Participant>,
    outgoing: Arc<Outgoing>,
) {
    let mut ending = Ending { outgoing, in_order: false };
    loop {
        let outgoing = &ending.outgoing;
        match incoming.message().await {
            Ok(Some(batch)) => {
                outgoing.owe(batch.calls.len());
                for call in batch.calls {
                    take(&participant, outgoing, call);
                }
                poll_fn(|context| outgoing.poll_room(context)).await;
            }
            Ok(None) => {
                ending.in_order = true;
                return;
            }
            Err(status) => {
                tracing::debug!(%status, "a stream of calls broke off");
                return;
            }
        }
    }
}

/// Whatever ends the reading, a panic and being dropped too: nothing more will come. Unless the
/// coordinator has ended in order, nobody takes answers any more either, and the half that carries
/// them must not stay open, or the coordinator would go on waiting for them.
struct Ending {
    outgoing: Arc<Outgoing>,
    in_order: bool,
}

impl Drop for Ending {
    fn drop(&mut self) {
        let in_order = self.in_order;
        self.outgoing.change(|state| {
            state.ended = true;
            if !in_order {
                state.owed = 0;
                state.answers.clear();
            }
        });
    }
}

/// Hands one call to the participant.
fn take(participant: &Arc<dyn Participant>, outgoing: &Arc<Outgoing>, call: Call) {
    let number = call.number;
    let request = match request_of(call) {
        Ok(request) => request,
        Err((kind, text)) => {
            outgoing.push(Answer { number, kind: kind as i32, text });
            return;
        }
    };
    let owed = OwedAnswer::to_sink(number, Arc::clone(outgoing) as Arc<dyn AnswerSink>);
    let Some((request, owed)) = participant.take(request, owed) else { return };
    let participant = Arc::clone(participant);
    tokio::spawn(async move {
        let answer = participant.call(request).await;
        owed.settle(answer);
    });
}

/// Reads a call; what cannot be one is answered as HTTP would: as a failure, or as not known here.
fn request_of(call: Call) -> Result<Request, (AnswerKind, String)> {
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        (AnswerKind::Failed, format!("the call's {what} {error}"))
    };
    let operation = u8::try_from(call.operation).ok();
    let operation = Operation::ALL.into_iter().find(|known| Some(*known as u8) == operation);
    let Some(operation) = operation else {
        let text = format!("operation {} is not known here", call.operation);
        return Err((AnswerKind::Unsupported, text));
    };
    check_id(&call.branch).map_err(|error| failed("branch", &error))?;
    Ok(Request {
        transaction: TransactionId::from_shared(call.transaction)
            .map_err(|error| failed("transaction", &error))?,
        branch: call.branch,
        operation,
        attempt: call.attempt,
        payload: call.payload,
    })
}

/// Answers on their way out.
#[derive(Default)]
pub(super) struct Outgoing {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    answers: Vec<Answer>,
    /// Calls that were taken in and whose answers have not been written.
    owed: usize,
    /// Whether no more calls will come.
    ended: bool,
    stopping: Stopping,
    writer: Option<Waker>,
    reader: Option<Waker>,
}

/// Whether the other side knows that this one wants no more calls.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Stopping {
    #[default]
    No,
    ToBeSaid,
    Said,
}

impl Outgoing {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        change(&mut state);
        let writer = state.writer.take();
        drop(state);
        writer.into_iter().for_each(Waker::wake);
    }

    fn owe(&self, calls: usize) {
        self.lock().owed += calls;
    }

    fn push(&self, answer: Answer) {
        self.change(|state| {
            if !(state.ended && state.owed == 0) {
                state.answers.push(answer);
            }
        });
    }

    /// Says that no more calls are wanted, if that was not said before.
    pub(super) fn stop(&self) {
        self.change(|state| {
            if state.stopping == Stopping::No {
                state.stopping = Stopping::ToBeSaid;
            }
        });
    }

    /// Ready when another batch may be read.
    fn poll_room(&self, context: &Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        if state.owed < OWED_MAX {
            return Poll::Ready(());
        }
        state.reader = Some(context.waker().clone());
        Poll::Pending
    }

    /// The next batch: whatever is there, and the end when nothing more will come.
    pub(super) fn poll_batch(&self, context: &Context<'_>) -> Poll<Option<Answers>> {
        let mut state = self.lock();
        let stopping = state.stopping == Stopping::ToBeSaid;
        if state.answers.is_empty() && !stopping {
            if state.ended && state.owed == 0 {
                return Poll::Ready(None);
            }
            state.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        let answers = first_batch(&mut state.answers);
        state.owed = state.owed.saturating_sub(answers.len());
        if stopping {
            state.stopping = Stopping::Said;
        }
        let reader = state.reader.take();
        drop(state);
        reader.into_iter().for_each(Waker::wake);
        Poll::Ready(Some(Answers { answers, stopping }))
    }
}

/// Takes out as many answers as one batch may hold.
fn first_batch(answers: &mut Vec<Answer>) -> Vec<Answer> {
    let mut bytes = 0;
    let fits = |answer: &&Answer| {
        let had = bytes;
        bytes += answer.text.len();
        had < BATCH_BYTES
    };
    let count = answers.iter().take(BATCH_ENTRIES_MAX).take_while(fits).count();
    if count == answers.len() {
        return std::mem::replace(answers, Vec::with_capacity(count));
    }
    answers.drain(..count).collect()
}

impl AnswerSink for Outgoing {
    fn answered(&self, number: u64, answer: Result<Reply, CallError>) {
        match &answer {
            Ok(_) | Err(CallError::Busy(_)) => {}
            Err(CallError::Contradiction(contradiction)) => {
                tracing::error!(call = number, code = contradiction.code(), "refused");
            }
            Err(CallError::Failed(error)) => tracing::warn!(call = number, %error, "failed"),
        }
        self.push(write_answer(number, answer));
    }
}

/// The answers of a stream that the coordinator opened.
pub(super) struct Written(Arc<Outgoing>);

impl Stream for Written {
    type Item = Result<Answers, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_batch(context).map(|batch| batch.map(Ok))
    }
}

/// The answers of a stream that this side opened.
pub(super) struct Sent(pub(super) Arc<Outgoing>);

impl Stream for Sent {
    type Item = Answers;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Answers>> {
        self.0.poll_batch(context)
    }
}
