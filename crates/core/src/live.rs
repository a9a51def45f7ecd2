//! Where live transactions are kept: found by id, and listed in the order of ids. Decides nothing
//! about them.

use std::hash::{Hash, Hasher};

use crate::by_id::{ById, OfTransaction};
use crate::{Transaction, TransactionId};

/// The live transactions of one shard. Two are equal if they hold the same transactions.
#[derive(Clone, Debug, Default)]
pub(crate) struct Live {
    // Boxed, so that a place that is free costs no more than a pointer.
    transactions: ById<Box<Transaction>>,
}

impl OfTransaction for Box<Transaction> {
    fn name(&self) -> &str {
        self.id.as_str()
    }
}

impl Live {
    /// None are live yet. See [`ById::new`] for the seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self { transactions: ById::new(seed) }
    }

    pub(crate) fn get(&self, id: &TransactionId) -> Option<&Transaction> {
        self.transactions.get(id).map(Box::as_ref)
    }

    pub(crate) fn get_mut(&mut self, id: &TransactionId) -> Option<&mut Transaction> {
        self.transactions.get_mut(id).map(Box::as_mut)
    }

    pub(crate) fn contains(&self, id: &TransactionId) -> bool {
        self.transactions.contains(id)
    }

    /// Takes a transaction in; one of the same id makes room for it.
    pub(crate) fn insert(&mut self, transaction: impl Into<Box<Transaction>>) {
        let transaction = transaction.into();
        self.insert_as(transaction.id.spread(), transaction);
    }

    /// As [`Live::insert`], where it is known how its id spreads.
    pub(crate) fn insert_as(&mut self, spread: u64, transaction: Box<Transaction>) {
        self.transactions.insert(spread, transaction);
    }

    /// Takes a transaction in, unless there is one of the same id: then it is given back.
    pub(crate) fn insert_new(
        &mut self,
        spread: u64,
        transaction: Box<Transaction>,
    ) -> Option<Box<Transaction>> {
        self.transactions.insert_new(spread, transaction)
    }

    pub(crate) fn remove(&mut self, id: &TransactionId) -> Option<Transaction> {
        self.transactions.remove(id).map(|transaction| *transaction)
    }

    /// All of them, ordered by id.
    pub(crate) fn values(&self) -> impl Iterator<Item = &Transaction> {
        self.transactions.values().map(Box::as_ref)
    }

    /// In how many parts they can be looked through: see [`Live::part`].
    pub(crate) fn parts(&self) -> usize {
        self.transactions.parts()
    }

    /// Those of one part, ordered by id. All parts together are all of them.
    pub(crate) fn part(&self, part: usize) -> impl Iterator<Item = &Transaction> {
        self.transactions.part(part).into_iter().map(Box::as_ref)
    }

    pub(crate) const fn len(&self) -> usize {
        self.transactions.len()
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl PartialEq for Live {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.values().eq(other.values())
    }
}

impl Eq for Live {}

impl Hash for Live {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.len().hash(state);
        self.values().for_each(|transaction| transaction.hash(state));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::Options;

    fn transaction(name: &str, begun_at: u64) -> Transaction {
        let id = TransactionId::new(name).unwrap();
        Transaction::new(id, begun_at, 0, (true, Vec::new()), Arc::new(Options::default()))
    }

    #[test]
    fn what_was_there_before_means_nothing() {
        let id = |name: &str| TransactionId::new(name).unwrap();
        let mut live = Live::default();
        for name in ["a", "b", "c"] {
            live.insert(transaction(name, 1));
        }
        assert_eq!(live.remove(&id("b")).map(|gone| gone.id), Some(id("b")));
        assert!(live.remove(&id("b")).is_none() && live.get(&id("b")).is_none());
        live.insert(transaction("d", 2));
        live.insert(transaction("a", 3));
        assert_eq!(live.len(), 3);
        assert_eq!(live.get_mut(&id("a")).map(|found| found.begun_at), Some(3));
        assert_eq!(live.get(&id("d")).map(|found| found.begun_at), Some(2));

        let mut other = Live::default();
        for (name, begun_at) in [("d", 2), ("c", 1), ("a", 3)] {
            other.insert(transaction(name, begun_at));
        }
        assert_eq!(live, other);
        other.insert(transaction("c", 9));
        assert_ne!(live, other);
    }
}
