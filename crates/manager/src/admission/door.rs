//! The way into a shard's queue. Those who come and those who are let through are on different
//! cores, each at work many hundred thousand times a second: what the ones write with each does not
//! lie on a cache line that the others read with each, and what both must know is told in batches.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::{AT_THE_DOOR_AIM_TARGETS, Apart, QueueDelay};

/// The way into a queue, past which everybody goes: also those count who wait to be let in, where
/// there is a bound on how many are inside.
#[derive(Debug)]
pub(crate) struct Door {
    delay: QueueDelay,
    /// How many have come to wait.
    came: Apart<AtomicUsize>,
    /// How many of those wait no more, as far as it was told.
    went: Apart<AtomicUsize>,
    /// Nobody lets through any more.
    closed: AtomicBool,
}

impl Door {
    /// To a queue in which waiting for `target` is acceptable; and its inside, for who lets
    /// through.
    pub(crate) fn new(target: Duration) -> (Arc<Self>, Inside) {
        let delay = QueueDelay { aim: AT_THE_DOOR_AIM_TARGETS, ..QueueDelay::new(target) };
        let (came, went, closed) = (Apart::default(), Apart::default(), AtomicBool::new(false));
        let door = Arc::new(Self { delay, came, went, closed });
        let inside = Inside { door: Arc::clone(&door), through: 0, known: 0 };
        (door, inside)
    }

    /// Whether somebody who comes now is to be refused. Behind a closed door they hear why it is.
    pub(crate) fn refuses_next(&self, now: Instant) -> bool {
        self.delay.refuses_next(self.waiting(), now) && !self.closed.load(Ordering::Relaxed)
    }

    /// Somebody comes to wait.
    pub(crate) fn enter(self: &Arc<Self>, now: Instant) -> Waiting {
        self.came.fetch_add(1, Ordering::Relaxed);
        Waiting { door: Arc::clone(self), came_at: now, is_handed_over: false }
    }

    /// How many wait, as far as it was told.
    pub(crate) fn waiting(&self) -> usize {
        // In this order, and each only grows: but who looks may see the one sooner than the other.
        let went = self.went.load(Ordering::Acquire);
        let waiting = self.came.load(Ordering::Acquire).wrapping_sub(went);
        if waiting > usize::MAX / 2 { 0 } else { waiting }
    }
}

/// Somebody who waits: for as long as this exists, or until they are let through.
#[derive(Debug)]
pub(crate) struct Waiting {
    door: Arc<Door>,
    came_at: Instant,
    is_handed_over: bool,
}

impl Waiting {
    /// Whether this is where they wait.
    pub(crate) fn is_at(&self, door: &Arc<Door>) -> bool {
        Arc::ptr_eq(&self.door, door)
    }

    /// They wait elsewhere from now on, as if they had come there.
    pub(crate) fn moves_to(self, door: &Arc<Door>) -> Self {
        if self.is_at(door) {
            return self;
        }
        door.enter(self.came_at)
    }

    /// Since when.
    pub(crate) const fn came_at(&self) -> Instant {
        self.came_at
    }

    /// Who lets through has them now, and counts them out.
    pub(crate) fn hand_over(mut self) {
        self.is_handed_over = true;
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if !self.is_handed_over {
            self.door.went.fetch_add(1, Ordering::Release);
        }
    }
}

/// The inside of a door: one task lets through who was handed over to it.
#[derive(Debug)]
pub(crate) struct Inside {
    door: Arc<Door>,
    /// How many were let through since that was told.
    through: usize,
    /// How many waited when they were last counted, less those let through since then.
    known: usize,
}

impl Inside {
    /// The turn of somebody has come who came then; says whether to refuse them.
    pub(crate) fn refuses(&mut self, came_at: Instant, now: Instant) -> bool {
        self.through += 1;
        self.known = self.known.saturating_sub(1);
        if self.known == 0 {
            self.known = self.door.waiting().saturating_sub(self.through);
        }
        let waited = now.saturating_duration_since(came_at);
        self.door.delay.refuses(waited, self.known, now)
    }

    /// Those who come are to know how many were let through.
    pub(crate) fn tell(&mut self) {
        if self.through > 0 {
            self.door.went.fetch_add(std::mem::take(&mut self.through), Ordering::Release);
            self.known = 0;
        }
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.door.closed.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: Duration = Duration::from_millis(10);

    #[test]
    fn who_waits_counts_until_let_through_or_given_up() {
        let ((door, mut inside), now) = (Door::new(TARGET), Instant::now());
        let mut all: Vec<Waiting> = (0..4).map(|_| door.enter(now)).collect();
        assert_eq!(door.waiting(), 4);
        for waiting in all.drain(..2) {
            let came_at = waiting.came_at();
            waiting.hand_over();
            assert!(!inside.refuses(came_at, now));
        }
        assert_eq!(door.waiting(), 4, "it is told once, of both");
        inside.tell();
        assert_eq!(door.waiting(), 2);
        all.truncate(1);
        assert_eq!(door.waiting(), 1);
        drop(all);
        inside.tell();
        assert_eq!(door.waiting(), 0);
    }

    #[test]
    fn who_waits_at_another_door_waits_there_for_as_long() {
        let (now, [(one, _), (other, _)]) = (Instant::now(), [(); 2].map(|()| Door::new(TARGET)));
        let waiting = one.enter(now).moves_to(&other);
        assert!(waiting.is_at(&other) && waiting.came_at() == now);
        assert_eq!((one.waiting(), other.waiting()), (0, 1));
    }

    /// Others come while some are let through: whether anybody stands behind the last is not what
    /// it was before the first.
    #[test]
    fn how_many_wait_is_counted_anew_before_nobody_does() {
        let ((door, mut inside), now) = (Door::new(TARGET), Instant::now());
        let come = || door.enter(now).hand_over();
        come();
        come();
        assert!(!inside.refuses(now, now));
        assert_eq!(inside.known, 1);
        come();
        assert!(!inside.refuses(now, now));
        assert_eq!(inside.known, 1);
    }

    /// Else those would be told that too much is begun, and to come again.
    #[test]
    fn a_closed_door_refuses_nobody() {
        let (door, mut inside) = Door::new(TARGET);
        let at = |ms| door.delay.started + Duration::from_millis(ms);
        (0..2_000).for_each(|_| door.enter(at(0)).hand_over());
        for ms in 0..100 {
            let _ = inside.refuses(at(0), at(ms));
        }
        assert!(door.refuses_next(at(100)), "a queue of more than ten times the target");
        drop(inside);
        assert!(!door.refuses_next(at(100)));
    }
}
