//! Which batch each transaction was last written whole in: decides what the journal may forget, and
//! which stragglers must be written anew so that it can.

use std::collections::{BTreeMap, HashMap, HashSet};

use unanimity_core::TransactionId;

/// The batches that must still be kept, and for whom.
#[derive(Debug, Default)]
pub(crate) struct Homes {
    by_id: HashMap<TransactionId, u64>,
    by_batch: BTreeMap<u64, HashSet<TransactionId>>,
}

impl Homes {
    /// The transaction was written whole in this batch.
    pub(crate) fn settle(&mut self, id: &TransactionId, position: u64) {
        self.leave(id);
        self.by_id.insert(id.clone(), position);
        self.by_batch.entry(position).or_default().insert(id.clone());
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

    /// Everything before this position may be forgotten.
    pub(crate) fn low_water(&self, next_position: u64) -> u64 {
        self.by_batch.first_key_value().map_or(next_position, |(position, _)| *position)
    }

    /// Some of those that keep the oldest batch from being forgotten.
    pub(crate) fn stragglers(&self, most: usize) -> Vec<TransactionId> {
        let oldest = self.by_batch.first_key_value();
        oldest.map_or_else(Vec::new, |(_, ids)| ids.iter().take(most).cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_home_is_the_low_water_mark() {
        let id = |name: &str| TransactionId::new(name).unwrap();
        let mut homes = Homes::default();
        assert_eq!(homes.low_water(9), 9);
        homes.settle(&id("a"), 3);
        homes.settle(&id("b"), 5);
        assert_eq!((homes.low_water(9), homes.stragglers(8)), (3, vec![id("a")]));
        homes.settle(&id("a"), 8);
        assert_eq!(homes.low_water(9), 5);
        homes.leave(&id("b"));
        homes.leave(&id("b"));
        assert_eq!(homes.low_water(9), 8);
    }
}
