//! What version 1 of this program accepted and wrote: for checkers, which let a journal begin with
//! it. No shipped program writes it, or has this file.

use super::encode_as;
use crate::branch::Branch;
use crate::{BranchPlan, Fact, Kind, Options, Plan, Record, Transaction};

/// A plan as version 1 would have begun it; `None` if it knew nothing of the kind.
#[must_use]
pub fn plan_of_version_1(plan: &Plan) -> Option<Plan> {
    if plan.open || !plan.branches.iter().all(knows_branch) {
        return None;
    }
    Some(Plan { options: first(&plan.options), ..plan.clone() })
}

/// Appends a record's bytes to `out`, as version 1 wrote them. Whether it could have.
#[must_use]
pub fn encode_version_1(record: &Record, out: &mut Vec<u8>) -> bool {
    let knows = match &record.fact {
        Fact::Begun { plan, .. } => plan_of_version_1(plan).as_ref() == Some(plan),
        Fact::Snapshot(transaction) => knows_transaction(transaction),
        Fact::Executing { .. } | Fact::Decided { .. } | Fact::Finished { .. } | Fact::Ended => true,
        Fact::Enlisted { .. } | Fact::Resolved { .. } => false,
    };
    if knows {
        encode_as(1, record, out);
    }
    knows
}

fn first(options: &Options) -> Options {
    let open_timeout_ms = Options::default().open_timeout_ms;
    Options { open_timeout_ms, one_phase: false, ..options.clone() }
}

fn knows_branch(plan: &BranchPlan) -> bool {
    let later = plan.by_initiator || plan.delay_ms > 0 || plan.also_on_rollback || plan.comes_last;
    plan.kind != Kind::Local && !later && plan.refers.is_empty()
}

fn knows_transaction(transaction: &Transaction) -> bool {
    let knows = |branch: &Branch| knows_branch(&branch.plan) && branch.resolution.is_none();
    !transaction.open
        && *transaction.options == first(&transaction.options)
        && transaction.branches.iter().all(knows)
}
