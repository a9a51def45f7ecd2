//! Decides what happens where one participant alone decides: a single two-phase branch that commits
//! in one phase, or the initiator's own database. The coordinator may not roll such a transaction
//! back by itself, however long it waits; it *settles*: it asks that participant for what is final,
//! and takes the answer for the decision.
//!
//! 1. The commit in one phase leaves. Its answer is lost, and the deadline passes.
//! 2. Deciding rollback now would be wrong if the participant has committed.
//! 3. So `rollback` is asked before anything is decided. Acknowledged: it is rolled back, and a
//!    late commit in one phase will be refused there; decide rollback. "Already committed": decide
//!    commit. No answer: nothing is decided; ask again.
//!
//! Where the call was never sent (nobody could be connected to), the participant has decided
//! nothing, and the coordinator decides as ever.
//!
//! (The last-agent optimisation: Samaras, Britton, Citron and Mohan, "Two-Phase Commit
//! Optimizations in a Commercial Distributed Environment", Distributed and Parallel Databases 3(4),
//! 1995.)

use crate::branch::Ballot;
use crate::{
    Branch, Coordinator, Effect, Kind, Millis, Mutation, Operation, Outcome, Reason, Step,
    Transaction, TransactionId,
};

impl Transaction {
    /// Whether this is one two-phase branch and nothing else, which may commit in one phase.
    #[must_use]
    pub fn is_one_phase(&self) -> bool {
        match &self.branches[..] {
            [only] => self.options.one_phase && !self.open && only.plan.kind == Kind::TwoPhase,
            _ => false, // Several branches need two phases, and none needs nothing.
        }
    }

    /// The branch whose participant alone knows how this ends, if there is one and it was asked to
    /// do anything. One that said that it knows no commit in one phase is still this one: another
    /// copy of the service may know it, and have got another copy of the call.
    #[must_use]
    pub fn decides_alone(&self) -> Option<u16> {
        let asked = |branch: &Branch| branch.ballot == Ballot::Unanswered;
        let may_be_there = |branch: &Branch| branch.reached || branch.in_flight;
        let alone = |branch: &Branch| {
            branch.plan.kind == Kind::Local || self.is_one_phase() && may_be_there(branch)
        };
        let mut branches = self.numbered();
        branches.find(|(_, branch)| alone(branch) && asked(branch)).map(|(number, _)| number)
    }

    /// What an undecided branch is asked to do; `None` for one that is not asked.
    #[must_use]
    pub fn phase_one_operation(&self, number: u16) -> Option<Operation> {
        let branch = self.branch(number);
        match (branch.plan.kind, self.settling.is_some()) {
            (Kind::Deferred, _) | (Kind::Local, false) => None,
            (Kind::Local, true) => Some(Operation::Inquire),
            (Kind::TwoPhase, true) => Some(Operation::Rollback),
            _ if branch.plan.by_initiator => None,
            (Kind::Compensable, _) => Some(Operation::Execute),
            (Kind::TwoPhase, false) if self.is_one_phase() && !branch.declines_one_phase => {
                Some(Operation::CommitOnePhase)
            }
            (Kind::TwoPhase, false) => Some(Operation::Prepare),
        }
    }
}

impl Coordinator {
    /// Ends an undecided transaction for `reason`: by rollback, or by asking the participant that
    /// alone decides.
    pub(crate) fn give_up(
        &mut self,
        now: Millis,
        id: &TransactionId,
        reason: Reason,
        step: &mut Step,
    ) {
        let mutations = self.config.mutations;
        let Some(transaction) = self.transactions.get_mut(id) else { return };
        if transaction.decision.is_some() || transaction.settling.is_some() {
            return;
        }
        let forgets = |branch: &Branch| match branch.plan.kind {
            Kind::Local => mutations.has(Mutation::AbandonedWithoutInquiry),
            Kind::TwoPhase | Kind::Compensable | Kind::Deferred => {
                mutations.has(Mutation::OnePhaseTimeoutRollsBack)
                    || branch.declines_one_phase && mutations.has(Mutation::UnsupportedBelieved)
            }
        };
        let alone = transaction.decides_alone();
        let asked = alone.filter(|number| !forgets(transaction.branch(*number)));
        let Some(number) = asked else {
            self.decide(now, id, Outcome::Rollback, reason, step);
            return;
        };
        transaction.settling = Some(reason);
        let branch = transaction.branch_mut(number);
        let retry_at = branch.retry_at;
        branch.clear_attempts();
        branch.reached = true;
        step.effects.push(Effect::Settling(id.clone()));
        self.disarm_retry(id, number, retry_at);
        self.call(now, id, number, step);
    }
}
