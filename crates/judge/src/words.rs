//! The core's words as JSON strings: the same words as on the wire.

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serializer};
use unanimity_core::guard::GuardState;
use unanimity_core::{Kind, Operation, Outcome};

const KINDS: [Kind; 4] = [Kind::TwoPhase, Kind::Compensable, Kind::Deferred, Kind::Local];

fn word<'de, D: Deserializer<'de>, T: Copy>(
    from: D,
    all: &[T],
    name: fn(T) -> &'static str,
) -> Result<T, D::Error> {
    let found = String::deserialize(from)?;
    let known = all.iter().copied().find(|one| name(*one) == found);
    known.ok_or_else(|| {
        let names: Vec<&str> = all.iter().map(|one| name(*one)).collect();
        D::Error::custom(format!("{found:?} is none of {}", names.join(", ")))
    })
}

pub(crate) mod kind {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(kind: &Kind, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(kind.as_str())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Kind, D::Error> {
        word(from, &KINDS, Kind::as_str)
    }
}

pub(crate) mod operation {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(one: &Operation, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(one.as_str())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Operation, D::Error> {
        word(from, &Operation::ALL, Operation::as_str)
    }
}

pub(crate) mod outcome {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(one: &Outcome, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(one.as_str())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Outcome, D::Error> {
        word(from, &[Outcome::Commit, Outcome::Rollback], Outcome::as_str)
    }
}

pub(crate) mod maybe_outcome {
    use super::*;

    #[derive(Deserialize)]
    struct One(#[serde(with = "super::outcome")] Outcome);

    #[expect(clippy::ref_option, reason = "serde asks for this form")]
    pub(crate) fn serialize<S: Serializer>(
        one: &Option<Outcome>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        match one {
            Some(outcome) => to.serialize_str(outcome.as_str()),
            None => to.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D>(from: D) -> Result<Option<Outcome>, D::Error>
    where
        D: Deserializer<'de>,
    {
        Ok(Option::<One>::deserialize(from)?.map(|one| one.0))
    }
}

pub(crate) mod state {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(one: &GuardState, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(state_word(*one))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<GuardState, D::Error> {
        let all: Vec<GuardState> = (1..=u8::MAX).map_while(GuardState::from_number).collect();
        word(from, &all, state_word)
    }
}

/// The word for where a branch stands at its participant.
#[must_use]
pub const fn state_word(state: GuardState) -> &'static str {
    match state {
        GuardState::Prepared => "prepared",
        GuardState::Committed => "committed",
        GuardState::RolledBack => "rolled_back",
        GuardState::VotedNo => "voted_no",
        GuardState::ReadOnly => "read_only",
        GuardState::Executed => "executed",
        GuardState::Compensated => "compensated",
    }
}
