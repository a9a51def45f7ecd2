//! Decides when the guard forgets a branch: when it is settled, has not changed for long, and the
//! coordinator says that its transaction has ended, or knows of none.
//!
//! What makes this safe, and where it ends:
//! 1. A branch that is prepared is never forgotten, however old it is.
//! 2. A transaction that has ended sends no more calls: what was called for it was answered. So a
//!    row of it can be needed only by a call that left long ago and is still under way: a duplicate
//!    in a proxy or a queue. One that arrives after its row has gone is taken for a new one, and
//!    works. The retention is how long such a call may be under way at most; nothing but that time
//!    protects from it.
//! 3. The same holds for local work that an initiator finishes long after it was given up.
//! 4. Only the coordinator that the transactions came from can be asked: another one knows of none
//!    of them, and everything old would go.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use unanimity_core::TransactionId;

use crate::api::Stage;
use crate::client::{Client, ClientError};
use crate::guard_rows::GuardEntry;
use crate::participant::{Answering, now_ms};

/// When a guard forgets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PruneOptions {
    /// How long a settled row stays at least, in milliseconds. Longer than any call can be under
    /// way; a day, unless it is given.
    pub guard_retention_ms: u64,
    /// How long it rests between two rounds, in milliseconds.
    pub interval_ms: u64,
    /// The most rows that are read at a time.
    pub rows_max: u32,
}

impl Default for PruneOptions {
    fn default() -> Self {
        Self { guard_retention_ms: 24 * 3_600_000, interval_ms: 600_000, rows_max: 500 }
    }
}

/// A participant whose guard can forget.
pub trait Prunable: Send + Sync + 'static {
    /// A page of rows that are settled and have not changed since `before_ms`, in the order of
    /// transaction and branch, behind the pair `after`.
    ///
    /// # Errors
    /// [`crate::CallError::Failed`] if the guard cannot be read.
    fn settled_before(
        &self,
        before_ms: u64,
        after: Option<(String, String)>,
        rows_max: u32,
    ) -> Answering<'_, Vec<GuardEntry>>;

    /// Removes rows, but none that has changed since it was read. Gives how many.
    ///
    /// # Errors
    /// [`crate::CallError::Failed`] if the guard cannot be written.
    fn forget(&self, rows: Vec<GuardEntry>) -> Answering<'_, u64>;
}

/// What a pruner has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PruneProgress {
    /// Transactions that the coordinator was asked about.
    pub asked: u64,
    /// Rows removed.
    pub removed: u64,
    /// Rounds completed, also those that broke off.
    pub rounds: u64,
}

/// A running pruner. It ends when this is dropped.
#[derive(Debug)]
pub struct Pruner {
    task: JoinHandle<()>,
    progress: watch::Receiver<PruneProgress>,
}

impl Pruner {
    /// What it has done so far, to be read or waited on.
    #[must_use]
    pub fn progress(&self) -> watch::Receiver<PruneProgress> {
        self.progress.clone()
    }
}

impl Drop for Pruner {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Starts a pruner on the current tokio runtime.
///
/// # Panics
/// If there is no runtime.
#[must_use = "a pruner ends when it is dropped"]
pub fn spawn(participant: Arc<dyn Prunable>, client: Client, options: PruneOptions) -> Pruner {
    let (sender, progress) = watch::channel(PruneProgress::default());
    let worker = Worker { participant, client, options, progress: sender };
    Pruner { task: tokio::spawn(worker.run()), progress }
}

struct Worker {
    participant: Arc<dyn Prunable>,
    client: Client,
    options: PruneOptions,
    progress: watch::Sender<PruneProgress>,
}

impl Worker {
    async fn run(self) {
        loop {
            if let Err(error) = self.round().await {
                tracing::warn!(%error, "the guard forgets nothing for now");
            }
            self.progress.send_modify(|progress| progress.rounds += 1);
            tokio::time::sleep(Duration::from_millis(self.options.interval_ms)).await;
        }
    }

    /// Looks at every old row once. Breaks off where the guard or the coordinator does not answer.
    async fn round(&self) -> Result<(), String> {
        let before_ms = now_ms().saturating_sub(self.options.guard_retention_ms);
        let mut after = None;
        loop {
            let page = self.participant.settled_before(before_ms, after, self.options.rows_max);
            let page = page.await.map_err(|error| error.to_string())?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some((last.transaction.to_string(), last.branch.to_string()));
            let mut over = Vec::new();
            for (transaction, rows) in by_transaction(page) {
                if self.is_over(&transaction).await? {
                    over.extend(rows);
                }
            }
            let removed = self.participant.forget(over).await.map_err(|error| error.to_string())?;
            self.progress.send_modify(|progress| progress.removed += removed);
        }
    }

    /// Whether the coordinator will never call for it again. A refusal of this one question keeps
    /// its rows; silence ends the round.
    async fn is_over(&self, transaction: &TransactionId) -> Result<bool, String> {
        self.progress.send_modify(|progress| progress.asked += 1);
        match self.client.get(transaction, None).await {
            Ok(status) => Ok(status.stage == Stage::Ended),
            Err(ClientError::NoAnswer(error)) => Err(error),
            Err(error) => {
                let unknown = error.code() == Some("transaction_unknown");
                if !unknown {
                    tracing::warn!(%transaction, %error, "the coordinator does not tell its state");
                }
                Ok(unknown)
            }
        }
    }
}

fn by_transaction(rows: Vec<GuardEntry>) -> BTreeMap<TransactionId, Vec<GuardEntry>> {
    let mut grouped = BTreeMap::<_, Vec<_>>::new();
    for row in rows {
        grouped.entry(row.transaction.clone()).or_default().push(row);
    }
    grouped
}
