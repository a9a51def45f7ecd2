//! Reads a shard's journal back: every batch in order, every record through the core, which makes
//! of it what `apply` would. What was read is made durable again before anything acts on it.

use std::any::Any;
use std::mem;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use unanimity_core::{
    Coordinator, DecodeError, Doing, RecordReader, Replay, Replayed, TransactionId, Whole,
    decode_head,
};
use unanimity_journal::{Batch, Engine, JournalError, ShardId};

use crate::blame::text_of;
use crate::crash_point::panic_point;
use crate::error::StartError;
use crate::panics::Panics;

/// So many records are handed over at once, or a few more: batches may be small.
const GROUP_RECORDS: usize = 512;
/// About as long are those that are handed over as they are.
const RECORD_BYTES: usize = 96;
/// How many groups may be read before they are taken in: what is handed over is still in the
/// processor's caches.
const GROUPS_AHEAD: usize = 4;

/// What a shard's journal held.
pub(crate) struct Recovered {
    pub(crate) replayed: Replayed,
    pub(crate) first_position: u64,
    pub(crate) next_position: u64,
}

/// Reads everything that the journal keeps of this shard.
pub(crate) fn recover(
    engine: &mut dyn Engine,
    shard: ShardId,
    coordinator: Coordinator,
    panics: &Panics,
    archived_up_to: u64,
) -> Result<Recovered, StartError> {
    let bounds = engine.bounds(shard)?;
    if archived_up_to >= bounds.next {
        return Err(StartError::JournalBehind { shard, ends: bounds.next - 1, archived_up_to });
    }
    let replay = Replay::new(coordinator).archived_up_to(archived_up_to);
    let replay = replay.passing_over(panics.unreadable());
    let replay = read_all(engine, shard, bounds.first, replay)?;
    let mut replayed = replay.finish(bounds.next).map_err(|error| StartError::Records {
        shard,
        position: error.position,
        message: error.problem,
    })?;
    panics.set_aside(&mut replayed);
    engine.harden(shard)?;
    // Where the storage itself has the last word, whoever still believes that this shard is theirs
    // meets a conflict at their next append. (A file is locked instead.)
    let fence = engine.append(shard, bounds.next, &[])?.position();
    Ok(Recovered { replayed, first_position: bounds.first, next_position: fence + 1 })
}

/// One record, as far as the one who reads has come with it.
enum Read {
    Whole(Result<Whole, DecodeError>),
    /// Not looked at yet: where in its group it lies.
    Bytes(Range<usize>),
    /// The program broke on it.
    Broke(Broke),
}

/// On whose record the program broke, and what it said.
type Broke = (TransactionId, String);

/// Records that are handed over together, each with its batch's position.
struct Group {
    records: Vec<(u64, Read)>,
    bytes: Vec<u8>,
}

impl Group {
    fn new() -> Self {
        let records = Vec::with_capacity(GROUP_RECORDS);
        Self { records, bytes: Vec::with_capacity(GROUP_RECORDS * RECORD_BYTES) }
    }

    /// Puts a batch's records in, and makes the transactions of those that say all of one. What
    /// comes after a record that the program broke on is looked at all the same.
    fn put(&mut self, batch: &Batch<'_>, mut reader: Option<&mut RecordReader>) {
        let mut records = batch.records.iter();
        loop {
            let left = records.as_slice();
            let work = || {
                for bytes in &mut records {
                    let whole = reader.as_mut().and_then(|reader| reader.whole(bytes));
                    let read = whole.map_or_else(|| self.copy(bytes), Read::Whole);
                    self.records.push((batch.position, read));
                }
            };
            let Err(panic) = catch_unwind(AssertUnwindSafe(work)) else { return };
            let broken = left[left.len() - records.len() - 1];
            let whose = decode_head(broken).map(|head| head.transaction);
            self.records.push((batch.position, Read::Broke(broke(panic, whose))));
        }
    }

    fn copy(&mut self, bytes: &[u8]) -> Read {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        Read::Bytes(start..self.bytes.len())
    }

    /// Takes the records in, up to one that the program breaks on.
    fn take_in(&mut self, replay: &mut Replay) -> Result<(), Broke> {
        let (bytes, mut done) = (&self.bytes, 0);
        let work = || {
            for (position, record) in &mut self.records {
                take(replay, *position, record, bytes)?;
                done += 1;
            }
            Ok(())
        };
        // What is left half done is looked at by nobody: the start ends here.
        catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
            let (_, record) = &self.records[done];
            Err(broke(panic, whose(record, bytes)))
        })
    }
}

/// Reads here, and takes in what was read on a thread of its own. What changes a transaction is
/// decoded there; the transactions are made here, unless the other has nothing to do. So each has
/// half of the work, whatever the journal holds.
fn read_all(
    engine: &mut dyn Engine,
    shard: ShardId,
    first: u64,
    replay: Replay,
) -> Result<Replay, StartError> {
    // Whose records are to be passed over is asked before they are looked at.
    let raw = replay.passes_over_some();
    let (mut reader, waiting) = (RecordReader::default(), AtomicUsize::new(0));
    let (sender, receiver) = mpsc::sync_channel(GROUPS_AHEAD);
    let (read, taken) = thread::scope(|scope| {
        let taking = scope.spawn(|| take_all(replay, receiver, &waiting));
        let mut group = Group::new();
        let read = engine.read(shard, first, &mut |batch| {
            // Who has nothing to take in can as well look at them.
            let leave = raw || waiting.load(Ordering::Relaxed) == 0;
            group.put(&batch, (!leave).then_some(&mut reader));
            if group.records.len() >= GROUP_RECORDS {
                waiting.fetch_add(1, Ordering::Relaxed);
                // dropped: nobody takes more after a panic, which is told below.
                let _ = sender.send(mem::replace(&mut group, Group::new()));
            }
            Ok::<(), JournalError>(())
        });
        waiting.fetch_add(1, Ordering::Relaxed);
        // dropped: as above.
        let _ = sender.send(group);
        drop(sender);
        (read, taking.join())
    });
    let taken = taken.unwrap_or_else(|panic| resume_unwind(panic));
    read?;
    taken.map_err(|(transaction, message)| StartError::Panicked { shard, transaction, message })
}

fn take_all(
    mut replay: Replay,
    groups: mpsc::Receiver<Group>,
    waiting: &AtomicUsize,
) -> Result<Replay, Broke> {
    let mut taken = Ok(());
    for mut group in groups {
        waiting.fetch_sub(1, Ordering::Relaxed);
        if taken.is_ok() {
            taken = group.take_in(&mut replay);
        }
    }
    taken.map(|()| replay)
}

fn take(replay: &mut Replay, position: u64, record: &mut Read, bytes: &[u8]) -> Result<(), Broke> {
    if cfg!(feature = "crash-points")
        && let Some(id) = whose(record, bytes).filter(|id| !replay.passes_over(id))
    {
        panic_point(Doing::Replaying.as_str(), &id);
    }
    match record {
        Read::Whole(whole) => replay.take_whole(position, whole),
        Read::Bytes(range) => replay.take(position, &bytes[range.clone()]),
        // After something that does not fit nothing is looked at any more.
        Read::Broke(_) if replay.has_problem() => {}
        Read::Broke(broke) => return Err(broke.clone()),
    }
    Ok(())
}

fn whose(record: &Read, bytes: &[u8]) -> Option<TransactionId> {
    match record {
        Read::Whole(Ok(whole)) => whole.transaction().cloned(),
        Read::Whole(Err(_)) | Read::Broke(_) => None,
        Read::Bytes(range) => decode_head(&bytes[range.clone()]).map(|head| head.transaction),
    }
}

/// Says on whose record the program broke. One that does not even say that is nobody's, and the
/// panic goes on.
fn broke(panic: Box<dyn Any + Send>, whose: Option<TransactionId>) -> Broke {
    match whose {
        Some(id) => (id, text_of(panic.as_ref())),
        None => resume_unwind(panic),
    }
}
