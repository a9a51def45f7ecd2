//! Decides when a queue has been too long for too long, so that what is new is refused while that
//! helps: before anything was done for it. What is done about it, and for whom, is left to who owns
//! the queue.
//!
//! A queue is judged by how long those who leave it have waited, never by how many are in it: the
//! same length is nothing to a fast coordinator and an age to a slow one, and how fast it is nobody
//! need know. A queue that is empty now and then is a good one, however long it gets between: it
//! takes up bursts. One in which *everybody* has waited for longer than a target, for a whole
//! interval, only adds delay (Nichols and Jacobson, "Controlling Queue Delay", ACM Queue 10(5),
//! 2012). Then those are refused who have waited for twice the target (Maurer, "Fail at Scale", ACM
//! Queue 13(8), 2015), and at the door a share of those who come, so that the rest would wait for
//! one and a half times the target, or for a part of it: to refuse somebody there costs far less
//! than to let them in.
//!
//! A share, and not everybody until the queue is short: between the door and the queue something
//! may lie, such as the writing of a record, so that the queue tells of the past. Who then lets all
//! in or none sees it overflow and run empty by turns. The share follows the queue in proportion,
//! and what that leaves over in time (a proportional-integral controller, as in RFC 8033 for
//! routers, here of the logarithm of the share that is let in: the same correction is then right
//! for twice as many as can be served and for a hundred times).

use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use unanimity_core::splitmix64;

pub(crate) use door::{Door, Inside, Waiting};

mod door;

/// A queue with fewer than this is no overload, however slowly it moves: a machine that is busy
/// with something else must not refuse the few that come. Timeouts see to those.
const WAITING_MIN: usize = 128;
/// An interval is so many times the target.
const INTERVAL_TARGETS: u64 = 4;
/// Who would wait for so many times the target is refused even in a burst.
const BURST_TARGETS: f64 = 10.0;
/// The delay that the controller aims at, in targets, where something lies between the door and the
/// queue.
const AIM_TARGETS: f64 = 1.5;
/// And where nothing does: then a short queue does not run empty, and those who wait in it find
/// more of what they brought in the processor's cache.
const AT_THE_DOOR_AIM_TARGETS: f64 = 0.25;
/// By how much the logarithm of the share let in falls for each target of delay beyond.
const PROPORTIONAL: f64 = 0.5;
/// And by how much for each target of delay beyond and each target of time for which it lasts.
const INTEGRAL: f64 = 0.1;
/// No more than so many targets of delay beyond count for that: the rest goes away by itself.
const INTEGRAL_TARGETS_MAX: f64 = 1.0;
/// So little is let in at least: e to minus this.
const INTEGRAL_MAX: f64 = 7.0;

/// How long those who leave a queue have waited, lately, and how fast they leave.
///
/// Two threads that note at the same time may each overwrite the other: the judgement is made of
/// many, and one more or less changes nothing.
#[derive(Debug)]
pub struct QueueDelay {
    started: Instant,
    /// 0: it is never too long.
    target_us: u64,
    /// The delay that is aimed at where too many come, in targets.
    aim: f64,
    /// Between two who leave, as it was counted last; 0: not known.
    gap_ns: AtomicU64,
    leaving: Apart<Leaving>,
    coming: Apart<Coming>,
}

/// What those write who leave.
#[derive(Debug, Default)]
struct Leaving {
    /// When somebody last had not waited for too long, in microseconds since the start.
    calm_us: AtomicU64,
    /// When somebody last left.
    noted_us: AtomicU64,
    /// Since when those who leave are counted.
    counted_from_us: AtomicU64,
    /// How many have left since then.
    counted: AtomicU64,
}

/// What those write who come.
#[derive(Debug, Default)]
struct Coming {
    /// What the delay beyond the aim has come to over time, as a float; above zero while any are
    /// refused at the door.
    integral: AtomicU64,
    /// Up to when it is reckoned.
    reckoned_us: AtomicU64,
    drawn: AtomicU64,
}

/// Something on cache lines of its own, of which processors fetch two at a time: cores that write
/// what lies beside it do not wait for each other.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Apart<T>(T);

impl<T> Deref for Apart<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl QueueDelay {
    /// For a queue in which waiting for `target` is acceptable; zero: any time is.
    #[must_use]
    pub fn new(target: Duration) -> Self {
        Self {
            started: Instant::now(),
            target_us: whole_us(target),
            aim: AIM_TARGETS,
            gap_ns: AtomicU64::new(0),
            leaving: Apart::default(),
            coming: Apart::default(),
        }
    }

    /// Somebody leaves the queue now who has waited for so long, and so many are waiting still.
    /// Says whether to refuse them.
    #[must_use]
    pub fn refuses(&self, waited: Duration, waiting: usize, now: Instant) -> bool {
        if self.target_us == 0 {
            return false;
        }
        let (now_us, paused) = self.see(waited, now);
        let too_long = whole_us(waited) > 2 * self.target_us;
        let refused = too_long && waiting >= WAITING_MIN && self.is_congested(now);
        if !refused {
            let stood = waiting > 0 || whole_us(waited) > self.target_us;
            self.count(now_us, paused || !stood);
        }
        refused
    }

    /// Somebody leaves the queue now who has waited for so long, and is served whatever that was.
    pub fn note(&self, waited: Duration, now: Instant) {
        if self.target_us > 0 {
            let (now_us, paused) = self.see(waited, now);
            self.count(now_us, paused || waited.is_zero());
        }
    }

    /// Takes in how long one has waited; gives back the moment, and whether none left for long.
    fn see(&self, waited: Duration, now: Instant) -> (u64, bool) {
        let now_us = self.moment(now);
        // Not in one: an atomic exchange waits for all that was written before, and here two who
        // note at the same time may overwrite each other.
        let Leaving { calm_us, noted_us, .. } = &*self.leaving;
        let last_us = noted_us.load(Ordering::Relaxed);
        noted_us.store(now_us, Ordering::Relaxed);
        let paused = now_us.saturating_sub(last_us) > self.interval_us();
        if whole_us(waited) <= self.target_us || paused {
            calm_us.store(now_us, Ordering::Relaxed);
        }
        (now_us, paused)
    }

    /// Measures how fast they are served, over a target's time each, while others stand behind
    /// them: how seldom they come while nobody does says nothing of how fast they could be served.
    /// Those who leave because they are refused do not count: they leave so fast that the queue
    /// would seem short to the next.
    fn count(&self, now_us: u64, nobody_stood: bool) {
        let relaxed = Ordering::Relaxed;
        let Leaving { counted_from_us, counted: count, .. } = &*self.leaving;
        if nobody_stood {
            counted_from_us.store(now_us, relaxed);
            count.store(0, relaxed);
            if self.gap_ns.load(relaxed) != 0 {
                self.gap_ns.store(0, relaxed); // Those who come read it, each of them.
            }
            return;
        }
        let counted = count.load(relaxed) + 1;
        count.store(counted, relaxed); // As above.
        let from_us = counted_from_us.load(relaxed);
        let took_us = now_us.saturating_sub(from_us);
        if took_us < self.target_us {
            return;
        }
        let gap_ns = took_us.saturating_mul(1_000) / counted;
        if counted_from_us.compare_exchange(from_us, now_us, relaxed, relaxed).is_ok() {
            count.store(0, relaxed);
            self.gap_ns.store(gap_ns, relaxed);
        }
    }

    /// Whether somebody who comes now, while so many are waiting, need not even enter.
    #[must_use]
    pub fn refuses_next(&self, waiting: usize, now: Instant) -> bool {
        if self.target_us == 0 {
            return false;
        }
        let gap_ns = self.gap_ns.load(Ordering::Relaxed);
        let delay = gap_ns as f64 * waiting as f64 / (1_000.0 * self.target_us as f64);
        let few = waiting < WAITING_MIN;
        // So few are as good as none: else what they add up to would grow while nobody is refused.
        let integral = self.integral(if few { 0.0 } else { delay }, now);
        if few {
            return false;
        }
        let refused = PROPORTIONAL * self.beyond(delay) + integral;
        delay > BURST_TARGETS || (integral > 0.0 && self.draw() > (-refused).exp())
    }

    /// Reckons on to now, with the delay in targets. It stays at zero until the queue has been too
    /// long for an interval.
    fn integral(&self, delay: f64, now: Instant) -> f64 {
        let (relaxed, now_us) = (Ordering::Relaxed, self.moment(now));
        let Coming { integral: held, reckoned_us, .. } = &*self.coming;
        let (from_us, bits) = (reckoned_us.load(relaxed), held.load(relaxed));
        let passed_us = now_us.saturating_sub(from_us);
        // Nobody has asked for long: what it had come to says nothing of now.
        let stale = passed_us > self.interval_us();
        let integral = if stale { 0.0 } else { f64::from_bits(bits) };
        // Not for everybody who comes, and for each moment once.
        if passed_us * 32 < self.target_us
            || reckoned_us.compare_exchange(from_us, now_us, relaxed, relaxed).is_err()
        {
            return integral;
        }
        let beyond = self.beyond(delay).min(INTEGRAL_TARGETS_MAX);
        let passed = passed_us.min(self.interval_us()) as f64 / self.target_us as f64;
        let moves = Self::since(&self.leaving.noted_us, now_us) <= self.interval_us();
        let next = if moves && (integral > 0.0 || self.is_congested(now)) {
            (integral + INTEGRAL * beyond * passed).clamp(0.0, INTEGRAL_MAX)
        } else {
            0.0
        };
        held.store(next.to_bits(), relaxed);
        next
    }

    /// How far the delay is beyond what is aimed at, in targets. An empty queue counts as a whole
    /// target below it at least, however near it is: an overload that is over is to be forgotten
    /// soon.
    fn beyond(&self, delay: f64) -> f64 {
        let beyond = delay - self.aim;
        if beyond < 0.0 { beyond / self.aim.min(1.0) } else { beyond }
    }

    /// From 0 to 1, as if at random.
    fn draw(&self) -> f64 {
        let drawn = splitmix64(self.coming.drawn.fetch_add(1, Ordering::Relaxed));
        (drawn >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Whether everybody has waited for longer than the target for a whole interval, until now.
    fn is_congested(&self, now: Instant) -> bool {
        let (now_us, interval_us) = (self.moment(now), self.interval_us());
        Self::since(&self.leaving.calm_us, now_us) > interval_us
            && Self::since(&self.leaving.noted_us, now_us) <= interval_us
    }

    fn since(then: &AtomicU64, now_us: u64) -> u64 {
        now_us.saturating_sub(then.load(Ordering::Relaxed))
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
    use std::collections::VecDeque;

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
    fn of_those_who_would_wait_too_long_a_share_does_not_enter() {
        let queue = queue();
        assert!(leave(&queue, 0, 100, 25));
        // Ten leave each millisecond, so of 250 who wait the last does for 25 ms.
        let refused = |waiting, ms| {
            let times = (0..1_000).filter(|_| queue.refuses_next(waiting, at(&queue, ms)));
            times.count()
        };
        assert_eq!(refused(150, 100), 0, "one and a half targets is what is aimed at");
        let few = refused(250, 101);
        assert!((1..600).contains(&few), "{few}");
        let many = refused(900, 101);
        assert!((900..1_000).contains(&many), "{many}");
        assert_eq!(refused(250, 200), 0, "what was long ago says nothing of now");
        assert!(!leave(&queue, 200, 240, 5));
        assert_eq!(refused(900, 240), 0, "a burst, while nobody has waited too long");
        assert_eq!(refused(1_100, 240), 1_000, "a burst of more than ten times the target");
        assert_eq!(refused(0, 240), 0);
    }

    #[test]
    fn after_a_trickle_many_may_come_at_once() {
        for each_ms in [2, 20, 200] {
            let queue = queue();
            for turn in 0..100 {
                let now = at(&queue, turn * each_ms);
                assert!(!queue.refuses(Duration::ZERO, 0, now) && !queue.refuses_next(0, now));
            }
            let now = at(&queue, 100 * each_ms);
            let refused = (0..1_000).filter(|waiting| queue.refuses_next(*waiting, now)).count();
            assert_eq!(refused, 0, "one each {each_ms} ms before");
        }
    }

    #[test]
    fn an_overload_that_is_over_is_forgotten_though_nobody_asked_meanwhile() {
        let queue = queue();
        for ms in 0..2_000 {
            leave(&queue, ms, ms + 1, 25);
            let _ = queue.refuses_next(900, at(&queue, ms));
        }
        assert!(queue.integral(1.5, at(&queue, 2_000)) > 0.0, "it was overloaded");
        for ms in 2_000..3_000 {
            queue.note(Duration::ZERO, at(&queue, ms));
        }
        let refused = (0..1_000).filter(|_| queue.refuses_next(200, at(&queue, 3_000))).count();
        assert_eq!(refused, 0);
    }

    /// What came of the second half of a long overload.
    #[derive(Debug)]
    struct Course {
        idle: u64,
        delay_ms: [u64; 2],
    }

    /// So many times as many come as can be served, ten each millisecond; whoever is let in comes
    /// to the queue only after a lag.
    fn overload(times: u64, lag_ms: u64, aim: f64) -> Course {
        const STEPS: u64 = 100_000;
        let queue = QueueDelay { aim, ..QueueDelay::new(Duration::from_millis(10 * TARGET_MS)) };
        let (mut on_the_way, mut waiting) = (VecDeque::new(), VecDeque::new());
        let (mut idle, mut least, mut most) = (0, u64::MAX, 0);
        for step in 0..STEPS {
            let now = queue.started + Duration::from_micros(100 * step);
            for _ in 0..times {
                if !queue.refuses_next(waiting.len(), now) {
                    on_the_way.push_back(step + 10 * lag_ms);
                }
            }
            while on_the_way.front().is_some_and(|comes| *comes <= step) {
                waiting.extend(on_the_way.pop_front());
            }
            let served = waiting.pop_front();
            if let Some(came) = served {
                queue.note(Duration::from_micros(100 * (step - came)), now);
            }
            if step >= STEPS / 2 {
                idle += u64::from(served.is_none());
                least = least.min(waiting.len() as u64 / 10);
                most = most.max(waiting.len() as u64 / 10);
            }
        }
        Course { idle, delay_ms: [least, most] }
    }

    /// Neither does the queue run empty nor does it grow long, however much comes, and although
    /// what it tells is old.
    #[test]
    fn in_overload_the_delay_stays_by_the_target_and_nobody_is_idle() {
        for times in [2, 3, 10] {
            for lag_ms in [0, 100, 200] {
                let course = overload(times, lag_ms, AIM_TARGETS);
                let Course { idle, delay_ms: [least, most] } = course;
                let near = idle == 0 && least >= 100 && most <= 210;
                assert!(near, "{times} x, {lag_ms} ms late, a target of 100 ms: {course:?}");
            }
        }
    }

    /// Nothing lies between, so the queue may be short, and still nobody is idle.
    #[test]
    fn at_the_door_the_delay_is_a_part_of_the_target_in_overload_and_nobody_is_idle() {
        for times in [2, 3, 10] {
            let course = overload(times, 0, AT_THE_DOOR_AIM_TARGETS);
            let Course { idle, delay_ms: [least, most] } = course;
            assert!(idle == 0 && least >= 12 && most <= 50, "{times} x: {course:?}");
        }
    }

    /// Where so few are served that the aim is less than what is never too many, that many wait and
    /// an overload that is over is forgotten all the same.
    #[test]
    fn where_the_aim_is_a_few_their_number_counts() {
        let aim = AT_THE_DOOR_AIM_TARGETS;
        let queue = QueueDelay { aim, ..QueueDelay::new(Duration::from_millis(100)) };
        let mut waiting = VecDeque::new();
        for ms in 0..10_000 {
            let now = at(&queue, ms);
            for _ in 0..3 {
                if !queue.refuses_next(waiting.len(), now) {
                    waiting.push_back(ms);
                }
            }
            let came = waiting.pop_front();
            queue.note(Duration::from_millis(ms - came.unwrap_or(ms)), now);
        }
        let count = waiting.len();
        assert!((WAITING_MIN - 3..WAITING_MIN + 30).contains(&count), "{count} wait");
        // One a millisecond comes from now on, which can be served, and the queue runs empty.
        for ms in 10_000..12_000 {
            let now = at(&queue, ms);
            let _ = queue.refuses_next(0, now);
            queue.note(Duration::ZERO, now);
        }
        let refused = (0..100).filter(|_| queue.refuses_next(140, at(&queue, 12_000))).count();
        assert_eq!(refused, 0);
    }

    /// Were those counted who are refused, the queue would seem to move as fast as they go.
    #[test]
    fn only_those_who_are_served_tell_how_fast_it_moves() {
        let queue = queue();
        assert!(!leave(&queue, 0, 40, 15), "one each tenth of a millisecond is served");
        let (waited, now) = (Duration::from_millis(25), at(&queue, 41));
        let refused = (0..10_000).all(|_| queue.refuses(waited, WAITING_MIN, now));
        assert!(refused && queue.refuses(waited, WAITING_MIN, at(&queue, 60)));
        assert!(!queue.refuses(Duration::from_millis(15), WAITING_MIN, at(&queue, 60)));
        assert!(queue.refuses_next(500, at(&queue, 60)), "they would wait for 50 ms still");
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
