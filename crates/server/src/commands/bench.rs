//! `unanimity bench`: what transactions cost on this machine, beside what limits them there in the
//! same run. Each scenario is a file of its own; so are how load is put on (`measure`), what a line
//! holds (`row`) and how lines are shown. This file decides which scenarios there are, in which
//! order they run, and where their figures go.

mod bare;
mod ceilings;
mod compare;
mod contention;
mod databases;
mod deployment;
mod embedded;
mod frames;
mod growth;
mod http;
mod latency;
mod measure;
mod overload;
mod page;
mod row;
mod stream;
mod svg;
mod table;
mod together;
mod usage;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;

use super::Ended;
use compare::changes;
use deployment::{Own, Sizes};
pub(crate) use deployment::{ParticipantArguments, participant};
use measure::{Load, Window};
use row::{Report, Row};

/// A scenario by its name on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Scenario {
    /// The manager within this process, over participants that agree at once.
    Embedded,
    /// Load client, coordinator and two participants as processes, over HTTP/1.1.
    Http,
    /// The same over the participants' streams and the initiators' stream.
    Stream,
    /// One transaction at a time, and what of its time is not the machine's.
    Latency,
    /// From 2 to 64 branches.
    Wide,
    /// Each kind of branch, and each way to end.
    Styles,
    /// Three times as many transactions as can be committed.
    Overload,
    /// What a participant that is slow, silent or dead costs transactions over others.
    Beside,
    /// What a transaction costs beside a million live ones, and with a million in the history.
    Growth,
    /// Transfers that get in each other's way (the same as `--contention`).
    Contention,
    /// All but contention.
    All,
}

/// What `bench` takes.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct BenchArguments {
    /// What to measure; `http` if left out.
    #[arg(value_enum)]
    scenarios: Vec<Scenario>,
    /// How long each measurement runs, in seconds.
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// How many initiators at once, one measurement each. With `--contention` or `--databases`
    /// only the first counts, and it is 64 if left out.
    #[arg(long, value_delimiter = ',')]
    concurrency: Vec<usize>,
    /// Let so many transactions begin a second, whatever the answers do, instead of one when the
    /// last one's outcome is there; one measurement each.
    #[arg(long, value_delimiter = ',', conflicts_with = "concurrency")]
    rate: Vec<f64>,
    /// How many shards the coordinator has.
    #[arg(long, default_value_t = 1)]
    shards: u16,
    /// How many threads run the tasks of each process: of the load client, of the coordinator, of
    /// each participant. They share the machine: half as many as it has cores if left out.
    #[arg(long)]
    worker_threads: Option<usize>,
    /// Leave the ceilings out.
    #[arg(long)]
    no_ceilings: bool,
    /// Measure transfers that get in each other's way instead: by locking accounts (the older wait,
    /// or the younger), optimistically, and by reservation.
    #[arg(long)]
    contention: bool,
    /// Measure transfers between two PostgreSQL databases instead: plain and not atomic, and in the
    /// ways that make them so.
    #[arg(long, conflicts_with = "contention")]
    databases: bool,
    /// How many accounts each bank has, with `--contention`. One in a hundred is hot.
    #[arg(long, default_value_t = 1_000)]
    accounts: u32,
    /// How many runs for each line, of which the median counts, with `--contention`.
    #[arg(long, default_value_t = 1)]
    rounds: u32,
    /// The shares in percent of transfers between hot accounts, with `--contention`: one run each.
    #[arg(long, value_delimiter = ',', default_value = "0,20,50,80,95")]
    hot_percent: Vec<u64>,
    /// Measure this coordinator, with transactions over the participants that --participant names,
    /// instead of processes started here. Only for `http`.
    #[arg(long, value_name = "URL", requires = "participant")]
    coordinator: Option<String>,
    /// A participant of your own, once for each branch. It is asked to prepare and to commit.
    #[arg(long, value_name = "URL", requires = "coordinator")]
    participant: Vec<String>,
    /// What every branch is given, with --coordinator: JSON that your participants understand.
    #[arg(long, value_name = "JSON", requires = "coordinator")]
    payload: Option<String>,
    /// The token of your coordinator, if it has one set.
    #[arg(long, env = "UNANIMITY_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// A smoke test: less than a second for each line, and fewer lines. It fails if anything was
    /// lost; its figures mean nothing.
    #[arg(long)]
    short: bool,
    /// Let *growth* go to ten million in the history.
    #[arg(long, conflicts_with = "short")]
    long: bool,
    #[command(flatten)]
    case: growth::Case,
    /// Where the files of the coordinators go; a folder for temporary files if left out.
    #[arg(long)]
    folder: Option<PathBuf>,
    /// Compare with the report in this file, if there is one, and put this run's there.
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Write a page with charts into this file.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// End with the table in Markdown.
    #[arg(long)]
    markdown: bool,
    /// Answer in JSON.
    #[arg(long)]
    json: bool,
}

/// How long a measurement of the smoke test takes.
const SHORT: Duration = Duration::from_millis(400);

/// The most transactions that an open loop has under way at once.
const IN_FLIGHT_MAX: usize = 50_000;

impl BenchArguments {
    /// How large the processes are that it starts.
    fn sizes(&self) -> Sizes {
        Sizes { shards: self.shards, worker_threads: self.worker_threads() }
    }

    /// How many threads run the tasks of a process.
    pub(super) fn worker_threads(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        self.worker_threads.unwrap_or_else(|| cores() / 2).max(1)
    }

    /// The loads to measure, unless the command line names some.
    fn loads(&self, unless_named: &[usize]) -> Vec<Load> {
        if !self.rate.is_empty() {
            let open = |rate: &f64| Load::Open { per_second: *rate, in_flight_max: IN_FLIGHT_MAX };
            return self.rate.iter().map(open).collect();
        }
        let named = if self.concurrency.is_empty() { unless_named } else { &self.concurrency };
        named.iter().map(|initiators| Load::Closed(*initiators)).collect()
    }

    /// Whether the command line says nothing of loads.
    const fn leaves_loads_open(&self) -> bool {
        self.rate.is_empty() && self.concurrency.is_empty()
    }

    /// Whether to let transactions arrive as well, at shares of the rate that was the highest: only
    /// where the command line leaves the loads open.
    fn arrivals(&self, peak_per_second: f64) -> Vec<Load> {
        if self.short || !self.leaves_loads_open() {
            return Vec::new();
        }
        let at = |share: f64| Load::Open {
            per_second: (share * peak_per_second).max(1.0),
            in_flight_max: IN_FLIGHT_MAX,
        };
        [0.25, 0.5, 0.75, 0.9].map(at).to_vec()
    }

    fn window(&self) -> Window {
        let counted = Duration::from_secs(self.seconds);
        Window::of(if self.short { SHORT } else { counted })
    }

    /// The user's own deployment, if the command line names one.
    fn own(&self) -> Option<Own> {
        let (token, participants) = (self.token.clone(), self.participant.clone());
        let coordinator = self.coordinator.clone()?;
        Some(Own { coordinator, token, participants })
    }

    fn wants(&self, scenario: Scenario) -> bool {
        let named = match self.scenarios.as_slice() {
            [] => &[Scenario::Http],
            named => named,
        };
        named.contains(&scenario)
            || (named.contains(&Scenario::All) && scenario != Scenario::Contention)
    }
}

/// Runs the bench.
pub(crate) async fn bench(arguments: BenchArguments) -> Ended {
    let parent = arguments.folder.clone().unwrap_or_else(std::env::temp_dir);
    let folder = parent.join(format!("unanimity-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let ended = if arguments.databases {
        databases::databases(&arguments, &folder).await
    } else if arguments.contention || arguments.wants(Scenario::Contention) {
        contention::contention(&arguments, &folder).await
    } else {
        scenarios(&arguments, &folder).await
    };
    // dropped: a folder that is gone already needs no removing.
    let _ = std::fs::remove_dir_all(&folder);
    ended
}

async fn scenarios(arguments: &BenchArguments, folder: &Path) -> Ended {
    let mut report = Report::new();
    let mut show = |row: Row| {
        if !arguments.json {
            if report.rows.is_empty() {
                anstream::println!("{}", table::heading());
            }
            anstream::println!("{}", table::line(&row));
        }
        report.rows.push(row);
    };
    run_all(arguments, folder, &mut show).await?;
    conclude(arguments, &report)?;
    Ok(ExitCode::SUCCESS)
}

async fn run_all(
    arguments: &BenchArguments,
    folder: &Path,
    show: &mut impl FnMut(Row),
) -> anyhow::Result<()> {
    if arguments.wants(Scenario::Embedded) {
        embedded::all(arguments, folder, show).await?;
    }
    if arguments.wants(Scenario::Http) {
        http::http(arguments, arguments.own(), folder, show).await?;
    }
    if arguments.wants(Scenario::Stream) {
        stream::stream(arguments, folder, show).await?;
    }
    if arguments.wants(Scenario::Latency) {
        show(latency::latency(arguments, folder).await?);
    }
    if arguments.wants(Scenario::Wide) {
        http::wide(arguments, folder, show).await?;
    }
    if arguments.wants(Scenario::Styles) {
        http::styles(arguments, folder, show).await?;
    }
    if arguments.wants(Scenario::Overload) {
        overload::overload(arguments, folder, show).await?;
    }
    if arguments.wants(Scenario::Beside) {
        overload::beside(arguments, folder, show).await?;
    }
    if arguments.wants(Scenario::Growth) {
        growth::growth(arguments, folder, show).await?;
    }
    Ok(())
}

/// Compares, writes what the command line asks for, and says the last word.
fn conclude(arguments: &BenchArguments, report: &Report) -> anyhow::Result<()> {
    let before = arguments.save.as_deref().and_then(Report::read);
    let changes = before.as_ref().map(|before| changes(before, report)).unwrap_or_default();
    if let Some(path) = &arguments.html {
        write(path, &page::page(report, &changes))?;
    }
    if let Some(path) = &arguments.save {
        write(path, &format!("{}\n", serde_json::to_string_pretty(report)?))?;
    }
    if arguments.json {
        anstream::println!("{}", serde_json::to_string_pretty(report)?);
        return Ok(());
    }
    anstream::println!("{}", table::closing(report));
    if let Some(before) = &before {
        anstream::println!("\n{}", compare::told(before, &changes));
    }
    if arguments.markdown {
        anstream::println!("\n{}", table::markdown(report));
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
