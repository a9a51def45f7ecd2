//! What a shard writes: batches for its journal, and what has ended for the history.

use unanimity_core::{Durable, TransactionId};
use unanimity_journal::JournalError;

use super::{JOURNAL_GONE, Shard};
use crate::history::{ArchiveReply, ArchiveRequest};
use crate::journal_thread::JournalCommand;

impl Shard {
    pub(super) fn start_append(&mut self) -> Result<(), String> {
        let linger_ms = if self.stopping { 0 } else { self.bounds.linger.as_millis() as u64 };
        if self.outbox.lingers(self.now_ms(), linger_ms) {
            return Ok(());
        }
        let Some(batch) = self.outbox.next_append() else { return Ok(()) };
        self.meters.batch_records.record(batch.records.len() as f64);
        let sent = self.journal.send(JournalCommand::Append(batch));
        sent.map_err(|_| JOURNAL_GONE.to_owned())
    }

    pub(super) fn on_receipt(
        &mut self,
        receipt: Result<Durable, JournalError>,
    ) -> Result<(), String> {
        let durable = receipt.map_err(|error| format!("{}: {error}", error.code()))?;
        self.outbox.receipt(durable);
        // The next sync starts before the effects of this one are carried out.
        self.start_append()?;
        while let Some(out) = self.outbox.release() {
            self.let_out(out);
        }
        self.forget()
    }

    pub(super) fn send_to_history(&mut self) -> Result<(), String> {
        if self.to_archive.is_empty() {
            return Ok(());
        }
        let transactions = std::mem::take(&mut self.to_archive);
        let done = ArchiveReply::new(self.archived_sender.clone());
        let all = self.outbox.let_out_up_to().filter(|_| self.all_is_read);
        let up_to = all.map(|up_to| (self.number, up_to));
        let sent = self.history.send(ArchiveRequest { up_to, transactions, done });
        sent.map_err(|_| "the history's thread has ended".to_owned())
    }

    pub(super) fn on_archived(
        &mut self,
        archived: Result<Vec<TransactionId>, String>,
    ) -> Result<(), String> {
        for id in archived.map_err(|error| format!("the history cannot be written: {error}"))? {
            self.ending.remove(&id);
            self.outbox.archived(&id);
        }
        self.forget()
    }

    /// Lets the journal forget what nobody needs any more.
    fn forget(&mut self) -> Result<(), String> {
        let Some(low_water) = self.outbox.forgettable() else { return Ok(()) };
        let sent = self.journal.send(JournalCommand::Truncate(low_water));
        sent.map_err(|_| JOURNAL_GONE.to_owned())
    }
}
