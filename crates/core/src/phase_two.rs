//! Decides the order of phase two. It never gives up and never changes the decision.

use crate::branch::Progress;
use crate::mutation::Mutations;
use crate::{Kind, Mutation, Operation, Transaction};

/// The branches whose turn it is: they owe an operation, no call is under way, no retry is awaited,
/// and nothing that must come first is open.
pub(crate) fn callable(transaction: &Transaction, mutations: Mutations) -> Vec<u16> {
    transaction
        .numbered()
        .filter(|(_, branch)| !branch.in_flight && branch.retry_at.is_none())
        .filter_map(|(number, branch)| match branch.progress {
            Progress::Owes(operation) => Some((number, operation)),
            Progress::Undecided | Progress::Done => None,
        })
        .filter(|(number, operation)| is_its_turn(transaction, *number, *operation, mutations))
        .map(|(number, _)| number)
        .collect()
}

/// Whether nothing is left to do.
pub(crate) fn is_complete(transaction: &Transaction) -> bool {
    transaction.branches.iter().all(|branch| branch.progress == Progress::Done)
}

/// Commits and rollbacks go out at once: nothing of theirs shows before or after in any order.
/// Deferred work waits until everything else is committed, or undone, so that it sees that, and
/// follows `after`; what comes last also waits for all deferred work that does not.
/// Compensations run in the reverse order of `after`.
fn is_its_turn(
    transaction: &Transaction,
    number: u16,
    operation: Operation,
    mutations: Mutations,
) -> bool {
    let done = |other: u16| transaction.branch(other).progress == Progress::Done;
    match operation {
        Operation::Execute => {
            let early = mutations.has(Mutation::DeferredBeforeCommits);
            let plan = &transaction.branch(number).plan;
            let waits_for_all = plan.comes_last && !mutations.has(Mutation::LastDoesNotWait);
            let settled = transaction.branches.iter().all(|branch| {
                let beside = branch.plan.kind == Kind::Deferred
                    && (branch.plan.comes_last || !waits_for_all);
                beside || branch.progress == Progress::Done
            });
            let mut before = plan.after.iter();
            (settled || early) && before.all(|other| done(*other))
        }
        Operation::Compensate if mutations.has(Mutation::CompensationOrderIgnored) => true,
        Operation::Compensate => transaction
            .numbered()
            .filter(|(_, other)| other.plan.kind == Kind::Compensable)
            .filter(|(_, other)| other.plan.after.contains(&number))
            .all(|(other, _)| done(other)),
        Operation::Commit
        | Operation::Rollback
        | Operation::Prepare
        | Operation::CommitOnePhase
        | Operation::Inquire => true,
    }
}
