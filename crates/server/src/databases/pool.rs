//! Decides how many connections to one database there are, and who gets one. Phase one and phase
//! two have shares of their own: work that waits for a lock must never keep away the commit that
//! would let go of it. How a connection is made, and what runs on it, is the caller's.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What a connection is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Phase one: statements, which may wait for locks.
    Work,
    /// Phase two, and looking things up.
    Settle,
}

/// The connections to one database.
pub struct Pool<S> {
    work: Arc<Semaphore>,
    settle: Arc<Semaphore>,
    idle: Mutex<Vec<S>>,
}

impl<S> Pool<S> {
    /// A pool of `work` connections for phase one and `settle` for phase two.
    pub fn new(work: usize, settle: usize) -> Self {
        let permits = |count: usize| Arc::new(Semaphore::new(count.max(1)));
        Self { work: permits(work), settle: permits(settle), idle: Mutex::new(Vec::new()) }
    }

    /// Waits until there may be one connection more, and takes an idle one if there is any.
    pub async fn lease(self: &Arc<Self>, purpose: Purpose) -> Lease<S> {
        let semaphore = match purpose {
            Purpose::Work => &self.work,
            Purpose::Settle => &self.settle,
        };
        // Nobody closes the semaphores, so there always is a permit in the end.
        let permit = Arc::clone(semaphore).acquire_owned().await.ok();
        let session = self.idle().pop();
        Lease { pool: Arc::clone(self), session, _permit: permit }
    }

    /// Closes what is idle: after a failure of one connection, the others may be dead too.
    pub fn drop_idle(&self) {
        self.idle().clear();
    }

    /// Keeps a connection that was not leased, or not any more: nothing is under way on it.
    pub fn add_idle(&self, session: S) {
        self.idle().push(session);
    }

    fn idle(&self) -> MutexGuard<'_, Vec<S>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to one connection. If it is dropped, so is the connection: who knows in which state it
/// is. Only [`Lease::give_back`] keeps it.
pub struct Lease<S> {
    pool: Arc<Pool<S>>,
    session: Option<S>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl<S> Lease<S> {
    /// The idle connection, if there was one. Put it back with [`Self::put`].
    pub fn take(&mut self) -> Option<S> {
        self.session.take()
    }

    /// Puts a connection under this right.
    pub fn put(&mut self, session: S) -> &mut S {
        self.session.insert(session)
    }

    /// Keeps the connection for others: nothing is under way on it.
    pub fn give_back(mut self) {
        if let Some(session) = self.session.take() {
            self.pool.idle().push(session);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_what_is_given_back_is_kept() {
        let pool = Arc::new(Pool::<u8>::new(2, 1));
        let mut first = pool.lease(Purpose::Work).await;
        assert_eq!(first.take(), None);
        first.put(1);
        first.give_back();
        let mut second = pool.lease(Purpose::Settle).await;
        assert_eq!(second.take(), Some(1));
        second.put(1);
        drop(second);
        assert_eq!(pool.lease(Purpose::Work).await.take(), None);
    }

    #[tokio::test]
    async fn work_leaves_room_for_phase_two() {
        let pool = Arc::new(Pool::<u8>::new(1, 1));
        let _working = pool.lease(Purpose::Work).await;
        let waiting = tokio::spawn({
            let pool = Arc::clone(&pool);
            async move { drop(pool.lease(Purpose::Work).await) }
        });
        tokio::task::yield_now().await;
        drop(pool.lease(Purpose::Settle).await);
        assert!(!waiting.is_finished());
        drop(_working);
        waiting.await.unwrap();
    }
}
