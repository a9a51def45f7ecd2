//! `unanimity resolve ID BRANCH --as committed|rolled_back`: an operator's word that a branch was
//! settled without the coordinator. It is recorded with who and why, and shown for ever.

use std::process::ExitCode;

use anyhow::Context;
use unanimity_sdk::api::{ResolveRequest, SettledAs, TransactionStatus};
use unanimity_sdk::{TransactionId, check_id};

use super::{ClientArguments, Ended};
use crate::draw;

/// What `resolve` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct ResolveArguments {
    /// The transaction's id.
    id: String,
    /// The branch's name.
    branch: String,
    /// How it was settled.
    #[arg(long = "as", value_name = "HOW")]
    settled_as: Settled,
    /// Why; needed where it contradicts the decision.
    #[arg(long, default_value = "")]
    reason: String,
    /// Who says so; the user who runs this if left out.
    #[arg(long)]
    by: Option<String>,
    #[command(flatten)]
    client: ClientArguments,
}

/// How a branch was settled.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Settled {
    /// Its work is there.
    #[value(name = "committed")]
    Committed,
    /// Its work is not there, or was undone.
    #[value(name = "rolled_back")]
    RolledBack,
}

/// Gives an operator's word on a branch.
pub(crate) async fn resolve(arguments: ResolveArguments) -> Ended {
    let client = arguments.client.client()?;
    let id = TransactionId::new(&arguments.id);
    let id = id.with_context(|| format!("{:?} is no transaction id", arguments.id))?;
    check_id(&arguments.branch).with_context(|| format!("{:?} is no name", arguments.branch))?;
    let request = ResolveRequest {
        settled_as: match arguments.settled_as {
            Settled::Committed => SettledAs::Committed,
            Settled::RolledBack => SettledAs::RolledBack,
        },
        by: arguments.by.clone().unwrap_or_else(user),
        reason: arguments.reason.clone(),
    };
    let path = format!("/v1/transactions/{id}/branches/{}/resolve", arguments.branch);
    let shown: TransactionStatus =
        client.post_json(&path, &request).await.map_err(|error| arguments.client.explain(error))?;
    let text = match arguments.client.json {
        true => serde_json::to_string_pretty(&shown)?,
        false => format!("{}  {}", shown.id, draw::outcome(&shown)),
    };
    draw::print(&(text + "\n"))?;
    Ok(ExitCode::SUCCESS)
}

/// Who runs this, as the system says.
fn user() -> String {
    let names = ["USER", "LOGNAME"].into_iter().filter_map(|name| std::env::var(name).ok());
    names.into_iter().find(|name| !name.is_empty()).unwrap_or_else(|| "operator".to_owned())
}
