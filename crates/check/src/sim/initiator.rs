//! An initiator: it begins one transaction after the other, asks again with the same id when no
//! answer comes, does the work that is its own, and waits for the outcome. What it knows it was
//! told; what it is told when is the world's.

use std::collections::VecDeque;

use unanimity_core::{
    AskNext, AskPolicy, Asked, Asking, Kind, TransactionId, Unheard, own_work_again_ms,
};

use super::server::{Ask, Say};
use super::workload::Work;

/// How long an initiator waits for an answer, and how long it asks to wait for an outcome, in
/// milliseconds.
pub const REQUEST_TIMEOUT_MS: u64 = 700;

/// What it is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It asks to begin.
    Beginning,
    /// It enlists this branch.
    Enlisting(usize),
    /// It does this branch's work itself.
    Trying(usize),
    /// It asks to commit.
    Committing,
    /// It asks to roll back.
    RollingBack,
    /// It waits for the outcome.
    Waiting,
}

/// One initiator.
#[derive(Clone, Debug)]
pub struct Initiator {
    /// What is still to be begun.
    pub todo: VecDeque<Work>,
    /// What is being done, and how far it is.
    pub current: Option<Current>,
    /// The request that it waits for an answer to.
    pub request: u64,
    /// Whether it has died for good.
    pub vanished: bool,
    /// How it asks again: as the SDK does.
    pub policy: AskPolicy,
    /// The transactions of which it believes that they can never have been committed.
    pub never_committed: Vec<TransactionId>,
}

/// A transaction that is being done.
#[derive(Clone, Debug)]
pub struct Current {
    /// What is to be done.
    pub work: Work,
    /// How far it is.
    pub stage: Stage,
    /// The SDK's retry logic, for the request of this stage.
    asking: Asking,
    /// When that request was first made; `None` before.
    asked_at: Option<u64>,
    /// How often it has called for its own work in this stage.
    calls: u32,
    /// Whether it has asked for the transaction to be committed, or begun it whole.
    may_commit: bool,
}

/// What an initiator does about a request without a usable answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// The same again, after so many milliseconds.
    Again(u64),
    /// It asks for what was decided.
    AsksStatus,
    /// It has given this request up, and goes on otherwise, or with the next transaction.
    GaveUp,
}

impl Current {
    fn enter(&mut self, stage: Stage, policy: &AskPolicy) {
        if stage != self.stage {
            self.stage = stage;
            self.asking = Asking::new(policy.clone(), self.work.seed);
            self.asked_at = None;
            self.calls = 0;
        }
        // Local work is the last word: whoever asks its database finds it committed.
        let local = |branch: usize| self.work.plan.branches[branch].kind == Kind::Local;
        self.may_commit |= match stage {
            Stage::Committing => true,
            Stage::Trying(branch) => local(branch),
            Stage::Beginning | Stage::Enlisting(_) | Stage::RollingBack | Stage::Waiting => false,
        };
    }

    fn has_local_work(&self) -> bool {
        self.work.plan.branches.iter().any(|branch| branch.kind == Kind::Local)
    }

    /// The request of this stage leaves.
    pub fn asks(&mut self, now: u64) {
        self.asked_at.get_or_insert(now);
        self.calls += 1;
    }
}

/// What it does next.
#[derive(Clone, Debug)]
pub enum Next {
    /// It asks the coordinator.
    Ask(Ask),
    /// It calls the service of this branch itself.
    Try(usize),
    /// It is done with this transaction.
    Done,
}

impl Initiator {
    /// One that has done nothing yet.
    #[must_use]
    pub const fn new(todo: VecDeque<Work>, policy: AskPolicy) -> Self {
        let never_committed = Vec::new();
        Self { todo, current: None, request: 0, vanished: false, policy, never_committed }
    }

    /// What it does in the stage that it is in.
    #[must_use]
    pub fn next(&self) -> Next {
        let Some(Current { work, stage, .. }) = &self.current else { return Next::Done };
        match stage {
            Stage::Beginning => {
                let mut plan = work.plan.clone();
                plan.branches.truncate(work.begun_with);
                Next::Ask(Ask::Begin(plan))
            }
            Stage::Enlisting(branch) => Next::Ask(Ask::Enlist(work.plan.branches[*branch].clone())),
            Stage::Trying(branch) => Next::Try(*branch),
            Stage::Committing => Next::Ask(Ask::Commit),
            Stage::RollingBack => Next::Ask(Ask::Rollback),
            Stage::Waiting => Next::Ask(Ask::Status { wait: true }),
        }
    }

    /// The stage after everything before this branch is enlisted and tried.
    fn from_branch(work: &Work, branch: usize) -> Stage {
        if !work.plan.open {
            return Stage::Waiting;
        }
        // Everything is enlisted first: local work, which commits by itself, is the last word.
        if branch < work.plan.branches.len() {
            return Stage::Enlisting(branch);
        }
        Self::from_try(work, 0)
    }

    fn from_try(work: &Work, from: usize) -> Stage {
        let tried = |branch: &usize| work.plan.branches[*branch].by_initiator;
        match (from..work.plan.branches.len()).find(tried) {
            Some(branch) => Stage::Trying(branch),
            None if work.gives_up => Stage::RollingBack,
            None => Stage::Committing,
        }
    }

    /// Begins the next transaction, if there is one and none is being done.
    pub fn begins(&mut self) -> bool {
        if self.current.is_none()
            && let Some(work) = self.todo.pop_front()
        {
            let asking = Asking::new(self.policy.clone(), work.seed);
            let (stage, may_commit) = (Stage::Beginning, !work.plan.open);
            self.current =
                Some(Current { work, stage, asking, asked_at: None, calls: 0, may_commit });
        }
        self.current.is_some()
    }

    /// Goes to another stage.
    pub fn enter(&mut self, stage: Stage) {
        let policy = self.policy.clone();
        if let Some(current) = &mut self.current {
            current.enter(stage, &policy);
        }
    }

    /// Takes a usable answer in.
    pub fn answered(&mut self, say: &Say) {
        let Some(Current { work, stage, .. }) = &self.current else { return };
        let next = match (&say, *stage) {
            (Say::Outcome(..), _) => None,
            (Say::Unknown, Stage::Beginning) => Some(Stage::Beginning),
            // It never was, or a rollback could be presumed: nothing of it is left.
            (Say::Unknown, _) => None,
            (Say::Begun, Stage::Beginning) => Some(Self::from_branch(work, work.begun_with)),
            (Say::Enlisted(_), Stage::Enlisting(branch)) => {
                Some(Self::from_branch(work, branch + 1))
            }
            (Say::Pending, Stage::RollingBack) => Some(Stage::Waiting),
            (_, stage) => Some(stage), // What is no answer to the question changes nothing.
        };
        match next {
            Some(next) => self.enter(next),
            None => self.current = None,
        }
    }

    /// A request has no usable answer: the SDK's retry logic says what comes next. Waiting for an
    /// outcome goes on for ever; how, is up to the application.
    pub fn unheard(&mut self, now: u64, unheard: Unheard<'_>) -> Then {
        let Some(current) = &mut self.current else { return Then::GaveUp };
        let asked = match current.stage {
            Stage::Waiting if unheard == Unheard::NoAnswer => return Then::Again(1),
            Stage::Waiting => return Then::Again(REQUEST_TIMEOUT_MS),
            Stage::Trying(_) => {
                return match own_work_again_ms(current.calls) {
                    Some(pause_ms) => Then::Again(pause_ms),
                    None => {
                        self.enter(Stage::RollingBack);
                        Then::GaveUp
                    }
                };
            }
            Stage::Beginning => Asked::Begin,
            Stage::Enlisting(_) => Asked::Enlist,
            Stage::Committing => Asked::Commit,
            Stage::RollingBack => Asked::Rollback,
        };
        let elapsed = current.asked_at.map_or(0, |at| now.saturating_sub(at));
        match current.asking.failed(asked, unheard, elapsed) {
            AskNext::Again { delay_ms } => Then::Again(delay_ms),
            AskNext::AskStatus => {
                self.enter(Stage::Waiting);
                Then::AsksStatus
            }
            AskNext::GiveUp { may_have_acted } => {
                self.gives_up(asked, may_have_acted);
                Then::GaveUp
            }
        }
    }

    /// What a scope of the SDK does when a step has failed for good, and its application then: some
    /// ask later what became of the transaction, and others never do.
    fn gives_up(&mut self, asked: Asked, may_have_acted: bool) {
        let Some(current) = &self.current else { return };
        let committed = match asked {
            Asked::Enlist => {
                self.enter(Stage::RollingBack);
                return;
            }
            // Only what has acted can have made it commit.
            Asked::Begin => current.may_commit && may_have_acted,
            // Its own database has committed, and says so to whoever asks.
            Asked::Commit => may_have_acted || current.has_local_work(),
            Asked::Rollback => current.may_commit,
        };
        if !committed {
            self.never_committed.push(current.work.id.clone());
        }
        if current.work.asks_later && (committed || asked == Asked::Rollback) {
            self.enter(Stage::Waiting);
        } else {
            self.current = None;
        }
    }

    /// Its own work for a branch is done, or refused.
    pub fn tried(&mut self, done: bool) {
        let Some(Current { work, stage: Stage::Trying(branch), .. }) = &self.current else {
            return;
        };
        let next = if done { Self::from_try(work, branch + 1) } else { Stage::RollingBack };
        self.enter(next);
    }
}
