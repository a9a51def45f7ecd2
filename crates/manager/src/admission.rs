//! Decides when a queue has been too long for too long, so that what is new is refused while that
//! helps: before anything was done for it. What is done about it, and for whom, is left to who owns
//! the queue.
//!
//! A queue is judged by how long those who leave it have waited, never by how many are in it: the
//! same length is nothing to a fast coordinator and an age to a slow one, and how fast it is nobody
//! need know. A queue that is empty now and then is a good one, however long it gets between: it
//! takes up bursts. One in which *everybody* has waited for longer than a target, for a whole
//! interval, only adds delay (Nichols and Jacobson, "Controlling Queue Delay", ACM Queue 10(5),
//! 2012). Then those who have waited for twice the target are refused, which holds the delay there
//! (Maurer, "Fail at Scale", ACM Queue 13(8), 2015): between once and twice the target it stays
//! congested, so the judgement does not flutter.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// An interval is so many times the target.
const INTERVAL_TARGETS: u64 = 10;

/// How long those who leave a queue have waited, lately.
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
    /// How long they had waited.
    waited_us: AtomicU64,
}

impl QueueDelay {
    /// For a queue in which waiting for `target` is acceptable; zero: any time is.
    #[must_use]
    pub fn new(target: Duration) -> Self {
        let zero = || AtomicU64::new(0);
        let (calm_us, noted_us, waited_us) = (zero(), zero(), zero());
        let (started, target_us) = (Instant::now(), whole_us(target));
        Self { started, target_us, calm_us, noted_us, waited_us }
    }

    /// Somebody leaves the queue now who has waited for so long. Says whether to refuse them.
    #[must_use]
    pub fn refuses(&self, waited: Duration, now: Instant) -> bool {
        self.note(waited, now);
        self.refuses_next(now)
    }

    /// Somebody leaves the queue now who has waited for so long, and is served whatever that was.
    pub fn note(&self, waited: Duration, now: Instant) {
        if self.target_us == 0 {
            return;
        }
        let (now_us, waited_us) = (self.moment(now), whole_us(waited));
        let last_us = self.noted_us.swap(now_us, Ordering::Relaxed);
        let paused = now_us.saturating_sub(last_us) > self.interval_us();
        if waited_us <= self.target_us || paused {
            self.calm_us.store(now_us, Ordering::Relaxed);
        }
        self.waited_us.store(waited_us, Ordering::Relaxed);
    }

    /// Whether somebody who comes now need not even enter: they would wait for too long. Only to be
    /// asked while the queue is not empty, or nobody may ever enter it again.
    #[must_use]
    pub fn refuses_next(&self, now: Instant) -> bool {
        let waited_us = self.waited_us.load(Ordering::Relaxed);
        self.target_us > 0 && waited_us > 2 * self.target_us && self.is_congested(now)
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

    /// Lets somebody leave each millisecond of a span; gives the last answer.
    fn leave(queue: &QueueDelay, from_ms: u64, until_ms: u64, waited_ms: u64) -> bool {
        let (mut refused, waited) = (false, Duration::from_millis(waited_ms));
        for ms in from_ms..until_ms {
            refused = queue.refuses(waited, queue.started + Duration::from_millis(ms));
        }
        refused
    }

    fn queue() -> QueueDelay {
        QueueDelay::new(Duration::from_millis(TARGET_MS))
    }

    #[test]
    fn a_burst_is_taken_up_and_a_standing_queue_is_not() {
        let queue = queue();
        assert!(!leave(&queue, 0, 100, 25), "not yet a whole interval");
        assert!(leave(&queue, 100, 110, 25), "everybody has waited too long for an interval");
        assert!(!leave(&queue, 110, 111, 15), "between once and twice the target: served");
        assert!(leave(&queue, 111, 112, 25), "and still congested");
        assert!(!leave(&queue, 112, 113, 9), "somebody has not waited too long");
        assert!(!leave(&queue, 113, 200, 25), "so a new interval begins");
    }

    #[test]
    fn who_comes_is_refused_as_who_leaves_is() {
        let (queue, at) = (queue(), |ms| Duration::from_millis(ms));
        assert!(leave(&queue, 0, 150, 25));
        assert!(queue.refuses_next(queue.started + at(150)));
        let after_a_pause = queue.started + at(150 + 10 * TARGET_MS + 1);
        assert!(!queue.refuses_next(after_a_pause), "what was long ago says nothing");
        assert!(!queue.refuses(at(25), after_a_pause), "nor does it of the first that comes then");
    }

    #[test]
    fn without_a_target_nobody_is_refused() {
        assert!(!leave(&QueueDelay::new(Duration::ZERO), 0, 1_000, 500));
    }
}
