//! Measures how long an append takes here, by the engine with a file of its own and by SQLite's, in
//! turn, both forgetting what lies far behind: `cargo run --release -p unanimity-journal --example
//! append_speed [folder]`. Nothing is judged.

use std::path::PathBuf;
use std::time::Instant;

use unanimity_journal::{Engine, JournalError, LogEngine, SqliteEngine};

const RECORD_BYTES: usize = 200;
const APPENDS: u64 = 5_000;

/// A coordinator's journal keeps about so many batches.
const KEPT: u64 = 256;

fn main() -> Result<(), JournalError> {
    let folder = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let path = folder.join(format!("append-speed-{}.journal", std::process::id()));
    for records in [1, 16, 256] {
        for _ in 0..2 {
            measure("log", &mut LogEngine::open(&path)?, records)?;
            std::fs::remove_file(&path).ok();
            measure("SQLite", &mut SqliteEngine::open(&path)?, records)?;
            std::fs::remove_file(&path).ok();
        }
    }
    Ok(())
}

fn measure(name: &str, engine: &mut dyn Engine, records: usize) -> Result<(), JournalError> {
    let record = [0xA5; RECORD_BYTES];
    let batch = vec![&record[..]; records];
    let mut micros = Vec::new();
    for position in 1..=APPENDS {
        let before = position.checked_sub(KEPT).filter(|before| before % KEPT == 0);
        let start = Instant::now();
        engine.append_and_truncate(0, position, &batch, before)?;
        micros.push(start.elapsed().as_micros());
    }
    micros.sort_unstable();
    let at = |share: f64| micros[((micros.len() - 1) as f64 * share) as usize];
    let mean = micros.iter().sum::<u128>() / u128::from(APPENDS);
    println!(
        "{name:>6}, {records} x {RECORD_BYTES} bytes: mean {mean} us, p50 {} us, p99 {} us, \
         max {} us",
        at(0.5),
        at(0.99),
        at(1.0)
    );
    Ok(())
}
