//! `unanimity serve`: puts the coordinator together from its configuration, and takes it apart
//! again when told to stop. Killing it is just as right: recovery is the same either way.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::{Arg, ArgMatches, Command};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;
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

const ABOUT: &str = "Run the coordinator";
/// How often measurements are folded together.
const METRICS_UPKEEP: Duration = Duration::from_secs(5);

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

/// Serves until SIGTERM, SIGINT, or a failure of the journal.
pub(super) async fn serve(matches: &ArgMatches) -> Ended {
    if matches.get_flag("example-config") {
        print!("{}", Config::example());
        return Ok(ExitCode::SUCCESS);
    }
    let file = matches.get_one::<PathBuf>("config");
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let config = Config::load(file.map(PathBuf::as_path), environment, config::given(matches))?;
    start_logging(&config)?;
    let metrics = PrometheusBuilder::new().install_recorder().context("cannot set up metrics")?;
    tokio::spawn(keep_up(metrics.clone()));
    // The address first: a coordinator that cannot listen should not touch the journal.
    let address = config.listen.address;
    let listener = TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address}; is another program using it? (listen.address)")
    })?;
    // Before anybody is told that it listens: whoever is, may tell it to stop at once.
    let signals = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let databases = Databases::new(&config.databases);
    databases.check().await.map_err(anyhow::Error::msg)?;
    let manager = start_manager(&config, &databases)?;
    databases.attach(&manager);
    let limits = ApiLimits {
        body_bytes_max: to_usize(config.limits.body_bytes_max),
        json_depth_max: to_usize(config.limits.json_depth_max),
        branches_max: to_usize(config.limits.branches_max),
    };
    let token = config.security.token.clone();
    let api = Api::new(manager.clone(), databases, config.options(), limits, token, metrics);
    announce(&listener)?;
    let failure = run(listener, api, &config, &manager, signals).await?;
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

fn start_manager(config: &Config, databases: &Databases) -> anyhow::Result<TransactionManager> {
    let manager = ManagerConfig {
        storage: Storage::Folder(config.data.folder.clone()),
        shards: u16::try_from(config.journal.shards).unwrap_or(u16::MAX),
        live_transactions_max: to_usize(config.limits.live_transactions_max),
        disk_reserve_bytes: config.data.disk_reserve_bytes,
        ..ManagerConfig::default()
    };
    let carriages = Carriages::over_http(HttpTransport::new(config.outbound()?));
    let transport = Arc::new(carriages.with(databases::SCHEME, Arc::new(databases.clone())));
    let started = TransactionManager::start(manager, transport);
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
    api: Api,
    config: &Config,
    manager: &TransactionManager,
    signals: (Signal, Signal),
) -> anyhow::Result<Option<String>> {
    let (mut terminate, mut interrupt) = signals;
    let (told, mut failed) = tokio::sync::watch::channel(None);
    let watched = manager.clone();
    let shutdown = async move {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("told to stop; finishing what is under way"),
            _ = interrupt.recv() => tracing::info!("interrupted; finishing what is under way"),
            message = watched.failed() => {
                told.send_replace(Some(message));
            }
        }
    };
    inbound::serve(listener, api.router(), config.inbound(), shutdown).await?;
    let failure = failed.borrow_and_update().clone();
    let patience = if failure.is_some() { 0 } else { config.limits.stop_timeout_ms };
    manager.stop(Duration::from_millis(patience)).await;
    Ok(failure)
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

fn to_usize(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
