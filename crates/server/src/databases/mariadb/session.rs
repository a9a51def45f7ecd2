//! One connection to MariaDB or MySQL: how it is made and set up, and how statements run on it.
//! What a branch's statements mean together is decided in the parent module.

use std::time::Duration;

use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, DriverError, Error, Opts, OptsBuilder, Params};

use super::trouble::{is, is_broken, said};
use super::values;
use crate::config::DatabaseConfig;
use crate::databases::work::Statement;
use crate::databases::{Ran, Unusable};

/// The numbers of errors that say that the configuration is wrong: access denied, no such database.
const REFUSALS: [u16; 4] = [1_044, 1_045, 1_049, 1_698];

/// A commit that changes nothing, with the rights that the coordinator has in any case. No branch
/// has a gid like this.
const WRITE_THE_LOG: &str = "START TRANSACTION; \
    INSERT INTO unanimity_branch (gid, state) VALUES (CONCAT('log ', CONNECTION_ID()), 'log'); \
    DELETE FROM unanimity_branch WHERE gid = CONCAT('log ', CONNECTION_ID()); COMMIT";

/// Which of the two servers it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Make {
    Mariadb,
    Mysql,
}

/// A connection to MariaDB or MySQL.
pub(super) struct Session {
    pub(super) connection: Conn,
    make: Make,
}

impl Session {
    /// Connects and sets the session up.
    pub(super) async fn open(database: &DatabaseConfig) -> Result<Self, Unusable> {
        let limit = Duration::from_millis(database.connect_timeout_ms);
        let opened = tokio::time::timeout(limit, Self::connect(database)).await;
        let late = || Unusable::Down(format!("no connection within {} ms", limit.as_millis()));
        opened.unwrap_or_else(|_| Err(late()))
    }

    async fn connect(database: &DatabaseConfig) -> Result<Self, Unusable> {
        let url = database.url.expose().replacen("mariadb://", "mysql://", 1);
        // The error may name a parameter, never a password.
        let read = Opts::from_url(&url)
            .map_err(|error| Unusable::Refused(format!("url cannot be used: {error}")))?;
        let options = OptsBuilder::from_opts(read)
            .prefer_socket(false)
            .client_found_rows(true)
            .stmt_cache_size(Some(256));
        let connection = Conn::new(options).await.map_err(|error| no_session(&error))?;
        let mut session = Self { connection, make: Make::Mariadb };
        session.set_up(database).await?;
        Ok(session)
    }

    async fn set_up(&mut self, database: &DatabaseConfig) -> Result<(), Unusable> {
        let found: Result<Option<String>, Error> =
            self.connection.query_first("SELECT VERSION()").await;
        let version = found.map_err(|error| no_session(&error))?.unwrap_or_default();
        self.make = usable(&version).map_err(Unusable::Refused)?;
        let statement_ms = database.statement_timeout_ms;
        let limit = match self.make {
            Make::Mariadb => {
                format!("max_statement_time = {}.{:03}", statement_ms / 1_000, statement_ms % 1_000)
            }
            // MySQL limits statements that read only.
            Make::Mysql => format!("max_execution_time = {statement_ms}"),
        };
        let lock_s = database.lock_timeout_ms.div_ceil(1_000).max(1);
        let set =
            format!("SET SESSION {limit}, innodb_lock_wait_timeout = {lock_s}, autocommit = 1");
        self.connection.query_drop(set).await.map_err(|error| no_session(&error))
    }

    /// Runs plain statements, none of which gives rows back.
    pub(super) async fn plain(&mut self, sql: &str) -> Result<(), Error> {
        self.connection.query_drop(sql).await
    }

    /// Has the server's log written up to here, and with it every commit that was seen before. Of a
    /// row that comes and goes, nobody else sees anything.
    pub(super) async fn write_the_log(&mut self) -> Result<(), Error> {
        let written = self.plain(WRITE_THE_LOG).await;
        if written.is_err() {
            // dropped: a session that cannot even do that is found to be broken by its next word.
            let _ = self.plain("ROLLBACK").await;
        }
        written
    }

    /// Runs one statement, and keeps at most so many rows of what it gives back.
    pub(super) async fn run(&mut self, one: &Statement, rows_max: usize) -> Result<Ran, Error> {
        let statement = self.connection.prep(one.sql.as_str()).await?;
        let (required, supplied) = (statement.num_params(), one.parameters.len());
        // Asked here, because the driver never answers to anything after such a mistake.
        if usize::from(required) != supplied {
            return Err(DriverError::StmtParamsMismatch { required, supplied }.into());
        }
        let parameters: Vec<_> = one.parameters.iter().map(values::parameter).collect();
        let parameters =
            if parameters.is_empty() { Params::Empty } else { Params::Positional(parameters) };
        let mut result = self.connection.exec_iter(statement, parameters).await?;
        let gives = !result.columns_ref().is_empty();
        let mut ran = Ran { affected: result.affected_rows(), rows: gives.then(Vec::new) };
        if gives {
            ran.affected = 0;
            while let Some(row) = result.next().await? {
                ran.affected += 1;
                if let Some(rows) = ran.rows.as_mut().filter(|rows| rows.len() <= rows_max) {
                    rows.push(values::row(row));
                }
            }
        }
        result.drop_result().await?;
        Ok(ran)
    }
}

/// Which make a version is of, if prepared branches survive the end of their session there.
fn usable(version: &str) -> Result<Make, String> {
    // Some servers put this before their own version, for old replicas.
    let text = version.strip_prefix("5.5.5-").unwrap_or(version);
    let mut numbers = text.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
    let number = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let (make, least) = if version.to_lowercase().contains("mariadb") {
        (Make::Mariadb, (10, 5))
    } else {
        (Make::Mysql, (8, 0))
    };
    if number < least {
        return Err(format!(
            "the server is of version {version}, which loses prepared branches when their session \
             ends; MariaDB 10.5 or MySQL 8.0 is needed"
        ));
    }
    Ok(make)
}

pub(super) fn no_session(error: &Error) -> Unusable {
    let text = format!("cannot connect: {}", said(error));
    if !is_broken(error) && REFUSALS.into_iter().any(|number| is(error, number)) {
        Unusable::Refused(text)
    } else {
        Unusable::Down(text)
    }
}

#[cfg(test)]
mod tests {
    use super::{Make, usable};

    #[test]
    fn versions_that_lose_prepared_branches_are_refused() {
        for (version, expected) in [
            ("10.11.6-MariaDB-0+deb12u1", Some(Make::Mariadb)),
            ("10.5.0-MariaDB", Some(Make::Mariadb)),
            ("5.5.5-10.6.4-MariaDB-log", Some(Make::Mariadb)),
            ("11.4.2-MariaDB", Some(Make::Mariadb)),
            ("8.0.36", Some(Make::Mysql)),
            ("8.4.0-commercial", Some(Make::Mysql)),
            ("10.4.32-MariaDB", None),
            ("5.5.5-10.3.1-MariaDB", None),
            ("5.7.44-log", None),
            ("", None),
        ] {
            assert_eq!(usable(version).ok(), expected, "{version}");
        }
    }
}
