//! The world in which the protocol is tried: one coordinator process around the real
//! [`Coordinator`], its journal, the network and the participants. [`World::enabled`] says what may
//! happen next, [`World::apply`] makes it happen; who chooses is a checker's or a simulator's.
//!
//! What is free here, at any moment: messages are delayed and reordered without limit, and lost by
//! never being delivered; any armed timer fires. What the setup buys by the piece: crashes,
//! restarts, lost memories, cancellations, checkpoints.

use std::collections::BTreeSet;
use std::sync::Arc;

use unanimity_core::{
    Answer, Call, Coordinator, Effect, Event, Fact, Heuristic, Kind, Mutation, Operation, Outcome,
    Step, Timer, TimerPurpose, TransactionId,
};

use crate::initiator::Initiator;
use crate::journal::Journal;
use crate::participant::{Participant, Said};
use crate::setup::{Network, Rules, Setup};

/// A call on its way, or under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallMessage {
    /// To which branch.
    pub branch: u16,
    /// For what.
    pub operation: Operation,
    /// The how-manieth time.
    pub attempt: u32,
}

/// An answer on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AnswerMessage {
    /// To which call.
    pub call: CallMessage,
    /// What it says.
    pub said: Said,
}

/// The coordinator's word to a participant in doubt, on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Word {
    /// To which branch.
    pub branch: u16,
    /// What was decided, or presumed.
    pub outcome: Outcome,
    /// Whether it was presumed, because nobody had a record of the transaction.
    pub presumed: bool,
}

/// What a coordinator says to an inquiry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inquiry {
    /// Undecided, or not yet durable: ask again later.
    Pending,
    /// The durable decision.
    Decided(Outcome),
    /// No record: presumed rolled back.
    Presumed,
}

/// What the initiator was told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Told {
    /// That its transaction is on record.
    pub begun: bool,
    /// Each outcome that it was told.
    pub outcomes: BTreeSet<Outcome>,
    /// Each outcome that it was told to be complete.
    pub completed: BTreeSet<Outcome>,
    /// Whether it was told that a branch was settled against the decision.
    pub mixed: bool,
}

/// What is left of the setup's budget of faults.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Budget {
    pub(crate) commit_requests: u8,
    pub(crate) resolutions: u8,
    cancels: u8,
    coordinator_crashes: u8,
    participant_restarts: u8,
    amnesia: u8,
    checkpoints: u8,
}

/// Something that may happen.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// The initiator asks for its transaction.
    Begin,
    /// The oldest unsynced step becomes durable, and its effects leave.
    Sync,
    /// The coordinator process dies: what is not durable is gone.
    Crash,
    /// A new one reads the journal and takes everything up.
    Recover,
    /// A participant receives a call and answers it.
    DeliverCall(CallMessage),
    /// The coordinator receives an answer.
    DeliverAnswer(AnswerMessage),
    /// The driver gives a call up and reports that no answer came.
    GiveUp(CallMessage),
    /// A copy of the service that does not know the operation receives the call.
    DeliverToOldCopy(CallMessage),
    /// The driver could not connect, and knows that the call was never sent.
    Refuse(CallMessage),
    /// The initiator of an interactive transaction enlists a branch.
    Enlist(u16),
    /// It does the phase-one work of a branch itself.
    Work(u16),
    /// It asks to commit.
    RequestCommit,
    /// An operator says how a branch was settled without the coordinator.
    Resolve(u16, Outcome),
    /// A timer is due.
    Fire(Timer),
    /// Somebody asks to roll back.
    RequestRollback,
    /// The coordinator writes the live transaction anew; the older records can go.
    Checkpoint,
    /// A participant crashes after its local commit: its answers on the way are lost. It restarts,
    /// and will ask about a branch that it finds in doubt.
    RestartParticipant(u16),
    /// A prepared participant loses its disk.
    Forget(u16),
    /// A participant asks for the decision.
    Ask(u16),
    /// A participant receives the coordinator's word and obeys.
    DeliverWord(Word),
}

/// Everything there is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    rules: Rules,
    /// The coordinator, if its process is up.
    pub coordinator: Option<Arc<Coordinator>>,
    /// What it has written.
    pub journal: Journal,
    /// Calls that its driver still owes it an answer for.
    pub open: BTreeSet<CallMessage>,
    /// Calls on their way.
    pub calls: BTreeSet<CallMessage>,
    /// Calls that have arrived somewhere, where it matters whether one has.
    pub arrived: BTreeSet<CallMessage>,
    /// Answers on their way.
    pub answers: BTreeSet<AnswerMessage>,
    /// The coordinator's words to those who asked, on their way.
    pub words: BTreeSet<Word>,
    /// The participants, by branch.
    pub participants: Vec<Participant>,
    /// What the initiator was told.
    pub told: Told,
    /// What it has done of an interactive transaction.
    pub initiator: Initiator,
    /// The branches that an operator has settled: no property speaks of them any more.
    pub resolved: BTreeSet<u16>,
    /// Which decisions any participant was ever told.
    pub sent: BTreeSet<Outcome>,
    /// Whether a branch was called while a call for the same was under way.
    pub doubled: bool,
    /// What went wrong inside: a journal that its own coordinator could not read.
    pub broken: Option<String>,
    pub(crate) budget: Budget,
    pub(crate) transaction: TransactionId,
}

impl World {
    /// A world in which nothing has happened yet.
    #[must_use]
    pub fn new(setup: &Arc<Setup>) -> Self {
        Self {
            rules: Rules(Arc::clone(setup)),
            coordinator: Some(Arc::new(Coordinator::new(setup.coordinator()))),
            journal: Journal::default(),
            open: BTreeSet::new(),
            calls: BTreeSet::new(),
            arrived: BTreeSet::new(),
            answers: BTreeSet::new(),
            words: BTreeSet::new(),
            participants: vec![Participant::default(); setup.branches.len()],
            told: Told::default(),
            initiator: Initiator::default(),
            resolved: BTreeSet::new(),
            sent: BTreeSet::new(),
            doubled: false,
            broken: None,
            budget: Budget {
                commit_requests: setup.commit_requests,
                resolutions: setup.resolutions,
                cancels: setup.cancels,
                coordinator_crashes: setup.coordinator_crashes,
                participant_restarts: setup.participant_restarts,
                amnesia: setup.amnesia,
                checkpoints: setup.checkpoints,
            },
            transaction: Setup::transaction(),
        }
    }

    /// What this world is made of.
    #[must_use]
    pub fn setup(&self) -> &Setup {
        &self.rules.0
    }

    /// The transaction, if the coordinator is up and it is live.
    #[must_use]
    pub fn live(&self) -> Option<&unanimity_core::Transaction> {
        self.coordinator.as_ref()?.get(&self.transaction)
    }

    /// Everything that may happen now, always in the same order.
    #[must_use]
    pub fn enabled(&self) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.broken.is_some() {
            return actions;
        }
        match &self.coordinator {
            None => actions.push(Action::Recover),
            Some(coordinator) => self.enabled_at_the_coordinator(coordinator, &mut actions),
        }
        actions.extend(self.calls.iter().copied().map(Action::DeliverCall));
        let one_phase = |call: &CallMessage| call.operation == Operation::CommitOnePhase;
        if self.setup().old_copies {
            let calls = self.calls.iter().copied().filter(one_phase);
            actions.extend(calls.map(Action::DeliverToOldCopy));
        }
        self.enabled_at_the_initiator(&mut actions);
        actions.extend(self.words.iter().copied().map(Action::DeliverWord));
        self.enabled_at_participants(&mut actions);
        actions
    }

    fn enabled_at_the_coordinator(&self, coordinator: &Coordinator, actions: &mut Vec<Action>) {
        let live = coordinator.get(&self.transaction);
        if !self.journal.has_beginning() {
            actions.push(Action::Begin);
        }
        if !self.journal.pending.is_empty() {
            actions.push(Action::Sync);
        }
        if self.budget.coordinator_crashes > 0 {
            actions.push(Action::Crash);
        }
        actions.extend(self.answers.iter().copied().map(Action::DeliverAnswer));
        let given_up = self.open.iter().copied().filter(|call| self.may_give_up(*call));
        actions.extend(given_up.map(Action::GiveUp));
        if self.setup().refuses {
            let unsent = self.open.intersection(&self.calls).copied();
            let unsent = unsent.filter(|call| !self.arrived.contains(call));
            actions.extend(unsent.map(Action::Refuse));
        }
        let firing = coordinator.timers().filter(|timer| self.may_fire(timer));
        actions.extend(firing.cloned().map(Action::Fire));
        if self.budget.cancels > 0 && live.is_some_and(|t| t.decision.is_none()) {
            actions.push(Action::RequestRollback);
        }
        if self.budget.resolutions > 0 && live.is_some() {
            self.enabled_resolutions(coordinator, actions);
        }
        if self.budget.checkpoints > 0 && live.is_some() {
            actions.push(Action::Checkpoint);
        }
    }

    /// A driver that is never wrong about silence gives up only what can have no answer any more.
    fn may_give_up(&self, call: CallMessage) -> bool {
        let answered = self.answers.iter().any(|answer| answer.call == call);
        self.setup().gives_up || !(answered || self.calls.contains(&call))
    }

    fn may_fire(&self, timer: &Timer) -> bool {
        self.setup().deadlines || matches!(timer.purpose, TimerPurpose::Retry(_))
    }

    fn enabled_at_participants(&self, actions: &mut Vec<Action>) {
        for (number, participant) in (0..).zip(&self.participants) {
            if self.budget.participant_restarts > 0 && participant.row.is_some() {
                actions.push(Action::RestartParticipant(number));
            }
            if self.budget.amnesia > 0 && participant.is_in_doubt() {
                actions.push(Action::Forget(number));
            }
            if participant.asks && participant.is_in_doubt() && self.word().is_some() {
                actions.push(Action::Ask(number));
            }
        }
    }

    /// What an inquiry would be answered now; `None` while the coordinator is down or undecided.
    #[must_use]
    pub fn word(&self) -> Option<(Outcome, bool)> {
        match self.inquire()? {
            Inquiry::Pending => None,
            Inquiry::Decided(outcome) => Some((outcome, false)),
            Inquiry::Presumed => Some((Outcome::Rollback, true)),
        }
    }

    /// An inquiry's answer rests, like any effect, on everything written before it: while something
    /// is still on its way to the disk, the decision in memory is nobody's business.
    #[must_use]
    pub fn inquire(&self) -> Option<Inquiry> {
        let coordinator = self.coordinator.as_ref()?;
        let Some(transaction) = coordinator.get(&self.transaction) else {
            return Some(Inquiry::Presumed);
        };
        Some(match transaction.outcome() {
            Some(outcome) if self.journal.pending.is_empty() => Inquiry::Decided(outcome),
            Some(_) | None => Inquiry::Pending,
        })
    }

    /// Makes something happen. It must be enabled.
    pub fn apply(&mut self, action: &Action) {
        match action {
            Action::Begin => self.begin(),
            Action::Sync => {
                let effects = self.journal.sync();
                self.release(effects);
            }
            Action::Crash => self.crash(),
            Action::Recover => self.recover(),
            Action::DeliverCall(call) => self.deliver_call(*call),
            Action::DeliverAnswer(answer) => self.deliver_answer(*answer),
            Action::GiveUp(call) => {
                self.open.remove(call);
                self.answered(*call, Answer::Unknown("no answer".into()));
            }
            Action::Refuse(call) => {
                self.open.remove(call);
                self.calls.remove(call);
                self.answered(*call, Answer::Unsent("refused".into()));
            }
            Action::DeliverToOldCopy(call) => {
                self.arrive(*call);
                if self.setup().network == Network::Once {
                    self.calls.remove(call);
                }
                self.answers.insert(AnswerMessage { call: *call, said: Said::Unsupported });
            }
            Action::Enlist(number) => self.enlist(*number),
            Action::Work(number) => self.initiator_works(*number),
            Action::RequestCommit => self.request_commit(),
            Action::Resolve(branch, outcome) => self.resolve(*branch, *outcome),
            Action::Fire(timer) => self.happened(Event::Timer(timer.clone())),
            Action::RequestRollback => {
                self.budget.cancels -= 1;
                let transaction = self.transaction.clone();
                self.happened(Event::RollbackRequested { transaction, reason: "asked".into() });
            }
            Action::Checkpoint => self.checkpoint(),
            Action::RestartParticipant(number) => self.restart_participant(*number),
            Action::Forget(number) => {
                self.budget.amnesia -= 1;
                self.participants[usize::from(*number)].forget();
            }
            Action::Ask(branch) => {
                if let Some((outcome, presumed)) = self.word() {
                    self.sent.insert(outcome);
                    self.words.insert(Word { branch: *branch, outcome, presumed });
                }
            }
            Action::DeliverWord(word) => self.deliver_word(*word),
        }
    }

    fn begin(&mut self) {
        let plan = self.setup().plan();
        let transaction = self.transaction.clone();
        self.happened(Event::Begin { transaction, fingerprint: 7, plan: Box::new(plan) });
    }

    fn crash(&mut self) {
        self.budget.coordinator_crashes -= 1;
        self.coordinator = None;
        self.journal.pending.clear();
        self.open.clear();
        self.initiator.asking = false;
    }

    fn recover(&mut self) {
        match self.replay() {
            Ok(mut coordinator) => {
                let step = coordinator.resume(0);
                self.coordinator = Some(Arc::new(coordinator));
                self.accept(step);
            }
            Err(problem) => self.broken = Some(problem),
        }
    }

    /// What a coordinator knows that has read the journal and done nothing else.
    ///
    /// # Errors
    /// If the journal contradicts itself.
    pub fn replay(&self) -> Result<Coordinator, String> {
        let mut coordinator = Coordinator::new(self.setup().coordinator());
        for record in &self.journal.durable {
            coordinator.apply(record).map_err(|error| error.to_string())?;
        }
        Ok(coordinator)
    }

    fn arrive(&mut self, call: CallMessage) {
        if self.setup().refuses {
            self.arrived.insert(call);
        }
    }

    fn deliver_call(&mut self, call: CallMessage) {
        self.arrive(call);
        if self.setup().network == Network::Once {
            self.calls.remove(&call);
        }
        let said = self.participant_handles(call.branch, call.operation);
        self.answers.insert(AnswerMessage { call, said });
    }

    fn deliver_word(&mut self, word: Word) {
        if self.setup().network == Network::Once {
            self.words.remove(&word);
        }
        let operation = match word.outcome {
            Outcome::Commit => Operation::Commit,
            Outcome::Rollback => Operation::Rollback,
        };
        self.participant_handles(word.branch, operation);
    }

    pub(crate) fn participant_handles(&mut self, branch: u16, operation: Operation) -> Said {
        let number = usize::from(branch);
        let (says, mutations) = (self.setup().branches[number].says, self.setup().mutations);
        self.participants[number].handle(operation, says, mutations)
    }

    fn deliver_answer(&mut self, answer: AnswerMessage) {
        if self.setup().network == Network::Once {
            self.answers.remove(&answer);
        }
        self.open.remove(&answer.call);
        self.answered(answer.call, answer.said.answer());
    }

    fn answered(&mut self, call: CallMessage, answer: Answer) {
        let CallMessage { branch, operation, attempt } = call;
        let transaction = self.transaction.clone();
        self.happened(Event::Answer { transaction, branch, operation, attempt, answer });
    }

    fn checkpoint(&mut self) {
        self.budget.checkpoints -= 1;
        let Some(coordinator) = &mut self.coordinator else { return };
        if let Some(step) = Arc::make_mut(coordinator).rewrite(0, &self.transaction) {
            self.accept(step);
        }
    }

    fn restart_participant(&mut self, number: u16) {
        self.budget.participant_restarts -= 1;
        self.answers.retain(|answer| answer.call.branch != number);
        self.participants[usize::from(number)].asks = true;
    }

    pub(crate) fn happened(&mut self, event: Event) {
        let Some(coordinator) = &mut self.coordinator else { return };
        let step = Arc::make_mut(coordinator).handle(0, event);
        self.accept(step);
    }

    fn accept(&mut self, step: Step) {
        let too_early = self.setup().mutations.has(Mutation::EffectsBeforeSync);
        match self.journal.accept(step, too_early) {
            Ok(effects) => self.release(effects),
            Err(problem) => self.broken = Some(problem),
        }
    }

    fn release(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Begun(_) => self.told.begun = true,
                Effect::Call(call) => self.send(&call),
                Effect::Decided(_, outcome, _) => {
                    self.told.outcomes.insert(outcome);
                }
                Effect::Ended(transaction) => {
                    self.told.completed.extend(transaction.outcome());
                    self.told.mixed |= transaction.heuristic() == Some(Heuristic::Mixed);
                }
                Effect::Enlisted(_, number) => {
                    self.initiator.enlisted.insert(number);
                    self.initiator.asking = false;
                }
                Effect::Refused(_, refusal) => {
                    self.broken = Some(format!("the beginning was refused: {refusal:?}"));
                }
                // What they show is part of the transaction already.
                Effect::EnlistRefused(..)
                | Effect::Overdue(_)
                | Effect::Settling(_)
                | Effect::Parked(..)
                | Effect::Resolved(..) => {}
            }
        }
    }

    fn send(&mut self, call: &Call) {
        let Call { branch, operation, attempt, .. } = *call;
        let call = CallMessage { branch, operation, attempt };
        let twice = |open: &CallMessage| open.branch == branch && open.operation == operation;
        self.doubled |= self.open.iter().any(twice);
        self.sent.extend(self.reveals(call));
        self.open.insert(call);
        self.calls.insert(call);
    }

    /// The decision that a call gives away, if it gives one away: a rollback that only asks the
    /// participant which alone decides does not.
    #[must_use]
    pub fn reveals(&self, call: CallMessage) -> Option<Outcome> {
        let branch = &self.setup().branches[usize::from(call.branch)];
        match call.operation {
            Operation::Commit => Some(Outcome::Commit),
            Operation::Rollback if self.setup().one_phase => None,
            Operation::Rollback | Operation::Compensate => Some(Outcome::Rollback),
            Operation::Execute if branch.kind == Kind::Deferred && !branch.notice => {
                Some(Outcome::Commit)
            }
            Operation::Prepare
            | Operation::Execute
            | Operation::CommitOnePhase
            | Operation::Inquire => None,
        }
    }

    /// This world with its branches in another order: `order[place]` is the old number of the
    /// branch that stands at `place` afterwards.
    #[must_use]
    pub fn with_branches_permuted(&self, order: &[u16]) -> Self {
        let coordinator = self.coordinator.as_ref();
        let mut journal = self.journal.clone();
        for step in &mut journal.pending {
            step.sealed = step.sealed.with_branches_permuted(order);
        }
        if order.iter().zip(0..).all(|(old, new)| *old == new) {
            return Self { journal, ..self.clone() };
        }
        let mut place = vec![0_u16; order.len()];
        for (new, old) in (0_u16..).zip(order) {
            place[usize::from(*old)] = new;
        }
        let new_call =
            |call: &CallMessage| CallMessage { branch: place[usize::from(call.branch)], ..*call };
        let new_answer =
            |answer: &AnswerMessage| AnswerMessage { call: new_call(&answer.call), ..*answer };
        let new_word = |word: &Word| Word { branch: place[usize::from(word.branch)], ..*word };
        let pending = journal.pending.iter_mut().flat_map(|step| &mut step.records);
        for record in journal.durable.iter_mut().chain(pending) {
            // Branches that may change places are planned alike.
            if !matches!(record.fact, Fact::Begun { .. } | Fact::Ended) {
                *record = Arc::new(record.with_branches_permuted(order));
            }
        }
        let participants = order.iter().map(|old| self.participants[usize::from(*old)].clone());
        Self {
            coordinator: coordinator.map(|c| Arc::new(c.with_branches_permuted(order))),
            journal,
            open: self.open.iter().map(new_call).collect(),
            calls: self.calls.iter().map(new_call).collect(),
            arrived: self.arrived.iter().map(new_call).collect(),
            answers: self.answers.iter().map(new_answer).collect(),
            words: self.words.iter().map(new_word).collect(),
            participants: participants.collect(),
            rules: self.rules.clone(),
            told: self.told.clone(),
            initiator: self.initiator.clone(),
            resolved: self.resolved.clone(),
            sent: self.sent.clone(),
            doubled: self.doubled,
            broken: self.broken.clone(),
            budget: self.budget.clone(),
            transaction: self.transaction.clone(),
        }
    }
}
