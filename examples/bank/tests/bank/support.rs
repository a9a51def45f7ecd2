//! What the tests share: a place for the file, a bank inside the test, and a bank as a process.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::de::DeserializeOwned;
use unanimity_bank::{AccountService, FaultSpec, Faults, KeyedAccounts};
use unanimity_sdk::guard::Reply;
use unanimity_sdk::resource::Concurrency;
use unanimity_sdk::{
    CallError, Operation, Participant, ResourceParticipant, SqliteParticipant, TransactionId,
};

/// A folder that goes away with its owner.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("unanimity-bank-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A bank without HTTP: `accounts` accounts of 1,000 cents.
pub fn open(folder: &Folder, name: &str, accounts: u32, faults: &str) -> SqliteParticipant {
    let spec: FaultSpec = faults.parse().unwrap();
    let faults = Arc::new(Faults::new(1, spec));
    let service = AccountService::new(name, accounts, 1_000, faults).unwrap();
    SqliteParticipant::open(folder.file(name), service).unwrap()
}

/// A bank without HTTP, in whichever way: what is called, and the file behind it.
pub struct Opened {
    pub participant: Arc<dyn Participant>,
    pub file: Arc<SqliteParticipant>,
}

/// A bank as `open` makes it, by reservation if no way to lock is given.
pub fn open_by(
    folder: &Folder,
    name: &str,
    accounts: u32,
    faults: &str,
    locks: Option<Concurrency>,
) -> Opened {
    let Some(concurrency) = locks else {
        let file = Arc::new(open(folder, name, accounts, faults));
        return Opened { participant: Arc::clone(&file) as _, file };
    };
    let faults = Arc::new(Faults::new(1, faults.parse().unwrap()));
    let service = AccountService::new(name, accounts, 1_000, faults).unwrap();
    let accounts = KeyedAccounts::new(service);
    let participant = ResourceParticipant::open(folder.file(name), accounts, concurrency).unwrap();
    let file = participant.file();
    Opened { participant: Arc::new(participant), file }
}

pub fn payload(account: &str, amount: i64) -> String {
    format!(r#"{{"account":"{account}","amount":{amount}}}"#)
}

pub async fn call(
    bank: &dyn Participant,
    transaction: &str,
    operation: Operation,
    payload: &str,
) -> Result<Reply, CallError> {
    let request = unanimity_sdk::Request {
        transaction: TransactionId::new(transaction).unwrap(),
        branch: "b".into(),
        operation,
        attempt: 1,
        payload: payload.to_owned().into(),
    };
    bank.call(request).await
}

/// Balance and reserved of one account.
pub async fn money(bank: &SqliteParticipant, account: &'static str) -> (i64, i64) {
    let sql = "SELECT balance, reserved FROM account WHERE id = ?1";
    let read =
        bank.read(move |db| db.query_row(sql, [account], |row| Ok((row.get(0)?, row.get(1)?))));
    read.await.unwrap()
}

/// The bank's program, running.
pub struct Process {
    child: Child,
    /// Kept open, because a program whose output nobody can take would fail on it.
    _stdout: BufReader<ChildStdout>,
    pub url: String,
}

impl Process {
    pub fn start(folder: &Folder, faults: &str) -> Self {
        Self::start_as(folder, faults, "reservation", "127.0.0.1:0")
    }

    /// The same at an address of the test's choice.
    pub fn start_at(folder: &Folder, faults: &str, address: &str) -> Self {
        Self::start_as(folder, faults, "reservation", address)
    }

    /// The same, with another way to keep transfers apart.
    pub fn start_by(folder: &Folder, faults: &str, way: &str) -> Self {
        Self::start_as(folder, faults, way, "127.0.0.1:0")
    }

    fn start_as(folder: &Folder, faults: &str, way: &str, address: &str) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_bank"))
            .args(["--name", "A", "--accounts", "10", "--balance", "1000", "--faults", faults])
            .args(["--listen", address])
            .args(["--accounts-by", way])
            .arg("--database")
            .arg(folder.file("A"))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let url = line.trim().strip_prefix("bank A listening on ").unwrap().to_owned();
        Self { child, _stdout: stdout, url }
    }

    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args([name, &self.child.id().to_string()]).status();
        assert!(status.unwrap().success());
    }

    pub fn wait(mut self) -> std::process::ExitStatus {
        self.child.wait().unwrap()
    }

    /// Sends one operation; the status and the body, or none if the connection broke.
    pub async fn ask(
        &self,
        operation: &str,
        transaction: &str,
        attempt: u32,
        body: &str,
    ) -> Option<(u16, String)> {
        let request = Request::post(format!("{}/transactions/{operation}", self.url))
            .header("unanimity-transaction", transaction)
            .header("unanimity-branch", "b")
            .header("unanimity-attempt", attempt)
            .body(Full::new(Bytes::from(body.to_owned())))
            .unwrap();
        send(request).await
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> T {
        let request = Request::get(format!("{}{path}", self.url)).body(Full::default()).unwrap();
        let (status, body) = send(request).await.unwrap();
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }

    pub async fn set_faults(&self, spec: &str) -> u16 {
        let body = Full::new(Bytes::from(spec.to_owned()));
        send(Request::post(format!("{}/faults", self.url)).body(body).unwrap()).await.unwrap().0
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub async fn send(request: Request<Full<Bytes>>) -> Option<(u16, String)> {
    // A connection for each request, so that a broken one breaks nothing else.
    let client: Client<HttpConnector, Full<Bytes>> =
        Client::builder(TokioExecutor::new()).build_http();
    let response = client.request(request).await.ok()?;
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.ok()?.to_bytes();
    Some((status, String::from_utf8(body.to_vec()).unwrap()))
}
