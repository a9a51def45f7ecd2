//! How load is put on and what is read off it: a closed loop (so many initiators, each beginning
//! its next turn when it has the answer of the last) and an open one (turns begin at a stated rate,
//! whatever the answers do). What a turn is, and what its figures mean, is the scenarios'.
//!
//! In an open loop a latency counts from the moment at which the turn was due, not from the one at
//! which it was begun: a server that stalls, or a load client that cannot keep up, must not make
//! the worst figures vanish (coordinated omission).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use anyhow::Context as _;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::time::Instant;
use unanimity::core::splitmix64;

use super::usage::Usage;

/// What one turn came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// It did what it should.
    Done,
    /// The coordinator was too busy and said so: the turn is begun anew after a pause.
    Refused,
    /// Anything else.
    Failed,
}

/// How load is put on.
#[derive(Clone, Copy, Debug)]
pub(super) enum Load {
    /// So many initiators.
    Closed(usize),
    /// So many turns a second, of which at most so many are under way at once.
    Open { per_second: f64, in_flight_max: usize },
}

/// How long a measurement takes: first to warm up, then to count.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub(super) warm_up: Duration,
    pub(super) counted: Duration,
}

impl Window {
    /// Counts for so long, after half a second or less.
    pub(super) fn of(counted: Duration) -> Self {
        Self { warm_up: (counted / 4).min(Duration::from_millis(500)), counted }
    }
}

/// Latencies in milliseconds.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct Latency {
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
    pub(super) p999_ms: f64,
    pub(super) max_ms: f64,
}

/// What came of a measurement.
#[derive(Clone, Debug, Default)]
pub(super) struct Measured {
    /// Turns done within the window, a second.
    pub(super) per_second: f64,
    /// Turns done within the window.
    pub(super) done: u64,
    /// Turns done at all, warm-up and end included.
    pub(super) done_in_all: u64,
    /// Turns refused within the window.
    pub(super) refused: u64,
    /// Turns that failed, at any time.
    pub(super) failed: u64,
    /// Of those done within the window.
    pub(super) latency: Latency,
    /// How long each of those took.
    latencies_us: Vec<u32>,
    /// How long it took altogether.
    counted: Duration,
    /// How late a turn of an open loop was begun at most, within the window: the load client itself
    /// may not keep up.
    pub(super) late_ms: f64,
    /// What was used within the window.
    pub(super) usage: Usage,
}

/// How long an initiator that was refused waits before it begins anew.
pub(super) const REFUSED_PAUSE: Duration = Duration::from_millis(5);

/// What the workers write into.
pub(super) struct Tally {
    from: Instant,
    /// When no more turns are to be begun.
    pub(super) until: Instant,
    latencies_us: Mutex<Vec<u32>>,
    done_in_all: AtomicU64,
    refused: AtomicU64,
    failed: AtomicU64,
    late_us: AtomicU64,
}

impl Tally {
    fn new(window: Window) -> Self {
        let from = Instant::now() + window.warm_up;
        let zero = || AtomicU64::new(0);
        let (done_in_all, refused, failed, late_us) = (zero(), zero(), zero(), zero());
        let (until, latencies_us) = (from + window.counted, Mutex::new(Vec::new()));
        Self { from, until, latencies_us, done_in_all, refused, failed, late_us }
    }

    fn counts(&self, now: Instant) -> bool {
        now >= self.from && now < self.until
    }

    /// Notes a turn that has ended now, in what its worker has noted.
    pub(super) fn note(&self, notes: &mut Notes, turn: Turn, since: Instant, now: Instant) {
        let counts = self.counts(now);
        match turn {
            Turn::Done => {
                notes.done_in_all += 1;
                let took_us = now.saturating_duration_since(since).as_micros();
                let took_us = counts.then(|| u32::try_from(took_us).unwrap_or(u32::MAX));
                notes.latencies_us.extend(took_us);
            }
            Turn::Refused if counts => drop(self.refused.fetch_add(1, Ordering::Relaxed)),
            Turn::Refused => {}
            Turn::Failed => drop(self.failed.fetch_add(1, Ordering::Relaxed)),
        }
    }

    /// Notes a turn that was due then and has no worker.
    fn note_from(&self, turn: Turn, due: Instant, now: Instant) {
        let mut notes = Notes::default();
        self.note(&mut notes, turn, due, now);
        self.add(&notes);
    }

    /// Notes that what was due then is begun only now.
    fn note_late(&self, due: Instant, now: Instant) {
        if self.counts(now) {
            let late = now.saturating_duration_since(due).as_micros();
            self.late_us.fetch_max(u64::try_from(late).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
    }

    /// Takes in what a worker has noted.
    pub(super) fn add(&self, notes: &Notes) {
        self.done_in_all.fetch_add(notes.done_in_all, Ordering::Relaxed);
        if !notes.latencies_us.is_empty() {
            let mut all = self.latencies_us.lock().unwrap_or_else(PoisonError::into_inner);
            all.extend_from_slice(&notes.latencies_us);
        }
    }
}

/// What one worker has noted. It is taken in when the worker ends: what all wrote with each turn
/// would be carried from core to core.
#[derive(Debug, Default)]
pub(super) struct Notes {
    done_in_all: u64,
    /// Of those that count.
    latencies_us: Vec<u32>,
}

/// Puts load on for the time of the window, and reads `usage` at both of its ends.
pub(super) async fn measure<F, T>(
    load: Load,
    window: Window,
    usage: impl AsyncFn() -> Usage,
    turn: F,
) -> anyhow::Result<Measured>
where
    F: Fn() -> T + Clone + Send + Sync + 'static,
    T: Future<Output = Turn> + Send + 'static,
{
    let start = |tally: &Arc<Tally>| match load {
        Load::Closed(initiators) => {
            let mut workers = tokio::task::JoinSet::new();
            closed(&mut workers, &Handle::current(), initiators, tally, &turn);
            workers
        }
        Load::Open { per_second, in_flight_max } => {
            let (tally, turn) = (Arc::clone(tally), turn.clone());
            let mut workers = tokio::task::JoinSet::new();
            workers.spawn(async move { open(per_second, in_flight_max, &tally, &turn).await });
            workers
        }
    };
    measure_by(start, window, usage).await
}

/// As [`measure`], where the workers are the caller's own: each ends of itself, soon after the
/// tally's `until`.
pub(super) async fn measure_by(
    start: impl FnOnce(&Arc<Tally>) -> tokio::task::JoinSet<()>,
    window: Window,
    usage: impl AsyncFn() -> Usage,
) -> anyhow::Result<Measured> {
    let tally = Arc::new(Tally::new(window));
    let workers = start(&tally);
    tokio::time::sleep_until(tally.from).await;
    let before = usage().await;
    tokio::time::sleep_until(tally.until).await;
    let used = usage().await.since(before);
    joined(workers).await?;
    Ok(result(&tally, window, used))
}

async fn joined(mut workers: tokio::task::JoinSet<()>) -> anyhow::Result<()> {
    while let Some(worker) = workers.join_next().await {
        worker.context("a worker of the bench")?;
    }
    Ok(())
}

/// Starts so many initiators in a runtime, each of which begins its next turn when it has the
/// answer of the last.
pub(super) fn closed<F, T>(
    workers: &mut tokio::task::JoinSet<()>,
    runtime: &Handle,
    initiators: usize,
    tally: &Arc<Tally>,
    turn: &F,
) where
    F: Fn() -> T + Clone + Send + Sync + 'static,
    T: Future<Output = Turn> + Send + 'static,
{
    for _ in 0..initiators {
        let (turn, tally) = (turn.clone(), Arc::clone(tally));
        let work = async move {
            let mut notes = Notes::default();
            let mut since = Instant::now();
            let mut now = since;
            while now < tally.until {
                let came_to = turn().await;
                now = Instant::now();
                tally.note(&mut notes, came_to, since, now);
                if came_to == Turn::Refused {
                    // Its latency goes on counting from the first try.
                    tokio::time::sleep(REFUSED_PAUSE).await;
                    now = Instant::now();
                } else {
                    since = now;
                }
            }
            tally.add(&notes);
        };
        workers.spawn_on(work, runtime);
    }
}

/// Begins turns when they are due, with the gaps of a Poisson process, which is how independent
/// initiators come.
async fn open<F, T>(per_second: f64, in_flight_max: usize, tally: &Arc<Tally>, turn: &F)
where
    F: Fn() -> T + Clone + Send + Sync + 'static,
    T: Future<Output = Turn> + Send + 'static,
{
    let room = Arc::new(tokio::sync::Semaphore::new(in_flight_max));
    let mut now = Instant::now();
    let (mut due, mut state) = (now, 1);
    while due < tally.until {
        state = splitmix64(state);
        // 53 bits: what a float holds exactly. Never 0, of which there is no logarithm.
        let drawn = ((state >> 11) + 1) as f64 / (1_u64 << 53) as f64;
        due += Duration::from_secs_f64(-drawn.ln() / per_second);
        // Time is asked for only where it may not have come.
        if due > now {
            now = Instant::now();
            if due > now {
                tokio::time::sleep_until(due).await;
                now = Instant::now();
            }
            tally.note_late(due, now);
        }
        if room.available_permits() == 0 {
            drop(room.acquire().await); // Until one is free; it is taken below, if at all.
            now = Instant::now();
            tally.note_late(due, now);
        }
        let mut turn = Box::pin(turn());
        // One that is over at once, as a refusal may be, is worth neither a permit nor a task, nor
        // a look at the clock.
        if let Poll::Ready(came_to) = turn.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            tally.note_from(came_to, due, now);
            continue;
        }
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        let tally = Arc::clone(tally);
        tokio::spawn(async move {
            let came_to = turn.await;
            tally.note_from(came_to, due, Instant::now());
            drop(permit);
        });
    }
    // All permits are back when every turn has ended.
    let all = u32::try_from(in_flight_max).unwrap_or(u32::MAX);
    drop(room.acquire_many(all).await);
}

fn result(tally: &Tally, window: Window, usage: Usage) -> Measured {
    let mut all = tally.latencies_us.lock().unwrap_or_else(PoisonError::into_inner);
    let latencies_us = std::mem::take(&mut *all);
    let done = latencies_us.len() as u64;
    Measured {
        per_second: done as f64 / window.counted.as_secs_f64(),
        done,
        done_in_all: tally.done_in_all.load(Ordering::Relaxed),
        refused: tally.refused.load(Ordering::Relaxed),
        failed: tally.failed.load(Ordering::Relaxed),
        latency: Latency::of(&latencies_us),
        latencies_us,
        counted: window.counted,
        late_ms: tally.late_us.load(Ordering::Relaxed) as f64 / 1_000.0,
        usage,
    }
}

impl Measured {
    /// Both, as if they were one.
    pub(super) fn and(mut self, other: Self) -> Self {
        self.latencies_us.extend(other.latencies_us);
        let counted = self.counted + other.counted;
        let done = self.done + other.done;
        Self {
            per_second: done as f64 / counted.as_secs_f64(),
            done,
            done_in_all: self.done_in_all + other.done_in_all,
            refused: self.refused + other.refused,
            failed: self.failed + other.failed,
            latency: Latency::of(&self.latencies_us),
            latencies_us: self.latencies_us,
            counted,
            late_ms: self.late_ms.max(other.late_ms),
            usage: Usage { resident_kib: other.usage.resident_kib, ..self.usage + other.usage },
        }
    }

    /// Processor time for each turn that was done.
    pub(super) fn cpu_us(&self) -> f64 {
        self.usage.cpu_us as f64 / self.done.max(1) as f64
    }
}

impl Latency {
    fn of(latencies_us: &[u32]) -> Self {
        // Three digits are kept: a thousandth of a figure is less than one run differs from the
        // next.
        let Ok(mut histogram) = Histogram::<u64>::new(3) else { return Self::default() };
        for latency_us in latencies_us {
            // dropped: a histogram that cannot grow; it grows up to any u32.
            let _ = histogram.record(u64::from(*latency_us));
        }
        let at_ms = |quantile: f64| histogram.value_at_quantile(quantile) as f64 / 1_000.0;
        Self {
            p50_ms: at_ms(0.5),
            p99_ms: at_ms(0.99),
            p999_ms: at_ms(0.999),
            max_ms: histogram.max() as f64 / 1_000.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Window =
        Window { warm_up: Duration::from_millis(10), counted: Duration::from_millis(100) };

    /// So much of the virtual time.
    async fn passes(ms: u64) {
        let never = std::future::pending::<()>();
        tokio::time::timeout(Duration::from_millis(ms), never).await.unwrap_err();
    }

    /// One server that does one thing at a time, a millisecond each, and stands still once.
    async fn stalled(load: Load) -> Measured {
        let server = Arc::new(tokio::sync::Mutex::new(0_u64));
        let turn = move || {
            let server = Arc::clone(&server);
            async move {
                let mut served = server.lock().await;
                *served += 1;
                let takes_ms = if *served == 20 { 40 } else { 1 };
                passes(takes_ms).await;
                Turn::Done
            }
        };
        measure(load, SHORT, async || Usage::default(), turn).await.unwrap()
    }

    /// The clock of these tests is the runtime's own: it stands still while anything can run.
    #[tokio::test(start_paused = true)]
    async fn a_stall_shows_in_every_turn_that_was_due_meanwhile() {
        let open = stalled(Load::Open { per_second: 500.0, in_flight_max: 1_000 }).await.latency;
        // Twenty were due while it stood still: they waited for up to 40 ms.
        assert!(open.max_ms >= 39.0 && open.p99_ms >= 35.0 && open.p50_ms >= 2.0, "{open:?}");
        // A load client that has no room for more begins them late, and says by how much.
        let full = stalled(Load::Open { per_second: 500.0, in_flight_max: 1 }).await;
        assert!(full.late_ms >= 35.0 && full.latency.max_ms >= 39.0, "{full:?}");
        let wide = stalled(Load::Open { per_second: 500.0, in_flight_max: 1_000 }).await;
        assert!(wide.late_ms <= 1.0, "{wide:?}");
        // To one initiator it is one latency among many.
        let closed = stalled(Load::Closed(1)).await.latency;
        assert!(closed.max_ms >= 39.0 && closed.p50_ms <= 2.0, "{closed:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_refused_or_failed_is_not_done() {
        let turns = Arc::new(AtomicU64::new(0));
        let turn = move || {
            let number = turns.fetch_add(1, Ordering::Relaxed);
            async move {
                passes(1).await;
                [Turn::Done, Turn::Refused, Turn::Failed][(number % 3) as usize]
            }
        };
        let usage = async || Usage::default();
        let measured = measure(Load::Closed(2), SHORT, usage, turn).await.unwrap();
        assert!(measured.done > 0 && measured.refused > 0 && measured.failed > 0, "{measured:?}");
        assert!(measured.done < measured.done_in_all, "{measured:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn two_measurements_are_one() {
        let measured = async |takes_ms: u64| {
            let turn = move || async move {
                passes(takes_ms).await;
                Turn::Done
            };
            let used = async || Usage { resident_kib: takes_ms, ..Usage::default() };
            measure(Load::Closed(1), SHORT, used, turn).await.unwrap()
        };
        let (one, other) = (measured(1).await, measured(10).await);
        let (done, in_all) = (one.done + other.done, one.done_in_all + other.done_in_all);
        let both = one.and(other);
        assert_eq!((both.done, both.done_in_all), (done, in_all));
        assert_eq!(both.per_second, done as f64 / 0.2);
        let Latency { p50_ms, max_ms, .. } = both.latency;
        assert!(p50_ms == 1.0 && (10.0..10.02).contains(&max_ms), "{:?}", both.latency);
        assert_eq!(both.usage.resident_kib, 10);
    }

    #[test]
    fn percentiles_are_those_of_the_sorted_figures() {
        let latencies_us: Vec<u32> = (1..=1_000).collect();
        let latency = Latency::of(&latencies_us);
        let all = [latency.p50_ms, latency.p99_ms, latency.p999_ms, latency.max_ms];
        assert_eq!(all, [0.5, 0.99, 0.999, 1.0]);
        assert_eq!(Latency::of(&[]).max_ms, 0.0);
    }
}
