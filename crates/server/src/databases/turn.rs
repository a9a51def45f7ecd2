//! Decides how a rollback meets a prepare of the same branch that is still under way in this
//! process: it stops the prepare's statements in the database and waits until the prepare is over,
//! rather than waiting for a key that the prepare holds. Only a matter of time: what is right when
//! the prepare is another process's, the branch's row decides.

use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

/// One prepare that is under way.
struct State<C> {
    /// Held by the prepare until it is over.
    over: Arc<AsyncMutex<()>>,
    stopped: AtomicBool,
    /// What stops its statements now, if anything does.
    canceller: AsyncMutex<Option<C>>,
}

/// The prepares that are under way, by gid. `C` is what stops a session's statement.
pub(super) struct Turns<C> {
    under_way: Mutex<HashMap<String, Arc<State<C>>>>,
}

impl<C> Default for Turns<C> {
    fn default() -> Self {
        Self { under_way: Mutex::default() }
    }
}

impl<C> Turns<C> {
    /// Begins a prepare. A second one of the same branch waits for the first.
    pub(super) async fn begin(&self, gid: &str) -> Turn<'_, C> {
        let state = Arc::clone(self.map().entry(gid.to_owned()).or_insert_with(|| {
            Arc::new(State {
                over: Arc::default(),
                stopped: AtomicBool::new(false),
                canceller: AsyncMutex::new(None),
            })
        }));
        let held = Arc::clone(&state.over).lock_owned().await;
        // The one before has taken it out when it was over.
        self.map().insert(gid.to_owned(), Arc::clone(&state));
        Turn { turns: self, gid: gid.to_owned(), state, _held: held }
    }

    /// Stops a prepare that is under way, and returns when it is over. `cancel` stops its
    /// statement, and must have done so when it returns.
    pub(super) async fn stop<F: Future<Output = ()>>(&self, gid: &str, cancel: impl FnOnce(C) -> F)
    where
        C: Clone,
    {
        let Some(state) = self.map().get(gid).cloned() else { return };
        state.stopped.store(true, Ordering::SeqCst);
        let canceller = state.canceller.lock().await;
        if let Some(canceller) = canceller.clone() {
            cancel(canceller).await;
        }
        drop(canceller);
        drop(state.over.lock().await);
    }

    fn map(&self) -> MutexGuard<'_, HashMap<String, Arc<State<C>>>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The turn of one prepare; it is over when this is dropped.
pub(super) struct Turn<'a, C> {
    turns: &'a Turns<C>,
    gid: String,
    state: Arc<State<C>>,
    _held: OwnedMutexGuard<()>,
}

impl<C> Turn<'_, C> {
    /// From now on this stops the prepare's statements.
    pub(super) async fn can_be_stopped_by(&self, canceller: C) {
        *self.state.canceller.lock().await = Some(canceller);
    }

    /// From now on nothing that is stopped would be this prepare's. Whether it was stopped before:
    /// then its session must not be used again.
    pub(super) async fn leave(&self) -> bool {
        *self.state.canceller.lock().await = None;
        self.is_stopped()
    }

    /// Whether a rollback waits for the end of this prepare.
    pub(super) fn is_stopped(&self) -> bool {
        self.state.stopped.load(Ordering::SeqCst)
    }
}

impl<C> Drop for Turn<'_, C> {
    fn drop(&mut self) {
        // Whoever waits for it has a handle of its own.
        self.turns.map().remove(&self.gid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_rollback_stops_what_is_under_way_and_waits_for_its_end() {
        let turns = Arc::new(Turns::<u32>::default());
        let cancelled = Arc::new(Mutex::new(Vec::new()));
        // Nothing is under way: nothing is to be waited for.
        turns.stop("a", |_| std::future::ready(())).await;
        let turn = turns.begin("a").await;
        turn.can_be_stopped_by(7).await;
        let stopping = tokio::spawn({
            let (turns, cancelled) = (Arc::clone(&turns), Arc::clone(&cancelled));
            async move {
                turns.stop("a", |id| async move { cancelled.lock().unwrap().push(id) }).await;
            }
        });
        while !turn.is_stopped() {
            tokio::task::yield_now().await;
        }
        assert!(turn.leave().await && !stopping.is_finished());
        drop(turn);
        stopping.await.unwrap();
        assert_eq!(*cancelled.lock().unwrap(), [7]);
        assert!(!turns.begin("a").await.is_stopped());
    }

    #[tokio::test]
    async fn who_has_left_is_not_cancelled() {
        let turns = Turns::<u32>::default();
        let turn = turns.begin("a").await;
        turn.can_be_stopped_by(7).await;
        assert!(!turn.leave().await);
        let stop = turns.stop("a", |_| async { panic!("it has left") });
        let end = async { drop(turn) };
        tokio::join!(stop, end);
    }
}
