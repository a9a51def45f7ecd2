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
//! 4. A commit after a rollback, or a rollback after a commit, is a contradiction: reported, never
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

/// Decides what to do with `operation` on a branch of which `row` is remembered.
#[must_use]
pub fn judge(row: Option<&GuardRow>, operation: Operation, mutations: Mutations) -> Verdict {
    let Some(row) = row else { return judge_unknown(operation, mutations) };
    match operation {
        Operation::Prepare => judge_prepare(row, mutations),
        Operation::Commit => judge_commit(row, mutations),
        Operation::Rollback => judge_rollback(row),
        Operation::Execute => judge_execute(row),
        Operation::Compensate => judge_compensate(row),
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
        (Operation::Prepare, Work::ReadOnly) => (row(GuardState::ReadOnly, None), Reply::ReadOnly),
        (Operation::Execute, Work::Done(result)) => {
            (row(GuardState::Executed, result.clone()), Reply::Yes(result))
        }
        (Operation::Prepare | Operation::Execute, Work::No(reason)) => {
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
        Operation::Prepare | Operation::Execute => Verdict::Apply,
        Operation::Rollback => Verdict::Remember(row(GuardState::RolledBack), Reply::Acknowledged),
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

fn judge_execute(row: &GuardRow) -> Verdict {
    match row.state {
        GuardState::Executed => Verdict::Repeat(Reply::Yes(row.note.clone())),
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

#[cfg(test)]
mod tests {
    use super::*;
    use Operation::{Commit, Compensate, Execute, Prepare, Rollback};

    /// Plays operations against one branch whose service does what `work` says, and writes down
    /// each answer and how often the service really worked.
    fn play(work: &Work, operations: &[Operation]) -> (String, usize) {
        let (mut row, mut applied, mut answers) = (None, 0, Vec::new());
        for operation in operations {
            let reply = match judge(row.as_ref(), *operation, Mutations::default()) {
                Verdict::Apply => {
                    applied += 1;
                    let done = match operation {
                        Prepare | Execute => work.clone(),
                        Commit | Rollback | Compensate => Work::Done(None),
                    };
                    let (next, reply) = settle(*operation, done);
                    row = Some(next);
                    Ok(reply)
                }
                Verdict::Remember(next, reply) => {
                    row = Some(next);
                    Ok(reply)
                }
                Verdict::Repeat(reply) => Ok(reply),
                Verdict::Refuse(contradiction) => Err(contradiction),
            };
            answers.push(match reply {
                Ok(Reply::Yes(_)) => "yes".to_owned(),
                Ok(Reply::ReadOnly) => "read_only".to_owned(),
                Ok(Reply::No(reason)) => format!("no({reason})"),
                Ok(Reply::Acknowledged) => "ack".to_owned(),
                Err(contradiction) => contradiction.code().to_owned(),
            });
        }
        (answers.join(" "), applied)
    }

    fn check(work: &Work, operations: &[Operation], expected: &str, applied: usize) {
        let (answers, times) = play(work, operations);
        assert_eq!((answers.as_str(), times), (expected, applied), "{operations:?}");
    }

    fn yes() -> Work {
        Work::Done(None)
    }

    #[test]
    fn repeated_operations_answer_alike_and_work_once() {
        check(&yes(), &[Prepare, Prepare, Commit, Commit, Commit], "yes yes ack ack ack", 2);
        check(&yes(), &[Prepare, Rollback, Rollback], "yes ack ack", 2);
        check(&yes(), &[Execute, Execute, Compensate, Compensate], "yes yes ack ack", 2);
    }

    #[test]
    fn a_rollback_that_overtakes_its_prepare_is_remembered() {
        let late = format!("ack no({LATE_REASON}) ack");
        check(&yes(), &[Rollback, Prepare, Rollback], &late, 0);
        check(&yes(), &[Compensate, Execute, Compensate], &late, 0);
    }

    #[test]
    fn a_no_is_repeated_with_its_reason() {
        let no = Work::No("overdrawn".to_owned());
        check(&no, &[Prepare, Prepare, Rollback], "no(overdrawn) no(overdrawn) ack", 1);
        check(&no, &[Execute, Compensate, Execute], "no(overdrawn) ack no(overdrawn)", 1);
    }

    #[test]
    fn a_refused_execute_asks_the_service_again_until_it_is_compensated() {
        let no = Work::No("closed".to_owned());
        check(&no, &[Execute, Execute, Execute], "no(closed) no(closed) no(closed)", 3);
        check(&no, &[Execute, Compensate, Compensate, Execute], "no(closed) ack ack no(closed)", 1);
    }

    #[test]
    fn contradictions_are_reported_never_acknowledged() {
        check(&yes(), &[Commit], "never_prepared", 0);
        check(&yes(), &[Rollback, Commit], "ack already_rolled_back", 0);
        check(&yes(), &[Prepare, Commit, Rollback], "yes ack already_committed", 2);
        check(&yes(), &[Prepare, Execute], "yes wrong_kind", 1);
        check(&yes(), &[Execute, Commit], "yes wrong_kind", 1);
    }

    #[test]
    fn read_only_has_no_phase_two_but_tolerates_one() {
        check(&Work::ReadOnly, &[Prepare, Prepare, Commit], "read_only read_only ack", 1);
        check(&Work::ReadOnly, &[Prepare, Rollback], "read_only ack", 1);
    }
}
