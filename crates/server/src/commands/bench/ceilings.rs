//! The ceilings of the scenario *embedded*: the journal's engine alone, doing again what it did in
//! the run, and the core alone, driven by one loop without journal, tasks or channels. Neither can
//! be beaten by what is built of them; how near the whole comes is what the bench tells.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::anyhow;
use unanimity::core::{
    Answer, Call, Coordinator, CoordinatorConfig, Durable, Effect, Event, Mutations, Operation,
    Out, Outbox, OutboxBounds, Step,
};
use unanimity::{Bounds as ManagerBounds, OpenEngine, TransactionManager};
use unanimity_journal::{Batch, Bounds, Engine, JournalError, LogEngine, Receipt, ShardId};

use super::embedded::transfer;
use super::usage::Usage;

/// What an engine was asked to do, small enough to be kept for millions of transactions.
#[derive(Clone, Copy, Debug)]
enum Asked {
    Append { records: u32, bytes: u32, before: Option<u64> },
    Truncate(u64),
}

/// What the engines of a run were asked to do, by shard.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    asked: Mutex<BTreeMap<ShardId, Vec<Asked>>>,
    appending_us: AtomicU64,
}

impl Recorder {
    /// Opens the journals in `folder`, and records what they are asked.
    pub(super) fn engines(self: &Arc<Self>, folder: &Path) -> OpenEngine {
        let (recorder, folder) = (Arc::clone(self), folder.to_path_buf());
        Box::new(move |shard| {
            let engine = LogEngine::open(&folder.join(format!("journal-{shard}.log")))?;
            Ok(Box::new(Recorded { engine, recorder: Arc::clone(&recorder) }))
        })
    }

    /// How many appends there were.
    pub(super) fn appends(&self) -> u64 {
        let is_append = |asked: &&Asked| matches!(asked, Asked::Append { .. });
        self.locked().values().flatten().filter(is_append).count() as u64
    }

    /// For how long journals were appending, all together.
    pub(super) fn appending(&self) -> Duration {
        Duration::from_micros(self.appending_us.load(Ordering::Relaxed))
    }

    fn note(&self, shard: ShardId, asked: Asked) {
        self.locked().entry(shard).or_default().push(asked);
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, BTreeMap<ShardId, Vec<Asked>>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An engine that notes what it is asked.
struct Recorded {
    engine: LogEngine,
    recorder: Arc<Recorder>,
}

impl Engine for Recorded {
    fn append_and_truncate(
        &mut self,
        shard: ShardId,
        position: u64,
        records: &[&[u8]],
        before: Option<u64>,
    ) -> Result<Receipt, JournalError> {
        let bytes = records.iter().map(|record| record.len()).sum::<usize>();
        let small = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let asked = Asked::Append { records: small(records.len()), bytes: small(bytes), before };
        self.recorder.note(shard, asked);
        let start = Instant::now();
        let receipt = self.engine.append_and_truncate(shard, position, records, before);
        let took_us = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.recorder.appending_us.fetch_add(took_us, Ordering::Relaxed);
        receipt
    }

    fn is_due(&self) -> bool {
        self.engine.is_due()
    }

    fn read(
        &mut self,
        shard: ShardId,
        from: u64,
        each: &mut dyn FnMut(Batch) -> Result<(), JournalError>,
    ) -> Result<(), JournalError> {
        self.engine.read(shard, from, each)
    }

    fn bounds(&mut self, shard: ShardId) -> Result<Bounds, JournalError> {
        self.engine.bounds(shard)
    }

    fn truncate(&mut self, shard: ShardId, before: u64) -> Result<(), JournalError> {
        self.recorder.note(shard, Asked::Truncate(before));
        self.engine.truncate(shard, before)
    }

    fn harden(&mut self, shard: ShardId) -> Result<(), JournalError> {
        self.engine.harden(shard)
    }
}

/// What a ceiling was measured as: transactions a second, and processor time for each.
#[derive(Clone, Copy, Debug)]
pub(super) struct Alike {
    pub(super) per_second: f64,
    pub(super) cpu_us: f64,
}

/// How many transactions a second the journal alone would carry: every append and truncation of the
/// run again, with as many bytes in as many records, each shard's in a thread of its own.
pub(super) fn journal_alone(
    recorder: &Recorder,
    transactions: u64,
    folder: &Path,
) -> anyhow::Result<Alike> {
    let (asked, before) = (recorder.locked(), Usage::own());
    let slowest = std::thread::scope(|scope| {
        let threads: Vec<_> = asked
            .iter()
            .map(|(shard, asked)| scope.spawn(|| again(*shard, asked, folder)))
            .collect();
        let mut slowest = Duration::ZERO;
        for thread in threads {
            let took = thread.join().map_err(|_| anyhow!("a thread of the ceiling panicked"))??;
            slowest = slowest.max(took);
        }
        Ok::<_, anyhow::Error>(slowest)
    })?;
    let cpu_us = Usage::own().since(before).cpu_us as f64 / transactions.max(1) as f64;
    let per_second = transactions as f64 / slowest.as_secs_f64().max(f64::MIN_POSITIVE);
    Ok(Alike { per_second, cpu_us })
}

/// The time that the engine took; that of making up the bytes is left out.
fn again(shard: ShardId, asked: &[Asked], folder: &Path) -> anyhow::Result<Duration> {
    let mut engine = LogEngine::open(&folder.join(format!("again-{shard}.log")))?;
    engine.harden(shard)?;
    let (mut took, mut position) = (Duration::ZERO, 1);
    for asked in asked {
        match *asked {
            Asked::Append { records, bytes, before } => {
                let each: Vec<u8> = vec![0xA5; (bytes / records.max(1)) as usize];
                let batch = vec![&*each; records as usize];
                let start = Instant::now();
                engine.append_and_truncate(shard, position, &batch, before)?;
                took += start.elapsed();
                position += 1;
            }
            Asked::Truncate(before) => {
                let start = Instant::now();
                engine.truncate(shard, before)?;
                took += start.elapsed();
            }
        }
    }
    Ok(took)
}

/// How many transactions a second the core alone carries, with its batches and its codec, when
/// every append is durable at once and every participant agrees at once: one loop for each shard.
pub(super) fn core_alone(
    shards: usize,
    concurrency: usize,
    for_so_long: Duration,
) -> anyhow::Result<Alike> {
    let (each, before) = (concurrency.div_ceil(shards.max(1)).max(1), Usage::own());
    std::thread::scope(|scope| {
        let loops: Vec<_> =
            (0..shards).map(|_| scope.spawn(move || Alone::new(each).run(for_so_long))).collect();
        let (mut per_second, mut ended) = (0.0, 0);
        for one in loops {
            let (count, took) = one.join().map_err(|_| anyhow!("the core panicked"))??;
            per_second += count as f64 / took.as_secs_f64();
            ended += count;
        }
        let cpu_us = Usage::own().since(before).cpu_us as f64 / ended.max(1) as f64;
        Ok(Alike { per_second, cpu_us })
    })
}

/// A coordinator without anything around it.
struct Alone {
    coordinator: Coordinator,
    outbox: Outbox<()>,
    answers: Vec<Event>,
    concurrency: usize,
    ended: u64,
}

impl Alone {
    fn new(concurrency: usize) -> Self {
        let config =
            CoordinatorConfig { live_transactions_max: usize::MAX, ..CoordinatorConfig::default() };
        let ManagerBounds { truncate_batches_min, truncate_bytes_min, straggler_batches, .. } =
            ManagerBounds::default();
        let bounds = OutboxBounds { truncate_batches_min, truncate_bytes_min, straggler_batches };
        Self {
            coordinator: Coordinator::new(config),
            outbox: Outbox::new((1, 1), Default::default(), bounds, Mutations::default()),
            answers: Vec::new(),
            concurrency,
            ended: 0,
        }
    }

    /// How many ended, in what time.
    fn run(mut self, for_so_long: Duration) -> anyhow::Result<(u64, Duration)> {
        let plan = transfer();
        let started = Instant::now();
        while started.elapsed() < for_so_long {
            let now_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            while self.coordinator.len() < self.concurrency {
                // As a shard's are named: not by what costs more, which would lower the ceiling.
                let transaction = TransactionManager::generate_id();
                let plan = plan.clone();
                let begin = Event::Begin { transaction, fingerprint: 0, plan: Box::new(plan) };
                let step = self.coordinator.handle(now_ms, begin);
                self.take(step);
            }
            for answer in std::mem::take(&mut self.answers) {
                let step = self.coordinator.handle(now_ms, answer);
                self.take(step);
            }
            self.append();
        }
        Ok((self.ended, started.elapsed()))
    }

    fn append(&mut self) {
        while let Some(batch) = self.outbox.next_append() {
            self.outbox.receipt(Durable::up_to(batch.position));
            while let Some(out) = self.outbox.release() {
                self.let_out(out);
            }
        }
        // Nobody keeps a journal here; it is asked because a shard would ask.
        let _low_water = self.outbox.forgettable();
    }

    fn take(&mut self, step: Step) {
        if let Some(out) = self.outbox.take(step) {
            self.let_out(out);
        }
    }

    fn let_out(&mut self, out: Out<()>) {
        let Out::Effects(effects) = out else { return };
        for effect in effects {
            match effect {
                Effect::Call(call) => self.answers.push(answered(&call)),
                Effect::Ended(ended) => {
                    self.ended += 1;
                    let home = self.outbox.ended(&ended.id);
                    home.into_iter().for_each(|position| self.outbox.archived(position, 1));
                }
                _ => {} // The others only tell; nobody listens here.
            }
        }
    }
}

fn answered(call: &Call) -> Event {
    let yes = matches!(call.operation, Operation::Prepare);
    Event::Answer {
        transaction: call.transaction.clone(),
        branch: call.branch,
        operation: call.operation,
        attempt: call.attempt,
        answer: if yes { Answer::Yes(None) } else { Answer::Acknowledged },
    }
}
