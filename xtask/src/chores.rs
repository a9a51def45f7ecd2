//! The small chores: each is one or two runs of cargo or of the built program. What they print and
//! how they end is left to the program that they run.

use std::path::Path;
use std::process::Command;

use crate::Failure;
use crate::dist::dist;
use crate::process::{cargo, root, run, target_dir};

/// The model checker; options (`--deep`) are its own.
pub fn check(options: &[&str]) -> Result<(), Failure> {
    let mut command = cargo(&["run", "--release", "-p", "unanimity-check", "--"]);
    run(command.args(options))
}

/// The figures of the last whole run, with machine and commit.
const RESULTS: &str = "bench/results.json";

/// Builds what users deploy (no test features, by a profile) and measures it. Without options that
/// is the whole table, beside the figures of the last run, which it replaces.
pub fn bench(options: &[&str]) -> Result<(), Failure> {
    let program = dist()?;
    let page = target_dir().join("bench").join("report.html").display().to_string();
    let whole = ["all", "--markdown", "--save", RESULTS, "--html", &page];
    measure(&program, if options.is_empty() { &whole } else { options })?;
    if options.is_empty() {
        println!("charts: {page}");
    }
    Ok(())
}

/// Runs the bench of a program that was built.
pub fn measure(program: &Path, options: &[&str]) -> Result<(), Failure> {
    let mut command = Command::new(program);
    command.current_dir(root()).arg("bench").args(options);
    run(command.env("BENCH_COMMIT", commit()))
}

/// The commit that is checked out, marked where something differs from it; empty without git.
fn commit() -> String {
    let arguments = ["describe", "--always", "--dirty", "--abbrev=12"];
    let answer = Command::new("git").args(arguments).current_dir(root()).output();
    let told = answer.ok().filter(|answer| answer.status.success());
    told.map_or_else(String::new, |told| String::from_utf8_lossy(&told.stdout).trim().to_owned())
}

/// Where the generated Rust code of `proto/` is kept.
const GENERATED: &str = "crates/sdk/src/stream/generated.rs";
/// What the file opens with.
const GENERATED_HEAD: &str = "\
//! Written by `cargo xtask proto` from `proto/unanimity/v1/`: what is decided is decided there.
";

/// Generates the Rust code of `proto/` anew, or with `check` only says whether it is as committed.
pub fn proto(check: bool) -> Result<(), Failure> {
    let folder = target_dir().join("proto");
    std::fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    run(cargo(&["run", "-q", "-p", "xtask-proto", "--"]).arg(&folder).current_dir(root()))?;
    let made = folder.join("unanimity.v1.rs");
    let made =
        std::fs::read_to_string(&made).map_err(|error| format!("{}: {error}", made.display()))?;
    let (text, kept) = (format!("{GENERATED_HEAD}{made}"), root().join(GENERATED));
    let found = std::fs::read_to_string(&kept).unwrap_or_default();
    match (found == text, check) {
        (true, _) => Ok(()),
        (false, true) => Err(format!("{GENERATED} is not what proto/ says: run cargo xtask proto")),
        (false, false) => {
            std::fs::write(&kept, text).map_err(|error| format!("{GENERATED}: {error}"))
        }
    }
}
