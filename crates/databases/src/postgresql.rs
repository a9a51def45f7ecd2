//! Decides how a PostgreSQL is initialised, started, asked whether it is there, and stopped.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::folder::{command, write};
use crate::make::{Plan, finish};
use crate::programs::Wanted;
use crate::{DatabaseError, port};

pub(crate) const WANTED: Wanted = Wanted {
    program: "postgres",
    package: "postgresql",
    folders: &[
        "/usr/lib/postgresql/*/bin",
        "/usr/pgsql-*/bin",
        "/usr/local/pgsql/bin",
        "/usr/sbin",
    ],
};
pub(crate) const USERS: [&str; 2] = ["postgres", "nobody"];
/// Ends what runs and goes at once; the folder is removed afterwards.
pub(crate) const AT_ONCE: (Signal, &str) = (Signal::QUIT, "QUIT");
/// Ends what runs, writes what is to be written, and goes.
pub(crate) const IN_ORDER: Signal = Signal::INT;

pub(crate) fn initialise(plan: &Plan) -> Result<(), DatabaseError> {
    let password = plan.folder.join("password");
    write(&password, &plan.password, plan.user)?;
    let program = plan.program.with_file_name("initdb");
    let mut initdb = command(&program, plan.user);
    initdb
        .arg("-D")
        .arg(data(&plan.folder))
        .args(["-U", crate::USER])
        .arg("--pwfile")
        .arg(&password);
    initdb.args(["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync"]);
    finish(&program, initdb.stdin(Stdio::null()), "")?;
    let databases = plan.databases.iter().map(|name| format!("CREATE DATABASE \"{name}\";\n\n"));
    let mut single = command(&plan.program, plan.user);
    single.args(["--single", "-j", "-D"]).arg(data(&plan.folder)).arg("postgres");
    finish(&plan.program, &mut single, &databases.collect::<String>())
}

pub(crate) fn server(plan: &Plan, port: u16) -> Command {
    let mut server = command(&plan.program, plan.user);
    server.arg("-D").arg(data(&plan.folder)).args(["-p", &port.to_string()]);
    let settings = [
        ("listen_addresses", "127.0.0.1".to_owned()),
        ("unix_socket_directories", plan.folder.display().to_string()),
        ("max_connections", plan.connections_max.to_string()),
        ("max_prepared_transactions", plan.prepared_transactions_max.to_string()),
        ("fsync", if plan.fsync { "on" } else { "off" }.to_owned()),
    ];
    let given = plan.settings.iter().map(|(name, value)| (name.as_str(), value.clone()));
    for (name, value) in settings.into_iter().chain(given) {
        server.arg("-c").arg(format!("{name}={value}"));
    }
    server
}

/// While the server recovers it refuses a connection at once; afterwards it asks for the password.
pub(crate) fn answers(socket: &Path) -> bool {
    let words = format!("user\0{}\0database\0postgres\0\0", crate::USER);
    let mut hello = Vec::new();
    let length = u32::try_from(words.len() + 8).unwrap_or(u32::MAX);
    // dropped: a vector takes whatever is written.
    let _ = hello.write_all(&length.to_be_bytes());
    hello.extend_from_slice(&196_608_u32.to_be_bytes());
    hello.extend_from_slice(words.as_bytes());
    port::ask(socket, &hello, 1).is_some_and(|answer| answer == b"R")
}

pub(crate) fn socket(folder: &Path, port: u16) -> PathBuf {
    folder.join(format!(".s.PGSQL.{port}"))
}

fn data(folder: &Path) -> PathBuf {
    folder.join("data")
}
