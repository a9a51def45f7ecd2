//! Asks, for as long as a run lasts, every live transaction what it waits for: each must name a
//! next action with a time, or a call that is under way.

use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;
use unanimity_sdk::Client;
use unanimity_sdk::api::TransactionList;

use super::live_stages;

/// The most transactions that are looked at in one round, of each stage.
const PAGE: usize = 200;
/// Between two rounds: the run is to be watched, not slowed down.
const PAUSE: Duration = Duration::from_millis(20);

/// What came of asking.
#[derive(Debug, Default)]
pub struct Explained {
    /// How many explanations were looked at.
    pub asked: usize,
    /// Transactions that did not know what they wait for.
    pub wrong: Vec<String>,
}

/// Asks until the run is over. A coordinator that is down answers nothing, and is asked again.
pub(crate) async fn all(client: &Client, mut ended: watch::Receiver<bool>) -> Explained {
    let mut explained = Explained::default();
    loop {
        for stage in live_stages() {
            round(client, stage, &mut explained).await;
        }
        tokio::select! {
            _ = ended.wait_for(|ended| *ended) => return explained,
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

async fn round(client: &Client, stage: &str, explained: &mut Explained) {
    let listed = client.list(&format!("state={stage}&limit={PAGE}")).await;
    let page = listed.unwrap_or(TransactionList { transactions: Vec::new(), next_cursor: None });
    for transaction in page.transactions {
        let path = format!("/v1/transactions/{}/explain", transaction.id);
        let Ok(answer) = client.get_json::<Value>(&path).await else { continue };
        explained.asked += 1;
        if !has_next_action(&answer) {
            explained.wrong.push(format!("{} does not know what it waits for", transaction.id));
        }
    }
}

/// A deadline, a call under way, a planned retry; or nobody is awaited, and the end is written.
fn has_next_action(answer: &Value) -> bool {
    let awaited = answer["awaited"].as_array().map_or(&[][..], Vec::as_slice);
    let moves = |one: &Value| one["in_flight"] == true || one["next_at_ms"].is_u64();
    let told = answer["next"].as_str().is_some_and(|next| !next.is_empty());
    let has_action = answer["next_at_ms"].is_u64() || awaited.iter().any(moves);
    told && (has_action || awaited.is_empty())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn waiting_for_nothing_is_no_next_action() {
        let check = |expected: bool, answer: Value| {
            assert_eq!(has_next_action(&answer), expected, "{answer}");
        };
        check(true, json!({"next": "a deadline", "next_at_ms": 5, "awaited": []}));
        check(true, json!({"next": "x", "awaited": [{"in_flight": true}]}));
        check(true, json!({"next": "x", "awaited": [{}, {"next_at_ms": 7}]}));
        check(true, json!({"next": "it ends", "awaited": []}));
        check(false, json!({"next": "", "next_at_ms": 5, "awaited": []}));
        check(false, json!({"next": "x", "awaited": [{"in_flight": false}]}));
    }
}
