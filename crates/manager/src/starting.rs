//! Decides how a manager is set up and in which order it starts: take the folder, open the history,
//! read every journal, and only when all of that is sound start a task for each shard.

use std::collections::BTreeSet;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, mpsc as std_mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use unanimity_core::{Coordinator, CoordinatorConfig, Doing, TransactionId, splitmix64};
use unanimity_journal::{Engine, JournalError, LogEngine, MemoryEngine, SqliteEngine};

use crate::admission::{Door, Inside};
use crate::blame::{Blame, Blamed, text_of};
use crate::clock::Clock;
use crate::error::{BeginError, StartError, Unavailable};
use crate::history::{
    ArchiveRequest, HistoryPlace, HistoryReader, HistoryWriter, archived_up_to, coordinator_id,
    known_shards, open_history, remember_shards,
};
use crate::journal_thread::{AppendsHere, ShardJournal};
use crate::manager::{Running, TransactionManager};
use crate::near::{ManagerNumber, Place};
use crate::panics::{self, Panics};
use crate::recovery::{Recovered, recover};
use crate::reserve::Reserve;
use crate::shard::{Bounds, Command, Shard, ShardParts, WasUsed};
use crate::transport::Transport;

/// No manager has more shards.
pub const SHARDS_MAX: u16 = 64;
/// How many commands may wait for a shard before callers wait themselves.
const COMMANDS_MAX: usize = 16_384;

/// Where a manager keeps its journal and history.
#[derive(Clone, Debug)]
pub enum Storage {
    /// In this folder, made if it is missing: `journal-N.log` a shard and `history.db`.
    Folder(PathBuf),
    /// In memory: gone with the process. For tests, and for services that keep nothing either.
    Memory,
}

/// How a manager is set up.
#[derive(Clone, Debug)]
pub struct ManagerConfig {
    /// Where it keeps what must survive.
    pub storage: Storage,
    /// How many shards, each with its own task, journal and thread; 64 at most. Fixed with the
    /// folder's first use: 0 is as many as a used folder has, and in a new one as many as there are
    /// `runtimes`, or one.
    pub shards: u16,
    /// The runtimes that the shards run in, in turn; none: all in the one that the manager is
    /// started in. A shard that has a current-thread runtime to itself stays on that runtime's
    /// thread, and once it runs, what is begun on that thread under an id that the manager makes up
    /// ([`BeginRequest::new`](crate::BeginRequest::new),
    /// [`Admitted::generate_id`](crate::Admitted::generate_id)) begins in that shard. So a program
    /// that has such a runtime for each core, and does its own work there too, has a shard on each
    /// core that shares little with the others. Name each once, with its timers and I/O enabled,
    /// and drive each until the manager has stopped: one that ends before is a failure
    /// ([`TransactionManager::failed`]).
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use std::time::Duration;
    /// # use unanimity::core::{Answer, BranchPlan, Call, Kind, Operation, Options, Plan};
    /// # use unanimity::{BeginRequest, CallFuture, ManagerConfig, TransactionManager, Transport};
    /// # use unanimity::Wait;
    /// # struct Agreeing;
    /// # impl Transport for Agreeing {
    /// #     fn call(&self, call: Call) -> CallFuture<'_> {
    /// #         let votes = call.operation == Operation::Prepare;
    /// #         let answer = if votes { Answer::Yes(None) } else { Answer::Acknowledged };
    /// #         Box::pin(std::future::ready(answer))
    /// #     }
    /// #     fn check(&self, _participant: &str) -> Result<(), (&'static str, String)> {
    /// #         Ok(())
    /// #     }
    /// # }
    /// # async fn work(manager: TransactionManager) -> bool {
    /// #     let branch = |name: &str| BranchPlan::new(name, "in-process", Kind::TwoPhase);
    /// #     let branches = vec![branch("debit"), branch("credit")];
    /// #     let plan = Plan { open: false, branches, options: Options::default() };
    /// #     let request = BeginRequest::new(plan, Wait::Outcome);
    /// #     manager.begin_and_tell(request).await.is_ok_and(|told| told.committed())
    /// # }
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let one_thread = || tokio::runtime::Builder::new_current_thread().enable_all().build();
    /// let [here, there] = [one_thread()?, one_thread()?];
    /// let runtimes = vec![here.handle().clone(), there.handle().clone()];
    /// let config = ManagerConfig { runtimes, ..ManagerConfig::default() };
    /// let manager = TransactionManager::start(config, Arc::new(Agreeing))?;
    /// let (stopped, until_stopped) = tokio::sync::oneshot::channel::<()>();
    /// let done_there = there.spawn(work(manager.clone())); // In the shard of that thread.
    /// let thread = std::thread::spawn(move || there.block_on(until_stopped));
    /// here.block_on(async {
    ///     assert!(work(manager.clone()).await); // Here in that of this one, once it runs.
    ///     assert!(done_there.await.is_ok_and(|done| done));
    ///     manager.stop(Duration::from_secs(5)).await;
    /// });
    /// drop(stopped);
    /// assert!(thread.join().is_ok());
    /// # Ok(())
    /// # }
    /// ```
    pub runtimes: Vec<Handle>,
    /// How many transactions may be live at once in all; more are refused. Each shard has an equal
    /// share of them.
    pub live_transactions_max: usize,
    /// How many events one transaction's timeline holds.
    pub timeline_events_max: usize,
    /// A beginning may wait for its turn for so long, in milliseconds; when all have waited longer
    /// for four times that, so many are refused that the others wait for about a quarter of it. 0:
    /// none is. By default 50, half of what the program has: what begins in the same process comes
    /// so fast that who waits in a longer queue is in no cache any more when its turn comes, and
    /// costs the more.
    pub queue_delay_target_ms: u64,
    /// Whether the runtimes that the shards run in serve nothing else. Where one transaction alone
    /// is waited for and appends take less than a millisecond, its shard syncs on its runtime's
    /// thread instead of having another one woken; where they serve others too that is done only
    /// if each has more threads than one.
    pub owns_runtime: bool,
    /// With less room than this on the folder's disk nothing new is begun, so that what is live can
    /// end; 0: no such limit.
    pub disk_reserve_bytes: u64,
    /// A transaction that the program broke on this often, over restarts, is set aside: shown, and
    /// left alone until somebody has it taken up again. In memory nothing survives a panic, and
    /// nothing is set aside.
    pub panics_per_transaction_max: u32,
}

impl Default for ManagerConfig {
    fn default() -> Self {
        Self {
            storage: Storage::Memory,
            shards: 0,
            runtimes: Vec::new(),
            live_transactions_max: 100_000,
            timeline_events_max: 256,
            queue_delay_target_ms: 50,
            owns_runtime: false,
            disk_reserve_bytes: 64 << 20,
            panics_per_transaction_max: 3,
        }
    }
}

/// Opens a shard's journal.
#[doc(hidden)]
pub type OpenEngine = Box<dyn Fn(u16) -> Result<Box<dyn Engine>, JournalError>>;

/// What a test may replace: no part of the promised interface.
#[doc(hidden)]
#[derive(Default)]
pub struct Internals {
    /// Journals of the test's own, instead of those that the storage names.
    pub open_engine: Option<OpenEngine>,
    /// The bounds of each shard.
    pub bounds: Bounds,
}

/// Starts a manager.
pub(crate) fn start(
    mut config: ManagerConfig,
    transport: Arc<dyn Transport>,
    internals: Internals,
) -> Result<TransactionManager, StartError> {
    if config.shards > SHARDS_MAX {
        let message = format!("shards must be {SHARDS_MAX} at most");
        return Err(StartError::Configuration(message));
    }
    let runtimes = runtimes(&config)?;
    let (lock, place) = match &config.storage {
        Storage::Folder(folder) => {
            (Some(lock_folder(folder)?), HistoryPlace::File(folder.join("history.db")))
        }
        Storage::Memory => (None, HistoryPlace::Memory(uuid::Uuid::new_v4().simple().to_string())),
    };
    let (reader, writer) = open_history(place.clone())?;
    let found = known_shards(&writer).map_err(|source| place.error(source))?;
    if config.shards == 0 {
        let of_new = u16::try_from(config.runtimes.len()).unwrap_or(u16::MAX);
        config.shards = found.unwrap_or(of_new.clamp(1, SHARDS_MAX));
    }
    match found {
        Some(found) if found != config.shards => {
            return Err(StartError::Shards { found, wanted: config.shards });
        }
        Some(_) if internals.open_engine.is_none() => check_journals(&config)?,
        Some(_) | None => {}
    }
    let panics = Panics::read(&writer, config.panics_per_transaction_max.max(1));
    let panics = panics.map_err(|source| place.error(source))?;
    let archived = (0..config.shards).map(|shard| archived_up_to(&writer, shard));
    let archived: Vec<u64> =
        archived.collect::<Result<_, _>>().map_err(|source| place.error(source))?;
    let recovered = recover_all(&config, &internals, &panics, &archived);
    let recovered = recovered.inspect_err(|error| note_start(&place, error))?;
    let known =
        |id: &TransactionId| recovered.iter().any(|(_, read)| read.replayed.homes.knows(id));
    panics.forget_unknown(&writer, known).map_err(|source| place.error(source))?;
    let latest = recovered.iter().map(|(_, read)| read.replayed.latest).max().unwrap_or(0);
    remember_shards(&writer, config.shards).map_err(|source| place.error(source))?;
    let starting = Starting {
        coordinator: coordinator_id(&writer).map_err(|source| place.error(source))?,
        transport,
        history: Arc::new(reader),
        lock: lock.map(Arc::new),
        bounds: internals.bounds,
        clock: Clock::start_no_earlier(latest),
        reserve: watch_disk(&config)?,
        queue_delay_target: Duration::from_millis(config.queue_delay_target_ms),
        here: AppendsHere::new(config.owns_runtime || fewest_threads(&runtimes) > 1),
        number: ManagerNumber::new(),
        runtimes,
        shards: config.shards.into(),
        blame: Blame::default(),
        refused: panics.refused(known),
        place,
        threads: Vec::new(),
    };
    starting.spawn(recovered, writer)
}

/// A shard's journal, and what it held.
type Opened = (Box<dyn Engine>, Recovered);

/// Opens and reads every shard's journal before anything is started: a damaged one stops all.
fn recover_all(
    config: &ManagerConfig,
    internals: &Internals,
    panics: &Panics,
    archived: &[u64],
) -> Result<Vec<Opened>, StartError> {
    let per_shard = config.live_transactions_max.div_ceil(usize::from(config.shards));
    let mut recovered = Vec::new();
    for (shard, archived_up_to) in (0..config.shards).zip(archived) {
        let mut engine = match &internals.open_engine {
            Some(open) => open(shard)?,
            None => open_engine(&config.storage, shard)?,
        };
        let coordinator = Coordinator::new(CoordinatorConfig {
            live_transactions_max: per_shard,
            observations_max: config.timeline_events_max,
            seed: splitmix64(uuid::Uuid::new_v4().as_u64_pair().0),
            ..CoordinatorConfig::default()
        });
        let read = recover(engine.as_mut(), shard, coordinator, panics, *archived_up_to)?;
        let live = read.replayed.coordinator.len();
        if live > 0 {
            tracing::info!(shard, live, "taking up the transactions that the journal holds");
        }
        recovered.push((engine, read));
    }
    Ok(recovered)
}

fn watch_disk(config: &ManagerConfig) -> Result<Arc<Reserve>, StartError> {
    let Storage::Folder(folder) = &config.storage else { return Ok(Reserve::endless()) };
    Reserve::watch(folder, config.disk_reserve_bytes).map_err(|error| no_thread(&error))
}

fn no_thread(error: &std::io::Error) -> StartError {
    StartError::Configuration(format!("cannot start a thread: {error}"))
}

/// A manager that is being put together.
struct Starting {
    coordinator: u64,
    transport: Arc<dyn Transport>,
    history: Arc<HistoryReader>,
    /// Held by every thread that works on the folder: it is ours until the last of them has ended.
    lock: Option<Arc<File>>,
    bounds: Bounds,
    clock: Clock,
    reserve: Arc<Reserve>,
    queue_delay_target: Duration,
    here: AppendsHere,
    /// What the threads know it by.
    number: ManagerNumber,
    /// Where the shards run; not empty.
    runtimes: Vec<Handle>,
    shards: usize,
    blame: Blame,
    /// Ids whose beginning the program broke on too often.
    refused: BTreeSet<TransactionId>,
    /// Where panics are noted.
    place: HistoryPlace,
    threads: Vec<JoinHandle<()>>,
}

impl Starting {
    fn spawn(
        mut self,
        recovered: Vec<Opened>,
        writer: rusqlite::Connection,
    ) -> Result<TransactionManager, StartError> {
        let (failures, failed) = watch::channel(None);
        let (runners, count) = watch::channel(recovered.len());
        let (failures, runners) = (Arc::new(failures), Arc::new(runners));
        let (archive, requests) = std_mpsc::channel();
        let (gather, blame) = (self.bounds.gather, self.blame.clone());
        let started_at_ms = self.clock.ms_at(Instant::now());
        let writer = HistoryWriter::new(writer, started_at_ms, blame);
        self.thread("history", move || writer.run(&requests, gather))?;
        let (mut shards, mut doors) = (Vec::new(), Vec::new());
        for (number, opened) in (0..).zip(recovered) {
            let (sender, commands) = mpsc::channel(COMMANDS_MAX);
            let (door, inside) = Door::new(self.queue_delay_target);
            doors.push(door);
            let shard = self.shard(number, opened, (commands, inside), archive.clone())?;
            let watcher = Watcher {
                number,
                blame: self.blame.clone(),
                place: self.place.clone(),
                failures: Arc::clone(&failures),
                runners: Arc::clone(&runners),
                is_over: false,
            };
            self.runtime_of(number).spawn(watcher.watch_over(shard));
            shards.push(sender);
        }
        let Self { coordinator, transport, history, place, threads, number, .. } = self;
        let threads = Mutex::new(threads);
        let running = Running {
            coordinator,
            number,
            shards,
            doors,
            turned_away: BeginError::counter("overloaded"),
            history,
            place,
            transport,
            failed,
            count,
            threads,
        };
        Ok(TransactionManager::from_running(running))
    }

    fn shard(
        &mut self,
        number: u16,
        (engine, recovered): Opened,
        (commands, door): (mpsc::Receiver<Command>, Inside),
        history: std_mpsc::Sender<ArchiveRequest>,
    ) -> Result<Shard, StartError> {
        let (receipts_sender, receipts) = mpsc::unbounded_channel();
        let (journal, work) = ShardJournal::new(engine, number, self.here.clone(), receipts_sender);
        self.thread("journal", work)?;
        Ok(Shard::new(ShardParts {
            number,
            place: self.place_of(number),
            recovered,
            clock: self.clock,
            reserve: Arc::clone(&self.reserve),
            blame: self.blame.clone(),
            refused: self.refused.clone(),
            transport: Arc::clone(&self.transport),
            was_used: was_used(&self.history),
            commands,
            door,
            journal,
            receipts,
            history,
            bounds: self.bounds.clone(),
        }))
    }

    /// Its place, if it has a runtime to itself. Were several on one thread, one of them would get
    /// all that begins there.
    fn place_of(&self, shard: u16) -> Option<Place> {
        let alone = self.shards <= self.runtimes.len();
        let place = || Place::alone_in(self.runtime_of(shard), self.number, shard.into());
        alone.then(place).flatten()
    }

    fn runtime_of(&self, shard: u16) -> &Handle {
        &self.runtimes[usize::from(shard) % self.runtimes.len()]
    }

    fn thread(
        &mut self,
        name: &str,
        run: impl FnOnce() + Send + 'static,
    ) -> Result<(), StartError> {
        let lock = self.lock.clone();
        let spawned = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            run();
            drop(lock);
        });
        self.threads.push(spawned.map_err(|error| no_thread(&error))?);
        Ok(())
    }
}

/// Runs a shard to its end.
struct Watcher {
    number: u16,
    blame: Blame,
    place: HistoryPlace,
    failures: Arc<watch::Sender<Option<String>>>,
    runners: Arc<watch::Sender<usize>>,
    is_over: bool,
}

/// Also where the runtime ends in which both run, and only a part of the manager with it.
impl Drop for Watcher {
    fn drop(&mut self) {
        if !self.is_over {
            tracing::warn!(shard = self.number, "the runtime of the shard has ended before it");
            self.failures.send_replace(Some("the runtime of a shard has ended".to_owned()));
        }
        self.runners.send_modify(|count| *count -= 1);
    }
}

impl Watcher {
    /// A panic of a broken invariant ends the shard as a failed journal does. If it is known on
    /// which transaction, that is on record before anybody learns of the failure and stops.
    async fn watch_over(mut self, shard: Shard) {
        let message = match tokio::spawn(shard.run()).await {
            Ok(Ok(())) => None,
            Ok(Err(message)) => Some(message),
            Err(error) => Some(match error.try_into_panic() {
                Ok(panic) => format!("a broken invariant: {}", text_of(panic.as_ref())),
                Err(error) => format!("its task has ended: {error}"),
            }),
        };
        if let Some(message) = message {
            let message = match self.blame.take() {
                None => message,
                Some(blamed) => {
                    let place = self.place.clone();
                    let noted = tokio::task::spawn_blocking(move || note(&place, &blamed)).await;
                    noted.unwrap_or(message)
                }
            };
            tracing::error!(shard = self.number, %message, "the shard has ended");
            self.failures.send_replace(Some(message));
        }
        self.is_over = true;
    }
}

/// Puts a panic on record, and says so. In memory there is nothing that would outlive it.
fn note(place: &HistoryPlace, blamed: &Blamed) -> String {
    let (id, doing, message) = (&blamed.id, blamed.doing.as_str(), &blamed.message);
    let broke = format!("{doing} transaction {id} broke an invariant: {message}");
    if matches!(place, HistoryPlace::Memory(_)) {
        return broke;
    }
    match panics::note(place, blamed, Clock::wall_ms()) {
        Ok(times) => format!("{broke} (on record {times} times)"),
        Err(error) => {
            tracing::error!(transaction = %id, %error, "a panic cannot be put on record");
            broke
        }
    }
}

/// A start that broke on a transaction puts that on record as well.
fn note_start(place: &HistoryPlace, error: &StartError) {
    let StartError::Panicked { transaction, message, .. } = error else { return };
    let (id, message) = (transaction.clone(), message.clone());
    let said = note(place, &Blamed { id, doing: Doing::Replaying, message });
    tracing::error!(message = %said, "the journal cannot be read back");
}

fn runtimes(config: &ManagerConfig) -> Result<Vec<Handle>, StartError> {
    if !config.runtimes.is_empty() {
        return Ok(config.runtimes.clone());
    }
    match Handle::try_current() {
        Ok(current) => Ok(vec![current]),
        Err(_) => Err(StartError::Configuration(
            "there is no tokio runtime here, and `runtimes` names none; start the manager within \
             one"
            .to_owned(),
        )),
    }
}

fn fewest_threads(runtimes: &[Handle]) -> usize {
    runtimes.iter().map(|runtime| runtime.metrics().num_workers()).min().unwrap_or(1)
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

/// Refuses a folder whose journal is gone although it was used before. A journal that began anew
/// would know of no transaction, and would tell participants in doubt to roll back what was
/// committed.
pub(crate) fn check_journals(config: &ManagerConfig) -> Result<(), StartError> {
    let Storage::Folder(folder) = &config.storage else { return Ok(()) };
    for shard in 0..config.shards {
        let bytes = |path: &Path| std::fs::metadata(path).map_or(0, |found| found.len());
        let (log, database) = (journal_path(folder, shard), older_journal_path(folder, shard));
        if bytes(&log) == 0 && bytes(&database) == 0 && bytes(&beside(&database)) == 0 {
            let missing = if database.exists() { database } else { log };
            return Err(StartError::JournalMissing { path: missing.display().to_string() });
        }
    }
    Ok(())
}

fn journal_path(folder: &Path, shard: u16) -> PathBuf {
    folder.join(format!("journal-{shard}.log"))
}

/// Where earlier builds had a shard's journal, in a file of SQLite. It is used on where it is.
fn older_journal_path(folder: &Path, shard: u16) -> PathBuf {
    folder.join(format!("journal-{shard}.db"))
}

/// Where SQLite keeps the write-ahead log of one. Alone it is what is left of a journal, too.
fn beside(database: &Path) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push("-wal");
    name.into()
}

pub(crate) fn open_engine(storage: &Storage, shard: u16) -> Result<Box<dyn Engine>, StartError> {
    let Storage::Folder(folder) = storage else { return Ok(Box::new(MemoryEngine::new())) };
    let (log, database) = (journal_path(folder, shard), older_journal_path(folder, shard));
    Ok(match (log.exists(), database.exists() || beside(&database).exists()) {
        (true, true) => {
            let message = format!(
                "it holds two journals of shard {shard}, {} and {} (with its -wal file); find out \
                 which one is in use, and move the other away",
                log.display(),
                database.display()
            );
            return Err(StartError::Folder { path: folder.display().to_string(), message });
        }
        (false, true) => Box::new(SqliteEngine::open(&database)?),
        (_, false) => Box::new(LogEngine::open(&log)?),
    })
}

/// Makes the folder if it is missing, and takes it for this process alone.
pub(crate) fn lock_folder(folder: &Path) -> Result<File, StartError> {
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
