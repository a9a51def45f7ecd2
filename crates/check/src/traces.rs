//! What happened on a path through the model, as a trace for the judge: each action is made to
//! happen, and what it changed is written down, as an onlooker sees it who knows the records, the
//! messages and the participants' rows, and nothing inside the coordinator.

use std::collections::BTreeSet;
use std::sync::Arc;

use unanimity_core::{BranchPlan, Fact, Kind, Operation, Outcome};
use unanimity_judge::{
    BranchLine, Event, Evidence, FactLine, Line, Sight, TRACE_VERSION, ToldLine,
};

use crate::participant::Said;
use crate::properties::forward;
use crate::setup::Setup;
use crate::world::{Action, CallMessage, Inquiry, World};

/// A world whose course is written down.
#[derive(Clone, Debug)]
pub struct Scribe {
    world: World,
    lines: Vec<Line>,
}

impl Scribe {
    /// In a world in which nothing has happened yet.
    #[must_use]
    pub fn new(setup: &Arc<Setup>) -> Self {
        let mut scribe = Self { world: World::new(setup), lines: Vec::new() };
        let sees = vec![Sight::Coordinator, Sight::Participants, Sight::Disk, Sight::Money];
        let source = format!("model: {}", setup.name).into();
        scribe.write(Event::Trace { version: TRACE_VERSION, source, sees });
        scribe
    }

    /// The world as it is now.
    #[must_use]
    pub const fn world(&self) -> &World {
        &self.world
    }

    /// What has been written.
    #[must_use]
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// Makes something happen, which must be enabled, and writes down what it changed. Time in the
    /// trace is the number of the action: the model knows no other.
    pub fn apply(&mut self, action: &Action) {
        let before = self.world.clone();
        self.world.apply(action);
        self.write_cause(&before, action);
        self.write_records(&before);
        self.write_told(&before);
        self.write_calls(&before, action);
        self.write_read();
    }

    /// Everything has had its time, without a further fault.
    pub fn rest(&mut self) {
        self.write(Event::AtRest);
    }

    fn write(&mut self, event: Event) {
        let at = self.lines.len() as u64;
        self.lines.push(Line { at, event });
    }

    fn transaction(&self) -> Arc<str> {
        self.world.transaction.as_str().into()
    }

    /// What the action itself is, for those who see it.
    fn write_cause(&mut self, before: &World, action: &Action) {
        let process = |name: &str| name.into();
        match action {
            Action::Crash => self.write(Event::Crashed { process: process("coordinator") }),
            Action::Recover => self.write(Event::Started { process: process("coordinator") }),
            Action::DeliverCall(call) => self.write_work(before, call.branch, call.operation),
            Action::DeliverAnswer(answer) => self.write_answer(answer.call, word(answer.said)),
            Action::GiveUp(call) => self.write_answer(*call, "unknown"),
            Action::Refuse(call) => self.write_answer(*call, "unsent"),
            Action::Work(number) => {
                let kind = before.setup().branches[usize::from(*number)].kind;
                self.write_work(before, *number, forward(kind));
            }
            Action::DeliverWord(word) => {
                let operation = match word.outcome {
                    Outcome::Commit => Operation::Commit,
                    Outcome::Rollback => Operation::Rollback,
                };
                self.write_work(before, word.branch, operation);
            }
            Action::Forget(branch) => {
                let transaction = self.transaction();
                self.write(Event::Forgot { transaction, branch: *branch, moved: Vec::new() });
            }
            Action::RestartParticipant(number) => {
                self.write(Event::Started { process: format!("participant {number}").into() });
            }
            Action::Ask(_) => self.write_inquiry(before),
            // They show in the records that they lead to, or in nothing.
            Action::Begin
            | Action::Sync
            | Action::DeliverToOldCopy(_)
            | Action::Enlist(_)
            | Action::RequestCommit
            | Action::Resolve(..)
            | Action::Fire(_)
            | Action::RequestRollback
            | Action::Checkpoint => {}
        }
    }

    fn write_answer(&mut self, call: CallMessage, answer: &str) {
        let CallMessage { branch, operation, attempt } = call;
        let (transaction, answer) = (self.transaction(), answer.into());
        self.write(Event::Answered { transaction, branch, operation, attempt, answer });
    }

    /// A local transaction that wrote the row or did the service's work; one that only read is
    /// nothing to anybody.
    fn write_work(&mut self, before: &World, branch: u16, operation: Operation) {
        let number = usize::from(branch);
        let (old, new) = (&before.participants[number], &self.world.participants[number]);
        let effect = old.applied(operation) != new.applied(operation);
        let Some(state) = new.state().filter(|_| effect || old.row != new.row) else { return };
        let (transaction, moved) = (self.transaction(), Vec::new());
        self.write(Event::Worked { transaction, branch, operation, state, effect, moved });
    }

    fn write_inquiry(&mut self, before: &World) {
        let what = match before.inquire() {
            None | Some(Inquiry::Pending) => return,
            Some(Inquiry::Decided(outcome)) => ToldLine::Outcome { outcome },
            Some(Inquiry::Presumed) => ToldLine::Presumed,
        };
        let transaction = self.transaction();
        self.write(Event::Told { transaction, what });
    }

    /// What was written, what became durable and what a crash took. Every record has a position of
    /// its own; those of one step become durable together.
    fn write_records(&mut self, before: &World) {
        let (old, new) = (&before.journal, &self.world.journal);
        let end = |journal: &crate::journal::Journal| {
            let pending: usize = journal.pending.iter().map(|step| step.records.len()).sum();
            (journal.forgotten + journal.durable.len() as u64, pending)
        };
        let ((durable_before, pending_before), (durable, pending)) = (end(old), end(new));
        let crashed = before.coordinator.is_some() && self.world.coordinator.is_none();
        if crashed {
            return self.write(Event::Lost { shard: 0, position: durable });
        }
        let end_before = durable_before + pending_before as u64;
        let fresh = (durable + pending as u64).saturating_sub(end_before);
        let records = new.pending.iter().flat_map(|step| &step.records);
        let skipped = pending.saturating_sub(usize::try_from(fresh).unwrap_or(usize::MAX));
        let facts: Vec<FactLine> = records.skip(skipped).map(|record| fact(&record.fact)).collect();
        for (position, fact) in (end_before + 1..).zip(facts) {
            let transaction = self.transaction();
            self.write(Event::Recorded { transaction, shard: 0, position, fact });
        }
        if durable > durable_before {
            self.write(Event::Durable { shard: 0, position: durable });
        }
    }

    fn write_told(&mut self, before: &World) {
        let (old, new) = (&before.told, &self.world.told);
        let mut told = Vec::new();
        if new.begun && !old.begun {
            told.push(ToldLine::Begun);
        }
        let enlisted = self.world.initiator.enlisted.difference(&before.initiator.enlisted);
        told.extend(enlisted.map(|branch| ToldLine::Enlisted { branch: *branch }));
        let outcomes = new.outcomes.difference(&old.outcomes);
        told.extend(outcomes.map(|outcome| ToldLine::Outcome { outcome: *outcome }));
        let completed = new.completed.difference(&old.completed);
        let mixed = new.mixed;
        told.extend(completed.map(|outcome| ToldLine::Ended { outcome: *outcome, mixed }));
        for what in told {
            let transaction = self.transaction();
            self.write(Event::Told { transaction, what });
        }
    }

    /// What whoever asks now is told, where nothing holds the answer back.
    fn write_read(&mut self) {
        if self.world.coordinator.is_none() || !self.world.journal.pending.is_empty() {
            return;
        }
        let (transaction, since) = (self.transaction(), self.lines.len() as u64);
        let unknown = !self.world.begun();
        let outcome = self.world.recorded().iter().next();
        if unknown || outcome.is_some() || self.world.live().is_some() {
            self.write(Event::Read { transaction, since, unknown, outcome });
        }
    }

    /// The calls that left. One that was answered or given up in this action may have left again.
    fn write_calls(&mut self, before: &World, action: &Action) {
        let through = match action {
            Action::DeliverAnswer(answer) => Some(answer.call),
            Action::GiveUp(call) | Action::Refuse(call) => Some(*call),
            _ => None, // No other action ends a call.
        };
        let open: BTreeSet<CallMessage> =
            before.open.iter().filter(|call| Some(**call) != through).copied().collect();
        let left: Vec<CallMessage> = self.world.open.difference(&open).copied().collect();
        for CallMessage { branch, operation, attempt } in left {
            let asks = operation == Operation::Rollback && self.world.setup().one_phase;
            let transaction = self.transaction();
            self.write(Event::Called { transaction, branch, operation, attempt, asks });
        }
    }
}

/// Replays a list of actions, and gives back its trace.
#[must_use]
pub fn of(setup: &Setup, actions: &[Action]) -> Vec<Line> {
    let setup = Setup { symmetry: false, ..setup.clone() };
    let mut scribe = Scribe::new(&Arc::new(setup));
    actions.iter().for_each(|action| scribe.apply(action));
    scribe.lines
}

const fn word(said: Said) -> &'static str {
    match said {
        Said::Yes => "yes",
        Said::ReadOnly => "read_only",
        Said::No | Said::TooLate => "no",
        Said::Acknowledged => "acknowledged",
        Said::Error(contradiction) => contradiction.code(),
        Said::Unsupported => "unsupported",
    }
}

fn fact(fact: &Fact) -> FactLine {
    match fact {
        Fact::Begun { plan, .. } => {
            let alone = plan.options.one_phase && !plan.open && is_one(&plan.branches);
            let branches = plan.branches.iter().map(branch).collect();
            FactLine::Begun { branches, open: plan.open, alone }
        }
        Fact::Enlisted { branch: plan } => FactLine::Enlisted { branch: branch(plan) },
        Fact::Resolved { branch, resolution } => {
            FactLine::Resolved { branch: *branch, outcome: resolution.outcome }
        }
        Fact::Executing { branches, .. } => FactLine::Executing { branches: branches.clone() },
        Fact::Decided { outcome, reason, ballots, .. } => FactLine::Decided {
            outcome: *outcome,
            reason: reason.code().into(),
            ballots: ballots.iter().map(|ballot| ballot.as_str().into()).collect(),
        },
        Fact::Finished { branch } => FactLine::Finished { branch: *branch },
        Fact::Ended => FactLine::Ended,
        Fact::Snapshot(_) => FactLine::Rewritten,
    }
}

fn is_one(branches: &[BranchPlan]) -> bool {
    matches!(branches, [only] if only.kind == Kind::TwoPhase)
}

fn branch(plan: &BranchPlan) -> BranchLine {
    BranchLine {
        name: Arc::clone(&plan.name),
        kind: plan.kind,
        after: plan.after.to_vec(),
        by_initiator: plan.by_initiator,
        also_on_rollback: plan.also_on_rollback,
        comes_last: plan.comes_last,
    }
}

#[cfg(test)]
mod tests {
    use unanimity_core::splitmix64;
    use unanimity_judge::{Finding, Judge, MODEL_RULES, names, read_line, write_line};

    use super::*;
    use crate::configurations;
    use crate::fairness;
    use crate::mutants;

    /// How many paths of each configuration are walked.
    const PATHS: u64 = 150;
    /// How many steps each takes before faults stop.
    const STEPS_MAX: u64 = 80;

    /// What the judge says of a trace, which goes through its text first.
    fn judge(lines: &[Line]) -> Vec<Finding> {
        let mut judge = Judge::new();
        for (number, line) in (1..).zip(lines) {
            let text = write_line(line).unwrap();
            let read = read_line(number, &text).unwrap();
            assert_eq!(&read, line, "{text}");
            judge.take(&read);
        }
        judge.found().to_vec()
    }

    /// A walk through a world, always the same for the same seed, and then to its rest.
    fn walk(setup: &Arc<Setup>, seed: u64) -> Scribe {
        let mut scribe = Scribe::new(setup);
        let steps = splitmix64(seed) % STEPS_MAX;
        for step in 0..steps {
            let mut actions = scribe.world().enabled();
            if actions.is_empty() {
                break;
            }
            let choice = splitmix64(splitmix64(seed) ^ step) as usize % actions.len();
            scribe.apply(&actions.swap_remove(choice));
        }
        for _ in 0..fairness::STEPS_MAX {
            let Some(action) = fairness::next(scribe.world()) else { break };
            scribe.apply(&action);
        }
        let ended = scribe.world().journal.has_end() || !scribe.world().journal.has_beginning();
        if ended && fairness::settled(scribe.world()).is_ok() {
            scribe.rest();
        }
        scribe
    }

    #[test]
    fn paths_through_every_configuration_are_judged_clean() {
        let (mut lines, mut rested) = (0, 0);
        for configuration in configurations::all() {
            let setup = Arc::new(Setup { symmetry: false, ..configuration.setup });
            for seed in 0..PATHS {
                let scribe = walk(&setup, seed);
                let found = judge(scribe.lines());
                let text = || {
                    let texts = scribe.lines().iter().map(|line| write_line(line).unwrap());
                    texts.collect::<Vec<String>>().join("\n")
                };
                assert_eq!(found, [], "{}, seed {seed}:\n{}", setup.name, text());
                lines += scribe.lines().len();
                rested += usize::from(matches!(
                    scribe.lines().last(),
                    Some(Line { event: Event::AtRest, .. })
                ));
            }
        }
        println!("model traces judged: {lines} lines, {rested} at rest");
        assert!(rested > 1_000, "only {rested} came to rest");
    }

    #[test]
    fn what_the_model_catches_by_a_rule_of_the_judge_the_judge_finds_in_its_trace() {
        let mut count = 0;
        for mutant in mutants::ALL.iter().filter(|mutant| MODEL_RULES.contains(&mutant.property)) {
            let (setup, example) = (mutant.setup().unwrap(), mutant.hunt().unwrap());
            let found = judge(&of(&setup, &example.actions));
            let rules: Vec<&str> = found.iter().map(|finding| finding.rule).collect();
            println!("judge {:?}: {rules:?}", mutant.mutation);
            assert!(rules.contains(&mutant.property), "{mutant:?} is not found: {found:?}");
            assert!(!rules.contains(&names::TRACE), "{mutant:?}: {found:?}");
            count += 1;
        }
        assert!(count >= 19, "only {count} of the deliberate bugs were judged");
    }
}
