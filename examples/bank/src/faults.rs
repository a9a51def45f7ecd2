//! Decides when the bank misbehaves, and how. Every message draws its faults from the seed and its
//! own name (transaction, branch, operation, attempt), so the same run meets the same faults in
//! whatever order its messages arrive, and a later attempt draws anew.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use unanimity_sdk::{BranchContext, Moment, splitmix64};

/// The longest delay that may be asked for, in milliseconds: ten minutes.
const DELAY_MS_MAX: u64 = 600_000;

/// A way to misbehave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A prepare or execute that could be done is refused, for good.
    VoteNo = 0,
    /// The answer is a 503, and nothing was done.
    ErrorBefore = 1,
    /// The work is done, and the answer is a 500.
    ErrorAfter = 2,
    /// The work is done, and answered, but only after a delay.
    Delay = 3,
    /// The work is done, and the connection breaks without an answer.
    LostAnswer = 4,
    /// The process aborts before the local commit: nothing was done.
    CrashBefore = 5,
    /// The process aborts after the local commit, before the answer: all was done.
    CrashAfter = 6,
}

impl Fault {
    /// Every fault, in the order of their numbers.
    pub const ALL: [Self; 7] = [
        Self::VoteNo,
        Self::ErrorBefore,
        Self::ErrorAfter,
        Self::Delay,
        Self::LostAnswer,
        Self::CrashBefore,
        Self::CrashAfter,
    ];

    /// The word in a specification.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::VoteNo => "vote_no",
            Self::ErrorBefore => "error_before",
            Self::ErrorAfter => "error_after",
            Self::Delay => "delay",
            Self::LostAnswer => "lost_answer",
            Self::CrashBefore => "crash_before",
            Self::CrashAfter => "crash_after",
        }
    }
}

/// How often each fault strikes: `name=probability`, separated by commas. `delay` takes its length
/// too (`delay=0.01:6000` is 6,000 ms for one message in a hundred); `crash=P` is half of P before
/// the local commit and half after it. An empty text is no fault at all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FaultSpec {
    probabilities: [f64; 7],
    delay_ms: u64,
}

impl FaultSpec {
    /// How often a fault strikes, from 0 to 1.
    #[must_use]
    pub const fn probability(&self, fault: Fault) -> f64 {
        self.probabilities[fault as usize]
    }

    /// The length of a delay, in milliseconds.
    #[must_use]
    pub const fn delay_ms(&self) -> u64 {
        self.delay_ms
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let (value, length) = match value.split_once(':') {
            Some((value, length)) => (value, Some(length)),
            None => (value, None),
        };
        let probability = value.parse::<f64>().ok().filter(|p| (0.0..=1.0).contains(p));
        let probability = probability
            .ok_or_else(|| format!("{name}={value}: a probability is a number from 0 to 1"))?;
        match (name, length) {
            ("delay", Some(length)) => self.delay_ms = parse_delay(length)?,
            ("delay", None) => {
                return Err("delay needs its length, such as delay=0.01:6000".into());
            }
            (_, Some(_)) => return Err(format!("{name} has no length; only delay has one")),
            (_, None) => {}
        }
        if name == "crash" {
            self.probabilities[Fault::CrashBefore as usize] = probability / 2.0;
            self.probabilities[Fault::CrashAfter as usize] = probability / 2.0;
            return Ok(());
        }
        let fault = Fault::ALL.into_iter().find(|fault| fault.as_str() == name);
        let fault = fault.ok_or_else(|| {
            let known = Fault::ALL.map(Fault::as_str).join(", ");
            format!("there is no fault {name:?}; there are {known} and crash")
        })?;
        self.probabilities[fault as usize] = probability;
        Ok(())
    }
}

fn parse_delay(length: &str) -> Result<u64, String> {
    let delay_ms = length.parse().ok().filter(|delay_ms| *delay_ms <= DELAY_MS_MAX);
    delay_ms.ok_or_else(|| format!("delay {length:?}: milliseconds, at most {DELAY_MS_MAX}"))
}

impl FromStr for FaultSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut spec = Self::default();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (name, value) =
                part.split_once('=').ok_or_else(|| format!("{part:?} is not name=probability"))?;
            spec.set(name.trim(), value.trim())?;
        }
        Ok(spec)
    }
}

impl fmt::Display for FaultSpec {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for fault in Fault::ALL {
            let probability = self.probability(fault);
            if probability == 0.0 {
                continue;
            }
            write!(formatter, "{separator}{}={probability}", fault.as_str())?;
            if fault == Fault::Delay {
                write!(formatter, ":{}", self.delay_ms)?;
            }
            separator = ",";
        }
        Ok(())
    }
}

/// What a message is called, for drawing its faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// The transaction's id.
    pub transaction: &'a str,
    /// The branch's name.
    pub branch: &'a str,
    /// The operation's word.
    pub operation: &'a str,
    /// The attempt, from 1.
    pub attempt: u32,
}

impl<'a> From<&'a BranchContext> for Message<'a> {
    fn from(branch: &'a BranchContext) -> Self {
        Self {
            transaction: branch.transaction.as_str(),
            branch: &branch.branch,
            operation: branch.operation.as_str(),
            attempt: branch.attempt,
        }
    }
}

/// The faults of one bank: what may strike now, and what has struck.
#[derive(Debug)]
pub struct Faults {
    seed: u64,
    spec: RwLock<FaultSpec>,
    struck: [AtomicU64; 7],
    /// The crash that the next local commit meets: 0, or a [`Fault`]'s number. The service arms it;
    /// in SQLite the writer's hook meets it on the same thread, in a database server the commit
    /// that comes next does, which may be another call's.
    armed: AtomicU8,
}

impl Faults {
    /// Faults drawn from `seed`.
    #[must_use]
    pub fn new(seed: u64, spec: FaultSpec) -> Self {
        let struck = std::array::from_fn(|_| AtomicU64::new(0));
        Self { seed, spec: RwLock::new(spec), struck, armed: AtomicU8::new(0) }
    }

    /// What may strike now.
    #[must_use]
    pub fn spec(&self) -> FaultSpec {
        self.spec.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes what may strike, from the next message on.
    pub fn set_spec(&self, spec: FaultSpec) {
        *self.spec.write().unwrap_or_else(PoisonError::into_inner) = spec;
    }

    /// How often a fault has struck since the process started.
    #[must_use]
    pub fn struck(&self, fault: Fault) -> u64 {
        self.struck[fault as usize].load(Ordering::Relaxed)
    }

    /// Whether this fault strikes this message, and with what length where it has one.
    pub fn strikes(&self, fault: Fault, message: &Message<'_>) -> bool {
        let probability =
            self.spec.read().unwrap_or_else(PoisonError::into_inner).probability(fault);
        // An inquiry (attempt 0) asks for itself; no message of the coordinator is to be spoilt.
        let strikes =
            message.attempt > 0 && probability > 0.0 && self.draw(fault, message) < probability;
        if strikes {
            self.struck[fault as usize].fetch_add(1, Ordering::Relaxed);
        }
        strikes
    }

    /// A number from 0 to less than 1, the same whenever it is asked for.
    fn draw(&self, fault: Fault, message: &Message<'_>) -> f64 {
        let mut state = splitmix64(self.seed ^ splitmix64(fault as u64));
        for text in [message.transaction, message.branch, message.operation] {
            for byte in text.bytes().chain([0]) {
                state = splitmix64(state ^ u64::from(byte));
            }
        }
        let bits = splitmix64(state ^ u64::from(message.attempt)) >> 11;
        bits as f64 / (1_u64 << 53) as f64
    }

    /// Draws the crashes for a message whose work has just been written but not committed.
    pub(crate) fn arm(&self, message: &Message<'_>) {
        for fault in [Fault::CrashBefore, Fault::CrashAfter] {
            if self.strikes(fault, message) {
                self.armed.store(fault as u8, Ordering::Relaxed);
            }
        }
    }

    /// Aborts the process if this is the moment that an armed crash waits for.
    pub(crate) fn crash_if_armed(&self, moment: Moment) {
        let due = match moment {
            Moment::BeforeCommit { .. } => Fault::CrashBefore,
            Moment::AfterCommit { .. } => Fault::CrashAfter,
        };
        if self.armed.load(Ordering::Relaxed) == due as u8 {
            eprintln!("bank: the fault {} strikes: aborting", due.as_str());
            std::process::abort();
        }
    }
}

/// The faults that strike one message and can be seen from outside. Those inside the local
/// transaction are the service's.
#[derive(Clone, Copy, Default)]
pub(crate) struct Struck {
    pub(crate) error_before: bool,
    pub(crate) delay_ms: Option<u64>,
    pub(crate) error_after: bool,
    pub(crate) lost_answer: bool,
}

impl Struck {
    /// Draws the faults of a message.
    pub(crate) fn draw(faults: &Faults, message: &Message<'_>) -> Self {
        let strikes = |fault| faults.strikes(fault, message);
        if strikes(Fault::ErrorBefore) {
            return Self { error_before: true, ..Self::default() };
        }
        Self {
            error_before: false,
            delay_ms: strikes(Fault::Delay).then(|| faults.spec().delay_ms()),
            error_after: strikes(Fault::ErrorAfter),
            lost_answer: strikes(Fault::LostAnswer),
        }
    }

    /// Whether no fault strikes.
    pub(crate) const fn is_none(&self) -> bool {
        let Self { error_before, delay_ms, error_after, lost_answer } = self;
        !*error_before && delay_ms.is_none() && !*error_after && !*lost_answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Result<&str, &str>) {
        let found = text.parse::<FaultSpec>().map(|spec| spec.to_string());
        match (found, expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected),
            (Err(found), Err(part)) => assert!(found.contains(part), "{found} has no {part:?}"),
            (found, expected) => panic!("{text}: {found:?} is not {expected:?}"),
        }
    }

    #[test]
    fn specifications_are_read_and_shown() {
        check("", Ok(""));
        check("vote_no=0.02, delay=0.01:6000", Ok("vote_no=0.02,delay=0.01:6000"));
        check("crash=0.5", Ok("crash_before=0.25,crash_after=0.25"));
        check("lost_answer=1", Ok("lost_answer=1"));
        check("vote_no", Err("not name=probability"));
        check("vote_no=2", Err("from 0 to 1"));
        check("vote_no=-0.1", Err("from 0 to 1"));
        check("vote_no=NaN", Err("from 0 to 1"));
        check("vote_no=0.1:5", Err("no length"));
        check("delay=0.1", Err("needs its length"));
        check("delay=0.1:999999999", Err("at most"));
        check("coffee=0.1", Err("there is no fault"));
    }

    #[test]
    fn draws_depend_on_seed_and_message_and_nothing_else() {
        let spec: FaultSpec = "vote_no=0.5,lost_answer=0.1".parse().unwrap();
        let struck = |seed: u64, fault: Fault, order: &mut dyn Iterator<Item = u32>| {
            let faults = Faults::new(seed, spec.clone());
            let mut hits: Vec<u32> = order
                .filter(|attempt| {
                    let (transaction, branch, operation) = ("t", "b", "prepare");
                    let message = Message { transaction, branch, operation, attempt: *attempt };
                    faults.strikes(fault, &message)
                })
                .collect();
            assert_eq!(faults.struck(fault), hits.len() as u64);
            hits.sort_unstable();
            hits
        };
        let forward = struck(7, Fault::VoteNo, &mut (1..=10_000));
        assert_eq!(forward, struck(7, Fault::VoteNo, &mut (1..=10_000).rev()));
        assert_ne!(forward, struck(8, Fault::VoteNo, &mut (1..=10_000)));
        assert!((4_800..5_200).contains(&forward.len()), "{}", forward.len());
        let lost = struck(7, Fault::LostAnswer, &mut (1..=10_000)).len();
        assert!((900..1_100).contains(&lost), "{lost}");
        assert!(struck(7, Fault::Delay, &mut (1..=10_000)).is_empty());
        assert!(struck(7, Fault::VoteNo, &mut (0..1)).is_empty());
    }
}
