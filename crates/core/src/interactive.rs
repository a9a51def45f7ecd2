//! Decides what an initiator may do with an interactive transaction, and when: enlist branches
//! while it is open, then ask to commit. What follows the request to commit is phase one, as for
//! any other.

use crate::branch::{Ballot, Branch};
use crate::plan::check_branches;
use crate::{
    BranchPlan, Coordinator, Effect, Fact, Kind, Millis, Mutation, PlanError, Stage, Step,
    TimerPurpose, Transaction, TransactionId, What,
};

/// Why a branch cannot be enlisted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum EnlistRefusal {
    /// The transaction is not live.
    Unknown,
    /// It is not open, or not any more.
    NotOpen(Stage),
    /// The same name is enlisted with another content.
    Conflict,
    /// With this branch the transaction could not be kept.
    Plan(PlanError),
}

/// Why a transaction cannot be asked to commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CloseRefusal {
    /// The transaction is not live.
    Unknown,
    /// It was begun whole: it commits by itself.
    Whole,
    /// It is set aside: nothing reaches it.
    SetAside,
}

impl Coordinator {
    /// Under which number a branch may be enlisted; one that is there already, with the same
    /// content, has its number already.
    fn place_of(&self, id: &TransactionId, branch: &BranchPlan) -> Result<u16, EnlistRefusal> {
        let transaction = self.get(id).ok_or(EnlistRefusal::Unknown)?;
        if !transaction.open || !transaction.accepts_branches() {
            return Err(EnlistRefusal::NotOpen(transaction.stage()));
        }
        let mut numbered = transaction.numbered();
        if let Some((number, known)) = numbered.find(|(_, known)| known.plan.name == branch.name) {
            return if known.whole_plan() == *branch {
                Ok(number)
            } else {
                Err(EnlistRefusal::Conflict)
            };
        }
        let known: Vec<BranchPlan> = transaction.branches.iter().map(Branch::whole_plan).collect();
        let all: Vec<&BranchPlan> = known.iter().chain([branch]).collect();
        check_branches(true, &all).map_err(EnlistRefusal::Plan)?;
        Ok(u16::try_from(transaction.branches.len()).unwrap_or(u16::MAX))
    }

    pub(crate) fn enlist(
        &mut self,
        now: Millis,
        id: &TransactionId,
        branch: BranchPlan,
        step: &mut Step,
    ) {
        let number = match self.place_of(id, &branch) {
            Ok(number) => number,
            Err(refusal) => {
                step.effects.push(Effect::EnlistRefused(id.clone(), Box::new(refusal)));
                return;
            }
        };
        let is_new = self.get(id).is_some_and(|t| !t.has(Some(number)));
        if is_new && self.config.mutations.has(Mutation::EnlistmentNotRecorded) {
            let unrecorded = self.transactions.get_mut(id).map(|t| &mut t.branches);
            unrecorded.into_iter().for_each(|all| all.push(Branch::new(branch.clone())));
        } else if is_new {
            self.record(now, id, Fact::Enlisted { branch }, step);
            self.observe(now, id, Some(number), What::Enlisted);
        }
        step.effects.push(Effect::Enlisted(id.clone(), number));
    }

    /// Says whether this transaction can be asked to commit; one that was asked already, or is
    /// decided, can be asked again. Call it before [`crate::Event::CommitRequested`].
    ///
    /// # Errors
    /// [`CloseRefusal`]; nothing has changed.
    pub fn check_close(&self, id: &TransactionId) -> Result<(), CloseRefusal> {
        let transaction = self.get(id).ok_or(CloseRefusal::Unknown)?;
        match transaction.stage() {
            Stage::SetAside => Err(CloseRefusal::SetAside),
            _ if transaction.open => Ok(()),
            _ => Err(CloseRefusal::Whole), // Wherever it stands.
        }
    }

    /// The initiator vouches for the work that it did itself; everybody else is asked.
    pub(crate) fn close(&mut self, now: Millis, id: &TransactionId, step: &mut Step) {
        let awaited = |t: &Transaction| matches!(t.stage(), Stage::Open | Stage::Settling);
        let Some(transaction) = self.transactions.get_mut(id) else { return };
        if !transaction.open || !awaited(transaction) {
            return; // Asked before, or decided: the answer is on its way.
        }
        let before = transaction.phase_one_deadline();
        transaction.closed_at = Some(now);
        transaction.settling = None;
        let mut retries = Vec::new();
        for (number, branch) in (0..).zip(&mut transaction.branches) {
            if branch.plan.by_initiator {
                branch.ballot = match branch.plan.kind {
                    Kind::Local => Ballot::Committed,
                    Kind::TwoPhase | Kind::Compensable | Kind::Deferred => Ballot::Yes,
                };
                retries.extend(branch.retry_at.take().map(|at| (number, at)));
                branch.in_flight = false;
            }
        }
        for (number, at) in retries {
            self.disarm_retry(id, number, Some(at));
        }
        self.disarm(before, id, TimerPurpose::PhaseOneDeadline);
        self.arm_deadlines(id);
        self.observe(now, id, None, What::CommitRequested);
        self.advance(now, id, step);
    }
}
