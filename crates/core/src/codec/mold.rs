//! Tells packed transactions that are alike but for their ids and times, without unpacking them.
//! Most transactions of a system are of few kinds, and whoever writes many of one kind need look
//! at one of them only: from the others it takes the times, which lie at the same places.

use std::ops::Range;

use crate::Millis;
use crate::wire::Reader;

/// What a time of a packed transaction is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TimeOf {
    Beginning,
    Decision,
    End,
    Observation,
    /// Something that no [`MoldTimes`] tells of.
    Other,
}

/// What a packed transaction says, but for its id and its times.
#[derive(Clone, Debug)]
pub struct Mold {
    bytes: Vec<u8>,
    /// Where the times are, in their order.
    times: Vec<(TimeOf, Range<usize>)>,
}

/// The times of a transaction that fits a mold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MoldTimes {
    /// When it began.
    pub begun_at: Millis,
    /// When it was decided; 0 if it was not.
    pub decided_at: Millis,
    /// When it ended; 0 if it has not.
    pub ended_at: Millis,
    /// When each thing was seen that its timeline tells of, in the timeline's order.
    pub seen: Vec<Millis>,
}

impl Mold {
    pub(super) fn new(bytes: &[u8], times: Vec<(TimeOf, Range<usize>)>) -> Self {
        Self { bytes: bytes.to_vec(), times }
    }

    /// Takes the times out of these bytes, if they say the same but for those. If they do not,
    /// what is in `times` means nothing.
    pub(super) fn times_in(&self, bytes: &[u8], times: &mut MoldTimes) -> bool {
        times.seen.clear();
        (times.begun_at, times.decided_at, times.ended_at) = (0, 0, 0);
        if bytes.len() != self.bytes.len() {
            return false;
        }
        let mut compared = 0;
        for (of, place) in &self.times {
            let between = compared..place.start;
            let Some(time) = number_in(&bytes[place.clone()]) else { return false };
            if bytes[between.clone()] != self.bytes[between] {
                return false;
            }
            compared = place.end;
            match of {
                TimeOf::Beginning => times.begun_at = time,
                TimeOf::Decision => times.decided_at = time,
                TimeOf::End => times.ended_at = time,
                TimeOf::Observation => times.seen.push(time),
                TimeOf::Other => {}
            }
        }
        bytes[compared..] == self.bytes[compared..]
    }
}

/// The number that these bytes are, if they are one and nothing besides.
fn number_in(bytes: &[u8]) -> Option<u64> {
    let mut reader = Reader::of_this_version(bytes);
    let number = reader.number("time").ok()?;
    reader.end().is_ok().then_some(number)
}
