//! Decides when a participant asks the coordinator what became of a branch in doubt: at once for
//! what a process before this one left behind, later for what stays in doubt longer than it
//! should. The answer is applied through the guard, exactly like a call from the coordinator.
//!
//! It changes nothing about safety: the coordinator delivers every decision by itself. It frees the
//! service's locks sooner, and settles branches of a transaction that the coordinator has forgotten
//! (presumed abort). Ask only the coordinator that the transactions came from: one that has never
//! heard of them answers "rolled back".

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use unanimity_core::{Operation, RetryPolicy, TransactionId, splitmix64};

use crate::api::Decision;
use crate::client::{Client, ClientError};
use crate::participant::{CallError, Doubting, InDoubt, Request, now_ms};

/// When an inquiry asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InquiryOptions {
    /// How long a branch may be in doubt before it is asked about, in milliseconds. Branches that
    /// are there when the inquiry starts are asked about at once.
    pub in_doubt_after_ms: u64,
    /// The first delay after a "pending" or after no answer, in milliseconds. It doubles, with
    /// jitter.
    pub delay_ms: u64,
    /// What that delay grows to, in milliseconds.
    pub delay_max_ms: u64,
    /// Spreads the jitter; give every participant another one.
    pub seed: u64,
}

impl Default for InquiryOptions {
    fn default() -> Self {
        Self {
            in_doubt_after_ms: 30_000,
            delay_ms: 100,
            delay_max_ms: 30_000,
            seed: u64::from(std::process::id()),
        }
    }
}

/// What an inquiry has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InquiryProgress {
    /// Questions asked.
    pub asked: u64,
    /// Questions that got "pending" or no answer.
    pub unanswered: u64,
    /// Branches committed or rolled back on an answer.
    pub settled: u64,
    /// Rounds completed.
    pub rounds: u64,
}

/// A running inquiry. It ends when this is dropped.
#[derive(Debug)]
pub struct Inquiry {
    task: JoinHandle<()>,
    progress: watch::Receiver<InquiryProgress>,
}

impl Inquiry {
    /// What it has done so far, to be read or waited on.
    #[must_use]
    pub fn progress(&self) -> watch::Receiver<InquiryProgress> {
        self.progress.clone()
    }
}

impl Drop for Inquiry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Starts an inquiry on the current tokio runtime.
///
/// # Panics
/// If there is no runtime.
#[must_use = "an inquiry ends when it is dropped"]
pub fn spawn(participant: Arc<dyn Doubting>, client: Client, options: InquiryOptions) -> Inquiry {
    let (sender, progress) = watch::channel(InquiryProgress::default());
    let asker = Asker {
        participant,
        client,
        retry: RetryPolicy {
            delay_ms: options.delay_ms,
            delay_max_ms: options.delay_max_ms,
            park_after_attempts: u16::MAX,
            parked_delay_ms: options.delay_max_ms,
        },
        started: false,
        options,
        retries: BTreeMap::new(),
        draws: 0,
        progress: sender,
    };
    Inquiry { task: tokio::spawn(asker.run()), progress }
}

/// When a transaction is asked about again.
struct Retry {
    failures: u16,
    due: Instant,
}

/// What came of one question.
enum Asked {
    Settled,
    Pending,
    /// The coordinator gave no answer: no use in asking it about others now.
    Unreachable,
}

struct Asker {
    participant: Arc<dyn Doubting>,
    client: Client,
    retry: RetryPolicy,
    options: InquiryOptions,
    /// Whether the branches that the last process left behind are in `retries`.
    started: bool,
    /// Transactions to be asked about at a set time: left behind, or asked about in vain.
    retries: BTreeMap<TransactionId, Retry>,
    draws: u64,
    progress: watch::Sender<InquiryProgress>,
}

impl Asker {
    async fn run(mut self) {
        let mut unreachable = 0_u16;
        loop {
            let reached = self.round().await;
            unreachable = if reached { 0 } else { unreachable.saturating_add(1) };
            self.progress.send_modify(|progress| progress.rounds += 1);
            let next = match unreachable {
                0 => self.next_due(),
                failures => Instant::now() + self.delay(failures),
            };
            sleep_until(next).await;
        }
    }

    /// Asks about everything that is due; false if the coordinator could not be reached.
    async fn round(&mut self) -> bool {
        let branches = match self.participant.in_doubt().await {
            Ok(branches) => by_transaction(branches),
            Err(error) => {
                tracing::error!(%error, "the branches in doubt cannot be read");
                return true;
            }
        };
        if !std::mem::replace(&mut self.started, true) {
            // Whatever is found by the first look was most likely left behind by the last process.
            // No clock is asked: it may have been set back meanwhile.
            let due = Instant::now();
            let left = branches.keys().map(|id| (id.clone(), Retry { failures: 0, due }));
            self.retries.extend(left);
        }
        self.retries.retain(|transaction, _| branches.contains_key(transaction));
        for (transaction, branches) in branches {
            if !self.is_due(&transaction, &branches) {
                continue;
            }
            match self.ask(&transaction, &branches).await {
                Asked::Settled => {
                    self.retries.remove(&transaction);
                }
                Asked::Pending => self.postpone(transaction),
                Asked::Unreachable => return false,
            }
        }
        true
    }

    fn is_due(&self, transaction: &TransactionId, branches: &[InDoubt]) -> bool {
        if let Some(retry) = self.retries.get(transaction) {
            return retry.due <= Instant::now();
        }
        let too_old = now_ms().saturating_sub(self.options.in_doubt_after_ms);
        branches.iter().any(|branch| branch.since_ms <= too_old)
    }

    async fn ask(&self, transaction: &TransactionId, branches: &[InDoubt]) -> Asked {
        self.progress.send_modify(|progress| progress.asked += 1);
        let asked = match self.client.decision(transaction).await.map(|answer| answer.decision) {
            Ok(Decision::Commit) => self.tell(branches, Operation::Commit).await,
            Ok(Decision::Rollback) => self.tell(branches, Operation::Rollback).await,
            Ok(Decision::Pending) => Asked::Pending,
            Err(error) => {
                tracing::warn!(%transaction, %error, "the coordinator does not tell the decision");
                // A refusal of this one question says nothing about the next.
                let silent = matches!(error, ClientError::NoAnswer(_));
                if silent { Asked::Unreachable } else { Asked::Pending }
            }
        };
        if !matches!(asked, Asked::Settled) {
            self.progress.send_modify(|progress| progress.unanswered += 1);
        }
        asked
    }

    /// Tells the participant's guard, as the coordinator would.
    async fn tell(&self, branches: &[InDoubt], operation: Operation) -> Asked {
        let mut all = Asked::Settled;
        for InDoubt { transaction, branch, .. } in branches {
            let request = Request {
                transaction: transaction.clone(),
                branch: Arc::clone(branch),
                operation,
                attempt: 0,
                payload: Bytes::new(),
            };
            match self.participant.call(request).await {
                Ok(_) => {
                    let operation = operation.as_str();
                    tracing::info!(%transaction, %branch, operation, "settled");
                    self.progress.send_modify(|progress| progress.settled += 1);
                }
                // The coordinator was faster, with another word than it gave us: never to be
                // hidden.
                Err(CallError::Contradiction(contradiction)) => {
                    let code = contradiction.code();
                    tracing::error!(%transaction, %branch, code, "the decision contradicts");
                }
                Err(CallError::Failed(error) | CallError::Busy(error)) => {
                    tracing::warn!(%transaction, %branch, %error, "failed; tried again later");
                    all = Asked::Pending;
                }
            }
        }
        all
    }

    fn postpone(&mut self, transaction: TransactionId) {
        let failures = self.retries.get(&transaction).map_or(0, |retry| retry.failures);
        let failures = failures.saturating_add(1);
        let due = Instant::now() + self.delay(failures);
        self.retries.insert(transaction, Retry { failures, due });
    }

    fn delay(&mut self, failures: u16) -> Duration {
        self.draws += 1;
        let random = splitmix64(self.options.seed.wrapping_add(self.draws));
        Duration::from_millis(self.retry.delay_after(failures, random))
    }

    /// The next retry, or the next look for branches that have been in doubt for too long.
    fn next_due(&self) -> Instant {
        let look = Duration::from_millis((self.options.in_doubt_after_ms / 2).max(100));
        let look = Instant::now() + look;
        self.retries.values().map(|retry| retry.due).fold(look, Instant::min)
    }
}

fn by_transaction(branches: Vec<InDoubt>) -> BTreeMap<TransactionId, Vec<InDoubt>> {
    let mut grouped = BTreeMap::<_, Vec<_>>::new();
    for branch in branches {
        grouped.entry(branch.transaction.clone()).or_default().push(branch);
    }
    grouped
}
