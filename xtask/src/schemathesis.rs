//! `cargo xtask schemathesis`: holds the running coordinator against its own OpenAPI document, with
//! requests that schemathesis makes up from it. It fails on any 5xx and on any answer that is not
//! described. What is tried, and how requests are led to transactions that exist, is in
//! `xtask/schemathesis`.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::Failure;
use crate::need::need;
use crate::process::{cargo, root, run, target_dir};

/// Pinned, so that a red run is red again tomorrow.
const PACKAGE: &str = "schemathesis==4.32.5";

/// How much is tried: seconds at most, and examples of each operation.
#[derive(Clone, Copy)]
pub struct Extent {
    seconds: u32,
    examples: u32,
}

pub const SHORT: Extent = Extent { seconds: 40, examples: 20 };
pub const LONG: Extent = Extent { seconds: 600, examples: 1_000 };

/// Starts the program and a participant, and tries them.
pub fn schemathesis(extent: Extent) -> Result<(), Failure> {
    need("python3", "python3")?;
    let python = environment()?;
    // As the tests build it, so that nothing is built twice.
    let arguments = ["build", "--release", "--workspace", "--exclude", "unanimity-check"];
    let program = ["--features", "unanimity-server/crash-points", "--bin", "unanimity"];
    run(cargo(&arguments).args(program))?;
    let folder = Folder::new()?;
    let (participant, _participant) = participant(&folder.0)?;
    let (coordinator, mut process) = coordinator(&folder.0)?;
    let here = root().join("xtask/schemathesis");
    let mut command = Command::new(python.with_file_name("schemathesis"));
    command.current_dir(&here).env("UNANIMITY_PARTICIPANT", participant);
    command.env("PYTHONDONTWRITEBYTECODE", "1").stdin(Stdio::null());
    command.args(["--config-file", "schemathesis.toml", "run"]);
    command.arg(format!("{coordinator}/openapi.json"));
    command.args(["--max-time", &extent.seconds.to_string()]);
    command.args(["--max-examples", &extent.examples.to_string()]);
    run(&mut command)?;
    match process.0.try_wait() {
        Ok(None) => Ok(()),
        ended => Err(format!("the coordinator did not survive it: {ended:?}")),
    }
}

/// A place of its own for schemathesis, beside the build; gives back its Python.
fn environment() -> Result<PathBuf, Failure> {
    let folder = target_dir().join("schemathesis");
    let python = folder.join("bin/python");
    if !python.exists() {
        // On Debian the module that makes such places is a package of its own.
        let can = Command::new("python3").args(["-m", "ensurepip", "--version"]).output();
        if !can.is_ok_and(|answer| answer.status.success()) {
            need("python3-venv", "python3-venv").or_else(|error| match error {
                error if error.starts_with("still no") => Ok(()), // It brings no program.
                error => Err(error),
            })?;
        }
        run(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
    }
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", PACKAGE];
    run(Command::new(&python).args(pip).stdin(Stdio::null()))?;
    Ok(python)
}

/// A process that is ended with this.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.kill().unwrap_or_default();
        let _ = self.0.wait();
    }
}

struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self, Failure> {
        let name = format!("unanimity-schemathesis-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap_or_default();
    }
}

fn participant(folder: &Path) -> Result<(String, Ended), Failure> {
    let mut command = Command::new("python3");
    command.arg(root().join("examples/python/participant.py")).arg("0").arg(folder.join("stock"));
    let (url, process) = started(command)?;
    Ok((format!("{url}/stock"), process))
}

fn coordinator(folder: &Path) -> Result<(String, Ended), Failure> {
    let mut command = Command::new(target_dir().join("release/unanimity"));
    command.args(["serve", "--listen-address", "127.0.0.1:0", "--data-folder"]);
    command.arg(folder.join("data"));
    let times = ["--prepare-timeout-ms", "--execute-timeout-ms", "--open-timeout-ms"];
    for time in times {
        command.args([time, "300"]);
    }
    command.args(["--retry-delay-ms", "20", "--retry-delay-max-ms", "500", "--log-level", "error"]);
    started(command)
}

/// Starts a program, and says where it listens once it does.
fn started(mut command: Command) -> Result<(String, Ended), Failure> {
    let spawned = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let mut child = spawned.map_err(|error| format!("cannot run {command:?}: {error}"))?;
    let mut line = String::new();
    if let Some(output) = child.stdout.take() {
        let read = BufReader::new(output).read_line(&mut line);
        read.map_err(|error| format!("{command:?}: {error}"))?;
    }
    let process = Ended(child);
    match line.trim().split_once("listening on ") {
        Some((_, url)) => Ok((url.to_owned(), process)),
        None => Err(format!("{command:?} does not listen; it said {line:?}")),
    }
}
