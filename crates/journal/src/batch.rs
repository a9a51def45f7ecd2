//! Decides how a batch looks as bytes, and judges whether bytes are a sound batch. Where the bytes
//! are kept is left to the engines; what a record means is left to the caller.
//!
//! All numbers are little-endian. With `n` records:
//!
//! | offset | bytes | content |
//! | --- | --- | --- |
//! | 0 | 4 | magic `UNJB` |
//! | 4 | 2 | format version, 1 |
//! | 6 | 2 | shard |
//! | 8 | 8 | position |
//! | 16 | 4 | checksum of the batch before this one; [`GENESIS`] at position 1 |
//! | 20 | 4 | `n`, the number of records |
//! | 24 | 4·n | the length of each record |
//! | 24+4·n | their sum | the records, one after the other |
//! | the last four | 4 | checksum: CRC-32 (IEEE) of everything before it |
//!
//! Every later version keeps magic, version and trailing checksum where they are. So a sound batch
//! of a newer release can be told from a damaged one, and the chain survives a change of version.
//!
//! The chain: each batch carries its predecessor's checksum. A batch that was swapped for another
//! sound one of the same shard and position (a restored page, another file's row) breaks the chain
//! at its successor.

use std::path::Path;

use crate::{JournalError, ShardId};

/// The first four bytes of every batch.
pub const MAGIC: [u8; 4] = *b"UNJB";
/// The version that [`encode`] writes, and the newest that [`decode`] reads.
pub const BATCH_VERSION: u16 = 1;
/// What stands for the predecessor's checksum in the very first batch of a shard.
pub const GENESIS: u32 = 0;
/// The largest encoded batch that an engine takes.
pub const BATCH_BYTES_MAX: usize = 256 << 20;

const HEADER_BYTES: usize = 24;
const LENGTH_BYTES: usize = 4;
const CHECKSUM_BYTES: usize = 4;

/// A sound batch as decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded<'a> {
    /// The shard it was written for.
    pub shard: ShardId,
    /// Its number.
    pub position: u64,
    /// The checksum of the batch before it.
    pub previous_checksum: u32,
    /// Its own checksum, which its successor carries.
    pub checksum: u32,
    /// The records.
    pub records: Vec<&'a [u8]>,
}

/// Why bytes are no sound batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// Fewer bytes than the smallest batch has.
    #[error("too short for a batch")]
    TooShort,
    /// It does not begin with [`MAGIC`].
    #[error("does not begin like a batch")]
    Magic,
    /// The checksum does not fit the bytes.
    #[error("checksum mismatch")]
    Checksum,
    /// Sound, and of a version that this program does not read; holds it.
    #[error("format version {0} is newer than {BATCH_VERSION}")]
    NewerVersion(u16),
    /// Sound, and of a version that never existed; holds it.
    #[error("format version {0} does not exist")]
    UnknownVersion(u16),
    /// The lengths and the number of bytes do not agree.
    #[error("record lengths do not add up")]
    Lengths,
}

/// The size of the batch that `records` will make; `None` where it is beyond [`BATCH_BYTES_MAX`].
#[must_use]
pub fn encoded_bytes(records: &[impl AsRef<[u8]>]) -> Option<usize> {
    let fixed = HEADER_BYTES + CHECKSUM_BYTES;
    let total = records
        .iter()
        .map(|record| record.as_ref().len())
        .try_fold(fixed, |sum, length| sum.checked_add(LENGTH_BYTES)?.checked_add(length))?;
    (total <= BATCH_BYTES_MAX).then_some(total)
}

/// Refuses a batch that no engine takes.
pub(crate) fn check_size(
    path: &Path,
    shard: ShardId,
    records: &[&[u8]],
) -> Result<(), JournalError> {
    if encoded_bytes(records).is_some() {
        return Ok(());
    }
    let bytes = records.iter().fold(0, |sum: usize, record| sum.saturating_add(record.len()));
    let bytes_max = BATCH_BYTES_MAX;
    Err(JournalError::TooLarge { path: path.to_owned(), shard, bytes, bytes_max })
}

/// Writes a batch.
///
/// # Panics
/// If the batch is larger than [`BATCH_BYTES_MAX`]; ask [`encoded_bytes`] first.
#[must_use]
pub fn encode(
    shard: ShardId,
    position: u64,
    previous_checksum: u32,
    records: &[impl AsRef<[u8]>],
) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_behind(&mut bytes, shard, position, previous_checksum, records);
    bytes
}

/// As [`encode`], behind what is there already.
pub(crate) fn encode_behind(
    bytes: &mut Vec<u8>,
    shard: ShardId,
    position: u64,
    previous_checksum: u32,
    records: &[impl AsRef<[u8]>],
) {
    let (start, total) = (bytes.len(), encoded_bytes(records));
    assert!(total.is_some(), "a batch beyond BATCH_BYTES_MAX must be refused before it is encoded");
    bytes.reserve_exact(total.unwrap_or_default());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&BATCH_VERSION.to_le_bytes());
    bytes.extend_from_slice(&shard.to_le_bytes());
    bytes.extend_from_slice(&position.to_le_bytes());
    bytes.extend_from_slice(&previous_checksum.to_le_bytes());
    bytes.extend_from_slice(&narrow(records.len()).to_le_bytes());
    for record in records {
        bytes.extend_from_slice(&narrow(record.as_ref().len()).to_le_bytes());
    }
    for record in records {
        bytes.extend_from_slice(record.as_ref());
    }
    let checksum = crc32fast::hash(&bytes[start..]);
    bytes.extend_from_slice(&checksum.to_le_bytes());
}

/// Reads a batch and verifies all that can be verified without its neighbours.
///
/// Any bytes are allowed; what is allocated stays below a small multiple of their number.
///
/// # Errors
/// [`Damage`] says what is wrong first.
pub fn decode(bytes: &[u8]) -> Result<Decoded<'_>, Damage> {
    let (body, checksum) = bytes.split_last_chunk().ok_or(Damage::TooShort)?;
    let checksum = u32::from_le_bytes(*checksum);
    let mut reader = Reader(body);
    if reader.take::<4>()? != MAGIC {
        return Err(Damage::Magic);
    }
    if crc32fast::hash(body) != checksum {
        return Err(Damage::Checksum);
    }
    match u16::from_le_bytes(reader.take()?) {
        BATCH_VERSION => {}
        0 => return Err(Damage::UnknownVersion(0)),
        newer => return Err(Damage::NewerVersion(newer)),
    }
    Ok(Decoded {
        shard: u16::from_le_bytes(reader.take()?),
        position: u64::from_le_bytes(reader.take()?),
        previous_checksum: u32::from_le_bytes(reader.take()?),
        checksum,
        records: records(&mut reader)?,
    })
}

fn records<'a>(reader: &mut Reader<'a>) -> Result<Vec<&'a [u8]>, Damage> {
    let count = u32::from_le_bytes(reader.take()?) as usize;
    let table_bytes = count.checked_mul(LENGTH_BYTES).ok_or(Damage::Lengths)?;
    // Splitting first bounds what is allocated for `count` by the bytes that are really there.
    let (table, mut rest) = reader.0.split_at_checked(table_bytes).ok_or(Damage::Lengths)?;
    let mut records = Vec::with_capacity(count);
    let (lengths, _) = table.as_chunks::<LENGTH_BYTES>();
    for length in lengths {
        let length = u32::from_le_bytes(*length) as usize;
        let (record, after) = rest.split_at_checked(length).ok_or(Damage::Lengths)?;
        records.push(record);
        rest = after;
    }
    if rest.is_empty() { Ok(records) } else { Err(Damage::Lengths) }
}

/// The checksum that an encoded batch ends with, unverified; `None` if it is too short to have one.
pub(crate) fn stored_checksum(bytes: &[u8]) -> Option<u32> {
    bytes.last_chunk().map(|checksum| u32::from_le_bytes(*checksum))
}

/// Takes numbers of known width off the front.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Damage> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(Damage::TooShort)?;
        self.0 = rest;
        Ok(*head)
    }
}

/// Lengths and counts fit because [`BATCH_BYTES_MAX`] does.
fn narrow(number: usize) -> u32 {
    const { assert!(BATCH_BYTES_MAX <= u32::MAX as usize) };
    number as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_records() -> Vec<u8> {
        encode(7, 300, 0xAABB_CCDD, &[b"first".to_vec(), b"2".to_vec()])
    }

    /// The checksum put right again after a change, as an attacker or a buggy writer would.
    fn resealed(mut bytes: Vec<u8>) -> Vec<u8> {
        bytes.truncate(bytes.len() - CHECKSUM_BYTES);
        let checksum = crc32fast::hash(&bytes);
        bytes.extend_from_slice(&checksum.to_le_bytes());
        bytes
    }

    #[test]
    fn the_layout_is_the_documented_one() {
        let bytes = two_records();
        assert_eq!(bytes[0..4], *b"UNJB");
        assert_eq!(bytes[4..6], [1, 0]);
        assert_eq!(bytes[6..8], [7, 0]);
        assert_eq!(bytes[8..16], [44, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[16..20], [0xDD, 0xCC, 0xBB, 0xAA]);
        assert_eq!(bytes[20..24], [2, 0, 0, 0]);
        assert_eq!(bytes[24..32], [5, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(bytes[32..38], *b"first2");
        assert_eq!(bytes[38..], crc32fast::hash(&bytes[..38]).to_le_bytes());
    }

    #[test]
    fn a_sound_batch_of_a_newer_release_is_told_from_a_damaged_one() {
        let mut bytes = two_records();
        bytes[4] = 2;
        assert_eq!(decode(&bytes), Err(Damage::Checksum));
        assert_eq!(decode(&resealed(bytes.clone())), Err(Damage::NewerVersion(2)));
        bytes[4] = 0;
        assert_eq!(decode(&resealed(bytes)), Err(Damage::UnknownVersion(0)));
    }

    #[test]
    fn lengths_that_lie_are_refused_even_under_a_right_checksum() {
        for (offset, value) in [(20, 1), (20, 3), (23, 0xFF), (24, 4), (24, 6), (27, 0xFF)] {
            let mut bytes = two_records();
            bytes[offset] = value;
            assert_eq!(decode(&resealed(bytes)), Err(Damage::Lengths), "{offset} {value}");
        }
    }

    #[test]
    fn every_prefix_is_refused() {
        let bytes = two_records();
        for length in 0..bytes.len() {
            assert!(decode(&bytes[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn what_is_too_large_is_known_before_it_is_encoded() {
        let overhead = HEADER_BYTES + LENGTH_BYTES + CHECKSUM_BYTES;
        assert_eq!(encoded_bytes(&[vec![0; 10]]), Some(overhead + 10));
        let largest = vec![0; BATCH_BYTES_MAX - overhead];
        assert_eq!(encoded_bytes(std::slice::from_ref(&largest)), Some(BATCH_BYTES_MAX));
        assert_eq!(encoded_bytes(&[largest, Vec::new()]), None);
    }
}
