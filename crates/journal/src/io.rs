//! What the engines ask of the file system beside SQLite, and which of the journal's errors a
//! failure of it is.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::path::Path;

use crate::JournalError;

/// Translates what the file system says about the journal at `path`.
pub(crate) fn io_failure(path: &Path, error: &io::Error) -> JournalError {
    let path = path.to_owned();
    let message = error.to_string();
    match error.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            JournalError::ReadOnly { path, message }
        }
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            JournalError::DiskFull { path, message }
        }
        ErrorKind::NotFound => {
            let message = format!("its folder does not exist ({message}); create it first");
            JournalError::Io { path, message }
        }
        _ => JournalError::Io { path, message },
    }
}

#[cfg(unix)]
pub(crate) fn write_at(file: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

#[cfg(not(unix))]
pub(crate) fn write_at(mut file: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
    use std::io::{Seek, SeekFrom, Write};
    file.seek(SeekFrom::Start(offset))?;
    file.write_all(bytes)
}

/// Fills the buffer from there on.
#[cfg(unix)]
pub(crate) fn read_at(file: &File, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset)
}

#[cfg(not(unix))]
pub(crate) fn read_at(mut file: &File, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
    use std::io::{Read, Seek, SeekFrom};
    file.seek(SeekFrom::Start(offset))?;
    file.read_exact(bytes)
}

/// Makes durable which files a folder holds. Where a file system offers no sync of a folder, or
/// the folder may not be read, that is left to the file system.
#[cfg(unix)]
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    use ErrorKind::{InvalidInput, PermissionDenied, Unsupported};
    match File::open(folder).and_then(|folder| folder.sync_all()) {
        Err(error) if matches!(error.kind(), InvalidInput | PermissionDenied | Unsupported) => {
            Ok(())
        }
        synced => synced,
    }
}

/// Elsewhere a folder cannot be synced; there the file system's own journal does it.
#[cfg(not(unix))]
pub(crate) fn sync_folder(_: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_system_is_told_apart() {
        let check = |kind: ErrorKind, expected| {
            assert_eq!(io_failure(Path::new("j"), &kind.into()).code(), expected, "{kind}");
        };
        check(ErrorKind::PermissionDenied, "journal_read_only");
        check(ErrorKind::ReadOnlyFilesystem, "journal_read_only");
        check(ErrorKind::StorageFull, "journal_disk_full");
        check(ErrorKind::QuotaExceeded, "journal_disk_full");
        check(ErrorKind::NotFound, "journal_io");
        check(ErrorKind::Interrupted, "journal_io");
    }
}
