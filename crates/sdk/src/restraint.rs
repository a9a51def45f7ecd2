//! Decides which beginnings a client does not even send, because the coordinator would refuse them:
//! over one connection after the other a refusal costs both ends a good part of what a transaction
//! costs, and what it costs the coordinator cannot go into transactions.
//!
//! A coordinator that is overloaded accepts as many as it can carry and refuses the rest. So a
//! client sends no more than a little beyond what was accepted lately (Beyer and others, "Site
//! Reliability Engineering", 2016, chapter 21, "Client-Side Throttling"). What is beyond keeps
//! finding out whether more is accepted again, and the more is, the more is sent. Only answered
//! requests count: a client that has sent much and heard nothing yet knows of no overload. And each
//! set of participants counts alone, because it may be one of them that is given too much.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use unanimity_core::splitmix64;

use crate::client::ClientError;

/// The code of what is refused here.
const OVERLOADED: &str = "overloaded";
/// The codes of the refusals that count. The others have causes that do not lie in how much is
/// sent.
const COUNTED: [&str; 2] = [OVERLOADED, "participant_busy"];
/// So many times what was accepted is sent.
const TIMES_ACCEPTED: f64 = 1.25;
/// One of so many is sent whatever was heard, so that the end of an overload is soon found out.
const ALWAYS_ONE_OF: f64 = 16.0;
/// Who has heard of fewer lately holds nothing back.
const HEARD_MIN: f64 = 64.0;
/// After so long only a part of e remains of what was heard.
const MEMORY: Duration = Duration::from_millis(500);
/// Where there are more sets of participants than these, all is forgotten.
const SETS_MAX: usize = 1_024;

/// A refusal of this client's own, of what was not sent.
pub(crate) fn overloaded(detail: &str) -> ClientError {
    let (code, detail) = (OVERLOADED.to_owned(), detail.to_owned());
    ClientError::Refused { status: 429, code, detail, field: None }
}

/// A set of participants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Set(u64);

impl Set {
    pub(crate) fn of<'a>(participants: impl Iterator<Item = &'a str>) -> Self {
        let mut hasher = DefaultHasher::new();
        participants.for_each(|participant| participant.hash(&mut hasher));
        Self(hasher.finish())
    }
}

/// What was lately heard of beginnings, and which are held back for it.
#[derive(Debug, Default)]
pub(crate) struct Restraint {
    heard: Mutex<HashMap<Set, Heard>>,
}

#[derive(Debug)]
struct Heard {
    accepted: f64,
    /// Those refused by the coordinator, and those held back here.
    others: f64,
    at: Instant,
    drawn: u64,
}

impl Restraint {
    /// Lets a beginning through, or refuses it here.
    ///
    /// # Errors
    /// As the coordinator would refuse it.
    pub(crate) fn pass(&self, set: Set, now: Instant) -> Result<(), ClientError> {
        let mut all = self.heard();
        if !all.get_mut(&set).is_some_and(|heard| heard.holds_back(now)) {
            return Ok(());
        }
        drop(all);
        Err(overloaded(
            "not sent, because the coordinator refuses a good part of what it is asked; try again \
             later",
        ))
    }

    /// Takes in how a beginning that was let through was answered, if it was.
    pub(crate) fn hear<T>(&self, set: Set, answer: &Result<T, ClientError>, now: Instant) {
        let accepted = match answer {
            Ok(_) => 1.0,
            Err(error) if error.code().is_some_and(|code| COUNTED.contains(&code)) => 0.0,
            Err(_) => return,
        };
        let mut all = self.heard();
        if all.len() >= SETS_MAX && !all.contains_key(&set) {
            all.clear();
        }
        let new = || Heard { accepted: 0.0, others: 0.0, at: now, drawn: set.0 };
        let heard = all.entry(set).or_insert_with(new);
        heard.forget(now);
        heard.accepted += accepted;
        heard.others += 1.0 - accepted;
    }

    /// Nothing here leaves half a change behind.
    fn heard(&self) -> MutexGuard<'_, HashMap<Set, Heard>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Heard {
    /// Whether one more is not to be sent; it is counted then.
    fn holds_back(&mut self, now: Instant) -> bool {
        self.forget(now);
        let all = self.accepted + self.others;
        let sent = (TIMES_ACCEPTED * self.accepted).max(all / ALWAYS_ONE_OF);
        let held = all >= HEARD_MIN && self.draw() * all >= sent;
        if held {
            self.others += 1.0;
        }
        held
    }

    /// Lets what was heard fade.
    fn forget(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at);
        if passed * 64 < MEMORY {
            return; // Not for every request.
        }
        let remains = (-passed.as_secs_f64() / MEMORY.as_secs_f64()).exp();
        self.accepted *= remains;
        self.others *= remains;
        self.at = now;
    }

    /// From 0 to 1, as if at random.
    fn draw(&mut self) -> f64 {
        self.drawn = splitmix64(self.drawn);
        (self.drawn >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SET: Set = Set(1);

    /// A coordinator that accepts so many each millisecond and refuses the rest, and a client that
    /// is asked for 100 each; how many it sends and how many are accepted in the last second.
    fn run(restraint: &Restraint, from: Instant, accepts: [u64; 2], ms: u64) -> (u64, u64) {
        let (mut sent, mut accepted) = (0, 0);
        for step in 0..ms {
            let now = from + Duration::from_millis(step);
            let mut left = accepts[usize::from(step >= ms / 2)];
            let last = step + 1_000 >= ms;
            for _ in 0..100 {
                if restraint.pass(SET, now).is_err() {
                    continue;
                }
                let answer = if left > 0 { Ok(()) } else { Err(refused(OVERLOADED)) };
                left = left.saturating_sub(1);
                restraint.hear(SET, &answer, now);
                sent += u64::from(last);
                accepted += u64::from(last && answer.is_ok());
            }
        }
        (sent, accepted)
    }

    fn refused(code: &str) -> ClientError {
        let (code, detail) = (code.to_owned(), String::new());
        ClientError::Refused { status: 429, code, detail, field: None }
    }

    #[test]
    fn little_more_is_sent_than_is_accepted_and_none_of_that_is_lost() {
        let now = Instant::now();
        let (sent, accepted) = run(&Restraint::default(), now, [33, 33], 4_000);
        assert!((32_000..=33_000).contains(&accepted), "{accepted} of 33,000 accepted");
        assert!((39_000..=44_000).contains(&sent), "{sent} sent for 33,000 accepted");
    }

    #[test]
    fn once_all_are_accepted_all_are_sent_again() {
        let now = Instant::now();
        for before in [33, 0] {
            let restraint = Restraint::default();
            assert_eq!(run(&restraint, now, [before, 100], 20_000), (100_000, 100_000));
        }
    }

    #[test]
    fn who_is_refused_nothing_or_hears_little_holds_nothing_back() {
        let (now, restraint) = (Instant::now(), Restraint::default());
        assert!((0..100_000).all(|_| restraint.pass(SET, now).is_ok()), "nothing is answered yet");
        for code in ["at_capacity", "id_reused"] {
            (0..1_000).for_each(|_| restraint.hear::<()>(SET, &Err(refused(code)), now));
        }
        (0..63).for_each(|_| restraint.hear::<()>(SET, &Err(refused(OVERLOADED)), now));
        assert!((0..1_000).all(|_| restraint.pass(SET, now).is_ok()), "63 are few");
        (0..100).for_each(|_| restraint.hear::<()>(SET, &Err(refused(OVERLOADED)), now));
        let held = (0..1_000).filter(|_| restraint.pass(SET, now).is_err()).count();
        assert!((900..1_000).contains(&held), "{held}");
        let other = Set::of(["http://other"].into_iter());
        assert!((0..1_000).all(|_| restraint.pass(other, now).is_ok()), "others may fare well");
        assert!(restraint.pass(SET, now + 9 * MEMORY).is_ok(), "it was long ago");
    }
}
