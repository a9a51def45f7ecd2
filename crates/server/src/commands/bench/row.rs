//! What one line of the bench holds, as it is printed, kept and compared.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::measure::{Latency, Load, Measured};

/// What the same machine reached in the same run without all or some of Unanimity.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Ceiling {
    /// Of what.
    pub(super) name: String,
    /// In transactions a second.
    pub(super) per_second: f64,
    /// Its processor time for each transaction, where it was measured: of this machine's figures
    /// the one that what else it does disturbs least.
    #[serde(default)]
    pub(super) cpu_us: f64,
}

impl Ceiling {
    /// One of which only the rate is known.
    pub(super) fn new(name: impl Into<String>, per_second: f64) -> Self {
        Self { name: name.into(), per_second, cpu_us: 0.0 }
    }
}

/// The ceiling that is the highest rate of the same run.
pub(super) const PEAK: &str = "peak";
/// The ceiling that is what was committed where no more arrived than that.
pub(super) const AS_MANY: &str = "what is committed of as many as the peak";

/// What one transaction alone waits for, and how much of its time is beyond that.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Beyond {
    /// A bare round trip.
    pub(super) round_trip_ms: f64,
    /// Two of them at once, to two participants, as prepares go; 0 where it was not measured.
    #[serde(default)]
    pub(super) side_by_side_ms: f64,
    /// An append of one record, with its sync.
    pub(super) sync_ms: f64,
    /// The median time of a transaction over two round trips and two syncs.
    pub(super) ratio: f64,
    /// The median time of the same requests and syncs through the same libraries with nothing
    /// behind them; 0 where it was not measured.
    #[serde(default)]
    pub(super) bare_ms: f64,
}

impl Beyond {
    /// Of a transaction that took so long: beside a round trip, two side by side, a sync, and the
    /// same path with nothing behind it.
    pub(super) fn new(transaction_ms: f64, waited: [f64; 4]) -> Self {
        let [round_trip_ms, side_by_side_ms, sync_ms, bare_ms] = waited;
        let waited_ms = 2.0 * (round_trip_ms + sync_ms);
        let ratio = if waited_ms > 0.0 { transaction_ms / waited_ms } else { 0.0 };
        Self { round_trip_ms, side_by_side_ms, sync_ms, ratio, bare_ms }
    }

    /// How many times as long a transaction of that time takes as what it waits for, with the
    /// prepares as they go.
    pub(super) fn ratio_side_by_side(&self, transaction_ms: f64) -> Option<f64> {
        let waited_ms = self.round_trip_ms + self.side_by_side_ms + 2.0 * self.sync_ms;
        (self.side_by_side_ms > 0.0).then(|| transaction_ms / waited_ms)
    }
}

/// One line.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Row {
    /// Which scenario.
    pub(super) scenario: String,
    /// What sets it apart within its scenario, besides the load.
    pub(super) case: String,
    /// How many initiators, in a closed loop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) initiators: Option<usize>,
    /// How many were to begin a second, in an open loop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) arrivals_per_second: Option<f64>,
    /// How many transactions had the outcome that they should have, a second.
    pub(super) per_second: f64,
    /// Until the outcome was known.
    #[serde(flatten)]
    pub(super) latency: Latency,
    /// How many beginnings were refused with a request to come later.
    #[serde(default)]
    pub(super) refused: u64,
    /// How late the load client began one at most, in an open loop: what it could not keep up with
    /// did not arrive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) late_ms: Option<f64>,
    /// Processor time of all processes, for each transaction.
    #[serde(default)]
    pub(super) cpu_us: f64,
    /// What the disk was handed, for each transaction.
    #[serde(default)]
    pub(super) written_bytes: f64,
    /// Appends to the journal, each with a sync, for each transaction.
    #[serde(default)]
    pub(super) syncs: f64,
    /// The coordinator's resident memory at the end of the load.
    #[serde(default)]
    pub(super) resident_kib: u64,
    /// The coordinator's resident memory before any load.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) idle_kib: Option<u64>,
    /// How long it took after the load until everything had ended and was in the history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) drained_ms: Option<f64>,
    /// Which share of the time the journals' threads were appending.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) journal_busy: Option<f64>,
    /// Which share of all cores' time all processes used, where that shows whether it was full.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) cores_busy: Option<f64>,
    /// How many other transactions were live meanwhile, where that is what varies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) live: Option<u64>,
    /// How much memory each of those takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) bytes_per_live: Option<f64>,
    /// How long recovery took: until everything was read, and until something new had its outcome.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) recovery_ms: Option<(f64, f64)>,
    /// What one transaction alone waits for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) beyond: Option<Beyond>,
    /// What limits it.
    #[serde(default)]
    pub(super) ceilings: Vec<Ceiling>,
}

impl Row {
    /// What was measured under a load.
    pub(super) fn new(scenario: &str, load: Load, measured: &Measured) -> Self {
        let each = |amount: u64| amount as f64 / measured.done.max(1) as f64;
        let (initiators, arrivals_per_second) = match load {
            Load::Closed(initiators) => (Some(initiators), None),
            Load::Open { per_second, .. } => (None, Some(per_second)),
        };
        Self {
            scenario: scenario.to_owned(),
            initiators,
            arrivals_per_second,
            per_second: measured.per_second,
            latency: measured.latency,
            refused: measured.refused,
            late_ms: arrivals_per_second.map(|_| measured.late_ms),
            cpu_us: each(measured.usage.cpu_us),
            written_bytes: each(measured.usage.written_bytes),
            syncs: each(measured.usage.appends),
            resident_kib: measured.usage.resident_kib,
            ..Self::default()
        }
    }

    /// The nearest of what limits it, and how much of that it reaches.
    pub(super) fn nearest(&self) -> Option<(&Ceiling, f64)> {
        let lower = |one: &&Ceiling, other: &&Ceiling| one.per_second.total_cmp(&other.per_second);
        // As many arriving are something to compare with, and no limit.
        let limits = self.ceilings.iter().filter(|one| one.name != AS_MANY);
        let nearest = limits.min_by(lower)?;
        (nearest.per_second > 0.0).then(|| (nearest, self.per_second / nearest.per_second))
    }

    /// How much it reaches of the ceiling of that name.
    pub(super) fn share_of(&self, name: &str) -> Option<f64> {
        let ceiling = self.ceilings.iter().find(|one| one.name == name)?;
        (ceiling.per_second > 0.0).then(|| self.per_second / ceiling.per_second)
    }

    /// The load, in words.
    pub(super) fn load(&self) -> String {
        match (self.initiators, self.arrivals_per_second) {
            (Some(initiators), _) => format!("{initiators} at once"),
            (None, Some(rate)) => format!("{rate:.0}/s arriving"),
            (None, None) => String::new(),
        }
    }
}

/// A whole run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Report {
    /// The program's version.
    pub(super) version: String,
    /// Of which commit the program was built, if whoever ran it said so.
    #[serde(default)]
    pub(super) commit: String,
    /// The machine, in words.
    pub(super) machine: String,
    /// How many cores all processes share.
    pub(super) cores: usize,
    /// When it began, in seconds since the Unix epoch.
    pub(super) begun_at_s: u64,
    /// Its lines.
    pub(super) rows: Vec<Row>,
}

impl Report {
    /// What an earlier run has left in a file; `None` if it cannot be read.
    pub(super) fn read(path: &Path) -> Option<Self> {
        serde_json::from_str(&std::fs::read_to_string(path).ok()?).ok()
    }

    /// One without lines yet.
    pub(super) fn new() -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: std::env::var("BENCH_COMMIT").unwrap_or_default(),
            machine: machine(),
            cores: cores(),
            begun_at_s: unanimity_sdk::now_ms() / 1_000,
            rows: Vec::new(),
        }
    }
}

/// How many cores there are for all processes; 0 where the system does not tell.
pub(super) fn cores() -> usize {
    std::thread::available_parallelism().map_or(0, usize::from)
}

/// The processor and the memory, where the system tells.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let (processor, memory) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
    let model = processor.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let model = model.map_or("an unknown processor", |(_, name)| name.trim());
    let kib = memory.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = kib.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    format!("{model}, {:.0} GiB of memory", kib.unwrap_or(0) as f64 / f64::from(1 << 20))
}
