//! Decides what an error of PostgreSQL's means for a branch: a no, because the work cannot be done
//! or has been undone; or nothing, because it is not known what was done.

use tokio_postgres::error::{DbError, SqlState};

/// What an error says of a statement before the branch was asked to be prepared.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The statement failed, so that nothing of the branch remains: the reason.
    No(String),
    /// The server or the connection failed: not known.
    Unknown(String),
}

/// Judges an error of a statement.
pub(super) fn judge(error: &tokio_postgres::Error) -> Trouble {
    let Some(database) = error.as_db_error() else {
        return if error.is_closed() || is_broken(error) {
            Trouble::Unknown(said(error))
        } else {
            // The statement never left: its parameters do not fit.
            Trouble::No(format!("statement_failed: {}", said(error)))
        };
    };
    if is_passing(database.code()) {
        return Trouble::Unknown(said(error));
    }
    Trouble::No(format!("{}: {}", reason(database.code()), of_database(database)))
}

/// Whether the server could not be worked with, whatever the statement: it stops, it starts, it has
/// no room, it refuses connections.
fn is_passing(state: &SqlState) -> bool {
    ["08", "53", "57P"].iter().any(|class| state.code().starts_with(class))
}

fn reason(state: &SqlState) -> &'static str {
    match *state {
        SqlState::T_R_SERIALIZATION_FAILURE => "serialization_failure",
        SqlState::T_R_DEADLOCK_DETECTED => "deadlock",
        SqlState::LOCK_NOT_AVAILABLE => "lock_timeout",
        SqlState::QUERY_CANCELED => "statement_timeout",
        _ => "statement_failed", // The state and the words say the rest.
    }
}

fn is_broken(error: &tokio_postgres::Error) -> bool {
    use std::error::Error;
    error.source().is_some_and(|source| source.is::<std::io::Error>())
}

fn of_database(error: &DbError) -> String {
    format!("{} (SQLSTATE {})", error.message(), error.code().code())
}

/// An error in words for a person.
pub(super) fn said(error: &tokio_postgres::Error) -> String {
    use std::error::Error;
    if let Some(database) = error.as_db_error() {
        return of_database(database);
    }
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// Whether this is the error of that state.
pub(super) fn is(error: &tokio_postgres::Error, state: &SqlState) -> bool {
    error.code() == Some(state)
}
