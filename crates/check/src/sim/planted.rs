//! Every deliberate bug, hunted by the simulator and, where it shows there, by the model: which
//! harness finds it, by which rule, after how many seeds or steps. A bug that nobody finds is a
//! hole in the harness, and fails the hunt.

use std::process::ExitCode;
use std::time::Instant;

use unanimity_core::{Mutation, Mutations};

use super::command::{quiet_panics, run_seeds};
use super::upgrade::UpgradeBug;
use super::world::{Planted, StoreBug};
use crate::mutants;

/// How many seeds a hunt may take, where the model has found the bug already.
const SEEDS_MAX: u64 = 20_000;
/// How many, where it has not: a bug that needs three rare things at once is met in one of 40,000.
pub const SEEDS_MAX_ALONE: u64 = 100_000;
/// How many seeds are run at a time.
const SEEDS_AT_A_TIME: u64 = 500;

/// Every deliberate bug and its name.
#[must_use]
pub fn all() -> Vec<(String, Planted)> {
    let core = Mutation::ALL.into_iter().map(|mutation| {
        let planted = Planted { mutations: Mutations::only(mutation), ..Planted::default() };
        (format!("core: {mutation:?}"), planted)
    });
    let journal = unanimity_journal::Mutation::ALL.into_iter().map(|mutation| {
        let journal = unanimity_journal::Mutations::only(mutation);
        (format!("journal: {mutation:?}"), Planted { journal, ..Planted::default() })
    });
    let stores = [
        StoreBug::AnswerBeforeCommit,
        StoreBug::RowApart,
        StoreBug::RowInMemory,
        StoreBug::RowNotLocked,
    ]
    .map(|bug| (format!("store: {bug:?}"), Planted { store: Some(bug), ..Planted::default() }));
    let upgrades = [UpgradeBug::FirstVersionSkipped, UpgradeBug::LimitForgets].map(|bug| {
        (format!("upgrade: {bug:?}"), Planted { upgrade: Some(bug), ..Planted::default() })
    });
    core.chain(journal).chain(stores).chain(upgrades).collect()
}

/// How the simulator finds a bug within so many seeds: with which seed, and by which rule.
#[must_use]
pub fn hunt(planted: Planted, seeds_max: u64) -> Option<(u64, &'static str)> {
    let mut from = 0;
    while from < seeds_max {
        let total = run_seeds(from, SEEDS_AT_A_TIME, planted, true);
        if let Some((seed, rule)) = total
            .failed
            .and_then(|failed| failed.broken.as_ref().map(|broken| (failed.seed, broken.rule)))
        {
            return Some((seed, rule));
        }
        from += SEEDS_AT_A_TIME;
    }
    None
}

/// Hunts every deliberate bug, or those whose name holds one of the words.
#[must_use]
pub fn run(words: &[String]) -> ExitCode {
    quiet_panics();
    let start = Instant::now();
    let (mut found, mut missed) = (0, 0);
    for (name, planted) in all() {
        if !words.is_empty() && !words.iter().any(|word| name.contains(word.as_str())) {
            continue;
        }
        let by_model = mutants::ALL
            .iter()
            .find(|mutant| planted.mutations.has(mutant.mutation))
            .and_then(|mutant| Some((mutant, mutant.hunt()?)))
            .map(|(mutant, example)| {
                format!(
                    "the model ({}), after {} steps: {}",
                    mutant.configuration,
                    example.actions.len(),
                    example.property
                )
            });
        let seeds_max = if by_model.is_some() { SEEDS_MAX } else { SEEDS_MAX_ALONE };
        let by_simulator = hunt(planted, seeds_max)
            .map(|(seed, rule)| format!("the simulator, after {} seeds: {rule}", seed + 1));
        let finders: Vec<String> = by_model.into_iter().chain(by_simulator).collect();
        if finders.is_empty() {
            missed += 1;
            println!("planted bug {name}: NOT FOUND");
        } else {
            found += 1;
            println!("planted bug {name}: found by {}", finders.join("; by "));
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    println!("planted bugs found: {found} of {} ({seconds:.0} seconds)", found + missed);
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
