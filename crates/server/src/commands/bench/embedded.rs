//! The scenario *embedded*: the transaction manager within this process, over participants that
//! agree at once and do nothing. It shows what the coordinator itself costs: the protocol, the
//! journal, the history. The load's own tasks run in the same process and are part of the figures.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::bail;
use unanimity::core::{Answer, BranchPlan, Call, Kind, Operation, Options, Plan};
use unanimity::{
    BeginError, BeginRequest, CallFuture, Internals, ManagerConfig, Storage, TransactionManager,
    Transport, Wait,
};

use super::BenchArguments;
use super::ceilings::{Alike, Recorder, core_alone, journal_alone};
use super::http::PATIENCE_MS;
use super::measure::{Load, Measured, Turn, Window, measure};
use super::row::{Ceiling, Row};
use super::usage::Usage;

/// How long what is under way at the end may take.
pub(super) const STOP_TIMEOUT: Duration = Duration::from_secs(60);

/// What one run is like.
#[derive(Clone, Debug)]
pub(super) struct Embedded {
    pub(super) shards: u16,
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
            Operation::Commit if &*call.participant == GONE => Answer::Unsent("gone".into()),
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
    let (shards, window) = (arguments.shards, arguments.window());
    let loads: &[usize] = if arguments.short { &[1, 256] } else { &[1, 64, 1_024, 4_096] };
    let mut peak: f64 = 0.0;
    for load in arguments.loads(loads) {
        let run = Embedded { shards, load, window, ceilings: !arguments.no_ceilings };
        let row = embedded(&run, folder).await?;
        peak = peak.max(row.per_second);
        show(row);
    }
    for load in arguments.arrivals(peak) {
        show(embedded(&Embedded { shards, load, window, ceilings: false }, folder).await?);
    }
    Ok(())
}

/// A runtime beside the one that this runs in.
struct Apart(Option<tokio::runtime::Runtime>);

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
        self.0.take().into_iter().for_each(tokio::runtime::Runtime::shutdown_background);
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
    let internals =
        Internals { open_engine: Some(recorder.engines(&folder)), ..Internals::default() };
    // A thread for each shard: who begins transactions has others.
    let apart = Apart::with_threads(run.shards.into())?;
    let manager = {
        let _within = apart.0.as_ref().map(tokio::runtime::Runtime::enter);
        TransactionManager::start_with(config, Arc::new(Agreeing), internals)?
    };
    let measured = put_load_on(run, &manager, &recorder).await?;
    let stopping = Instant::now();
    manager.stop(STOP_TIMEOUT).await;
    let drained = stopping.elapsed();
    drop(manager);
    drop(apart);
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
    row.case = format!("{} shard{}", run.shards, if run.shards == 1 { "" } else { "s" });
    row.drained_ms = Some(drained.as_secs_f64() * 1_000.0);
    if run.ceilings {
        row.ceilings = ceilings(run, &recorder, measured.done_in_all, &folder)?;
    }
    Ok(row)
}

async fn put_load_on(
    run: &Embedded,
    manager: &TransactionManager,
    recorder: &Arc<Recorder>,
) -> anyhow::Result<Measured> {
    let turn = commit_in_turn(manager, transfer());
    let usage = async || Usage { appends: recorder.appends(), ..Usage::own() };
    measure(run.load, run.window, usage, turn).await
}

/// A turn under way.
type Turning = Pin<Box<dyn Future<Output = Turn> + Send>>;

/// Begins a transaction, and expects that it commits.
pub(super) fn commit_in_turn(
    manager: &TransactionManager,
    plan: Plan,
) -> impl Fn() -> Turning + Clone + Send + Sync + 'static {
    let (plan, manager) = (Arc::new(plan), manager.clone());
    move || {
        // Before a plan is made up that nobody would carry out.
        let Ok(admitted) = manager.admit() else {
            return Box::pin(std::future::ready(Turn::Refused)) as Turning;
        };
        let plan = Arc::clone(&plan);
        Box::pin(async move {
            let request = BeginRequest::new((*plan).clone(), Wait::Outcome);
            match admitted.begin_and_tell(request).await {
                Ok(told) if told.committed() => Turn::Done,
                Err(error) if comes_later(&error) => Turn::Refused,
                Ok(_) | Err(_) => Turn::Failed,
            }
        })
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
