//! How what was planned for a branch is written and read.

use std::sync::Arc;

use crate::wire::{Reader, Writer};
use crate::{BranchPlan, DecodeError, Kind};

pub(super) fn put_branch_plan(writer: &mut Writer<'_>, plan: &BranchPlan) {
    put_plan_with(writer, plan, &plan.payload);
}

/// With its payload from elsewhere.
pub(super) fn put_plan_with(writer: &mut Writer<'_>, plan: &BranchPlan, payload: &[u8]) {
    put_first_plan(writer, plan, payload);
    writer.later(|writer| put_later_plan(writer, plan));
}

/// What version 1 knew.
pub(super) fn put_first_plan(writer: &mut Writer<'_>, plan: &BranchPlan, payload: &[u8]) {
    writer.text(&plan.name);
    writer.text(&plan.participant);
    writer.byte(plan.kind as u8);
    writer.list(&plan.after, |writer, number| writer.number(u64::from(*number)));
    writer.bytes(payload);
    writer.flag(plan.payload_in_phase_two);
}

/// What version 2 added.
pub(super) fn put_later_plan(writer: &mut Writer<'_>, plan: &BranchPlan) {
    writer.flag(plan.by_initiator);
    writer.number(plan.delay_ms);
    // Bit 0 and bit 1 of one byte.
    writer.byte(u8::from(plan.also_on_rollback) | u8::from(plan.comes_last) << 1);
    writer.list(&plan.refers, |writer, number| writer.number(u64::from(*number)));
}

pub(super) fn get_branch_plan(reader: &mut Reader<'_>) -> Result<BranchPlan, DecodeError> {
    let mut plan = BranchPlan {
        name: reader.common_text("branch name")?,
        participant: reader.common_text("participant")?,
        kind: match reader.byte("kind")? {
            1 => Kind::TwoPhase,
            2 => Kind::Compensable,
            3 => Kind::Deferred,
            4 => Kind::Local,
            _ => return Err(DecodeError::Malformed("kind")),
        },
        after: reader.list("after", |reader| reader.small("branch"))?.into(),
        payload: match reader.bytes("payload")? {
            [] => Arc::default(), // That is nowhere, and takes no room.
            payload => payload.into(),
        },
        payload_in_phase_two: reader.flag("payload flag")?,
        by_initiator: false,
        delay_ms: 0,
        also_on_rollback: false,
        comes_last: false,
        refers: Box::default(),
    };
    if reader.since(2) {
        plan.by_initiator = reader.flag("initiator's flag")?;
        plan.delay_ms = reader.number("delay_ms")?;
        let when = reader.byte("deferred flags")?;
        if when > 0b11 {
            return Err(DecodeError::Malformed("deferred flags"));
        }
        (plan.also_on_rollback, plan.comes_last) = (when & 1 != 0, when & 2 != 0);
        plan.refers = reader.list("references", |reader| reader.small("branch"))?.into();
    }
    Ok(plan)
}
