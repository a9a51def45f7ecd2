//! Finds out, when a file is opened, where each shard stands: which frames there are, which of them
//! are kept, and which a crash has torn.
//!
//! Each frame is synced before the next one is written. So only what nobody was told of can be
//! torn: frames behind the last sound one of a shard, each of which would have been its next.
//! (There can be several: what was torn stays there until it is written over, and the next try may
//! be torn too.) Any other frame that is not whole, or not there, is damage.
//!
//! What cannot be told: damage within the last frame looks like a crash while it was written.

use std::collections::{BTreeMap, VecDeque};

use super::Shard;
use super::file::{HEAD_BLOCKS, LogFile, damaged};
use super::frame::{BLOCK, Extent, Frame, Header, blocks, others};
use super::space::Space;
use crate::chain::{Tail, corrupt};
use crate::{JournalError, ShardId};

/// So many blocks are read at once.
const READ_BLOCKS: u32 = 256;

/// A batch that is kept, and where.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kept {
    pub(super) extent: Extent,
    /// Its own checksum, which its successor carries.
    pub(super) checksum: u32,
}

/// What a file holds.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) shards: BTreeMap<ShardId, Shard>,
    pub(super) space: Space,
    /// The highest sequence that was used.
    pub(super) sequence: u64,
    /// The frame that was written last.
    pub(super) latest: Option<Placed>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Placed {
    pub(super) extent: Extent,
    pub(super) frame: Frame,
}

/// Looks at all of a file.
pub(super) fn scan(file: &LogFile) -> Result<Found, JournalError> {
    let capacity = file.blocks()?;
    let mut placed = frames(file, capacity)?;
    placed.sort_unstable_by_key(|one| one.frame.sequence);
    let sequence = placed.last().map_or(0, |last| last.frame.sequence);
    let mut space = Space::new(HEAD_BLOCKS, capacity);
    let mut of_shards: BTreeMap<ShardId, Vec<Placed>> = BTreeMap::new();
    for one in placed {
        of_shards.entry(one.frame.shard).or_default().push(one);
    }
    let (mut shards, mut latest) = (BTreeMap::new(), None::<Placed>);
    for (shard, mut placed) in of_shards {
        drop_torn(file, capacity, shard, &mut placed)?;
        let Some(last) = placed.last() else { continue };
        if latest.is_none_or(|latest| latest.frame.sequence < last.frame.sequence) {
            latest = Some(*last);
        }
        shards.insert(shard, stands(file, shard, &placed, &mut space)?);
    }
    if let Some(Placed { frame, .. }) = latest
        && frame.others != others(frame.shard, tails(&shards))
    {
        let detail = "the last frame of another shard is not there".to_owned();
        return Err(corrupt(&file.path, frame.shard, frame.tail.next, detail));
    }
    Ok(Found { shards, space, sequence, latest })
}

/// Where each shard stands.
pub(super) fn tails(shards: &BTreeMap<ShardId, Shard>) -> impl Iterator<Item = (ShardId, &Tail)> {
    shards.iter().map(|(shard, stands)| (*shard, &stands.tail))
}

/// Leaves out the frames at the end that a crash has torn.
fn drop_torn(
    file: &LogFile,
    capacity: u32,
    shard: ShardId,
    placed: &mut Vec<Placed>,
) -> Result<(), JournalError> {
    let mut torn = Vec::new();
    while let Some(last) = placed.last() {
        if is_whole(file, capacity, last)? {
            break;
        }
        torn.push(last.frame.tail.next);
        placed.pop();
    }
    let next = placed.last().map_or(1, |last| last.frame.tail.next);
    match torn.into_iter().find(|torn| *torn != next + 1) {
        None => Ok(()),
        Some(torn) => {
            let detail = "it is not whole, and another one has followed it".to_owned();
            Err(corrupt(&file.path, shard, torn.saturating_sub(2), detail))
        }
    }
}

/// Every frame that begins somewhere, old ones that nobody keeps among them.
fn frames(file: &LogFile, capacity: u32) -> Result<Vec<Placed>, JournalError> {
    let (mut placed, mut bytes) = (Vec::new(), Vec::new());
    let mut start = HEAD_BLOCKS;
    while start < capacity {
        let part = Extent { start, blocks: READ_BLOCKS.min(capacity - start) };
        bytes.resize(part.bytes(), 0);
        file.read(part.offset(), &mut bytes)?;
        for (start, block) in (start..).zip(bytes.chunks_exact(BLOCK)) {
            match Frame::get(file.number(), block) {
                Header::None => {}
                Header::Sound(frame) if !frame.is_possible() => {
                    let detail = format!("a frame that cannot be, in block {start}");
                    return Err(damaged(&file.path, "its frames", detail));
                }
                Header::Sound(frame) => {
                    let extent = Extent { start, blocks: blocks(frame.batch_bytes as usize) };
                    placed.push(Placed { extent, frame });
                }
                Header::Newer(found) => {
                    let (found, supported) = (found.into(), super::frame::FRAME_VERSION.into());
                    let path = file.path.clone();
                    return Err(JournalError::NewerVersion { path, found, supported });
                }
            }
        }
        start = part.end();
    }
    Ok(placed)
}

/// Whether all of a frame was written.
fn is_whole(file: &LogFile, capacity: u32, one: &Placed) -> Result<bool, JournalError> {
    if one.extent.end() > capacity {
        return Ok(false);
    }
    let mut bytes = vec![0; one.extent.bytes()];
    file.read(one.extent.offset(), &mut bytes)?;
    Ok(one.frame.is_whole(&bytes))
}

/// Where a shard stands by its frames, the last one written last.
fn stands(
    file: &LogFile,
    shard: ShardId,
    placed: &[Placed],
    space: &mut Space,
) -> Result<Shard, JournalError> {
    let Some(last) = placed.last() else { return Ok(Shard::default()) };
    let tail = last.frame.tail;
    let missing = |position: u64, detail: &str| {
        Err(corrupt(&file.path, shard, position, format!("its batch {detail}")))
    };
    let space_end = space.capacity();
    let mut take = |extent: Extent| space.take(extent);
    let mut kept: BTreeMap<u64, Kept> = BTreeMap::new();
    for one in placed.iter().filter(|one| one.frame.has_batch()) {
        let position = one.frame.tail.next.saturating_sub(1);
        if (tail.first..tail.next).contains(&position) {
            // What was written later is true.
            kept.insert(position, Kept { extent: one.extent, checksum: one.frame.tail.checksum });
        }
    }
    let mut batches = VecDeque::with_capacity(kept.len());
    for position in tail.first..tail.next {
        match kept.get(&position) {
            Some(one) if take(one.extent) => batches.push_back(*one),
            Some(_) => return missing(position, "lies where another one does"),
            None => return missing(position, "is not there"),
        }
    }
    let behind = |one: &&Placed| one.frame.has_batch() && one.frame.tail.next == tail.next;
    let behind = placed.iter().rev().find(behind).filter(|_| tail.first < tail.next);
    if !last.frame.has_batch()
        && let Some(batch) = behind
        && !is_whole(file, space_end, batch)?
    {
        return missing(tail.next - 1, "is not whole");
    }
    let mark = (!last.frame.has_batch()).then_some(last.extent);
    if mark.is_some_and(|mark| !take(mark)) {
        return missing(tail.next, "lies where what was forgotten is noted");
    }
    Ok(Shard { tail, kept: batches, mark })
}

/// Reads what lies where this frame was found; whether it still is that frame, and whole.
pub(super) fn read_frame(
    file: &LogFile,
    frame: &Frame,
    extent: Extent,
    bytes: &mut Vec<u8>,
) -> Result<bool, JournalError> {
    bytes.resize(extent.bytes(), 0);
    file.read(extent.offset(), bytes)?;
    Ok(Frame::get(file.number(), bytes) == Header::Sound(*frame) && frame.is_whole(bytes))
}

/// The batch at this position, in a frame that must be the one that belongs there. Whether it is
/// sound itself is left to the chain.
pub(super) fn read_batch<'a>(
    file: &LogFile,
    (shard, position): (ShardId, u64),
    extent: Extent,
    bytes: &'a mut Vec<u8>,
) -> Result<&'a [u8], JournalError> {
    bytes.resize(extent.bytes(), 0);
    file.read(extent.offset(), bytes)?;
    let batch = match Frame::get(file.number(), bytes) {
        Header::Sound(frame) if (frame.shard, frame.tail.next) == (shard, position + 1) => {
            frame.batch(bytes)
        }
        Header::Sound(_) | Header::None | Header::Newer(_) => None,
    };
    batch.ok_or_else(|| {
        let detail = "another frame lies there than when it was opened".to_owned();
        corrupt(&file.path, shard, position, detail)
    })
}
