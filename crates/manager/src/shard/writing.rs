//! What a shard writes: batches for its journal, and what has ended for the history.

use tokio::sync::mpsc::UnboundedReceiver;
use unanimity_core::{Doing, Gathered};
use unanimity_journal::JournalError;

use super::Shard;
use crate::history::{ArchiveReply, ArchiveRequest};
use crate::journal_thread::{Gone, Receipt};

/// Where more things than this wait for the journal, none is alone, even if nobody waits for them.
const HELD_MAX: usize = 4;
const HISTORY_FAILED: &str = "the history cannot be written";
/// A larger batch is not as quick as those before.
const HERE_BYTES_MAX: usize = 64 << 10;

fn journal_failed(error: &JournalError) -> String {
    format!("{}: {error}", error.code())
}

/// Why a thread has ended that answers here: it has said so before, unless it broke.
fn why_ended<T, E>(answers: &mut UnboundedReceiver<Result<T, E>>) -> Option<E> {
    std::iter::from_fn(|| answers.try_recv().ok()).find_map(Result::err)
}

impl Shard {
    /// Writes anew what keeps the journal from forgetting.
    pub(super) fn write_stragglers(&mut self) {
        for id in self.outbox.stragglers(&self.coordinator) {
            self.on(&id, Doing::WritingAnew, |shard| {
                let now = shard.now_ms();
                shard.outbox.write_anew(now, &mut shard.coordinator, &id);
            });
        }
    }

    /// Has what gathers appended, on this thread or the journal's.
    pub(super) fn append(&mut self) -> Result<(), String> {
        if self.appends_here() { self.append_here() } else { self.start_append() }
    }

    /// Has the journal's thread append what gathers, if there is something to append and nothing is
    /// under way.
    fn start_append(&mut self) -> Result<(), String> {
        match self.next_append() {
            Some(batch) => self.hand_over(batch),
            None => Ok(()),
        }
    }

    fn hand_over(&mut self, batch: Gathered) -> Result<(), String> {
        self.journal.append(batch).map_err(|Gone| self.why_journal_ended())
    }

    /// Whether the next append is to be done on this thread: where one live transaction at most is
    /// waited for, hardly anything could gather meanwhile, and that one need not wait for the
    /// journal's thread to be woken and to wake this one. Only if appends have been quick lately:
    /// whatever else runs on this thread waits too.
    fn appends_here(&self) -> bool {
        !self.has_woken
            && self.outbox.gathers()
            && self.watchers.waited_for() <= 1
            && self.outbox.held().max(self.outbox.gathered_records()) <= HELD_MAX
            && self.journal.is_quick()
    }

    /// As [`Self::start_append`], but on this thread if that can be.
    fn append_here(&mut self) -> Result<(), String> {
        let Some(batch) = self.next_append() else { return Ok(()) };
        let small = batch.records.bytes() <= HERE_BYTES_MAX;
        let Some(receipt) = small.then(|| self.journal.append_here(&batch)).flatten() else {
            return self.hand_over(batch);
        };
        self.look_at_clock();
        self.on_receipt(receipt)
    }

    /// What is to be appended now.
    fn next_append(&mut self) -> Option<Gathered> {
        let linger_ms = if self.stopping { 0 } else { self.bounds.linger.as_millis() as u64 };
        if self.outbox.lingers(self.now_ms(), linger_ms) {
            return None;
        }
        let batch = self.outbox.next_append()?;
        self.meters.batch_records.record(batch.records.len() as f64);
        Some(batch)
    }

    pub(super) fn on_receipt(&mut self, receipt: Receipt) -> Result<(), String> {
        let appended = receipt.map_err(|error| journal_failed(&error))?;
        self.journal.took(appended.took);
        self.outbox.receipt(appended.durable);
        // The next sync starts before the effects of this one are carried out.
        self.start_append()?;
        while let Some(out) = self.outbox.release() {
            self.let_out(out);
        }
        self.forget()
    }

    pub(super) fn send_to_history(&mut self) -> Result<(), String> {
        while let Some((position, transactions)) = self.ending.send(self.outbox.durable()) {
            let done = ArchiveReply::new(self.archived_sender.clone());
            let mark = self.all_is_read.then(|| self.outbox.archived_mark(position));
            let up_to = mark.map(|up_to| (self.number, up_to));
            let request = ArchiveRequest { up_to, transactions, done };
            if self.history.send(request).is_err() {
                return Err(self.why_history_ended());
            }
        }
        Ok(())
    }

    pub(super) fn why_journal_ended(&mut self) -> String {
        match why_ended(&mut self.receipts) {
            Some(error) => journal_failed(&error),
            None => "the journal's thread has ended".to_owned(),
        }
    }

    fn why_history_ended(&mut self) -> String {
        match why_ended(&mut self.archived) {
            Some(error) => format!("{HISTORY_FAILED}: {error}"),
            None => "the history's thread has ended".to_owned(),
        }
    }

    /// The oldest of what the history was sent is there.
    pub(super) fn on_archived(&mut self, archived: Result<(), String>) -> Result<(), String> {
        archived.map_err(|error| format!("{HISTORY_FAILED}: {error}"))?;
        for (position, count) in self.ending.archived() {
            self.outbox.archived(position, count);
        }
        self.forget()
    }

    /// Lets the journal forget what nobody needs any more: with the next append, which is being
    /// gathered or follows the one under way; or by itself where nothing is written.
    fn forget(&mut self) -> Result<(), String> {
        self.ask_to_forget().map_err(|Gone| self.why_journal_ended())
    }

    fn ask_to_forget(&mut self) -> Result<(), Gone> {
        if let Some(low_water) = self.outbox.forgettable() {
            self.journal.forget_with_next(low_water)?;
        }
        if self.outbox.is_idle() { self.journal.forget_now() } else { Ok(()) }
    }
}
