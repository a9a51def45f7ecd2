//! The coordinator's process around the real core: its shards, each with the real coordinator, the
//! real outbox and the real journal contract; and what outlives it, the journal and the history.
//! What the network and the disk do to it is the world's.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hasher};
use std::sync::Arc;

use unanimity_core::{
    BranchPlan, Call, CloseRefusal, Coordinator, CoordinatorConfig, Doing, Ending, Event, Gathered,
    Heuristic, Operation, Out, Outbox, OutboxBounds, Outcome, Plan, Refusal, Replay, ReplayError,
    Replayed, Stage, Transaction, TransactionId, decode_head, digested_bytes, plan_of_version_1,
};
use unanimity_journal::{Batch, Engine, JournalError, MemoryEngine, Receipt};

use super::archiving::Archiving;
use super::options::Options;
use super::poison::{Panics, Poisoned, breaks};
use super::upgrade::Misreading;
use super::world::Planted;

/// Whom an answer goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    /// An initiator, with the number of its request.
    Initiator(usize, u64),
    /// A service in doubt about a branch, and which of its processes asks.
    Service(usize, usize, u16),
    /// Nobody who cares.
    Operator,
}

/// What is asked of a coordinator.
#[derive(Clone, Debug)]
pub enum Ask {
    /// To begin.
    Begin(Plan),
    /// To add a branch.
    Enlist(BranchPlan),
    /// To commit an interactive transaction.
    Commit,
    /// To roll back.
    Rollback,
    /// How it stands; at once, or when the outcome is there.
    Status {
        /// Whether to wait for the outcome.
        wait: bool,
    },
    /// The decision, for a participant in doubt.
    Decision,
    /// To try again now.
    Retry,
    /// To take somebody's word for how a branch was settled.
    Resolve(u16, Outcome),
}

/// What a coordinator answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Say {
    /// It is on record.
    Begun,
    /// A branch is on record.
    Enlisted(u16),
    /// It is in a stage in which this cannot be.
    NotOpen,
    /// It is decided, and not as was asked for.
    Decided,
    /// Try later.
    Busy,
    /// It is set aside: an operator is to see to it.
    SetAside,
    /// There is no such transaction.
    Unknown,
    /// There is no outcome yet.
    Pending,
    /// The outcome; whether it is complete, and whether a branch was settled against it.
    Outcome(Outcome, bool, bool),
    /// A plan that can never be accepted.
    Refused(&'static str),
}

/// An answer on its way out, and when it was asked for.
#[derive(Clone, Debug)]
pub struct Answered {
    /// To whom.
    pub to: Asker,
    /// About which transaction.
    pub id: TransactionId,
    /// When the question was asked.
    pub since: u64,
    /// What.
    pub say: Say,
}

/// A call under way: which one.
pub type CallKey = (TransactionId, u16, Operation, u32);

/// Somebody who waits for an effect.
#[derive(Clone, Debug)]
pub struct Waiting {
    /// Who.
    pub to: Asker,
    /// Since when.
    pub since: u64,
    /// Whether it waits for the outcome, and not only for the beginning.
    pub for_outcome: bool,
}

/// One shard of a running coordinator.
pub struct Shard {
    /// Its number.
    pub number: u16,
    /// The real coordinator.
    pub coordinator: Coordinator,
    /// The real outbox.
    pub outbox: Outbox<Answered>,
    /// Its journal.
    pub engine: MemoryEngine,
    /// The batch that is being appended.
    pub appending: Option<Gathered>,
    /// What lies before this position is forgotten with the next append.
    pub forgettable: Option<u64>,
    /// Whether it knows no more than version 1 did, and writes its records.
    pub is_older: bool,
    /// How many transactions may be live: the limit, or what was live already when it started.
    pub live_most: u64,
    /// Ended, and not in the history yet.
    pub ending: Ending,
    /// Ended, and not looked at by the world yet.
    pub has_ended: Vec<Box<Transaction>>,
    /// What the history was given and has not written, in order.
    pub archiving: VecDeque<Archiving>,
    /// Whether everything that was found could be read: else the history notes no position.
    pub all_is_read: bool,
    /// Who waits for what.
    pub waiting: BTreeMap<TransactionId, Vec<Waiting>>,
    /// Calls that are owed an answer.
    pub open: BTreeSet<CallKey>,
    /// When it is to be woken for its next timer.
    pub wakes_at: Option<u64>,
    /// Whose beginning is refused, because the program broke on it.
    pub refused: BTreeSet<TransactionId>,
    /// Something that reached what is set aside.
    pub reached: Option<TransactionId>,
}

/// Why a journal was not taken up.
pub enum NotRecovered {
    /// It is refused.
    Refused(String),
    /// The program broke on this transaction.
    Broke(TransactionId),
}

/// A running coordinator.
pub struct Process {
    /// Which one: they are counted over restarts.
    pub generation: u64,
    /// Stopped until then.
    pub paused_until: u64,
    /// How far its clock is ahead of the world's.
    pub ahead_ms: u64,
    /// Its shards.
    pub shards: Vec<Shard>,
}

/// What outlives a process.
pub struct Disk {
    /// The journal; each shard's part of it is told apart by its number.
    pub journal: MemoryEngine,
    /// The history.
    pub history: BTreeMap<TransactionId, Arc<Transaction>>,
    /// Up to which position of each shard's journal the history has noted that it holds everything
    /// that ended.
    pub archived_up_to: BTreeMap<u16, u64>,
    /// The bits that were flipped: shard, position, bit.
    pub damage: Option<(u16, u64, usize)>,
    /// On what the program has broken.
    pub panics: Panics,
}

/// A journal that was read.
pub struct Recovered {
    /// The process.
    pub process: Process,
    /// The last position of each shard that is there.
    pub positions: Vec<u64>,
    /// The transactions of which there are records of version 1.
    pub first_version: BTreeSet<TransactionId>,
}

/// How a coordinator starts.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// Which one it is: they are counted over restarts.
    pub generation: u64,
    /// How far its clock is ahead of the world's.
    pub ahead_ms: u64,
    /// The world's time.
    pub now: u64,
    /// Whether it is of the version before the upgrade, with its records.
    pub is_older: bool,
    /// Whether the upgrade, and its limits, have come.
    pub upgraded: bool,
}

/// The shard of an id: any fixed function does.
#[must_use]
pub fn shard_of(id: &TransactionId, shards: usize) -> usize {
    let sum: usize = id.as_str().bytes().map(usize::from).sum();
    sum % shards.max(1)
}

/// Starts a coordinator on what the disk holds, as the program does: read everything, make it
/// durable again, and only then act on it.
///
/// # Errors
/// Why the journal is refused.
pub fn recover(
    disk: &Disk,
    poisoned: &Poisoned,
    options: &Options,
    planted: Planted,
    start: Start,
) -> Result<Recovered, NotRecovered> {
    let Start { generation, ahead_ms, now, is_older, upgraded } = start;
    let (mutations, limits) = (planted.mutations, options.limits(upgraded));
    let mut first_version = BTreeSet::new();
    let mut shards = Vec::new();
    let mut positions = Vec::new();
    let mut latest = 0;
    for number in 0..options.shards {
        let config = CoordinatorConfig {
            live_transactions_max: usize::from(limits.live_max),
            observations_max: usize::from(limits.observations_max),
            seed: generation,
            mutations,
            ..CoordinatorConfig::default()
        };
        let mut engine = disk.journal.clone();
        let bounds = engine.bounds(number).map_err(refused)?;
        let bug = planted.upgrade.filter(|_| upgraded && !is_older);
        let bug = bug.map(|bug| Misreading::new(bug, usize::from(limits.live_max)));
        let mut reading = Reading { disk, poisoned, bug, first_version: &mut first_version };
        let mut replayed = reading.read((number, &mut engine), Coordinator::new(config))?;
        let refuses = disk.panics.set_aside(&mut replayed);
        engine.harden(number).map_err(refused)?;
        // Whoever still believes that this shard is theirs meets a conflict at their next append.
        engine.append(number, bounds.next, &[]).map_err(refused)?;
        latest = latest.max(replayed.latest);
        positions.push(bounds.next);
        let places = (bounds.first, bounds.next + 1);
        let homes = (replayed.homes, replayed.records);
        let mut outbox = Outbox::new(places, homes, outbox_bounds(limits.keeps_batches), mutations);
        let mut ending = Ending::new(0);
        for one in &replayed.ended {
            ending.insert(one, outbox.last_position(), outbox.ended(&one.id));
        }
        shards.push(Shard {
            number,
            outbox,
            is_older,
            live_most: (replayed.coordinator.len() as u64).max(u64::from(limits.live_max)),
            ending,
            has_ended: Vec::new(),
            archiving: VecDeque::new(),
            // The older version notes nothing.
            all_is_read: replayed.unread.is_empty() && !is_older,
            coordinator: replayed.coordinator,
            engine,
            appending: None,
            forgettable: None,
            waiting: BTreeMap::new(),
            open: BTreeSet::new(),
            wakes_at: None,
            refused: refuses,
            reached: None,
        });
    }
    // Time goes on from the latest moment on record, even if the clock was set back.
    let ahead_ms = ahead_ms.max(latest.saturating_sub(now));
    let process = Process { generation, paused_until: 0, ahead_ms, shards };
    Ok(Recovered { process, positions, first_version })
}

fn outbox_bounds(keeps_batches: u16) -> OutboxBounds {
    OutboxBounds {
        truncate_batches_min: u64::from(keeps_batches),
        truncate_bytes_min: if keeps_batches == 4 { 1 } else { u64::MAX },
        straggler_batches: u64::from(keeps_batches) * 2,
    }
}

fn refused(error: JournalError) -> NotRecovered {
    NotRecovered::Refused(error.to_string())
}

struct Reading<'a> {
    disk: &'a Disk,
    poisoned: &'a Poisoned,
    bug: Option<Misreading>,
    first_version: &'a mut BTreeSet<TransactionId>,
}

impl Reading<'_> {
    /// Reads one shard's journal, up to a transaction that the program breaks on.
    fn read(
        &mut self,
        (number, engine): (u16, &mut MemoryEngine),
        coordinator: Coordinator,
    ) -> Result<Replayed, NotRecovered> {
        let bounds = engine.bounds(number).map_err(refused)?;
        let archived_up_to = self.disk.archived_up_to.get(&number).copied().unwrap_or(0);
        if archived_up_to >= bounds.next {
            return Err(NotRecovered::Refused("older than the history".to_owned()));
        }
        let replay = Replay::new(coordinator).archived_up_to(archived_up_to);
        let mut replay = replay.passing_over(self.disk.panics.unreadable());
        let mut broke = None;
        let take = &mut |batch: Batch| {
            for bytes in &batch.records {
                let head = decode_head(bytes).map(|head| head.transaction);
                if bytes.first() == Some(&1) {
                    self.first_version.extend(head.clone());
                }
                let breaks = |id: &TransactionId| {
                    self.poisoned.get(id) == Some(&Doing::Replaying) && !replay.passes_over(id)
                };
                broke = broke.take().or_else(|| head.filter(breaks));
                match &mut self.bug {
                    None => replay.take(batch.position, bytes),
                    Some(bug) => bug
                        .read(bytes)
                        .into_iter()
                        .for_each(|bytes| replay.take(batch.position, &bytes)),
                }
            }
            Ok(())
        };
        engine.read(number, bounds.first, take).map_err(refused)?;
        if let Some(broke) = broke {
            return Err(NotRecovered::Broke(broke));
        }
        let replayed = replay.finish(bounds.next);
        let problem = |error: ReplayError| format!("{}: {}", error.position, error.problem);
        replayed.map_err(problem).map_err(NotRecovered::Refused)
    }
}

impl Shard {
    /// Something has happened.
    pub fn handle(&mut self, now: u64, event: Event) -> Vec<Out<Answered>> {
        let aside = self.coordinator.is_set_aside(event.transaction());
        let about = aside.then(|| event.transaction().clone());
        let step = self.coordinator.handle(now, event);
        self.reached = self.reached.take().or(about.filter(|_| !step.is_empty()));
        self.take(step)
    }

    /// Fires what is due, up to a transaction that the program breaks on.
    pub fn fire(
        &mut self,
        now: u64,
        poisoned: &Poisoned,
    ) -> (Vec<Out<Answered>>, Option<TransactionId>) {
        let mut out = Vec::new();
        while let Some(timer) = self.coordinator.next_timer().filter(|timer| timer.at <= now) {
            let id = &timer.transaction;
            if breaks(poisoned, &self.coordinator, id, Doing::Handling) {
                return (out, Some(id.clone()));
            }
            let event = Event::Timer(timer.clone());
            out.extend(self.handle(now, event));
        }
        (out, None)
    }

    fn reply(&mut self, to: Asker, id: &TransactionId, since: u64, say: Say) -> Vec<Out<Answered>> {
        let answered = Answered { to, id: id.clone(), since, say };
        self.outbox.reply(answered).into_iter().collect()
    }

    /// Takes a question in.
    pub fn asked(
        &mut self,
        now: u64,
        history: &BTreeMap<TransactionId, Arc<Transaction>>,
        (to, id, since): (Asker, &TransactionId, u64),
        ask: Ask,
    ) -> Vec<Out<Answered>> {
        match ask {
            Ask::Begin(plan) => self.begin(now, history, (to, id, since), plan),
            Ask::Status { wait } => {
                let say = self.status(history, id);
                if wait && say == Say::Pending {
                    self.wait(id, Waiting { to, since, for_outcome: true });
                    return Vec::new();
                }
                self.reply(to, id, since, say)
            }
            Ask::Decision => {
                let say = self.status(history, id);
                self.reply(to, id, since, say)
            }
            Ask::Enlist(branch) => {
                let name = Arc::clone(&branch.name);
                let event = Event::Enlist { transaction: id.clone(), branch: Box::new(branch) };
                let step = self.coordinator.handle(now, event);
                let number = self.coordinator.get(id).and_then(|live| {
                    let mut numbered = live.numbered();
                    numbered.find(|(_, branch)| branch.plan.name == name).map(|(number, _)| number)
                });
                let say = match (step.enlist_refusal(), number) {
                    (None, Some(number)) => Say::Enlisted(number),
                    _ => Say::NotOpen, // Refused; the initiator waits for the outcome.
                };
                let mut out = self.take(step);
                out.extend(self.reply(to, id, since, say));
                out
            }
            Ask::Commit => self.commit(now, history, (to, id, since)),
            Ask::Rollback => self.roll_back(now, history, (to, id, since)),
            Ask::Retry => self.handle(now, Event::RetryRequested { transaction: id.clone() }),
            Ask::Resolve(branch, outcome) => {
                if self.coordinator.check_resolve(id, branch, outcome, true).is_err() {
                    return Vec::new();
                }
                let (by, reason) = ("operator".into(), "it was restored".into());
                let transaction = id.clone();
                let event = Event::ResolveRequested { transaction, branch, outcome, by, reason };
                self.handle(now, event)
            }
        }
    }

    fn commit(
        &mut self,
        now: u64,
        history: &BTreeMap<TransactionId, Arc<Transaction>>,
        (to, id, since): (Asker, &TransactionId, u64),
    ) -> Vec<Out<Answered>> {
        if let Err(refusal) = self.coordinator.check_close(id) {
            let say = match (refusal, self.status(history, id)) {
                (CloseRefusal::SetAside, _) => Say::SetAside,
                (_, Say::Outcome(Outcome::Rollback, ..)) => Say::Decided,
                (CloseRefusal::Unknown | CloseRefusal::Whole, say) => say,
            };
            return self.reply(to, id, since, say);
        }
        self.wait(id, Waiting { to, since, for_outcome: true });
        let mut out = self.handle(now, Event::CommitRequested { transaction: id.clone() });
        out.extend(self.answer_what_is_known(id));
        out
    }

    fn roll_back(
        &mut self,
        now: u64,
        history: &BTreeMap<TransactionId, Arc<Transaction>>,
        (to, id, since): (Asker, &TransactionId, u64),
    ) -> Vec<Out<Answered>> {
        if let Say::Outcome(Outcome::Commit, ..) = self.status(history, id) {
            return self.reply(to, id, since, Say::Decided);
        }
        let reason = "asked".into();
        let event = Event::RollbackRequested { transaction: id.clone(), reason };
        let mut out = self.handle(now, event);
        let say = self.status(history, id);
        out.extend(self.reply(to, id, since, say));
        out
    }

    fn wait(&mut self, id: &TransactionId, waiting: Waiting) {
        self.waiting.entry(id.clone()).or_default().push(waiting);
    }

    /// Whoever asked to commit what is decided already is not left waiting.
    fn answer_what_is_known(&mut self, id: &TransactionId) -> Vec<Out<Answered>> {
        let known = self.coordinator.get(id).filter(|live| live.decision.is_some());
        let Some(say) = known.map(said) else { return Vec::new() };
        let mut out = Vec::new();
        for waiting in self.waiting.remove(id).unwrap_or_default() {
            out.extend(self.reply(waiting.to, id, waiting.since, say.clone()));
        }
        out
    }

    /// How a transaction stands, as far as this shard and the history know.
    fn status(
        &self,
        history: &BTreeMap<TransactionId, Arc<Transaction>>,
        id: &TransactionId,
    ) -> Say {
        let archived = || history.get(id).cloned();
        let ended = || self.ending.get(id).or_else(archived).map(|one| said(&one));
        match self.coordinator.get(id) {
            Some(live) => said(live),
            None => ended().unwrap_or(Say::Unknown),
        }
    }

    fn begin(
        &mut self,
        now: u64,
        history: &BTreeMap<TransactionId, Arc<Transaction>>,
        (to, id, since): (Asker, &TransactionId, u64),
        plan: Plan,
    ) -> Vec<Out<Answered>> {
        let fingerprint = fingerprint(&plan);
        let ended = self.ending.get(id);
        let archived = || history.get(id).filter(|_| !self.outbox.knows(id)).cloned();
        let ended = ended.or_else(archived);
        if let Some(ended) = ended {
            let same = ended.fingerprint == fingerprint;
            let say = if same { self.status(history, id) } else { Say::Refused("id_reused") };
            return self.reply(to, id, since, say);
        }
        // An older version does not know what it is asked for: the initiator asks again later.
        let known = if self.is_older { plan_of_version_1(&plan) } else { Some(plan) };
        let Some(plan) = known.filter(|_| !self.refused.contains(id)) else {
            return self.reply(to, id, since, Say::Busy);
        };
        let event = Event::Begin { transaction: id.clone(), fingerprint, plan: Box::new(plan) };
        let step = self.coordinator.handle(now, event);
        // As in the program, a step that refuses a beginning is looked at and not carried out.
        let say = match step.refusal() {
            None => {
                self.wait(id, Waiting { to, since, for_outcome: false });
                return self.take(step);
            }
            Some(Refusal::Exists { same: true }) => Say::Begun,
            Some(Refusal::Exists { same: false }) => Say::Refused("id_reused"),
            Some(Refusal::SetAside) => Say::SetAside,
            Some(Refusal::AtCapacity) => Say::Busy,
            Some(Refusal::Plan(error)) => Say::Refused(error.code),
        };
        self.reply(to, id, since, say)
    }

    /// Those who waited for this, taken out of the list.
    pub fn told(&mut self, id: &TransactionId, outcome: bool) -> Vec<Waiting> {
        let Some(all) = self.waiting.remove(id) else { return Vec::new() };
        let (now, later): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|waiting| outcome || !waiting.for_outcome);
        if !later.is_empty() {
            self.waiting.insert(id.clone(), later);
        }
        now
    }

    /// Appends a batch, and forgets with it what may be forgotten.
    pub fn append(&mut self, batch: &Gathered) -> Result<Receipt, JournalError> {
        let (records, before) = (batch.records.slices(), self.forgettable.take());
        self.engine.append_and_truncate(self.number, batch.position, &records, before)
    }

    /// Whether a batch is being appended.
    #[must_use]
    pub const fn is_appending(&self) -> bool {
        self.appending.is_some()
    }

    /// The call that is owed an answer.
    #[must_use]
    pub fn key(call: &Call) -> CallKey {
        (call.transaction.clone(), call.branch, call.operation, call.attempt)
    }
}

/// A digest of a request, the same before and after an upgrade.
fn fingerprint(plan: &Plan) -> u128 {
    let mut hasher = DefaultHasher::new();
    hasher.write(&digested_bytes(plan));
    u128::from(hasher.finish())
}

/// How a transaction stands.
#[must_use]
pub fn said(transaction: &Transaction) -> Say {
    if transaction.set_aside.as_ref().is_some_and(|why| !why.read) {
        return Say::SetAside; // It may have an outcome that was told.
    }
    match transaction.outcome() {
        None => Say::Pending,
        Some(outcome) => {
            let mixed = transaction.heuristic() == Some(Heuristic::Mixed);
            Say::Outcome(outcome, transaction.stage() == Stage::Ended, mixed)
        }
    }
}
