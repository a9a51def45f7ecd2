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
/// How fast they leave is counted over this part of the time that they may wait: they may well
/// leave in bursts.
const SPANS: u32 = 4;
/// The fastest of so many such counts is believed, once there are so many: one in which nothing
/// left for a while says nothing of what comes next.
const BELIEVED: usize = 3;

/// How fast those who wait have left lately.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Zero: any time is acceptable.
    wait_max: Duration,
    /// What who is refused can do about it.
    advice: &'static str,
    /// When one last left, or came to wait where nobody did.
    moved_at: Instant,
    /// Since when they are counted; none has left yet where it is not known.
    counted_from: Option<Instant>,
    counted: u32,
    /// Between two that leave, as it was counted last; zero: not known yet.
    each: [Duration; BELIEVED],
}

impl Pace {
    /// Lets nobody wait for longer than `wait_max_ms`; 0: everybody for as long as it takes.
    pub(crate) fn new(wait_max_ms: u64, advice: &'static str, now: Instant) -> Self {
        let wait_max = Duration::from_millis(wait_max_ms);
        let (moved_at, counted_from, each) = (now, None, [Duration::ZERO; BELIEVED]);
        Self { wait_max, advice, moved_at, counted_from, counted: 0, each }
    }

    /// Somebody comes while so many wait.
    ///
    /// # Errors
    /// They would wait for too long: refused, as the coordinator would if all of them were sent.
    pub(crate) fn enter(&mut self, waiting: usize, now: Instant) -> Result<(), ClientError> {
        if waiting == 0 {
            self.restart(now);
        }
        let each = self.each.iter().min().copied().unwrap_or_default();
        let ahead = each.saturating_mul(u32::try_from(waiting).unwrap_or(u32::MAX));
        let still = now.saturating_duration_since(self.moved_at);
        if self.wait_max.is_zero() || waiting < WAITING_MIN || ahead.max(still) <= self.wait_max {
            return Ok(());
        }
        Err(overloaded(&format!(
            "not sent: {waiting} others wait for their turn here, and this one would wait for \
             longer than begin_wait_max_ms; {}",
            self.advice
        )))
    }

    /// Nobody waits, or for something else: what was counted before says nothing of now.
    pub(crate) fn restart(&mut self, now: Instant) {
        (self.moved_at, self.counted_from) = (now, None);
        (self.counted, self.each) = (0, [Duration::ZERO; BELIEVED]);
    }

    /// So many have left, to be sent.
    pub(crate) fn leave(&mut self, count: usize, now: Instant) {
        self.moved_at = now;
        // How long the first took to leave says how long it waited, and not how fast they leave.
        let Some(from) = self.counted_from else {
            self.counted_from = Some(now);
            return;
        };
        self.counted = self.counted.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
        let took = now.saturating_duration_since(from);
        if took < self.wait_max / SPANS || self.counted == 0 {
            return;
        }
        self.each.rotate_left(1);
        self.each[BELIEVED - 1] = took / self.counted;
        (self.counted, self.counted_from) = (0, Some(now));
    }
}

/// Those who wait for their turn, where each does by itself.
#[derive(Debug)]
pub(crate) struct Line(Mutex<(Pace, usize)>);

impl Line {
    pub(crate) fn new(wait_max_ms: u64) -> Self {
        let advice = "begin less, or let more be under way (requests_max)";
        Self(Mutex::new((Pace::new(wait_max_ms, advice, Instant::now()), 0)))
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

    /// So many come in each millisecond of four seconds, and so many can leave; the longest queue
    /// in the last two, and how many were refused.
    fn run(
        wait_max_ms: u64,
        come: impl Fn(u64) -> usize,
        leave: impl Fn(u64) -> usize,
    ) -> (usize, usize) {
        let start = Instant::now();
        let mut pace = Pace::new(wait_max_ms, "come later", start);
        let (mut waiting, mut longest, mut refused) = (0, 0, 0);
        for ms in 0..4_000 {
            let now = start + Duration::from_millis(ms);
            for _ in 0..come(ms) {
                match pace.enter(waiting, now) {
                    Ok(()) => waiting += 1,
                    Err(error) => {
                        assert_eq!(error.code(), Some("overloaded"));
                        refused += 1;
                    }
                }
            }
            let leaving = waiting.min(leave(ms));
            if leaving > 0 {
                waiting -= leaving;
                pace.leave(leaving, now);
            }
            if ms >= 2_000 {
                longest = longest.max(waiting);
            }
        }
        (longest, refused)
    }

    #[test]
    fn nobody_waits_for_longer_than_they_may_and_nobody_is_refused_for_less() {
        let (longest, refused) = run(100, |_| 30, |_| 10);
        assert!((900..=1_100).contains(&longest), "{longest} wait where 10 leave each ms");
        assert!((78_000..=80_000).contains(&refused), "{refused} of 120,000 where 40,000 leave");
        assert_eq!(run(100, |_| 10, |_| 10).1, 0);
        assert_eq!(run(0, |_| 30, |_| 10), (80_000, 0), "any time is acceptable");
        // Many at once, now and then.
        let (longest, refused) = run(1_000, |_| 5, |ms| if ms % 200 == 199 { 400 } else { 0 });
        assert!((1_800..=3_200).contains(&longest), "{longest} wait where 2 leave each ms");
        assert!((8_000..=11_000).contains(&refused), "{refused} of 20,000 where 8,000 leave");
    }

    /// A closed loop: so many initiators, of whom those who are sent are answered together.
    #[test]
    fn initiators_that_wait_for_their_answers_are_not_refused_for_leaving_together() {
        let start = Instant::now();
        let mut pace = Pace::new(1_000, "come later", start);
        let mut waiting: usize = 0;
        for round in 0..20 {
            let now = start + Duration::from_millis(200 * round);
            let come = if round == 0 { 744 } else { 256 };
            for one in 0..come {
                if round > 0 {
                    waiting -= 1;
                    pace.leave(1, now + Duration::from_micros(20 * one));
                }
                pace.enter(waiting, now + Duration::from_micros(20 * one)).unwrap();
                waiting += 1;
            }
        }
    }

    /// One is answered early, and the others long after it and together.
    #[test]
    fn one_that_leaves_alone_says_nothing_of_how_fast_they_leave() {
        let start = Instant::now();
        let mut pace = Pace::new(1_000, "come later", start);
        for waiting in 0..744 {
            pace.enter(waiting, start).unwrap();
        }
        pace.leave(1, start + Duration::from_millis(100));
        pace.leave(1, start + Duration::from_millis(900));
        for waiting in 742..998 {
            pace.enter(waiting, start + Duration::from_millis(901)).unwrap();
        }
    }

    #[test]
    fn a_pause_is_no_reason_to_refuse_whoever_comes_after_it() {
        // Half a second's worth waits when nothing leaves for a while.
        let come = |ms| if ms < 1_000 { 15 } else { 8 };
        for pause in [1_000..1_300, 1_100..1_400, 1_240..1_540] {
            let leave = |ms| if pause.contains(&ms) { 0 } else { 10 };
            assert_eq!(run(1_000, come, leave).1, 0, "{pause:?}");
        }
    }

    #[test]
    fn where_nothing_leaves_the_queue_does_not_grow_for_ever() {
        let (longest, _) = run(100, |_| 5, |_| 0);
        assert!((500..=510).contains(&longest), "{longest} where nothing ever left");
        let (longest, _) = run(100, |_| 5, |ms| if ms < 2_500 { 10 } else { 0 });
        assert!((500..=510).contains(&longest), "{longest} where nothing leaves any more");
    }

    #[test]
    fn few_are_never_too_many_and_who_gives_up_leaves_no_trace() {
        let (line, now) = (Line::new(1), Instant::now());
        let mut pace = Pace::new(1, "come later", now);
        let late = now + Duration::from_secs(9);
        assert!(pace.enter(WAITING_MIN - 1, late).is_ok());
        assert!(pace.enter(WAITING_MIN, late).is_err());
        let [first, second, third] = [(); 3].map(|()| line.enter().unwrap());
        first.leave();
        second.leave();
        drop(third);
        let line = line.lock();
        assert_eq!((line.0.counted, line.1), (1, 0));
    }
}
