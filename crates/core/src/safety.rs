//! Decides which plans could not be kept: an order that no coordinator can honour, work that would
//! start before it is on record, a result that need not be there when it is wanted.

use crate::plan::{TIMEOUT_MS_MAX, error};
use crate::{BranchPlan, Kind, PlanError};

/// Prepares come first, visible work after every vote, deferred work after the decision: an `after`
/// that asks for the reverse could never be honoured safely.
pub(crate) fn check_order(
    branch: &BranchPlan,
    before: &BranchPlan,
    field: &str,
) -> Result<(), PlanError> {
    if branch.by_initiator && !before.by_initiator {
        let message = format!(
            "the initiator does the work of {:?} before it asks to commit, and {:?} is called only \
             after that: the order could not be kept",
            branch.name, before.name
        );
        return Err(error("after_unsafe", field, message));
    }
    let rank = |branch: &BranchPlan| (branch.kind as u8, branch.comes_last);
    if rank(branch) >= rank(before) {
        return Ok(());
    }
    if before.comes_last {
        let message = format!(
            "{:?} would wait for {:?}, which comes last, when all others are done",
            branch.name, before.name
        );
        return Err(error("after_unsafe", field, message));
    }
    let message = format!(
        "{:?} is {} and would wait for {:?}, which is {}: that work is visible, or only runs after \
         the decision, so the vote of {:?} would come too late to stop it",
        branch.name,
        branch.kind.as_str(),
        before.name,
        before.kind.as_str(),
        branch.name
    );
    Err(error("after_unsafe", field, message))
}

/// Says whether a branch asks for nothing that its kind cannot give.
pub(crate) fn check_kind(
    open: bool,
    branch: &BranchPlan,
    field: impl Fn(&str) -> String,
) -> Result<(), PlanError> {
    let kind = branch.kind;
    if kind == Kind::Local && !open {
        let message = "only an interactive transaction can wait for its initiator's local work";
        return Err(error("local_unsafe", field("kind"), message));
    }
    if branch.by_initiator && (kind == Kind::Deferred || !open) {
        let message = "the initiator may do the work itself only in an interactive transaction, \
                       after the branch is on record, and never before the decision is taken";
        return Err(error("phase_one_by_unsafe", field("phase_one_by"), message));
    }
    let deferred_only = [
        ("delay_ms", branch.delay_ms > 0),
        ("also_on_rollback", branch.also_on_rollback),
        ("comes_last", branch.comes_last),
    ];
    for (name, asked) in deferred_only {
        if asked && kind != Kind::Deferred {
            let message =
                format!("only a deferred branch can have it; this one is {}", kind.as_str());
            return Err(error("deferred_only", field(name), message));
        }
    }
    if branch.delay_ms > TIMEOUT_MS_MAX {
        let message = format!("is {}; at most {TIMEOUT_MS_MAX} ms (30 days)", branch.delay_ms);
        return Err(error("timeout_invalid", field("delay_ms"), message));
    }
    Ok(())
}

/// Local work is committed before the others are asked, so none of the others may say no.
pub(crate) fn check_local(branches: &[&BranchPlan]) -> Result<(), PlanError> {
    let locals = branches.iter().filter(|branch| branch.kind == Kind::Local).count();
    if locals == 0 {
        return Ok(());
    }
    let other =
        branches.iter().position(|branch| !matches!(branch.kind, Kind::Local | Kind::Deferred));
    match other {
        Some(index) => {
            let message = format!(
                "{:?} is {} and may say no when the initiator's local work is committed already; \
                 beside an inquiry only deferred branches are safe",
                branches[index].name,
                branches[index].kind.as_str()
            );
            Err(error("local_unsafe", format!("branches[{index}].kind"), message))
        }
        None if locals > 1 => {
            let message = "two local branches: only one database can hold the decision";
            Err(error("local_unsafe", "branches", message))
        }
        None => Ok(()),
    }
}

/// A branch may use the result of another only if that one has certainly answered by then.
pub(crate) fn check_references(branches: &[&BranchPlan]) -> Result<(), PlanError> {
    for (index, branch) in branches.iter().enumerate().filter(|(_, b)| !b.refers.is_empty()) {
        // Once for all references of the branch: there may be 65,280 in a plan, and as many edges.
        let before = all_before(branches, index);
        for refers in &branch.refers {
            check_reference(branches, index, *refers, &before)?;
        }
    }
    Ok(())
}

fn check_reference(
    branches: &[&BranchPlan],
    index: usize,
    refers: u16,
    before: &[bool],
) -> Result<(), PlanError> {
    let branch = branches[index];
    let field = || format!("branches[{index}].payload");
    let Some(other) = branches.get(usize::from(refers)) else {
        let message = format!("refers to branch number {refers}, which does not exist");
        return Err(error("reference_unknown", field(), message));
    };
    let votes_first = branch.kind != Kind::TwoPhase && other.kind == Kind::TwoPhase;
    let executes_first = branch.kind == Kind::Deferred && other.kind == Kind::Compensable;
    let waits = before[usize::from(refers)] && other.kind != Kind::Deferred;
    let answers = !other.by_initiator && !branch.by_initiator && !branch.also_on_rollback;
    if answers && (votes_first || executes_first || waits) {
        return Ok(());
    }
    let message = format!(
        "{:?} refers to the result of {:?}, which need not be there by then: name it in `after`, \
         or refer to a branch whose answer the coordinator always has first",
        branch.name, other.name
    );
    Err(error("reference_unsafe", field(), message))
}

/// For each branch, whether this one waits for it, over any number of `after`s.
fn all_before(branches: &[&BranchPlan], index: usize) -> Vec<bool> {
    let mut before = vec![false; branches.len()];
    let mut open = branches[index].after.to_vec();
    while let Some(number) = open.pop() {
        let place = usize::from(number);
        if before.get(place) == Some(&false) {
            before[place] = true;
            open.extend(&branches[place].after);
        }
    }
    before
}
