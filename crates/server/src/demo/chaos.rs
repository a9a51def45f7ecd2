//! Kills and restarts: SIGKILL to one process after the other at moments drawn from a seed.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::watch;
use unanimity::core::splitmix64;
use unanimity_bank::Total;

use super::fleet::Fleet;
use super::load::Progress;

/// When to kill.
#[derive(Clone, Debug)]
pub struct ChaosOptions {
    /// How many kills in all; 0 for none.
    pub kills_max: usize,
    /// How many kills there must be, however long it takes.
    pub kills_min: usize,
    /// The least time between two kills.
    pub pause_min_ms: u64,
    /// The most time between two kills.
    pub pause_max_ms: u64,
    /// The longest that a killed process stays down.
    pub down_max_ms: u64,
    /// What moments and victims are drawn from.
    pub seed: u64,
}

/// What was done.
#[derive(Clone, Debug, Default)]
pub struct Killed {
    /// How often each process was killed.
    pub kills: BTreeMap<&'static str, u64>,
    /// Duplicates that the banks had absorbed when they were last asked before a kill.
    pub duplicates_absorbed: u64,
    /// Contradictions that the banks had refused, likewise.
    pub contradictions: u64,
    /// Rollbacks that they were asked of what they had committed, likewise.
    pub already_committed: u64,
}

impl Killed {
    /// How many kills in all.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.kills.values().sum()
    }
}

/// Kills and restarts until told to end or until there were enough kills. Everything runs again
/// when it returns.
///
/// # Errors
/// If a process does not come back.
pub async fn rage(
    fleet: &mut Fleet,
    options: &ChaosOptions,
    progress: &Progress,
    mut end: watch::Receiver<bool>,
) -> anyhow::Result<Killed> {
    let mut killed = Killed::default();
    let mut state = splitmix64(options.seed);
    let mut draw = |bound: u64| {
        state = splitmix64(state);
        state % bound.max(1)
    };
    for kills in 0..options.kills_max.max(options.kills_min) {
        progress.go_on(kills < options.kills_min);
        let spread = options.pause_max_ms.saturating_sub(options.pause_min_ms);
        let pause = Duration::from_millis(options.pause_min_ms + draw(spread));
        let victim = usize::try_from(draw(3)).unwrap_or(0);
        let down = Duration::from_millis(draw(options.down_max_ms));
        tokio::select! {
            ended = end.wait_for(|end| *end) => {
                drop(ended);
                break;
            }
            () = tokio::time::sleep(pause) => {}
        }
        if victim > 0 {
            let url = fleet.processes[victim].url();
            note_counters(&mut killed, &url).await;
        }
        let process = &mut fleet.processes[victim];
        process.kill().await?;
        *killed.kills.entry(process.name()).or_default() += 1;
        tokio::time::sleep(down).await;
        process.start().await?;
    }
    progress.go_on(false);
    Ok(killed)
}

/// A bank's counters are gone with its process, so they are read while it lives.
pub(super) async fn note_counters(killed: &mut Killed, url: &str) {
    let Ok(client) = unanimity_sdk::Client::new(url, None) else { return };
    if let Ok(total) = client.get_json::<Total>("/total").await {
        killed.duplicates_absorbed += total.duplicates_absorbed;
        killed.contradictions += total.contradictions;
        killed.already_committed += total.already_committed;
    }
}
