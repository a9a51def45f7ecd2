//! Decides whether the disk has room for new transactions. Below the reserve none is begun, so that
//! what is left is for those that are open: they can still decide and end. It is looked at now and
//! then by a thread of its own, off the commit path: a file system that hangs delays nobody.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// How often the disk is looked at. What can be written meanwhile must fit into the reserve.
const LOOK: Duration = Duration::from_millis(200);

/// What is known of the room on the disk.
#[derive(Debug)]
pub(crate) struct Reserve {
    folder: PathBuf,
    reserve_bytes: u64,
    nearly_full: AtomicBool,
}

impl Reserve {
    /// One that is never short of room.
    pub(crate) fn endless() -> Arc<Self> {
        Arc::new(Self::new(Path::new(""), 0))
    }

    fn new(folder: &Path, reserve_bytes: u64) -> Self {
        let folder = folder.to_path_buf();
        Self { folder, reserve_bytes, nearly_full: AtomicBool::new(false) }
    }

    /// Looks at once, and then again and again for as long as somebody holds what is given back.
    pub(crate) fn watch(folder: &Path, reserve_bytes: u64) -> std::io::Result<Arc<Self>> {
        let reserve = Arc::new(Self::new(folder, reserve_bytes));
        if reserve_bytes > 0 {
            reserve.look();
            let watched = Arc::downgrade(&reserve);
            let thread = std::thread::Builder::new().name("disk".to_owned());
            drop(thread.spawn(move || keep_looking(&watched))?);
        }
        Ok(reserve)
    }

    pub(crate) fn is_nearly_full(&self) -> bool {
        self.nearly_full.load(Ordering::Relaxed)
    }

    fn look(&self) {
        let free = match rustix::fs::statvfs(&self.folder) {
            Ok(found) => found.f_bavail.saturating_mul(found.f_frsize),
            // The journal will say what is wrong with the disk, if something is.
            Err(error) => return tracing::warn!(%error, "the disk's free space is not known"),
        };
        metrics::gauge!("unanimity_disk_free_bytes").set(free as f64);
        let is = free < self.reserve_bytes;
        let was = self.nearly_full.swap(is, Ordering::Relaxed);
        let (reserve, folder) = (self.reserve_bytes, self.folder.display());
        if is && !was {
            tracing::warn!(free, reserve, %folder, "the disk is nearly full; nothing new is begun");
        } else if was && !is {
            tracing::info!(free, reserve, %folder, "the disk has room again");
        }
    }
}

fn keep_looking(watched: &Weak<Reserve>) {
    loop {
        std::thread::sleep(LOOK);
        let Some(reserve) = watched.upgrade() else { return };
        reserve.look();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_nearly_full_below_the_reserve() {
        let folder = std::env::temp_dir();
        assert!(!Reserve::watch(&folder, 1).unwrap().is_nearly_full());
        assert!(Reserve::watch(&folder, u64::MAX).unwrap().is_nearly_full());
        assert!(!Reserve::watch(&folder, 0).unwrap().is_nearly_full());
        assert!(!Reserve::endless().is_nearly_full());
        // A folder that cannot be asked about is no reason to refuse.
        assert!(!Reserve::watch(Path::new("/no/such"), u64::MAX).unwrap().is_nearly_full());
    }
}
