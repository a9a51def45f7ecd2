//! `unanimity list`: transactions, latest first.

use std::process::ExitCode;

use unanimity_sdk::api::TransactionList;

use super::{ClientArguments, Ended};
use crate::draw;

/// What `list` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct ListArguments {
    /// Only those that are preparing, executing, committing, rolling_back or ended.
    #[arg(long)]
    state: Option<String>,
    /// Only those with the outcome commit or rollback.
    #[arg(long)]
    outcome: Option<String>,
    /// Only those with a branch at exactly this participant.
    #[arg(long)]
    participant: Option<String>,
    /// Only those begun at or after this time, in milliseconds since the Unix epoch.
    #[arg(long)]
    begun_from_ms: Option<u64>,
    /// Only those begun before this time, in milliseconds since the Unix epoch.
    #[arg(long)]
    begun_until_ms: Option<u64>,
    /// At most this many.
    #[arg(long, default_value_t = 20)]
    limit: usize,
    /// Where to go on, as the page before said.
    #[arg(long)]
    cursor: Option<String>,
    #[command(flatten)]
    client: ClientArguments,
}

impl ListArguments {
    fn query(&self) -> String {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query.append_pair("limit", &self.limit.to_string());
        let texts = [
            ("state", &self.state),
            ("outcome", &self.outcome),
            ("participant", &self.participant),
            ("cursor", &self.cursor),
        ];
        for (name, text) in texts {
            if let Some(text) = text {
                query.append_pair(name, text);
            }
        }
        let times =
            [("begun_from_ms", self.begun_from_ms), ("begun_until_ms", self.begun_until_ms)];
        for (name, time) in times {
            if let Some(time) = time {
                query.append_pair(name, &time.to_string());
            }
        }
        query.finish()
    }
}

/// Lists them.
pub(crate) async fn list(arguments: ListArguments) -> Ended {
    let client = arguments.client.client()?;
    let page: TransactionList =
        client.list(&arguments.query()).await.map_err(|error| arguments.client.explain(error))?;
    if arguments.client.json {
        anstream::println!("{}", serde_json::to_string_pretty(&page)?);
        return Ok(ExitCode::SUCCESS);
    }
    if page.transactions.is_empty() {
        anstream::println!("no transactions");
    }
    for transaction in &page.transactions {
        let names: Vec<&str> =
            transaction.branches.iter().map(|branch| branch.name.as_str()).collect();
        let took = transaction.ended_at_ms.map_or("open".to_owned(), |ended_at_ms| {
            format!("{} ms", ended_at_ms - transaction.begun_at_ms)
        });
        anstream::println!(
            "{}  {:>9}  [{}]  {}",
            transaction.id,
            took,
            names.join(", "),
            draw::outcome(transaction)
        );
    }
    if let Some(cursor) = page.next_cursor {
        anstream::println!("{}", draw::paint(draw::FAINT, format!("more: --cursor {cursor}")));
    }
    Ok(ExitCode::SUCCESS)
}
