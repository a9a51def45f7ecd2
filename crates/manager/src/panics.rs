//! The record of transactions that the program broke on: a small table beside the history, written
//! before the program stops and read before a journal is. Decides when a transaction is set aside.
//! Without it a restart would meet the same transaction again, and break again, for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, params};
use unanimity_core::{Doing, REASON_BYTES_MAX, Replayed, SetAside, TransactionId};

use crate::blame::Blamed;
use crate::history::HistoryPlace;

/// The table; in the history's file, so that one file is made durable and copied.
pub(crate) const TABLE: &str = "
    CREATE TABLE IF NOT EXISTS panics (
        transaction_id TEXT PRIMARY KEY,
        panics INTEGER NOT NULL,   -- how often the program broke on it
        doing TEXT NOT NULL,       -- during what, the last time
        message TEXT NOT NULL,     -- in which words, the last time
        at_ms INTEGER NOT NULL     -- when, the last time
    ) STRICT;
";
/// So many transactions are kept on record of which nothing else is.
const UNKNOWN_MAX: usize = 1_000;
/// How long a note may wait for the history's own writer.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is on record.
#[derive(Clone, Debug, Default)]
pub(crate) struct Panics {
    by_id: BTreeMap<TransactionId, SetAside>,
    panics_max: u32,
}

impl Panics {
    /// Reads the record. A transaction that the program broke on `panics_max` times is set aside.
    pub(crate) fn read(connection: &Connection, panics_max: u32) -> rusqlite::Result<Self> {
        let sql = "SELECT transaction_id, panics, doing, message, at_ms FROM panics";
        let mut query = connection.prepare(sql)?;
        let rows = query.query_map([], |row| {
            let (id, doing) = (row.get::<_, String>(0)?, row.get::<_, String>(2)?);
            let doing = Doing::ALL.into_iter().find(|known| known.as_str() == doing);
            let why = SetAside {
                // A word of a newer version: the least that is safe is to leave it alone.
                doing: doing.unwrap_or(Doing::Replaying),
                panics: row.get(1)?,
                message: row.get::<_, String>(3)?.into(),
                at: u64::try_from(row.get::<_, i64>(4)?).unwrap_or(0),
                read: true,
            };
            Ok((TransactionId::new(&id).ok(), why))
        })?;
        let mut by_id = BTreeMap::new();
        for row in rows {
            if let (Some(id), why) = row? {
                by_id.insert(id, why);
            }
        }
        Ok(Self { by_id, panics_max })
    }

    /// Those that are set aside, whatever becomes of them.
    fn too_often(&self) -> impl Iterator<Item = (&TransactionId, &SetAside)> {
        self.by_id.iter().filter(|(_, why)| why.panics >= self.panics_max)
    }

    /// Those whose records are not even to be read.
    pub(crate) fn unreadable(&self) -> BTreeSet<TransactionId> {
        let unreadable = self.too_often().filter(|(_, why)| why.doing == Doing::Replaying);
        unreadable.map(|(id, _)| id.clone()).collect()
    }

    /// Why this one is set aside, if it is.
    fn why(&self, id: &TransactionId) -> Option<&SetAside> {
        self.by_id.get(id).filter(|why| why.panics >= self.panics_max)
    }

    /// Sets aside what must be, in one shard, before anything is taken up.
    pub(crate) fn set_aside(&self, replayed: &mut Replayed) {
        let Replayed { coordinator, unread, ended, .. } = replayed;
        for (id, why) in self.too_often() {
            let begun_at = unread.get(id);
            if begun_at.is_some() || coordinator.knows(id) {
                let why = SetAside { read: begun_at.is_none(), ..why.clone() };
                warn(id, &why);
                coordinator.set_aside(id, begun_at.copied().unwrap_or(0), why);
            }
        }
        for ended in ended {
            let why = self.why(&ended.id).filter(|why| why.doing == Doing::Archiving);
            if let Some(why) = why {
                warn(&ended.id, why);
                Arc::make_mut(ended).set_aside = Some(Box::new(why.clone()));
            }
        }
    }

    /// Those that are to be refused should they come again: the program broke on their beginning,
    /// and nothing of them is on record.
    pub(crate) fn refused(
        &self,
        known: impl Fn(&TransactionId) -> bool,
    ) -> BTreeSet<TransactionId> {
        self.too_often().filter(|(id, _)| !known(id)).map(|(id, _)| id.clone()).collect()
    }

    /// Forgets those that nobody knows, but for the latest: most have ended.
    pub(crate) fn forget_unknown(
        &self,
        connection: &Connection,
        known: impl Fn(&TransactionId) -> bool,
    ) -> rusqlite::Result<()> {
        let mut unknown: Vec<_> = self.by_id.iter().filter(|(id, _)| !known(id)).collect();
        unknown.sort_by_key(|(_, why)| std::cmp::Reverse(why.at));
        unknown.iter().skip(UNKNOWN_MAX).try_for_each(|(id, _)| delete(connection, id))
    }
}

fn warn(id: &TransactionId, why: &SetAside) {
    tracing::error!(transaction = %id, panics = why.panics, doing = why.doing.as_str(),
        message = &*why.message, "a transaction is set aside: it is left alone until somebody has \
        it taken up again (unanimity retry)");
}

/// Notes a panic; gives back how often the program has broken on that transaction now.
pub(crate) fn note(place: &HistoryPlace, blamed: &Blamed, at_ms: u64) -> rusqlite::Result<u32> {
    let connection = place.connect()?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.busy_timeout(PATIENCE)?;
    let sql = "INSERT INTO panics (transaction_id, panics, doing, message, at_ms) \
        VALUES (?1, 1, ?2, ?3, ?4) ON CONFLICT (transaction_id) DO UPDATE SET \
        panics = panics + 1, doing = excluded.doing, message = excluded.message, \
        at_ms = excluded.at_ms";
    let message = shortened(&blamed.message);
    let at_ms = i64::try_from(at_ms).unwrap_or(i64::MAX);
    let values = params![blamed.id.as_str(), blamed.doing.as_str(), message, at_ms];
    connection.execute(sql, values)?;
    let sql = "SELECT panics FROM panics WHERE transaction_id = ?1";
    connection.query_row(sql, [blamed.id.as_str()], |row| row.get(0))
}

/// Forgets how often the program broke on a transaction.
pub(crate) fn forget(place: &HistoryPlace, id: &TransactionId) -> rusqlite::Result<()> {
    let connection = place.connect()?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.busy_timeout(PATIENCE)?;
    delete(&connection, id)
}

fn delete(connection: &Connection, id: &TransactionId) -> rusqlite::Result<()> {
    let sql = "DELETE FROM panics WHERE transaction_id = ?1";
    connection.execute(sql, [id.as_str()]).map(drop)
}

fn shortened(message: &str) -> &str {
    let end = (0..=message.len().min(REASON_BYTES_MAX)).rev();
    let end = end.into_iter().find(|end| message.is_char_boundary(*end)).unwrap_or(0);
    &message[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> TransactionId {
        TransactionId::new(name).unwrap()
    }

    fn noted(place: &HistoryPlace, name: &str, doing: Doing) -> u32 {
        let blamed = Blamed { id: id(name), doing, message: "oh".repeat(1_000) };
        note(place, &blamed, 7).unwrap()
    }

    fn noted_at(place: &HistoryPlace, name: &str, at_ms: u64) {
        let blamed = Blamed { id: id(name), doing: Doing::Handling, message: String::new() };
        note(place, &blamed, at_ms).unwrap();
    }

    #[test]
    fn a_transaction_is_set_aside_at_the_bound_and_not_before() {
        let place = HistoryPlace::Memory("panics-bound".to_owned());
        let connection = place.connect().unwrap();
        connection.execute_batch(TABLE).unwrap();
        noted(&place, "a", Doing::Handling);
        assert_eq!(noted(&place, "a", Doing::Handling), 2);
        assert!(Panics::read(&connection, 3).unwrap().why(&id("a")).is_none());
        assert_eq!(noted(&place, "a", Doing::Replaying), 3);
        noted(&place, "b", Doing::Replaying);
        let panics = Panics::read(&connection, 3).unwrap();
        let why = panics.why(&id("a")).unwrap();
        assert_eq!((why.panics, why.doing, why.message.len()), (3, Doing::Replaying, 512));
        assert_eq!(panics.unreadable(), BTreeSet::from([id("a")]));
        assert_eq!(panics.refused(|known| known.as_str() == "b"), BTreeSet::from([id("a")]));
        for number in 0..UNKNOWN_MAX {
            noted_at(&place, &format!("later-{number}"), 8);
        }
        let panics = Panics::read(&connection, 3).unwrap();
        panics.forget_unknown(&connection, |known| known.as_str() == "a").unwrap();
        let left = Panics::read(&connection, 3).unwrap().by_id;
        assert_eq!((left.len(), left.contains_key(&id("a"))), (UNKNOWN_MAX + 1, true));
        assert!(!left.contains_key(&id("b")), "the oldest that nobody knows");
        forget(&place, &id("a")).unwrap();
        assert!(!Panics::read(&connection, 1).unwrap().by_id.contains_key(&id("a")));
    }
}
