//! Decides which settings there are: one table that drives the file, the environment, the flags,
//! the help and the example. What the values mean together is checked in the parent module.

use std::path::PathBuf;

use unanimity_core::{BRANCHES_MAX, TIMEOUT_MS_MAX};

use super::{Config, LogFormat, Secret};

/// One setting.
pub struct Key {
    /// Its section in the file.
    pub section: &'static str,
    /// Its name in the section; a number's unit is in its name.
    pub name: &'static str,
    /// Its name as a flag and in the environment: `data_folder` is `--data-folder` and
    /// `UNANIMITY_DATA_FOLDER`.
    pub word: &'static str,
    /// What it is for, in one sentence or two.
    pub doc: &'static str,
    /// What it takes and where it goes.
    pub(super) kind: Kind,
}

/// What a setting takes, and the field that it sets.
pub(super) enum Kind {
    /// A whole number from the first to the second.
    Number(u64, u64, fn(&mut Config) -> &mut u64),
    /// An address and port.
    Address(fn(&mut Config) -> &mut std::net::SocketAddr),
    /// Any text; a level filter is checked when it is used.
    Text(fn(&mut Config) -> &mut String),
    /// A folder.
    Folder(fn(&mut Config) -> &mut PathBuf),
    /// Text that is never shown.
    Secret(fn(&mut Config) -> &mut Option<Secret>),
    /// A file that may be absent.
    File(fn(&mut Config) -> &mut Option<PathBuf>),
    /// Texts: an array in the file, separated by commas elsewhere.
    List(fn(&mut Config) -> &mut Vec<String>),
    /// `text` or `json`.
    Format(fn(&mut Config) -> &mut LogFormat),
}

const fn key(
    section: &'static str,
    name: &'static str,
    word: &'static str,
    kind: Kind,
    doc: &'static str,
) -> Key {
    Key { section, name, word, doc, kind }
}

/// A time in milliseconds; up to 30 days, as the core allows.
const fn time(
    section: &'static str,
    name: &'static str,
    least: u64,
    field: fn(&mut Config) -> &mut u64,
    doc: &'static str,
) -> Key {
    key(section, name, name, Kind::Number(least, TIMEOUT_MS_MAX, field), doc)
}

/// A number of things.
const fn count(
    section: &'static str,
    name: &'static str,
    limits: (u64, u64),
    field: fn(&mut Config) -> &mut u64,
    doc: &'static str,
) -> Key {
    key(section, name, name, Kind::Number(limits.0, limits.1, field), doc)
}

/// Every setting, in the order of the example file.
#[rustfmt::skip] // one setting, one paragraph
pub const KEYS: &[Key] = &[
    key("listen", "address", "listen_address", Kind::Address(|c| &mut c.listen.address),
        "Where the coordinator listens. An address that other machines can reach needs a token."),
    key("security", "token", "token", Kind::Secret(|c| &mut c.security.token),
        "What clients must send as Authorization: Bearer TOKEN, 16 characters or more. Better in \
        token_file or in the environment: others can see a process's flags."),
    key("security", "token_file", "token_file", Kind::File(|c| &mut c.security.token_file),
        "A file that holds the token and nothing else."),
    key("data", "folder", "data_folder", Kind::Folder(|c| &mut c.data.folder),
        "Where the journal and the history are kept. One coordinator at a time may use it."),
    count("data", "disk_reserve_bytes", (0, 1 << 50), |c| &mut c.data.disk_reserve_bytes,
        "With less room than this on the folder's disk nothing new is begun, and what is live can \
        end. 0: no such limit."),
    key("participants", "allow", "participants_allow", Kind::List(|c| &mut c.participants.allow),
        "Which participants may be called: loopback, private, public, networks such as \
        10.1.0.0/16, addresses, names such as accounts:8080 or *.example.org."),
    count("participants", "connections_per_participant_max", (1, 10_000),
        |c| &mut c.participants.connections_per_participant_max,
        "The most connections to one participant, in use and idle together."),
    count("participants", "batch_calls_max", (1, 10_000),
        |c| &mut c.participants.batch_calls_max,
        "The most calls in one request to a participant that offers to take several. 1: each call \
        is a request of its own."),
    count("participants", "calls_in_flight_max", (1, 1_000_000),
        |c| &mut c.participants.calls_in_flight_max,
        "The most calls that are under way to one participant in such requests; others wait."),
    count("participants", "calls_per_stream_max", (1, 1_000_000),
        |c| &mut c.participants.calls_per_stream_max,
        "The most calls on one participant stream that are sent and not answered."),
    count("participants", "queue_per_stream_max", (1, 10_000_000),
        |c| &mut c.participants.queue_per_stream_max,
        "The most calls that wait for one participant stream; more are not sent, and tried again."),
    time("participants", "connect_timeout_ms", 1, |c| &mut c.participants.connect_timeout_ms,
        "Within this time a participant's name must resolve and a connection stand."),
    count("participants", "breaker_failures", (0, 1_000_000),
        |c| &mut c.participants.breaker_failures,
        "After so many calls in a row without an answer a participant's calls are held back, and \
        it is only probed. 0: never."),
    time("participants", "breaker_probe_ms", 1, |c| &mut c.participants.breaker_probe_ms,
        "The longest time between two probes of such a participant; the first come sooner."),
    count("participants", "breaker_drain_per_second", (1, 1_000_000),
        |c| &mut c.participants.breaker_drain_per_second,
        "The most calls a second to a participant that is back, until nothing has to be held back \
        any more. Best above what it is normally asked."),
    time("timeouts", "prepare_timeout_ms", 1, |c| &mut c.timeouts.prepare_timeout_ms,
        "From the beginning until every prepare has voted; then the transaction rolls back."),
    time("timeouts", "execute_timeout_ms", 1, |c| &mut c.timeouts.execute_timeout_ms,
        "From the first execute until every compensable branch has executed; then the transaction \
        rolls back."),
    time("timeouts", "open_timeout_ms", 1, |c| &mut c.timeouts.open_timeout_ms,
        "How long an interactive transaction waits for its initiator, from the beginning; then it \
        rolls back, or the initiator's database is asked."),
    time("timeouts", "timeout_ms", 0, |c| &mut c.timeouts.timeout_ms,
        "From the beginning until everything is complete. Undecided by then, it rolls back; \
        decided, it is shown as overdue. 0: no such limit."),
    time("timeouts", "attempt_timeout_ms", 1, |c| &mut c.timeouts.attempt_timeout_ms,
        "How long one call after the decision may take; before it, what is left of the phase."),
    time("retry", "retry_delay_ms", 1, |c| &mut c.retry.retry_delay_ms,
        "The first delay before a call that got no decisive answer is tried again; it doubles \
        each time."),
    time("retry", "retry_delay_max_ms", 1, |c| &mut c.retry.retry_delay_max_ms,
        "The longest such delay while the branch is not parked."),
    count("retry", "park_after_attempts", (1, 65_535), |c| &mut c.retry.park_after_attempts,
        "After so many failures in a row a branch is parked: visible, alerting, tried rarely."),
    time("retry", "parked_retry_delay_ms", 1, |c| &mut c.retry.parked_retry_delay_ms,
        "The delay between attempts while a branch is parked."),
    count("limits", "live_transactions_max", (1, 10_000_000),
        |c| &mut c.limits.live_transactions_max,
        "The most transactions that may be live at once; more are refused with 429."),
    time("limits", "queue_delay_target_ms", 0, |c| &mut c.limits.queue_delay_target_ms,
        "So long a beginning may wait for its turn, and a call for a connection, or for room among \
        the calls under way. When all have waited longer for four times that, so many are refused \
        with 429 that the other beginnings wait for about a quarter of that, and the other calls \
        for one and a half times as long. 0: none is."),
    count("limits", "panics_per_transaction_max", (1, 1_000),
        |c| &mut c.limits.panics_per_transaction_max,
        "A transaction that the program itself broke on so often, over restarts, is set aside \
        until somebody has it taken up again, and the others go on."),
    count("limits", "body_bytes_max", (1_024, 256 * 1_024 * 1_024),
        |c| &mut c.limits.body_bytes_max,
        "The most bytes of a request's body."),
    count("limits", "branches_max", (1, BRANCHES_MAX as u64), |c| &mut c.limits.branches_max,
        "The most branches of one transaction."),
    count("limits", "json_depth_max", (8, 100), |c| &mut c.limits.json_depth_max,
        "How deeply a request's JSON may be nested."),
    count("limits", "connections_max", (1, 1_000_000), |c| &mut c.limits.connections_max,
        "The most connections from clients. When another comes, those that have asked nothing for \
        longest are closed."),
    time("limits", "header_timeout_ms", 1, |c| &mut c.limits.header_timeout_ms,
        "Within this time a request's headers must have come."),
    time("limits", "body_timeout_ms", 1, |c| &mut c.limits.body_timeout_ms,
        "Within this time after its headers a request's body must have come."),
    time("limits", "idle_timeout_ms", 1, |c| &mut c.limits.idle_timeout_ms,
        "After this time a connection is closed that carries no request, or whose client does not \
        take its answer."),
    time("limits", "stop_timeout_ms", 0, |c| &mut c.limits.stop_timeout_ms,
        "How long requests that are under way may take when the program is told to stop."),
    count("process", "worker_threads", (0, 1_024), |c| &mut c.process.worker_threads,
        "How many threads carry out what is to be done, beside those that write the journal and \
        the history. Where participants share the machine, fewer than cores are faster. 0: one \
        for each core."),
    count("journal", "shards", (1, unanimity::SHARDS_MAX as u64), |c| &mut c.journal.shards,
        "How many shards the journal has. It cannot be changed once the data folder exists."),
    key("log", "level", "log_level", Kind::Text(|c| &mut c.log.level),
        "What is logged: error, warn, info, debug or trace, or a filter such as info,hyper=warn."),
    key("log", "format", "log_format", Kind::Format(|c| &mut c.log.format),
        "How it is logged: text, or json with one object per line."),
];

impl Key {
    /// The name in the file, with its section: `timeouts.prepare_timeout_ms`.
    #[must_use]
    pub fn path(&self) -> String {
        format!("{}.{}", self.section, self.name)
    }

    /// The name in the environment: `UNANIMITY_PREPARE_TIMEOUT_MS`.
    #[must_use]
    pub fn env(&self) -> String {
        format!("{}{}", super::ENV_PREFIX, self.word.to_ascii_uppercase())
    }

    /// The name as a flag: `prepare-timeout-ms`, without the dashes before it.
    #[must_use]
    pub fn flag(&self) -> String {
        self.word.replace('_', "-")
    }

    /// What it takes, in words for a message.
    pub(super) fn expectation(&self) -> String {
        match self.kind {
            Kind::Number(least, most, _) => format!("a whole number from {least} to {most}"),
            Kind::Address(_) => "an address and port such as 127.0.0.1:7171".into(),
            Kind::Text(_) | Kind::Secret(_) => "a text".into(),
            Kind::Folder(_) => "the path of a folder".into(),
            Kind::File(_) => "the path of a file".into(),
            Kind::List(_) => "a list of texts".into(),
            Kind::Format(_) => "text or json".into(),
        }
    }

    /// What stands for a value in the help.
    pub(super) const fn placeholder(&self) -> &'static str {
        match self.kind {
            Kind::Number(..) => "NUMBER",
            Kind::Address(_) => "ADDRESS:PORT",
            Kind::Text(_) => "TEXT",
            Kind::Secret(_) => "SECRET",
            Kind::Folder(_) => "FOLDER",
            Kind::File(_) => "FILE",
            Kind::List(_) => "LIST",
            Kind::Format(_) => "text|json",
        }
    }

    /// The value in a configuration as the file would say it; `None` if there is none, or it is
    /// secret.
    pub(super) fn shown(&self, config: &mut Config) -> Option<toml::Value> {
        match self.kind {
            Kind::Number(_, _, field) => {
                Some(toml::Value::Integer(i64::try_from(*field(config)).unwrap_or(i64::MAX)))
            }
            Kind::Address(field) => Some(field(config).to_string().into()),
            Kind::Text(field) => Some(field(config).clone().into()),
            Kind::Folder(field) => Some(field(config).display().to_string().into()),
            Kind::Secret(_) => None,
            Kind::File(field) => {
                field(config).as_ref().map(|path| path.display().to_string().into())
            }
            Kind::List(field) => Some(field(config).clone().into()),
            Kind::Format(field) => Some(field(config).as_str().into()),
        }
    }
}
