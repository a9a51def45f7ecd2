//! Names where a transaction may stand. Where one stands is `Transaction::stage`'s.

/// Where a transaction stands, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// Interactive: branches may be enlisted; the initiator's word is awaited.
    Open,
    /// Prepares are on their way.
    Preparing,
    /// Every prepare has voted; compensable branches execute.
    Executing,
    /// Its time is over, and one participant alone knows how it ends: that one is asked.
    Settling,
    /// Decided to commit, not yet complete.
    Committing,
    /// Decided to roll back, not yet complete.
    RollingBack,
    /// The program broke on it so often that it is left alone until somebody has it taken up again.
    SetAside,
    /// Complete.
    Ended,
}

impl Stage {
    /// Every stage, in the order in which a transaction may pass through them.
    pub const ALL: [Self; 8] = [
        Self::Open,
        Self::Preparing,
        Self::Executing,
        Self::Settling,
        Self::Committing,
        Self::RollingBack,
        Self::SetAside,
        Self::Ended,
    ];

    /// The word on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Preparing => "preparing",
            Self::Executing => "executing",
            Self::Settling => "settling",
            Self::Committing => "committing",
            Self::RollingBack => "rolling_back",
            Self::SetAside => "set_aside",
            Self::Ended => "ended",
        }
    }

    /// Whether a transaction that stands here has not ended.
    #[must_use]
    pub const fn is_live(self) -> bool {
        !matches!(self, Self::Ended)
    }

    /// Whether a branch that fails for long is parked here: where nothing can be decided, or ended,
    /// without its participant.
    #[must_use]
    pub const fn may_park(self) -> bool {
        match self {
            Self::Settling | Self::Committing | Self::RollingBack => true,
            Self::Open | Self::Preparing | Self::Executing | Self::SetAside | Self::Ended => false,
        }
    }
}
