//! Measures one append at a time from an idle thread, as a single transaction meets it, beside a
//! bare write and sync of the same size, in turn: `cargo run --release -p unanimity-journal
//! --example cold_append -- [APPENDS] [PAUSE_US] [FOLDER]`. A pause of 0 is for counting
//! instructions and system calls. Nothing is judged.

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use unanimity_journal::{Engine, SqliteEngine};

const RECORD_BYTES: usize = 200;
/// What SQLite's write-ahead log takes for one page.
const FRAME_BYTES: usize = 4096 + 24;
/// The bare file is written round and round, as the log is.
const BARE_FRAMES: u64 = 4096;

/// What the processor works on between two appends, so that its caches hold nothing else.
const OTHERS_BYTES: usize = 4 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    let argument = |at: usize| std::env::args().nth(at);
    let number = |at: usize, default: u64| {
        argument(at).and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let (appends, pause) = (number(1, 5_000), Duration::from_micros(number(2, 300)));
    let folder = argument(3).map_or_else(std::env::temp_dir, PathBuf::from);
    let folder = folder.join(format!("cold-append-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    measure(&folder, appends, pause)?;
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}

fn measure(folder: &Path, appends: u64, pause: Duration) -> Result<(), Box<dyn Error>> {
    let mut engine = SqliteEngine::open(&folder.join("journal"))?;
    let bare = if pause.is_zero() { None } else { Some(bare_file(&folder.join("bare"))?) };
    let mut others = vec![0; OTHERS_BYTES / size_of::<u64>()];
    let record = [0xA5; RECORD_BYTES];
    let (mut appended, mut written) = (Vec::new(), Vec::new());
    for position in 1..=appends {
        appended.push(timed(pause, &mut others, || engine.append(0, position, &[&record]))?);
        if let Some(file) = &bare {
            written.push(timed(pause, &mut others, || write_bare(file, position))?);
        }
    }
    let beyond: Vec<_> =
        appended.iter().zip(&written).map(|(append, bare)| append - bare).collect();
    for (what, times) in [("append", appended), ("bare", written), ("beyond", beyond)] {
        print(what, times);
    }
    Ok(())
}

/// Microseconds, after a pause in which the processor turns to something else.
fn timed<T, E>(
    pause: Duration,
    others: &mut [u64],
    work: impl FnOnce() -> Result<T, E>,
) -> Result<f64, E> {
    if !pause.is_zero() {
        sleep(pause);
        others.iter_mut().for_each(|word| *word = word.wrapping_add(1));
    }
    let start = Instant::now();
    work()?;
    Ok(start.elapsed().as_secs_f64() * 1e6)
}

fn bare_file(path: &Path) -> std::io::Result<File> {
    std::fs::write(path, vec![0; BARE_FRAMES as usize * FRAME_BYTES])?;
    let file = OpenOptions::new().write(true).open(path)?;
    file.sync_all()?;
    Ok(file)
}

fn write_bare(file: &File, position: u64) -> std::io::Result<()> {
    let offset = position % BARE_FRAMES * FRAME_BYTES as u64;
    write_at(file, &[position as u8; FRAME_BYTES], offset)?;
    file.sync_data()
}

#[cfg(unix)]
fn write_at(file: &File, bytes: &[u8], offset: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

#[cfg(not(unix))]
fn write_at(mut file: &File, bytes: &[u8], offset: u64) -> std::io::Result<()> {
    use std::io::{Seek, SeekFrom, Write};
    file.seek(SeekFrom::Start(offset))?;
    file.write_all(bytes)
}

fn print(what: &str, mut micros: Vec<f64>) {
    micros.sort_unstable_by(f64::total_cmp);
    let at = |share: f64| micros.get(((micros.len() as f64 - 1.0) * share) as usize);
    if let (Some(p50), Some(p90), Some(p99)) = (at(0.5), at(0.9), at(0.99)) {
        println!("{what}: p50 {p50:.1} us, p90 {p90:.1} us, p99 {p99:.1} us");
    }
}
