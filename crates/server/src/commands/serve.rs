//! `unanimity serve`: puts the coordinator together from its configuration, and takes it apart
//! again when told to stop. Killing it is just as right: recovery is the same either way.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use axum::Router;
use clap::{Arg, ArgMatches, Command};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpSocket};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;
use unanimity::{ManagerConfig, Storage, TransactionManager};

use super::Ended;
use crate::api::{Api, ApiLimits};
use crate::carriage::Carriages;
use crate::config::{self, Config, LogFormat};
use crate::databases::{self, Databases};
use crate::inbound;
use crate::outbound::HttpTransport;
use crate::streams::{Desk, StreamTransport};

const ABOUT: &str = "Run the coordinator";
/// Descriptors that clients' connections leave to the journal, the history and the calls to
/// participants.
const DESCRIPTORS_KEPT: u64 = 512;
/// The most connections that wait to be accepted; systems allow 4,096 or fewer.
const ACCEPT_QUEUE_MAX: u32 = 4_096;
/// How often measurements are folded together.
const METRICS_UPKEEP: Duration = Duration::from_secs(5);
/// How often it is looked whether anything is live still, once told to stop.
const LIVE_LOOK: Duration = Duration::from_millis(10);

/// The command line of `serve`: a flag for every setting.
pub(super) fn command() -> Command {
    let file = Arg::new("config")
        .long("config")
        .value_name("FILE")
        .env("UNANIMITY_CONFIG")
        .value_parser(clap::value_parser!(PathBuf))
        .help("A TOML file with settings; flags and environment variables win over it");
    let example = Arg::new("example-config")
        .long("example-config")
        .action(clap::ArgAction::SetTrue)
        .help("Print a configuration file with every setting and its default, and end");
    Command::new("serve").about(ABOUT).arg(file).arg(example).args(config::flags())
}

/// What it was told; `None` if it was only to show an example of that.
pub(super) fn configured(matches: &ArgMatches) -> anyhow::Result<Option<Config>> {
    if matches.get_flag("example-config") {
        print!("{}", Config::example());
        return Ok(None);
    }
    let file = matches.get_one::<PathBuf>("config");
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let given = config::given(matches);
    Ok(Some(Config::load(file.map(PathBuf::as_path), environment, given)?))
}

/// Serves until SIGTERM, SIGINT, or a failure of the journal.
pub(super) async fn serve(config: Config) -> Ended {
    start_logging(&config)?;
    let metrics = PrometheusBuilder::new().install_recorder().context("cannot set up metrics")?;
    tokio::spawn(keep_up(metrics.clone()));
    // The address first: a coordinator that cannot listen should not touch the journal.
    let address = config.listen.address;
    let listener = listen(address).with_context(|| {
        format!("cannot listen on {address}; is another program using it? (listen.address)")
    })?;
    // Before anybody is told that it listens: whoever is, may tell it to stop at once.
    let signals = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let databases = Databases::new(&config.databases);
    databases.check().await.map_err(anyhow::Error::msg)?;
    let streams = StreamTransport::new(config.streams()?);
    let manager = start_manager(&config, &databases, &streams)?;
    databases.attach(&manager);
    let limits = ApiLimits {
        body_bytes_max: to_usize(config.limits.body_bytes_max),
        json_depth_max: to_usize(config.limits.json_depth_max),
        branches_max: to_usize(config.limits.branches_max),
    };
    let token = config.security.token.clone();
    let api = Api::new(manager.clone(), databases, config.options(), limits, token, metrics);
    announce(&listener)?;
    let (stop, stopping) = tokio::sync::watch::channel(false);
    let router = api.router(streams.desk(), stopping);
    let hang_up = HangUp { desk: streams.desk(), stop };
    let failure = run(listener, router, &config, &manager, signals, hang_up).await?;
    match failure {
        None => Ok(ExitCode::SUCCESS),
        Some(message) => {
            anyhow::bail!("the coordinator has stopped, because {message}; starting it recovers it")
        }
    }
}

/// What is measured gathers until somebody reads it, or this folds it together.
async fn keep_up(metrics: PrometheusHandle) {
    let mut interval = tokio::time::interval(METRICS_UPKEEP);
    loop {
        interval.tick().await;
        metrics.run_upkeep();
    }
}

/// Listens with a queue as long as the system allows: a client that finds it full tries again only
/// after a second.
fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(ACCEPT_QUEUE_MAX)
}

fn start_manager(
    config: &Config,
    databases: &Databases,
    streams: &StreamTransport,
) -> anyhow::Result<TransactionManager> {
    let manager = ManagerConfig {
        storage: Storage::Folder(config.data.folder.clone()),
        shards: u16::try_from(config.journal.shards).unwrap_or(u16::MAX),
        live_transactions_max: to_usize(config.limits.live_transactions_max),
        queue_delay_target_ms: config.limits.queue_delay_target_ms,
        owns_runtime: true,
        disk_reserve_bytes: config.data.disk_reserve_bytes,
        panics_per_transaction_max: u32::try_from(config.limits.panics_per_transaction_max)
            .unwrap_or(u32::MAX),
        ..ManagerConfig::default()
    };
    let carriages = Carriages::over_http(HttpTransport::new(config.outbound()?))
        .with(databases::SCHEME, Arc::new(databases.clone()))
        .with("grpc", Arc::new(streams.clone()))
        .with("stream", Arc::new(streams.clone()));
    let started = TransactionManager::start(manager, Arc::new(carriages));
    started.map_err(|error| anyhow::anyhow!("{error} (code {})", error.code()))
}

/// One line that a person or a parent process can read.
fn announce(listener: &TcpListener) -> anyhow::Result<()> {
    let address = listener.local_addr()?;
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "unanimity listening on http://{address}")?;
    Ok(stdout.flush()?)
}

/// Serves until told to stop; gives back what failed, if something did.
async fn run(
    listener: TcpListener,
    router: Router,
    config: &Config,
    manager: &TransactionManager,
    signals: (Signal, Signal),
    hang_up: HangUp,
) -> anyhow::Result<Option<String>> {
    let (mut terminate, mut interrupt) = signals;
    let (told, mut failed) = tokio::sync::watch::channel(None);
    let watched = manager.clone();
    let stop_timeout_ms = config.limits.stop_timeout_ms;
    let shutdown = async move {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("told to stop; finishing what is under way"),
            _ = interrupt.recv() => tracing::info!("interrupted; finishing what is under way"),
            message = watched.failed() => {
                told.send_replace(Some(message));
            }
        }
        hang_up.when_done(watched, stop_timeout_ms);
    };
    let mut limits = config.inbound();
    limits.connections_max = descriptors_for(limits.connections_max);
    inbound::serve(listener, router, limits, shutdown).await?;
    let failure = failed.borrow_and_update().clone();
    let patience = if failure.is_some() { 0 } else { config.limits.stop_timeout_ms };
    manager.stop(Duration::from_millis(patience)).await;
    Ok(failure)
}

/// What ends the streams that clients have opened, which would otherwise stay for ever.
struct HangUp {
    desk: Desk,
    stop: tokio::sync::watch::Sender<bool>,
}

impl HangUp {
    /// Initiators begin nothing more from now on. Services that have dialed in are needed until
    /// what is live has ended, and then keep nobody waiting.
    fn when_done(self, manager: TransactionManager, stop_timeout_ms: u64) {
        self.stop.send_replace(true);
        let deadline = Instant::now() + Duration::from_millis(stop_timeout_ms / 10 * 9);
        tokio::spawn(async move {
            while Instant::now() < deadline && manager.has_live().await == Ok(true) {
                tokio::time::sleep(LIVE_LOOK).await;
            }
            self.desk.close();
        });
    }
}

/// Asks the system for as many descriptors as so many connections need, and says for how many there
/// are enough. Without this 1,024, the usual limit, would be used up by clients, and the journal's
/// files and the calls to participants would find none.
fn descriptors_for(connections_max: usize) -> usize {
    let wanted = to_u64(connections_max).saturating_add(DESCRIPTORS_KEPT);
    let limit = getrlimit(Resource::Nofile);
    let Some(current) = limit.current.filter(|current| *current < wanted) else {
        return connections_max;
    };
    let raised = limit.maximum.map_or(wanted, |maximum| wanted.min(maximum));
    let set = setrlimit(Resource::Nofile, Rlimit { current: Some(raised), ..limit });
    let descriptors = if set.is_ok() { raised } else { current };
    if descriptors >= wanted {
        return connections_max;
    }
    let enough = to_usize(descriptors.saturating_sub(DESCRIPTORS_KEPT).max(descriptors / 2));
    tracing::warn!(
        descriptors,
        connections_max,
        "the system allows too few open files for limits.connections_max (see ulimit -n): at most \
        {enough} connections are taken"
    );
    enough
}

fn start_logging(config: &Config) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&config.log.level)
        .with_context(|| format!("log.level {:?} is no level and no filter", config.log.level))?;
    // Standard output is for what a caller asked for; logs go beside it.
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match config.log.format {
        LogFormat::Text => logs.with_ansi(false).init(),
        LogFormat::Json => logs.json().init(),
    }
    Ok(())
}

fn to_u64(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

fn to_usize(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
