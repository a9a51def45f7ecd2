//! The journal forgets what it can while a transaction stays live for thousands of batches, and
//! never forgets that transaction.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use unanimity::{BeginRequest, Bounds, ManagerConfig, TransactionManager, Wait};
use unanimity_journal::Engine;

use crate::fake::{Fake, Wire, begin, ended, id, plan, short, soon, until};
use crate::gated::Gated;

const TRUNCATE_BATCHES_MIN: u64 = 4;

fn start(gated: &Gated, fake: &Arc<Fake>) -> TransactionManager {
    let bounds = Bounds {
        truncate_batches_min: TRUNCATE_BATCHES_MIN,
        straggler_batches: 16,
        gather: Duration::ZERO,
        ..Bounds::default()
    };
    let wire = Arc::new(Wire(Arc::clone(fake)));
    TransactionManager::start_with(ManagerConfig::default(), wire, gated.internals(bounds)).unwrap()
}

fn kept(gated: &Gated) -> (u64, u64) {
    let bounds = gated.memory.clone().bounds(0).unwrap();
    (bounds.next - bounds.first, bounds.next)
}

async fn check(workers: usize, each: usize) {
    let (gated, fake) = (Gated::default(), Fake::new());
    let manager = start(&gated, &fake);
    fake.close("slow prepare");
    fake.close("stuck commit");
    begin(&manager, "T-undecided", &["slow", "a"], Wait::Accepted).await;
    begin(&manager, "T-decided", &["stuck", "a"], Wait::Outcome).await;
    let mut all = JoinSet::new();
    for n in 0..workers {
        let manager = manager.clone();
        all.spawn(async move {
            for m in 0..each {
                begin(&manager, &format!("U-{n}-{m}"), &["a"], Wait::Completed).await;
            }
        });
    }
    soon(all.join_all()).await;
    let (lost, truncations) = gated.truncations();
    assert_eq!(lost, Vec::<String>::new());
    let (_, next) = kept(&gated);
    assert!(next > 1_000 && truncations > 20, "{next} {truncations}");
    // The history may have the last of them later.
    until(|| kept(&gated).0 < 200).await;
    manager.stop(Duration::ZERO).await;

    let fake = Fake::new();
    let manager = start(&gated, &fake);
    let undecided = ended(&manager, "T-undecided").await;
    assert_eq!(short(&undecided), "rollback coordinator_restarted ended");
    assert_eq!(short(&ended(&manager, "T-decided").await), "commit all_yes ended");
    assert_eq!((fake.count("T-undecided slow rollback"), fake.count("T-decided stuck")), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_after_the_other() {
    check(1, 2_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once() {
    check(20, 400).await;
}

/// Under load there is an append under way all the time, and stragglers must have their turn all
/// the same.
#[tokio::test]
async fn while_the_disk_is_never_idle() {
    let (gated, fake) = (Gated::default(), Fake::new());
    let manager = start(&gated, &fake);
    fake.close("stuck commit");
    begin(&manager, "T", &["stuck"], Wait::Outcome).await;
    let begun = gated.count();
    gated.allow(0);
    for n in 0..300 {
        let manager = manager.clone();
        let request = BeginRequest::fresh(id(&format!("U-{n}")), plan(&["a"]), Wait::Accepted);
        tokio::spawn({
            let manager = manager.clone();
            async move { manager.begin(request).await }
        });
        // It is in the next batch before this append may end, so the next one follows at once.
        tokio::task::yield_now().await;
        assert_eq!(soon(manager.get(&id("nobody"))).await, Ok(None));
        gated.allow(u64::from(n > 0));
        gated.started(begun + n + 1).await;
    }
    let (lost, truncations) = gated.truncations();
    assert_eq!(lost, Vec::<String>::new());
    let (kept, next) = kept(&gated);
    assert!(kept < 100 && next > 300 && truncations > 5, "{kept} {next} {truncations}");
    gated.allow_all();
}

/// The history has the last of them when nothing is appended any more.
#[tokio::test]
async fn what_nobody_needs_is_forgotten_though_nothing_is_appended_any_more() {
    let (gated, fake) = (Gated::default(), Fake::new());
    let manager = start(&gated, &fake);
    fake.close("stuck commit");
    for n in 0..10 {
        begin(&manager, &format!("U-{n}"), &["stuck"], Wait::Outcome).await;
    }
    assert!(kept(&gated).0 >= 20);
    fake.open("stuck commit");
    until(|| kept(&gated).0 < TRUNCATE_BATCHES_MIN).await;
}
