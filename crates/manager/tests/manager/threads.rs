//! Shards on threads of their own: what is begun on such a thread stays on it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, ThreadId};

use tokio::runtime::Handle;
use tokio::sync::oneshot;
use unanimity::core::{Answer, Call, Operation};
use unanimity::{
    BeginRequest, CallFuture, ManagerConfig, StartError, TransactionManager, Transport, Wait,
};

use crate::fake::{Fake, Folder, PATIENCE, Wire, begin, ended, id, plan, soon};

/// Participants that agree at once, and note on which thread they were asked: that of the shard.
#[derive(Default)]
struct Noting(Mutex<BTreeMap<String, Vec<ThreadId>>>);

impl Noting {
    /// On which thread all of a transaction's participants were asked.
    fn thread_of(&self, transaction: &str) -> ThreadId {
        let asked = self.0.lock().unwrap();
        let threads = &asked[transaction];
        assert!(threads.iter().all(|thread| *thread == threads[0]), "a shard stays on its thread");
        threads[0]
    }
}

impl Transport for Noting {
    fn call(&self, _call: Call) -> CallFuture<'_> {
        unreachable!("every call is answered at once")
    }

    fn answer_at_once(&self, call: &Call) -> Option<Answer> {
        let (name, thread) = (call.transaction.to_string(), std::thread::current().id());
        self.0.lock().unwrap().entry(name).or_default().push(thread);
        let votes = call.operation == Operation::Prepare;
        Some(if votes { Answer::Yes(None) } else { Answer::Acknowledged })
    }

    fn check(&self, _participant: &str) -> Result<(), (&'static str, String)> {
        Ok(())
    }
}

/// Runtimes of one thread each, which are driven until this is dropped.
struct Threads {
    runtimes: Vec<Handle>,
    until: Vec<oneshot::Sender<()>>,
    threads: Vec<JoinHandle<()>>,
}

impl Threads {
    fn new(count: usize) -> Self {
        let mut all = Self { runtimes: Vec::new(), until: Vec::new(), threads: Vec::new() };
        for _ in 0..count {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let (runtime, (until, over)) = (runtime.unwrap(), oneshot::channel::<()>());
            all.runtimes.push(runtime.handle().clone());
            all.until.push(until);
            all.threads.push(std::thread::spawn(move || drop(runtime.block_on(over))));
        }
        all
    }

    fn config(&self, config: ManagerConfig) -> ManagerConfig {
        let runtimes = self.runtimes.clone();
        ManagerConfig { runtimes, queue_delay_target_ms: 0, ..config }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.until.clear();
        self.threads.drain(..).for_each(|thread| thread.join().unwrap());
    }
}

/// Begins one where this runs, under an id that the manager makes up; gives the id.
async fn commit(manager: &TransactionManager) -> String {
    let request = BeginRequest::new(plan(&["a", "b"]), Wait::Completed);
    let told = manager.begin_and_tell(request).await.unwrap();
    assert!(told.committed());
    told.id.to_string()
}

#[tokio::test]
async fn what_begins_on_the_thread_of_a_shard_is_carried_out_there() {
    let (threads, noting) = (Threads::new(3), Arc::new(Noting::default()));
    let config = threads.config(ManagerConfig::default());
    let manager =
        TransactionManager::start(config, Arc::clone(&noting) as Arc<dyn Transport>).unwrap();
    // One from elsewhere to each, in turn: then each shard has run, and is known on its thread.
    let mut from_elsewhere = Vec::new();
    for _ in 0..3 {
        from_elsewhere.push(noting.thread_of(&soon(commit(&manager)).await));
    }
    let expected: Vec<ThreadId> = threads.threads.iter().map(|one| one.thread().id()).collect();
    assert!(expected.iter().all(|thread| from_elsewhere.contains(thread)), "each has its turn");
    for (runtime, expected) in threads.runtimes.iter().zip(expected) {
        let beginning = manager.clone();
        let here = runtime.spawn(async move {
            let mut begun = Vec::new();
            for _ in 0..20 {
                begun.push(commit(&beginning).await);
            }
            begun
        });
        for transaction in soon(here).await.unwrap() {
            assert_eq!(noting.thread_of(&transaction), expected, "{transaction}");
        }
    }
    manager.stop(PATIENCE).await;
}

/// An id that is chosen names its shard, wherever it is begun; and a folder with so many shards is
/// taken up by any number of threads.
#[tokio::test]
async fn a_folder_is_not_bound_to_the_threads_of_its_shards() {
    let (folder, fake) = (Folder::new(), Fake::new());
    let names = ["T1", "T2", "T3", "T4", "T5", "T6"];
    for count in [3, 1, 2] {
        let threads = Threads::new(count);
        let config = threads.config(folder.config()); // It is new with three, and has as many.
        let manager = TransactionManager::start(config, Arc::new(Wire(Arc::clone(&fake)))).unwrap();
        for name in names {
            assert_eq!(begin(&manager, name, &["a"], Wait::Completed).await.existed, count != 3);
            assert!(ended(&manager, name).await.committed());
            assert!(manager.timeline(&id(name)).await.unwrap().is_some());
        }
        manager.stop(PATIENCE).await;
    }
}

/// The others run on, and would not say why a part of all ids is not served.
#[tokio::test]
async fn a_runtime_that_ends_before_its_shard_is_a_failure() {
    let mut threads = Threads::new(2);
    let config = threads.config(ManagerConfig::default());
    let manager = TransactionManager::start(config, Arc::new(Noting::default())).unwrap();
    for _ in 0..2 {
        soon(commit(&manager)).await; // Both run.
    }
    assert!(manager.is_ready());
    drop(threads.until.pop());
    let message = soon(manager.failed()).await;
    assert!(message.contains("runtime") && !manager.is_ready(), "{message}");
    soon(manager.stop(PATIENCE)).await;
}

#[test]
fn without_a_runtime_there_is_an_error_and_no_panic() {
    let started = TransactionManager::start(ManagerConfig::default(), Arc::new(Noting::default()));
    let Err(StartError::Configuration(message)) = started else { panic!("it started") };
    assert!(message.contains("runtime"), "{message}");
}
