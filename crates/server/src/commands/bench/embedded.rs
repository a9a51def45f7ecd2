//! The scenario *embedded*: the transaction manager within this process, over participants that
//! agree at once and do nothing. It shows what the coordinator itself costs: the protocol, the
//! journal, the history. The load's own tasks run in the same process and are part of the figures.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::bail;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::watch;
use tokio::task::JoinSet;
use unanimity::core::{Answer, BranchPlan, Call, Kind, Operation, Options, Plan};
use unanimity::{
    Admitted, BeginError, BeginRequest, CallFuture, Internals, ManagerConfig, SHARDS_MAX, Storage,
    TransactionManager, Transport, Wait,
};

use super::BenchArguments;
use super::ceilings::{Alike, Recorder, core_alone, journal_alone};
use super::http::PATIENCE_MS;
use super::measure::{Load, Measured, Tally, Turn, Window, closed, measure, measure_by};
use super::row::{Ceiling, Row, cores};
use super::together;
use super::usage::Usage;

/// How long what is under way at the end may take.
pub(super) const STOP_TIMEOUT: Duration = Duration::from_secs(60);

/// Where the shards run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Threads {
    /// Each on a thread beside a share of the initiators, who begin in it: nobody is woken on
    /// another core, and what one of them has written is in that core's cache when the other reads
    /// it. It knows no other load than a closed loop.
    Beside,
    /// The same, and those initiators are one task, which is told of many at a time: see
    /// `together`.
    BesideOne,
    /// Each on a thread of its own.
    Own,
}

/// What one run is like.
#[derive(Clone, Debug)]
pub(super) struct Embedded {
    pub(super) shards: u16,
    pub(super) threads: Threads,
    pub(super) load: Load,
    pub(super) window: Window,
    /// Whether the ceilings are measured too.
    pub(super) ceilings: bool,
}

/// A participant that prepares and is never reached again.
pub(super) const GONE: &str = "in-process:gone";

/// Agrees to everything, at once.
pub(super) struct Agreeing;

impl Agreeing {
    fn answer(call: &Call) -> Answer {
        match call.operation {
            Operation::Prepare | Operation::Execute => Answer::Yes(None),
            Operation::Commit if &*call.plan.participant == GONE => Answer::Unsent("gone".into()),
            Operation::Commit
            | Operation::Rollback
            | Operation::Compensate
            | Operation::CommitOnePhase
            | Operation::Inquire => Answer::Acknowledged,
        }
    }
}

impl Transport for Agreeing {
    fn call(&self, call: Call) -> CallFuture<'_> {
        Box::pin(std::future::ready(Self::answer(&call)))
    }

    fn answer_at_once(&self, call: &Call) -> Option<Answer> {
        Some(Self::answer(call))
    }

    fn check(&self, _participant: &str) -> Result<(), (&'static str, String)> {
        Ok(())
    }
}

/// Two branches with a payload as a transfer has it.
pub(super) fn transfer() -> Plan {
    let branch = |name: &str, participant: &str| BranchPlan {
        payload: Arc::from(br#"{"account":"A-17","amount":500}"#.as_slice()),
        ..BranchPlan::new(name, participant, Kind::TwoPhase)
    };
    let branches = vec![branch("debit", "in-process:a"), branch("credit", "in-process:b")];
    let options = Options { prepare_timeout_ms: PATIENCE_MS, ..Options::default() };
    Plan { open: false, branches, options }
}

/// Runs it: a line for each load.
pub(super) async fn all(
    arguments: &BenchArguments,
    folder: &Path,
    show: &mut impl FnMut(Row),
) -> anyhow::Result<()> {
    let (window, measures) = (arguments.window(), !arguments.no_ceilings);
    let run =
        |shards, threads, load, ceilings| Embedded { shards, threads, load, window, ceilings };
    let shards = arguments.shards;
    let loads: &[usize] = if arguments.short { &[1, 256] } else { &[1, 64, 1_024, 4_096] };
    for load in arguments.loads(loads) {
        // Who lets them arrive has a thread: it must not be late because a shard has much to do.
        let threads = match load {
            Load::Closed(_) => Threads::Beside,
            Load::Open { .. } => Threads::Own,
        };
        show(embedded(&run(shards, threads, load, measures), folder).await?);
    }
    // Where one shard is measured: as many as there are cores, too.
    let cores = u16::try_from(cores()).unwrap_or(u16::MAX).min(SHARDS_MAX);
    let many = (shards == 1 && cores > 1).then_some(cores);
    let loads: &[usize] = if arguments.short { &[256] } else { &[1_024, 4_096] };
    for load in arguments.loads(loads).into_iter().filter(|load| matches!(load, Load::Closed(_))) {
        show(embedded(&run(shards, Threads::BesideOne, load, measures), folder).await?);
        if let Some(shards) = many {
            show(embedded(&run(shards, Threads::Beside, load, measures), folder).await?);
            show(embedded(&run(shards, Threads::BesideOne, load, measures), folder).await?);
        }
    }
    if !arguments.leaves_loads_open() {
        return Ok(());
    }
    let at_once = if arguments.short { 256 } else { 1_024 };
    let own = run(shards, Threads::Own, Load::Closed(at_once), measures);
    let own = embedded(&own, folder).await?;
    for load in arguments.arrivals(own.per_second) {
        show(embedded(&run(shards, Threads::Own, load, false), folder).await?);
    }
    show(own);
    Ok(())
}

/// A runtime of one thread for each shard: the first for who calls, the others on threads that
/// drive them until this is dropped.
struct ThreadEach {
    first: Runtime,
    /// All of them.
    runtimes: Vec<Handle>,
    /// Whose end ends the others.
    running: Option<watch::Sender<()>>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl ThreadEach {
    fn start(count: usize) -> std::io::Result<Self> {
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build();
        let (first, (running, until)) = (runtime()?, watch::channel(()));
        let mut each = Self {
            runtimes: vec![first.handle().clone()],
            first,
            running: Some(running),
            threads: Vec::new(),
        };
        for _ in 1..count {
            let (runtime, mut until) = (runtime()?, until.clone());
            each.runtimes.push(runtime.handle().clone());
            let drive = move || while runtime.block_on(until.changed()).is_ok() {};
            let thread = std::thread::Builder::new().name("shard".to_owned()).spawn(drive)?;
            each.threads.push(thread);
        }
        Ok(each)
    }
}

impl Drop for ThreadEach {
    fn drop(&mut self) {
        self.running = None;
        for thread in self.threads.drain(..) {
            // dropped: what panicked there has said so.
            let _ = thread.join();
        }
    }
}

/// A runtime beside the one that this runs in.
struct Apart(Option<Runtime>);

impl Apart {
    fn with_threads(threads: usize) -> std::io::Result<Self> {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder
            .worker_threads(threads)
            .thread_name("shard")
            .enable_all()
            .build()
            .map(Some)
            .map(Self)
    }
}

/// One must not be waited for within another.
impl Drop for Apart {
    fn drop(&mut self) {
        self.0.take().into_iter().for_each(Runtime::shutdown_background);
    }
}

/// Runs it in a folder of its own below `folder`, and judges that nothing was lost.
pub(super) async fn embedded(run: &Embedded, folder: &Path) -> anyhow::Result<Row> {
    let folder = folder.join("embedded");
    std::fs::create_dir_all(&folder)?;
    let recorder = Arc::new(Recorder::default());
    let config = ManagerConfig {
        storage: Storage::Folder(folder.clone()),
        shards: run.shards,
        owns_runtime: true,
        ..ManagerConfig::default()
    };
    let (recorded, within) = (Arc::clone(&recorder), folder.clone());
    let start = move |runtimes: &[Handle]| {
        let config = ManagerConfig { runtimes: runtimes.to_vec(), ..config };
        let open_engine = Some(recorded.engines(&within));
        let internals = Internals { open_engine, ..Internals::default() };
        TransactionManager::start_with(config, Arc::new(Agreeing), internals)
    };
    let (measured, drained) = match run.threads {
        Threads::Own => {
            let apart = Apart::with_threads(run.shards.into())?;
            let manager = {
                let _within = apart.0.as_ref().map(Runtime::enter);
                start(&[])?
            };
            load_until_stopped(run, manager, &recorder, &[]).await?
        }
        Threads::Beside | Threads::BesideOne => {
            let (run, recorder) = (run.clone(), Arc::clone(&recorder));
            let threads = ThreadEach::start(run.shards.into())?;
            let all = move || {
                let runtimes = threads.runtimes.clone();
                threads.first.block_on(async {
                    let manager = start(&runtimes)?;
                    load_until_stopped(&run, manager, &recorder, &runtimes).await
                })
            };
            tokio::task::spawn_blocking(all).await??
        }
    };
    let in_history = unanimity::count_history(&folder)?;
    std::fs::remove_dir_all(&folder)?;
    if measured.failed > 0 || in_history != measured.done_in_all {
        let (failed, done) = (measured.failed, measured.done_in_all);
        bail!("embedded: {failed} failed; {done} committed, but {in_history} in the history");
    }
    let mut row = Row::new("embedded", run.load, &measured);
    let whole = run.window.warm_up + run.window.counted;
    let busy = recorder.appending().as_secs_f64() / whole.as_secs_f64() / f64::from(run.shards);
    row.journal_busy = Some(busy);
    row.case = match (run.threads, run.shards) {
        (Threads::Beside, 1) => "1 shard, one thread".to_owned(),
        (Threads::BesideOne, 1) => "1 shard, one thread, one initiator".to_owned(),
        (Threads::Own, 1) => "1 shard, own thread".to_owned(),
        (Threads::Beside, shards) => format!("{shards} shards, a thread each"),
        (Threads::BesideOne, shards) => {
            format!("{shards} shards, a thread and one initiator each")
        }
        (Threads::Own, shards) => format!("{shards} shards, own threads"),
    };
    row.drained_ms = Some(drained.as_secs_f64() * 1_000.0);
    if run.ceilings {
        row.ceilings = ceilings(run, &recorder, measured.done_in_all, &folder)?;
    }
    Ok(row)
}

/// What came of it, and how long it took until what was under way at the end was in the history.
async fn load_until_stopped(
    run: &Embedded,
    manager: TransactionManager,
    recorder: &Arc<Recorder>,
    runtimes: &[Handle],
) -> anyhow::Result<(Measured, Duration)> {
    let usage = async || Usage { appends: recorder.appends(), ..Usage::own() };
    let measured = match (run.threads, run.load) {
        (Threads::Own, load) => commits(&manager, transfer(), (load, run.window), usage).await?,
        (Threads::Beside | Threads::BesideOne, Load::Closed(count)) => {
            let by_one = run.threads == Threads::BesideOne;
            let start = |tally: &Arc<_>| beside(runtimes, count, &manager, by_one, tally);
            measure_by(start, run.window, usage).await?
        }
        (Threads::Beside | Threads::BesideOne, Load::Open { .. }) => {
            bail!("who lets transactions arrive has a thread of its own")
        }
    };
    let stopping = Instant::now();
    manager.stop(STOP_TIMEOUT).await;
    Ok((measured, stopping.elapsed()))
}

/// Starts so many initiators, an even share in each runtime.
fn beside(
    runtimes: &[Handle],
    count: usize,
    manager: &TransactionManager,
    by_one: bool,
    tally: &Arc<Tally>,
) -> JoinSet<()> {
    let mut workers = JoinSet::new();
    for (number, runtime) in runtimes.iter().enumerate() {
        let share = (count + number) / runtimes.len();
        // Each has a plan of its own, and not one whose parts are counted by all.
        let (plan, manager) = (transfer(), manager.clone());
        if by_one {
            let work = together::initiate(share, manager, plan, Arc::clone(tally));
            workers.spawn_on(work, runtime);
        } else {
            let plan = Arc::new(plan);
            let turn = move || transact(manager.admit(), Arc::clone(&plan));
            closed(&mut workers, runtime, share, tally, &turn);
        }
    }
    workers
}

/// Puts on a load of transactions, each of which is expected to commit.
pub(super) async fn commits(
    manager: &TransactionManager,
    plan: Plan,
    (load, window): (Load, Window),
    usage: impl AsyncFn() -> Usage,
) -> anyhow::Result<Measured> {
    let (manager, plan) = (manager.clone(), Arc::new(plan));
    let turn = move || transact(manager.admit(), Arc::clone(&plan));
    measure(load, window, usage, turn).await
}

/// One transaction, which is expected to commit; refused before its plan is made up, if at all.
async fn transact(admitted: Result<Admitted, BeginError>, plan: Arc<Plan>) -> Turn {
    let Ok(admitted) = admitted else { return Turn::Refused };
    let request = BeginRequest::new((*plan).clone(), Wait::Outcome);
    match admitted.begin_and_tell(request).await {
        Ok(told) if told.committed() => Turn::Done,
        Err(error) if comes_later(&error) => Turn::Refused,
        Ok(_) | Err(_) => Turn::Failed,
    }
}

/// Whether the manager asks to be asked again later.
pub(super) const fn comes_later(error: &BeginError) -> bool {
    matches!(error, BeginError::AtCapacity | BeginError::Overloaded)
}

fn ceilings(
    run: &Embedded,
    recorder: &Recorder,
    transactions: u64,
    folder: &Path,
) -> anyhow::Result<Vec<Ceiling>> {
    let concurrency = match run.load {
        Load::Closed(initiators) => initiators,
        Load::Open { .. } => 1_024,
    };
    std::fs::create_dir_all(folder)?;
    let journal = journal_alone(recorder, transactions, folder)?;
    std::fs::remove_dir_all(folder)?;
    let core = core_alone(usize::from(run.shards), concurrency, run.window.counted / 2)?;
    let named = |name: &str, Alike { per_second, cpu_us }| {
        let name = name.to_owned();
        Ceiling { name, per_second, cpu_us }
    };
    Ok(vec![named("journal alone", journal), named("core alone", core)])
}
