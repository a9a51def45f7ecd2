//! Explores everything and prints the table.

use std::process::ExitCode;

use unanimity_check::{configurations, run, story};

fn main() -> ExitCode {
    let only: Vec<String> = std::env::args().skip(1).collect();
    for configuration in configurations::all() {
        if !only.is_empty() && !only.iter().any(|o| o == configuration.setup.name) {
            continue;
        }
        let e = run::explore(&configuration, 2);
        println!("{e}");
        if !e.violated.is_empty() {
            if let Some(example) = run::shortest_counterexample(&configuration.setup) {
                print!("{}", story::tell(&configuration.setup, &example));
            }
        }
    }
    ExitCode::SUCCESS
}
