//! The face of the manager: opens the journals, starts the shards, and passes requests to the shard
//! that an id names. What a shard does is `shard`'s.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc as std_mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use unanimity_core::{
    Coordinator, CoordinatorConfig, Event, Fact, Outcome, Plan, Record, TransactionId,
    encode_record, splitmix64,
};
use unanimity_journal::{Engine, MemoryEngine, SqliteEngine};

use crate::clock::Clock;
use crate::error::{BeginError, StartError, Unavailable};
use crate::filter::{Cursor, Filter};
use crate::history::{
    Ended, HistoryPlace, HistoryReader, open_history, settle_shards, write_history,
};
use crate::journal_thread::run_journal;
use crate::recovery::recover;
use crate::shard::{BeginCommand, Begun, Command, Shard, ShardParts, Shown, Wait, WasUsed};
use crate::transport::Transport;
use crate::view::{TimelineView, TransactionView};

/// How many commands may wait for a shard before callers wait themselves.
const COMMANDS_MAX: usize = 4_096;
/// How many ended transactions may wait for the history before beginnings are refused.
const ENDING_MAX: usize = 200_000;

/// Where a manager keeps its journal and history.
#[derive(Clone, Debug)]
pub enum Storage {
    /// In this folder, made if it is missing: `journal-N.db` a shard and `history.db`.
    Folder(PathBuf),
    /// In memory: gone with the process. For tests, and for services that keep nothing either.
    Memory,
}

/// How a manager is set up.
#[derive(Clone, Debug)]
pub struct ManagerConfig {
    /// Where it keeps what must survive.
    pub storage: Storage,
    /// How many shards, each with its own task, journal and thread. Fixed with the folder's first use.
    pub shards: u16,
    /// How many transactions may be live at once in all; more are refused.
    pub live_transactions_max: usize,
    /// How many events one transaction's timeline holds.
    pub timeline_events_max: usize,
}

impl Default for ManagerConfig {
    fn default() -> Self {
        Self {
            storage: Storage::Memory,
            shards: 1,
            live_transactions_max: 100_000,
            timeline_events_max: 256,
        }
    }
}

/// A request to begin a transaction.
#[derive(Clone, Debug)]
pub struct BeginRequest {
    /// The id, if the caller chooses it.
    pub id: Option<TransactionId>,
    /// What to do.
    pub plan: Plan,
    /// Until when to wait.
    pub wait: Wait,
    /// Whether the id was made up just now, so that nobody can have used it.
    fresh: bool,
}

impl BeginRequest {
    /// A request under an id of the manager's choice.
    #[must_use]
    pub const fn new(plan: Plan, wait: Wait) -> Self {
        Self { id: None, plan, wait, fresh: true }
    }

    /// A request under an id of the caller's choice: making it again gives the same transaction.
    #[must_use]
    pub const fn with_id(id: TransactionId, plan: Plan, wait: Wait) -> Self {
        Self { id: Some(id), plan, wait, fresh: false }
    }

    /// A request under an id from [`TransactionManager::generate_id`], used for nothing before.
    #[must_use]
    pub const fn fresh(id: TransactionId, plan: Plan, wait: Wait) -> Self {
        Self { id: Some(id), plan, wait, fresh: true }
    }
}

/// What a request to begin came to.
#[derive(Clone, Debug)]
pub struct BeginReply {
    /// The transaction, as it was when what was waited for had come.
    pub transaction: TransactionView,
    /// Whether it had begun before, by the same request.
    pub existed: bool,
}

/// What a participant in doubt is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecisionReply {
    /// Commit.
    Commit,
    /// Roll back; also for a transaction that nobody has a record of (presumed abort).
    Rollback,
    /// Not decided: ask again.
    Pending,
}

/// A page of a list.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// The transactions, latest first, with their timelines if they were asked for.
    pub transactions: Vec<(TransactionView, Option<TimelineView>)>,
    /// Where the next page begins, if there may be one.
    pub next: Option<Cursor>,
}

/// The embeddable transaction manager. Cloning gives another handle to the same one.
#[derive(Clone)]
pub struct TransactionManager {
    inner: Arc<Inner>,
}

struct Inner {
    shards: Vec<mpsc::Sender<Command>>,
    history: Arc<HistoryReader>,
    transport: Arc<dyn Transport>,
    stopping: AtomicBool,
    failed: watch::Receiver<Option<String>>,
    running: watch::Receiver<usize>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Held for as long as the folder is ours.
    _lock: Option<File>,
}

impl TransactionManager {
    /// Opens the journals, recovers what they hold, and starts working. To be called within a tokio
    /// runtime.
    ///
    /// # Errors
    /// [`StartError`] if the folder is used by another coordinator, or anything in it cannot be
    /// read or written. Nothing is overwritten then.
    pub fn start(config: ManagerConfig, transport: Arc<dyn Transport>) -> Result<Self, StartError> {
        if config.shards == 0 || config.shards > 64 {
            return Err(StartError::Configuration("shards must be 1 to 64".to_owned()));
        }
        let lock = match &config.storage {
            Storage::Folder(folder) => Some(lock_folder(folder)?),
            Storage::Memory => None,
        };
        let place = match &config.storage {
            Storage::Folder(folder) => HistoryPlace::File(folder.join("history.db")),
            Storage::Memory => HistoryPlace::Memory(uuid::Uuid::new_v4().simple().to_string()),
        };
        let (reader, writer) = open_history(place.clone())?;
        let found = settle_shards(&writer, config.shards).map_err(|source| StartError::Folder {
            path: format!("{place:?}"),
            message: source.to_string(),
        })?;
        if found != config.shards {
            return Err(StartError::Shards { found, wanted: config.shards });
        }
        Starting::new(config, transport, reader)?.finish(writer, lock)
    }

    /// An id that nobody has used: time-ordered (UUID version 7), so that neighbours in time are
    /// neighbours in the history.
    #[must_use]
    pub fn generate_id() -> TransactionId {
        let name = uuid::Uuid::now_v7().simple().to_string();
        match TransactionId::new(&name) {
            Ok(id) => id,
            Err(error) => panic!("32 hexadecimal digits are a name: {error}"),
        }
    }

    /// Begins a transaction and waits as the request says.
    ///
    /// # Errors
    /// [`BeginError`] says why it did not begin. [`Unavailable::ShardFailed`] is different: whether
    /// it began is not known, and the same id can safely be used to ask again.
    pub async fn begin(&self, request: BeginRequest) -> Result<BeginReply, BeginError> {
        if self.inner.stopping.load(Ordering::Relaxed) {
            return Err(Unavailable::Stopping.into());
        }
        request.plan.check()?;
        let may_be_used = !request.fresh;
        let fingerprint = if may_be_used { fingerprint(&request.plan) } else { 0 };
        let id = request.id.unwrap_or_else(Self::generate_id);
        let (reply, replied) = oneshot::channel();
        let command = BeginCommand {
            id: id.clone(),
            fingerprint,
            plan: request.plan,
            may_be_used,
            wait: request.wait,
            reply,
        };
        self.send(&id, Command::Begin(command)).await?;
        match replied.await.map_err(|_| self.unavailable())?? {
            Begun::Shown { transaction, existed } => {
                Ok(BeginReply { transaction: TransactionView::of(&transaction), existed })
            }
            Begun::InHistory(id) => {
                let ended = self.from_history(&id, false).await?;
                let Some(ended) = ended else { return Err(Unavailable::HistoryFailed.into()) };
                if ended.fingerprint != fingerprint {
                    return Err(BeginError::IdReused(id.to_string()));
                }
                Ok(BeginReply { transaction: ended.view, existed: true })
            }
        }
    }

    /// Shows a transaction; `None` if nobody has a record of it.
    ///
    /// # Errors
    /// If the manager does not work any more.
    pub async fn get(&self, id: &TransactionId) -> Result<Option<TransactionView>, Unavailable> {
        match self.show(id, None).await? {
            Some(live) => Ok(Some(TransactionView::of(&live))),
            None => Ok(self.from_history(id, false).await?.map(|ended| ended.view)),
        }
    }

    /// Shows a transaction once it has come as far as `wait`, or after `patience` as it is then.
    ///
    /// # Errors
    /// If the manager does not work any more.
    pub async fn wait_for(
        &self,
        id: &TransactionId,
        wait: Wait,
        patience: Duration,
    ) -> Result<Option<TransactionView>, Unavailable> {
        match tokio::time::timeout(patience, self.show(id, Some(wait))).await {
            Ok(Ok(Some(live))) => Ok(Some(TransactionView::of(&live))),
            Ok(Err(unavailable)) => Err(unavailable),
            Ok(Ok(None)) | Err(_) => self.get(id).await,
        }
    }

    /// Shows a transaction's course; `None` if nobody has a record of it.
    ///
    /// # Errors
    /// If the manager does not work any more.
    pub async fn timeline(&self, id: &TransactionId) -> Result<Option<TimelineView>, Unavailable> {
        match self.show(id, None).await? {
            Some(live) => Ok(Some(TimelineView::of(&live))),
            None => Ok(self.from_history(id, true).await?.and_then(|ended| ended.timeline)),
        }
    }

    /// Answers a participant in doubt. Of a transaction that nobody has a record of, it is told to
    /// roll back: had it been committed, its record would be kept until this participant knew.
    ///
    /// # Errors
    /// If the manager does not work any more.
    pub async fn decision(&self, id: &TransactionId) -> Result<DecisionReply, Unavailable> {
        let outcome = match self.show(id, None).await? {
            Some(live) => match live.outcome() {
                None => return Ok(DecisionReply::Pending),
                Some(outcome) => outcome == Outcome::Commit,
            },
            None => self.from_history(id, false).await?.is_some_and(|ended| ended.view.committed()),
        };
        Ok(if outcome { DecisionReply::Commit } else { DecisionReply::Rollback })
    }

    /// Lists live and ended transactions, latest first, at most `limit` (1 or more) of them.
    ///
    /// # Errors
    /// If the manager does not work any more.
    pub async fn list(&self, filter: Filter, limit: usize) -> Result<Page, Unavailable> {
        let mut found: Vec<(TransactionView, Option<TimelineView>)> = Vec::new();
        for shard in &self.inner.shards {
            let (reply, replied) = oneshot::channel();
            let command = Command::List { filter: filter.clone(), limit: limit + 1, reply };
            shard.send(command).await.map_err(|_| self.unavailable())?;
            let live = replied.await.map_err(|_| self.unavailable())?;
            found.extend(live.iter().map(|live| {
                let timeline = filter.with_timeline.then(|| TimelineView::of(live));
                (TransactionView::of(live), timeline)
            }));
        }
        let (history, asked) = (Arc::clone(&self.inner.history), filter);
        let ended = blocking(move || history.list(&asked, limit + 1)).await?;
        found.extend(ended.into_iter().map(|ended| (ended.view, ended.timeline)));
        Ok(page(found, limit))
    }

    /// Rolls a transaction back if it is not decided yet; shows what became of it.
    ///
    /// # Errors
    /// If the manager does not work any more.
    pub async fn rollback(
        &self,
        id: &TransactionId,
        reason: &str,
    ) -> Result<Option<TransactionView>, Unavailable> {
        let event = Event::RollbackRequested { transaction: id.clone(), reason: reason.into() };
        self.tell(id, event).await?;
        self.get(id).await
    }

    /// Tries a transaction's waiting branches again now.
    ///
    /// # Errors
    /// If the manager does not work any more.
    pub async fn retry(&self, id: &TransactionId) -> Result<Option<TransactionView>, Unavailable> {
        self.tell(id, Event::RetryRequested { transaction: id.clone() }).await?;
        self.get(id).await
    }

    /// Whether a participant's address may be called.
    ///
    /// # Errors
    /// A stable code, and what is wrong with it.
    pub fn check_participant(&self, participant: &str) -> Result<(), (&'static str, String)> {
        self.inner.transport.check(participant)
    }

    /// Returns when a shard has failed, with what failed. The process should then end: recovery is
    /// the repair.
    pub async fn failed(&self) -> String {
        let mut failed = self.inner.failed.clone();
        match failed.wait_for(Option::is_some).await {
            Ok(message) => message.clone().unwrap_or_default(),
            Err(_) => std::future::pending().await, // Stopped in good order.
        }
    }

    /// Whether the manager takes requests.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        !self.inner.stopping.load(Ordering::Relaxed) && self.inner.failed.borrow().is_none()
    }

    /// Takes nothing new, finishes what is live for at most `patience`, and closes the files. What
    /// is live still then is taken up by the next start.
    pub async fn stop(&self, patience: Duration) {
        self.inner.stopping.store(true, Ordering::Relaxed);
        self.tell_all(|| Command::Stop).await;
        let mut running = self.inner.running.clone();
        if tokio::time::timeout(patience, none_left(&mut running)).await.is_err() {
            self.tell_all(|| Command::Abandon).await;
            none_left(&mut running).await;
        }
        let threads = {
            let mut threads = self.inner.threads.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *threads)
        };
        let joined = tokio::task::spawn_blocking(|| {
            threads.into_iter().filter_map(|thread| thread.join().err()).count()
        });
        if joined.await.unwrap_or(1) > 0 {
            tracing::error!("a storage thread ended by a panic");
        }
    }

    async fn tell_all(&self, command: impl Fn() -> Command) {
        for shard in &self.inner.shards {
            // dropped: a shard that is gone already needs no telling.
            let _ = shard.send(command()).await;
        }
    }

    fn shard(&self, id: &TransactionId) -> &mpsc::Sender<Command> {
        &self.inner.shards[shard_of(id, self.inner.shards.len())]
    }

    async fn send(&self, id: &TransactionId, command: Command) -> Result<(), Unavailable> {
        self.shard(id).send(command).await.map_err(|_| self.unavailable())
    }

    async fn tell(&self, id: &TransactionId, event: Event) -> Result<(), Unavailable> {
        let (reply, replied) = oneshot::channel();
        self.send(id, Command::Tell { event, reply }).await?;
        replied.await.map_err(|_| self.unavailable())
    }

    async fn show(
        &self,
        id: &TransactionId,
        wait: Option<Wait>,
    ) -> Result<Option<Shown>, Unavailable> {
        let (reply, replied) = oneshot::channel();
        self.send(id, Command::Get { id: id.clone(), wait, reply }).await?;
        replied.await.map_err(|_| self.unavailable())
    }

    async fn from_history(
        &self,
        id: &TransactionId,
        with_timeline: bool,
    ) -> Result<Option<Ended>, Unavailable> {
        let (history, id) = (Arc::clone(&self.inner.history), id.clone());
        blocking(move || history.get(id.as_str(), with_timeline)).await
    }

    fn unavailable(&self) -> Unavailable {
        if self.inner.failed.borrow().is_some() {
            Unavailable::ShardFailed
        } else {
            Unavailable::Stopping
        }
    }
}

/// Returns when no shard runs any more.
async fn none_left(running: &mut watch::Receiver<usize>) {
    // dropped: an error says that the count's owners are gone, and with them every shard.
    let _ = running.wait_for(|count| *count == 0).await;
}

/// A manager that is being put together.
struct Starting {
    config: ManagerConfig,
    transport: Arc<dyn Transport>,
    history: Arc<HistoryReader>,
    recovered: Vec<(Box<dyn Engine>, crate::recovery::Recovered)>,
}

impl Starting {
    /// Opens and reads every shard's journal before anything is started: a damaged one stops all.
    fn new(
        config: ManagerConfig,
        transport: Arc<dyn Transport>,
        history: HistoryReader,
    ) -> Result<Self, StartError> {
        let per_shard = config.live_transactions_max.div_ceil(usize::from(config.shards));
        let mut recovered = Vec::new();
        for shard in 0..config.shards {
            let mut engine = open_engine(&config.storage, shard)?;
            let coordinator = Coordinator::new(CoordinatorConfig {
                live_transactions_max: per_shard,
                observations_max: config.timeline_events_max,
                seed: splitmix64(uuid::Uuid::new_v4().as_u64_pair().0),
                ..CoordinatorConfig::default()
            });
            let read = recover(engine.as_mut(), shard, coordinator)?;
            let live = read.coordinator.len();
            if live > 0 {
                tracing::info!(shard, live, "taking up the transactions that the journal holds");
            }
            recovered.push((engine, read));
        }
        Ok(Self { config, transport, history: Arc::new(history), recovered })
    }

    fn finish(
        self,
        writer: rusqlite::Connection,
        lock: Option<File>,
    ) -> Result<TransactionManager, StartError> {
        let (failures, failed) = watch::channel(None);
        let (runners, running) = watch::channel(usize::from(self.config.shards));
        let (failures, runners) = (Arc::new(failures), Arc::new(runners));
        let (archive, requests) = std_mpsc::channel();
        let mut threads = vec![thread("history", move || write_history(writer, &requests))?];
        let mut shards = Vec::new();
        let clock = Clock::start();
        for (number, (engine, recovered)) in (0..).zip(self.recovered) {
            let (commands_sender, commands) = mpsc::channel(COMMANDS_MAX);
            let (journal, journal_commands) = std_mpsc::channel();
            let (receipts_sender, receipts) = mpsc::unbounded_channel();
            threads.push(thread("journal", move || {
                run_journal(engine, number, &journal_commands, &receipts_sender);
            })?);
            let shard = Shard::new(ShardParts {
                coordinator: recovered.coordinator,
                homes: recovered.homes,
                ended: recovered.ended,
                first_position: recovered.first_position,
                next_position: recovered.next_position,
                clock,
                transport: Arc::clone(&self.transport),
                was_used: was_used(&self.history),
                commands,
                journal,
                receipts,
                history: archive.clone(),
                ending_max: ENDING_MAX,
            });
            let (failures, runners) = (Arc::clone(&failures), Arc::clone(&runners));
            tokio::spawn(async move {
                // A panic of a broken invariant ends the shard as a failed journal does.
                let ended = tokio::spawn(shard.run()).await;
                let message = match ended {
                    Ok(Ok(())) => None,
                    Ok(Err(message)) => Some(message),
                    Err(error) => Some(format!("a broken invariant: {error}")),
                };
                if let Some(message) = message {
                    tracing::error!(shard = number, %message, "the shard has ended");
                    failures.send_replace(Some(message));
                }
                runners.send_modify(|count| *count -= 1);
            });
            shards.push(commands_sender);
        }
        Ok(TransactionManager {
            inner: Arc::new(Inner {
                shards,
                history: self.history,
                transport: self.transport,
                stopping: AtomicBool::new(false),
                failed,
                running,
                threads: Mutex::new(threads),
                _lock: lock,
            }),
        })
    }
}

fn thread(name: &str, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, StartError> {
    let spawned = std::thread::Builder::new().name(name.to_owned()).spawn(run);
    spawned.map_err(|error| StartError::Configuration(format!("cannot start a thread: {error}")))
}

fn was_used(history: &Arc<HistoryReader>) -> WasUsed {
    let history = Arc::clone(history);
    Arc::new(move |id| match history.get(id.as_str(), false) {
        Ok(found) => Ok(found.is_some()),
        Err(error) => {
            tracing::error!(%error, "the history cannot be read");
            Err(Unavailable::HistoryFailed)
        }
    })
}

fn open_engine(storage: &Storage, shard: u16) -> Result<Box<dyn Engine>, StartError> {
    Ok(match storage {
        Storage::Folder(folder) => {
            Box::new(SqliteEngine::open(&folder.join(format!("journal-{shard}.db")))?)
        }
        Storage::Memory => Box::new(MemoryEngine::new()),
    })
}

/// Makes the folder if it is missing, and takes it for this process alone.
fn lock_folder(folder: &Path) -> Result<File, StartError> {
    let path = folder.display().to_string();
    let error = |error: std::io::Error| StartError::Folder {
        path: path.clone(),
        message: format!("{error}; choose a folder that this user may write to"),
    };
    std::fs::create_dir_all(folder).map_err(error)?;
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(folder.join("lock"))
        .map_err(error)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StartError::InUse { path: path.clone() }),
        Err(TryLockError::Error(failed)) => Err(error(failed)),
    }
}

/// Which shard an id names. Part of the data format: it must never change.
fn shard_of(id: &TransactionId, shards: usize) -> usize {
    let hash = id.as_str().bytes().fold(0, |state, byte| splitmix64(state ^ u64::from(byte)));
    usize::try_from(hash % shards as u64).unwrap_or(0)
}

/// A digest of a plan: SHA-1 (as UUID version 5 uses it) over its bytes as a record.
fn fingerprint(plan: &Plan) -> u128 {
    let fact = Fact::Begun { fingerprint: 0, plan: plan.clone() };
    let mut bytes = Vec::new();
    let record = Record {
        transaction: TransactionManager::generate_id(),
        at: 0,
        fact,
        observations: Vec::new(),
    };
    encode_record(&record, &mut bytes);
    // The generated id has one length, so what follows it starts at one place.
    let start = 2 + record.transaction.as_str().len();
    uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, &bytes[start..]).as_u128()
}

async fn blocking<T: Send + 'static>(
    run: impl FnOnce() -> Result<T, crate::history::HistoryError> + Send + 'static,
) -> Result<T, Unavailable> {
    match tokio::task::spawn_blocking(run).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => {
            tracing::error!(%error, "the history cannot be read");
            Err(Unavailable::HistoryFailed)
        }
        Err(error) => {
            tracing::error!(%error, "reading the history panicked");
            Err(Unavailable::HistoryFailed)
        }
    }
}

/// Merges what the shards and the history found. A transaction that was archived in between may
/// come from both.
fn page(mut found: Vec<(TransactionView, Option<TimelineView>)>, limit: usize) -> Page {
    found.sort_by(|(a, _), (b, _)| (b.begun_at_ms, &b.id).cmp(&(a.begun_at_ms, &a.id)));
    found.dedup_by(|(a, _), (b, _)| a.id == b.id);
    let more = found.len() > limit;
    found.truncate(limit);
    let last = found.last().filter(|_| more);
    let next = last.map(|(view, _)| Cursor { begun_at_ms: view.begun_at_ms, id: view.id.clone() });
    Page { transactions: found, next }
}
