//! `unanimity show ID`: a transaction, and its timeline drawn.

use std::process::ExitCode;

use anyhow::Context;
use unanimity_sdk::TransactionId;

use super::{ClientArguments, Ended};
use crate::draw;

/// What `show` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct ShowArguments {
    /// The transaction's id.
    id: String,
    #[command(flatten)]
    client: ClientArguments,
}

/// Shows it.
pub(crate) async fn show(arguments: ShowArguments) -> Ended {
    let client = arguments.client.client()?;
    let id = TransactionId::new(&arguments.id)
        .with_context(|| format!("{:?} is no transaction id", arguments.id))?;
    let explain = |error| arguments.client.explain(error);
    let transaction = client.get(&id, None).await.map_err(explain)?;
    let timeline = client.timeline(&id).await.map_err(explain)?;
    if arguments.client.json {
        let both = serde_json::json!({ "transaction": transaction, "timeline": timeline });
        draw::print(&format!("{}\n", serde_json::to_string_pretty(&both)?))?;
    } else {
        draw::print(&draw::transaction(&transaction, &timeline))?;
    }
    Ok(ExitCode::SUCCESS)
}
