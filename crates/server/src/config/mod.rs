//! Decides how the program is configured. One table of settings ([`KEYS`]) is read from one TOML
//! file, from the environment (`UNANIMITY_...`) and from flags; flags win over the environment,
//! that over the file, and that over the defaults. Unknown names are errors, and every value is
//! checked here, so that the rest of the program need not ask again.

pub(crate) mod databases;
mod keys;
mod read;
mod secret;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

pub use self::databases::{Allowed, DatabaseConfig, Dialect};
pub use self::keys::{KEYS, Key};
pub use self::read::ConfigError;
pub use self::secret::Secret;
use unanimity::ManagerConfig;

use crate::inbound::InboundLimits;
use crate::outbound::{BreakerConfig, OutboundConfig, Policy};
use crate::streams::StreamConfig;

/// What every setting's name in the environment begins with.
pub const ENV_PREFIX: &str = "UNANIMITY_";
/// Names in the environment that begin like settings and are none: they are for the commands.
pub const ENV_NOT_SETTINGS: &[&str] = &[
    "UNANIMITY_CONFIG",
    "UNANIMITY_URL",
    "UNANIMITY_DATABASE_URL",
    #[cfg(feature = "crash-points")]
    "UNANIMITY_CRASH_AT",
    #[cfg(feature = "crash-points")]
    "UNANIMITY_PANIC_AT",
];
/// The shortest token that is accepted, in characters.
pub const TOKEN_CHARACTERS_MIN: usize = 16;

/// The whole configuration, checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Where it listens.
    pub listen: Listen,
    /// Who may use it.
    pub security: Security,
    /// Where it keeps its data.
    pub data: Data,
    /// Whom it may call.
    pub participants: Participants,
    /// How long a transaction waits for what.
    pub timeouts: Timeouts,
    /// When a call is tried again.
    pub retry: Retry,
    /// How much is accepted.
    pub limits: Limits,
    /// What the process takes for itself.
    pub process: Process,
    /// How the journal is laid out.
    pub journal: Journal,
    /// What is logged, and how.
    pub log: Log,
    /// The databases that may take part, by name; only the file can name them.
    pub databases: BTreeMap<String, DatabaseConfig>,
}

/// Where the coordinator listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// Address and port; port 0 takes a free one.
    pub address: SocketAddr,
}

/// Who may use the coordinator.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Security {
    /// The bearer token of every client, from `token` or from `token_file`; none: no token is
    /// asked for.
    pub token: Option<Secret>,
    /// Where the token was read from.
    pub token_file: Option<PathBuf>,
}

/// Where data is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Data {
    /// The folder of the journal and the history.
    pub folder: PathBuf,
    /// With less room on its disk nothing new is begun; 0: no such limit.
    pub disk_reserve_bytes: u64,
}

/// Whom the coordinator may call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Participants {
    /// The entries of the policy, as they were written.
    pub allow: Vec<String>,
    /// The most connections to one participant.
    pub connections_per_participant_max: u64,
    /// The most calls in one request; 1: each call is a request of its own.
    pub batch_calls_max: u64,
    /// The most calls under way to one participant in requests of several.
    pub calls_in_flight_max: u64,
    /// The most calls on one stream that are sent and not answered.
    pub calls_per_stream_max: u64,
    /// The most calls that wait for one stream.
    pub queue_per_stream_max: u64,
    /// For resolving a name and connecting, in milliseconds.
    pub connect_timeout_ms: u64,
    /// After so many calls in a row without an answer calls are held back; 0: never.
    pub breaker_failures: u64,
    /// Between two probes, in milliseconds.
    pub breaker_probe_ms: u64,
    /// The most calls a second to a participant that is back.
    pub breaker_drain_per_second: u64,
}

/// How long a transaction waits, unless it says otherwise; all in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Until every prepare has voted.
    pub prepare_timeout_ms: u64,
    /// Until every compensable branch has executed.
    pub execute_timeout_ms: u64,
    /// Until an interactive transaction's initiator counts as gone.
    pub open_timeout_ms: u64,
    /// Until everything is complete; 0: no limit.
    pub timeout_ms: u64,
    /// For one call to a participant.
    pub attempt_timeout_ms: u64,
}

/// When a call is tried again; delays in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// The first delay.
    pub retry_delay_ms: u64,
    /// The longest delay.
    pub retry_delay_max_ms: u64,
    /// After so many failures in a row a branch is parked; fits `u16`.
    pub park_after_attempts: u64,
    /// The delay while parked.
    pub parked_retry_delay_ms: u64,
}

/// How much is accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most live transactions.
    pub live_transactions_max: u64,
    /// How long a beginning may wait for its turn, and a call for a connection; 0: for ever.
    pub queue_delay_target_ms: u64,
    /// So often the program may break on a transaction before it is set aside.
    pub panics_per_transaction_max: u64,
    /// The most bytes of a request's body.
    pub body_bytes_max: u64,
    /// The most branches of one transaction.
    pub branches_max: u64,
    /// How deeply JSON may be nested.
    pub json_depth_max: u64,
    /// The most connections from clients.
    pub connections_max: u64,
    /// For a request's headers, in milliseconds.
    pub header_timeout_ms: u64,
    /// For a request's body, in milliseconds.
    pub body_timeout_ms: u64,
    /// For a connection without a request, in milliseconds.
    pub idle_timeout_ms: u64,
    /// For requests under way when the program is told to stop, in milliseconds.
    pub stop_timeout_ms: u64,
}

/// What the process takes for itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// Threads that run tasks; 0: one for each core.
    pub worker_threads: u64,
}

/// How the journal is laid out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Journal {
    /// The number of shards; fits `u16`.
    pub shards: u64,
}

/// What is logged, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// A level or a filter of `tracing-subscriber`.
    pub level: String,
    /// Text or JSON.
    pub format: LogFormat,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For programs: one object per line.
    Json,
}

impl LogFormat {
    /// The word in the configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

impl Default for Listen {
    fn default() -> Self {
        Self { address: SocketAddr::from(([127, 0, 0, 1], 7171)) }
    }
}

impl Default for Data {
    fn default() -> Self {
        Self { folder: "unanimity-data".into(), disk_reserve_bytes: 64 << 20 }
    }
}

impl Default for Participants {
    fn default() -> Self {
        let (outbound, streams) = (OutboundConfig::default(), StreamConfig::default());
        Self {
            allow: vec!["loopback".into()],
            connections_per_participant_max: outbound.connections_per_participant_max as u64,
            batch_calls_max: outbound.batch_calls_max as u64,
            calls_in_flight_max: outbound.calls_in_flight_max as u64,
            calls_per_stream_max: streams.calls_per_stream_max as u64,
            queue_per_stream_max: streams.queue_per_stream_max as u64,
            connect_timeout_ms: outbound.connect_timeout_ms,
            breaker_failures: outbound.breaker.failures,
            breaker_probe_ms: outbound.breaker.probe_ms,
            breaker_drain_per_second: outbound.breaker.drain_per_second,
        }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        let options = unanimity_core::Options::default();
        Self {
            prepare_timeout_ms: options.prepare_timeout_ms,
            execute_timeout_ms: options.execute_timeout_ms,
            open_timeout_ms: options.open_timeout_ms,
            timeout_ms: options.timeout_ms,
            attempt_timeout_ms: options.attempt_timeout_ms,
        }
    }
}

impl Default for Retry {
    fn default() -> Self {
        let retry = unanimity_core::RetryPolicy::default();
        Self {
            retry_delay_ms: retry.delay_ms,
            retry_delay_max_ms: retry.delay_max_ms,
            park_after_attempts: retry.park_after_attempts.into(),
            parked_retry_delay_ms: retry.parked_delay_ms,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        let inbound = InboundLimits::default();
        Self {
            live_transactions_max: 100_000,
            queue_delay_target_ms: 100,
            panics_per_transaction_max: ManagerConfig::default().panics_per_transaction_max.into(),
            body_bytes_max: 1024 * 1024,
            branches_max: unanimity_core::BRANCHES_MAX as u64,
            json_depth_max: 32,
            connections_max: inbound.connections_max as u64,
            header_timeout_ms: inbound.header_timeout_ms,
            body_timeout_ms: inbound.body_timeout_ms,
            idle_timeout_ms: inbound.idle_timeout_ms,
            stop_timeout_ms: inbound.stop_timeout_ms,
        }
    }
}

impl Default for Journal {
    fn default() -> Self {
        Self { shards: 1 }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".into(), format: LogFormat::Text }
    }
}

impl Config {
    /// Reads the configuration: the file if one is given, then the environment, then the flags as
    /// [`given`] hands them out (name without dashes before it, value).
    ///
    /// # Errors
    /// The first thing wrong, with the place where it was said and what to do about it.
    pub fn load(
        file: Option<&Path>,
        env: impl Iterator<Item = (String, String)>,
        flags: Vec<(String, String)>,
    ) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        if let Some(path) = file {
            config.read_file(path)?;
        }
        config.read_env(env)?;
        config.read_flags(flags)?;
        config.finish()?;
        Ok(config)
    }

    /// The configuration that a file of this text makes alone.
    ///
    /// # Errors
    /// The first thing wrong, with its place.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        config.read_text("unanimity.toml", text)?;
        config.finish()?;
        Ok(config)
    }

    /// What a transaction waits for unless it says otherwise.
    #[must_use]
    pub fn options(&self) -> unanimity_core::Options {
        unanimity_core::Options {
            prepare_timeout_ms: self.timeouts.prepare_timeout_ms,
            execute_timeout_ms: self.timeouts.execute_timeout_ms,
            open_timeout_ms: self.timeouts.open_timeout_ms,
            one_phase: true,
            timeout_ms: self.timeouts.timeout_ms,
            attempt_timeout_ms: self.timeouts.attempt_timeout_ms,
            retry: unanimity_core::RetryPolicy {
                delay_ms: self.retry.retry_delay_ms,
                delay_max_ms: self.retry.retry_delay_max_ms,
                park_after_attempts: u16::try_from(self.retry.park_after_attempts)
                    .unwrap_or(u16::MAX),
                parked_delay_ms: self.retry.parked_retry_delay_ms,
            },
        }
    }

    /// How participants are called.
    ///
    /// # Errors
    /// An entry of `participants.allow` that cannot be understood; [`Config::load`] has seen to
    /// that.
    pub fn outbound(&self) -> Result<OutboundConfig, ConfigError> {
        let policy = Policy::parse(self.participants.allow.iter().map(String::as_str))
            .map_err(|problem| ConfigError::new("participants.allow", problem))?;
        Ok(OutboundConfig {
            policy,
            connections_per_participant_max: to_usize(
                self.participants.connections_per_participant_max,
            ),
            connect_timeout_ms: self.participants.connect_timeout_ms,
            queue_delay_target_ms: self.limits.queue_delay_target_ms,
            batch_calls_max: to_usize(self.participants.batch_calls_max),
            calls_in_flight_max: to_usize(self.participants.calls_in_flight_max),
            breaker: BreakerConfig {
                failures: self.participants.breaker_failures,
                probe_ms: self.participants.breaker_probe_ms,
                drain_per_second: self.participants.breaker_drain_per_second,
            },
            ..OutboundConfig::default()
        })
    }

    /// How participants are called over streams.
    ///
    /// # Errors
    /// As [`Config::outbound`].
    pub fn streams(&self) -> Result<StreamConfig, ConfigError> {
        Ok(StreamConfig {
            policy: self.outbound()?.policy,
            connect_timeout_ms: self.participants.connect_timeout_ms,
            calls_per_stream_max: to_usize(self.participants.calls_per_stream_max),
            queue_per_stream_max: to_usize(self.participants.queue_per_stream_max),
            ..StreamConfig::default()
        })
    }

    /// What the listening side accepts.
    #[must_use]
    pub fn inbound(&self) -> InboundLimits {
        InboundLimits {
            connections_max: to_usize(self.limits.connections_max),
            header_timeout_ms: self.limits.header_timeout_ms,
            body_timeout_ms: self.limits.body_timeout_ms,
            idle_timeout_ms: self.limits.idle_timeout_ms,
            stop_timeout_ms: self.limits.stop_timeout_ms,
        }
    }

    /// A whole `unanimity.toml` that says the defaults.
    #[must_use]
    pub fn example() -> String {
        let mut defaults = Self::default();
        let mut text = String::from(
            "# The configuration of unanimity; what stands here is the default. Every\n\
             # setting can also be given in the environment and as a flag: flags win over\n\
             # the environment, and that over this file.\n",
        );
        let mut section = "";
        for key in KEYS {
            if key.section != section {
                section = key.section;
                text.push_str(&format!("\n[{section}]\n"));
            }
            text.push_str(&format!("# {}\n# --{} or {}\n", key.doc, key.flag(), key.env()));
            text.push_str(&match key.shown(&mut defaults) {
                Some(value) => format!("{} = {value}\n", key.name),
                None => format!("# {} = \"...\"\n", key.name),
            });
        }
        text
    }
}

/// The flags of `unanimity serve`: one for each setting, with its meaning and its default.
#[must_use]
pub fn flags() -> Vec<clap::Arg> {
    // clap keeps names for as long as the program runs.
    static NAMES: LazyLock<Vec<String>> = LazyLock::new(|| KEYS.iter().map(Key::flag).collect());
    let mut defaults = Config::default();
    KEYS.iter()
        .zip(NAMES.iter())
        .map(|(key, name)| {
            let default = key.shown(&mut defaults).map(|value| format!(" [default: {value}]"));
            let help = format!("{}{} [env: {}]", key.doc, default.unwrap_or_default(), key.env());
            clap::Arg::new(key.word)
                .long(name.as_str())
                .value_name(key.placeholder())
                .action(clap::ArgAction::Set)
                .allow_hyphen_values(true)
                .help_heading("Settings")
                .help(help)
        })
        .collect()
}

/// The settings that were given as flags, for [`Config::load`].
#[must_use]
pub fn given(matches: &clap::ArgMatches) -> Vec<(String, String)> {
    KEYS.iter()
        .filter_map(|key| {
            let value = matches.try_get_one::<String>(key.word).ok().flatten()?;
            Some((key.flag(), value.clone()))
        })
        .collect()
}

fn to_usize(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
