//! Damage to the file of the log's engine: rotten bits, a file cut short, blocks in the wrong
//! place. It is refused, never skipped. (What a crash leaves is no damage: `src/log/tests.rs`.)

use unanimity_journal::{Bounds, Engine, JournalError, LogEngine};

use crate::{Contents, Folder, code, contents, crc32, fill, records};

const BLOCK: usize = 4096;

fn reopened(folder: &Folder) -> Result<Contents, JournalError> {
    contents(&mut LogEngine::open(&folder.file())?, 0)
}

/// A journal with batches that were forgotten, three that are kept, one of them long, and room.
fn journal() -> (Folder, Vec<u8>, Contents) {
    let folder = Folder::new();
    let mut engine = LogEngine::open(&folder.file()).unwrap();
    fill(&mut engine, 0, 4);
    engine.append_and_truncate(0, 4, &[&[0x5A; 9_000]], Some(3)).unwrap();
    engine.append_and_truncate(0, 5, &[b"r5"], Some(4)).unwrap();
    fill(&mut engine, 0, 7);
    let contents = contents(&mut engine, 0).unwrap();
    drop(engine);
    let bytes = std::fs::read(folder.file()).unwrap();
    (folder, bytes, contents)
}

fn written(folder: &Folder, bytes: &[u8]) -> Result<Contents, JournalError> {
    std::fs::write(folder.file(), bytes).unwrap();
    reopened(folder)
}

/// Where the frame of a batch lies: nobody keeps an earlier one with the same first bytes.
fn frame(bytes: &[u8], position: u64) -> usize {
    let next = (position + 1).to_le_bytes();
    let is_it = |block: &&[u8]| block.starts_with(b"UNJF") && block[24..32] == next;
    bytes.chunks(BLOCK).collect::<Vec<_>>().iter().rposition(is_it).unwrap() * BLOCK
}

/// Flips every `step`th bit, one at a time, and counts the outcomes: refused, the same, and shorter
/// by the last batch. Anything else fails.
fn flip(step: usize) -> [usize; 3] {
    let (folder, sound, contents) = journal();
    let (mut bytes, mut counts) = (sound.clone(), [0; 3]);
    let last = frame(&sound, 6)..frame(&sound, 6) + BLOCK;
    for bit in (0..bytes.len() * 8).step_by(step) {
        bytes[bit / 8] ^= 1 << (bit % 8);
        match written(&folder, &bytes) {
            Err(_) => counts[0] += 1,
            Ok(found) if found == contents => counts[1] += 1,
            Ok((bounds, batches)) => {
                assert!(last.contains(&(bit / 8)), "byte {}", bit / 8);
                assert_eq!(bounds, Bounds { next: contents.0.next - 1, ..contents.0 });
                assert_eq!(batches, contents.1[..contents.1.len() - 1]);
                counts[2] += 1;
            }
        }
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    counts
}

#[test]
fn a_flipped_bit_is_refused_or_harmless_or_in_the_last_frame() {
    let [refused, same, shorter] = flip(97);
    assert!(refused > 500 && same > 0 && shorter > 0, "{refused} {same} {shorter}");
}

#[test]
#[cfg(feature = "long")]
fn every_flipped_bit_is_refused_or_harmless_or_in_the_last_frame() {
    flip(1);
}

#[test]
fn a_file_cut_short_is_refused() {
    let (folder, sound, _) = journal();
    for length in (1..sound.len()).step_by(1021) {
        let found = code(written(&folder, &sound[..length]));
        assert!(matches!(found, "journal_corrupt" | "journal_foreign_file"), "{length}: {found}");
    }
}

#[test]
fn a_block_that_is_overwritten_or_elsewhere_is_refused_where_it_is_kept() {
    let (folder, sound, contents) = journal();
    let (fourth, fifth, last) = (frame(&sound, 4), frame(&sound, 5), frame(&sound, 6));
    for garbage in [0, 0xFF] {
        for at in [fourth, fourth + BLOCK, fourth + 2 * BLOCK, fifth] {
            let mut bytes = sound.clone();
            bytes[at..at + BLOCK].fill(garbage);
            assert_eq!(code(written(&folder, &bytes)), "journal_corrupt", "{at}");
        }
        let mut bytes = sound.clone();
        bytes[last..last + BLOCK].fill(garbage);
        assert_eq!(written(&folder, &bytes).unwrap().0.next, contents.0.next - 1, "as torn");
    }
    // A frame of an earlier life of the block, as a disk that has lost a write shows it.
    let mut bytes = sound.clone();
    bytes.copy_within(last..last + BLOCK, fifth);
    assert_eq!(code(written(&folder, &bytes)), "journal_corrupt");
}

/// One shard's last frame may be torn, but only while it is the last of all.
#[test]
fn a_shard_whose_last_batch_is_gone_is_missed_though_others_have_written_since() {
    let folder = Folder::new();
    let mut engine = LogEngine::open(&folder.file()).unwrap();
    fill(&mut engine, 1, 3);
    fill(&mut engine, 0, 6);
    drop(engine);
    let sound = std::fs::read(folder.file()).unwrap();
    let ones = |block: &[u8]| block.starts_with(b"UNJF") && block[6] == 1;
    let last = sound.chunks(BLOCK).rposition(ones).unwrap() * BLOCK;
    for at in [last + 8, last + 60] {
        let mut bytes = sound.clone();
        bytes[at] ^= 1;
        assert_eq!(code(written(&folder, &bytes)), "journal_corrupt", "{at}");
    }
}

/// What an upgrade has appended, and the release before it must not take for torn.
#[test]
fn a_last_batch_of_a_newer_version_is_refused() {
    let (folder, mut bytes, contents) = journal();
    let at = frame(&bytes, 6);
    let length = u32::from_le_bytes(*bytes[at + 40..].first_chunk().unwrap()) as usize;
    let batch = at + 52..at + 52 + length;
    bytes[batch.start + 4] = 2;
    let checksum = crc32(&bytes[batch.start..batch.end - 4]).to_le_bytes();
    bytes[batch.end - 4..batch.end].copy_from_slice(&checksum);
    bytes[at + 36..at + 40].copy_from_slice(&checksum);
    let mut checked = bytes[12..20].to_vec();
    checked.extend_from_slice(&bytes[at..at + 48]);
    bytes[at + 48..at + 52].copy_from_slice(&crc32(&checked).to_le_bytes());
    assert_eq!(code(written(&folder, &bytes)), "journal_newer_version");
    assert_eq!(LogEngine::open(&folder.file()).unwrap().bounds(0).unwrap(), contents.0);
}

/// Numbers that cannot be, under a right checksum.
#[test]
fn what_cannot_be_is_refused_and_breaks_nothing() {
    let (folder, sound, _) = journal();
    let at = frame(&sound, 6);
    let absurd = [
        (8, u64::MAX),             // the sequence
        (16, 0),                   // the first position
        (16, 9),                   // beyond the next one
        (24, u64::MAX),            // the next one
        (40, u64::from(u32::MAX)), // the batch's length, and no others
    ];
    for (offset, number) in absurd {
        let mut bytes = sound.clone();
        bytes[at + offset..at + offset + 8].copy_from_slice(&number.to_le_bytes());
        let mut checked = bytes[12..20].to_vec();
        checked.extend_from_slice(&bytes[at..at + 48]);
        bytes[at + 48..at + 52].copy_from_slice(&crc32(&checked).to_le_bytes());
        assert_eq!(code(written(&folder, &bytes)), "journal_corrupt", "{offset} {number}");
    }
    for (offset, number) in [(20, u64::MAX), (28, 0), (28, u64::MAX)] {
        let mut bytes = sound.clone();
        for head in [0, BLOCK] {
            bytes[head + offset..head + offset + 8].copy_from_slice(&number.to_le_bytes());
            let checksum = crc32(&bytes[head..head + 36]).to_le_bytes();
            bytes[head + 36..head + 40].copy_from_slice(&checksum);
        }
        assert_eq!(code(written(&folder, &bytes)), "journal_corrupt", "head {offset} {number}");
    }
}

#[test]
fn blocks_of_another_journal_are_not_ours() {
    let (folder, sound, _) = journal();
    let (_other, theirs, _) = journal();
    let at = frame(&sound, 5);
    let mut bytes = sound;
    let there = frame(&theirs, 5);
    bytes[at..at + BLOCK].copy_from_slice(&theirs[there..there + BLOCK]);
    assert_eq!(code(written(&folder, &bytes)), "journal_corrupt");
}

#[test]
fn a_newer_format_is_refused() {
    let (folder, sound, _) = journal();
    let mut bytes = sound.clone();
    for head in [0, BLOCK] {
        bytes[head + 8] = 2;
        let checksum = crc32(&bytes[head..head + 36]).to_le_bytes();
        bytes[head + 36..head + 40].copy_from_slice(&checksum);
    }
    let error = written(&folder, &bytes).unwrap_err();
    assert!(matches!(error, JournalError::NewerVersion { found: 2, supported: 1, .. }), "{error}");
    assert_eq!(std::fs::read(folder.file()).unwrap(), bytes, "it was left as it is");
    // One frame of a newer release, which has its checksum where ours have it.
    let mut bytes = sound;
    let at = frame(&bytes, 6);
    bytes[at + 4] = 7;
    let mut checked = bytes[12..20].to_vec();
    checked.extend_from_slice(&bytes[at..at + 48]);
    bytes[at + 48..at + 52].copy_from_slice(&crc32(&checked).to_le_bytes());
    let error = written(&folder, &bytes).unwrap_err();
    assert!(matches!(error, JournalError::NewerVersion { found: 7, .. }), "{error}");
}

/// Each state that a crash during the creation can leave.
#[test]
fn a_creation_that_was_cut_off_is_begun_anew() {
    let folder = Folder::new();
    let mut new = folder.file().into_os_string();
    new.push(".new");
    for left in [b"".to_vec(), b"UNAN".to_vec(), vec![0; 5_000]] {
        std::fs::write(&new, left).unwrap();
        let mut engine = LogEngine::open(&folder.file()).unwrap();
        fill(&mut engine, 0, 3);
        drop(engine);
        assert!(!std::path::Path::new(&new).exists());
        assert_eq!(reopened(&folder).unwrap().0.next, 3);
        std::fs::remove_file(folder.file()).unwrap();
    }
    // Nor is a journal that has lost its name.
    fill(&mut LogEngine::open(&folder.file()).unwrap(), 0, 3);
    std::fs::rename(folder.file(), &new).unwrap();
    assert_eq!(code(LogEngine::open(&folder.file())), "journal_foreign_file");
    std::fs::rename(&new, folder.file()).unwrap();
    assert_eq!(reopened(&folder).unwrap().0.next, 3);
    std::fs::remove_file(folder.file()).unwrap();
    // Somebody else's file is not written over, nor what a link leads to that is not there yet.
    let letter = b"a letter to my aunt";
    let linked = folder.0.join("linked");
    std::fs::write(&linked, letter).unwrap();
    for link in [false, true] {
        match link {
            true => std::os::unix::fs::symlink(&linked, &new).unwrap(),
            false => std::fs::write(&new, letter).unwrap(),
        }
        assert_eq!(code(LogEngine::open(&folder.file())), "journal_foreign_file");
        assert_eq!(std::fs::read(&new).unwrap(), letter);
        std::fs::remove_file(&new).unwrap();
    }
    std::os::unix::fs::symlink(folder.0.join("not mounted"), folder.file()).unwrap();
    assert_eq!(code(LogEngine::open(&folder.file())), "journal_io");
    std::fs::remove_file(folder.file()).unwrap();
    // An empty file holds nothing that could be lost.
    std::fs::write(folder.file(), b"").unwrap();
    fill(&mut LogEngine::open(&folder.file()).unwrap(), 0, 2);
    assert_eq!(reopened(&folder).unwrap().1[0].records, records(&["r1"]));
}
