//! Makes a failing run small: fewer faults, fewer transactions, fewer of everything, as long as the
//! same rule is broken. What is left is a script: it can be run again, told, and kept as a test.

use serde::{Deserialize, Serialize};

use super::options::Options;
use super::run::{Plan, Report};
use super::world::Planted;

/// How many runs may be spent on making one failure small.
const RUNS_MAX: usize = 600;

/// A run that fails, or failed once, as small as it could be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Script {
    /// The seed.
    pub seed: u64,
    /// Which rule was broken when it was kept.
    pub rule: String,
    /// What the world is made of.
    pub options: Options,
    /// The numbers of the faults that are kept; all, if there is no list.
    pub keep: Option<Vec<u64>>,
    /// What is wrong on purpose is no part of a script.
    #[serde(skip)]
    pub planted: Planted,
}

impl Script {
    /// Reads one from a file.
    ///
    /// # Errors
    /// If there is none, or it is not one.
    pub fn read(file: &str) -> Result<Self, String> {
        let text = std::fs::read_to_string(file).map_err(|error| error.to_string())?;
        serde_json::from_str(&text).map_err(|error| error.to_string())
    }

    /// As JSON, on one line.
    #[must_use]
    pub fn json(&self) -> String {
        serde_json::to_string(self).unwrap_or_else(|error| error.to_string())
    }

    /// The run that it stands for.
    #[must_use]
    pub fn plan(&self, traces: bool) -> Plan {
        Plan {
            seed: self.seed,
            options: self.options.clone(),
            planted: self.planted,
            keep: self.keep.clone(),
            traces,
        }
    }
}

struct Shrinker {
    best: Plan,
    rule: &'static str,
    faults: Vec<u64>,
    runs: usize,
}

impl Shrinker {
    /// Keeps a smaller run if it breaks the same rule.
    fn tries(&mut self, plan: Plan) -> bool {
        if self.runs >= RUNS_MAX {
            return false;
        }
        self.runs += 1;
        let report = plan.run();
        let same = report.broken.as_ref().is_some_and(|broken| broken.rule == self.rule);
        if same {
            self.faults = numbers(&report);
            self.best = plan;
        }
        same
    }

    fn with(&self, change: impl FnOnce(&mut Options)) -> Plan {
        let mut plan = self.best.clone();
        change(&mut plan.options);
        plan
    }

    /// Fewer of everything that is counted.
    fn fewer(&mut self) -> bool {
        let steps: [fn(&mut Options); 12] = [
            |options| options.transactions = options.transactions.saturating_sub(1).max(1),
            |options| options.initiators = options.initiators.saturating_sub(1).max(1),
            |options| options.branches_max = options.branches_max.saturating_sub(1).max(1),
            |options| options.services = options.services.saturating_sub(1).max(1),
            |options| options.shards = 1,
            |options| options.accounts = 1,
            |options| options.live_max = 100,
            |options| options.replicas = options.replicas.saturating_sub(1).max(1),
            |options| options.local_ms = 0,
            |options| options.services_older = false,
            |options| options.begins_older = false,
            |options| options.later = None,
        ];
        let mut any = false;
        for step in steps {
            loop {
                let plan = self.with(step);
                if plan.options == self.best.options || !self.tries(plan) {
                    break;
                }
                any = true;
            }
        }
        any
    }

    /// Fewer faults: whole kinds, then halves, then smaller parts (Zeller and Hildebrandt,
    /// "Simplifying and Isolating Failure-Inducing Input", IEEE TSE 28(2), 2002).
    fn calmer(&mut self) -> bool {
        let mut any = false;
        for kind in self.best.options.faults.clone() {
            let plan = self.with(|options| options.faults.retain(|fault| *fault != kind));
            any |= self.tries(plan);
        }
        let mut parts = 2;
        while parts <= self.faults.len().max(2) && self.runs < RUNS_MAX {
            let size = self.faults.len().div_ceil(parts).max(1);
            let chunks: Vec<Vec<u64>> = self.faults.chunks(size).map(<[u64]>::to_vec).collect();
            let smaller = chunks.iter().any(|chunk| {
                let left = self.faults.iter().filter(|number| !chunk.contains(number));
                let keep = Some(left.copied().collect());
                let plan = Plan { keep, ..self.best.clone() };
                self.tries(plan)
            });
            any |= smaller;
            parts = if smaller { 2 } else { parts * 2 };
        }
        any
    }
}

fn numbers(report: &Report) -> Vec<u64> {
    report.faults.iter().map(|(number, _)| *number).collect()
}

/// Makes a failing run small. One that does not fail comes back as it is.
#[must_use]
pub fn shrink(plan: &Plan) -> Script {
    let first = plan.run();
    let rule = first.broken.as_ref().map_or("", |broken| broken.rule);
    let faults = numbers(&first);
    let mut shrinker = Shrinker { best: plan.clone(), rule, faults, runs: 0 };
    if first.broken.is_some() {
        while shrinker.fewer() | shrinker.calmer() && shrinker.runs < RUNS_MAX {}
    }
    let Plan { seed, options, planted, keep, .. } = shrinker.best;
    Script { seed, rule: rule.to_owned(), options, keep, planted }
}
