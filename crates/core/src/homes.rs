//! Which batch each transaction was last written whole in: decides what the journal may forget, and
//! which stragglers must be written anew so that it can.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use crate::by_id::{ById, OfTransaction};
use crate::{Mutation, Mutations, TransactionId};

/// Where one transaction was last written whole.
#[derive(Clone, Debug)]
struct Home {
    name: Arc<str>,
    position: u64,
}

impl OfTransaction for Home {
    fn name(&self) -> &str {
        &self.name
    }
}

/// Who was last written whole in one batch.
#[derive(Clone, Debug)]
struct Batch {
    /// How many records were written before it.
    records_before: u64,
    /// How many are at home here, or ended so and are not in the history yet.
    count: usize,
    /// How the ids of all spread that ever were at home here.
    spreads: Vec<u64>,
}

/// The batches that must still be kept, and for whom.
#[derive(Clone, Debug, Default)]
pub struct Homes {
    by_id: ById<Home>,
    by_batch: BTreeMap<u64, Batch>,
    /// Written anew in batches that are not durable yet, in their order.
    moves: VecDeque<Move>,
    moving: BTreeSet<TransactionId>,
    mutations: Mutations,
}

#[derive(Clone, Debug)]
struct Move {
    id: TransactionId,
    to: u64,
    records_before: u64,
}

impl Homes {
    /// Nobody is at home yet. Who does not know the seed cannot choose ids that are found slowly.
    pub(crate) fn new(mutations: Mutations, seed: u64) -> Self {
        Self { mutations, by_id: ById::new(seed), ..Self::default() }
    }

    /// The transaction was written whole, for the first time, in this batch, after so many records
    /// of this run.
    pub(crate) fn settle(&mut self, id: TransactionId, position: u64, records_before: u64) {
        let spread = id.spread();
        let old = self.by_id.insert(spread, Home { name: id.into_shared(), position });
        let old = old.map(|home| home.position);
        if old == Some(position) {
            return;
        }
        let empty = || Batch { records_before, count: 0, spreads: Vec::new() };
        let batch = self.by_batch.entry(position).or_insert_with(empty);
        batch.count += 1;
        batch.spreads.push(spread);
        if let Some(old) = old {
            self.leave(old, 1);
        }
    }

    /// The transaction is written anew in this batch. Until the batch is durable the old one is
    /// the transaction's only record, and is kept.
    pub(crate) fn move_to(&mut self, id: &TransactionId, to: u64, records_before: u64) {
        if self.mutations.has(Mutation::OldHomeLeftTooEarly) {
            self.settle(id.clone(), to, records_before);
        }
        self.moving.insert(id.clone());
        self.moves.push_back(Move { id: id.clone(), to, records_before });
    }

    /// Everything up to this position is durable.
    pub(crate) fn durable(&mut self, up_to: u64) {
        while self.moves.front().is_some_and(|moved| moved.to <= up_to) {
            let Some(Move { id, to, records_before }) = self.moves.pop_front() else { return };
            self.moving.remove(&id);
            if self.knows(&id) {
                self.settle(id, to, records_before);
            }
        }
    }

    /// The transaction has ended. It is not known here any more, but the batch that was its home is
    /// kept, until [`Homes::leave`]: gives back which that is.
    pub(crate) fn end(&mut self, id: &TransactionId) -> Option<u64> {
        let position = self.by_id.remove(id)?.position;
        if self.mutations.has(Mutation::EndedForgottenTooEarly) {
            self.leave(position, 1);
            return None;
        }
        Some(position)
    }

    /// So many whose home was this batch are in the history, or at home elsewhere.
    pub(crate) fn leave(&mut self, position: u64, count: usize) {
        let Some(batch) = self.by_batch.get_mut(&position) else { return };
        batch.count -= count;
        if batch.count == 0 {
            self.by_batch.remove(&position);
        } else if batch.count < batch.spreads.len() / 4 {
            let by_id = &self.by_id;
            batch
                .spreads
                .retain(|spread| by_id.that_spread(*spread).any(|home| home.position == position));
            batch.spreads.sort_unstable();
            batch.spreads.dedup();
        }
    }

    /// Whether the transaction is live, or has ended and was not let go of.
    #[must_use]
    pub fn knows(&self, id: &TransactionId) -> bool {
        self.by_id.contains(id)
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

    /// How many records were written before the oldest batch that is kept.
    pub(crate) fn records_before_oldest(&self) -> Option<u64> {
        self.by_batch.first_key_value().map(|(_, batch)| batch.records_before)
    }

    /// Those that are at home in a batch.
    fn at_home<'a>(
        &'a self,
        (position, batch): (&'a u64, &'a Batch),
    ) -> impl Iterator<Item = TransactionId> + 'a {
        let mut spreads = batch.spreads.clone();
        spreads.sort_unstable();
        spreads.dedup();
        let found = spreads.into_iter().flat_map(move |spread| {
            let alike = self.by_id.that_spread(spread);
            alike.map(move |home| (spread, home))
        });
        let here = found.filter(move |(_, home)| home.position == *position);
        here.map(|(spread, home)| TransactionId::from_parts(spread, Arc::clone(&home.name)))
    }

    /// Those that keep the oldest batch from being forgotten. `None` if others do too that have
    /// ended, and will be in the history soon.
    pub(crate) fn oldest(&self) -> Option<Vec<TransactionId>> {
        let Some(batch) = self.by_batch.first_key_value() else { return Some(Vec::new()) };
        let at_home: Vec<TransactionId> = self.at_home(batch).collect();
        (at_home.len() == batch.1.count).then_some(at_home)
    }

    /// Whether some are being written anew.
    pub(crate) fn some_move(&self) -> bool {
        !self.moving.is_empty()
    }

    /// How many are at home.
    pub(crate) const fn count(&self) -> usize {
        self.by_id.len()
    }

    /// Some of those that are at home in a batch up to this one, the oldest first; none while
    /// others are being written anew.
    pub(crate) fn stragglers(&self, most: usize, up_to: u64) -> Vec<TransactionId> {
        if self.some_move() {
            return Vec::new();
        }
        let old = self.by_batch.range(..=up_to).flat_map(|batch| self.at_home(batch));
        old.take(most).collect()
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
        homes.settle(id("a"), 3, 3);
        homes.settle(id("b"), 5, 5);
        assert_eq!((homes.low_water(9), homes.stragglers(8, 4)), (3, vec![id("a")]));
        assert_eq!(homes.stragglers(8, 5), [id("a"), id("b")]);
        assert_eq!(homes.stragglers(1, 5), [id("a")]);
        homes.settle(id("a"), 8, 8);
        assert_eq!(homes.low_water(9), 5);
        assert_eq!((homes.oldest(), homes.end(&id("b"))), (Some(vec![id("b")]), Some(5)));
        assert_eq!((homes.knows(&id("b")), homes.end(&id("b"))), (false, None));
        assert_eq!((homes.low_water(9), homes.oldest()), (5, None), "kept until it is told");
        homes.leave(5, 1);
        assert_eq!(homes.low_water(9), 8);
        assert_eq!(homes.low_water(7), 7);
    }

    #[test]
    fn the_old_home_is_kept_until_the_new_one_is_durable() {
        let mut homes = Homes::default();
        homes.settle(id("a"), 3, 3);
        homes.settle(id("b"), 3, 3);
        homes.move_to(&id("a"), 9, 9);
        assert_eq!((homes.low_water(9), homes.stragglers(8, 9)), (3, vec![]));
        homes.move_to(&id("b"), 10, 10);
        homes.durable(8);
        assert_eq!((homes.low_water(9), homes.stragglers(8, 9)), (3, vec![]));
        homes.durable(9);
        assert_eq!((homes.low_water(10), homes.stragglers(8, 9)), (3, vec![]));
        assert_eq!(homes.end(&id("b")), Some(3));
        homes.leave(3, 1);
        homes.durable(10);
        assert_eq!((homes.low_water(11), homes.stragglers(8, 9)), (9, vec![id("a")]));
        assert!(!homes.knows(&id("b")));
    }
}
