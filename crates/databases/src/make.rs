//! Decides what the two makes of server have in common: what is known before one is started, and
//! how a program that prepares its folder is run. What differs is in `postgresql` and `mariadb`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::error::DatabaseError;
use crate::folder::User;
use crate::programs::Wanted;
use crate::{mariadb, postgresql};

/// How much of what a program printed is repeated in an error, in bytes.
const OUTPUT_BYTES_MAX: usize = 2_000;

/// The make of a database server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Make {
    /// PostgreSQL.
    PostgreSql,
    /// MariaDB.
    MariaDb,
}

impl Make {
    /// Both of them.
    pub const ALL: [Self; 2] = [Self::PostgreSql, Self::MariaDb];

    /// Its name, for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::PostgreSql => "PostgreSQL",
            Self::MariaDb => "MariaDB",
        }
    }

    /// What its URLs begin with.
    #[must_use]
    pub const fn scheme(self) -> &'static str {
        match self {
            Self::PostgreSql => "postgres",
            Self::MariaDb => "mysql",
        }
    }

    pub(crate) const fn wanted(self) -> &'static Wanted {
        match self {
            Self::PostgreSql => &postgresql::WANTED,
            Self::MariaDb => &mariadb::WANTED,
        }
    }

    pub(crate) const fn users(self) -> &'static [&'static str] {
        match self {
            Self::PostgreSql => &postgresql::USERS,
            Self::MariaDb => &mariadb::USERS,
        }
    }

    /// The signal after which nothing of the server is needed any more.
    pub(crate) const fn at_once(self) -> (Signal, &'static str) {
        match self {
            Self::PostgreSql => postgresql::AT_ONCE,
            Self::MariaDb => mariadb::AT_ONCE,
        }
    }

    /// The signal after which the server is to be started again.
    pub(crate) const fn in_order(self) -> Signal {
        match self {
            Self::PostgreSql => postgresql::IN_ORDER,
            Self::MariaDb => mariadb::IN_ORDER,
        }
    }

    pub(crate) fn initialise(self, plan: &Plan) -> Result<(), DatabaseError> {
        match self {
            Self::PostgreSql => postgresql::initialise(plan),
            Self::MariaDb => mariadb::initialise(plan),
        }
    }

    pub(crate) fn server(self, plan: &Plan, port: u16) -> Command {
        match self {
            Self::PostgreSql => postgresql::server(plan, port),
            Self::MariaDb => mariadb::server(plan, port),
        }
    }

    pub(crate) fn answers(self, socket: &Path) -> bool {
        match self {
            Self::PostgreSql => postgresql::answers(socket),
            Self::MariaDb => mariadb::answers(socket),
        }
    }

    pub(crate) fn socket(self, folder: &Path, port: u16) -> PathBuf {
        match self {
            Self::PostgreSql => postgresql::socket(folder, port),
            Self::MariaDb => mariadb::socket(folder),
        }
    }
}

/// What a server is made of.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) program: PathBuf,
    pub(crate) folder: PathBuf,
    pub(crate) user: Option<User>,
    pub(crate) password: String,
    pub(crate) databases: Vec<String>,
    pub(crate) connections_max: u32,
    pub(crate) prepared_transactions_max: u32,
    pub(crate) fsync: bool,
    pub(crate) settings: Vec<(String, String)>,
}

/// Runs a program to its end, with `input` on its standard input.
pub(crate) fn finish(
    program: &Path,
    command: &mut Command,
    input: &str,
) -> Result<(), DatabaseError> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(DatabaseError::run(program))?;
    if let Some(mut pipe) = child.stdin.take() {
        // dropped: a program that does not read its input says why in how it ends.
        let _ = pipe.write_all(input.as_bytes());
    }
    let ended = child.wait_with_output().map_err(DatabaseError::run(program))?;
    if ended.status.success() {
        return Ok(());
    }
    let output = [ended.stdout, ended.stderr].concat();
    Err(DatabaseError::Initialise {
        program: program.to_owned(),
        status: ended.status.to_string(),
        output: tail(&String::from_utf8_lossy(&output)),
    })
}

/// The end of a text.
pub(crate) fn tail(text: &str) -> String {
    let mut from = text.len().saturating_sub(OUTPUT_BYTES_MAX);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    text[from..].trim().to_owned()
}
