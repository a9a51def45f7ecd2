//! Decides whether a file is a journal that this program may use, and makes a new one where there
//! is none. Whether its batches are sound is left to reading.
//!
//! A file that is refused must stay as it is, to the byte. But SQLite, asked anything about a file,
//! first plays back what a crash left beside it. So, as a story:
//! 1. *Probe*: read the header with `immutable=1`, which takes no lock and ignores whatever lies
//!    beside the file. A foreign or newer file is refused here. (Never by opening the file
//!    ourselves: closing it would drop the POSIX locks that another engine in this process holds on
//!    it.)
//! 2. *Lock*: open and begin an exclusive transaction at once. In exclusive locking mode the lock
//!    is kept after its end. Whoever comes second fails here.
//! 3. *Create*, if the file is empty, in steps of which each leaves a file that the probe can read
//!    and knows, wherever a crash falls: an empty first page; our mark on it; WAL mode; and then
//!    the tables and the version as one transaction through the log. (All in one transaction of
//!    rollback mode would leave, for a moment, a file shorter than its header says.)
//! 4. *Check*: the header again, now with the write-ahead log; the log itself; the pages; the rows
//!    of `shards`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::failure::{cannot_open, failure};
use super::tail::load_first;
use super::wal;
use crate::io::io_failure;
use crate::{JournalError, ShardId};

/// Marks the file as ours: the letters `UNJF`.
const APPLICATION_ID: i32 = 0x554E_4A46;
/// The format of the file around the batches, in SQLite's `user_version`.
const FILE_VERSION: i32 = 1;

/// The tables, in the order of their names, word for word as SQLite keeps them.
const TABLES: [&str; 2] = [
    "CREATE TABLE batches (key INTEGER PRIMARY KEY, bytes BLOB NOT NULL)",
    "CREATE TABLE shards (shard INTEGER PRIMARY KEY, first INTEGER NOT NULL, \
     previous INTEGER NOT NULL, checksum INTEGER NOT NULL)",
];
/// SQLite's smallest page. It takes a file of one byte for an empty one.
const DATABASE_BYTES_MIN: u64 = 512;

/// Opens or creates the journal at `path` and returns it locked, checked, and with its full path.
pub(super) fn open(path: &Path) -> Result<(Connection, PathBuf), JournalError> {
    // A relative path would follow the working directory; ":memory:" and "" mean something else to
    // SQLite.
    let path = &fs::canonicalize(path)
        .or_else(|_| std::path::absolute(path))
        .map_err(|error| io_failure(path, &error))?;
    probe(path)?;
    let connection = lock(path)?;
    let identity = identify(&connection, path)?;
    if identity == Identity::Blank {
        mark(&connection).map_err(|error| failure(path, error))?;
    }
    wal::check(path)?;
    configure(&connection, path)?;
    if identity != Identity::Whole {
        create_tables(&connection).map_err(|error| failure(path, error))?;
    }
    check_tables(&connection, path)?;
    check_pages(&connection, path)?;
    check_shards(&connection, path)?;
    // From here on it is ours: closing it tidily may checkpoint it, so that a closed journal is one
    // file.
    connection
        .set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)
        .map_err(|error| failure(path, error))?;
    Ok((connection, path.clone()))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Identity {
    Blank,
    /// Ours, and its creation was cut off before there were tables.
    Marked,
    Whole,
}

fn probe(path: &Path) -> Result<(), JournalError> {
    let refuse = |detail: &str| {
        Err(JournalError::ForeignFile { path: path.to_owned(), detail: detail.to_owned() })
    };
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => return refuse("a folder"),
        Ok(metadata) if !metadata.is_file() => return refuse("a device, a pipe or a socket"),
        Ok(metadata) if (1..DATABASE_BYTES_MIN).contains(&metadata.len()) => {
            return refuse("too short for a database");
        }
        Ok(metadata) if metadata.len() > 0 => {}
        // SQLite would delete the log of an empty file. We never leave one beside one.
        Ok(_) | Err(_) => return wal::check_absent(path),
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    let connection = Connection::open_with_flags(immutable_uri(path), flags)
        .map_err(|error| open_failure(path, path, error))?;
    // A crash during a checkpoint can leave a file shorter than its header says; all is well then,
    // for the log still has it all, but the probe does not see the log. With this, SQLite bears it.
    connection
        .execute_batch("PRAGMA writable_schema = ON")
        .map_err(|error| open_failure(path, path, error))?;
    identify(&connection, path).map(drop)
}

fn immutable_uri(path: &Path) -> String {
    let mut uri = "file://".to_owned();
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' => {
                uri.push(char::from(*byte));
            }
            byte => uri.push_str(&format!("%{byte:02X}")),
        }
    }
    uri.push_str("?immutable=1");
    uri
}

fn lock(path: &Path) -> Result<Connection, JournalError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)
        .map_err(|error| open_failure(path, path, error))?;
    let wal = wal::wal_path(path);
    hold(&connection).map_err(|error| open_failure(path, &wal, error))?;
    Ok(connection)
}

fn hold(connection: &Connection) -> rusqlite::Result<()> {
    // Waiting for another owner would be waiting for its end; and a refused file must not be
    // checkpointed by closing it.
    connection.busy_timeout(Duration::ZERO)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.execute_batch("PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE; COMMIT")
}

/// Like [`failure`]; where SQLite can only say that it cannot open, `file` is asked why.
fn open_failure(path: &Path, file: &Path, error: rusqlite::Error) -> JournalError {
    match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::CannotOpen) => cannot_open(path, file),
        Some(_) | None => failure(path, error),
    }
}

fn identify(connection: &Connection, path: &Path) -> Result<Identity, JournalError> {
    let number = |sql| {
        connection
            .query_row(sql, [], |row| row.get::<_, i32>(0))
            .map_err(|error| open_failure(path, path, error))
    };
    let id = number("PRAGMA application_id")?;
    let version = number("PRAGMA user_version")?;
    let objects = number("SELECT count(*) FROM sqlite_schema")?;
    if (id, version, objects) == (0, 0, 0) {
        return Ok(Identity::Blank);
    }
    if (id, version, objects) == (APPLICATION_ID, 0, 0) {
        return Ok(Identity::Marked);
    }
    if id != APPLICATION_ID {
        let detail = format!("a SQLite database with application id {id:#010x}");
        return Err(JournalError::ForeignFile { path: path.to_owned(), detail });
    }
    if version > FILE_VERSION {
        let (found, supported) = (version.cast_unsigned(), FILE_VERSION.cast_unsigned());
        return Err(JournalError::NewerVersion { path: path.to_owned(), found, supported });
    }
    if version < FILE_VERSION {
        return Err(damaged(path, "its header", format!("format version {version} never existed")));
    }
    Ok(Identity::Whole)
}

fn mark(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(&format!(
        "PRAGMA synchronous = FULL;
         PRAGMA fullfsync = ON;
         PRAGMA application_id = {APPLICATION_ID}"
    ))
}

/// The checkpoint at the end lets the file stand without its log.
fn create_tables(connection: &Connection) -> rusqlite::Result<()> {
    let [batches, shards] = TABLES;
    connection.execute_batch(&format!(
        "BEGIN IMMEDIATE;
         PRAGMA user_version = {FILE_VERSION};
         {batches};
         {shards};
         COMMIT;
         PRAGMA wal_checkpoint(TRUNCATE)"
    ))
}

fn configure(connection: &Connection, path: &Path) -> Result<(), JournalError> {
    let fail = |error| failure(path, error);
    let mode: String =
        connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0)).map_err(fail)?;
    if mode != "wal" {
        let message = format!("WAL mode is not possible here; SQLite stays in {mode} mode");
        return Err(JournalError::Io { path: path.to_owned(), message });
    }
    // cache_size: 8 MB. What is forgotten was mostly appended within the last moments: to find its
    // pages in the cache halves what that takes.
    // fullfsync: on macOS a plain fsync does not reach the disk. Nothing elsewhere.
    connection
        .execute_batch(
            "PRAGMA synchronous = FULL;
             PRAGMA fullfsync = ON;
             PRAGMA checkpoint_fullfsync = ON;
             PRAGMA cache_size = -8000;
             PRAGMA trusted_schema = OFF",
        )
        .map_err(fail)?;
    connection
        .query_row("PRAGMA wal_autocheckpoint = 0", [], |row| row.get::<_, i64>(0))
        .map(drop)
        .map_err(fail)
}

/// One wrong letter in a table's definition can make another table of the same rows: without its
/// primary key, every row is still there and none is found.
fn check_tables(connection: &Connection, path: &Path) -> Result<(), JournalError> {
    let tables = connection
        .prepare("SELECT sql FROM sqlite_schema ORDER BY name")
        .and_then(|mut select| {
            select.query_map([], |row| row.get(0))?.collect::<Result<Vec<String>, _>>()
        })
        .map_err(|error| failure(path, error))?;
    if tables == TABLES {
        return Ok(());
    }
    Err(damaged(path, "its tables", format!("their definition is not ours: {tables:?}")))
}

/// A damaged tree can hide rows; batches that nobody sees have no checksum to fail.
fn check_pages(connection: &Connection, path: &Path) -> Result<(), JournalError> {
    let verdict: String = connection
        .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
        .map_err(|error| failure(path, error))?;
    if verdict == "ok" { Ok(()) } else { Err(damaged(path, "its pages", verdict)) }
}

/// A damaged shard number would make a shard look fresh.
fn check_shards(connection: &Connection, path: &Path) -> Result<(), JournalError> {
    let shards = connection
        .prepare("SELECT shard FROM shards")
        .and_then(|mut select| {
            select.query_map([], |row| row.get(0))?.collect::<Result<Vec<i64>, _>>()
        })
        .map_err(|error| failure(path, error))?;
    for shard in shards {
        let shard = ShardId::try_from(shard)
            .map_err(|_| damaged(path, "its tables", format!("{shard} is no shard's number")))?;
        load_first(connection, path, shard)?;
    }
    Ok(())
}

fn damaged(path: &Path, place: &str, detail: String) -> JournalError {
    JournalError::Corrupt { path: path.to_owned(), place: place.to_owned(), detail }
}
