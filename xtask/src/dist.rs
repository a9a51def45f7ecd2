//! What is deployed: the program optimised in one piece, and laid out by a profile of its own runs.
//!
//! Three steps: the program is built with counters in it; the bench is run with that, which says
//! what is done often; and it is built once more by what was counted (`profile-generate` and
//! `profile-use` of rustc). Nothing is done again whose causes are the same: both builds are
//! cargo's, and the counts have a name that stands for the program that was run, and how.

use std::hash::{DefaultHasher, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Failure;
use crate::process::{cargo, name, root, run, target_dir};

const BUILD: [&str; 7] =
    ["build", "--profile", "dist", "-p", "unanimity-server", "--bin", "unanimity"];
/// What is run to be counted: everything that transactions pass through, most of that which is to
/// be fast, and with it the ceilings that it is compared with. The last two go together: many live
/// transactions are left behind, and recovered.
const RUNS: [&[&str]; 4] = [
    &["all", "--short"],
    &["embedded", "http", "stream", "latency", "--seconds", "2"],
    &["growth", "--seconds", "1", "--live", "100000"],
    &["growth", "--seconds", "1", "--recover", "100000"],
];

/// Counted as well where there is a PostgreSQL: participants and guards in it.
const RUN_OVER_DATABASES: &[&str] = &["--databases", "--seconds", "1"];

/// Builds it, and says where it is.
pub fn dist() -> Result<PathBuf, Failure> {
    let host = of_rustc(&["--print", "host-tuple"])?;
    // Before anything that takes long.
    let merge = llvm_profdata()?;
    let counting = build(&folder().join("counting"), &host, "-Cprofile-generate")?;
    let profile = profile_of(&counting, &merge)?;
    build(&folder(), &host, &format!("-Cprofile-use={}", profile.display()))
}

/// Beside what other builds leave: with other flags everything is built anew.
fn folder() -> PathBuf {
    target_dir().join("deploy")
}

/// One build with one more flag for all that becomes a part of the program.
fn build(folder: &Path, host: &str, flag: &str) -> Result<PathBuf, Failure> {
    let plain = std::env::var("RUSTFLAGS").unwrap_or_default();
    let flags: Vec<&str> = plain.split_whitespace().chain([flag]).collect();
    let mut command = cargo(&BUILD);
    // With a target named, the flags are not for build scripts and macros, which run here.
    command.args(["--target", host, "--target-dir"]).arg(folder);
    // Not RUSTFLAGS, whose parts are divided by spaces: the folder's name may have some.
    command.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
    run(&mut command)?;
    Ok(folder.join(host).join("dist").join("unanimity"))
}

/// What was counted in runs of this program; they are made if there is nothing of it yet.
fn profile_of(program: &Path, merge: &Path) -> Result<PathBuf, Failure> {
    let folder = folder().join("counts");
    let bytes = std::fs::read(program).map_err(failed(program))?;
    let mut hasher = DefaultHasher::new();
    hasher.write(&bytes);
    hasher.write(format!("{RUNS:?} {RUN_OVER_DATABASES:?}").as_bytes());
    let profile = folder.join(format!("{:016x}.profdata", hasher.finish()));
    if profile.exists() {
        return Ok(profile);
    }
    let (raw, runs) = (folder.join("raw"), folder.join("runs"));
    if folder.exists() {
        std::fs::remove_dir_all(&folder).map_err(failed(&folder))?;
    }
    std::fs::create_dir_all(&raw).map_err(failed(&raw))?;
    let count = |arguments: &[&str]| {
        println!("counting what is done often: unanimity bench {}", arguments.join(" "));
        let mut command = Command::new(program);
        command.arg("bench").args(arguments).arg("--folder").arg(&runs);
        // A file for each process: the bench starts several.
        run(command.current_dir(root()).env("LLVM_PROFILE_FILE", raw.join("%m-%p.profraw")))
    };
    for arguments in RUNS {
        count(arguments)?;
    }
    if let Err(error) = count(RUN_OVER_DATABASES) {
        println!("what is done over databases counts as rare: {error}");
    }
    let merged = folder.join("merged");
    // One process that was ended before its counts were written is no reason to do without all.
    let words = ["merge", "--sparse", "--failure-mode=all", "-o"];
    run(Command::new(merge).args(words).arg(&merged).arg(&raw))?;
    std::fs::rename(&merged, &profile).map_err(failed(&profile))?;
    for folder in [raw, runs] {
        std::fs::remove_dir_all(&folder).map_err(failed(&folder))?;
    }
    Ok(profile)
}

/// The tool that puts counts together: of the compiler's own version, because no other reads them.
fn llvm_profdata() -> Result<PathBuf, Failure> {
    let libraries = PathBuf::from(of_rustc(&["--print", "target-libdir"])?);
    let tool = libraries.with_file_name("bin").join("llvm-profdata");
    if !tool.exists() {
        println!("`llvm-profdata` is missing: adding the component llvm-tools");
        let added = run(Command::new("rustup").args(["component", "add", "llvm-tools"]));
        let why = match added {
            Ok(()) if tool.exists() => return Ok(tool),
            Ok(()) => format!("still no {}", tool.display()),
            Err(error) => error,
        };
        let plain = BUILD.join(" ");
        return Err(format!(
            "{why}; add rustc's llvm-tools by hand, or do without a profile: `cargo {plain}`"
        ));
    }
    Ok(tool)
}

/// What the compiler says of itself.
fn of_rustc(question: &[&str]) -> Result<String, Failure> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut command = Command::new(rustc);
    let told = command.args(question).current_dir(root()).output();
    let told = told.map_err(|error| format!("cannot run rustc: {error}"))?;
    let text = String::from_utf8_lossy(&told.stdout).trim().to_owned();
    if text.is_empty() { Err(format!("{} says nothing", name(&command))) } else { Ok(text) }
}

fn failed(path: &Path) -> impl Fn(std::io::Error) -> Failure {
    let path = path.display().to_string();
    move |error| format!("{path}: {error}")
}
