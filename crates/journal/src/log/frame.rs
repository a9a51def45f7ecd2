//! How a frame lies in the file: what one append writes, in whole blocks. Where it goes is left to
//! `space`, whether it is the last one to `scan`.
//!
//! All numbers are little-endian:
//!
//! | offset | bytes | content |
//! | --- | --- | --- |
//! | 0 | 4 | magic `UNJF` |
//! | 4 | 2 | format version, 1 |
//! | 6 | 2 | shard |
//! | 8 | 8 | sequence: which write to this file it was; of two, the later one is true |
//! | 16 | 8 | the first position that the shard keeps |
//! | 24 | 8 | the next free position; the frame's batch is the one before it |
//! | 32 | 4 | checksum of the batch before the first position kept |
//! | 36 | 4 | checksum of the batch before the next free position |
//! | 40 | 4 | how many bytes of batch follow; 0: none, only the numbers above are new |
//! | 44 | 4 | CRC-32 of where all other shards of the file stand; 0 where there are none |
//! | 48 | 4 | CRC-32 (IEEE) of the file's own number and everything before |
//! | 52 | | the batch, as [`crate::batch`] says; then zeros up to a whole block |
//!
//! The file's number is drawn by lot and told to nobody, so that no payload looks like a frame.

use crate::ShardId;
use crate::batch::BATCH_BYTES_MAX;
use crate::chain::Tail;

/// What is written at once, and never shared between two frames: a write that a crash tears does
/// not touch what was durable before.
pub(super) const BLOCK: usize = 4096;
pub(super) const HEADER_BYTES: usize = 52;
pub(super) const FRAME_VERSION: u16 = 1;
const MAGIC: [u8; 4] = *b"UNJF";
const CHECKED_BYTES: usize = HEADER_BYTES - 4;

/// Where in the file a frame lies, in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) start: u32,
    pub(super) blocks: u32,
}

impl Extent {
    pub(super) const fn end(self) -> u32 {
        self.start + self.blocks
    }

    pub(super) const fn offset(self) -> u64 {
        self.start as u64 * BLOCK as u64
    }

    pub(super) const fn bytes(self) -> usize {
        self.blocks as usize * BLOCK
    }
}

/// So many blocks a frame with so many bytes of batch takes.
pub(super) fn blocks(batch_bytes: usize) -> u32 {
    // A batch is bounded by `BATCH_BYTES_MAX`.
    (HEADER_BYTES + batch_bytes).div_ceil(BLOCK) as u32
}

/// What a frame says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) sequence: u64,
    pub(super) shard: ShardId,
    /// Where the shard stands with it.
    pub(super) tail: Tail,
    pub(super) batch_bytes: u32,
    /// See [`others`].
    pub(super) others: u32,
}

/// Where all shards but this one stand, in four bytes: so that one whose last frame is gone is
/// missed, whoever has written since.
pub(super) fn others<'a>(shard: ShardId, tails: impl Iterator<Item = (ShardId, &'a Tail)>) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    for (other, tail) in tails.filter(|(other, _)| *other != shard) {
        hasher.update(&other.to_le_bytes());
        [tail.first, tail.next].iter().for_each(|number| hasher.update(&number.to_le_bytes()));
        hasher.update(&tail.first_previous.to_le_bytes());
        hasher.update(&tail.checksum.to_le_bytes());
    }
    hasher.finalize()
}

/// What stands where a frame may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Header {
    /// Anything else.
    None,
    Sound(Frame),
    /// A frame of a version that this program does not know.
    Newer(u16),
}

impl Frame {
    /// Writes it over the first bytes of a block.
    pub(super) fn put(&self, file_number: u64, block: &mut [u8]) {
        let Self { sequence, shard, tail, batch_bytes, others } = self;
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            block[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        put(&MAGIC);
        put(&FRAME_VERSION.to_le_bytes());
        put(&shard.to_le_bytes());
        [*sequence, tail.first, tail.next].iter().for_each(|number| put(&number.to_le_bytes()));
        let short = [tail.first_previous, tail.checksum, *batch_bytes, *others];
        short.iter().for_each(|number| put(&number.to_le_bytes()));
        let checksum = checksum(file_number, &block[..CHECKED_BYTES]);
        block[CHECKED_BYTES..HEADER_BYTES].copy_from_slice(&checksum.to_le_bytes());
    }

    /// Reads what stands at the beginning of a block.
    pub(super) fn get(file_number: u64, block: &[u8]) -> Header {
        let Some(header) = block.first_chunk::<HEADER_BYTES>() else { return Header::None };
        if header[..4] != MAGIC
            || checksum(file_number, &header[..CHECKED_BYTES]) != number(header, CHECKED_BYTES)
        {
            return Header::None;
        }
        let short = |at| u16::from_le_bytes([header[at], header[at + 1]]);
        let long = |at| u64::from(number(header, at)) | u64::from(number(header, at + 4)) << 32;
        if short(4) != FRAME_VERSION {
            return Header::Newer(short(4));
        }
        let tail = Tail {
            first: long(16),
            next: long(24),
            first_previous: number(header, 32),
            checksum: number(header, 36),
        };
        let (sequence, shard) = (long(8), short(6));
        let (batch_bytes, others) = (number(header, 40), number(header, 44));
        Header::Sound(Self { sequence, shard, tail, batch_bytes, others })
    }

    /// Whether its numbers can be true together: they are calculated with.
    pub(super) const fn is_possible(&self) -> bool {
        let Tail { first, next, .. } = self.tail;
        1 <= first
            && first <= next
            && next < u64::MAX
            && self.sequence < u64::MAX
            && self.batch_bytes as usize <= BATCH_BYTES_MAX
            && (!self.has_batch() || first < next)
    }

    /// Whether these bytes are the whole frame: its batch is the one that it was written with.
    /// What that means, and of which version it is, is left to reading.
    pub(super) fn is_whole(&self, bytes: &[u8]) -> bool {
        let Some(batch) = self.batch(bytes) else { return false };
        let body =
            batch.split_last_chunk::<4>().map(|(body, stored)| (crc32fast::hash(body), stored));
        let checksum = self.tail.checksum;
        !self.has_batch()
            || body.is_some_and(|(sum, stored)| {
                sum == checksum && u32::from_le_bytes(*stored) == checksum
            })
    }

    /// Whether it carries a batch.
    pub(super) const fn has_batch(&self) -> bool {
        self.batch_bytes > 0
    }

    /// Its batch, in the bytes of the whole frame; `None` if they are fewer than it says.
    pub(super) fn batch<'a>(&self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        bytes.get(HEADER_BYTES..)?.get(..self.batch_bytes as usize)
    }
}

fn number(header: &[u8; HEADER_BYTES], at: usize) -> u32 {
    u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
}

fn checksum(file_number: u64, header: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&file_number.to_le_bytes());
    hasher.update(header);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame() -> Frame {
        let tail = Tail { first: 3, first_previous: 7, next: 300, checksum: 0xAABB_CCDD };
        Frame { sequence: 9, shard: 513, tail, batch_bytes: 30, others: 11 }
    }

    #[test]
    fn the_layout_is_the_documented_one() {
        let mut block = [0xEE; BLOCK];
        frame().put(5, &mut block);
        let expected: [(usize, &[u8]); 10] = [
            (0, b"UNJF"),
            (4, &[1, 0]),
            (6, &[1, 2]),
            (8, &[9, 0, 0, 0, 0, 0, 0, 0]),
            (16, &[3, 0, 0, 0, 0, 0, 0, 0]),
            (24, &[44, 1, 0, 0, 0, 0, 0, 0]),
            (32, &[7, 0, 0, 0]),
            (36, &[0xDD, 0xCC, 0xBB, 0xAA]),
            (40, &[30, 0, 0, 0]),
            (44, &[11, 0, 0, 0]),
        ];
        for (at, bytes) in expected {
            assert_eq!(&block[at..at + bytes.len()], bytes, "{at}");
        }
        assert_eq!(Frame::get(5, &block), Header::Sound(frame()));
        assert_eq!(block[HEADER_BYTES], 0xEE, "what follows is not its own");
    }

    #[test]
    fn what_is_changed_or_of_another_file_is_no_frame() {
        let mut block = [0; BLOCK];
        frame().put(5, &mut block);
        assert_eq!(Frame::get(6, &block), Header::None);
        for bit in 0..HEADER_BYTES * 8 {
            block[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Frame::get(5, &block), Header::None, "{bit}");
            block[bit / 8] ^= 1 << (bit % 8);
        }
        block[4] = 2;
        let again = checksum(5, &block[..CHECKED_BYTES]);
        block[CHECKED_BYTES..HEADER_BYTES].copy_from_slice(&again.to_le_bytes());
        assert_eq!(Frame::get(5, &block), Header::Newer(2));
        assert_eq!(Frame::get(5, &block[..HEADER_BYTES - 1]), Header::None);
    }
}
