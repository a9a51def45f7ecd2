//! What is known of one transaction: the facts, which change only through [`Transaction::apply`],
//! and the progress that a crash may take. What happens next is `phase_one`'s and `phase_two`'s.

use std::mem;
use std::sync::Arc;

use crate::branch::{Ballot, Branch};
use crate::mutation::Mutations;
use crate::timeline::Timeline;
use crate::{
    Decision, Fact, Millis, Options, Outcome, Reason, Record, SetAside, Stage, TransactionId,
};

/// One business transaction.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Transaction {
    /// Its name.
    pub id: TransactionId,
    /// When its beginning was recorded.
    pub begun_at: Millis,
    /// A digest of the request.
    pub fingerprint: u128,
    /// How long it waits for what; shared with others that wait as long.
    pub options: Arc<Options>,
    /// Whether it is interactive.
    pub open: bool,
    /// Read back, and not taken up yet: nothing has happened to it since, and nothing is due.
    pub(crate) dormant: bool,
    /// Its branches; their places are their numbers.
    pub branches: Vec<Branch>,
    /// Since when phase one is under way. Lost in a crash where it is interactive, safely: its
    /// initiator asks again.
    pub closed_at: Option<Millis>,
    /// Why it would roll back, if the participant that alone decides did not have to be asked
    /// first. Lost in a crash, safely: the deadline passes again.
    pub settling: Option<Reason>,
    /// Since when every prepare has voted and visible work is under way, if it is.
    pub executing_since: Option<Millis>,
    /// The decision, once taken.
    pub decision: Option<Decision>,
    /// When everything was complete.
    pub ended_at: Option<Millis>,
    /// The limit for the whole has passed after the decision.
    pub overdue: bool,
    /// Why it is set aside, if it is. Not a fact of its own: the driver keeps it.
    pub set_aside: Option<Box<SetAside>>,
    /// What was seen on the way.
    pub timeline: Timeline,
}

impl Transaction {
    /// A transaction that has just begun.
    pub(crate) fn new(
        id: TransactionId,
        begun_at: Millis,
        fingerprint: u128,
        (open, branches): (bool, Vec<Branch>),
        options: Arc<Options>,
    ) -> Self {
        Self {
            id,
            begun_at,
            fingerprint,
            options,
            open,
            dormant: false,
            closed_at: (!open).then_some(begun_at),
            settling: None,
            branches,
            executing_since: None,
            decision: None,
            ended_at: None,
            overdue: false,
            set_aside: None,
            timeline: Timeline::default(),
        }
    }

    /// The place of one whose records could not be read.
    pub(crate) fn unread(id: TransactionId, begun_at: Millis) -> Self {
        Self::new(id, begun_at, 0, (false, Vec::new()), Arc::new(Options::default()))
    }

    /// Where it stands, for people.
    #[must_use]
    pub fn stage(&self) -> Stage {
        match &self.decision {
            _ if self.ended_at.is_some() => Stage::Ended,
            _ if self.set_aside.is_some() => Stage::SetAside,
            Some(decision) if decision.outcome == Outcome::Commit => Stage::Committing,
            Some(_) => Stage::RollingBack,
            None if self.settling.is_some() => Stage::Settling,
            None if self.executing_since.is_some() => Stage::Executing,
            None if self.closed_at.is_none() => Stage::Open,
            None => Stage::Preparing,
        }
    }

    /// Whether branches may still be enlisted.
    #[must_use]
    pub fn accepts_branches(&self) -> bool {
        self.stage() == Stage::Open
    }

    /// The outcome, once decided.
    #[must_use]
    pub fn outcome(&self) -> Option<Outcome> {
        self.decision.as_ref().map(|decision| decision.outcome)
    }

    /// The branch with this number. The number must come from this transaction.
    #[must_use]
    pub fn branch(&self, number: u16) -> &Branch {
        &self.branches[usize::from(number)]
    }

    pub(crate) fn branch_mut(&mut self, number: u16) -> &mut Branch {
        &mut self.branches[usize::from(number)]
    }

    /// Whether it has this branch; of none there is nothing to ask.
    pub(crate) fn has(&self, branch: Option<u16>) -> bool {
        branch.is_none_or(|number| usize::from(number) < self.branches.len())
    }

    /// Its branches with their numbers.
    pub fn numbered(&self) -> impl Iterator<Item = (u16, &Branch)> {
        (0..).zip(&self.branches)
    }

    /// When it has taken too long to be decided: the present stage's deadline.
    #[must_use]
    pub fn phase_one_deadline(&self) -> Millis {
        let (since, timeout_ms) = match (self.executing_since, self.closed_at) {
            (Some(since), _) => (since, self.options.execute_timeout_ms),
            (None, Some(since)) => (since, self.options.prepare_timeout_ms),
            (None, None) => (self.begun_at, self.options.open_timeout_ms),
        };
        since.saturating_add(timeout_ms)
    }

    /// When the whole has taken too long, if there is such a limit.
    #[must_use]
    pub fn whole_deadline(&self) -> Option<Millis> {
        let timeout_ms = self.options.timeout_ms;
        (timeout_ms > 0).then(|| self.begun_at.saturating_add(timeout_ms))
    }

    /// Where every branch stands, for a record. One that may have been called before a restart
    /// counts as called.
    pub(crate) fn ballots(&self) -> Vec<Ballot> {
        let ballot = |branch: &Branch| match (branch.ballot, branch.reached) {
            (Ballot::NotCalled, true) => Ballot::Unanswered,
            (ballot, _) => ballot,
        };
        self.branches.iter().map(ballot).collect()
    }

    /// The results that no record holds yet, for the next record.
    pub(crate) fn unsaved_results(&self) -> Vec<(u16, Arc<str>)> {
        let unsaved = self.numbered().filter(|(_, branch)| branch.result_unsaved);
        unsaved.filter_map(|(n, branch)| Some((n, branch.result.clone()?))).collect()
    }

    /// Changes the facts, for live operation, recovery and the checkers alike.
    pub(crate) fn apply(&mut self, record: &Record, mutations: Mutations) {
        self.timeline.save(&record.observations);
        self.change(record, mutations);
    }

    /// As [`Transaction::apply`], of a record that nobody else needs: its observations are not
    /// copied.
    pub(crate) fn take_over(&mut self, record: &mut Record, mutations: Mutations) {
        self.timeline.take_over(mem::take(&mut record.observations));
        self.change(record, mutations);
    }

    fn change(&mut self, record: &Record, mutations: Mutations) {
        match &record.fact {
            Fact::Executing { branches, ballots, results } => {
                self.take_ballots(ballots, results);
                for number in branches {
                    self.branch_mut(*number).ballot = Ballot::Unanswered;
                }
                self.executing_since.get_or_insert(record.at);
            }
            Fact::Decided { outcome, reason, ballots, results } => {
                self.take_ballots(ballots, results);
                let reason = reason.clone();
                self.decision = Some(Decision { outcome: *outcome, reason, at: record.at });
                for branch in &mut self.branches {
                    branch.decide(*outcome, mutations);
                }
            }
            Fact::Finished { branch } => self.branch_mut(*branch).finish(),
            Fact::Enlisted { branch } => self.branches.push(Branch::new(branch.clone())),
            Fact::Resolved { branch, resolution } => {
                let decided = self.decision.is_some();
                self.branch_mut(*branch).resolve(resolution, decided);
            }
            Fact::Ended => {
                self.branches.iter_mut().for_each(Branch::finish);
                self.ended_at = Some(record.at);
            }
            Fact::Begun { .. } | Fact::Snapshot(_) => {
                panic!("{}: a transaction begins once", self.id)
            }
        }
    }

    fn take_ballots(&mut self, ballots: &[Ballot], results: &[(u16, Arc<str>)]) {
        assert_eq!(ballots.len(), self.branches.len(), "{}: a ballot for each branch", self.id);
        for (branch, ballot) in self.branches.iter_mut().zip(ballots) {
            branch.ballot = *ballot;
        }
        for (number, result) in results {
            let branch = self.branch_mut(*number);
            branch.result = Some(Arc::clone(result));
            branch.result_unsaved = false;
        }
    }
}
