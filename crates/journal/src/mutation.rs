//! Deliberate bugs, each behind a switch, that prove the simulator would notice one. The switch
//! exists only with the feature `mutations`, which no shipped program turns on.

/// One deliberate bug of a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mutation {
    /// A failed sync is tried again, and what the page cache then says is believed.
    FailedSyncRetried,
    /// What recovery has read is not made durable again.
    HardenSkipped,
    /// A batch that is not what was written is taken for sound.
    DamageOverlooked,
    /// An append does not mind that another coordinator has taken over.
    ConflictOverlooked,
}

impl Mutation {
    /// Every deliberate bug.
    pub const ALL: [Self; 4] = [
        Self::FailedSyncRetried,
        Self::HardenSkipped,
        Self::DamageOverlooked,
        Self::ConflictOverlooked,
    ];
}

/// The switch: at most one deliberate bug at a time, none in a shipped program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mutations {
    #[cfg(feature = "mutations")]
    active: Option<Mutation>,
}

impl Mutations {
    /// Switches one deliberate bug on.
    #[cfg(feature = "mutations")]
    #[must_use]
    pub const fn only(mutation: Mutation) -> Self {
        Self { active: Some(mutation) }
    }

    /// Says whether a deliberate bug is on.
    #[cfg(feature = "mutations")]
    #[must_use]
    pub fn has(self, mutation: Mutation) -> bool {
        self.active == Some(mutation)
    }

    /// Says whether a deliberate bug is on: never, in a shipped program.
    #[cfg(not(feature = "mutations"))]
    #[must_use]
    #[inline(always)]
    pub const fn has(self, _mutation: Mutation) -> bool {
        false
    }
}
