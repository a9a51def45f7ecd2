//! The program `unanimity`: everything is in the library, so that tests can reach it.

use std::process::ExitCode;

/// Requests and answers are made by one thread and freed by another; the system's allocator makes
/// the two wait for each other. Measured, when transactions were too: a quarter of the processor
/// time of one.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    unanimity_server::commands::main()
}
