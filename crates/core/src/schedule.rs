//! Decides when something is tried again, and keeps the list of what is due when. The clock and the
//! seed come from the driver; a retry's jitter is a pure function of that seed.

use std::collections::BTreeSet;

use crate::{Millis, TransactionId};

/// When a call that got no decisive answer is tried again. All times are in milliseconds.
///
/// Delays double from `delay_ms` to `delay_max_ms`; each is drawn from its upper half, so that
/// calls that failed together do not return together (equal jitter: Brooker, "Exponential Backoff
/// And Jitter", AWS Architecture Blog, 2015).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RetryPolicy {
    /// The first delay.
    pub delay_ms: u64,
    /// The longest delay while the branch is not parked.
    pub delay_max_ms: u64,
    /// After this many failures in a row a branch is parked: visible, alerting, tried rarely.
    pub park_after_attempts: u16,
    /// The delay between attempts while a branch is parked.
    pub parked_delay_ms: u64,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            delay_ms: 50,
            delay_max_ms: 10_000,
            park_after_attempts: 12,
            parked_delay_ms: 60_000,
        }
    }
}

impl RetryPolicy {
    /// The delay after the given number of failures in a row (1 or more), in phase two.
    #[must_use]
    pub fn delay_after(&self, failures: u16, random: u64) -> u64 {
        if self.parks(failures) {
            return jitter(self.parked_delay_ms, random);
        }
        self.delay_unparked(failures, random)
    }

    /// The same in phase one, which is short, has its own deadline, and parks nothing.
    #[must_use]
    pub fn delay_unparked(&self, failures: u16, random: u64) -> u64 {
        let doublings = u32::from(failures.saturating_sub(1)).min(32);
        let grown = self.delay_ms.saturating_mul(1_u64 << doublings);
        jitter(grown.min(self.delay_max_ms), random)
    }

    /// Whether a branch with this many failures in a row is parked.
    #[must_use]
    pub const fn parks(&self, failures: u16) -> bool {
        failures >= self.park_after_attempts
    }
}

/// Between half of `delay_ms` and all of it, never 0.
fn jitter(delay_ms: u64, random: u64) -> u64 {
    let half = delay_ms / 2;
    (delay_ms - half + random % (half + 1)).max(1)
}

/// SplitMix64 (Steele, Lea and Flood: "Fast Splittable Pseudorandom Number Generators", OOPSLA
/// 2014): turns a counter into evenly spread bits. Not for secrets.
#[must_use]
pub const fn splitmix64(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// What a timer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TimerPurpose {
    /// Phase one has taken too long: roll back.
    PhaseOneDeadline,
    /// The whole transaction has taken too long: roll back if undecided, else mark as overdue.
    Overdue,
    /// Try this branch again.
    Retry(u16),
}

/// Something that becomes due at a moment.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timer {
    /// When.
    pub at: Millis,
    /// For which transaction.
    pub transaction: TransactionId,
    /// What for.
    pub purpose: TimerPurpose,
}

/// Everything that is due at some moment, soonest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Schedule {
    timers: BTreeSet<Timer>,
}

impl Schedule {
    pub(crate) fn arm(&mut self, timer: Timer) {
        self.timers.insert(timer);
    }

    pub(crate) fn disarm(&mut self, timer: &Timer) -> bool {
        self.timers.remove(timer)
    }

    pub(crate) fn first(&self) -> Option<&Timer> {
        self.timers.first()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Timer> {
        self.timers.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_stay_in_bounds_and_end_parked() {
        let policy = RetryPolicy::default();
        let mut ceiling = policy.delay_ms;
        for failures in 1..policy.park_after_attempts {
            for random in [0, 1, 7, u64::MAX] {
                let delay = policy.delay_after(failures, random);
                assert!(delay <= ceiling && delay >= ceiling / 2, "{failures}: {delay}");
            }
            ceiling = (ceiling * 2).min(policy.delay_max_ms);
        }
        assert!(policy.delay_after(policy.park_after_attempts, 0) >= policy.parked_delay_ms / 2);
        assert!(policy.delay_after(u16::MAX, u64::MAX) <= policy.parked_delay_ms);
    }
}
