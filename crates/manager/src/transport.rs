//! How a call reaches a participant, whatever the carriage; and the promise that every call ends.

use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use unanimity_core::{Answer, BranchPlan, Call, Event, Operation, TransactionId};

use crate::answers::Answers;
use crate::crash_point::crash_point;

/// A future that a transport hands out.
pub type CallFuture<'a> = Pin<Box<dyn Future<Output = Answer> + Send + 'a>>;

/// Carries calls to participants. The manager limits the time of a [`Transport::call`], survives a
/// panic, and counts no answer twice; the carriage only has to tell truly what came back.
pub trait Transport: Send + Sync + 'static {
    /// Carries one call. Anything but a clear answer is [`Answer::Unknown`].
    fn call(&self, call: Call) -> CallFuture<'_>;

    /// Answers a call on the spot: for a participant within this process that has next to nothing
    /// to do, waits for nobody, not even for a lock, and wakes nobody. Its shard does nothing else
    /// meanwhile, and no time limit ends it. `None`: it is not of that kind, and the call is given
    /// to [`Transport::submit`]. A panic is an unclear answer.
    fn answer_at_once(&self, call: &Call) -> Option<Answer> {
        let _call = call;
        None
    }

    /// Takes a call whose answer is owed, without waiting for anything and without a task of its
    /// own: a carriage that sends calls in batches gathers them here. Whoever cannot gives both
    /// back, and is asked with [`Transport::call`] in a task. Who takes a call limits its time by
    /// itself.
    fn submit(&self, call: Call, owed: Owed) -> Option<(Call, Owed)> {
        Some((call, owed))
    }

    /// Whether a participant's address may be called at all, asked before a transaction begins.
    ///
    /// # Errors
    /// A stable code and what is wrong with the address.
    fn check(&self, participant: &str) -> Result<(), (&'static str, String)>;

    /// Whether a branch can be carried as it is planned, asked where [`Self::check`] would be. A
    /// carriage that knows what its participants can do refuses here what they could only say no
    /// to. The rest of the plan need not have been checked.
    ///
    /// # Errors
    /// A stable code and what is wrong with the branch.
    fn check_branch(&self, branch: &BranchPlan) -> Result<(), (&'static str, String)> {
        self.check(&branch.participant)
    }

    /// Whether a participant is asked for more than it does, so that calls to it have waited too
    /// long for some time: no transaction is begun then that names it. To be answered at once.
    fn is_busy(&self, participant: &str) -> bool {
        let _participant = participant;
        false
    }

    /// What keeps calls from a participant now, in words for a person: since when, and what comes
    /// next. `None` if nothing does.
    fn held_back(&self, participant: &str) -> Option<String> {
        let _participant = participant;
        None
    }
}

/// The answer that is owed for a call. If the call is lost, by a panic or a cancelled task, the
/// answer is that nothing is known.
pub struct Owed {
    /// None: it is given.
    about: Option<About>,
    asked_at: Instant,
    answers: Answers,
}

struct About {
    transaction: TransactionId,
    branch: u16,
    operation: Operation,
    attempt: u32,
}

impl Owed {
    /// What is owed for a call that is asked for now: for those who measure a carriage without a
    /// manager around it.
    #[doc(hidden)]
    #[must_use]
    pub fn new(call: &Call, answers: &Answers) -> Self {
        Self::asked_at(Instant::now(), call, answers)
    }

    fn asked_at(asked_at: Instant, call: &Call, answers: &Answers) -> Self {
        let about = About {
            transaction: call.transaction.clone(),
            branch: call.branch,
            operation: call.operation,
            attempt: call.attempt,
        };
        Self { about: Some(about), asked_at, answers: answers.clone() }
    }

    /// What was asked for.
    #[must_use]
    pub fn operation(&self) -> Operation {
        self.about.as_ref().map_or(Operation::Prepare, |about| about.operation)
    }

    /// When it was asked for: the call's time runs from then.
    #[must_use]
    pub const fn since(&self) -> Instant {
        self.asked_at
    }

    /// Delivers what came back.
    pub fn settle(mut self, answer: Answer) {
        has_come_back(self.operation());
        self.deliver(answer);
    }

    fn deliver(&mut self, answer: Answer) {
        if let Some(About { transaction, branch, operation, attempt }) = self.about.take() {
            self.answers.put(Event::Answer { transaction, branch, operation, attempt, answer });
        }
    }
}

impl fmt::Debug for Owed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let about = self.about.as_ref();
        formatter
            .debug_struct("Owed")
            .field("transaction", &about.map(|about| &about.transaction))
            .field("branch", &about.map(|about| about.branch))
            .field("operation", &about.map(|about| about.operation))
            .finish_non_exhaustive()
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        if self.about.is_some() {
            let lost = "the call ended without an answer (a panic?)";
            self.deliver(Answer::Unknown(lost.into()));
        }
    }
}

fn has_come_back(operation: Operation) {
    match operation {
        Operation::Prepare => crash_point("after_prepare_call"),
        Operation::Commit => crash_point("after_commit_call"),
        Operation::Rollback
        | Operation::Execute
        | Operation::Compensate
        | Operation::CommitOnePhase
        | Operation::Inquire => {}
    }
}

/// Hands a call to its carriage, in a task of its own unless the carriage takes it as it is, and
/// sees to it that what came of it is delivered to the shard. What is answered at once is given
/// back.
pub(crate) fn dispatch(
    transport: &Arc<dyn Transport>,
    call: Call,
    (now, answers): (Instant, &Answers),
) -> Option<Event> {
    // What a participant has left half done is its own.
    match catch_unwind(AssertUnwindSafe(|| transport.answer_at_once(&call))) {
        Ok(None) => {}
        Ok(Some(answer)) => return Some(answered(call, answer)),
        Err(_) => return Some(answered(call, Answer::Unknown("the call panicked".into()))),
    }
    let owed = Owed::asked_at(now, &call, answers);
    let (call, owed) = transport.submit(call, owed)?;
    let transport = Arc::clone(transport);
    tokio::spawn(async move {
        let timeout_ms = call.timeout_ms;
        let carried = tokio::time::timeout(Duration::from_millis(timeout_ms), transport.call(call));
        let answer = match carried.await {
            Ok(answer) => answer,
            Err(_) => Answer::Unknown(format!("no answer within {timeout_ms} ms").into()),
        };
        owed.settle(answer);
    });
    None
}

fn answered(call: Call, answer: Answer) -> Event {
    let Call { transaction, branch, operation, attempt, .. } = call;
    has_come_back(operation);
    Event::Answer { transaction, branch, operation, attempt, answer }
}
