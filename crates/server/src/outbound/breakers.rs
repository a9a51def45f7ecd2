//! Keeps a breaker for every participant that fails, tells time to it, and tells people of it: a
//! line in the log when one opens and when it closes, a gauge of those that hold calls back, a
//! counter of the calls held back. What a breaker does is `breaker`'s to decide.
//!
//! A participant is a scheme, host and port, as for connections. Only those whose last call failed
//! have a breaker; while there is none, a call costs one look at a number.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::breaker::{Breaker, BreakerConfig, Change, Generation, Next};

/// After so many milliseconds without a call a participant is forgotten: there is nothing for it.
const FORGET_MS: u64 = 600_000;
/// More generations than one breaker can go through while a call is under way.
const GENERATIONS: u64 = 1 << 32;

/// The wall clock, which is only looked at once: a step of it moves no probe.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    started: Instant,
    epoch_ms: u64,
    #[cfg(test)]
    stands_still: Option<&'static std::sync::atomic::AtomicU64>,
}

impl Clock {
    pub(crate) fn start() -> Self {
        let epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            started: Instant::now(),
            epoch_ms: u64::try_from(epoch.as_millis()).unwrap_or(0),
            #[cfg(test)]
            stands_still: None,
        }
    }

    /// One that a test moves.
    #[cfg(test)]
    pub(crate) fn at(now_ms: &'static std::sync::atomic::AtomicU64) -> Self {
        Self { stands_still: Some(now_ms), ..Self::start() }
    }

    /// Milliseconds since the Unix epoch.
    pub(crate) fn now_ms(&self) -> u64 {
        #[cfg(test)]
        if let Some(now_ms) = self.stands_still {
            return now_ms.load(Ordering::SeqCst);
        }
        let since = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.epoch_ms.saturating_add(since)
    }
}

#[derive(Debug, Default)]
struct Table {
    breakers: HashMap<String, Breaker>,
    /// How many hold calls back.
    holding: usize,
    /// How many there have been.
    made: u64,
}

/// The breakers of all participants that fail.
#[derive(Debug)]
pub(crate) struct Breakers {
    config: BreakerConfig,
    participants_max: usize,
    clock: Clock,
    table: Mutex<Table>,
    /// How many are in the table.
    known: AtomicUsize,
}

impl Breakers {
    pub(crate) fn new(config: BreakerConfig, participants_max: usize, clock: Clock) -> Self {
        metrics::gauge!("unanimity_breakers_open").set(0.0);
        Self {
            config,
            participants_max,
            clock,
            table: Mutex::default(),
            known: AtomicUsize::new(0),
        }
    }

    /// Lets a call go, or says why it is held back.
    pub(crate) fn admit<'a>(&'a self, origin: &'a str) -> Result<Pass<'a>, String> {
        let gone = |generation| Pass { breakers: self, origin, generation, sent: false };
        if self.known.load(Ordering::Relaxed) == 0 {
            return Ok(gone(None));
        }
        let now_ms = self.clock.now_ms();
        let mut table = self.table();
        let Some(breaker) = table.breakers.get_mut(origin) else { return Ok(gone(None)) };
        let (generation, change) = breaker.admit(&self.config, now_ms);
        let held = generation.is_none().then(|| self.reason(origin, breaker));
        self.note(table, origin, change);
        match held {
            None => Ok(gone(generation)),
            Some(reason) => {
                metrics::counter!("unanimity_calls_held_back_total").increment(1);
                Err(reason)
            }
        }
    }

    /// Why a call is held back. The same words for as long as nothing changes: equal failures are
    /// one event in a transaction's timeline, however many there are.
    fn reason(&self, origin: &str, breaker: &Breaker) -> String {
        let (since, error) = (utc(breaker.since_ms()), breaker.error());
        if breaker.drains() {
            let most = self.config.drain_per_second;
            return format!(
                "held back: {origin} had failed since {since} and is back; it is given its calls \
                 at a growing rate, {most} a second at most"
            );
        }
        let probe_ms = self.config.probe_ms;
        format!(
            "held back: {origin} has failed since {since} and is probed every {probe_ms} ms; last \
             error: {error}"
        )
    }

    /// What keeps calls from a participant at this moment; `None` if nothing does.
    pub(crate) fn standing(&self, origin: &str) -> Option<String> {
        let now_ms = self.clock.now_ms();
        let table = self.table();
        let breaker = table.breakers.get(origin).filter(|breaker| breaker.holds_back())?;
        let since = utc(breaker.since_ms());
        Some(match breaker.next(now_ms) {
            Next::Probe(0) => format!("{origin} fails since {since}: the next call probes it"),
            Next::Probe(ms) => {
                format!(
                    "{origin} fails since {since}: calls are held back for {ms} ms, then one \
                         probes it"
                )
            }
            Next::ProbeAnswers => {
                format!(
                    "{origin} fails since {since}: a probe's answer is awaited, and other \
                         calls are held back"
                )
            }
            Next::Drains(rate) => {
                format!(
                    "{origin} had failed since {since} and is back: it is given {rate} calls a \
                         second, and more with each second"
                )
            }
        })
    }

    /// Whether calls are held back from a participant, or let go one by one.
    pub(crate) fn hold_back(&self, origin: &str) -> bool {
        self.known.load(Ordering::Relaxed) > 0
            && self.table().breakers.get(origin).is_some_and(Breaker::holds_back)
    }

    fn generation(&self, origin: &str) -> Option<Generation> {
        self.table().breakers.get(origin).map(Breaker::generation)
    }

    fn answered(&self, origin: &str) {
        if self.known.load(Ordering::Relaxed) == 0 {
            return;
        }
        let now_ms = self.clock.now_ms();
        let mut table = self.table();
        let Some(breaker) = table.breakers.get_mut(origin) else { return };
        let change = breaker.answered(&self.config, now_ms);
        self.note(table, origin, change);
    }

    fn failed(&self, origin: &str, of: Option<Generation>, error: &str) {
        if self.config.failures == 0 {
            return;
        }
        let now_ms = self.clock.now_ms();
        let mut table = self.table();
        if !table.breakers.contains_key(origin) {
            make_room(&mut table, self.participants_max);
            table.made += 1;
            let breaker = Breaker::new(table.made.wrapping_mul(GENERATIONS), now_ms);
            table.breakers.insert(origin.to_owned(), breaker);
        }
        let Some(breaker) = table.breakers.get_mut(origin) else { return };
        let change = breaker.failed(&self.config, now_ms, of, error);
        self.note(table, origin, change);
    }

    fn withdrawn(&self, origin: &str, of: Option<Generation>) {
        let Some(of) = of else { return };
        if let Some(breaker) = self.table().breakers.get_mut(origin) {
            breaker.withdrawn(of);
        }
    }

    /// Lets time pass for breakers that nobody asks, and forgets those that nobody has asked for
    /// long.
    pub(crate) fn sweep(&self) {
        if self.known.load(Ordering::Relaxed) == 0 {
            return;
        }
        let now_ms = self.clock.now_ms();
        let origins: Vec<String> = self.table().breakers.keys().cloned().collect();
        for origin in origins {
            let mut table = self.table();
            let Some(breaker) = table.breakers.get_mut(&origin) else { continue };
            let change = breaker.pass_time(&self.config, now_ms);
            if now_ms.saturating_sub(breaker.called_ms()) >= FORGET_MS {
                table.forget(&origin);
            }
            self.note(table, &origin, change);
        }
    }

    /// Brings the numbers up to date after something was done with a breaker, and tells people.
    fn note(&self, mut table: MutexGuard<'_, Table>, origin: &str, change: Change) {
        let Some(breaker) = table.breakers.get(origin) else {
            return self.publish(&table);
        };
        let (failing_ms, error) = match change {
            Change::Nothing => (0, String::new()),
            Change::Opened | Change::Closed => {
                let failing_ms = self.clock.now_ms().saturating_sub(breaker.since_ms());
                (failing_ms, breaker.error().to_owned())
            }
        };
        match change {
            Change::Nothing => {}
            Change::Opened => table.holding += 1,
            Change::Closed => table.holding -= 1,
        }
        if table.breakers.get(origin).is_some_and(Breaker::is_well) {
            table.breakers.remove(origin);
        }
        self.publish(&table);
        drop(table);
        let failures = self.config.failures;
        match change {
            Change::Nothing => {}
            Change::Opened => tracing::warn!(
                participant = origin,
                failures,
                failing_ms,
                error,
                "a participant fails: its calls are held back, and it is probed"
            ),
            Change::Closed => tracing::info!(
                participant = origin,
                failing_ms,
                "a participant is back: its calls are no longer held back"
            ),
        }
    }

    fn publish(&self, table: &Table) {
        self.known.store(table.breakers.len(), Ordering::Relaxed);
        metrics::gauge!("unanimity_breakers_open").set(table.holding as f64);
    }

    /// Nothing is left half done under the lock.
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(crate) fn known(&self) -> (usize, usize) {
        let table = self.table();
        (table.breakers.len(), table.holding)
    }
}

impl Table {
    fn forget(&mut self, origin: &str) {
        if self.breakers.remove(origin).is_some_and(|breaker| breaker.holds_back()) {
            self.holding -= 1;
        }
    }
}

/// Forgets the participant that nobody has called for the longest time, if there are too many. It
/// has to fail anew before its calls are held back again.
fn make_room(table: &mut Table, participants_max: usize) {
    if table.breakers.len() < participants_max {
        return;
    }
    let oldest = table.breakers.iter().min_by_key(|(_, breaker)| breaker.called_ms());
    if let Some(origin) = oldest.map(|(origin, _)| origin.clone()) {
        table.forget(&origin);
    }
}

/// A call that was let go. Dropped without a word it counts as failed if it had left, because its
/// time was over.
#[derive(Debug)]
pub(crate) struct Pass<'a> {
    breakers: &'a Breakers,
    origin: &'a str,
    generation: Option<Generation>,
    sent: bool,
}

impl<'a> Pass<'a> {
    /// Asks again after a wait, in which the participant may have failed.
    pub(crate) fn again(self) -> Result<Self, String> {
        let breakers: &'a Breakers = self.breakers;
        let changed = breakers.known.load(Ordering::Relaxed) > 0
            && breakers.generation(self.origin) != self.generation;
        if changed { breakers.admit(self.origin) } else { Ok(self) }
    }

    /// From now on whatever happens is the participant's doing.
    pub(crate) const fn leaves(&mut self) {
        self.sent = true;
    }

    /// The participant has said something of its own.
    pub(crate) fn answered(mut self) {
        self.sent = false;
        self.generation = None;
        self.breakers.answered(self.origin);
    }

    /// Nothing is known of it, or nothing new.
    pub(crate) fn withdraw(mut self) {
        self.sent = false;
    }

    /// It has not.
    pub(crate) fn failed(mut self, error: &str) {
        self.sent = false;
        self.breakers.failed(self.origin, self.generation.take(), error);
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        let generation = self.generation.take();
        if self.sent {
            self.breakers.failed(self.origin, generation, "no answer in time");
        } else {
            self.breakers.withdrawn(self.origin, generation);
        }
    }
}

/// A time in milliseconds since the Unix epoch, as people read it: `2026-11-22T02:15:12Z`.
fn utc(ms: u64) -> String {
    let (days, second) = (ms / 86_400_000, ms / 1_000 % 86_400);
    // Years that begin in March, so that a leap day is the last of its year, in eras of 400 years
    // (Hinnant, "chrono-Compatible Low-Level Date Algorithms", 2013).
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::utc;

    #[test]
    fn times_are_readable() {
        for (ms, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399_999, "2000-02-28T23:59:59Z"),
            (951_782_400_000, "2000-02-29T00:00:00Z"),
            (1_795_313_712_000, "2026-11-22T02:15:12Z"),
            (4_107_542_399_000, "2100-02-28T23:59:59Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(utc(ms), expected);
        }
    }
}
