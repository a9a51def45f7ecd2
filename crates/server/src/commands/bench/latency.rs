//! The scenario *latency*: one transaction at a time over HTTP, and what of its time is not the
//! machine's. Until the outcome is told a transaction waits for two round trips (the initiator's
//! own, and the prepares, which run side by side) and for two syncs (the beginning's and the
//! decision's). Both are measured in the same run, before and after; what is beyond them is the
//! coordinator's.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use unanimity_journal::{Engine, SqliteEngine};
use unanimity_sdk::api::Outcome;

use super::BenchArguments;
use super::deployment::Deployment;
use super::http::{round_trips, two_branches};
use super::measure::{Load, Window};
use super::row::{Beyond, Row};

/// The bytes of a beginning's record, as two branches with a small payload have it.
pub(super) const RECORD_BYTES: usize = 300;
/// How many syncs are timed before and after.
const SYNCS: u64 = 200;

/// Runs it.
pub(super) async fn latency(arguments: &BenchArguments, folder: &Path) -> anyhow::Result<Row> {
    let folder = folder.join("latency");
    let mut deployment = Deployment::start(&folder, arguments.sizes(), 2, &[]).await?;
    let window = arguments.window();
    let half = Window::of(window.counted / 2);
    let url = deployment.participants[0].clone();
    let request = Arc::new(two_branches(&deployment.participants));
    let mut bare = deployment.bare(&folder, arguments.sizes()).await?;
    let bare_url = bare.url();
    let waited = async || {
        let bare = round_trips(1, half, &bare_url).await?.latency.p50_ms;
        Ok::<_, anyhow::Error>([
            round_trips(1, half, &url).await?.latency.p50_ms,
            sync_ms(&folder)?,
            bare,
        ])
    };
    let before = waited().await?;
    let measured = deployment.commit(Load::Closed(1), window, &request, Outcome::Commit).await?;
    let after = waited().await?;
    bare.stop().await?;
    let idle_kib = deployment.idle_kib;
    deployment.finish().await.context("latency")?;
    std::fs::remove_dir_all(&folder)?;
    let mean = |which: usize| (before[which] + after[which]) / 2.0;
    let beyond = Beyond::new(measured.latency.p50_ms, mean(0), mean(1), mean(2));
    let case = "one at a time".to_owned();
    let row = Row::new("latency", Load::Closed(1), &measured);
    Ok(Row { case, idle_kib, beyond: Some(beyond), ..row })
}

/// So many records of so many bytes each give a journal's log a length at which it begins anew.
const FILL: (u64, usize) = (6, 4 << 20);

/// The median time of an append of one record, in a journal of its own, whose log is as long
/// already as that of a journal that has been in use for a while: a sync of bytes that make a file
/// longer takes up to three times as long.
fn sync_ms(folder: &Path) -> anyhow::Result<f64> {
    let path = folder.join("sync.db");
    let mut engine = SqliteEngine::open(&path)?;
    engine.harden(0)?;
    let mut next = engine.bounds(0)?.next;
    let large = vec![0xA5; FILL.1];
    for _ in 0..FILL.0 {
        engine.append(0, next, &[&large])?;
        next += 1;
    }
    let record: [&[u8]; 1] = [&[0xA5; RECORD_BYTES]];
    let mut took_us = Vec::new();
    for position in next..next + SYNCS {
        let start = Instant::now();
        engine.append(0, position, &record)?;
        took_us.push(start.elapsed().as_micros());
    }
    took_us.sort_unstable();
    Ok(took_us[took_us.len() / 2] as f64 / 1_000.0)
}
