//! `unanimity list`: transactions, latest first.

use std::process::ExitCode;

use unanimity_sdk::api::TransactionList;

use super::{ClientArguments, Ended};
use crate::draw;

/// What `list` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct ListArguments {
    /// Only those that are open, preparing, executing, settling, committing, rolling_back,
    /// set_aside or ended.
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
    let text = if arguments.client.json {
        format!("{}\n", serde_json::to_string_pretty(&page)?)
    } else {
        in_words(&page)
    };
    draw::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn in_words(page: &TransactionList) -> String {
    let mut text = String::new();
    if page.transactions.is_empty() {
        text.push_str("no transactions\n");
    }
    for transaction in &page.transactions {
        let names: Vec<&str> =
            transaction.branches.iter().map(|branch| branch.name.as_str()).collect();
        let took = transaction.ended_at_ms.map_or("open".to_owned(), |ended_at_ms| {
            // Over a restart the clock may have been set back.
            format!("{} ms", ended_at_ms.saturating_sub(transaction.begun_at_ms))
        });
        let (id, outcome) = (&transaction.id, draw::outcome(transaction));
        text.push_str(&format!("{id}  {took:>9}  [{}]  {outcome}\n", names.join(", ")));
    }
    if let Some(cursor) = &page.next_cursor {
        let more = draw::paint(draw::FAINT, format!("more: --cursor {cursor}"));
        text.push_str(&more);
        text.push('\n');
    }
    text
}
