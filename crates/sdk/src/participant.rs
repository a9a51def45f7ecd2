//! Decides what a participant is to the rest of the SDK: something that is called with one
//! operation and answers. Who calls it (HTTP, an inquiry, a test) and where it keeps its guard is
//! left to others.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot;
use unanimity_core::guard::{Contradiction, Reply};
use unanimity_core::{Operation, TransactionId};

/// One operation on one branch, as it arrives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Of which transaction.
    pub transaction: TransactionId,
    /// Which branch of it.
    pub branch: Arc<str>,
    /// What is asked for.
    pub operation: Operation,
    /// The how-manieth time the coordinator asks, from 1; 0 where an inquiry found the decision
    /// out.
    pub attempt: u32,
    /// What the initiator gave for this branch; empty where the operation carries none.
    pub payload: Bytes,
}

/// Why an operation was not answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallError {
    /// It contradicts what was already done here. Reported, never acknowledged.
    Contradiction(Contradiction),
    /// It failed, and nothing of it remains; the coordinator tries again. Says why.
    Failed(String),
    /// Somebody else holds what it needs, and nothing of it remains; the coordinator tries again.
    /// Says what is held.
    Busy(String),
}

impl fmt::Display for CallError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Contradiction(contradiction) => formatter.write_str(contradiction.code()),
            Self::Failed(message) | Self::Busy(message) => formatter.write_str(message),
        }
    }
}

impl std::error::Error for CallError {}

/// An answer on its way.
pub type Answering<'a, T = Reply> = Pin<Box<dyn Future<Output = Result<T, CallError>> + Send + 'a>>;

/// The lowest level of the SDK: answers operations, through a guard.
///
/// Most services implement [`crate::SqliteService`] or [`crate::MemoryService`] instead, and get
/// the guard with it.
pub trait Participant: Send + Sync + 'static {
    /// Answers one operation. The answer must be durable before the future is ready, and dropping
    /// the future must not leave half of the work behind.
    ///
    /// # Errors
    /// [`CallError`], in the answer.
    fn call(&self, request: Request) -> Answering<'_>;

    /// Takes one operation whose answer is owed to somebody else, without waiting for anything.
    /// Whoever cannot gives both back, and is asked with [`Participant::call`] in a task of its
    /// own. What came in one batch is taken one by one like this, so a store that commits in groups
    /// gets it as a group.
    fn take(&self, request: Request, owed: OwedAnswer) -> Option<(Request, OwedAnswer)> {
        Some((request, owed))
    }
}

/// Where answers go that nobody waits for in a task of its own.
pub trait AnswerSink: Send + Sync + 'static {
    /// Takes the answer to the call of this number.
    fn answered(&self, number: u64, answer: Result<Reply, CallError>);
}

enum Debtor {
    Waiter(oneshot::Sender<Result<Reply, CallError>>),
    Sink(u64, Arc<dyn AnswerSink>),
}

/// The answer that is owed for a call. If it is dropped, by a panic for example, the answer is
/// that the call failed.
pub struct OwedAnswer(Option<Debtor>);

impl OwedAnswer {
    /// Owed to a sink, which knows the call by a number.
    #[must_use]
    pub fn to_sink(number: u64, sink: Arc<dyn AnswerSink>) -> Self {
        Self(Some(Debtor::Sink(number, sink)))
    }

    /// Owed to somebody who waits for it.
    pub(crate) fn waited_for() -> (Self, oneshot::Receiver<Result<Reply, CallError>>) {
        let (sender, receiver) = oneshot::channel();
        (Self(Some(Debtor::Waiter(sender))), receiver)
    }

    /// Delivers the answer.
    pub fn settle(mut self, answer: Result<Reply, CallError>) {
        self.deliver(answer);
    }

    fn deliver(&mut self, answer: Result<Reply, CallError>) {
        match self.0.take() {
            // dropped: a caller that has gone away asks again, and the guard answers as before.
            Some(Debtor::Waiter(waiter)) => drop(waiter.send(answer)),
            Some(Debtor::Sink(number, sink)) => sink.answered(number, answer),
            None => {}
        }
    }
}

impl Drop for OwedAnswer {
    fn drop(&mut self) {
        if self.0.is_some() {
            let lost = "the call ended without an answer (a panic?)".to_owned();
            self.deliver(Err(CallError::Failed(lost)));
        }
    }
}

impl fmt::Debug for OwedAnswer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("OwedAnswer").finish_non_exhaustive()
    }
}

/// A branch that is prepared here and whose decision is not known here.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InDoubt {
    /// Of which transaction.
    pub transaction: TransactionId,
    /// Which branch of it.
    pub branch: Arc<str>,
    /// Since when, in milliseconds since the Unix epoch.
    pub since_ms: u64,
}

/// A participant that can list what it is in doubt about, so that an inquiry can ask.
pub trait Doubting: Participant {
    /// Every branch in doubt, the oldest first.
    ///
    /// # Errors
    /// [`CallError::Failed`] if the guard cannot be read.
    fn in_doubt(&self) -> Answering<'_, Vec<InDoubt>>;
}

/// Milliseconds since the Unix epoch; 0 if the clock stands before it.
#[must_use]
pub fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
