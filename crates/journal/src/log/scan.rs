//! Finds out, when a file is opened, where each shard stands: which frames there are, which of them
//! are kept, and whether the last one was torn by a crash.
//!
//! Each frame is synced before the next one is written, and what was torn is wiped out before
//! anything else is ([`Found::torn`]). So only the frame that was written last can be unsound
//! because of a crash. Any other one that is not whole, or not there, is damage.
//!
//! What cannot be told: damage within the last frame looks like a crash while it was written.

use std::collections::{BTreeMap, VecDeque};

use super::Shard;
use super::file::{HEAD_BLOCKS, LogFile};
use super::frame::{BLOCK, Extent, Frame, HEADER_BYTES, Header, blocks};
use super::space::Space;
use crate::batch::decode;
use crate::chain::corrupt;
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
    /// The shard of the frame that was written last.
    pub(super) latest: Option<ShardId>,
    /// A frame that a crash has torn: to be wiped out before anything is written.
    pub(super) torn: Option<Extent>,
}

#[derive(Clone, Copy)]
struct Placed {
    extent: Extent,
    frame: Frame,
}

/// Looks at all of a file.
pub(super) fn scan(file: &LogFile) -> Result<Found, JournalError> {
    let capacity = file.blocks()?;
    let mut placed = frames(file, capacity)?;
    placed.sort_unstable_by_key(|one| one.frame.sequence);
    let sequence = placed.last().map_or(0, |last| last.frame.sequence);
    let mut torn = None;
    if let Some(last) = placed.last()
        && !is_whole(file, capacity, *last)?
    {
        torn = Some(Extent { blocks: 1, ..last.extent });
        placed.pop();
    }
    let latest = placed.last().map(|last| last.frame.shard);
    let mut space = Space::new(HEAD_BLOCKS, capacity);
    let mut of_shards: BTreeMap<ShardId, Vec<Placed>> = BTreeMap::new();
    for one in placed {
        of_shards.entry(one.frame.shard).or_default().push(one);
    }
    let mut shards = BTreeMap::new();
    for (shard, placed) in of_shards {
        shards.insert(shard, stands(file, shard, &placed, &mut space)?);
    }
    Ok(Found { shards, space, sequence, latest, torn })
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
fn is_whole(file: &LogFile, capacity: u32, one: Placed) -> Result<bool, JournalError> {
    if !one.frame.has_batch() {
        return Ok(true);
    }
    if one.extent.end() > capacity {
        return Ok(false);
    }
    let mut bytes = vec![0; one.extent.bytes()];
    file.read(one.extent.offset(), &mut bytes)?;
    let batch = one.frame.batch(&bytes).and_then(|batch| decode(batch).ok());
    Ok(batch.is_some_and(|batch| batch.checksum == one.frame.tail.checksum))
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
    let mark = (!last.frame.has_batch()).then_some(last.extent);
    if mark.is_some_and(|mark| !take(mark)) {
        return missing(tail.next, "lies where what was forgotten is noted");
    }
    Ok(Shard { tail, kept: batches, mark })
}

/// The bytes of a frame, which must be the one that belongs there, and its batch within them.
pub(super) fn read_frame(
    file: &LogFile,
    (shard, next): (ShardId, u64),
    extent: Extent,
    bytes: &mut Vec<u8>,
) -> Result<Frame, JournalError> {
    bytes.resize(extent.bytes(), 0);
    file.read(extent.offset(), bytes)?;
    match Frame::get(file.number(), &bytes[..HEADER_BYTES]) {
        Header::Sound(frame)
            if (frame.shard, frame.tail.next) == (shard, next) && frame.batch(bytes).is_some() =>
        {
            Ok(frame)
        }
        Header::Sound(_) | Header::None | Header::Newer(_) => {
            let detail = "another frame lies there than when it was opened".to_owned();
            Err(corrupt(&file.path, shard, next.saturating_sub(1), detail))
        }
    }
}
