//! Services in this process: what is refused before anything is sent, what an abandoned caller
//! leaves behind, and money.

use std::sync::{Arc, Mutex};

use tokio::sync::watch;
use tokio::task::JoinSet;
use unanimity::core::TransactionId;
use unanimity::{
    ExecuteError, LocalTransactionManager, ManagerConfig, Operation, RecordService, Service,
    UpdateAccountBalance, Vote,
};

use crate::fake::{PATIENCE, soon, until};

fn change(account: &str, amount: i64) -> Arc<dyn Operation> {
    Arc::new(UpdateAccountBalance { account: account.to_owned(), amount })
}

/// A service that writes down every call and votes yes; its first prepare can be made to wait, and
/// then to panic.
#[derive(Default)]
struct Recorder {
    calls: Mutex<Vec<String>>,
    first_prepare: Option<watch::Receiver<bool>>,
}

impl Recorder {
    fn note(&self, call: String) -> usize {
        let mut calls = self.calls.lock().unwrap();
        calls.push(call);
        calls.len()
    }

    fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }
}

impl Service for Recorder {
    fn prepare(&self, _: &TransactionId, operations: &[Arc<dyn Operation>]) -> Vote {
        let count = self.note(format!("prepare {}", operations.len()));
        if let (Some(gate), 1) = (&self.first_prepare, count) {
            // A test that has failed lets go of the gate too.
            while !*gate.borrow() && gate.has_changed().is_ok() {
                std::thread::yield_now();
            }
            panic!("the first prepare panics, as it was told to");
        }
        Vote::Yes
    }

    fn commit(&self, _: &TransactionId) -> Result<(), String> {
        self.note("commit".to_owned());
        Ok(())
    }

    fn rollback(&self, _: &TransactionId) -> Result<(), String> {
        self.note("rollback".to_owned());
        Ok(())
    }

    fn blocks(&self) -> bool {
        self.first_prepare.is_some()
    }
}

#[tokio::test]
async fn bad_requests_are_refused_before_anything_is_sent() {
    let recorder = Arc::new(Recorder::default());
    let services: [(&str, Arc<dyn Service>); 2] =
        [("one", Arc::clone(&recorder) as _), ("two", Arc::clone(&recorder) as _)];
    let manager = LocalTransactionManager::start(ManagerConfig::default(), services).unwrap();
    let check = async |services: &[&str], lists: &[usize], code: &str| {
        let operations = lists.iter().map(|count| vec![change("A", 1); *count]).collect();
        let executed = manager.execute_transaction(services, operations).await;
        let error: ExecuteError = executed.expect_err(code);
        assert_eq!(error.code(), code, "{error}");
    };
    check(&[], &[], "no_services").await;
    check(&[], &[1], "no_services").await;
    check(&["one"], &[], "length_mismatch").await;
    check(&["one", "two"], &[1], "length_mismatch").await;
    check(&["one"], &[1, 1], "length_mismatch").await;
    check(&["one", "three"], &[1, 1], "unknown_service").await;
    check(&["one", "one"], &[1, 1], "repeated_service").await;
    check(&["one", "two"], &[1, 0], "no_operations").await;
    assert_eq!(recorder.calls(), Vec::<String>::new());
    let operations = vec![vec![change("A", 1)], vec![change("B", 1); 2]];
    let executed = soon(manager.execute_transaction(&["one", "two"], operations)).await.unwrap();
    assert!(executed.committed());
    assert_eq!(executed.reason(), "all_yes");
    soon(manager.stop(PATIENCE)).await;
    let mut calls = recorder.calls();
    calls.sort();
    assert_eq!(calls, ["commit", "commit", "prepare 1", "prepare 2"]);
}

#[test]
fn services_have_names_and_each_its_own() {
    let start = |names: &[&str]| {
        let service = || Arc::new(Recorder::default()) as Arc<dyn Service>;
        let services: Vec<_> = names.iter().map(|name| (*name, service())).collect();
        LocalTransactionManager::start(ManagerConfig::default(), services).map(drop)
    };
    assert_eq!(start(&["two words"]).unwrap_err().code(), "configuration");
    assert_eq!(start(&["one", "one"]).unwrap_err().code(), "configuration");
}

fn held(manager: &LocalTransactionManager, count: usize) -> bool {
    format!("{manager:?}").contains(&format!("transactions_in_phase_one: {count}"))
}

/// 1. A caller begins, and gives up while the first prepare is under way. 2. That prepare fails and
/// is asked again: the operations must be there still. 3. Phase one is over: they are let go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_gives_up_leaves_nothing_behind_and_breaks_nothing() {
    let (gate, closed) = watch::channel(false);
    let recorder = Arc::new(Recorder { first_prepare: Some(closed), ..Recorder::default() });
    let services = [("one", Arc::clone(&recorder) as Arc<dyn Service>)];
    let manager = LocalTransactionManager::start(ManagerConfig::default(), services).unwrap();
    let caller = tokio::spawn({
        let manager = manager.clone();
        async move { manager.execute_transaction(&["one"], vec![vec![change("A", 1)]]).await }
    });
    until(|| recorder.calls().len() == 1).await;
    caller.abort();
    assert!(soon(caller).await.unwrap_err().is_cancelled());
    assert!(held(&manager, 1), "{manager:?}");
    gate.send_replace(true);
    until(|| held(&manager, 0)).await;
    soon(manager.stop(PATIENCE)).await;
    assert_eq!(recorder.calls(), ["prepare 1", "prepare 1", "commit"]);
}

fn account(name: &str, balance: i64) -> (String, serde_json::Value) {
    (format!("account/{name}"), balance.into())
}

fn balance(service: &RecordService, name: &str) -> i64 {
    service.get(&format!("account/{name}")).unwrap().as_i64().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_transactions_that_touch_one_record_one_wins_at_a_time() {
    let one = Arc::new(RecordService::new([account("A", 100)]));
    let (gate, closed) = watch::channel(false);
    let slow = Arc::new(Recorder { first_prepare: Some(closed), ..Recorder::default() });
    let services: [(&str, Arc<dyn Service>); 2] =
        [("one", Arc::clone(&one) as _), ("slow", Arc::clone(&slow) as _)];
    let manager = LocalTransactionManager::start(ManagerConfig::default(), services).unwrap();
    let first = tokio::spawn({
        let manager = manager.clone();
        async move {
            let operations = vec![vec![change("A", -60)], vec![change("B", 60)]];
            manager.execute_transaction(&["one", "slow"], operations).await
        }
    });
    until(|| slow.calls().len() == 1 && balance(&one, "A") == 40).await;
    let operations = vec![vec![change("A", -10)]];
    let second = soon(manager.execute_transaction(&["one"], operations.clone())).await.unwrap();
    assert!(!second.committed());
    let expected = "voted_no by one: account/A is in use by another transaction";
    assert_eq!(second.reason(), expected);
    gate.send_replace(true);
    assert!(soon(first).await.unwrap().unwrap().committed());
    let unlocked = async {
        loop {
            let again = manager.execute_transaction(&["one"], operations.clone()).await.unwrap();
            if again.committed() {
                return;
            }
        }
    };
    soon(unlocked).await;
    assert_eq!(balance(&one, "A"), 30);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_transfers_conserve_the_money() {
    let accounts = ["A", "B", "C", "D"];
    let service = || Arc::new(RecordService::new(accounts.map(|name| account(name, 100))));
    let (one, two) = (service(), service());
    let services: [(&str, Arc<dyn Service>); 2] =
        [("one", Arc::clone(&one) as _), ("two", Arc::clone(&two) as _)];
    // None is refused for how slow this machine is.
    let config = ManagerConfig { queue_delay_target_ms: 0, ..ManagerConfig::default() };
    let manager = LocalTransactionManager::start(config, services).unwrap();
    let mut transfers = JoinSet::new();
    for n in 0..200_usize {
        let manager = manager.clone();
        let amount = i64::try_from(n % 70).unwrap() + 1;
        let operations =
            vec![vec![change(accounts[n % 4], -amount)], vec![change(accounts[n / 4 % 4], amount)]];
        let services = if n % 3 == 0 { ["two", "one"] } else { ["one", "two"] };
        transfers.spawn(async move {
            loop {
                let operations = operations.clone();
                let executed = manager.execute_transaction(&services, operations).await.unwrap();
                if !executed.reason().contains("in use") {
                    return (executed.committed(), if n % 3 == 0 { -amount } else { amount });
                }
            }
        });
    }
    let done = soon(transfers.join_all()).await;
    soon(manager.stop(PATIENCE)).await;
    let moved: i64 = done.iter().filter(|(committed, _)| *committed).map(|(_, moved)| moved).sum();
    let sum = |service: &RecordService| accounts.iter().map(|name| balance(service, name)).sum();
    let (in_one, in_two): (i64, i64) = (sum(&one), sum(&two));
    assert_eq!((in_one, in_two), (400 - moved, 400 + moved));
    assert!(done.iter().any(|(committed, _)| *committed));
}
