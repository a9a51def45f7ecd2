//! Decides how the databases are configured that take part as participants: a section
//! `[databases.NAME]` for each, in the file alone, because a database has more to say than fits
//! into a flag. Where a password stands and who may do what in it is said here and never in a
//! request. None is configured by default, so none can be used.

use std::collections::BTreeMap;

use serde::Deserialize;
use url::Url;

use super::read::ConfigError;
use super::{ENV_PREFIX, Secret};

/// The longest time that may be set, in milliseconds.
const TIME_MS_MAX: u64 = 30 * 24 * 3_600_000;
/// The most connections that may be set for one database.
const CONNECTIONS_MAX: u32 = 10_000;

/// Which server a database is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// PostgreSQL.
    Postgres,
    /// MariaDB or MySQL.
    Mariadb,
}

impl Dialect {
    /// The word for people.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Postgres => "PostgreSQL",
            Self::Mariadb => "MariaDB",
        }
    }
}

/// What initiators may have done in a database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allowed {
    /// Any statement that reads or changes rows.
    Any,
    /// These statements, word for word.
    These(Vec<String>),
}

/// One database, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatabaseConfig {
    /// Its name: a branch's participant is `db:` and this.
    pub name: String,
    /// Which server it is on.
    pub dialect: Dialect,
    /// Where it is, with user and password: never to be shown.
    pub url: Secret,
    /// Where it is, to be shown: without user, password and query.
    pub place: String,
    /// What may be done in it.
    pub allowed: Allowed,
    /// The most connections to it.
    pub pool_max: usize,
    /// For connecting to it, in milliseconds.
    pub connect_timeout_ms: u64,
    /// For one statement, in milliseconds; the database itself ends a longer one.
    pub statement_timeout_ms: u64,
    /// For one lock that another transaction holds, in milliseconds.
    pub lock_timeout_ms: u64,
    /// The most rows that one branch may give back.
    pub rows_max: usize,
    /// How long the rows of ended branches are kept, in milliseconds.
    pub keep_ms: u64,
    /// Between two looks for what was left prepared, in milliseconds.
    pub sweep_ms: u64,
    /// How old, in milliseconds, what nobody knows must be before it is rolled back.
    pub orphan_ms: u64,
}

impl DatabaseConfig {
    /// A database that is only looked into.
    ///
    /// # Errors
    /// What is wrong with the URL, which is not shown.
    pub fn to_look_into(url: &str) -> Result<Self, String> {
        let value = toml::Table::from_iter([
            ("url".to_owned(), url.into()),
            ("statements".to_owned(), vec![String::new()].into()),
        ]);
        one("database", value.into(), &|_| None)
    }
}

/// A section as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Section {
    url: Option<String>,
    url_env: Option<String>,
    password_env: Option<String>,
    statements: Option<Statements>,
    #[serde(default = "pool_max")]
    pool_max: u32,
    #[serde(default = "connect_timeout_ms")]
    connect_timeout_ms: u64,
    #[serde(default = "statement_timeout_ms")]
    statement_timeout_ms: u64,
    #[serde(default = "lock_timeout_ms")]
    lock_timeout_ms: u64,
    #[serde(default = "rows_max")]
    rows_max: u32,
    #[serde(default = "keep_ms")]
    keep_ms: u64,
    #[serde(default = "sweep_ms")]
    sweep_ms: u64,
    #[serde(default = "orphan_ms")]
    orphan_ms: u64,
}

const fn pool_max() -> u32 {
    32
}
const fn connect_timeout_ms() -> u64 {
    2_000
}
const fn statement_timeout_ms() -> u64 {
    5_000
}
const fn lock_timeout_ms() -> u64 {
    2_000
}
const fn rows_max() -> u32 {
    1_000
}
const fn keep_ms() -> u64 {
    3_600_000
}
const fn sweep_ms() -> u64 {
    10_000
}
const fn orphan_ms() -> u64 {
    60_000
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Statements {
    Word(String),
    List(Vec<String>),
}

/// Looks a variable of the environment up.
pub(super) type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Reads the sections under `[databases]`.
pub(super) fn read(
    file: &str,
    value: toml::Value,
    lookup: Lookup<'_>,
) -> Result<BTreeMap<String, DatabaseConfig>, ConfigError> {
    let place = format!("{file}: databases");
    let toml::Value::Table(sections) = value else {
        let problem = "holds a section for each database: write [databases.NAME]";
        return Err(ConfigError::new(place, problem));
    };
    let read_one = |(name, value): (String, toml::Value)| {
        let place = format!("{place}.{name}");
        let read = one(&name, value, lookup);
        read.map(|found| (name, found)).map_err(|problem| ConfigError::new(place, problem))
    };
    sections.into_iter().map(read_one).collect()
}

fn one(name: &str, value: toml::Value, lookup: Lookup<'_>) -> Result<DatabaseConfig, String> {
    let in_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if name.is_empty() || name.len() > 64 || !name.bytes().all(in_name) {
        return Err("a database's name has 1 to 64 letters, digits and . _ -".into());
    }
    if !value.is_table() {
        return Err(format!("is a section: write [databases.{name}]"));
    }
    // The message of serde names the field, and quotes no value of a known one.
    let section: Section = value.try_into().map_err(|error: toml::de::Error| {
        let text = error.message().to_owned();
        format!("cannot be used: {text}")
    })?;
    check_numbers(&section)?;
    let text = match (&section.url, &section.url_env) {
        (Some(_), Some(_)) => return Err("url and url_env say the same thing; keep one".into()),
        (Some(url), None) => url.clone(),
        (None, Some(variable)) => from_environment("url_env", variable, lookup)?,
        (None, None) => {
            let example = "postgres://user@host:5432/database or mysql://user@host:3306/database";
            return Err(format!("needs url (or url_env, the name of a variable): {example}"));
        }
    };
    let mut url = parse_url(&text)?;
    if let Some(variable) = &section.password_env {
        let password = from_environment("password_env", variable, lookup)?;
        let set = url.set_password(Some(&password));
        set.map_err(|()| "url has no user that the password could belong to".to_owned())?;
    }
    let dialect = dialect(&url)?;
    Ok(DatabaseConfig {
        name: name.to_owned(),
        dialect,
        place: shown(&url),
        url: Secret::new(url.as_str()),
        allowed: allowed(section.statements)?,
        pool_max: section.pool_max as usize,
        connect_timeout_ms: section.connect_timeout_ms,
        statement_timeout_ms: section.statement_timeout_ms,
        lock_timeout_ms: section.lock_timeout_ms,
        rows_max: section.rows_max as usize,
        keep_ms: section.keep_ms,
        sweep_ms: section.sweep_ms,
        orphan_ms: section.orphan_ms,
    })
}

fn check_numbers(section: &Section) -> Result<(), String> {
    if !(4..=CONNECTIONS_MAX).contains(&section.pool_max) {
        return Err(format!(
            "pool_max must be 4 to {CONNECTIONS_MAX}, and is {}",
            section.pool_max
        ));
    }
    if !(1..=1_000_000).contains(&section.rows_max) {
        return Err(format!("rows_max must be 1 to 1000000, and is {}", section.rows_max));
    }
    let times = [
        ("connect_timeout_ms", section.connect_timeout_ms),
        ("statement_timeout_ms", section.statement_timeout_ms),
        ("lock_timeout_ms", section.lock_timeout_ms),
        ("keep_ms", section.keep_ms),
        ("sweep_ms", section.sweep_ms),
        ("orphan_ms", section.orphan_ms),
    ];
    for (name, time_ms) in times {
        if !(1..=TIME_MS_MAX).contains(&time_ms) {
            return Err(format!(
                "{name} must be 1 to {TIME_MS_MAX} milliseconds, and is {time_ms}"
            ));
        }
    }
    Ok(())
}

fn from_environment(key: &str, variable: &str, lookup: Lookup<'_>) -> Result<String, String> {
    if variable.starts_with(ENV_PREFIX) {
        return Err(format!("{key}: names that begin with {ENV_PREFIX} are for settings"));
    }
    let found = lookup(variable).filter(|text| !text.is_empty());
    found.ok_or_else(|| format!("{key}: there is no variable {variable:?} in the environment"))
}

/// Never shows the text: it may hold a password.
pub(crate) fn parse_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| format!("url is no URL: {error}"))?;
    if url.host_str().is_none_or(str::is_empty) {
        return Err("url names no host".into());
    }
    if url.path().trim_matches('/').is_empty() {
        return Err("url names no database: write it after the host, as in //host:5432/name".into());
    }
    Ok(url)
}

/// Which server a URL speaks of.
pub(crate) fn dialect(url: &Url) -> Result<Dialect, String> {
    match url.scheme() {
        "postgres" | "postgresql" => Ok(Dialect::Postgres),
        "mysql" | "mariadb" => Ok(Dialect::Mariadb),
        other => Err(format!("url begins with {other}; known are postgres, mysql and mariadb")),
    }
}

/// A URL without what must not be shown.
pub(crate) fn shown(url: &Url) -> String {
    let (host, path) = (url.host_str().unwrap_or_default(), url.path());
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}://{host}{port}{path}", url.scheme())
}

fn allowed(statements: Option<Statements>) -> Result<Allowed, String> {
    match statements {
        Some(Statements::Word(word)) if word == "any" => Ok(Allowed::Any),
        Some(Statements::List(list)) if !list.is_empty() => Ok(Allowed::These(list)),
        Some(Statements::Word(_) | Statements::List(_)) | None => {
            Err("needs statements: \"any\" lets whoever may begin transactions read and change \
             everything that the database's user may; a list of statements allows these alone"
                .into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Allowed, Dialect, read};

    fn load(text: &str) -> Result<super::DatabaseConfig, String> {
        let value: toml::Table = text.parse().unwrap();
        let lookup = |name: &str| (name == "ORDERS_PASSWORD").then(|| "ca/nary".to_owned());
        let read = read("FILE", value["databases"].clone(), &lookup);
        read.map(|all| all.into_values().next().unwrap()).map_err(|error| error.to_string())
    }

    fn refused(body: &str, expected: &str) {
        let found = load(&format!("[databases.orders]\n{body}")).unwrap_err();
        assert!(found.contains(expected), "{found:?} does not say {expected:?}");
        assert!(!found.contains("canary"), "{found:?}");
    }

    #[test]
    fn a_section_is_a_database() {
        let text = "[databases.orders]\nurl = \"postgres://me@localhost:1/shop\"\n\
                    password_env = \"ORDERS_PASSWORD\"\nstatements = \"any\"\npool_max = 7";
        let found = load(text).unwrap();
        assert_eq!((found.name.as_str(), found.dialect), ("orders", Dialect::Postgres));
        assert_eq!(found.url.expose(), "postgres://me:ca%2Fnary@localhost:1/shop");
        assert_eq!((found.place.as_str(), found.pool_max), ("postgres://localhost:1/shop", 7));
        assert_eq!(found.allowed, Allowed::Any);
        assert!(!format!("{found:?}").contains("nary"), "{found:?}");
    }

    #[test]
    fn what_cannot_be_used_is_named_and_no_password_shown() {
        let url = "url = \"mysql://me:canary@h/d\"\n";
        refused("statements = \"any\"", "needs url");
        refused(url, "needs statements");
        refused(&format!("{url}statements = \"all\""), "needs statements");
        refused(&format!("{url}statements = []"), "needs statements");
        refused(&format!("{url}statements = \"any\"\npool_max = 1"), "pool_max must be 4");
        refused(&format!("{url}statements = \"any\"\nsweep_ms = 0"), "sweep_ms must be 1");
        refused(&format!("{url}statements = \"any\"\npoolmax = 9"), "unknown field `poolmax`");
        refused(&format!("{url}url_env = \"X\"\nstatements = \"any\""), "keep one");
        refused("url_env = \"X\"\nstatements = \"any\"", "no variable \"X\"");
        refused("url_env = \"UNANIMITY_X\"\nstatements = \"any\"", "are for settings");
        refused("url = \"redis://canary@h/d\"\nstatements = \"any\"", "begins with redis");
        refused("url = \"mysql://canary@h/\"\nstatements = \"any\"", "names no database");
        refused("url = \"canary\"\nstatements = \"any\"", "is no URL");
        let named = load("[databases.\"a b\"]\nurl = \"x\"").unwrap_err();
        assert!(named.contains("letters, digits"), "{named}");
    }
}
