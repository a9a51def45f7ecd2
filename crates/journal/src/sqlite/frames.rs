//! Counts how many pages the write-ahead log holds that are not in the file yet. SQLite says it
//! with each commit; to ask for it would be one more statement for each append.

use std::cell::Cell;

use rusqlite::Connection;

thread_local! {
    /// How many frames the log had after the last commit on this thread, until somebody takes it:
    /// SQLite calls back within the commit, and what it calls carries nothing of its own.
    static TOLD: Cell<Option<u64>> = const { Cell::new(None) };
}

/// The frames of one journal's log. A checkpoint moves either all of them or fails.
#[derive(Debug)]
pub(super) struct Frames {
    pending: u64,
}

impl Frames {
    /// Has SQLite tell of each commit from now on. What the log holds before is for a checkpoint to
    /// move.
    pub(super) fn of(connection: &Connection) -> Self {
        connection.wal_hook(Some(|_, frames| {
            TOLD.set(u64::try_from(frames).ok());
            Ok(())
        }));
        Self { pending: 0 }
    }

    /// Something was committed, on this thread.
    pub(super) fn committed(&mut self) {
        if let Some(frames) = TOLD.take() {
            self.pending = frames;
        }
    }

    /// All of them are in the file; the next one is written where the log begins.
    pub(super) const fn checkpointed(&mut self) {
        self.pending = 0;
    }

    /// How many are not in the file yet.
    pub(super) const fn pending(&self) -> u64 {
        self.pending
    }
}
