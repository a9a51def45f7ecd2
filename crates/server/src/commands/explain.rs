//! `unanimity explain ID`, `retry ID`, `rollback ID` and `stuck`: what is going on, and what a
//! person may do about it.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::Context;
use serde_json::Value;
use unanimity::core::Stage;
use unanimity_sdk::TransactionId;
use unanimity_sdk::api::{TransactionList, TransactionStatus};

use super::{ClientArguments, Ended};
use crate::draw::{BAD, FAINT, HEADING, WAITING, outcome, paint};

/// Prints a line; that nobody reads any more is no mistake.
macro_rules! say {
    ($($text:tt)*) => {
        crate::draw::print(&(format!($($text)*) + "\n"))?
    };
}

/// How many transactions are asked for at a time.
const PAGE: usize = 500;

/// What the commands about one transaction take.
#[derive(Debug, clap::Args)]
pub(crate) struct OneArguments {
    /// The transaction's id.
    id: String,
    #[command(flatten)]
    client: ClientArguments,
}

/// What `stuck` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct StuckArguments {
    /// Try every branch that is shown again now.
    #[arg(long)]
    retry: bool,
    /// Only those at exactly this participant.
    #[arg(long)]
    participant: Option<String>,
    #[command(flatten)]
    client: ClientArguments,
}

fn id(text: &str) -> anyhow::Result<TransactionId> {
    TransactionId::new(text).with_context(|| format!("{text:?} is no transaction id"))
}

/// Says in words what is going on.
pub(crate) async fn explain(arguments: OneArguments) -> Ended {
    let client = arguments.client.client()?;
    let path = format!("/v1/transactions/{}/explain", id(&arguments.id)?);
    let answer: Value =
        client.get_json(&path).await.map_err(|error| arguments.client.explain(error))?;
    if arguments.client.json {
        say!("{}", serde_json::to_string_pretty(&answer)?);
        return Ok(ExitCode::SUCCESS);
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    say!("{}  {}", paint(HEADING, text(&answer["id"])), text(&answer["summary"]));
    say!("  next: {}{}", text(&answer["next"]), when(&answer["next_at_ms"]));
    for one in answer["awaited"].as_array().into_iter().flatten() {
        let asked = one["attempts"].as_u64().unwrap_or(0);
        say!(
            "  {} ({}): {}{}",
            paint(HEADING, text(&one["branch"])),
            paint(FAINT, text(&one["participant"])),
            text(&one["next"]),
            when(&one["next_at_ms"])
        );
        let since =
            one["since_ms"].as_u64().map_or(String::new(), |ms| format!(", first {}", ago(ms)));
        say!("    {} asked {asked} times{since}", text(&one["operation"]));
        if let Some(error) = one["last_error"].as_str() {
            say!("    last error: {}", paint(WAITING, error));
        }
    }
    for choice in answer["choices"].as_array().into_iter().flatten() {
        say!("  you may: {}", text(&choice["command"]));
        say!("    {}", paint(FAINT, text(&choice["effect"])));
    }
    Ok(ExitCode::SUCCESS)
}

fn now_ms() -> u64 {
    unanimity_sdk::now_ms()
}

fn when(at_ms: &Value) -> String {
    at_ms
        .as_u64()
        .map_or(String::new(), |at_ms| format!(" (in {} ms)", at_ms.saturating_sub(now_ms())))
}

fn ago(at_ms: u64) -> String {
    format!("{} ms ago", now_ms().saturating_sub(at_ms))
}

/// Tries a transaction's waiting branches again now, or takes it up again if it is set aside.
pub(crate) async fn retry(arguments: OneArguments) -> Ended {
    let client = arguments.client.client()?;
    let before = client.get(&id(&arguments.id)?, None).await;
    let before = before.map_err(|error| arguments.client.explain(error))?;
    if before.set_aside.is_some() && !arguments.client.json {
        say!("{}", paint(FAINT, "it was set aside; that the coordinator broke on it is forgotten"));
    }
    act(arguments, "retry").await
}

/// Rolls a transaction back that is not decided.
pub(crate) async fn rollback(arguments: OneArguments) -> Ended {
    act(arguments, "rollback").await
}

async fn act(arguments: OneArguments, action: &str) -> Ended {
    let client = arguments.client.client()?;
    let path = format!("/v1/transactions/{}/{action}", id(&arguments.id)?);
    let shown: TransactionStatus = client
        .post_json(&path, &serde_json::json!({}))
        .await
        .map_err(|error| arguments.client.explain(error))?;
    if arguments.client.json {
        say!("{}", serde_json::to_string_pretty(&shown)?);
    } else {
        say!("{}  {}", shown.id, outcome(&shown));
    }
    Ok(ExitCode::SUCCESS)
}

/// Parked branches, by participant and cause.
type Groups = BTreeMap<(String, String), Vec<String>>;

/// Shows parked branches, grouped by participant and cause.
pub(crate) async fn stuck(arguments: StuckArguments) -> Ended {
    let client = arguments.client.client()?;
    let mut groups = Groups::new();
    for stage in Stage::ALL.into_iter().filter(|stage| stage.may_park()) {
        for transaction in all_at(stage, &client, &arguments.client).await? {
            group(&mut groups, &transaction, arguments.participant.as_deref());
        }
    }
    // The coordinator breaks on these: they are shown, and never tried again with the others.
    let aside = all_at(Stage::SetAside, &client, &arguments.client).await?;
    if arguments.retry {
        for transaction in groups.values().flatten() {
            let path = format!("/v1/transactions/{transaction}/retry");
            client.post_json::<Value>(&path, &serde_json::json!({})).await?;
        }
    }
    if arguments.client.json {
        let rows: Vec<Value> = groups
            .iter()
            .map(|((participant, error), transactions)| {
                serde_json::json!({
                    "participant": participant, "error": error, "transactions": transactions,
                    "retried": arguments.retry,
                })
            })
            .chain(aside.iter().map(
                |one| serde_json::json!({"set_aside": one.set_aside, "transactions": [one.id]}),
            ))
            .collect();
        say!("{}", serde_json::to_string_pretty(&rows)?);
        return Ok(ExitCode::SUCCESS);
    }
    if groups.is_empty() && aside.is_empty() {
        say!("nothing is parked");
    }
    for one in &aside {
        say!("{}  {}", paint(HEADING, &one.id), outcome(one));
        say!("  {}", paint(FAINT, format!("see: unanimity explain {}", one.id)));
    }
    for ((participant, error), transactions) in &groups {
        let count = paint(BAD, format!("{} parked", transactions.len()));
        say!("{count} at {}: {error}", paint(HEADING, participant));
        let shown: Vec<&str> = transactions.iter().take(5).map(String::as_str).collect();
        let more = if transactions.len() > shown.len() { ", ..." } else { "" };
        say!("  {}{more}", shown.join(", "));
        let hint =
            format!("try them all again: unanimity stuck --retry --participant {participant}");
        let done = if arguments.retry { "tried again now".to_owned() } else { hint };
        say!("  {}", paint(FAINT, done));
    }
    Ok(ExitCode::SUCCESS)
}

/// Every transaction that stands there.
async fn all_at(
    stage: Stage,
    client: &unanimity_sdk::Client,
    arguments: &ClientArguments,
) -> anyhow::Result<Vec<TransactionStatus>> {
    let (mut found, mut cursor) = (Vec::new(), String::new());
    loop {
        let query = format!("state={}&limit={PAGE}{cursor}", stage.as_str());
        let page: TransactionList =
            client.list(&query).await.map_err(|error| arguments.explain(error))?;
        found.extend(page.transactions);
        let Some(next) = page.next_cursor else { return Ok(found) };
        cursor = format!("&cursor={next}");
    }
}

fn group(groups: &mut Groups, transaction: &TransactionStatus, participant: Option<&str>) {
    for branch in transaction.branches.iter().filter(|branch| branch.parked) {
        if participant.is_some_and(|only| only != branch.participant) {
            continue;
        }
        let error = branch.last_error.clone().unwrap_or_default();
        let key = (branch.participant.clone(), error);
        groups.entry(key).or_default().push(transaction.id.clone());
    }
}
