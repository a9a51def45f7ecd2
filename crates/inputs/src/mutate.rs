//! Changes inputs by chance, and by the same chance every time: what the ordinary tests try beside
//! the corpus itself. The fuzzer has its own, better ways.

use unanimity_core::splitmix64;

/// Random numbers from a seed.
pub struct Chance(u64);

impl Chance {
    /// The same seed, the same numbers.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(1);
        (splitmix64(self.0) % bound.max(1) as u64) as usize
    }

    fn range(&mut self, length: usize) -> std::ops::Range<usize> {
        let start = self.below(length + 1);
        let count = self.below(16.min(length - start) + 1);
        start..start + count
    }
}

/// What parsers stumble over.
const PIECES: [&[u8]; 16] = [
    b"\0",
    b"\xff\xff\xff\xff",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"\x80",
    b"\xc3\xa4",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"\\ud800",
    b"18446744073709551616",
    b"-1",
    b"1e999",
    b"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
    b"{\"\":",
    b"\"",
    b"\r\n",
    b"%00",
];

/// An input changed in one to four places; `other` is one to take pieces from.
#[must_use]
pub fn mutated(input: &[u8], other: &[u8], chance: &mut Chance) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..=chance.below(4) {
        change(&mut bytes, other, chance);
    }
    bytes
}

fn change(bytes: &mut Vec<u8>, other: &[u8], chance: &mut Chance) {
    let range = chance.range(bytes.len());
    match chance.below(8) {
        0 if !bytes.is_empty() => {
            let place = chance.below(bytes.len());
            bytes[place] ^= 1 << chance.below(8);
        }
        1 if !bytes.is_empty() => {
            let place = chance.below(bytes.len());
            bytes[place] = chance.below(256) as u8;
        }
        2 => drop(bytes.drain(range)),
        3 => {
            let copy = bytes[range.clone()].to_vec();
            bytes.splice(range.start..range.start, copy);
        }
        4 => {
            let piece = &other[chance.range(other.len())];
            bytes.splice(range, piece.iter().copied());
        }
        5 => bytes.truncate(range.start),
        _ => {
            let piece = PIECES[chance.below(PIECES.len())];
            bytes.splice(range, piece.iter().copied());
        }
    }
}
