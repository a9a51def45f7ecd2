//! The bank as a program of its own; everything is in the library.

use std::process::ExitCode;

use clap::Parser;
use unanimity_bank::BankArguments;

/// An account service that takes part in Unanimity's transactions.
#[derive(Parser)]
#[command(name = "bank", version)]
struct Arguments {
    #[command(flatten)]
    bank: BankArguments,
}

#[tokio::main]
async fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("off"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match unanimity_bank::serve(Arguments::parse().bank).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bank: {error:#}");
            ExitCode::FAILURE
        }
    }
}
