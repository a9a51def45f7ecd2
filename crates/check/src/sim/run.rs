//! One run: faults; repair; everything must end within a bound computed from the configuration;
//! then nothing may be left; restart of everything, and the same checks again.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

use unanimity_core::{Outcome, TransactionId};
use unanimity_judge::{Event as Seen, Finding, Line};

use super::options::{FaultKind, Options};
use super::random::Random;
use super::server::{Ask, Asker, Say};
use super::service::BEGINNING;
use super::situations::Situations;
use super::workload::bound_ms;
use super::world::{Happening, Planted, Simulation};

/// More than this many rounds of silence and new stirring is a world that never rests.
const ROUNDS_MAX: usize = 200;

/// What one run came to.
#[derive(Clone, Debug)]
pub struct Report {
    /// Its seed.
    pub seed: u64,
    /// What it was made of.
    pub options: Options,
    /// How many events there were.
    pub events: u64,
    /// How many transactions were planned.
    pub transactions: u64,
    /// What is wrong, if anything.
    pub broken: Option<Finding>,
    /// Every rule that is broken where the first one is.
    pub rules: BTreeSet<&'static str>,
    /// A digest of everything that was seen.
    pub hash: u64,
    /// What was met.
    pub situations: Situations,
    /// The faults that struck, with their numbers.
    pub faults: Vec<(u64, FaultKind)>,
    /// The trace, if it was kept.
    pub trace: Vec<Line>,
}

/// What is to be run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The seed.
    pub seed: u64,
    /// What the world is made of.
    pub options: Options,
    /// What is wrong on purpose.
    pub planted: Planted,
    /// The numbers of the faults that are kept; all, if there is no list.
    pub keep: Option<Vec<u64>>,
    /// Whether the trace is kept.
    pub traces: bool,
}

impl Plan {
    /// The run of a seed.
    #[must_use]
    pub fn of_seed(seed: u64, planted: Planted) -> Self {
        Self { seed, options: Options::drawn(seed), planted, keep: None, traces: false }
    }

    /// Runs it. A panic, which is how our own broken invariants end, is a finding as any other.
    #[must_use]
    pub fn run(&self) -> Report {
        let world = || {
            let (options, keep) = (self.options.clone(), self.keep.clone());
            let mut world = Simulation::new(self.seed, options, self.planted, keep, self.traces);
            world.live_and_rest(self.seed);
            world
        };
        match catch_unwind(AssertUnwindSafe(world)) {
            Ok(world) => Report {
                seed: self.seed,
                options: self.options.clone(),
                events: world.events,
                transactions: world.plans.len() as u64,
                broken: world.broken().cloned(),
                rules: world.rules(),
                hash: world.hash(),
                situations: world.situations.clone(),
                faults: world.faults.happened.clone(),
                trace: world.trace().to_vec(),
            },
            Err(panic) => self.panicked(panic.as_ref()),
        }
    }

    fn panicked(&self, panic: &(dyn std::any::Any + Send)) -> Report {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("?");
        let problem = text.to_owned();
        let rule = "nothing panics";
        Report {
            seed: self.seed,
            options: self.options.clone(),
            events: 0,
            transactions: 0,
            broken: Some(Finding { line: 0, at: 0, transaction: None, rule, problem }),
            rules: [rule].into(),
            hash: 0,
            situations: Situations::default(),
            faults: Vec::new(),
            trace: Vec::new(),
        }
    }
}

impl Simulation {
    fn live_and_rest(&mut self, seed: u64) {
        let mut random = Random::new(seed, "phases", 0);
        let faults_ms = random.between(1_500, 20_000);
        self.run_until(faults_ms);
        self.repair(&mut random);
        let bound = self.bound();
        // Contradictions are for people, who need some time to see them.
        self.run_until(self.now + bound / 2);
        self.operator_settles();
        if self.operator_takes_up() {
            // What contradicts a transaction that was set aside is seen only now.
            self.run_until(self.now + bound / 2);
            self.operator_settles();
        }
        self.run_until(self.now + bound);
        self.everything_has_ended();
        self.drain();
        self.ask_about_what_is_in_doubt();
        self.at_rest();
        if self.broken.is_some() {
            return;
        }
        self.what_is_believed_is_true();
        let before = self.outcomes();
        let newest = self.processes.last().map(|one| one.generation);
        newest.into_iter().for_each(|generation| self.kill(generation, true));
        self.drain();
        self.ask_about_what_is_in_doubt();
        self.at_rest();
        if self.outcomes() != before {
            self.fail("a restart changes nothing", "an outcome is another one".to_owned());
        }
    }

    /// From any moment on when nothing fails any more, everything ends within this time. A clock
    /// that was set back moves what was planned by the clock.
    fn bound(&self) -> u64 {
        let longest = self.plans.values().map(bound_ms).max().unwrap_or(0);
        longest + self.clock_stepped_ms + self.options.taken_up_within_ms + 20_000
    }

    /// Ends all faults. Not everything comes back: who has vanished stays away, and some initiators
    /// go now.
    fn repair(&mut self, random: &mut Random) {
        self.faults.over = true;
        self.poisoned.clear();
        self.note("repaired");
        // An older coordinator would end at its next append; it need not have one.
        let running = self.processes.iter().map(|one| one.generation);
        let older: Vec<u64> = running.filter(|one| *one != self.generations).collect();
        older.into_iter().for_each(|generation| self.kill(generation, false));
        self.finish_upgrade();
        for process in &mut self.processes {
            process.paused_until = process.paused_until.min(self.now);
        }
        for number in 0..self.services.len() {
            for replica in 0..self.services[number].replicas.len() {
                let one = &mut self.services[number].replicas[replica];
                one.cut_in_until = 0;
                one.cut_out_until = 0;
                one.paused_until = 0;
                self.later(1, Happening::ServiceStarts(number, replica));
            }
        }
        for initiator in &mut self.initiators {
            initiator.todo.clear();
            initiator.vanished |= random.chance(150_000);
        }
        if self.processes.is_empty() {
            self.later(1, Happening::CoordinatorStarts);
        }
    }

    /// An operator looks at branches whose participant contradicts the decision, and says that they
    /// were settled as decided.
    fn operator_settles(&mut self) {
        let mut words = Vec::new();
        for shard in self.processes.iter().flat_map(|one| &one.shards) {
            for live in shard.coordinator.iter() {
                let Some(decision) = live.outcome() else { continue };
                // Nobody but who has lost its memory ever contradicts: no excuse for any other.
                let stuck = live.numbered().filter(|(number, branch)| {
                    branch.contradiction.is_some()
                        && self.forgotten.contains(&(live.id.clone(), *number))
                });
                words.extend(stuck.map(|(number, _)| (live.id.clone(), number, decision)));
            }
        }
        for (id, branch, decision) in words {
            self.ask(Asker::Operator, id, Ask::Resolve(branch, decision));
        }
    }

    fn everything_has_ended(&mut self) {
        if self.broken.is_some() {
            return;
        }
        let live: Vec<String> = self
            .processes
            .iter()
            .flat_map(|one| &one.shards)
            .flat_map(|shard| shard.coordinator.iter())
            .map(|live| {
                let next = live.numbered().map(|(_, branch)| (branch.progress, branch.retry_at));
                let next: Vec<_> = next.collect();
                format!("{} is {} ({next:?})", live.id, live.stage().as_str())
            })
            .collect();
        if !live.is_empty() {
            let problem = format!("within {} ms: {}", self.bound(), live.join(", "));
            self.fail("AC5 everything ends within the bound", problem);
        }
    }

    /// Lets everything happen that is on its way.
    fn drain(&mut self) {
        for _ in 0..ROUNDS_MAX {
            if self.is_quiet() || self.broken.is_some() {
                return;
            }
            self.run_until(self.last_event_at());
        }
        self.fail("the world comes to rest", "it never does".to_owned());
    }

    /// What an hour-old message has stirred up at a service that lost its memory, it asks about.
    fn ask_about_what_is_in_doubt(&mut self) {
        for number in 0..self.services.len() {
            self.service_asks(number, 0);
        }
        self.drain();
    }

    fn at_rest(&mut self) {
        if self.broken.is_some() {
            return;
        }
        let mut left: Vec<(&str, usize)> = Vec::new();
        for shard in self.processes.iter().flat_map(|one| &one.shards) {
            left.push(("transactions in memory", shard.coordinator.len()));
            left.push(("timers", shard.coordinator.timers().count()));
            left.push(("things held back", shard.outbox.held()));
            left.push(("appends", usize::from(!shard.outbox.is_idle())));
            left.push(("calls under way", shard.open.len()));
            left.push(("transactions that are not in the history", shard.ending.len()));
            left.push(("clients that wait", shard.waiting.len()));
        }
        let waits = |one: &&super::initiator::Initiator| !one.vanished && one.current.is_some();
        left.push(("initiators without an outcome", self.initiators.iter().filter(waits).count()));
        left.push(("coordinators", self.processes.len().abs_diff(1)));
        for service in &self.services {
            left.push(("branches in doubt", service.in_doubt().count()));
            left.push(("holds", service.holds()));
            left.push(("locks", service.locks.len()));
        }
        for (what, count) in left {
            self.see(Seen::Left { what: what.into(), count: count as u64 });
        }
        for number in 0..self.services.len() {
            for account in 0..self.services[number].accounts.len() {
                let (available, reserved) = self.services[number].accounts[account];
                let name = self.services[number].account(account);
                self.see(Seen::Holds { account: name, before: BEGINNING, available, reserved });
            }
        }
        self.see(Seen::AtRest);
    }

    /// How every transaction ended, as the history tells it.
    fn outcomes(&self) -> Vec<(TransactionId, Option<Outcome>)> {
        let of = |id: &TransactionId| {
            let ended = self.disk.history.get(id);
            ended.map(|one| super::server::said(one)).and_then(|say: Say| say.outcome())
        };
        self.plans.keys().map(|id| (id.clone(), of(id))).collect()
    }
}
