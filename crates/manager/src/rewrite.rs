//! Makes SQLite's write-ahead log of the history durable again before anything rests on it.
//!
//! After a failed sync the page cache can show bytes that the disk does not hold, and a later sync
//! does not write them: to the system they are clean. SQLite would take them for committed, and
//! append behind them what the journal then forgets; a power loss would leave a hole, and lose all
//! that lies behind it. A full checkpoint would do as well, but whoever reads the history with
//! another program could hold it up; writing the same bytes to the same place disturbs nobody.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::Path;

const CHUNK_BYTES: usize = 1 << 20;

/// Writes the log beside the database at `path` over itself, and syncs it. To be called before the
/// database is opened: closing a file drops this process's locks on it.
pub(crate) fn rewrite_log(path: &Path) -> std::io::Result<()> {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    let file = match File::options().read(true).write(true).open(log) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut at = 0;
    loop {
        let count = file.read_at(&mut chunk, at)?;
        if count == 0 {
            return file.sync_all();
        }
        file.write_all_at(&chunk[..count], at)?;
        at += count as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_keeps_its_bytes_and_none_is_made() {
        let folder = std::env::temp_dir().join(format!("unanimity-rewrite-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (path, log) = (folder.join("h.db"), folder.join("h.db-wal"));
        rewrite_log(&path).unwrap();
        assert!(!log.exists());
        let bytes: Vec<u8> = (0..CHUNK_BYTES + 7).map(|number| (number % 251) as u8).collect();
        std::fs::write(&log, &bytes).unwrap();
        rewrite_log(&path).unwrap();
        assert_eq!(std::fs::read(&log).unwrap(), bytes);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
