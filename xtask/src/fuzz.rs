//! `cargo xtask fuzz`: runs every fuzz target for a while. What the targets are is said by the
//! folders of the corpus, and what must hold for any bytes by `crates/inputs`, whose ordinary tests
//! try the same corpus without a fuzzer.

use crate::Failure;
use crate::need::need;
use crate::process::{cargo, root, run, target_dir};

/// How long each target is tried if nobody says.
const SECONDS: u32 = 60;
/// One input may take so long; more is a parser that can be made to hang.
const INPUT_SECONDS_MAX: u32 = 10;
/// And so much memory; more is a parser that can be made to fill it.
const MEMORY_MB_MAX: u32 = 2_048;

/// `[--seconds N] [TARGET...]`.
pub fn fuzz(options: &[&str]) -> Result<(), Failure> {
    let (seconds, named) = read(options)?;
    if !cargo(&["fuzz", "--version"]).output().is_ok_and(|answer| answer.status.success()) {
        let advice = "cargo-fuzz is not installed: `cargo install cargo-fuzz --locked`";
        return Err(advice.into());
    }
    need("g++", "c++")?;
    let targets = targets()?;
    if let Some(unknown) = named.iter().find(|name| !targets.iter().any(|target| target == *name)) {
        return Err(format!("no target `{unknown}`; there are: {}", targets.join(", ")));
    }
    let chosen: Vec<&String> = targets
        .iter()
        .filter(|target| named.is_empty() || named.contains(&target.as_str()))
        .collect();
    for target in &chosen {
        println!("-- {target}, {seconds} s");
        try_one(target, seconds)?;
    }
    println!("fuzz targets tried without a finding: {}", chosen.len());
    Ok(())
}

/// The same in the long set of tests, which installs what it needs.
pub fn in_the_long_set() -> Result<(), Failure> {
    if !cargo(&["fuzz", "--version"]).output().is_ok_and(|answer| answer.status.success()) {
        run(&mut cargo(&["install", "cargo-fuzz", "--locked"]))?;
    }
    fuzz(&[])
}

fn read<'a>(options: &[&'a str]) -> Result<(u32, Vec<&'a str>), Failure> {
    match options {
        ["--seconds", number, named @ ..] => {
            let seconds = number.parse().map_err(|_| format!("`{number}` is no number"))?;
            Ok((seconds, named.to_vec()))
        }
        named => Ok((SECONDS, named.to_vec())),
    }
}

fn targets() -> Result<Vec<String>, Failure> {
    let folder = root().join("fuzz/corpus");
    let listed = std::fs::read_dir(folder).map_err(|error| format!("fuzz/corpus: {error}"))?;
    let mut names: Vec<String> =
        listed.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    Ok(names)
}

/// What the fuzzer comes upon is kept beside the build, for its next run; what is worth keeping for
/// good is copied into the corpus by hand. Without a sanitizer: the code is safe Rust, and what it
/// may do wrong shows as a panic, as time, or as memory. So a stable compiler is enough.
fn try_one(target: &str, seconds: u32) -> Result<(), Failure> {
    let found = target_dir().join("fuzz-corpus").join(target);
    std::fs::create_dir_all(&found).map_err(|error| format!("{}: {error}", found.display()))?;
    let mut command = cargo(&["fuzz", "run", "--sanitizer", "none", target]);
    command.arg(&found).arg(root().join("fuzz/corpus").join(target));
    command.args(["--", "-print_final_stats=1", "-use_value_profile=1", "-verbosity=0"]);
    command.args([
        format!("-max_total_time={seconds}"),
        format!("-timeout={INPUT_SECONDS_MAX}"),
        format!("-rss_limit_mb={MEMORY_MB_MAX}"),
    ]);
    run(&mut command)
}

#[cfg(test)]
mod tests {
    use super::{read, targets};

    #[test]
    fn there_are_targets_and_each_has_a_program() {
        let manifest = std::fs::read_to_string(crate::process::root().join("fuzz/Cargo.toml"));
        let manifest = manifest.unwrap();
        let targets = targets().unwrap();
        assert!(targets.len() >= 10, "{targets:?}");
        for target in targets {
            assert!(manifest.contains(&format!("name = \"{target}\"")), "{target}");
        }
    }

    #[test]
    fn the_time_can_be_said() {
        assert_eq!(read(&[]).unwrap(), (60, vec![]));
        assert_eq!(read(&["--seconds", "5", "id"]).unwrap(), (5, vec!["id"]));
        assert!(read(&["--seconds", "x"]).is_err());
    }
}
