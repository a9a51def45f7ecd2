//! The scenario *http*: a load client (this process), a coordinator and two participants as
//! processes of their own, JSON over HTTP/1.1, journal and history on disk. A transaction of two
//! branches is five round trips (one of the initiator's, two prepares, two commits), so the ceiling
//! is a fifth of the bare round trips through the same client and server libraries.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::bail;
use axum::routing::post;
use serde_json::{Value, json};
use unanimity_sdk::api::{BranchRequest, Json, Outcome, TransactionRequest};
use unanimity_sdk::{
    BranchContext, Client, ClientError, ClientOptions, MemoryParticipant, MemoryService,
    ServiceResult, Vote,
};

use super::BenchArguments;
use super::measure::{Load, Measured, Turn, measure};
use super::row::{Ceiling, Row};
use super::usage::Usage;
use crate::commands::Ended;
use crate::demo::fleet::Process;
use crate::inbound::{self, InboundLimits};

/// Round trips in one transaction of two branches.
const ROUND_TRIPS: f64 = 5.0;

/// A coordinator and two participants.
pub(super) struct Deployment {
    pub(super) coordinator: Process,
    pub(super) participants: Vec<Process>,
}

impl Deployment {
    /// Starts them, with their files in `folder`.
    pub(super) async fn start(
        folder: &Path,
        participants: usize,
        flags: &[&str],
    ) -> anyhow::Result<Self> {
        let program = std::env::current_exe()?;
        let text = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let data = folder.join("data").display().to_string();
        let mut serve = text(&["serve", "--data-folder", &data, "--log-level", "warn"]);
        serve.extend(text(flags));
        let mut coordinator = Process::new("coordinator", &program, folder, serve);
        coordinator.start().await?;
        let mut started = Vec::new();
        for _ in 0..participants {
            let arguments = text(&["bench-participant"]);
            let mut process = Process::new("participant", &program, folder, arguments);
            process.start().await?;
            started.push(process);
        }
        Ok(Self { coordinator, participants: started })
    }

    /// What all of them and this process have used, with the coordinator's memory.
    async fn usage(&self, client: &Client) -> Usage {
        let processes = self.participants.iter().filter_map(Process::id);
        let others = processes.map(Usage::of).fold(Usage::own(), |sum, one| sum + one);
        let coordinator = self.coordinator.id().map(Usage::of).unwrap_or_default();
        let resident_kib = coordinator.resident_kib;
        Usage { resident_kib, appends: appends(client).await, ..others + coordinator }
    }

    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        self.coordinator.stop().await?;
        for process in &mut self.participants {
            process.stop().await?;
        }
        Ok(())
    }
}

/// The coordinator's own count of appends to its journal.
async fn appends(client: &Client) -> u64 {
    let metrics = client.get_text("/metrics").await.unwrap_or_default();
    let name = "unanimity_journal_batch_records_count ";
    let line = metrics.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

/// Runs it: a line for each load.
pub(super) async fn http(
    arguments: &BenchArguments,
    folder: &Path,
    show: &mut impl FnMut(Row),
) -> anyhow::Result<()> {
    let folder = folder.join("http");
    std::fs::create_dir_all(&folder)?;
    let shards = arguments.shards.to_string();
    let deployment = Deployment::start(&folder, 2, &["--shards", &shards]).await?;
    let idle_kib = deployment.coordinator.id().map_or(0, |id| Usage::of(id).resident_kib);
    let mut committed = 0;
    for load in arguments.loads(&[1, 16, 128]) {
        let (mut row, measured) = one_row(arguments, load, &deployment).await?;
        row.idle_kib = Some(idle_kib);
        committed += measured.done_in_all;
        show(row);
    }
    deployment.stop().await?;
    let in_history = unanimity::count_history(&folder.join("data"))?;
    std::fs::remove_dir_all(&folder)?;
    if in_history != committed {
        bail!("http: {committed} committed, but {in_history} in the history");
    }
    Ok(())
}

async fn one_row(
    arguments: &BenchArguments,
    load: Load,
    deployment: &Deployment,
) -> anyhow::Result<(Row, Measured)> {
    let requests_max = match load {
        Load::Closed(initiators) => initiators.max(1),
        Load::Open { .. } => 512,
    };
    let options = ClientOptions { requests_max, ..ClientOptions::default() };
    let urls: Vec<String> = deployment.participants.iter().map(Process::url).collect();
    let request = Arc::new(transfer(&urls));
    let mut ceilings = Vec::new();
    if !arguments.no_ceilings {
        let bare = round_trips(arguments, requests_max, &urls[0], &request).await?;
        let per_second = bare.per_second / ROUND_TRIPS;
        ceilings.push(Ceiling { name: "round trips / 5".to_owned(), per_second });
    }
    let client = Client::with_options(&deployment.coordinator.url(), None, options)?;
    let measured = committing(arguments, load, deployment, &client, request).await?;
    if measured.failed > 0 {
        bail!("http: {} transactions did not commit", measured.failed);
    }
    let row = Row { ceilings, ..Row::new("http", load, &measured) };
    Ok((row, measured))
}

/// Bare round trips of the same request to a participant, as many at once.
async fn round_trips(
    arguments: &BenchArguments,
    at_once: usize,
    url: &str,
    request: &Arc<TransactionRequest>,
) -> anyhow::Result<Measured> {
    let options = ClientOptions { requests_max: at_once, ..ClientOptions::default() };
    let echo = Client::with_options(url, None, options)?;
    let request = Arc::clone(request);
    let turn = move || {
        let (echo, request) = (echo.clone(), Arc::clone(&request));
        async move {
            let answer = echo.post_json::<Value>("/echo", &*request).await;
            if answer.is_ok() { Turn::Done } else { Turn::Failed }
        }
    };
    let usage = async || Usage::own();
    measure(Load::Closed(at_once), arguments.window(), usage, turn).await
}

async fn committing(
    arguments: &BenchArguments,
    load: Load,
    deployment: &Deployment,
    client: &Client,
    request: Arc<TransactionRequest>,
) -> anyhow::Result<Measured> {
    let turn = {
        let client = client.clone();
        move || {
            let (client, request) = (client.clone(), Arc::clone(&request));
            async move { judged(client.begin(&request).await.map(|begun| begun.outcome)) }
        }
    };
    let usage = async || deployment.usage(client).await;
    measure(load, arguments.window(), usage, turn).await
}

fn judged(begun: Result<Option<Outcome>, ClientError>) -> Turn {
    match begun {
        Ok(Some(Outcome::Commit)) => Turn::Done,
        Err(ClientError::Refused { status: 429 | 503, .. }) => Turn::Refused,
        Ok(_) | Err(_) => Turn::Failed,
    }
}

fn transfer(participants: &[String]) -> TransactionRequest {
    let branches = participants.iter().enumerate().map(|(number, url)| BranchRequest {
        name: format!("branch-{number}"),
        participant: format!("{url}/transactions"),
        payload: Json::from_value(&json!({ "account": "A-17", "amount": 500 })).unwrap_or_default(),
        ..BranchRequest::default()
    });
    TransactionRequest { branches: branches.collect(), ..TransactionRequest::default() }
}

/// A service that agrees to everything and keeps nothing but the guard.
struct Agreeable;

impl MemoryService for Agreeable {
    fn prepare(&self, _branch: &BranchContext, _payload: &[u8]) -> ServiceResult<Vote> {
        Ok(Vote::Yes)
    }

    fn commit(&self, _branch: &BranchContext, _payload: &[u8]) -> ServiceResult<()> {
        Ok(())
    }

    fn rollback(&self, _branch: &BranchContext, _payload: &[u8]) -> ServiceResult<()> {
        Ok(())
    }
}

/// What `bench-participant` takes.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ParticipantArguments {
    /// Where to listen.
    #[arg(long)]
    listen: std::net::SocketAddr,
}

/// The participant of the bench, and the echo that the ceiling is measured against.
pub(crate) async fn participant(arguments: ParticipantArguments) -> Ended {
    let listener = tokio::net::TcpListener::bind(arguments.listen).await?;
    anstream::println!("listening on http://{}", listener.local_addr()?);
    let participant = Arc::new(MemoryParticipant::with_settled_max(Agreeable, 10_000));
    let router = axum::Router::new()
        .route("/echo", post(|body: axum::body::Bytes| async { body }))
        .nest("/transactions", unanimity_sdk::router(participant));
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let shutdown = async move { terminate.recv().await.unwrap_or(()) };
    inbound::serve(listener, router, InboundLimits::default(), shutdown).await?;
    Ok(ExitCode::SUCCESS)
}
