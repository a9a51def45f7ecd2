//! How the tests ask: a plain HTTP client, every answer of which is held against the API's own
//! description; the coordinator as a process with a folder of its own; and commands that end.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client as Connections;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use unanimity_sdk::Client;

use crate::described;
use crate::setup::{Folder, PATIENCE, program, until};

/// An answer as it came.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8(self.body.to_vec()).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error} in {}: {:?}", self.status, self.body))
    }

    /// The value of a header; empty if there is none.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The code and the field of a problem document.
    pub fn problem(&self) -> (String, String) {
        assert_eq!(self.header("content-type"), "application/problem+json", "{}", self.text());
        let document = self.json();
        assert_eq!(document["status"], self.status, "{document}");
        assert!(document["detail"].as_str().is_some_and(|text| text.len() > 8), "{document}");
        let text = |name: &str| document[name].as_str().unwrap_or_default().to_owned();
        assert_eq!(text("type"), format!("/errors/{}", text("code")));
        (text("code"), text("field"))
    }
}

/// A client for one coordinator, or for anything else that speaks HTTP.
#[derive(Clone)]
pub struct Ask {
    connections: Connections<HttpConnector, Full<Bytes>>,
    url: String,
    /// The API's description; null for what is no coordinator.
    description: Arc<Value>,
}

impl Ask {
    /// A client that holds no answer against anything.
    pub fn anybody(url: &str) -> Self {
        let connections = Connections::builder(TokioExecutor::new()).build(HttpConnector::new());
        Self { connections, url: url.to_owned(), description: Arc::new(Value::Null) }
    }

    pub async fn coordinator(url: &str) -> Self {
        let mut ask = Self::anybody(url);
        ask.description = Arc::new(ask.get("/openapi.json").await.json());
        ask
    }

    pub async fn try_send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &[u8])],
        body: impl Into<Bytes>,
    ) -> Result<Answer, String> {
        let mut request = Request::new(Full::new(body.into()));
        *request.method_mut() = method.parse().unwrap();
        *request.uri_mut() = format!("{}{path}", self.url).parse().unwrap();
        for (name, value) in headers {
            let value = HeaderValue::from_bytes(value).unwrap();
            request.headers_mut().append(name.parse::<HeaderName>().unwrap(), value);
        }
        let asking = async {
            let response = self.connections.request(request).await;
            let response = response.map_err(|error| format!("{error:?}"))?;
            let (head, body) = response.into_parts();
            let body = body.collect().await.map_err(|error| error.to_string())?.to_bytes();
            Ok(Answer { status: head.status.as_u16(), headers: head.headers, body })
        };
        let answer: Result<Answer, String> =
            tokio::time::timeout(PATIENCE, asking).await.expect("an answer in time");
        if let (Ok(answer), false) = (&answer, self.description.is_null()) {
            described::check(&self.description, method, path, answer);
        }
        answer
    }

    pub async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &[u8])],
        body: impl Into<Bytes>,
    ) -> Answer {
        let answer = self.try_send(method, path, headers, body).await;
        answer.unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], "").await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, &JSON, body.to_string()).await
    }

    /// Begins a transaction.
    pub async fn begin(&self, request: &Value) -> Answer {
        self.post("/v1/transactions", request).await
    }

    /// Begins an interactive transaction with these fields, and shows it. One whose open time is
    /// short may be open no more when it is answered.
    pub async fn open(&self, id: &str, fields: &Value) -> Value {
        let mut asked = json!({"id": id, "interactive": true, "branches": []});
        for (name, value) in fields.as_object().unwrap() {
            asked[name] = value.clone();
        }
        let answer = self.begin(&asked).await;
        let shown = answer.json();
        let expected = if shown["stage"] == "open" { 200 } else { 202 };
        assert_eq!(answer.status, expected, "{shown}");
        shown
    }

    /// Asks for something about a transaction, by the rest of the path.
    pub async fn about(&self, id: &str, rest: &str, body: &Value) -> Answer {
        self.post(&format!("/v1/transactions/{id}/{rest}"), body).await
    }

    /// A transaction as it is.
    pub async fn shown(&self, id: &str) -> Value {
        let answer = self.get(&format!("/v1/transactions/{id}")).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    }

    /// A transaction once it is complete.
    pub async fn ended(&self, id: &str) -> Value {
        until("the transaction to complete", async || {
            // One that is overdue is answered at once, complete or not.
            let answer = self.get(&format!("/v1/transactions/{id}?wait=20s")).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            Some(answer.json()).filter(|shown| shown["completed"] == true)
        })
        .await
    }

    /// The ids on one page of a list, and the whole page.
    pub async fn list(&self, query: &str) -> (Vec<String>, Value) {
        let answer = self.get(&format!("/v1/transactions?{query}")).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let page = answer.json();
        let ids = page["transactions"].as_array().unwrap().iter();
        (ids.map(|one| one["id"].as_str().unwrap().to_owned()).collect(), page)
    }
}

pub const JSON: [(&str, &[u8]); 1] = [("content-type", b"application/json")];

/// A request for a transaction with a branch at each of these participants.
pub fn request(id: &str, participants: &[String]) -> Value {
    let branches: Vec<Value> = participants
        .iter()
        .zip(["a", "b", "c"])
        .map(|(participant, name)| {
            json!({"name": name, "participant": participant, "payload": {"of": id}})
        })
        .collect();
    json!({"id": id, "branches": branches})
}

/// The same with other fields set.
pub fn with(mut request: Value, fields: &[(&str, Value)]) -> Value {
    for (name, value) in fields {
        request[*name] = value.clone();
    }
    request
}

/// How a program ended.
#[derive(Debug)]
pub struct Ended {
    /// -1 for a signal.
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

/// Runs `unanimity` with these arguments to its end.
pub async fn run(arguments: &[&str]) -> Ended {
    run_with(arguments, &[]).await
}

/// The same with an environment.
pub async fn run_with(arguments: &[&str], environment: &[(&str, &str)]) -> Ended {
    let mut command = Command::new(program());
    command.args(arguments).envs(environment.iter().copied());
    Running::spawn(command).ended().await
}

/// A program that was started.
pub struct Running {
    child: Child,
    stdout: Option<BufReader<tokio::process::ChildStdout>>,
    stderr: Option<JoinHandle<String>>,
}

impl Running {
    pub fn spawn(mut command: Command) -> Self {
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.kill_on_drop(true).spawn().unwrap();
        let mut stderr = child.stderr.take().unwrap();
        let read = async move {
            let mut bytes = Vec::new();
            stderr.read_to_end(&mut bytes).await.unwrap();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let stdout = child.stdout.take().map(BufReader::new);
        Self { child, stdout, stderr: Some(tokio::spawn(read)) }
    }

    pub fn id(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    /// Where it listens, once it says so.
    pub async fn listens(&mut self) -> String {
        match self.says_where().await {
            Some(url) => url,
            None => panic!("it does not listen: {}", self.complaint().await),
        }
    }

    /// The same; `None` if it ends instead.
    pub async fn says_where(&mut self) -> Option<String> {
        let mut line = String::new();
        let reading = self.stdout.as_mut().unwrap().read_line(&mut line);
        tokio::time::timeout(PATIENCE, reading).await.expect("a line in time").unwrap();
        line.trim().split_once("listening on ").map(|(_, url)| url.to_owned())
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    async fn complaint(&mut self) -> String {
        let stderr = self.stderr.take().unwrap();
        tokio::time::timeout(PATIENCE, stderr).await.expect("it ends").unwrap()
    }

    /// Sends a signal, by its name without SIG.
    pub async fn signal(&self, name: &str) {
        let id = self.id().to_string();
        let sent = Command::new("kill").args([format!("-{name}"), id]).status().await.unwrap();
        assert!(sent.success());
    }

    pub async fn kill(&mut self) {
        self.child.kill().await.unwrap();
    }

    /// How it ended, once it has.
    pub async fn ended(mut self) -> Ended {
        let mut stdout = String::new();
        let reading = self.stdout.as_mut().unwrap().read_to_string(&mut stdout);
        tokio::time::timeout(PATIENCE, reading).await.expect("it ends in time").unwrap();
        let status = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        let status = status.expect("it ends in time").unwrap().code().unwrap_or(-1);
        Ended { status, stdout, stderr: self.complaint().await }
    }
}

/// A coordinator as a process, with a folder that goes away with it.
pub struct Coordinator {
    running: Option<Running>,
    arguments: Vec<String>,
    /// What a shell does before it turns into the program; empty for no shell.
    pub before: String,
    pub url: String,
    pub ask: Ask,
    folder: Folder,
}

impl Coordinator {
    pub async fn start(flags: &[&str]) -> Self {
        let folder = Folder::new();
        let data = folder.path().join("data");
        Self::start_in(folder, &data, "", flags).await
    }

    /// One with a data folder of the test's choice, after something that a shell does.
    pub async fn start_in(folder: Folder, data: &Path, before: &str, flags: &[&str]) -> Self {
        let data = data.display().to_string();
        let mut arguments = vec!["serve".to_owned(), "--data-folder".to_owned(), data];
        arguments.extend(flags.iter().map(|flag| (*flag).to_owned()));
        let (running, url) = serve(&arguments, before, "127.0.0.1:0").await;
        let ask = Ask::coordinator(&url).await;
        let (running, before) = (Some(running), before.to_owned());
        Self { running, arguments, before, url, ask, folder }
    }

    pub fn client(&self) -> Client {
        Client::new(&self.url, None).unwrap()
    }

    pub fn id(&self) -> u32 {
        self.running.as_ref().unwrap().id()
    }

    /// Its data folder.
    pub fn data(&self) -> PathBuf {
        PathBuf::from(&self.arguments[2])
    }

    /// A file beside its data, with this content.
    pub fn file(&self, name: &str, content: &str) -> String {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    }

    /// Takes the process out; what is left can be started again.
    pub fn take(&mut self) -> Running {
        self.running.take().unwrap()
    }

    /// Kills it as a power cut would, if it runs.
    pub async fn kill(&mut self) {
        if let Some(mut running) = self.running.take() {
            running.kill().await;
        }
    }

    /// Starts it again at the same address.
    pub async fn start_again(&mut self) {
        let address = self.url.trim_start_matches("http://").to_owned();
        self.running = Some(serve(&self.arguments, &self.before, &address).await.0);
    }

    /// The same; gives back how it ended if it does not come to listen.
    pub async fn try_start_again(&mut self) -> Option<Ended> {
        let address = self.url.trim_start_matches("http://").to_owned();
        let mut running = spawn(&self.arguments, &self.before, &address);
        if running.says_where().await.is_none() {
            return Some(running.ended().await);
        }
        self.running = Some(running);
        None
    }

    /// Changes the configuration of its next starts.
    pub fn add_flags(&mut self, flags: &[&str]) {
        self.arguments.extend(flags.iter().map(|flag| (*flag).to_owned()));
    }

    /// Starts it again although it cannot; gives back how it ended.
    pub async fn start_in_vain(&self, flags: &[&str]) -> Ended {
        let arguments = self.arguments.iter().map(String::as_str);
        let address = ["--listen-address", "127.0.0.1:0"];
        let all: Vec<&str> = arguments.chain(address).chain(flags.iter().copied()).collect();
        run(&all).await
    }

    /// Asks it to stop, and gives back how it ended.
    pub async fn stop(&mut self) -> Ended {
        let running = self.take();
        running.signal("TERM").await;
        running.ended().await
    }
}

async fn serve(arguments: &[String], before: &str, address: &str) -> (Running, String) {
    let mut running = spawn(arguments, before, address);
    let url = running.listens().await;
    (running, url)
}

fn spawn(arguments: &[String], before: &str, address: &str) -> Running {
    let mut command = if before.is_empty() {
        Command::new(program())
    } else {
        let mut shell = Command::new("bash");
        shell.arg("-c").arg(format!("{before}; exec \"$0\" \"$@\"")).arg(program());
        shell
    };
    command.args(arguments).args(["--listen-address", address]);
    Running::spawn(command)
}

/// Waits so long at most for something that must come by itself.
pub async fn soon<T>(coming: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(40), coming).await.expect("it comes in time")
}
