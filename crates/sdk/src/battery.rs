//! Plays a participant's contract against any service, in any language, and says what holds and
//! what does not, with the exact exchange that failed. Decides what is asked for and what is told;
//! what must hold is `rules`' to say, and `stage` plays it. It changes nothing but what the
//! payload's own work changes.
//!
//! Each rule is played in transactions of its own. What happened inside the service cannot be seen
//! from outside, so give [`Options::observe`] an URL whose answer tells it (an account's balance,
//! say): then repeated operations are also seen to have no second effect.
//!
//! In a service's own tests:
//!
//! ```
//! # use std::sync::Arc;
//! # use unanimity_sdk::{BranchContext, MemoryParticipant, MemoryService, ServiceResult, Vote};
//! use unanimity_sdk::battery;
//! # struct Service;
//! # impl MemoryService for Service {
//! #     fn prepare(&self, _: &BranchContext, _: &[u8]) -> ServiceResult<Vote> { Ok(Vote::Yes) }
//! #     fn commit(&self, _: &BranchContext, _: &[u8]) -> ServiceResult<()> { Ok(()) }
//! #     fn rollback(&self, _: &BranchContext, _: &[u8]) -> ServiceResult<()> { Ok(()) }
//! # }
//!
//! # #[tokio::main]
//! # async fn main() {
//! # let router = unanimity_sdk::router(Arc::new(MemoryParticipant::new(Service)));
//! # let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
//! # let address = listener.local_addr().unwrap();
//! # tokio::spawn(async move { axum::serve(listener, router).await });
//! let url = format!("http://{address}");
//! let report = battery::play(&url, r#"{"seat": 7}"#, &battery::Options::default()).await;
//! report.assert_all_hold();
//! # }
//! ```
//!
//! A participant that offers to take several calls in one request is given some like that, too.
//! With [`Options::restart`] the service is also stopped and started between the phases.

mod effect;
mod rules;
mod stage;
mod together;

use std::fmt::{self, Write};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use self::rules::{COMPENSABLE_RULES, Rule, TWO_PHASE_RULES};
use self::stage::Stage;

/// What is played, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whether `execute` and `compensate` are played rather than `prepare`, `commit`, `rollback`.
    pub compensable: bool,
    /// An URL whose answer tells what the service's work has changed.
    pub observe: Option<String>,
    /// How long one call may take.
    pub timeout: Duration,
    /// How the service is stopped and started again; without it those rules are not played.
    pub restart: Option<Restart>,
    /// How long a restart may take, until the service answers again.
    pub restart_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            compensable: false,
            observe: None,
            timeout: Duration::from_secs(5),
            restart: None,
            restart_timeout: Duration::from_secs(30),
        }
    }
}

type Restarting = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

/// Stops a service and starts it again.
#[derive(Clone)]
pub struct Restart(Arc<dyn Fn() -> Restarting + Send + Sync>);

impl Restart {
    /// Restarts by this function. It must not return before the old process (or task) has ended;
    /// that the new one is ready is waited for. An error is told as the reason.
    pub fn new<F, R>(restart: F) -> Self
    where
        F: Fn() -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), String>> + Send + 'static,
    {
        Self(Arc::new(move || Box::pin(restart())))
    }
}

impl fmt::Debug for Restart {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Restart")
    }
}

/// One call and what came back.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Exchange {
    /// What was asked.
    pub operation: String,
    /// In which transaction.
    pub transaction: String,
    /// The how-manieth attempt.
    pub attempt: u32,
    /// The status that came back; 0 if none did.
    pub status: u16,
    /// The body, or the error.
    pub answer: String,
}

impl fmt::Display for Exchange {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { operation, transaction, attempt, status, answer } = self;
        let answer = answer.trim();
        write!(
            formatter,
            "{operation} (transaction {transaction}, attempt {attempt}) -> {status} {answer}"
        )
    }
}

/// What was found about one rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It holds.
    Holds,
    /// It does not.
    Fails,
    /// Something is missing to play it.
    NotPlayed,
}

/// What became of one rule.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// What must hold.
    pub rule: String,
    /// Whether it does.
    pub verdict: Verdict,
    /// Why not, or what is missing to play it.
    pub because: Option<String>,
    /// What was sent and what came back.
    pub exchanges: Vec<Exchange>,
}

/// What became of all rules.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Report {
    /// Against whom.
    pub participant: String,
    /// Rule by rule.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether everything that was played holds.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.findings.iter().all(|finding| finding.verdict != Verdict::Fails)
    }

    /// The rules of which this was found.
    #[must_use]
    pub fn rules(&self, verdict: Verdict) -> Vec<&str> {
        let found = self.findings.iter().filter(|finding| finding.verdict == verdict);
        found.map(|finding| finding.rule.as_str()).collect()
    }

    /// For a test: goes on only if everything that was played holds.
    ///
    /// # Panics
    /// If a rule fails, with the exchange that shows it.
    pub fn assert_all_hold(&self) {
        assert!(self.holds(), "{self}");
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = format!("{}\n", self.participant);
        for finding in &self.findings {
            let word = match finding.verdict {
                Verdict::Holds => "holds",
                Verdict::Fails => "fails",
                Verdict::NotPlayed => "not played",
            };
            writeln!(text, "  {word}  {}", finding.rule)?;
            if let Some(because) = &finding.because {
                writeln!(text, "    {because}")?;
            }
            for exchange in finding.exchanges.iter().filter(|_| finding.verdict == Verdict::Fails) {
                writeln!(text, "    {exchange}")?;
            }
        }
        formatter.write_str(&text)
    }
}

/// Plays every rule against the participant at this URL (without the operation); returns when all
/// are done. The payload is what `prepare` and `execute` are given: something that the service says
/// yes to, again and again.
pub async fn play(participant: &str, payload: impl Into<Bytes>, options: &Options) -> Report {
    let rules: &[Rule] = if options.compensable { &COMPENSABLE_RULES } else { &TWO_PHASE_RULES };
    let mut stage = Stage::new(participant, payload.into(), options);
    let mut findings = Vec::new();
    for (number, rule) in rules.iter().enumerate() {
        findings.push(stage.play(number, rule).await);
    }
    findings.extend(stage.together(rules.len()).await);
    Report { participant: participant.to_owned(), findings }
}
