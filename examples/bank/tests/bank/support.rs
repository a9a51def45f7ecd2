//! What the tests share: a place for the file, a bank inside the test, and a bank as a process.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::de::DeserializeOwned;
use tokio::sync::{Mutex, MutexGuard};
use unanimity_bank::{BankArguments, Books, Faults};
use unanimity_databases::{Database, DatabaseOptions, Make};
use unanimity_sdk::guard::Reply;
use unanimity_sdk::mariadb::mysql_async::{self, prelude::Queryable};
use unanimity_sdk::postgres::tokio_postgres;
use unanimity_sdk::{CallError, Doubting, Operation, TransactionId};

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

/// Where a bank's accounts lie.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its name, for messages.
    pub kind: &'static str,
    /// What stands before `/NAME` in its URL; none is a SQLite file.
    server: Option<String>,
    pub xa: bool,
}

/// A server of each make, shared by all tests of this program. It ends with the process.
fn server(make: Make) -> &'static Database {
    static POSTGRESQL: OnceLock<Database> = OnceLock::new();
    static MARIADB: OnceLock<Database> = OnceLock::new();
    let server = match make {
        Make::PostgreSql => &POSTGRESQL,
        Make::MariaDb => &MARIADB,
    };
    server.get_or_init(|| Database::start(make, &DatabaseOptions::default()).unwrap())
}

/// Every place where the bank reserves.
pub fn places() -> Vec<Place> {
    let of = |make: Make| {
        let url = server(make).url();
        let (server, _) = url.rsplit_once('/').unwrap();
        Place { kind: make.name(), server: Some(server.to_owned()), xa: false }
    };
    vec![Place { kind: "SQLite", server: None, xa: false }, of(Make::PostgreSql), of(Make::MariaDb)]
}

/// Every place where the database prepares, for one test at a time: what a server has prepared it
/// lists for all its databases, and the banks of all tests have the same names.
pub async fn xa_places() -> (MutexGuard<'static, ()>, Vec<Place>) {
    static ALONE: Mutex<()> = Mutex::const_new(());
    let places = places().into_iter().filter(|place| place.server.is_some());
    (ALONE.lock().await, places.map(|place| Place { xa: true, ..place }).collect())
}

impl Place {
    /// A database that nobody has used; the place of it in `--database`.
    pub async fn fresh(&self, folder: &Folder) -> PathBuf {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let Some(server) = &self.server else { return folder.file(&format!("bank-{number}")) };
        let (first, sql) =
            (format!("{server}/unanimity"), format!("CREATE DATABASE bank_{number}"));
        if server.starts_with("mysql:") {
            let mut client = mysql_async::Conn::from_url(first).await.unwrap();
            client.query_drop(sql).await.unwrap();
            client.disconnect().await.unwrap();
        } else {
            let (client, connection) =
                tokio_postgres::connect(&first, tokio_postgres::NoTls).await.unwrap();
            tokio::spawn(connection);
            client.batch_execute(&sql).await.unwrap();
        }
        format!("{server}/bank_{number}").into()
    }
}

/// A bank without HTTP: `accounts` accounts of 1,000 cents.
pub async fn open(arguments: BankArguments) -> Books {
    let faults = Arc::new(Faults::new(arguments.seed, arguments.faults.clone()));
    unanimity_bank::open(&arguments, &faults).await.unwrap()
}

/// How most tests begin: few accounts, and nobody waits for a lock for long.
pub fn arguments(name: &str, place: &Place, database: PathBuf, accounts: u32) -> BankArguments {
    BankArguments {
        accounts,
        balance: 1_000,
        xa: place.xa,
        lock_timeout_ms: 0,
        ..BankArguments::new(name, database)
    }
}

/// Balance and reserved of one account.
pub async fn money(bank: &Books, account: &str) -> (i64, i64) {
    let account = bank.account(account.to_owned()).await.unwrap().unwrap();
    (account.balance, account.reserved)
}

pub fn payload(account: &str, amount: i64) -> String {
    format!(r#"{{"account":"{account}","amount":{amount}}}"#)
}

pub async fn call(
    bank: &dyn Doubting,
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

    /// The same, with another way to keep transfers apart.
    pub fn start_by(folder: &Folder, faults: &str, way: &str) -> Self {
        Self::start_as(folder, faults, way, "127.0.0.1:0")
    }

    fn start_as(folder: &Folder, faults: &str, way: &str, address: &str) -> Self {
        Self::start_with(&folder.file("A"), faults, address, &["--accounts-by", way])
    }

    /// The same on any database, with further arguments.
    pub fn start_with(
        database: &std::path::Path,
        faults: &str,
        address: &str,
        further: &[&str],
    ) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_bank"))
            .args(["--name", "A", "--accounts", "10", "--balance", "1000", "--faults", faults])
            .args(["--listen", address])
            .args(further)
            .arg("--database")
            .arg(database)
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
