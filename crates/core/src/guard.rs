//! The participant's guard: what a participant remembers of one branch, and what it answers to any
//! operation on that branch, however late, repeated or out of order it comes.
//!
//! The guard decides; it stores nothing. A store (see the SDK) reads the branch's [`GuardRow`],
//! asks [`judge`], does the service's work where the verdict says [`Verdict::Apply`], and writes
//! the row that [`settle`] returns, all in *one* local transaction of the participant's own
//! database.
//!
//! The rules, told as stories:
//! 1. A repeated operation answers as the first time did and does nothing. One exception: an
//!    execute that was refused asks the service again. A deferred branch is called until it
//!    succeeds, and a no that were repeated for ever would keep it from that; a compensable branch
//!    that said no is compensated, and that ends it.
//! 2. The rollback overtakes the prepare: it is acknowledged and remembered, nothing is undone, and
//!    the prepare that arrives later is refused. (An "empty rollback" and a "late prepare".)
//! 3. A commit for a branch that was never prepared is an error that is reported, never
//!    acknowledged: this participant has lost its memory, or somebody calls the wrong one.
//! 4. A commit in one phase is a prepare and a commit in one local transaction. It answers as the
//!    prepare would have, and the branch is committed or remembers its no.
//! 5. An inquiry asks whether work is there that the service commits by itself. Where it is not,
//!    the inquiry is remembered as a rollback is, and the work that comes later is refused: the
//!    answer stays true.
//! 6. A commit after a rollback, or a rollback after a commit, is a contradiction: reported, never
//!    acknowledged.

use crate::mutation::Mutations;
use crate::{Mutation, Operation};

/// What the participant remembers of one branch. Numbers are for storage and are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum GuardState {
    /// Prepared: the service has promised that it can commit and that it can roll back.
    Prepared = 1,
    /// The prepared work is committed.
    Committed = 2,
    /// Rolled back; also where nothing was ever prepared.
    RolledBack = 3,
    /// Voted no; nothing of the work remains.
    VotedNo = 4,
    /// Voted read-only: nothing to commit, no part in phase two.
    ReadOnly = 5,
    /// Executed: the work of a compensable or deferred branch is visible.
    Executed = 6,
    /// Compensated; also where nothing was ever executed.
    Compensated = 7,
}

impl GuardState {
    /// The state that a stored number stands for; `None` for a number that this version does not
    /// know.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Prepared,
            2 => Self::Committed,
            3 => Self::RolledBack,
            4 => Self::VotedNo,
            5 => Self::ReadOnly,
            6 => Self::Executed,
            7 => Self::Compensated,
            _ => return None,
        })
    }
}

/// The participant's durable memory of one branch: where it stands, and what it has answered.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuardRow {
    /// Where the branch stands.
    pub state: GuardState,
    /// The reason of a no, or the result of an execute, to be repeated word for word.
    pub note: Option<String>,
}

/// What to do with an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Do the service's work for this operation, then write the row from [`settle`].
    Apply,
    /// Do no work, but remember: write this row, and answer.
    Remember(GuardRow, Reply),
    /// Do nothing; answer as before.
    Repeat(Reply),
    /// Do nothing; report the contradiction.
    Refuse(Contradiction),
}

/// What a participant answers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reply {
    /// Yes to a prepare or execute, with the result of an execute.
    Yes(Option<String>),
    /// The prepare found nothing to commit.
    ReadOnly,
    /// No, with the reason that reaches the initiator.
    No(String),
    /// A commit, rollback or compensate is done.
    Acknowledged,
}

/// An operation that cannot be right. It is reported and never acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Contradiction {
    /// A commit for a branch that was never prepared here.
    NeverPrepared,
    /// A commit for a branch that is rolled back.
    AlreadyRolledBack,
    /// A rollback for a branch that is committed.
    AlreadyCommitted,
    /// A two-phase operation on a compensable or deferred branch, or the reverse.
    WrongKind,
}

impl Contradiction {
    /// Every one of them.
    pub const ALL: [Self; 4] =
        [Self::NeverPrepared, Self::AlreadyRolledBack, Self::AlreadyCommitted, Self::WrongKind];

    /// The stable code that goes over the wire.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::NeverPrepared => "never_prepared",
            Self::AlreadyRolledBack => "already_rolled_back",
            Self::AlreadyCommitted => "already_committed",
            Self::WrongKind => "wrong_kind",
        }
    }
}

/// What the service says when its work for an operation is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    /// Prepared, executed, committed, rolled back or compensated, with a result where there is one.
    Done(Option<String>),
    /// Prepare found nothing to commit.
    ReadOnly,
    /// Prepare or execute refuses; the service's own changes of this local transaction are undone.
    No(String),
}

/// The reason a late prepare or execute is refused with.
pub const LATE_REASON: &str = "the transaction was already rolled back here";

/// The reason of a no to an inquiry.
pub const NOT_THERE_REASON: &str = "the work is not there, and from now on it will be refused";

/// Decides what to do with `operation` on a branch of which `row` is remembered.
#[must_use]
pub fn judge(row: Option<&GuardRow>, operation: Operation, mutations: Mutations) -> Verdict {
    let Some(row) = row else { return judge_unknown(operation, mutations) };
    match operation {
        Operation::Prepare => judge_prepare(row, mutations),
        Operation::Commit => judge_commit(row, mutations),
        Operation::Rollback => judge_rollback(row),
        Operation::Execute => judge_execute(row, mutations),
        Operation::Compensate => judge_compensate(row),
        Operation::CommitOnePhase => judge_commit_one_phase(row),
        Operation::Inquire => judge_inquire(row),
    }
}

/// Turns the service's word into the row to write, if any is due, and the answer to give.
///
/// # Panics
/// If the service says no or read-only to an operation that may not be refused: the store must
/// treat such an error as "nothing happened" and answer it as an error, before it comes here.
#[must_use]
pub fn settle(operation: Operation, work: Work) -> (GuardRow, Reply) {
    let row = |state, note| GuardRow { state, note };
    match (operation, work) {
        (Operation::Prepare, Work::Done(result)) => {
            (row(GuardState::Prepared, result.clone()), Reply::Yes(result))
        }
        (Operation::CommitOnePhase, Work::Done(result)) => {
            (row(GuardState::Committed, result.clone()), Reply::Yes(result))
        }
        (Operation::Prepare | Operation::CommitOnePhase, Work::ReadOnly) => {
            (row(GuardState::ReadOnly, None), Reply::ReadOnly)
        }
        (Operation::Execute, Work::Done(result)) => {
            (row(GuardState::Executed, result.clone()), Reply::Yes(result))
        }
        (Operation::Prepare | Operation::Execute | Operation::CommitOnePhase, Work::No(reason)) => {
            (row(GuardState::VotedNo, Some(reason.clone())), Reply::No(reason))
        }
        (Operation::Commit, Work::Done(_)) => {
            (row(GuardState::Committed, None), Reply::Acknowledged)
        }
        (Operation::Rollback, Work::Done(_)) => {
            (row(GuardState::RolledBack, None), Reply::Acknowledged)
        }
        (Operation::Compensate, Work::Done(_)) => {
            (row(GuardState::Compensated, None), Reply::Acknowledged)
        }
        (operation, work) => panic!("{operation:?} cannot end as {work:?}"),
    }
}

fn judge_unknown(operation: Operation, mutations: Mutations) -> Verdict {
    let row = |state| GuardRow { state, note: None };
    match operation {
        Operation::Prepare | Operation::Execute | Operation::CommitOnePhase => Verdict::Apply,
        Operation::Inquire if mutations.has(Mutation::InquiryNotRemembered) => {
            Verdict::Repeat(Reply::No(NOT_THERE_REASON.to_owned()))
        }
        Operation::Inquire => {
            let reply = Reply::No(NOT_THERE_REASON.to_owned());
            Verdict::Remember(row(GuardState::RolledBack), reply)
        }
        Operation::Rollback if mutations.has(Mutation::RollbackNotRemembered) => {
            Verdict::Repeat(Reply::Acknowledged)
        }
        Operation::Rollback => Verdict::Remember(row(GuardState::RolledBack), Reply::Acknowledged),
        Operation::Compensate if mutations.has(Mutation::CompensateNotRemembered) => {
            Verdict::Repeat(Reply::Acknowledged)
        }
        Operation::Compensate => {
            Verdict::Remember(row(GuardState::Compensated), Reply::Acknowledged)
        }
        Operation::Commit if mutations.has(Mutation::CommitWithoutPrepareAcknowledged) => {
            Verdict::Remember(row(GuardState::Committed), Reply::Acknowledged)
        }
        Operation::Commit => Verdict::Refuse(Contradiction::NeverPrepared),
    }
}

fn no(row: &GuardRow) -> Reply {
    Reply::No(row.note.clone().unwrap_or_else(|| LATE_REASON.to_owned()))
}

fn judge_prepare(row: &GuardRow, mutations: Mutations) -> Verdict {
    match row.state {
        GuardState::Prepared | GuardState::Committed => {
            Verdict::Repeat(Reply::Yes(row.note.clone()))
        }
        GuardState::ReadOnly => Verdict::Repeat(Reply::ReadOnly),
        GuardState::RolledBack if mutations.has(Mutation::PrepareAfterRollback) => Verdict::Apply,
        GuardState::VotedNo if mutations.has(Mutation::NoNotRemembered) => Verdict::Apply,
        GuardState::RolledBack | GuardState::VotedNo => Verdict::Repeat(no(row)),
        GuardState::Executed | GuardState::Compensated => Verdict::Refuse(Contradiction::WrongKind),
    }
}

fn judge_commit(row: &GuardRow, mutations: Mutations) -> Verdict {
    match row.state {
        GuardState::Prepared => Verdict::Apply,
        GuardState::Committed if mutations.has(Mutation::CommitAppliedTwice) => Verdict::Apply,
        GuardState::Committed | GuardState::ReadOnly => Verdict::Repeat(Reply::Acknowledged),
        GuardState::RolledBack | GuardState::VotedNo => {
            Verdict::Refuse(Contradiction::AlreadyRolledBack)
        }
        GuardState::Executed | GuardState::Compensated => Verdict::Refuse(Contradiction::WrongKind),
    }
}

fn judge_rollback(row: &GuardRow) -> Verdict {
    match row.state {
        GuardState::Prepared => Verdict::Apply,
        GuardState::RolledBack | GuardState::VotedNo | GuardState::ReadOnly => {
            Verdict::Repeat(Reply::Acknowledged)
        }
        GuardState::Committed => Verdict::Refuse(Contradiction::AlreadyCommitted),
        GuardState::Executed | GuardState::Compensated => Verdict::Refuse(Contradiction::WrongKind),
    }
}

fn judge_execute(row: &GuardRow, mutations: Mutations) -> Verdict {
    match row.state {
        GuardState::Executed => Verdict::Repeat(Reply::Yes(row.note.clone())),
        GuardState::VotedNo if mutations.has(Mutation::RefusedExecuteRepeated) => {
            Verdict::Repeat(no(row))
        }
        GuardState::VotedNo => Verdict::Apply,
        GuardState::Compensated => Verdict::Repeat(no(row)),
        GuardState::Prepared
        | GuardState::Committed
        | GuardState::RolledBack
        | GuardState::ReadOnly => Verdict::Refuse(Contradiction::WrongKind),
    }
}

fn judge_compensate(row: &GuardRow) -> Verdict {
    match row.state {
        GuardState::Executed => Verdict::Apply,
        GuardState::Compensated => Verdict::Repeat(Reply::Acknowledged),
        // Nothing is to be undone, but an execute that arrives later must be refused.
        GuardState::VotedNo => {
            let row = GuardRow { state: GuardState::Compensated, note: row.note.clone() };
            Verdict::Remember(row, Reply::Acknowledged)
        }
        GuardState::Prepared
        | GuardState::Committed
        | GuardState::RolledBack
        | GuardState::ReadOnly => Verdict::Refuse(Contradiction::WrongKind),
    }
}

fn judge_commit_one_phase(row: &GuardRow) -> Verdict {
    match row.state {
        GuardState::Committed => Verdict::Repeat(Reply::Yes(row.note.clone())),
        GuardState::ReadOnly => Verdict::Repeat(Reply::ReadOnly),
        GuardState::RolledBack | GuardState::VotedNo => Verdict::Repeat(no(row)),
        // It was asked to prepare: whoever asked has not decided, and this is no decision.
        GuardState::Prepared | GuardState::Executed | GuardState::Compensated => {
            Verdict::Refuse(Contradiction::WrongKind)
        }
    }
}

fn judge_inquire(row: &GuardRow) -> Verdict {
    match row.state {
        GuardState::Committed => Verdict::Repeat(Reply::Yes(row.note.clone())),
        GuardState::RolledBack | GuardState::VotedNo => Verdict::Repeat(no(row)),
        GuardState::Prepared
        | GuardState::ReadOnly
        | GuardState::Executed
        | GuardState::Compensated => Verdict::Refuse(Contradiction::WrongKind),
    }
}

#[cfg(test)]
mod tests;
