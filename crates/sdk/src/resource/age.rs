//! Decides which of two transactions is the older one: a total order that every participant finds
//! alike without asking anybody, because it depends on nothing but the transaction's id and, where
//! there is one, the time that its initiator gives.

use std::cmp::Ordering;

use unanimity_core::TransactionId;

/// How old a transaction is. The smaller one is the older one.
///
/// Born is, in this order of preference:
/// 1. the time that the plan names ([`super::Plan::since_ms`]): when the initiator first began this
///    work. One that begins it anew after a rollback names the first time again, and so grows older
///    until nobody is older;
/// 2. the time inside the id, if it is a UUID of version 7, as the ids that a coordinator makes up
///    are;
/// 3. nothing: an id that the initiator has chosen tells no time, and counts as younger than all
///    that do.
///
/// The ids themselves, as texts, decide among equals. So the order is total whatever the ids look
/// like, and an initiator that chooses ids which sort by time gets the order by time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Age {
    born_ms: i64,
    transaction: TransactionId,
}

impl Ord for Age {
    /// Ids have an order of their own, which is quick and means nothing.
    fn cmp(&self, other: &Self) -> Ordering {
        let names = || self.transaction.as_str().cmp(other.transaction.as_str());
        self.born_ms.cmp(&other.born_ms).then_with(names)
    }
}

impl PartialOrd for Age {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Age {
    /// The age of a transaction.
    #[must_use]
    pub fn of(transaction: &TransactionId, since_ms: Option<u64>) -> Self {
        let born_ms = since_ms.or_else(|| version_7_ms(transaction.as_str()));
        let born_ms = born_ms.and_then(|ms| i64::try_from(ms).ok()).unwrap_or(i64::MAX);
        Self { born_ms, transaction: transaction.clone() }
    }

    /// An age as it was stored.
    pub(super) const fn stored(born_ms: i64, transaction: TransactionId) -> Self {
        Self { born_ms, transaction }
    }

    /// The number to store beside the transaction's id.
    pub(super) const fn born_ms(&self) -> i64 {
        self.born_ms
    }

    /// Of which transaction.
    pub(super) const fn transaction(&self) -> &TransactionId {
        &self.transaction
    }

    /// Whether this transaction is the older one.
    #[must_use]
    pub fn is_older_than(&self, other: &Self) -> bool {
        self < other
    }
}

/// The milliseconds in a UUID of version 7; none in anything else.
fn version_7_ms(id: &str) -> Option<u64> {
    let bytes = id.as_bytes();
    let dashed = bytes.len() == 36 && [8, 13, 18, 23].iter().all(|place| bytes[*place] == b'-');
    let digits = bytes.iter().filter(|byte| byte.is_ascii_hexdigit()).count();
    if !dashed || digits != 32 || bytes[14] != b'7' {
        return None;
    }
    let (high, low) = (id.get(..8)?, id.get(9..13)?);
    u64::from_str_radix(&format!("{high}{low}"), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn age(id: &str, since_ms: Option<u64>) -> Age {
        Age::of(&TransactionId::new(id).unwrap(), since_ms)
    }

    fn check(older: (&str, Option<u64>), younger: (&str, Option<u64>)) {
        let (older, younger) = (age(older.0, older.1), age(younger.0, younger.1));
        assert!(older.is_older_than(&younger), "{older:?} {younger:?}");
        assert!(!younger.is_older_than(&older), "{older:?} {younger:?}");
    }

    const EARLY: &str = "01890a5d-ac96-774b-bcce-b302099a8057";
    const LATE: &str = "01890a5d-ac97-0000-bcce-b302099a8057";
    const LATE_7: &str = "01890a5d-ac97-7000-8000-000000000000";

    #[test]
    fn ages_are_one_total_order() {
        check((EARLY, None), (LATE_7, None));
        check((EARLY, None), (LATE, None)); // Version 0 tells no time.
        check((EARLY, None), ("aaa", None));
        check(("aaa", None), ("aab", None));
        check(("zzz", Some(5)), ("aaa", Some(6)));
        check(("aaa", Some(5)), ("zzz", Some(5)));
        check((LATE_7, Some(1)), (EARLY, None));
        check((EARLY, None), (LATE_7, Some(u64::MAX)));
        let same = age("a", None);
        assert!(!same.is_older_than(&same));
    }

    #[test]
    fn only_a_uuid_of_version_7_tells_a_time() {
        assert_eq!(version_7_ms(EARLY), Some(0x0189_0a5d_ac96));
        for id in [LATE, "", "7", "01890a5dac96774bbcceb302099a8057", "zz890a5d-ac96-774b-bcce-b3"]
        {
            assert_eq!(version_7_ms(id), None, "{id}");
        }
    }
}
