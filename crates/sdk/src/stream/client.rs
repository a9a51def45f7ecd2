//! Decides how an initiator runs many transactions over one stream: requests gather while the last
//! batch is being written and go out together, each is answered by its number. What was written
//! when a stream breaks may or may not have been acted on, and its initiator is told so; what was
//! not yet written goes over the next stream.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use foldhash::HashMap;
use futures_core::Stream;
use tokio::sync::oneshot;
use tonic::Streaming;

use super::connection::Coordinator;
use super::generated::transactions_client::TransactionsClient;
use super::generated::{Begin, BeginRequest, Begun, BegunBatch, Transaction, begun};
use super::{BATCH_BYTES, BATCH_ENTRIES_MAX, BeginBatch, MESSAGE_BYTES_MAX};
use crate::client::{BEGIN_WAIT_MAX_MS, ClientError};
use crate::pace::Pace;
use crate::restraint::{Restraint, Set};

/// A client's limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamClientOptions {
    /// How long connecting, and opening a stream, may take, in milliseconds.
    pub connect_timeout_ms: u64,
    /// The most requests that are not answered; more are refused here.
    pub requests_max: usize,
    /// As [`ClientOptions::holds_back`](crate::ClientOptions::holds_back).
    pub holds_back: bool,
    /// As [`ClientOptions::begin_wait_max_ms`](crate::ClientOptions::begin_wait_max_ms), for its
    /// turn to be written: a coordinator that has enough to do reads no further for a while.
    pub begin_wait_max_ms: u64,
}

impl Default for StreamClientOptions {
    fn default() -> Self {
        Self {
            connect_timeout_ms: 2_000,
            requests_max: 65_536,
            holds_back: true,
            begin_wait_max_ms: BEGIN_WAIT_MAX_MS,
        }
    }
}

/// Runs transactions over one stream to one coordinator. Cloning is cheap, and clones share the
/// stream. It is opened with the first request, and again with the next one after it has broken.
#[derive(Clone)]
pub struct StreamClient {
    inner: Arc<Inner>,
    /// Shared by all clones, and by nothing else.
    _hang_up: Arc<HangUp>,
}

/// Ends the stream when the last clone goes, after what is under way is answered.
struct HangUp(Arc<Inner>);

impl Drop for HangUp {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.done = true;
        let writer = state.writer.take();
        drop(state);
        writer.into_iter().for_each(Waker::wake);
    }
}

struct Inner {
    coordinator: Coordinator,
    options: StreamClientOptions,
    /// None: everything is sent.
    restraint: Option<Restraint>,
    state: Mutex<State>,
}

struct State {
    next_number: u64,
    waiting: VecDeque<(BeginRequest, Reply)>,
    pace: Pace,
    sent: HashMap<u64, Reply>,
    writer: Option<Waker>,
    /// The stream that stands or is being opened, by a number of its own; 0: none.
    stream: u64,
    streams: u64,
    /// Whether it stands. Who waits for it to be opened does not wait for others.
    stands: bool,
    /// Whether no further request can come.
    done: bool,
}

type Reply = oneshot::Sender<Result<Transaction, ClientError>>;

impl StreamClient {
    /// A client with the default limits. `base_url` is such as `http://127.0.0.1:7171`; `token` is
    /// what the coordinator was configured with, if it was.
    ///
    /// # Errors
    /// [`ClientError::Unusable`] if the URL or the token cannot be used.
    pub fn new(base_url: &str, token: Option<&str>) -> Result<Self, ClientError> {
        Self::with_options(base_url, token, StreamClientOptions::default())
    }

    /// A client with limits of its own.
    ///
    /// # Errors
    /// As [`StreamClient::new`].
    pub fn with_options(
        base_url: &str,
        token: Option<&str>,
        options: StreamClientOptions,
    ) -> Result<Self, ClientError> {
        let coordinator = Coordinator::new(base_url, token, options.connect_timeout_ms)?;
        let restraint = options.holds_back.then(Restraint::default);
        let advice = "begin less, or over more streams";
        let pace = Pace::new(options.begin_wait_max_ms, advice, Instant::now());
        let state = Mutex::new(State::new(pace));
        let inner = Arc::new(Inner { coordinator, options, restraint, state });
        Ok(Self { _hang_up: Arc::new(HangUp(Arc::clone(&inner))), inner })
    }

    /// Begins a transaction, and waits for what the request's `wait` says; at most a minute, and
    /// then the answer is how it stands. Sending the same request with the same id again is safe.
    /// Needs a tokio runtime.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn begin(
        &self,
        request: impl Into<BeginRequest>,
    ) -> Result<Transaction, ClientError> {
        let request = request.into();
        let set = Set::of(request.branches.iter().map(|branch| branch.participant.as_str()));
        if let Some(restraint) = &self.inner.restraint {
            restraint.pass(set, Instant::now())?;
        }
        let (reply, replied) = oneshot::channel();
        self.enqueue(request, reply)?;
        let lost = || ClientError::NoAnswer("the stream's task has ended".to_owned());
        let begun = replied.await.map_err(|_| lost())?;
        if let Some(restraint) = &self.inner.restraint {
            restraint.hear(set, &begun, Instant::now());
        }
        begun
    }

    fn enqueue(&self, request: BeginRequest, reply: Reply) -> Result<(), ClientError> {
        let mut state = self.inner.lock();
        let most = self.inner.options.requests_max;
        if state.waiting.len() + state.sent.len() >= most {
            let text = format!("{most} requests are under way already");
            return Err(ClientError::Unusable(text));
        }
        let waiting = state.waiting.len();
        if state.stands {
            state.pace.enter(waiting, Instant::now())?;
        }
        state.waiting.push_back((request, reply));
        if state.stream == 0 {
            state.open(&self.inner);
        }
        let writer = state.writer.take();
        drop(state);
        writer.into_iter().for_each(Waker::wake);
        Ok(())
    }
}

impl std::fmt::Debug for StreamClient {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let origin = &self.inner.coordinator.origin;
        formatter.debug_struct("StreamClient").field("origin", origin).finish_non_exhaustive()
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn new(pace: Pace) -> Self {
        Self {
            next_number: 0,
            waiting: VecDeque::new(),
            pace,
            sent: HashMap::default(),
            writer: None,
            stream: 0,
            streams: 0,
            stands: false,
            done: false,
        }
    }

    fn open(&mut self, inner: &Arc<Inner>) {
        self.streams += 1;
        self.stream = self.streams;
        tokio::spawn(run(Arc::clone(inner), self.stream));
    }

    fn stand(&mut self) {
        self.stands = true;
        self.pace.restart(Instant::now());
    }

    fn next_batch(&mut self) -> Vec<Begin> {
        let (mut begins, mut bytes) = (Vec::new(), 0);
        while begins.len() < BATCH_ENTRIES_MAX
            && bytes < BATCH_BYTES
            && let Some((request, reply)) = self.waiting.pop_front()
        {
            bytes += request.branches.iter().map(|branch| branch.payload.len()).sum::<usize>();
            self.next_number += 1;
            let number = self.next_number;
            self.sent.insert(number, reply);
            begins.push(Begin { number, request: Some(request) });
        }
        if !begins.is_empty() {
            self.pace.leave(begins.len(), Instant::now());
        }
        begins
    }
}

/// Opens a stream and takes in its answers to its end; then what was sent is answered as lost.
async fn run(inner: Arc<Inner>, stream: u64) {
    let why = match serve(&inner, stream).await {
        Ok(()) => "the coordinator has ended the stream".to_owned(),
        Err(status) => format!("the stream broke: {}: {}", status.code(), status.message()),
    };
    let mut state = inner.lock();
    state.stream = 0;
    state.stands = false;
    let lost = std::mem::take(&mut state.sent);
    // What was never written is tried once more if this stream had stood, and else given up.
    let refused =
        if lost.is_empty() { std::mem::take(&mut state.waiting) } else { VecDeque::new() };
    if !state.waiting.is_empty() {
        state.open(&inner);
    }
    let writer = state.writer.take();
    drop(state);
    writer.into_iter().for_each(Waker::wake);
    for reply in lost.into_values().chain(refused.into_iter().map(|(_, reply)| reply)) {
        // dropped: who has gone away wants no answer.
        drop(reply.send(Err(ClientError::NoAnswer(why.clone()))));
    }
}

async fn serve(inner: &Arc<Inner>, stream: u64) -> Result<(), tonic::Status> {
    let coordinator = &inner.coordinator;
    let requests = Requests { inner: Arc::clone(inner), stream };
    let mut client = TransactionsClient::with_origin(
        coordinator.connections.clone(),
        coordinator.origin.clone(),
    )
    .max_decoding_message_size(MESSAGE_BYTES_MAX);
    let limit = Duration::from_millis(inner.options.connect_timeout_ms.saturating_mul(2));
    let opened = tokio::time::timeout(limit, client.run(coordinator.request(requests))).await;
    let opened = opened.map_err(|_| tonic::Status::deadline_exceeded("not opened in time"))?;
    let mut incoming: Streaming<BegunBatch> = opened?.into_inner();
    inner.lock().stand();
    while let Some(batch) = incoming.message().await? {
        let mut state = inner.lock();
        let answers = batch.begun.into_iter().filter_map(|begun| {
            let reply = state.sent.remove(&begun.number)?;
            Some((reply, begun))
        });
        let answers: Vec<_> = answers.collect();
        drop(state);
        for (reply, begun) in answers {
            drop(reply.send(read(begun))); // dropped: who has gone away wants no answer.
        }
    }
    Ok(())
}

fn read(begun: Begun) -> Result<Transaction, ClientError> {
    match begun.answer {
        Some(begun::Answer::Transaction(transaction)) => Ok(transaction),
        Some(begun::Answer::Refusal(refusal)) => Err(ClientError::Refused {
            status: u16::try_from(refusal.status).unwrap_or_default(),
            code: refusal.code,
            detail: refusal.detail,
            field: (!refusal.field.is_empty()).then_some(refusal.field),
        }),
        None => Err(ClientError::Unreadable("an answer without content".to_owned())),
    }
}

/// The requests of one stream.
struct Requests {
    inner: Arc<Inner>,
    stream: u64,
}

impl Stream for Requests {
    type Item = BeginBatch;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<BeginBatch>> {
        let mut state = self.inner.lock();
        if state.stream != self.stream {
            return Poll::Ready(None);
        }
        let begins = state.next_batch();
        if begins.is_empty() {
            if state.done {
                return Poll::Ready(None);
            }
            state.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Some(BeginBatch { begins }))
    }
}
