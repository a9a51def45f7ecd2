//! How what the core writes and decides looks in a trace, and to a participant in doubt.

use unanimity_core::{Fact, Operation, Outcome};
use unanimity_judge::FactLine;

use super::world::branch_line;

/// A fact as the trace has it.
#[must_use]
pub fn fact_line(fact: &Fact) -> FactLine {
    match fact {
        Fact::Begun { plan, .. } => FactLine::Begun {
            branches: plan.branches.iter().map(branch_line).collect(),
            open: plan.open,
            alone: false,
        },
        Fact::Enlisted { branch } => FactLine::Enlisted { branch: branch_line(branch) },
        Fact::Executing { branches, .. } => FactLine::Executing { branches: branches.clone() },
        Fact::Decided { outcome, reason, ballots, .. } => FactLine::Decided {
            outcome: *outcome,
            reason: reason.code().into(),
            ballots: ballots.iter().map(|ballot| ballot.as_str().into()).collect(),
        },
        Fact::Finished { branch } => FactLine::Finished { branch: *branch },
        Fact::Resolved { branch, resolution } => {
            FactLine::Resolved { branch: *branch, outcome: resolution.outcome }
        }
        Fact::Ended => FactLine::Ended,
        Fact::Snapshot(_) => FactLine::Rewritten,
    }
}

/// The operation by which a participant in doubt obeys a decision.
#[must_use]
pub const fn word(outcome: Outcome) -> Operation {
    match outcome {
        Outcome::Commit => Operation::Commit,
        Outcome::Rollback => Operation::Rollback,
    }
}
