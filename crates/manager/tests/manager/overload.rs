//! More is begun than can be carried out: what is refused is refused before it has begun, what has
//! begun ends as ever, and afterwards all is as before.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use unanimity::core::{Answer, Call};
use unanimity::{
    BeginError, BeginReply, BeginRequest, CallFuture, ManagerConfig, TransactionManager, Transport,
    Wait,
};

use crate::fake::{plan, soon};

/// How many initiators put the load on: far more than one shard serves within the target.
const INITIATORS: usize = 4_000;
const TARGET_MS: u64 = 5;

/// A carriage whose participants agree at once, and of which one is busy when it is told to be.
#[derive(Default)]
struct Quick(AtomicBool);

impl Transport for Quick {
    fn call(&self, _: Call) -> CallFuture<'_> {
        Box::pin(std::future::ready(Answer::ReadOnly))
    }

    fn check(&self, _: &str) -> Result<(), (&'static str, String)> {
        Ok(())
    }

    fn is_busy(&self, participant: &str) -> bool {
        participant == "busy" && self.0.load(Ordering::Relaxed)
    }
}

fn start(queue_delay_target_ms: u64) -> (Arc<Quick>, TransactionManager) {
    let config = ManagerConfig { queue_delay_target_ms, ..ManagerConfig::default() };
    let carriage = Arc::new(Quick::default());
    let manager = TransactionManager::start(config, Arc::clone(&carriage) as _).unwrap();
    (carriage, manager)
}

async fn over(
    manager: &TransactionManager,
    participants: &[&str],
) -> Result<BeginReply, BeginError> {
    soon(manager.begin(BeginRequest::new(plan(participants), Wait::Outcome))).await
}

/// Has many initiators begin transactions, each as `initiator` says, until all have stopped.
async fn put_load_on<F: Future<Output = ()> + Send + 'static>(
    manager: &TransactionManager,
    initiator: fn(TransactionManager, Arc<AtomicU64>) -> F,
) {
    let refused = Arc::new(AtomicU64::new(0));
    let mut initiators = tokio::task::JoinSet::new();
    for _ in 0..INITIATORS {
        initiators.spawn(initiator(manager.clone(), Arc::clone(&refused)));
    }
    soon(initiators.join_all()).await;
}

/// Begins transaction after transaction until anybody is refused.
async fn begin_until_refused(manager: TransactionManager, refused: Arc<AtomicU64>) {
    while refused.load(Ordering::Relaxed) == 0 {
        match over(&manager, &["a", "b"]).await {
            Ok(begun) => assert!(begun.transaction.committed(), "{begun:?}"),
            Err(BeginError::Overloaded) => drop(refused.fetch_add(1, Ordering::Relaxed)),
            Err(error) => panic!("{error:?}"),
        }
    }
}

#[tokio::test]
async fn beginnings_that_wait_too_long_are_refused_and_the_others_are_not() {
    let (_carriage, manager) = start(TARGET_MS);
    put_load_on(&manager, begin_until_refused).await;
    assert!(manager.admit().is_ok(), "nobody waits any more, so somebody may come");
    assert!(over(&manager, &["a", "b"]).await.is_ok());
}

/// Begins transaction after transaction until anybody is refused before the runtime has had a turn.
/// It has one thread, so until then no shard can have run.
async fn begin_until_refused_at_once(manager: TransactionManager, refused: Arc<AtomicU64>) {
    while refused.load(Ordering::Relaxed) == 0 {
        let mut begins = Box::pin(over(&manager, &["a", "b"]));
        let at_once = begins.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        let answer = match at_once {
            Poll::Ready(Err(BeginError::Overloaded)) => {
                refused.fetch_add(1, Ordering::Relaxed);
                return;
            }
            Poll::Ready(answer) => answer,
            Poll::Pending => begins.await,
        };
        assert!(matches!(answer, Ok(_) | Err(BeginError::Overloaded)), "{answer:?}");
    }
}

#[tokio::test]
async fn where_too_many_wait_a_shard_is_not_even_woken_to_refuse() {
    let (_carriage, manager) = start(TARGET_MS);
    put_load_on(&manager, begin_until_refused_at_once).await;
    assert!(over(&manager, &["a", "b"]).await.is_ok());
}

#[tokio::test]
async fn only_plans_that_name_a_busy_participant_are_refused() {
    let (carriage, manager) = start(0);
    carriage.0.store(true, Ordering::Relaxed);
    let refused = over(&manager, &["other", "busy"]).await;
    let is_named = |error: &BeginError| match error {
        BeginError::ParticipantBusy(name) => name == "busy",
        _ => false,
    };
    assert!(refused.as_ref().is_err_and(is_named), "{refused:?}");
    assert!(over(&manager, &["other", "idle"]).await.is_ok());
    carriage.0.store(false, Ordering::Relaxed);
    assert!(over(&manager, &["other", "busy"]).await.is_ok());
}
