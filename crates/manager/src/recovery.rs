//! Reads a shard's journal back: every batch in order, every record through the core's own `apply`.
//! What was read is made durable again before anything acts on it.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc;
use std::thread;

use unanimity_core::{
    Coordinator, DecodeError, Doing, Record, Replay, Replayed, TransactionId, decode_head,
    decode_record,
};
use unanimity_journal::{Engine, JournalError, ShardId};

use crate::blame::text_of;
use crate::crash_point::panic_point;
use crate::error::StartError;
use crate::panics::Panics;

/// How many batches may be read before they are taken in.
const BATCHES_AHEAD: usize = 64;

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
    // Whoever still believes that this shard is theirs meets a conflict at their next append.
    let fence = engine.append(shard, bounds.next, &[])?.position();
    Ok(Recovered { replayed, first_position: bounds.first, next_position: fence + 1 })
}

/// One record, as far as the one who reads has come with it.
enum Read {
    Decoded(Result<Record, DecodeError>),
    /// Not looked at yet: it may be one that is to be passed over.
    Bytes(Vec<u8>),
    /// The program broke on it.
    Broke(Broke),
}

/// On whose record the program broke, and what it said.
type Broke = (TransactionId, String);
/// A batch's position and its records.
type ReadBatch = (u64, Vec<Read>);

/// Reads and decodes here, and takes in what was decoded on a thread of its own: each is about half
/// of the work.
fn read_all(
    engine: &mut dyn Engine,
    shard: ShardId,
    first: u64,
    replay: Replay,
) -> Result<Replay, StartError> {
    let raw = replay.passes_over_some();
    let (sender, receiver) = mpsc::sync_channel(BATCHES_AHEAD);
    let (read, taken) = thread::scope(|scope| {
        let taking = scope.spawn(move || take_all(replay, &receiver));
        let read = engine.read(shard, first, &mut |batch| {
            let looked_at =
                |bytes: &[u8]| if raw { Read::Bytes(bytes.to_vec()) } else { decode(bytes) };
            let records = batch.records.into_iter().map(looked_at).collect();
            // dropped: nobody takes more after a panic, which is told below.
            let _ = sender.send((batch.position, records));
            Ok::<(), JournalError>(())
        });
        drop(sender);
        (read, taking.join())
    });
    let taken = taken.unwrap_or_else(|panic| resume_unwind(panic));
    read?;
    taken.map_err(|(transaction, message)| StartError::Panicked { shard, transaction, message })
}

fn decode(bytes: &[u8]) -> Read {
    match guarded(|| decode_head(bytes).map(|head| head.transaction), || decode_record(bytes)) {
        Ok(decoded) => Read::Decoded(decoded),
        Err(broke) => Read::Broke(broke),
    }
}

fn take_all(mut replay: Replay, batches: &mpsc::Receiver<ReadBatch>) -> Result<Replay, Broke> {
    let mut broke = None;
    for (position, records) in batches {
        for record in records {
            if broke.is_none() {
                broke = take(&mut replay, position, record).err();
            }
        }
    }
    broke.map_or(Ok(replay), Err)
}

fn take(replay: &mut Replay, position: u64, record: Read) -> Result<(), Broke> {
    let id = match &record {
        Read::Decoded(Ok(record)) => Some(record.transaction.clone()),
        Read::Decoded(Err(_)) | Read::Broke(_) => None,
        Read::Bytes(bytes) => decode_head(bytes).map(|head| head.transaction),
    };
    let whose = id.clone();
    guarded(
        || whose,
        || {
            if let Some(id) = id.filter(|id| !replay.passes_over(id)) {
                panic_point(Doing::Replaying.as_str(), &id);
            }
            match record {
                Read::Decoded(decoded) => replay.take_decoded(position, decoded),
                Read::Bytes(bytes) => replay.take(position, &bytes),
                // After something that does not fit nothing is looked at any more.
                Read::Broke(_) if replay.has_problem() => {}
                Read::Broke(broke) => return Err(broke),
            }
            Ok(())
        },
    )?
}

/// Does something for one record. If the program breaks on it, says on whose it was; a record that
/// does not even say that is nobody's, and the panic goes on.
fn guarded<T>(
    whose: impl FnOnce() -> Option<TransactionId>,
    work: impl FnOnce() -> T,
) -> Result<T, Broke> {
    // What is left half done is looked at by nobody: the start ends here.
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| match whose() {
        Some(id) => (id, text_of(panic.as_ref())),
        None => resume_unwind(panic),
    })
}
