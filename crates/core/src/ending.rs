//! Keeps the transactions that have ended until the history has them: packed, as they go there, in
//! the batches in which their ends go to the journal. A batch is to be had once it is durable. They
//! stay in the order in which they ended: each has a number, and only the bounds between them move.
//!
//! Thousands are here at any time under load, and each comes and goes once: what is kept of each is
//! small, and lies beside its neighbours. It is packed while it has just been worked on: when its
//! end is durable, hundreds of others have been, and it would have to be fetched from memory again.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::by_id::{BySpread, Mixed};
use crate::{
    Durable, Millis, PackedTransaction, PackedTransactions, RecordReader, Transaction,
    TransactionId,
};

/// No more room is made for what is to gather, in bytes, however much there was before.
const ROOM_MAX: usize = 1 << 20;

/// Where one is packed, and how its id spreads.
#[derive(Clone, Copy, Debug)]
struct Place {
    spread: u64,
    at: usize,
}

/// What goes to the history together: those whose ends are in one batch of the journal.
#[derive(Clone, Debug, Default)]
struct Batch {
    /// Where in the journal that is.
    position: u64,
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
    /// How many have come, and so the number of the next.
    came: u64,
    /// What was sent and is not known to be in the history, the oldest first; behind it what was
    /// not sent.
    batches: VecDeque<Batch>,
    /// How many were sent.
    sent: usize,
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

    /// It has ended, and its end goes to the journal's batch at `position`: the one that those
    /// before went to, or a later one. `home` is the position that the journal keeps for it, if it
    /// keeps one.
    pub fn insert(&mut self, ended: &Transaction, position: u64, home: Option<u64>) {
        let number = self.came;
        let spread = ended.id.spread();
        let Batch { places, packed, homes, .. } = self.gathering(position);
        let Some(packed) = Arc::get_mut(packed) else { panic!("what gathers was not sent") };
        let at = packed.push(ended);
        places.push(Place { spread, at });
        match (homes.last_mut(), home) {
            (Some((last, count)), Some(home)) if *last == home => *count += 1,
            (_, home) => homes.extend(home.map(|home| (home, 1))),
        }
        self.came += 1;
        if let Some(other) = self.numbers.insert(spread, number) {
            self.numbers.insert(spread, other);
            self.others.insert(ended.id.clone(), number);
        }
    }

    /// The batch of those that end at this position.
    fn gathering(&mut self, position: u64) -> &mut Batch {
        let last = self.batches.back();
        if self.batches.len() == self.sent || last.is_none_or(|last| last.position != position) {
            let next = Batch { position, first: self.came, ..last.map(like).unwrap_or_default() };
            self.batches.push_back(next);
        }
        let last = self.batches.len() - 1;
        &mut self.batches[last]
    }

    /// The oldest that are to go to the history and were not sent, if there are any: everything up
    /// to `durable` is. With them, and those before, the history has all that ended up to the
    /// position that is given with them; others may have ended later, and be sent next.
    pub fn send(&mut self, durable: Durable) -> Option<(u64, Arc<PackedTransactions>)> {
        let next = self.batches.get(self.sent);
        let next = next.filter(|next| Durable::up_to(next.position) <= durable)?;
        self.sent += 1;
        Some((next.position, Arc::clone(&next.packed)))
    }

    /// The oldest of what was sent is in the history. Gives back which positions the journal kept
    /// for it, and for how many each.
    pub fn archived(&mut self) -> Vec<(u64, usize)> {
        let oldest = if self.sent > 0 { self.batches.pop_front() } else { None };
        let Some(batch) = oldest else { return Vec::new() };
        self.sent -= 1;
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
        let before = self.batches.partition_point(|batch| batch.first <= number);
        let batch = &self.batches[before - 1];
        let place = usize::try_from(number - batch.first).unwrap_or(usize::MAX);
        Found::Packed(batch.packed.at(batch.places[place].at))
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
        let packed = self.batches.iter().flat_map(|batch| batch.packed.iter());
        let found = packed.map(Found::Packed).chain(self.aside.values().map(Found::Whole));
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

/// One that is empty, with room for as much.
fn like(batch: &Batch) -> Batch {
    let Batch { places, packed, homes, .. } = batch;
    Batch {
        places: Vec::with_capacity(places.len()),
        packed: Arc::new(PackedTransactions::with_capacity(packed.bytes().min(ROOM_MAX))),
        homes: Vec::with_capacity(homes.len()),
        ..Batch::default()
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
        ending.insert(&ended(a), 7, Some(3));
        ending.insert(&ended(b), 7, Some(3));
        ending.insert(&ended(c), 8, Some(4));
        check(&ending, &[a, b, c, stays], &[d, e]);
        let up_to = Durable::up_to;
        assert!(ending.send(up_to(6)).is_none(), "no end is durable yet");
        let (at, first) = ending.send(up_to(7)).unwrap();
        assert_eq!(at, 7);
        assert!(ending.send(up_to(7)).is_none(), "what ends at 8 is not durable yet");
        ending.insert(&ended(d), 8, Some(4));
        ending.insert(&ended(e), 9, None);
        check(&ending, &[a, b, c, d, e, stays], &[]);
        let [(second_at, second), (third_at, third)] =
            [(); 2].map(|()| ending.send(up_to(12)).unwrap());
        assert_eq!((second_at, third_at), (8, 9), "what follows is not among them");
        assert!(ending.send(up_to(12)).is_none(), "nothing has ended since");
        let names = |packed: &PackedTransactions| {
            packed.iter().map(|one| one.id().clone()).collect::<Vec<TransactionId>>()
        };
        let sent = [&first, &second, &third].map(|packed| names(packed));
        assert_eq!(sent, [vec![a.clone(), b.clone()], vec![c.clone(), d.clone()], vec![e.clone()]]);
        assert_eq!(ending.archived(), [(3, 2)]);
        check(&ending, &[c, d, e, stays], &[a, b]);
        assert_eq!(ending.archived(), [(4, 2)]);
        check(&ending, &[e, stays], &[a, b, c, d]);
        // What has gathered and was not sent is not in the history, whatever is said.
        ending.insert(&ended(a), 13, Some(6));
        assert_eq!((ending.archived(), ending.archived()), (vec![], vec![]));
        check(&ending, &[a, stays], &[b, c, d, e]);
        assert!(ending.send(up_to(13)).is_some());
        assert_eq!(ending.archived(), [(6, 1)]);
        check(&ending, &[stays], &[a, b, c, d, e]);
        assert_eq!(ending.stay(), 1);
    }

    /// Else what was sent would be changed behind the back of who reads it.
    #[test]
    fn what_was_sent_takes_no_more() {
        let mut ending = Ending::new(1);
        ending.insert(&ended(&id("a")), 7, None);
        let (_, sent) = ending.send(Durable::up_to(7)).unwrap();
        ending.insert(&ended(&id("b")), 7, None);
        assert_eq!((sent.len(), ending.len()), (1, 2));
        assert_eq!(ending.send(Durable::up_to(7)).unwrap().1.len(), 1);
    }

    #[test]
    fn ids_that_spread_alike_are_told_apart() {
        let first = id("a");
        let [second, third] = ["b", "c"].map(|name| id(name).spreading_as(&first));
        let mut ending = Ending::new(1);
        ending.set_aside(ended(&third));
        ending.insert(&ended(&first), 7, None);
        ending.insert(&ended(&second), 8, None);
        assert_eq!(ending.others.len(), 1);
        assert!(ending.contains(&first) && ending.contains(&second) && ending.contains(&third));
        assert!(!ending.contains(&id("d").spreading_as(&first)));
        assert!(ending.send(Durable::up_to(7)).is_some() && ending.archived().is_empty());
        assert!(!ending.contains(&first) && ending.contains(&second) && ending.contains(&third));
    }
}
