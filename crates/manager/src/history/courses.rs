//! Decides which ended transactions share one document. Most transactions of a system are of few
//! kinds: the same branches, asked and answered in the same order, and nothing but the times and
//! the results differs. Such a document is written once, to the table `courses`, and a transaction
//! then has its number, the times and the results. What says something of its own (a reason, an
//! error, an operator's word) has a document of its own.
//!
//! Nothing here need be right about what the table holds already: a course that is written twice
//! takes its room twice.

use foldhash::HashMap;
use rusqlite::{Connection, params};
use unanimity_core::{Branch, Transaction, What};

use super::document;
use crate::view::{Moment, reason_detail};

/// So many kinds are known at a time, half of them as written; when there are more, those that were
/// seen once are forgotten, and no more are written.
const KNOWN_MAX: usize = 4_096;
/// What says more than this is hardly said twice.
const KEY_BYTES_MAX: usize = 4_096;

pub(super) const TABLES: &str = "
    -- Documents that many transactions share, without times and results.
    CREATE TABLE IF NOT EXISTS courses (number INTEGER PRIMARY KEY, document TEXT NOT NULL) STRICT;
    CREATE TABLE IF NOT EXISTS course_participants (
        participant TEXT NOT NULL,
        course INTEGER NOT NULL,
        PRIMARY KEY (participant, course)
    ) WITHOUT ROWID, STRICT;
";

#[derive(Clone, Copy, Debug)]
enum Known {
    /// Seen once. Where no two transactions are alike, a table of courses would be as long as they.
    Once,
    Written(i64),
}

/// The courses that the writer has met.
#[derive(Debug, Default)]
pub(super) struct Courses {
    known: HashMap<Box<[u8]>, Known>,
    written: usize,
    key: Vec<u8>,
}

impl Courses {
    /// The number of the course that a transaction which has ended shares with others; `None` if it
    /// is to have a document of its own.
    pub(super) fn course_of(
        &mut self,
        storage: &Connection,
        ended: &Transaction,
        moments: &[Moment],
    ) -> rusqlite::Result<Option<i64>> {
        self.key.clear();
        match put_key(ended, moments, &mut self.key) {
            Some(()) if self.key.len() <= KEY_BYTES_MAX => self.number(storage, ended, moments),
            Some(()) | None => Ok(None),
        }
    }

    /// The number under which the course of this key stands in the table; `None` if it is not to be
    /// there.
    fn number(
        &mut self,
        storage: &Connection,
        ended: &Transaction,
        moments: &[Moment],
    ) -> rusqlite::Result<Option<i64>> {
        match self.known.get_mut(&*self.key) {
            Some(Known::Written(number)) => Ok(Some(*number)),
            Some(known) => {
                let number = insert(storage, ended, moments)?;
                *known = Known::Written(number);
                self.written += 1;
                Ok(Some(number))
            }
            None => {
                if self.known.len() >= KNOWN_MAX {
                    self.known.retain(|_, known| matches!(known, Known::Written(_)));
                }
                if self.written < KNOWN_MAX / 2 {
                    self.known.insert(self.key.as_slice().into(), Known::Once);
                }
                Ok(None)
            }
        }
    }
}

/// Writes a course, and who takes part in it.
fn insert(storage: &Connection, ended: &Transaction, moments: &[Moment]) -> rusqlite::Result<i64> {
    storage
        .prepare_cached("INSERT INTO courses (document) VALUES (?1)")?
        .execute([document::shared(ended, moments)])?;
    let number = storage.last_insert_rowid();
    let mut takes_part = storage.prepare_cached(
        "INSERT OR IGNORE INTO course_participants (participant, course) VALUES (?1, ?2)",
    )?;
    for branch in &ended.branches {
        takes_part.execute(params![&*branch.plan.participant, number])?;
    }
    Ok(number)
}

/// Writes everything that the shared document would say. `None`: it would say something
/// that hardly another says.
fn put_key(ended: &Transaction, moments: &[Moment], key: &mut Vec<u8>) -> Option<()> {
    let decision = ended.decision.as_ref()?;
    let says_more = reason_detail(&decision.reason).is_some()
        || ended.timeline.dropped() > 0
        || ended.heuristic().is_some();
    if says_more {
        return None;
    }
    key.extend(decision.reason.code().as_bytes());
    key.extend([0, decision.outcome as u8]);
    key.extend([u8::from(ended.open), u8::from(ended.is_one_phase()), u8::from(ended.overdue)]);
    key.extend(u16::try_from(ended.branches.len()).ok()?.to_le_bytes());
    for branch in &ended.branches {
        put_branch(branch, key)?;
    }
    for moment in moments {
        match moment {
            Moment::Decided { .. } => key.push(u8::MAX),
            Moment::Seen(seen) => {
                key.extend(seen.branch.map_or(u16::MAX, |number| number).to_le_bytes());
                put_what(&seen.what, key)?;
            }
        }
    }
    Some(())
}

fn put_branch(branch: &Branch, key: &mut Vec<u8>) -> Option<()> {
    if branch.resolution.is_some() {
        return None;
    }
    let plan = &branch.plan;
    for text in [&*plan.name, &*plan.participant] {
        key.extend(u32::try_from(text.len()).ok()?.to_le_bytes());
        key.extend(text.as_bytes());
    }
    key.extend([plan.kind as u8, branch.ballot as u8]);
    key.extend([plan.by_initiator, plan.also_on_rollback, plan.comes_last].map(u8::from));
    key.extend(u16::try_from(plan.after.len()).ok()?.to_le_bytes());
    key.extend(plan.after.iter().flat_map(|number| number.to_le_bytes()));
    Some(())
}

fn put_what(what: &What, key: &mut Vec<u8>) -> Option<()> {
    let (kind, attempt) = match what {
        What::Called { attempt, .. } => (0_u8, *attempt),
        What::Yes(_) => (1, 0),
        What::ReadOnly => (2, 0),
        What::Acknowledged(_) => (3, 0),
        What::Parked => (4, 0),
        What::Recovered => (5, 0),
        What::Overdue => (6, 0),
        What::Enlisted => (7, 0),
        What::CommitRequested => (8, 0),
        What::Unsupported(_) => (9, 0),
        What::No(..) | What::Failed { .. } | What::Resolved(_) => return None,
    };
    let operation = what.operation().map_or(0, |operation| operation as u8);
    key.extend([kind, operation]);
    key.extend(attempt.to_le_bytes());
    Some(())
}
