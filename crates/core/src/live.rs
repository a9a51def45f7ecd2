//! Where live transactions are kept: found by id, and listed in the order of ids. Decides nothing
//! about them.
//!
//! An event is about one transaction and asks for it twenty times. So the one that was last asked
//! for to be changed is kept apart from the others, at hand, until another is.

use std::hash::{Hash, Hasher};

use crate::by_id::{ById, OfTransaction};
use crate::{Transaction, TransactionId};

/// The live transactions of one shard. Two are equal if they hold the same transactions.
#[derive(Clone, Debug, Default)]
pub(crate) struct Live {
    at_hand: Option<Box<Transaction>>,
    /// All others. Boxed, so that a place that is free costs no more than a pointer.
    others: ById<Box<Transaction>>,
}

impl OfTransaction for Box<Transaction> {
    fn name(&self) -> &str {
        self.id.as_str()
    }
}

impl Live {
    /// None are live yet. See [`ById::new`] for the seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self { at_hand: None, others: ById::new(seed) }
    }

    fn is_at_hand(&self, id: &TransactionId) -> bool {
        self.at_hand.as_ref().is_some_and(|transaction| transaction.id == *id)
    }

    pub(crate) fn get(&self, id: &TransactionId) -> Option<&Transaction> {
        let at_hand = self.at_hand.as_ref().filter(|transaction| transaction.id == *id);
        at_hand.or_else(|| self.others.get(id)).map(Box::as_ref)
    }

    /// The transaction, to be changed; it is at hand from now on.
    pub(crate) fn get_mut(&mut self, id: &TransactionId) -> Option<&mut Transaction> {
        if !self.is_at_hand(id) {
            let transaction = self.others.remove(id)?;
            self.take_to_hand(transaction);
        }
        self.at_hand.as_deref_mut()
    }

    /// The transaction, to be changed where it is: where each event is about another.
    pub(crate) fn get_mut_there(&mut self, id: &TransactionId) -> Option<&mut Transaction> {
        if self.is_at_hand(id) {
            return self.at_hand.as_deref_mut();
        }
        self.others.get_mut(id).map(Box::as_mut)
    }

    /// Takes in a transaction that is not there, to be at hand.
    pub(crate) fn take_to_hand(&mut self, transaction: Box<Transaction>) {
        if let Some(before) = self.at_hand.replace(transaction) {
            self.others.insert(before.id.spread(), before);
        }
    }

    pub(crate) fn contains(&self, id: &TransactionId) -> bool {
        self.is_at_hand(id) || self.others.contains(id)
    }

    /// Takes a transaction in; one of the same id makes room for it.
    pub(crate) fn insert(&mut self, transaction: impl Into<Box<Transaction>>) {
        let transaction = transaction.into();
        self.remove(&transaction.id);
        self.take_to_hand(transaction);
    }

    /// As [`Live::insert`], where it is known how its id spreads, and that much else comes before
    /// anything is asked for it.
    pub(crate) fn insert_as(&mut self, spread: u64, transaction: Box<Transaction>) {
        if self.is_at_hand(&transaction.id) {
            self.at_hand = Some(transaction);
            return;
        }
        self.others.insert(spread, transaction);
    }

    /// As [`Live::insert_as`], unless there is one of the same id: then it is given back.
    pub(crate) fn insert_new(
        &mut self,
        spread: u64,
        transaction: Box<Transaction>,
    ) -> Option<Box<Transaction>> {
        if self.is_at_hand(&transaction.id) {
            return Some(transaction);
        }
        self.others.insert_new(spread, transaction)
    }

    pub(crate) fn remove(&mut self, id: &TransactionId) -> Option<Box<Transaction>> {
        if self.is_at_hand(id) {
            return self.at_hand.take();
        }
        self.others.remove(id)
    }

    /// All of them, ordered by id.
    pub(crate) fn values(&self) -> impl Iterator<Item = &Transaction> {
        (0..self.parts()).flat_map(|part| self.part(part))
    }

    /// In how many parts they can be looked through: see [`Live::part`].
    pub(crate) fn parts(&self) -> usize {
        self.others.parts()
    }

    /// Those of one part, ordered by id. All parts together are all of them.
    pub(crate) fn part(&self, part: usize) -> impl Iterator<Item = &Transaction> {
        let mut found = self.others.part(part);
        let at_hand = self.at_hand.as_ref();
        if let Some(transaction) =
            at_hand.filter(|one| self.others.part_of(one.id.spread()) == part)
        {
            let place = found.partition_point(|other| other.id < transaction.id);
            found.insert(place, transaction);
        }
        found.into_iter().map(Box::as_ref)
    }

    pub(crate) fn len(&self) -> usize {
        self.others.len() + usize::from(self.at_hand.is_some())
    }

    pub(crate) fn is_empty(&self) -> bool {
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

    /// Whichever is at hand, all are there, each once, in the order of ids.
    #[test]
    fn the_one_at_hand_is_one_of_them() {
        let id = |n: usize| TransactionId::new(&format!("t{n}")).unwrap();
        let mut live = Live::default();
        for n in 0..5_000 {
            live.insert(transaction(id(n).as_str(), 1));
        }
        let mut sorted: Vec<TransactionId> = (0..5_000).map(id).collect();
        sorted.sort();
        for at_hand in [&sorted[0], &sorted[2_500], &sorted[4_999]] {
            live.get_mut(at_hand).unwrap().begun_at = 7;
            assert!(live.get_mut(&TransactionId::new("unknown").unwrap()).is_none());
            assert_eq!((live.len(), live.contains(at_hand)), (5_000, true));
            assert_eq!(live.get(at_hand).map(|found| found.begun_at), Some(7));
            assert!(live.values().map(|one| &one.id).eq(&sorted));
        }
        let last = sorted.pop().unwrap();
        let twice = Box::new(transaction(last.as_str(), 9));
        assert!(live.insert_new(last.spread(), twice).is_some(), "it is there, at hand");
        assert_eq!(live.remove(&last).map(|gone| gone.id), Some(last));
        assert!(live.values().map(|one| &one.id).eq(&sorted));
    }
}
