//! How records look on disk: a version byte, then fields in a fixed order. Integers are LEB128
//! varints, texts and lists carry their length first. Every number is explicit here and is never
//! given a second meaning; a version that is not known is refused, never guessed.

use std::fmt;
use std::sync::Arc;

use crate::branch::Ballot;
use crate::codec::branch_plan::{
    get_branch_plan, put_branch_plan, put_first_plan, put_later_plan, put_plan_with,
};
use crate::codec::observation::{get_observations, put_observations};
use crate::wire::{Reader, Writer};
use crate::{
    BranchPlan, Fact, Millis, Operation, Options, Outcome, Reason, Record, Resolution, RetryPolicy,
    TransactionId,
};

mod branch_plan;
mod digested;
mod encoded;
mod head;
mod mold;
pub(crate) mod observation;
#[cfg(any(test, feature = "mutations"))]
mod older;
mod packed;
mod reading;
mod snapshot;
#[cfg(test)]
mod tests;

pub use digested::digested_bytes;
pub use encoded::Encoded;
pub use head::{RecordHead, decode_head};
pub use mold::{Mold, MoldTimes};
#[cfg(any(test, feature = "mutations"))]
pub use older::{encode_version_1, plan_of_version_1};
pub use packed::{PackedTransaction, PackedTransactions};
pub use reading::{RecordReader, Whole};

/// The version that is written; also the newest that is understood.
pub const RECORD_VERSION: u8 = 2;

/// Why bytes are not a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// Written by a newer version of this program; holds that version.
    NewerVersion(u8),
    /// Not what any version writes; says what was being read.
    Malformed(&'static str),
}

impl fmt::Display for DecodeError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NewerVersion(version) => write!(
                formatter,
                "the record has version {version}; this program knows up to {RECORD_VERSION}"
            ),
            Self::Malformed(what) => write!(formatter, "the record's {what} cannot be read"),
        }
    }
}

impl std::error::Error for DecodeError {}

/// Appends a record's bytes to `out`.
pub fn encode_record(record: &Record, out: &mut Vec<u8>) {
    encode_as(RECORD_VERSION, record, out);
}

fn encode_as(version: u8, record: &Record, out: &mut Vec<u8>) {
    let mut writer = Writer::of_version(version, out);
    writer.byte(version);
    writer.text(record.transaction.as_str());
    writer.number(record.at);
    put_fact(&mut writer, &record.fact);
    put_observations(&mut writer, (record.observations.len() as u64, record.observations.bytes()));
}

/// Reads a record back. Takes any bytes: it never panics and never allocates more than they hold.
///
/// # Errors
/// [`DecodeError`] for bytes that no known version writes.
pub fn decode_record(bytes: &[u8]) -> Result<Record, DecodeError> {
    let mut reader = Reader::new(bytes);
    let (transaction, at) = get_start(&mut reader)?;
    let fact = get_fact(&mut reader)?;
    let observations = get_observations(&mut reader)?;
    reader.end()?;
    Ok(Record { transaction, at, fact, observations })
}

/// What comes before the fact.
fn get_start(reader: &mut Reader<'_>) -> Result<(TransactionId, Millis), DecodeError> {
    reader.version = reader.byte("version")?;
    match reader.version {
        0 => Err(DecodeError::Malformed("version")),
        1..=RECORD_VERSION => Ok((get_id(reader)?, reader.number("time")?)),
        newer => Err(DecodeError::NewerVersion(newer)),
    }
}

fn get_id(reader: &mut Reader<'_>) -> Result<TransactionId, DecodeError> {
    let text = reader.text("transaction id")?;
    TransactionId::new(text).map_err(|_| DecodeError::Malformed("transaction id"))
}

fn put_fact(writer: &mut Writer<'_>, fact: &Fact) {
    match fact {
        Fact::Begun { fingerprint, plan } => {
            writer.byte(1);
            writer.fixed(&fingerprint.to_le_bytes());
            put_options(writer, &plan.options);
            writer.list(&plan.branches, put_branch_plan);
            writer.later(|writer| writer.flag(plan.open));
        }
        Fact::Executing { branches, ballots, results } => {
            writer.byte(2);
            writer.list(branches, |writer, number| writer.number(u64::from(*number)));
            put_ballots(writer, ballots, results);
        }
        Fact::Decided { outcome, reason, ballots, results } => {
            writer.byte(3);
            writer.byte(*outcome as u8);
            put_reason(writer, reason);
            put_ballots(writer, ballots, results);
        }
        Fact::Finished { branch } => {
            writer.byte(4);
            writer.number(u64::from(*branch));
        }
        Fact::Ended => writer.byte(5),
        Fact::Snapshot(transaction) => {
            writer.byte(6);
            snapshot::put(writer, transaction);
        }
        Fact::Enlisted { branch } => {
            writer.byte(7);
            put_branch_plan(writer, branch);
        }
        Fact::Resolved { branch, resolution } => {
            writer.byte(8);
            writer.number(u64::from(*branch));
            put_resolution(writer, resolution);
        }
    }
}

fn get_fact(reader: &mut Reader<'_>) -> Result<Fact, DecodeError> {
    Ok(match reader.byte("fact")? {
        1 => reading::get_begun(reader)?,
        2 => {
            let branches = reader.list("branch numbers", |reader| reader.small("branch"))?;
            let (ballots, results) = get_ballots(reader)?;
            Fact::Executing { branches, ballots, results }
        }
        3 => {
            let outcome = get_outcome(reader)?;
            let reason = get_reason(reader)?;
            let (ballots, results) = get_ballots(reader)?;
            Fact::Decided { outcome, reason, ballots, results }
        }
        4 => Fact::Finished { branch: reader.small("branch")? },
        5 => Fact::Ended,
        6 => Fact::Snapshot(Box::new(snapshot::get(reader)?)),
        7 => Fact::Enlisted { branch: get_branch_plan(reader)? },
        8 => {
            Fact::Resolved { branch: reader.small("branch")?, resolution: get_resolution(reader)? }
        }
        _ => return Err(DecodeError::Malformed("fact")),
    })
}

/// What the core relies on wherever it follows a branch's number.
fn check_branches<'a>(
    branches: impl ExactSizeIterator<Item = &'a BranchPlan>,
    open: bool,
) -> Result<(), DecodeError> {
    let count = branches.len();
    if count == 0 && !open || count > usize::from(u16::MAX) {
        return Err(DecodeError::Malformed("branches"));
    }
    for branch in branches {
        if branch.after.iter().chain(&branch.refers).any(|number| usize::from(*number) >= count) {
            return Err(DecodeError::Malformed("after"));
        }
    }
    Ok(())
}

type Results = Vec<(u16, Arc<str>)>;

fn put_ballots(writer: &mut Writer<'_>, ballots: &[Ballot], results: &[(u16, Arc<str>)]) {
    writer.list(ballots, |writer, ballot| writer.byte(*ballot as u8));
    writer.list(results, |writer, (number, result)| {
        writer.number(u64::from(*number));
        writer.text(result);
    });
}

fn get_ballots(reader: &mut Reader<'_>) -> Result<(Vec<Ballot>, Results), DecodeError> {
    let ballots = reader.list("ballots", get_ballot)?;
    let results = reader.list("results", |reader| {
        Ok((reader.small("branch")?, Arc::from(reader.text("result")?)))
    })?;
    Ok((ballots, results))
}

fn get_ballot(reader: &mut Reader<'_>) -> Result<Ballot, DecodeError> {
    Ok(match reader.byte("ballot")? {
        0 => Ballot::NotCalled,
        1 => Ballot::Unanswered,
        2 => Ballot::Yes,
        3 => Ballot::ReadOnly,
        4 => Ballot::No,
        5 => Ballot::Committed,
        6 => Ballot::RolledBack,
        _ => return Err(DecodeError::Malformed("ballot")),
    })
}

fn get_outcome(reader: &mut Reader<'_>) -> Result<Outcome, DecodeError> {
    match reader.byte("outcome")? {
        1 => Ok(Outcome::Commit),
        2 => Ok(Outcome::Rollback),
        _ => Err(DecodeError::Malformed("outcome")),
    }
}

fn put_reason(writer: &mut Writer<'_>, reason: &Reason) {
    match reason {
        Reason::AllYes => writer.byte(1),
        Reason::No { branch, text } => {
            writer.byte(2);
            writer.number(u64::from(*branch));
            writer.text(text);
        }
        Reason::PrepareTimeout => writer.byte(3),
        Reason::ExecuteTimeout => writer.byte(4),
        Reason::Timeout => writer.byte(5),
        Reason::Restarted => writer.byte(6),
        Reason::Requested(text) => {
            writer.byte(7);
            writer.text(text);
        }
        Reason::Abandoned => writer.byte(8),
        Reason::Settled => writer.byte(9),
    }
}

fn get_reason(reader: &mut Reader<'_>) -> Result<Reason, DecodeError> {
    Ok(match reader.byte("reason")? {
        1 => Reason::AllYes,
        2 => {
            Reason::No { branch: reader.small("branch")?, text: reader.text("reason text")?.into() }
        }
        3 => Reason::PrepareTimeout,
        4 => Reason::ExecuteTimeout,
        5 => Reason::Timeout,
        6 => Reason::Restarted,
        7 => Reason::Requested(reader.text("reason text")?.into()),
        8 => Reason::Abandoned,
        9 => Reason::Settled,
        _ => return Err(DecodeError::Malformed("reason")),
    })
}

fn put_options(writer: &mut Writer<'_>, options: &Options) {
    put_first_options(writer, options);
    writer.later(|writer| put_later_options(writer, options));
}

/// What version 1 knew.
fn put_first_options(writer: &mut Writer<'_>, options: &Options) {
    writer.number(options.prepare_timeout_ms);
    writer.number(options.execute_timeout_ms);
    writer.number(options.timeout_ms);
    writer.number(options.attempt_timeout_ms);
    writer.number(options.retry.delay_ms);
    writer.number(options.retry.delay_max_ms);
    writer.number(u64::from(options.retry.park_after_attempts));
    writer.number(options.retry.parked_delay_ms);
}

/// What version 2 added.
fn put_later_options(writer: &mut Writer<'_>, options: &Options) {
    writer.number(options.open_timeout_ms);
    writer.flag(options.one_phase);
}

fn get_options(reader: &mut Reader<'_>) -> Result<Options, DecodeError> {
    let mut options = Options {
        prepare_timeout_ms: reader.number("prepare_timeout_ms")?,
        execute_timeout_ms: reader.number("execute_timeout_ms")?,
        timeout_ms: reader.number("timeout_ms")?,
        attempt_timeout_ms: reader.number("attempt_timeout_ms")?,
        retry: RetryPolicy {
            delay_ms: reader.number("retry_delay_ms")?,
            delay_max_ms: reader.number("retry_delay_max_ms")?,
            park_after_attempts: reader.small("park_after_attempts")?,
            parked_delay_ms: reader.number("parked_retry_delay_ms")?,
        },
        // What version 1 began was whole, and was promised two phases.
        open_timeout_ms: Options::default().open_timeout_ms,
        one_phase: false,
    };
    if reader.since(2) {
        options.open_timeout_ms = reader.number("open_timeout_ms")?;
        options.one_phase = reader.flag("one_phase")?;
    }
    Ok(options)
}

fn put_resolution(writer: &mut Writer<'_>, resolution: &Resolution) {
    writer.byte(resolution.outcome as u8);
    writer.text(&resolution.by);
    writer.text(&resolution.reason);
    writer.number(resolution.at);
    writer.flag(resolution.disputed);
}

fn get_resolution(reader: &mut Reader<'_>) -> Result<Resolution, DecodeError> {
    Ok(Resolution {
        outcome: get_outcome(reader)?,
        by: reader.text("who")?.into(),
        reason: reader.text("why")?.into(),
        at: reader.number("time")?,
        disputed: reader.flag("dispute")?,
    })
}

fn operation(number: u8) -> Result<Operation, DecodeError> {
    let known = Operation::ALL.into_iter().find(|operation| *operation as u8 == number);
    known.ok_or(DecodeError::Malformed("operation"))
}

fn get_operation(reader: &mut Reader<'_>) -> Result<Operation, DecodeError> {
    operation(reader.byte("operation")?)
}

fn get_count(reader: &mut Reader<'_>) -> Result<u32, DecodeError> {
    u32::try_from(reader.number("count")?).map_err(|_| DecodeError::Malformed("count"))
}
