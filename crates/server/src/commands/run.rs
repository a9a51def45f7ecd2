//! `unanimity run FILE.json`: a transaction from a file; the exit status is its outcome.

use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use unanimity_sdk::TransactionId;
use unanimity_sdk::api::{Outcome, TransactionRequest};

use super::{ClientArguments, Ended};
use crate::draw;
use crate::problem::parse_json;

/// The deepest nesting of JSON in a file.
const JSON_DEPTH_MAX: usize = 64;

/// What `run` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct RunArguments {
    /// The file, in the form of POST /v1/transactions; `-` reads from standard input.
    file: PathBuf,
    #[command(flatten)]
    client: ClientArguments,
}

/// Runs it.
pub(crate) async fn run(arguments: RunArguments) -> Ended {
    let file = arguments.file.display();
    let bytes = read(&arguments.file).with_context(|| format!("cannot read {file}"))?;
    let request: TransactionRequest = parse_json(&bytes, JSON_DEPTH_MAX)
        .map_err(|problem| anyhow::anyhow!("{file}: {problem}"))?;
    let client = arguments.client.client()?;
    let transaction =
        client.begin(&request).await.map_err(|error| arguments.client.explain(error))?;
    if arguments.client.json {
        anstream::println!("{}", serde_json::to_string_pretty(&transaction)?);
    } else {
        let id = TransactionId::new(&transaction.id).context("the coordinator's answer")?;
        let timeline = client.timeline(&id).await?;
        anstream::print!("{}", draw::transaction(&transaction, &timeline));
    }
    Ok(match transaction.outcome {
        Some(Outcome::Commit) => ExitCode::SUCCESS,
        Some(Outcome::Rollback) => ExitCode::FAILURE,
        None => ExitCode::from(3),
    })
}

fn read(path: &std::path::Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if path.as_os_str() == "-" {
        std::io::stdin().read_to_end(&mut bytes)?;
    } else {
        std::fs::File::open(path)?.read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}
