//! How records look on disk: a version byte, then fields in a fixed order. Integers are LEB128
//! varints, texts and lists carry their length first. Every number is explicit here and is never
//! given a second meaning; a version that is not known is refused, never guessed.

use std::fmt;
use std::sync::Arc;

use crate::transaction::Ballot;
use crate::wire::{Reader, Writer};
use crate::{
    BranchPlan, Fact, Kind, Observation, Operation, Options, Outcome, Plan, Reason, Record,
    RetryPolicy, TransactionId, What,
};

mod snapshot;
#[cfg(test)]
mod tests;

/// The version that is written; also the newest that is understood.
pub const RECORD_VERSION: u8 = 1;

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
    let mut writer = Writer::new(out);
    writer.byte(RECORD_VERSION);
    writer.text(record.transaction.as_str());
    writer.number(record.at);
    put_fact(&mut writer, &record.fact);
    writer.list(&record.observations, put_observation);
}

/// Reads a record back. Takes any bytes: it never panics and never allocates more than they hold.
///
/// # Errors
/// [`DecodeError`] for bytes that no known version writes.
pub fn decode_record(bytes: &[u8]) -> Result<Record, DecodeError> {
    let mut reader = Reader::new(bytes);
    let version = reader.byte("version")?;
    if version > RECORD_VERSION {
        return Err(DecodeError::NewerVersion(version));
    }
    if version == 0 {
        return Err(DecodeError::Malformed("version"));
    }
    let transaction = get_id(&mut reader)?;
    let at = reader.number("time")?;
    let fact = get_fact(&mut reader)?;
    let observations = reader.list("observations", get_observation)?;
    reader.end()?;
    Ok(Record { transaction, at, fact, observations })
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
    }
}

fn get_fact(reader: &mut Reader<'_>) -> Result<Fact, DecodeError> {
    Ok(match reader.byte("fact")? {
        1 => {
            let fingerprint = u128::from_le_bytes(reader.fixed("fingerprint")?);
            let options = get_options(reader)?;
            let branches = reader.list("branches", get_branch_plan)?;
            check_branches(branches.iter())?;
            Fact::Begun { fingerprint, plan: Plan { branches, options } }
        }
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
        _ => return Err(DecodeError::Malformed("fact")),
    })
}

/// What the core relies on wherever it follows a branch's number.
fn check_branches<'a>(
    branches: impl ExactSizeIterator<Item = &'a BranchPlan>,
) -> Result<(), DecodeError> {
    let count = branches.len();
    if count == 0 || count > usize::from(u16::MAX) {
        return Err(DecodeError::Malformed("branches"));
    }
    for branch in branches {
        if branch.after.iter().any(|number| usize::from(*number) >= count) {
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
        _ => return Err(DecodeError::Malformed("reason")),
    })
}

fn put_options(writer: &mut Writer<'_>, options: &Options) {
    writer.number(options.prepare_timeout_ms);
    writer.number(options.execute_timeout_ms);
    writer.number(options.timeout_ms);
    writer.number(options.attempt_timeout_ms);
    writer.number(options.retry.delay_ms);
    writer.number(options.retry.delay_max_ms);
    writer.number(u64::from(options.retry.park_after_attempts));
    writer.number(options.retry.parked_delay_ms);
}

fn get_options(reader: &mut Reader<'_>) -> Result<Options, DecodeError> {
    Ok(Options {
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
    })
}

fn put_branch_plan(writer: &mut Writer<'_>, plan: &BranchPlan) {
    writer.text(&plan.name);
    writer.text(&plan.participant);
    writer.byte(plan.kind as u8);
    writer.list(&plan.after, |writer, number| writer.number(u64::from(*number)));
    writer.bytes(&plan.payload);
    writer.flag(plan.payload_in_phase_two);
}

fn get_branch_plan(reader: &mut Reader<'_>) -> Result<BranchPlan, DecodeError> {
    Ok(BranchPlan {
        name: reader.text("branch name")?.into(),
        participant: reader.text("participant")?.into(),
        kind: match reader.byte("kind")? {
            1 => Kind::TwoPhase,
            2 => Kind::Compensable,
            3 => Kind::Deferred,
            _ => return Err(DecodeError::Malformed("kind")),
        },
        after: reader.list("after", |reader| reader.small("branch"))?,
        payload: reader.bytes("payload")?.into(),
        payload_in_phase_two: reader.flag("payload flag")?,
    })
}

fn operation(number: u8) -> Result<Operation, DecodeError> {
    let known = Operation::ALL.into_iter().find(|operation| *operation as u8 == number);
    known.ok_or(DecodeError::Malformed("operation"))
}

fn put_observation(writer: &mut Writer<'_>, observation: &Observation) {
    writer.number(observation.at);
    // 0 stands for "the whole transaction", so that a branch costs one small number.
    writer.number(observation.branch.map_or(0, |number| u64::from(number) + 1));
    match &observation.what {
        What::Called { operation, attempt } => {
            writer.byte(1);
            writer.byte(*operation as u8);
            writer.number(u64::from(*attempt));
        }
        What::Yes(operation) => {
            writer.byte(2);
            writer.byte(*operation as u8);
        }
        What::ReadOnly => writer.byte(3),
        What::No(operation, reason) => {
            writer.byte(4);
            writer.byte(*operation as u8);
            writer.text(reason);
        }
        What::Acknowledged(operation) => {
            writer.byte(5);
            writer.byte(*operation as u8);
        }
        What::Failed { operation, error, times } => {
            writer.byte(6);
            writer.byte(*operation as u8);
            writer.text(error);
            writer.number(u64::from(*times));
        }
        What::Parked => writer.byte(7),
        What::Recovered => writer.byte(8),
        What::Overdue => writer.byte(9),
    }
}

fn get_observation(reader: &mut Reader<'_>) -> Result<Observation, DecodeError> {
    let at = reader.number("time")?;
    let branch = match reader.number("branch")? {
        0 => None,
        plus_one => {
            let number = u16::try_from(plus_one - 1);
            Some(number.map_err(|_| DecodeError::Malformed("branch"))?)
        }
    };
    let what = match reader.byte("observation")? {
        1 => What::Called { operation: get_operation(reader)?, attempt: get_count(reader)? },
        2 => What::Yes(get_operation(reader)?),
        3 => What::ReadOnly,
        4 => What::No(get_operation(reader)?, reader.text("reason")?.into()),
        5 => What::Acknowledged(get_operation(reader)?),
        6 => What::Failed {
            operation: get_operation(reader)?,
            error: reader.text("error")?.into(),
            times: get_count(reader)?,
        },
        7 => What::Parked,
        8 => What::Recovered,
        9 => What::Overdue,
        _ => return Err(DecodeError::Malformed("observation")),
    };
    Ok(Observation { at, branch, what })
}

fn get_operation(reader: &mut Reader<'_>) -> Result<Operation, DecodeError> {
    operation(reader.byte("operation")?)
}

fn get_count(reader: &mut Reader<'_>) -> Result<u32, DecodeError> {
    u32::try_from(reader.number("count")?).map_err(|_| DecodeError::Malformed("count"))
}
