//! Decides whether a write-ahead log that was left behind ends the way a crash ends it, or has a
//! hole.
//!
//! SQLite reads its log up to the first frame that does not fit and takes the rest for the torn
//! tail of a crash. That is right for a tail, and silently forgets decisions that were durable if a
//! bit rotted in the middle. The difference can be told: each transaction of ours is synced before
//! the next one is written, and a log inherited from a crash is emptied before it is written to. So
//! after a frame that does not fit, at most the rest of *one* transaction may follow. Sound frames
//! beyond that were durable, and the log is damaged. (So a truncation cannot do without its sync by
//! itself, though nobody waits for it: it shares a transaction with an append.)
//!
//! What cannot be told: damage within the last transaction looks like a crash during it (and so
//! does, in the last but one, a commit mark that was damaged into none); and a log that a bad disk
//! has turned into nothing but zeros looks like room that was made (`room`). SQLite's file format
//! documentation ("The Write-Ahead Log") describes header, frames and checksum.

use std::fs::{self, File};
use std::io::{BufReader, ErrorKind, Read};
use std::path::{Path, PathBuf};

use crate::JournalError;
use crate::io::io_failure;

pub(super) const HEADER_BYTES: usize = 32;
pub(super) const FRAME_HEADER_BYTES: usize = 24;
/// The header's first number; its lowest bit says that checksums are taken over big-endian words.
const MAGIC: u32 = 0x377F_0682;

/// Where SQLite keeps the write-ahead log of the file at `path`.
pub(super) fn wal_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("-wal");
    name.into()
}

/// Refuses a log beside a file that is empty or gone.
pub(super) fn check_absent(path: &Path) -> Result<(), JournalError> {
    match fs::metadata(wal_path(path)) {
        Ok(metadata) if metadata.len() > 0 => {
            Err(damaged(path, "there is a write-ahead log, but the file itself is empty or gone"))
        }
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Refuses a log with a hole. Nobody else may be writing it.
pub(super) fn check(path: &Path) -> Result<(), JournalError> {
    let file = match File::open(wal_path(path)) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io_failure(path, &error)),
    };
    match scan_write_ahead_log(&mut BufReader::new(file)) {
        Ok(None) => Ok(()),
        Ok(Some(detail)) => Err(damaged(path, detail)),
        Err(error) => Err(io_failure(path, &error)),
    }
}

fn damaged(path: &Path, detail: &str) -> JournalError {
    let place = "its write-ahead log".to_owned();
    JournalError::Corrupt { path: path.to_owned(), place, detail: detail.to_owned() }
}

/// Says what is wrong with a write-ahead log of SQLite, if anything is.
///
/// # Errors
/// Those of reading it.
pub fn scan_write_ahead_log(log: &mut impl Read) -> std::io::Result<Option<&'static str>> {
    let mut header = [0; HEADER_BYTES];
    if !fill(log, &mut header)? {
        return Ok(None);
    }
    let Some(header) = Header::parse(&header) else {
        // The header is synced before the first frame is written: without it there are none, and
        // what follows is room.
        return Ok((!only_zeros(log)?).then_some("its header is not sound, and frames follow it"));
    };
    let mut frame = vec![0; FRAME_HEADER_BYTES + header.page_bytes];
    let mut walk =
        Walk { header, previous: [header.checksum; 2], ours: true, torn: false, torn_ended: false };
    while fill(log, &mut frame)? {
        if walk.admit(&frame) == Verdict::BeyondTheTail {
            return Ok(Some("sound transactions follow after a damaged frame"));
        }
    }
    Ok(None)
}

#[derive(PartialEq, Eq)]
enum Verdict {
    Possible,
    BeyondTheTail,
}

/// Goes from frame to frame.
struct Walk {
    header: Header,
    /// The checksum of the frame before: as stored there, and as computed. They differ where either
    /// that frame or its checksum is damaged, and a sound successor continues one of the two.
    previous: [(u32, u32); 2],
    /// The frame before was written under this log's header, not left over from an earlier round.
    ours: bool,
    /// SQLite stops reading at some frame before this one.
    torn: bool,
    /// The transaction of that frame is over.
    torn_ended: bool,
}

impl Walk {
    fn admit(&mut self, frame: &[u8]) -> Verdict {
        let stored = pair(frame, 16);
        let computed = self.previous.map(|previous| self.header.frame_checksum(previous, frame));
        // No page has the number 0. In room that was made the checksum fits all the same, if that
        // of the frame before was torn off: zeros go on from zeros.
        let linked = word(frame, 0) != 0 && computed.contains(&stored);
        let salted = pair(frame, 8) == self.header.salts;
        // A checksum does not cover the salts, so it tells a damaged salt from a leftover frame.
        self.ours = salted || (self.ours && linked);
        if self.torn_ended && self.ours && linked {
            return Verdict::BeyondTheTail;
        }
        self.torn |= !salted || computed[0] != stored;
        self.torn_ended |= self.torn && self.ours && word(frame, 4) != 0;
        self.previous = [stored, if linked { stored } else { computed[0] }];
        Verdict::Possible
    }
}

#[derive(Clone, Copy)]
struct Header {
    page_bytes: usize,
    salts: (u32, u32),
    checksum: (u32, u32),
    big_endian: bool,
}

impl Header {
    fn parse(bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        let magic = word(bytes, 0);
        let page_bytes = word(bytes, 8);
        let header = Self {
            page_bytes: page_bytes as usize,
            salts: pair(bytes, 16),
            checksum: pair(bytes, 24),
            big_endian: magic & 1 == 1,
        };
        let sound = magic & !1 == MAGIC
            && page_bytes.is_power_of_two()
            && (512..=65536).contains(&page_bytes)
            && header.continue_checksum((0, 0), &bytes[..24]) == header.checksum;
        sound.then_some(header)
    }

    fn frame_checksum(&self, previous: (u32, u32), frame: &[u8]) -> (u32, u32) {
        let checksum = self.continue_checksum(previous, &frame[..8]);
        self.continue_checksum(checksum, &frame[FRAME_HEADER_BYTES..])
    }

    fn continue_checksum(&self, previous: (u32, u32), bytes: &[u8]) -> (u32, u32) {
        let word = |word: [u8; 4]| {
            if self.big_endian { u32::from_be_bytes(word) } else { u32::from_le_bytes(word) }
        };
        let (mut a, mut b) = previous;
        let (pairs, _) = bytes.as_chunks::<8>();
        for &[c, d, e, f, g, h, i, j] in pairs {
            a = a.wrapping_add(word([c, d, e, f])).wrapping_add(b);
            b = b.wrapping_add(word([g, h, i, j])).wrapping_add(a);
        }
        (a, b)
    }
}

/// The big-endian number at `offset`, which the callers keep inside.
fn word(bytes: &[u8], offset: usize) -> u32 {
    bytes[offset..].first_chunk().map_or(0, |chunk| u32::from_be_bytes(*chunk))
}

fn pair(bytes: &[u8], offset: usize) -> (u32, u32) {
    (word(bytes, offset), word(bytes, offset + 4))
}

/// Whether nothing but zeros is left.
fn only_zeros(log: &mut impl Read) -> std::io::Result<bool> {
    let mut buffer = [0; 4096];
    loop {
        match log.read(&mut buffer) {
            Ok(0) => return Ok(true),
            Ok(length) if buffer[..length].iter().any(|byte| *byte != 0) => return Ok(false),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Fills the buffer; `false` if the file ends before.
fn fill(log: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<bool> {
    match log.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE_BYTES: usize = 512;
    const FRAME_BYTES: usize = FRAME_HEADER_BYTES + PAGE_BYTES;

    fn header(round: u8) -> (Vec<u8>, Header) {
        let mut bytes = vec![0; HEADER_BYTES];
        bytes[0..4].copy_from_slice(&MAGIC.to_be_bytes());
        bytes[8..12].copy_from_slice(&512u32.to_be_bytes());
        bytes[16..24].fill(round);
        let blank = Header { page_bytes: 512, salts: (0, 0), checksum: (0, 0), big_endian: false };
        let (a, b) = blank.continue_checksum((0, 0), &bytes[..24]);
        bytes[24..28].copy_from_slice(&a.to_be_bytes());
        bytes[28..32].copy_from_slice(&b.to_be_bytes());
        let parsed = Header::parse(bytes.as_slice().try_into().unwrap()).unwrap();
        (bytes, parsed)
    }

    /// A sound log of a given round (which decides its salts). `f` is a frame, `C` one that
    /// commits.
    fn log(round: u8, frames: &str) -> Vec<u8> {
        let (mut bytes, header) = header(round);
        let mut previous = header.checksum;
        for (number, kind) in (1..).zip(frames.chars()) {
            let mut frame = vec![number; FRAME_BYTES];
            frame[4..8].fill(if kind == 'C' { 9 } else { 0 });
            frame[8..16].fill(round);
            previous = header.frame_checksum(previous, &frame);
            frame[16..20].copy_from_slice(&previous.0.to_be_bytes());
            frame[20..24].copy_from_slice(&previous.1.to_be_bytes());
            bytes.extend_from_slice(&frame);
        }
        bytes
    }

    fn frame(number: usize) -> usize {
        HEADER_BYTES + (number - 1) * FRAME_BYTES
    }

    fn check(bytes: &[u8], damaged: bool, story: &str) {
        assert_eq!(scan_write_ahead_log(&mut &*bytes).unwrap().is_some(), damaged, "{story}");
    }

    /// A log with one byte changed in a frame.
    fn flipped(frames: &str, number: usize, offset: usize) -> Vec<u8> {
        let mut bytes = log(1, frames);
        bytes[frame(number) + offset] ^= 4;
        bytes
    }

    #[test]
    fn what_crashes_leave_is_accepted() {
        check(&[], false, "no header yet");
        check(&log(1, "")[..20], false, "half a header");
        check(&[0; HEADER_BYTES], false, "an empty header and nothing behind it");
        check(&log(1, "CfCC"), false, "nothing is wrong");
        check(&log(1, "CfCC")[..frame(4) + 100], false, "half a frame");
        check(&log(1, "Cff"), false, "no commit yet");
    }

    #[test]
    fn room_that_was_made_is_accepted_and_frames_without_a_header_are_not() {
        let room = [0; 3 * FRAME_BYTES];
        check(&[&[0; HEADER_BYTES][..], &room].concat(), false, "nothing was written yet");
        check(&[&log(1, "CfC")[..], &room].concat(), false, "room behind the frames");
        check(&[&log(1, "Cf")[..frame(2) + 100], &room].concat(), false, "half a frame");
        let torn = frame(3) + 16;
        check(&[&log(1, "CfC")[..torn], &room].concat(), false, "torn before its checksum");
        let mut bytes = [&header(1).0[..], &room].concat();
        bytes[20] ^= 1;
        check(&bytes, false, "a torn header");
        let mut bytes = [&log(1, "CfC")[..], &room].concat();
        bytes[..HEADER_BYTES].fill(0);
        check(&bytes, true, "its header is gone");
        let bytes = [&flipped("CfCC", 2, 300)[..], &room].concat();
        check(&bytes, true, "damage before the last transaction");
    }

    #[test]
    fn a_torn_last_transaction_is_accepted_whatever_of_it_arrived() {
        for lost in 2..=5 {
            let mut bytes = log(1, "CfffC");
            bytes[frame(lost)..frame(lost + 1)].fill(0);
            check(&bytes, false, &format!("frame {lost} was never written, later ones were"));
        }
    }

    #[test]
    fn frames_of_an_earlier_round_are_left_over_and_mean_nothing() {
        for written in 0..=4 {
            let mut bytes = log(2, "CffC");
            let whole = log(1, "CCCCCCCC");
            bytes.truncate(frame(written + 1));
            bytes.extend_from_slice(&whole[bytes.len()..]);
            check(&bytes, false, &format!("{written} frames of the new round were written"));
        }
        let mut bytes = log(2, "CfffC");
        let before = log(1, "CCCCC");
        bytes[frame(3)..frame(4)].copy_from_slice(&before[frame(3)..frame(4)]);
        check(&bytes, false, "one block of the last transaction still holds what was there before");
    }

    #[test]
    fn damage_before_the_last_transaction_is_found() {
        for (offset, what) in [(0, "page number"), (8, "salt"), (16, "checksum"), (300, "page")] {
            for number in 1..=4 {
                check(&flipped("CfCCfC", number, offset), true, &format!("{what} of {number}"));
            }
            for number in 5..=6 {
                check(&flipped("CfCCfC", number, offset), false, "it looks like a crash");
            }
        }
        let mut bytes = log(1, "C");
        bytes[20] ^= 1;
        check(&bytes, true, "header");
    }
}
