//! `unanimity run FILE.json`: a transaction from a file; the exit status is its outcome.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use unanimity::TransactionManager;
use unanimity_sdk::api::{Outcome, TransactionRequest, TransactionStatus};
use unanimity_sdk::{Client, ClientError, TransactionId};

use super::{ClientArguments, Ended, complain};
use crate::draw;
use crate::problem::parse_json;

/// The deepest nesting of JSON in a file.
const JSON_DEPTH_MAX: usize = 64;

/// What `run` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct RunArguments {
    /// The file, in the form of POST /v1/transactions, but not interactive; `-` reads from standard
    /// input.
    file: PathBuf,
    #[command(flatten)]
    client: ClientArguments,
}

/// Nothing was begun.
const NOT_BEGUN: u8 = 2;
/// What came of it is not known.
const NOT_KNOWN: u8 = 3;

/// Runs it. Exit status 1 says that it was rolled back, and nothing else does.
pub(crate) async fn run(arguments: RunArguments) -> Ended {
    let (request, id, client) = match prepare(&arguments) {
        Ok(prepared) => prepared,
        Err(error) => {
            complain(&error);
            return Ok(ExitCode::from(NOT_BEGUN));
        }
    };
    let transaction = match client.begin(&request).await {
        Ok(transaction) => transaction,
        Err(error) if refused(&error) => {
            complain(&error.into());
            return Ok(ExitCode::from(NOT_BEGUN));
        }
        Err(error) => {
            let context = format!("what became of it is not known; ask: unanimity show {id}");
            complain(&arguments.client.explain(error).context(context));
            return Ok(ExitCode::from(NOT_KNOWN));
        }
    };
    if let Err(error) = tell(&arguments, &transaction, &client).await {
        // That the outcome cannot be shown does not change it.
        complain(&error);
    }
    Ok(match transaction.outcome {
        Some(Outcome::Commit) => ExitCode::SUCCESS,
        Some(Outcome::Rollback) => ExitCode::FAILURE,
        None => ExitCode::from(NOT_KNOWN),
    })
}

/// Reads the file. A transaction without an id is given one here, so that whoever gets no answer
/// can still ask for it.
fn prepare(arguments: &RunArguments) -> anyhow::Result<(TransactionRequest, String, Client)> {
    let name = arguments.file.display();
    let bytes = read(&arguments.file).with_context(|| format!("cannot read {name}"))?;
    let mut request: TransactionRequest =
        parse_json(&bytes, JSON_DEPTH_MAX).map_err(|problem| match &problem.field {
            Some(field) => anyhow::anyhow!("{name}: {field}: {problem}"),
            None => anyhow::anyhow!("{name}: {problem}"),
        })?;
    if request.interactive {
        anyhow::bail!(
            "{name}: interactive: a file does no work between the beginning and the commit, and \
             nothing was begun; leave `interactive` out, and the branches are committed together, \
             or begin the transaction from the program that does the work (docs/concepts.md)"
        );
    }
    let own = || TransactionManager::generate_id().to_string();
    let id = request.id.get_or_insert_with(own).clone();
    Ok((request, id, arguments.client.client()?))
}

/// Whether an error says that nothing was begun.
fn refused(error: &ClientError) -> bool {
    match error {
        ClientError::Unusable(_) => true,
        ClientError::Refused { status, .. } => (400..500).contains(status),
        ClientError::NoAnswer(_) | ClientError::Unreadable(_) => false,
    }
}

async fn tell(
    arguments: &RunArguments,
    transaction: &TransactionStatus,
    client: &Client,
) -> anyhow::Result<()> {
    if arguments.client.json {
        return draw::print(&format!("{}\n", serde_json::to_string_pretty(transaction)?));
    }
    let id = TransactionId::new(&transaction.id).context("the coordinator's answer")?;
    let timeline = client.timeline(&id).await?;
    draw::print(&draw::transaction(transaction, &timeline))
}

fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if path.as_os_str() == "-" {
        std::io::stdin().read_to_end(&mut bytes)?;
    } else {
        std::fs::File::open(path)?.read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}
