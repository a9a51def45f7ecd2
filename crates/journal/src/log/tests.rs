//! Crashes at every point, as a story in rounds:
//! 1. An engine is opened on a file and appends, forgets and hardens at random. Every call on the
//!    file is written down.
//! 2. It stops between any two calls. Either it was killed: all that was written can be read, and
//!    may still come to the disk. Or a sync has failed: all of it can be read, some of it is on the
//!    disk, and the rest never will be by itself. Or the power fails: what was synced is there, and
//!    of what was written since, any sectors.
//! 3. A new engine must find what was acknowledged, and at most what was under way beside it.

use std::fs;
use std::path::{Path, PathBuf};

use super::LogEngine;
use super::file::recorded::{self, Call};
use crate::{Bounds, Engine};

const SECTOR: usize = 512;
const SEEDS: u64 = if cfg!(feature = "long") { 6_000 } else { 200 };

struct Lot(u64);

impl Lot {
    /// A number below `end`.
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % end
    }
}

/// What the two shards hold: bounds, and the records of each batch.
type Contents = [(Bounds, Vec<Vec<Vec<u8>>>); 2];
const SHARDS: [u16; 2] = [1, 40_000];

fn contents(engine: &mut LogEngine) -> Contents {
    SHARDS.map(|shard| {
        let (bounds, mut batches) = (engine.bounds(shard).unwrap(), Vec::new());
        let each = &mut |batch: crate::Batch<'_>| {
            batches.push(batch.records.iter().map(|record| record.to_vec()).collect());
            Ok(())
        };
        engine.read(shard, bounds.first, each).unwrap();
        (bounds, batches)
    })
}

/// The file as the kernel has it, and as the disk has.
struct Disk {
    durable: Vec<u8>,
    cached: Vec<u8>,
    /// Written, and on its way to the disk.
    dirty: Vec<(usize, Vec<u8>)>,
}

fn put(file: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    file.resize(file.len().max(at + bytes.len()), 0);
    file[at..at + bytes.len()].copy_from_slice(bytes);
}

impl Disk {
    fn call(&mut self, call: &Call) {
        match call {
            Call::Write(at, bytes) => {
                put(&mut self.cached, *at as usize, bytes);
                self.dirty.push((*at as usize, bytes.clone()));
            }
            Call::Sync => {
                for (at, bytes) in self.dirty.drain(..) {
                    put(&mut self.durable, at, &bytes);
                }
            }
            Call::Cut(bytes) => {
                self.durable.truncate(*bytes as usize);
                self.cached.truncate(*bytes as usize);
            }
        }
    }

    /// Some of what is on its way arrives, and the rest is given up.
    fn give_up(&mut self, lot: &mut Lot) {
        let share = [0, 4, 8, 14, 15, 16][lot.below(6) as usize];
        for (at, bytes) in std::mem::take(&mut self.dirty) {
            for (number, sector) in bytes.chunks(SECTOR).enumerate() {
                if lot.below(16) < share {
                    put(&mut self.durable, at + number * SECTOR, sector);
                }
            }
        }
    }

    fn stop(&mut self, lot: &mut Lot) {
        match lot.below(5) {
            0 => {}
            1 => self.give_up(lot),
            _ => {
                self.give_up(lot);
                self.cached.clone_from(&self.durable);
            }
        }
    }
}

fn act(engine: &mut LogEngine, lot: &mut Lot) {
    let shard = SHARDS[lot.below(2) as usize];
    let Bounds { first, next } = engine.bounds(shard).unwrap();
    let before = first + lot.below(next - first + 1);
    let length = [0, 10, 5_000, 20_000][lot.below(4) as usize];
    let records = vec![vec![lot.below(256) as u8; length]; lot.below(3) as usize];
    let records: Vec<&[u8]> = records.iter().map(Vec::as_slice).collect();
    match lot.below(10) {
        0..5 => drop(engine.append(shard, next, &records).unwrap()),
        5..8 => {
            engine.append_and_truncate(shard, next, &records, Some(before)).unwrap();
        }
        8 => engine.truncate(shard, before).unwrap(),
        _ => engine.harden(shard).unwrap(),
    }
}

/// One round: what may be found afterwards, if this was `possible` before.
fn round(path: &Path, disk: &mut Disk, lot: &mut Lot, possible: &[Contents]) -> Vec<Contents> {
    fs::write(path, &disk.cached).unwrap();
    recorded::take();
    let mut engine = LogEngine::open(path).unwrap();
    let found = contents(&mut engine);
    assert!(possible.contains(&found), "{:?}", found.each_ref().map(|one| one.0));
    let mut stages = vec![(recorded::count(), found)];
    for _ in 0..lot.below(7) {
        act(&mut engine, lot);
        stages.push((recorded::count(), contents(&mut engine)));
    }
    drop(engine);
    let calls = recorded::take();
    let mut stopped = lot.below(calls.len() as u64 + 1) as usize;
    if lot.below(4) > 0 {
        // Mostly between a write and its sync.
        let written = |at: &usize| matches!(calls[*at - 1], Call::Write(..));
        stopped = (stopped.max(1)..=calls.len()).find(written).unwrap_or(stopped);
    }
    calls[..stopped].iter().for_each(|call| disk.call(call));
    let done = stages.iter().rposition(|(count, _)| *count <= stopped).unwrap();
    let next = stages.get(done + 1).map(|(_, found)| found.clone());
    // To have been opened, or to have done what writes nothing, makes nothing durable.
    let before = match stages[done].0 {
        0 => possible.to_vec(),
        _ => vec![stages[done].1.clone()],
    };
    disk.stop(lot);
    before.into_iter().chain(next).collect()
}

fn folder(name: &str) -> PathBuf {
    let folder =
        std::env::temp_dir().join(format!("unanimity-journal-log-{name}-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    folder
}

#[test]
fn a_crash_anywhere_leaves_what_was_acknowledged() {
    let folder = folder("crash");
    for seed in 0..SEEDS {
        let (path, mut lot) = (folder.join(format!("{seed}")), Lot(seed));
        let mut engine = LogEngine::open(&path).unwrap();
        let mut expected = vec![contents(&mut engine)];
        drop(engine);
        let durable = fs::read(&path).unwrap();
        let mut disk = Disk { cached: durable.clone(), durable, dirty: Vec::new() };
        for _ in 0..16 {
            expected = round(&path, &mut disk, &mut lot, &expected);
        }
        fs::remove_file(&path).unwrap();
    }
    fs::remove_dir_all(&folder).unwrap();
}

/// The blocks of what was forgotten are written to again; and at a start what is free at the end is
/// given back.
#[test]
fn the_file_stays_about_as_long_as_what_is_kept() {
    let folder = folder("length");
    let path = folder.join("journal");
    let mut engine = LogEngine::open(&path).unwrap();
    let record = vec![7; 50_000];
    let length = || fs::metadata(&path).unwrap().len();
    for position in 1..=500u64 {
        engine.append_and_truncate(0, position, &[&record], position.checked_sub(20)).unwrap();
    }
    assert!(length() < 4 << 20, "{}", length());
    for position in 501..=1_000 {
        engine.append(0, position, &[&record]).unwrap();
    }
    engine.truncate(0, 995).unwrap();
    assert!(length() > 20 << 20, "{}", length());
    for position in 1_001..=1_500u64 {
        engine.append_and_truncate(0, position, &[&record], Some(position - 5)).unwrap();
    }
    drop(engine);
    let mut engine = LogEngine::open(&path).unwrap();
    engine.harden(0).unwrap();
    assert!(length() < 12 << 20, "{}", length());
    assert_eq!(engine.bounds(0).unwrap(), Bounds { first: 1_495, next: 1_501 });
    drop(engine);
    assert_eq!(LogEngine::open(&path).unwrap().bounds(0).unwrap().next, 1_501);
    fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn a_file_that_was_removed_takes_nothing_more() {
    let folder = folder("removed");
    for replaced in [false, true] {
        let path = folder.join("journal");
        let mut engine = LogEngine::open(&path).unwrap();
        engine.append(0, 1, &[b"a"]).unwrap();
        fs::remove_file(&path).unwrap();
        if replaced {
            drop(LogEngine::open(&path).unwrap());
        }
        let error = engine.append(0, 2, &[b"b"]).unwrap_err();
        assert!(error.to_string().contains("it was removed while it was in use"), "{error}");
        assert_eq!(engine.append(0, 2, &[b"b"]).unwrap_err().code(), "journal_poisoned");
    }
    fs::remove_dir_all(&folder).unwrap();
}
