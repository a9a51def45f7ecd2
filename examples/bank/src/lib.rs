//! An account service that takes part in transactions, and the example of how to build one: what
//! the bank does is in `service`, in `keyed` where it locks accounts rather than reserving from
//! them, and in `ledger` where its accounts lie in a database server; how it misbehaves on demand
//! is in `faults`, what it tells over HTTP in `http`. This file decides how it is configured,
//! started and stopped.
//!
//! It has no access control, so it listens on loopback addresses only.

mod books;
mod faults;
mod http;
mod journal;
mod keyed;
mod ledger;
mod listen;
mod service;
mod stream;

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use unanimity_sdk::inquiry::{Inquiry, InquiryOptions};
use unanimity_sdk::mariadb::MariaDbParticipant;
use unanimity_sdk::postgres::PostgresParticipant;
use unanimity_sdk::prune::{self, PruneOptions, Pruner};
use unanimity_sdk::resource::{Concurrency, ResourceOptions, WaitOrder};
use unanimity_sdk::sql::{SqlOpenError, SqlOptions};
use unanimity_sdk::stream::DialOptions;
use unanimity_sdk::xa::mariadb::MariaDbXaParticipant;
use unanimity_sdk::xa::postgres::PostgresXaParticipant;
use unanimity_sdk::{
    Client, Doubting, MomentHook, ResourceParticipant, SqliteOptions, SqliteParticipant, inquiry,
};

use self::books::Accounts;
pub use self::books::Books;

pub use faults::{Fault, FaultSpec, Faults, Message};
pub use http::{AccountPage, AccountView, BranchLine, FaultsView, Total};
pub use journal::JournalLine;
pub use keyed::KeyedAccounts;
pub use service::{AMOUNT_MAX_CENTS, AccountService, BALANCE_MAX_CENTS, Payload};

use self::stream::{Misbehaving, keep_dialing};

/// How many branches may wait for locked accounts: as many as can be connected.
const WAITERS_MAX: usize = 1_024;

/// How a bank keeps transfers out of each other's way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum AccountsBy {
    /// A debit reserves its amount; many branches may use one account at a time.
    #[default]
    Reservation,
    /// A branch locks its account; older transactions wait for it, younger ones are refused.
    Locking,
    /// A branch locks its account; younger transactions wait for it, older ones are refused.
    Queueing,
    /// A branch locks its account; whoever meets the lock is refused.
    Optimistic,
}

impl std::fmt::Display for AccountsBy {
    /// The word of the command line.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Reservation => "reservation",
            Self::Locking => "locking",
            Self::Queueing => "queueing",
            Self::Optimistic => "optimistic",
        })
    }
}

/// How a bank is started. [`BankArguments::new`] has what the command line has.
#[derive(Clone, Debug, clap::Args)]
pub struct BankArguments {
    /// The bank's name; its accounts are NAME-1, NAME-2 and so on.
    #[arg(long, default_value = "A")]
    pub name: String,
    /// Where to listen; port 0 takes a free one. Loopback only.
    #[arg(long, default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
    /// The SQLite file, which is created if there is none; or the URL of a PostgreSQL
    /// (`postgres://...`) or a MariaDB or MySQL (`mysql://...`) with an empty database.
    #[arg(long, value_name = "PATH|URL", env = "BANK_DATABASE", hide_env_values = true)]
    pub database: PathBuf,
    /// Lets the database itself prepare the branches, rather than reserve. With an URL only.
    #[arg(long)]
    pub xa: bool,
    /// The most connections to the database. With an URL only.
    #[arg(long, default_value_t = 16)]
    pub connections_max: usize,
    /// How long a branch waits for a row that another one has locked, in milliseconds. With an URL
    /// only.
    #[arg(long, default_value_t = 5_000)]
    pub lock_timeout_ms: u64,
    /// How many accounts a new file begins with.
    #[arg(long, default_value_t = 1_000)]
    pub accounts: u32,
    /// The balance that each account of a new file begins with, in cents.
    #[arg(long, default_value_t = 100_000)]
    pub balance: i64,
    /// How transfers are kept out of each other's way.
    #[arg(long, value_enum, default_value_t)]
    pub accounts_by: AccountsBy,
    /// Keeps a journal of what every branch did, for audits: `GET /journal`.
    #[arg(long)]
    pub journal: bool,
    /// How long a branch waits for a locked account at most, in milliseconds.
    #[arg(long, default_value_t = 1_000)]
    pub wait_max_ms: u64,
    /// The coordinator's base URL, to be asked about branches in doubt after a restart.
    #[arg(long)]
    pub coordinator: Option<String>,
    /// The coordinator's token, if it has one.
    #[arg(long, env = "UNANIMITY_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Dials the coordinator and takes part over a stream, as `stream:bank-NAME`.
    #[arg(long, requires = "coordinator")]
    pub dial: bool,
    /// How long a branch may stay in doubt before the coordinator is asked, in milliseconds.
    #[arg(long, default_value_t = 30_000)]
    pub in_doubt_after_ms: u64,
    /// Forgets branches whose transaction the coordinator says is over, so many milliseconds after
    /// their last change; without it, none. Needs --coordinator.
    #[arg(long)]
    pub guard_retention_ms: Option<u64>,
    /// Faults by probability, such as `vote_no=0.02,error_before=0.05,delay=0.01:6000,crash=0.001`.
    #[arg(long, default_value = "")]
    pub faults: FaultSpec,
    /// What the faults are drawn from: the same seed and message meet the same fault.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

impl BankArguments {
    /// What the command line says when it says no more than where the accounts lie.
    #[must_use]
    pub fn new(name: &str, database: impl Into<PathBuf>) -> Self {
        Self {
            name: name.to_owned(),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            database: database.into(),
            xa: false,
            connections_max: 16,
            lock_timeout_ms: 5_000,
            accounts: 1_000,
            balance: 100_000,
            accounts_by: AccountsBy::default(),
            journal: false,
            wait_max_ms: 1_000,
            coordinator: None,
            token: None,
            dial: false,
            in_doubt_after_ms: 30_000,
            guard_retention_ms: None,
            faults: FaultSpec::default(),
            seed: 1,
        }
    }
}

/// A bank that is set up and listens.
#[derive(Debug)]
pub struct Bank {
    name: String,
    listener: TcpListener,
    books: Books,
    faults: Arc<Faults>,
    inquiry: Option<Inquiry>,
    pruner: Option<Pruner>,
    dial: Option<DialOptions>,
}

impl Bank {
    /// Opens the file, binds the address and begins to ask about branches in doubt.
    ///
    /// # Errors
    /// A sentence that names the file, the address or the URL at fault.
    pub async fn start(arguments: BankArguments) -> anyhow::Result<Self> {
        let address = arguments.listen;
        if !address.ip().is_loopback() {
            bail!("{address} is not a loopback address, and this example has no access control");
        }
        let faults = Arc::new(Faults::new(arguments.seed, arguments.faults.clone()));
        let books = open(&arguments, &faults).await?;
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address}"))?;
        let inquiry = inquire(&arguments, &books.participant)?;
        let pruner = prune(&arguments, &books)?;
        let dial = arguments.coordinator.as_deref().filter(|_| arguments.dial);
        let dial = dial.map(|coordinator| DialOptions {
            token: arguments.token.clone(),
            ..DialOptions::new(coordinator, &format!("bank-{}", arguments.name))
        });
        Ok(Self { name: arguments.name, listener, books, faults, inquiry, pruner, dial })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// If the operating system does not say.
    pub fn address(&self) -> anyhow::Result<SocketAddr> {
        Ok(self.listener.local_addr()?)
    }

    /// The participant behind it, and its accounts, for reading.
    #[must_use]
    pub const fn books(&self) -> &Books {
        &self.books
    }

    /// Serves until `stop` is ready, and then until the requests under way are answered.
    pub async fn run_until(self, stop: impl Future<Output = ()>) {
        let participant = Arc::clone(&self.books.participant);
        let on_streams = Arc::new(Misbehaving::new(participant, Arc::clone(&self.faults)));
        let mut dialing = tokio::task::JoinSet::new();
        if let Some(dial) = self.dial {
            dialing.spawn(keep_dialing(dial, Arc::clone(&on_streams)));
        }
        let router = http::router(self.books, self.faults, on_streams);
        listen::serve(self.listener, router, stop).await;
        drop((self.inquiry, self.pruner));
    }
}

/// Runs a bank until SIGTERM or SIGINT. Prints one line with its address once it listens, for a
/// parent process to read.
///
/// # Errors
/// As [`Bank::start`].
pub async fn serve(arguments: BankArguments) -> anyhow::Result<()> {
    let bank = Bank::start(arguments).await?;
    let (mut terminate, mut interrupt) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "bank {} listening on http://{}", bank.name, bank.address()?)?;
    stdout.flush()?;
    drop(stdout);
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    bank.run_until(stop).await;
    Ok(())
}

/// Opens the accounts, wherever they lie.
///
/// # Errors
/// A sentence that names the file or the URL at fault, without its password.
pub async fn open(arguments: &BankArguments, faults: &Arc<Faults>) -> anyhow::Result<Books> {
    let service = AccountService::new(
        &arguments.name,
        arguments.accounts,
        arguments.balance,
        Arc::clone(faults),
    )?;
    let url = arguments.database.to_str().filter(|text| text.contains("://"));
    match url {
        Some(url) => open_server(arguments, url, service, faults).await,
        None if arguments.xa => bail!("--xa needs a database that can prepare: give its URL"),
        None => open_file(arguments, service.with_journal(arguments.journal), faults),
    }
}

/// Crashes around a local commit, if a message was drawn to.
fn crash(faults: &Arc<Faults>) -> Option<MomentHook> {
    let crashing = Arc::clone(faults);
    Some(Arc::new(move |moment| {
        crashing.crash_if_armed(moment);
        Ok(())
    }))
}

async fn open_server(
    arguments: &BankArguments,
    url: &str,
    service: AccountService,
    faults: &Arc<Faults>,
) -> anyhow::Result<Books> {
    if arguments.journal || arguments.accounts_by != AccountsBy::Reservation {
        bail!("a journal, and accounts that are locked, there are in a SQLite file only");
    }
    let options = SqlOptions {
        connections_max: arguments.connections_max,
        lock_timeout_ms: arguments.lock_timeout_ms,
        moment_hook: crash(faults),
        ..SqlOptions::default()
    };
    let (scheme, _) = url.split_once("://").unwrap_or((url, ""));
    let unusable = |error: SqlOpenError| {
        anyhow::anyhow!("cannot use the {scheme} database: {error} (code {})", error.code())
    };
    let name = format!("bank {}", arguments.name);
    let mysql = url.replacen("mariadb://", "mysql://", 1);
    Ok(match (scheme, arguments.xa) {
        ("postgres" | "postgresql", false) => {
            let opened = PostgresParticipant::open_with(url, service, options).await;
            let opened = Arc::new(opened.map_err(unusable)?);
            Books { participant: Arc::clone(&opened) as _, accounts: Accounts::Postgres(opened) }
        }
        ("postgres" | "postgresql", true) => {
            let opened = PostgresXaParticipant::open(url, &name, service, options).await;
            let opened = Arc::new(opened.map_err(unusable)?);
            Books { participant: Arc::clone(&opened) as _, accounts: Accounts::PostgresXa(opened) }
        }
        ("mysql" | "mariadb", false) => {
            let opened = MariaDbParticipant::open_with(&mysql, service, options).await;
            let opened = Arc::new(opened.map_err(unusable)?);
            Books { participant: Arc::clone(&opened) as _, accounts: Accounts::MariaDb(opened) }
        }
        ("mysql" | "mariadb", true) => {
            let opened = MariaDbXaParticipant::open(&mysql, &name, service, options).await;
            let opened = Arc::new(opened.map_err(unusable)?);
            Books { participant: Arc::clone(&opened) as _, accounts: Accounts::MariaDbXa(opened) }
        }
        _ => bail!("no database is reached by {scheme}://; there are postgres:// and mysql://"),
    })
}

fn open_file(
    arguments: &BankArguments,
    service: AccountService,
    faults: &Arc<Faults>,
) -> anyhow::Result<Books> {
    let options = SqliteOptions { moment_hook: crash(faults), ..SqliteOptions::default() };
    let path = &arguments.database;
    let unusable = || format!("cannot use {} as the bank's file", path.display());
    let (wait_max_ms, waiters_max) = (arguments.wait_max_ms, WAITERS_MAX);
    let locking = |order| Concurrency::Locking { wait_max_ms, waiters_max, order };
    let concurrency = match arguments.accounts_by {
        AccountsBy::Reservation => {
            let file = SqliteParticipant::open_with(path, service, options);
            let file = Arc::new(file.with_context(unusable)?);
            return Ok(Books {
                participant: Arc::clone(&file) as _,
                accounts: Accounts::Sqlite(file),
            });
        }
        AccountsBy::Locking => locking(WaitOrder::OlderWaits),
        AccountsBy::Queueing => locking(WaitOrder::YoungerWaits),
        AccountsBy::Optimistic => Concurrency::Optimistic,
    };
    let options = ResourceOptions { sqlite: options, ..ResourceOptions::new(concurrency) };
    let keyed = KeyedAccounts::new(service);
    let participant = ResourceParticipant::open_with(path, keyed, options);
    let participant = participant.with_context(unusable)?;
    let accounts = Accounts::Keyed(participant.file());
    Ok(Books { participant: Arc::new(participant), accounts })
}

fn inquire(
    arguments: &BankArguments,
    participant: &Arc<dyn Doubting>,
) -> anyhow::Result<Option<Inquiry>> {
    let Some(coordinator) = &arguments.coordinator else { return Ok(None) };
    let client = Client::new(coordinator, arguments.token.as_deref())?;
    let options = InquiryOptions {
        in_doubt_after_ms: arguments.in_doubt_after_ms,
        ..InquiryOptions::default()
    };
    let participant = Arc::clone(participant);
    Ok(Some(inquiry::spawn(participant, client, options)))
}

fn prune(arguments: &BankArguments, books: &Books) -> anyhow::Result<Option<Pruner>> {
    let Some(guard_retention_ms) = arguments.guard_retention_ms else { return Ok(None) };
    let Some(coordinator) = &arguments.coordinator else {
        bail!("nothing is forgotten without a coordinator that says what is over");
    };
    let client = Client::new(coordinator, arguments.token.as_deref())?;
    let options = PruneOptions { guard_retention_ms, ..PruneOptions::default() };
    Ok(Some(prune::spawn(books.guard(), client, options)))
}
