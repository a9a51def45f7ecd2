//! The journal forgets what it can while a transaction stays live for thousands of batches, and
//! never forgets that transaction.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use unanimity::{Bounds, ManagerConfig, TransactionManager, Wait};
use unanimity_journal::Engine;

use crate::fake::{Fake, Wire, begin, ended, short, soon};
use crate::gated::Gated;

fn start(gated: &Gated, fake: &Arc<Fake>) -> TransactionManager {
    let bounds = Bounds { truncate_batches_min: 4, straggler_batches: 16, ..Bounds::default() };
    let wire = Arc::new(Wire(Arc::clone(fake)));
    TransactionManager::start_with(ManagerConfig::default(), wire, gated.internals(bounds)).unwrap()
}

fn kept(gated: &Gated) -> (u64, u64) {
    let bounds = gated.memory.clone().bounds(0).unwrap();
    (bounds.next - bounds.first, bounds.next)
}

async fn check(at_once: usize) {
    let (gated, fake) = (Gated::default(), Fake::new());
    let manager = start(&gated, &fake);
    fake.close("slow prepare");
    fake.close("stuck commit");
    begin(&manager, "T-undecided", &["slow", "a"], Wait::Accepted).await;
    begin(&manager, "T-decided", &["stuck", "a"], Wait::Outcome).await;
    for n in 0..2_000 / at_once {
        let mut round = JoinSet::new();
        for m in 0..at_once {
            let (manager, name) = (manager.clone(), format!("U-{n}-{m}"));
            round.spawn(async move { begin(&manager, &name, &["a"], Wait::Completed).await });
        }
        soon(round.join_all()).await;
    }
    let (lost, truncations) = gated.truncations();
    assert_eq!(lost, Vec::<String>::new());
    let (kept, next) = kept(&gated);
    assert!(kept < 200 && next > 1_000 && truncations > 50, "{kept} {next} {truncations}");
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
    check(1).await;
}

/// Under load an append is always under way, and stragglers must have their turn all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once() {
    check(5).await;
}
