//! Keeps things under numbers while they are under way. A number is a place and how often the place
//! was used before, so that what comes late for one is not taken for another's.

/// Things by number.
#[derive(Debug)]
pub(crate) struct Slots<T> {
    slots: Vec<(u32, Option<T>)>,
    free: Vec<u32>,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self { slots: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slots<T> {
    /// How many there are.
    pub(crate) const fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Keeps one, and gives it a number that no other has or had for a long time.
    pub(crate) fn put(&mut self, thing: T) -> u64 {
        let place = self.free.pop().unwrap_or_else(|| {
            self.slots.push((0, None));
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
        });
        let slot = &mut self.slots[place as usize];
        slot.0 = slot.0.wrapping_add(1);
        slot.1 = Some(thing);
        u64::from(slot.0) << 32 | u64::from(place)
    }

    /// Takes out the one of this number, if it is there still.
    pub(crate) fn take(&mut self, number: u64) -> Option<T> {
        let (use_of_it, place) = ((number >> 32) as u32, number as u32);
        let slot = self.slots.get_mut(place as usize).filter(|slot| slot.0 == use_of_it)?;
        let thing = slot.1.take()?;
        self.free.push(place);
        Some(thing)
    }

    /// Takes out all that are wanted.
    pub(crate) fn take_if(&mut self, wanted: impl Fn(&T) -> bool) -> Vec<T> {
        let mut taken = Vec::new();
        for (place, slot) in (0_u32..).zip(&mut self.slots) {
            if slot.1.as_ref().is_some_and(&wanted) {
                taken.extend(slot.1.take());
                self.free.push(place);
            }
        }
        taken
    }

    /// Those that are there.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.slots.iter().filter_map(|slot| slot.1.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_late_for_one_is_not_taken_for_another() {
        let mut slots = Slots::default();
        let (first, second) = (slots.put('a'), slots.put('b'));
        assert_eq!((slots.take(first), slots.take(first)), (Some('a'), None));
        let third = slots.put('c');
        assert_ne!(third, first);
        assert_eq!((slots.take(first), slots.len()), (None, 2));
        assert_eq!(slots.take_if(|thing| *thing == 'b'), ['b']);
        assert_eq!((slots.take(second), slots.take(third), slots.len()), (None, Some('c'), 0));
    }
}
