//! Decides where in the file the next frame goes. The places that are free are taken in turn, from
//! the front to the back and again from the front, so that what is written one after the other lies
//! one behind the other, and the file stays about as long as what is kept in it.

use std::collections::BTreeMap;

use super::frame::Extent;

/// The turn goes at least so far, in blocks, before it begins at the front again, if the file is as
/// long: 8 MB.
const TURN_MIN: u32 = 2_048;

/// Which blocks of a file are free.
#[derive(Debug)]
pub(super) struct Space {
    /// By their first block; neighbours are one.
    free: BTreeMap<u32, u32>,
    free_blocks: u32,
    /// How many blocks the file has.
    capacity: u32,
    /// Blocks before this one are never given away.
    reserved: u32,
    /// Where the next place is looked for.
    next: u32,
}

impl Space {
    /// A file of so many blocks, all free but the first `reserved`.
    pub(super) fn new(reserved: u32, capacity: u32) -> Self {
        let mut space =
            Self { free: BTreeMap::new(), free_blocks: 0, capacity, reserved, next: reserved };
        if capacity > reserved {
            space.release(Extent { start: reserved, blocks: capacity - reserved });
        }
        space
    }

    pub(super) const fn capacity(&self) -> u32 {
        self.capacity
    }

    /// The file is so long now.
    pub(super) fn set_capacity(&mut self, capacity: u32) {
        let before = self.capacity;
        self.capacity = capacity;
        if capacity > before {
            self.release(Extent { start: before, blocks: capacity - before });
        } else if capacity < before {
            let cut = Extent { start: capacity, blocks: before - capacity };
            assert!(self.take(cut), "only what is free can be cut off");
            self.next = self.next.min(capacity);
        }
    }

    /// Behind this block everything is free.
    pub(super) fn used_end(&self) -> u32 {
        match self.free.last_key_value() {
            Some((start, blocks)) if start + blocks == self.capacity => *start,
            Some(_) | None => self.capacity,
        }
    }

    /// A place for so many blocks, if there is one.
    pub(super) fn allocate(&mut self, blocks: u32) -> Option<Extent> {
        let used = self.capacity - self.reserved - self.free_blocks;
        if self.next >= self.reserved.saturating_add(TURN_MIN.max(used.saturating_mul(2))) {
            self.next = self.reserved;
        }
        let start = self.find(blocks)?;
        let extent = Extent { start, blocks };
        self.take(extent);
        self.next = extent.end();
        Some(extent)
    }

    /// Whether there is one.
    pub(super) fn has(&self, blocks: u32) -> bool {
        self.find(blocks).is_some()
    }

    fn find(&self, blocks: u32) -> Option<u32> {
        // The turn may stand within what has become free.
        let here = self.free.range(..self.next).next_back();
        let here =
            here.map(|(start, length)| (self.next, (start + length).saturating_sub(self.next)));
        let there = self.free.range(self.next..).chain(self.free.range(..self.next));
        let all = here.into_iter().chain(there.map(|(start, length)| (*start, *length)));
        all.into_iter().find(|(_, length)| *length >= blocks).map(|(start, _)| start)
    }

    /// Gives a place away, if all of it is free.
    pub(super) fn take(&mut self, extent: Extent) -> bool {
        let Some((start, length)) = self.free.range(..=extent.start).next_back() else {
            return false;
        };
        let (start, end) = (*start, start + length);
        if end < extent.end() {
            return false;
        }
        self.free.remove(&start);
        if start < extent.start {
            self.free.insert(start, extent.start - start);
        }
        if extent.end() < end {
            self.free.insert(extent.end(), end - extent.end());
        }
        self.free_blocks -= extent.blocks;
        true
    }

    /// Takes a place back.
    pub(super) fn release(&mut self, extent: Extent) {
        let (mut start, mut end) = (extent.start, extent.end());
        if let Some(length) = self.free.remove(&end) {
            end += length;
        }
        if let Some((before, length)) = self.free.range(..start).next_back()
            && before + length == start
        {
            start = *before;
        }
        self.free.insert(start, end - start);
        self.free_blocks += extent.blocks;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: u32, blocks: u32) -> Extent {
        Extent { start, blocks }
    }

    #[test]
    fn places_are_taken_in_turn() {
        let mut space = Space::new(2, 12);
        assert_eq!(space.allocate(4), Some(at(2, 4)));
        assert_eq!(space.allocate(3), Some(at(6, 3)));
        space.release(at(2, 4));
        assert_eq!(space.allocate(2), Some(at(9, 2)), "what has become free waits for its turn");
        assert_eq!(space.allocate(2), Some(at(2, 2)));
        assert!(!space.has(3));
        assert_eq!(space.allocate(3), None);
        space.set_capacity(14);
        assert_eq!(space.allocate(3), Some(at(11, 3)));
        assert_eq!((space.allocate(2), space.allocate(1)), (Some(at(4, 2)), None));
    }

    #[test]
    fn neighbours_become_one_place() {
        let mut space = Space::new(0, 9);
        let [a, b, c] = [3; 3].map(|blocks| space.allocate(blocks).unwrap());
        space.release(a);
        space.release(c);
        assert_eq!(space.used_end(), 6);
        assert!(!space.has(4));
        space.release(b);
        assert_eq!((space.used_end(), space.allocate(9)), (0, Some(at(0, 9))));
    }

    #[test]
    fn what_is_taken_is_not_taken_again() {
        let mut space = Space::new(1, 10);
        assert!(space.take(at(4, 2)));
        for taken in [at(0, 1), at(3, 2), at(5, 1), at(5, 3), at(9, 2)] {
            assert!(!space.take(taken), "{taken:?}");
        }
        space.set_capacity(6);
        assert_eq!((space.used_end(), space.capacity()), (6, 6));
        assert!(space.take(at(1, 3)) && !space.has(1));
    }

    /// Else a file that has once been long would be walked through from end to end for ever.
    #[test]
    fn the_turn_stays_in_front_where_little_is_used() {
        let mut space = Space::new(2, 100 * TURN_MIN);
        let mut furthest = 0;
        for _ in 0..10 * TURN_MIN {
            let extent = space.allocate(3).unwrap();
            furthest = furthest.max(extent.end());
            space.release(extent);
        }
        assert!((TURN_MIN..=TURN_MIN + 8).contains(&furthest), "{furthest}");
    }
}
