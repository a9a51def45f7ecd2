//! The file of a journal: whether it is one, who has it, and how long it is.
//!
//! Its first two blocks each hold a copy of the same few numbers, little-endian; of two that are
//! sound the one with the higher count is true, so that one of them can be written anew:
//!
//! | offset | bytes | content |
//! | --- | --- | --- |
//! | 0 | 8 | magic `UNANJRNL` |
//! | 8 | 4 | format version, 1 |
//! | 12 | 8 | the file's own number, drawn by lot |
//! | 20 | 8 | how often these numbers were written |
//! | 28 | 8 | how long the file is at least, in bytes |
//! | 36 | 4 | CRC-32 (IEEE) of everything before |
//!
//! A new file gets its name when it is whole. The lock is on the file itself, under whatever name.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::frame::{BLOCK, Extent};
use crate::JournalError;
use crate::io::{io_failure, read_at, sync_folder, write_at};

/// The blocks that hold the numbers above.
pub(super) const HEAD_BLOCKS: u32 = 2;
/// A new file's length, in blocks.
const NEW_BLOCKS: u32 = 16;
const MAGIC: [u8; 8] = *b"UNANJRNL";
const FILE_VERSION: u32 = 1;
const HEAD_BYTES: usize = 40;
/// One page at a time: Linux caches what was written at once as one piece, and counts the whole of
/// it as written whenever a byte of it changes (`write_bytes` of a process).
const ZEROS: [u8; BLOCK] = [0; BLOCK];

/// An open journal, locked until it is dropped.
#[derive(Debug)]
pub(super) struct LogFile {
    file: File,
    pub(super) path: PathBuf,
    head: Head,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Head {
    number: u64,
    count: u64,
    bytes: u64,
}

impl LogFile {
    /// Opens the journal at `path`, or makes a new one.
    pub(super) fn open(path: &Path) -> Result<Self, JournalError> {
        // A relative path would follow the working directory.
        let path = &fs::canonicalize(path)
            .or_else(|_| std::path::absolute(path))
            .map_err(|error| io_failure(path, &error))?;
        if path.symlink_metadata().is_ok() && !path.exists() {
            let message = "it is a link to what is not there".to_owned();
            return Err(JournalError::Io { path: path.clone(), message });
        }
        match fs::metadata(path) {
            Ok(found) if found.is_dir() => return Err(foreign(path, "a folder")),
            Ok(found) if !found.is_file() => {
                return Err(foreign(path, "a device, a pipe or a socket"));
            }
            Ok(found) if found.len() > 0 => {}
            Ok(_) => return Self::create(path),
            Err(error) if error.kind() == ErrorKind::NotFound => return Self::create(path),
            Err(error) => return Err(io_failure(path, &error)),
        }
        let fail = |error: io::Error| io_failure(path, &error);
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(fail)?;
        lock(path, &file)?;
        let length = file.metadata().map_err(fail)?.len();
        let head = Head::read(path, &file)?;
        if length < head.bytes {
            let detail = format!("it has {length} bytes, and had {} at least", head.bytes);
            return Err(damaged(path, "its end", detail));
        }
        Ok(Self { file, path: path.clone(), head })
    }

    fn create(path: &Path) -> Result<Self, JournalError> {
        let fail = |error: io::Error| io_failure(path, &error);
        let mut new = path.as_os_str().to_owned();
        new.push(".new");
        let new = PathBuf::from(new);
        check_left_over(&new)?;
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(false);
        let file = options.open(&new).map_err(fail)?;
        lock(path, &file)?;
        if fs::metadata(path).is_ok_and(|found| found.len() > 0) {
            // Another one was quicker.
            drop(file);
            return Self::open(path);
        }
        // Something else than the time, so that no two files can have the same.
        let number = RandomState::new().build_hasher().finish();
        let bytes = u64::from(NEW_BLOCKS) * BLOCK as u64;
        let head = Head { number, count: 0, bytes };
        let mut made = Self { file, path: path.to_owned(), head };
        made.file.set_len(0).map_err(fail)?;
        made.fill_up(0, NEW_BLOCKS)?;
        for _ in 0..HEAD_BLOCKS {
            made.write_head(bytes)?;
        }
        made.file.sync_all().map_err(fail)?;
        fs::rename(&new, path).map_err(fail)?;
        made.sync_name()?;
        Ok(made)
    }

    /// Makes its name durable: a file that is not there after a power failure holds nothing.
    pub(super) fn sync_name(&self) -> Result<(), JournalError> {
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        sync_folder(folder).map_err(|error| self.failure(&error))
    }

    /// Makes durable how long it is, where it is longer than is noted: a process has ended while it
    /// made it longer, perhaps because that failed. What lies there stays.
    pub(super) fn make_length_durable(&self, blocks: u32) -> Result<(), JournalError> {
        let mut block = ZEROS;
        for start in (self.head.bytes / BLOCK as u64) as u32..blocks {
            let extent = Extent { start, blocks: 1 };
            self.read(extent.offset(), &mut block)?;
            self.write(extent, &block)?;
        }
        self.sync()
    }

    /// Notes how long it is, which must be durable already; the note is with the next sync.
    pub(super) fn note_length(&mut self, blocks: u32) -> Result<(), JournalError> {
        self.write_head(u64::from(blocks) * BLOCK as u64)
    }

    /// The number that its frames are checked with.
    pub(super) const fn number(&self) -> u64 {
        self.head.number
    }

    /// How many whole blocks there are.
    pub(super) fn blocks(&self) -> Result<u32, JournalError> {
        let length = self.file.metadata().map_err(|error| self.failure(&error))?.len();
        u32::try_from(length / BLOCK as u64)
            .map_err(|_| damaged(&self.path, "its end", format!("{length} bytes are too many")))
    }

    pub(super) fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), JournalError> {
        read_at(&self.file, offset, bytes).map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => {
                damaged(&self.path, "its end", "the file was cut off while in use".to_owned())
            }
            _ => self.failure(&error),
        })
    }

    /// Writes there; durable with the next [`LogFile::sync`].
    pub(super) fn write(&self, at: Extent, bytes: &[u8]) -> Result<(), JournalError> {
        debug_assert_eq!(bytes.len(), at.bytes(), "blocks are written whole");
        #[cfg(test)]
        recorded::note(|| recorded::Call::Write(at.offset(), bytes.to_vec()));
        write_at(&self.file, at.offset(), bytes).map_err(|error| self.failure(&error))
    }

    /// Makes durable what was written. A file that was removed, or that another one has taken the
    /// name of, is refused: what is durable in it would not be there at the next start.
    pub(super) fn sync(&self) -> Result<(), JournalError> {
        self.file.sync_data().map_err(|error| self.failure(&error))?;
        #[cfg(test)]
        recorded::note(|| recorded::Call::Sync);
        self.check_name()
    }

    /// Makes it longer, from so many blocks to so many, by zeros: a sync of bytes that make a file
    /// longer, or that lie where nothing was ever written, has to write the file system's own
    /// journal too (measured on ext4: 280 us instead of 145). That it is so long is durable with
    /// the next sync.
    pub(super) fn lengthen(&mut self, from: u32, to: u32) -> Result<(), JournalError> {
        self.fill_up(from, to)?;
        // Before it is noted: the note must not be there without the length.
        self.sync()?;
        self.note_length(to)
    }

    /// Cuts it off behind so many blocks.
    pub(super) fn shorten(&mut self, to: u32) -> Result<(), JournalError> {
        self.note_length(to)?;
        self.sync()?;
        let bytes = u64::from(to) * BLOCK as u64;
        #[cfg(test)]
        recorded::note(|| recorded::Call::Cut(bytes));
        self.file.set_len(bytes).map_err(|error| self.failure(&error))
    }

    fn fill_up(&self, from: u32, to: u32) -> Result<(), JournalError> {
        for start in from..to {
            self.write(Extent { start, blocks: 1 }, &ZEROS)?;
        }
        Ok(())
    }

    fn write_head(&mut self, bytes: u64) -> Result<(), JournalError> {
        self.head = Head { count: self.head.count + 1, bytes, ..self.head };
        let start = (self.head.count % u64::from(HEAD_BLOCKS)) as u32;
        self.write(Extent { start, blocks: 1 }, &self.head.block())
    }

    #[cfg(unix)]
    fn check_name(&self) -> Result<(), JournalError> {
        use std::os::unix::fs::MetadataExt;
        let place = |found: fs::Metadata| (found.dev(), found.ino());
        let here = self.file.metadata().map(place).map_err(|error| self.failure(&error))?;
        match fs::metadata(&self.path).map(place) {
            Ok(there) if there == here => Ok(()),
            Ok(_) => Err(self.gone()),
            Err(error) if error.kind() == ErrorKind::NotFound => Err(self.gone()),
            Err(error) => Err(self.failure(&error)),
        }
    }

    #[cfg(not(unix))]
    fn check_name(&self) -> Result<(), JournalError> {
        Ok(()) // There a file that is open cannot be removed.
    }

    #[cfg(unix)]
    fn gone(&self) -> JournalError {
        let message = "it was removed while it was in use".to_owned();
        JournalError::Io { path: self.path.clone(), message }
    }

    fn failure(&self, error: &io::Error) -> JournalError {
        io_failure(&self.path, error)
    }
}

fn lock(path: &Path, file: &File) -> Result<(), JournalError> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(JournalError::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(error)) => Err(io_failure(path, &error)),
    }
}

/// What a creation that was cut off has left is written over: an empty file, or zeros, perhaps
/// behind the numbers at its beginning. Somebody else's file is not, nor one that holds frames.
fn check_left_over(new: &Path) -> Result<(), JournalError> {
    let Ok(found) = new.symlink_metadata() else { return Ok(()) };
    let refuse = || Err(foreign(new, "it stands where a new journal is made"));
    if !found.is_file() || found.len() > u64::from(NEW_BLOCKS) * BLOCK as u64 {
        return refuse();
    }
    let bytes = fs::read(new).map_err(|error| io_failure(new, &error))?;
    let is_blank = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
    let begins = |block: &[u8]| is_blank(block) || MAGIC.starts_with(&block[..block.len().min(8)]);
    let (head, rest) = bytes.split_at(bytes.len().min(HEAD_BLOCKS as usize * BLOCK));
    if head.chunks(BLOCK).all(begins) && is_blank(rest) { Ok(()) } else { refuse() }
}

fn foreign(path: &Path, detail: &str) -> JournalError {
    JournalError::ForeignFile { path: path.to_owned(), detail: detail.to_owned() }
}

pub(super) fn damaged(path: &Path, place: &str, detail: String) -> JournalError {
    JournalError::Corrupt { path: path.to_owned(), place: place.to_owned(), detail }
}

impl Head {
    fn block(&self) -> [u8; BLOCK] {
        let mut block = ZEROS;
        block[..8].copy_from_slice(&MAGIC);
        block[8..12].copy_from_slice(&FILE_VERSION.to_le_bytes());
        for (at, number) in [(12, self.number), (20, self.count), (28, self.bytes)] {
            block[at..at + 8].copy_from_slice(&number.to_le_bytes());
        }
        let checksum = crc32fast::hash(&block[..HEAD_BYTES - 4]).to_le_bytes();
        block[HEAD_BYTES - 4..HEAD_BYTES].copy_from_slice(&checksum);
        block
    }

    /// The one that is true.
    fn read(path: &Path, file: &File) -> Result<Self, JournalError> {
        let mut best: Option<Self> = None;
        let mut ours = false;
        for at in 0..u64::from(HEAD_BLOCKS) {
            let mut bytes = [0; HEAD_BYTES];
            match read_at(file, at * BLOCK as u64, &mut bytes) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => break,
                Err(error) => return Err(io_failure(path, &error)),
            }
            ours |= bytes[..8] == MAGIC;
            let number =
                |at: usize| bytes[at..].first_chunk().map_or(0, |n| u64::from_le_bytes(*n));
            let short = |at: usize| bytes[at..].first_chunk().map_or(0, |n| u32::from_le_bytes(*n));
            let checksum = crc32fast::hash(&bytes[..HEAD_BYTES - 4]);
            if bytes[..8] != MAGIC || checksum != short(HEAD_BYTES - 4) {
                continue;
            }
            if short(8) != FILE_VERSION {
                let (found, supported) = (short(8), FILE_VERSION);
                return Err(JournalError::NewerVersion { path: path.to_owned(), found, supported });
            }
            let head = Self { number: number(12), count: number(20), bytes: number(28) };
            if best.is_none_or(|best| best.count < head.count) {
                best = Some(head);
            }
        }
        match best {
            Some(Self { count: u64::MAX, .. }) => {
                Err(damaged(path, "its beginning", "it cannot be written any more".to_owned()))
            }
            Some(best) if best.bytes < u64::from(HEAD_BLOCKS) * BLOCK as u64 => {
                let detail = format!("it says that it has {} bytes", best.bytes);
                Err(damaged(path, "its beginning", detail))
            }
            Some(best) => Ok(best),
            None if ours => Err(damaged(path, "its beginning", "checksum mismatch".to_owned())),
            None => Err(foreign(path, "it does not begin like one")),
        }
    }
}

/// What was asked of the file on this thread, for tests that lose a part of it.
#[cfg(test)]
pub(super) mod recorded {
    use std::cell::RefCell;

    #[derive(Clone, Debug)]
    pub(in crate::log) enum Call {
        Write(u64, Vec<u8>),
        Sync,
        Cut(u64),
    }

    thread_local! {
        static CALLS: RefCell<Vec<Call>> = const { RefCell::new(Vec::new()) };
    }

    pub(super) fn note(call: impl FnOnce() -> Call) {
        CALLS.with_borrow_mut(|calls| calls.push(call()));
    }

    pub(in crate::log) fn take() -> Vec<Call> {
        CALLS.take()
    }

    pub(in crate::log) fn count() -> usize {
        CALLS.with_borrow(Vec::len)
    }
}
