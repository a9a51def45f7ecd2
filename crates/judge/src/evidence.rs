//! What the rules ask about one transaction, whoever watched it: the model's world answers from its
//! state, the judge from the trace that it has read.

use unanimity_core::guard::GuardState;
use unanimity_core::{Kind, Operation, Outcome};

/// A set of outcomes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Outcomes {
    /// Whether commit is in it.
    pub commit: bool,
    /// Whether rollback is in it.
    pub rollback: bool,
}

impl Outcomes {
    /// Puts one in.
    pub const fn insert(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Commit => self.commit = true,
            Outcome::Rollback => self.rollback = true,
        }
    }

    /// Whether one is in it.
    #[must_use]
    pub const fn has(self, outcome: Outcome) -> bool {
        match outcome {
            Outcome::Commit => self.commit,
            Outcome::Rollback => self.rollback,
        }
    }

    /// Both sets in one.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self { commit: self.commit || other.commit, rollback: self.rollback || other.rollback }
    }

    /// Whether there are both: what must never be.
    #[must_use]
    pub const fn are_both(self) -> bool {
        self.commit && self.rollback
    }

    /// Those that are in it.
    pub fn iter(self) -> impl Iterator<Item = Outcome> {
        [Outcome::Commit, Outcome::Rollback].into_iter().filter(move |one| self.has(*one))
    }
}

impl FromIterator<Outcome> for Outcomes {
    fn from_iter<T: IntoIterator<Item = Outcome>>(all: T) -> Self {
        let mut outcomes = Self::default();
        all.into_iter().for_each(|outcome| outcomes.insert(outcome));
        outcomes
    }
}

/// What is known of one transaction at one moment.
pub trait Evidence {
    /// How many branches there are to be judged.
    fn branches(&self) -> usize;
    /// How many of them, counted from the first, are on record, durable or not.
    fn on_record(&self) -> usize;
    /// What sort of promise a branch makes.
    fn kind(&self, branch: usize) -> Kind;
    /// The branches that come before one.
    fn after(&self, branch: usize) -> &[u16];
    /// Whether the initiator does a branch's phase-one work.
    fn by_initiator(&self, branch: usize) -> bool;
    /// Whether a branch is deferred work that is done after a rollback too.
    fn also_on_rollback(&self, branch: usize) -> bool;
    /// Whether a branch comes when all other deferred work is done.
    fn comes_last(&self, branch: usize) -> bool;
    /// Whether an operator has said how a branch was settled: no rule speaks of it any more.
    fn by_hand(&self, branch: usize) -> bool;
    /// Whether a participant has lost its memory of a branch, and is excused.
    fn forgot(&self, branch: usize) -> bool;
    /// Where a branch stands at its participant.
    fn state(&self, branch: usize) -> Option<GuardState>;
    /// The first final state that it had there.
    fn settled(&self, branch: usize) -> Option<GuardState>;
    /// How often an operation's business effect was applied; 2 may stand for more.
    fn applied(&self, branch: usize, operation: Operation) -> u8;
    /// Whether work was done after a final state, or a commit of what was never prepared.
    fn out_of_order(&self, branch: usize) -> bool;
    /// The decisions on record, durable or not.
    fn recorded(&self) -> Outcomes;
    /// The outcomes that the initiator was told, complete or not.
    fn told(&self) -> Outcomes;
    /// The decisions that calls gave away.
    fn sent(&self) -> Outcomes;
    /// Whether the beginning is on durable record.
    fn begun(&self) -> bool;
    /// Whether the initiator was told that it has begun.
    fn told_begun(&self) -> bool;
    /// Whether the end is on record, durable or not.
    fn ended(&self) -> bool;
    /// The decision that would survive a crash now.
    fn durable_decision(&self) -> Option<Outcome>;
}
