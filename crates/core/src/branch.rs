//! What is known of one branch, and what it owes once the transaction is decided. What becomes of
//! it is the transaction's to say.

use std::mem;
use std::sync::Arc;

use crate::guard::Contradiction;
use crate::mutation::Mutations;
use crate::{BranchPlan, Kind, Millis, Mutation, Operation, Outcome, Resolution};

/// Where a branch stands in phase one. Numbers are for storage and are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Ballot {
    /// Its prepare or execute never left.
    NotCalled = 0,
    /// Called, and no decisive answer has come.
    Unanswered = 1,
    /// Prepared or executed.
    Yes = 2,
    /// Prepared with nothing to commit.
    ReadOnly = 3,
    /// Refused.
    No = 4,
    /// Prepared and committed in one phase, or committed by the initiator itself.
    Committed = 5,
    /// Rolled back before the decision: the participant was asked to, because it alone decides.
    RolledBack = 6,
}

impl Ballot {
    /// Whether phase one may go on past this branch.
    #[must_use]
    pub const fn is_in_favour(self) -> bool {
        matches!(self, Self::Yes | Self::ReadOnly | Self::Committed)
    }

    /// The word on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotCalled => "not_called",
            Self::Unanswered => "unanswered",
            Self::Yes => "yes",
            Self::ReadOnly => "read_only",
            Self::No => "no",
            Self::Committed => "committed",
            Self::RolledBack => "rolled_back",
        }
    }
}

/// What a branch has left to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Progress {
    /// Phase one: the decision is not taken.
    Undecided,
    /// Phase two: it owes this operation.
    Owes(Operation),
    /// Nothing.
    Done,
}

/// One participant's part, and how far it has come.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Branch {
    /// As the initiator asked for it, but for the payload. Shared with other branches that were
    /// planned alike.
    pub plan: Arc<BranchPlan>,
    /// What it is given; `None` for nothing. Dropped once nobody can need it again.
    pub(crate) payload: Option<Arc<[u8]>>,
    /// Where it stands in phase one. Progress until a record holds it.
    pub ballot: Ballot,
    /// What it has left to do.
    pub progress: Progress,
    /// What its prepare or execute gave back.
    pub result: Option<Arc<str>>,
    /// Whether no record holds the result yet.
    pub(crate) result_unsaved: bool,
    /// Whether a call is under way. Lost in a crash, safely: recovery calls again.
    pub in_flight: bool,
    /// How often the current operation was called.
    pub attempt: u32,
    /// How often in a row it got no decisive answer.
    pub failures: u16,
    /// What went wrong last.
    /// (Boxed twice, to take as little room as may be while there is none.)
    pub last_error: Option<Box<Box<str>>>,
    /// When it is tried again, or first, if that is what it waits for.
    pub retry_at: Option<Millis>,
    /// Whether a commit in one phase, or a prepare before a restart, may have reached it.
    pub(crate) reached: bool,
    /// Whether the participant does not know how to commit in one phase.
    pub(crate) declines_one_phase: bool,
    /// What the participant last claimed against what it was asked to do.
    pub contradiction: Option<Contradiction>,
    /// How somebody settled it without the coordinator, if somebody did. (Boxed, because hardly any
    /// branch has it.)
    pub resolution: Option<Box<Resolution>>,
}

impl Branch {
    /// A branch on record. Work that is the initiator's may begin now, so it counts as called.
    pub(crate) fn new(mut plan: BranchPlan) -> Self {
        let payload = mem::take(&mut plan.payload);
        Self::sharing(Arc::new(plan), payload)
    }

    /// As [`Branch::new`], of a plan that has no payload.
    pub(crate) fn sharing(plan: Arc<BranchPlan>, payload: Arc<[u8]>) -> Self {
        // All empty ones of a process are one, and counted in one place by every shard.
        let payload = Some(payload).filter(|payload| !payload.is_empty());
        let ballot = if plan.by_initiator { Ballot::Unanswered } else { Ballot::NotCalled };
        Self {
            plan,
            payload,
            ballot,
            progress: Progress::Undecided,
            result: None,
            result_unsaved: false,
            in_flight: false,
            attempt: 0,
            failures: 0,
            last_error: None,
            retry_at: None,
            reached: false,
            declines_one_phase: false,
            contradiction: None,
            resolution: None,
        }
    }

    /// What was planned for it, with its payload as long as that is kept.
    #[must_use]
    pub fn whole_plan(&self) -> BranchPlan {
        BranchPlan { payload: self.payload(), ..(*self.plan).clone() }
    }

    /// What it is given, as long as that is kept.
    #[must_use]
    pub fn payload(&self) -> Arc<[u8]> {
        self.payload.clone().unwrap_or_default()
    }

    /// What this branch owes once the decision is taken, by its kind and by where it stood.
    fn owes(&self, outcome: Outcome, mutations: Mutations) -> Option<Operation> {
        match outcome {
            Outcome::Commit => self.owes_commit(),
            Outcome::Rollback => self.owes_rollback(mutations),
        }
    }

    fn owes_commit(&self) -> Option<Operation> {
        match (self.plan.kind, self.ballot) {
            (Kind::Deferred, _) => Some(Operation::Execute),
            (Kind::Compensable | Kind::Local, _)
            | (Kind::TwoPhase, Ballot::ReadOnly | Ballot::Committed) => None,
            (Kind::TwoPhase, _) => Some(Operation::Commit),
        }
    }

    fn owes_rollback(&self, mutations: Mutations) -> Option<Operation> {
        let forgotten = self.ballot == Ballot::Unanswered
            && (mutations.has(Mutation::UnansweredLeftOutOfRollback)
                || self.plan.by_initiator
                    && mutations.has(Mutation::InitiatorsWorkLeftOutOfRollback));
        let tells = self.plan.also_on_rollback || mutations.has(Mutation::DeferredAfterRollback);
        match (self.plan.kind, self.ballot) {
            (Kind::Deferred, _) if tells => Some(Operation::Execute),
            (Kind::Deferred | Kind::Local, _)
            | (_, Ballot::NotCalled | Ballot::ReadOnly | Ballot::RolledBack) => None,
            _ if forgotten => None,
            (Kind::TwoPhase, _) => Some(Operation::Rollback),
            (Kind::Compensable, _) => Some(Operation::Compensate),
        }
    }

    /// Starts phase two for this branch.
    pub(crate) fn decide(&mut self, outcome: Outcome, mutations: Mutations) {
        let owes = self.owes(outcome, mutations);
        self.progress = owes.map_or(Progress::Done, Progress::Owes);
        self.clear_attempts();
        let keeps_payload =
            owes.is_some_and(|next| next.carries_payload() || self.plan.payload_in_phase_two);
        if !keeps_payload {
            self.payload = None;
        }
    }

    pub(crate) fn finish(&mut self) {
        self.progress = Progress::Done;
        self.payload = None;
        self.clear_attempts();
    }

    pub(crate) fn clear_attempts(&mut self) {
        self.in_flight = false;
        self.attempt = 0;
        self.failures = 0;
        self.last_error = None;
        self.retry_at = None;
    }
}
