//! Decides what an answer means: a vote, a finished branch, a failure to try again, or something
//! late that changes nothing.

use crate::transaction::{Ballot, Progress};
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
        let Some(branch) = transaction.branches.get_mut(usize::from(about.branch)) else { return };
        let expected = match branch.progress {
            Progress::Undecided if branch.ballot == Ballot::Unanswered => {
                branch.phase_one_operation()
            }
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
        match (answer, transaction.decision.is_some()) {
            (Answer::Unknown(error), _) => self.failed(now, id, about, &error, step),
            (Answer::Acknowledged, false) => {
                self.failed(now, id, about, "acknowledged, but did not vote", step);
            }
            (answer, false) => self.voted(now, id, about, answer, step),
            (Answer::No(error), true) => self.failed(now, id, about, &error, step),
            (Answer::Yes(_) | Answer::ReadOnly | Answer::Acknowledged, true) => {
                self.finished(now, id, about, step);
            }
        }
    }

    /// A late or duplicate answer changes nothing, but for two deliberate bugs.
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
            Answer::ReadOnly if about.operation == Operation::Prepare => {
                branch.ballot = Ballot::ReadOnly;
                What::ReadOnly
            }
            Answer::No(reason) => {
                let reason = shorten(&reason);
                branch.ballot = Ballot::No;
                branch.last_error = Some(reason.clone());
                What::No(about.operation, reason)
            }
            Answer::Yes(result) => {
                let result = result.filter(|result| result.len() <= RESULT_BYTES_MAX);
                branch.ballot = Ballot::Yes;
                branch.result_unsaved = result.is_some();
                branch.result = result;
                What::Yes(about.operation)
            }
            Answer::ReadOnly | Answer::Acknowledged | Answer::Unknown(_) => {
                branch.ballot = Ballot::Yes;
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
        let decided = transaction.decision.is_some();
        let branch = transaction.branch_mut(about.branch);
        branch.last_error = Some(error);
        if branch.in_flight || branch.retry_at.is_some() {
            return; // An older attempt failed; a newer one is under way or planned.
        }
        let was_parked = policy.parks(branch.failures);
        branch.failures = branch.failures.saturating_add(1).min(policy.park_after_attempts);
        let parks = decided && !was_parked && policy.parks(branch.failures);
        let delay_ms = if decided {
            policy.delay_after(branch.failures, random)
        } else {
            policy.delay_unparked(branch.failures, random)
        };
        let at = now.saturating_add(delay_ms);
        branch.retry_at = Some(at);
        self.arm(at, id, TimerPurpose::Retry(about.branch));
        if parks {
            self.observe(now, id, Some(about.branch), What::Parked);
            step.effects.push(Effect::Parked(id.clone(), about.branch));
        }
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
