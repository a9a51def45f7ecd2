//! Writes the history: what ended together goes into one storage transaction, on a thread of its
//! own. Decides when, and what has a row and what that says; `bundles` has the others. How a course
//! is written is `courses`' and `document`'s.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, TransactionBehavior, params};
use tokio::sync::mpsc::UnboundedSender;
use unanimity_core::{
    Doing, Millis, Outcome, PackedTransaction, PackedTransactions, Reason, RecordReader,
    Transaction,
};

use super::alike::Alike;
use super::bundles::{self, Bundles};
use super::courses::Courses;
use super::document::{self, Times};
use super::{archived_name, clamp};
use crate::blame::Blame;
use crate::crash_point::{crash_point, panic_point};
use crate::view::{Moment, course, reason_detail};

/// After so many transactions the history's thread lets others run.
const COURTESY_AFTER: usize = 64;
/// And no more, in one batch, once it has lost so much by it.
const COURTESY_MAX: Duration = Duration::from_millis(8);
/// At most this many transactions are written in one storage transaction.
const WRITE_BATCH_MAX: usize = 4_096;
/// So often it is looked what has come while it gathers.
const LOOKS: u32 = 5;

/// A batch of ended transactions to write, and whom to tell when they are durable.
pub(crate) struct ArchiveRequest {
    /// With these (and those before) everything is in the history that ended in this shard's
    /// journal up to this position.
    pub(crate) up_to: Option<(u16, u64)>,
    pub(crate) transactions: Arc<PackedTransactions>,
    pub(crate) done: ArchiveReply,
}

/// What writing came to: they are durable, or why they are not and never will be. Answers come in
/// the order in which a shard has sent.
type Archived = Result<(), String>;

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

/// What writes the history.
pub(crate) struct HistoryWriter {
    connection: Connection,
    rows: Rows,
}

impl HistoryWriter {
    /// A writer of a coordinator that starts now, by its shards' clock.
    pub(crate) fn new(connection: Connection, started_at_ms: Millis, blame: Blame) -> Self {
        let (courses, bundles) = (Courses::default(), Bundles::default());
        let (reader, courtesy) = (RecordReader::default(), Courtesy::default());
        let alike = Alike::default();
        let rows = Rows { started_at_ms, blame, reader, courses, bundles, alike, courtesy };
        Self { connection, rows }
    }

    /// Writes until every sender is gone. Requests that wait together share one storage
    /// transaction.
    pub(crate) fn run(mut self, requests: &mpsc::Receiver<ArchiveRequest>, gathering: Duration) {
        while let Ok(first) = requests.recv() {
            let batch = gather(first, requests, gathering);
            crash_point("before_history_write");
            let written = self.write_batch(&batch);
            crash_point("after_history_write");
            for mut request in batch {
                request.done.tell(written.as_ref().copied().map_err(ToString::to_string));
            }
            if let Err(error) = written {
                tracing::error!(%error, "the history cannot be written; the coordinator stops");
                return;
            }
        }
    }

    fn write_batch(&mut self, batch: &[ArchiveRequest]) -> rusqlite::Result<()> {
        // At once, and not with the first write: whoever else writes meanwhile is waited for.
        let storage = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        self.rows.write(&storage, batch)?;
        storage.commit()
    }
}

/// What comes within this time is written together, up to a bound. Nobody listens meanwhile, but
/// looks now and then: to wake this thread for each request would keep a shard that sends one from
/// what it has to do next.
pub(super) fn gather(
    first: ArchiveRequest,
    requests: &mpsc::Receiver<ArchiveRequest>,
    gathering: Duration,
) -> Vec<ArchiveRequest> {
    let mut count = first.transactions.len();
    let mut batch = vec![first];
    for look in 0..=LOOKS {
        while count < WRITE_BATCH_MAX {
            let Ok(next) = requests.try_recv() else { break };
            count += next.transactions.len();
            batch.push(next);
        }
        if count >= WRITE_BATCH_MAX {
            break;
        }
        if look < LOOKS {
            thread::sleep(gathering / LOOKS);
        }
    }
    batch
}

/// Lets others run while many transactions are written together. That keeps a core for
/// milliseconds, and nobody waits for it; but the journal's thread, with a sync to see to, or who
/// begins transactions would wait for that core.
#[derive(Debug)]
pub(super) struct Courtesy {
    done: usize,
    /// So much time this batch may still lose by it: where all cores are full, each time costs as
    /// long as the others like, and what ends must not wait for the history without end.
    left: Duration,
}

impl Default for Courtesy {
    fn default() -> Self {
        Self { done: 0, left: COURTESY_MAX }
    }
}

impl Courtesy {
    /// So many more were done.
    pub(super) fn after(&mut self, transactions: usize) {
        self.done += transactions;
        if self.done < COURTESY_AFTER || self.left.is_zero() {
            return;
        }
        self.done = 0;
        let start = Instant::now();
        thread::yield_now();
        self.left = self.left.saturating_sub(start.elapsed());
    }
}

/// What becomes of a transaction that has ended: a place in a bundle, or a row.
struct Rows {
    /// What ended no later may have been written before, by a coordinator that is gone.
    started_at_ms: Millis,
    blame: Blame,
    reader: RecordReader,
    courses: Courses,
    bundles: Bundles,
    alike: Alike,
    courtesy: Courtesy,
}

impl Rows {
    fn write(&mut self, storage: &Connection, batch: &[ArchiveRequest]) -> rusqlite::Result<()> {
        self.courtesy = Courtesy::default();
        let next = "SELECT coalesce(max(number), 0) + 1 FROM transactions";
        let first: i64 = storage.prepare_cached(next)?.query_row([], |row| row.get(0))?;
        let mut number = first;
        let mut participants: BTreeSet<Arc<str>> = BTreeSet::new();
        let blame = self.blame.clone();
        let all = batch.iter().flat_map(|request| request.transactions.iter());
        for packed in all {
            self.courtesy.after(1);
            let id = packed.id().clone();
            blame.on(&id, Doing::Archiving, || {
                panic_point(Doing::Archiving.as_str(), &id);
                if self.take_alike(&packed) {
                    return Ok(());
                }
                let ended = packed.clone().unpack(&mut self.reader);
                if self.write_one(storage, number, &packed, &ended)? {
                    number += 1;
                    for branch in &ended.branches {
                        if !participants.contains(&branch.plan.participant) {
                            participants.insert(Arc::clone(&branch.plan.participant));
                        }
                    }
                }
                Ok::<_, rusqlite::Error>(())
            })?;
        }
        self.bundles.write(storage, &mut self.courtesy)?;
        let mut insert = storage.prepare_cached(
            "INSERT OR REPLACE INTO participants (participant, first_number, last_number) \
             VALUES (?1, ?2, ?3)",
        )?;
        for participant in participants {
            insert.execute(params![&*participant, first, number - 1])?;
        }
        let noted: BTreeMap<u16, u64> = batch.iter().filter_map(|request| request.up_to).collect();
        let mut note =
            storage.prepare_cached("INSERT OR REPLACE INTO meta (name, value) VALUES (?1, ?2)")?;
        for (shard, up_to) in noted {
            note.execute(params![archived_name(shard), clamp(up_to)])?;
        }
        Ok(())
    }

    /// Takes one that is like others before, and has not been written.
    fn take_alike(&mut self, packed: &PackedTransaction<'_>) -> bool {
        let like = self.alike.find(packed).filter(|like| like.ended_at > self.started_at_ms);
        like.is_some_and(|like| self.bundles.take_like(packed.id(), &like))
    }

    /// Writes one transaction, and says whether as a row of its own.
    fn write_one(
        &mut self,
        storage: &Connection,
        number: i64,
        packed: &PackedTransaction<'_>,
        ended: &Transaction,
    ) -> rusqlite::Result<bool> {
        // One that was written before a crash, and is recovered, is written again: the later
        // version is at least as complete.
        if ended.ended_at.is_none_or(|at| at <= self.started_at_ms) {
            remove_row(storage, ended)?;
            bundles::remove(storage, ended.id.as_str())?;
        }
        let moments = course(ended);
        let course = self.courses.course_of(storage, ended, &moments)?;
        let bundled = course.and_then(|course| self.bundles.take(ended, course, &moments));
        if let Some(about) = bundled {
            self.alike.learn(packed, ended, &moments, about);
            return Ok(false);
        }
        insert_row(storage, number, ended, &moments, course)?;
        Ok(true)
    }
}

fn insert_row(
    storage: &Connection,
    number: i64,
    ended: &Transaction,
    moments: &[Moment],
    course: Option<i64>,
) -> rusqlite::Result<()> {
    let (document, times, results) = match course {
        None => (document::whole(ended, moments), None, None),
        Some(_) => {
            let times = document::json(&Times(ended.begun_at, moments.iter().map(Moment::at)));
            let results = document::results(ended).map(|results| document::json(&results));
            (String::new(), Some(times), results)
        }
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
    let mut insert = storage.prepare_cached(
        "INSERT INTO transactions (number, id, begun_at_ms, decided_at_ms, \
         ended_at_ms, outcome, reason, reason_detail, fingerprint, document, course, times, \
         results) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
    )?;
    match insert.execute(row) {
        // Whoever embeds a manager may have given an id twice, against its word.
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => {
            remove_row(storage, ended)?;
            insert.execute(row).map(drop)
        }
        inserted => inserted.map(drop),
    }
}

fn remove_row(storage: &Connection, ended: &Transaction) -> rusqlite::Result<()> {
    let sql = "DELETE FROM transactions WHERE id = ?1";
    storage.prepare_cached(sql)?.execute([ended.id.as_str()]).map(drop)
}
