//! What a shard hands to the history, and what that may note when it is written: as in the program.

use std::sync::Arc;

use unanimity_core::{PackedTransactions, TransactionId};

use super::server::Shard;

/// What the history was given together.
#[derive(Clone, Debug)]
pub struct Archiving {
    /// The first of them, until they are written.
    first: Option<TransactionId>,
    /// Up to which position of the journal everything is then in the history that has ended.
    up_to: u64,
}

/// The first of what goes to the history together.
#[must_use]
pub fn first_of(done: &PackedTransactions) -> Option<TransactionId> {
    done.iter().next().map(|one| one.id().clone())
}

impl Shard {
    /// What goes to the history now, if anything does.
    pub fn to_archive(&mut self) -> Option<Arc<PackedTransactions>> {
        let (position, done) = self.ending.send(self.outbox.durable())?;
        let (first, up_to) = (first_of(&done), self.outbox.archived_mark(position));
        self.archiving.push_back(Archiving { first, up_to });
        Some(done)
    }

    /// The history has written what begins with this one. What it may note now: it writes in the
    /// order in which it was given, however late this program hears of each.
    pub fn archived(&mut self, first: Option<&TransactionId>) -> Option<u64> {
        if let Some(one) = self.archiving.iter_mut().find(|one| one.first.as_ref() == first) {
            one.first = None;
        }
        let mut noted = None;
        while self.archiving.front().is_some_and(|one| one.first.is_none()) {
            let Some(one) = self.archiving.pop_front() else { break };
            noted = Some(one.up_to);
            for (position, count) in self.ending.archived() {
                self.outbox.archived(position, count);
            }
        }
        noted.filter(|_| self.all_is_read)
    }
}
