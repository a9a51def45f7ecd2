//! Which transactions a list shows, and where its next page begins: latest first, by the time they
//! began and then by id.

use unanimity_core::Transaction;

/// What a list is limited to; everything that is `None` limits nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// `preparing`, `executing`, `committing`, `rolling_back`, `set_aside` or `ended`.
    pub stage: Option<String>,
    /// `commit` or `rollback`.
    pub outcome: Option<String>,
    /// An exact participant address.
    pub participant: Option<String>,
    /// Begun at or after this time.
    pub begun_from_ms: Option<u64>,
    /// Begun before this time.
    pub begun_until_ms: Option<u64>,
    /// Only what comes after this place.
    pub cursor: Option<Cursor>,
    /// Whether timelines are wanted too.
    pub with_timeline: bool,
}

/// A place in a list: the last transaction that was shown.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cursor {
    /// When it began.
    pub begun_at_ms: u64,
    /// Its id.
    pub id: String,
}

impl Cursor {
    /// The place before everything.
    pub(crate) fn latest() -> Self {
        Self { begun_at_ms: u64::MAX, id: String::new() }
    }

    /// A cursor from the text that [`std::fmt::Display`] writes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (begun_at_ms, id) = text.split_once('.')?;
        unanimity_core::check_id(id).ok()?;
        Some(Self { begun_at_ms: begun_at_ms.parse().ok()?, id: id.to_owned() })
    }
}

impl std::fmt::Display for Cursor {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}.{}", self.begun_at_ms, self.id)
    }
}

impl Filter {
    /// Whether a live transaction passes.
    pub(crate) fn passes(&self, transaction: &Transaction) -> bool {
        let wanted = |want: &Option<String>, have: Option<&str>| {
            want.as_deref().is_none_or(|want| Some(want) == have)
        };
        let participant = self.participant.as_deref().is_none_or(|participant| {
            transaction.branches.iter().any(|branch| &*branch.plan.participant == participant)
        });
        let place = (transaction.begun_at, transaction.id.as_str());
        wanted(&self.stage, Some(transaction.stage().as_str()))
            && wanted(&self.outcome, transaction.outcome().map(|outcome| outcome.as_str()))
            && participant
            && self.begun_from_ms.is_none_or(|from| transaction.begun_at >= from)
            && self.begun_until_ms.is_none_or(|until| transaction.begun_at < until)
            && self.cursor.as_ref().is_none_or(|at| place < (at.begun_at_ms, at.id.as_str()))
    }
}
