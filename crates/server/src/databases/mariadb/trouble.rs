//! Decides what an error of MariaDB's or MySQL's means for a branch: a no, because the work cannot
//! be done or has been undone; or nothing, because it is not known what was done.

use mysql_async::{DriverError, Error, ServerError};

/// The server's numbers of what is told apart here.
pub(super) mod number {
    pub(in super::super) const DUPLICATE_KEY: u16 = 1_062;
    pub(in super::super) const UNKNOWN_XID: u16 = 1_397;
    pub(in super::super) const ROLLED_BACK: u16 = 1_402;
    pub(in super::super) const ROLLED_BACK_AFTER_TIMEOUT: u16 = 1_613;
    pub(in super::super) const ROLLED_BACK_AFTER_DEADLOCK: u16 = 1_614;
    pub(in super::super) const READ_ONLY_TRANSACTION: u16 = 1_792;
    pub(super) const LOCK_TIMEOUT: u16 = 1_205;
    pub(super) const DEADLOCK: u16 = 1_213;
    pub(super) const XID_EXISTS: u16 = 1_440;
    pub(super) const STATEMENT_TIMEOUT: u16 = 1_969;
    pub(super) const STATEMENT_TIMEOUT_MYSQL: u16 = 3_024;
}

/// What an error says of a statement before the branch was asked to be prepared.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The statement failed, so that nothing of the branch may remain: the reason.
    No(String),
    /// The server or the connection failed: not known.
    Unknown(String),
}

/// Judges an error of a statement.
pub(super) fn judge(error: &Error) -> Trouble {
    match error {
        Error::Server(server) if is_passing(server.code) => Trouble::Unknown(said(error)),
        Error::Server(server) => {
            Trouble::No(format!("{}: {}", reason(server.code), of_server(server)))
        }
        Error::Driver(DriverError::StmtParamsMismatch { required, supplied }) => Trouble::No(
            format!("statement_failed: it takes {required} parameters, and has {supplied}"),
        ),
        // Any other is of the connection.
        _ => Trouble::Unknown(said(error)),
    }
}

/// Whether the server could not be worked with, whatever the statement: too many connections, a
/// shutdown, no memory, no room on the disk, a session that was killed.
const fn is_passing(code: u16) -> bool {
    matches!(code, 1_021 | 1_037 | 1_038 | 1_040 | 1_041 | 1_053 | 1_077 | 1_114 | 1_203 | 1_927)
}

const fn reason(code: u16) -> &'static str {
    match code {
        number::LOCK_TIMEOUT => "lock_timeout",
        number::DEADLOCK | number::ROLLED_BACK_AFTER_DEADLOCK => "deadlock",
        number::STATEMENT_TIMEOUT | number::STATEMENT_TIMEOUT_MYSQL => "statement_timeout",
        _ => "statement_failed", // The number and the words say the rest.
    }
}

fn of_server(error: &ServerError) -> String {
    format!("{} (error {}, SQLSTATE {})", error.message, error.code, error.state)
}

/// An error in words for a person.
pub(super) fn said(error: &Error) -> String {
    match error {
        Error::Server(server) => of_server(server),
        other => other.to_string(),
    }
}

/// Whether this is the server's error of that number.
pub(super) fn is(error: &Error, number: u16) -> bool {
    matches!(error, Error::Server(server) if server.code == number)
}

/// Whether another transaction was in the way: waiting or trying again may help.
pub(super) fn is_in_the_way(error: &Error) -> bool {
    [number::LOCK_TIMEOUT, number::DEADLOCK, number::XID_EXISTS]
        .into_iter()
        .any(|number| is(error, number))
}

/// Whether the connection is of no more use.
pub(super) const fn is_broken(error: &Error) -> bool {
    matches!(error, Error::Io(_) | Error::Driver(DriverError::ConnectionClosed))
}
