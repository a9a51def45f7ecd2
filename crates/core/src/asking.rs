//! Decides what an initiator does when a request to its coordinator has no usable answer: make the
//! same request again and when, ask what became of it, or give up; and whether it may have been
//! acted on all the same. It sends nothing and reads no clock: whoever asks does, in the SDK over
//! HTTP, in the simulator over a network that fails.
//!
//! Every request may be made again: a beginning has its transaction's id, an enlistment its
//! branch's name, and a word to commit or to roll back says the same the second time.

use crate::{Mutation, Mutations, RetryPolicy, splitmix64};

/// What is asked of the coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// To begin a transaction, under an id that the initiator has chosen.
    Begin,
    /// To add a branch, by its name.
    Enlist,
    /// To commit.
    Commit,
    /// To roll back.
    Rollback,
}

/// Why a request has no usable answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unheard<'a> {
    /// No whole answer came, or none that can be read: it may have been acted on.
    NoAnswer,
    /// The coordinator, or something before it, refused.
    Refused {
        /// The HTTP status.
        status: u16,
        /// The stable code; empty if the answer was not a coordinator's.
        code: &'a str,
    },
    /// It could not be sent.
    Unusable,
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AskNext {
    /// The same request again, after so many milliseconds.
    Again {
        /// How long to wait before.
        delay_ms: u64,
    },
    /// It is decided already: what was decided is to be asked for.
    AskStatus,
    /// Nothing more is asked.
    GiveUp {
        /// Whether this request, or an earlier one like it, may have been acted on.
        may_have_acted: bool,
    },
}

/// How long an initiator goes on asking. All times are in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AskPolicy {
    /// The first delay; it doubles, with jitter.
    pub delay_ms: u64,
    /// What the delay grows to.
    pub delay_max_ms: u64,
    /// So long after the first request no further one is made; 0: each is made once.
    pub patience_ms: u64,
    /// A deliberate bug for the checkers; none in a shipped program.
    pub mutations: Mutations,
}

impl Default for AskPolicy {
    fn default() -> Self {
        Self {
            delay_ms: 50,
            delay_max_ms: 2_000,
            patience_ms: 10_000,
            mutations: Mutations::default(),
        }
    }
}

/// One request on its way to an answer, over as many attempts as it takes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Asking {
    policy: AskPolicy,
    seed: u64,
    failures: u16,
    is_unanswered: bool,
}

impl Asking {
    /// Before the first attempt. The seed spreads the jitter.
    #[must_use]
    pub const fn new(policy: AskPolicy, seed: u64) -> Self {
        Self { policy, seed, failures: 0, is_unanswered: false }
    }

    /// An attempt has failed, so many milliseconds after the first was made.
    pub fn failed(&mut self, asked: Asked, unheard: Unheard<'_>, elapsed_ms: u64) -> AskNext {
        self.is_unanswered |= unheard == Unheard::NoAnswer;
        if asks_status(asked, unheard) {
            return AskNext::AskStatus;
        }
        if !passes(unheard) {
            return self.give_up(unheard);
        }
        self.failures = self.failures.saturating_add(1);
        let delay_ms = self.delay_ms();
        if elapsed_ms.saturating_add(delay_ms) > self.policy.patience_ms {
            return self.give_up(unheard);
        }
        AskNext::Again { delay_ms }
    }

    /// An earlier attempt may have been acted on, whatever the last one was told.
    fn give_up(&self, last: Unheard<'_>) -> AskNext {
        let mutations = self.policy.mutations;
        let may_have_acted = if mutations.has(Mutation::EarlierSilenceForgotten) {
            last == Unheard::NoAnswer
        } else {
            self.is_unanswered && !mutations.has(Mutation::SilenceTakenForRefusal)
        };
        AskNext::GiveUp { may_have_acted }
    }

    fn delay_ms(&self) -> u64 {
        let retry = RetryPolicy {
            delay_ms: self.policy.delay_ms,
            delay_max_ms: self.policy.delay_max_ms,
            ..RetryPolicy::default()
        };
        let random = splitmix64(self.seed.wrapping_add(u64::from(self.failures)));
        retry.delay_unparked(self.failures, random)
    }
}

/// Whether what became of it is known at the coordinator, and is to be asked for: the word to
/// commit or to roll back came too late, or a second time after the answer to the first was lost.
#[must_use]
pub fn asks_status(asked: Asked, unheard: Unheard<'_>) -> bool {
    let closes = matches!(asked, Asked::Commit | Asked::Rollback);
    closes && matches!(unheard, Unheard::Refused { code: "already_decided", .. })
}

/// Whether the same request may have an answer later: silence, too much to do, a restart.
const fn passes(unheard: Unheard<'_>) -> bool {
    match unheard {
        Unheard::NoAnswer => true,
        Unheard::Refused { status, .. } => matches!(status, 408 | 429 | 500 | 502 | 503 | 504),
        Unheard::Unusable => false,
    }
}

/// How often an initiator calls a participant for its own phase-one work before it gives up.
pub const OWN_WORK_ATTEMPTS_MAX: u32 = 3;
/// The pause after the first such call without a decisive answer, in milliseconds; it grows by as
/// much each time.
const OWN_WORK_PAUSE_MS: u64 = 50;

/// When an initiator calls again after so many calls without a decisive answer; `None`: not again.
#[must_use]
pub fn own_work_again_ms(attempts: u32) -> Option<u64> {
    (attempts < OWN_WORK_ATTEMPTS_MAX).then(|| OWN_WORK_PAUSE_MS * u64::from(attempts))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUSY: Unheard<'_> = Unheard::Refused { status: 429, code: "at_capacity" };
    const STOPPING: Unheard<'_> = Unheard::Refused { status: 503, code: "stopping" };
    const DECIDED: Unheard<'_> = Unheard::Refused { status: 409, code: "already_decided" };
    const REUSED: Unheard<'_> = Unheard::Refused { status: 422, code: "id_reused" };

    fn asking() -> Asking {
        Asking::new(AskPolicy::default(), 7)
    }

    fn again(next: AskNext) -> u64 {
        match next {
            AskNext::Again { delay_ms } => delay_ms,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn silence_and_what_passes_are_asked_again_ever_more_slowly() {
        let mut asking = asking();
        let kinds = [Unheard::NoAnswer, BUSY, STOPPING, Unheard::NoAnswer];
        let delays = kinds.map(|unheard| again(asking.failed(Asked::Begin, unheard, 0)));
        for (delay, most) in delays.into_iter().zip([50, 100, 200, 400]) {
            assert!((most / 2..=most).contains(&delay), "{delays:?}");
        }
        for _ in 0..20 {
            assert!(again(asking.failed(Asked::Begin, BUSY, 0)) <= 2_000);
        }
    }

    #[test]
    fn what_stays_wrong_is_not_asked_again() {
        for unheard in [REUSED, Unheard::Unusable] {
            let next = asking().failed(Asked::Begin, unheard, 0);
            assert_eq!(next, AskNext::GiveUp { may_have_acted: false }, "{unheard:?}");
        }
    }

    #[test]
    fn patience_has_an_end_and_what_was_unanswered_once_stays_unknown() {
        let mut asking = asking();
        again(asking.failed(Asked::Commit, BUSY, 1_000));
        let unsure = AskNext::GiveUp { may_have_acted: true };
        assert_eq!(asking.clone().failed(Asked::Commit, Unheard::NoAnswer, 10_000), unsure);
        let sure = AskNext::GiveUp { may_have_acted: false };
        assert_eq!(asking.failed(Asked::Commit, BUSY, 10_000), sure);
        again(asking.failed(Asked::Commit, Unheard::NoAnswer, 2_000));
        assert_eq!(asking.failed(Asked::Commit, BUSY, 10_000), unsure);
        let once = AskPolicy { patience_ms: 0, ..AskPolicy::default() };
        let next = Asking::new(once, 7).failed(Asked::Commit, BUSY, 0);
        assert_eq!(next, AskNext::GiveUp { may_have_acted: false });
    }

    #[test]
    fn whoever_comes_too_late_asks_what_was_decided() {
        for asked in [Asked::Commit, Asked::Rollback] {
            assert_eq!(asking().failed(asked, DECIDED, 0), AskNext::AskStatus);
        }
        let next = asking().failed(Asked::Enlist, DECIDED, 0);
        assert_eq!(next, AskNext::GiveUp { may_have_acted: false });
    }

    #[test]
    fn own_work_is_called_for_a_few_times() {
        let pauses: Vec<_> = (1..=OWN_WORK_ATTEMPTS_MAX).map(own_work_again_ms).collect();
        assert_eq!(pauses, [Some(50), Some(100), None]);
    }
}
