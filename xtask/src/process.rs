//! How a chore starts another program: always at the repository's root, without input, and without
//! the variables that cargo sets for xtask itself. What the programs are is left to the chores.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use crate::Failure;

/// The repository's root: the parent of this package's folder.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// Where cargo puts what it builds.
pub fn target_dir() -> PathBuf {
    let named = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    root().join(named.unwrap_or_else(|| PathBuf::from("target")))
}

/// The cargo that runs xtask, ready to run something else.
///
/// Some build scripts (ring's) run again when `CARGO_PKG_NAME` and its like change. Left in place,
/// `cargo xtask test` and a plain `cargo test` would rebuild each other's work.
pub fn cargo(arguments: &[&str]) -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    command.args(arguments).current_dir(root()).stdin(Stdio::null());
    command
}

/// Runs to the end; anything but success is a failure.
pub fn run(command: &mut Command) -> Result<(), Failure> {
    let status = command.status().map_err(|error| not_started(command, &error))?;
    judge(command, status)
}

/// Runs to the end and passes standard output through as it comes (progress must not wait for a
/// line to end), handing every complete line to `on_line` as well.
pub fn run_reading(command: &mut Command, on_line: &mut dyn FnMut(&str)) -> Result<(), Failure> {
    let started = command.stdout(Stdio::piped()).spawn();
    let mut child = started.map_err(|error| not_started(command, &error))?;
    if let Some(mut output) = child.stdout.take() {
        // Not locked: another command may have something to say meanwhile.
        relay(&mut output, &mut std::io::stdout(), on_line)
            .map_err(|error| format!("the output of {} broke off: {error}", name(command)))?;
    }
    let status = child.wait().map_err(|error| not_started(command, &error))?;
    judge(command, status)
}

fn relay(
    from: &mut dyn Read,
    to: &mut dyn Write,
    on_line: &mut dyn FnMut(&str),
) -> std::io::Result<()> {
    let mut chunk = [0_u8; 8192];
    let mut line = Vec::new();
    loop {
        let count = from.read(&mut chunk)?;
        if count == 0 {
            break;
        }
        to.write_all(&chunk[..count])?;
        to.flush()?;
        for &byte in &chunk[..count] {
            if byte == b'\n' {
                on_line(&String::from_utf8_lossy(&line));
                line.clear();
            } else {
                line.push(byte);
            }
        }
    }
    if !line.is_empty() {
        on_line(&String::from_utf8_lossy(&line));
    }
    Ok(())
}

fn judge(command: &Command, status: ExitStatus) -> Result<(), Failure> {
    if status.success() { Ok(()) } else { Err(format!("{} failed: {status}", name(command))) }
}

fn not_started(command: &Command, error: &std::io::Error) -> Failure {
    format!("cannot run {}: {error}", name(command))
}

/// The command as a person would type it.
pub fn name(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_stem().unwrap_or_default();
    let mut words = vec![program.to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|word| word.to_string_lossy().into_owned()));
    format!("`{}`", words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::relay;

    #[test]
    fn every_line_is_seen_and_every_byte_passed_on() {
        let input = b"one\ntwo\n\nlast without an end\xff";
        let (mut passed, mut lines) = (Vec::new(), Vec::new());
        relay(&mut &input[..], &mut passed, &mut |line| lines.push(line.to_string())).unwrap();
        assert_eq!(passed, input);
        assert_eq!(lines, ["one", "two", "", "last without an end\u{fffd}"]);
    }
}
