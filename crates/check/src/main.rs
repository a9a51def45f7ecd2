//! Explores every configuration, hunts every deliberate bug, prints what was found, and fails on
//! anything that is not as it must be. `--deep` adds larger worlds; any other word picks the
//! configurations whose name holds it.

use std::process::ExitCode;

use unanimity_check::configurations::{self, Configuration};
use unanimity_check::mutants::{self, Mutant};
use unanimity_check::{run, sim, story};

/// How many threads explore: the machine's, where it tells.
fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.first().map(String::as_str) {
        Some("sim") => return sim::command::run(&words[1..]),
        Some("mutants") => return sim::planted::run(&words[1..]),
        _ => {} // The model.
    }
    let deep = words.iter().any(|word| word == "--deep");
    let picks: Vec<&String> = words.iter().filter(|word| *word != "--deep").collect();
    let mut chosen = configurations::all();
    if deep {
        chosen.extend(configurations::deep());
    }
    chosen.retain(|c| picks.is_empty() || picks.iter().any(|pick| c.setup.name.contains(*pick)));
    let (mut total, mut problems) = (0, 0);
    for configuration in &chosen {
        let (states, is_clean) = explore(configuration);
        total += states;
        problems += usize::from(!is_clean);
    }
    println!("model states explored: {total}");
    if picks.is_empty() {
        problems += mutants::ALL.iter().filter(|mutant| !is_caught(mutant)).count();
    }
    if problems == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Explores one configuration; says how many states it has, and whether all is as it must be.
fn explore(configuration: &Configuration) -> (usize, bool) {
    let exploration = run::explore(configuration, threads());
    println!("{exploration}");
    let expected = exploration.unique == configuration.states;
    if exploration.violated.is_empty() && !expected {
        println!(
            "  expected {} states: the protocol, or its world, has changed",
            configuration.states
        );
    }
    if !exploration.violated.is_empty()
        && let Some(example) = run::shortest_counterexample(&configuration.setup, None)
    {
        print!("{}", story::tell(&configuration.setup, &example));
    }
    (exploration.unique, exploration.is_clean() && expected)
}

/// Hunts one deliberate bug, and tells how it was caught.
fn is_caught(mutant: &Mutant) -> bool {
    let (Some(setup), Some(example)) = (mutant.setup(), mutant.hunt()) else {
        println!("mutant {:?}: NOT CAUGHT in {}", mutant.mutation, mutant.configuration);
        return false;
    };
    println!(
        "mutant {:?}: caught in {} by \"{}\" after {} steps",
        mutant.mutation,
        mutant.configuration,
        example.property,
        example.actions.len()
    );
    print!("{}", story::tell(&setup, &example));
    example.property == mutant.property && example.actions.len() == mutant.steps
}
