//! Decides what an answer means: a vote, a finished branch, a failure to try again, or something
//! late that changes nothing.

use std::sync::Arc;

use crate::branch::{Ballot, Branch, Progress};
use crate::guard::Contradiction;
use crate::{
    Answer, Coordinator, Effect, Fact, Millis, Mutation, Operation, Outcome, REASON_BYTES_MAX,
    RESULT_BYTES_MAX, Reason, Step, TimerPurpose, TransactionId, What,
};

/// What an answer is about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attempt {
    pub(crate) branch: u16,
    pub(crate) operation: Operation,
    pub(crate) attempt: u32,
}

impl Coordinator {
    pub(crate) fn answered(
        &mut self,
        now: Millis,
        id: &TransactionId,
        about: Attempt,
        answer: Answer,
        step: &mut Step,
    ) {
        // Late or duplicate answers of a transaction that has ended are of no interest.
        let Some(transaction) = self.transactions.get_mut(id) else { return };
        if !transaction.has(Some(about.branch)) {
            return;
        }
        let asked = transaction.phase_one_operation(about.branch);
        let settles = transaction.settling.is_some();
        let branch = transaction.branch_mut(about.branch);
        let expected = match branch.progress {
            Progress::Undecided if branch.ballot == Ballot::Unanswered => asked,
            Progress::Owes(operation) => Some(operation),
            Progress::Undecided | Progress::Done => None,
        };
        if expected != Some(about.operation) {
            self.late(now, id, about, &answer, step);
            return;
        }
        if branch.attempt == about.attempt {
            branch.in_flight = false;
        }
        branch.reached |=
            about.operation == Operation::CommitOnePhase && !matches!(answer, Answer::Unsent(_));
        if transaction.decision.is_some() {
            self.answered_in_phase_two(now, id, about, answer, step);
        } else if settles {
            self.answered_in_settling(now, id, about, answer, step);
        } else {
            self.answered_in_phase_one(now, id, about, answer, step);
        }
    }

    fn answered_in_phase_one(
        &mut self,
        now: Millis,
        id: &TransactionId,
        about: Attempt,
        answer: Answer,
        step: &mut Step,
    ) {
        match answer {
            Answer::Yes(_) | Answer::ReadOnly | Answer::Read(_) | Answer::No(_) => {
                self.voted(now, id, about, answer, step);
            }
            Answer::Unsupported if about.operation == Operation::CommitOnePhase => {
                self.declined(now, id, about, step);
            }
            inconclusive => self.inconclusive(now, id, about, inconclusive, step),
        }
    }

    /// The participant does not know how to commit in one phase, and is asked to prepare.
    fn declined(&mut self, now: Millis, id: &TransactionId, about: Attempt, step: &mut Step) {
        let Some(transaction) = self.transactions.get_mut(id) else { return };
        let branch = transaction.branch_mut(about.branch);
        branch.declines_one_phase = true;
        branch.in_flight = false;
        let retry_at = branch.retry_at.take();
        self.disarm_retry(id, about.branch, retry_at);
        self.observe(now, id, Some(about.branch), What::Unsupported(about.operation));
        self.call(now, id, about.branch, step);
    }

    /// The participant that alone decides says what is final.
    fn answered_in_settling(
        &mut self,
        now: Millis,
        id: &TransactionId,
        about: Attempt,
        answer: Answer,
        step: &mut Step,
    ) {
        let ballot = match (about.operation, answer) {
            (Operation::Inquire, Answer::Yes(_)) => Ballot::Committed,
            (Operation::Inquire, Answer::No(_)) => Ballot::RolledBack,
            (Operation::Rollback, Answer::Acknowledged) => Ballot::RolledBack,
            (Operation::Rollback, Answer::Contradiction(Contradiction::AlreadyCommitted, _)) => {
                Ballot::Committed
            }
            (_, inconclusive) => return self.inconclusive(now, id, about, inconclusive, step),
        };
        let what = match ballot {
            Ballot::Committed => What::Yes(about.operation),
            _ => What::Acknowledged(about.operation), // Only RolledBack is left.
        };
        let Some(transaction) = self.transactions.get_mut(id) else { return };
        let branch = transaction.branch_mut(about.branch);
        branch.ballot = ballot;
        branch.failures = 0;
        branch.in_flight = false;
        let retry_at = branch.retry_at.take();
        self.disarm_retry(id, about.branch, retry_at);
        self.observe(now, id, Some(about.branch), what);
        self.advance(now, id, step);
    }

    fn answered_in_phase_two(
        &mut self,
        now: Millis,
        id: &TransactionId,
        about: Attempt,
        answer: Answer,
        step: &mut Step,
    ) {
        match answer {
            Answer::Yes(_) | Answer::ReadOnly | Answer::Read(_) | Answer::Acknowledged => {
                self.finished(now, id, about, step);
            }
            inconclusive => self.inconclusive(now, id, about, inconclusive, step),
        }
    }

    /// What came back settles nothing: it is kept for the people who must look, and asked again. A
    /// contradiction is never taken for an answer.
    fn inconclusive(
        &mut self,
        now: Millis,
        id: &TransactionId,
        about: Attempt,
        answer: Answer,
        step: &mut Step,
    ) {
        let error = match answer {
            Answer::No(error) | Answer::Unsent(error) | Answer::Unknown(error) => error,
            Answer::Unsupported => Box::from("the participant does not know this operation"),
            Answer::Contradiction(claim, error) => {
                let Some(transaction) = self.transactions.get_mut(id) else { return };
                transaction.branch_mut(about.branch).contradiction = Some(claim);
                error
            }
            Answer::Yes(_) | Answer::ReadOnly | Answer::Read(_) | Answer::Acknowledged => {
                Box::from("answered something else than asked")
            }
        };
        self.failed(now, id, about, &error, step);
    }

    /// A late or duplicate answer changes nothing, but for deliberate bugs.
    pub(crate) fn late(
        &mut self,
        now: Millis,
        id: &TransactionId,
        about: Attempt,
        answer: &Answer,
        step: &mut Step,
    ) {
        let mutations = self.config.mutations;
        let Some(transaction) = self.transactions.get_mut(id) else { return };
        if mutations.has(Mutation::LateAnswerEndsTheCall) {
            transaction.branch_mut(about.branch).in_flight = false;
            self.advance(now, id, step);
            return;
        }
        if mutations.has(Mutation::DecisionChangedByLateVote)
            && about.operation == Operation::Prepare
            && matches!(answer, Answer::Yes(_))
            && transaction.outcome() == Some(Outcome::Rollback)
        {
            transaction.branch_mut(about.branch).ballot = Ballot::Yes;
            if transaction.branches.iter().all(|branch| branch.ballot.is_in_favour()) {
                self.decide(now, id, Outcome::Commit, Reason::AllYes, step);
            }
            return;
        }
        if mutations.has(Mutation::AcknowledgementCountedTwice) && *answer == Answer::Acknowledged {
            let other = transaction
                .numbered()
                .find(|(_, branch)| matches!(branch.progress, Progress::Owes(_)))
                .map(|(number, _)| number);
            if let Some(branch) = other {
                self.finished(now, id, Attempt { branch, ..about }, step);
            }
        }
    }

    pub(crate) fn voted(
        &mut self,
        now: Millis,
        id: &TransactionId,
        about: Attempt,
        answer: Answer,
        step: &mut Step,
    ) {
        let Some(transaction) = self.transactions.get_mut(id) else { return };
        let branch = transaction.branch_mut(about.branch);
        branch.failures = 0;
        branch.in_flight = false;
        let retry_at = branch.retry_at.take();
        let what = match answer {
            Answer::ReadOnly if about.operation != Operation::Execute => {
                branch.ballot = Ballot::ReadOnly;
                What::ReadOnly
            }
            Answer::No(reason) => {
                let reason = shorten(&reason);
                branch.ballot = Ballot::No;
                branch.last_error = Some(Box::new(reason.clone()));
                What::No(about.operation, reason)
            }
            Answer::Read(result) if about.operation != Operation::Execute => {
                branch.ballot = Ballot::ReadOnly;
                branch.keep(Some(result));
                What::ReadOnly
            }
            Answer::Yes(result) => {
                branch.ballot = in_favour(about.operation);
                branch.keep(result);
                What::Yes(about.operation)
            }
            Answer::Read(result) => {
                branch.ballot = in_favour(about.operation);
                branch.keep(Some(result));
                What::Yes(about.operation)
            }
            Answer::ReadOnly
            | Answer::Acknowledged
            | Answer::Unsent(_)
            | Answer::Unknown(_)
            | Answer::Unsupported
            | Answer::Contradiction(..) => {
                branch.ballot = in_favour(about.operation);
                What::Yes(about.operation)
            }
        };
        self.disarm_retry(id, about.branch, retry_at);
        self.observe(now, id, Some(about.branch), what);
        self.advance(now, id, step);
    }

    pub(crate) fn finished(
        &mut self,
        now: Millis,
        id: &TransactionId,
        about: Attempt,
        step: &mut Step,
    ) {
        self.observe(now, id, Some(about.branch), What::Acknowledged(about.operation));
        let Some(transaction) = self.transactions.get_mut(id) else { return };
        let branch = transaction.branch_mut(about.branch);
        let retry_at = branch.retry_at.take();
        if matches!(about.operation, Operation::Execute | Operation::Compensate) {
            // Visible work is not asked for twice by a recovery that could have known better.
            self.record(now, id, Fact::Finished { branch: about.branch }, step);
        } else {
            branch.finish();
        }
        self.disarm_retry(id, about.branch, retry_at);
        self.advance(now, id, step);
    }

    pub(crate) fn failed(
        &mut self,
        now: Millis,
        id: &TransactionId,
        about: Attempt,
        error: &str,
        step: &mut Step,
    ) {
        let error = shorten(error);
        let operation = about.operation;
        let what = What::Failed { operation, error: error.clone(), times: 1 };
        self.observe(now, id, Some(about.branch), what);
        let random = self.random(id, about);
        let Some(transaction) = self.transactions.get_mut(id) else { return };
        let policy = transaction.options.retry.clone();
        // Where nothing can be decided without this participant, it is as in phase two.
        let patient = transaction.decision.is_some() || transaction.settling.is_some();
        let branch = transaction.branch_mut(about.branch);
        branch.last_error = Some(Box::new(error));
        if branch.in_flight || branch.retry_at.is_some() {
            return; // An older attempt failed; a newer one is under way or planned.
        }
        let was_parked = policy.parks(branch.failures);
        branch.failures = branch.failures.saturating_add(1).min(policy.park_after_attempts);
        let parks = patient && !was_parked && policy.parks(branch.failures);
        let delay_ms = if patient {
            policy.delay_after(branch.failures, random)
        } else {
            policy.delay_unparked(branch.failures, random)
        };
        let at = now.saturating_add(delay_ms);
        if patient && self.config.mutations.has(Mutation::RetryNotArmed) {
            return;
        }
        branch.retry_at = Some(at);
        self.arm(at, id, TimerPurpose::Retry(about.branch));
        if parks {
            self.observe(now, id, Some(about.branch), What::Parked);
            step.effects.push(Effect::Parked(id.clone(), about.branch));
        }
    }
}

impl Branch {
    /// Keeps what an answer gave back, unless it is too large.
    fn keep(&mut self, result: Option<Arc<str>>) {
        self.result = result.filter(|result| result.len() <= RESULT_BYTES_MAX);
        self.result_unsaved = self.result.is_some();
    }
}

/// Where a branch stands whose participant said yes to this.
const fn in_favour(operation: Operation) -> Ballot {
    match operation {
        Operation::CommitOnePhase => Ballot::Committed,
        _ => Ballot::Yes, // Prepare and execute; nothing else is voted on.
    }
}

/// Cuts a text from outside to the length that is kept, at a character boundary.
pub(crate) fn shorten(text: &str) -> Box<str> {
    let mut end = text.len().min(REASON_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    Box::from(&text[..end])
}
