//! Transactions that have ended, as bytes one after the other. They need less room, and whoever
//! reads them on another core fetches a few neighbouring lines of memory instead of every part of
//! each; that the parts are freed where they were made saves as much again. Kept in memory only:
//! nothing durable looks like this.

use super::mold::{Mold, MoldTimes, TimeOf};
use super::observation::get_observation;
use super::{get_count, get_id, snapshot};
use crate::timeline::Timeline;
use crate::wire::{Reader, Writer};
use crate::{DecodeError, Millis, Observations, RecordReader, Transaction, TransactionId};

/// The bytes in which the length of one is written.
const LENGTH_BYTES: usize = 4;

/// Ended transactions, close together.
#[derive(Clone, Debug, Default)]
pub struct PackedTransactions {
    bytes: Vec<u8>,
    /// How many of the bytes are of those that are whole: one on which the program broke lies
    /// behind them, and makes room for the next.
    whole: usize,
    count: usize,
}

/// One of them.
#[derive(Clone, Debug)]
pub struct PackedTransaction<'a> {
    id: TransactionId,
    rest: &'a [u8],
}

impl PackedTransactions {
    /// None, with room for so many bytes.
    #[must_use]
    pub fn with_capacity(bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes), whole: 0, count: 0 }
    }

    /// Packs one that has ended, and says where it is.
    pub fn push(&mut self, ended: &Transaction) -> usize {
        self.bytes.truncate(self.whole);
        let place = self.whole;
        self.bytes.extend([0; LENGTH_BYTES]);
        let mut writer = Writer::new(&mut self.bytes);
        writer.text(ended.id.as_str());
        snapshot::put_facts(&mut writer, ended);
        let (count, observations) = ended.timeline.saved();
        writer.number(u64::from(count));
        writer.number(u64::from(ended.timeline.branches()));
        writer.bytes(observations);
        writer.number(u64::from(ended.timeline.dropped()));
        writer.flag(ended.open);
        writer.option(ended.closed_at.as_ref(), |writer, at| writer.number(*at));
        writer.option(ended.ended_at.as_ref(), |writer, at| writer.number(*at));
        let length = self.bytes.len() - place - LENGTH_BYTES;
        let Ok(length) = u32::try_from(length) else { panic!("{}: has 4 GiB", ended.id) };
        self.bytes[place..place + LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
        self.whole = self.bytes.len();
        self.count += 1;
        place
    }

    /// Leaves bytes behind as one does on which the program breaks.
    #[cfg(test)]
    pub(super) fn break_off(&mut self) {
        self.bytes.extend([7; 5]);
    }

    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// How many bytes they have together.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.whole
    }

    /// The one at a place that [`PackedTransactions::push`] has given.
    #[must_use]
    pub fn at(&self, place: usize) -> PackedTransaction<'_> {
        let (one, _) = split_first(&self.bytes[place..]);
        readable(PackedTransaction::of(one))
    }

    /// All of them, in their order.
    pub fn iter(&self) -> impl Iterator<Item = PackedTransaction<'_>> {
        let mut left = &*self.bytes;
        (0..self.count).map(move |_| {
            let (one, others) = split_first(left);
            left = others;
            readable(PackedTransaction::of(one))
        })
    }
}

fn split_first(bytes: &[u8]) -> (&[u8], &[u8]) {
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() else {
        panic!("no transaction was packed here")
    };
    rest.split_at(u32::from_le_bytes(*length) as usize)
}

impl<'a> PackedTransaction<'a> {
    fn of(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::of_this_version(bytes);
        let id = get_id(&mut reader)?;
        Ok(Self { id, rest: reader.left() })
    }

    /// Which one it is.
    #[must_use]
    pub const fn id(&self) -> &TransactionId {
        &self.id
    }

    /// When it began.
    #[must_use]
    pub fn begun_at(&self) -> Millis {
        // What comes first of all facts.
        readable(Reader::of_this_version(self.rest).number("begun_at"))
    }

    /// The transaction, with all that is shown of one that has ended. Left behind is what its
    /// attempts came to while it was live and no timeline tells.
    ///
    /// `reader` keeps once what many have in common.
    #[must_use]
    pub fn unpack(self, reader: &mut RecordReader) -> Transaction {
        readable(self.read(&mut Reader::sharing_this_version(self.rest, &mut reader.shared)))
    }

    /// The same, where it is the only one.
    #[must_use]
    pub fn unpack_alone(self) -> Transaction {
        readable(self.read(&mut Reader::of_this_version(self.rest)))
    }

    fn read(&self, reader: &mut Reader<'_>) -> Result<Transaction, DecodeError> {
        self.read_with_seen(reader).map(|(transaction, _)| transaction)
    }

    /// With how many bytes are left before and behind its observations.
    fn read_with_seen(
        &self,
        reader: &mut Reader<'_>,
    ) -> Result<(Transaction, (usize, usize)), DecodeError> {
        let id = self.id.clone();
        let mut transaction = snapshot::get_facts(reader, id)?;
        let (count, branches) = (get_count(reader)?, get_count(reader)?);
        let bytes = reader.bytes("observations")?;
        let behind = reader.left().len();
        let seen = Observations::written(bytes, count, branches);
        transaction.timeline = Timeline::of_saved(seen, get_count(reader)?);
        transaction.open = reader.flag("open")?;
        transaction.closed_at = reader.option("closed_at", |reader| reader.time("closed_at"))?;
        transaction.ended_at = reader.option("ended_at", |reader| reader.time("ended_at"))?;
        reader.end()?;
        Ok((transaction, (behind + bytes.len(), behind)))
    }

    /// What it says but for its id and its times, to find others that say the same.
    #[must_use]
    pub fn mold(&self) -> Mold {
        readable(self.read_mold())
    }

    fn read_mold(&self) -> Result<Mold, DecodeError> {
        let (all, mut own, mut seen) = (self.rest.len(), Vec::new(), Vec::new());
        let (transaction, (before, behind)) =
            self.read_with_seen(&mut Reader::noting(self.rest, &mut own))?;
        let observations = &self.rest[all - before..all - behind];
        let mut reader = Reader::noting(observations, &mut seen);
        for _ in 0..transaction.timeline.saved().0 {
            get_observation(&mut reader)?;
        }
        let own = own.into_iter().map(|(what, from, to)| {
            let of = match what {
                "begun_at" => TimeOf::Beginning,
                "decided_at" => TimeOf::Decision,
                "ended_at" => TimeOf::End,
                _ => TimeOf::Other,
            };
            (of, all - from..all - to)
        });
        let seen = seen
            .into_iter()
            .map(|(_, from, to)| (TimeOf::Observation, all - behind - from..all - behind - to));
        let mut times: Vec<_> = own.chain(seen).collect();
        times.sort_by_key(|(_, place)| place.start);
        Ok(Mold::new(self.rest, times))
    }

    /// Whether it says the same as the one of this mold, but for its id and its times; if so,
    /// `times` are its own.
    #[must_use]
    pub fn fits(&self, mold: &Mold, times: &mut MoldTimes) -> bool {
        mold.times_in(self.rest, times)
    }
}

fn readable<T>(read: Result<T, DecodeError>) -> T {
    read.unwrap_or_else(|error| panic!("what was packed must be readable: {error}"))
}
