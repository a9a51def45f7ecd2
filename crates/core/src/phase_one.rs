//! Decides what an undecided transaction does next: which branches may be called, when visible work
//! may start, and when the decision is due.

use crate::branch::Ballot;
use crate::mutation::Mutations;
use crate::{Branch, Kind, Mutation, Outcome, Reason, Stage, Transaction};

/// The next move of phase one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Answers are awaited.
    Wait,
    /// These two-phase branches may be asked to prepare: nothing of it shows.
    Prepare(Vec<u16>),
    /// These compensable branches may execute, once that is on record.
    Execute(Vec<u16>),
    /// Phase one is over.
    Decide(Outcome, Reason),
}

/// What the transaction does next. Called after every change of an undecided transaction.
pub(crate) fn next(transaction: &Transaction, mutations: Mutations) -> Next {
    if let Some(reason) = &transaction.settling {
        return settled(transaction, reason);
    }
    if transaction.stage() == Stage::Open {
        return Next::Wait;
    }
    if let Some(reason) = refusal(transaction) {
        return Next::Decide(Outcome::Rollback, reason);
    }
    if mutations.has(Mutation::DecisionByMajority) && majority(transaction) {
        return Next::Decide(Outcome::Commit, Reason::AllYes);
    }
    let prepares = callable(transaction, Kind::TwoPhase);
    if !prepares.is_empty() {
        return Next::Prepare(prepares);
    }
    let early = mutations.has(Mutation::ExecutesBeforeVotes);
    if !early && !all_in_favour(transaction, Kind::TwoPhase) {
        return Next::Wait;
    }
    let executes = callable(transaction, Kind::Compensable);
    if !executes.is_empty() {
        return Next::Execute(executes);
    }
    let all = transaction.branches.iter().filter(|branch| branch.plan.kind != Kind::Deferred);
    if !{ all }.all(|branch| branch.ballot.is_in_favour()) {
        return Next::Wait;
    }
    Next::Decide(Outcome::Commit, Reason::AllYes)
}

/// One participant alone decides, and was asked.
fn settled(transaction: &Transaction, reason: &Reason) -> Next {
    let ballots = || transaction.branches.iter().map(|branch| branch.ballot);
    if ballots().any(|ballot| ballot == Ballot::Committed) {
        Next::Decide(Outcome::Commit, Reason::Settled)
    } else if ballots().any(|ballot| ballot == Ballot::RolledBack) {
        Next::Decide(Outcome::Rollback, reason.clone())
    } else {
        Next::Wait
    }
}

/// The first no, in the order of the branches.
fn refusal(transaction: &Transaction) -> Option<Reason> {
    let (number, branch) =
        transaction.numbered().find(|(_, branch)| branch.ballot == Ballot::No)?;
    let text = branch.last_error.as_deref().cloned().unwrap_or_default();
    Some(Reason::No { branch: number, text })
}

fn majority(transaction: &Transaction) -> bool {
    let yes = transaction.branches.iter().filter(|branch| branch.ballot.is_in_favour()).count();
    yes * 2 >= transaction.branches.len()
}

fn all_in_favour(transaction: &Transaction, kind: Kind) -> bool {
    let mut of_kind = transaction.branches.iter().filter(|branch| branch.plan.kind == kind);
    of_kind.all(|branch| branch.ballot.is_in_favour())
}

/// The branches of a kind that were not called and wait for nothing any more.
fn callable(transaction: &Transaction, kind: Kind) -> Vec<u16> {
    let ready = |branch: &Branch| {
        let mut before = branch.plan.after.iter();
        before.all(|number| transaction.branch(*number).ballot.is_in_favour())
    };
    transaction
        .numbered()
        .filter(|(_, branch)| branch.plan.kind == kind && branch.ballot == Ballot::NotCalled)
        .filter(|(_, branch)| ready(branch))
        .map(|(number, _)| number)
        .collect()
}

/// A recovered coordinator does not know which prepares had left: any may have, so each counts as
/// called. Visible work is on record before it starts, so the records are right about that. An
/// interactive transaction may go on, and then its prepares are asked in their order as ever.
pub(crate) fn assume_prepares_called(transaction: &mut Transaction) {
    let open = transaction.open;
    let remembered = open || transaction.options.one_phase;
    for branch in &mut transaction.branches {
        // A transaction that was written anew says of a branch that it was called already.
        let called = matches!(branch.ballot, Ballot::NotCalled | Ballot::Unanswered);
        if branch.plan.kind == Kind::TwoPhase && !branch.plan.by_initiator && called {
            branch.reached = remembered;
            branch.ballot = if open { Ballot::NotCalled } else { Ballot::Unanswered };
        }
    }
}
