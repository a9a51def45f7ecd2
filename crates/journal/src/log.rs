//! The engine of a coordinator: a file of its own, into which each append is one write and one
//! sync. It decides what is kept and what makes room; how the file lies is told by `file` and
//! `frame`, where in it the next frame goes by `space`, and what a start makes of it by `scan`.
//!
//! As a story:
//! 1. An append is a *frame*: the batch, and where its shard stands with it (first position kept,
//!    next free one, and their checksums). It is written where nothing is kept, in whole blocks,
//!    and synced. Nothing that is kept is ever written over, so a crash can tear the last frame
//!    alone.
//! 2. Batches that are forgotten are those before the first position of the shard's latest frame.
//!    Once that is durable their blocks are free, and the next appends take them in turn: the file
//!    is about as long as what is kept in it, and hardly ever gets longer.
//! 3. A start reads the whole file. The frame with the highest sequence says where a shard stands;
//!    every batch that it keeps must be there. Only what would have come next may be unsound: a
//!    crash has torn it, and nobody was told of it.
//! 4. What may not have reached the disk although it can be read is the last frame. Before anything
//!    else is written [`Engine::harden`] writes it once more, the same bytes in the same place, and
//!    syncs: only then are the blocks free that it has freed.
//!
//! Why not SQLite, which the older engine rests on: each append then is also pages of a tree, a
//! copy of them in a log, and now and then a checkpoint for which all wait. Measured within a
//! coordinator, in turn, a file of its own carries a seventh more transactions.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;

use crate::batch::{self, GENESIS};
use crate::chain::{Chain, Tail};
use crate::poison::Poison;
use crate::{Batch, Bounds, Engine, JournalError, Receipt, ShardId};
use file::{LogFile, damaged};
use frame::{Extent, Frame, HEADER_BYTES, blocks, others};
use scan::{Kept, Placed, read_batch, read_frame, scan, tails};
use space::Space;

mod file;
mod frame;
mod scan;
mod space;
#[cfg(test)]
mod tests;

/// The file grows by half of its length, but by so many blocks at least and at most: 64 kB and
/// 1 MB. To make it longer takes a sync of its own.
const GROW_MIN: u32 = 16;
const GROW_MAX: u32 = 256;
/// A place for so many blocks should be free, or the next append may make the file longer.
const SMALL_BLOCKS: u32 = 17;
/// A start cuts off what is free at the end, if it is more than that.
const FREE_END_MAX: u32 = 2_048;
/// A buffer that is larger than this is not kept.
const BUFFER_MAX: usize = 1 << 20;

/// A journal in one file of its own format, held exclusively from [`LogEngine::open`] until it is
/// dropped.
///
/// One file may carry several shards, but they then share one sync after another: give each its
/// own.
#[derive(Debug)]
pub struct LogEngine {
    file: LogFile,
    space: Space,
    shards: BTreeMap<ShardId, Shard>,
    sequence: u64,
    /// The frame that was written last before this engine was opened. It may be one that an earlier
    /// process has not synced.
    inherited: Option<Placed>,
    /// Whether what was found is durable, to its last frame.
    is_hard: bool,
    buffer: Vec<u8>,
    poison: Poison,
}

/// Where a shard stands.
#[derive(Debug)]
struct Shard {
    tail: Tail,
    /// Its batches, from the first position kept.
    kept: VecDeque<Kept>,
    /// Its latest frame, if that is none of them.
    mark: Option<Extent>,
}

impl Default for Shard {
    fn default() -> Self {
        let tail = Tail { first: 1, first_previous: GENESIS, next: 1, checksum: GENESIS };
        Self { tail, kept: VecDeque::new(), mark: None }
    }
}

impl LogEngine {
    /// Opens the journal at `path`, or creates it; its folder must exist. The whole file is read
    /// once; whether each batch is sound is left to [`Engine::read`].
    ///
    /// # Errors
    /// [`JournalError::InUse`], [`JournalError::ForeignFile`], [`JournalError::NewerVersion`],
    /// [`JournalError::Corrupt`], [`JournalError::ReadOnly`], [`JournalError::DiskFull`] or
    /// [`JournalError::Io`]. A file that is refused is left as it is.
    pub fn open(path: &Path) -> Result<Self, JournalError> {
        if path.as_os_str().is_empty() {
            let message = "its path is empty".to_owned();
            return Err(JournalError::Io { path: path.to_owned(), message });
        }
        let file = LogFile::open(path)?;
        let scan::Found { shards, space, sequence, latest: inherited } = scan(&file)?;
        let (is_hard, buffer, poison) = (false, Vec::new(), Poison::default());
        Ok(Self { file, space, shards, sequence, inherited, is_hard, buffer, poison })
    }

    /// Runs a write; poisons the engine unless it succeeds or was refused with nothing written.
    fn write<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, JournalError>,
    ) -> Result<T, JournalError> {
        self.poison.check(&self.file.path)?;
        let outcome = work(self);
        self.poison.take_in(&outcome);
        outcome
    }

    fn tail(&self, shard: ShardId) -> Tail {
        self.shards.get(&shard).map_or_else(|| Shard::default().tail, |found| found.tail)
    }

    /// Where the shard stands once everything before `before` is forgotten.
    fn forget(&self, shard: ShardId, before: u64) -> Result<Tail, JournalError> {
        let tail = self.tail(shard);
        if before <= tail.first {
            return Ok(tail);
        }
        tail.check_inside(&self.file.path, shard, before)?;
        let last = (before - 1 - tail.first) as usize;
        let last = self.shards.get(&shard).and_then(|found| found.kept.get(last));
        let first_previous = last.map_or(GENESIS, |last| last.checksum);
        Ok(Tail { first: before, first_previous, ..tail })
    }

    /// A free place for so many blocks; the file is made longer if there is none.
    fn place(&mut self, blocks: u32) -> Result<Extent, JournalError> {
        if let Some(extent) = self.space.allocate(blocks) {
            return Ok(extent);
        }
        let before = self.space.capacity();
        let grown = (before / 2).clamp(GROW_MIN, GROW_MAX).max(blocks);
        let capacity = before.checked_add(grown).ok_or_else(|| {
            damaged(&self.file.path, "its end", "it cannot be made longer".to_owned())
        })?;
        self.file.lengthen(before, capacity)?;
        self.space.set_capacity(capacity);
        let extent = self.space.allocate(blocks);
        Ok(extent.unwrap_or_else(|| unreachable!("the file was made longer by {grown} blocks")))
    }

    /// Writes a frame, and says where the shard stands with it and where it lies; durable when it
    /// returns.
    fn append_frame(
        &mut self,
        shard: ShardId,
        tail: Tail,
        records: Option<&[&[u8]]>,
    ) -> Result<(Tail, Extent), JournalError> {
        let batch_bytes = records.and_then(batch::encoded_bytes).unwrap_or(0);
        let extent = self.place(blocks(batch_bytes))?;
        let mut bytes = std::mem::take(&mut self.buffer);
        bytes.clear();
        bytes.resize(HEADER_BYTES, 0);
        let mut tail = tail;
        if let Some(records) = records {
            batch::encode_behind(&mut bytes, shard, tail.next, tail.checksum, records);
            let checksum = batch::stored_checksum(&bytes).unwrap_or(GENESIS);
            tail = Tail { next: tail.next + 1, checksum, ..tail };
        }
        bytes.resize(extent.bytes(), 0);
        // It is bounded by `BATCH_BYTES_MAX`.
        let (sequence, batch_bytes) = (self.sequence + 1, batch_bytes as u32);
        let others = others(shard, tails(&self.shards));
        let frame = Frame { sequence, shard, tail, batch_bytes, others };
        frame.put(self.file.number(), &mut bytes);
        self.file.write(extent, &bytes)?;
        self.file.sync()?;
        bytes.clear();
        bytes.shrink_to(BUFFER_MAX);
        self.buffer = bytes;
        self.sequence = sequence;
        Ok((tail, extent))
    }

    /// Takes in what a frame that is durable now says, and frees what nobody keeps any more.
    fn settle(&mut self, shard: ShardId, tail: Tail, extent: Extent, has_batch: bool) {
        let stands = self.shards.entry(shard).or_default();
        let forgotten = (tail.first - stands.tail.first) as usize;
        for gone in stands.kept.drain(..forgotten.min(stands.kept.len())) {
            self.space.release(gone.extent);
        }
        if has_batch {
            stands.kept.push_back(Kept { extent, checksum: tail.checksum });
        }
        let mark = std::mem::replace(&mut stands.mark, (!has_batch).then_some(extent));
        stands.tail = tail;
        if let Some(mark) = mark {
            self.space.release(mark);
        }
    }

    /// The last frame is not what it was when the file was opened: a sync of it had failed, nobody
    /// was told of it, and the kernel has let go of what it had shown.
    fn vanished(&self) -> JournalError {
        let message = "the last write before the start has not reached the disk; nothing that was \
                       acknowledged is lost"
            .to_owned();
        JournalError::Io { path: self.file.path.clone(), message }
    }

    /// See [`Engine::harden`]. Later it has nothing to do: each append is synced.
    fn harden_all(&mut self) -> Result<(), JournalError> {
        if self.is_hard {
            return Ok(());
        }
        self.file.sync_name()?;
        self.file.make_length_durable(self.space.capacity())?;
        if let Some(Placed { extent, frame }) = self.inherited {
            let mut bytes = Vec::new();
            if !read_frame(&self.file, &frame, extent, &mut bytes)? {
                return Err(self.vanished());
            }
            self.file.write(extent, &bytes)?;
        }
        self.file.note_length(self.space.capacity())?;
        self.file.sync()?;
        let end = self.space.used_end();
        if self.space.capacity() - end > FREE_END_MAX {
            self.file.shorten(end)?;
            self.space.set_capacity(end);
        }
        self.is_hard = true;
        Ok(())
    }
}

impl Engine for LogEngine {
    fn append_and_truncate(
        &mut self,
        shard: ShardId,
        position: u64,
        records: &[&[u8]],
        before: Option<u64>,
    ) -> Result<Receipt, JournalError> {
        self.write(|engine| {
            batch::check_size(&engine.file.path, shard, records)?;
            engine.tail(shard).check_free(&engine.file.path, shard, position)?;
            let tail = engine.forget(shard, before.unwrap_or(0))?;
            engine.harden_all()?;
            let (tail, extent) = engine.append_frame(shard, tail, Some(records))?;
            engine.settle(shard, tail, extent, true);
            Ok(Receipt::new(shard, position))
        })
    }

    fn is_due(&self) -> bool {
        !self.is_hard || !self.space.has(SMALL_BLOCKS)
    }

    fn read(
        &mut self,
        shard: ShardId,
        from: u64,
        each: &mut dyn FnMut(Batch<'_>) -> Result<(), JournalError>,
    ) -> Result<(), JournalError> {
        self.poison.check(&self.file.path)?;
        let empty = Shard::default();
        let stands = self.shards.get(&shard).unwrap_or(&empty);
        let path = self.file.path.as_path();
        stands.tail.check_inside(path, shard, from)?;
        let at = (from - stands.tail.first) as usize;
        let previous = match at.checked_sub(1).and_then(|before| stands.kept.get(before)) {
            Some(before) => before.checksum,
            None => stands.tail.first_previous,
        };
        let mut chain = Chain::new(path, shard, from, previous);
        let mut bytes = Vec::new();
        for (position, kept) in (from..).zip(stands.kept.range(at..)) {
            let inherited = self.inherited.filter(|last| last.extent == kept.extent);
            if let Some(Placed { extent, frame }) = inherited.filter(|_| !self.is_hard)
                && !read_frame(&self.file, &frame, extent, &mut bytes)?
            {
                return Err(self.vanished());
            }
            let batch = read_batch(&self.file, (shard, position), kept.extent, &mut bytes)?;
            each(chain.admit(position, batch)?)?;
        }
        Ok(())
    }

    fn bounds(&mut self, shard: ShardId) -> Result<Bounds, JournalError> {
        self.poison.check(&self.file.path)?;
        let tail = self.tail(shard);
        Ok(Bounds { first: tail.first, next: tail.next })
    }

    fn truncate(&mut self, shard: ShardId, before: u64) -> Result<(), JournalError> {
        self.write(|engine| {
            let tail = engine.forget(shard, before)?;
            if tail == engine.tail(shard) {
                return Ok(());
            }
            engine.harden_all()?;
            let (tail, extent) = engine.append_frame(shard, tail, None)?;
            engine.settle(shard, tail, extent, false);
            Ok(())
        })
    }

    /// Writes once more the frame that was written last, the only one whose sync may have failed.
    /// All shards of the file are hardened by it.
    fn harden(&mut self, _shard: ShardId) -> Result<(), JournalError> {
        self.write(Self::harden_all)
    }
}
