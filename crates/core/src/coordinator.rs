//! One shard's transactions and the one function that moves them: [`Coordinator::handle`]. It turns
//! what happened into records and effects; how records reach a disk and effects a participant is
//! the driver's.

use crate::answers::{Attempt, shorten};
use crate::branch::{Ballot, Progress};
use crate::live::Live;
use crate::mutation::Mutations;
use crate::phase_one::{self, Next};
use crate::schedule::Schedule;
use crate::shared::Shared;
use crate::{
    Call, Effect, Event, Fact, Kind, Millis, Mutation, Observation, Observations, Operation,
    Outcome, Plan, Reason, Record, Refusal, Resolution, Step, Timer, TimerPurpose, Transaction,
    TransactionId, What, phase_two,
};
use std::collections::BTreeSet;

/// The bounds and the seed of one coordinator.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CoordinatorConfig {
    /// How many transactions may be live at once; more are refused.
    pub live_transactions_max: usize,
    /// How many observations one transaction's timeline holds. 0: none are kept.
    pub observations_max: usize,
    /// Attempts are counted up to here (a checker sets it low, so that retrying is no new state).
    pub attempts_counted_max: u32,
    /// Seeds the jitter of retries.
    pub seed: u64,
    /// A deliberate bug for the checkers; none in a shipped program.
    pub mutations: Mutations,
}

impl Default for CoordinatorConfig {
    fn default() -> Self {
        Self {
            live_transactions_max: 100_000,
            observations_max: 256,
            attempts_counted_max: u32::MAX,
            seed: 0,
            mutations: Mutations::default(),
        }
    }
}

/// One shard's transactions. One task owns it; nothing in it is shared.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Coordinator {
    pub(crate) config: CoordinatorConfig,
    pub(crate) transactions: Live,
    pub(crate) aside: BTreeSet<TransactionId>,
    pub(crate) schedule: Schedule,
    pub(crate) shared: Shared,
}

impl Coordinator {
    /// A coordinator that knows of nothing.
    #[must_use]
    pub fn new(config: CoordinatorConfig) -> Self {
        let (transactions, aside) = (Live::new(config.seed), BTreeSet::new());
        let (schedule, shared) = (Schedule::default(), Shared::default());
        Self { config, transactions, aside, schedule, shared }
    }

    /// A live transaction.
    #[must_use]
    pub fn get(&self, id: &TransactionId) -> Option<&Transaction> {
        self.transactions.get(id)
    }

    /// All live transactions, ordered by id.
    pub fn iter(&self) -> impl Iterator<Item = &Transaction> {
        self.transactions.values()
    }

    /// How many transactions are live.
    #[must_use]
    pub fn len(&self) -> usize {
        self.transactions.len()
    }

    /// Whether no transaction is live.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.transactions.is_empty()
    }

    /// The timer that is due first, if any. When its time has come, hand it back as
    /// [`Event::Timer`].
    #[must_use]
    pub fn next_timer(&self) -> Option<&Timer> {
        self.schedule.first()
    }

    /// Every armed timer, soonest first: for the checkers, where any may fire at any moment.
    pub fn timers(&self) -> impl Iterator<Item = &Timer> {
        self.schedule.iter()
    }

    /// Whether this transaction is live.
    #[must_use]
    pub fn knows(&self, id: &TransactionId) -> bool {
        self.transactions.contains(id)
    }

    /// What happens next, now that `event` has happened. Time is the driver's: `now` never runs
    /// backwards between two calls.
    pub fn handle(&mut self, now: Millis, event: Event) -> Step {
        let mut step = Step::default();
        if self.keeps_out(&event) {
            return step;
        }
        // A beginning of what is there already is refused, and does nothing to it: a driver need
        // not carry out a step that refuses.
        let leaves = matches!(event, Event::Begin { .. })
            || self.config.mutations.has(Mutation::DormantNotTakenUp);
        if !leaves && self.is_dormant_at_hand(event.transaction()) {
            let id = event.transaction().clone();
            self.resume_one(now, &id, &mut step);
        }
        match event {
            Event::Begin { transaction, fingerprint, plan } => {
                self.begin(now, transaction, fingerprint, plan, &mut step);
            }
            Event::Answer { transaction, branch, operation, attempt, answer } => {
                let about = Attempt { branch, operation, attempt };
                self.answered(now, &transaction, about, answer, &mut step);
            }
            Event::Timer(timer) => self.fired(now, &timer, &mut step),
            Event::Enlist { transaction, branch } => {
                self.enlist(now, &transaction, *branch, &mut step);
            }
            Event::CommitRequested { transaction } => self.close(now, &transaction, &mut step),
            Event::ResolveRequested { transaction, branch, outcome, by, reason } => {
                let resolution = Resolution { outcome, by, reason, at: now, disputed: false };
                self.resolved(now, &transaction, branch, resolution, &mut step);
            }
            Event::RollbackRequested { transaction, reason } => {
                let reason = Reason::Requested(shorten(&reason));
                self.give_up(now, &transaction, reason, &mut step);
            }
            Event::RetryRequested { transaction } => self.retry_all(now, &transaction, &mut step),
        }
        step
    }

    fn begin(
        &mut self,
        now: Millis,
        id: TransactionId,
        fingerprint: u128,
        plan: Box<Plan>,
        step: &mut Step,
    ) {
        let refusal = if let Some(existing) = self.transactions.get(&id) {
            Some(Refusal::of_existing(existing, fingerprint))
        } else if self.transactions.len() >= self.config.live_transactions_max
            && !self.config.mutations.has(Mutation::LimitNotHeld)
        {
            Some(Refusal::AtCapacity)
        } else {
            plan.check().err().map(Refusal::Plan)
        };
        if let Some(refusal) = refusal {
            step.effects.push(Effect::Refused(id, Box::new(refusal)));
            return;
        }
        self.record(now, &id, Fact::Begun { fingerprint, plan }, step);
        step.effects.push(Effect::Begun(id.clone()));
        self.arm_deadlines(&id);
        self.advance(now, &id, step);
    }

    /// Moves a transaction as far as it can go without another answer.
    pub(crate) fn advance(&mut self, now: Millis, id: &TransactionId, step: &mut Step) {
        let Some(transaction) = self.transactions.get_mut(id) else { return };
        if transaction.decision.is_some() {
            self.advance_phase_two(now, id, step);
            return;
        }
        match phase_one::next(transaction, self.config.mutations) {
            Next::Wait => {}
            Next::Prepare(numbers) => {
                for number in numbers {
                    self.call(now, id, number, step);
                }
            }
            Next::Execute(branches) => {
                let before = transaction.phase_one_deadline();
                let ballots = transaction.ballots();
                let results = transaction.unsaved_results();
                let fact = Fact::Executing { branches: branches.clone(), ballots, results };
                if !self.config.mutations.has(Mutation::ExecutingNotRecorded) {
                    self.record(now, id, fact, step);
                }
                self.disarm(before, id, TimerPurpose::PhaseOneDeadline);
                self.arm_deadlines(id);
                for number in branches {
                    self.call(now, id, number, step);
                }
            }
            Next::Decide(outcome, reason) => self.decide(now, id, outcome, reason, step),
        }
    }

    fn advance_phase_two(&mut self, now: Millis, id: &TransactionId, step: &mut Step) {
        let Some(transaction) = self.transactions.get_mut(id) else { return };
        for number in phase_two::callable(transaction, self.config.mutations) {
            self.call(now, id, number, step);
        }
        let complete = self.transactions.get(id).is_some_and(phase_two::is_complete);
        if complete {
            self.end(now, id, step);
        }
    }

    pub(crate) fn end(&mut self, now: Millis, id: &TransactionId, step: &mut Step) {
        self.disarm_all(id);
        let ended = self.record(now, id, Fact::Ended, step);
        step.effects.extend(ended.map(Effect::Ended));
    }

    /// Takes the decision: on record first, then told, then carried out.
    pub(crate) fn decide(
        &mut self,
        now: Millis,
        id: &TransactionId,
        outcome: Outcome,
        reason: Reason,
        step: &mut Step,
    ) {
        let Some(transaction) = self.transactions.get(id) else { return };
        let ballots = transaction.ballots();
        let results = transaction.unsaved_results();
        self.disarm_phase_one(id);
        let fact = Fact::Decided { outcome, reason: reason.clone(), ballots, results };
        self.record(now, id, fact, step);
        step.effects.push(Effect::Decided(id.clone(), outcome, reason));
        self.arm_delays(id);
        self.advance(now, id, step);
    }

    /// Sends a branch what it is to do now.
    pub(crate) fn call(&mut self, now: Millis, id: &TransactionId, number: u16, step: &mut Step) {
        let attempts_max = self.config.attempts_counted_max;
        let Some(transaction) = self.transactions.get_mut(id) else { return };
        let deadline = transaction.phase_one_deadline();
        let attempt_timeout_ms = transaction.options.attempt_timeout_ms;
        let asked = transaction.phase_one_operation(number);
        let settles = transaction.settling.is_some();
        let branch = transaction.branch_mut(number);
        let (operation, timeout_ms) = match (branch.progress, asked) {
            (Progress::Owes(operation), _) => (operation, attempt_timeout_ms),
            (Progress::Undecided, Some(operation)) if settles => (operation, attempt_timeout_ms),
            (Progress::Undecided, Some(operation)) => {
                (operation, deadline.saturating_sub(now).max(1))
            }
            (Progress::Undecided, None) | (Progress::Done, _) => return,
        };
        if branch.in_flight {
            return;
        }
        if branch.progress == Progress::Undecided && branch.ballot == Ballot::NotCalled {
            branch.ballot = Ballot::Unanswered;
        }
        branch.in_flight = true;
        branch.attempt = branch.attempt.saturating_add(1).min(attempts_max);
        let call = call(transaction, number, operation, timeout_ms);
        let what = What::Called { operation, attempt: call.attempt };
        step.effects.push(Effect::Call(call));
        let observation = Observation { at: now, branch: Some(number), what };
        transaction.timeline.observe(&observation, self.config.observations_max);
    }

    /// Writes a fact and applies it, in one: there is no other way to change one.
    pub(crate) fn record(
        &mut self,
        now: Millis,
        id: &TransactionId,
        fact: Fact,
        step: &mut Step,
    ) -> Option<Box<Transaction>> {
        let observations = match self.transactions.get_mut(id) {
            Some(transaction) => transaction.timeline.take_unsaved(),
            None => Observations::new(),
        };
        let record = Record { transaction: id.clone(), at: now, fact, observations };
        let ended = match self.apply(&record) {
            Ok(ended) => ended,
            Err(error) => panic!("a record of our own must fit: {error}"),
        };
        step.records.reserve_exact(1); // Hardly a step has more.
        step.records.push(record);
        ended
    }

    pub(crate) fn observe(
        &mut self,
        at: Millis,
        id: &TransactionId,
        branch: Option<u16>,
        what: What,
    ) {
        let observations_max = self.config.observations_max;
        if let Some(transaction) = self.transactions.get_mut(id) {
            transaction.timeline.observe(&Observation { at, branch, what }, observations_max);
        }
    }
}

/// A call, complete in itself: whoever carries it need not look anything up.
fn call(transaction: &Transaction, number: u16, operation: Operation, timeout_ms: u64) -> Call {
    let branch = transaction.branch(number);
    let with_payload = operation.carries_payload() || branch.plan.payload_in_phase_two;
    let referred = branch.plan.refers.iter().filter(|_| with_payload);
    let results = referred.map(|other| {
        let other = transaction.branch(*other);
        (other.plan.name.clone(), other.result.clone())
    });
    let is_deferred = branch.plan.kind == Kind::Deferred;
    Call {
        transaction: transaction.id.clone(),
        branch: number,
        plan: branch.plan.clone(),
        operation,
        attempt: branch.attempt,
        timeout_ms,
        payload: with_payload.then(|| branch.payload()),
        results: results.collect(),
        outcome: transaction.outcome().filter(|_| is_deferred),
    }
}
