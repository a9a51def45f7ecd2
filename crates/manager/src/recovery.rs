//! Reads a shard's journal back: every batch in order, every record through the core's own `apply`.
//! What was read is made durable again before anything acts on it.

use unanimity_core::{Coordinator, Replay, Replayed};
use unanimity_journal::{Engine, JournalError, ShardId};

use crate::error::StartError;

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
) -> Result<Recovered, StartError> {
    let bounds = engine.bounds(shard)?;
    let mut replay = Replay::new(coordinator);
    engine.read(shard, bounds.first, &mut |batch| {
        for bytes in &batch.records {
            replay.take(batch.position, bytes);
        }
        Ok::<(), JournalError>(())
    })?;
    let replayed = replay.finish(bounds.next).map_err(|error| StartError::Records {
        shard,
        position: error.position,
        message: error.problem,
    })?;
    engine.harden(shard)?;
    // Whoever still believes that this shard is theirs meets a conflict at their next append.
    let fence = engine.append(shard, bounds.next, &[])?.position();
    Ok(Recovered { replayed, first_position: bounds.first, next_position: fence + 1 })
}
