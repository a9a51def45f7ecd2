//! The scenario *overload*: three times as many transactions arrive as were committed at the peak
//! that was measured just before. What counts is how much of the peak is still committed, and how
//! long those wait that are accepted; the others are told to come later. The peak is a closed
//! loop's, whose initiators begin when the coordinator has answered them. Those that arrive come
//! when it has something else to do, which costs by itself: so it is measured too how many are
//! committed where no more arrive than the peak. The load client is on the
//! same cores, so what it costs to ask in vain bounds what can be committed beside: a refusal by
//! nothing but the same libraries is measured in the same run, and the bound follows from it. And
//! the scenario *beside*: what one participant that is slow, silent or dead costs transactions over
//! the others.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use unanimity_sdk::ClientOptions;
use unanimity_sdk::api::{Outcome, TransactionRequest};

use super::deployment::{Deployment, Manners};
use super::embedded::{Embedded, Threads, embedded};
use super::http::two_branches;
use super::measure::{Load, Turn, Window, measure};
use super::row::{AS_MANY, Ceiling, PEAK, Row, cores};
use super::stream::{message_us, on_streams};
use super::usage::Usage;
use super::{BenchArguments, IN_FLIGHT_MAX};

/// So many times the peak arrive.
const TIMES: f64 = 3.0;
/// How many initiators make the peak over HTTP, and beside a participant that fails.
const INITIATORS: usize = 128;
/// And within one process, or over one stream.
const TOGETHER: usize = 1_024;
/// How long a client that holds back lets a beginning wait for its turn to be sent.
const BEGIN_WAIT_MAX_MS: u64 = 200;
/// How long prepares may take at a participant that is silent.
const PREPARE_TIMEOUT_MS: u64 = 1_000;

/// Runs *overload*: within this process, over HTTP, and over the initiators' stream.
pub(super) async fn overload(
    arguments: &BenchArguments,
    folder: &Path,
    show: &mut impl FnMut(Row),
) -> anyhow::Result<()> {
    within_process(arguments, folder, show).await?;
    over_http(arguments, folder, show).await?;
    over_stream(arguments, folder, show).await
}

async fn within_process(
    arguments: &BenchArguments,
    folder: &Path,
    show: &mut impl FnMut(Row),
) -> anyhow::Result<()> {
    let (shards, window) = (arguments.shards, arguments.window());
    let threads = Threads::Own;
    let run = |load| Embedded { shards, threads, load, window, ceilings: false };
    let peak = embedded(&run(Load::Closed(TOGETHER)), folder).await?;
    let turn = || async { Turn::Refused };
    let as_many = embedded(&run(arriving(&peak, 1.0)), folder).await?;
    let load = arriving(&peak, TIMES);
    let refusals = measure(load, window, async || Usage::own(), turn).await?;
    let row = embedded(&run(load), folder).await?;
    show(Row { case: "embedded, peak".to_owned(), ..named(peak.clone()) });
    let mut once = None;
    let as_many = beside_as_many(beside_peak(as_many, &peak, 0.0), &mut once);
    show(Row { case: "embedded, 1 x".to_owned(), ..as_many });
    let refusal_us = refusals.usage.cpu_us as f64 / refusals.refused.max(1) as f64;
    let row = beside_as_many(beside_peak(row, &peak, refusal_us), &mut once);
    show(Row { case: "embedded, 3 x".to_owned(), ..row });
    Ok(())
}

async fn over_http(
    arguments: &BenchArguments,
    folder: &Path,
    show: &mut impl FnMut(Row),
) -> anyhow::Result<()> {
    let (folder, window) = (folder.join("overload"), arguments.window());
    let mut deployment = Deployment::start(&folder, arguments.sizes(), 2, &[]).await?;
    let request = Arc::new(two_branches(&deployment.participants));
    let closed = Load::Closed(INITIATORS);
    let measured = deployment.commit(closed, window, &request, Outcome::Commit).await?;
    let peak = Row::new("overload", closed, &measured);
    show(Row { case: "http, peak".to_owned(), ..peak.clone() });
    let refusal_us = deployment.refusal_us(INITIATORS, half(window), &request).await?;
    let mut as_many = None;
    for (times, (manners, case)) in [
        (1.0, one_client("1 x")),
        (TIMES, one_client("3 x")),
        (TIMES, many_clients()),
        (TIMES, insistent()),
    ] {
        deployment.manners = manners;
        let load = arriving(&peak, times);
        let measured = deployment.commit(load, window, &request, Outcome::Commit).await?;
        let floor_us = if manners.holds_back { 0.0 } else { refusal_us };
        let row = beside_peak(Row::new("overload", load, &measured), &peak, floor_us);
        let row = beside_as_many(row, &mut as_many);
        show(Row { case: format!("http, {case}"), ..row });
    }
    deployment.finish().await.context("overload")?;
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}

async fn over_stream(
    arguments: &BenchArguments,
    folder: &Path,
    show: &mut impl FnMut(Row),
) -> anyhow::Result<()> {
    let (folder, window) = (folder.join("overload-stream"), arguments.window());
    let mut deployment = Deployment::start(&folder, arguments.sizes(), 2, &[]).await?;
    let request = on_streams(two_branches(&deployment.participants));
    let closed = Load::Closed(TOGETHER);
    let measured = deployment.commit_on_stream(closed, window, &request).await?;
    let peak = Row::new("overload", closed, &measured);
    show(Row { case: "stream, peak".to_owned(), ..peak.clone() });
    let refusal_us = message_us(TOGETHER, half(window), (&folder, arguments.sizes())).await?;
    let mut as_many = None;
    for (times, (manners, case)) in
        [(1.0, one_client("1 x")), (TIMES, one_client("3 x")), (TIMES, insistent())]
    {
        deployment.manners = manners;
        let load = arriving(&peak, times);
        let measured = deployment.commit_on_stream(load, window, &request).await?;
        let floor_us = if manners.holds_back { 0.0 } else { refusal_us };
        let row = beside_peak(Row::new("overload", load, &measured), &peak, floor_us);
        let row = beside_as_many(row, &mut as_many);
        show(Row { case: format!("stream, {case}"), ..row });
    }
    deployment.finish().await.context("overload over the stream")?;
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}

/// A client as the SDK makes it, but for how patient it is, and how the case is called.
fn one_client(case: &'static str) -> (Manners, &'static str) {
    let open_requests_max = ClientOptions::default().requests_max;
    (Manners { open_requests_max, ..many_clients().0 }, case)
}

/// As many requests at once as many such clients have together.
fn many_clients() -> (Manners, &'static str) {
    let (holds_back, begin_wait_max_ms) = (true, BEGIN_WAIT_MAX_MS);
    let manners = Manners { holds_back, begin_wait_max_ms, ..Manners::default() };
    (manners, "3 x by many")
}

/// As many, who ask again and again.
fn insistent() -> (Manners, &'static str) {
    (Manners { holds_back: false, ..Manners::default() }, "3 x insisted")
}

fn half(window: Window) -> Window {
    Window::of(window.counted / 2)
}

fn arriving(peak: &Row, times: f64) -> Load {
    Load::Open { per_second: peak.per_second.max(1.0) * times, in_flight_max: IN_FLIGHT_MAX }
}

fn named(row: Row) -> Row {
    Row { scenario: "overload".to_owned(), ..row }
}

/// The first row is the one in which as many arrive as the peak; the others are beside it.
fn beside_as_many(mut row: Row, as_many: &mut Option<f64>) -> Row {
    match as_many {
        Some(as_many) => row.ceilings.push(Ceiling::new(AS_MANY, *as_many)),
        None => *as_many = Some(row.per_second),
    }
    row
}

/// An overloaded row beside the peak, and beside what the cores can carry of it if each turn beyond
/// costs them at least a bare refusal.
fn beside_peak(row: Row, peak: &Row, refusal_us: f64) -> Row {
    let (used_us, peak_us) = (row.per_second * row.cpu_us, peak.per_second * peak.cpu_us);
    let mut ceilings = vec![Ceiling::new(PEAK, peak.per_second)];
    ceilings.extend(refusing_too(peak, used_us.max(peak_us), refusal_us));
    let cores_busy = Some(used_us / (cores().max(1) as f64 * 1_000_000.0));
    Row { ceilings, cores_busy, ..named(row) }
}

/// How many can be committed a second where the same cores must refuse the rest: what both cost
/// together is all the processor time that there is, which is what was used, because others may
/// share the cores. None where the system does not tell processor time.
fn refusing_too(peak: &Row, all_us: f64, refusal_us: f64) -> Option<Ceiling> {
    let arriving = TIMES * peak.per_second;
    let left_us = all_us - arriving * refusal_us;
    let per_second = left_us / (peak.cpu_us - refusal_us);
    let known = refusal_us > 0.0 && peak.cpu_us > refusal_us;
    known.then(|| Ceiling {
        name: "refusing the rest".to_owned(),
        per_second: per_second.clamp(0.0, peak.per_second),
        cpu_us: refusal_us,
    })
}

/// Runs *beside*: three participants, of which the third fails in one way or another.
pub(super) async fn beside(
    arguments: &BenchArguments,
    folder: &Path,
    show: &mut impl FnMut(Row),
) -> anyhow::Result<()> {
    let folder = folder.join("beside");
    let window = arguments.window();
    let mut deployment = Deployment::start(&folder, arguments.sizes(), 3, &[]).await?;
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
