//! Reads a shard's journal back: every batch in order, every record through the core's own `apply`.
//! What was read is made durable again before anything acts on it.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use unanimity_core::{Coordinator, Fact, Record, Transaction, TransactionId, decode_record};
use unanimity_journal::{Engine, JournalError, ShardId};

use crate::error::StartError;

/// What a shard's journal held.
pub(crate) struct Recovered {
    pub(crate) coordinator: Coordinator,
    /// In which batch each live or just ended transaction was last written whole.
    pub(crate) homes: HashMap<TransactionId, u64>,
    /// Ended, but perhaps not in the history yet.
    pub(crate) ended: Vec<Arc<Transaction>>,
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
    let mut replay = Replay {
        coordinator,
        homes: HashMap::new(),
        ended: Vec::new(),
        orphans: BTreeSet::new(),
        problem: None,
    };
    engine.read(shard, bounds.first, &mut |batch| {
        for bytes in &batch.records {
            replay.take(batch.position, bytes);
        }
        Ok::<(), JournalError>(())
    })?;
    replay.finish(bounds.next);
    if let Some((position, message)) = replay.problem {
        return Err(StartError::Records { shard, position, message });
    }
    engine.harden(shard)?;
    Ok(Recovered {
        coordinator: replay.coordinator,
        homes: replay.homes,
        ended: replay.ended,
        first_position: bounds.first,
        next_position: bounds.next,
    })
}

struct Replay {
    coordinator: Coordinator,
    homes: HashMap<TransactionId, u64>,
    ended: Vec<Arc<Transaction>>,
    /// Transactions whose beginning was forgotten: each must have ended or been written anew.
    orphans: BTreeSet<TransactionId>,
    /// The first thing that does not fit.
    problem: Option<(u64, String)>,
}

impl Replay {
    fn take(&mut self, position: u64, bytes: &[u8]) {
        if self.problem.is_some() {
            return;
        }
        let applied = decode_record(bytes)
            .map_err(|error| error.to_string())
            .and_then(|record| self.apply(position, &record));
        if let Err(message) = applied {
            self.problem = Some((position, message));
        }
    }

    fn apply(&mut self, position: u64, record: &Record) -> Result<(), String> {
        let id = &record.transaction;
        let whole = matches!(record.fact, Fact::Begun { .. } | Fact::Snapshot(_));
        if whole {
            self.orphans.remove(id);
            self.homes.insert(id.clone(), position);
        } else if !self.coordinator.knows(id) {
            if matches!(record.fact, Fact::Ended) {
                self.orphans.remove(id);
            } else {
                self.orphans.insert(id.clone());
            }
            return Ok(());
        }
        let ended = self.coordinator.apply(record).map_err(|error| error.to_string())?;
        self.ended.extend(ended.map(Arc::new));
        Ok(())
    }

    fn finish(&mut self, next_position: u64) {
        if let (None, Some(orphan)) = (&self.problem, self.orphans.first()) {
            let message = format!("transaction {orphan} has records but no beginning");
            self.problem = Some((next_position, message));
        }
    }
}
