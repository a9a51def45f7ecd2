//! `unanimity audit`: the audit trail taken out of a coordinator. `export` is every transaction as
//! one line of JSON, with every event, latest first; `trace` is every event as one line, in the
//! order of time, for `unanimity verify`.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use serde::Deserialize;
use serde_json::{Value, json};
use unanimity::view::{EventView, TransactionView};
use unanimity_sdk::Client;

use super::{ClientArguments, Ended};
use crate::trail::Trail;

/// How many transactions are asked for at a time.
const PAGE: usize = 500;

/// What `audit export` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct ExportArguments {
    /// Where to write; standard output if left out. An existing file is not overwritten.
    #[arg(long)]
    output: Option<PathBuf>,
    #[command(flatten)]
    client: ClientArguments,
}

/// Exports the trail.
pub(crate) async fn export(arguments: ExportArguments) -> Ended {
    let client = arguments.client.client()?;
    let mut output = create(arguments.output.as_deref())?;
    let written = each(&client, "", |transaction| {
        let mut line = serde_json::to_vec(transaction)?;
        line.push(b'\n');
        Ok(output.write_all(&line)?)
    });
    let written = written.await.and_then(|count| Ok(output.flush().map(|()| count)?));
    let count = match written {
        Ok(count) => count,
        // As behind `| head`: nobody reads any more.
        Err(error) if is_broken_pipe(&error) => return Ok(ExitCode::SUCCESS),
        Err(error) => return Err(arguments.client.explain_any(error)),
    };
    match &arguments.output {
        Some(_) if arguments.client.json => println!("{}", json!({"written": count})),
        Some(_) => println!("{count} transactions written"),
        None => {}
    }
    Ok(ExitCode::SUCCESS)
}

fn create(output: Option<&Path>) -> anyhow::Result<Box<dyn Write>> {
    Ok(match output {
        None => Box::new(BufWriter::new(std::io::stdout().lock())),
        Some(path) => Box::new(BufWriter::new(
            File::create_new(path).with_context(|| format!("cannot create {}", path.display()))?,
        )),
    })
}

/// What `audit trace` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct TraceArguments {
    /// Where to write; standard output if left out. An existing file is not overwritten.
    #[arg(long)]
    output: Option<PathBuf>,
    /// Reads the data folder of a coordinator that is stopped, instead of asking one that runs.
    #[arg(long)]
    folder: Option<PathBuf>,
    /// Only transactions begun at or after this time, in milliseconds since the Unix epoch.
    #[arg(long)]
    begun_from_ms: Option<u64>,
    /// Only transactions begun before this time, in milliseconds since the Unix epoch.
    #[arg(long)]
    begun_until_ms: Option<u64>,
    #[command(flatten)]
    client: ClientArguments,
}

impl TraceArguments {
    fn wants(&self, view: &TransactionView) -> bool {
        let from = self.begun_from_ms.unwrap_or(0);
        let until = self.begun_until_ms.unwrap_or(u64::MAX);
        (from..until).contains(&view.begun_at_ms)
    }
}

/// Writes the trail as a trace. A folder is read in the order of time and written as it is read; a
/// running coordinator gives its latest transactions first, so that the lines wait in memory for
/// the last page.
pub(crate) async fn trace(arguments: TraceArguments) -> Ended {
    let mut trail = Trail::new(create(arguments.output.as_deref())?);
    let written = match &arguments.folder {
        Some(folder) => from_folder(folder, &arguments, &mut trail),
        None => from_coordinator(&arguments, &mut trail).await,
    };
    match written.and_then(|()| trail.finish()) {
        Ok(lines) => {
            match &arguments.output {
                Some(_) if arguments.client.json => println!("{}", json!({"written": lines})),
                Some(_) => println!("{lines} lines written"),
                None => {}
            }
            Ok(ExitCode::SUCCESS)
        }
        Err(error) if is_broken_pipe(&error) => Ok(ExitCode::SUCCESS),
        Err(error) => Err(arguments.client.explain_any(error)),
    }
}

fn from_folder(
    folder: &Path,
    arguments: &TraceArguments,
    trail: &mut Trail<Box<dyn Write>>,
) -> anyhow::Result<()> {
    let mut written = Ok(());
    let read = unanimity::read_folder(folder, |view, timeline| {
        if arguments.wants(view) {
            let passed = trail.passed(view.begun_at_ms);
            written = passed.and_then(|()| trail.take(view, &timeline.events, timeline.dropped));
        }
        if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    read.map_err(|error| {
        let code = error.code();
        anyhow::Error::from(error).context(code)
    })?;
    written
}

async fn from_coordinator(
    arguments: &TraceArguments,
    trail: &mut Trail<Box<dyn Write>>,
) -> anyhow::Result<()> {
    let bound =
        |name: &str, ms: Option<u64>| ms.map_or(String::new(), |ms| format!("&{name}={ms}"));
    let query = bound("begun_from_ms", arguments.begun_from_ms)
        + &bound("begun_until_ms", arguments.begun_until_ms);
    let client = arguments.client.client()?;
    each(&client, &query, |transaction| {
        let listed = Listed::deserialize(transaction).context("the coordinator's answer")?;
        trail.take(&listed.transaction, &listed.events, listed.events_dropped)
    })
    .await
    .map(drop)
}

/// A transaction as a page holds it.
#[derive(Deserialize)]
pub(crate) struct Listed {
    #[serde(flatten)]
    pub(crate) transaction: TransactionView,
    #[serde(default)]
    pub(crate) events: Vec<EventView>,
    #[serde(default)]
    pub(crate) events_dropped: u32,
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<std::io::Error>();
    io.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

/// Hands over every transaction with its events, page by page; says how many there were. `query` is
/// added to what is asked.
pub(crate) async fn each(
    client: &Client,
    query: &str,
    mut take: impl FnMut(&Value) -> anyhow::Result<()>,
) -> anyhow::Result<usize> {
    let (mut count, mut cursor) = (0, None::<String>);
    loop {
        let from = cursor.map_or(String::new(), |cursor| format!("&cursor={cursor}"));
        let path = format!("/v1/transactions?events=true&limit={PAGE}{query}{from}");
        let page: Value = client.get_json(&path).await?;
        let transactions = page["transactions"].as_array().context("a page holds transactions")?;
        for transaction in transactions {
            take(transaction)?;
        }
        count += transactions.len();
        let Some(next) = page["next_cursor"].as_str() else { return Ok(count) };
        cursor = Some(next.to_owned());
    }
}
