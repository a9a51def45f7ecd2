//! How a whole live transaction looks on disk, when it is written anew so that older batches can be
//! forgotten. The shapes that it shares with other records are `codec`'s.

use super::{
    check_branches, get_ballot, get_branch_plan, get_count, get_id, get_observations, get_options,
    get_outcome, get_reason, get_resolution, operation, put_observations, put_options,
    put_plan_with, put_reason, put_resolution,
};
use crate::branch::{Branch, Progress};
use crate::timeline::Timeline;
use crate::wire::{Reader, Writer};
use crate::{Decision, DecodeError, Transaction, TransactionId};

pub(super) fn put(writer: &mut Writer<'_>, transaction: &Transaction) {
    put_facts(writer, transaction);
    let (count, bytes) = transaction.timeline.saved();
    put_observations(writer, (u64::from(count), bytes));
    writer.number(u64::from(transaction.timeline.dropped()));
    writer.text(transaction.id.as_str());
    writer.later(|writer| writer.flag(transaction.open));
}

/// What comes before the timeline and the id.
pub(super) fn put_facts(writer: &mut Writer<'_>, transaction: &Transaction) {
    writer.number(transaction.begun_at);
    writer.fixed(&transaction.fingerprint.to_le_bytes());
    put_options(writer, &transaction.options);
    writer.list(&transaction.branches, put_branch);
    writer.option(transaction.executing_since.as_ref(), |writer, at| writer.number(*at));
    writer.option(transaction.decision.as_ref(), |writer, decision| {
        writer.byte(decision.outcome as u8);
        put_reason(writer, &decision.reason);
        writer.number(decision.at);
    });
    writer.flag(transaction.overdue);
}

pub(super) fn get(reader: &mut Reader<'_>) -> Result<Transaction, DecodeError> {
    let mut transaction = get_facts(reader, TransactionId::first_that_spreads(0))?;
    transaction.timeline = get_timeline(reader)?;
    transaction.id = get_id(reader)?;
    if reader.since(2) && reader.flag("open")? {
        transaction.open = true;
        transaction.closed_at = None;
    }
    check(&transaction)?;
    Ok(transaction)
}

/// What comes before the timeline and the id, of a transaction of this id.
pub(super) fn get_facts(
    reader: &mut Reader<'_>,
    id: TransactionId,
) -> Result<Transaction, DecodeError> {
    let begun_at = reader.time("begun_at")?;
    Ok(Transaction {
        begun_at,
        fingerprint: u128::from_le_bytes(reader.fixed("fingerprint")?),
        options: get_options(reader).map(|options| reader.common_options(options))?,
        branches: reader.list("branches", get_branch)?,
        executing_since: reader
            .option("executing_since", |reader| reader.time("executing_since"))?,
        decision: reader.option("decision", get_decision)?,
        overdue: reader.flag("overdue")?,
        set_aside: None,
        timeline: Timeline::default(),
        id,
        ended_at: None,
        open: false,
        dormant: false,
        closed_at: Some(begun_at),
        settling: None,
    })
}

/// What the core relies on of any transaction that it knows.
fn check(transaction: &Transaction) -> Result<(), DecodeError> {
    check_branches(transaction.branches.iter().map(|branch| &*branch.plan), transaction.open)?;
    let decided = transaction.decision.is_some();
    let in_step = |branch: &Branch| (branch.progress == Progress::Undecided) != decided;
    if !transaction.branches.iter().all(in_step) {
        return Err(DecodeError::Malformed("progress"));
    }
    let seen_of = transaction.timeline.branches() as usize;
    let names_known = seen_of <= transaction.branches.len();
    let reason = transaction.decision.as_ref().and_then(|decision| decision.reason.branch());
    if !names_known || !transaction.has(reason) {
        return Err(DecodeError::Malformed("branch"));
    }
    Ok(())
}

fn get_decision(reader: &mut Reader<'_>) -> Result<Decision, DecodeError> {
    Ok(Decision {
        outcome: get_outcome(reader)?,
        reason: get_reason(reader)?,
        at: reader.time("decided_at")?,
    })
}

fn get_timeline(reader: &mut Reader<'_>) -> Result<Timeline, DecodeError> {
    let saved = get_observations(reader)?;
    Ok(Timeline::of_saved(saved, get_count(reader)?))
}

fn put_branch(writer: &mut Writer<'_>, branch: &Branch) {
    put_plan_with(writer, &branch.plan, branch.payload.as_deref().unwrap_or_default());
    writer.byte(branch.ballot as u8);
    writer.byte(match branch.progress {
        Progress::Undecided => 0,
        Progress::Done => 100,
        Progress::Owes(operation) => operation as u8,
    });
    writer.option(branch.result.as_ref(), |writer, result| writer.text(result));
    writer.later(|writer| writer.option(branch.resolution.as_deref(), put_resolution));
}

/// A branch of which nothing is known but what was planned; it shares that, if anything is shared.
pub(super) fn get_planned(reader: &mut Reader<'_>) -> Result<Branch, DecodeError> {
    let plan = get_branch_plan(reader)?;
    Ok(reader.common_plan(plan))
}

fn get_branch(reader: &mut Reader<'_>) -> Result<Branch, DecodeError> {
    let mut branch = get_planned(reader)?;
    branch.ballot = get_ballot(reader)?;
    branch.progress = match reader.byte("progress")? {
        0 => Progress::Undecided,
        100 => Progress::Done,
        number => Progress::Owes(operation(number)?),
    };
    branch.result = reader.option("result", |reader| Ok(reader.text("result")?.into()))?;
    if reader.since(2) {
        branch.resolution = reader.option("resolution", get_resolution)?.map(Box::new);
    }
    Ok(branch)
}
