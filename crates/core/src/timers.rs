//! Decides what a timer that fires means, and keeps the schedule in step with each transaction: a
//! live one always has an armed deadline, a planned retry or a call under way.

use crate::answers::Attempt;
use crate::branch::{Branch, Progress};
use crate::schedule::splitmix64;
use crate::{
    Coordinator, Effect, Millis, Mutation, Operation, Outcome, Reason, Step, Timer, TimerPurpose,
    Transaction, TransactionId, What,
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
                let reason = match (transaction.executing_since, transaction.closed_at) {
                    (Some(_), _) => Reason::ExecuteTimeout,
                    (None, Some(_)) => Reason::PrepareTimeout,
                    (None, None) => Reason::Abandoned,
                };
                self.give_up(now, id, reason, step);
            }
            (TimerPurpose::PhaseOneDeadline, Some(_)) => {}
            (TimerPurpose::Overdue, Some(_)) if turns_back => {
                self.decide(now, id, Outcome::Rollback, Reason::Timeout, step);
            }
            (TimerPurpose::Overdue, decision) => {
                if decision.is_some() || transaction.settling.is_some() {
                    transaction.overdue = true;
                    self.observe(now, id, None, What::Overdue);
                    step.effects.push(Effect::Overdue(id.clone()));
                }
                self.give_up(now, id, Reason::Timeout, step);
            }
            (TimerPurpose::Retry(number), decision) => {
                let decided = decision.is_some();
                transaction.branch_mut(number).retry_at = None;
                if decided {
                    // It may have been its delay, and not its turn yet.
                    self.advance(now, id, step);
                } else {
                    self.call(now, id, number, step);
                }
            }
        }
    }

    /// Deferred branches that are to wait after the decision get a first time to be called at.
    pub(crate) fn arm_delays(&mut self, id: &TransactionId) {
        let Some(transaction) = self.transactions.get_mut(id) else { return };
        let Some(decided_at) = transaction.decision.as_ref().map(|decision| decision.at) else {
            return;
        };
        let mut delayed = Vec::new();
        for (number, branch) in (0..).zip(&mut transaction.branches) {
            if branch.plan.delay_ms > 0 && branch.progress == Progress::Owes(Operation::Execute) {
                let at = decided_at.saturating_add(branch.plan.delay_ms);
                branch.retry_at = Some(at);
                delayed.push((number, at));
            }
        }
        for (number, at) in delayed {
            self.arm(at, id, TimerPurpose::Retry(number));
        }
    }

    /// Brings every planned retry of a transaction forward to now. What was never called waits
    /// because it was asked to.
    pub(crate) fn retry_all(&mut self, now: Millis, id: &TransactionId, step: &mut Step) {
        let Some(transaction) = self.transactions.get_mut(id) else { return };
        let planned: Vec<(u16, Millis)> = transaction
            .numbered()
            .filter(|(_, branch)| branch.attempt > 0)
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
        let planned = |(number, branch): (u16, &Branch)| Some((number, branch.retry_at?));
        let retries: Vec<(u16, Millis)> = transaction.numbered().filter_map(planned).collect();
        self.disarm(deadline, id, TimerPurpose::PhaseOneDeadline);
        for (number, at) in retries {
            self.disarm(at, id, TimerPurpose::Retry(number));
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
