//! What a build is checked with: every configuration to exhaustion, every deliberate bug hunted
//! down, and the symmetry reduction shown to change counts and not verdicts.

use std::collections::BTreeSet;
use std::sync::Arc;

use stateright::{Checker, HasDiscoveries, Model, Representative};
use unanimity_core::{Mutation, Mutations, Outcome};

use crate::configurations::{self, Configuration};
use crate::model::Protocol;
use crate::properties::names;
use crate::setup::Setup;
use crate::sim::planted;
use crate::sim::world::Planted;
use crate::world::{Action, World};
use crate::{digest, fairness, mutants, run, story};

const THREADS: usize = 2;

fn setup(name: &str) -> Setup {
    configurations::named(name).unwrap().setup
}

#[test]
fn every_configuration_is_clean_and_has_its_number_of_states() {
    let mut total = 0;
    let mut wrong = Vec::new();
    for configuration in configurations::all() {
        let exploration = run::explore(&configuration, THREADS);
        println!("{exploration}");
        total += exploration.unique;
        if !exploration.is_clean() || exploration.unique != configuration.states {
            wrong.push(format!("{exploration}; expected {}", configuration.states));
        }
    }
    println!("model states explored: {total}");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_deliberate_bug_is_caught() {
    for mutant in mutants::ALL {
        let example = mutant.hunt().unwrap_or_else(|| panic!("{mutant:?} is not caught"));
        let caught = (example.property, example.actions.len());
        println!("mutant {:?}: {} after {} steps", mutant.mutation, caught.0, caught.1);
        assert_eq!(caught, (mutant.property, mutant.steps), "{mutant:?}");
    }
}

/// `cargo xtask mutants` hunts every deliberate bug; here, those that only the simulator sees.
#[test]
fn what_the_model_does_not_see_the_simulator_does() {
    let by_model: BTreeSet<Mutation> = mutants::ALL.iter().map(|mutant| mutant.mutation).collect();
    for mutation in Mutation::ALL.into_iter().filter(|one| !by_model.contains(one)) {
        let planted = Planted { mutations: Mutations::only(mutation), ..Planted::default() };
        assert!(planted::hunt(planted, planted::SEEDS_MAX_ALONE).is_some(), "{mutation:?}");
    }
}

/// How many states there are, and whether `property` fails in one of them.
fn explored(setup: &Setup, property: &str) -> (usize, bool) {
    let protocol = Protocol::judged_by(setup.clone(), property);
    // Never stops early: what fails must not decide how much is counted.
    let never = HasDiscoveries::AllOf(BTreeSet::from(["no such property"]));
    let checker = protocol.checker().threads(THREADS).finish_when(never).spawn_bfs().join();
    (checker.unique_state_count(), !checker.discoveries().is_empty())
}

#[test]
fn symmetry_saves_states_and_changes_no_verdict() {
    let three = Setup { gives_up: false, ..setup(configurations::THREE_BRANCHES) };
    let mutated = |mutation| Setup { mutations: Mutations::only(mutation), ..three.clone() };
    let majority = mutated(Mutation::DecisionByMajority);
    let forgetful = mutated(Mutation::TimersLostOnRecovery);
    let checkpoint = setup(configurations::CHECKPOINT);
    // Setup, property, whether it fails, and the states with and without symmetry.
    let cases = [
        (&three, names::TERMINATION, false, 8_251, 41_851),
        (&checkpoint, names::AGREEMENT, false, 79_857, 158_839),
        (&majority, names::COMMIT_VALIDITY, true, 7_307, 37_315),
        (&forgetful, names::NEXT_ACTION, true, 7_993, 40_193),
    ];
    let found = cases.map(|(setup, property, ..)| {
        let with = explored(&Setup { symmetry: true, ..setup.clone() }, property);
        let without = explored(&Setup { symmetry: false, ..setup.clone() }, property);
        (with, without)
    });
    let expected = cases.map(|(_, _, fails, with, without)| ((with, fails), (without, fails)));
    assert_eq!(found, expected);
}

/// A walk through a world, always the same, that visits states far from the start.
fn walk(setup: Setup, steps: u64, mut visit: impl FnMut(&World)) {
    let start = World::new(&Arc::new(setup));
    let mut world = start.clone();
    for step in 0..steps {
        let mut actions = world.enabled();
        visit(&world);
        if actions.is_empty() {
            world = start.clone();
            continue;
        }
        let choice = digest::of(&step) as usize % actions.len();
        world.apply(&actions.swap_remove(choice));
        if step % 60 == 59 {
            world = start.clone();
        }
    }
}

#[test]
fn worlds_that_differ_in_numbers_only_have_one_representative() {
    let orders: [[u16; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    let checkpoints = 1;
    let three = Setup { checkpoints, ..setup(configurations::THREE_BRANCHES) };
    walk(Setup { attempts_max: 2, ..three }, 6_000, |world| {
        let representative = world.representative();
        assert_eq!(representative.representative(), representative);
        for order in orders {
            let renumbered = world.with_branches_permuted(&order).representative();
            assert_eq!(renumbered, representative, "{order:?}");
        }
    });
}

#[test]
fn the_fair_schedule_commits_what_nothing_disturbs() {
    let mut world = World::new(&Arc::new(setup(configurations::MIXED)));
    world.apply(&Action::Begin);
    let mut steps = 0;
    while let Some(action) = fairness::next(&world) {
        world.apply(&action);
        steps += 1;
        assert!(steps < fairness::STEPS_MAX);
    }
    assert_eq!(fairness::settled(&world), Ok(()));
    assert!(world.told.completed.contains(&Outcome::Commit));
}

#[test]
fn a_counterexample_is_told_step_by_step() {
    let majority = mutants::ALL.iter().find(|m| m.mutation == Mutation::DecisionByMajority);
    let majority = majority.unwrap();
    let told = story::tell(&majority.setup().unwrap(), &majority.hunt().unwrap());
    assert!(told.starts_with("  1. the initiator asks for the transaction"), "{told}");
    assert!(told.contains("decides commit"), "{told}");
    assert!(told.contains("=> AC3 commit needs every yes: commit is decided"), "{told}");
}

#[test]
fn a_milestone_that_is_never_met_is_reported() {
    let milestones = &[crate::milestones::Milestone::Compensated];
    let calm = Configuration { milestones, ..configurations::named(configurations::CALM).unwrap() };
    let exploration = run::explore(&calm, 1);
    assert_eq!(exploration.missed, ["reaches a compensation"]);
    assert!(!exploration.is_clean());
}
