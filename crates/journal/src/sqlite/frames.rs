//! Counts how many pages the write-ahead log holds that are not in the file yet, and reckons
//! whether they are different ones: of each page, a checkpoint writes the last alone. SQLite says
//! the first with each commit; to ask for it would be one more statement for each append.

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
pub(super) const FRAMES: u64 = 4096;
/// The same, 64 MB, where what is appended is truncated soon, and the same few pages are written
/// again and again: that one append takes 6 to 11 ms, and is seldom.
pub(super) const FRAMES_MAX: u64 = 16384;
/// By how many pages more than before are in use it is seen that this is not so.
pub(super) const GROWN_MAX: u64 = 2048;
/// So many frames come between two looks.
const FRAMES_BETWEEN_LOOKS: u64 = 256;

/// The frames of one journal's log. A checkpoint moves either all of them or fails.
#[derive(Debug)]
pub(super) struct Frames {
    pending: u64,
    /// From how many on it is looked next whether they are different ones.
    look_at: u64,
    /// How many pages were in use at the last checkpoint.
    used: u64,
}

impl Frames {
    /// Has SQLite tell of each commit from now on. What the log holds before is for a checkpoint to
    /// move.
    pub(super) fn of(connection: &Connection) -> Self {
        connection.wal_hook(Some(|_, frames| {
            TOLD.set(u64::try_from(frames).ok());
            Ok(())
        }));
        Self { pending: 0, look_at: 0, used: 0 }
    }

    /// Something was committed, on this thread.
    pub(super) fn committed(&mut self) {
        if let Some(frames) = TOLD.take() {
            self.pending = frames;
        }
    }

    /// All of them are in the file; the next one is written where the log begins.
    pub(super) fn checkpointed(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        *self = Self { pending: 0, look_at: 0, used: used(connection)? };
        Ok(())
    }

    /// Whether it is time for a checkpoint: at [`FRAMES`] if these are mostly different pages, and
    /// at [`FRAMES_MAX`] in any case.
    pub(super) fn are_full(&mut self, connection: &Connection) -> rusqlite::Result<bool> {
        if self.pending >= FRAMES_MAX || self.pending < self.look_at.max(FRAMES) {
            return Ok(self.pending >= FRAMES_MAX);
        }
        self.look_at = self.pending + FRAMES_BETWEEN_LOOKS;
        // SQLite takes next what was freed last.
        Ok(used(connection)?.saturating_sub(self.used) > GROWN_MAX)
    }

    /// How many are not in the file yet.
    pub(super) const fn pending(&self) -> u64 {
        self.pending
    }
}

/// How many pages of the file hold something.
fn used(connection: &Connection) -> rusqlite::Result<u64> {
    let count = |pragma: &str| {
        let count: i64 = connection.prepare_cached(pragma)?.query_row([], |row| row.get(0))?;
        Ok::<_, rusqlite::Error>(count.cast_unsigned())
    };
    Ok(count("PRAGMA page_count")?.saturating_sub(count("PRAGMA freelist_count")?))
}
