//! Guards in a database server: what PostgreSQL and MariaDB have in common. This file decides the
//! limits and what can go wrong; `engine` decides the course of a call, `pool` who gets a
//! connection, `keys` that calls for one branch come one after the other. The SQL is left to
//! [`crate::postgres`] and [`crate::mariadb`].

pub(crate) mod engine;
pub(crate) mod keys;
pub(crate) mod pool;

use std::fmt;

use crate::moment::MomentHook;
use crate::participant::CallError;

/// How far a local transaction is kept apart from others that run at the same time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isolation {
    /// Each statement sees what is committed when it begins.
    #[default]
    ReadCommitted,
    /// All statements see what was committed when the local transaction began.
    RepeatableRead,
    /// As if local transactions ran one after the other.
    Serializable,
}

impl Isolation {
    /// All three.
    pub const ALL: [Self; 3] = [Self::ReadCommitted, Self::RepeatableRead, Self::Serializable];

    /// The words of SQL.
    #[must_use]
    pub const fn sql(self) -> &'static str {
        match self {
            Self::ReadCommitted => "READ COMMITTED",
            Self::RepeatableRead => "REPEATABLE READ",
            Self::Serializable => "SERIALIZABLE",
        }
    }
}

/// A participant's limits.
#[derive(Clone)]
pub struct SqlOptions {
    /// How far local transactions are kept apart.
    pub isolation: Isolation,
    /// The most connections to the database.
    pub connections_max: usize,
    /// The most calls under way or waiting for a connection; further ones are told to come again.
    pub calls_max: usize,
    /// How often a call is tried at most where the database rolled it back for the sake of others
    /// (deadlock, serialization failure). After that the coordinator is told to come again.
    pub tries_max: u32,
    /// How long a connection may take to be made, in milliseconds.
    pub connect_timeout_ms: u64,
    /// How long a call waits for a row that somebody else has locked, in milliseconds; 0 is not at
    /// all. MariaDB counts whole seconds.
    pub lock_timeout_ms: u64,
    /// How long one statement may take, in milliseconds.
    pub statement_timeout_ms: u64,
    /// How long a call may take with everything, in milliseconds. Its connection is closed then,
    /// and what became of it is found out by the next call.
    pub call_timeout_ms: u64,
    /// Whether a database that does not make commits durable is taken all the same. What such a
    /// database has promised can be lost with its power.
    pub without_durability: bool,
    /// For tests only: called around every local commit.
    pub moment_hook: Option<MomentHook>,
}

impl Default for SqlOptions {
    fn default() -> Self {
        Self {
            isolation: Isolation::default(),
            connections_max: 16,
            calls_max: 4_096,
            tries_max: 10,
            connect_timeout_ms: 5_000,
            lock_timeout_ms: 5_000,
            statement_timeout_ms: 30_000,
            call_timeout_ms: 60_000,
            without_durability: false,
            moment_hook: None,
        }
    }
}

impl fmt::Debug for SqlOptions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("SqlOptions")
            .field("isolation", &self.isolation)
            .field("connections_max", &self.connections_max)
            .field("calls_max", &self.calls_max)
            .field("tries_max", &self.tries_max)
            .finish_non_exhaustive()
    }
}

/// Why a participant does not open.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SqlOpenError {
    /// The URL cannot be read, or asks for what is not there.
    #[error("the database's URL cannot be used: {0}")]
    Url(String),
    /// The URL asks for TLS.
    #[error(
        "the database's URL asks for TLS, which the SDK does not speak to a database: use a Unix \
         socket, the loopback interface or a tunnel"
    )]
    Tls,
    /// The database does not answer, or refuses.
    #[error("the database cannot be used: {0}")]
    Database(String),
    /// The database does not wait for the disk.
    #[error("the database does not make commits durable: set {0}")]
    NotDurable(String),
    /// The database cannot prepare transactions as it is set up.
    #[error("the database cannot prepare transactions: set {0}")]
    CannotPrepare(String),
    /// The database forgets prepared transactions when their connection ends.
    #[error(
        "{found} rolls prepared transactions back when their connection ends; needed is {needed}"
    )]
    TooOld {
        /// What the server says it is.
        found: String,
        /// What would do.
        needed: &'static str,
    },
    /// The service's own tables could not be brought up to date.
    #[error("the service's tables cannot be brought up to date: {0}")]
    Migration(String),
}

impl SqlOpenError {
    /// The stable code.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Url(_) => "database_url",
            Self::Tls => "database_tls",
            Self::Database(_) => "database_unusable",
            Self::NotDurable(_) => "database_not_durable",
            Self::CannotPrepare(_) => "database_cannot_prepare",
            Self::TooOld { .. } => "database_too_old",
            Self::Migration(_) => "database_migration",
        }
    }
}

impl From<SqlError> for SqlOpenError {
    fn from(error: SqlError) -> Self {
        Self::Database(error.into_text())
    }
}

/// What a failure of the database means for the call that met it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SqlError {
    /// The database has rolled the local transaction back for the sake of others: it may be tried
    /// again from its beginning.
    Again(String),
    /// Somebody else holds what is needed.
    Busy(String),
    /// The connection is gone, and with it the knowledge of what became of the call.
    Lost(String),
    /// A statement was refused, or the service failed by itself: nothing speaks against the
    /// connection.
    Refused(String),
    /// Anything else: the cause may lie in the connection.
    Failed(String),
}

impl SqlError {
    pub(crate) fn into_text(self) -> String {
        match self {
            Self::Again(text)
            | Self::Busy(text)
            | Self::Lost(text)
            | Self::Refused(text)
            | Self::Failed(text) => text,
        }
    }
}

impl From<SqlError> for CallError {
    fn from(error: SqlError) -> Self {
        match error {
            SqlError::Again(text) | SqlError::Busy(text) => Self::Busy(text),
            SqlError::Lost(text) => Self::Failed(format!(
                "the connection to the database was lost; whether the call was done is found out \
                 by the next one: {text}"
            )),
            SqlError::Refused(text) | SqlError::Failed(text) => Self::Failed(text),
        }
    }
}
