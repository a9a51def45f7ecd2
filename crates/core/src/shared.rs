//! What many transactions have in common is kept once: their options, and what was planned for
//! their branches but for the payloads. It only saves memory, and so the time to fetch it; nothing
//! is decided by it.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use crate::branch::Branch;
use crate::ids::spread;
use crate::{BranchPlan, Options};

/// How many texts are remembered, and how many plans, at most one of those that fall into the same
/// place.
const PLACES: u64 = 1_024;
/// Longer texts are nobody else's.
const TEXT_BYTES_MAX: usize = 256;

/// What was met lately. It is no part of a coordinator's state: every one equals every other, and a
/// copy starts empty.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    options: Option<Arc<Options>>,
    texts: Vec<Option<Arc<str>>>,
    plans: Vec<Option<Arc<BranchPlan>>>,
}

impl Shared {
    /// These options, shared with the transaction before if it had the same.
    pub(crate) fn options(&mut self, options: &Options) -> Arc<Options> {
        match &self.options {
            Some(known) if **known == *options => Arc::clone(known),
            Some(_) | None => Arc::clone(self.options.insert(Arc::new(options.clone()))),
        }
    }

    /// A branch that is on record, which shares what was planned for it with others.
    pub(crate) fn branch(&mut self, plan: &BranchPlan) -> Branch {
        Branch::sharing(self.plan(plan), Arc::clone(&plan.payload))
    }

    /// This plan without its payload, shared with those before if one of them was the same.
    pub(crate) fn plan(&mut self, plan: &BranchPlan) -> Arc<BranchPlan> {
        let spread = spread(&plan.name).rotate_left(32) ^ spread(&plan.participant);
        let place = (spread % PLACES) as usize;
        if let Some(Some(known)) = self.plans.get(place)
            && is_same(known, plan)
        {
            return Arc::clone(known);
        }
        let new = Arc::new(BranchPlan {
            name: self.known_or(&plan.name, || Arc::clone(&plan.name)),
            participant: self.known_or(&plan.participant, || Arc::clone(&plan.participant)),
            payload: Arc::default(),
            ..plan.clone()
        });
        if plan.name.len().max(plan.participant.len()) <= TEXT_BYTES_MAX {
            self.plans.resize(PLACES as usize, None);
            self.plans[place] = Some(Arc::clone(&new));
        }
        new
    }

    /// This text, shared with those before if one of them was the same.
    pub(crate) fn text(&mut self, text: &str) -> Arc<str> {
        self.known_or(text, || Arc::from(text))
    }

    fn known_or(&mut self, text: &str, new: impl FnOnce() -> Arc<str>) -> Arc<str> {
        if text.len() > TEXT_BYTES_MAX {
            return new();
        }
        if self.texts.is_empty() {
            self.texts.resize(PLACES as usize, None);
        }
        let place = &mut self.texts[(spread(text) % PLACES) as usize];
        match place {
            Some(known) if **known == *text => Arc::clone(known),
            Some(_) | None => Arc::clone(place.insert(new())),
        }
    }
}

/// Whether two plans say the same, but for the payload.
fn is_same(one: &BranchPlan, other: &BranchPlan) -> bool {
    let BranchPlan {
        name,
        participant,
        kind,
        after,
        payload: _,
        payload_in_phase_two,
        by_initiator,
        delay_ms,
        also_on_rollback,
        comes_last,
        refers,
    } = one;
    *name == other.name
        && *participant == other.participant
        && (*kind, *delay_ms) == (other.kind, other.delay_ms)
        && (*payload_in_phase_two, *by_initiator)
            == (other.payload_in_phase_two, other.by_initiator)
        && (*also_on_rollback, *comes_last) == (other.also_on_rollback, other.comes_last)
        && (after, refers) == (&other.after, &other.refers)
}

impl Clone for Shared {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl PartialEq for Shared {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Shared {}

impl Hash for Shared {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kind;

    #[test]
    fn what_is_equal_is_kept_once_and_other_things_as_they_are() {
        let mut shared = Shared::default();
        let plan = |name: &str| BranchPlan {
            payload: [7].into(),
            ..BranchPlan::new(name, "http://bank/", Kind::TwoPhase)
        };
        let (first, second) = (shared.branch(&plan("debit")), shared.branch(&plan("debit")));
        assert!(Arc::ptr_eq(&first.plan, &second.plan));
        let other_name = shared.branch(&plan("credit"));
        assert!(Arc::ptr_eq(&first.plan.participant, &other_name.plan.participant));
        assert_eq!((first.whole_plan(), first.plan.payload.len()), (plan("debit"), 0));
        let others = [
            BranchPlan { participant: "http://shop/".into(), ..plan("debit") },
            BranchPlan { kind: Kind::Compensable, ..plan("debit") },
            BranchPlan { after: [0].into(), ..plan("debit") },
            BranchPlan { payload_in_phase_two: true, ..plan("debit") },
            BranchPlan { by_initiator: true, ..plan("debit") },
            BranchPlan { delay_ms: 7, ..plan("debit") },
            BranchPlan { also_on_rollback: true, ..plan("debit") },
            BranchPlan { comes_last: true, ..plan("debit") },
            BranchPlan { refers: [0].into(), ..plan("debit") },
            BranchPlan { payload: [8].into(), ..plan("debit") },
        ];
        for other in &others {
            shared.branch(&plan("debit"));
            assert_eq!(shared.branch(other).whole_plan(), *other);
        }
        for number in 0..3 * PLACES {
            let name = format!("n{number}");
            assert_eq!(*shared.branch(&plan(&name)).plan.name, *name);
            assert_eq!(*shared.text(&name), *name);
        }
        assert!(Arc::ptr_eq(&shared.text("n7"), &shared.text("n7")));
        let long = "x".repeat(TEXT_BYTES_MAX + 1);
        assert_eq!(shared.branch(&plan(&long)).whole_plan(), plan(&long));

        let usual = shared.options(&Options::default());
        assert!(Arc::ptr_eq(&usual, &shared.options(&Options::default())));
        let other = Options { timeout_ms: 7, ..Options::default() };
        assert_eq!(*shared.options(&other), other);
    }
}
