//! The processes of the demo: a coordinator and two banks, each started, killed and restarted on
//! the same port and the same files. Nothing of it outlives the demo.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use unanimity_sdk::Client;

/// How long a process may take until it listens.
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a process may take to stop when asked kindly.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);

/// One process, and how to start it again.
#[derive(Debug)]
pub struct Process {
    name: &'static str,
    program: PathBuf,
    arguments: Vec<String>,
    listen_flag: &'static str,
    environment: Vec<(String, String)>,
    log: PathBuf,
    port: u16,
    child: Option<Child>,
    reader: Option<tokio::task::JoinHandle<()>>,
}

impl Process {
    /// A process that is not started yet. Its first argument is a command of the program.
    #[must_use]
    pub fn new(name: &'static str, program: &Path, folder: &Path, arguments: Vec<String>) -> Self {
        let serves = arguments.first().is_some_and(|command| command == "serve");
        Self {
            name,
            listen_flag: if serves { "--listen-address" } else { "--listen" },
            program: program.to_path_buf(),
            arguments,
            environment: Vec::new(),
            log: folder.join(format!("{name}.log")),
            port: 0,
            child: None,
            reader: None,
        }
    }

    /// Its name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// Its URL, once it was started.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Its process id, while it runs.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    /// An environment variable for its next starts; an empty value takes it away.
    pub fn set_environment(&mut self, name: &str, value: &str) {
        self.environment.retain(|(known, _)| known != name);
        if !value.is_empty() {
            self.environment.push((name.to_owned(), value.to_owned()));
        }
    }

    /// Starts it, on the port that it had before if it had one, and waits until it listens.
    ///
    /// # Errors
    /// If it ends or says nothing in time; the end of its log is part of the error.
    pub async fn start(&mut self) -> anyhow::Result<()> {
        let log = std::fs::File::options().create(true).append(true).open(&self.log)?;
        let mut child = Command::new(&self.program)
            .args(&self.arguments)
            .arg(self.listen_flag)
            .arg(format!("127.0.0.1:{}", self.port))
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", self.program.display()))?;
        let stdout = child.stdout.take().context("its standard output is ours")?;
        self.child = Some(child);
        let mut lines = BufReader::new(stdout).lines();
        let found = tokio::time::timeout(START_TIMEOUT, listening(&mut lines)).await;
        match found {
            Ok(Ok(port)) => self.port = port,
            Ok(Err(error)) => bail!("{} did not start: {error:#}; {}", self.name, self.tail()),
            Err(_) => bail!("{} did not start in time; {}", self.name, self.tail()),
        }
        // What it prints later must be read, or it would stop at a full pipe.
        self.reader =
            Some(tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} }));
        Ok(())
    }

    /// Kills it as a power cut would: SIGKILL.
    ///
    /// # Errors
    /// If the operating system refuses.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill().await?;
        }
        self.reader.take();
        Ok(())
    }

    /// Waits until it ends by itself, such as at a crash point; whether it did in time.
    pub async fn ends_within(&mut self, patience: Duration) -> bool {
        let Some(child) = &mut self.child else { return true };
        let ended = tokio::time::timeout(patience, child.wait()).await.is_ok();
        if ended {
            self.child = None;
        }
        ended
    }

    /// Whether it runs.
    pub fn runs(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Asks it to stop (SIGTERM), and kills it if it does not.
    ///
    /// # Errors
    /// If the operating system refuses.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        if let Some(id) = self.id() {
            let asked = Command::new("kill").arg("-TERM").arg(id.to_string()).status().await;
            if asked.is_ok_and(|status| status.success()) && self.ends_within(STOP_TIMEOUT).await {
                return Ok(());
            }
        }
        self.kill().await
    }

    fn tail(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(5).collect();
        let last: Vec<&str> = lines.into_iter().rev().collect();
        format!("its log {} ends with:\n{}", self.log.display(), last.join("\n"))
    }
}

/// Reads until the line that names the port.
async fn listening(lines: &mut Lines<BufReader<ChildStdout>>) -> anyhow::Result<u16> {
    while let Some(line) = lines.next_line().await? {
        let url = line.split("listening on http://").nth(1);
        let port = url.and_then(|url| url.trim().rsplit(':').next()).map(str::parse);
        if let Some(Ok(port)) = port {
            return Ok(port);
        }
    }
    bail!("it ended at once")
}

/// The demo's three processes.
#[derive(Debug)]
pub struct Fleet {
    /// The coordinator first, then the banks A and B.
    pub processes: [Process; 3],
    /// Where their files are.
    pub folder: PathBuf,
    carriage: Carriage,
}

/// How a fleet is set up.
#[derive(Clone, Debug)]
pub struct FleetOptions {
    /// The program `unanimity`.
    pub program: PathBuf,
    /// Where files go.
    pub folder: PathBuf,
    /// How many accounts each bank has.
    pub accounts: u32,
    /// What each account begins with, in cents.
    pub balance: i64,
    /// The banks' faults, as their command line takes them.
    pub faults: String,
    /// What faults are drawn from.
    pub seed: u64,
    /// Further flags for the coordinator.
    pub coordinator_flags: Vec<String>,
    /// Further flags for both banks.
    pub bank_flags: Vec<String>,
    /// How the banks are called.
    pub carriage: Carriage,
}

/// How participants are called.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Carriage {
    /// Over HTTP.
    #[default]
    Http,
    /// Over streams that the coordinator opens.
    Grpc,
    /// Over streams that the banks open.
    Stream,
}

impl Fleet {
    /// Starts all three.
    ///
    /// # Errors
    /// If one does not start.
    pub async fn start(options: &FleetOptions) -> anyhow::Result<Self> {
        let folder = &options.folder;
        std::fs::create_dir_all(folder)?;
        let path = |name: &str| folder.join(name).display().to_string();
        let mut arguments =
            vec!["serve".to_owned(), "--data-folder".to_owned(), path("coordinator")];
        arguments.extend(options.coordinator_flags.iter().cloned());
        let mut coordinator = Process::new("coordinator", &options.program, folder, arguments);
        coordinator.start().await?;
        let bank = |name: &str, process: &'static str, seed: u64| {
            let text = |text: &str| text.to_owned();
            let mut arguments = vec![
                text("bank"),
                text("--name"),
                text(name),
                text("--database"),
                path(&format!("bank-{name}.db")),
                text("--accounts"),
                options.accounts.to_string(),
                text("--balance"),
                options.balance.to_string(),
                text("--coordinator"),
                coordinator.url(),
                text("--in-doubt-after-ms"),
                text("2000"),
                format!("--faults={}", options.faults),
                text("--seed"),
                seed.to_string(),
            ];
            arguments.extend(options.bank_flags.iter().cloned());
            arguments.extend((options.carriage == Carriage::Stream).then(|| text("--dial")));
            Process::new(process, &options.program, folder, arguments)
        };
        let mut bank_a = bank("A", "bank-a", options.seed);
        let mut bank_b = bank("B", "bank-b", options.seed.wrapping_add(1));
        bank_a.start().await?;
        bank_b.start().await?;
        let (processes, folder) = ([coordinator, bank_a, bank_b], folder.clone());
        Ok(Self { processes, folder, carriage: options.carriage })
    }

    /// A client for the coordinator.
    ///
    /// # Errors
    /// If its URL is none.
    pub fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::new(&self.processes[0].url(), None)?)
    }

    /// Clients for the banks.
    ///
    /// # Errors
    /// If a URL is none.
    pub fn banks(&self) -> anyhow::Result<[Client; 2]> {
        Ok([
            Client::new(&self.processes[1].url(), None)?,
            Client::new(&self.processes[2].url(), None)?,
        ])
    }

    /// Where the banks take part in transactions.
    #[must_use]
    pub fn participants(&self) -> [String; 2] {
        let at = |process: &Process, name: &str| match self.carriage {
            Carriage::Http => format!("{}/transactions", process.url()),
            Carriage::Grpc => format!("grpc://127.0.0.1:{}/bank-{name}", process.port),
            Carriage::Stream => format!("stream:bank-{name}"),
        };
        [at(&self.processes[1], "A"), at(&self.processes[2], "B")]
    }

    /// Stops all three, participants last, so that what is under way can be finished.
    ///
    /// # Errors
    /// If the operating system refuses.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        for process in &mut self.processes {
            process.stop().await?;
        }
        Ok(())
    }
}
