//! What every engine must do, checked on each of them, and what only one with a file can get wrong.
//! This file holds what the cases share; each module says what it checks.

#![allow(clippy::unwrap_used, reason = "a test that fails should panic; helpers are tests too")]

mod bytes;
mod contract;
mod damage;
mod files;
mod log;
mod model;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::ProptestConfig;
use unanimity_journal::{
    Bounds, Engine, JournalError, LogEngine, MemoryEngine, ShardId, SqliteEngine,
};

/// A folder that goes away at the end of a test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("unanimity-journal-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self) -> PathBuf {
        self.0.join("shard 0%?#.journal")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

/// A storage that outlives its engines.
enum Storage {
    Log(Folder),
    Sqlite(Folder),
    Memory(MemoryEngine),
}

impl Storage {
    fn all() -> [Self; 3] {
        let [log, sqlite] = [(); 2].map(|()| Folder::new());
        [Self::Log(log), Self::Sqlite(sqlite), Self::Memory(MemoryEngine::new())]
    }

    fn open(&self) -> Box<dyn Engine> {
        match self {
            Self::Log(folder) => Box::new(LogEngine::open(&folder.file()).unwrap()),
            Self::Sqlite(folder) => Box::new(SqliteEngine::open(&folder.file()).unwrap()),
            Self::Memory(engine) => Box::new(engine.clone()),
        }
    }
}

fn slices(records: &[Vec<u8>]) -> Vec<&[u8]> {
    records.iter().map(Vec::as_slice).collect()
}

fn records(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

/// A batch that was read, or that must be.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Batch {
    position: u64,
    records: Vec<Vec<u8>>,
}

fn read(engine: &mut dyn Engine, shard: ShardId, from: u64) -> Result<Vec<Batch>, JournalError> {
    let mut batches = Vec::new();
    engine.read(shard, from, &mut |batch| {
        let records = batch.records.iter().map(|record| record.to_vec()).collect();
        batches.push(Batch { position: batch.position, records });
        Ok(())
    })?;
    Ok(batches)
}

type Contents = (Bounds, Vec<Batch>);

fn contents(engine: &mut dyn Engine, shard: ShardId) -> Result<Contents, JournalError> {
    let bounds = engine.bounds(shard)?;
    let batches = read(engine, shard, bounds.first)?;
    assert_eq!(batches.len() as u64, bounds.next - bounds.first, "read must agree with bounds");
    Ok((bounds, batches))
}

fn code<T: std::fmt::Debug>(outcome: Result<T, JournalError>) -> &'static str {
    outcome.err().map_or("ok", |error| error.code())
}

/// Appends one-record batches until `next` is the next free position.
fn fill(engine: &mut dyn Engine, shard: ShardId, next: u64) {
    for position in engine.bounds(shard).unwrap().next..next {
        let receipt = engine.append(shard, position, &[format!("r{position}").as_bytes()]).unwrap();
        assert_eq!((receipt.shard(), receipt.position()), (shard, position));
    }
}

fn crc32(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

/// Every file of a folder, by name.
fn snapshot(folder: &Folder) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(&folder.0)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    files.sort();
    files
}

fn restore(folder: &Folder, files: &[(PathBuf, Vec<u8>)]) {
    for (path, _) in snapshot(folder) {
        fs::remove_file(path).unwrap();
    }
    for (path, bytes) in files {
        fs::write(path, bytes).unwrap();
    }
}

fn sql(path: &Path, statements: &str) -> rusqlite::Connection {
    let connection = rusqlite::Connection::open(path).unwrap();
    connection.execute_batch(statements).unwrap();
    connection
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn reopened(folder: &Folder) -> Result<Contents, JournalError> {
    contents(&mut SqliteEngine::open(&folder.file())?, 0)
}

fn proptest_config() -> ProptestConfig {
    ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() }
}
