//! Decides when a queue has been too long for too long, so that what is new is refused while that
//! helps: before anything was done for it. What is done about it, and for whom, is left to who owns
//! the queue.
//!
//! A queue is judged by how long those who leave it have waited, never by how many are in it: the
//! same length is nothing to a fast coordinator and an age to a slow one, and how fast it is nobody
//! need know. A queue that is empty now and then is a good one, however long it gets between: it
//! takes up bursts. One in which *everybody* has waited for longer than a target, for a whole
//! interval, only adds delay (Nichols and Jacobson, "Controlling Queue Delay", ACM Queue 10(5),
//! 2012). Then those are refused who have waited, or would wait, for twice the target, which holds
//! the delay there (Maurer, "Fail at Scale", ACM Queue 13(8), 2015): between once and twice the
//! target it stays congested, so the judgement does not flutter.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A queue with fewer than this is no overload, however slowly it moves: a machine that is busy
/// with something else must not refuse the few that come. Timeouts see to those.
const WAITING_MIN: usize = 128;
/// An interval is so many times the target.
const INTERVAL_TARGETS: u64 = 4;
/// Who would wait for so many times the target is refused even in a burst.
const BURST_TARGETS: u64 = 10;

/// How long those who leave a queue have waited, lately, and how fast they leave.
///
/// Two threads that note at the same time may each overwrite the other: the judgement is made of
/// many, and one more or less changes nothing.
#[derive(Debug)]
pub struct QueueDelay {
    started: Instant,
    /// 0: it is never too long.
    target_us: u64,
    /// When somebody last had not waited for too long, in microseconds since the start.
    calm_us: AtomicU64,
    /// When somebody last left.
    noted_us: AtomicU64,
    /// Since when those who leave are counted.
    counted_from_us: AtomicU64,
    /// How many have left since then.
    counted: AtomicU64,
    /// Between two who leave, as it was counted last; 0: not known.
    gap_ns: AtomicU64,
}

impl QueueDelay {
    /// For a queue in which waiting for `target` is acceptable; zero: any time is.
    #[must_use]
    pub fn new(target: Duration) -> Self {
        Self {
            started: Instant::now(),
            target_us: whole_us(target),
            calm_us: AtomicU64::new(0),
            noted_us: AtomicU64::new(0),
            counted_from_us: AtomicU64::new(0),
            counted: AtomicU64::new(0),
            gap_ns: AtomicU64::new(0),
        }
    }

    /// Somebody leaves the queue now who has waited for so long, and so many are waiting still.
    /// Says whether to refuse them.
    #[must_use]
    pub fn refuses(&self, waited: Duration, waiting: usize, now: Instant) -> bool {
        self.note(waited, now);
        let too_long = self.target_us > 0 && whole_us(waited) > 2 * self.target_us;
        too_long && waiting >= WAITING_MIN && self.is_congested(now)
    }

    /// Somebody leaves the queue now who has waited for so long, and is served whatever that was.
    pub fn note(&self, waited: Duration, now: Instant) {
        if self.target_us == 0 {
            return;
        }
        let now_us = self.moment(now);
        let last_us = self.noted_us.swap(now_us, Ordering::Relaxed);
        let paused = now_us.saturating_sub(last_us) > self.interval_us();
        if whole_us(waited) <= self.target_us || paused {
            self.calm_us.store(now_us, Ordering::Relaxed);
        }
        self.count(now_us, paused);
    }

    /// Measures how fast they leave, over a target's time each.
    fn count(&self, now_us: u64, paused: bool) {
        let counted = self.counted.fetch_add(1, Ordering::Relaxed) + 1;
        let from_us = self.counted_from_us.load(Ordering::Relaxed);
        let took_us = now_us.saturating_sub(from_us);
        if took_us < self.target_us {
            return;
        }
        let (relaxed, gap_ns) = (Ordering::Relaxed, took_us.saturating_mul(1_000) / counted);
        if self.counted_from_us.compare_exchange(from_us, now_us, relaxed, relaxed).is_ok() {
            self.counted.store(0, relaxed);
            self.gap_ns.store(if paused { 0 } else { gap_ns }, relaxed);
        }
    }

    /// Whether somebody who comes now, while so many are waiting, need not even enter: they would
    /// wait for too long.
    #[must_use]
    pub fn refuses_next(&self, waiting: usize, now: Instant) -> bool {
        if self.target_us == 0 || waiting < WAITING_MIN {
            return false;
        }
        let gap_ns = self.gap_ns.load(Ordering::Relaxed);
        let would_wait_us = gap_ns.saturating_mul(waiting as u64) / 1_000;
        would_wait_us > BURST_TARGETS * self.target_us
            || (would_wait_us > 2 * self.target_us && self.is_congested(now))
    }

    /// Whether everybody has waited for longer than the target for a whole interval, until now.
    fn is_congested(&self, now: Instant) -> bool {
        let now_us = self.moment(now);
        let since = |then: &AtomicU64| now_us.saturating_sub(then.load(Ordering::Relaxed));
        let interval_us = self.interval_us();
        since(&self.calm_us) > interval_us && since(&self.noted_us) <= interval_us
    }

    const fn interval_us(&self) -> u64 {
        INTERVAL_TARGETS * self.target_us
    }

    fn moment(&self, now: Instant) -> u64 {
        whole_us(now.saturating_duration_since(self.started))
    }
}

fn whole_us(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET_MS: u64 = 10;

    /// Lets ten leave each millisecond of a span; gives the last answer.
    fn leave(queue: &QueueDelay, from_ms: u64, until_ms: u64, waited_ms: u64) -> bool {
        let (mut refused, waited) = (false, Duration::from_millis(waited_ms));
        for tenth_ms in 10 * from_ms..10 * until_ms {
            let now = queue.started + Duration::from_micros(100 * tenth_ms);
            refused = queue.refuses(waited, WAITING_MIN, now);
        }
        refused
    }

    fn at(queue: &QueueDelay, ms: u64) -> Instant {
        queue.started + Duration::from_millis(ms)
    }

    fn queue() -> QueueDelay {
        QueueDelay::new(Duration::from_millis(TARGET_MS))
    }

    #[test]
    fn a_burst_is_taken_up_and_a_standing_queue_is_not() {
        let queue = queue();
        assert!(!leave(&queue, 0, 40, 25), "not yet a whole interval");
        assert!(leave(&queue, 40, 50, 25), "everybody has waited too long for an interval");
        assert!(!leave(&queue, 50, 51, 15), "between once and twice the target: served");
        assert!(leave(&queue, 51, 52, 25), "and still congested");
        let waited = Duration::from_millis(25);
        assert!(!queue.refuses(waited, WAITING_MIN - 1, at(&queue, 52)), "so few are none");
        assert!(!leave(&queue, 52, 53, 9), "somebody has not waited too long");
        assert!(!leave(&queue, 53, 90, 25), "so a new interval begins");
    }

    #[test]
    fn who_would_wait_too_long_does_not_enter() {
        let queue = queue();
        assert!(leave(&queue, 0, 100, 25));
        // Ten leave each millisecond, so of 150 who wait the last does for 15 ms.
        let refuses = |waiting, ms| queue.refuses_next(waiting, at(&queue, ms));
        assert!(!refuses(150, 100) && refuses(250, 100), "more than twice the target");
        assert!(!refuses(250, 200), "what was long ago says nothing of now");
        assert!(!leave(&queue, 200, 240, 5));
        assert!(!refuses(900, 240), "a burst, while nobody has waited too long");
        assert!(refuses(1_100, 240), "a burst of more than ten times the target");
        assert!(!refuses(0, 240));
    }

    #[test]
    fn few_are_never_too_many() {
        let queue = queue();
        for step in 0..100 {
            let now = at(&queue, 30 * step);
            assert!(!queue.refuses(Duration::from_secs(9), WAITING_MIN - 1, now));
            assert!(!queue.refuses_next(WAITING_MIN - 1, now));
        }
        assert!(queue.refuses_next(WAITING_MIN, at(&queue, 30 * 99)));
    }

    #[test]
    fn how_fast_they_leave_is_forgotten_in_a_pause() {
        let queue = queue();
        assert!(!leave(&queue, 0, 100, 5));
        queue.note(Duration::ZERO, at(&queue, 10_000));
        assert!(!queue.refuses_next(1_000_000, at(&queue, 10_000)), "nothing is known yet");
    }

    #[test]
    fn without_a_target_nobody_is_refused() {
        let queue = QueueDelay::new(Duration::ZERO);
        assert!(!leave(&queue, 0, 1_000, 500) && !queue.refuses_next(1_000, at(&queue, 1_000)));
    }
}
