//! Decides how a recovered coordinator takes up what it finds. The facts are already applied, by
//! the same function as in live operation; here are only the first moves.

use crate::branch::Ballot;
use crate::{
    Coordinator, Millis, Mutation, Reason, Step, Transaction, TransactionId, What, phase_one,
};

impl Transaction {
    /// Whether it was read back and is still to be taken up.
    const fn waits_to_be_taken_up(&self) -> bool {
        self.dormant && self.set_aside.is_none()
    }
}

impl Coordinator {
    /// Takes up every live transaction after recovery: arms its deadlines and retries, calls who is
    /// owed a call, and rolls back whole ones that were still preparing (their locks should not
    /// wait for an initiator that may be gone). Interactive ones stay open until their deadline:
    /// their initiator asks again.
    pub fn resume(&mut self, now: Millis) -> Step {
        let mut step = Step::default();
        let ids: Vec<TransactionId> =
            self.transactions.values().map(|one| one.id.clone()).collect();
        for id in ids {
            self.resume_one(now, &id, &mut step);
        }
        step
    }

    /// Takes up one transaction: what [`Coordinator::resume`] does, in as many steps as there are
    /// transactions. One that something happens to before is taken up first.
    pub fn resume_transaction(&mut self, now: Millis, id: &TransactionId) -> Step {
        let mut step = Step::default();
        self.resume_one(now, id, &mut step);
        step
    }

    /// In how many parts the live transactions can be looked through; it can only grow.
    #[must_use]
    pub fn parts(&self) -> usize {
        self.transactions.parts()
    }

    /// Those of one part that were read back and are still to be taken up.
    #[must_use]
    pub fn dormant(&self, part: usize) -> Vec<TransactionId> {
        let forgets = self.config.mutations.has(Mutation::DormantPartForgotten);
        if forgets && part == 0 {
            return Vec::new();
        }
        let waits = |one: &&Transaction| one.waits_to_be_taken_up();
        self.transactions.part(part).filter(waits).map(|one| one.id.clone()).collect()
    }

    /// Whether this one was read back and is still to be taken up.
    #[must_use]
    pub fn is_dormant(&self, id: &TransactionId) -> bool {
        self.transactions.get(id).is_some_and(Transaction::waits_to_be_taken_up)
    }

    /// The same of one that something is about to happen to.
    pub(crate) fn is_dormant_at_hand(&mut self, id: &TransactionId) -> bool {
        self.transactions.get_mut(id).is_some_and(|one| one.waits_to_be_taken_up())
    }

    pub(crate) fn resume_one(&mut self, now: Millis, id: &TransactionId, step: &mut Step) {
        if let Some(transaction) = self.transactions.get_mut(id) {
            transaction.dormant = false;
        }
        self.observe(now, id, None, What::Recovered);
        let forgets_timers = self.config.mutations.has(Mutation::TimersLostOnRecovery);
        let Some(transaction) = self.transactions.get_mut(id) else { return };
        if transaction.decision.is_some() {
            if !forgets_timers {
                self.arm_deadlines(id);
                self.arm_delays(id);
                self.advance(now, id, step);
            }
            return;
        }
        if transaction.executing_since.is_some() {
            self.arm_deadlines(id);
            self.call_unanswered(now, id, step);
            self.advance(now, id, step);
            return;
        }
        if !self.config.mutations.has(Mutation::RollbackForgottenOnRecovery) {
            phase_one::assume_prepares_called(transaction);
        }
        if transaction.open {
            if !forgets_timers {
                self.arm_deadlines(id);
            }
            return;
        }
        self.arm_deadlines(id);
        self.give_up(now, id, Reason::Restarted, step);
    }

    /// Calls again the branches whose execute is on record and whose answer is not.
    pub(crate) fn call_unanswered(&mut self, now: Millis, id: &TransactionId, step: &mut Step) {
        let Some(transaction) = self.transactions.get(id) else { return };
        let unanswered: Vec<u16> = transaction
            .numbered()
            .filter(|(_, branch)| branch.ballot == Ballot::Unanswered)
            .map(|(number, _)| number)
            .collect();
        for number in unanswered {
            self.call(now, id, number, step);
        }
    }
}
