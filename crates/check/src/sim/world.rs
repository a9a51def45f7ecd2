//! The simulated world: one thread, one seed, virtual time. It carries messages, lets disks finish,
//! wakes who sleeps, and breaks what the options say may break. The coordinator, the guard, the
//! outbox and the journal contract in it are the ones that ship.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use unanimity_core::{
    Answer, BranchPlan, Mutations, Operation, PackedTransactions, Plan, TransactionId,
};
use unanimity_journal::MemoryEngine;
use unanimity_judge::{BranchLine, Event as Seen, Finding, Judge, Line, Sight};

use super::initiator::Initiator;
use super::options::{FaultKind, Faults, Options};
use super::poison::{Panics, Poisoned};
use super::random::Random;
use super::replicas::Begun;
use super::server::{Answered, Ask, Asker, CallKey, Disk, Process, Say};
use super::service::Service;
use super::situations::Situations;
use super::upgrade::UpgradeBug;
use super::workload;

/// A mistake in the modelled parts of a participant, to show that the simulator would notice one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreBug {
    /// A participant answers before its local commit is durable.
    AnswerBeforeCommit,
    /// The guard's row is written in another local transaction than the work.
    RowApart,
    /// The guard's row is kept in the memory of the process that wrote it.
    RowInMemory,
    /// The guard's row is read without a lock: another process may act on it at the same time.
    RowNotLocked,
}

/// What is wrong on purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Planted {
    /// In the core, the guard or the outbox.
    pub mutations: Mutations,
    /// In the journal.
    pub journal: unanimity_journal::Mutations,
    /// In a participant's store.
    pub store: Option<StoreBug>,
    /// In how a newer version reads what an older one wrote.
    pub upgrade: Option<UpgradeBug>,
}

/// A call on its way to a service, or an initiator's own.
#[derive(Clone, Debug)]
pub struct CallOnItsWay {
    /// The service.
    pub service: usize,
    /// Which of its processes.
    pub replica: usize,
    /// Since when it waits there for a row that another has locked.
    pub waits_since: Option<u64>,
    /// Which call.
    pub key: CallKey,
    /// What it carries.
    pub payload: Option<Arc<[u8]>>,
    /// Who gets the answer.
    pub back_to: BackTo,
}

/// Who gets an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackTo {
    /// This shard of this generation of the coordinator.
    Coordinator(u64, usize),
    /// This initiator, for this request.
    Initiator(usize, u64),
    /// Nobody: a copy of a message.
    Nobody,
}

/// Something that is going to happen.
#[derive(Clone, Debug)]
pub(super) enum Happening {
    CallArrives(CallOnItsWay),
    AnswerArrives(CallKey, BackTo, Answer),
    CallTimesOut(u64, usize, CallKey),
    AppendDone(u64, usize),
    ShardWakes(u64, usize),
    TakesUp(u64, usize, u64),
    Archived(u64, usize, Arc<PackedTransactions>),
    AskArrives(Asker, TransactionId, u64, Ask),
    SayArrives(Answered),
    InitiatorWakes(usize, u64),
    RequestTimesOut(usize, u64),
    ServiceStarts(usize, usize),
    ServiceAsks(usize, usize),
    LocalEnds(Box<Begun>),
    LocksFreed(usize, usize, u64),
    CoordinatorStarts,
    CoordinatorStops(u64),
}

/// Everything there is.
pub struct Simulation {
    pub(super) options: Options,
    pub(super) planted: Planted,
    pub(super) now: u64,
    queue: BTreeMap<(u64, u64, u64), Happening>,
    sequence: u64,
    order: Random,
    pub(super) network: Random,
    pub(super) disk_random: Random,
    pub(super) faults: Faults,
    pub(super) disk: Disk,
    /// The coordinators that run: one, or two while an older one sleeps.
    pub(super) processes: Vec<Process>,
    pub(super) generations: u64,
    pub(super) services: Vec<Service>,
    pub(super) initiators: Vec<Initiator>,
    pub(super) plans: BTreeMap<TransactionId, Plan>,
    judge: Judge,
    hash: DefaultHasher,
    trace: Option<Vec<Line>>,
    pub(super) situations: Situations,
    pub(super) events: u64,
    pub(super) clock_stepped_ms: u64,
    /// The branches that a service has lost its memory of.
    pub(super) forgotten: BTreeSet<(TransactionId, u16)>,
    /// The transactions of which a request was on its way twice.
    pub(super) doubled: BTreeSet<TransactionId>,
    /// What the program breaks on, until it is upgraded.
    pub(super) poisoned: Poisoned,
    /// Whether the coordinator has been upgraded: whichever starts is the newer one.
    pub(super) upgraded: bool,
    /// What went wrong inside, if anything did.
    pub(super) broken: Option<Finding>,
}

impl Simulation {
    /// A world in which nothing has happened yet.
    #[must_use]
    pub fn new(
        seed: u64,
        options: Options,
        planted: Planted,
        keep: Option<Vec<u64>>,
        traces: bool,
    ) -> Self {
        let services = (0..usize::from(options.services))
            .map(|number| Service::new(number, &options, planted.mutations));
        let policy = options.asking(planted.mutations);
        let initiators = (0..options.initiators).map(|number| {
            let mut random = Random::new(seed, "initiator", u64::from(number));
            let todo = (0..options.transactions).filter_map(|turn| {
                let id = TransactionId::new(&format!("t{number}-{turn}")).ok()?;
                Some(workload::next(&mut random, &options, id))
            });
            let todo = todo.collect();
            Initiator::new(todo, policy.clone())
        });
        let initiators: Vec<Initiator> = initiators.collect();
        let plans = initiators.iter().flat_map(|one| &one.todo);
        let plans = plans.map(|work| (work.id.clone(), work.plan.clone())).collect();
        let journal = MemoryEngine::with_mutations(planted.journal);
        let mut world = Self {
            planted,
            now: 0,
            queue: BTreeMap::new(),
            sequence: 0,
            order: Random::new(seed, "order", 0),
            network: Random::new(seed, "network", 0),
            disk_random: Random::new(seed, "disk", 0),
            faults: Faults::new(seed, keep),
            disk: Disk {
                journal,
                history: BTreeMap::new(),
                archived_up_to: BTreeMap::new(),
                damage: None,
                panics: Panics::default(),
            },
            processes: Vec::new(),
            generations: 0,
            services: services.collect(),
            initiators,
            plans,
            judge: Judge::new(),
            hash: DefaultHasher::new(),
            trace: traces.then(Vec::new),
            situations: Situations::default(),
            events: 0,
            clock_stepped_ms: 0,
            forgotten: BTreeSet::new(),
            doubled: BTreeSet::new(),
            poisoned: Poisoned::new(),
            upgraded: false,
            broken: None,
            options,
        };
        let sees = [Sight::Coordinator, Sight::Participants, Sight::Disk, Sight::Money];
        world.see(Seen::Trace { version: 1, source: "simulator".into(), sees: sees.into() });
        world.start_coordinator();
        for number in 0..world.initiators.len() {
            let at = world.network.below(200);
            world.later(at, Happening::InitiatorWakes(number, 0));
        }
        world
    }

    /// Puts something into the future.
    pub(super) fn later(&mut self, delay: u64, happening: Happening) {
        self.sequence += 1;
        let tie = self.order.bits();
        self.queue.insert((self.now + delay, tie, self.sequence), happening);
    }

    /// Writes a line of the trace, and has it judged.
    pub(super) fn see(&mut self, event: Seen) {
        let line = Line { at: self.now, event };
        line.hash(&mut self.hash);
        self.situations.see(&line);
        if self.judge.take(&line) && self.broken.is_none() {
            self.broken = self.judge.found().first().cloned();
        }
        if let Some(trace) = &mut self.trace {
            trace.push(line);
        }
    }

    /// Something that must never be, found by the world itself.
    pub(super) fn fail(&mut self, rule: &'static str, problem: String) {
        let (line, at) = (self.judge.lines(), self.now);
        self.broken.get_or_insert(Finding { line, at, transaction: None, rule, problem });
    }

    pub(super) fn note(&mut self, what: &str) {
        self.see(Seen::Noted { what: what.into() });
    }

    /// Whether a fault strikes; it is noted if it does.
    pub(super) fn strikes(&mut self, kind: FaultKind) -> bool {
        let strikes = self.faults.strikes(&self.options, kind);
        if strikes {
            self.note(kind.what());
        }
        strikes
    }

    /// What is wrong, if anything is.
    #[must_use]
    pub const fn broken(&self) -> Option<&Finding> {
        self.broken.as_ref()
    }

    /// Every rule that is broken so far.
    #[must_use]
    pub fn rules(&self) -> BTreeSet<&'static str> {
        let judged = self.judge.found().iter().map(|one| one.rule);
        judged.chain(self.broken().map(|one| one.rule)).collect()
    }

    /// The trace, if it was kept.
    #[must_use]
    pub fn trace(&self) -> &[Line] {
        self.trace.as_deref().unwrap_or_default()
    }

    /// A digest of everything that was seen: the same for the same seed.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hash.finish()
    }

    /// Lets things happen until this moment, or until nothing is left to happen.
    pub(super) fn run_until(&mut self, until: u64) {
        while self.broken.is_none() {
            let Some(entry) = self.queue.first_entry() else { break };
            if entry.key().0 > until {
                break;
            }
            let ((at, ..), happening) = entry.remove_entry();
            self.now = self.now.max(at);
            self.events += 1;
            self.happen(happening);
        }
        self.now = self.now.max(until);
    }

    /// When the last thing that is known to happen will have happened.
    pub(super) fn last_event_at(&self) -> u64 {
        self.queue.last_key_value().map_or(self.now, |(key, _)| key.0)
    }

    /// Whether nothing is on its way any more.
    pub(super) fn is_quiet(&self) -> bool {
        self.queue.is_empty()
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::CallArrives(call) => self.call_arrives(call),
            Happening::AnswerArrives(key, back_to, answer) => {
                self.answer_arrives(key, back_to, answer);
            }
            Happening::CallTimesOut(generation, shard, key) => {
                let answer = Answer::Unknown("no answer in time".into());
                self.answer_arrives(key, BackTo::Coordinator(generation, shard), answer);
            }
            Happening::AppendDone(generation, shard) => self.append_done(generation, shard),
            Happening::ShardWakes(generation, shard) => self.shard_wakes(generation, shard),
            Happening::TakesUp(generation, shard, by) => self.takes_up((generation, shard), by),
            Happening::Archived(generation, shard, done) => self.archived(generation, shard, done),
            Happening::AskArrives(to, id, since, ask) => self.ask_arrives(to, &id, since, ask),
            Happening::SayArrives(answered) => self.say_arrives(answered),
            Happening::InitiatorWakes(number, request) => self.initiator_wakes(number, request),
            Happening::RequestTimesOut(number, request) => self.request_times_out(number, request),
            Happening::ServiceStarts(number, replica) => self.service_starts(number, replica),
            Happening::ServiceAsks(number, replica) => self.service_asks(number, replica),
            Happening::LocalEnds(begun) => self.local_ends(begun),
            Happening::LocksFreed(number, replica, life) => self.locks_freed(number, replica, life),
            Happening::CoordinatorStarts => self.start_coordinator(),
            Happening::CoordinatorStops(generation) => self.end_in_good_order(generation),
        }
    }

    /// A process that sleeps gets what comes when it wakes. `None`: now.
    pub(super) fn sleeps(&self, generation: u64) -> Option<u64> {
        let process = self.processes.iter().find(|one| one.generation == generation)?;
        (process.paused_until > self.now).then(|| process.paused_until - self.now)
    }

    /// The shard of a running coordinator.
    pub(super) fn shard(
        &mut self,
        generation: u64,
        shard: usize,
    ) -> Option<&mut super::server::Shard> {
        let mut processes = self.processes.iter_mut();
        processes.find(|one| one.generation == generation)?.shards.get_mut(shard)
    }

    /// The time that a coordinator is told.
    pub(super) fn clock(&self, generation: u64) -> u64 {
        let process = self.processes.iter().find(|one| one.generation == generation);
        self.now + process.map_or(0, |one| one.ahead_ms)
    }

    /// The branch of a plan.
    pub(super) fn plan_of(&self, id: &TransactionId, branch: u16) -> Option<&BranchPlan> {
        self.plans.get(id)?.branches.get(usize::from(branch))
    }
}

/// A branch as the trace has it.
#[must_use]
pub fn branch_line(branch: &BranchPlan) -> BranchLine {
    BranchLine {
        name: Arc::clone(&branch.name),
        kind: branch.kind,
        after: branch.after.to_vec(),
        by_initiator: branch.by_initiator,
        also_on_rollback: branch.also_on_rollback,
        comes_last: branch.comes_last,
    }
}

/// What an operation's answer is called in a trace.
#[must_use]
pub const fn answer_word(answer: &Answer) -> &'static str {
    match answer {
        Answer::Yes(_) => "yes",
        Answer::ReadOnly | Answer::Read(_) => "read_only",
        Answer::No(_) => "no",
        Answer::Acknowledged => "acknowledged",
        Answer::Unsupported => "unsupported",
        Answer::Contradiction(contradiction, _) => contradiction.code(),
        Answer::Unsent(_) => "unsent",
        Answer::Unknown(_) => "unknown",
    }
}

/// Whether an operation carries a payload.
#[must_use]
pub fn payload_of(plan: &BranchPlan, operation: Operation) -> Option<Arc<[u8]>> {
    operation.carries_payload().then(|| Arc::clone(&plan.payload))
}

impl Say {
    /// The outcome in it.
    #[must_use]
    pub const fn outcome(&self) -> Option<unanimity_core::Outcome> {
        match self {
            Self::Outcome(outcome, ..) => Some(*outcome),
            _ => None, // Nothing else says how it ended.
        }
    }
}
