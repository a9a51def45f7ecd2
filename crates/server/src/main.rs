//! The program `unanimity`: everything is in the library, so that tests can reach it.

use std::process::ExitCode;

fn main() -> ExitCode {
    unanimity_server::commands::main()
}
