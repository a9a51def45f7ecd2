//! The scenarios over HTTP/1.1 with JSON: load client (this process), coordinator and participants
//! as processes of their own.
//!
//! - *http*: two branches, under several loads. A transaction is five round trips (one of the
//!   initiator's, two prepares, two commits), so its ceiling is a fifth of the bare round trips
//!   through the same client and server libraries. Calls go in batches, which that ceiling knows
//!   nothing of; so the load at the peak is measured once more with one call a request.
//! - *wide*: from 2 to 64 branches.
//! - *styles*: each kind of branch, and each way to end.
//!
//! What one transaction costs when it is alone is `latency`'s.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use serde_json::{Value, json};
use unanimity_sdk::api::{BranchRequest, Json, Kind, Outcome, TransactionRequest};
use unanimity_sdk::{Client, ClientOptions};

use super::BenchArguments;
use super::deployment::{Deployment, Own, READ_ONLY, SAY_NO};
use super::measure::{Load, Measured, Turn, Window, measure};
use super::row::{Ceiling, Row};
use super::usage::Usage;

/// How many initiators where the shape of the transaction is what varies.
const INITIATORS: usize = 64;
/// How long prepares may take: on a machine that is busy with other things, and under overload, a
/// transaction may be late and must not be another for it.
pub(super) const PATIENCE_MS: u64 = 60_000;
/// After so long a rollback by timeout begins.
const TIMEOUT_MS: u64 = 100;

/// A transaction, what it should come to, and in how many round trips.
struct Shape {
    case: String,
    request: TransactionRequest,
    expected: Outcome,
    /// `None` where round trips are not what it waits for.
    round_trips: Option<usize>,
}

/// Runs *http* against processes of its own, or against the user's: a line for each load.
pub(super) async fn http(
    arguments: &BenchArguments,
    own: Option<Own>,
    folder: &Path,
    show: &mut impl FnMut(Row),
) -> anyhow::Result<()> {
    let folder = folder.join("http");
    let mut deployment = match own {
        Some(own) => Deployment::own(own),
        None => Deployment::start(&folder, arguments.sizes(), 2, &[]).await?,
    };
    let ours = deployment.is_ours();
    let payload = match &arguments.payload {
        Some(text) => Json::from_text(text.clone()).context("--payload is no JSON")?,
        None => payload("pay"),
    };
    let path = if deployment.is_ours() { "/transactions" } else { "" };
    let addresses: Vec<String> =
        deployment.participants.iter().map(|url| format!("{url}{path}")).collect();
    let shape = Shape {
        case: format!("{} branches", addresses.len()),
        request: all_of(Kind::TwoPhase, &addresses, &payload),
        expected: Outcome::Commit,
        round_trips: Some(1 + 2 * addresses.len()),
    };
    let loads: &[usize] = if arguments.short { &[16] } else { &[1, 16, 128, 512] };
    let (window, mut peak, mut at_peak) = (arguments.window(), 0.0, None);
    for load in arguments.loads(loads) {
        let initiators = match load {
            Load::Closed(initiators) => initiators.max(1),
            Load::Open { .. } => INITIATORS,
        };
        let ceilings = ours && !arguments.no_ceilings;
        let bare = if ceilings { bare(arguments, initiators, &deployment).await? } else { 0.0 };
        let row = one_row("http", &shape, load, window, bare, &mut deployment).await?;
        if row.per_second > peak {
            (peak, at_peak) = (row.per_second, Some((load, bare)));
        }
        show(row);
    }
    for load in arguments.arrivals(peak) {
        show(one_row("http", &shape, load, window, 0.0, &mut deployment).await?);
    }
    deployment.finish().await.context("http")?;
    remove(&folder)?;
    if let Some((load, bare)) = at_peak.filter(|_| ours) {
        show(one_by_one(arguments, &folder, load, bare).await?);
    }
    Ok(())
}

/// The same load with a request for each call.
async fn one_by_one(
    arguments: &BenchArguments,
    folder: &Path,
    load: Load,
    bare: f64,
) -> anyhow::Result<Row> {
    let flags = ["--batch-calls-max", "1"];
    let mut deployment = Deployment::start(folder, arguments.sizes(), 2, &flags).await?;
    let shape = Shape {
        case: "one call a request".to_owned(),
        request: two_branches(&deployment.participants),
        expected: Outcome::Commit,
        round_trips: Some(5),
    };
    let row = one_row("http", &shape, load, arguments.window(), bare, &mut deployment).await?;
    deployment.finish().await.context("http, one call a request")?;
    remove(folder)?;
    Ok(row)
}

/// Runs *wide*.
pub(super) async fn wide(
    arguments: &BenchArguments,
    folder: &Path,
    show: &mut impl FnMut(Row),
) -> anyhow::Result<()> {
    let branches: &[usize] = if arguments.short { &[2, 16] } else { &[2, 4, 8, 16, 32, 64] };
    let shapes = |urls: &[String]| branches.iter().map(|count| wide_shape(*count, urls)).collect();
    shaped("wide", arguments, folder, shapes, show).await
}

fn wide_shape(branches: usize, urls: &[String]) -> Shape {
    let participants = urls.iter().cycle().take(branches);
    let addresses: Vec<String> = participants.map(|url| format!("{url}/transactions")).collect();
    Shape {
        case: format!("{branches} branches"),
        request: all_of(Kind::TwoPhase, &addresses, &payload("pay")),
        expected: Outcome::Commit,
        round_trips: Some(1 + 2 * branches),
    }
}

/// Runs *styles*.
pub(super) async fn styles(
    arguments: &BenchArguments,
    folder: &Path,
    show: &mut impl FnMut(Row),
) -> anyhow::Result<()> {
    shaped("styles", arguments, folder, style_shapes, show).await
}

fn style_shapes(urls: &[String]) -> Vec<Shape> {
    let at: Vec<String> = urls.iter().map(|url| format!("{url}/transactions")).collect();
    let silent: Vec<String> = urls.iter().map(|url| format!("{url}/silent")).collect();
    let pay = payload("pay");
    let shape = |case: &str, request, expected, round_trips| Shape {
        case: case.to_owned(),
        request,
        expected,
        round_trips,
    };
    let (commit, rollback) = (Outcome::Commit, Outcome::Rollback);
    let all = |kind| all_of(kind, &at, &pay);
    let mut mixed = all(Kind::TwoPhase);
    mixed.branches[1].kind = Kind::Compensable;
    mixed.branches.push(branch("deferred", Kind::Deferred, &at[0], &pay));
    let mut refused = all(Kind::TwoPhase);
    refused.branches[1].payload = payload(SAY_NO);
    let mut timed_out = all(Kind::TwoPhase);
    timed_out.branches[1].participant.clone_from(&silent[1]);
    timed_out.prepare_timeout_ms = Some(TIMEOUT_MS);
    vec![
        shape("all two-phase", all(Kind::TwoPhase), commit, Some(5)),
        shape("all compensable", all(Kind::Compensable), commit, Some(3)),
        shape("all deferred", all(Kind::Deferred), commit, Some(3)),
        shape("one of each", mixed, commit, Some(5)),
        shape("read-only", all_of(Kind::TwoPhase, &at, &payload(READ_ONLY)), commit, Some(3)),
        shape("one phase", all_of(Kind::TwoPhase, &at[..1], &pay), commit, Some(2)),
        shape("rollback by vote", refused, rollback, Some(5)),
        shape("rollback by timeout", timed_out, rollback, None),
    ]
}

/// A line for each shape, all under the same load.
async fn shaped(
    scenario: &str,
    arguments: &BenchArguments,
    folder: &Path,
    shapes: impl FnOnce(&[String]) -> Vec<Shape>,
    show: &mut impl FnMut(Row),
) -> anyhow::Result<()> {
    let folder = folder.join(scenario);
    let mut deployment = Deployment::start(&folder, arguments.sizes(), 2, &[]).await?;
    let ceilings = !arguments.no_ceilings;
    let bare = if ceilings { bare(arguments, INITIATORS, &deployment).await? } else { 0.0 };
    for shape in shapes(&deployment.participants) {
        let load = Load::Closed(INITIATORS);
        show(one_row(scenario, &shape, load, arguments.window(), bare, &mut deployment).await?);
    }
    deployment.finish().await.context(scenario.to_owned())?;
    remove(&folder)
}

async fn one_row(
    scenario: &str,
    shape: &Shape,
    load: Load,
    window: Window,
    bare_per_second: f64,
    deployment: &mut Deployment,
) -> anyhow::Result<Row> {
    let request = Arc::new(shape.request.clone());
    let measured = deployment.commit(load, window, &request, shape.expected).await;
    let measured = measured.with_context(|| format!("{scenario}, {}", shape.case))?;
    let ceiling = shape.round_trips.filter(|_| bare_per_second > 0.0).map(|trips| {
        Ceiling::new(format!("round trips / {trips}"), bare_per_second / trips as f64)
    });
    let (case, idle_kib) = (shape.case.clone(), deployment.idle_kib);
    let ceilings = ceiling.into_iter().collect();
    Ok(Row { case, idle_kib, ceilings, ..Row::new(scenario, load, &measured) })
}

/// Bare round trips a second to a participant, so many at once, with a request of two branches.
async fn bare(
    arguments: &BenchArguments,
    at_once: usize,
    deployment: &Deployment,
) -> anyhow::Result<f64> {
    let measured = round_trips(at_once, arguments.window(), &deployment.participants[0]).await?;
    Ok(measured.per_second)
}

/// Bare round trips of a request to a participant's echo.
pub(super) async fn round_trips(
    at_once: usize,
    window: Window,
    url: &str,
) -> anyhow::Result<Measured> {
    let options = ClientOptions { requests_max: at_once, ..ClientOptions::default() };
    let echo = Client::with_options(url, None, options)?;
    let request = Arc::new(two_branches(&[url.to_owned(), url.to_owned()]));
    let turn = move || {
        let (echo, request) = (echo.clone(), Arc::clone(&request));
        async move {
            let answer = echo.post_json::<Value>("/echo", &*request).await;
            if answer.is_ok() { Turn::Done } else { Turn::Failed }
        }
    };
    bare_turns(at_once, window, turn).await.with_context(|| format!("bare round trips to {url}"))
}

/// Turns of which each must be done.
async fn bare_turns<T: Future<Output = Turn> + Send + 'static>(
    at_once: usize,
    window: Window,
    turn: impl Fn() -> T + Clone + Send + Sync + 'static,
) -> anyhow::Result<Measured> {
    let measured = measure(Load::Closed(at_once), window, async || Usage::own(), turn).await?;
    if measured.failed > 0 || measured.done == 0 {
        bail!("{} were done, and {} failed", measured.done, measured.failed);
    }
    Ok(measured)
}

/// Bare round trips of a payload to two participants' echoes at once: a turn is both.
pub(super) async fn side_by_side(window: Window, urls: &[String]) -> anyhow::Result<Measured> {
    let options = || ClientOptions { requests_max: 1, ..ClientOptions::default() };
    let echo = |url: &String| Client::with_options(url, None, options());
    let (first, second) = (echo(&urls[0])?, echo(&urls[1])?);
    let payload = Arc::new(payload("pay"));
    let turn = move || {
        let (first, second, payload) = (first.clone(), second.clone(), Arc::clone(&payload));
        async move {
            let one = first.post_json::<Value>("/echo", &*payload);
            let other = second.post_json::<Value>("/echo", &*payload);
            if tokio::try_join!(one, other).is_ok() { Turn::Done } else { Turn::Failed }
        }
    };
    bare_turns(1, window, turn).await.context("round trips side by side")
}

/// The transaction that most scenarios begin: two two-phase branches at two participants.
pub(super) fn two_branches(urls: &[String]) -> TransactionRequest {
    let at: Vec<String> = urls.iter().take(2).map(|url| format!("{url}/transactions")).collect();
    all_of(Kind::TwoPhase, &at, &payload("pay"))
}

pub(super) fn payload(purpose: &str) -> Json {
    let value = json!({ "account": "A-17", "amount": 500, "purpose": purpose });
    Json::from_value(&value).unwrap_or_default()
}

fn all_of(kind: Kind, addresses: &[String], payload: &Json) -> TransactionRequest {
    let numbered = addresses.iter().enumerate();
    let branches =
        numbered.map(|(number, at)| branch(&format!("branch-{number}"), kind, at, payload));
    let (branches, prepare_timeout_ms) = (branches.collect(), Some(PATIENCE_MS));
    TransactionRequest { branches, prepare_timeout_ms, ..TransactionRequest::default() }
}

pub(super) fn branch(name: &str, kind: Kind, address: &str, payload: &Json) -> BranchRequest {
    BranchRequest {
        name: name.to_owned(),
        participant: address.to_owned(),
        kind,
        payload: payload.clone(),
        ..BranchRequest::default()
    }
}

fn remove(folder: &Path) -> anyhow::Result<()> {
    if folder.is_dir() {
        std::fs::remove_dir_all(folder)?;
    }
    Ok(())
}
