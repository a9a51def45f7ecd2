//! The task that owns one shard: it feeds the core with what happens, gathers its records into
//! batches (one append under way while the next gathers), and lets effects out against receipts. It
//! waits for no participant, no history, and no client.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, mpsc as std_mpsc};

use tokio::sync::{mpsc, oneshot};
use unanimity_core::{
    Coordinator, Durable, Effect, Event, Fact, Operation, Plan, Refusal, Sealed, Step, Transaction,
    TransactionId, encode_record,
};
use unanimity_journal::JournalError;

use crate::clock::Clock;
use crate::crash_point::crash_point;
use crate::error::{BeginError, Unavailable};
use crate::filter::Filter;
use crate::history::ArchiveRequest;
use crate::homes::Homes;
use crate::journal_thread::{Gathered, JournalCommand};
use crate::transport::{Transport, dispatch};

/// A batch that has grown to this many bytes is closed and the next one begun.
const BATCH_BYTES_MAX: usize = 4 << 20;
/// The journal is asked to forget when at least this many batches can go.
const TRUNCATE_BATCHES_MIN: u64 = 256;
/// A transaction that keeps more batches than this from being forgotten is written anew.
const STRAGGLER_BATCHES: u64 = 2_048;
/// How many stragglers are written anew in one go.
const STRAGGLERS_MAX: usize = 256;
/// How many commands or answers are taken up between two looks at everything else.
const TURN_MAX: usize = 512;

/// Until when a caller waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wait {
    /// Until the beginning is durable.
    Accepted,
    /// Until the decision is durable.
    Outcome,
    /// Until every participant has acknowledged, or the limit for the whole has passed.
    Completed,
}

/// A transaction as it was at one moment, for a reply.
pub(crate) type Shown = Arc<Transaction>;

/// What others ask of a shard.
pub(crate) enum Command {
    Begin(BeginCommand),
    /// Show a transaction, now or when what is waited for has come. `None`: not known here.
    Get {
        id: TransactionId,
        wait: Option<Wait>,
        reply: oneshot::Sender<Option<Shown>>,
    },
    /// Live and just ended transactions that pass the filter, latest first.
    List {
        filter: Filter,
        limit: usize,
        reply: oneshot::Sender<Vec<Shown>>,
    },
    /// Something for the core; answered when it has been taken in.
    Tell {
        event: Event,
        reply: oneshot::Sender<()>,
    },
    /// Finish what is live, take nothing new.
    Stop,
    /// Stop now, whatever is live: recovery takes it up again.
    Abandon,
}

/// A request to begin.
pub(crate) struct BeginCommand {
    pub(crate) id: TransactionId,
    pub(crate) fingerprint: u128,
    pub(crate) plan: Plan,
    /// Whether the history may hold this id already and must be asked.
    pub(crate) may_be_used: bool,
    pub(crate) wait: Wait,
    pub(crate) reply: oneshot::Sender<Result<Begun, BeginError>>,
}

/// What a request to begin came to.
pub(crate) enum Begun {
    /// It is known here, and what was waited for has come.
    Shown { transaction: Shown, existed: bool },
    /// The history holds an ended transaction of this id.
    InHistory(TransactionId),
}

/// What asking the history for a used id came to.
struct LookedUp {
    command: BeginCommand,
    found: Result<bool, Unavailable>,
}

struct Watcher {
    wait: Wait,
    existed: bool,
    reply: WatcherReply,
}

enum WatcherReply {
    Begin(oneshot::Sender<Result<Begun, BeginError>>),
    Get(oneshot::Sender<Option<Shown>>),
}

impl Watcher {
    fn is_gone(&self) -> bool {
        match &self.reply {
            WatcherReply::Begin(reply) => reply.is_closed(),
            WatcherReply::Get(reply) => reply.is_closed(),
        }
    }

    fn answer(self, transaction: Shown) {
        // dropped: a caller that has gone away wants no answer; the transaction goes on.
        let _ = match self.reply {
            WatcherReply::Begin(reply) => {
                let shown = Begun::Shown { transaction, existed: self.existed };
                reply.send(Ok(shown)).map_err(drop)
            }
            WatcherReply::Get(reply) => reply.send(Some(transaction)).map_err(drop),
        };
    }
}

/// Something that may leave only when a position is durable.
enum Held {
    Effects(Sealed),
    Reply(u64, Box<dyn FnOnce() + Send>),
}

impl Held {
    fn position(&self) -> u64 {
        match self {
            Self::Effects(sealed) => sealed.position(),
            Self::Reply(position, _) => *position,
        }
    }
}

/// Asks the history whether an id was used; runs where blocking is allowed.
pub(crate) type WasUsed = Arc<dyn Fn(&TransactionId) -> Result<bool, Unavailable> + Send + Sync>;

/// What a shard is made of.
pub(crate) struct ShardParts {
    pub(crate) coordinator: Coordinator,
    pub(crate) homes: HashMap<TransactionId, u64>,
    pub(crate) ended: Vec<Shown>,
    pub(crate) first_position: u64,
    pub(crate) next_position: u64,
    pub(crate) clock: Clock,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) was_used: WasUsed,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) journal: std_mpsc::Sender<JournalCommand>,
    pub(crate) receipts: mpsc::UnboundedReceiver<Result<Durable, JournalError>>,
    pub(crate) history: std_mpsc::Sender<ArchiveRequest>,
    /// How many ended transactions may wait for the history before beginnings are refused.
    pub(crate) ending_max: usize,
}

pub(crate) struct Shard {
    coordinator: Coordinator,
    clock: Clock,
    transport: Arc<dyn Transport>,
    was_used: WasUsed,
    commands: mpsc::Receiver<Command>,
    answers: mpsc::UnboundedReceiver<Event>,
    answers_sender: mpsc::UnboundedSender<Event>,
    looked_up: mpsc::UnboundedReceiver<LookedUp>,
    looked_up_sender: mpsc::UnboundedSender<LookedUp>,
    journal: std_mpsc::Sender<JournalCommand>,
    receipts: mpsc::UnboundedReceiver<Result<Durable, JournalError>>,
    history: std_mpsc::Sender<ArchiveRequest>,
    archived: mpsc::UnboundedReceiver<Result<Vec<TransactionId>, String>>,
    archived_sender: mpsc::UnboundedSender<Result<Vec<TransactionId>, String>>,
    /// Batches that wait for the append under way; the last one gathers.
    gathered: VecDeque<Gathered>,
    append_under_way: bool,
    next_position: u64,
    first_position: u64,
    durable: Durable,
    held: VecDeque<Held>,
    watchers: HashMap<TransactionId, Vec<Watcher>>,
    /// Ended, and not known to be in the history yet. What is told of one still waits for the
    /// records that ended it.
    ending: HashMap<TransactionId, Shown>,
    to_archive: Vec<Shown>,
    /// Ids whose use is being looked up in the history, and who else asks for them meanwhile.
    reserved: HashMap<TransactionId, Vec<BeginCommand>>,
    homes: Homes,
    ending_max: usize,
    stopping: bool,
}

impl Shard {
    pub(crate) fn new(parts: ShardParts) -> Self {
        let (answers_sender, answers) = mpsc::unbounded_channel();
        let (looked_up_sender, looked_up) = mpsc::unbounded_channel();
        let (archived_sender, archived) = mpsc::unbounded_channel();
        let mut homes = Homes::default();
        for (id, position) in &parts.homes {
            homes.settle(id, *position);
        }
        let ending = parts.ended.iter().map(|ended| (ended.id.clone(), Arc::clone(ended)));
        Self {
            coordinator: parts.coordinator,
            clock: parts.clock,
            transport: parts.transport,
            was_used: parts.was_used,
            commands: parts.commands,
            answers,
            answers_sender,
            looked_up,
            looked_up_sender,
            journal: parts.journal,
            receipts: parts.receipts,
            history: parts.history,
            archived,
            archived_sender,
            gathered: VecDeque::new(),
            append_under_way: false,
            next_position: parts.next_position,
            first_position: parts.first_position,
            durable: Durable::up_to(parts.next_position - 1),
            held: VecDeque::new(),
            watchers: HashMap::new(),
            ending: ending.collect(),
            to_archive: parts.ended,
            reserved: HashMap::new(),
            homes,
            ending_max: parts.ending_max,
            stopping: false,
        }
    }

    /// Works until stopped. An error means that the journal or the history failed: the shard is
    /// ended, and recovery is the repair.
    pub(crate) async fn run(mut self) -> Result<(), String> {
        let step = self.coordinator.resume(self.clock.now_ms());
        self.take(step);
        let (mut commands, mut answers) = (Vec::new(), Vec::new());
        loop {
            self.fire_timers();
            self.write_stragglers();
            self.start_append()?;
            self.send_to_history()?;
            if self.stopping && self.is_idle() {
                return Ok(());
            }
            let due = self.coordinator.next_timer().map(|timer| self.clock.until(timer.at));
            let sleep = tokio::time::sleep(due.unwrap_or(std::time::Duration::from_secs(3_600)));
            tokio::select! {
                biased;
                Some(receipt) = self.receipts.recv() => self.on_receipt(receipt)?,
                Some(archived) = self.archived.recv() => self.on_archived(archived)?,
                _ = self.answers.recv_many(&mut answers, TURN_MAX) => {
                    for event in answers.drain(..) {
                        self.handle(event);
                    }
                }
                Some(looked_up) = self.looked_up.recv() => self.on_looked_up(looked_up),
                count = self.commands.recv_many(&mut commands, TURN_MAX) => {
                    if count == 0 {
                        return Ok(()); // Every handle of the manager is gone.
                    }
                    for command in commands.drain(..) {
                        if matches!(command, Command::Abandon) {
                            return Ok(());
                        }
                        self.on_command(command);
                    }
                }
                () = sleep => {}
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.coordinator.is_empty()
            && self.ending.is_empty()
            && self.gathered.is_empty()
            && !self.append_under_way
    }

    fn fire_timers(&mut self) {
        let now = self.clock.now_ms();
        while let Some(timer) = self.coordinator.next_timer().filter(|timer| timer.at <= now) {
            let event = Event::Timer(timer.clone());
            self.handle(event);
        }
    }

    fn handle(&mut self, event: Event) {
        let step = self.coordinator.handle(self.clock.now_ms(), event);
        self.take(step);
    }

    /// Puts a step's records into the batch that gathers, and keeps its effects back.
    fn take(&mut self, step: Step) {
        if step.is_empty() {
            return;
        }
        for ended in step.ended() {
            self.ending.insert(ended.id.clone(), Arc::clone(ended));
        }
        let position = if step.has_records() { self.gathering() } else { self.last_position() };
        let (records, sealed) = step.seal(position);
        for record in records {
            if matches!(record.fact, Fact::Begun { .. } | Fact::Snapshot(_)) {
                self.homes.settle(&record.transaction, position);
            }
            let mut bytes = Vec::with_capacity(160);
            encode_record(&record, &mut bytes);
            if let Some(batch) = self.gathered.back_mut() {
                batch.note(&record.fact);
                batch.bytes += bytes.len();
                batch.records.push(bytes);
            }
        }
        self.hold(Held::Effects(sealed));
    }

    /// The position of the batch that gathers, begun if there is none with room.
    fn gathering(&mut self) -> u64 {
        let room = self.gathered.back().is_some_and(|batch| batch.bytes < BATCH_BYTES_MAX);
        if !room {
            self.gathered.push_back(Gathered::at(self.next_position));
            self.next_position += 1;
        }
        self.last_position()
    }

    /// The last position that was handed out, durable or not.
    const fn last_position(&self) -> u64 {
        self.next_position - 1
    }

    /// Lets something out when its position is durable; at once if it is already.
    fn hold(&mut self, held: Held) {
        if self.held.is_empty() && Durable::up_to(held.position()) <= self.durable {
            self.let_out(held);
        } else {
            self.held.push_back(held);
        }
    }

    fn start_append(&mut self) -> Result<(), String> {
        if self.append_under_way {
            return Ok(());
        }
        let Some(batch) = self.gathered.pop_front() else { return Ok(()) };
        metrics::histogram!("unanimity_journal_batch_records").record(batch.records.len() as f64);
        self.append_under_way = true;
        let sent = self.journal.send(JournalCommand::Append(batch));
        sent.map_err(|_| "the journal's thread has ended".to_owned())
    }

    fn on_receipt(&mut self, receipt: Result<Durable, JournalError>) -> Result<(), String> {
        let durable = receipt.map_err(|error| format!("{}: {error}", error.code()))?;
        self.append_under_way = false;
        self.durable = durable;
        // The next sync starts before the effects of this one are carried out.
        self.start_append()?;
        while self.held.front().is_some_and(|held| Durable::up_to(held.position()) <= durable) {
            if let Some(held) = self.held.pop_front() {
                self.let_out(held);
            }
        }
        Ok(())
    }

    fn let_out(&mut self, held: Held) {
        match held {
            Held::Reply(_, reply) => reply(),
            Held::Effects(sealed) => {
                let mut commits = 0;
                for effect in sealed.release(self.durable) {
                    if is_commit(&effect) {
                        commits += 1;
                        if commits == 2 {
                            crash_point("between_commit_calls");
                        }
                    }
                    self.carry_out(effect);
                }
            }
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Call(call) => {
                if call.operation == Operation::Prepare {
                    crash_point("before_prepare_call");
                }
                dispatch(&self.transport, call, &self.answers_sender);
            }
            Effect::Begun(id) => {
                metrics::counter!("unanimity_transactions_begun_total").increment(1);
                self.notify(&id, Wait::Accepted);
            }
            Effect::Decided(id, outcome, reason) => {
                metrics::counter!(
                    "unanimity_transactions_decided_total",
                    "outcome" => outcome.as_str(), "reason" => reason.code()
                )
                .increment(1);
                self.notify(&id, Wait::Outcome);
            }
            Effect::Overdue(id) => self.notify(&id, Wait::Completed),
            Effect::Parked(id, branch) => {
                metrics::counter!("unanimity_branches_parked_total").increment(1);
                tracing::warn!(transaction = %id, branch, "a branch keeps failing and is parked");
            }
            Effect::Ended(transaction) => self.ended(transaction),
            Effect::Refused(..) => {} // Told at once, by who began it.
        }
    }

    fn ended(&mut self, transaction: Shown) {
        metrics::counter!("unanimity_transactions_ended_total").increment(1);
        let duration_ms = transaction.ended_at.unwrap_or_default() - transaction.begun_at;
        metrics::histogram!("unanimity_transaction_seconds").record(duration_ms as f64 / 1_000.0);
        for watcher in self.watchers.remove(&transaction.id).into_iter().flatten() {
            watcher.answer(Arc::clone(&transaction));
        }
        self.to_archive.push(transaction);
    }

    /// Answers those who wait for no more than this.
    fn notify(&mut self, id: &TransactionId, reached: Wait) {
        let Some(watchers) = self.watchers.remove(id) else { return };
        let (ready, waiting): (Vec<_>, Vec<_>) =
            watchers.into_iter().partition(|watcher| watcher.wait <= reached);
        if !waiting.is_empty() {
            self.watchers.insert(id.clone(), waiting);
        }
        if ready.is_empty() {
            return;
        }
        // Nothing of this transaction can be ahead of the disk here: what follows this effect
        // follows only now. One that has ended meanwhile in a later step is still to be let out.
        let shown = self.coordinator.get(id).map(|live| Arc::new(live.clone()));
        for watcher in ready {
            match shown.clone() {
                Some(transaction) => watcher.answer(transaction),
                None => self.watchers.entry(id.clone()).or_default().push(watcher),
            }
        }
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Begin(command) => self.on_begin(command),
            Command::Get { id, wait, reply } => {
                self.show(
                    &id,
                    wait.unwrap_or(Wait::Accepted),
                    wait.is_some(),
                    WatcherReply::Get(reply),
                );
            }
            Command::List { filter, limit, reply } => {
                let found = self.list(&filter, limit);
                // dropped: a caller that has gone away wants no list.
                let send = move || drop(reply.send(found));
                self.hold(Held::Reply(self.last_position(), Box::new(send)));
            }
            Command::Tell { event, reply } => {
                self.handle(event);
                let send = move || reply.send(()).unwrap_or(()); // A caller may have gone away.
                self.hold(Held::Reply(self.last_position(), Box::new(send)));
            }
            Command::Stop | Command::Abandon => self.stopping = true,
        }
    }

    fn list(&self, filter: &Filter, limit: usize) -> Vec<Shown> {
        let live = self.coordinator.iter().filter(|live| filter.passes(live));
        let ending = self.ending.values().filter(|ended| filter.passes(ended));
        let mut found: Vec<&Transaction> = live.chain(ending.map(|ended| &**ended)).collect();
        found.sort_by(|a, b| (b.begun_at, &b.id).cmp(&(a.begun_at, &a.id)));
        found.into_iter().take(limit).map(|found| Arc::new(found.clone())).collect()
    }

    /// Shows a transaction once what is waited for has come. Everything that is told waits for the
    /// records that it may rest on.
    fn show(&mut self, id: &TransactionId, wait: Wait, may_wait: bool, reply: WatcherReply) {
        let watcher = Watcher { wait, existed: true, reply };
        let shown = self.coordinator.get(id).map(|live| (reached(live), Arc::new(live.clone())));
        let ended = || self.ending.get(id).map(|ended| (Wait::Completed, Arc::clone(ended)));
        match shown.or_else(ended) {
            Some((reached, transaction)) if !may_wait || reached >= wait => {
                let send = move || watcher.answer(transaction);
                self.hold(Held::Reply(self.last_position(), Box::new(send)));
            }
            Some(_) => self.watch(id, watcher),
            None => {
                if let WatcherReply::Get(reply) = watcher.reply {
                    drop(reply.send(None));
                }
            }
        }
    }

    fn watch(&mut self, id: &TransactionId, watcher: Watcher) {
        let watchers = self.watchers.entry(id.clone()).or_default();
        watchers.retain(|watcher| !watcher.is_gone());
        watchers.push(watcher);
    }

    fn on_begin(&mut self, command: BeginCommand) {
        if self.stopping {
            drop(command.reply.send(Err(Unavailable::Stopping.into())));
            return;
        }
        if !command.may_be_used || self.homes.knows(&command.id) {
            self.begin(command);
            return;
        }
        if let Some(waiting) = self.reserved.get_mut(&command.id) {
            waiting.push(command);
            return;
        }
        // The id is reserved before the history is asked: whoever used it before is either known
        // here, or durable in the history by now.
        self.reserved.insert(command.id.clone(), Vec::new());
        let (was_used, sender) = (Arc::clone(&self.was_used), self.looked_up_sender.clone());
        tokio::task::spawn_blocking(move || {
            let found = was_used(&command.id);
            drop(sender.send(LookedUp { command, found }));
        });
    }

    fn on_looked_up(&mut self, looked_up: LookedUp) {
        let LookedUp { command, found } = looked_up;
        let waiting = self.reserved.remove(&command.id).unwrap_or_default();
        for command in std::iter::once(command).chain(waiting) {
            match found {
                Ok(false) => self.begin(command),
                Ok(true) => {
                    drop(command.reply.send(Ok(Begun::InHistory(command.id))));
                }
                Err(unavailable) => drop(command.reply.send(Err(unavailable.into()))),
            }
        }
    }

    fn begin(&mut self, command: BeginCommand) {
        let BeginCommand { id, fingerprint, plan, wait, reply, .. } = command;
        if let Some(ended) = self.ending.get(&id) {
            let same = ended.fingerprint == fingerprint;
            self.begin_existing(&id, same, wait, reply);
            return;
        }
        if self.ending.len() >= self.ending_max {
            drop(reply.send(Err(BeginError::AtCapacity)));
            return;
        }
        let event = Event::Begin { transaction: id.clone(), fingerprint, plan };
        let step = self.coordinator.handle(self.clock.now_ms(), event);
        match step.refusal() {
            None => {
                let reply = WatcherReply::Begin(reply);
                self.watch(&id, Watcher { wait, existed: false, reply });
                self.take(step);
            }
            Some(Refusal::Exists { same }) => {
                let same = *same;
                self.begin_existing(&id, same, wait, reply);
            }
            Some(Refusal::AtCapacity) => drop(reply.send(Err(BeginError::AtCapacity))),
            Some(Refusal::Plan(error)) => drop(reply.send(Err(error.clone().into()))),
        }
    }

    fn begin_existing(
        &mut self,
        id: &TransactionId,
        same: bool,
        wait: Wait,
        reply: oneshot::Sender<Result<Begun, BeginError>>,
    ) {
        if same {
            self.show(id, wait, true, WatcherReply::Begin(reply));
        } else {
            drop(reply.send(Err(BeginError::IdReused(id.to_string()))));
        }
    }

    fn send_to_history(&mut self) -> Result<(), String> {
        if self.to_archive.is_empty() {
            return Ok(());
        }
        let sender = self.archived_sender.clone();
        let transactions = std::mem::take(&mut self.to_archive);
        let done = Box::new(move |archived| drop(sender.send(archived)));
        let sent = self.history.send(ArchiveRequest { transactions, done });
        sent.map_err(|_| "the history's thread has ended".to_owned())
    }

    fn on_archived(&mut self, archived: Result<Vec<TransactionId>, String>) -> Result<(), String> {
        for id in archived.map_err(|error| format!("the history cannot be written: {error}"))? {
            self.ending.remove(&id);
            self.homes.leave(&id);
        }
        let low_water = self.homes.low_water(self.durable.position() + 1);
        if low_water < self.first_position + TRUNCATE_BATCHES_MIN {
            return Ok(());
        }
        self.first_position = low_water;
        let sent = self.journal.send(JournalCommand::Truncate(low_water));
        sent.map_err(|_| "the journal's thread has ended".to_owned())
    }

    /// Writes transactions anew that have been live for so long that the journal grows behind them.
    fn write_stragglers(&mut self) {
        let low_water = self.homes.low_water(self.next_position);
        if self.append_under_way || self.next_position - low_water < STRAGGLER_BATCHES {
            return;
        }
        for id in self.homes.stragglers(STRAGGLERS_MAX) {
            if let Some(step) = self.coordinator.rewrite(self.clock.now_ms(), &id) {
                self.take(step);
            }
        }
    }
}

fn is_commit(effect: &Effect) -> bool {
    matches!(effect, Effect::Call(call) if call.operation == Operation::Commit)
}

/// How far a live transaction has come.
fn reached(transaction: &Transaction) -> Wait {
    if transaction.overdue {
        return Wait::Completed;
    }
    if transaction.decision.is_some() { Wait::Outcome } else { Wait::Accepted }
}
