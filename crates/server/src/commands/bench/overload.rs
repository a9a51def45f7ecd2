//! The scenario *overload*: three times as many transactions arrive as were committed at the peak
//! that was measured just before. What counts is how much of the peak is still committed, and how
//! long those wait that are accepted; the others are told to come later. And the scenario *beside*:
//! what one participant that is slow, silent or dead costs transactions over the others.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use unanimity_sdk::api::{Outcome, TransactionRequest};

use super::deployment::Deployment;
use super::embedded::{Embedded, embedded};
use super::http::two_branches;
use super::measure::{Load, Window};
use super::row::{Ceiling, Row};
use super::{BenchArguments, IN_FLIGHT_MAX};

/// So many times the peak arrive.
const TIMES: f64 = 3.0;
/// How many initiators make the peak over HTTP, and beside a participant that fails.
const INITIATORS: usize = 128;
/// And within one process.
const EMBEDDED_INITIATORS: usize = 1_024;
/// How long prepares may take at a participant that is silent.
const PREPARE_TIMEOUT_MS: u64 = 1_000;

/// Runs *overload*, over HTTP and within this process.
pub(super) async fn overload(
    arguments: &BenchArguments,
    folder: &Path,
    show: &mut impl FnMut(Row),
) -> anyhow::Result<()> {
    let (shards, window) = (arguments.shards, arguments.window());
    let run = |load| Embedded { shards, load, window, ceilings: false };
    let peak = embedded(&run(Load::Closed(EMBEDDED_INITIATORS)), folder).await?;
    let row = embedded(&run(times(&peak)), folder).await?;
    show(Row { case: "embedded, peak".to_owned(), ..named(peak.clone()) });
    show(Row { case: "embedded, 3 x".to_owned(), ..beside_peak(row, &peak) });

    let folder = folder.join("overload");
    let shards = arguments.shards.to_string();
    let mut deployment = Deployment::start(&folder, 2, &["--shards", &shards]).await?;
    let request = Arc::new(two_branches(&deployment.participants));
    let closed = Load::Closed(INITIATORS);
    let measured = deployment.commit(closed, window, &request, Outcome::Commit).await?;
    let peak = Row::new("overload", closed, &measured);
    let load = times(&peak);
    let measured = deployment.commit(load, window, &request, Outcome::Commit).await?;
    let row = Row::new("overload", load, &measured);
    deployment.finish().await.context("overload")?;
    std::fs::remove_dir_all(&folder)?;
    show(Row { case: "http, peak".to_owned(), ..peak.clone() });
    show(Row { case: "http, 3 x".to_owned(), ..beside_peak(row, &peak) });
    Ok(())
}

fn times(peak: &Row) -> Load {
    Load::Open { per_second: peak.per_second.max(1.0) * TIMES, in_flight_max: IN_FLIGHT_MAX }
}

fn named(row: Row) -> Row {
    Row { scenario: "overload".to_owned(), ..row }
}

fn beside_peak(row: Row, peak: &Row) -> Row {
    let ceilings = vec![Ceiling::new("peak", peak.per_second)];
    Row { ceilings, ..named(row) }
}

/// Runs *beside*: three participants, of which the third fails in one way or another.
pub(super) async fn beside(
    arguments: &BenchArguments,
    folder: &Path,
    show: &mut impl FnMut(Row),
) -> anyhow::Result<()> {
    let folder = folder.join("beside");
    let (window, shards) = (arguments.window(), arguments.shards.to_string());
    let mut deployment = Deployment::start(&folder, 3, &["--shards", &shards]).await?;
    let sound = Arc::new(two_branches(&deployment.participants));
    let load = Load::Closed(INITIATORS / 2);
    let alone = deployment.commit(load, window, &sound, Outcome::Commit).await?;
    let alone = Row { case: "alone".to_owned(), ..Row::new("beside", load, &alone) };
    show(alone.clone());
    let third = deployment.participants[2].clone();
    let failing =
        [("slow (500 ms)", format!("{third}/slow/500")), ("silent", format!("{third}/silent"))];
    for (case, address) in failing {
        let row = one_failing(&mut deployment, &sound, &address, window, load).await?;
        show(Row { case: format!("beside a {case} one"), ..beside_alone(row, &alone) });
    }
    deployment.kill(2).await?;
    let address = format!("{third}/transactions");
    let row = one_failing(&mut deployment, &sound, &address, window, load).await?;
    show(Row { case: "beside a dead one".to_owned(), ..beside_alone(row, &alone) });
    deployment.revive(2).await?;
    deployment.finish().await.context("beside")?;
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}

fn beside_alone(row: Row, alone: &Row) -> Row {
    let ceilings = vec![Ceiling::new("alone", alone.per_second)];
    Row { ceilings, ..row }
}

async fn one_failing(
    deployment: &mut Deployment,
    sound: &Arc<TransactionRequest>,
    address: &str,
    window: Window,
    load: Load,
) -> anyhow::Result<Row> {
    let mut failing = (**sound).clone();
    failing.branches[1].participant = address.to_owned();
    failing.prepare_timeout_ms = Some(PREPARE_TIMEOUT_MS);
    let measured = deployment.commit_beside(load, window, sound, &Arc::new(failing)).await?;
    Ok(Row::new("beside", load, &measured))
}
