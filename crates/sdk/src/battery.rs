//! Plays a participant's contract against any service, in any language, and says what holds and
//! what does not, with the exact exchange that failed. Decides what a participant must stand; it
//! changes nothing but what the payload's own work changes.
//!
//! Each case uses a transaction of its own. What happened inside the service cannot be seen from
//! outside, so give [`Battery::observe`] an URL whose answer tells it (an account's balance, say):
//! then repeated operations are also seen to have no second effect.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client as Connections;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use unanimity_core::Operation;

use crate::contract::{ANSWER_BYTES_MAX, ATTEMPT_HEADER, BRANCH_HEADER, JSON, TRANSACTION_HEADER};
use crate::now_ms;

/// How many duplicates arrive at once where duplicates do.
const DUPLICATES: usize = 8;
const BRANCH: &str = "battery";

/// What is played, and against whom.
#[derive(Clone, Debug)]
pub struct Battery {
    /// The participant's URL, without the operation.
    pub participant: String,
    /// What `prepare` and `execute` are given; it must be something that the service says yes to,
    /// again and again.
    pub payload: Bytes,
    /// Whether `execute` and `compensate` are played rather than `prepare`, `commit`, `rollback`.
    pub compensable: bool,
    /// An URL whose answer tells what the service's work has changed.
    pub observe: Option<String>,
    /// How long one call may take.
    pub timeout: Duration,
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

/// What became of one case.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// What must hold.
    pub rule: String,
    /// Whether it does.
    pub holds: bool,
    /// Why not.
    pub because: Option<String>,
    /// What was sent and what came back.
    pub exchanges: Vec<Exchange>,
}

/// What became of all cases.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Report {
    /// Against whom.
    pub participant: String,
    /// Case by case.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether everything holds.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.findings.iter().all(|finding| finding.holds)
    }
}

/// What an answer means to a coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    Yes,
    ReadOnly,
    No,
    Acknowledged,
    Unknown,
}

/// What a case goes through.
struct Case<'a> {
    battery: &'a Battery,
    connections: &'a Connections<HttpConnector, Full<Bytes>>,
    transaction: String,
    exchanges: Vec<Exchange>,
    attempt: u32,
}

/// Why a rule does not hold.
type Held = Result<(), String>;

use Meaning::{Acknowledged, No, ReadOnly, Unknown, Yes};
use Operation::{Commit, Compensate, Execute, Prepare, Rollback};

/// Plays every case; returns when all are done.
pub async fn play(battery: &Battery) -> Report {
    let connections = Connections::builder(TokioExecutor::new()).build_http();
    let mut findings = Vec::new();
    let rules: &[&str] = if battery.compensable { &COMPENSABLE_RULES } else { &TWO_PHASE_RULES };
    let run = now_ms();
    for (number, rule) in rules.iter().enumerate() {
        let mut case = Case {
            battery,
            connections: &connections,
            transaction: format!("battery-{run}-{number}"),
            exchanges: Vec::new(),
            attempt: 0,
        };
        let held = if battery.compensable {
            case.compensable(number).await
        } else {
            case.two_phase(number).await
        };
        findings.push(Finding {
            rule: (*rule).to_owned(),
            holds: held.is_ok(),
            because: held.err(),
            exchanges: case.exchanges,
        });
    }
    Report { participant: battery.participant.clone(), findings }
}

/// The rules for two-phase branches; a case's number is its place.
const TWO_PHASE_RULES: [&str; 11] = [
    "a prepare votes yes, and a rollback is acknowledged",
    "a repeated prepare votes as the first did",
    "a repeated commit is acknowledged and has no second effect",
    "a repeated rollback is acknowledged and leaves nothing behind",
    "a rollback before any prepare is acknowledged",
    "a prepare after the rollback is refused",
    "a commit without a prepare is not acknowledged",
    "a commit after the rollback is not acknowledged",
    "a rollback after the commit is not acknowledged",
    "prepares that arrive at once all vote alike, and prepare once",
    "an answer that is lost is given again",
];

/// The rules for compensable branches.
const COMPENSABLE_RULES: [&str; 6] = [
    "an execute succeeds, and a compensate is acknowledged",
    "a repeated execute answers as the first did and has no second effect",
    "a repeated compensate is acknowledged and has no second effect",
    "a compensate before any execute is acknowledged",
    "an execute after the compensate is refused",
    "executes that arrive at once all answer alike, and execute once",
];

impl Case<'_> {
    async fn two_phase(&mut self, number: usize) -> Held {
        match number {
            0 => {
                let before = self.observed().await?;
                self.expect(Prepare, &[Yes, ReadOnly]).await?;
                self.expect(Rollback, &[Acknowledged]).await?;
                self.same("a rollback must leave everything as it was", before).await
            }
            1 => {
                let first = self.expect(Prepare, &[Yes, ReadOnly]).await?;
                self.expect(Prepare, &[first]).await?;
                self.expect(Prepare, &[first]).await?;
                self.expect(Rollback, &[Acknowledged]).await.map(drop)
            }
            2 => {
                self.expect(Prepare, &[Yes, ReadOnly]).await?;
                self.expect(Commit, &[Acknowledged]).await?;
                let committed = self.observed().await?;
                self.expect(Commit, &[Acknowledged]).await?;
                self.expect(Commit, &[Acknowledged]).await?;
                self.same("a repeated commit must change nothing", committed).await
            }
            3 => {
                let before = self.observed().await?;
                self.expect(Prepare, &[Yes, ReadOnly]).await?;
                for _ in 0..3 {
                    self.expect(Rollback, &[Acknowledged]).await?;
                }
                self.same("a rollback must leave everything as it was", before).await
            }
            4 => self.expect(Rollback, &[Acknowledged]).await.map(drop),
            5 => {
                let before = self.observed().await?;
                self.expect(Rollback, &[Acknowledged]).await?;
                self.expect(Prepare, &[No]).await?;
                self.same("a refused prepare must change nothing", before).await
            }
            6 => self.expect(Commit, &[Unknown, No]).await.map(drop),
            7 => {
                self.expect(Prepare, &[Yes, ReadOnly]).await?;
                self.expect(Rollback, &[Acknowledged]).await?;
                self.expect(Commit, &[Unknown, No]).await.map(drop)
            }
            8 => {
                // A read-only branch has committed nothing, so a rollback cannot contradict it.
                let vote = self.expect(Prepare, &[Yes, ReadOnly]).await?;
                self.expect(Commit, &[Acknowledged]).await?;
                let allowed: &[Meaning] =
                    if vote == ReadOnly { &[Acknowledged, Unknown, No] } else { &[Unknown, No] };
                self.expect(Rollback, allowed).await.map(drop)
            }
            9 => {
                let before = self.observed().await?;
                self.at_once(Prepare, &[Yes, ReadOnly]).await?;
                self.expect(Rollback, &[Acknowledged]).await?;
                self.same("one rollback must undo all of it", before).await
            }
            _ => {
                self.lost(Prepare).await;
                self.expect(Prepare, &[Yes, ReadOnly]).await?;
                self.lost(Commit).await;
                self.expect(Commit, &[Acknowledged]).await.map(drop)
            }
        }
    }

    async fn compensable(&mut self, number: usize) -> Held {
        match number {
            0 => {
                let before = self.observed().await?;
                self.expect(Execute, &[Yes]).await?;
                self.expect(Compensate, &[Acknowledged]).await?;
                self.same("a compensate must undo the execute", before).await
            }
            1 => {
                self.expect(Execute, &[Yes]).await?;
                let executed = self.observed().await?;
                self.expect(Execute, &[Yes]).await?;
                self.same("a repeated execute must change nothing", executed).await?;
                self.expect(Compensate, &[Acknowledged]).await.map(drop)
            }
            2 => {
                let before = self.observed().await?;
                self.expect(Execute, &[Yes]).await?;
                for _ in 0..3 {
                    self.expect(Compensate, &[Acknowledged]).await?;
                }
                self.same("a repeated compensate must change nothing", before).await
            }
            3 => {
                let before = self.observed().await?;
                self.expect(Compensate, &[Acknowledged]).await?;
                self.same("there is nothing to compensate", before).await
            }
            4 => {
                let before = self.observed().await?;
                self.expect(Compensate, &[Acknowledged]).await?;
                self.expect(Execute, &[No]).await?;
                self.same("a refused execute must change nothing", before).await
            }
            _ => {
                let before = self.observed().await?;
                self.at_once(Execute, &[Yes]).await?;
                self.expect(Compensate, &[Acknowledged]).await?;
                self.same("one compensate must undo all of it", before).await
            }
        }
    }

    /// Asks once; the answer must mean one of these.
    async fn expect(
        &mut self,
        operation: Operation,
        allowed: &[Meaning],
    ) -> Result<Meaning, String> {
        self.attempt += 1;
        let exchange = self.send(operation, self.attempt).await;
        let found = meaning(operation, &exchange);
        let told =
            format!("{} answered {}: {}", exchange.operation, exchange.status, exchange.answer);
        self.exchanges.push(exchange);
        if allowed.contains(&found) {
            return Ok(found);
        }
        Err(format!("{told}; that means {found:?}, and must mean one of {allowed:?}"))
    }

    /// Asks many times at once; every answer must mean the same, and one of these.
    async fn at_once(&mut self, operation: Operation, allowed: &[Meaning]) -> Held {
        let mut calls = tokio::task::JoinSet::new();
        for attempt in 1..=DUPLICATES {
            let request = self.request(operation, u32::try_from(attempt).unwrap_or(1));
            let (connections, timeout) = (self.connections.clone(), self.battery.timeout);
            calls.spawn(async move { exchange(&connections, request, timeout).await });
        }
        let mut meanings = BTreeSet::new();
        for (status, answer) in calls.join_all().await {
            let exchange = self.noted(operation, 1, status, answer);
            meanings.insert(format!("{:?}", meaning(operation, &exchange)));
            self.exchanges.push(exchange);
        }
        let one =
            meanings.len() == 1 && allowed.iter().any(|one| meanings.contains(&format!("{one:?}")));
        if one {
            return Ok(());
        }
        Err(format!(
            "{DUPLICATES} at once were answered {meanings:?}; all must be one of {allowed:?}"
        ))
    }

    /// Sends a call and goes away before the answer.
    async fn lost(&mut self, operation: Operation) {
        self.attempt += 1;
        let request = self.request(operation, self.attempt);
        let sent = self.connections.request(request);
        // Long enough for the request to leave, too short for most answers.
        let outcome = tokio::time::timeout(Duration::from_millis(2), sent).await;
        let answer = if outcome.is_ok() { "(came before we left)" } else { "(we left)" };
        let exchange = self.noted(operation, self.attempt, 0, answer.to_owned());
        self.exchanges.push(exchange);
    }

    async fn send(&self, operation: Operation, attempt: u32) -> Exchange {
        let request = self.request(operation, attempt);
        let (status, answer) = exchange(self.connections, request, self.battery.timeout).await;
        self.noted(operation, attempt, status, answer)
    }

    fn noted(&self, operation: Operation, attempt: u32, status: u16, answer: String) -> Exchange {
        let transaction = self.transaction.clone();
        Exchange { operation: operation.as_str().to_owned(), transaction, attempt, status, answer }
    }

    fn request(&self, operation: Operation, attempt: u32) -> Request<Full<Bytes>> {
        let base = self.battery.participant.trim_end_matches('/');
        let mut request = Request::post(format!("{base}/{}", operation.as_str()))
            .header(TRANSACTION_HEADER, self.transaction.as_str())
            .header(BRANCH_HEADER, BRANCH)
            .header(ATTEMPT_HEADER, attempt.to_string());
        let body = if operation.carries_payload() {
            request = request.header(http::header::CONTENT_TYPE, JSON);
            self.battery.payload.clone()
        } else {
            Bytes::new()
        };
        // A URL that is none shows as a call without an answer.
        request.body(Full::new(body)).unwrap_or_default()
    }

    /// What the service's work has changed so far, if it can be seen.
    async fn observed(&self) -> Result<Option<String>, String> {
        let Some(url) = &self.battery.observe else { return Ok(None) };
        let request = Request::get(url).body(Full::default());
        let request = request.map_err(|error| format!("{url} is no URL: {error}"))?;
        let (status, answer) = exchange(self.connections, request, self.battery.timeout).await;
        if status == 200 {
            return Ok(Some(answer));
        }
        Err(format!("{url} answered {status}: {answer}"))
    }

    async fn same(&self, rule: &str, before: Option<String>) -> Held {
        let after = self.observed().await?;
        if before == after {
            return Ok(());
        }
        let show = |seen: Option<String>| seen.unwrap_or_default();
        Err(format!("{rule}, but it was {} and is {}", show(before), show(after)))
    }
}

async fn exchange(
    connections: &Connections<HttpConnector, Full<Bytes>>,
    request: Request<Full<Bytes>>,
    timeout: Duration,
) -> (u16, String) {
    let answered = async {
        let response = connections.request(request).await.map_err(|error| error.to_string())?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|error| error.to_string())?.to_bytes();
        Ok::<_, String>((status, String::from_utf8_lossy(&body).into_owned()))
    };
    match tokio::time::timeout(timeout, answered).await {
        Ok(Ok(answered)) => answered,
        Ok(Err(error)) => (0, error),
        Err(_) => (0, format!("no answer within {} ms", timeout.as_millis())),
    }
}

/// What the coordinator makes of an answer: PROTOCOL.md, "Coordinator to participant".
fn meaning(operation: Operation, exchange: &Exchange) -> Meaning {
    let body: Option<serde_json::Value> = serde_json::from_str(&exchange.answer).ok();
    let readable =
        exchange.answer.trim().is_empty() || body.as_ref().is_some_and(|b| b.is_object());
    match (operation, exchange.status) {
        (Prepare | Execute, 200) if readable => {
            let vote = body.as_ref().and_then(|body| body["vote"].as_str());
            match vote {
                None | Some("yes") => Yes,
                Some("read_only") => ReadOnly,
                Some("no") => No,
                Some(_) => Unknown,
            }
        }
        (Execute, 204) => Yes,
        (Prepare | Execute, 409 | 422) => No,
        (Commit | Rollback | Compensate, 200 | 204) => Acknowledged,
        _ => Unknown,
    }
}
