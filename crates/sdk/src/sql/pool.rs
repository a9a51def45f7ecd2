//! Decides who gets a connection: one that was given back, else a new one, up to a number; and that
//! only so many calls wait. A connection that failed in any way is not given back.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::engine::Store;
use super::{SqlError, SqlOptions};

/// The connections of one participant.
pub(crate) struct Pool<S: Store> {
    pub(crate) store: S,
    idle: Mutex<Vec<S::Connection>>,
    connections: Arc<Semaphore>,
    calls: Arc<Semaphore>,
    connect_timeout: Duration,
}

/// A connection, and the permission to have one. Dropped, it closes the connection.
pub(crate) struct Borrowed<S: Store> {
    pub(crate) connection: S::Connection,
    permit: OwnedSemaphorePermit,
}

impl<S: Store> Pool<S> {
    pub(crate) fn new(store: S, options: &SqlOptions) -> Self {
        Self {
            store,
            idle: Mutex::default(),
            connections: Arc::new(Semaphore::new(options.connections_max.max(1))),
            calls: Arc::new(Semaphore::new(options.calls_max.max(1))),
            connect_timeout: Duration::from_millis(options.connect_timeout_ms),
        }
    }

    /// A place for one more call; none if there are too many.
    pub(crate) fn enter(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.calls).try_acquire_owned().ok()
    }

    /// Waits for a connection.
    pub(crate) async fn take(&self) -> Result<Borrowed<S>, SqlError> {
        let permit = Arc::clone(&self.connections).acquire_owned().await;
        let permit = permit.map_err(|_| SqlError::Failed("the participant has ended".into()))?;
        while let Some(connection) = self.pop() {
            if S::is_open(&connection) {
                return Ok(Borrowed { connection, permit });
            }
        }
        let connected = tokio::time::timeout(self.connect_timeout, self.store.connect()).await;
        let late = || SqlError::Failed("the database does not take connections in time".into());
        let connection = connected.map_err(|_| late())??;
        Ok(Borrowed { connection, permit })
    }

    /// Takes back a connection that is in no local transaction.
    pub(crate) fn give_back(&self, borrowed: Borrowed<S>) {
        let Borrowed { connection, permit } = borrowed;
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
        drop(permit);
    }

    /// Closes a connection in order.
    pub(crate) async fn close(&self, borrowed: Borrowed<S>) {
        let Borrowed { connection, permit } = borrowed;
        self.store.close(connection).await;
        drop(permit);
    }

    /// Closes what nobody uses: most likely it is as dead as the one that somebody has used.
    pub(crate) fn forget_idle(&self) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn pop(&self) -> Option<S::Connection> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }
}
