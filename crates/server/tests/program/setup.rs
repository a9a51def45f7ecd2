//! What the tests share: a folder of one's own, a fleet, and waiting for conditions.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use unanimity_sdk::Client;
use unanimity_sdk::api::TransactionStatus;
use unanimity_server::demo::fleet::{Carriage, Fleet, FleetOptions};

/// The longest that anything may take before a test gives up on it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A folder that is removed at the end, also when the test fails.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("unanimity-test-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap_or_default();
    }
}

/// The program under test.
pub fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_unanimity"))
}

/// A fleet without faults.
pub fn fleet_options(folder: &Folder) -> FleetOptions {
    let flags = "--retry-delay-ms 20 --retry-delay-max-ms 200 --attempt-timeout-ms 1000";
    FleetOptions {
        program: program().to_path_buf(),
        folder: folder.path().to_path_buf(),
        accounts: 100,
        balance: 100_000,
        faults: String::new(),
        seed: 1,
        coordinator_flags: flags.split(' ').map(str::to_owned).collect(),
        bank_flags: Vec::new(),
        carriage: Carriage::Http,
    }
}

pub async fn fleet(folder: &Folder) -> Fleet {
    Fleet::start(&fleet_options(folder)).await.unwrap()
}

/// Looks again and again until there is what is waited for.
pub async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let mut ticks = tokio::time::interval(Duration::from_millis(10));
    let looking = async {
        loop {
            ticks.tick().await;
            if let Some(found) = look().await {
                return found;
            }
        }
    };
    let found = tokio::time::timeout(PATIENCE, looking).await;
    found.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

/// The completed transaction of this id.
pub async fn completed(client: &Client, id: &str) -> TransactionStatus {
    let id = unanimity_sdk::TransactionId::new(id).unwrap();
    until("the transaction to complete", async || {
        let shown = client.get(&id, Some(Duration::from_secs(5))).await.ok()?;
        shown.completed.then_some(shown)
    })
    .await
}
