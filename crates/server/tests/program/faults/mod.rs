//! Real faults on real processes: kills at every system call, disks that fail or fill up, processes
//! that stand still, clocks that jump, networks that lose. This file decides what of it runs in an
//! ordinary run and what with `cargo xtask test --long`; the faults are in the modules.

mod clock;
mod disk;
mod ensemble;
mod images;
mod kills;
mod network;
mod node;
mod owners;
mod pauses;
mod poison;
mod recording;
mod room;
mod strace;
mod styles;

use std::time::{Duration, Instant};

use crate::setup::until;

/// Lets time pass in which nothing happens that could be waited for: a process stands still.
async fn let_pass(time: Duration) {
    let since = Instant::now();
    until("time to pass", async || (since.elapsed() >= time).then_some(())).await;
}

/// Whether the long set runs.
pub fn long() -> bool {
    std::env::var_os("LONG_TESTS").is_some_and(|value| !value.is_empty())
}
