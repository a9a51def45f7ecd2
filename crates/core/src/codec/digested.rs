//! The bytes of a plan that its fingerprint is a digest of. They are no record's: a request that is
//! made again after an upgrade must have the same fingerprint, whatever version its records have.

use super::{put_first_options, put_first_plan, put_later_options, put_later_plan};
use crate::wire::Writer;
use crate::{BranchPlan, Options, Plan};

/// A plan as bytes that never change. What version 1 knew comes first, in the form in which it was
/// digested then; what a later version added follows in a section of its own, with that version's
/// number before it, and is left out of a plan that does not use it.
#[must_use]
pub fn digested_bytes(plan: &Plan) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes);
    writer.fixed(&[0, 1]); // The time and the fact's number in a record of version 1.
    writer.fixed(&0_u128.to_le_bytes());
    put_first_options(&mut writer, &plan.options);
    writer.list(&plan.branches, |writer, plan| put_first_plan(writer, plan, &plan.payload));
    writer.number(0); // No observations.
    if plan.open || asks_more(&plan.options) || plan.branches.iter().any(does_more) {
        writer.byte(2);
        put_later_options(&mut writer, &plan.options);
        writer.list(&plan.branches, put_later_plan);
        writer.flag(plan.open);
    }
    bytes
}

fn asks_more(options: &Options) -> bool {
    let usual = Options::default();
    (options.open_timeout_ms, options.one_phase) != (usual.open_timeout_ms, usual.one_phase)
}

fn does_more(branch: &BranchPlan) -> bool {
    let usual = BranchPlan::new("", "", crate::Kind::TwoPhase);
    let more = |branch: &BranchPlan| {
        let deferred = (branch.delay_ms, branch.also_on_rollback, branch.comes_last);
        (branch.by_initiator, deferred, branch.refers.clone())
    };
    more(branch) != more(&usual)
}
