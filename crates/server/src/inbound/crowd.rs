//! Decides who goes when as many connections are open as may be and another client waits: whoever
//! has kept its connection longest without asking for anything. How long a connection may stay
//! where there is room is `watch`'s.
//!
//! Without this, clients that connect and say nothing would lock everybody else out with as many
//! connections as there may be:
//! 1. They take every place, and the next client waits in the system's queue.
//! 2. Their header's time is over, they are closed, and connect again at once.
//! 3. The queue is full of them, so the place that is free goes to one of them.
//!
//! Here a client that asks within [`GRACE`] gets its place however many the others are, because
//! each of them can keep one only until the next one is needed. There is no share for each address:
//! behind a proxy all clients have the same one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep};

use super::watch::{Activity, Standing};

/// So long a client is not held to have been slow.
const GRACE: Duration = Duration::from_millis(250);
/// Room is made no more often than this, and where nobody could go, it is looked again.
const PAUSE: Duration = Duration::from_millis(5);
/// This part of all places becomes free at once. With the pause it bounds what a flood of
/// connections costs: of 4,096 places at most 3,200 a second change hands.
const SHARE_THAT_GOES: usize = 256;

/// All open connections.
pub(super) struct Crowd {
    places: Arc<Semaphore>,
    places_max: usize,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    next: u64,
    connections: HashMap<u64, Arc<Activity>>,
    /// When room was made last.
    made_room: Option<Instant>,
}

/// A connection's place among all, for as long as this exists.
pub(super) struct Place {
    number: u64,
    crowd: Arc<Crowd>,
    _permit: OwnedSemaphorePermit,
}

impl Crowd {
    pub(super) fn new(places_max: usize) -> Self {
        let places = Arc::new(Semaphore::new(places_max));
        Self { places, places_max, open: Mutex::default() }
    }

    /// Waits for a place, and makes room for it if need be. May be called off at any time.
    pub(super) async fn room(&self) -> Option<OwnedSemaphorePermit> {
        loop {
            if let Ok(permit) = Arc::clone(&self.places).try_acquire_owned() {
                return Some(permit);
            }
            self.make_room(Instant::now());
            tokio::select! {
                permit = Arc::clone(&self.places).acquire_owned() => return permit.ok(),
                () = sleep(PAUSE) => {} // Somebody may have become idle, or slow.
            }
        }
    }

    /// Takes a connection in.
    pub(super) fn enter(
        self: &Arc<Self>,
        permit: OwnedSemaphorePermit,
        activity: Arc<Activity>,
    ) -> Place {
        let mut open = self.open();
        let number = open.next;
        open.next += 1;
        open.connections.insert(number, activity);
        Place { number, crowd: Arc::clone(self), _permit: permit }
    }

    fn make_room(&self, now: Instant) {
        let mut open = self.open();
        if open.made_room.is_some_and(|made| now.duration_since(made) < PAUSE) {
            return;
        }
        open.made_room = Some(now);
        let mut candidates: Vec<((u8, Instant), u64)> = open
            .connections
            .iter()
            .filter_map(|(number, activity)| Some((rank(activity.standing()?, now), *number)))
            .collect();
        let going = (self.places_max / SHARE_THAT_GOES).max(1).min(candidates.len());
        if going == 0 {
            return;
        }
        candidates.select_nth_unstable(going - 1);
        let going = candidates[..going].iter().filter_map(|(_, gone)| open.connections.get(gone));
        let count = going.inspect(|activity| activity.leave()).count();
        metrics::counter!("unanimity_connections_displaced_total").increment(count as u64);
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who goes first: who has owed something for longest; then who has been idle for longest; and only
/// then one that has hardly had the time to ask.
fn rank(standing: Standing, now: Instant) -> (u8, Instant) {
    match standing {
        Standing::Owes(since) if now.duration_since(since) >= GRACE => (0, since),
        Standing::Idle(since) => (1, since),
        Standing::Owes(since) => (2, since),
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.crowd.open().connections.remove(&self.number);
    }
}

/// How a connection is told to go.
#[derive(Default)]
pub(super) struct Leaving(Notify);

impl Leaving {
    pub(super) fn tell(&self) {
        self.0.notify_one();
    }

    pub(super) async fn told(&self) {
        self.0.notified().await;
    }
}
