//! Decides which calls to one participant go together: those that have gathered by the time its
//! writer has a connection. One alone is a request of its own; two or more are a batch. Nothing
//! waits for a batch to fill: calls gather because a shard lets out the effects of a whole batch of
//! its journal at once, and because connections are bounded.
//!
//! A writer is a task for one batch, not for ever: it takes what is there, lets the next writer
//! begin if more is left, and carries what it has taken. How a batch is carried is `batch`'s.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, SemaphorePermit};
use tokio::time::{Duration, Instant, sleep_until};
use unanimity::Owed;
use unanimity_core::{Answer, Call, TIMEOUT_MS_MAX};
use unanimity_sdk::contract::batch::BATCH_BYTES;

use super::pool::{Origin, Standing};
use super::targets::Known;
use super::{Failure, HttpTransport, batch, settle};

/// The most calls that wait in one lane; more go as if there were none.
const QUEUE_MAX: usize = 32_768;
/// A call with a payload of more bytes gains nothing by company.
pub(super) const PAYLOAD_BYTES_MAX: usize = 64 * 1024;
/// About what a call takes in a batch beside its payload.
pub(super) const CALL_BYTES: usize = 256;
/// How long calls go one by one after a batch has failed as a whole; twice as long each time.
const SUSPENDED: Duration = Duration::from_secs(30);
/// So often that time is doubled: up to half an hour.
const DOUBLINGS_MAX: u32 = 6;

/// A call that waits to be sent.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) call: Call,
    pub(super) owed: Owed,
    pub(super) deadline: Instant,
}

impl Waiting {
    fn came_at(&self) -> Instant {
        let limit = Duration::from_millis(self.call.timeout_ms.min(TIMEOUT_MS_MAX));
        self.deadline.checked_sub(limit).unwrap_or(self.deadline)
    }

    fn bytes(&self) -> usize {
        CALL_BYTES + self.call.payload.as_ref().map_or(0, |payload| payload.len())
    }
}

/// The calls to one participant that takes several in one request.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(super) participant: Arc<str>,
    pub(super) known: Arc<Known>,
    /// The most calls of one request.
    calls_max: AtomicUsize,
    state: Mutex<State>,
    /// Told when a call comes whose time ends before that of every other.
    hurry: Notify,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Waiting>,
    /// Whether a task is there to take what waits.
    writer: bool,
    /// Where they wait for a connection.
    standing: Option<Standing>,
    /// No waiting call's time ends before this.
    earliest: Option<Instant>,
    suspended_until: Option<Instant>,
    /// How many batches in a row have failed as a whole.
    failures: u32,
}

impl Lane {
    pub(super) fn new(participant: Arc<str>, known: Arc<Known>) -> Self {
        let (calls_max, state) = (AtomicUsize::new(0), Mutex::default());
        Self { participant, known, calls_max, state, hurry: Notify::new() }
    }

    pub(super) fn calls_max(&self) -> usize {
        self.calls_max.load(Ordering::Relaxed)
    }

    /// The participant takes so many calls in one request.
    pub(super) fn allow(&self, calls_max: usize) {
        self.calls_max.store(calls_max, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A batch has failed as a whole: calls go one by one, for a while. Those that were under way
    /// at the same time say nothing more.
    pub(super) fn suspend(&self) {
        let (mut state, now) = (self.lock(), Instant::now());
        if state.suspended_until.is_some_and(|until| now < until) {
            return;
        }
        state.suspended_until = Some(now + SUSPENDED * (1 << state.failures.min(DOUBLINGS_MAX)));
        state.failures += 1;
    }

    /// A batch has been understood.
    pub(super) fn works(&self) {
        self.lock().failures = 0;
    }

    /// Takes a call, unless batches are not to be used now.
    fn push(&self, waiting: Waiting) -> Pushed {
        let mut state = self.lock();
        let suspended = state.suspended_until.is_some_and(|until| Instant::now() < until);
        if suspended || state.queue.len() >= QUEUE_MAX {
            return Pushed::GivenBack(waiting);
        }
        let hurries = state.earliest.is_none_or(|earliest| waiting.deadline < earliest);
        if hurries {
            state.earliest = Some(waiting.deadline);
        }
        state.queue.push_back(waiting);
        let waits = state.standing.as_mut().map(|standing| standing.joined(1)).is_some();
        let must_write = !std::mem::replace(&mut state.writer, true);
        drop(state);
        if hurries && waits {
            self.hurry.notify_one();
        }
        if must_write { Pushed::MustWrite } else { Pushed::Taken }
    }

    /// Waits for a connection, and ends the calls whose time is over by then. None if all are.
    async fn permit<'a>(
        &self,
        transport: &HttpTransport,
        origin: &'a Arc<Origin>,
    ) -> Option<SemaphorePermit<'a>> {
        if let Some(permit) = origin.free_permit() {
            return Some(permit);
        }
        self.stand(transport, origin);
        let mut next = std::pin::pin!(origin.next_permit());
        loop {
            let earliest = self.lock().earliest.unwrap_or_else(Instant::now);
            tokio::select! {
                biased;
                permit = &mut next => return permit,
                () = self.hurry.notified() => {}
                () = sleep_until(earliest) => {
                    if !self.expire(transport) {
                        return None;
                    }
                }
            }
        }
    }

    /// From now on those who wait count as waiting for a connection.
    fn stand(&self, transport: &HttpTransport, origin: &Arc<Origin>) {
        let mut state = self.lock();
        let calls = state.queue.len();
        state.standing = Some(Standing::begin(&transport.pool, origin, calls));
    }

    /// Ends every waiting call whose time is over. Says whether others are left: if not, nobody
    /// writes.
    fn expire(&self, transport: &HttpTransport) -> bool {
        let now = Instant::now();
        let mut state = self.lock();
        let (late, waiting): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut state.queue).into_iter().partition(|one| one.deadline <= now);
        state.queue = waiting;
        if let Some(standing) = &mut state.standing {
            late.iter().for_each(|waiting| standing.left(waiting.came_at(), now));
        }
        state.earliest = state.queue.iter().map(|waiting| waiting.deadline).min();
        let others = !state.queue.is_empty();
        if !others {
            (state.writer, state.standing) = (false, None);
        }
        drop(state);
        for Waiting { call, owed, .. } in late {
            settle(owed, transport.not_connected(call.timeout_ms));
        }
        others
    }

    /// Takes what has gathered, up to so many calls, and says whether some are left.
    fn take(&self, most: usize) -> (Vec<Waiting>, bool) {
        let (mut state, now) = (self.lock(), Instant::now());
        let mut taken = Vec::with_capacity(most.min(state.queue.len()));
        let mut bytes = 0;
        while taken.len() < most
            && let Some(waiting) = state.queue.front()
            && (taken.is_empty() || bytes + waiting.bytes() <= BATCH_BYTES)
            && let Some(waiting) = state.queue.pop_front()
        {
            bytes += waiting.bytes();
            if let Some(standing) = &mut state.standing {
                standing.left(waiting.came_at(), now);
            }
            taken.push(waiting);
        }
        state.standing = None;
        state.writer = !state.queue.is_empty();
        if !state.writer {
            state.earliest = None;
        }
        (taken, state.writer)
    }

    /// Gives up on all that wait: nothing of them has left.
    fn give_up(&self, why: &Failure) {
        let mut state = self.lock();
        let waiting = std::mem::take(&mut state.queue);
        (state.writer, state.standing, state.earliest) = (false, None, None);
        drop(state);
        for waiting in waiting {
            settle(waiting.owed, why.clone());
        }
    }
}

/// What a lane does with a call.
enum Pushed {
    /// It has it, and somebody is there to write.
    Taken,
    /// It has it, and somebody must write.
    MustWrite,
    GivenBack(Waiting),
}

/// A writer until it has taken its batch. If it ends before, by a panic, nobody else would come.
struct Turn<'a>(Option<&'a Lane>);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(lane) = self.0 {
            lane.give_up(&Failure::Unsent("the lane's writer has ended (a panic?)".to_owned()));
        }
    }
}

impl HttpTransport {
    /// Takes a call to a participant that takes several in one request; gives it back if it is
    /// better carried alone: one that is asked again, so that nothing rests on batches; one to a
    /// participant that fails; one with a large payload.
    pub(crate) fn gather(
        self: &Arc<Self>,
        lane: &Arc<Lane>,
        call: Call,
        owed: Owed,
    ) -> Option<(Call, Owed)> {
        let large = call.payload.as_ref().is_some_and(|payload| payload.len() > PAYLOAD_BYTES_MAX);
        if call.attempt > 1 || large || self.breakers.hold_back(&lane.known.target.origin) {
            return Some((call, owed));
        }
        let deadline = Instant::now() + Duration::from_millis(call.timeout_ms.min(TIMEOUT_MS_MAX));
        match lane.push(Waiting { call, owed, deadline }) {
            Pushed::MustWrite => self.write(lane),
            Pushed::Taken => {}
            Pushed::GivenBack(Waiting { call, owed, .. }) => return Some((call, owed)),
        }
        None
    }

    fn write(self: &Arc<Self>, lane: &Arc<Lane>) {
        let (transport, lane) = (Arc::clone(self), Arc::clone(lane));
        tokio::spawn(async move { transport.turn(&lane).await });
    }

    /// One writer's turn.
    async fn turn(self: Arc<Self>, lane: &Arc<Lane>) {
        self.start_sweeper();
        let mut turn = Turn(Some(lane));
        let name = &lane.known.target.origin;
        let Some(origin) = self.pool.origin(name) else {
            turn.0 = None;
            return lane.give_up(&self.too_many_participants());
        };
        let Some(permit) = lane.permit(&self, &origin).await else {
            turn.0 = None;
            return;
        };
        // While it fails, or is given its calls at a growing rate, each goes alone.
        let most = if self.breakers.hold_back(name) { 1 } else { lane.calls_max() };
        let (taken, more) = lane.take(most);
        turn.0 = None;
        if more {
            self.write(lane);
        }
        match <[Waiting; 1]>::try_from(taken) {
            Ok([Waiting { call, owed, deadline }]) => {
                let answer = self.carry(&call, deadline, Some((&origin, permit))).await;
                owed.settle(answer);
            }
            Err(taken) if taken.is_empty() => {}
            Err(taken) => batch::carry(&self, lane, (&origin, permit), taken).await,
        }
    }

    /// Carries calls one by one that cannot go together after all.
    pub(super) fn carry_alone(
        self: &Arc<Self>,
        calls: impl IntoIterator<Item = Waiting>,
        before: Before,
    ) {
        for Waiting { call, owed, deadline } in calls {
            let transport = Arc::clone(self);
            tokio::spawn(async move {
                let answer = transport.carry(&call, deadline, None).await;
                owed.settle(before.answer(answer));
            });
        }
    }
}

/// What was done with a call before it is made alone.
#[derive(Clone, Copy, Debug)]
pub(super) enum Before {
    Nothing,
    /// It was in a batch that was handed over, and refused. A proxy may have given the batch to a
    /// copy of the service that took it, and then to one that did not.
    Batch,
}

impl Before {
    /// What an answer to the single call says of it altogether.
    fn answer(self, answer: Answer) -> Answer {
        match (self, answer) {
            (Self::Batch, Answer::Unsent(why)) => Answer::Unknown(why),
            (Self::Batch | Self::Nothing, answer) => answer,
        }
    }
}
