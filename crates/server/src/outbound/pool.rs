//! Decides which connections to participants are kept, and for how long. Every participant's
//! origin has so many permits; whoever holds one takes an idle connection or makes a new one, and
//! gives it back before the permit. So the permits bound the connections too, idle ones included.
//!
//! hyper-util's pooling client is not used because it bounds only idle connections: while a request
//! waits for an idle one it already opens another, so that under load there are more than were
//! allowed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::SendRequest;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use unanimity::QueueDelay;

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
    permits: Semaphore,
    /// One for each call that may be under way in batches.
    rooms: Semaphore,
    /// How long calls wait for a permit, or for room.
    delay: QueueDelay,
    /// How many are waiting.
    waiting: AtomicUsize,
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

    /// A permit, if one is free: who takes it has not waited.
    fn free_permit(&self) -> Option<SemaphorePermit<'_>> {
        let permit = self.permits.try_acquire().ok()?;
        self.went_at_once();
        Some(permit)
    }

    /// Somebody goes who has not waited. While others wait, for room, that says nothing of them.
    pub(crate) fn went_at_once(&self) {
        if self.waiting.load(Ordering::Relaxed) == 0 {
            self.delay.note(Duration::ZERO, Instant::now().into_std());
        }
    }

    /// Room for one call in a batch, and a permit for the batch, if both are free.
    pub(crate) fn free_place(&self) -> Option<Place<'_>> {
        let room = self.rooms.try_acquire().ok()?;
        Some(Place { room, permit: self.permits.try_acquire().ok()? })
    }

    /// The next of them; who waits has to count as waiting. Room first: while there is none, single
    /// calls may have the connection.
    pub(crate) async fn next_place(&self) -> Option<Place<'_>> {
        let room = self.rooms.acquire().await.ok()?;
        Some(Place { room, permit: self.permits.acquire().await.ok()? })
    }

    /// Makes a place one for so many calls, or for as many as there is room for.
    pub(crate) fn widen<'a>(&'a self, place: &mut Place<'a>, calls: usize) {
        loop {
            let more = calls.saturating_sub(place.room.num_permits());
            let more = u32::try_from(more.min(self.rooms.available_permits())).unwrap_or(0);
            if more == 0 {
                return;
            }
            // Others may have been quicker.
            if let Ok(room) = self.rooms.try_acquire_many(more) {
                return place.room.merge(room);
            }
        }
    }

    fn close_idle_since(&self, before: Instant) {
        lock(&self.idle)
            .retain(|(since, connection)| *since >= before && !connection.sender.is_closed());
    }

    fn is_empty(&self) -> bool {
        lock(&self.idle).is_empty()
    }
}

/// Where a batch can go.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    /// For as many calls.
    pub(crate) room: SemaphorePermit<'a>,
    /// For the batch's connection.
    pub(crate) permit: SemaphorePermit<'a>,
}

/// Keeps room for so many calls, and gives the rest back.
pub(crate) fn keep_room(room: &mut SemaphorePermit<'_>, calls: usize) {
    drop(room.split(room.num_permits().saturating_sub(calls)));
}

/// All origins that were called lately.
#[derive(Debug)]
pub(crate) struct Pool {
    origins: Mutex<HashMap<String, Arc<Origin>>>,
    origins_max: usize,
    connections_per_origin_max: usize,
    calls_in_flight_max: usize,
    idle_timeout: Duration,
    queue_delay_target: Duration,
    /// How many calls wait for a permit, at all origins.
    waiting: AtomicUsize,
}

/// One call that waits for a permit: in both counts for as long as it does, and noted when it has
/// one or has given up.
struct Waiting<'a> {
    pool: &'a Pool,
    origin: &'a Origin,
    came_at: Instant,
}

impl<'a> Waiting<'a> {
    fn begin(pool: &'a Pool, origin: &'a Origin) -> Self {
        pool.waiting.fetch_add(1, Ordering::Relaxed);
        origin.waiting.fetch_add(1, Ordering::Relaxed);
        Self { pool, origin, came_at: Instant::now() }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.pool.waiting.fetch_sub(1, Ordering::Relaxed);
        self.origin.waiting.fetch_sub(1, Ordering::Relaxed);
        self.origin.delay.note(self.came_at.elapsed(), Instant::now().into_std());
    }
}

/// Calls that wait for a place together: in both counts as so many, for as long as they do.
#[derive(Debug)]
pub(crate) struct Standing {
    pool: Arc<Pool>,
    origin: Arc<Origin>,
    calls: usize,
    /// When some of them last went, or when they began to wait.
    moved_at: Instant,
}

impl Standing {
    pub(crate) fn begin(pool: &Arc<Pool>, origin: &Arc<Origin>, calls: usize) -> Self {
        let (pool, origin, moved_at) = (Arc::clone(pool), Arc::clone(origin), Instant::now());
        let mut new = Self { pool, origin, calls: 0, moved_at };
        new.joined(calls);
        new
    }

    /// So many more wait.
    pub(crate) fn joined(&mut self, calls: usize) {
        self.calls += calls;
        self.pool.waiting.fetch_add(calls, Ordering::Relaxed);
        self.origin.waiting.fetch_add(calls, Ordering::Relaxed);
    }

    /// So many go together, or give up, when the first of them has waited for so long. How long
    /// each has waited says nothing: who comes last before a batch leaves has hardly waited,
    /// however long the place was waited for. And they count as if they had left one after the
    /// other since the last did, or else the first would seem to be all that was done in that time.
    pub(crate) fn left(&mut self, calls: usize, first_waited: Duration, now: Instant) {
        self.gone(calls);
        let (from, count) = (self.moved_at, u32::try_from(calls).unwrap_or(u32::MAX));
        let step = now.saturating_duration_since(from) / count.max(1);
        for number in 1..=count {
            self.origin.delay.note(first_waited, (from + step * number).into_std());
        }
        if calls > 0 {
            self.moved_at = now;
        }
    }

    fn gone(&mut self, calls: usize) {
        self.calls -= calls;
        self.pool.waiting.fetch_sub(calls, Ordering::Relaxed);
        self.origin.waiting.fetch_sub(calls, Ordering::Relaxed);
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        self.gone(self.calls);
    }
}

impl Pool {
    pub(crate) fn new(
        origins_max: usize,
        connections_per_origin_max: usize,
        calls_in_flight_max: usize,
        idle_timeout: Duration,
        queue_delay_target: Duration,
    ) -> Self {
        Self {
            origins: Mutex::default(),
            origins_max,
            connections_per_origin_max,
            calls_in_flight_max,
            idle_timeout,
            queue_delay_target,
            waiting: AtomicUsize::new(0),
        }
    }

    /// Waits for a permit of an origin. Nothing closes the permits, so it comes sooner or later.
    pub(crate) async fn permit<'a>(&self, origin: &'a Origin) -> Option<SemaphorePermit<'a>> {
        if let Some(permit) = origin.free_permit() {
            return Some(permit);
        }
        let _waiting = Waiting::begin(self, origin);
        origin.permits.acquire().await.ok()
    }

    /// Whether any call waits for a permit: where none does, no origin is busy.
    pub(crate) fn has_waiting(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// Whether calls to this origin have waited too long, for too long.
    pub(crate) fn is_busy(&self, name: &str) -> bool {
        let origin = lock(&self.origins).get(name).cloned();
        origin.is_some_and(|origin| {
            let waiting = origin.waiting.load(Ordering::Relaxed);
            origin.delay.refuses_next(waiting, Instant::now().into_std())
        })
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
        let rooms = Semaphore::new(self.calls_in_flight_max);
        let delay = QueueDelay::new(self.queue_delay_target);
        let (waiting, idle) = (AtomicUsize::new(0), Mutex::default());
        let origin = Arc::new(Origin { permits, rooms, delay, waiting, idle });
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Longer than anything takes; only a test that fails waits for it.
    const PATIENCE: Duration = Duration::from_secs(60);
    const TARGET: Duration = Duration::from_millis(1);

    fn pool() -> Arc<Pool> {
        Arc::new(Pool::new(8, 1, 1, PATIENCE, TARGET))
    }

    /// One call after the other waits here until it has waited for too long, and goes.
    async fn wait_in_vain(pool: &Pool, origin: &Origin) {
        let waits = pool.permit(origin);
        assert!(tokio::time::timeout(3 * TARGET, waits).await.is_err(), "nobody gives one back");
    }

    /// The clock is the runtime's own: it stands still while anything can run.
    #[tokio::test(start_paused = true)]
    async fn where_calls_wait_too_long_an_origin_is_busy_until_they_do_not() {
        let pool = pool();
        let (slow, other) = (pool.origin("slow").unwrap(), pool.origin("other").unwrap());
        let held = pool.permit(&slow).await.unwrap();
        let busy = async {
            let _stand: Vec<Waiting<'_>> = (0..200).map(|_| Waiting::begin(&pool, &slow)).collect();
            while !pool.is_busy("slow") {
                wait_in_vain(&pool, &slow).await;
            }
            assert!(pool.has_waiting() && !pool.is_busy("other") && !pool.is_busy("unknown"));
        };
        tokio::time::timeout(PATIENCE, busy).await.unwrap();
        assert!(!pool.is_busy("slow"), "nobody waits any more, so somebody may come");
        drop(held);
        drop(pool.permit(&slow).await.unwrap());
        drop(pool.permit(&other).await.unwrap());
        assert!(!pool.has_waiting() && !pool.is_busy("slow"));
    }

    #[tokio::test(start_paused = true)]
    async fn of_calls_that_wait_for_one_permit_together_each_counts() {
        let pool = pool();
        let slow = pool.origin("slow").unwrap();
        let mut standing = Standing::begin(&pool, &slow, 200);
        let busy = async {
            while !pool.is_busy("slow") {
                tokio::time::advance(3 * TARGET).await;
                standing.joined(1);
                standing.left(1, 3 * TARGET, Instant::now());
                slow.went_at_once();
            }
        };
        tokio::time::timeout(PATIENCE, busy).await.unwrap();
        assert_eq!((slow.waiting.load(Ordering::Relaxed), pool.has_waiting()), (200, true));
        drop(standing);
        assert!(!pool.has_waiting() && !pool.is_busy("slow"));
    }
}
