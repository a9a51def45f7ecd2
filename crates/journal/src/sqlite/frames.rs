//! Counts how many pages the write-ahead log holds that are not in the file yet. SQLite says it
//! with each commit; to ask for it would be one more statement for each append.

use std::cell::Cell;

use rusqlite::Connection;

thread_local! {
    /// How many frames the log had after the last commit on this thread, until somebody takes it:
    /// SQLite calls back within the commit, and what it calls carries nothing of its own.
    static TOLD: Cell<Option<u64>> = const { Cell::new(None) };
}

/// How many frames (of 4 kB) are enough for a checkpoint: 16 MB. Measured under batches of 50 kB
/// that are never truncated: the one append that makes it takes 11 ms at 1024 frames, 32 ms at
/// 4096, 107 ms at 16384, and the mean falls by 6 % at each step.
const FRAMES: u64 = 4096;
/// The same, 32 MB, where what is appended is truncated soon, and the same few pages are written
/// again and again: of each, a checkpoint writes the last alone. That one append takes 6 to 11 ms,
/// and is seldom.
const FRAMES_MAX: u64 = 8192;
/// So many pages are few.
const FEW: u64 = 2048;

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

    /// Whether it is time for a checkpoint, where of so many batches that were appended since the
    /// last one so many were not truncated: their pages are all different ones, and what was
    /// truncated has given its pages to what came next.
    pub(super) fn are_full(&self, appended: u64, kept: u64) -> bool {
        let different = self.pending.saturating_mul(kept) / appended.max(1);
        self.pending >= FRAMES_MAX || (self.pending >= FRAMES && different > FEW)
    }
}

/// At the first and the last, whatever was kept; and between by how much.
#[test]
fn a_checkpoint_is_due_by_how_many_pages_it_would_write() {
    let full = |pending, appended, kept| Frames { pending }.are_full(appended, kept);
    assert!(!full(FRAMES - 1, 100, 100) && full(FRAMES, 100, 100));
    assert!(!full(FRAMES, 100, 50) && full(FRAMES, 100, 51));
    assert!(!full(FRAMES_MAX - 1, 100, 0) && full(FRAMES_MAX, 100, 0) && full(FRAMES_MAX, 0, 0));
}
