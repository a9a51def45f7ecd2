//! Decides which ended transactions lie together in one row, and finds them there again. Those that
//! took one course at nearly one time differ in ids, times and results alone: as rows of their own,
//! each with its place in two indexes, they cost the history's thread seven times the work.
//!
//! Only transactions whose ids the coordinator made are bundled. Such an id begins with the time at
//! which it was made, so that a bundle holds neighbours, and says by its first and last whether one
//! may be in it. An id that an initiator chose says nothing, and has a row.

use std::collections::BTreeMap;
use std::ops::Range;

use rusqlite::{Connection, Row, params};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use unanimity_core::{Transaction, TransactionId};

use super::alike::{About, Like};
use super::document::{self, Columns};
use super::writing::Courtesy;
use super::{Ended, HistoryError, clamp};
use crate::filter::{Cursor, Filter};
use crate::view::Moment;

/// The most transactions of a bundle: to read one of them, all are looked through.
const MEMBERS_MAX: usize = 256;
/// A transaction whose results make it longer has a row of its own.
const MEMBER_BYTES_MAX: usize = 4_096;
/// A bundle that has become so long takes no more.
const BUNDLE_BYTES: usize = 65_536;
/// Those of a bundle were made, and began, within so many milliseconds.
const SPAN_MS: u64 = 100;

pub(super) const TABLES: &str = "
    -- Transactions of one course that ended at nearly one time, in a row together.
    CREATE TABLE IF NOT EXISTS bundles (
        number INTEGER PRIMARY KEY,
        course INTEGER NOT NULL,     -- their document's number in courses
        outcome TEXT NOT NULL,
        reason TEXT NOT NULL,
        count INTEGER NOT NULL,
        first_id TEXT NOT NULL,
        last_id TEXT NOT NULL,
        first_begun_at_ms INTEGER NOT NULL,
        -- A list of lists: id, when it began, how long after that it was decided, and ended, the
        -- times of its events, the results of its branches or null.
        members TEXT NOT NULL
    ) STRICT;
    CREATE INDEX IF NOT EXISTS bundles_by_id ON bundles (first_id, last_id);
    -- With what a list asks for: a bundle that has nothing for it is not read.
    CREATE INDEX IF NOT EXISTS bundles_by_begin ON bundles (first_begun_at_ms, course, outcome);
";

/// The id, if it is one that a coordinator made: see [`crate::generate`].
fn made_by_coordinator(id: &str) -> Option<[u8; 32]> {
    let bytes: [u8; 32] = id.as_bytes().try_into().ok()?;
    let hexadecimal = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    (bytes[12] == b'7' && bytes.iter().all(hexadecimal)).then_some(bytes)
}

/// When such an id was made, in milliseconds since the Unix epoch.
fn made_at_ms(id: &[u8; 32]) -> u64 {
    let digit = |byte: &u8| u64::from(byte - if byte.is_ascii_digit() { b'0' } else { b'a' - 10 });
    id[..12].iter().fold(0, |value, byte| value << 4 | digit(byte))
}

/// One transaction on its way into a bundle.
struct Piece {
    about: About,
    id: [u8; 32],
    begun_at_ms: u64,
    /// Where its text is.
    text: Range<usize>,
}

/// What a batch brings for bundles.
#[derive(Default)]
pub(super) struct Bundles {
    pieces: Vec<Piece>,
    text: Vec<u8>,
    members: String,
}

impl Bundles {
    /// Takes a transaction of this course, unless it must have a row; then gives back what its
    /// bundle says of it.
    pub(super) fn take(
        &mut self,
        ended: &Transaction,
        course: i64,
        moments: &[Moment],
    ) -> Option<About> {
        let (decision, ended_at) = (ended.decision.as_ref()?, ended.ended_at?);
        if ended.fingerprint != 0 {
            return None;
        }
        let (outcome, reason) = (decision.outcome, decision.reason.code());
        let about = About { course, outcome, reason };
        let times = document::Times(ended.begun_at, moments.iter().map(Moment::at));
        let results = document::results(ended);
        let at = [ended.begun_at, decision.at, ended_at];
        self.add(&ended.id, about, at, (times, results)).then_some(about)
    }

    /// The same, where it is like one that was taken.
    pub(super) fn take_like(&mut self, id: &TransactionId, like: &Like<'_>) -> bool {
        let Like { about, begun_at, decided_at, ended_at, moments } = *like;
        let times = document::Times(begun_at, moments.iter().copied());
        self.add(id, about, [begun_at, decided_at, ended_at], (times, None::<()>))
    }

    /// When it began, was decided, and ended; the times of its events, and its results.
    fn add(
        &mut self,
        id: &TransactionId,
        about: About,
        [begun_at_ms, decided_at, ended_at]: [u64; 3],
        (times, results): (impl Serialize, impl Serialize),
    ) -> bool {
        let Some(digits) = made_by_coordinator(id.as_str()) else { return false };
        let (start, since) = (self.text.len(), |at| document::since(at, begun_at_ms));
        let (decided, over) = (since(decided_at), since(ended_at));
        let member = (id.as_str(), begun_at_ms, decided, over, times, results);
        document::put(&member, &mut self.text);
        if self.text.len() - start > MEMBER_BYTES_MAX {
            self.text.truncate(start);
            return false;
        }
        self.pieces.push(Piece { about, id: digits, begun_at_ms, text: start..self.text.len() });
        true
    }

    /// Writes what was taken.
    pub(super) fn write(
        &mut self,
        storage: &Connection,
        courtesy: &mut Courtesy,
    ) -> rusqlite::Result<()> {
        self.pieces.sort_unstable_by(|a, b| (a.about.course, &a.id).cmp(&(b.about.course, &b.id)));
        let mut left = &self.pieces[..];
        while !left.is_empty() {
            let (bundle, others) = left.split_at(length_of_bundle(left));
            left = others;
            self.members.clear();
            for piece in bundle {
                self.members.push(if self.members.is_empty() { '[' } else { ',' });
                self.members.push_str(text_of(&self.text[piece.text.clone()]));
            }
            self.members.push(']');
            insert(storage, bundle, &self.members)?;
            courtesy.after(bundle.len());
        }
        self.pieces.clear();
        self.text.clear();
        Ok(())
    }
}

fn text_of(bytes: &[u8]) -> &str {
    let Ok(text) = std::str::from_utf8(bytes) else { panic!("JSON is text") };
    text
}

/// How many of these, from the first on, go into one bundle.
fn length_of_bundle(pieces: &[Piece]) -> usize {
    let first = &pieces[0];
    let (course, made_at) = (first.about.course, made_at_ms(&first.id));
    let (mut earliest, mut latest, mut bytes) = (first.begun_at_ms, first.begun_at_ms, 0);
    let fits = |piece: &&Piece| {
        let had = bytes;
        bytes += piece.text.len();
        earliest = earliest.min(piece.begun_at_ms);
        latest = latest.max(piece.begun_at_ms);
        piece.about.course == course
            && made_at_ms(&piece.id) - made_at <= SPAN_MS
            && latest - earliest <= SPAN_MS
            && had < BUNDLE_BYTES
    };
    pieces.iter().take(MEMBERS_MAX).take_while(fits).count()
}

fn insert(storage: &Connection, bundle: &[Piece], members: &str) -> rusqlite::Result<()> {
    let (Some(first), Some(last)) = (bundle.first(), bundle.last()) else { return Ok(()) };
    let begun = bundle.iter().map(|piece| piece.begun_at_ms).min();
    let mut insert = storage.prepare_cached(
        "INSERT INTO bundles (course, outcome, reason, count, first_id, last_id, \
         first_begun_at_ms, members) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    )?;
    insert.execute(params![
        first.about.course,
        first.about.outcome.as_str(),
        first.about.reason,
        bundle.len() as i64,
        text_of(&first.id),
        text_of(&last.id),
        clamp(begun.unwrap_or(first.begun_at_ms)),
        members,
    ])?;
    Ok(())
}

/// What [`stored`] reads, in its order.
const COLUMNS: &str = "b.number, b.outcome, b.reason, b.first_begun_at_ms, c.document, b.members";
const SOURCE: &str = "bundles AS b JOIN courses AS c ON c.number = b.course";
/// Where a bundle may hold an id, which is the second parameter; the first is what an id begins
/// with that was made as long before as a bundle may reach.
const MAY_HOLD: &str = "b.first_id BETWEEN ?1 AND ?2 AND b.last_id >= ?2";

/// A bundle as it is stored.
struct Stored {
    number: i64,
    outcome: String,
    reason: String,
    first_begun_at_ms: u64,
    document: String,
    members: String,
}

fn stored(row: &Row<'_>) -> rusqlite::Result<Stored> {
    Ok(Stored {
        number: row.get(0)?,
        outcome: row.get(1)?,
        reason: row.get(2)?,
        first_begun_at_ms: row.get::<_, i64>(3)?.cast_unsigned(),
        document: row.get(4)?,
        members: row.get(5)?,
    })
}

/// See [`TABLES`].
#[derive(Deserialize)]
struct Member<'a>(
    &'a str,
    u64,
    i64,
    i64,
    #[serde(borrow)] &'a RawValue,
    #[serde(borrow)] Option<&'a RawValue>,
);

impl Stored {
    fn broken(&self, error: &dyn std::fmt::Display) -> HistoryError {
        HistoryError::Document { id: format!("bundle {}", self.number), message: error.to_string() }
    }

    fn members(&self) -> Result<Vec<Member<'_>>, HistoryError> {
        serde_json::from_str(&self.members).map_err(|error| self.broken(&error))
    }

    fn read(&self, member: &Member<'_>, with_timeline: bool) -> Result<Ended, HistoryError> {
        let Member(id, begun_at_ms, decided, ended, times, results) = member;
        let columns = Columns {
            id: (*id).to_owned(),
            begun_at_ms: *begun_at_ms,
            decided_at_ms: Some(begun_at_ms.wrapping_add_signed(*decided)),
            ended_at_ms: begun_at_ms.wrapping_add_signed(*ended),
            outcome: self.outcome.clone(),
            reason: self.reason.clone(),
            reason_detail: None,
        };
        let beside = (Some(times.get()), results.map(RawValue::get));
        let (view, timeline) =
            document::read(columns, &self.document, beside).map_err(|error| self.broken(&error))?;
        Ok(Ended { fingerprint: 0, view, timeline: with_timeline.then_some(timeline) })
    }
}

/// The bundles that may hold this id, the latest first.
fn that_may_hold(connection: &Connection, id: &[u8; 32]) -> rusqlite::Result<Vec<Stored>> {
    let low = format!("{:012x}", made_at_ms(id).saturating_sub(SPAN_MS));
    let sql = format!("SELECT {COLUMNS} FROM {SOURCE} WHERE {MAY_HOLD} ORDER BY b.number DESC");
    let mut query = connection.prepare_cached(&sql)?;
    query.query_map(params![low, text_of(id)], stored)?.collect()
}

/// The bundles in which a transaction may be found, if its id is one that a coordinator made.
pub(super) struct Found(Vec<Stored>);

/// Where to look for a transaction.
pub(super) fn find(connection: &Connection, id: &str) -> rusqlite::Result<Found> {
    let bundles = made_by_coordinator(id).map(|id| that_may_hold(connection, &id));
    bundles.transpose().map(|bundles| Found(bundles.unwrap_or_default()))
}

impl Found {
    /// The transaction.
    pub(super) fn read(
        &self,
        id: &str,
        with_timeline: bool,
    ) -> Result<Option<Ended>, HistoryError> {
        for bundle in &self.0 {
            if let Some(member) = bundle.members()?.iter().find(|member| member.0 == id) {
                return bundle.read(member, with_timeline).map(Some);
            }
        }
        Ok(None)
    }
}

/// Takes a transaction out of the bundle that holds it, if one does: it is about to be written
/// again.
pub(super) fn remove(storage: &Connection, id: &str) -> rusqlite::Result<()> {
    let Some(bytes) = made_by_coordinator(id) else { return Ok(()) };
    for bundle in that_may_hold(storage, &bytes)? {
        // One that cannot be read holds nothing that could be found there.
        let Ok(all) = serde_json::from_str::<Vec<&RawValue>>(&bundle.members) else { continue };
        let is_it = |member: &&&RawValue| {
            serde_json::from_str::<Member<'_>>(member.get()).is_ok_and(|member| member.0 == id)
        };
        let left: Vec<&str> =
            all.iter().filter(|member| !is_it(member)).map(|member| member.get()).collect();
        if left.is_empty() {
            storage.execute("DELETE FROM bundles WHERE number = ?1", [bundle.number])?;
        } else if left.len() < all.len() {
            let sql = "UPDATE bundles SET members = ?2, count = ?3 WHERE number = ?1";
            let members = format!("[{}]", left.join(","));
            storage.execute(sql, params![bundle.number, members, left.len() as i64])?;
        }
    }
    Ok(())
}

/// Transactions in bundles that pass a filter, the latest first.
pub(super) struct Listed {
    bundles: Vec<Stored>,
    /// When each began, its id, and which member it is of which bundle.
    places: Vec<(u64, String, usize, usize)>,
}

/// The bundles of a list, latest first.
pub(super) fn list_sql() -> String {
    format!(
        "SELECT {COLUMNS} FROM {SOURCE} WHERE b.first_begun_at_ms <= ?1 \
         AND b.first_begun_at_ms >= ?2 AND b.first_begun_at_ms < ?3 \
         AND (?4 IS NULL OR b.outcome = ?4) AND (?5 IS NULL OR b.course IN \
         (SELECT p.course FROM course_participants AS p WHERE p.participant = ?5)) \
         ORDER BY b.first_begun_at_ms DESC"
    )
}

/// Looks for the latest `limit` transactions in bundles that pass a filter.
pub(super) fn list(
    connection: &Connection,
    filter: &Filter,
    limit: usize,
) -> rusqlite::Result<Listed> {
    let before = filter.cursor.clone().unwrap_or_else(Cursor::latest);
    let from = filter.begun_from_ms.unwrap_or(0);
    let until = filter.begun_until_ms.unwrap_or(u64::MAX);
    let mut query = connection.prepare_cached(&list_sql())?;
    let mut rows = query.query(params![
        clamp(before.begun_at_ms),
        clamp(from.saturating_sub(SPAN_MS)),
        clamp(until),
        filter.outcome,
        filter.participant,
    ])?;
    let passes = |member: &Member<'_>| {
        (member.1, member.0) < (before.begun_at_ms, &*before.id)
            && (from..until).contains(&member.1)
    };
    let mut listed = Listed { bundles: Vec::new(), places: Vec::new() };
    while let Some(row) = rows.next()? {
        let bundle = stored(row)?;
        // Whatever comes now began no later than this bundle's last.
        let latest = bundle.first_begun_at_ms.saturating_add(SPAN_MS);
        if listed.places.len() >= limit && listed.places.last().is_none_or(|one| one.0 > latest) {
            break;
        }
        listed.add(bundle, passes, limit);
    }
    Ok(listed)
}

impl Listed {
    fn add(&mut self, bundle: Stored, passes: impl Fn(&Member<'_>) -> bool, limit: usize) {
        let number = self.bundles.len();
        match bundle.members() {
            Ok(members) => {
                let passing = (0..).zip(&members).filter(|(_, member)| passes(member));
                self.places
                    .extend(passing.map(|(place, one)| (one.1, one.0.to_owned(), number, place)));
            }
            // To be read, and to fail.
            Err(_) => self.places.push((bundle.first_begun_at_ms, String::new(), number, 0)),
        }
        self.places.sort_unstable_by(|a, b| b.cmp(a));
        self.places.truncate(limit);
        self.bundles.push(bundle);
    }

    /// The transactions.
    pub(super) fn read(&self, with_timeline: bool) -> Result<Vec<Ended>, HistoryError> {
        let members: Vec<_> = self.bundles.iter().map(Stored::members).collect();
        let read = |(_, _, number, place): &(u64, String, usize, usize)| {
            let bundle = &self.bundles[*number];
            match &members[*number] {
                Ok(members) => bundle.read(&members[*place], with_timeline),
                Err(error) => Err(bundle.broken(error)),
            }
        };
        self.places.iter().map(read).collect()
    }
}

/// All bundles, those first whose first began first.
pub(super) fn in_order() -> String {
    format!("SELECT {COLUMNS} FROM {SOURCE} ORDER BY b.first_begun_at_ms")
}

/// A bundle of all: see [`in_order`].
pub(super) struct Next(Stored);

impl Next {
    pub(super) fn of(row: &Row<'_>) -> rusqlite::Result<Self> {
        stored(row).map(Self)
    }

    /// None of it, and of those that follow, began before this.
    pub(super) const fn first_begun_at_ms(&self) -> u64 {
        self.0.first_begun_at_ms
    }

    /// Puts its transactions, with their timelines, among others, in the order of their beginning.
    pub(super) fn put(
        &self,
        among: &mut BTreeMap<(u64, String), Ended>,
    ) -> Result<(), HistoryError> {
        for member in self.0.members()? {
            let ended = self.0.read(&member, true)?;
            among.insert((member.1, member.0.to_owned()), ended);
        }
        Ok(())
    }
}
