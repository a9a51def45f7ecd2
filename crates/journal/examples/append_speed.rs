//! Measures how long an append takes here: `cargo run --release -p unanimity-journal --example
//! append_speed [folder]`. Nothing is judged.

use std::path::PathBuf;
use std::time::Instant;

use unanimity_journal::{Engine, JournalError, SqliteEngine};

const RECORD_BYTES: usize = 200;
const APPENDS: u64 = 5_000;

fn main() -> Result<(), JournalError> {
    let folder = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    for records in [1, 16, 256] {
        measure(folder.join(format!("append-speed-{}.journal", std::process::id())), records)?;
    }
    Ok(())
}

fn measure(path: PathBuf, records: usize) -> Result<(), JournalError> {
    let mut engine = SqliteEngine::open(&path)?;
    let record = [0xA5; RECORD_BYTES];
    let batch = vec![&record[..]; records];
    let mut micros = Vec::new();
    for position in 1..=APPENDS {
        let start = Instant::now();
        engine.append(0, position, &batch)?;
        micros.push(start.elapsed().as_micros());
    }
    micros.sort_unstable();
    let at = |share: f64| micros[((micros.len() - 1) as f64 * share) as usize];
    let mean = micros.iter().sum::<u128>() / u128::from(APPENDS);
    println!(
        "{records} x {RECORD_BYTES} bytes: mean {mean} us, p50 {} us, p99 {} us, max {} us",
        at(0.5),
        at(0.99),
        at(1.0)
    );
    drop(engine);
    let start = Instant::now();
    let mut engine = SqliteEngine::open(&path)?;
    let opened = start.elapsed();
    let mut read = 0;
    engine.read(0, 1, &mut |batch| {
        read += batch.records.len();
        Ok(())
    })?;
    println!("  reopen {opened:?}, then read {read} records {:?}", start.elapsed() - opened);
    drop(engine);
    std::fs::remove_file(&path).ok();
    Ok(())
}
