//! Keeps the transactions that have ended until the history has them: whole until their end is
//! durable, and packed from then on, as they go to the history. Both happen in the order in which
//! they ended: each has a number, and only the bounds between them move.
//!
//! Thousands are here at any time under load, and each comes and goes once: what is kept of each is
//! small, and lies beside its neighbours.

use std::collections::{BTreeMap, VecDeque};
use std::mem;
use std::sync::Arc;

use crate::by_id::{BySpread, Mixed};
use crate::{
    Millis, PackedTransaction, PackedTransactions, RecordReader, Transaction, TransactionId,
};

/// No more room is made for what is to gather, in bytes, however much there was before.
const ROOM_MAX: usize = 1 << 20;

/// Where one is packed, and how its id spreads.
#[derive(Clone, Copy, Debug)]
struct Place {
    spread: u64,
    at: usize,
}

/// What goes to the history together.
#[derive(Clone, Debug, Default)]
struct Batch {
    /// The number of the first.
    first: u64,
    places: Vec<Place>,
    packed: Arc<PackedTransactions>,
    /// Which positions the journal keeps for them, and for how many each.
    homes: Vec<(u64, usize)>,
}

/// Ended, and not known to be in the history yet.
#[derive(Clone, Debug, Default)]
pub struct Ending {
    /// The numbers, by how the ids spread.
    numbers: BySpread<u64>,
    /// Of those that spread as another does. (Whoever chooses ids can make many.)
    others: BTreeMap<TransactionId, u64>,
    /// Whose end is not durable yet; those that came last.
    whole: VecDeque<Arc<Transaction>>,
    /// How many have come, and so the number of the next.
    came: u64,
    /// What is to be sent next.
    gathers: Batch,
    /// What was sent, the oldest first.
    sent: VecDeque<Batch>,
    /// They cannot go into the history: the program breaks on them.
    aside: BTreeMap<TransactionId, Arc<Transaction>>,
}

impl Ending {
    /// None. Who does not know the seed cannot choose ids that are found slowly.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { numbers: BySpread::with_hasher(Mixed::new(seed)), ..Self::default() }
    }

    /// It has ended and cannot go into the history.
    pub fn set_aside(&mut self, ended: Arc<Transaction>) {
        self.aside.insert(ended.id.clone(), ended);
    }

    /// It has ended. Its end may not be durable yet.
    pub fn insert(&mut self, ended: &Arc<Transaction>) {
        let number = self.came;
        self.came += 1;
        self.whole.push_back(Arc::clone(ended));
        let spread = ended.id.spread();
        if let Some(other) = self.numbers.insert(spread, number) {
            self.numbers.insert(spread, other);
            self.others.insert(ended.id.clone(), number);
        }
    }

    /// The end of this one is durable: it is to go to the history. It came first of those of whom
    /// that was not said. `home` is the position that the journal keeps for it, if it keeps one.
    pub fn pack(&mut self, id: &TransactionId, home: Option<u64>) {
        let ended = self.whole.pop_front().filter(|ended| ended.id == *id);
        let Some(ended) = ended else { panic!("{id}: ended out of turn") };
        let Batch { places, packed, homes, .. } = &mut self.gathers;
        let Some(packed) = Arc::get_mut(packed) else { panic!("what gathers was not sent") };
        places.push(Place { spread: id.spread(), at: packed.push(&ended) });
        match (homes.last_mut(), home) {
            (Some((last, count)), Some(home)) if *last == home => *count += 1,
            (_, home) => homes.extend(home.map(|home| (home, 1))),
        }
    }

    /// What has gathered for the history, if anything has.
    pub fn send(&mut self) -> Option<Arc<PackedTransactions>> {
        if self.gathers.places.is_empty() {
            return None;
        }
        // The next is about as large.
        let Batch { first, places, packed, homes } = &self.gathers;
        let next = Batch {
            first: first + places.len() as u64,
            places: Vec::with_capacity(places.len()),
            packed: Arc::new(PackedTransactions::with_capacity(packed.bytes().min(ROOM_MAX))),
            homes: Vec::with_capacity(homes.len()),
        };
        let batch = mem::replace(&mut self.gathers, next);
        let packed = Arc::clone(&batch.packed);
        self.sent.push_back(batch);
        Some(packed)
    }

    /// The oldest of what was sent is in the history. Gives back which positions the journal kept
    /// for it, and for how many each.
    pub fn archived(&mut self) -> Vec<(u64, usize)> {
        let Some(batch) = self.sent.pop_front() else { return Vec::new() };
        for (number, Place { spread, at }) in (batch.first..).zip(&batch.places) {
            match self.numbers.remove(spread) {
                Some(found) if found == number => {}
                other => {
                    self.numbers.extend(other.map(|other| (*spread, other)));
                    self.others.remove(batch.packed.at(*at).id());
                }
            }
        }
        batch.homes
    }

    /// Whether this one is here.
    #[must_use]
    pub fn contains(&self, id: &TransactionId) -> bool {
        self.find(id).is_some()
    }

    /// This one, if it is here.
    #[must_use]
    pub fn get(&self, id: &TransactionId) -> Option<Arc<Transaction>> {
        self.find(id).map(|found| match found {
            Found::Whole(ended) => Arc::clone(ended),
            Found::Packed(packed) => Arc::new(packed.unpack_alone()),
        })
    }

    fn find(&self, id: &TransactionId) -> Option<Found<'_>> {
        let first = self.numbers.get(&id.spread()).map(|number| self.numbered(*number));
        let first = first.filter(|found| found.id() == id);
        let other = || self.others.get(id).map(|number| self.numbered(*number));
        first.or_else(other).or_else(|| self.aside.get(id).map(Found::Whole))
    }

    fn numbered(&self, number: u64) -> Found<'_> {
        let whole = self.came - self.whole.len() as u64;
        let place = |first: u64| usize::try_from(number - first).unwrap_or(usize::MAX);
        if number >= whole {
            return Found::Whole(&self.whole[place(whole)]);
        }
        let before = self.sent.partition_point(|batch| batch.first <= number);
        let batch =
            if number >= self.gathers.first { &self.gathers } else { &self.sent[before - 1] };
        Found::Packed(batch.packed.at(batch.places[place(batch.first)].at))
    }

    /// The latest that pass, at most `limit`: those that began last come first, and of those that
    /// began together those whose names come last. Asked in that order, until there are enough:
    /// the others are not unpacked.
    #[must_use]
    pub fn latest(
        &self,
        limit: usize,
        mut passes: impl FnMut(&Transaction) -> bool,
    ) -> Vec<Arc<Transaction>> {
        if limit == 0 {
            return Vec::new();
        }
        let packed = self.sent.iter().chain([&self.gathers]).flat_map(|batch| batch.packed.iter());
        let whole = self.whole.iter().chain(self.aside.values());
        let found = packed.map(Found::Packed).chain(whole.map(Found::Whole));
        let mut found: Vec<(Millis, Found<'_>)> =
            found.map(|found| (found.begun_at(), found)).collect();
        found.sort_unstable_by(|(a, one), (b, other)| {
            (b, other.id().as_str()).cmp(&(a, one.id().as_str()))
        });
        let mut reader = RecordReader::default();
        let latest = found.into_iter().map(|(_, found)| found.whole(&mut reader));
        latest.filter(|one| passes(one)).take(limit).collect()
    }

    /// How many cannot go into the history.
    #[must_use]
    pub fn stay(&self) -> usize {
        self.aside.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.numbers.len() + self.others.len() + self.aside.len()
    }
}

enum Found<'a> {
    Whole(&'a Arc<Transaction>),
    Packed(PackedTransaction<'a>),
}

impl Found<'_> {
    fn whole(self, reader: &mut RecordReader) -> Arc<Transaction> {
        match self {
            Self::Whole(ended) => Arc::clone(ended),
            Self::Packed(packed) => Arc::new(packed.unpack(reader)),
        }
    }

    fn begun_at(&self) -> Millis {
        match self {
            Self::Whole(ended) => ended.begun_at,
            Self::Packed(packed) => packed.begun_at(),
        }
    }

    fn id(&self) -> &TransactionId {
        match self {
            Self::Whole(ended) => &ended.id,
            Self::Packed(packed) => packed.id(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> TransactionId {
        TransactionId::new(name).unwrap()
    }

    fn ended(id: &TransactionId) -> Arc<Transaction> {
        let mut ended = Transaction::unread(id.clone(), 7);
        ended.ended_at = Some(9);
        Arc::new(ended)
    }

    /// Everybody who is to be there is found as they were, and nobody else.
    fn check(ending: &Ending, there: &[&TransactionId], gone: &[&TransactionId]) {
        for id in there {
            assert_eq!(ending.get(id).as_ref(), Some(&ended(id)));
        }
        for id in gone {
            assert!(!ending.contains(id) && ending.get(id).is_none(), "{id}");
        }
        let listed = |limit| {
            let latest = ending.latest(limit, |one| one.id.as_str() != "c");
            latest.iter().map(|one| one.id.as_str().to_owned()).collect::<Vec<String>>()
        };
        let mut expected: Vec<String> = there.iter().map(|id| id.as_str().to_owned()).collect();
        expected.sort_by(|a, b| b.cmp(a));
        expected.retain(|id| id != "c");
        assert_eq!((listed(usize::MAX), ending.len()), (expected.clone(), there.len()));
        assert_eq!(listed(2), expected[..expected.len().min(2)]);
    }

    #[test]
    fn each_is_found_wherever_it_is_until_its_batch_is_in_the_history() {
        let [a, b, c, d, e, stays] = &["a", "b", "c", "d", "e", "stays"].map(id);
        let mut ending = Ending::new(1);
        ending.set_aside(ended(stays));
        [a, b, c, d].into_iter().for_each(|id| ending.insert(&ended(id)));
        check(&ending, &[a, b, c, d, stays], &[e]);
        ending.pack(a, Some(3));
        ending.pack(b, Some(3));
        let first = ending.send().unwrap();
        assert!(ending.send().is_none(), "nothing has gathered since");
        ending.pack(c, Some(4));
        ending.insert(&ended(e));
        check(&ending, &[a, b, c, d, e, stays], &[]);
        let second = ending.send().unwrap();
        let names = |packed: &PackedTransactions| {
            packed.iter().map(|one| one.id().clone()).collect::<Vec<TransactionId>>()
        };
        assert_eq!((names(&first), names(&second)), (vec![a.clone(), b.clone()], vec![c.clone()]));
        assert_eq!(ending.archived(), [(3, 2)]);
        check(&ending, &[c, d, e, stays], &[a, b]);
        assert_eq!(ending.archived(), [(4, 1)]);
        assert_eq!(ending.archived(), [], "nothing else was sent");
        ending.pack(d, None);
        ending.pack(e, Some(5));
        check(&ending, &[d, e, stays], &[a, b, c]);
        assert!(ending.send().is_some());
        assert_eq!(ending.archived(), [(5, 1)]);
        check(&ending, &[stays], &[a, b, c, d, e]);
        assert_eq!(ending.stay(), 1);
    }

    #[test]
    fn ids_that_spread_alike_are_told_apart() {
        let first = id("a");
        let [second, third] = ["b", "c"].map(|name| id(name).spreading_as(&first));
        let mut ending = Ending::new(1);
        ending.insert(&ended(&first));
        ending.insert(&ended(&second));
        check(&ending, &[&first, &second], &[&third]);
        // What is packed spreads as its name does.
        let mut ending = Ending::new(1);
        [&first, &second].into_iter().for_each(|id| ending.insert(&ended(id)));
        assert_eq!(ending.others.len(), 1);
        ending.pack(&first, None);
        assert!(ending.send().is_some() && ending.archived().is_empty());
        check(&ending, &[&second], &[&first, &third]);
    }

    #[test]
    #[should_panic(expected = "ended out of turn")]
    fn their_ends_are_durable_in_the_order_in_which_they_ended() {
        let mut ending = Ending::new(1);
        ["a", "b"].into_iter().for_each(|name| ending.insert(&ended(&id(name))));
        ending.pack(&id("b"), None);
    }
}
