//! Decides what can go wrong when a database server is started, and under which stable code.

use std::path::PathBuf;

/// Why a database server cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DatabaseError {
    /// The server's program is not on this machine.
    #[error(
        "no {program} on PATH or in {looked_in}: install {package} (Debian: `apt-get install \
         {package}`)"
    )]
    ServerMissing {
        /// The program.
        program: &'static str,
        /// The folders besides PATH.
        looked_in: String,
        /// Debian's package.
        package: &'static str,
    },
    /// Started by root, and there is no other user to run the server as.
    #[error("a database server does not run as root, and there is none of the users {0}")]
    UserMissing(String),
    /// The server's folder cannot be made or given to its user.
    #[error("the folder {path} cannot be used: {source}")]
    Folder {
        /// The folder, or the file in it.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A program could not be run at all.
    #[error("{program} cannot be run: {source}")]
    Run {
        /// The program.
        program: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The data folder could not be initialised.
    #[error("{program} failed ({status}): {output}")]
    Initialise {
        /// The program.
        program: PathBuf,
        /// How it ended.
        status: String,
        /// The end of what it printed.
        output: String,
    },
    /// The server ended before it answered.
    #[error("the server ended ({status}) before it answered: {log}")]
    Ended {
        /// How it ended.
        status: String,
        /// The end of its log.
        log: String,
    },
    /// The server did not answer in time.
    #[error("the server did not answer within {waited_ms} ms: {log}")]
    Silent {
        /// How long it was waited for.
        waited_ms: u64,
        /// The end of its log.
        log: String,
    },
    /// Nothing could be found to listen on.
    #[error("no free port between {first} and {last} on 127.0.0.1")]
    NoPort {
        /// The first that was tried.
        first: u16,
        /// The last.
        last: u16,
    },
}

impl DatabaseError {
    /// The stable code.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::ServerMissing { .. } => "database_server_missing",
            Self::UserMissing(_) => "database_user_missing",
            Self::Folder { .. } => "database_folder",
            Self::Run { .. } | Self::Initialise { .. } => "database_initialise",
            Self::Ended { .. } | Self::Silent { .. } => "database_start",
            Self::NoPort { .. } => "database_port",
        }
    }

    pub(crate) fn folder(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Folder { path, source }
    }

    pub(crate) fn run(program: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let program = program.into();
        move |source| Self::Run { program, source }
    }
}
