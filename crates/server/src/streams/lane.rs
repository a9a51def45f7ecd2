//! Decides what becomes of the calls on one stream: they queue while the last batch is being
//! written, go out together, and each ends in exactly one answer.
//!
//! Which answer, if none comes: a call that was handed to the connection may have arrived, so
//! nothing is known of it. One that was not handed over was certainly not sent.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::time::{Duration, Instant};
use unanimity::Owed;
use unanimity::core::Answer;
use unanimity_sdk::stream::{self, BATCH_BYTES, BATCH_ENTRIES_MAX, Call, Calls};

use crate::slots::Slots;

/// Counts the streams that stand or are being opened.
const STREAMS: &str = "unanimity_participant_streams";

/// A call that waits to be written.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) call: Call,
    pub(super) owed: Owed,
    pub(super) deadline: Instant,
}

/// A call that was handed to the connection.
#[derive(Debug)]
struct Sent {
    owed: Owed,
    deadline: Instant,
    timeout_ms: u64,
}

/// How many calls a stream carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LaneLimits {
    /// The most calls that are sent and not answered.
    pub(super) in_flight_max: usize,
    /// The most calls that wait to be sent.
    pub(super) queue_max: usize,
}

/// One stream, seen by whoever has calls for it.
#[derive(Debug)]
pub(super) struct Lane {
    limits: LaneLimits,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    queue: VecDeque<Waiting>,
    in_flight: Slots<Sent>,
    writer: Option<Waker>,
    /// No call's time ends before this.
    earliest: Instant,
    standing: Standing,
    /// When a call was last taken.
    used: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Open,
    /// The participant wants no more calls; what is in flight is still answered.
    Stopping,
    Closed,
}

impl Lane {
    pub(super) fn new(limits: LaneLimits) -> Self {
        metrics::gauge!(STREAMS).increment(1.0);
        let now = Instant::now();
        let state = State {
            queue: VecDeque::new(),
            in_flight: Slots::default(),
            writer: None,
            earliest: now + Duration::from_secs(3_600),
            standing: Standing::Open,
            used: now,
        };
        Self { limits, state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many calls it has; `None` if it takes no more.
    pub(super) fn load(&self) -> Option<usize> {
        let state = self.lock();
        (state.standing == Standing::Open).then(|| state.queue.len() + state.in_flight.len())
    }

    /// Takes a call, or gives it back if the stream takes no more. At the bound the call ends
    /// unsent.
    pub(super) fn push(&self, waiting: Waiting) -> Option<Waiting> {
        let mut state = self.lock();
        if state.standing != Standing::Open {
            return Some(waiting);
        }
        if state.queue.len() >= self.limits.queue_max {
            drop(state);
            let most = self.limits.queue_max;
            let text = format!("{most} calls to this participant are waiting already");
            waiting.owed.settle(Answer::Unsent(text.into()));
            return None;
        }
        state.earliest = state.earliest.min(waiting.deadline);
        state.queue.push_back(waiting);
        let writer = state.writer.take();
        drop(state);
        writer.into_iter().for_each(Waker::wake);
        None
    }

    /// The next batch to write: whatever waits and may be in flight. The end when the stream is
    /// closed, or has stopped and everything is answered.
    pub(super) fn poll_batch(&self, context: &Context<'_>) -> Poll<Option<Calls>> {
        let mut state = self.lock();
        match state.standing {
            Standing::Closed => return Poll::Ready(None),
            Standing::Stopping if state.in_flight.len() == 0 => return Poll::Ready(None),
            Standing::Stopping | Standing::Open => {}
        }
        let room = self.limits.in_flight_max.saturating_sub(state.in_flight.len());
        let calls = state.next_batch(room.min(BATCH_ENTRIES_MAX));
        if calls.is_empty() {
            state.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        state.used = Instant::now();
        Poll::Ready(Some(Calls { calls }))
    }

    /// Takes in a batch of answers. Those to calls that nobody waits for any more are dropped.
    pub(super) fn answered(&self, answers: &[stream::Answer], stopping: bool) {
        let mut settled = Vec::with_capacity(answers.len());
        let mut moved = VecDeque::new();
        let mut state = self.lock();
        for answer in answers {
            settled.extend(state.in_flight.take(answer.number).map(|sent| (sent, answer)));
        }
        if stopping && state.standing == Standing::Open {
            state.standing = Standing::Stopping;
            moved = std::mem::take(&mut state.queue);
        }
        let wakes = !state.queue.is_empty() || state.standing != Standing::Open;
        let writer = if wakes { state.writer.take() } else { None };
        drop(state);
        writer.into_iter().for_each(Waker::wake);
        for (sent, answer) in settled {
            let operation = sent.owed.operation();
            sent.owed.settle(stream::judge(operation, answer));
        }
        unsent(moved, "the participant is stopping");
    }

    /// Ends every call whose time is over.
    pub(super) fn expire(&self, now: Instant) {
        let mut state = self.lock();
        if now < state.earliest {
            return;
        }
        let late = state.in_flight.take_if(|sent| sent.deadline <= now);
        let (unsent, waiting): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut state.queue).into_iter().partition(|one| one.deadline <= now);
        state.queue = waiting;
        let queued = state.queue.iter().map(|waiting| waiting.deadline);
        let all = queued.chain(state.in_flight.iter().map(|sent| sent.deadline));
        state.earliest = all.min().unwrap_or(now + Duration::from_secs(3_600));
        let writer = state.writer.take();
        drop(state);
        writer.into_iter().for_each(Waker::wake);
        for sent in late {
            let text = format!("no answer within {} ms", sent.timeout_ms);
            sent.owed.settle(Answer::Unknown(text.into()));
        }
        for waiting in unsent {
            let text =
                format!("not sent within {} ms: the stream is full", waiting.call.timeout_ms);
            waiting.owed.settle(Answer::Unsent(text.into()));
        }
    }

    /// Ends the stream: nothing is known of what was handed over, and the rest was never sent.
    pub(super) fn close(&self, why: &str) {
        let mut state = self.lock();
        state.standing = Standing::Closed;
        let sent = state.in_flight.take_if(|_| true);
        let waiting = std::mem::take(&mut state.queue);
        let writer = state.writer.take();
        drop(state);
        writer.into_iter().for_each(Waker::wake);
        for sent in sent {
            sent.owed.settle(Answer::Unknown(why.into()));
        }
        unsent(waiting, why);
    }

    /// Whether nothing is on the stream, and nothing was sent since a moment.
    pub(super) fn is_idle_since(&self, moment: Instant) -> bool {
        let state = self.lock();
        state.queue.is_empty() && state.in_flight.len() == 0 && state.used < moment
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        metrics::gauge!(STREAMS).decrement(1.0);
    }
}

fn unsent(waiting: VecDeque<Waiting>, why: &str) {
    for waiting in waiting {
        waiting.owed.settle(Answer::Unsent(why.into()));
    }
}

impl State {
    fn next_batch(&mut self, most: usize) -> Vec<Call> {
        let mut calls = Vec::with_capacity(most.min(self.queue.len()));
        let mut bytes = 0;
        while calls.len() < most
            && bytes < BATCH_BYTES
            && let Some(Waiting { mut call, owed, deadline }) = self.queue.pop_front()
        {
            bytes += call.payload.len();
            call.number = self.in_flight.put(Sent { owed, deadline, timeout_ms: call.timeout_ms });
            calls.push(call);
        }
        calls
    }
}
