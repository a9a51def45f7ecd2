//! Deliberate bugs, and the proof that the checker has no hole where each is: the configuration in
//! which it shows, the property that catches it, and after how many steps. Without the bug the same
//! configuration is clean: `configurations` are explored to exhaustion.
//!
//! Each is caught by the property that speaks of it, where the wrong has been done. Termination,
//! which looks ahead, often sees it coming some steps earlier.

use unanimity_core::{Mutation, Mutations};

use crate::configurations::{self as worlds, named};
use crate::properties::names;
use crate::run::{Counterexample, shortest_counterexample};
use crate::setup::Setup;

/// One deliberate bug, and how it is caught.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mutant {
    /// The bug.
    pub mutation: Mutation,
    /// The name of the configuration in which it shows.
    pub configuration: &'static str,
    /// The property that catches it.
    pub property: &'static str,
    /// After how many steps.
    pub steps: usize,
}

const fn caught(
    mutation: Mutation,
    configuration: &'static str,
    property: &'static str,
    steps: usize,
) -> Mutant {
    Mutant { mutation, configuration, property, steps }
}

/// Every deliberate bug that shows in a configuration of the model.
pub const ALL: &[Mutant] = &[
    caught(Mutation::EffectsBeforeSync, worlds::CALM, names::DURABLE_FIRST, 1),
    caught(Mutation::RollbackForgottenOnRecovery, worlds::ONE_CRASH, names::FORGOTTEN_LAST, 5),
    caught(Mutation::PrepareAfterRollback, worlds::LIMITS, names::SETTLED_STAYS, 6),
    caught(Mutation::DecisionByMajority, worlds::CALM, names::COMMIT_VALIDITY, 4),
    caught(Mutation::TimersLostOnRecovery, worlds::ONE_CRASH, names::NEXT_ACTION, 9),
    caught(Mutation::AcknowledgementCountedTwice, worlds::LOSSY, names::FORGOTTEN_LAST, 10),
    caught(Mutation::DecisionChangedByLateVote, worlds::LIMITS, names::STABILITY, 7),
    caught(Mutation::CommitAppliedTwice, worlds::LOSSY, names::AT_MOST_ONCE, 9),
    caught(Mutation::UnansweredLeftOutOfRollback, worlds::LIMITS, names::FORGOTTEN_LAST, 4),
    caught(Mutation::TimeoutInPhaseTwoRollsBack, worlds::LIMITS, names::STABILITY, 7),
    caught(Mutation::CommitWithoutPrepareAcknowledged, worlds::AMNESIA, names::FORGOTTEN_LAST, 12),
    caught(Mutation::InquiryNotRemembered, worlds::INQUIRY, names::FORGOTTEN_LAST, 8),
    caught(Mutation::AbandonedWithoutInquiry, worlds::INQUIRY, names::AGREEMENT, 6),
    caught(Mutation::OnePhaseTimeoutRollsBack, worlds::ONE_PHASE, names::AGREEMENT, 4),
    caught(
        Mutation::InitiatorsWorkLeftOutOfRollback,
        worlds::INTERACTIVE,
        names::FORGOTTEN_LAST,
        6,
    ),
    caught(Mutation::EnlistmentNotRecorded, worlds::INTERACTIVE, names::DURABLE_FIRST, 3),
    caught(Mutation::UnsupportedBelieved, worlds::ONE_PHASE, names::AGREEMENT, 6),
    caught(Mutation::ExecutesBeforeVotes, worlds::VISIBLE, names::PLAN_ORDER, 6),
    caught(Mutation::CompensationOrderIgnored, worlds::SAGA, names::SAGA, 9),
    caught(Mutation::DeferredBeforeCommits, worlds::MIXED, names::PLAN_ORDER, 9),
    caught(Mutation::LastDoesNotWait, worlds::NOTICE_LAST, names::PLAN_ORDER, 10),
    caught(Mutation::DeferredAfterRollback, worlds::MIXED, names::DEFERRED, 7),
    caught(Mutation::LateAnswerEndsTheCall, worlds::LOSSY, names::ONE_CALL, 8),
];

impl Mutant {
    /// The world with the bug in it; `None` if the table names no configuration.
    #[must_use]
    pub fn setup(&self) -> Option<Setup> {
        let setup = named(self.configuration)?.setup;
        Some(Setup { mutations: Mutations::only(self.mutation), ..setup })
    }

    /// How the bug is caught; `None` if it is not.
    #[must_use]
    pub fn hunt(&self) -> Option<Counterexample> {
        shortest_counterexample(&self.setup()?, Some(self.property))
    }
}
