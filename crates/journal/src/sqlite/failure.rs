//! Decides which of the journal's errors a failure of SQLite or of the file system is.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use rusqlite::{Error, ErrorCode, ffi};

use crate::JournalError;
use crate::io::io_failure;

/// Translates what SQLite says about the journal at `path`.
pub(super) fn failure(path: &Path, error: Error) -> JournalError {
    let message = error.to_string();
    let path = path.to_owned();
    if error.sqlite_extended_error_code() == Some(ffi::SQLITE_IOERR_SHORT_READ) {
        let detail = "the file ends within a page".to_owned();
        return JournalError::Corrupt { path, place: "its end".to_owned(), detail };
    }
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => JournalError::InUse { path },
        Some(ErrorCode::DiskFull) => JournalError::DiskFull { path, message },
        Some(ErrorCode::ReadOnly) => JournalError::ReadOnly { path, message },
        Some(ErrorCode::NotADatabase) => JournalError::ForeignFile { path, detail: message },
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::ConstraintViolation) => {
            JournalError::Corrupt { path, place: "its pages".to_owned(), detail: message }
        }
        // A table or column that is not there, or not of the type that we wrote.
        Some(ErrorCode::Unknown) => tables_corrupt(path, message),
        None if matches!(
            error,
            Error::InvalidColumnType(..)
                | Error::FromSqlConversionFailure(..)
                | Error::IntegralValueOutOfRange(..)
                | Error::QueryReturnedNoRows
        ) =>
        {
            tables_corrupt(path, message)
        }
        // "disk I/O error" alone does not say whether it was a read, a write or a sync.
        Some(_) => {
            let code = error.sqlite_extended_error_code().unwrap_or_default();
            JournalError::Io { path, message: format!("{message}, SQLite code {code}") }
        }
        None => JournalError::Io { path, message },
    }
}

fn tables_corrupt(path: PathBuf, detail: String) -> JournalError {
    JournalError::Corrupt { path, place: "its tables".to_owned(), detail }
}

/// Finds out why `file`, which belongs to the journal at `path`, cannot be opened. SQLite only says
/// that it cannot; so the file system is asked to create it, which changes nothing if that fails.
pub(super) fn cannot_open(path: &Path, file: &Path) -> JournalError {
    let attempt = std::fs::OpenOptions::new().write(true).create_new(true).open(file);
    let Err(error) = attempt else {
        // It works now. Leave no empty file behind; if it stays, the next open starts from it.
        drop(std::fs::remove_file(file));
        let message = format!("cannot open {}", file.display());
        return JournalError::Io { path: path.to_owned(), message };
    };
    if error.kind() == ErrorKind::AlreadyExists {
        let message = format!("{} exists, but cannot be opened", file.display());
        return JournalError::Io { path: path.to_owned(), message };
    }
    io_failure(path, &error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_sqlite(code: i32, expected: &str) {
        let error = Error::SqliteFailure(ffi::Error::new(code), None);
        assert_eq!(failure(Path::new("j"), error).code(), expected, "{code}");
    }

    #[test]
    fn each_cause_has_its_own_code() {
        check_sqlite(ffi::SQLITE_BUSY, "journal_in_use");
        check_sqlite(ffi::SQLITE_FULL, "journal_disk_full");
        check_sqlite(ffi::SQLITE_READONLY, "journal_read_only");
        check_sqlite(ffi::SQLITE_READONLY_DIRECTORY, "journal_read_only");
        check_sqlite(ffi::SQLITE_NOTADB, "journal_foreign_file");
        check_sqlite(ffi::SQLITE_CORRUPT, "journal_corrupt");
        check_sqlite(ffi::SQLITE_IOERR_SHORT_READ, "journal_corrupt");
        check_sqlite(ffi::SQLITE_IOERR_FSYNC, "journal_io");
        check_sqlite(ffi::SQLITE_IOERR_WRITE, "journal_io");
    }
}
