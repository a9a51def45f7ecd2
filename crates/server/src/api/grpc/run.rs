//! Decides how many transactions run over one stream: each request is begun as soon as it is read,
//! and answered when what it waits for has come; answers gather while the last batch of them is
//! being written. How many may be unanswered at a time is bounded; at the bound no more are read,
//! and HTTP/2's flow control holds the client back.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use futures_core::Stream;
use tokio::sync::watch;
use tonic::{Status, Streaming};
use unanimity::Admitted;
use unanimity_sdk::stream::{
    BATCH_ENTRIES_MAX, Begin, BeginBatch, Begun, BegunBatch, Refusal, begun,
};

use super::super::Api;
use super::super::convert::problem_of_admission;
use super::begin_and_tell;
use crate::problem::Problem;

/// The most requests of one stream that may be unanswered before no more are read.
const UNANSWERED_MAX: usize = 16_384;

/// Serves one stream.
pub(super) fn start(
    api: &Api,
    incoming: Streaming<BeginBatch>,
    stopping: watch::Receiver<bool>,
) -> Written {
    let outgoing = Arc::new(Outgoing::default());
    tokio::spawn(read(api.clone(), incoming, stopping, Arc::clone(&outgoing)));
    Written(outgoing)
}

/// Begins what is asked for until the client ends or the coordinator stops.
async fn read(
    api: Api,
    mut incoming: Streaming<BeginBatch>,
    mut stopping: watch::Receiver<bool>,
    outgoing: Arc<Outgoing>,
) {
    let ending = Ending(outgoing);
    let outgoing = &ending.0;
    let stopped = async { drop(stopping.wait_for(|stop| *stop).await) };
    tokio::pin!(stopped);
    loop {
        let batch = tokio::select! {
            biased;
            () = &mut stopped => return,
            batch = incoming.message() => batch,
        };
        match batch {
            Ok(Some(batch)) => {
                outgoing.lock().unanswered += batch.begins.len();
                begin_all(&api, outgoing, batch);
                std::future::poll_fn(|context| outgoing.poll_room(context)).await;
            }
            Ok(None) => return,
            Err(status) => {
                tracing::debug!(%status, "an initiator's stream broke off");
                return;
            }
        }
    }
}

/// Whatever ends the reading, nothing more will come.
struct Ending(Arc<Outgoing>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.change(|state| state.ended = true);
    }
}

/// Begins what a batch asks for. Where that is refused anyway, nothing of it is looked at.
fn begin_all(api: &Api, outgoing: &Arc<Outgoing>, batch: BeginBatch) {
    let mut refused = Vec::new();
    for one in batch.begins {
        match api.shared.manager.admit() {
            Ok(admitted) => answer(api, outgoing, admitted, one),
            Err(error) => {
                let answer = begun::Answer::Refusal(refusal(problem_of_admission(error)));
                refused.push(Begun { number: one.number, answer: Some(answer) });
            }
        }
    }
    if !refused.is_empty() {
        outgoing.change(|state| state.answers.append(&mut refused));
    }
}

/// Begins one transaction, and answers when what it waits for has come.
fn answer(api: &Api, outgoing: &Arc<Outgoing>, admitted: Admitted, one: Begin) {
    let (api, owed) =
        (api.clone(), Owed { number: one.number, outgoing: Some(Arc::clone(outgoing)) });
    // Boxed once here: a task is moved several times, and this one is long.
    tokio::spawn(Box::pin(async move {
        let answer = match begin_and_tell(&api, admitted, one.request.unwrap_or_default()).await {
            Ok(transaction) => begun::Answer::Transaction(transaction),
            Err(problem) => begun::Answer::Refusal(refusal(problem)),
        };
        owed.settle(Some(answer));
    }));
}

fn refusal(problem: Problem) -> Refusal {
    Refusal {
        code: problem.code.to_owned(),
        detail: problem.detail,
        field: problem.field.unwrap_or_default(),
        retry_after_s: problem.retry_after_s.unwrap_or_default(),
        status: problem.status.into(),
    }
}

/// The answer that is owed for a request. If its task is lost it is empty: nothing is known.
struct Owed {
    number: u64,
    outgoing: Option<Arc<Outgoing>>,
}

impl Owed {
    fn settle(mut self, answer: Option<begun::Answer>) {
        self.deliver(answer);
    }

    fn deliver(&mut self, answer: Option<begun::Answer>) {
        if let Some(outgoing) = self.outgoing.take() {
            let begun = Begun { number: self.number, answer };
            outgoing.change(|state| state.answers.push(begun));
        }
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        self.deliver(None);
    }
}

/// Answers on their way out.
#[derive(Default)]
struct Outgoing {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    answers: Vec<Begun>,
    unanswered: usize,
    ended: bool,
    writer: Option<Waker>,
    reader: Option<Waker>,
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

    fn poll_room(&self, context: &Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        if state.unanswered < UNANSWERED_MAX {
            return Poll::Ready(());
        }
        state.reader = Some(context.waker().clone());
        Poll::Pending
    }

    fn poll_batch(&self, context: &Context<'_>) -> Poll<Option<BegunBatch>> {
        let mut state = self.lock();
        if state.answers.is_empty() {
            if state.ended && state.unanswered == 0 {
                return Poll::Ready(None);
            }
            state.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        let count = state.answers.len().min(BATCH_ENTRIES_MAX);
        let begun: Vec<Begun> = state.answers.drain(..count).collect();
        state.unanswered = state.unanswered.saturating_sub(count);
        let reader = state.reader.take();
        drop(state);
        reader.into_iter().for_each(Waker::wake);
        Poll::Ready(Some(BegunBatch { begun }))
    }
}

/// The answers of one stream.
pub(in crate::api) struct Written(Arc<Outgoing>);

impl Stream for Written {
    type Item = Result<BegunBatch, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_batch(context).map(|batch| batch.map(Ok))
    }
}
