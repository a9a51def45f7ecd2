//! Records in the form that they have on disk, those of a batch in one buffer: a record of its own
//! place in memory each would cost more than writing it.

use super::encode_record;
use crate::Record;

/// Encoded records, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    bytes: Vec<u8>,
    /// Where each ends.
    ends: Vec<usize>,
}

impl Encoded {
    /// None, with room for a little more bytes than those of before had.
    pub(crate) fn like(bytes: u64) -> Self {
        let room = usize::try_from(bytes + bytes / 4).unwrap_or(0);
        Self { bytes: Vec::with_capacity(room), ends: Vec::new() }
    }

    /// Adds a record.
    pub fn push(&mut self, record: &Record) {
        encode_record(record, &mut self.bytes);
        self.ends.push(self.bytes.len());
    }

    /// Adds what was encoded elsewhere.
    pub fn push_bytes(&mut self, record: &[u8]) {
        self.bytes.extend_from_slice(record);
        self.ends.push(self.bytes.len());
    }

    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// How many bytes they have together.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Each of them, as a journal takes it.
    #[must_use]
    pub fn slices(&self) -> Vec<&[u8]> {
        let starts = std::iter::once(&0).chain(&self.ends);
        starts.zip(&self.ends).map(|(start, end)| &self.bytes[*start..*end]).collect()
    }
}

impl FromIterator<Vec<u8>> for Encoded {
    fn from_iter<I: IntoIterator<Item = Vec<u8>>>(records: I) -> Self {
        let mut all = Self::default();
        records.into_iter().for_each(|record| all.push_bytes(&record));
        all
    }
}
