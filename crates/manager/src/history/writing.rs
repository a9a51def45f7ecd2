//! Writes the history: what ended together goes into one storage transaction, on a thread of its
//! own. Decides when, and what a row says; how its course is written is `courses`' and
//! `document`'s.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use rusqlite::{CachedStatement, Connection, ErrorCode, params};
use tokio::sync::mpsc::UnboundedSender;
use unanimity_core::{Doing, Outcome, Reason, Transaction, TransactionId};

use super::courses::{Course, Courses};
use super::{archived_name, clamp};
use crate::blame::Blame;
use crate::crash_point::{crash_point, panic_point};
use crate::view::{course, reason_detail};

/// At most this many transactions are written in one storage transaction.
const WRITE_BATCH_MAX: usize = 4_096;

/// A batch of ended transactions to write, and whom to tell when they are durable.
pub(crate) struct ArchiveRequest {
    /// With these (and those before) everything is in the history that ended in this shard's
    /// journal up to this position.
    pub(crate) up_to: Option<(u16, u64)>,
    pub(crate) transactions: Vec<Arc<Transaction>>,
    pub(crate) done: ArchiveReply,
}

/// What writing came to: the ids once they are durable, or why they are not and never will be.
type Archived = Result<Vec<TransactionId>, String>;

/// The answer that is owed for a request. If the request is lost, by a panic of the history's
/// thread, the answer is that.
pub(crate) struct ArchiveReply {
    sender: UnboundedSender<Archived>,
    told: bool,
}

impl ArchiveReply {
    pub(crate) const fn new(sender: UnboundedSender<Archived>) -> Self {
        Self { sender, told: false }
    }

    fn tell(&mut self, archived: Archived) {
        self.told = true;
        // dropped: a shard that has stopped wants no answer; recovery archives again.
        let _ = self.sender.send(archived);
    }
}

impl Drop for ArchiveReply {
    fn drop(&mut self) {
        if !self.told {
            self.tell(Err("the history's thread has ended".to_owned()));
        }
    }
}

/// Writes until every sender is gone. Requests that wait together share one storage transaction.
pub(crate) fn write_history(
    mut connection: Connection,
    requests: &mpsc::Receiver<ArchiveRequest>,
    gathering: Duration,
    blame: &Blame,
) {
    let mut courses = Courses::default();
    while let Ok(first) = requests.recv() {
        let batch = gather(first, requests, gathering);
        crash_point("before_history_write");
        let written = write_batch(&mut connection, &batch, &mut courses, blame);
        crash_point("after_history_write");
        for mut request in batch {
            let ids = request.transactions.iter().map(|ended| ended.id.clone()).collect();
            request.done.tell(written.as_ref().map(|()| ids).map_err(ToString::to_string));
        }
        if let Err(error) = written {
            tracing::error!(%error, "the history cannot be written; the coordinator stops");
            return;
        }
    }
}

/// What comes within this time is written together, up to a bound.
fn gather(
    first: ArchiveRequest,
    requests: &mpsc::Receiver<ArchiveRequest>,
    gathering: Duration,
) -> Vec<ArchiveRequest> {
    let until = Instant::now() + gathering;
    let mut count = first.transactions.len();
    let mut batch = vec![first];
    while count < WRITE_BATCH_MAX {
        let left = until.saturating_duration_since(Instant::now());
        let Ok(next) = requests.recv_timeout(left) else { break };
        count += next.transactions.len();
        batch.push(next);
    }
    batch
}

fn write_batch(
    connection: &mut Connection,
    batch: &[ArchiveRequest],
    courses: &mut Courses,
    blame: &Blame,
) -> rusqlite::Result<()> {
    let storage = connection.transaction()?;
    {
        let next = "SELECT coalesce(max(number), 0) + 1 FROM transactions";
        let first: i64 = storage.prepare_cached(next)?.query_row([], |row| row.get(0))?;
        let mut number = first;
        let mut participants: BTreeSet<&str> = BTreeSet::new();
        let mut insert = storage.prepare_cached(
            "INSERT INTO transactions (number, id, begun_at_ms, decided_at_ms, \
             ended_at_ms, outcome, reason, reason_detail, fingerprint, document, course, times, \
             results) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
        )?;
        for ended in batch.iter().flat_map(|request| &request.transactions) {
            blame.on(&ended.id, Doing::Archiving, || {
                panic_point(Doing::Archiving.as_str(), &ended.id);
                let course = courses.course_of(&storage, ended, &course(ended))?;
                insert_one(&storage, &mut insert, number, ended, course)
            })?;
            number += 1;
            participants.extend(ended.branches.iter().map(|branch| &*branch.plan.participant));
        }
        let mut insert = storage.prepare_cached(
            "INSERT OR REPLACE INTO participants (participant, first_number, last_number) \
             VALUES (?1, ?2, ?3)",
        )?;
        for participant in participants {
            insert.execute(params![participant, first, number - 1])?;
        }
        let noted: BTreeMap<u16, u64> = batch.iter().filter_map(|request| request.up_to).collect();
        let mut note =
            storage.prepare_cached("INSERT OR REPLACE INTO meta (name, value) VALUES (?1, ?2)")?;
        for (shard, up_to) in noted {
            note.execute(params![archived_name(shard), clamp(up_to)])?;
        }
    }
    storage.commit()
}

/// A transaction that was written before a crash and is recovered is written again: the later
/// version is at least as complete. That is seldom, and a statement that may replace rows keeps
/// what it would need to undo that: a tenth of the time.
fn insert_one(
    storage: &Connection,
    insert: &mut CachedStatement<'_>,
    number: i64,
    ended: &Transaction,
    course: Course<'_>,
) -> rusqlite::Result<()> {
    let (document, course, times, results) = match course {
        Course::Own(document) => (document, None, None, None),
        Course::Shared { number, times, results } => ("", Some(number), Some(times), results),
    };
    let decision = ended.decision.as_ref();
    let reason = decision.map(|decision| &decision.reason);
    let outcome = ended.outcome().unwrap_or(Outcome::Rollback);
    let fingerprint = ended.fingerprint.to_le_bytes();
    let fingerprint = if ended.fingerprint == 0 { &[][..] } else { &fingerprint[..] };
    let row = params![
        number,
        ended.id.as_str(),
        clamp(ended.begun_at),
        decision.map(|decision| clamp(decision.at)),
        clamp(ended.ended_at.unwrap_or(ended.begun_at)),
        outcome.as_str(),
        reason.map_or("", Reason::code),
        reason.and_then(reason_detail),
        fingerprint,
        document,
        course,
        times,
        results,
    ];
    match insert.execute(row) {
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => {
            storage
                .prepare_cached("DELETE FROM transactions WHERE id = ?1")?
                .execute([ended.id.as_str()])?;
            insert.execute(row).map(drop)
        }
        inserted => inserted.map(drop),
    }
}
