//! Reads what a stopped coordinator has left in its folder, and changes nothing in what it means:
//! ended transactions from the history, the others from the journals.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use unanimity_core::{Coordinator, CoordinatorConfig, Replay, Transaction};
use unanimity_journal::JournalError;

use crate::error::StartError;
use crate::history::open_to_read;
use crate::starting::{ManagerConfig, Storage, check_journals, lock_folder, open_engine};
use crate::view::{TimelineView, TransactionView};

/// Hands over every transaction of a data folder with its timeline, the first begun first, until
/// `take` breaks off. The folder must be nobody's: a running coordinator is asked over its API. In
/// memory are the transactions that had not ended, and of the others those of one bundle or a few.
///
/// # Errors
/// If the folder is in use or was never used, or if its history or a journal cannot be read.
pub fn read_folder(
    folder: &Path,
    mut take: impl FnMut(&TransactionView, &TimelineView) -> ControlFlow<()>,
) -> Result<(), StartError> {
    let path = folder.join("history.db");
    if !path.is_file() {
        let message = "it holds no history; name the data folder of a coordinator".to_owned();
        return Err(StartError::Folder { path: folder.display().to_string(), message });
    }
    let _lock = lock_folder(folder)?;
    let history = open_to_read(path)?;
    let shards = history.shards()?.unwrap_or(0);
    let mut left = read_journals(folder, shards)?.into_iter().peekable();
    let mut over = ControlFlow::Continue(());
    history.each(|ended| {
        let begun = (ended.view.begun_at_ms, ended.view.id.as_str());
        while let Some(other) = left.next_if(|other| key(other) < begun) {
            over = take_one(&other, &mut take);
            over?;
        }
        // Ended, and forgotten by the journal a little later: the history's copy is as good.
        left.next_if(|other| key(other) == begun);
        if let Some(timeline) = &ended.timeline {
            over = take(&ended.view, timeline);
        }
        over
    })?;
    for other in left {
        if over.is_break() {
            break;
        }
        over = take_one(&other, &mut take);
    }
    Ok(())
}

/// How many ended transactions the history in a data folder holds.
///
/// # Errors
/// If there is no history, or it cannot be read.
pub fn count_history(folder: &Path) -> Result<u64, StartError> {
    Ok(open_to_read(folder.join("history.db"))?.count()?)
}

/// In which order transactions are handed over: that of the history's index.
fn key(transaction: &Transaction) -> (u64, &str) {
    (transaction.begun_at, transaction.id.as_str())
}

/// What the journals hold: live transactions, and ended ones that are perhaps not in the history.
fn read_journals(folder: &Path, shards: u16) -> Result<Vec<Arc<Transaction>>, StartError> {
    let storage = Storage::Folder(folder.to_path_buf());
    let config = ManagerConfig { storage, shards, ..ManagerConfig::default() };
    check_journals(&config)?;
    let mut found: Vec<Arc<Transaction>> = Vec::new();
    for shard in 0..shards {
        let mut engine = open_engine(&config.storage, shard)?;
        let bounds = engine.bounds(shard)?;
        let coordinator = CoordinatorConfig {
            live_transactions_max: usize::MAX,
            observations_max: config.timeline_events_max,
            ..CoordinatorConfig::default()
        };
        let mut replay = Replay::new(Coordinator::new(coordinator));
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
        found.extend(replayed.ended);
        found.extend(replayed.coordinator.iter().cloned().map(Arc::new));
    }
    found.sort_by(|a, b| key(a).cmp(&key(b)));
    Ok(found)
}

fn take_one(
    transaction: &Transaction,
    take: &mut impl FnMut(&TransactionView, &TimelineView) -> ControlFlow<()>,
) -> ControlFlow<()> {
    take(&TransactionView::of(transaction), &TimelineView::of(transaction))
}
