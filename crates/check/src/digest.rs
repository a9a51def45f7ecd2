//! A fast 64-bit digest of anything hashable, the same in every run. For sorting and for memory
//! keyed by states; not for secrets.

use std::hash::{Hash, Hasher};

/// An odd number with evenly spread bits (the golden ratio's).
const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;

/// Folds in eight bytes at a time by one wide multiplication, as wyhash does.
#[derive(Debug)]
pub(crate) struct Folding(u64);

impl Default for Folding {
    fn default() -> Self {
        Self(SPREAD)
    }
}

impl Folding {
    fn fold(&mut self, word: u64) {
        let wide = u128::from(self.0 ^ word ^ 0xA076_1D64_78BD_642F) * u128::from(SPREAD);
        self.0 = (wide as u64) ^ ((wide >> 64) as u64) ^ self.0.rotate_left(23);
    }
}

impl Hasher for Folding {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.fold(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, number: u8) {
        self.fold(u64::from(number));
    }

    fn write_u16(&mut self, number: u16) {
        self.fold(u64::from(number));
    }

    fn write_u32(&mut self, number: u32) {
        self.fold(u64::from(number));
    }

    fn write_u64(&mut self, number: u64) {
        self.fold(number);
    }

    fn write_usize(&mut self, number: usize) {
        self.fold(number as u64);
    }

    fn finish(&self) -> u64 {
        let mut last = Self(self.0);
        last.fold(SPREAD);
        last.0
    }
}

/// The digest of a value.
pub fn of(value: &impl Hash) -> u64 {
    let mut hasher = Folding::default();
    value.hash(&mut hasher);
    hasher.finish()
}
