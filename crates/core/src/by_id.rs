//! A map from transaction ids that finds one of a million as it finds one of ten, and grows a
//! little at a time: nobody waits while everything is moved. Decides nothing about what it holds.
//!
//! It looks ids up by [`TransactionId::spread`]. Whoever chooses ids can make some that spread
//! alike, so the second and later of those are kept apart, in order, where each costs the same.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, Hasher};
use std::mem;
use std::sync::Arc;

use crate::{TransactionId, splitmix64};

/// A small map has one part. From this many entries on it has [`PARTS`], each of which grows by
/// itself.
const ONE_PART_MAX: usize = 4_096;
const PARTS: usize = 256;

/// Whether two names are the same; most that are, are in the same place.
fn is_same(name: &str, other: &str) -> bool {
    std::ptr::eq(name, other) || name == other
}

/// What is kept under the id of a transaction.
pub(crate) trait OfTransaction {
    /// That id, as text.
    fn name(&self) -> &str;
}

/// Found by how an id spreads; in no order.
pub(crate) type BySpread<V> = HashMap<u64, V, Mixed>;

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct ById<V> {
    parts: Vec<BySpread<V>>,
    /// Those whose place in the parts another id has taken that spreads alike.
    others: BTreeMap<TransactionId, V>,
    mixed: Mixed,
    count: usize,
}

impl<V> Default for ById<V> {
    fn default() -> Self {
        Self::new(0)
    }
}

impl<V> ById<V> {
    /// An empty one. Who does not know the seed cannot choose ids that are found slowly.
    pub(crate) fn new(seed: u64) -> Self {
        let mixed = Mixed::new(seed);
        Self { parts: vec![BySpread::with_hasher(mixed)], others: BTreeMap::new(), mixed, count: 0 }
    }

    pub(crate) const fn len(&self) -> usize {
        self.count
    }

    /// The parts that hold what is in it: see [`ById::part`].
    pub(crate) fn parts(&self) -> usize {
        self.parts.len()
    }

    /// The part of an id: the parts follow each other in the order of ids.
    pub(crate) fn part_of(&self, spread: u64) -> usize {
        if self.parts.len() == 1 { 0 } else { (spread >> 56) as usize }
    }

    /// What is in one part, with how its id spreads, in no order.
    fn entries_of(&self, part: usize) -> impl Iterator<Item = (u64, &V)> {
        let first = if self.parts.len() == 1 { 0 } else { (part as u64) << 56 };
        let others = self.others_from(first).map(|(id, value)| (id.spread(), value));
        let others = others.take_while(move |(spread, _)| self.part_of(*spread) == part);
        self.parts[part].iter().map(|(spread, value)| (*spread, value)).chain(others)
    }

    /// The others that spread like this or further on.
    fn others_from(&self, spread: u64) -> impl Iterator<Item = (&TransactionId, &V)> {
        self.others.range(TransactionId::first_that_spreads(spread)..)
    }
}

impl<V: OfTransaction> ById<V> {
    pub(crate) fn get(&self, id: &TransactionId) -> Option<&V> {
        match self.parts[self.part_of(id.spread())].get(&id.spread()) {
            Some(found) if is_same(found.name(), id.as_str()) => Some(found),
            Some(_) | None if self.others.is_empty() => None,
            Some(_) | None => self.others.get(id),
        }
    }

    pub(crate) fn get_mut(&mut self, id: &TransactionId) -> Option<&mut V> {
        let part = self.part_of(id.spread());
        match self.parts[part].get_mut(&id.spread()) {
            Some(found) if is_same(found.name(), id.as_str()) => Some(found),
            Some(_) | None if self.others.is_empty() => None,
            Some(_) | None => self.others.get_mut(id),
        }
    }

    pub(crate) fn contains(&self, id: &TransactionId) -> bool {
        self.get(id).is_some()
    }

    /// Takes in what belongs to an id that spreads so. What was there under the same id is given
    /// back.
    pub(crate) fn insert(&mut self, spread: u64, value: V) -> Option<V> {
        self.put(spread, value, mem::replace)
    }

    /// Takes in what belongs to an id that spreads so, unless something is there: then it is given
    /// back.
    pub(crate) fn insert_new(&mut self, spread: u64, value: V) -> Option<V> {
        self.put(spread, value, |_, value| value)
    }

    fn put(&mut self, spread: u64, value: V, old: impl Fn(&mut V, V) -> V) -> Option<V> {
        // Only where another spreads alike is the value itself, or its name, looked at.
        let id = |value: &V| TransactionId::from_parts(spread, Arc::from(value.name()));
        if !self.others.is_empty()
            && let Some(found) = self.others.get_mut(&id(&value))
        {
            return Some(old(found, value));
        }
        let part = self.part_of(spread);
        match self.parts[part].entry(spread) {
            Entry::Occupied(mut found) if found.get().name() == value.name() => {
                return Some(old(found.get_mut(), value));
            }
            Entry::Occupied(_) => {
                self.others.insert(id(&value), value);
            }
            Entry::Vacant(place) => {
                place.insert(value);
            }
        }
        self.count += 1;
        if self.count > ONE_PART_MAX && self.parts.len() == 1 {
            self.divide();
        }
        None
    }

    fn divide(&mut self) {
        let mixed = self.mixed;
        let parts = (0..PARTS).map(|_| BySpread::with_hasher(mixed)).collect();
        for (spread, value) in mem::replace(&mut self.parts, parts).into_iter().flatten() {
            let part = self.part_of(spread);
            self.parts[part].insert(spread, value);
        }
    }

    pub(crate) fn remove(&mut self, id: &TransactionId) -> Option<V> {
        let part = self.part_of(id.spread());
        let removed = match self.parts[part].entry(id.spread()) {
            Entry::Occupied(found) if is_same(found.get().name(), id.as_str()) => {
                Some(found.remove())
            }
            Entry::Occupied(_) | Entry::Vacant(_) => self.others.remove(id),
        };
        self.count -= usize::from(removed.is_some());
        removed
    }

    /// What is in one part, in the order of ids.
    pub(crate) fn part(&self, part: usize) -> Vec<&V> {
        let mut entries: Vec<(u64, &V)> = self.entries_of(part).collect();
        // Names are looked at only where two spread alike: each is somewhere else in memory.
        entries.sort_unstable_by(|(a, one), (b, other)| {
            a.cmp(b).then_with(|| one.name().cmp(other.name()))
        });
        entries.into_iter().map(|(_, value)| value).collect()
    }

    /// Everything that spreads so.
    pub(crate) fn that_spread(&self, spread: u64) -> impl Iterator<Item = &V> {
        let first = self.parts[self.part_of(spread)].get(&spread);
        let others = self.others_from(spread).take_while(move |(id, _)| id.spread() == spread);
        first.into_iter().chain(others.map(|(_, value)| value))
    }

    /// Everything, in the order of ids.
    #[cfg(test)]
    pub(crate) fn values(&self) -> impl Iterator<Item = &V> {
        (0..self.parts.len()).flat_map(|part| self.part(part))
    }
}

/// Mixes the bits that an id carries with a number of the map's own.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Mixed(u64);

impl Mixed {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(splitmix64(seed))
    }
}

impl BuildHasher for Mixed {
    type Hasher = MixedHasher;

    fn build_hasher(&self) -> MixedHasher {
        MixedHasher(self.0)
    }
}

pub(crate) struct MixedHasher(u64);

impl Hasher for MixedHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write_u64(&mut self, spread: u64) {
        self.0 = splitmix64(self.0 ^ spread);
    }

    fn write(&mut self, _: &[u8]) {
        panic!("keys are numbers");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl OfTransaction for TransactionId {
        fn name(&self) -> &str {
            self.as_str()
        }
    }

    fn id(name: &str) -> TransactionId {
        TransactionId::new(name).unwrap()
    }

    /// Two ids that spread alike, as somebody would make them who wanted to.
    fn alike() -> [TransactionId; 2] {
        let [a, b] = [id("a"), id("b")];
        [a.clone(), b.spreading_as(&a)]
    }

    #[test]
    fn ids_that_spread_alike_are_told_apart() {
        let [first, second] = alike();
        let mut map = ById::new(7);
        assert!(map.insert(first.spread(), first.clone()).is_none());
        assert!(!map.contains(&second) && map.remove(&second).is_none());
        assert!(map.insert(second.spread(), second.clone()).is_none());
        assert!(map.insert(second.spread(), second.clone()).is_some());
        assert_eq!(map.get_mut(&second), Some(&mut second.clone()));
        assert_eq!(map.get(&first), Some(&first));
        assert_eq!(map.that_spread(first.spread()).count(), 2);
        assert_eq!(map.values().collect::<Vec<_>>(), [&first, &second]);
        // The place in the parts is free again; the other is still found where it is.
        assert_eq!(map.remove(&first), Some(first.clone()));
        assert_eq!((map.len(), map.get(&second)), (1, Some(&second)));
        assert!(map.insert(second.spread(), second.clone()).is_some());
        assert_eq!((map.remove(&second), map.len()), (Some(second), 0));
    }

    #[test]
    fn a_large_map_holds_what_a_small_one_would_in_the_order_of_ids() {
        let ids: Vec<TransactionId> = (0..3 * ONE_PART_MAX).map(|n| id(&format!("t{n}"))).collect();
        let mut map = ById::new(1);
        for id in &ids {
            assert!(map.insert(id.spread(), id.clone()).is_none() && map.contains(id));
        }
        assert_eq!((map.len(), map.parts()), (ids.len(), PARTS));
        let mut sorted = ids.clone();
        sorted.sort();
        assert!(map.values().eq(&sorted));
        for id in &ids[1..] {
            assert_eq!(map.remove(id).as_ref(), Some(id));
        }
        assert!(map.values().eq([&ids[0]]));
    }
}
