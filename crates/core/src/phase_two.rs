//! Decides the order of phase two. It never gives up and never changes the decision.

use crate::transaction::Progress;
use crate::{Kind, Operation, Transaction};

/// The branches whose turn it is: they owe an operation, no call is under way, no retry is awaited,
/// and nothing that must come first is open.
pub(crate) fn callable(transaction: &Transaction) -> Vec<u16> {
    transaction
        .numbered()
        .filter(|(_, branch)| !branch.in_flight && branch.retry_at.is_none())
        .filter_map(|(number, branch)| match branch.progress {
            Progress::Owes(operation) => Some((number, operation)),
            Progress::Undecided | Progress::Done => None,
        })
        .filter(|(number, operation)| is_its_turn(transaction, *number, *operation))
        .map(|(number, _)| number)
        .collect()
}

/// Whether nothing is left to do.
pub(crate) fn is_complete(transaction: &Transaction) -> bool {
    transaction.branches.iter().all(|branch| branch.progress == Progress::Done)
}

/// Commits and rollbacks go out at once: nothing of theirs shows before or after in any order.
/// Deferred work waits until every commit is acknowledged, so that it sees what was committed, and
/// follows `after`. Compensations run in the reverse order of `after`.
fn is_its_turn(transaction: &Transaction, number: u16, operation: Operation) -> bool {
    let done = |other: u16| transaction.branch(other).progress == Progress::Done;
    match operation {
        Operation::Commit | Operation::Rollback | Operation::Prepare => true,
        Operation::Execute => {
            let commits_done = transaction.branches.iter().all(|branch| {
                branch.plan.kind != Kind::TwoPhase || branch.progress == Progress::Done
            });
            let mut before = transaction.branch(number).plan.after.iter();
            commits_done && before.all(|other| done(*other))
        }
        Operation::Compensate => transaction
            .numbered()
            .filter(|(_, other)| other.plan.after.contains(&number))
            .all(|(other, _)| done(other)),
    }
}
