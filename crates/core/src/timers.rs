//! Decides what a timer that fires means, and keeps the schedule in step with each transaction: a
//! live one always has an armed deadline, a planned retry or a call under way.

use crate::answers::Attempt;
use crate::schedule::splitmix64;
use crate::{
    Coordinator, Effect, Millis, Mutation, Outcome, Reason, Step, Timer, TimerPurpose, Transaction,
    TransactionId, What,
};

impl Coordinator {
    pub(crate) fn fired(&mut self, now: Millis, timer: &Timer, step: &mut Step) {
        if !self.schedule.disarm(timer) {
            return;
        }
        let id = &timer.transaction;
        let turns_back = self.config.mutations.has(Mutation::TimeoutInPhaseTwoRollsBack);
        let Some(transaction) = self.transactions.get_mut(id) else { return };
        match (timer.purpose, &transaction.decision) {
            (TimerPurpose::PhaseOneDeadline, None) => {
                let reason = match transaction.executing_since {
                    None => Reason::PrepareTimeout,
                    Some(_) => Reason::ExecuteTimeout,
                };
                self.decide(now, id, Outcome::Rollback, reason, step);
            }
            (TimerPurpose::PhaseOneDeadline, Some(_)) => {}
            (TimerPurpose::Overdue, Some(_)) if !turns_back => {
                transaction.overdue = true;
                self.observe(now, id, None, What::Overdue);
                step.effects.push(Effect::Overdue(id.clone()));
            }
            (TimerPurpose::Overdue, _) => {
                self.decide(now, id, Outcome::Rollback, Reason::Timeout, step);
            }
            (TimerPurpose::Retry(number), _) => {
                transaction.branch_mut(number).retry_at = None;
                self.call(now, id, number, step);
            }
        }
    }

    /// Brings every planned retry of a transaction forward to now.
    pub(crate) fn retry_all(&mut self, now: Millis, id: &TransactionId, step: &mut Step) {
        let Some(transaction) = self.transactions.get_mut(id) else { return };
        let planned: Vec<(u16, Millis)> = transaction
            .numbered()
            .filter_map(|(number, branch)| Some((number, branch.retry_at?)))
            .collect();
        for (number, at) in planned {
            let purpose = TimerPurpose::Retry(number);
            self.fired(now, &Timer { at, transaction: id.clone(), purpose }, step);
        }
    }

    pub(crate) fn arm(&mut self, at: Millis, id: &TransactionId, purpose: TimerPurpose) {
        self.schedule.arm(Timer { at, transaction: id.clone(), purpose });
    }

    pub(crate) fn disarm(&mut self, at: Millis, id: &TransactionId, purpose: TimerPurpose) {
        self.schedule.disarm(&Timer { at, transaction: id.clone(), purpose });
    }

    pub(crate) fn disarm_retry(&mut self, id: &TransactionId, branch: u16, at: Option<Millis>) {
        if let Some(at) = at {
            self.disarm(at, id, TimerPurpose::Retry(branch));
        }
    }

    pub(crate) fn arm_deadlines(&mut self, id: &TransactionId) {
        let Some(transaction) = self.transactions.get(id) else { return };
        let undecided = transaction.decision.is_none();
        let (phase_one, whole) = (transaction.phase_one_deadline(), transaction.whole_deadline());
        let overdue = transaction.overdue;
        if undecided {
            self.arm(phase_one, id, TimerPurpose::PhaseOneDeadline);
        }
        if let (Some(at), false) = (whole, overdue) {
            self.arm(at, id, TimerPurpose::Overdue);
        }
    }

    /// Phase one's deadline and retries mean nothing once the decision is taken.
    pub(crate) fn disarm_phase_one(&mut self, id: &TransactionId) {
        let Some(transaction) = self.transactions.get(id) else { return };
        let deadline = transaction.phase_one_deadline();
        let retries: Vec<(u16, Option<Millis>)> =
            transaction.numbered().map(|(number, branch)| (number, branch.retry_at)).collect();
        self.disarm(deadline, id, TimerPurpose::PhaseOneDeadline);
        for (number, at) in retries {
            self.disarm_retry(id, number, at);
        }
    }

    pub(crate) fn disarm_all(&mut self, id: &TransactionId) {
        self.disarm_phase_one(id);
        let whole = self.transactions.get(id).and_then(Transaction::whole_deadline);
        if let Some(at) = whole {
            self.disarm(at, id, TimerPurpose::Overdue);
        }
    }

    /// Bits for the jitter of one retry: the same for the same seed, transaction and attempt.
    pub(crate) fn random(&self, id: &TransactionId, about: Attempt) -> u64 {
        let bytes = id.as_str().bytes();
        let named = bytes.fold(self.config.seed, |state, byte| splitmix64(state ^ u64::from(byte)));
        splitmix64(named ^ (u64::from(about.branch) << 32) ^ u64::from(about.attempt))
    }
}
