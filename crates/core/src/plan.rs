//! Decides which transactions may begin at all: the plan's shape, its limits, and the static checks
//! that refuse an unsafe plan before anything is sent. What happens to a good plan is
//! `coordinator`'s.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use crate::ids::check_id;
use crate::{Kind, Options, safety};

/// The most branches that one transaction may have.
pub const BRANCHES_MAX: usize = 256;
/// The most bytes that one branch's payload may have.
pub const PAYLOAD_BYTES_MAX: usize = 1024 * 1024;
/// The most bytes that the payloads of all branches may have together: a transaction's beginning is
/// one record, and a record must have room in one batch of the journal.
pub const PAYLOADS_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The most bytes of a branch's result that are kept; a longer one is dropped, never cut.
pub const RESULT_BYTES_MAX: usize = 64 * 1024;
/// The longest timeout that may be asked for, in milliseconds: 30 days.
pub const TIMEOUT_MS_MAX: u64 = 30 * 24 * 3600 * 1000;
/// The most bytes of a participant's reason or error text that are kept; the rest is cut off.
pub const REASON_BYTES_MAX: usize = 512;
/// The most bytes of a participant's address.
pub const PARTICIPANT_BYTES_MAX: usize = 2048;

/// One participant's part in a transaction, as the initiator asks for it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BranchPlan {
    /// The branch's name, unique within its transaction.
    pub name: Arc<str>,
    /// Where the participant is: opaque to the core, an URL for HTTP.
    pub participant: Arc<str>,
    /// What sort of promise it makes.
    pub kind: Kind,
    /// The branches (by their place in the plan) that must have voted yes or executed before.
    pub after: Box<[u16]>,
    /// What the participant is given; opaque.
    pub payload: Arc<[u8]>,
    /// Whether commit and rollback carry the payload too.
    pub payload_in_phase_two: bool,
    /// Whether the initiator does the phase-one work itself (TCC's try). It must not start before
    /// the branch is on record. Never for a deferred branch, always for a local one.
    pub by_initiator: bool,
    /// For a deferred branch: not before this long after the decision, in milliseconds.
    pub delay_ms: u64,
    /// For a deferred branch: it is executed after a rollback too, when everything is undone.
    pub also_on_rollback: bool,
    /// For a deferred branch: it is executed when every other branch is done, also those that are
    /// enlisted after it.
    pub comes_last: bool,
    /// The branches (by number) whose results the payload refers to.
    pub refers: Box<[u16]>,
}

impl BranchPlan {
    /// A branch that asks for nothing special, to be changed by struct update.
    #[must_use]
    pub fn new(name: impl Into<Arc<str>>, participant: impl Into<Arc<str>>, kind: Kind) -> Self {
        Self {
            name: name.into(),
            participant: participant.into(),
            kind,
            after: Box::default(),
            payload: Arc::from(&[][..]),
            payload_in_phase_two: false,
            by_initiator: kind == Kind::Local,
            delay_ms: 0,
            also_on_rollback: false,
            comes_last: false,
            refers: Box::default(),
        }
    }
}

/// A transaction as the initiator asks for it: whole, or the beginning of an interactive one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Plan {
    /// Whether it is interactive: branches may be enlisted until the initiator asks to commit.
    pub open: bool,
    /// Its branches; their places are their numbers.
    pub branches: Vec<BranchPlan>,
    /// How long it waits for what.
    pub options: Options,
}

/// Why a plan was refused: a stable code, the field at fault, and what could go wrong.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PlanError {
    /// Stable, snake case; each has a page in the error reference.
    pub code: &'static str,
    /// Where in the request, such as `branches[2].after`.
    pub field: String,
    /// What is wrong and what to do about it.
    pub message: String,
}

impl fmt::Display for PlanError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.field, self.message)
    }
}

impl std::error::Error for PlanError {}

pub(crate) fn error(
    code: &'static str,
    field: impl Into<String>,
    message: impl Into<String>,
) -> PlanError {
    PlanError { code, field: field.into(), message: message.into() }
}

impl Plan {
    /// Says whether this plan may begin. Call it before anything is recorded or sent.
    ///
    /// # Errors
    /// The first thing wrong, by these codes: `no_branches`, `too_many_branches`,
    /// `branch_name_invalid`, `branch_name_repeated`, `participant_invalid`, `payload_too_large`,
    /// `after_unknown`, `after_itself`, `after_cycle`, `after_unsafe`, `phase_one_by_unsafe`,
    /// `deferred_only`, `local_unsafe`, `reference_unknown`, `reference_unsafe`, `timeout_invalid`.
    pub fn check(&self) -> Result<(), PlanError> {
        let branches: Vec<&BranchPlan> = self.branches.iter().collect();
        check_branches(self.open, &branches)?;
        self.options.check()
    }
}

/// Says whether these branches may be in one transaction.
pub(crate) fn check_branches(open: bool, branches: &[&BranchPlan]) -> Result<(), PlanError> {
    if branches.is_empty() && !open {
        return Err(error("no_branches", "branches", "a transaction needs at least one branch"));
    }
    if branches.len() > BRANCHES_MAX {
        let found = branches.len();
        let message = format!("has {found} branches; at most {BRANCHES_MAX} are allowed");
        return Err(error("too_many_branches", "branches", message));
    }
    check_names(branches)?;
    for (index, branch) in branches.iter().enumerate() {
        check_branch(open, branches, index, branch)?;
    }
    check_payloads(branches)?;
    check_no_cycle(branches)?;
    safety::check_local(branches)?;
    safety::check_references(branches)
}

/// With so few branches each name is compared with all before it: no set is made for them.
const FEW_BRANCHES: usize = 8;

fn check_payloads(branches: &[&BranchPlan]) -> Result<(), PlanError> {
    let bytes: usize = branches.iter().map(|branch| branch.payload.len()).sum();
    if bytes <= PAYLOADS_BYTES_MAX {
        return Ok(());
    }
    let message = format!(
        "the payloads have {bytes} bytes together; at most {PAYLOADS_BYTES_MAX} are allowed"
    );
    Err(error("payload_too_large", "branches", message))
}

fn check_names(branches: &[&BranchPlan]) -> Result<(), PlanError> {
    let mut seen = BTreeSet::new();
    for (index, branch) in branches.iter().enumerate() {
        let field = || format!("branches[{index}].name");
        if let Err(reason) = check_id(&branch.name) {
            return Err(error("branch_name_invalid", field(), reason.to_string()));
        }
        let repeated = if branches.len() <= FEW_BRANCHES {
            branches[..index].iter().any(|before| before.name == branch.name)
        } else {
            !seen.insert(&branch.name)
        };
        if repeated {
            let message = format!("the name {:?} is used twice", branch.name);
            return Err(error("branch_name_repeated", field(), message));
        }
    }
    Ok(())
}

fn check_branch(
    open: bool,
    branches: &[&BranchPlan],
    index: usize,
    branch: &BranchPlan,
) -> Result<(), PlanError> {
    let field = |name: &str| format!("branches[{index}].{name}");
    if branch.participant.is_empty() || branch.participant.len() > PARTICIPANT_BYTES_MAX {
        let message = format!("must have 1 to {PARTICIPANT_BYTES_MAX} bytes");
        return Err(error("participant_invalid", field("participant"), message));
    }
    if branch.payload.len() > PAYLOAD_BYTES_MAX {
        let bytes = branch.payload.len();
        let message = format!("has {bytes} bytes; at most {PAYLOAD_BYTES_MAX} are allowed");
        return Err(error("payload_too_large", field("payload"), message));
    }
    for before in &branch.after {
        let Some(other) = branches.get(usize::from(*before)) else {
            let message = format!("there is no branch number {before}");
            return Err(error("after_unknown", field("after"), message));
        };
        if usize::from(*before) == index {
            let message = "a branch cannot wait for itself";
            return Err(error("after_itself", field("after"), message));
        }
        safety::check_order(branch, other, &field("after"))?;
    }
    safety::check_kind(open, branch, field)
}

/// Kahn's algorithm: take away branches that wait for nothing until none is left. In a plan that is
/// made to take long, all edges are looked at once for each branch: what is left is kept twice, so
/// that each look is short.
fn check_no_cycle(branches: &[&BranchPlan]) -> Result<(), PlanError> {
    if branches.iter().all(|branch| branch.after.is_empty()) {
        return Ok(());
    }
    let mut left: BTreeSet<usize> = (0..branches.len()).collect();
    let mut is_left = vec![true; branches.len()];
    while !left.is_empty() {
        let free: Vec<usize> = left
            .iter()
            .copied()
            .filter(|index| {
                let after = &branches[*index].after;
                !after.iter().any(|before| is_left.get(usize::from(*before)) == Some(&true))
            })
            .collect();
        if free.is_empty() {
            let names: Vec<&str> = left.iter().map(|index| &*branches[*index].name).collect();
            let message = format!("these branches wait for each other: {}", names.join(", "));
            return Err(error("after_cycle", "branches", message));
        }
        for index in free {
            left.remove(&index);
            is_left[index] = false;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn branch(name: &str, kind: Kind, after: &[u16]) -> BranchPlan {
        BranchPlan { after: after.into(), ..BranchPlan::new(name, "p", kind) }
    }

    fn check(branches: Vec<BranchPlan>, expected: Result<(), &str>) {
        let plan = Plan { open: false, branches, options: Options::default() };
        assert_eq!(plan.check().map_err(|error| error.code), expected);
    }

    #[test]
    fn plans_are_checked_before_anything_is_sent() {
        use Kind::{Compensable, Deferred, TwoPhase};
        check(vec![branch("a", TwoPhase, &[]), branch("b", TwoPhase, &[0])], Ok(()));
        check(vec![], Err("no_branches"));
        check(vec![branch("a", TwoPhase, &[]); 2], Err("branch_name_repeated"));
        check(vec![branch("a b", TwoPhase, &[])], Err("branch_name_invalid"));
        check(vec![branch("a", TwoPhase, &[0])], Err("after_itself"));
        check(vec![branch("a", TwoPhase, &[1])], Err("after_unknown"));
        let cycle = vec![branch("a", Compensable, &[1]), branch("b", Compensable, &[0])];
        check(cycle, Err("after_cycle"));
        let late = vec![branch("a", TwoPhase, &[1]), branch("b", Deferred, &[])];
        check(late, Err("after_unsafe"));
        let mut large = branch("a", TwoPhase, &[]);
        large.payload = vec![0; PAYLOAD_BYTES_MAX + 1].into();
        check(vec![large], Err("payload_too_large"));
        let full = |n: usize| {
            let payload = vec![0; PAYLOAD_BYTES_MAX].into();
            BranchPlan { payload, ..branch(&n.to_string(), TwoPhase, &[]) }
        };
        check((0..16).map(full).collect(), Ok(()));
        check((0..17).map(full).collect(), Err("payload_too_large"));
        let many = (0..=BRANCHES_MAX).map(|n| branch(&n.to_string(), TwoPhase, &[])).collect();
        check(many, Err("too_many_branches"));
    }

    #[test]
    fn a_plan_that_could_not_be_kept_is_refused() {
        use Kind::{Compensable, Deferred, Local, TwoPhase};
        let open = |branches: Vec<BranchPlan>, expected: Result<(), &str>| {
            let plan = Plan { open: true, branches, options: Options::default() };
            assert_eq!(plan.check().map_err(|error| error.code), expected);
        };
        let tried = |kind| BranchPlan { by_initiator: true, ..branch("t", kind, &[]) };
        open(vec![], Ok(()));
        open(vec![tried(TwoPhase), branch("b", TwoPhase, &[])], Ok(()));
        check(vec![tried(TwoPhase)], Err("phase_one_by_unsafe"));
        open(vec![tried(Deferred)], Err("phase_one_by_unsafe"));
        let late = |kind| BranchPlan { after: [0].into(), name: "late".into(), ..tried(kind) };
        open(vec![tried(TwoPhase), late(TwoPhase)], Ok(()));
        open(vec![branch("b", TwoPhase, &[]), late(TwoPhase)], Err("after_unsafe"));
        open(vec![branch("l", Local, &[]), branch("m", Deferred, &[])], Ok(()));
        check(vec![branch("l", Local, &[])], Err("local_unsafe"));
        open(vec![branch("l", Local, &[]), branch("a", TwoPhase, &[])], Err("local_unsafe"));
        open(vec![branch("l", Local, &[]), branch("k", Local, &[])], Err("local_unsafe"));
        let late = |kind| BranchPlan { delay_ms: 5, ..branch("d", kind, &[]) };
        check(vec![late(Deferred)], Ok(()));
        check(vec![late(Compensable)], Err("deferred_only"));
        let notice = |kind| BranchPlan { also_on_rollback: true, ..branch("n", kind, &[]) };
        check(vec![notice(Deferred)], Ok(()));
        check(vec![notice(TwoPhase)], Err("deferred_only"));
        let last =
            |kind, after: &[u16]| BranchPlan { comes_last: true, ..branch("l", kind, after) };
        check(vec![branch("d", Deferred, &[]), last(Deferred, &[0])], Ok(()));
        check(vec![last(TwoPhase, &[])], Err("deferred_only"));
        check(vec![branch("d", Deferred, &[1]), last(Deferred, &[])], Err("after_unsafe"));
    }

    #[test]
    fn a_reference_needs_a_result_that_is_certainly_there() {
        use Kind::{Compensable, Deferred, TwoPhase};
        let refers = |kind, after: &[u16], refers: &[u16]| BranchPlan {
            refers: refers.into(),
            ..branch("r", kind, after)
        };
        let (vote, step) = (branch("v", TwoPhase, &[]), branch("s", Compensable, &[]));
        let one = |first: &BranchPlan, second, expected| {
            check(vec![first.clone(), second], expected);
        };
        one(&vote, refers(Compensable, &[], &[0]), Ok(()));
        one(&vote, refers(Deferred, &[], &[0]), Ok(()));
        one(&vote, refers(TwoPhase, &[0], &[0]), Ok(()));
        one(&vote, refers(TwoPhase, &[], &[0]), Err("reference_unsafe"));
        one(&step, refers(Compensable, &[0], &[0]), Ok(()));
        one(&step, refers(Compensable, &[], &[0]), Err("reference_unsafe"));
        one(&step, refers(TwoPhase, &[], &[0]), Err("reference_unsafe"));
        one(&branch("d", Deferred, &[]), refers(Deferred, &[0], &[0]), Err("reference_unsafe"));
        one(&vote, refers(Deferred, &[], &[7]), Err("reference_unknown"));
        let notice = BranchPlan { also_on_rollback: true, ..refers(Deferred, &[], &[0]) };
        one(&vote, notice, Err("reference_unsafe"));
    }

    #[test]
    fn absurd_timeouts_are_refused() {
        let branches = vec![branch("a", Kind::TwoPhase, &[])];
        let options = Options { prepare_timeout_ms: 0, ..Options::default() };
        let plan = Plan { open: false, branches, options };
        assert_eq!(plan.check().map_err(|error| error.code), Err("timeout_invalid"));
    }

    /// With a walk over all edges for each reference this would take minutes.
    #[test]
    fn the_plan_that_takes_longest_to_check_is_checked_all_the_same() {
        let branches = (0..BRANCHES_MAX as u16).map(|number| BranchPlan {
            after: (0..number).rev().collect(),
            refers: (0..number).collect(),
            ..branch(&number.to_string(), Kind::Compensable, &[])
        });
        check(branches.collect(), Ok(()));
        let backwards = (0..BRANCHES_MAX as u16).map(|number| {
            let after: Vec<u16> = (number + 1..BRANCHES_MAX as u16).rev().collect();
            branch(&number.to_string(), Kind::Compensable, &after)
        });
        check(backwards.collect(), Ok(()));
    }
}
