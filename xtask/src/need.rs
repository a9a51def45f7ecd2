//! What the machine must have besides Rust. A missing program is installed from Debian's packages,
//! as root or through sudo; on another system the message says what to install by hand.
//!
//! `.ci/run` has the same three lines in bash for the C compiler: without a linker xtask itself
//! cannot be built.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Failure;
use crate::process::run;

/// A database server: found outside PATH, and run by the tests alone.
pub struct Server {
    pub package: &'static str,
    pub binary: &'static str,
    /// Where it may lie besides PATH; a `*` stands for one folder's name.
    pub folders: &'static [&'static str],
    /// The service that the package would start with the machine.
    pub service: &'static str,
}

/// Runs as root with the package and the service's name. Debian's packages start what they bring,
/// unless a policy says no (101: forbidden); and no later start of the machine shall start it.
const INSTALL_WITHOUT_STARTING: &str = r#"
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi
apt-get --quiet update &&
    apt-get --quiet install --yes --no-install-recommends "$1" &&
    { update-rc.d "$2" disable >/dev/null 2>&1 || true; }
"#;

/// Makes sure that `binary` can be run, from the Debian package `package` if it is missing.
pub fn need(package: &str, binary: &str) -> Result<(), Failure> {
    let (there, words) = (|| on_path(binary), ["apt-get", "--quiet"]);
    install(package, binary, there, || {
        run(as_root(&words).arg("update"))?;
        run(as_root(&words).args(["install", "--yes", "--no-install-recommends", package]))
    })
}

/// The same for a server, of which nothing is left running.
pub fn need_server(server: &Server) -> Result<(), Failure> {
    let beside = || server.folders.iter().flat_map(|folder| expand(folder));
    let there =
        || on_path(server.binary) || beside().any(|folder| is_file(&folder.join(server.binary)));
    install(server.package, server.binary, there, || {
        let words = ["sh", "-c", INSTALL_WITHOUT_STARTING, "install"];
        run(as_root(&words).args([server.package, server.service]))
    })
}

fn install(
    package: &str,
    binary: &str,
    there: impl Fn() -> bool,
    install: impl FnOnce() -> Result<(), Failure>,
) -> Result<(), Failure> {
    if there() {
        return Ok(());
    }
    println!("`{binary}` is missing: installing the package {package}");
    let by_hand = format!("install {package} (it brings `{binary}`), then run this again");
    install().map_err(|error| format!("{error}; {by_hand}"))?;
    if there() { Ok(()) } else { Err(format!("still no `{binary}`: {by_hand}")) }
}

fn as_root(words: &[&str]) -> Command {
    let mut command = if on_path("sudo") && !is_root() {
        let mut sudo = Command::new("sudo");
        sudo.args(["--non-interactive", "DEBIAN_FRONTEND=noninteractive"]).args(words);
        sudo
    } else {
        let mut plain = Command::new(words[0]);
        plain.env("DEBIAN_FRONTEND", "noninteractive").args(&words[1..]);
        plain
    };
    command.stdin(std::process::Stdio::null());
    command
}

/// The folders that a pattern with at most one `*` stands for.
fn expand(pattern: &str) -> Vec<PathBuf> {
    let Some((before, after)) = pattern.split_once('*') else { return vec![pattern.into()] };
    let entries = std::fs::read_dir(before).into_iter().flatten().flatten();
    let name = |entry: std::fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    entries.map(|entry| PathBuf::from(format!("{before}{}{after}", name(entry)))).collect()
}

fn is_root() -> bool {
    let answer = Command::new("id").arg("-u").output();
    answer.is_ok_and(|answer| answer.stdout.trim_ascii() == b"0")
}

fn on_path(binary: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| is_file(&folder.join(binary)))
}

fn is_file(path: &Path) -> bool {
    path.metadata().is_ok_and(|found| found.is_file())
}
