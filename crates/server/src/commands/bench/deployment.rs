//! What is measured over the network: a coordinator and participants, either processes that are
//! started here, with journal and history on disk, or the user's own, at the URLs that the command
//! line names. It decides what their usage is and whether anything was lost; what load is put on
//! them is the scenarios'.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use axum::extract::Path as UrlPath;
use axum::http::StatusCode;
use axum::routing::post;
use unanimity_sdk::api::{Outcome, TransactionRequest};
use unanimity_sdk::stream::{BeginRequest, StreamClient, StreamClientOptions};
use unanimity_sdk::{
    BranchContext, Client, ClientError, ClientOptions, MemoryParticipant, MemoryService,
    Participant, ServiceResult, Vote,
};

use super::bare::{self, Bare};
use super::measure::{Load, Measured, Turn, Window, measure};
use super::stream::NothingBehind;
use super::usage::Usage;
use crate::commands::Ended;
use crate::demo::fleet::Process;
use crate::demo::settle;
use crate::inbound::{self, InboundLimits};
use crate::problem::{Problem, code};

/// The most requests that the load client has under way in an open loop, if not told otherwise.
const OPEN_REQUESTS_MAX: usize = 4_000;
/// A client's pool opens more connections than it has requests, and those of the client before may
/// not be closed yet. Who has no place at the coordinator is hung up on while it is idle, and then
/// cannot know whether a request that was on its way was read: so there are places for all.
const CONNECTIONS_MAX: &str = "12000";

/// A coordinator and participants.
pub(super) struct Deployment {
    /// The coordinator first; none if all of it is the user's.
    processes: Vec<Process>,
    data: PathBuf,
    url: String,
    token: Option<String>,
    /// The participants' URLs without a path; the user's own with theirs.
    pub(super) participants: Vec<String>,
    /// The coordinator's memory before any load.
    pub(super) idle_kib: Option<u64>,
    /// What the load client is like.
    pub(super) manners: Manners,
    /// How many transactions ended so far, by what was seen of them.
    ended: u64,
}

/// What the load client does where it is asked for more than is carried out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Manners {
    /// Whether it holds back what would be refused.
    pub(super) holds_back: bool,
    /// How long it lets a beginning wait for its turn to be sent; 0: as long as it takes.
    pub(super) begin_wait_max_ms: u64,
    /// The most requests over HTTP that it has under way in an open loop.
    pub(super) open_requests_max: usize,
}

impl Default for Manners {
    fn default() -> Self {
        Self { holds_back: true, begin_wait_max_ms: 0, open_requests_max: OPEN_REQUESTS_MAX }
    }
}

/// The coordinator and the participants that a user names.
#[derive(Clone, Debug)]
pub(super) struct Own {
    pub(super) coordinator: String,
    pub(super) token: Option<String>,
    pub(super) participants: Vec<String>,
}

/// How large the processes are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    /// The coordinator's shards.
    pub(super) shards: u16,
    /// Threads that run the tasks of a process.
    pub(super) worker_threads: usize,
}

impl Deployment {
    /// Starts processes, with their files in `folder`.
    pub(super) async fn start(
        folder: &Path,
        sizes: Sizes,
        participants: usize,
        flags: &[&str],
    ) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let program = std::env::current_exe()?;
        let text = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let data = folder.join("data");
        let at = data.display().to_string();
        let (shards, threads) = (sizes.shards.to_string(), sizes.worker_threads.to_string());
        let threads = ["--worker-threads", &threads];
        let mut serve = text(&["serve", "--data-folder", &at, "--log-level", "error"]);
        serve.extend(text(&["--shards", &shards, "--connections-max", CONNECTIONS_MAX]));
        serve.extend(text(&threads));
        serve.extend(text(flags));
        let mut coordinator = Process::new("coordinator", &program, folder, serve);
        coordinator.start().await?;
        let idle_kib = coordinator.id().map(|id| Usage::of(id).resident_kib);
        let url = coordinator.url();
        let (mut processes, mut urls) = (vec![coordinator], Vec::new());
        for _ in 0..participants {
            let arguments = text(&["bench-participant", threads[0], threads[1]]);
            let mut process = Process::new("participant", &program, folder, arguments);
            process.start().await?;
            urls.push(process.url());
            processes.push(process);
        }
        let own = Self::own(Own { coordinator: url, token: None, participants: urls });
        Ok(Self { processes, data, idle_kib, ..own })
    }

    /// A process that stands before the first two participants as the coordinator does, with
    /// nothing behind it.
    pub(super) async fn bare(&self, folder: &Path, sizes: Sizes) -> anyhow::Result<Process> {
        let (threads, journal) = (sizes.worker_threads.to_string(), folder.join("bare.db"));
        let journal = journal.display().to_string();
        let mut arguments = vec!["bench-participant", "--worker-threads", &threads];
        arguments.extend(["--journal", &journal]);
        for participant in self.participants.iter().take(2) {
            arguments.extend(["--before", participant]);
        }
        let arguments = arguments.into_iter().map(str::to_owned).collect();
        let mut process = Process::new("bare", &std::env::current_exe()?, folder, arguments);
        process.start().await?;
        Ok(process)
    }

    /// Takes the user's own, of which only what the API tells is known.
    pub(super) fn own(own: Own) -> Self {
        let Own { coordinator: url, token, participants } = own;
        let (processes, data, idle_kib) = (Vec::new(), PathBuf::new(), None);
        let (manners, ended) = (Manners::default(), 0);
        Self { processes, data, url, token, participants, idle_kib, manners, ended }
    }

    /// Whether it was started here.
    pub(super) const fn is_ours(&self) -> bool {
        !self.processes.is_empty()
    }

    const fn requests_max(&self, load: Load) -> usize {
        match load {
            Load::Closed(0) => 1,
            Load::Closed(initiators) => initiators,
            Load::Open { .. } => self.manners.open_requests_max,
        }
    }

    /// A client with room for so many requests at once.
    pub(super) fn client(&self, requests_max: usize) -> anyhow::Result<Client> {
        let Manners { holds_back, begin_wait_max_ms, .. } = self.manners;
        let limits = ClientOptions::default();
        let options = ClientOptions { requests_max, holds_back, begin_wait_max_ms, ..limits };
        Ok(Client::with_options(&self.url, self.token.as_deref(), options)?)
    }

    /// Begins this transaction again and again, and expects this outcome each time.
    pub(super) async fn commit(
        &mut self,
        load: Load,
        window: Window,
        request: &Arc<TransactionRequest>,
        expected: Outcome,
    ) -> anyhow::Result<Measured> {
        let client = self.client(self.requests_max(load))?;
        let usage = async || self.usage(&client).await;
        let turn = turn(&client, request, Some(expected));
        let measured = measure(load, window, usage, turn).await?;
        self.note(&measured)?;
        Ok(measured)
    }

    /// The same, to be committed, while as many others begin what may come to anything.
    pub(super) async fn commit_beside(
        &mut self,
        load: Load,
        window: Window,
        request: &Arc<TransactionRequest>,
        others: &Arc<TransactionRequest>,
    ) -> anyhow::Result<Measured> {
        let client = self.client(self.requests_max(load))?;
        let beside = self.client(self.requests_max(load))?;
        let usage = async || self.usage(&client).await;
        let none = async || Usage::default();
        let measured = measure(load, window, usage, turn(&client, request, Some(Outcome::Commit)));
        let others = measure(load, window, none, turn(&beside, others, None));
        let (measured, others) = tokio::try_join!(measured, others)?;
        self.note(&others)?;
        self.note(&measured)?;
        Ok(measured)
    }

    /// Begins transactions over one stream, and expects that they commit.
    pub(super) async fn commit_on_stream(
        &mut self,
        load: Load,
        window: Window,
        request: &TransactionRequest,
    ) -> anyhow::Result<Measured> {
        let client = self.client(1)?;
        let options = StreamClientOptions {
            holds_back: self.manners.holds_back,
            begin_wait_max_ms: self.manners.begin_wait_max_ms,
            ..Default::default()
        };
        let on_stream = StreamClient::with_options(&self.url, self.token.as_deref(), options)?;
        let request = Arc::new(BeginRequest::from(request));
        let turn = move || {
            let (on_stream, request) = (on_stream.clone(), Arc::clone(&request));
            async move {
                let begun = on_stream.begin((*request).clone()).await;
                judged(begun.map(|begun| begun.decided()), Some(Outcome::Commit))
            }
        };
        let usage = async || self.usage(&client).await;
        let measured = measure(load, window, usage, turn).await?;
        self.note(&measured)?;
        Ok(measured)
    }

    /// What a bare refusal costs both ends in processor time: the same request through the same
    /// libraries, to a participant that refuses it unread.
    pub(super) async fn refusal_us(
        &self,
        initiators: usize,
        window: Window,
        request: &Arc<TransactionRequest>,
    ) -> anyhow::Result<f64> {
        let url = format!("{}/refusing", self.participants[0]);
        let options = ClientOptions {
            requests_max: initiators,
            holds_back: false,
            begin_wait_max_ms: 0,
            ..ClientOptions::default()
        };
        let begin = turn(&Client::with_options(&url, None, options)?, request, None);
        let refused = move || {
            let begin = begin();
            async move { if begin.await == Turn::Refused { Turn::Done } else { Turn::Failed } }
        };
        let client = self.client(1)?;
        let usage = async || self.usage(&client).await;
        let measured = measure(Load::Closed(initiators), window, usage, refused).await?;
        if measured.failed > 0 {
            bail!("{} requests were not refused by what refuses all", measured.failed);
        }
        Ok(measured.cpu_us())
    }

    fn note(&mut self, measured: &Measured) -> anyhow::Result<()> {
        self.ended += measured.done_in_all;
        if measured.failed > 0 {
            let (failed, done) = (measured.failed, measured.done_in_all);
            bail!("{failed} transactions had another outcome or none; {done} were as they should");
        }
        Ok(())
    }

    /// Kills a participant.
    pub(super) async fn kill(&mut self, participant: usize) -> anyhow::Result<()> {
        match self.processes.get_mut(participant + 1) {
            Some(process) => process.kill().await,
            None => Ok(()),
        }
    }

    /// Starts a participant again that was killed: what is owed to it can be done then.
    pub(super) async fn revive(&mut self, participant: usize) -> anyhow::Result<()> {
        match self.processes.get_mut(participant + 1) {
            Some(process) => process.start().await,
            None => Ok(()),
        }
    }

    /// What all processes and this one have used, with the coordinator's memory.
    async fn usage(&self, client: &Client) -> Usage {
        let all = self.processes.iter().filter_map(Process::id).map(Usage::of);
        let used = all.fold(Usage::own(), |sum, one| sum + one);
        let coordinator = self.processes.first().and_then(Process::id).map(Usage::of);
        let resident_kib = coordinator.unwrap_or_default().resident_kib;
        Usage { resident_kib, appends: appends(client).await, ..used }
    }

    /// Waits until everything has ended, stops what was started here, and compares the history with
    /// what was seen: nothing may be missing and nothing too much.
    pub(super) async fn finish(mut self) -> anyhow::Result<()> {
        let client = self.client(1)?;
        settle(&client).await?;
        if !self.is_ours() {
            return Ok(());
        }
        for process in &mut self.processes {
            process.stop().await?;
        }
        let (ended, in_history) = (self.ended, unanimity::count_history(&self.data)?);
        if in_history != ended {
            bail!("{ended} transactions have ended, but {in_history} are in the history");
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

/// Begins a transaction, and expects this outcome, or any.
fn turn(
    client: &Client,
    request: &Arc<TransactionRequest>,
    expected: Option<Outcome>,
) -> impl Fn() -> Pin<Box<dyn Future<Output = Turn> + Send>> + Clone + Send + Sync + 'static {
    let (client, request) = (client.clone(), Arc::clone(request));
    move || {
        let (client, request) = (client.clone(), Arc::clone(&request));
        Box::pin(async move {
            judged(client.begin(&request).await.map(|begun| begun.outcome), expected)
        })
    }
}

fn judged(begun: Result<Option<Outcome>, ClientError>, expected: Option<Outcome>) -> Turn {
    match begun {
        Ok(Some(outcome)) if expected.is_none_or(|expected| outcome == expected) => Turn::Done,
        Err(ClientError::Refused { status: 429 | 503, .. }) => Turn::Refused,
        other => {
            // The count of them alone would tell nobody why.
            anstream::eprintln!("not as it should be: {other:?}");
            Turn::Failed
        }
    }
}

/// Does as the payload says, and keeps nothing but the guard.
struct Obedient;

/// Has it vote no.
pub(super) const SAY_NO: &str = "say no";
/// Has it find nothing to commit.
pub(super) const READ_ONLY: &str = "only read";

impl MemoryService for Obedient {
    fn prepare(&self, _branch: &BranchContext, payload: &[u8]) -> ServiceResult<Vote> {
        // The purpose is the last field.
        let purpose = payload.strip_suffix(br#""}"#).unwrap_or(payload);
        let says = |word: &str| purpose.ends_with(word.as_bytes());
        Ok(if says(SAY_NO) {
            Vote::No("the bench wants a no".to_owned())
        } else if says(READ_ONLY) {
            Vote::ReadOnly
        } else {
            Vote::Yes
        })
    }

    fn commit(&self, _branch: &BranchContext, _payload: &[u8]) -> ServiceResult<()> {
        Ok(())
    }

    fn rollback(&self, _branch: &BranchContext, _payload: &[u8]) -> ServiceResult<()> {
        Ok(())
    }

    fn execute(&self, _branch: &BranchContext, _payload: &[u8]) -> ServiceResult<Vote> {
        Ok(Vote::Yes)
    }

    fn compensate(&self, _branch: &BranchContext, _payload: &[u8]) -> ServiceResult<()> {
        Ok(())
    }
}

/// What `bench-participant` takes.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ParticipantArguments {
    /// Where to listen.
    #[arg(long)]
    listen: std::net::SocketAddr,
    /// How many threads run its tasks; 0: one for each core.
    #[arg(long, default_value_t = 0)]
    pub(crate) worker_threads: usize,
    /// Answer at once, without a guard.
    #[arg(long)]
    nothing_behind: bool,
    /// Send frames back, and be no participant at all.
    #[arg(long)]
    frames: bool,
    /// Be no participant but what stands before these two: with --journal.
    #[arg(long, value_name = "URL", requires = "journal")]
    before: Vec<String>,
    /// Where that has its journal.
    #[arg(long, value_name = "FILE", requires = "before")]
    journal: Option<PathBuf>,
}

/// The participant of the bench, and the echo that the ceiling is measured against.
pub(crate) async fn participant(arguments: ParticipantArguments) -> Ended {
    let listener = tokio::net::TcpListener::bind(arguments.listen).await?;
    let says = format!("listening on http://{}", listener.local_addr()?);
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let shutdown = async move { terminate.recv().await.unwrap_or(()) };
    if arguments.frames {
        anstream::println!("{says}");
        tokio::select! {
            ended = super::frames::echo(listener) => ended?,
            () = shutdown => {}
        }
        return Ok(ExitCode::SUCCESS);
    }
    let router = match &arguments.journal {
        Some(journal) => bare::router(Bare::open(journal, &arguments.before)?),
        None => participant_router(arguments.nothing_behind),
    };
    anstream::println!("{says}");
    inbound::serve(listener, router, InboundLimits::default(), shutdown).await?;
    Ok(ExitCode::SUCCESS)
}

fn participant_router(nothing_behind: bool) -> axum::Router {
    let participant = Arc::new(MemoryParticipant::with_settled_max(Obedient, 10_000));
    let on_streams: Arc<dyn Participant> = match nothing_behind {
        true => Arc::new(NothingBehind),
        false => Arc::clone(&participant) as _,
    };
    axum::Router::new()
        .route("/echo", post(|body: axum::body::Bytes| async { body }))
        .route("/refusing/v1/transactions", post(refuse))
        .route("/silent/{operation}", post(silent))
        .route("/slow/{milliseconds}/{operation}", post(slow))
        .nest("/transactions", unanimity_sdk::router(participant))
        .merge(unanimity_sdk::stream::router(on_streams))
}

/// Refuses to begin a transaction, as a coordinator that has too much to do.
async fn refuse(body: axum::body::Body) -> Problem {
    inbound::pass_over(body).await;
    Problem::new(code::OVERLOADED, "too much is begun").with_retry_after_s(1)
}

/// Never answers a prepare, and acknowledges everything else.
async fn silent(UrlPath(operation): UrlPath<String>) -> StatusCode {
    if operation == "prepare" {
        std::future::pending::<()>().await;
    }
    StatusCode::NO_CONTENT
}

/// Agrees to everything, after a while.
async fn slow(UrlPath((milliseconds, operation)): UrlPath<(u64, String)>) -> StatusCode {
    tokio::time::sleep(Duration::from_millis(milliseconds.min(60_000))).await;
    if operation == "prepare" { StatusCode::OK } else { StatusCode::NO_CONTENT }
}
