//! Decides how many transactions run over one stream: each request is begun as soon as it is read,
//! without a timer for each (and without a task, unless it chooses its id), and answered when what
//! it waits for has come; answers gather while the last batch of them is being written. How many
//! may be unanswered at a time is bounded, and how many of them may be young: those wait for the
//! coordinator more than for participants, and the more it has begun the longer each takes, because
//! none of it stays in the processor's cache. At a bound no more are read, and HTTP/2's flow
//! control holds the client back.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_core::Stream;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tonic::{Status, Streaming};
use unanimity::core::TransactionId;
use unanimity::{Admitted, BeginError, Told, ToldSink};
use unanimity_sdk::stream::{
    BATCH_ENTRIES_MAX, Begin, BeginBatch, Begun, BegunBatch, Refusal, Transaction, begun,
};

use super::super::convert::{problem_of_admission, problem_of_begin, problem_of_unavailable};
use super::super::{Api, WAIT_MAX};
use super::{ID_FIELD, Planned, brief, planned, standing};
use crate::problem::Problem;
use crate::slots::Slots;

/// The most requests of one stream that may be unanswered before no more are read.
const UNANSWERED_MAX: usize = 16_384;
/// The most of them that may be younger than [`YOUNG`].
const YOUNG_MAX: usize = 2_048;
/// What takes longer than this mostly waits for somebody else.
const YOUNG: Duration = Duration::from_millis(25);

/// Whose time is over is looked for no more often than this.
const LOOK: Duration = Duration::from_millis(250);

/// Serves one stream.
pub(super) fn start(
    api: &Api,
    incoming: Streaming<BeginBatch>,
    stopping: watch::Receiver<bool>,
) -> Written {
    let outgoing = Arc::new(Outgoing { api: api.clone(), state: Mutex::default() });
    tokio::spawn(read(incoming, stopping, Arc::clone(&outgoing)));
    let in_time = tokio::spawn(answer_in_time(Arc::downgrade(&outgoing))).abort_handle();
    Written { outgoing, in_time }
}

/// Begins what is asked for until the client ends or goes away, or the coordinator stops.
async fn read(
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
                let now = Instant::now();
                outgoing.lock().read(batch.begins.len(), now);
                begin_all(outgoing, batch, now).await;
                let room = tokio::select! {
                    biased;
                    () = &mut stopped => return,
                    room = outgoing.room() => room,
                };
                if room == Room::Gone {
                    return;
                }
            }
            Ok(None) => return,
            Err(status) => {
                tracing::debug!(%status, "an initiator's stream broke off");
                outgoing.change(|state| state.broken = Some(status));
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
async fn begin_all(outgoing: &Arc<Outgoing>, batch: BeginBatch, now: Instant) {
    let mut refused = Vec::new();
    for Begin { number, request } in batch.begins {
        // A panic is one request's: the others have nothing to do with it.
        let asked = catch_unwind(AssertUnwindSafe(|| {
            let shared = &outgoing.api.shared;
            let admitted = shared.manager.admit().map_err(problem_of_admission)?;
            Ok((admitted, planned(shared, request.unwrap_or_default())?))
        }));
        match asked {
            Ok(Ok((admitted, planned))) => begin(outgoing, number, admitted, planned, now),
            Ok(Err(problem)) => refused.push((number, Answer::Refused(problem))),
            Err(_) => refused.push((number, Answer::Nothing)),
        }
        tokio::task::coop::consume_budget().await;
    }
    if !refused.is_empty() {
        outgoing.change(|state| state.answer(refused));
    }
}

/// Begins one transaction, to be answered when what it waits for has come, or after a minute.
fn begin(
    outgoing: &Arc<Outgoing>,
    number: u64,
    admitted: Admitted,
    planned: Planned,
    now: Instant,
) {
    let Planned { id, begin, .. } = planned;
    let slot = outgoing.lock().begin(number, id, now);
    let to = (Arc::clone(outgoing) as Arc<dyn ToldSink>, slot);
    // What panics is answered by what it owes.
    let begun = AssertUnwindSafe(|| admitted.begin_and_tell_to(begin, to, WAIT_MAX));
    drop(catch_unwind(begun));
}

/// Answers those whose time is over with how they stand, for as long as the stream is there.
async fn answer_in_time(stream: Weak<Outgoing>) {
    let mut next = Instant::now() + WAIT_MAX;
    loop {
        tokio::time::sleep_until(next).await;
        let Some(outgoing) = stream.upgrade() else { return };
        let now = Instant::now();
        let (late, earliest) = outgoing.lock().late(now);
        // Whoever comes from now on has the whole time before them.
        next = earliest.unwrap_or(now + WAIT_MAX).max(now + LOOK);
        for UnderWay { number, id, .. } in late {
            let owed = Owed { outgoing: Arc::clone(&outgoing), number, answer: Answer::Nothing };
            tokio::spawn(tell_standing(owed, id));
        }
    }
}

/// Answers with how a transaction stands.
async fn tell_standing(mut owed: Owed, id: TransactionId) {
    owed.answer = match standing(&owed.outgoing.api, &id).await {
        Ok(transaction) => Answer::Stands(transaction),
        Err(problem) => Answer::Refused(problem),
    };
}

/// An answer that is given in any case.
struct Owed {
    outgoing: Arc<Outgoing>,
    number: u64,
    answer: Answer,
}

impl Drop for Owed {
    fn drop(&mut self) {
        let answer = std::mem::replace(&mut self.answer, Answer::Nothing);
        self.outgoing.change(|state| state.answer([(self.number, answer)]));
    }
}

/// A request that is not answered yet.
struct UnderWay {
    /// As the client calls it.
    number: u64,
    id: TransactionId,
    deadline: Instant,
    /// The number of the batch that it came in.
    batch: u64,
}

/// What was read together, and is young still.
struct Batch {
    read_at: Instant,
    under_way: usize,
}

/// What a request is answered with; written as a message when it goes out.
enum Answer {
    Told(Told),
    NotBegun(BeginError),
    Refused(Problem),
    Stands(Transaction),
    /// Its shard has ended.
    Lost,
    /// Nothing is known.
    Nothing,
}

impl Answer {
    fn written(self, api: &Api) -> Option<begun::Answer> {
        let problem = match self {
            Self::Told(told) => return Some(begun::Answer::Transaction(brief(told))),
            Self::Stands(transaction) => return Some(begun::Answer::Transaction(transaction)),
            Self::Nothing => return None,
            Self::NotBegun(error) => problem_of_begin(error, ID_FIELD),
            Self::Refused(problem) => problem,
            Self::Lost => problem_of_unavailable(api.shared.manager.unavailable()),
        };
        Some(begun::Answer::Refusal(refusal(problem)))
    }
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

/// Answers on their way out.
struct Outgoing {
    api: Api,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What is begun and not answered. Who has waited for too long is in it no more.
    under_way: Slots<UnderWay>,
    young: Young,
    answers: Vec<(u64, Answer)>,
    /// How many were read and have no answer that is written.
    unanswered: usize,
    ended: bool,
    /// What broke the stream off; told at its end.
    broken: Option<Status>,
    /// Nobody takes answers any more.
    gone: bool,
    writer: Option<Waker>,
    reader: Option<Waker>,
}

/// What is under way and young.
#[derive(Default)]
struct Young {
    /// From the oldest to the youngest.
    batches: VecDeque<Batch>,
    /// The number of the first of them.
    first: u64,
    count: usize,
}

impl Young {
    /// One of the youngest batch is under way; gives the batch's number.
    fn begin(&mut self) -> u64 {
        self.count += 1;
        self.batches.back_mut().into_iter().for_each(|batch| batch.under_way += 1);
        self.first + (self.batches.len() as u64).saturating_sub(1)
    }

    /// One of a batch is under way no more.
    fn end(&mut self, batch: u64) {
        let place = batch.checked_sub(self.first).and_then(|place| usize::try_from(place).ok());
        if let Some(batch) = place.and_then(|place| self.batches.get_mut(place)) {
            batch.under_way -= 1;
            self.count -= 1;
        }
    }

    /// Counts no more what is not young any more; says when more of it will be.
    fn age(&mut self, now: Instant) -> Option<Instant> {
        while let Some(oldest) = self.batches.front() {
            let ages_at = oldest.read_at + YOUNG;
            if ages_at > now {
                return Some(ages_at);
            }
            self.count -= oldest.under_way;
            self.first += 1;
            self.batches.pop_front();
        }
        None
    }
}

impl State {
    /// So many requests have been read.
    fn read(&mut self, requests: usize, now: Instant) {
        self.unanswered += requests;
        self.young.age(now);
        self.young.batches.push_back(Batch { read_at: now, under_way: 0 });
    }

    /// One of them is begun; gives its slot.
    fn begin(&mut self, number: u64, id: TransactionId, now: Instant) -> u64 {
        let (deadline, batch) = (now + WAIT_MAX, self.young.begin());
        self.under_way.put(UnderWay { number, id, deadline, batch })
    }

    /// These requests have their answers.
    fn answer(&mut self, answers: impl IntoIterator<Item = (u64, Answer)>) {
        if !self.gone {
            self.answers.extend(answers);
        }
    }

    /// Those whose time is over, and when that of the first of the others will be.
    fn late(&mut self, now: Instant) -> (Vec<UnderWay>, Option<Instant>) {
        let late = self.under_way.take_if(|one| one.deadline <= now);
        (late, self.under_way.iter().map(|one| one.deadline).min())
    }

    const fn has_room(&self) -> bool {
        self.unanswered < UNANSWERED_MAX && self.young.count < YOUNG_MAX
    }
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

    /// Answers one that is under way, unless its time was over before.
    fn settle_slot(&self, slot: u64, answer: Answer) {
        self.change(|state| {
            if let Some(one) = state.under_way.take(slot) {
                state.young.end(one.batch);
                state.answer([(one.number, answer)]);
            }
        });
    }

    /// Returns when more may be read.
    async fn room(&self) -> Room {
        loop {
            let ages_at = self.lock().young.age(Instant::now());
            let room = std::future::poll_fn(|context| self.poll_room(context));
            match ages_at {
                None => return room.await,
                Some(at) => {
                    if let Ok(room) = tokio::time::timeout_at(at, room).await {
                        return room;
                    }
                }
            }
        }
    }

    fn poll_room(&self, context: &Context<'_>) -> Poll<Room> {
        let mut state = self.lock();
        if state.gone {
            return Poll::Ready(Room::Gone);
        }
        if state.has_room() {
            return Poll::Ready(Room::ForMore);
        }
        state.reader = Some(context.waker().clone());
        Poll::Pending
    }

    fn poll_batch(&self, context: &Context<'_>) -> Poll<Option<Result<BegunBatch, Status>>> {
        let mut state = self.lock();
        if state.answers.is_empty() {
            if state.ended && state.unanswered == 0 {
                return Poll::Ready(state.broken.take().map(Err));
            }
            state.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        let count = state.answers.len().min(BATCH_ENTRIES_MAX);
        let rest = state.answers.split_off(count);
        let answers = std::mem::replace(&mut state.answers, rest);
        state.unanswered = state.unanswered.saturating_sub(count);
        let reader = state.reader.take();
        drop(state);
        reader.into_iter().for_each(Waker::wake);
        let written = answers.into_iter().map(|(number, answer)| {
            let answer = answer.written(&self.api);
            Begun { number, answer }
        });
        Poll::Ready(Some(Ok(BegunBatch { begun: written.collect() })))
    }
}

impl ToldSink for Outgoing {
    fn tell(&self, slot: u64, told: Result<Told, BeginError>) {
        let answer = told.map_or_else(Answer::NotBegun, Answer::Told);
        self.settle_slot(slot, answer);
    }

    fn lose(&self, slot: u64) {
        self.settle_slot(slot, Answer::Lost);
    }
}

/// Whether more may be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    ForMore,
    /// Nobody is there any more who would take answers.
    Gone,
}

/// The answers of one stream.
pub(in crate::api) struct Written {
    outgoing: Arc<Outgoing>,
    in_time: AbortHandle,
}

impl Stream for Written {
    type Item = Result<BegunBatch, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.outgoing.poll_batch(context)
    }
}

/// The client is answered, or gone. What it began goes on, and nobody keeps what came of it.
impl Drop for Written {
    fn drop(&mut self) {
        self.in_time.abort();
        let mut state = self.outgoing.lock();
        state.gone = true;
        let kept = (std::mem::take(&mut state.answers), std::mem::take(&mut state.under_way));
        let reader = state.reader.take();
        drop(state);
        reader.into_iter().for_each(Waker::wake);
        drop(kept);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_waits_for_others_leaves_its_room_to_the_young() {
        let (start, id) = (Instant::now(), TransactionId::new("t").unwrap());
        let mut state = State::default();
        state.read(YOUNG_MAX, start);
        let slots: Vec<u64> =
            (0..YOUNG_MAX as u64).map(|n| state.begin(n, id.clone(), start)).collect();
        assert!(!state.has_room());
        // One that is answered leaves its room, and so do all when they have grown old.
        let first = state.under_way.take(slots[0]).unwrap();
        state.young.end(first.batch);
        assert!(state.has_room());
        let later = start + YOUNG / 2;
        state.read(2, later);
        let young = [0, 1].map(|n| state.begin(n, id.clone(), later));
        assert!(!state.has_room());
        assert_eq!(state.young.age(start + YOUNG), Some(later + YOUNG));
        assert_eq!((state.young.count, state.has_room()), (2, true));
        // Who is answered when old counts for nothing any more.
        let old = state.under_way.take(slots[1]).unwrap();
        state.young.end(old.batch);
        assert_eq!(state.young.count, 2);
        let last = state.under_way.take(young[1]).unwrap();
        state.young.end(last.batch);
        assert_eq!((state.young.count, state.young.age(later + YOUNG)), (1, None));
        assert_eq!(state.young.count, 0);
        // After a minute it is told how they stand: all but the three that were answered.
        let minute = start + WAIT_MAX;
        let (late, next) = state.late(minute);
        assert_eq!((late.len(), next), (YOUNG_MAX - 2, Some(later + WAIT_MAX)));
        assert_eq!(state.late(later + WAIT_MAX).0.len(), 1);
        // However old: there is a bound for all.
        state.unanswered = UNANSWERED_MAX;
        assert!(!state.has_room());
    }
}
