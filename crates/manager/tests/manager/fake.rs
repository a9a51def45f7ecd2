//! Participants that do as they are told, and what every test needs to talk to a manager.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use unanimity::core::{
    Answer, BranchPlan, Call, Kind, Operation, Options, Plan, RetryPolicy, TransactionId,
};
use unanimity::view::TransactionView;
use unanimity::{
    BeginReply, BeginRequest, CallFuture, ManagerConfig, Storage, TransactionManager, Transport,
    Wait,
};

/// Longer than anything takes; only a test that fails waits for it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Participants, named by their addresses. `a prepare` names one operation of one of them.
pub struct Fake {
    calls: watch::Sender<Vec<String>>,
    closed: watch::Sender<BTreeSet<String>>,
    faults: Mutex<BTreeMap<String, (Fault, u32)>>,
}

/// What goes wrong with a call.
#[derive(Clone, Copy)]
pub enum Fault {
    Lost,
    Panic,
    No,
    ReadOnly,
}

impl Fake {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            calls: watch::Sender::new(Vec::new()),
            closed: watch::Sender::new(BTreeSet::new()),
            faults: Mutex::default(),
        })
    }

    /// Lets these calls arrive and not be answered, until they are opened.
    pub fn close(&self, what: &str) {
        self.closed.send_modify(|closed| closed.extend([what.to_owned()]));
    }

    pub fn open(&self, what: &str) {
        self.closed.send_modify(|closed| closed.retain(|one| one != what));
    }

    /// Lets the next calls of this kind end like that.
    pub fn fault(&self, what: &str, fault: Fault, times: u32) {
        self.faults.lock().unwrap().insert(what.to_owned(), (fault, times));
    }

    /// Every call so far: `T a prepare 1`.
    pub fn calls(&self) -> Vec<String> {
        self.calls.borrow().clone()
    }

    /// How many of the calls so far begin like this.
    pub fn count(&self, start: &str) -> usize {
        self.calls.borrow().iter().filter(|call| call.starts_with(start)).count()
    }

    /// Waits until a call that begins like this has been seen so often.
    pub async fn seen(&self, start: &str, times: usize) {
        let mut calls = self.calls.subscribe();
        let enough = calls
            .wait_for(|calls| calls.iter().filter(|call| call.starts_with(start)).count() >= times);
        drop(soon(enough).await.unwrap());
    }

    fn next_fault(&self, what: &str) -> Option<Fault> {
        let mut faults = self.faults.lock().unwrap();
        let (fault, left) = faults.get_mut(what)?;
        *left = left.checked_sub(1)?;
        Some(*fault)
    }

    async fn answer(&self, call: Call) -> Answer {
        let operation = call.operation.as_str();
        let what = format!("{} {operation}", call.plan.participant);
        let seen = format!("{} {what} {}", call.transaction, call.attempt);
        self.calls.send_modify(|calls| calls.push(seen));
        let mut closed = self.closed.subscribe();
        drop(closed.wait_for(|closed| !closed.contains(&what)).await);
        match self.next_fault(&what) {
            Some(Fault::Lost) => Answer::Unknown("lost".into()),
            Some(Fault::Panic) => panic!("{what} panics, as it was told to"),
            Some(Fault::No) => Answer::No("refused".into()),
            Some(Fault::ReadOnly) => Answer::ReadOnly,
            None if matches!(call.operation, Operation::Prepare | Operation::Execute) => {
                Answer::Yes(Some("1".into()))
            }
            None => Answer::Acknowledged,
        }
    }
}

/// A fake as a transport; the test keeps the other handle.
pub struct Wire(pub Arc<Fake>);

impl Transport for Wire {
    fn call(&self, call: Call) -> CallFuture<'_> {
        Box::pin(self.0.answer(call))
    }

    fn check(&self, participant: &str) -> Result<(), (&'static str, String)> {
        if participant == "forbidden" {
            return Err(("participant_not_allowed", "not this one".to_owned()));
        }
        Ok(())
    }
}

/// A transaction over these participants, each a branch of the same name.
pub fn plan(participants: &[&str]) -> Plan {
    let branch = |name: &&str| BranchPlan {
        payload: b"payload-to-be-found".as_slice().into(),
        ..BranchPlan::new(*name, *name, Kind::TwoPhase)
    };
    // Retries are quick, and nothing times out before a test that fails does.
    let retry = RetryPolicy { delay_ms: 1, delay_max_ms: 2, ..RetryPolicy::default() };
    let (prepare_timeout_ms, attempt_timeout_ms) = (120_000, 120_000);
    let options = Options { prepare_timeout_ms, attempt_timeout_ms, retry, ..Options::default() };
    let options = Options { one_phase: false, ..options };
    Plan { open: false, branches: participants.iter().map(branch).collect(), options }
}

pub fn id(name: &str) -> TransactionId {
    TransactionId::new(name).unwrap()
}

pub fn request(name: &str, participants: &[&str], wait: Wait) -> BeginRequest {
    BeginRequest::with_id(id(name), plan(participants), wait)
}

/// What must come, if the test does not fail.
pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it did not come in time")
}

/// Lets everybody else work until something holds.
pub async fn until(holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    };
    soon(waiting).await;
}

pub async fn begin(
    manager: &TransactionManager,
    name: &str,
    participants: &[&str],
    wait: Wait,
) -> BeginReply {
    soon(manager.begin(request(name, participants, wait))).await.unwrap()
}

/// Waits until a transaction has ended.
pub async fn ended(manager: &TransactionManager, name: &str) -> TransactionView {
    let view = manager.wait_for(&id(name), Wait::Completed, PATIENCE).await.unwrap().unwrap();
    assert!(view.completed, "{view:?}");
    view
}

/// Outcome, reason and stage, in short.
pub fn short(view: &TransactionView) -> String {
    let outcome = view.outcome.as_deref().unwrap_or("undecided");
    let reason = view.reason.as_ref().map_or("", |reason| &reason.code);
    format!("{outcome} {reason} {}", view.stage)
}

/// Nobody is refused for how slow this machine is: that has tests of its own.
pub fn start(config: ManagerConfig, fake: &Arc<Fake>) -> TransactionManager {
    let config = ManagerConfig { queue_delay_target_ms: 0, ..config };
    TransactionManager::start(config, Arc::new(Wire(Arc::clone(fake)))).unwrap()
}

pub fn in_memory(fake: &Arc<Fake>) -> TransactionManager {
    start(ManagerConfig::default(), fake)
}

/// A folder that is gone when the test ends.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new() -> Self {
        let name = format!("unanimity-test-{}", TransactionManager::generate_id());
        Self(std::env::temp_dir().join(name))
    }

    pub fn config(&self) -> ManagerConfig {
        ManagerConfig { storage: Storage::Folder(self.0.clone()), ..ManagerConfig::default() }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0); // What is left in /tmp harms nobody.
    }
}
