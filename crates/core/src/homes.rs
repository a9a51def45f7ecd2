//! Which batch each transaction was last written whole in: decides what the journal may forget, and
//! which stragglers must be written anew so that it can.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::{Mutation, Mutations, TransactionId};

/// The batches that must still be kept, and for whom.
#[derive(Clone, Debug, Default)]
pub(crate) struct Homes {
    by_id: BTreeMap<TransactionId, u64>,
    by_batch: BTreeMap<u64, BTreeSet<TransactionId>>,
    /// Written anew in batches that are not durable yet, in their order.
    moves: VecDeque<(u64, TransactionId)>,
    moving: BTreeSet<TransactionId>,
    mutations: Mutations,
}

impl Homes {
    /// Nobody is at home yet.
    pub(crate) fn new(mutations: Mutations) -> Self {
        Self { mutations, ..Self::default() }
    }

    /// The transaction was written whole, for the first time, in this batch.
    pub(crate) fn settle(&mut self, id: &TransactionId, position: u64) {
        self.leave(id);
        self.by_id.insert(id.clone(), position);
        self.by_batch.entry(position).or_default().insert(id.clone());
    }

    /// The transaction is written anew in this batch. Until the batch is durable the old one is
    /// the transaction's only record, and is kept.
    pub(crate) fn move_to(&mut self, id: &TransactionId, position: u64) {
        if self.mutations.has(Mutation::OldHomeLeftTooEarly) {
            self.settle(id, position);
        }
        self.moving.insert(id.clone());
        self.moves.push_back((position, id.clone()));
    }

    /// Everything up to this position is durable.
    pub(crate) fn durable(&mut self, up_to: u64) {
        while self.moves.front().is_some_and(|(position, _)| *position <= up_to) {
            let Some((position, id)) = self.moves.pop_front() else { return };
            self.moving.remove(&id);
            if self.knows(&id) {
                self.settle(&id, position);
            }
        }
    }

    /// The transaction is in the history; the journal may forget it.
    pub(crate) fn leave(&mut self, id: &TransactionId) {
        let Some(position) = self.by_id.remove(id) else { return };
        let Some(ids) = self.by_batch.get_mut(&position) else { return };
        ids.remove(id);
        if ids.is_empty() {
            self.by_batch.remove(&position);
        }
    }

    /// Whether the transaction is live, or ended and not in the history yet.
    pub(crate) fn knows(&self, id: &TransactionId) -> bool {
        self.by_id.contains_key(id)
    }

    /// Everything before this position may be forgotten; at most everything that is durable.
    pub(crate) fn low_water(&self, next_position: u64) -> u64 {
        let oldest = self.by_batch.first_key_value().map(|(position, _)| *position);
        let low_water = oldest.unwrap_or(next_position).min(next_position);
        if self.mutations.has(Mutation::TruncationOneBatchTooFar) && low_water < next_position {
            return low_water + 1;
        }
        low_water
    }

    /// Those that keep the oldest batch from being forgotten.
    pub(crate) fn oldest(&self) -> impl Iterator<Item = &TransactionId> {
        self.by_batch.first_key_value().into_iter().flat_map(|(_, ids)| ids)
    }

    /// How many are at home.
    pub(crate) fn count(&self) -> usize {
        self.by_id.len()
    }

    /// Some of those that are at home in a batch up to this one, the oldest first; none while
    /// others are being written anew.
    pub(crate) fn stragglers(&self, most: usize, up_to: u64) -> Vec<TransactionId> {
        if !self.moving.is_empty() {
            return Vec::new();
        }
        let old = self.by_batch.range(..=up_to).flat_map(|(_, ids)| ids);
        old.take(most).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> TransactionId {
        TransactionId::new(name).unwrap()
    }

    #[test]
    fn the_oldest_home_is_the_low_water_mark() {
        let mut homes = Homes::default();
        assert_eq!(homes.low_water(9), 9);
        homes.settle(&id("a"), 3);
        homes.settle(&id("b"), 5);
        assert_eq!((homes.low_water(9), homes.stragglers(8, 4)), (3, vec![id("a")]));
        assert_eq!(homes.stragglers(8, 5), [id("a"), id("b")]);
        assert_eq!(homes.stragglers(1, 5), [id("a")]);
        homes.settle(&id("a"), 8);
        assert_eq!(homes.low_water(9), 5);
        homes.leave(&id("b"));
        homes.leave(&id("b"));
        assert_eq!(homes.low_water(9), 8);
        assert_eq!(homes.low_water(7), 7);
    }

    #[test]
    fn the_old_home_is_kept_until_the_new_one_is_durable() {
        let mut homes = Homes::default();
        homes.settle(&id("a"), 3);
        homes.settle(&id("b"), 3);
        homes.move_to(&id("a"), 9);
        assert_eq!((homes.low_water(9), homes.stragglers(8, 9)), (3, vec![]));
        homes.move_to(&id("b"), 10);
        homes.durable(8);
        assert_eq!((homes.low_water(9), homes.stragglers(8, 9)), (3, vec![]));
        homes.durable(9);
        assert_eq!((homes.low_water(10), homes.stragglers(8, 9)), (3, vec![]));
        homes.leave(&id("b"));
        homes.durable(10);
        assert_eq!((homes.low_water(11), homes.stragglers(8, 9)), (9, vec![id("a")]));
        assert!(!homes.knows(&id("b")));
    }
}
