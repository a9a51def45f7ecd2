//! Keeps a journal in memory, for tests and the simulator, and breaks it on request. It decides
//! nothing that the SQLite engine decides otherwise; which faults happen when is left to the test.
//!
//! What a clone shares is the storage, as a disk would be shared; each clone is a freshly opened
//! engine of its own. So a test "crashes" a coordinator by dropping its engine, and reopens by
//! cloning another.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::batch::{self, GENESIS};
use crate::chain::{Chain, Tail};
use crate::{Batch, Bounds, Engine, JournalError, Mutation, Mutations, Receipt, ShardId};

/// How an append fails. In each case the caller sees the same error and cannot know which it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendFault {
    /// Nothing reached the storage.
    Lost,
    /// The batch is durable; only the answer was lost.
    Durable,
    /// The sync failed: readers see the batch, and [`MemoryEngine::lose_unsynced`] takes it away,
    /// with everything that was written after it, unless [`Engine::harden`] comes first. A later
    /// sync that succeeds does not bring back what an earlier one has lost.
    Unsynced,
}

/// A journal in memory. [`Clone`] opens the same storage anew.
#[derive(Debug, Default)]
pub struct MemoryEngine {
    storage: Arc<Mutex<Storage>>,
    poison: Option<String>,
    mutations: Mutations,
}

impl Clone for MemoryEngine {
    fn clone(&self) -> Self {
        let storage = Arc::clone(&self.storage);
        Self { storage, poison: None, mutations: self.mutations }
    }
}

#[derive(Debug, Default)]
struct Storage {
    shards: BTreeMap<ShardId, Log>,
    /// How many appends have been tried; faults are keyed by it.
    appends: u64,
    faults: BTreeMap<u64, AppendFault>,
}

#[derive(Debug)]
struct Log {
    first: u64,
    first_previous: u32,
    batches: Vec<Vec<u8>>,
    /// How many of `batches` a power loss leaves in place.
    synced: usize,
    /// Whether a sync failed, so that there is a hole on the disk where reads show a batch.
    hole: bool,
    /// What was forgotten since then, from which position on and behind which checksum: the disk
    /// has it still.
    forgotten: Option<(u64, u32, Vec<Vec<u8>>)>,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            first: 1,
            first_previous: GENESIS,
            batches: Vec::new(),
            synced: 0,
            hole: false,
            forgotten: None,
        }
    }
}

impl Log {
    fn tail(&self) -> Tail {
        Tail {
            first: self.first,
            first_previous: self.first_previous,
            next: self.first + self.batches.len() as u64,
            checksum: self.checksum_before(self.batches.len()),
        }
    }

    /// The checksum of the batch before the one at `index`.
    fn checksum_before(&self, index: usize) -> u32 {
        let before = index.checked_sub(1).and_then(|before| self.batches.get(before));
        before.and_then(|bytes| batch::stored_checksum(bytes)).unwrap_or(self.first_previous)
    }

    fn push(&mut self, shard: ShardId, records: &[&[u8]]) {
        let tail = self.tail();
        self.batches.push(batch::encode(shard, tail.next, tail.checksum, records));
    }

    fn sync(&mut self) {
        if !self.hole {
            self.synced = self.batches.len();
        }
    }

    fn harden(&mut self) {
        self.hole = false;
        self.forgotten = None;
        self.sync();
    }

    /// Forgets what lies before a position, which must be inside.
    fn truncate(&mut self, before: u64) {
        let count = self.index(before);
        let (first, first_previous) = (self.first, self.first_previous);
        self.first_previous = self.checksum_before(count);
        self.first = before;
        let gone = self.batches.drain(..count);
        if self.hole {
            let old = self.forgotten.get_or_insert_with(|| (first, first_previous, Vec::new()));
            old.2.extend(gone);
        } else {
            drop(gone);
            self.synced = self.synced.saturating_sub(count);
        }
    }

    /// Loses power.
    fn lose_unsynced(&mut self) {
        if let Some((first, first_previous, mut batches)) = self.forgotten.take() {
            batches.append(&mut self.batches);
            (self.first, self.first_previous, self.batches) = (first, first_previous, batches);
        }
        self.batches.truncate(self.synced);
        self.hole = false;
    }

    fn index(&self, position: u64) -> usize {
        usize::try_from(position - self.first).unwrap_or(usize::MAX)
    }
}

impl MemoryEngine {
    /// A fresh journal on a storage of its own.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A fresh journal with a deliberate bug in it.
    #[must_use]
    pub fn with_mutations(mutations: Mutations) -> Self {
        Self { mutations, ..Self::default() }
    }

    /// Lets the `nth` append from now on fail, counted over all clones; 1 is the next one.
    pub fn fail_append(&self, nth: u64, fault: AppendFault) {
        let mut storage = self.lock();
        let key = storage.appends + nth;
        storage.faults.insert(key, fault);
    }

    /// Loses power: what was never synced is gone. Engines that are still open should be dropped.
    pub fn lose_unsynced(&self) {
        for log in self.lock().shards.values_mut() {
            log.lose_unsynced();
        }
    }

    /// Flips one bit of a stored batch; `bit` counts from the batch's first byte and wraps around.
    ///
    /// # Panics
    /// If there is no batch at `position`.
    pub fn damage(&self, shard: ShardId, position: u64, bit: usize) {
        let mut storage = self.lock();
        let log = storage.shards.entry(shard).or_default();
        let index = log.index(position);
        let bytes = &mut log.batches[index];
        let bit = bit % (bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
    }

    /// Appends an empty batch as another coordinator that has taken over, so that the next append
    /// of this one meets a conflict.
    pub fn fence(&self, shard: ShardId) {
        let mut storage = self.lock();
        let log = storage.shards.entry(shard).or_default();
        log.push(shard, &[]);
        log.sync();
    }

    fn lock(&self) -> MutexGuard<'_, Storage> {
        // A test that panicked while it held the lock must not hide its message behind ours.
        self.storage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_poison(&self) -> Result<(), JournalError> {
        match &self.poison {
            None => Ok(()),
            Some(cause) => Err(JournalError::Poisoned { path: path(), cause: cause.clone() }),
        }
    }

    fn append_unless_faulty(
        &self,
        shard: ShardId,
        (position, records): (u64, &[&[u8]]),
        before: Option<u64>,
    ) -> Result<Option<AppendFault>, JournalError> {
        let mut storage = self.lock();
        storage.appends += 1;
        let appends = storage.appends;
        let fault = storage.faults.remove(&appends);
        let log = storage.shards.entry(shard).or_default();
        if !self.mutations.has(Mutation::ConflictOverlooked) {
            log.tail().check_free(Path::new(PLACE), shard, position)?;
        }
        let before = before.filter(|before| *before > log.first);
        if let Some(before) = before {
            log.tail().check_inside(Path::new(PLACE), shard, before)?;
        }
        log.hole |= fault == Some(AppendFault::Unsynced);
        if fault != Some(AppendFault::Lost) {
            before.into_iter().for_each(|before| log.truncate(before));
            log.push(shard, records);
        }
        if fault.is_none() || fault == Some(AppendFault::Durable) {
            log.sync();
        }
        let retried = self.mutations.has(Mutation::FailedSyncRetried);
        Ok(fault.filter(|fault| !(retried && *fault == AppendFault::Unsynced)))
    }
}

impl Engine for MemoryEngine {
    fn append_and_truncate(
        &mut self,
        shard: ShardId,
        position: u64,
        records: &[&[u8]],
        before: Option<u64>,
    ) -> Result<Receipt, JournalError> {
        self.check_poison()?;
        batch::check_size(Path::new(PLACE), shard, records)?;
        if self.append_unless_faulty(shard, (position, records), before)?.is_none() {
            return Ok(Receipt::new(shard, position));
        }
        let message = format!("injected failure of append {position} on shard {shard}");
        self.poison = Some(message.clone());
        Err(JournalError::Io { path: path(), message })
    }

    fn read(
        &mut self,
        shard: ShardId,
        from: u64,
        each: &mut dyn FnMut(Batch<'_>) -> Result<(), JournalError>,
    ) -> Result<(), JournalError> {
        self.check_poison()?;
        // `each` may well use a clone of this engine, so it must not run under the lock.
        let mut storage = self.lock();
        let log = storage.shards.entry(shard).or_default();
        log.tail().check_inside(Path::new(PLACE), shard, from)?;
        let start = log.index(from);
        let mut chain = Chain::new(Path::new(PLACE), shard, from, log.checksum_before(start));
        let batches = log.batches[start..].to_vec();
        drop(storage);
        for (position, bytes) in (from..).zip(&batches) {
            match chain.admit(position, bytes) {
                Err(JournalError::Corrupt { .. })
                    if self.mutations.has(Mutation::DamageOverlooked) => {}
                batch => each(batch?)?,
            }
        }
        Ok(())
    }

    fn bounds(&mut self, shard: ShardId) -> Result<Bounds, JournalError> {
        self.check_poison()?;
        let tail = self.lock().shards.entry(shard).or_default().tail();
        Ok(Bounds { first: tail.first, next: tail.next })
    }

    fn truncate(&mut self, shard: ShardId, before: u64) -> Result<(), JournalError> {
        self.check_poison()?;
        let mut storage = self.lock();
        let log = storage.shards.entry(shard).or_default();
        if before <= log.first {
            return Ok(());
        }
        log.tail().check_inside(Path::new(PLACE), shard, before)?;
        log.truncate(before);
        log.sync();
        Ok(())
    }

    fn harden(&mut self, shard: ShardId) -> Result<(), JournalError> {
        self.check_poison()?;
        if !self.mutations.has(Mutation::HardenSkipped) {
            self.lock().shards.entry(shard).or_default().harden();
        }
        Ok(())
    }
}

/// What stands for the file's name in messages.
const PLACE: &str = "(in memory)";

fn path() -> PathBuf {
    PathBuf::from(PLACE)
}
