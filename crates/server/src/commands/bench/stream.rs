//! The scenario *stream*: as `http`, but the initiator begins its transactions over one stream, and
//! the coordinator calls the participants over streams. Its ceilings, each with the five messages
//! there and back that a transaction of two branches takes: the same calls through the same gRPC
//! library to a participant with nothing behind it, and frames over a plain TCP connection.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use unanimity::core::guard::Reply;
use unanimity::core::{Answer, BranchPlan, Call, Event, Kind, Operation, TransactionId};
use unanimity::{Owed, Transport};
use unanimity_sdk::api::TransactionRequest;
use unanimity_sdk::{Answering, OwedAnswer, Participant, Request};

use super::BenchArguments;
use super::deployment::{Deployment, Sizes};
use super::frames::Frames;
use super::http::two_branches;
use super::measure::{Load, Measured, Turn, Window, measure};
use super::row::{Ceiling, Row};
use super::usage::Usage;
use crate::demo::fleet::Process;
use crate::streams::{StreamConfig, StreamTransport};

/// Messages there and back in one transaction of two branches.
const ROUND_TRIPS: f64 = 5.0;

/// Runs it: a line for each load.
pub(super) async fn stream(
    arguments: &BenchArguments,
    folder: &Path,
    show: &mut impl FnMut(Row),
) -> anyhow::Result<()> {
    let folder = folder.join("stream");
    let mut deployment = Deployment::start(&folder, arguments.sizes(), 2, &[]).await?;
    let request = on_streams(two_branches(&deployment.participants));
    let loads: &[usize] = if arguments.short { &[64] } else { &[1, 128, 1_024, 4_096] };
    let (window, mut peak): (Window, f64) = (arguments.window(), 0.0);
    let mut loads = arguments.loads(loads);
    let mut closed = true;
    while !loads.is_empty() {
        for load in loads.drain(..) {
            let measured = deployment.commit_on_stream(load, window, &request).await?;
            let row = Row::new("stream", load, &measured);
            peak = peak.max(row.per_second);
            let (case, idle_kib) = ("2 branches".to_owned(), deployment.idle_kib);
            let ceilings = match load {
                Load::Closed(at_once) if !arguments.no_ceilings => {
                    ceilings(at_once, window, (&folder, arguments.sizes())).await?
                }
                Load::Closed(_) | Load::Open { .. } => Vec::new(),
            };
            show(Row { case, idle_kib, ceilings, ..row });
        }
        if std::mem::take(&mut closed) {
            loads = arguments.arrivals(peak);
        }
    }
    deployment.finish().await.context("stream")?;
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}

/// The same transaction over the participants' streams.
pub(super) fn on_streams(mut request: TransactionRequest) -> TransactionRequest {
    for branch in &mut request.branches {
        branch.participant = branch.participant.replace("http://", "grpc://");
    }
    request
}

async fn ceilings(
    at_once: usize,
    window: Window,
    (folder, sizes): (&Path, Sizes),
) -> anyhow::Result<Vec<Ceiling>> {
    let echo = grpc_echo(at_once, window, (folder, sizes)).await?;
    let grpc = Ceiling::new("gRPC echo / 5", echo.per_second / ROUND_TRIPS);
    let tcp = Ceiling::new("framed TCP / 5", tcp_echo(at_once, window, (folder, sizes)).await?);
    Ok(vec![grpc, tcp])
}

async fn start(kind: &str, (folder, sizes): (&Path, Sizes)) -> anyhow::Result<Process> {
    let program = std::env::current_exe()?;
    let threads = sizes.worker_threads.to_string();
    let arguments = ["bench-participant", kind, "--worker-threads", &threads];
    let arguments = arguments.map(str::to_owned).to_vec();
    let mut process = Process::new("echo", &program, folder, arguments);
    process.start().await?;
    Ok(process)
}

/// What a message there and back costs both ends in processor time, with nothing behind it.
pub(super) async fn message_us(
    at_once: usize,
    window: Window,
    place: (&Path, Sizes),
) -> anyhow::Result<f64> {
    Ok(grpc_echo(at_once, window, place).await?.cpu_us())
}

/// Calls to a participant that keeps nothing, through the coordinator's own carriage.
async fn grpc_echo(
    at_once: usize,
    window: Window,
    place: (&Path, Sizes),
) -> anyhow::Result<Measured> {
    let mut process = start("--nothing-behind", place).await?;
    let transport = StreamTransport::new(StreamConfig::default());
    let participant: Arc<str> = process.url().replace("http://", "grpc://").as_str().into();
    let call = Arc::new(prepare(&format!("{participant}/nothing"))?);
    let turn = move || {
        let (transport, call) = (transport.clone(), Arc::clone(&call));
        async move {
            let (answers, mut answered) = unanimity::answers();
            let owed = Owed::new(&call, &answers);
            drop(transport.submit((*call).clone(), owed));
            match answered.next().await {
                Event::Answer { answer: Answer::Yes(_), .. } => Turn::Done,
                _ => Turn::Failed, // Nothing else is right here.
            }
        }
    };
    let usage = async || Usage::own() + process.id().map(Usage::of).unwrap_or_default();
    let measured = measure(Load::Closed(at_once), window, usage, turn).await?;
    process.stop().await?;
    if measured.failed > 0 {
        bail!("{} calls to a participant with nothing behind it had no answer", measured.failed);
    }
    Ok(measured)
}

fn prepare(participant: &str) -> anyhow::Result<Call> {
    Ok(Call {
        transaction: TransactionId::new("0123456789abcdef0123456789abcdef")?,
        branch: 0,
        plan: Arc::new(BranchPlan::new("branch-0", participant, Kind::TwoPhase)),
        operation: Operation::Prepare,
        attempt: 1,
        timeout_ms: 60_000,
        payload: Some(Arc::from(br#"{"account":"A-17","amount":500,"purpose":"pay"}"#.as_slice())),
        results: Box::default(),
        outcome: None,
    })
}

/// Frames over one connection; a fifth of what came back a second.
async fn tcp_echo(at_once: usize, window: Window, place: (&Path, Sizes)) -> anyhow::Result<f64> {
    let mut process = start("--frames", place).await?;
    let frames = Frames::connect(process.url().trim_start_matches("http://")).await?;
    let turn = move || {
        let frames = frames.clone();
        async move { if frames.round_trip().await { Turn::Done } else { Turn::Failed } }
    };
    let usage = async || Usage::own();
    let measured = measure(Load::Closed(at_once), window, usage, turn).await?;
    process.stop().await?;
    Ok(measured.per_second / ROUND_TRIPS)
}

/// A participant without a guard and without anything else.
pub(super) struct NothingBehind;

impl NothingBehind {
    fn reply(operation: Operation) -> Reply {
        let votes = matches!(operation, Operation::Prepare | Operation::Execute);
        if votes { Reply::Yes(None) } else { Reply::Acknowledged }
    }
}

impl Participant for NothingBehind {
    fn call(&self, request: Request) -> Answering<'_> {
        Box::pin(std::future::ready(Ok(Self::reply(request.operation))))
    }

    fn take(&self, request: Request, owed: OwedAnswer) -> Option<(Request, OwedAnswer)> {
        owed.settle(Ok(Self::reply(request.operation)));
        None
    }
}
