//! Knows ended transactions that say the same as one which was written, but for their ids and
//! times: most are of few kinds, and what is written of such a one are its times and a number. It
//! is found without unpacking it, which is most of what a transaction costs the history's thread.
//! Those that gave back results are not among them.

use unanimity_core::{Mold, MoldTimes, Outcome, PackedTransaction, Transaction};

use crate::view::{Moment, follows};

/// So many kinds are known at a time.
const KNOWN_MAX: usize = 8;
/// To learn one is as much as to write one without: where no two are alike, one of so many does.
const LEARNT_OF: usize = 16;

/// What a bundle says of a transaction beside its id and its times.
#[derive(Clone, Copy, Debug)]
pub(super) struct About {
    pub(super) course: i64,
    pub(super) outcome: Outcome,
    pub(super) reason: &'static str,
}

/// A transaction that can be written without being unpacked.
#[derive(Debug)]
struct Known {
    mold: Mold,
    about: About,
    /// Which of its moments is the decision.
    decided: usize,
    /// Of each thing seen, whether it comes after a decision of the same millisecond.
    follows: Vec<bool>,
}

/// Those known.
#[derive(Debug, Default)]
pub(super) struct Alike {
    known: Vec<Known>,
    /// Which is forgotten next.
    next: usize,
    unknown: usize,
    times: MoldTimes,
    /// The times of its moments, in their order.
    moments: Vec<u64>,
}

/// What is to be written of one that is known.
pub(super) struct Like<'a> {
    pub(super) about: About,
    pub(super) begun_at: u64,
    pub(super) decided_at: u64,
    pub(super) ended_at: u64,
    /// Of its moments, in their order.
    pub(super) moments: &'a [u64],
}

impl Alike {
    /// Finds what is to be written, if this is like one that was.
    pub(super) fn find(&mut self, packed: &PackedTransaction<'_>) -> Option<Like<'_>> {
        let Self { known, times, moments, .. } = self;
        let known = known.iter().find(|known| packed.fits(&known.mold, times))?;
        let MoldTimes { begun_at, decided_at, ended_at, ref seen } = *times;
        // In another order of time it would be another course.
        let after =
            |(at, follows): (&u64, &bool)| *at > decided_at || *at == decided_at && *follows;
        let decided = seen.iter().zip(&known.follows).position(after).unwrap_or(seen.len());
        if decided != known.decided || !seen.is_sorted() {
            return None;
        }
        moments.clear();
        moments.extend_from_slice(&seen[..decided]);
        moments.push(decided_at);
        moments.extend_from_slice(&seen[decided..]);
        Some(Like { about: known.about, begun_at, decided_at, ended_at, moments })
    }

    /// One was put into a bundle that is not like any other.
    pub(super) fn learn(
        &mut self,
        packed: &PackedTransaction<'_>,
        ended: &Transaction,
        moments: &[Moment],
        about: About,
    ) {
        // What it gave back is not among its times.
        if ended.branches.iter().any(|branch| branch.result.is_some()) {
            return;
        }
        self.unknown += 1;
        if self.known.len() == KNOWN_MAX && !self.unknown.is_multiple_of(LEARNT_OF) {
            return;
        }
        // One like it may be known, in another order of time; then this one is not.
        let is_known = self.known.iter().any(|known| packed.fits(&known.mold, &mut self.times));
        if is_known || !ended.timeline.iter().is_sorted_by_key(|seen| seen.at) {
            return;
        }
        let is_decision = |moment: &Moment| matches!(moment, Moment::Decided { .. });
        let Some(decided) = moments.iter().position(is_decision) else { return };
        let follows = ended.timeline.iter().map(|seen| follows(&seen, seen.at, ended)).collect();
        let known = Known { mold: packed.mold(), about, decided, follows };
        match self.known.get_mut(self.next) {
            Some(place) => *place = known,
            None => self.known.push(known),
        }
        self.next = (self.next + 1) % KNOWN_MAX;
    }
}
