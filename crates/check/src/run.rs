//! Exploring a setup: to exhaustion where it must be clean, and to the shortest counterexample
//! where it is not.

use std::fmt;
use std::time::{Duration, Instant};

use stateright::{Checker, HasDiscoveries, Model};

use crate::configurations::Configuration;
use crate::model::Protocol;
use crate::setup::Setup;
use crate::world::Action;

/// What an exploration to exhaustion found.
#[derive(Clone, Debug)]
pub struct Exploration {
    /// Of which setup.
    pub name: &'static str,
    /// How many different states there are.
    pub unique: usize,
    /// How many were generated, repeats included.
    pub generated: usize,
    /// How many steps the longest of the shortest ways to a state has.
    pub depth: usize,
    /// From no state it takes more fault-free steps than this to rest.
    pub steps_to_rest: u16,
    /// How long it took.
    pub took: Duration,
    /// Properties that do not hold.
    pub violated: Vec<&'static str>,
    /// Milestones that were never met.
    pub missed: Vec<&'static str>,
}

impl Exploration {
    /// Whether every property holds and every milestone was met.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.violated.is_empty() && self.missed.is_empty()
    }
}

impl fmt::Display for Exploration {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "model {}: {} states unique, {} generated, {:.1} seconds; depth {}, to rest {}",
            self.name,
            self.unique,
            self.generated,
            self.took.as_secs_f64(),
            self.depth,
            self.steps_to_rest,
        )?;
        for name in &self.violated {
            write!(formatter, "; VIOLATED: {name}")?;
        }
        for name in &self.missed {
            write!(formatter, "; NEVER MET: {name}")?;
        }
        Ok(())
    }
}

/// Explores a configuration to exhaustion.
#[must_use]
pub fn explore(configuration: &Configuration, threads: usize) -> Exploration {
    let start = Instant::now();
    let name = configuration.setup.name;
    let protocol = Protocol::new(configuration.setup.clone(), configuration.milestones);
    let properties = protocol.properties();
    let checker = protocol
        .checker()
        .threads(threads)
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join();
    let found: Vec<&'static str> = checker.discoveries().into_keys().collect();
    let failures = properties.iter().filter(|p| p.expectation.discovery_is_failure());
    let goals = properties.iter().filter(|p| !p.expectation.discovery_is_failure());
    Exploration {
        name,
        unique: checker.unique_state_count(),
        generated: checker.state_count(),
        depth: checker.max_depth(),
        steps_to_rest: checker.model().steps_to_rest_max(),
        took: start.elapsed(),
        violated: failures.map(|p| p.name).filter(|name| found.contains(name)).collect(),
        missed: goals.map(|p| p.name).filter(|name| !found.contains(name)).collect(),
    }
}

/// A way to a state in which a property does not hold.
#[derive(Clone, Debug)]
pub struct Counterexample {
    /// The property.
    pub property: &'static str,
    /// The steps that lead there.
    pub actions: Vec<Action>,
}

/// The shortest way to break a setup: `property`, or whichever breaks first, and how. Without
/// symmetry, so that a branch keeps its number for the length of the story, and on one thread, so
/// that the search is breadth-first in earnest. stateright reports the *last* violation that it
/// meets before it stops, so the depth is lowered until nothing is found any more.
#[must_use]
pub fn shortest_counterexample(setup: &Setup, property: Option<&str>) -> Option<Counterexample> {
    let mut depth_max = None;
    let mut shortest = None;
    while let Some(found) = counterexample(setup, property, depth_max) {
        // A path of n actions has n + 1 states; stateright skips those at the depth given.
        depth_max = Some(found.actions.len() + 1);
        shortest = Some(found);
    }
    shortest
}

fn counterexample(
    setup: &Setup,
    property: Option<&str>,
    depth_max: Option<usize>,
) -> Option<Counterexample> {
    let setup = Setup { symmetry: false, ..setup.clone() };
    let protocol = match property {
        Some(name) => Protocol::judged_by(setup, name),
        None => Protocol::new(setup, &[]),
    };
    let mut builder = protocol.checker().finish_when(HasDiscoveries::AnyFailures);
    if let Some(depth_max) = depth_max {
        builder = builder.target_max_depth(depth_max);
    }
    let checker = builder.spawn_bfs().join();
    let paths = checker.discoveries().into_iter();
    let examples =
        paths.map(|(property, path)| Counterexample { property, actions: path.into_actions() });
    examples.min_by_key(|example| (example.actions.len(), example.property))
}
