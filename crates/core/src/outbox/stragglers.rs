//! Writes transactions anew that have been live for so long that the journal grows behind them.

use super::Outbox;
use crate::{Coordinator, Fact, Millis, Mutation, Observations, Record, Step, TransactionId};

/// How many stragglers are written anew in one go, unless very many are live.
const STRAGGLERS_MAX: usize = 256;
/// The live transactions are written anew when the journal has this many records for each of them.
pub(super) const RECORDS_PER_LIVE: u64 = 4;

impl<R> Outbox<R> {
    /// Writes transactions anew that have been live for so long that the journal grows behind
    /// them. Nothing ever leaves because of it.
    pub fn write_stragglers(&mut self, now: Millis, coordinator: &mut Coordinator) {
        for id in self.stragglers(coordinator) {
            self.write_anew(now, coordinator, &id);
        }
    }

    /// Whose turn it is to be written anew.
    ///
    /// That is only worth it where what can be forgotten by it is most of the journal: were a
    /// million live ones written anew each time that a few thousand batches have come, each new
    /// transaction would pay for several old ones (Rosenblum and Ousterhout, "The Design and
    /// Implementation of a Log-Structured File System", TOCS 1992, section 3: the cost of
    /// cleaning).
    ///
    /// Those of many batches are gathered into one, so that this comes to an end also when nothing
    /// else is written: were each batch's moved by itself, as many batches as before would hold
    /// them afterwards, and the oldest would be too old again.
    #[must_use]
    pub fn stragglers(&self, coordinator: &Coordinator) -> Vec<TransactionId> {
        let low_water = self.homes.low_water(self.next_position);
        let batches_max = self.bounds.straggler_batches;
        let since_oldest = self.homes.records_before_oldest().map_or(0, |old| self.records - old);
        let worth_it = since_oldest / RECORDS_PER_LIVE >= self.homes.count() as u64;
        let many = self.next_position - low_water >= batches_max;
        if !many || !worth_it || self.homes.some_move() {
            return Vec::new(); // Nothing need be forgotten yet.
        }
        // One that has ended and cannot go into the history is not live, and stays all the same.
        let stays = |id: &TransactionId| coordinator.stays(id) || !coordinator.knows(id);
        if self.homes.oldest().is_none_or(|oldest| oldest.iter().any(stays)) {
            return Vec::new(); // Nothing could be forgotten by it.
        }
        let share = usize::try_from(batches_max / 4).unwrap_or(usize::MAX).max(1);
        let most = STRAGGLERS_MAX.max(self.homes.count() / share);
        self.homes.stragglers(most, self.next_position - batches_max / 2)
    }

    /// Writes one of them anew, unless there is work enough for the disk: then it has its turn
    /// later.
    pub fn write_anew(&mut self, now: Millis, coordinator: &mut Coordinator, id: &TransactionId) {
        if self.gathered.len() > 1 {
            return;
        }
        let Some(step) = coordinator.rewrite(now, id) else { return };
        assert!(self.take(step).is_none(), "writing anew tells nobody anything");
    }
}

impl Coordinator {
    /// Writes everything that is known of a live transaction anew, so that the batches which hold
    /// its older records can be forgotten. `None` if it is not live, or cannot be.
    pub fn rewrite(&mut self, now: Millis, id: &TransactionId) -> Option<Step> {
        if self.stays(id) {
            return None;
        }
        let transaction = self.transactions.get_mut(id)?;
        transaction.timeline.save_all();
        let mut snapshot = transaction.clone();
        if self.config.mutations.has(Mutation::SnapshotDropsDecision) {
            snapshot.decision = None;
        }
        let fact = Fact::Snapshot(Box::new(snapshot));
        let record =
            Record { transaction: id.clone(), at: now, fact, observations: Observations::new() };
        Some(Step { records: vec![record], effects: Vec::new() })
    }
}
