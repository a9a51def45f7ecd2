//! Decides which beginnings a client does not let wait for their turn to be sent, because they
//! would wait for too long: a client that is asked for more than its coordinator takes would
//! otherwise have a queue without end, in which everybody waits until all give up.
//!
//! How long one would wait is how many wait already, times how long each took to leave lately
//! (Little, "A Proof for the Queuing Formula: L = λW", Operations Research 9(3), 1961). That costs
//! no timer for each, and who would wait too long hears so at once.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::client::ClientError;
use crate::restraint::overloaded;

/// Fewer are not too many, however slowly they leave.
const WAITING_MIN: usize = 128;
/// How fast they leave is counted over so long.
const SPAN: Duration = Duration::from_millis(50);

/// How fast those who wait have left lately.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Zero: any time is acceptable.
    wait_max: Duration,
    /// When one last left, or came to wait where nobody did.
    moved_at: Instant,
    counted_from: Instant,
    counted: u32,
    /// Between two that leave; zero: not known yet.
    each: Duration,
}

impl Pace {
    /// Lets nobody wait for longer than `wait_max_ms`; 0: everybody for as long as it takes.
    pub(crate) fn new(wait_max_ms: u64, now: Instant) -> Self {
        let wait_max = Duration::from_millis(wait_max_ms);
        Self { wait_max, moved_at: now, counted_from: now, counted: 0, each: Duration::ZERO }
    }

    /// Somebody comes while so many wait.
    ///
    /// # Errors
    /// They would wait for too long: refused, as the coordinator would if all of them were sent.
    pub(crate) fn enter(&mut self, waiting: usize, now: Instant) -> Result<(), ClientError> {
        if waiting == 0 {
            (self.moved_at, self.counted_from) = (now, now);
            (self.counted, self.each) = (0, Duration::ZERO);
        }
        let ahead = self.each.saturating_mul(u32::try_from(waiting).unwrap_or(u32::MAX));
        let still = now.saturating_duration_since(self.moved_at);
        if self.wait_max.is_zero() || waiting < WAITING_MIN || ahead.max(still) <= self.wait_max {
            return Ok(());
        }
        Err(overloaded(&format!(
            "not sent: {waiting} others wait for their turn here, and this one would wait for \
             longer than begin_wait_max_ms; begin less, or let more be under way (requests_max)"
        )))
    }

    /// So many have left, to be sent.
    pub(crate) fn leave(&mut self, count: usize, now: Instant) {
        self.moved_at = now;
        self.counted = self.counted.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
        let took = now.saturating_duration_since(self.counted_from);
        if took >= SPAN && self.counted > 0 {
            self.each = took / self.counted;
            (self.counted, self.counted_from) = (0, now);
        }
    }
}

/// Those who wait for their turn, where each does by itself.
#[derive(Debug)]
pub(crate) struct Line(Mutex<(Pace, usize)>);

impl Line {
    pub(crate) fn new(wait_max_ms: u64) -> Self {
        Self(Mutex::new((Pace::new(wait_max_ms, Instant::now()), 0)))
    }

    /// Comes to wait.
    ///
    /// # Errors
    /// As [`Pace::enter`].
    pub(crate) fn enter(&self) -> Result<Place<'_>, ClientError> {
        let mut line = self.lock();
        let (pace, waiting) = &mut *line;
        pace.enter(*waiting, Instant::now())?;
        *waiting += 1;
        Ok(Place(self))
    }

    /// Nothing here leaves half a change behind.
    fn lock(&self) -> MutexGuard<'_, (Pace, usize)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody who waits, for as long as this exists.
#[derive(Debug)]
pub(crate) struct Place<'a>(&'a Line);

impl Place<'_> {
    /// Their turn has come. Who has given up before says nothing of how fast others are sent.
    pub(crate) fn leave(self) {
        self.0.lock().0.leave(1, Instant::now());
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.lock().1 -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many come each millisecond to where ten leave, for two seconds, except that none does
    /// from then on; the longest queue in the last second, and how many were refused.
    fn run(wait_max_ms: u64, come: usize, stands_from_ms: u64) -> (usize, usize) {
        let start = Instant::now();
        let mut pace = Pace::new(wait_max_ms, start);
        let (mut waiting, mut longest, mut refused) = (0, 0, 0);
        for ms in 0..2_000 {
            let now = start + Duration::from_millis(ms);
            for _ in 0..come {
                match pace.enter(waiting, now) {
                    Ok(()) => waiting += 1,
                    Err(error) => {
                        assert_eq!(error.code(), Some("overloaded"));
                        refused += 1;
                    }
                }
            }
            if ms < stands_from_ms && waiting > 0 {
                let leave = waiting.min(10);
                waiting -= leave;
                pace.leave(leave, now);
            }
            if ms >= 1_000 {
                longest = longest.max(waiting);
            }
        }
        (longest, refused)
    }

    #[test]
    fn nobody_waits_for_longer_than_they_may_and_nobody_is_refused_for_less() {
        let (longest, refused) = run(100, 30, u64::MAX);
        assert!((900..=1_100).contains(&longest), "{longest} wait where 10 leave each ms");
        assert!((38_000..=40_000).contains(&refused), "{refused} of 60,000 where 20,000 leave");
        assert_eq!(run(100, 10, u64::MAX).1, 0);
        assert_eq!(run(0, 30, u64::MAX), (40_000, 0), "any time is acceptable");
    }

    #[test]
    fn where_nothing_leaves_the_queue_does_not_grow_for_ever() {
        let (longest, _) = run(100, 5, 0);
        assert!((500..=510).contains(&longest), "{longest} where nothing ever left");
        let (longest, _) = run(100, 5, 1_500);
        assert!((500..=510).contains(&longest), "{longest} where nothing leaves any more");
    }

    #[test]
    fn few_are_never_too_many_and_who_gives_up_leaves_no_trace() {
        let line = Line::new(1);
        let mut pace = Pace::new(1, Instant::now());
        let late = Instant::now() + Duration::from_secs(9);
        assert!(pace.enter(WAITING_MIN - 1, late).is_ok());
        assert!(pace.enter(WAITING_MIN, late).is_err());
        let places = [line.enter().unwrap(), line.enter().unwrap()];
        let [first, second] = places;
        first.leave();
        drop(second);
        let line = line.lock();
        assert_eq!((line.0.counted, line.1), (1, 0));
    }
}
