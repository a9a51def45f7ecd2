//! Reads transactions' states for as long as a run lasts: ids that are still to come, that are live
//! and that have ended, each a few times. What the readers are told goes into the run's trace; that
//! nobody is told less than somebody was told before is the judge's to see.

use std::time::Duration;

use tokio::sync::watch;
use unanimity::core::splitmix64;
use unanimity_judge::{Event, Line};
use unanimity_sdk::api::TransactionStatus;
use unanimity_sdk::{Client, ClientError, TransactionId};

use super::load::{Progress, id_of};
use super::now_ms;

/// How often one transaction is read in a row.
const READS: usize = 3;
/// Between two reads: the run is to be watched, not slowed down.
const PAUSE: Duration = Duration::from_millis(2);
/// How far behind the newest transaction those are that are read.
const BEHIND: u64 = 64;
/// And how far ahead: nobody knows these yet.
const AHEAD: u64 = 32;

/// Reads until the run is over. A coordinator that is down tells nothing, and is asked again.
pub(crate) async fn all(
    client: &Client,
    seed: u64,
    progress: &Progress,
    mut ended: watch::Receiver<bool>,
) -> Vec<Line> {
    let (mut reads, mut state) = (Vec::new(), seed);
    loop {
        state = splitmix64(state);
        let newest = progress.started() as u64 + AHEAD;
        let number = newest.saturating_sub(state % (BEHIND + AHEAD));
        let name = id_of(seed, usize::try_from(number).unwrap_or(0));
        let Ok(id) = TransactionId::new(&name) else { return reads };
        for _ in 0..READS {
            let since = now_ms();
            let answer = client.get(&id, None).await;
            reads.extend(read(&name, since, answer));
            tokio::select! {
                _ = ended.wait_for(|ended| *ended) => return reads,
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }
}

/// What a reader was told; nothing, if there was no answer.
fn read(name: &str, since: u64, answer: Result<TransactionStatus, ClientError>) -> Option<Line> {
    let (unknown, outcome) = match answer {
        Ok(status) => (false, status.outcome),
        Err(error) if error.code() == Some("transaction_unknown") => (true, None),
        Err(_) => return None,
    };
    let outcome = outcome.map(super::outcome);
    let event = Event::Read { transaction: name.into(), since, unknown, outcome };
    Some(Line { at: now_ms(), event })
}
