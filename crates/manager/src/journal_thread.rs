//! The thread that talks to the disk for one shard: one append at a time, in order. While it syncs,
//! the shard gathers the next batch. After any failure it does nothing more.

use std::sync::mpsc;

use tokio::sync::mpsc::UnboundedSender;
use unanimity_core::{Durable, Gathered};
use unanimity_journal::{Engine, JournalError, ShardId};

use crate::crash_point::crash_point;

/// What the shard asks of its journal.
pub(crate) enum JournalCommand {
    /// Append this batch and answer with a receipt.
    Append(Gathered),
    /// Forget what lies before this position; no answer.
    Truncate(u64),
}

/// Works until the shard hangs up or something fails. Each append is answered: with how far the
/// journal is durable, or with the failure that ends the shard.
pub(crate) fn run_journal(
    mut engine: Box<dyn Engine>,
    shard: ShardId,
    commands: &mpsc::Receiver<JournalCommand>,
    receipts: &UnboundedSender<Result<Durable, JournalError>>,
) {
    while let Ok(command) = commands.recv() {
        let done = match command {
            JournalCommand::Append(batch) => append(engine.as_mut(), shard, &batch).map(Some),
            JournalCommand::Truncate(before) => engine.truncate(shard, before).map(|()| None),
        };
        let failed = done.is_err();
        let gone = done.transpose().is_some_and(|receipt| receipts.send(receipt).is_err());
        if failed || gone {
            return;
        }
    }
}

fn append(
    engine: &mut dyn Engine,
    shard: ShardId,
    batch: &Gathered,
) -> Result<Durable, JournalError> {
    if batch.has_begun {
        crash_point("before_begun_append");
    }
    if batch.has_decided {
        crash_point("before_decided_append");
    }
    let receipt = engine.append(shard, batch.position, &batch.records.slices())?;
    if batch.has_begun {
        crash_point("after_begun_append");
    }
    if batch.has_decided {
        crash_point("after_decided_append");
    }
    Ok(Durable::up_to(receipt.position()))
}
