//! Keeps what waits in the order in which it came, and finds at once what has waited for too long,
//! in whatever order that ends. What is waited for is the owner's.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use tokio::time::Instant;

/// So many places may be without anybody, beside as many as are taken.
const VACANT_MAX: usize = 64;

/// A queue whose members may leave it early, when their time is over.
#[derive(Debug)]
pub(super) struct Queue<T> {
    /// None where somebody has left early. The first is never none.
    places: VecDeque<Option<(Instant, T)>>,
    /// How many places there were before the first.
    gone: u64,
    len: usize,
    /// When the time of each ends, by place; also of some who have left.
    times: BinaryHeap<Reverse<(Instant, u64)>>,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { places: VecDeque::new(), gone: 0, len: 0, times: BinaryHeap::new() }
    }
}

impl<T> Queue<T> {
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn push(&mut self, deadline: Instant, item: T) {
        if self.places.len().max(self.times.len()) > 2 * self.len + VACANT_MAX {
            self.close_up();
        }
        self.times.push(Reverse((deadline, self.gone + self.places.len() as u64)));
        self.places.push_back(Some((deadline, item)));
        self.len += 1;
    }

    /// Who has been there for longest.
    pub(super) fn first(&self) -> Option<&T> {
        self.places.front()?.as_ref().map(|(_, item)| item)
    }

    pub(super) fn pop(&mut self) -> Option<T> {
        let (_, item) = self.places.pop_front()??;
        self.gone += 1;
        self.len -= 1;
        self.skip_vacant();
        Some(item)
    }

    /// When the first of those that wait has waited for too long.
    pub(super) fn earliest(&mut self) -> Option<Instant> {
        while let Some(Reverse((deadline, number))) = self.times.peek() {
            if self.place(*number).is_some() {
                return Some(*deadline);
            }
            self.times.pop();
        }
        None
    }

    /// Takes out all whose time is over.
    pub(super) fn late(&mut self, now: Instant) -> Vec<T> {
        let mut late = Vec::new();
        while self.earliest().is_some_and(|deadline| deadline <= now) {
            let number = self.times.pop().map_or(0, |Reverse((_, number))| number);
            let found = self.index(number).and_then(|index| self.places.get_mut(index)?.take());
            self.len -= usize::from(found.is_some());
            late.extend(found.map(|(_, item)| item));
        }
        self.skip_vacant();
        late
    }

    /// Takes out all.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = T> + use<T> {
        std::mem::take(self).places.into_iter().flatten().map(|(_, item)| item)
    }

    fn index(&self, number: u64) -> Option<usize> {
        usize::try_from(number.checked_sub(self.gone)?).ok()
    }

    fn place(&self, number: u64) -> Option<&(Instant, T)> {
        self.places.get(self.index(number)?)?.as_ref()
    }

    fn skip_vacant(&mut self) {
        while let Some(None) = self.places.front() {
            self.places.pop_front();
            self.gone += 1;
        }
    }

    fn close_up(&mut self) {
        self.places.retain(Option::is_some);
        self.gone = 0;
        let numbered = (0..).zip(self.places.iter().flatten());
        self.times = numbered.map(|(number, (deadline, _))| Reverse((*deadline, number))).collect();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use unanimity_core::splitmix64;

    use super::*;

    /// Against the plainest queue there is.
    #[test]
    fn it_is_what_a_list_would_be() {
        let start = Instant::now();
        for seed in 0..64 {
            let (mut queue, mut list) = (Queue::default(), Vec::<(Instant, u64)>::new());
            let mut draws = (0..).map(|number| splitmix64(seed * 1_000_003 + number));
            let mut draw = |most: u64| draws.next().unwrap() % most;
            for number in 0..2_000 {
                let now = start + Duration::from_millis(number);
                match draw(8) {
                    0 => {
                        let late = list.extract_if(.., |(deadline, _)| *deadline <= now);
                        let mut late: Vec<_> = late.map(|(_, number)| number).collect();
                        let mut found = queue.late(now);
                        late.sort_unstable();
                        found.sort_unstable();
                        assert_eq!(found, late);
                    }
                    1..4 => {
                        let first = (!list.is_empty()).then(|| list.remove(0).1);
                        assert_eq!(queue.pop(), first);
                    }
                    _ => {
                        let deadline = now + Duration::from_millis(draw(400));
                        queue.push(deadline, number);
                        list.push((deadline, number));
                    }
                }
                assert_eq!(queue.len(), list.len());
                assert_eq!(queue.first(), list.first().map(|(_, number)| number));
                assert_eq!(queue.earliest(), list.iter().map(|(deadline, _)| *deadline).min());
            }
            let left: Vec<u64> = queue.drain().collect();
            assert_eq!(left, list.iter().map(|(_, number)| *number).collect::<Vec<_>>());
            assert!(queue.is_empty());
        }
    }

    #[test]
    fn who_has_left_is_soon_forgotten() {
        let (mut queue, start) = (Queue::default(), Instant::now());
        queue.push(start + Duration::from_secs(3_600), 0);
        for number in 1..10_000 {
            queue.push(start, number);
            assert_eq!(queue.late(start), [number]);
        }
        assert!(queue.places.len().max(queue.times.len()) <= VACANT_MAX + 4);
        assert_eq!((queue.pop(), queue.pop()), (Some(0), None));
    }
}
