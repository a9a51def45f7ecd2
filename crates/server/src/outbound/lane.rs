//! Decides which calls to one participant go together: those that have gathered by the time its
//! writer has a place for them, which is a connection and room among the calls under way. One alone
//! is a request of its own; two or more are a batch. Nothing waits for a batch to fill: calls
//! gather because a shard lets out the effects of a whole batch of its journal at once, and because
//! places are bounded.
//!
//! A writer is a task for one batch, not for ever: it takes what is there, lets the next writer
//! begin if more is left, and carries what it has taken. How a batch is carried is `batch`'s.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::{Duration, Instant, sleep_until};
use unanimity::Owed;
use unanimity_core::{Answer, Call, TIMEOUT_MS_MAX};
use unanimity_sdk::contract::batch::BATCH_BYTES;

use super::pool::{Origin, Place, Standing, keep_room};
use super::queue::Queue;
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
    queue: Queue<Waiting>,
    /// Whether a task is there to take what waits.
    writer: bool,
    /// Where they wait, since a writer found no place free, until none is left.
    standing: Option<Standing>,
    suspended_until: Option<Instant>,
    /// How many batches in a row have failed as a whole.
    failures: u32,
    /// Whether batches are known to arrive: a line of one has come since the last failed.
    proven: bool,
    /// Whether a batch is under way that may prove it.
    trying: bool,
}

impl State {
    fn suspended(&self) -> bool {
        self.suspended_until.is_some_and(|until| Instant::now() < until)
    }
}

/// What a writer takes.
struct Taken<'a> {
    calls: Vec<Waiting>,
    /// Those whose time is over.
    late: Vec<Waiting>,
    /// Whether some are left.
    more: bool,
    trial: Option<Trial<'a>>,
}

/// The one batch under way that may prove that batches arrive.
struct Trial<'a>(&'a Lane);

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        self.0.lock().trying = false;
    }
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

    /// How many calls wait.
    fn waiting(&self) -> usize {
        self.lock().queue.len()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A batch has failed as a whole: calls go one by one, for a while. Those that were under way
    /// at the same time say nothing more.
    pub(super) fn suspend(&self) {
        let mut state = self.lock();
        if state.suspended() {
            return;
        }
        let pause = SUSPENDED * (1 << state.failures.min(DOUBLINGS_MAX));
        state.suspended_until = Some(Instant::now() + pause);
        state.failures += 1;
        state.proven = false;
    }

    /// A batch has been understood. One that left before others failed changes nothing.
    pub(super) fn works(&self) {
        let mut state = self.lock();
        if !state.suspended() {
            (state.failures, state.proven) = (0, true);
        }
    }

    /// Takes a call, unless batches are not to be used now.
    fn push(&self, waiting: Waiting) -> Pushed {
        let mut state = self.lock();
        if state.suspended() || state.queue.len() >= QUEUE_MAX {
            return Pushed::GivenBack(waiting);
        }
        let hurries = state.queue.earliest().is_none_or(|earliest| waiting.deadline < earliest);
        state.queue.push(waiting.deadline, waiting);
        let waits = state.standing.as_mut().map(|standing| standing.joined(1)).is_some();
        let must_write = !std::mem::replace(&mut state.writer, true);
        drop(state);
        if hurries && waits {
            self.hurry.notify_one();
        }
        if must_write { Pushed::MustWrite } else { Pushed::Taken }
    }

    /// Waits for a place, and ends the calls whose time is over by then. None if all are.
    async fn place<'a>(
        &self,
        transport: &HttpTransport,
        origin: &'a Arc<Origin>,
    ) -> Option<Place<'a>> {
        if let Some(place) = origin.free_place() {
            return Some(place);
        }
        self.stand(transport, origin);
        let mut next = std::pin::pin!(origin.next_place());
        loop {
            let earliest = self.lock().queue.earliest().unwrap_or_else(Instant::now);
            tokio::select! {
                biased;
                place = &mut next => return place,
                () = self.hurry.notified() => {}
                () = sleep_until(earliest) => {
                    if !self.expire(transport) {
                        return None;
                    }
                }
            }
        }
    }

    /// From now on those who wait count as waiting for a place.
    fn stand(&self, transport: &HttpTransport, origin: &Arc<Origin>) {
        let mut state = self.lock();
        let calls = state.queue.len();
        let begin = || Standing::begin(&transport.pool, origin, calls);
        state.standing.get_or_insert_with(begin);
    }

    /// Ends every waiting call whose time is over. Says whether others are left: if not, nobody
    /// writes.
    fn expire(&self, transport: &HttpTransport) -> bool {
        let Taken { late, more, .. } = self.take(0);
        transport.end_late(late);
        more
    }

    /// Takes what has gathered, up to so many calls; one alone while batches are suspended, or
    /// while another is being tried.
    fn take(&self, most: usize) -> Taken<'_> {
        let (mut guard, now) = (self.lock(), Instant::now());
        let state = &mut *guard;
        let alone = state.suspended() || (state.trying && !state.proven);
        let most = if alone { most.min(1) } else { most };
        let first = state.queue.first().map_or(now, Waiting::came_at);
        let late = state.queue.late(now);
        let mut calls = Vec::with_capacity(most.min(state.queue.len()));
        let mut bytes = 0;
        while calls.len() < most
            && let Some(waiting) = state.queue.first()
            && (calls.is_empty() || bytes + waiting.bytes() <= BATCH_BYTES)
            && let Some(waiting) = state.queue.pop()
        {
            bytes += waiting.bytes();
            calls.push(waiting);
        }
        if let Some(standing) = &mut state.standing {
            let waited = now.saturating_duration_since(first);
            standing.left(calls.len() + late.len(), waited, now);
        }
        let more = !state.queue.is_empty();
        state.writer = more;
        let ended = if more { None } else { state.standing.take() };
        let tries = calls.len() > 1 && !state.proven;
        state.trying |= tries;
        drop(guard);
        drop(ended);
        Taken { calls, late, more, trial: tries.then(|| Trial(self)) }
    }

    /// Whether a writer has found no place free, and some of those who waited then are left.
    fn stands(&self) -> bool {
        self.lock().standing.is_some()
    }

    /// Gives up on all that wait: nothing of them has left.
    fn give_up(&self, why: &Failure) {
        let mut state = self.lock();
        let waiting = state.queue.drain();
        (state.writer, state.standing) = (false, None);
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
        let Some(mut place) = lane.place(&self, &origin).await else {
            turn.0 = None;
            return;
        };
        if !lane.stands() {
            origin.went_at_once();
        }
        // While it fails, or is given its calls at a growing rate, each goes alone.
        let most = if self.breakers.hold_back(name) { 1 } else { lane.calls_max() };
        origin.widen(&mut place, lane.waiting().min(most));
        let Taken { calls, late, more, trial } = lane.take(place.room.num_permits());
        turn.0 = None;
        keep_room(&mut place.room, calls.len());
        self.end_late(late);
        if more {
            self.write(lane);
        }
        match <[Waiting; 1]>::try_from(calls) {
            Ok([Waiting { call, owed, deadline }]) => {
                let answer = self.carry(&call, deadline, Some((&origin, place.permit))).await;
                owed.settle(answer);
            }
            Err(calls) if calls.is_empty() => {}
            Err(calls) => batch::carry(&self, lane, &origin, place, calls).await,
        }
        drop(trial);
    }

    /// Ends calls whose time was over before there was a place for them.
    fn end_late(&self, late: Vec<Waiting>) {
        let connections = self.config.connections_per_participant_max;
        let calls = self.config.calls_in_flight_max;
        for Waiting { call, owed, .. } in late {
            let limit_ms = call.timeout_ms;
            let text = format!(
                "of {connections} connections to it, and of room for {calls} calls, none became \
                 free within {limit_ms} ms"
            );
            settle(owed, Failure::Unsent(text));
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
