//! Reads a shard's journal back: every batch in order, every record through the core's own `apply`.
//! What was read is made durable again before anything acts on it.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use unanimity_core::{Coordinator, Doing, Replay, Replayed, TransactionId, decode_head};
use unanimity_journal::{Engine, JournalError, ShardId};

use crate::blame::text_of;
use crate::crash_point::panic_point;
use crate::error::StartError;
use crate::panics::Panics;

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
) -> Result<Recovered, StartError> {
    let bounds = engine.bounds(shard)?;
    let mut replay = Replay::new(coordinator).passing_over(panics.unreadable());
    let mut broke = None;
    engine.read(shard, bounds.first, &mut |batch| {
        for bytes in &batch.records {
            if broke.is_none() {
                broke = take(&mut replay, batch.position, bytes).err();
            }
        }
        Ok::<(), JournalError>(())
    })?;
    if let Some((transaction, message)) = broke {
        return Err(StartError::Panicked { shard, transaction, message });
    }
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

/// Takes one record in. If the program breaks on it, says on whose it was; a record that does not
/// even say that is nobody's, and the panic goes on.
fn take(replay: &mut Replay, position: u64, bytes: &[u8]) -> Result<(), (TransactionId, String)> {
    // What is left half done is looked at by nobody: the start ends here.
    let taken = catch_unwind(AssertUnwindSafe(|| {
        if cfg!(feature = "crash-points")
            && let Some(head) = decode_head(bytes)
            && !replay.passes_over(&head.transaction)
        {
            panic_point(Doing::Replaying.as_str(), &head.transaction);
        }
        replay.take(position, bytes);
    }));
    let Err(panic) = taken else { return Ok(()) };
    let Some(head) = decode_head(bytes) else { resume_unwind(panic) };
    Err((head.transaction, text_of(panic.as_ref())))
}
