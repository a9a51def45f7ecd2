//! What an exploration must have met on its way: a checker that never sees a late prepare refused
//! has not shown that late prepares are harmless. Each is a "sometimes" property.

use unanimity_core::guard::{Contradiction, GuardState};
use unanimity_core::{Fact, Operation, Outcome, Reason, Stage, Transaction};

use crate::participant::Said;
use crate::world::World;

/// Something that must be met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Milestone {
    /// Everything committed and complete.
    Committed,
    /// Rolled back and complete.
    RolledBack,
    /// A no decided.
    RollbackByVote,
    /// Phase one's deadline decided.
    RollbackByDeadline,
    /// The limit for the whole decided.
    RollbackByLimit,
    /// A restart decided.
    RollbackByRecovery,
    /// Somebody's request decided.
    RollbackByRequest,
    /// A prepare came after the rollback and was refused.
    LatePrepareRefused,
    /// A second commit was acknowledged and not applied.
    RepeatedCommitAnswered,
    /// The coordinator was down while preparing.
    DownWhilePreparing,
    /// The coordinator was down while executing.
    DownWhileExecuting,
    /// The coordinator was down while committing.
    DownWhileCommitting,
    /// The coordinator was down while rolling back.
    DownWhileRollingBack,
    /// The coordinator was down after the end.
    DownAfterTheEnd,
    /// A branch was parked.
    Parked,
    /// The limit for the whole passed after the decision.
    Overdue,
    /// A participant in doubt was told to commit.
    ToldToCommit,
    /// A participant in doubt was told to roll back, by presumption or not.
    ToldToRollBack,
    /// A participant that lost its memory reported that it had never prepared.
    AmnesiaReported,
    /// A checkpoint replaced the records before it.
    Checkpointed,
    /// Executed work was compensated.
    Compensated,
    /// Deferred work was done.
    DeferredDone,
    /// An interactive one was left, and rolled back.
    Abandoned,
    /// The participant that alone decides was asked, and had committed.
    SettledByCommit,
    /// A participant that knows no commit in one phase was asked to prepare.
    Declined,
    /// The coordinator was down while it was open.
    DownWhileOpen,
    /// A deferred branch told of a rollback.
    ToldOfRollback,
    /// An operator settled a branch against the decision.
    Mixed,
    /// The initiator's own work was refused, because it came too late.
    WorkRefused,
}

impl Milestone {
    /// Its name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Committed => "reaches commit",
            Self::RolledBack => "reaches rollback",
            Self::RollbackByVote => "reaches rollback by a no",
            Self::RollbackByDeadline => "reaches rollback by phase one's deadline",
            Self::RollbackByLimit => "reaches rollback by the limit for the whole",
            Self::RollbackByRecovery => "reaches rollback by recovery",
            Self::RollbackByRequest => "reaches rollback by request",
            Self::LatePrepareRefused => "reaches a late prepare refused",
            Self::RepeatedCommitAnswered => "reaches a repeated commit answered",
            Self::DownWhilePreparing => "reaches a crash while preparing",
            Self::DownWhileExecuting => "reaches a crash while executing",
            Self::DownWhileCommitting => "reaches a crash while committing",
            Self::DownWhileRollingBack => "reaches a crash while rolling back",
            Self::DownAfterTheEnd => "reaches a crash after the end",
            Self::Parked => "reaches a parked branch",
            Self::Overdue => "reaches overdue",
            Self::ToldToCommit => "reaches an inquiry answered with commit",
            Self::ToldToRollBack => "reaches an inquiry answered with rollback",
            Self::AmnesiaReported => "reaches a lost memory reported",
            Self::Checkpointed => "reaches a checkpoint",
            Self::Compensated => "reaches a compensation",
            Self::DeferredDone => "reaches deferred work done",
            Self::Abandoned => "reaches rollback of an abandoned one",
            Self::SettledByCommit => "reaches commit by asking the one that decides",
            Self::Declined => "reaches a prepare instead of one phase",
            Self::DownWhileOpen => "reaches a crash while open",
            Self::ToldOfRollback => "reaches a notice of a rollback",
            Self::Mixed => "reaches a mixed outcome",
            Self::WorkRefused => "reaches an initiator's late work refused",
        }
    }

    /// Whether this state is it.
    #[must_use]
    pub fn is_met(self, world: &World) -> bool {
        match self {
            Self::Committed => world.told.completed.contains(&Outcome::Commit),
            Self::RolledBack => world.told.completed.contains(&Outcome::Rollback),
            Self::RollbackByVote => decided_by(world, |r| matches!(r, Reason::No { .. })),
            Self::RollbackByDeadline => {
                decided_by(world, |r| matches!(r, Reason::PrepareTimeout | Reason::ExecuteTimeout))
            }
            Self::RollbackByLimit => decided_by(world, |r| *r == Reason::Timeout),
            Self::RollbackByRecovery => decided_by(world, |r| *r == Reason::Restarted),
            Self::RollbackByRequest => decided_by(world, |r| matches!(r, Reason::Requested(_))),
            Self::LatePrepareRefused => said(world, Operation::Prepare, Said::TooLate),
            Self::RepeatedCommitAnswered => repeated_commit(world),
            Self::DownWhilePreparing => down_in(world, Stage::Preparing),
            Self::DownWhileExecuting => down_in(world, Stage::Executing),
            Self::DownWhileCommitting => down_in(world, Stage::Committing),
            Self::DownWhileRollingBack => down_in(world, Stage::RollingBack),
            Self::DownAfterTheEnd => {
                world.coordinator.is_none()
                    && world.journal.durable_facts().any(|fact| *fact == Fact::Ended)
            }
            Self::Parked => world.live().is_some_and(|t| {
                let parks = |failures| t.options.retry.parks(failures);
                t.decision.is_some() && t.branches.iter().any(|branch| parks(branch.failures))
            }),
            Self::Overdue => world.live().is_some_and(|t| t.overdue),
            Self::ToldToCommit => world.words.iter().any(|w| w.outcome == Outcome::Commit),
            Self::ToldToRollBack => world.words.iter().any(|w| w.outcome == Outcome::Rollback),
            Self::AmnesiaReported => {
                said(world, Operation::Commit, Said::Error(Contradiction::NeverPrepared))
            }
            Self::Checkpointed => world.journal.forgotten > 0,
            Self::Compensated => any_applied(world, Operation::Compensate),
            Self::DeferredDone => {
                any_applied(world, Operation::Execute)
                    && world.journal.durable_decision() == Some(Outcome::Commit)
            }
            Self::Abandoned => decided_by(world, |r| *r == Reason::Abandoned),
            Self::SettledByCommit => decided_by(world, |r| *r == Reason::Settled),
            Self::Declined => world.setup().one_phase && any_applied(world, Operation::Prepare),
            Self::DownWhileOpen => down_in(world, Stage::Open),
            Self::ToldOfRollback => {
                let told = |number: usize| world.setup().branches[number].notice;
                let rolled_back = world.journal.durable_decision() == Some(Outcome::Rollback);
                let mut numbered = world.participants.iter().enumerate();
                rolled_back && numbered.any(|(n, p)| told(n) && p.applied(Operation::Execute) > 0)
            }
            Self::Mixed => world.told.mixed,
            Self::WorkRefused => world.initiator.refused,
        }
    }
}

fn decided_by(world: &World, which: impl Fn(&Reason) -> bool) -> bool {
    world.journal.durable_facts().any(|fact| match fact {
        Fact::Decided { reason, .. } => which(reason),
        Fact::Begun { .. }
        | Fact::Enlisted { .. }
        | Fact::Resolved { .. }
        | Fact::Executing { .. }
        | Fact::Finished { .. }
        | Fact::Ended
        | Fact::Snapshot(_) => false,
    })
}

fn said(world: &World, operation: Operation, said: Said) -> bool {
    world.answers.iter().any(|answer| answer.call.operation == operation && answer.said == said)
}

fn any_applied(world: &World, operation: Operation) -> bool {
    world.participants.iter().any(|participant| participant.applied(operation) > 0)
}

/// Two acknowledgements of two commits are on their way from one branch that has applied one.
fn repeated_commit(world: &World) -> bool {
    (0..).zip(&world.participants).any(|(number, participant)| {
        let acknowledged = world.answers.iter().filter(|answer| {
            answer.call.branch == number
                && answer.call.operation == Operation::Commit
                && answer.said == Said::Acknowledged
        });
        participant.state() == Some(GuardState::Committed) && acknowledged.count() > 1
    })
}

fn down_in(world: &World, stage: Stage) -> bool {
    world.coordinator.is_none()
        && world
            .replay()
            .is_ok_and(|found| found.iter().map(Transaction::stage).any(|s| s == stage))
}
