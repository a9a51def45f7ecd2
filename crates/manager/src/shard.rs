//! The task that owns one shard: it feeds the core with what happens, gathers its records into
//! batches (one append under way while the next gathers), and lets effects out against receipts. It
//! waits for no participant, no history, and no client; for the disk only while that is quick and
//! hardly anybody else could (`writing`).

use std::any::Any;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, mpsc as std_mpsc};
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio::time::Sleep;
use unanimity_core::{
    Call, Coordinator, Doing, Effect, Ending, Event, Millis, Mutations, Operation, Out, Outbox,
    OutboxBounds, Plan, Replayed, Step, Transaction, TransactionId,
};

use crate::admission::Inside;
use crate::answers::{AnswerQueue, Answers, answers};
use crate::blame::Blame;
use crate::clock::Clock;
use crate::crash_point::{crash_point, panic_point};
use crate::error::Unavailable;
use crate::filter::Filter;
use crate::generate::{Spread, random_bits};
use crate::history::ArchiveRequest;
use crate::journal_thread::{Receipt, ShardJournal};
use crate::near::Place;
use crate::recovery::Recovered;
use crate::reserve::Reserve;
use crate::transport::{Transport, dispatch};
use crate::watchers::{BeginAnswer, Shown, Wait, WatcherReply, Watchers, told_by};

use beginnings::LookedUp;
use meters::Meters;
pub(crate) use requests::{Ask, Committing, EnlistCommand};
use waking::{RESUMED_ALONE, RESUMED_BESIDE, Waking};

mod at_work;
mod beginnings;
mod meters;
mod requests;
mod waking;
mod writing;

/// A shard looks at everything that often even if nothing is due.
const LONGEST_SLEEP: Duration = Duration::from_secs(3_600);
/// How many commands or answers are taken up between two looks at everything else.
const TURN_MAX: usize = 512;

/// The bounds of a shard that a test may want to reach.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// The journal is asked to forget when at least this many batches can go.
    pub truncate_batches_min: u64,
    /// It is asked sooner when what can go is about this many bytes.
    pub truncate_bytes_min: u64,
    /// A transaction that keeps more batches than this from being forgotten is written anew.
    pub straggler_batches: u64,
    /// How many ended transactions may wait for the history before beginnings are refused.
    pub ending_max: usize,
    /// How long what gathers for the journal waits for more while nobody waits for it, as nobody
    /// does for an end. Zero: not at all.
    pub linger: Duration,
    /// How long ended transactions gather before the history writes them together: each write that
    /// is saved is a sync that the journals do not have to share the disk with.
    pub gather: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            truncate_batches_min: 256,
            truncate_bytes_min: 512 << 10,
            straggler_batches: 2_048,
            ending_max: 200_000,
            linger: Duration::from_millis(2),
            gather: Duration::from_millis(20),
        }
    }
}

/// What others ask of a shard. Small, because it is moved twice on its way.
pub(crate) enum Command {
    Begin(Box<BeginCommand>),
    /// Show a transaction, now or when what is waited for has come. `None`: not known here.
    Get {
        id: TransactionId,
        wait: Option<Wait>,
        reply: oneshot::Sender<Option<Shown>>,
    },
    /// Live and just ended transactions that pass the filter, latest first.
    List {
        filter: Box<Filter>,
        limit: usize,
        reply: oneshot::Sender<Vec<Shown>>,
    },
    /// A request for a live transaction.
    Ask(Box<Ask>),
    /// Take up one that is set aside. That it was is on record no more.
    TakeUp {
        id: TransactionId,
        reply: oneshot::Sender<()>,
    },
    /// Something for the core; answered when it has been taken in.
    Tell {
        event: Box<Event>,
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
    pub(crate) plan: Box<Plan>,
    /// Whether the history may hold this id already and must be asked.
    pub(crate) may_be_used: bool,
    /// Since when they wait who ask for it.
    pub(crate) came_at: Instant,
    pub(crate) wait: Wait,
    pub(crate) reply: BeginAnswer,
}

/// An answer of the shard's own, to be let out when what it rests on is durable.
type Reply = Box<dyn FnOnce() + Send>;

/// Asks the history whether an id was used; runs where blocking is allowed.
pub(crate) type WasUsed = Arc<dyn Fn(&TransactionId) -> Result<bool, Unavailable> + Send + Sync>;

/// What a shard is made of.
pub(crate) struct ShardParts {
    pub(crate) number: u16,
    /// Where it runs, if it stays there.
    pub(crate) place: Option<Place>,
    pub(crate) recovered: Recovered,
    pub(crate) clock: Clock,
    pub(crate) reserve: Arc<Reserve>,
    pub(crate) blame: Blame,
    pub(crate) refused: BTreeSet<TransactionId>,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) was_used: WasUsed,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) door: Inside,
    pub(crate) journal: ShardJournal,
    pub(crate) receipts: mpsc::UnboundedReceiver<Receipt>,
    pub(crate) history: std_mpsc::Sender<ArchiveRequest>,
    pub(crate) bounds: Bounds,
}

pub(crate) struct Shard {
    number: u16,
    place: Option<Place>,
    coordinator: Coordinator,
    clock: Clock,
    /// When this turn began: what is taken up in one turn happens at one moment.
    now: Instant,
    now_ms: Millis,
    reserve: Arc<Reserve>,
    blame: Blame,
    /// The name of the transaction that is worked on.
    at_work: String,
    /// Ids whose beginning the program broke on too often.
    refused: BTreeSet<TransactionId>,
    transport: Arc<dyn Transport>,
    was_used: WasUsed,
    commands: mpsc::Receiver<Command>,
    door: Inside,
    answers: AnswerQueue,
    answers_sender: Answers,
    /// Answers that were taken from there, or came at once.
    answered: VecDeque<Event>,
    looked_up: mpsc::UnboundedReceiver<LookedUp>,
    looked_up_sender: mpsc::UnboundedSender<LookedUp>,
    journal: ShardJournal,
    receipts: mpsc::UnboundedReceiver<Receipt>,
    history: std_mpsc::Sender<ArchiveRequest>,
    archived: mpsc::UnboundedReceiver<Result<(), String>>,
    archived_sender: mpsc::UnboundedSender<Result<(), String>>,
    outbox: Outbox<Reply>,
    watchers: Watchers,
    /// Ended, and not known to be in the history yet. What is told of one still waits for the
    /// records that ended it.
    ending: Ending,
    /// What had ended before this start, until the first turn.
    had_ended: Vec<Shown>,
    /// Whether everything that ended before this start can go into the history. One that cannot, or
    /// that was passed over and may have ended, must be found again, whatever ends after it.
    all_is_read: bool,
    /// Ids whose use is being looked up in the history, and who else asks for them meanwhile.
    reserved: HashMap<TransactionId, Vec<BeginCommand>, Spread>,
    bounds: Bounds,
    meters: Meters,
    /// Whether anybody was woken since this task last waited: who may have to run on the same
    /// thread, and should not wait for a sync.
    has_woken: bool,
    stopping: bool,
}

impl Shard {
    pub(crate) fn new(parts: ShardParts) -> Self {
        let (answers_sender, answers) = answers();
        let (looked_up_sender, looked_up) = mpsc::unbounded_channel();
        let (archived_sender, archived) = mpsc::unbounded_channel();
        let Recovered { replayed, first_position, next_position } = parts.recovered;
        let Replayed { coordinator, homes, records, ended, unread, .. } = replayed;
        let bounds = OutboxBounds {
            truncate_batches_min: parts.bounds.truncate_batches_min,
            truncate_bytes_min: parts.bounds.truncate_bytes_min,
            straggler_batches: parts.bounds.straggler_batches,
        };
        let positions = (first_position, next_position);
        let outbox = Outbox::new(positions, (homes, records), bounds, Mutations::default());
        let (mut ending, mut had_ended) = (Ending::new(random_bits()[0]), Vec::new());
        for ended in ended {
            if ended.set_aside.is_some() {
                ending.set_aside(ended);
            } else {
                had_ended.push(ended);
            }
        }
        let aside = coordinator.aside().count() + ending.stay();
        metrics::gauge!("unanimity_transactions_set_aside").increment(aside as f64);
        Self {
            number: parts.number,
            place: parts.place,
            coordinator,
            clock: parts.clock,
            now: Instant::now(),
            now_ms: 0,
            reserve: parts.reserve,
            blame: parts.blame,
            at_work: String::new(),
            refused: parts.refused,
            transport: parts.transport,
            was_used: parts.was_used,
            commands: parts.commands,
            door: parts.door,
            answers,
            answers_sender,
            answered: VecDeque::new(),
            looked_up,
            looked_up_sender,
            journal: parts.journal,
            receipts: parts.receipts,
            history: parts.history,
            archived,
            archived_sender,
            outbox,
            watchers: Watchers::default(),
            all_is_read: ending.stay() == 0 && unread.is_empty(),
            ending,
            had_ended,
            reserved: HashMap::default(),
            bounds: parts.bounds,
            meters: Meters::new(),
            has_woken: false,
            stopping: false,
        }
    }

    /// Works until stopped. An error means that the journal or the history failed: the shard is
    /// ended, and recovery is the repair.
    pub(crate) async fn run(mut self) -> Result<(), String> {
        let (mut commands, mut waking) = (Vec::new(), Waking::default());
        let mut alarm = std::pin::pin!(tokio::time::sleep(LONGEST_SLEEP));
        for ended in mem::take(&mut self.had_ended) {
            if let Some(panic) = self.pack(&ended) {
                self.blame.note(&ended.id, Doing::Archiving, panic);
            }
        }
        loop {
            self.look_at_clock();
            self.publish();
            self.resume_some(&mut waking, RESUMED_BESIDE);
            self.fire_timers();
            self.write_stragglers();
            self.append()?;
            self.send_to_history()?;
            if self.stopping && self.is_idle() {
                return Ok(());
            }
            self.set(alarm.as_mut());
            tokio::select! {
                biased;
                receipt = self.receipts.recv() => match receipt {
                    Some(receipt) => {
                        self.look_at_clock();
                        self.on_receipt(receipt)?;
                    }
                    None => return Err(self.why_journal_ended()),
                },
                Some(archived) = self.archived.recv() => self.on_archived(archived)?,
                () = self.answers.take_all(&mut self.answered) => {
                    self.look_at_clock();
                    for _ in 0..self.answered.len().min(TURN_MAX) {
                        let Some(event) = self.answered.pop_front() else { break };
                        self.handle(event);
                    }
                    // Answers come without end while a million are taken up.
                    if !waking.is_over && self.serve_beside() {
                        return Ok(());
                    }
                }
                Some(looked_up) = self.looked_up.recv() => {
                    self.look_at_clock();
                    self.on_looked_up(looked_up);
                }
                count = self.commands.recv_many(&mut commands, TURN_MAX) => {
                    if count == 0 {
                        return Ok(()); // Every handle of the manager is gone.
                    }
                    self.look_at_clock();
                    for command in commands.drain(..) {
                        if self.on_command(command) {
                            return Ok(());
                        }
                    }
                }
                () = std::future::ready(()), if !waking.is_over => {
                    self.look_at_clock();
                    self.resume_some(&mut waking, RESUMED_ALONE);
                }
                () = alarm.as_mut() => {}
                () = std::future::poll_fn(|_| {
                    self.has_woken = false;
                    Poll::Pending
                }) => {}
            }
        }
    }

    fn look_at_clock(&mut self) {
        self.now = Instant::now();
        self.now_ms = self.clock.ms_at(self.now);
    }

    /// Tells others what they are told once a turn.
    fn publish(&mut self) {
        self.place.into_iter().for_each(Place::is_here);
        self.meters.publish();
        self.door.tell();
    }

    const fn now_ms(&self) -> Millis {
        self.now_ms
    }

    /// Sets the alarm for when there is something to do even if nothing comes, unless it rings
    /// before that anyway: to set it takes a lock, and to set it for sooner wakes who waits for the
    /// network; to be woken for nothing once is less.
    fn set(&self, alarm: Pin<&mut Sleep>) {
        let timer = self.coordinator.next_timer().map(|timer| timer.at);
        let due = timer.into_iter().chain(self.outbox.lingers_until()).min();
        let latest = self.now + LONGEST_SLEEP;
        let due = due.and_then(|at| self.clock.moment(at)).map_or(latest, |due| due.min(latest));
        let due = due.into();
        if alarm.is_elapsed() || due < alarm.deadline() {
            alarm.reset(due);
        }
    }

    fn is_idle(&self) -> bool {
        let archived = self.ending.len() == self.ending.stay();
        self.coordinator.is_at_rest() && archived && self.outbox.is_idle()
    }

    fn fire_timers(&mut self) {
        let now = self.now_ms();
        while let Some(timer) = self.coordinator.next_timer().filter(|timer| timer.at <= now) {
            let event = Event::Timer(timer.clone());
            self.handle(event);
        }
    }

    fn handle(&mut self, event: Event) {
        self.turn_to(event.transaction());
        let mut event = Some(event); // Moved once, and not with each closure around it.
        self.on_this(Doing::Handling, |shard| {
            let Some(event) = event.take() else { return };
            let step = shard.coordinator.handle(shard.now_ms(), event);
            shard.take(step);
        });
    }

    /// Puts a step's records on their way to the journal, and its effects behind them.
    fn take(&mut self, mut step: Step) {
        let ended = step.take_ended();
        if let Some(out) = self.outbox.take(step) {
            self.let_out(out);
        }
        if let Some(ended) = ended {
            self.ended(ended);
        }
    }

    /// A transaction has ended, and its end is on its way to the journal. It is packed for the
    /// history, and whoever waits for it is told, and the program breaks if it does on packing it,
    /// when its end is there.
    fn ended(&mut self, ended: Box<Transaction>) {
        self.meters.ended(&ended);
        let broke = self.pack(&ended);
        let waiting = self.watchers.leave(&ended.id);
        if waiting.is_none() && broke.is_none() {
            return;
        }
        let (shown, blame) = (Shown::from(ended), self.blame.clone());
        if broke.is_some() {
            self.ending.set_aside(Arc::clone(&shown));
        }
        self.reply(Box::new(move || {
            let id = shown.id.clone();
            blame.on(&id, Doing::Handling, || {
                waiting.into_iter().for_each(|waiting| waiting.answer(Arc::clone(&shown)));
            });
            if let Some(panic) = broke {
                blame.note(&id, Doing::Archiving, panic);
            }
        }));
    }

    /// The history is to have it, once its end is durable. Gives back the panic if the program
    /// breaks on it: that keeps it out of the history.
    fn pack(&mut self, ended: &Transaction) -> Option<Box<dyn Any + Send>> {
        let (ending, home) = (&mut self.ending, self.outbox.ended(&ended.id));
        let position = self.outbox.last_position();
        // One that is half packed makes room for the next.
        let packed = catch_unwind(AssertUnwindSafe(|| {
            panic_point("packing", &ended.id);
            ending.insert(ended, position, home);
        }));
        packed.err()
    }

    /// Answers when everything that the answer may rest on is durable.
    fn reply(&mut self, reply: Reply) {
        if let Some(out) = self.outbox.reply(reply) {
            self.let_out(out);
        }
    }

    fn let_out(&mut self, out: Out<Reply>) {
        match out {
            Out::Reply(reply) => {
                self.has_woken = true;
                reply();
            }
            Out::Effects(effects) => {
                // A step's effects are about one transaction.
                let Some(first) = effects.first() else { return };
                self.turn_to(first.transaction());
                self.on_this(Doing::Handling, |shard| shard.carry_out_all(effects));
            }
        }
    }

    /// Calls first, and who waits is told last: the runtime turns at once to what was woken last,
    /// and an answer that is ready should not wait until calls are written.
    fn carry_out_all(&mut self, mut effects: Vec<Effect>) {
        let mut commits = 0;
        // Few that are not taken out have to be moved for it: that costs more than to look at them.
        for effect in effects.extract_if(.., |effect| matches!(effect, Effect::Call(_))) {
            if let Effect::Call(Call { operation: Operation::Commit, .. }) = &effect {
                commits += 1;
                if commits == 2 {
                    crash_point("between_commit_calls");
                }
            }
            self.carry_out(effect);
        }
        for effect in effects {
            self.carry_out(effect);
        }
    }

    fn call(&mut self, call: Call) {
        if call.operation == Operation::Prepare {
            crash_point("before_prepare_call");
        }
        match dispatch(&self.transport, call, (self.now, &self.answers_sender)) {
            Some(answer) => self.answered.push_back(answer),
            None => self.has_woken = true,
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Begun(id) => {
                self.meters.begun();
                self.notify(&id, Wait::Accepted);
            }
            Effect::Decided(id, outcome, reason) => {
                self.meters.decided(outcome, &reason);
                self.notify(&id, told_by(&reason));
            }
            Effect::Settling(id) => self.notify(&id, Wait::Outcome),
            Effect::Overdue(id) => self.notify(&id, Wait::Completed),
            Effect::Parked(id, branch) => {
                self.meters.parked.increment(1);
                tracing::warn!(transaction = %id, branch, "a branch keeps failing and is parked");
            }
            Effect::Call(call) => self.call(call),
            Effect::Ended(ended) => unreachable!("{}: taken out of its step", ended.id),
            // Told by who took the request in.
            Effect::Refused(..)
            | Effect::Enlisted(..)
            | Effect::EnlistRefused(..)
            | Effect::Resolved(..) => {}
        }
    }

    fn notify(&mut self, id: &TransactionId, told: Wait) {
        if self.watchers.notify(id, told, || self.coordinator.get(id)) {
            self.has_woken = true;
        }
    }

    /// Says whether the shard is to end at once.
    fn on_command(&mut self, command: Command) -> bool {
        match command {
            Command::Begin(command) => self.on_begin(*command),
            Command::Get { id, wait, reply } => {
                self.resume(&id);
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
                self.reply(Box::new(send));
            }
            Command::Ask(ask) => {
                self.resume(ask.transaction());
                self.on_ask(*ask);
            }
            Command::TakeUp { id, reply } => {
                self.take_up(&id);
                let send = move || reply.send(()).unwrap_or(()); // A caller may have gone away.
                self.reply(Box::new(send));
            }
            Command::Tell { event, reply } => {
                self.handle(*event);
                let send = move || reply.send(()).unwrap_or(()); // A caller may have gone away.
                self.reply(Box::new(send));
            }
            Command::Stop => self.stopping = true,
            Command::Abandon => return true,
        }
        false
    }
}
