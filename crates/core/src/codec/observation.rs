//! How the observations of a timeline look on disk.

use super::{get_count, get_operation, get_outcome};
use crate::wire::{Reader, Writer};
use crate::{DecodeError, Observation, Observations, What};

/// So many, as they were written.
pub(super) fn put_observations(writer: &mut Writer<'_>, (count, bytes): (u64, &[u8])) {
    writer.number(count);
    writer.fixed(bytes);
}

pub(super) fn get_observations(reader: &mut Reader<'_>) -> Result<Observations, DecodeError> {
    let count = get_count(reader)?;
    let bytes = reader.left();
    let mut branches = 0;
    for _ in 0..count {
        let branch = get_observation(reader)?.branch;
        branches = branches.max(branch.map_or(0, |number| u32::from(number) + 1));
    }
    let length = bytes.len() - reader.left().len();
    Ok(Observations::written(&bytes[..length], count, branches))
}

pub(crate) fn put_observation(writer: &mut Writer<'_>, observation: &Observation) {
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
        What::Enlisted => writer.byte(10),
        What::CommitRequested => writer.byte(11),
        What::Unsupported(operation) => {
            writer.byte(12);
            writer.byte(*operation as u8);
        }
        What::Resolved(outcome) => {
            writer.byte(13);
            writer.byte(*outcome as u8);
        }
    }
}

/// An observation has had the same shape in every version; timelines rely on it.
pub(crate) fn get_observation(reader: &mut Reader<'_>) -> Result<Observation, DecodeError> {
    let at = reader.time("time")?;
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
        10 => What::Enlisted,
        11 => What::CommitRequested,
        12 => What::Unsupported(get_operation(reader)?),
        13 => What::Resolved(get_outcome(reader)?),
        _ => return Err(DecodeError::Malformed("observation")),
    };
    Ok(Observation { at, branch, what })
}
