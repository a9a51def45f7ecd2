//! `unanimity bench`: what transactions cost on this machine, beside what limits them there in the
//! same run. Each scenario is a file of its own; so are how load is put on (`measure`), what a line
//! holds (`row`) and how lines are shown. This file decides which scenarios there are, in which
//! order they run, and where their figures go.

mod ceilings;
mod contention;
mod embedded;
mod http;
mod measure;
mod row;
mod table;
mod usage;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use super::Ended;
use embedded::Embedded;
pub(crate) use http::{ParticipantArguments, participant};
use measure::{Load, Window};
use row::{Report, Row};

/// A scenario by its name on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Scenario {
    /// The manager within this process, over participants that agree at once.
    Embedded,
    /// Load client, coordinator and two participants as processes, over HTTP/1.1.
    Http,
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
    /// How many initiators at once, one measurement each. With `--contention` only the first
    /// counts, and it is 64 if left out.
    #[arg(long, value_delimiter = ',')]
    concurrency: Vec<usize>,
    /// Let so many transactions begin a second, whatever the answers do, instead of one when the
    /// last one's outcome is there; one measurement each.
    #[arg(long, value_delimiter = ',', conflicts_with = "concurrency")]
    rate: Vec<f64>,
    /// How many shards the coordinator has.
    #[arg(long, default_value_t = 1)]
    shards: u16,
    /// Leave the ceilings out.
    #[arg(long)]
    no_ceilings: bool,
    /// Measure transfers that get in each other's way instead: by locking accounts (the older wait,
    /// or the younger), optimistically, and by reservation.
    #[arg(long)]
    contention: bool,
    /// How many accounts each bank has, with `--contention`. One in a hundred is hot.
    #[arg(long, default_value_t = 1_000)]
    accounts: u32,
    /// How many runs for each line, of which the median counts, with `--contention`.
    #[arg(long, default_value_t = 1)]
    rounds: u32,
    /// The shares in percent of transfers between hot accounts, with `--contention`: one run each.
    #[arg(long, value_delimiter = ',', default_value = "0,20,50,80,95")]
    hot_percent: Vec<u64>,
    /// Where the files of the coordinators go; a folder for temporary files if left out.
    #[arg(long)]
    folder: Option<std::path::PathBuf>,
    /// Answer in JSON.
    #[arg(long)]
    json: bool,
}

/// The most transactions that an open loop has under way at once.
const IN_FLIGHT_MAX: usize = 50_000;

impl BenchArguments {
    /// The loads to measure, unless the command line names some.
    fn loads(&self, unless_named: &[usize]) -> Vec<Load> {
        if !self.rate.is_empty() {
            let open = |rate: &f64| Load::Open { per_second: *rate, in_flight_max: IN_FLIGHT_MAX };
            return self.rate.iter().map(open).collect();
        }
        let named = if self.concurrency.is_empty() { unless_named } else { &self.concurrency };
        named.iter().map(|initiators| Load::Closed(*initiators)).collect()
    }

    fn window(&self) -> Window {
        Window::of(Duration::from_secs(self.seconds))
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
    let ended = if arguments.contention || arguments.wants(Scenario::Contention) {
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
    if arguments.wants(Scenario::Embedded) {
        for load in arguments.loads(&[1, 64, 1_024, 4_096]) {
            let (shards, window) = (arguments.shards, arguments.window());
            let run = Embedded { shards, load, window, ceilings: !arguments.no_ceilings };
            show(embedded::embedded(&run, folder).await?);
        }
    }
    if arguments.wants(Scenario::Http) {
        http::http(arguments, folder, &mut show).await?;
    }
    if arguments.json {
        anstream::println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        anstream::println!("{}", table::closing(&report));
    }
    Ok(ExitCode::SUCCESS)
}
