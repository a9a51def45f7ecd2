//! Decides how a MariaDB is initialised, started, asked whether it is there, and stopped.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;

use crate::folder::{command, write};
use crate::make::{Plan, finish};
use crate::programs::{Wanted, find};
use crate::{DatabaseError, port};

pub(crate) const WANTED: Wanted = Wanted {
    program: "mariadbd",
    package: "mariadb-server",
    folders: &["/usr/sbin", "/usr/libexec", "/usr/local/sbin", "/usr/local/mysql/bin"],
};
const INSTALLER: Wanted = Wanted {
    program: "mariadb-install-db",
    package: "mariadb-server",
    folders: &["/usr/bin", "/usr/local/bin", "/usr/local/mysql/scripts"],
};
pub(crate) const USERS: [&str; 2] = ["mysql", "nobody"];
/// Its folder is removed afterwards, so there is nothing to put in order.
pub(crate) const AT_ONCE: (Signal, &str) = (Signal::KILL, "KILL");
/// Ends what runs, writes what is to be written, and goes.
pub(crate) const IN_ORDER: Signal = Signal::TERM;

pub(crate) fn initialise(plan: &Plan) -> Result<(), DatabaseError> {
    write(&configuration(&plan.folder), &settings(plan), plan.user)?;
    write(&first_words(&plan.folder), &accounts(plan), plan.user)?;
    let program = find(&INSTALLER)?;
    let mut install = command(&program, plan.user);
    install.arg(with("--defaults-file", &configuration(&plan.folder)));
    install.args([
        "--auth-root-authentication-method=normal",
        "--skip-test-db",
        "--skip-name-resolve",
    ]);
    finish(&program, &mut install, "")
}

pub(crate) fn server(plan: &Plan, port: u16) -> Command {
    let mut server = command(&plan.program, plan.user);
    server.arg(with("--defaults-file", &configuration(&plan.folder)));
    server.arg(format!("--port={port}")).arg(with("--init-file", &first_words(&plan.folder)));
    server.args(plan.settings.iter().map(|(name, value)| format!("--{name}={value}")));
    server
}

/// The server greets as soon as it takes connections, which is after its recovery.
pub(crate) fn answers(socket: &Path) -> bool {
    port::ask(socket, &[], 5).is_some_and(|answer| answer[4] == 10)
}

pub(crate) fn socket(folder: &Path) -> PathBuf {
    folder.join("socket")
}

fn settings(plan: &Plan) -> String {
    let folder = plan.folder.display();
    let flush = if plan.fsync { 1 } else { 2 };
    let connections_max = plan.connections_max;
    // Every probe hangs up after the greeting; without a cache of hosts none of them is held
    // against us.
    format!(
        "[mariadbd]\ndatadir={folder}/data\nsocket={folder}/socket\npid-file={folder}/pid\n\
         tmpdir={folder}\nbind-address=127.0.0.1\nskip-name-resolve\nhost_cache_size=0\n\
         max_connections={connections_max}\nperformance_schema=OFF\ncharacter-set-server=utf8mb4\n\
         innodb_flush_log_at_trx_commit={flush}\ninnodb_buffer_pool_size=64M\n\
         innodb_log_file_size=32M\n"
    )
}

/// Run at every start, before the first connection is taken.
fn accounts(plan: &Plan) -> String {
    let (user, password) = (crate::USER, &plan.password);
    let mut words = String::new();
    for name in &plan.databases {
        // dropped: a string takes whatever is written.
        let _ = writeln!(words, "CREATE DATABASE IF NOT EXISTS `{name}`;");
    }
    words
        + &format!(
            "CREATE USER IF NOT EXISTS '{user}'@'%' IDENTIFIED BY '{password}';\n\
             GRANT ALL ON *.* TO '{user}'@'%' WITH GRANT OPTION;\n"
        )
}

fn configuration(folder: &Path) -> PathBuf {
    folder.join("my.cnf")
}

fn first_words(folder: &Path) -> PathBuf {
    folder.join("first.sql")
}

fn with(option: &str, path: &Path) -> std::ffi::OsString {
    let mut word = std::ffi::OsString::from(option);
    word.push("=");
    word.push(path);
    word
}
