//! Makes transaction ids that nobody has used: UUIDs of version 7 (RFC 9562, section 5.7), time
//! first, so that neighbours in time are neighbours in the history. The system is asked for random
//! bits once a process and not once an id.

use std::cell::Cell;
use std::hash::{BuildHasher, Hasher};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use unanimity_core::{TransactionId, splitmix64};
use uuid::Builder;

/// An id of its own.
pub(crate) fn generate_id() -> TransactionId {
    named(&digits())
}

/// An id of its own that fits, by what `look_at` makes of all its digits but the last two: those
/// are changed until it does, which leaves it 66 random bits of 74. `None`: with none of them.
pub(crate) fn generate_id_where<F: Fn(&[u8]) -> bool>(
    look_at: impl FnOnce(&[u8]) -> F,
) -> Option<TransactionId> {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut digits = digits();
    let (start, end) = digits.split_at_mut(LENGTH - 2);
    let fits = look_at(start);
    let at = |digit| DIGITS.iter().position(|known| *known == digit).unwrap_or(0);
    let first = 16 * at(end[0]) + at(end[1]);
    let found = (first..first + 256).find(|number| {
        end.copy_from_slice(&[DIGITS[number / 16 % 16], DIGITS[number % 16]]);
        fits(end)
    });
    found.map(|_| named(&digits))
}

const LENGTH: usize = uuid::fmt::Simple::LENGTH;

fn digits() -> [u8; LENGTH] {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let millis = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    let [high, low] = random_bits();
    let mut bits = [0; 10];
    bits[..8].copy_from_slice(&high.to_le_bytes());
    bits[8..].copy_from_slice(&low.to_le_bytes()[..2]);
    let uuid = Builder::from_unix_timestamp_millis(millis, &bits).into_uuid();
    let mut digits = [0; LENGTH];
    uuid.simple().encode_lower(&mut digits);
    digits
}

fn named(digits: &[u8]) -> TransactionId {
    let id = std::str::from_utf8(digits).map(TransactionId::new);
    match id {
        Ok(Ok(id)) => id,
        _ => panic!("32 hexadecimal digits are a name, and not {digits:?}"),
    }
}

/// A thread takes one less at a time, as 0 says that it has none.
const COUNTS_TAKEN: u64 = 1 << 12;

/// Bits that come only once: a counter, and 128 bits of this process's own to hide it behind.
/// SplitMix64 is a bijection, so that no two counts of one process meet in either half.
pub(crate) fn random_bits() -> [u64; 2] {
    static SEED: OnceLock<(u64, u64)> = OnceLock::new();
    static TAKEN: AtomicU64 = AtomicU64::new(0);
    thread_local! {
        static COUNT: Cell<u64> = const { Cell::new(0) };
    }
    let (high, low) = SEED.get_or_init(|| uuid::Uuid::new_v4().as_u64_pair());
    let mut count = COUNT.get();
    if count.is_multiple_of(COUNTS_TAKEN) {
        // Each thread has many at a time: one count for all is carried from core to core.
        count = TAKEN.fetch_add(COUNTS_TAKEN, Ordering::Relaxed) + 1;
    }
    COUNT.set(count + 1);
    [splitmix64(high.wrapping_add(count)), splitmix64(low.wrapping_add(count))]
}

/// Hashes ids by the bits that they carry already, mixed with a number of this process's own: who
/// chooses ids cannot choose where they fall.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spread(u64);

impl Default for Spread {
    fn default() -> Self {
        Self(random_bits()[0])
    }
}

impl BuildHasher for Spread {
    type Hasher = SpreadHasher;

    fn build_hasher(&self) -> SpreadHasher {
        SpreadHasher(self.0)
    }
}

/// See [`Spread`].
#[derive(Debug)]
pub(crate) struct SpreadHasher(u64);

impl Hasher for SpreadHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, bits: u64) {
        self.0 = splitmix64(self.0 ^ bits);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_id_comes_twice_and_they_come_in_the_order_of_time() {
        let many = || -> Vec<TransactionId> { (0..50_000).map(|_| generate_id()).collect() };
        let other = std::thread::spawn(many);
        let (ids, others) = (many(), other.join().unwrap());
        let different: HashSet<&TransactionId, Spread> = ids.iter().chain(&others).collect();
        assert_eq!(different.len(), ids.len() + others.len());
        let times: Vec<&str> = ids.iter().map(|id| &id.as_str()[..12]).collect();
        assert!(times.is_sorted());
        assert!(ids.iter().all(|id| id.as_str().len() == 32 && &id.as_str()[12..13] == "7"));
    }
}
