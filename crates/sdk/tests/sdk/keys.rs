//! What the tests of the resource layer share: a resource of numbers, each 100 at first, a
//! participant whose waits end when a test says so, and short ways to call it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use unanimity_sdk::resource::{
    Alarm, Change, Concurrency, Plan, Resource, ResourceOptions, Values, WaitOrder, Writes,
};
use unanimity_sdk::rusqlite::Connection;
use unanimity_sdk::rusqlite::types::Value;
use unanimity_sdk::{
    BranchContext, Operation, Participant, Request, ResourceParticipant, ServiceResult,
};

use crate::support::{id, text};

pub const LOCKING: Concurrency = Concurrency::locking(WaitOrder::OlderWaits);
pub const QUEUEING: Concurrency = Concurrency::locking(WaitOrder::YoungerWaits);
pub const OPTIMISTIC: Concurrency = Concurrency::Optimistic;

/// Numbers under keys. A payload is a list of words: `a+5` and `a-5` change `a` (never below 0),
/// `a?` reads it, `a@3` expects it at version 3, `since=7` says when the work was first begun.
/// `rogue` writes a key that it has not planned. The result is what was read, with its version.
pub struct Numbers;

/// A word's key and what is done with it.
enum Word<'a> {
    Add(&'a str, i64),
    Read(&'a str),
    Expect(&'a str, i64),
    Since(u64),
    Rogue,
}

fn words(payload: &[u8]) -> Vec<Word<'_>> {
    let text = std::str::from_utf8(payload).unwrap();
    let word = |word| match str::split_once(word, ['+', '-', '@', '=', '?']) {
        None => Word::Rogue,
        Some((key, rest)) => match word.as_bytes()[key.len()] {
            b'+' => Word::Add(key, rest.parse().unwrap()),
            b'-' => Word::Add(key, -rest.parse::<i64>().unwrap()),
            b'@' => Word::Expect(key, rest.parse().unwrap()),
            b'=' => Word::Since(rest.parse().unwrap()),
            _ => Word::Read(key),
        },
    };
    text.split(',').map(word).collect()
}

fn sums(payload: &[u8], values: &Values, sign: i64) -> Writes {
    let mut writes = Vec::new();
    for word in words(payload) {
        match word {
            Word::Add(key, amount) => {
                let value = values.integer(key).unwrap_or(100) + sign * amount;
                writes.push((key.to_owned(), Value::Integer(value)));
            }
            Word::Rogue => writes.push(("elsewhere".to_owned(), Value::Integer(1))),
            Word::Read(_) | Word::Expect(..) | Word::Since(_) => {}
        }
    }
    writes
}

impl Resource for Numbers {
    fn plan(&self, _: &BranchContext, payload: &[u8]) -> ServiceResult<Result<Plan, String>> {
        let plan = words(payload).iter().fold(Plan::new(), |plan, word| match word {
            Word::Add(key, _) => plan.writes(*key),
            Word::Read(key) => plan.reads(*key),
            Word::Expect(key, version) => plan.expects(*key, *version),
            Word::Since(since_ms) => plan.since_ms(*since_ms),
            Word::Rogue => plan,
        });
        Ok(Ok(plan))
    }

    fn change(&self, _: &BranchContext, payload: &[u8], values: &Values) -> ServiceResult<Change> {
        let writes = sums(payload, values, 1);
        let negative = |(_, value): &&(String, Value)| matches!(value, Value::Integer(..0));
        if let Some((key, _)) = writes.iter().find(negative) {
            return Ok(Change::no(format!("{key} is too small")));
        }
        let mut read = serde_json::Map::new();
        for word in words(payload) {
            if let Word::Add(key, _) | Word::Read(key) = word {
                let value = values.integer(key).unwrap_or(100);
                read.insert(key.to_owned(), serde_json::json!([value, values.version(key)]));
            }
        }
        Ok(Change::WriteWith(writes, read.into()))
    }

    fn reverse(&self, _: &BranchContext, payload: &[u8], values: &Values) -> ServiceResult<Writes> {
        Ok(sums(payload, values, -1))
    }
}

/// A call on its way.
pub enum Sent {
    Answered(String),
    Waits(Waiting),
}

/// A call that waits.
pub struct Waiting {
    pub handle: JoinHandle<String>,
    ring: Option<oneshot::Sender<()>>,
}

impl Waiting {
    /// Ends its time.
    pub fn ring(&mut self) {
        self.ring.take().unwrap().send(()).unwrap();
    }

    pub async fn answer(self) -> String {
        let Self { handle, ring } = self;
        let answer = handle.await.unwrap();
        drop(ring); // Not earlier: an alarm that is gone rings.
        answer
    }
}

/// A participant over numbers.
pub struct Store {
    path: PathBuf,
    pub participant: Arc<ResourceParticipant>,
    alarms: mpsc::UnboundedReceiver<oneshot::Sender<()>>,
}

impl Store {
    pub fn open(path: PathBuf, concurrency: Concurrency) -> Self {
        let (started, alarms) = mpsc::unbounded_channel();
        let alarm: Alarm = Arc::new(move |_: Duration| {
            let (ring, rung) = oneshot::channel();
            started.send(ring).unwrap();
            Box::pin(async move { rung.await.unwrap_or(()) })
        });
        let options = ResourceOptions { alarm: Some(alarm), ..ResourceOptions::new(concurrency) };
        let participant = ResourceParticipant::open_with(&path, Numbers, options).unwrap();
        Self { path, participant: Arc::new(participant), alarms }
    }

    /// The same file, opened again.
    pub fn reopen(self, concurrency: Concurrency) -> Self {
        let path = self.path.clone();
        drop(self);
        Self::open(path, concurrency)
    }

    /// Calls, and comes back when there is an answer or when the call waits.
    pub async fn send(&mut self, name: &str, operation: Operation, payload: &str) -> Sent {
        let (transaction, branch) = name.split_once('/').unwrap_or((name, "b"));
        let request = Request {
            transaction: id(transaction),
            branch: branch.into(),
            operation,
            attempt: 1,
            payload: payload.to_owned().into(),
        };
        let participant = Arc::clone(&self.participant);
        let mut handle = tokio::spawn(async move { text(participant.call(request).await) });
        tokio::select! {
            answer = &mut handle => Sent::Answered(answer.unwrap()),
            ring = self.alarms.recv() => Sent::Waits(Waiting { handle, ring }),
        }
    }

    /// The answer of a call that does not wait.
    pub async fn answered(&mut self, name: &str, operation: Operation, payload: &str) -> String {
        match self.send(name, operation, payload).await {
            Sent::Answered(answer) => answer,
            Sent::Waits(_) => panic!("{name} {operation:?} {payload} waits"),
        }
    }

    /// A call that waits.
    pub async fn waits(&mut self, name: &str, operation: Operation, payload: &str) -> Waiting {
        match self.send(name, operation, payload).await {
            Sent::Answered(answer) => panic!("{name} {operation:?} {payload}: {answer}"),
            Sent::Waits(waiting) => waiting,
        }
    }

    pub async fn prepare(&mut self, name: &str, payload: &str) -> String {
        self.answered(name, Operation::Prepare, payload).await
    }

    pub async fn commit(&mut self, name: &str) {
        assert_eq!(self.answered(name, Operation::Commit, "").await, "ack", "{name}");
    }

    pub async fn rollback(&mut self, name: &str) {
        assert_eq!(self.answered(name, Operation::Rollback, "").await, "ack", "{name}");
    }

    /// A key's number and version.
    pub async fn number(&self, key: &str) -> (i64, i64) {
        let key = key.to_owned();
        let read = move |db: &Connection| {
            let sql = "SELECT coalesce(max(value), 100) FROM unanimity_value WHERE key = ?1";
            let value = db.query_row(sql, [&key], |row| row.get(0))?;
            Ok((value, ResourceParticipant::version(db, &key)?))
        };
        self.participant.file().read(read).await.unwrap()
    }

    pub async fn locks(&self) -> u64 {
        self.participant.file().read(ResourceParticipant::count_locks).await.unwrap()
    }

    /// Until so many branches wait, and whoever was woken has asked again.
    pub async fn until_waiting(&self, waiting: usize) {
        while self.participant.waiting() != waiting {
            tokio::task::yield_now().await;
        }
    }
}
