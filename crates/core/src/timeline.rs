//! What is remembered of a transaction's course for the people who read its timeline: observations
//! that decide nothing. They ride in the transaction's next record, so a crash may lose the latest.

use std::hash::{Hash, Hasher};

use crate::codec::observation::{get_observation, put_observation};
use crate::wire::{Reader, Writer};
use crate::{Millis, Operation, Outcome};

/// One thing that was seen to happen.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Observation {
    /// When it was last seen.
    pub at: Millis,
    /// On which branch, if on one.
    pub branch: Option<u16>,
    /// What.
    pub what: What,
}

/// The things worth remembering.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum What {
    /// A participant was asked.
    Called {
        /// For what.
        operation: Operation,
        /// The how-manieth time, from 1.
        attempt: u32,
    },
    /// It answered yes (prepared or executed).
    Yes(Operation),
    /// It answered that it has nothing to commit.
    ReadOnly,
    /// It answered no, for this reason.
    No(Operation, Box<str>),
    /// It acknowledged.
    Acknowledged(Operation),
    /// No decisive answer came: the error, and how often in a row the same was seen.
    Failed {
        /// Of which operation.
        operation: Operation,
        /// What went wrong.
        error: Box<str>,
        /// How often in a row; more than one where equal failures were folded into one.
        times: u32,
    },
    /// The branch has failed often enough to be parked.
    Parked,
    /// The coordinator came back and took the transaction up again.
    Recovered,
    /// The limit for the whole has passed; the decision stands.
    Overdue,
    /// The branch was added to an interactive transaction.
    Enlisted,
    /// The initiator of an interactive transaction asked to commit.
    CommitRequested,
    /// The participant does not know this operation.
    Unsupported(Operation),
    /// Somebody said that it was settled without the coordinator, and how.
    Resolved(Outcome),
}

impl What {
    /// The word on the wire, for an event's kind.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Called { .. } => "called",
            Self::Yes(_) => "yes",
            Self::ReadOnly => "read_only",
            Self::No(..) => "no",
            Self::Acknowledged(_) => "acknowledged",
            Self::Failed { .. } => "failed",
            Self::Parked => "parked",
            Self::Recovered => "recovered",
            Self::Overdue => "overdue",
            Self::Enlisted => "enlisted",
            Self::CommitRequested => "commit_requested",
            Self::Unsupported(_) => "unsupported",
            Self::Resolved(_) => "resolved",
        }
    }

    /// What was asked for, where it is about a call.
    #[must_use]
    pub const fn operation(&self) -> Option<Operation> {
        match self {
            Self::Called { operation, .. }
            | Self::Yes(operation)
            | Self::No(operation, _)
            | Self::Acknowledged(operation)
            | Self::Failed { operation, .. }
            | Self::Unsupported(operation) => Some(*operation),
            Self::ReadOnly
            | Self::Parked
            | Self::Recovered
            | Self::Overdue
            | Self::Enlisted
            | Self::CommitRequested
            | Self::Resolved(_) => None,
        }
    }
}

/// What one observation takes that says no more than what was asked or answered.
const OBSERVATION_BYTES: usize = 11;
/// Room for those that come together, when there is none: a call and an answer of two branches.
const OBSERVATIONS_AT_ONCE: usize = 4 * OBSERVATION_BYTES;

/// Observations in the form that they have on disk, which takes a fifth of the memory: they are
/// written often and looked at seldom.
#[derive(Clone, Debug, Default)]
pub struct Observations {
    bytes: Vec<u8>,
    count: u32,
    /// All are of branches with lower numbers than this.
    branches: u32,
}

impl Observations {
    /// None.
    #[must_use]
    pub const fn new() -> Self {
        Self { bytes: Vec::new(), count: 0, branches: 0 }
    }

    /// As they were written: so many, which must be readable.
    pub(crate) fn written(bytes: &[u8], count: u32, branches: u32) -> Self {
        Self { bytes: bytes.to_vec(), count, branches }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// All are of branches with lower numbers than this.
    pub(crate) const fn branches(&self) -> u32 {
        self.branches
    }

    fn push(&mut self, observation: &Observation) {
        let left = self.bytes.capacity() - self.bytes.len();
        if left < OBSERVATION_BYTES {
            self.bytes.reserve_exact(OBSERVATIONS_AT_ONCE.max(self.bytes.len() / 2));
        }
        put_observation(&mut Writer::new(&mut self.bytes), observation);
        self.count += 1;
        let after = observation.branch.map_or(0, |number| u32::from(number) + 1);
        self.branches = self.branches.max(after);
    }

    fn append(&mut self, others: &Self) {
        self.bytes.reserve_exact(others.bytes.len());
        self.bytes.extend_from_slice(&others.bytes);
        self.count += others.count;
        self.branches = self.branches.max(others.branches);
    }

    /// All of them, in their order.
    pub fn iter(&self) -> impl Iterator<Item = Observation> {
        read(&self.bytes, self.count)
    }
}

/// Reads what was written here.
fn read(bytes: &[u8], count: u32) -> impl Iterator<Item = Observation> {
    let mut reader = Reader::of_this_version(bytes);
    (0..count).map(move |_| match get_observation(&mut reader) {
        Ok(observation) => observation,
        Err(error) => panic!("an observation of our own must be readable: {error}"),
    })
}

impl FromIterator<Observation> for Observations {
    fn from_iter<I: IntoIterator<Item = Observation>>(observations: I) -> Self {
        let mut all = Self::new();
        observations.into_iter().for_each(|observation| all.push(&observation));
        all
    }
}

impl PartialEq for Observations {
    fn eq(&self, other: &Self) -> bool {
        (self.count, &self.bytes) == (other.count, &other.bytes)
    }
}

impl Eq for Observations {}

impl Hash for Observations {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.bytes.hash(state);
    }
}

/// Observations of one transaction, bounded: equal failures fold, and what has no room is counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Timeline {
    /// Those that are part of a record, and then those that are not.
    seen: Observations,
    /// How many are part of a record, and how many bytes those have.
    saved: (u32, u32),
    /// How many were dropped because the timeline was full.
    dropped: u32,
}

impl Timeline {
    /// These are part of a record; so many were dropped.
    pub(crate) const fn of_saved(seen: Observations, dropped: u32) -> Self {
        let saved = (seen.count, seen.bytes.len() as u32);
        Self { seen, saved, dropped }
    }

    /// Everything seen, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = Observation> {
        self.seen.iter()
    }

    /// How many observations were dropped because the timeline was full.
    #[must_use]
    pub const fn dropped(&self) -> u32 {
        self.dropped
    }

    /// All are of branches with lower numbers than this.
    pub(crate) const fn branches(&self) -> u32 {
        self.seen.branches
    }

    /// Those that are part of a record: how many, and as they were written.
    pub(crate) fn saved(&self) -> (u32, &[u8]) {
        (self.saved.0, &self.seen.bytes[..self.saved.1 as usize])
    }

    fn unsaved(&self) -> impl Iterator<Item = Observation> {
        read(&self.seen.bytes[self.saved.1 as usize..], self.seen.count - self.saved.0)
    }

    /// These are part of a record. There must be none that are not.
    pub(crate) fn save(&mut self, observations: &Observations) {
        assert_eq!(self.seen.count, self.saved.0, "what was seen before is on record");
        self.seen.append(observations);
        self.save_all();
    }

    /// As [`Timeline::save`], without a copy where there are none yet.
    pub(crate) fn take_over(&mut self, observations: Observations) {
        assert_eq!(self.seen.count, self.saved.0, "what was seen before is on record");
        if self.seen.is_empty() {
            let branches = self.seen.branches.max(observations.branches);
            self.seen = Observations { branches, ..observations };
        } else {
            self.seen.append(&observations);
        }
        self.save_all();
    }

    /// Everything is part of a record now.
    pub(crate) const fn save_all(&mut self) {
        self.saved = (self.seen.count, self.seen.bytes.len() as u32);
    }

    /// What is not part of a record yet, to become part of the next.
    pub(crate) fn take_unsaved(&mut self) -> Observations {
        let (count, length) = self.saved;
        let bytes = &self.seen.bytes[length as usize..];
        let taken = Observations::written(bytes, self.seen.count - count, self.seen.branches);
        self.forget_unsaved();
        taken
    }

    fn forget_unsaved(&mut self) {
        self.seen.count = self.saved.0;
        self.seen.bytes.truncate(self.saved.1 as usize);
    }

    /// Adds one, at most `observations_max` in all.
    pub(crate) fn observe(&mut self, observation: &Observation, observations_max: usize) {
        if observations_max == 0 || self.fold(observation) {
            return;
        }
        if self.seen.len() >= observations_max {
            self.dropped = self.dropped.saturating_add(1);
            return;
        }
        self.seen.push(observation);
    }

    /// A participant that fails the same way a thousand times is one line, not a thousand: the call
    /// and the failure before are taken as the latest pair.
    fn fold(&mut self, new: &Observation) -> bool {
        let What::Failed { operation, error, .. } = &new.what else { return false };
        let mut unsaved: Vec<Observation> = self.unsaved().collect();
        let call = unsaved
            .iter()
            .rposition(|old| old.branch == new.branch && matches!(old.what, What::Called { .. }));
        let failure = unsaved.iter().rposition(|old| {
            old.branch == new.branch
                && matches!(&old.what, What::Failed { operation: o, error: e, .. }
                    if o == operation && e == error)
        });
        let (Some(call), Some(failure)) = (call, failure) else { return false };
        if call < failure {
            return false;
        }
        let old = &mut unsaved[failure];
        old.at = new.at;
        if let What::Failed { times, .. } = &mut old.what {
            *times = times.saturating_add(1);
        }
        unsaved.remove(call);
        self.forget_unsaved();
        unsaved.iter().for_each(|observation| self.seen.push(observation));
        true
    }

    /// The same with every observation changed so.
    #[cfg(feature = "mutations")]
    pub(crate) fn changed(&self, change: impl Fn(Observation) -> Observation) -> Self {
        let (count, bytes) = self.saved();
        let saved = read(bytes, count).map(&change).collect();
        let mut changed = Self::of_saved(saved, self.dropped);
        self.unsaved().map(change).for_each(|observation| changed.seen.push(&observation));
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(at: Millis, what: What) -> Observation {
        Observation { at, branch: Some(0), what }
    }

    #[test]
    fn equal_failures_fold_and_the_length_is_bounded() {
        let mut timeline = Timeline::default();
        for attempt in 1..=1_000_u32 {
            let at = u64::from(attempt);
            let operation = Operation::Commit;
            timeline.observe(&seen(at, What::Called { operation, attempt }), 8);
            let failed = What::Failed { operation, error: "refused".into(), times: 1 };
            timeline.observe(&seen(at, failed), 8);
        }
        let all: Vec<_> = timeline.iter().collect();
        let failed =
            What::Failed { operation: Operation::Commit, error: "refused".into(), times: 1_000 };
        let first = seen(1, What::Called { operation: Operation::Commit, attempt: 1 });
        assert_eq!(all, vec![first, seen(1_000, failed)]);
        for at in 0..20 {
            timeline.observe(&seen(at, What::Recovered), 8);
        }
        assert_eq!((timeline.iter().count(), timeline.dropped()), (8, 14));
    }
}
