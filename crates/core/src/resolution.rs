//! Decides what an operator's word on a branch changes (a heuristic outcome: a branch settled
//! without the coordinator), when it may be given, and what it makes of the whole transaction.

use crate::answers::shorten;
use crate::branch::{Ballot, Branch, Progress};
use crate::event::Effect;
use crate::guard::Contradiction;
use crate::{
    Coordinator, Fact, Kind, Millis, Outcome, Stage, Step, Transaction, TransactionId, What,
};

/// How somebody settled a branch without the coordinator.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Resolution {
    /// How.
    pub outcome: Outcome,
    /// Who says so.
    pub by: Box<str>,
    /// Why.
    pub reason: Box<str>,
    /// When.
    pub at: Millis,
    /// Whether the participant's own last word was the opposite.
    pub disputed: bool,
}

/// What somebody's word makes of a transaction. The words are those of XA (X/Open CAE C193, 1991).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Heuristic {
    /// Branches were settled by hand, all as decided: committed.
    Committed,
    /// Branches were settled by hand, all as decided: rolled back.
    RolledBack,
    /// A branch was settled against the decision.
    Mixed,
    /// Somebody's word and the participant's are opposed: nobody knows.
    Hazard,
}

impl Heuristic {
    /// The word on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Committed => "committed",
            Self::RolledBack => "rolled_back",
            Self::Mixed => "mixed",
            Self::Hazard => "hazard",
        }
    }
}

/// Why somebody's word on a branch is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ResolveRefusal {
    /// The transaction is not live.
    Unknown,
    /// It has no such branch.
    NoSuchBranch,
    /// Nothing is decided yet, and the coordinator can decide: roll back instead.
    Undecided,
    /// The branch has nothing left to settle.
    Settled,
    /// It contradicts the decision and gives no reason.
    ReasonMissing,
    /// The transaction is set aside: nothing reaches it.
    SetAside,
}

impl Branch {
    /// Takes somebody's word: after the decision nothing is owed any more; before it, this is the
    /// answer of the participant that alone decides.
    pub(crate) fn resolve(&mut self, resolution: &Resolution, decided: bool) {
        self.resolution = Some(Box::new(resolution.clone()));
        if decided {
            self.finish();
        } else {
            self.clear_attempts();
            self.ballot = match resolution.outcome {
                Outcome::Commit => Ballot::Committed,
                Outcome::Rollback => Ballot::RolledBack,
            };
        }
    }

    /// Whether somebody's word is against the decision. A deferred branch that is settled on a
    /// rollback was only to tell of it.
    fn is_against(&self, decision: Outcome) -> bool {
        let told_only = decision == Outcome::Rollback && self.plan.kind == Kind::Deferred;
        self.resolution.as_ref().is_some_and(|word| word.outcome != decision && !told_only)
    }

    /// Whether the participant claims the opposite of `outcome`.
    fn disputes(&self, outcome: Outcome) -> bool {
        match self.contradiction {
            Some(Contradiction::AlreadyCommitted) => outcome == Outcome::Rollback,
            Some(Contradiction::AlreadyRolledBack) => outcome == Outcome::Commit,
            Some(Contradiction::NeverPrepared | Contradiction::WrongKind) | None => false,
        }
    }
}

impl Transaction {
    /// What somebody's word has made of this transaction, if anybody gave any.
    #[must_use]
    pub fn heuristic(&self) -> Option<Heuristic> {
        let decision = self.outcome()?;
        let words = || self.branches.iter().filter_map(|branch| branch.resolution.as_ref());
        if self.branches.iter().any(|branch| branch.is_against(decision)) {
            Some(Heuristic::Mixed)
        } else if words().any(|word| word.disputed) {
            Some(Heuristic::Hazard)
        } else {
            words().next().map(|_| match decision {
                Outcome::Commit => Heuristic::Committed,
                Outcome::Rollback => Heuristic::RolledBack,
            })
        }
    }
}

impl Coordinator {
    /// Says whether somebody's word on a branch would be taken: call it before
    /// [`crate::Event::ResolveRequested`].
    ///
    /// # Errors
    /// [`ResolveRefusal`]; nothing has changed.
    pub fn check_resolve(
        &self,
        id: &TransactionId,
        branch: u16,
        outcome: Outcome,
        has_reason: bool,
    ) -> Result<(), ResolveRefusal> {
        let transaction = self.get(id).ok_or(ResolveRefusal::Unknown)?;
        if transaction.set_aside.is_some() {
            return Err(ResolveRefusal::SetAside);
        }
        if !transaction.has(Some(branch)) {
            return Err(ResolveRefusal::NoSuchBranch);
        }
        let alone = transaction.decides_alone() == Some(branch);
        let branch = transaction.branch(branch);
        match (branch.progress, transaction.outcome()) {
            (Progress::Owes(_), Some(decision)) => {
                let told_only = branch.plan.kind == Kind::Deferred && decision == Outcome::Rollback;
                let against = outcome != decision && !told_only;
                if against && !has_reason {
                    return Err(ResolveRefusal::ReasonMissing);
                }
                Ok(())
            }
            (Progress::Undecided, None) if alone && transaction.stage() == Stage::Settling => {
                Ok(())
            }
            (Progress::Undecided, _) => Err(ResolveRefusal::Undecided),
            (Progress::Done | Progress::Owes(_), _) => Err(ResolveRefusal::Settled),
        }
    }

    pub(crate) fn resolved(
        &mut self,
        now: Millis,
        id: &TransactionId,
        number: u16,
        resolution: Resolution,
        step: &mut Step,
    ) {
        let has_reason = !resolution.reason.is_empty();
        if self.check_resolve(id, number, resolution.outcome, has_reason).is_err() {
            return;
        }
        let Some(transaction) = self.transactions.get_mut(id) else { return };
        let branch = transaction.branch_mut(number);
        let retry_at = branch.retry_at.take();
        let resolution = Resolution {
            by: shorten(&resolution.by),
            reason: shorten(&resolution.reason),
            disputed: branch.disputes(resolution.outcome),
            ..resolution
        };
        self.disarm_retry(id, number, retry_at);
        self.observe(now, id, Some(number), What::Resolved(resolution.outcome));
        self.record(now, id, Fact::Resolved { branch: number, resolution }, step);
        step.effects.push(Effect::Resolved(id.clone(), number));
        self.advance(now, id, step);
    }
}
