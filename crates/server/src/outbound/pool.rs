//! Decides which connections to participants are kept, and for how long. Every participant's
//! origin has so many permits; whoever holds one takes an idle connection or makes a new one, and
//! gives it back before the permit. So the permits bound the connections too, idle ones included.
//!
//! hyper-util's pooling client is not used because it bounds only idle connections: while a request
//! waits for an idle one it already opens another, so that under load there are more than were
//! allowed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::SendRequest;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio::time::Instant;

/// A connection that speaks HTTP/1.1. Dropping it closes it, whatever it was doing.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) sender: SendRequest<Full<Bytes>>,
    driver: AbortHandle,
}

impl Connection {
    /// `driver` is the task that moves the connection's bytes.
    pub(crate) const fn new(sender: SendRequest<Full<Bytes>>, driver: AbortHandle) -> Self {
        Self { sender, driver }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// One participant's origin: its permits and its idle connections, the most recently used last.
#[derive(Debug)]
pub(crate) struct Origin {
    pub(crate) permits: Semaphore,
    idle: Mutex<Vec<(Instant, Connection)>>,
}

impl Origin {
    /// The most recently used connection that is still open. Old ones stay behind and age.
    pub(crate) fn take_idle(&self) -> Option<Connection> {
        let mut idle = lock(&self.idle);
        while let Some((_, connection)) = idle.pop() {
            if !connection.sender.is_closed() {
                return Some(connection);
            }
        }
        None
    }

    /// Gives a connection back whose last answer was read to its end.
    pub(crate) fn give_back(&self, connection: Connection) {
        lock(&self.idle).push((Instant::now(), connection));
    }

    fn close_idle_since(&self, before: Instant) {
        lock(&self.idle)
            .retain(|(since, connection)| *since >= before && !connection.sender.is_closed());
    }

    fn is_empty(&self) -> bool {
        lock(&self.idle).is_empty()
    }
}

/// All origins that were called lately.
#[derive(Debug)]
pub(crate) struct Pool {
    origins: Mutex<HashMap<String, Arc<Origin>>>,
    origins_max: usize,
    connections_per_origin_max: usize,
    idle_timeout: Duration,
}

impl Pool {
    pub(crate) fn new(
        origins_max: usize,
        connections_per_origin_max: usize,
        idle_timeout: Duration,
    ) -> Self {
        Self { origins: Mutex::default(), origins_max, connections_per_origin_max, idle_timeout }
    }

    /// The origin of that name; `None` if as many origins as are allowed are all being called.
    pub(crate) fn origin(&self, name: &str) -> Option<Arc<Origin>> {
        let mut origins = lock(&self.origins);
        if let Some(origin) = origins.get(name) {
            return Some(Arc::clone(origin));
        }
        if origins.len() >= self.origins_max {
            make_room(&mut origins);
        }
        if origins.len() >= self.origins_max {
            return None;
        }
        let permits = Semaphore::new(self.connections_per_origin_max);
        let origin = Arc::new(Origin { permits, idle: Mutex::default() });
        origins.insert(name.to_owned(), Arc::clone(&origin));
        Some(origin)
    }

    /// Closes connections that were idle for too long, and forgets origins without connections.
    pub(crate) fn sweep(&self) {
        let Some(before) = Instant::now().checked_sub(self.idle_timeout) else { return };
        let origins: Vec<_> = lock(&self.origins).values().cloned().collect();
        for origin in origins {
            origin.close_idle_since(before);
        }
        lock(&self.origins).retain(|_, origin| in_use(origin) || !origin.is_empty());
    }

    /// How often [`Pool::sweep`] should run.
    pub(crate) fn sweep_interval(&self) -> Duration {
        (self.idle_timeout / 2).max(Duration::from_millis(1))
    }

    #[cfg(test)]
    pub(crate) fn origins(&self) -> usize {
        lock(&self.origins).len()
    }
}

/// Whether somebody besides the map holds the origin. Only to be asked under the map's lock: that
/// is where others get theirs.
fn in_use(origin: &Arc<Origin>) -> bool {
    Arc::strong_count(origin) > 1
}

/// Forgets one origin that nobody is calling, with its idle connections.
fn make_room(origins: &mut HashMap<String, Arc<Origin>>) {
    let unused = origins.iter().find(|(_, origin)| !in_use(origin)).map(|(name, _)| name.clone());
    if let Some(name) = unused {
        origins.remove(&name);
    }
}

/// Nothing here leaves half a change behind, so a panic elsewhere does not spoil what is locked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
