//! An initiator: it begins one transaction after the other, asks again with the same id when no
//! answer comes, does the work that is its own, and waits for the outcome. What it knows it was
//! told; what it is told when is the world's.

use std::collections::VecDeque;

use super::server::{Ask, Say};
use super::workload::Work;

/// How long an initiator waits for an answer before it asks again, in milliseconds.
pub const ASK_AGAIN_MS: u64 = 700;

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
    pub current: Option<(Work, Stage)>,
    /// The request that it waits for an answer to.
    pub request: u64,
    /// Whether it has died for good.
    pub vanished: bool,
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
    /// What it does in the stage that it is in.
    #[must_use]
    pub fn next(&self) -> Next {
        let Some((work, stage)) = &self.current else { return Next::Done };
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

    /// Takes an answer in; whether it is done with the transaction.
    pub fn answered(&mut self, say: &Say) -> bool {
        let Some((work, stage)) = &mut self.current else { return false };
        let next = match (&say, *stage) {
            (Say::Outcome(..), _) => None,
            (Say::Refused(_), Stage::Enlisting(_)) => Some(Stage::RollingBack),
            (Say::Refused(_), _) => None,
            (Say::Unknown, Stage::Beginning) => Some(Stage::Beginning),
            // It never was, or a rollback could be presumed: nothing of it is left.
            (Say::Unknown, _) => None,
            (Say::Begun, Stage::Beginning) => Some(Self::from_branch(work, work.begun_with)),
            (Say::Enlisted(_), Stage::Enlisting(branch)) => {
                Some(Self::from_branch(work, branch + 1))
            }
            (Say::NotOpen, _) | (Say::Pending, Stage::RollingBack) => Some(Stage::Waiting),
            (Say::Begun | Say::Enlisted(_) | Say::Busy | Say::Pending, stage) => Some(stage),
        };
        match next {
            Some(next) => *stage = next,
            None => self.current = None,
        }
        self.current.is_none()
    }

    /// Its own work for a branch is done, or refused.
    pub fn tried(&mut self, done: bool) {
        let Some((work, stage)) = &mut self.current else { return };
        let Stage::Trying(branch) = *stage else { return };
        *stage = if done { Self::from_try(work, branch + 1) } else { Stage::RollingBack };
    }
}
