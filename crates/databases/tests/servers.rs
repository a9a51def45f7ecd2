//! The life of a server of each make: started, killed, started again, stopped, gone. What is in it
//! is looked at with the server's own client program.

#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::process::Command;

use unanimity_databases::{Database, DatabaseError, DatabaseOptions, Make, USER};

/// Runs a statement and gives what came of it, one row a line.
fn sql(database: &Database, statement: &str) -> Result<String, String> {
    let mut client = match database.make() {
        Make::PostgreSql => {
            let mut client = Command::new(psql());
            client.args(["-X", "-A", "-t", "-q", "-d", &database.url(), "-c", statement]);
            client
        }
        Make::MariaDb => {
            let mut client = Command::new("mariadb");
            client.args(["--no-defaults", "-h", "127.0.0.1", "-u", USER, "-N", "-B", "unanimity"]);
            client.arg(format!("--port={}", database.port()));
            client.arg(format!("--password={}", database.password())).args(["-e", statement]);
            client
        }
    };
    let answer = client.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if answer.status.success() { Ok(text(&answer.stdout)) } else { Err(text(&answer.stderr)) }
}

/// Debian's wrapper for it needs a cluster of its own.
fn psql() -> PathBuf {
    let folders = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let found = folders.map(|folder| folder.path().join("bin/psql")).find(|file| file.exists());
    found.unwrap_or_else(|| "psql".into())
}

#[test]
fn what_was_committed_outlives_a_kill_and_a_stop_and_the_rest_goes_with_the_handle() {
    for make in Make::ALL {
        let database = Database::start(make, &DatabaseOptions::default()).unwrap();
        assert!(database.version().contains(make.name()), "{}", database.version());
        assert!(database.url().starts_with(make.scheme()));
        sql(&database, "CREATE TABLE kept (number INTEGER)").unwrap();
        sql(&database, "INSERT INTO kept VALUES (1)").unwrap();

        let before = database.process_id().unwrap();
        database.kill();
        assert!(!database.is_running());
        sql(&database, "SELECT 1").unwrap_err();
        database.start_again().unwrap();
        assert_ne!(database.process_id().unwrap(), before);
        assert_eq!(sql(&database, "SELECT number FROM kept").unwrap(), "1");

        database.stop();
        assert!(!database.is_running());
        database.start_again().unwrap();
        database.start_again().unwrap();
        assert_eq!(sql(&database, "SELECT number FROM kept").unwrap(), "1");

        let (folder, process) = (database.folder(), database.process_id().unwrap());
        assert!(database.socket().exists());
        drop(database);
        assert!(!folder.exists());
        assert!(!PathBuf::from(format!("/proc/{process}")).exists());
    }
}

#[test]
fn prepared_transactions_are_counted_as_the_options_say_and_change_with_the_next_start() {
    let options = DatabaseOptions { prepared_transactions_max: 0, ..Default::default() };
    let database = Database::start(Make::PostgreSql, &options).unwrap();
    let shown = || sql(&database, "SHOW max_prepared_transactions").unwrap();
    assert_eq!(shown(), "0");
    database.set("max_prepared_transactions", "7");
    assert_eq!(shown(), "0");
    database.stop();
    database.start_again().unwrap();
    assert_eq!(shown(), "7");
}

#[test]
fn a_server_that_does_not_start_says_why_and_leaves_nothing_behind() {
    let base = std::env::temp_dir().join(format!("unanimity-broken-{}", std::process::id()));
    std::fs::create_dir(&base).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&base, mode).unwrap();
    for make in Make::ALL {
        let options = DatabaseOptions {
            folder: Some(base.clone()),
            settings: vec![("no_such_setting".to_owned(), "1".to_owned())],
            ..Default::default()
        };
        let error = Database::start(make, &options).unwrap_err();
        assert_eq!(error.code(), "database_start");
        let DatabaseError::Ended { log, .. } = error else { panic!("{error}") };
        assert!(log.contains("no_such_setting") || log.contains("no-such-setting"), "{log}");
        assert_eq!(std::fs::read_dir(&base).unwrap().count(), 0);
    }
    std::fs::remove_dir(base).unwrap();
}
