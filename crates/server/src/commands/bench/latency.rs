//! The scenario *latency*: one transaction at a time over HTTP, and what of its time is not the
//! machine's. Until the outcome is told a transaction waits for two round trips (the initiator's
//! own, and the prepares, which run side by side) and for two syncs (the beginning's and the
//! decision's). What is beyond them is the coordinator's. All of them are measured in turn with the
//! transactions, in slices that are short beside what a machine shared with others takes to change:
//! measured once before and once after, one and the same program came to 1.03 and to 1.24.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use unanimity_journal::{Engine, LogEngine};
use unanimity_sdk::api::Outcome;

use super::BenchArguments;
use super::deployment::Deployment;
use super::http::{round_trips, side_by_side, two_branches};
use super::measure::{Load, Measured, Window};
use super::row::{Beyond, Row};

/// The bytes of a beginning's record, as two branches with a small payload have it.
pub(super) const RECORD_BYTES: usize = 300;
/// How many slices the transactions are measured in at most.
const SLICES_MAX: u32 = 8;
/// A slice takes so long at least: a disk may need a part of that for one sync.
const SLICE_MIN: Duration = Duration::from_millis(250);
/// How many syncs are timed before each.
const SYNCS: usize = 100;
/// So long the coordinator is left alone after each: it has its history to write.
const PAUSE: Duration = Duration::from_millis(50);

/// Runs it.
pub(super) async fn latency(arguments: &BenchArguments, folder: &Path) -> anyhow::Result<Row> {
    let folder = folder.join("latency");
    let mut deployment = Deployment::start(&folder, arguments.sizes(), 2, &[]).await?;
    let counted = arguments.window().counted;
    let slices = (counted.as_millis() / SLICE_MIN.as_millis()).clamp(1, SLICES_MAX.into()) as u32;
    let slice = Window::of(counted / slices);
    let half = Window::of(slice.counted / 2);
    let urls = deployment.participants.clone();
    let request = Arc::new(two_branches(&urls));
    let mut bare = deployment.bare(&folder, arguments.sizes()).await?;
    let bare_url = bare.url();
    let mut journal = Journal::open(&folder)?;
    let (mut waited, mut all) = ([0.0; 4], None::<Measured>);
    for _ in 0..slices {
        let one = [
            round_trips(1, half, &urls[0]).await?.latency.p50_ms,
            side_by_side(half, &urls).await?.latency.p50_ms,
            journal.sync_ms()?,
            round_trips(1, half, &bare_url).await?.latency.p50_ms,
        ];
        waited.iter_mut().zip(one).for_each(|(sum, one)| *sum += one / f64::from(slices));
        let one = deployment.commit(Load::Closed(1), slice, &request, Outcome::Commit).await?;
        all = Some(match all {
            Some(all) => all.and(one),
            None => one,
        });
        tokio::time::sleep(PAUSE).await;
    }
    bare.stop().await?;
    let idle_kib = deployment.idle_kib;
    deployment.finish().await.context("latency")?;
    std::fs::remove_dir_all(&folder)?;
    let measured = all.unwrap_or_default();
    let beyond = Beyond::new(measured.latency.p50_ms, waited);
    let case = "one at a time".to_owned();
    let row = Row::new("latency", Load::Closed(1), &measured);
    Ok(Row { case, idle_kib, beyond: Some(beyond), ..row })
}

/// So many records of so many bytes each give a journal's file a length that it need not outgrow.
const FILL: (u64, usize) = (4, 1 << 20);

/// A journal of its own, whose file is as long already as that of a journal that has been in use
/// for a while: a sync of bytes that make a file longer takes up to three times as long.
struct Journal {
    engine: LogEngine,
    next: u64,
}

impl Journal {
    fn open(folder: &Path) -> anyhow::Result<Self> {
        let mut engine = LogEngine::open(&folder.join("sync.log"))?;
        engine.harden(0)?;
        let mut next = engine.bounds(0)?.next;
        let large = vec![0xA5; FILL.1];
        for _ in 0..FILL.0 {
            engine.append(0, next, &[&large])?;
            next += 1;
        }
        engine.truncate(0, next)?;
        Ok(Self { engine, next })
    }

    /// The median time of an append of one record.
    fn sync_ms(&mut self) -> anyhow::Result<f64> {
        let record: [&[u8]; 1] = [&[0xA5; RECORD_BYTES]];
        let mut took_us = Vec::new();
        for _ in 0..SYNCS {
            let start = Instant::now();
            // What was appended before is forgotten with it, as a coordinator's is.
            let before = Some(self.next);
            self.engine.append_and_truncate(0, self.next, &record, before)?;
            took_us.push(start.elapsed().as_micros());
            self.next += 1;
        }
        took_us.sort_unstable();
        Ok(took_us[took_us.len() / 2] as f64 / 1_000.0)
    }
}
