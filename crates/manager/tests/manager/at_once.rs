//! Participants within the process that answer on the spot: what they are asked is the same, an
//! answer that is a panic is asked for again, and who waits hears of it as of any other.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use unanimity::core::{Answer, Call, Operation};
use unanimity::{Bounds, CallFuture, ManagerConfig, TransactionManager, Transport, Wait};

use crate::fake::{Fake, PATIENCE, begin, ended, id, in_memory, request, short, soon};
use crate::gated::Gated;

/// Agrees to everything on the spot, but for its first so many commits, at which it panics; who is
/// named "apart" is asked like any other.
#[derive(Default)]
struct OnTheSpot {
    panics: AtomicUsize,
    at_once: AtomicUsize,
    in_a_task: AtomicUsize,
}

fn answer(operation: Operation) -> Answer {
    if operation == Operation::Prepare { Answer::Yes(None) } else { Answer::Acknowledged }
}

impl Transport for OnTheSpot {
    fn call(&self, call: Call) -> CallFuture<'_> {
        self.in_a_task.fetch_add(1, Ordering::Relaxed);
        Box::pin(std::future::ready(answer(call.operation)))
    }

    fn answer_at_once(&self, call: &Call) -> Option<Answer> {
        if &*call.plan.participant == "apart" {
            return None;
        }
        self.at_once.fetch_add(1, Ordering::Relaxed);
        let left = |left: usize| left.checked_sub(1);
        let (set, fetch) = (Ordering::Relaxed, Ordering::Relaxed);
        let panics = call.operation == Operation::Commit
            && self.panics.fetch_update(set, fetch, left).is_ok();
        assert!(!panics, "as it was told to");
        Some(answer(call.operation))
    }

    fn check(&self, _: &str) -> Result<(), (&'static str, String)> {
        Ok(())
    }
}

fn start(panics: usize) -> (Arc<OnTheSpot>, TransactionManager) {
    let carriage = Arc::new(OnTheSpot { panics: panics.into(), ..OnTheSpot::default() });
    let manager =
        TransactionManager::start(ManagerConfig::default(), Arc::clone(&carriage) as _).unwrap();
    (carriage, manager)
}

#[tokio::test]
async fn who_answers_on_the_spot_is_not_asked_in_a_task_and_the_others_are() {
    let (carriage, manager) = start(0);
    begin(&manager, "T", &["a", "apart", "b"], Wait::Completed).await;
    assert_eq!(short(&ended(&manager, "T").await), "commit all_yes ended");
    assert_eq!(carriage.at_once.load(Ordering::Relaxed), 4);
    assert_eq!(carriage.in_a_task.load(Ordering::Relaxed), 2);
    manager.stop(PATIENCE).await;
}

#[tokio::test]
async fn a_participant_that_panics_on_the_spot_is_asked_again() {
    let (carriage, manager) = start(3);
    begin(&manager, "T", &["a", "b"], Wait::Completed).await;
    assert_eq!(short(&ended(&manager, "T").await), "commit all_yes ended");
    assert_eq!(carriage.at_once.load(Ordering::Relaxed), 2 + 2 + 3, "three were asked again");
    let timeline = format!("{:?}", manager.timeline(&id("T")).await);
    assert!(timeline.contains("panicked"), "{timeline}");
    manager.stop(PATIENCE).await;
}

/// Whoever came first waits for less than others, and for more; each is told what it waited for.
#[tokio::test]
async fn everybody_who_waits_for_one_transaction_is_told_in_time() {
    let fake = Fake::new();
    let manager = in_memory(&fake);
    fake.close("a prepare");
    fake.close("a commit");
    let waits = [Wait::Outcome, Wait::Completed, Wait::Outcome, Wait::Completed];
    let wait_for = |wait| {
        let (manager, asked) = (manager.clone(), request("T", &["a"], wait));
        tokio::spawn(async move { manager.begin(asked).await })
    };
    let waiting = waits.map(wait_for);
    fake.seen("T a prepare", 1).await;
    fake.open("a prepare");
    let [first, second, third, fourth] = waiting;
    for one in [first, third] {
        let told = soon(one).await.unwrap().unwrap().transaction;
        assert_eq!((told.outcome.as_deref(), told.completed), (Some("commit"), false));
    }
    assert!(!second.is_finished() && !fourth.is_finished(), "it has not ended");
    fake.open("a commit");
    for one in [second, fourth] {
        let told = soon(one).await.unwrap().unwrap().transaction;
        assert_eq!((told.outcome.as_deref(), told.completed), (Some("commit"), true));
    }
    manager.stop(PATIENCE).await;
}

/// The beginning, the decision and the end: nobody was woken by what it asked, so that nobody could
/// use its thread meanwhile.
#[tokio::test]
async fn a_shard_whose_participants_answer_on_the_spot_appends_decisions_itself_as_well() {
    let gated = Gated::default();
    let config = ManagerConfig { owns_runtime: true, ..ManagerConfig::default() };
    let internals = gated.internals(Bounds::default());
    let carriage = Arc::new(OnTheSpot::default());
    let manager = TransactionManager::start_with(config, carriage, internals).unwrap();
    for number in 0..10_000 {
        let before = gated.elsewhere();
        begin(&manager, &format!("T{number}"), &["a", "b"], Wait::Completed).await;
        if gated.elsewhere() - before == 3 {
            return manager.stop(PATIENCE).await;
        }
    }
    panic!("it has never appended all three itself");
}
