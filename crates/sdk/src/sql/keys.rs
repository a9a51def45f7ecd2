//! Decides that calls for one branch come one after the other within this process, before they
//! take a connection. The database would put them in a row as well; but a duplicate that waits
//! there holds a connection, and several that wait for one row of InnoDB can deadlock when it goes
//! away.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::OwnedMutexGuard;
use unanimity_core::TransactionId;

type Key = (TransactionId, Arc<str>);
type Row = Arc<tokio::sync::Mutex<()>>;

/// The branches that are being worked for.
#[derive(Debug, Default)]
pub(crate) struct Keys(Mutex<HashMap<Key, Row>>);

/// The right to work for a branch, until it is dropped.
pub(crate) struct Turn {
    keys: Arc<Keys>,
    key: Key,
    /// Taken out before the row is looked at for the last time.
    guard: Option<OwnedMutexGuard<()>>,
}

impl Keys {
    /// Waits for the branch to be free.
    pub(crate) async fn turn(
        self: &Arc<Self>,
        transaction: &TransactionId,
        branch: &Arc<str>,
    ) -> Turn {
        let key = (transaction.clone(), Arc::clone(branch));
        let row = Arc::clone(self.rows().entry(key.clone()).or_default());
        let guard = Some(row.lock_owned().await);
        Turn { keys: Arc::clone(self), key, guard }
    }

    fn rows(&self) -> MutexGuard<'_, HashMap<Key, Row>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut rows = self.keys.rows();
        drop(self.guard.take());
        // Whoever waits holds the row too; the last one takes it away.
        if rows.get(&self.key).is_some_and(|row| Arc::strong_count(row) == 1) {
            rows.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_branch_one_turn_and_nothing_remains() {
        let keys: Arc<Keys> = Arc::default();
        let transaction = TransactionId::new("t").unwrap();
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let first = keys.turn(&transaction, &a).await;
        let other = keys.turn(&transaction, &b).await;
        let second = keys.turn(&transaction, &a);
        tokio::pin!(second);
        assert!(futures_poll(&mut second).await.is_none());
        drop(first);
        let second = second.await;
        assert_eq!(keys.rows().len(), 2);
        drop((second, other));
        assert!(keys.rows().is_empty());
    }

    /// Polls once.
    async fn futures_poll<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
        std::future::poll_fn(|context| {
            std::task::Poll::Ready(match std::pin::Pin::new(&mut *future).poll(context) {
                std::task::Poll::Ready(output) => Some(output),
                std::task::Poll::Pending => None,
            })
        })
        .await
    }
}
