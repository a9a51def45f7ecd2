//! The project's chores, run as `cargo xtask COMMAND`. This file decides only which chore a command
//! line names; each chore has its own file. There are no dependencies, so that `cargo xtask` itself
//! builds in seconds on a fresh machine.

mod chores;
mod dist;
mod fuzz;
mod need;
mod process;
mod schemathesis;
mod suite;
mod tally;
mod tidy;

use std::process::ExitCode;

const USAGE: &str = "\
The project's chores.

  cargo xtask test [--long]     everything that must hold before a change is accepted;
                                --long adds the deep run of the model checker
  cargo xtask tidy [--update]   the house style, as a test; --update lowers the ratchet
                                (xtask/tidy-ratchet.txt) to what is still there
  cargo xtask check [--deep]    the model checker
  cargo xtask sim --seeds N [--from S]
                                the simulator; --seed S --trace shows one run, --script FILE
                                a failure that was kept
  cargo xtask mutants [WORD]    hunt every deliberate bug with the model and the simulator
  cargo xtask proto [--check]   write the Rust code of proto/ anew, which needs protoc; --check
                                only says whether it is as committed
  cargo xtask dist              build the program as it is deployed: in one piece, by a profile of
                                its own runs; some twenty minutes from nothing
  cargo xtask bench [ARGS]      the same, then run `unanimity bench ARGS`; without ARGS the whole
                                table, kept in bench/results.json
  cargo xtask fuzz [--seconds N] [TARGET...]
                                every parser of outside bytes, each for a minute (cargo-fuzz)
  cargo xtask schemathesis [--long]
                                the running API against its own OpenAPI document
  cargo xtask help              this page
";

/// What a chore says when it does not succeed: one message for a person, or nothing if the
/// chore has said it already.
type Failure = String;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match dispatch(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            if !message.is_empty() {
                eprintln!("xtask: {message}");
            }
            ExitCode::FAILURE
        }
    }
}

fn dispatch(arguments: &[String]) -> Result<(), Failure> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["test"] => suite::run_all(false),
        ["test", "--long"] => suite::run_all(true),
        ["tidy"] => tidy::run(false),
        ["tidy", "--update"] => tidy::run(true),
        ["check", options @ ..] => chores::check(options),
        ["sim", ..] | ["mutants", ..] => chores::check(&words),
        ["proto"] => chores::proto(false),
        ["proto", "--check"] => chores::proto(true),
        ["fuzz", options @ ..] => fuzz::fuzz(options),
        ["schemathesis"] => schemathesis::schemathesis(schemathesis::SHORT),
        ["schemathesis", "--long"] => schemathesis::schemathesis(schemathesis::LONG),
        ["dist"] => dist::dist().map(|program| println!("{}", program.display())),
        ["bench", options @ ..] => chores::bench(options),
        [] | ["help" | "--help" | "-h"] => {
            print!("{USAGE}");
            Ok(())
        }
        unknown => Err(format!("unknown command `{}`\n\n{USAGE}", unknown.join(" "))),
    }
}

#[cfg(test)]
mod tests {
    use super::dispatch;

    #[test]
    fn an_unknown_command_answers_with_the_usage() {
        for line in ["nonsense", "test --lnog", "tidy please"] {
            let words: Vec<String> = line.split(' ').map(String::from).collect();
            let message = dispatch(&words).unwrap_err();
            assert!(message.contains(line) && message.contains("cargo xtask test"), "{message}");
        }
    }
}
