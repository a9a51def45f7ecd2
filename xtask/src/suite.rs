//! `cargo xtask test`: every check that a change must pass, in order, cheapest first, stopping at
//! the first that fails. It decides the order and the features; counting results is the tally's
//! part.

use std::time::{Duration, Instant};

use crate::Failure;
use crate::chores::{self, measure};
use crate::need::{Server, need, need_server};
use crate::process::{cargo, run, run_reading, target_dir};
use crate::schemathesis::{LONG, SHORT, schemathesis};
use crate::tally::Tally;
use crate::{fuzz, tidy};

/// Lets tests end the program at a labelled point; never on in what users run.
const CRASH_POINTS: &str = "unanimity-server/crash-points";

type Run = fn(&mut Tally) -> Result<(), Failure>;

struct Step {
    name: &'static str,
    run: Run,
}

/// The order is from cheap to dear. Clippy builds with --release because it then shares the build
/// scripts (SQLite's C code is the dearest of all) with the tests.
const STEPS: [Step; 12] = [
    Step { name: "machine", run: machine },
    Step { name: "format", run: format },
    Step { name: "tidy", run: |_| tidy::run(false) },
    Step { name: "published messages", run: published_messages },
    Step { name: "clippy", run: clippy },
    Step { name: "tests", run: tests },
    Step { name: "bench, short", run: bench },
    Step { name: "API against its description", run: |_| schemathesis(SHORT) },
    Step { name: "model checker", run: model_checker },
    Step { name: "simulator", run: simulator },
    Step { name: "planted bugs", run: planted_bugs },
    Step { name: "documentation", run: documentation },
];

const LONG_STEPS: [Step; 6] = [
    Step { name: "journal, every bit", run: every_bit },
    Step { name: "model checker, deep, beside it the parsers, fuzzed", run: deep_and_fuzzed },
    Step { name: "simulator, a million seeds", run: million },
    Step { name: "real faults, all of them", run: all_faults },
    Step { name: "parsers, mutated inputs", run: mutated_inputs },
    Step { name: "API against its description, long", run: |_| schemathesis(LONG) },
];

/// Runs all steps and ends with the line `N passed, M failed`.
pub fn run_all(long: bool) -> Result<(), Failure> {
    let mut tally = Tally::default();
    let mut times = Vec::new();
    let steps = STEPS.iter().chain(LONG_STEPS.iter().filter(|_| long));
    let mut result = Ok(());
    for step in steps {
        println!("\n== {}", step.name);
        let start = Instant::now();
        result = (step.run)(&mut tally).map_err(|error| format!("{}: {error}", step.name));
        times.push((step.name, start.elapsed()));
        if result.is_err() {
            break;
        }
    }
    close(&mut tally, &times, result)
}

fn close(
    tally: &mut Tally,
    times: &[(&str, Duration)],
    result: Result<(), Failure>,
) -> Result<(), Failure> {
    println!("\n== time taken");
    for (name, time) in times {
        println!("{:>8.1} s  {name}", time.as_secs_f64());
    }
    let result = result.and_then(|()| tally.judge());
    if let Err(message) = &result {
        println!("\nFAILED: {message}");
        // A step that fails without a failed test (a build, the style) counts as one failure:
        // the closing line must not read like success.
        tally.failed = tally.failed.max(1);
    }
    if tally.ignored > 0 {
        println!("{} tests ignored", tally.ignored);
    }
    println!();
    tally.states.iter().for_each(|line| println!("{line}"));
    println!("{}", tally.closing());
    // All is said, and the closing line stays the last.
    result.map_err(|_| Failure::new())
}

/// What the tests start databases with (crates/databases).
const DATABASE_SERVERS: [Server; 2] = [
    Server {
        package: "postgresql",
        binary: "postgres",
        folders: &["/usr/lib/postgresql/*/bin"],
        service: "postgresql",
    },
    Server {
        package: "mariadb-server",
        binary: "mariadbd",
        folders: &["/usr/sbin"],
        service: "mariadb",
    },
];

/// A linker for everything, Python for the participant that is written in it, what brings faults to
/// real processes (system calls that fail or kill, clocks that jump), and database servers.
fn machine(_: &mut Tally) -> Result<(), Failure> {
    need("build-essential", "cc")?;
    need("python3", "python3")?;
    need("strace", "strace")?;
    need("faketime", "faketime")?;
    DATABASE_SERVERS.iter().try_for_each(need_server)
}

fn format(_: &mut Tally) -> Result<(), Failure> {
    component("fmt", "rustfmt")?;
    run(&mut cargo(&["fmt", "--all", "--check"]))
        .map_err(|error| format!("{error}; `cargo fmt --all` sets it right"))
}

/// Whether the code of the messages is what `proto/` says. Only a change of `proto/` needs protoc.
fn published_messages(_: &mut Tally) -> Result<(), Failure> {
    let protoc = std::process::Command::new("protoc").arg("--version").output();
    if protoc.is_ok_and(|answer| answer.status.success()) {
        return chores::proto(true);
    }
    println!(
        "protoc is not here: that the code of the messages is as proto/ says was not looked at"
    );
    Ok(())
}

fn clippy(_: &mut Tally) -> Result<(), Failure> {
    component("clippy", "clippy")?;
    let arguments = ["clippy", "--release", "--workspace", "--all-targets", "--features"];
    run(cargo(&arguments).args([CRASH_POINTS, "--", "-D", "warnings"]))
}

/// Without the checker's package: it turns on the core's deliberate bugs (feature `mutations`), and
/// the programs under test must be free of them.
fn tests(tally: &mut Tally) -> Result<(), Failure> {
    let arguments = ["test", "--release", "--workspace", "--exclude", "unanimity-check"];
    let mut command = cargo(&arguments);
    run_reading(command.args(["--features", CRASH_POINTS]), &mut |line| tally.read(line))
}

/// Every scenario of the bench for less than a second: it must run to its end, and each scenario
/// fails if a transaction was lost. What it measured means nothing. The features are those of the
/// tests, so that nothing is built twice.
fn bench(_: &mut Tally) -> Result<(), Failure> {
    let arguments = ["build", "--release", "--workspace", "--exclude", "unanimity-check"];
    run(cargo(&arguments).args(["--features", CRASH_POINTS, "--bin", "unanimity"]))?;
    measure(&target_dir().join("release").join("unanimity"), &["all", "--short"])
}

fn mutated_inputs(tally: &mut Tally) -> Result<(), Failure> {
    let mut command = cargo(&["test", "--release", "-p", "unanimity-inputs"]);
    run_reading(command.env("LONG_TESTS", "1"), &mut |line| tally.read(line))
}

fn model_checker(tally: &mut Tally) -> Result<(), Failure> {
    let arguments = ["test", "--release", "-p", "unanimity-check", "--", "--nocapture"];
    run_reading(&mut cargo(&arguments), &mut |line| tally.read(line))
}

/// The first seeds, and as many that nobody has seen before would be better still; but a red run
/// must be red again tomorrow.
fn simulator(tally: &mut Tally) -> Result<(), Failure> {
    check(tally, &["sim", "--seeds", "20000"])
}

fn planted_bugs(tally: &mut Tally) -> Result<(), Failure> {
    check(tally, &["mutants"])
}

fn million(tally: &mut Tally) -> Result<(), Failure> {
    check(tally, &["sim", "--seeds", "1000000", "--from", "20000"])
}

fn check(tally: &mut Tally, words: &[&str]) -> Result<(), Failure> {
    let mut command = cargo(&["run", "--release", "-p", "unanimity-check", "--"]);
    run_reading(command.args(words), &mut |line| tally.read(line))
}

fn documentation(_: &mut Tally) -> Result<(), Failure> {
    let mut command = cargo(&["doc", "--release", "--workspace", "--no-deps"]);
    run(command.env("RUSTDOCFLAGS", "-D warnings"))
}

/// Each of them needs one core for some twenty minutes, and nothing of the other.
fn deep_and_fuzzed(tally: &mut Tally) -> Result<(), Failure> {
    std::thread::scope(|scope| {
        let fuzzed = scope.spawn(fuzz::in_the_long_set);
        let checked = check(tally, &["--deep"]);
        let fuzzed = fuzzed.join().map_err(|_| "the fuzzers' thread broke".to_owned())?;
        checked.and(fuzzed)
    })
}

fn every_bit(tally: &mut Tally) -> Result<(), Failure> {
    let arguments = ["test", "--release", "-p", "unanimity-journal", "--features", "long"];
    run_reading(&mut cargo(&arguments), &mut |line| tally.read(line))
}

/// The same binary as in the ordinary tests; the variable makes it run its long set.
fn all_faults(tally: &mut Tally) -> Result<(), Failure> {
    need("iproute2", "ip")?;
    need("iptables", "iptables")?;
    let arguments = ["test", "--release", "--workspace", "--exclude", "unanimity-check"];
    let mut command = cargo(&arguments);
    command.args(["--features", CRASH_POINTS, "--test", "program", "--", "--nocapture"]);
    command.args(["faults", "crashes", "crowd"]).env("LONG_TESTS", "1");
    run_reading(&mut command, &mut |line| tally.read(line))
}

/// A toolchain of the minimal profile has neither rustfmt nor clippy.
fn component(subcommand: &str, component: &str) -> Result<(), Failure> {
    let answer = cargo(&[subcommand, "--version"]).output();
    if answer.is_ok_and(|answer| answer.status.success()) {
        return Ok(());
    }
    Err(format!("{component} is not installed: `rustup component add {component}`"))
}
