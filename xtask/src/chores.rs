//! The small chores: each is one or two runs of cargo or of the built program. What they print and
//! how they end is left to the program that they run.

use crate::Failure;
use crate::process::{cargo, root, run, target_dir};

/// The model checker; options (`--deep`) are its own.
pub fn check(options: &[&str]) -> Result<(), Failure> {
    let mut command = cargo(&["run", "--release", "-p", "unanimity-check", "--"]);
    run(command.args(options))
}

/// Builds what users run (release, no test features) and measures it.
pub fn bench(options: &[&str]) -> Result<(), Failure> {
    run(&mut cargo(&["build", "--release", "-p", "unanimity-server", "--bin", "unanimity"]))?;
    let program = target_dir().join("release").join("unanimity");
    let mut command = std::process::Command::new(program);
    run(command.current_dir(root()).arg("bench").args(options))
}
