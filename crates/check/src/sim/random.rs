//! Random numbers from one seed: a stream for each part of the world, so that leaving something out
//! of one part shifts nothing in the others.

use unanimity_core::splitmix64;

/// Milliseconds of virtual time.
pub type Millis = u64;

/// A million: chances are given in parts of it.
pub const MILLION: u64 = 1_000_000;

/// One stream of random numbers.
#[derive(Clone, Debug)]
pub struct Random {
    state: u64,
}

impl Random {
    /// The stream of this name from this seed.
    #[must_use]
    pub fn new(seed: u64, name: &str, number: u64) -> Self {
        let named = name.bytes().fold(seed, |state, byte| splitmix64(state ^ u64::from(byte)));
        Self { state: splitmix64(named ^ number) }
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(1);
        splitmix64(self.state)
    }

    /// A number below `limit`; 0 if that is 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        let bits = self.bits();
        bits.checked_rem(limit).unwrap_or(0)
    }

    /// A number from `least` to `most`.
    pub fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.below(most - least + 1)
    }

    /// Yes in so many of a million cases.
    pub fn chance(&mut self, of_a_million: u64) -> bool {
        self.below(MILLION) < of_a_million
    }

    /// One of them.
    pub fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        let most = all.len() as u64;
        &all[usize::try_from(self.below(most)).unwrap_or(0)]
    }

    /// A delay whose mean is about `mean`: mostly around it, sometimes many times as long.
    pub fn delay(&mut self, mean: Millis) -> Millis {
        let quarters = *self.pick(&[1, 1, 2, 2, 3, 3, 4, 4, 5, 6, 8, 12]);
        (mean * quarters / 4 + self.below(mean / 4 + 1)).max(1)
    }
}
