//! Decides how a service says what a branch needs and what it changes: the plan (which keys, and
//! how), the values that were read for it, the change that follows from them, and the words in
//! which a conflict is refused.

use std::collections::BTreeMap;

use rusqlite::types::Value;

/// What a branch does with a key. Numbers are for storage and are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Access {
    /// Reads it: others may read it as well, and nobody may change it.
    Read = 1,
    /// May change it: nobody else may even read it in a branch of theirs.
    Write = 2,
}

impl Access {
    pub(super) const fn from_number(number: i64) -> Option<Self> {
        Some(match number {
            1 => Self::Read,
            2 => Self::Write,
            _ => return None,
        })
    }

    /// Whether two branches cannot both have the key in these ways.
    pub(super) const fn excludes(self, other: Self) -> bool {
        matches!(self, Self::Write) || matches!(other, Self::Write)
    }
}

/// Which keys a branch touches, all of them, before anything is read.
///
/// A key is any text that the service likes; a lock on it means nothing else than that. Named both
/// for reading and for writing, it is taken for writing from the start, so no lock is ever
/// upgraded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub(super) keys: BTreeMap<String, Access>,
    pub(super) versions: BTreeMap<String, i64>,
    pub(super) since_ms: Option<u64>,
}

impl Plan {
    /// A plan without a key yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads a key.
    #[must_use]
    pub fn reads(mut self, key: impl Into<String>) -> Self {
        self.keys.entry(key.into()).or_insert(Access::Read);
        self
    }

    /// Reads a key and may change it.
    #[must_use]
    pub fn writes(mut self, key: impl Into<String>) -> Self {
        self.keys.insert(key.into(), Access::Write);
        self
    }

    /// Reads a key, and goes on only if it is still at the version that the initiator has read.
    /// Call [`Plan::writes`] too if it may be changed.
    #[must_use]
    pub fn expects(mut self, key: impl Into<String>, version: i64) -> Self {
        let key = key.into();
        self.versions.insert(key.clone(), version);
        self.reads(key)
    }

    /// When the initiator first began this work, in milliseconds since the Unix epoch; see
    /// [`super::Age`]. Every branch of a transaction must be given the same.
    #[must_use]
    pub const fn since_ms(mut self, since_ms: u64) -> Self {
        self.since_ms = Some(since_ms);
        self
    }
}

/// What the keys of a plan hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Values(pub(super) BTreeMap<String, (Value, i64)>);

impl Values {
    /// A key's value; [`Value::Null`] if it has none, or if the plan does not name it.
    #[must_use]
    pub fn get(&self, key: &str) -> &Value {
        self.0.get(key).map_or(&Value::Null, |(value, _)| value)
    }

    /// A key's value, if it is a whole number.
    #[must_use]
    pub fn integer(&self, key: &str) -> Option<i64> {
        match self.get(key) {
            Value::Integer(number) => Some(*number),
            Value::Null | Value::Real(_) | Value::Text(_) | Value::Blob(_) => None,
        }
    }

    /// How often a key was changed; 0 if the plan does not name it.
    #[must_use]
    pub fn version(&self, key: &str) -> i64 {
        self.0.get(key).map_or(0, |(_, version)| *version)
    }
}

/// Keys and their new values; [`Value::Null`] takes a key away.
pub type Writes = Vec<(String, Value)>;

/// What follows from the values that were read.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// These keys get these values. Keys that the plan names and that are not here stay as they
    /// are.
    Write(Writes),
    /// The same, with a result for the initiator, as [`crate::Vote::YesWith`].
    WriteWith(Writes, serde_json::Value),
    /// No, with the reason that reaches the initiator.
    No(String),
}

impl Change {
    /// A no with its reason.
    #[must_use]
    pub fn no(reason: impl Into<String>) -> Self {
        Self::No(reason.into())
    }
}

/// Why a branch was refused for somebody else's sake. The reason of the no begins with the stable
/// code, a colon and a space; [`Conflict::of`] reads it back.
///
/// All of them but the last pass: the same work, begun as a new transaction, may succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Conflict {
    /// A transaction holds the key that this one must not wait for; see
    /// [`super::WaitOrder`].
    LockConflict,
    /// The key was not free in time.
    LockTimeout,
    /// Another transaction that is prepared holds the key, and nobody waits here.
    WriteConflict,
    /// The key was changed since the initiator read it.
    VersionConflict,
    /// Another branch of the very same transaction holds the key: one branch must do both.
    SameTransaction,
}

impl Conflict {
    /// Every conflict.
    pub const ALL: [Self; 5] = [
        Self::LockConflict,
        Self::LockTimeout,
        Self::WriteConflict,
        Self::VersionConflict,
        Self::SameTransaction,
    ];

    /// The stable code.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::LockConflict => "lock_conflict",
            Self::LockTimeout => "lock_timeout",
            Self::WriteConflict => "write_conflict",
            Self::VersionConflict => "version_conflict",
            Self::SameTransaction => "same_transaction",
        }
    }

    /// The conflict that a no's reason tells of, if it tells of one.
    #[must_use]
    pub fn of(reason: &str) -> Option<Self> {
        let (code, _) = reason.split_once(": ")?;
        Self::ALL.into_iter().find(|conflict| conflict.code() == code)
    }

    pub(super) fn reason(self, key: &str) -> String {
        let what = match self {
            Self::LockConflict => "is held by a transaction that this one must not wait for",
            Self::LockTimeout => "was held for too long",
            Self::WriteConflict => "is held by a transaction that is prepared",
            Self::VersionConflict => "was changed since it was read",
            Self::SameTransaction => "is held by another branch of this transaction",
        };
        format!("{}: {key:?} {what}", self.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_planned_in_its_strongest_way() {
        let strongest = |plan: Plan| plan.keys["k"];
        assert_eq!(strongest(Plan::new().reads("k").writes("k")), Access::Write);
        assert_eq!(strongest(Plan::new().writes("k").reads("k")), Access::Write);
        assert_eq!(strongest(Plan::new().writes("k").expects("k", 3)), Access::Write);
        assert_eq!(strongest(Plan::new().expects("k", 3)), Access::Read);
    }

    #[test]
    fn a_conflict_is_read_back_from_its_reason() {
        for conflict in Conflict::ALL {
            assert_eq!(Conflict::of(&conflict.reason("a: b")), Some(conflict));
        }
        assert_eq!(Conflict::of("A-1 has 3 cents free; 5 are needed"), None);
        assert_eq!(Conflict::of("lock_conflict"), None);
    }
}
