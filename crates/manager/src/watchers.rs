//! Who waits for what of a transaction, and when they are answered. Nobody is told more than what
//! is durable: a watcher whose transaction has already gone further than the effect that reaches it
//! waits for the effect that tells of that.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::oneshot;
use unanimity_core::{Reason, Transaction, TransactionId};

use crate::error::BeginError;

/// Until when a caller waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wait {
    /// Until the beginning is durable.
    Accepted,
    /// Until the decision is durable.
    Outcome,
    /// Until every participant has acknowledged, or the limit for the whole has passed.
    Completed,
}

/// A transaction as it was at one moment, for a reply.
pub(crate) type Shown = Arc<Transaction>;

/// What a request to begin came to.
pub(crate) enum Begun {
    /// It is known here, and what was waited for has come.
    Shown { transaction: Shown, existed: bool },
    /// The history holds an ended transaction of this id.
    InHistory(TransactionId),
}

/// Somebody who waits.
pub(crate) struct Watcher {
    pub(crate) wait: Wait,
    pub(crate) existed: bool,
    pub(crate) reply: WatcherReply,
}

/// How somebody who waits is answered.
pub(crate) enum WatcherReply {
    Begin(oneshot::Sender<Result<Begun, BeginError>>),
    Get(oneshot::Sender<Option<Shown>>),
}

impl Watcher {
    fn is_gone(&self) -> bool {
        match &self.reply {
            WatcherReply::Begin(reply) => reply.is_closed(),
            WatcherReply::Get(reply) => reply.is_closed(),
        }
    }

    pub(crate) fn answer(self, transaction: Shown) {
        // dropped: a caller that has gone away wants no answer; the transaction goes on.
        let _ = match self.reply {
            WatcherReply::Begin(reply) => {
                let shown = Begun::Shown { transaction, existed: self.existed };
                reply.send(Ok(shown)).map_err(drop)
            }
            WatcherReply::Get(reply) => reply.send(Some(transaction)).map_err(drop),
        };
    }
}

/// Everybody who waits, by transaction.
#[derive(Default)]
pub(crate) struct Watchers {
    by_id: HashMap<TransactionId, Vec<Watcher>>,
}

impl Watchers {
    pub(crate) fn add(&mut self, id: &TransactionId, watcher: Watcher) {
        let watchers = self.by_id.entry(id.clone()).or_default();
        watchers.retain(|watcher| !watcher.is_gone());
        watchers.push(watcher);
    }

    /// It is durable that the transaction has come as far as `told`: answers those who wait for no
    /// more. `live` is how it stands now; if that is further, or it has ended, then the effect that
    /// tells of it is on its way and answers them:
    /// 1. A beginning is being written; before it is, the time to prepare runs out.
    /// 2. The beginning is durable. Whoever waits for it must not hear "rolled back": that record
    ///    is still to be written.
    /// 3. The decision is durable, and answers them too.
    pub(crate) fn notify(&mut self, id: &TransactionId, told: Wait, live: Option<&Transaction>) {
        let Some(live) = live.filter(|live| reached(live) <= told) else { return };
        let Some(watchers) = self.by_id.remove(id) else { return };
        let (ready, waiting): (Vec<_>, Vec<_>) =
            watchers.into_iter().partition(|watcher| watcher.wait <= told);
        if !waiting.is_empty() {
            self.by_id.insert(id.clone(), waiting);
        }
        if ready.is_empty() {
            return;
        }
        let shown = Arc::new(live.clone());
        for watcher in ready {
            watcher.answer(Arc::clone(&shown));
        }
    }

    /// It is durable that the transaction has ended: answers everybody.
    pub(crate) fn ended(&mut self, transaction: &Shown) {
        for watcher in self.by_id.remove(&transaction.id).into_iter().flatten() {
            watcher.answer(Arc::clone(transaction));
        }
    }
}

/// How far a live transaction has come. One that rolls back because the limit for the whole has
/// passed is at the same time as far as anybody waits for.
pub(crate) fn reached(transaction: &Transaction) -> Wait {
    match &transaction.decision {
        _ if transaction.overdue => Wait::Completed,
        // The outcome may take long to come, and whoever waits should know that it is not known.
        None if transaction.settling.is_some() => Wait::Outcome,
        None => Wait::Accepted,
        Some(decision) => told_by(&decision.reason),
    }
}

/// How far a decision for this reason brings whoever waits.
pub(crate) const fn told_by(reason: &Reason) -> Wait {
    match reason {
        Reason::Timeout => Wait::Completed,
        Reason::AllYes
        | Reason::No { .. }
        | Reason::PrepareTimeout
        | Reason::ExecuteTimeout
        | Reason::Restarted
        | Reason::Requested(_)
        | Reason::Abandoned
        | Reason::Settled => Wait::Outcome,
    }
}
