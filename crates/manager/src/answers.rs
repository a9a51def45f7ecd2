//! Carries answers to a shard: from every thread that has some, to one task, which takes all that
//! are there at once. A channel that gives them out one by one costs several times as much, with
//! each of them, as putting one on the end of a list.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use unanimity_core::Event;

/// Room for more answers than this is given back once they are taken.
const KEPT_MAX: usize = 16_384;

/// Where answers are put. Cheap to clone; clones are one.
#[derive(Clone)]
pub struct Answers(Arc<Queue>);

/// Where they are taken from.
pub struct AnswerQueue(Arc<Queue>);

#[derive(Default)]
struct Queue(Mutex<State>);

#[derive(Default)]
struct State {
    waiting: VecDeque<Event>,
    reader: Option<Waker>,
    /// Nobody will take any more.
    closed: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Both ends of a new one.
#[must_use]
pub fn answers() -> (Answers, AnswerQueue) {
    let queue = Arc::new(Queue::default());
    (Answers(Arc::clone(&queue)), AnswerQueue(queue))
}

impl Answers {
    /// Puts one at the end. A shard that has stopped wants none; recovery asks again.
    pub(crate) fn put(&self, answer: Event) {
        let mut state = self.0.lock();
        if state.closed {
            return;
        }
        state.waiting.push_back(answer);
        let reader = state.reader.take();
        drop(state);
        reader.into_iter().for_each(Waker::wake);
    }
}

impl AnswerQueue {
    /// Waits until there are some, and takes all of them behind those that `taken` has already. To
    /// be cancelled at any time: none is lost.
    pub(crate) async fn take_all(&mut self, taken: &mut VecDeque<Event>) {
        poll_fn(|context| {
            // As tokio's own channels: whoever always finds something lets others run now and then.
            let turn = std::task::ready!(tokio::task::coop::poll_proceed(context));
            if taken.is_empty() {
                taken.shrink_to(KEPT_MAX);
            }
            let mut state = self.0.lock();
            if state.waiting.is_empty() && taken.is_empty() {
                state.reader = Some(context.waker().clone());
                return Poll::Pending;
            }
            turn.made_progress();
            if taken.is_empty() {
                std::mem::swap(taken, &mut state.waiting);
            } else {
                taken.append(&mut state.waiting);
            }
            Poll::Ready(())
        })
        .await;
    }

    /// Waits for one.
    pub async fn next(&mut self) -> Event {
        poll_fn(|context| {
            let mut state = self.0.lock();
            match state.waiting.pop_front() {
                Some(first) => Poll::Ready(first),
                None => {
                    state.reader = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }
}

impl Drop for AnswerQueue {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.closed = true;
        let left = std::mem::take(&mut state.waiting);
        drop(state);
        drop(left);
    }
}

#[tokio::test]
async fn room_for_very_many_answers_is_given_back_once_they_are_taken() {
    let (_answers, mut queue) = answers();
    let mut taken = VecDeque::with_capacity(4 * KEPT_MAX);
    let mut context = std::task::Context::from_waker(Waker::noop());
    assert!(std::pin::pin!(queue.take_all(&mut taken)).as_mut().poll(&mut context).is_pending());
    assert!(taken.capacity() < 4 * KEPT_MAX);
}
