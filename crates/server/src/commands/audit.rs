//! `unanimity audit export`: every transaction as one line of JSON, with every event, latest first.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use serde_json::Value;
use unanimity_sdk::Client;

use super::{ClientArguments, Ended};

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
    let mut output: Box<dyn Write> = match &arguments.output {
        None => Box::new(std::io::stdout().lock()),
        Some(path) => Box::new(
            std::fs::File::create_new(path)
                .with_context(|| format!("cannot create {}", path.display()))?,
        ),
    };
    let written = each(&client, |transaction| {
        let mut line = serde_json::to_vec(transaction)?;
        line.push(b'\n');
        Ok(output.write_all(&line)?)
    });
    let count = match written.await {
        Ok(count) => count,
        // As behind `| head`: nobody reads any more.
        Err(error) if is_broken_pipe(&error) => return Ok(ExitCode::SUCCESS),
        Err(error) => return Err(arguments.client.explain_any(error)),
    };
    output.flush()?;
    match &arguments.output {
        Some(_) if arguments.client.json => println!("{}", serde_json::json!({"written": count})),
        Some(_) => println!("{count} transactions written"),
        None => {}
    }
    Ok(ExitCode::SUCCESS)
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<std::io::Error>();
    io.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

/// Hands over every transaction with its events, page by page; says how many there were.
pub(crate) async fn each(
    client: &Client,
    mut take: impl FnMut(&Value) -> anyhow::Result<()>,
) -> anyhow::Result<usize> {
    let (mut count, mut cursor) = (0, None::<String>);
    loop {
        let from = cursor.map_or(String::new(), |cursor| format!("&cursor={cursor}"));
        let path = format!("/v1/transactions?events=true&limit={PAGE}{from}");
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
