//! Where live transactions are kept: found by id, in the order of ids, each at a place of its own.
//! Decides nothing about them.
//!
//! One event asks for its transaction several times over, and a search through a hundred thousand
//! ids is dear: so the place of the one asked for last is tried first.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};

use crate::{Transaction, TransactionId};

/// The live transactions of one shard. Two are equal if they hold the same transactions.
#[derive(Clone, Debug, Default)]
pub(crate) struct Live {
    places: BTreeMap<TransactionId, usize>,
    // Boxed, so that growing moves pointers and a free place costs no more than one.
    transactions: Vec<Option<Box<Transaction>>>,
    free: Vec<usize>,
    /// The place asked for last: a guess, right nearly always.
    latest: usize,
}

impl Live {
    fn place(&self, id: &TransactionId) -> Option<usize> {
        match self.transactions.get(self.latest) {
            Some(Some(latest)) if latest.id == *id => Some(self.latest),
            Some(_) | None => self.places.get(id).copied(),
        }
    }

    pub(crate) fn get(&self, id: &TransactionId) -> Option<&Transaction> {
        self.transactions[self.place(id)?].as_deref()
    }

    pub(crate) fn get_mut(&mut self, id: &TransactionId) -> Option<&mut Transaction> {
        self.latest = self.place(id)?;
        self.transactions[self.latest].as_deref_mut()
    }

    pub(crate) fn contains(&self, id: &TransactionId) -> bool {
        self.place(id).is_some()
    }

    /// Takes a transaction in; one of the same id makes room for it.
    pub(crate) fn insert(&mut self, transaction: Transaction) {
        let place = match self.place(&transaction.id) {
            Some(place) => place,
            None => self.free.pop().unwrap_or(self.transactions.len()),
        };
        if place == self.transactions.len() {
            self.transactions.push(None);
        }
        self.places.insert(transaction.id.clone(), place);
        self.transactions[place] = Some(Box::new(transaction));
        self.latest = place;
    }

    pub(crate) fn remove(&mut self, id: &TransactionId) -> Option<Transaction> {
        let place = self.places.remove(id)?;
        self.free.push(place);
        self.transactions[place].take().map(|transaction| *transaction)
    }

    /// All of them, ordered by id.
    pub(crate) fn values(&self) -> impl Iterator<Item = &Transaction> {
        self.places.values().filter_map(|place| self.transactions[*place].as_deref())
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = &TransactionId> {
        self.places.keys()
    }

    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.places.is_empty()
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
    use super::*;
    use crate::{Options, Plan};

    fn transaction(name: &str, begun_at: u64) -> Transaction {
        let plan = Plan { open: true, branches: Vec::new(), options: Options::default() };
        Transaction::new(TransactionId::new(name).unwrap(), begun_at, 0, plan)
    }

    #[test]
    fn places_are_used_again_and_mean_nothing() {
        let id = |name: &str| TransactionId::new(name).unwrap();
        let mut live = Live::default();
        for name in ["a", "b", "c"] {
            live.insert(transaction(name, 1));
        }
        assert_eq!(live.remove(&id("b")).map(|gone| gone.id), Some(id("b")));
        assert!(live.remove(&id("b")).is_none() && live.get(&id("b")).is_none());
        live.insert(transaction("d", 2));
        live.insert(transaction("a", 3));
        assert_eq!((live.len(), live.transactions.len()), (3, 3));
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
