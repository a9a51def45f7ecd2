//! Deliberate bugs, each behind a switch, that prove the checkers have no hole. The switch exists
//! only with the feature `mutations`, which no shipped program turns on; without it every question
//! is answered "no" at compile time.

/// One deliberate bug. A checker that stays green with it switched on is a checker with a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mutation {
    /// Effects leave a step before its records are durable.
    EffectsBeforeSync,
    /// A recovered transaction that must roll back sends no rollback.
    RollbackForgottenOnRecovery,
    /// The guard accepts a prepare that arrives after the rollback.
    PrepareAfterRollback,
    /// Commit is decided when most branches, not all, have voted yes.
    DecisionByMajority,
    /// Recovery does not re-arm deadlines and retries.
    TimersLostOnRecovery,
    /// A second acknowledgement of one branch counts for another.
    AcknowledgementCountedTwice,
    /// The decision may be changed by a vote that arrives after it.
    DecisionChangedByLateVote,
    /// The guard applies a repeated commit a second time.
    CommitAppliedTwice,
    /// A branch whose answer never came is left out of the rollback.
    UnansweredLeftOutOfRollback,
    /// A timeout in phase two turns the commit into a rollback.
    TimeoutInPhaseTwoRollsBack,
    /// The guard acknowledges a commit for a branch that it has never prepared.
    CommitWithoutPrepareAcknowledged,
    /// The guard says no to an inquiry, and forgets that it did.
    InquiryNotRemembered,
    /// An initiator that fell silent counts as one that did nothing: its database is not asked.
    AbandonedWithoutInquiry,
    /// A commit in one phase that got no answer in time counts as not done.
    OnePhaseTimeoutRollsBack,
    /// A branch that its initiator works for is left out of the rollback.
    InitiatorsWorkLeftOutOfRollback,
    /// An initiator is told that its branch is enlisted, and no record says so.
    EnlistmentNotRecorded,
    /// A participant that knows no commit in one phase is believed to have done nothing, whatever
    /// another copy of it may have done.
    UnsupportedBelieved,
    /// Visible work starts before every prepare has voted.
    ExecutesBeforeVotes,
    /// Compensations all start at once.
    CompensationOrderIgnored,
    /// Deferred work does not wait for the commits.
    DeferredBeforeCommits,
    /// What comes last does not wait for other deferred work.
    LastDoesNotWait,
    /// A late answer to another call counts as the answer to the one under way.
    LateAnswerEndsTheCall,
    /// Whoever asks is told what is known before it is durable.
    RepliesBeforeSync,
    /// The journal may forget a transaction's old records before the new ones are durable.
    OldHomeLeftTooEarly,
    /// The journal is asked to forget one batch more than it may.
    TruncationOneBatchTooFar,
    /// A transaction that is written anew loses its decision.
    SnapshotDropsDecision,
    /// The guard acknowledges a rollback of what was never prepared, and forgets that it did.
    RollbackNotRemembered,
    /// The guard acknowledges a compensation of what was never executed, and forgets that it did.
    CompensateNotRemembered,
    /// The guard forgets that it said no.
    NoNotRemembered,
    /// A call that failed after the decision is not tried again.
    RetryNotArmed,
    /// Visible work starts before it is on record.
    ExecutingNotRecorded,
    /// The guard repeats the no of an execute for ever.
    RefusedExecuteRepeated,
    /// An event reaches a transaction that is set aside.
    SetAsideHandled,
    /// Nobody keeps the records of a transaction that could not be read.
    UnreadNotAtHome,
    /// A transaction that could not be read is not known.
    UnreadForgotten,
    /// A transaction that could not be read is written anew.
    UnreadWrittenAnew,
    /// An initiator that gave up without an answer believes that nothing was done.
    SilenceTakenForRefusal,
    /// An initiator that is refused forgets that an earlier request of its kind had no answer.
    EarlierSilenceForgotten,
    /// More transactions are taken than may be live.
    LimitNotHeld,
    /// Deferred work is done after a rollback too.
    DeferredAfterRollback,
    /// Something happens to a recovered transaction before it is taken up.
    DormantNotTakenUp,
    /// Those of one part of what was recovered are never taken up by themselves.
    DormantPartForgotten,
    /// The history notes that it holds what has ended in batches that are not durable yet.
    ArchivedMarkTooHigh,
    /// The journal may forget a transaction that has ended before the history has it.
    EndedForgottenTooEarly,
    /// What has ended goes to the history before its end is durable.
    EndArchivedBeforeSync,
}

impl Mutation {
    /// Every deliberate bug, for a checker that runs through them.
    pub const ALL: [Self; 45] = [
        Self::EffectsBeforeSync,
        Self::RollbackForgottenOnRecovery,
        Self::PrepareAfterRollback,
        Self::DecisionByMajority,
        Self::TimersLostOnRecovery,
        Self::AcknowledgementCountedTwice,
        Self::DecisionChangedByLateVote,
        Self::CommitAppliedTwice,
        Self::UnansweredLeftOutOfRollback,
        Self::TimeoutInPhaseTwoRollsBack,
        Self::CommitWithoutPrepareAcknowledged,
        Self::InquiryNotRemembered,
        Self::AbandonedWithoutInquiry,
        Self::OnePhaseTimeoutRollsBack,
        Self::InitiatorsWorkLeftOutOfRollback,
        Self::EnlistmentNotRecorded,
        Self::UnsupportedBelieved,
        Self::ExecutesBeforeVotes,
        Self::CompensationOrderIgnored,
        Self::DeferredBeforeCommits,
        Self::LastDoesNotWait,
        Self::LateAnswerEndsTheCall,
        Self::RepliesBeforeSync,
        Self::OldHomeLeftTooEarly,
        Self::TruncationOneBatchTooFar,
        Self::SnapshotDropsDecision,
        Self::RollbackNotRemembered,
        Self::CompensateNotRemembered,
        Self::NoNotRemembered,
        Self::RetryNotArmed,
        Self::ExecutingNotRecorded,
        Self::RefusedExecuteRepeated,
        Self::SetAsideHandled,
        Self::UnreadNotAtHome,
        Self::UnreadForgotten,
        Self::UnreadWrittenAnew,
        Self::SilenceTakenForRefusal,
        Self::EarlierSilenceForgotten,
        Self::LimitNotHeld,
        Self::DeferredAfterRollback,
        Self::DormantNotTakenUp,
        Self::DormantPartForgotten,
        Self::ArchivedMarkTooHigh,
        Self::EndedForgottenTooEarly,
        Self::EndArchivedBeforeSync,
    ];
}

/// The switch: at most one deliberate bug at a time, none in a shipped program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mutations {
    #[cfg(feature = "mutations")]
    active: Option<Mutation>,
}

impl Mutations {
    /// Switches one deliberate bug on.
    #[cfg(feature = "mutations")]
    #[must_use]
    pub const fn only(mutation: Mutation) -> Self {
        Self { active: Some(mutation) }
    }

    /// Says whether a deliberate bug is on.
    #[cfg(feature = "mutations")]
    #[must_use]
    pub fn has(self, mutation: Mutation) -> bool {
        self.active == Some(mutation)
    }

    /// Says whether a deliberate bug is on: never, in a shipped program.
    #[cfg(not(feature = "mutations"))]
    #[must_use]
    #[inline(always)]
    pub const fn has(self, _mutation: Mutation) -> bool {
        false
    }
}
