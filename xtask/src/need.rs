//! What the machine must have besides Rust. A missing program is installed from Debian's packages,
//! as root or through sudo; on another system the message says what to install by hand.
//!
//! `.ci/run` has the same three lines in bash for the C compiler: without a linker xtask itself
//! cannot be built.

use std::path::Path;
use std::process::Command;

use crate::Failure;
use crate::process::run;

/// Makes sure that `binary` can be run, from the Debian package `package` if it is missing.
pub fn need(package: &str, binary: &str) -> Result<(), Failure> {
    if on_path(binary) {
        return Ok(());
    }
    println!("`{binary}` is missing: installing the package {package}");
    let installed = apt_get(&["update"])
        .and_then(|()| apt_get(&["install", "--yes", "--no-install-recommends", package]));
    let by_hand = format!("install {package} (it brings `{binary}`), then run this again");
    installed.map_err(|error| format!("{error}; {by_hand}"))?;
    if on_path(binary) { Ok(()) } else { Err(format!("still no `{binary}`: {by_hand}")) }
}

fn apt_get(arguments: &[&str]) -> Result<(), Failure> {
    let mut command = if on_path("sudo") && !is_root() {
        let mut sudo = Command::new("sudo");
        sudo.args(["--non-interactive", "DEBIAN_FRONTEND=noninteractive", "apt-get"]);
        sudo
    } else {
        let mut plain = Command::new("apt-get");
        plain.env("DEBIAN_FRONTEND", "noninteractive");
        plain
    };
    run(command.arg("--quiet").args(arguments).stdin(std::process::Stdio::null()))
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
