//! Damage to the files of the SQLite engine: rotten bits, cut files, rows in the wrong place. It is
//! refused, never skipped.

use std::path::PathBuf;

use unanimity_journal::{Bounds, Engine, SqliteEngine, batch};

use crate::{
    Contents, Folder, code, contents, crc32, fill, hex, records, reopened, restore, snapshot, sql,
};

#[test]
fn a_newer_batch_is_refused() {
    let folder = Folder::new();
    fill(&mut SqliteEngine::open(&folder.file()).unwrap(), 0, 3);
    let mut bytes = batch::encode(0, 1, batch::GENESIS, &records(&["r1"]));
    bytes[4] = 2;
    let end = bytes.len() - 4;
    let checksum = crc32(&bytes[..end]).to_le_bytes();
    bytes[end..].copy_from_slice(&checksum);
    let connection = sql(&folder.file(), "");
    connection.execute("UPDATE batches SET bytes = ?1 WHERE key = 1", [bytes]).unwrap();
    drop(connection);
    let mut engine = SqliteEngine::open(&folder.file()).unwrap();
    assert_eq!(code(contents(&mut engine, 0)), "journal_newer_version");
}

#[test]
fn a_batch_in_the_wrong_place_is_refused() {
    let copy = |from: &str| format!("bytes = (SELECT bytes FROM batches WHERE key = {from})");
    let unchained = hex(&batch::encode(0, 2, 99, &records(&["r2"])));
    // (what somebody does to the rows of shard 0, what reading it says)
    for (statement, expected) in [
        ("DELETE FROM batches WHERE key = 1", "journal_gap"),
        ("DELETE FROM batches WHERE key = 3", "journal_gap"),
        ("UPDATE batches SET key = 6 WHERE key = 5", "journal_corrupt"),
        ("UPDATE batches SET key = 0 WHERE key = 1", "journal_gap"),
        (&format!("UPDATE batches SET {} WHERE key = 2", copy("4")), "journal_corrupt"),
        (&format!("UPDATE batches SET {} WHERE key = 2", copy("(1 << 48) + 2")), "journal_corrupt"),
        (&format!("UPDATE batches SET bytes = x'{unchained}' WHERE key = 2"), "journal_corrupt"),
        ("UPDATE batches SET bytes = x'' WHERE key = 2", "journal_corrupt"),
        ("UPDATE batches SET bytes = 'text' WHERE key = 2", "journal_corrupt"),
        ("DROP TABLE batches", "journal_corrupt"),
        ("CREATE INDEX i ON batches (key)", "journal_corrupt"),
        ("INSERT INTO shards VALUES (0, 3, 0, 0)", "journal_corrupt"),
        ("INSERT INTO shards VALUES (70000, 3, 0, 0)", "journal_corrupt"),
        ("INSERT INTO shards VALUES (5, 'x', 0, 0)", "journal_corrupt"),
    ] {
        let folder = Folder::new();
        let mut engine = SqliteEngine::open(&folder.file()).unwrap();
        fill(&mut engine, 0, 6);
        fill(&mut engine, 1, 6);
        drop(engine);
        drop(sql(&folder.file(), statement));
        let outcome =
            SqliteEngine::open(&folder.file()).and_then(|mut engine| contents(&mut engine, 0));
        assert_eq!(code(outcome), expected, "{statement}");
    }
}

/// A page of the log, with its header.
const FRAME_BYTES: usize = 4096 + 24;

/// A journal with three kept batches, copied in the middle of its life as a crash would leave it:
/// part in the file, part in the write-ahead log, or all of it in the file.
fn crashed(in_wal: bool) -> (Folder, Vec<(PathBuf, Vec<u8>)>, Contents) {
    let folder = Folder::new();
    let mut engine = SqliteEngine::open(&folder.file()).unwrap();
    fill(&mut engine, 0, 3);
    engine.truncate(0, 2).unwrap();
    if in_wal {
        engine.harden(0).unwrap();
    }
    fill(&mut engine, 0, 4);
    engine.append(0, 4, &[&[0x5A; 9000]]).unwrap();
    fill(&mut engine, 0, 6);
    if !in_wal {
        engine.harden(0).unwrap();
    }
    let contents = contents(&mut engine, 0).unwrap();
    let mut files = snapshot(&folder);
    drop(engine);
    if let Some((_, log)) = files.get_mut(1) {
        // Of the room behind the frames one frame's is enough to be damaged.
        let written = log.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let frames = written.saturating_sub(32).div_ceil(FRAME_BYTES) + 1;
        log.resize(32 + frames * FRAME_BYTES, 0);
    }
    (folder, files, contents)
}

/// A crash may come before anything is written into the room that was made.
#[test]
fn room_in_the_log_is_no_damage() {
    let (folder, mut files, sound) = crashed(true);
    files[1].1.resize(1 << 20, 0);
    restore(&folder, &files);
    assert_eq!(reopened(&folder).unwrap(), sound);
    let (folder, mut files, sound) = crashed(false);
    let mut log = files[0].0.as_os_str().to_owned();
    log.push("-wal");
    files.truncate(1);
    files.push((log.into(), vec![0; 1 << 20]));
    restore(&folder, &files);
    assert_eq!(reopened(&folder).unwrap(), sound);
}

/// Flips every `step`th bit of file number `file`, one at a time, and counts the outcomes: refused,
/// the same, and shorter by the last batch. Anything else fails.
fn flip(in_wal: bool, file: usize, step: usize) -> [usize; 3] {
    let (folder, files, sound) = crashed(in_wal);
    restore(&folder, &files);
    assert_eq!(reopened(&folder).unwrap(), sound, "the copy itself must be sound");
    let mut counts = [0; 3];
    for bit in (0..files[file].1.len() * 8).step_by(step) {
        let mut damaged = files.clone();
        damaged[file].1[bit / 8] ^= 1 << (bit % 8);
        restore(&folder, &damaged);
        match reopened(&folder) {
            Err(_) => counts[0] += 1,
            Ok(contents) if contents == sound => counts[1] += 1,
            Ok((bounds, batches)) => {
                let shorter = Bounds { next: sound.0.next - 1, ..sound.0 };
                assert_eq!(bounds, shorter, "byte {}", bit / 8);
                assert_eq!(batches, sound.1[..sound.1.len() - 1], "byte {}", bit / 8);
                counts[2] += 1;
            }
        }
    }
    counts
}

fn check_file_flips(step: usize) {
    let [refused, same, shorter] = flip(false, 0, step);
    assert!(refused > same / 20 && same > 0, "{refused} {same}");
    assert_eq!(shorter, 0, "what a checkpoint has moved into the file is never shortened");
}

fn check_wal_flips(step: usize) {
    let [refused, _, shorter] = flip(true, 1, step);
    // Only within the last transaction's one frame can damage not be told from a crash.
    let last_frame_bits = FRAME_BYTES * 8;
    assert!(refused > 0 && shorter * step <= last_frame_bits + step, "{refused} {shorter}");
}

#[test]
fn a_flipped_bit_in_the_file_is_refused_or_harmless() {
    check_file_flips(233);
}

#[test]
fn a_flipped_bit_in_the_log_is_refused_or_in_the_last_transaction() {
    check_wal_flips(251);
}

#[test]
#[cfg(feature = "long")]
fn every_flipped_bit_of_file_and_log() {
    check_file_flips(1);
    check_wal_flips(1);
}

/// Where nothing is kept, no batch's chain can show that the record of the truncation is wrong.
#[test]
fn a_changed_record_of_a_truncation_is_refused() {
    for change in ["first = 9", "first = -1", "previous = 7", "shard = 7", "checksum = 0"] {
        let folder = Folder::new();
        let mut engine = SqliteEngine::open(&folder.file()).unwrap();
        fill(&mut engine, 0, 4);
        engine.truncate(0, 4).unwrap();
        drop(engine);
        assert_eq!(code(reopened(&folder)), "ok");
        drop(sql(&folder.file(), &format!("UPDATE shards SET {change}")));
        assert_eq!(code(reopened(&folder)), "journal_corrupt", "{change}");
    }
}

/// A page that counts one row too few hides its last one: the last batch, or that a shard was
/// truncated. No batch is damaged by that.
#[test]
fn a_row_that_its_page_hides_is_missed() {
    let (folder, files, _) = crashed(false);
    for page in [1, 2] {
        let mut damaged = files.clone();
        let count = page * 4096 + 4;
        assert!((1..5).contains(&damaged[0].1[count]), "this must be the page's count of rows");
        damaged[0].1[count] -= 1;
        restore(&folder, &damaged);
        assert_eq!(code(reopened(&folder)), "journal_corrupt", "{page}");
    }
}

#[test]
fn a_file_cut_short_is_refused() {
    let (folder, files, _) = crashed(false);
    assert!(files[0].1.len() > 8192);
    for length in (1..files[0].1.len()).step_by(509) {
        let mut cut = files.clone();
        cut[0].1.truncate(length);
        restore(&folder, &cut);
        let found = code(reopened(&folder));
        assert!(matches!(found, "journal_corrupt" | "journal_foreign_file"), "{length}: {found}");
    }
}

#[test]
fn a_log_without_its_file_is_refused_and_kept() {
    let (folder, mut files, _) = crashed(true);
    for file_left in [true, false] {
        files[0].1.clear();
        restore(&folder, &files[usize::from(!file_left)..]);
        let before = snapshot(&folder);
        assert_eq!(code(reopened(&folder)), "journal_corrupt");
        assert_eq!(snapshot(&folder), before);
    }
}

/// 1. A checkpoint writes the pages of the log into the file, from the first one on.
/// 2. A crash after some of them leaves a file that is half old and half new, and often shorter
///    than its first page says. The log is still whole, and so must be what is read.
#[test]
fn a_crash_within_a_checkpoint_loses_nothing() {
    const PAGE: usize = 4096;
    let (folder, mut files, sound) = crashed(true);
    restore(&folder, &files);
    let mut engine = SqliteEngine::open(&folder.file()).unwrap();
    engine.harden(0).unwrap();
    let after = snapshot(&folder).swap_remove(0).1;
    drop(engine);
    let pages = after.len() / PAGE;
    assert!(after.len() > files[0].1.len(), "the checkpoint must make the file longer");
    for written in 1..=pages {
        let old = files[0].1.len();
        files[0].1.resize(old.max(written * PAGE), 0);
        files[0].1[..written * PAGE].copy_from_slice(&after[..written * PAGE]);
        restore(&folder, &files);
        assert_eq!(reopened(&folder).unwrap(), sound, "{written} of {pages} pages were written");
    }
}

/// A log that is cut is what a crash leaves: a prefix of the batches, and it can be appended to.
#[test]
fn a_log_cut_short_leaves_a_prefix() {
    let (folder, files, sound) = crashed(true);
    let mut lengths = std::collections::BTreeSet::new();
    for length in (0..files[1].1.len()).step_by(1021) {
        let mut cut = files.clone();
        cut[1].1.truncate(length);
        restore(&folder, &cut);
        let mut engine = SqliteEngine::open(&folder.file()).unwrap();
        let (bounds, batches) = contents(&mut engine, 0).unwrap();
        assert_eq!(batches, sound.1[..batches.len()], "{length}");
        lengths.insert(batches.len());
        fill(&mut engine, 0, bounds.next + 2);
        drop(engine);
        assert_eq!(reopened(&folder).unwrap().0.next, bounds.next + 2);
    }
    assert!(lengths.into_iter().eq(1..=sound.1.len()), "each prefix must have occurred");
}
