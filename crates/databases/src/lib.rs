//! Starts a PostgreSQL or a MariaDB of its own: an empty data folder, a free port on the loopback
//! interface, a user without privileges, a password nobody knows. It can be killed as a power cut
//! would, started again on the same folder and port, and is gone, folder and all, when its handle
//! is dropped or its owner dies. For tests and demos, never for data that anybody wants to keep.
//!
//! This file decides the life of one server; what the makes differ in is left to `make`.
//!
//! ```no_run
//! use unanimity_databases::{Database, DatabaseOptions, Make};
//!
//! let database = Database::start(Make::PostgreSql, &DatabaseOptions::default())?;
//! println!("{}", database.url());
//! database.kill();
//! database.start_again()?;
//! # Ok::<(), unanimity_databases::DatabaseError>(())
//! ```

#![forbid(unsafe_code)]

mod error;
mod folder;
mod make;
mod mariadb;
mod port;
mod postgresql;
mod process;
mod programs;
mod watchdog;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use self::error::DatabaseError;
pub use self::make::Make;
use self::make::{Plan, tail};
use self::watchdog::Watchdog;

/// The account that every server has; it may do everything.
pub const USER: &str = "unanimity";
/// The database that every server has, unless the options name others.
pub const DATABASE: &str = "unanimity";
/// How long a server is waited for when it stops in order, in milliseconds.
const STOP_TIMEOUT_MS: u64 = 60_000;
/// How long a killed server's last process may take to notice it, in milliseconds.
const LAST_PROCESS_MS: u64 = 10_000;
/// What PostgreSQL says of it.
const STILL_ENDING: &str = "pre-existing shared memory block";
/// How many ports are tried before a server counts as not starting.
const PORTS_TRIED_MAX: u32 = 5;

/// What a server is to be like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatabaseOptions {
    /// Where its folder is made; the system's folder for temporary files unless it is given.
    pub folder: Option<PathBuf>,
    /// The databases that are made at the first start. Plain words: they are not quoted with care.
    pub databases: Vec<String>,
    /// The most connections at once.
    pub connections_max: u32,
    /// The most prepared transactions at once; 0 switches them off. PostgreSQL only: MariaDB has no
    /// such limit.
    pub prepared_transactions_max: u32,
    /// Whether a commit waits until the disk has it.
    pub fsync: bool,
    /// How long a start may take, recovery included, in milliseconds.
    pub start_timeout_ms: u64,
    /// Further settings of the server, by its own names.
    pub settings: Vec<(String, String)>,
}

impl Default for DatabaseOptions {
    fn default() -> Self {
        Self {
            folder: None,
            databases: vec![DATABASE.to_owned()],
            connections_max: 200,
            prepared_transactions_max: 256,
            fsync: true,
            start_timeout_ms: 120_000,
            settings: Vec::new(),
        }
    }
}

/// A database server of our own.
#[derive(Debug)]
pub struct Database {
    make: Make,
    port: u16,
    start_timeout_ms: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    plan: Plan,
    server: Option<Child>,
    watchdog: Watchdog,
}

impl Database {
    /// Makes a server and waits until it answers. It blocks; in an async program, on a thread for
    /// such work.
    ///
    /// # Errors
    /// [`DatabaseError`], with what to install where a program is missing.
    pub fn start(make: Make, options: &DatabaseOptions) -> Result<Self, DatabaseError> {
        let program = programs::find(make.wanted())?;
        let user = folder::User::choose(make.users())?;
        let folder = folder::make(options.folder.as_deref(), user)?;
        // From here on the folder is removed, whatever happens.
        let watchdog = Watchdog::start(&folder, make.at_once().1)?;
        let plan = Plan {
            program,
            folder,
            user,
            password: password()?,
            databases: options.databases.clone(),
            connections_max: options.connections_max,
            prepared_transactions_max: options.prepared_transactions_max,
            fsync: options.fsync,
            settings: options.settings.clone(),
        };
        make.initialise(&plan)?;
        let mut state = State { plan, server: None, watchdog };
        let port = state.run_somewhere(make, options.start_timeout_ms)?;
        let start_timeout_ms = options.start_timeout_ms;
        Ok(Self { make, port, start_timeout_ms, state: Mutex::new(state) })
    }

    /// Starts the server again, on the same folder and port, and waits until it answers. Does
    /// nothing if it runs.
    ///
    /// # Errors
    /// [`DatabaseError::Ended`] or [`DatabaseError::Silent`].
    pub fn start_again(&self) -> Result<(), DatabaseError> {
        let deadline = Instant::now() + Duration::from_millis(LAST_PROCESS_MS);
        loop {
            match self.state().run(self.make, self.port, self.start_timeout_ms) {
                // A process that was started while the others were killed is still ending.
                Err(DatabaseError::Ended { log, .. })
                    if log.contains(STILL_ENDING) && Instant::now() < deadline =>
                {
                    process::pause();
                }
                started => return started,
            }
        }
    }

    /// Ends the server as a power cut would: SIGKILL, for it and all its processes. It returns when
    /// they are gone.
    pub fn kill(&self) {
        let mut state = self.state();
        if let Some(mut server) = state.server.take() {
            process::kill_all(&mut server);
            state.watchdog.watch(None);
        }
    }

    /// Stops the server in order; the folder stays, and it can be started again.
    pub fn stop(&self) {
        let mut state = self.state();
        if let Some(mut server) = state.server.take() {
            let patience = Duration::from_millis(STOP_TIMEOUT_MS);
            process::stop(&mut server, self.make.in_order(), patience);
            state.watchdog.watch(None);
        }
    }

    /// Gives the server a setting, by its own name, from its next start on.
    pub fn set(&self, name: &str, value: &str) {
        let settings = &mut self.state().plan.settings;
        settings.retain(|(known, _)| known != name);
        settings.push((name.to_owned(), value.to_owned()));
    }

    /// Whether the server's process runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        let mut state = self.state();
        state.server.as_mut().is_some_and(|server| matches!(server.try_wait(), Ok(None)))
    }

    /// The process of the server, if it runs.
    #[must_use]
    pub fn process_id(&self) -> Option<u32> {
        self.state().server.as_ref().map(Child::id)
    }

    /// What make it is of.
    #[must_use]
    pub const fn make(&self) -> Make {
        self.make
    }

    /// What the server's program says of its version.
    #[must_use]
    pub fn version(&self) -> String {
        programs::version(&self.state().plan.program)
    }

    /// Where the first database is, with the account's name and password.
    #[must_use]
    pub fn url(&self) -> String {
        let first = self.state().plan.databases.first().cloned();
        self.url_of(first.as_deref().unwrap_or(DATABASE))
    }

    /// Where a database of this server is, with the account's name and password.
    #[must_use]
    pub fn url_of(&self, database: &str) -> String {
        let (scheme, port, password) = (self.make.scheme(), self.port, self.password());
        format!("{scheme}://{USER}:{password}@127.0.0.1:{port}/{database}")
    }

    /// The account's password: letters and digits.
    #[must_use]
    pub fn password(&self) -> String {
        self.state().plan.password.clone()
    }

    /// The port on the loopback interface.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// The Unix socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.make.socket(&self.state().plan.folder, self.port)
    }

    /// The folder with everything of this server in it.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        self.state().plan.folder.clone()
    }

    /// What the server has written to its log, over all its lives.
    #[must_use]
    pub fn log(&self) -> String {
        read_log(&self.state().plan.folder)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The first start, on a port that nobody uses.
    fn run_somewhere(&mut self, make: Make, timeout_ms: u64) -> Result<u16, DatabaseError> {
        let mut tried = 1;
        loop {
            let port = port::free()?;
            match self.run(make, port, timeout_ms) {
                Ok(()) => return Ok(port),
                Err(DatabaseError::Ended { log, .. })
                    if tried < PORTS_TRIED_MAX && log.contains("Address already in use") => {}
                Err(error) => return Err(error),
            }
            tried += 1;
        }
    }

    fn run(&mut self, make: Make, port: u16, timeout_ms: u64) -> Result<(), DatabaseError> {
        if self.server.as_mut().is_some_and(|server| matches!(server.try_wait(), Ok(None))) {
            return Ok(());
        }
        let log = log_path(&self.plan.folder);
        let file = File::options().create(true).append(true).open(&log);
        let file = file.map_err(DatabaseError::folder(&log))?;
        let errors = file.try_clone().map_err(DatabaseError::folder(&log))?;
        let mut command = make.server(&self.plan, port);
        command.stdout(Stdio::from(file)).stderr(Stdio::from(errors));
        let server = command.spawn().map_err(DatabaseError::run(&self.plan.program))?;
        self.watchdog.watch(Some(server.id()));
        self.server = Some(server);
        let answered = self.wait_for_answer(make, port, timeout_ms);
        if answered.is_err() {
            self.end(make);
        }
        answered
    }

    fn wait_for_answer(
        &mut self,
        make: Make,
        port: u16,
        timeout_ms: u64,
    ) -> Result<(), DatabaseError> {
        let socket = make.socket(&self.plan.folder, port);
        let deadline = Instant::now() + Duration::from_millis(timeout_ms);
        while Instant::now() < deadline {
            let ended = self.server.as_mut().and_then(|server| server.try_wait().ok().flatten());
            if let Some(status) = ended {
                let (status, log) = (status.to_string(), tail(&read_log(&self.plan.folder)));
                return Err(DatabaseError::Ended { status, log });
            }
            if make.answers(&socket) {
                return Ok(());
            }
            process::pause();
        }
        let log = tail(&read_log(&self.plan.folder));
        Err(DatabaseError::Silent { waited_ms: timeout_ms, log })
    }

    fn end(&mut self, make: Make) {
        if let Some(mut server) = self.server.take() {
            process::stop(&mut server, make.at_once().0, Duration::from_secs(5));
            self.watchdog.watch(None);
        }
    }
}

impl Drop for Database {
    /// Ends the server; the watchdog, dropped next, removes the folder.
    fn drop(&mut self) {
        let make = self.make;
        self.state().end(make);
    }
}

fn log_path(folder: &Path) -> PathBuf {
    folder.join("log")
}

fn read_log(folder: &Path) -> String {
    let bytes = std::fs::read(log_path(folder)).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// 32 letters and digits that nobody can guess.
fn password() -> Result<String, DatabaseError> {
    use std::io::Read;
    let source = Path::new("/dev/urandom");
    let mut bytes = [0_u8; 16];
    let read = File::open(source).and_then(|mut file| file.read_exact(&mut bytes));
    read.map_err(DatabaseError::folder(source))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
