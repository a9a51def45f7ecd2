//! What is remembered of a transaction's course for the people who read its timeline: observations
//! that decide nothing. They ride in the transaction's next record, so a crash may lose the latest.

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

/// Observations of one transaction, bounded: equal failures fold, and what has no room is counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Timeline {
    /// Seen and not yet part of any record.
    pub(crate) unsaved: Vec<Observation>,
    /// Part of a record.
    pub(crate) saved: Vec<Observation>,
    /// How many were dropped because the timeline was full.
    pub(crate) dropped: u32,
}

impl Timeline {
    /// Everything seen, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Observation> {
        self.saved.iter().chain(&self.unsaved)
    }

    /// How many observations were dropped because the timeline was full.
    #[must_use]
    pub const fn dropped(&self) -> u32 {
        self.dropped
    }

    /// Adds one, at most `observations_max` in all.
    pub(crate) fn observe(&mut self, observation: Observation, observations_max: usize) {
        if observations_max == 0 || self.fold(&observation) {
            return;
        }
        if self.saved.len() + self.unsaved.len() >= observations_max {
            self.dropped = self.dropped.saturating_add(1);
            return;
        }
        self.unsaved.push(observation);
    }

    /// A participant that fails the same way a thousand times is one line, not a thousand: the call
    /// and the failure before are taken as the latest pair.
    fn fold(&mut self, new: &Observation) -> bool {
        let What::Failed { operation, error, .. } = &new.what else { return false };
        let call = self
            .unsaved
            .iter()
            .rposition(|old| old.branch == new.branch && matches!(old.what, What::Called { .. }));
        let failure = self.unsaved.iter().rposition(|old| {
            old.branch == new.branch
                && matches!(&old.what, What::Failed { operation: o, error: e, .. }
                    if o == operation && e == error)
        });
        let (Some(call), Some(failure)) = (call, failure) else { return false };
        if call < failure {
            return false;
        }
        let old = &mut self.unsaved[failure];
        old.at = new.at;
        if let What::Failed { times, .. } = &mut old.what {
            *times = times.saturating_add(1);
        }
        self.unsaved.remove(call);
        true
    }

    pub(crate) fn take_unsaved(&mut self) -> Vec<Observation> {
        std::mem::take(&mut self.unsaved)
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
            timeline.observe(seen(at, What::Called { operation, attempt }), 8);
            let failed = What::Failed { operation, error: "refused".into(), times: 1 };
            timeline.observe(seen(at, failed), 8);
        }
        let all: Vec<_> = timeline.iter().cloned().collect();
        let failed =
            What::Failed { operation: Operation::Commit, error: "refused".into(), times: 1_000 };
        let first = seen(1, What::Called { operation: Operation::Commit, attempt: 1 });
        assert_eq!(all, vec![first, seen(1_000, failed)]);
        for at in 0..20 {
            timeline.observe(seen(at, What::Recovered), 8);
        }
        assert_eq!((timeline.iter().count(), timeline.dropped()), (8, 14));
    }
}
