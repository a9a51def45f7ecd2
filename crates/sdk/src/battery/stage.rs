//! Carries out the rules' scripts: asks, observes, restarts, and compares what came with what was
//! to come. Decides what an answer means, as a coordinator would (PROTOCOL.md, "Coordinator to
//! participant").

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client as Connections;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::Instant;
use unanimity_core::Operation;

use super::effect::{Effect, effect};
use super::rules::{Expected, Rule, Step};
use super::{Exchange, Finding, Options, Verdict};
use crate::contract::{ANSWER_BYTES_MAX, ATTEMPT_HEADER, BRANCH_HEADER, JSON, TRANSACTION_HEADER};
use crate::now_ms;

/// How many duplicates arrive at once where duplicates do.
const DUPLICATES: u32 = 8;
pub(super) const BRANCH: &str = "battery";
/// How often a service that starts is asked whether it is there.
const LOOK: Duration = Duration::from_millis(20);
const HOW_TO_PLAY: &str = "it needs a way to stop and start the service: --restart COMMAND, or \
                           Options::restart";

/// What an answer means to a coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    Yes,
    ReadOnly,
    No,
    Acknowledged,
    Unknown,
}

use Meaning::{Acknowledged, No, ReadOnly, Unknown, Yes};

/// Nothing, or why a rule does not hold.
pub(super) type Held = Result<(), String>;

type Http = Connections<HttpConnector, Full<Bytes>>;

/// Where the rules are played, one after the other.
pub(super) struct Stage<'a> {
    pub(super) participant: &'a str,
    pub(super) payload: Bytes,
    pub(super) options: &'a Options,
    pub(super) connections: Http,
    run: u64,
    /// What one commit, or one execute, changes.
    usual: Option<Effect>,
}

/// A rule as it is played.
#[derive(Default)]
pub(super) struct Scene {
    pub(super) transaction: String,
    attempt: u32,
    pub(super) exchanges: Vec<Exchange>,
    /// What the last prepare or execute was answered.
    vote: Option<Meaning>,
    marked: Option<String>,
}

impl<'a> Stage<'a> {
    pub(super) fn new(participant: &'a str, payload: Bytes, options: &'a Options) -> Self {
        let connections = connections();
        Self { participant, payload, options, connections, run: now_ms(), usual: None }
    }

    /// Plays one rule.
    pub(super) async fn play(&mut self, number: usize, rule: &Rule) -> Finding {
        let mut scene = self.scene(number);
        let restarts = rule.steps.iter().any(|step| matches!(step, Step::Restart));
        let (verdict, because) = if restarts && self.options.restart.is_none() {
            (Verdict::NotPlayed, Some(HOW_TO_PLAY.to_owned()))
        } else {
            match self.steps(&mut scene, rule.steps).await {
                Ok(()) => (Verdict::Holds, None),
                Err(because) => (Verdict::Fails, Some(because)),
            }
        };
        Finding { rule: rule.says.to_owned(), verdict, because, exchanges: scene.exchanges }
    }

    /// Where a rule is played: in a transaction of its own.
    pub(super) fn scene(&self, number: usize) -> Scene {
        let transaction = format!("battery-{}-{number}", self.run);
        Scene { transaction, ..Scene::default() }
    }

    async fn steps(&mut self, scene: &mut Scene, steps: &[Step]) -> Held {
        for step in steps {
            match *step {
                Step::Ask(operation, expected) => self.ask(scene, operation, expected).await?,
                Step::AtOnce(operation, expected) => {
                    self.at_once(scene, operation, expected).await?;
                }
                Step::Lost(operation) => self.lost(scene, operation).await,
                Step::Restart => self.restart().await?,
                Step::Mark => scene.marked = self.observed().await?,
                Step::Same(rule) => self.same(scene, rule).await?,
                Step::Learn => self.usual = self.effect(scene).await?,
                Step::Usual => self.is_usual(scene).await?,
            }
        }
        Ok(())
    }

    /// Asks once; the answer must mean what is expected.
    async fn ask(&self, scene: &mut Scene, operation: Operation, expected: Expected) -> Held {
        scene.attempt += 1;
        let request = self.request(scene, operation, scene.attempt);
        let (status, answer) = exchange(&self.connections, request, self.options.timeout).await;
        let found = scene.note(operation, scene.attempt, status, answer.clone());
        let allowed = scene.allowed(operation, expected);
        scene.remember(operation, found);
        if allowed.contains(&found) {
            return Ok(());
        }
        let operation = operation.as_str();
        Err(format!(
            "{operation} answered {status}: {}; that means {found:?}, and must mean one of \
             {allowed:?}",
            answer.trim()
        ))
    }

    /// Asks many times at once; every answer must mean the same, and what is expected.
    async fn at_once(&self, scene: &mut Scene, operation: Operation, expected: Expected) -> Held {
        let allowed = scene.allowed(operation, expected);
        let mut calls = tokio::task::JoinSet::new();
        for attempt in 1..=DUPLICATES {
            let request = self.request(scene, operation, attempt);
            let (connections, timeout) = (self.connections.clone(), self.options.timeout);
            calls.spawn(async move { (attempt, exchange(&connections, request, timeout).await) });
        }
        let mut found = Vec::new();
        for (attempt, (status, answer)) in calls.join_all().await {
            found.push(scene.note(operation, attempt, status, answer));
        }
        let alike = found.windows(2).all(|pair| pair[0] == pair[1]);
        if alike && found.iter().all(|meaning| allowed.contains(meaning)) {
            return Ok(());
        }
        Err(format!(
            "{DUPLICATES} at once were answered {found:?}; all must be the same, and one of \
             {allowed:?}"
        ))
    }

    /// Sends a whole call, and closes the connection without reading the answer. The service may
    /// have done the work, may do it later, or may never hear of it.
    async fn lost(&self, scene: &mut Scene, operation: Operation) {
        scene.attempt += 1;
        let request = self.request(scene, operation, scene.attempt);
        let answer = match tokio::time::timeout(self.options.timeout, send_only(request)).await {
            Ok(Ok(())) => "(nobody waited for the answer)".to_owned(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "(it could not be sent in time)".to_owned(),
        };
        scene.note(operation, scene.attempt, 0, answer);
    }

    /// Stops the service, starts it, and waits until it answers something.
    async fn restart(&mut self) -> Held {
        let Some(restart) = &self.options.restart else { return Err(HOW_TO_PLAY.to_owned()) };
        let deadline = Instant::now() + self.options.restart_timeout;
        let limit_ms = self.options.restart_timeout.as_millis();
        match tokio::time::timeout_at(deadline, (restart.0)()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(format!("the service cannot be restarted: {error}")),
            Err(_) => return Err(format!("the restart took longer than {limit_ms} ms")),
        }
        // Connections to what was there before are of no use.
        self.connections = connections();
        let mut looks = tokio::time::interval(LOOK);
        loop {
            looks.tick().await;
            let request = Request::get(self.participant).body(Full::default()).unwrap_or_default();
            let (status, error) = exchange(&self.connections, request, self.options.timeout).await;
            if status != 0 {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(format!(
                    "the service does not answer {limit_ms} ms after its restart began: {error}"
                ));
            }
        }
    }

    pub(super) fn request(
        &self,
        scene: &Scene,
        operation: Operation,
        attempt: u32,
    ) -> Request<Full<Bytes>> {
        let base = self.participant.trim_end_matches('/');
        let mut request = Request::post(format!("{base}/{}", operation.as_str()))
            .header(TRANSACTION_HEADER, scene.transaction.as_str())
            .header(BRANCH_HEADER, BRANCH)
            .header(ATTEMPT_HEADER, attempt.to_string());
        let body = if operation.carries_payload() {
            request = request.header(http::header::CONTENT_TYPE, JSON);
            self.payload.clone()
        } else {
            Bytes::new()
        };
        // A URL that is none shows as a call without an answer.
        request.body(Full::new(body)).unwrap_or_default()
    }

    /// What the service's work has changed so far, if it can be seen.
    async fn observed(&self) -> Result<Option<String>, String> {
        let Some(url) = &self.options.observe else { return Ok(None) };
        let request = Request::get(url).body(Full::default());
        let request = request.map_err(|error| format!("{url} is no URL: {error}"))?;
        let (status, answer) = exchange(&self.connections, request, self.options.timeout).await;
        if status == 200 {
            return Ok(Some(answer));
        }
        Err(format!("{url} answered {status}: {answer}"))
    }

    async fn same(&self, scene: &Scene, rule: &str) -> Held {
        let after = self.observed().await?;
        if scene.marked == after {
            return Ok(());
        }
        let show = |seen: &Option<String>| seen.as_deref().unwrap_or_default().trim().to_owned();
        Err(format!("{rule}, but it was {} and is {}", show(&scene.marked), show(&after)))
    }

    async fn effect(&self, scene: &Scene) -> Result<Option<Effect>, String> {
        let after = self.observed().await?;
        Ok(scene.marked.as_ref().zip(after).and_then(|(before, after)| effect(before, &after)))
    }

    /// What has changed must be what one usually changes, as far as that is known.
    async fn is_usual(&self, scene: &Scene) -> Held {
        let Some(usual) = &self.usual else { return Ok(()) };
        match self.effect(scene).await? {
            Some(found) if found != *usual => Err(format!(
                "once must change what it usually does, in thousandths {usual:?}, and has changed \
                 {found:?}"
            )),
            Some(_) | None => Ok(()),
        }
    }
}

impl Scene {
    /// What an answer may mean here.
    fn allowed(&self, operation: Operation, expected: Expected) -> Vec<Meaning> {
        match expected {
            Expected::Yes => vec![Yes, ReadOnly],
            Expected::AsBefore => self.vote.into_iter().collect(),
            Expected::No => vec![No],
            Expected::Acknowledged => vec![Acknowledged],
            Expected::Refused => {
                let phase_two = !matches!(operation, Operation::Prepare | Operation::Execute);
                let nothing_done = self.vote == Some(ReadOnly) && phase_two;
                if nothing_done { vec![Unknown, No, Acknowledged] } else { vec![Unknown, No] }
            }
        }
    }

    fn remember(&mut self, operation: Operation, found: Meaning) {
        if matches!(operation, Operation::Prepare | Operation::Execute) {
            self.vote.get_or_insert(found);
        }
    }

    fn note(&mut self, operation: Operation, attempt: u32, status: u16, answer: String) -> Meaning {
        let found = meaning(operation, status, &answer);
        let (transaction, operation) = (self.transaction.clone(), operation.as_str().to_owned());
        self.exchanges.push(Exchange { operation, transaction, attempt, status, answer });
        found
    }

    /// The same for the first attempt of another transaction.
    pub(super) fn note_for(
        &mut self,
        transaction: &str,
        operation: Operation,
        status: u16,
        answer: String,
    ) -> Meaning {
        let found = self.note(operation, 1, status, answer);
        if let Some(exchange) = self.exchanges.last_mut() {
            transaction.clone_into(&mut exchange.transaction);
        }
        found
    }
}

fn connections() -> Http {
    Connections::builder(TokioExecutor::new()).build_http()
}

pub(super) async fn exchange(
    connections: &Http,
    request: Request<Full<Bytes>>,
    timeout: Duration,
) -> (u16, String) {
    let answered = async {
        let response = connections.request(request).await.map_err(|error| in_words(&error))?;
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

/// An error and what caused it.
fn in_words(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Writes a request and closes. The answer cannot come before the connection is gone.
async fn send_only(request: Request<Full<Bytes>>) -> std::io::Result<()> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let host = head.uri.host().unwrap_or_default();
    let name = host.trim_start_matches('[').trim_end_matches(']');
    let port = head.uri.port_u16().unwrap_or(80);
    let path = head.uri.path();
    let mut text = format!("POST {path} HTTP/1.1\r\nhost: {host}:{port}\r\n");
    for (name, value) in &head.headers {
        text.push_str(&format!("{name}: {}\r\n", value.to_str().unwrap_or_default()));
    }
    text.push_str(&format!("content-length: {}\r\n\r\n", body.len()));
    let mut stream = TcpStream::connect((name, port)).await?;
    stream.write_all(&[text.as_bytes(), &body].concat()).await?;
    stream.shutdown().await
}

/// What the coordinator makes of an answer.
fn meaning(operation: Operation, status: u16, answer: &str) -> Meaning {
    use Operation::{Commit, Compensate, Execute, Prepare, Rollback};
    let body: Option<serde_json::Value> = serde_json::from_str(answer).ok();
    let readable = answer.trim().is_empty() || body.as_ref().is_some_and(|body| body.is_object());
    match (operation, status) {
        (Prepare | Execute, 200) if readable => {
            match body.as_ref().and_then(|body| body["vote"].as_str()) {
                None | Some("yes") => Yes,
                Some("read_only") => ReadOnly,
                Some("no") => No,
                Some(_) => Unknown,
            }
        }
        (Execute, 204) => Yes,
        (Prepare | Execute, 409 | 422) => No,
        (Commit | Rollback | Compensate, 200 | 204) => Acknowledged,
        _ => Unknown, // another answer is never understood
    }
}
