//! The world as stateright sees it: states are worlds, actions are the world's, and every property
//! and milestone is looked at in every state.
//!
//! The model walks in representatives itself instead of asking stateright for its symmetry
//! reduction: version 0.31 applies that to depth-first searches only, and silently ignores it
//! breadth-first; depth-first, paths here grow as long as the longest walk without a repeated
//! state.

use std::sync::Arc;

use stateright::{Model, Property, Representative};

use crate::fairness::{self, Memory};
use crate::milestones::Milestone;
use crate::properties::{self, Verdict, names};
use crate::setup::Setup;
use crate::world::{Action, World};

/// One setup, to be explored.
#[derive(Clone, Debug)]
pub struct Protocol {
    setup: Arc<Setup>,
    milestones: Vec<Milestone>,
    /// The only property looked at, if not all are.
    only: Option<String>,
    memory: Arc<Memory>,
}

impl Protocol {
    /// The model of a setup, and what its exploration must meet.
    #[must_use]
    pub fn new(setup: Setup, milestones: &[Milestone]) -> Self {
        Self {
            setup: Arc::new(setup),
            milestones: milestones.to_vec(),
            only: None,
            memory: Arc::new(Memory::default()),
        }
    }

    /// The model of a setup in which a single property is looked at.
    #[must_use]
    pub fn judged_by(setup: Setup, property: &str) -> Self {
        Self { only: Some(property.to_owned()), ..Self::new(setup, &[]) }
    }

    /// How far the state furthest from rest is from it, of those looked at.
    #[must_use]
    pub fn steps_to_rest_max(&self) -> u16 {
        self.memory.steps_max()
    }

    /// AC5, where a participant that lost its memory is excused: its commit is refused forever, and
    /// shown as parked, because to call it complete would be a lie (FAULTS F28).
    ///
    /// # Errors
    /// Says how the fault-free schedule fails to end well.
    pub fn terminates(&self, world: &World) -> Verdict {
        if world.participants.iter().any(|participant| participant.forgot) {
            return Ok(());
        }
        fairness::terminates(world, &self.memory, normal)
    }

    /// The verdict of the property with this name on a state; `None` if there is no such property.
    #[must_use]
    pub fn verdict(&self, name: &str, world: &World) -> Option<Verdict> {
        Some(match name {
            names::AGREEMENT => properties::agreement(world),
            names::STABILITY => properties::stability(world),
            names::SETTLED_STAYS => properties::settled_stays_settled(world),
            names::COMMIT_VALIDITY => properties::commit_validity(world),
            names::NON_TRIVIALITY => properties::non_triviality(world),
            names::TERMINATION => self.terminates(world),
            names::DURABLE_FIRST => properties::durable_before_visible(world),
            names::AT_MOST_ONCE => properties::at_most_once(world),
            names::IN_ORDER => properties::in_order(world),
            names::PLAN_ORDER => properties::plan_order(world),
            names::SAGA => properties::saga_undone(world),
            names::DEFERRED => properties::deferred_iff_committed(world),
            names::NEXT_ACTION => properties::next_action(world),
            names::FORGOTTEN_LAST => properties::forgotten_last(world),
            names::NO_CONTRADICTION => properties::no_contradiction(world),
            names::RECOVERY_RESTORES => properties::recovery_restores(world),
            names::ONE_CALL => properties::one_call_at_a_time(world),
            names::UNBROKEN => properties::unbroken(world),
            _ => return None,
        })
    }
}

fn normal(world: World) -> World {
    if world.setup().symmetry { world.representative() } else { world }
}

/// A milestone as a stateright property: its conditions are plain functions, so each milestone
/// needs its own.
fn sometimes(milestone: Milestone) -> Property<Protocol> {
    macro_rules! table {
        ($($name:ident)*) => {
            match milestone {
                $(Milestone::$name => Property::sometimes(
                    milestone.name(),
                    |_, world| Milestone::$name.is_met(world),
                ),)*
            }
        };
    }
    table! {
        Committed RolledBack RollbackByVote RollbackByDeadline RollbackByLimit RollbackByRecovery
        RollbackByRequest LatePrepareRefused RepeatedCommitAnswered DownWhilePreparing
        DownWhileExecuting DownWhileCommitting DownWhileRollingBack DownAfterTheEnd Parked Overdue
        ToldToCommit ToldToRollBack AmnesiaReported Checkpointed Compensated DeferredDone Abandoned
        SettledByCommit Declined DownWhileOpen ToldOfRollback Mixed WorkRefused
    }
}

impl Model for Protocol {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![normal(World::new(&self.setup))]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        actions.extend(world.enabled());
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        next.apply(&action);
        // Most repeated deliveries change nothing: seen early, that is cheap.
        (next != *world).then(|| normal(next))
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut all: Vec<Property<Self>> = vec![
            Property::always(names::UNBROKEN, |_, w| properties::unbroken(w).is_ok()),
            Property::always(names::AGREEMENT, |_, w| properties::agreement(w).is_ok()),
            Property::always(names::STABILITY, |_, w| properties::stability(w).is_ok()),
            Property::always(names::SETTLED_STAYS, |_, w| {
                properties::settled_stays_settled(w).is_ok()
            }),
            Property::always(names::COMMIT_VALIDITY, |_, w| properties::commit_validity(w).is_ok()),
            Property::always(names::NON_TRIVIALITY, |_, w| properties::non_triviality(w).is_ok()),
            Property::always(names::DURABLE_FIRST, |_, w| {
                properties::durable_before_visible(w).is_ok()
            }),
            Property::always(names::AT_MOST_ONCE, |_, w| properties::at_most_once(w).is_ok()),
            Property::always(names::IN_ORDER, |_, w| properties::in_order(w).is_ok()),
            Property::always(names::PLAN_ORDER, |_, w| properties::plan_order(w).is_ok()),
            Property::always(names::SAGA, |_, w| properties::saga_undone(w).is_ok()),
            Property::always(names::DEFERRED, |_, w| properties::deferred_iff_committed(w).is_ok()),
            Property::always(names::NEXT_ACTION, |_, w| properties::next_action(w).is_ok()),
            Property::always(names::FORGOTTEN_LAST, |_, w| properties::forgotten_last(w).is_ok()),
            Property::always(names::NO_CONTRADICTION, |_, w| {
                properties::no_contradiction(w).is_ok()
            }),
            Property::always(names::RECOVERY_RESTORES, |_, w| {
                properties::recovery_restores(w).is_ok()
            }),
            Property::always(names::ONE_CALL, |_, w| properties::one_call_at_a_time(w).is_ok()),
            Property::always(names::TERMINATION, |m, w| m.terminates(w).is_ok()),
        ];
        if let Some(only) = &self.only {
            all.retain(|property| property.name == only);
        }
        all.extend(self.milestones.iter().copied().map(sometimes));
        all
    }
}
