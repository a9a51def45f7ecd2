//! Nobody is told anything before it is durable, and a journal that fails ends the shard with
//! everybody told.

use std::sync::Arc;

use unanimity::{BeginError, Bounds, ManagerConfig, TransactionManager, Unavailable, Wait};
use unanimity_journal::AppendFault;

use crate::fake::{Fake, PATIENCE, Wire, begin, ended, id, request, short, soon, until};
use crate::gated::Gated;

/// Every start appends one empty batch, by which an older owner would notice.
const FENCE: u64 = 1;

fn start(gated: &Gated, fake: &Arc<Fake>) -> TransactionManager {
    let internals = gated.internals(Bounds::default());
    let wire = Arc::new(Wire(Arc::clone(fake)));
    TransactionManager::start_with(ManagerConfig::default(), wire, internals).unwrap()
}

/// Returns once the shard has taken in every command that was sent before.
async fn taken_in(manager: &TransactionManager) {
    assert_eq!(manager.get(&id("nobody")).await, Ok(None));
}

fn failed<T: std::fmt::Debug>(result: &Result<T, BeginError>) -> bool {
    matches!(result, Err(BeginError::Unavailable(Unavailable::ShardFailed)))
}

#[tokio::test]
async fn no_prepare_leaves_before_the_beginning_is_durable() {
    let (gated, fake) = (Gated::default(), Fake::new());
    let manager = start(&gated, &fake);
    gated.allow(0);
    let asked = request("T", &["a"], Wait::Completed);
    let begun = tokio::spawn({
        let manager = manager.clone();
        async move { manager.begin(asked).await }
    });
    gated.started(1).await;
    taken_in(&manager).await;
    assert_eq!(fake.calls(), Vec::<String>::new());
    gated.allow(1);
    gated.started(2).await;
    taken_in(&manager).await;
    assert_eq!(fake.calls(), ["T a prepare 1"]);
    gated.allow(1);
    gated.started(3).await;
    taken_in(&manager).await;
    assert_eq!(fake.calls(), ["T a prepare 1", "T a commit 1"]);
    assert!(!begun.is_finished());
    gated.allow_all();
    assert_eq!(short(&soon(begun).await.unwrap().unwrap().transaction), "commit all_yes ended");
}

/// 1. The beginning is being written. 2. A rollback is asked for. 3. The beginning is durable, and
/// the rollback never will be: whoever waited for the beginning must not hear of it.
#[tokio::test]
async fn whoever_waits_for_a_beginning_hears_nothing_that_is_not_durable() {
    let (gated, fake) = (Gated::default(), Fake::new());
    gated.memory.fail_append(2 + FENCE, AppendFault::Lost);
    let manager = start(&gated, &fake);
    gated.allow(0);
    let asked = request("T", &["a"], Wait::Accepted);
    let begun = tokio::spawn({
        let manager = manager.clone();
        async move { manager.begin(asked).await }
    });
    gated.started(1).await;
    let rollback = tokio::spawn({
        let manager = manager.clone();
        async move { manager.rollback(&id("T"), "by hand").await }
    });
    tokio::task::yield_now().await;
    taken_in(&manager).await;
    gated.allow_all();
    let told = soon(begun).await.unwrap();
    let undecided = |view: &unanimity::view::TransactionView| view.outcome.is_none();
    let fine = failed(&told) || told.as_ref().is_ok_and(|told| undecided(&told.transaction));
    assert!(fine, "{told:?}");
    assert_eq!(soon(rollback).await.unwrap(), Err(Unavailable::ShardFailed));
}

/// The end of a transaction is on its way to the disk; its id is asked for meanwhile.
#[tokio::test]
async fn an_id_whose_end_is_not_durable_yet_is_used_all_the_same() {
    let (gated, fake) = (Gated::default(), Fake::new());
    let manager = start(&gated, &fake);
    gated.allow(2);
    begin(&manager, "T", &["a"], Wait::Outcome).await;
    gated.started(3).await;
    let other = soon(manager.begin(request("T", &["b"], Wait::Accepted))).await;
    assert!(matches!(other, Err(BeginError::IdReused(_))), "{other:?}");
    let same = tokio::spawn({
        let manager = manager.clone();
        async move { begin(&manager, "T", &["a"], Wait::Accepted).await }
    });
    tokio::task::yield_now().await;
    taken_in(&manager).await;
    assert!(!same.is_finished());
    gated.allow_all();
    let same = soon(same).await.unwrap();
    assert!(same.existed && same.transaction.completed);
    assert_eq!(fake.calls().len(), 2);
}

/// An end alone waits for what comes next, unless somebody waits for it.
#[tokio::test]
async fn an_end_that_nobody_waits_for_costs_no_sync_of_its_own() {
    let (gated, fake) = (Gated::default(), Fake::new());
    let internals = gated.internals(Bounds { linger: PATIENCE, ..Bounds::default() });
    let wire = Arc::new(Wire(Arc::clone(&fake)));
    let manager =
        TransactionManager::start_with(ManagerConfig::default(), wire, internals).unwrap();
    for number in 1..=5 {
        begin(&manager, &format!("T{number}"), &["a", "b"], Wait::Outcome).await;
        // Its end has come to the shard, and is not on its way to the disk.
        until(|| fake.calls().len() == number * 4).await;
        taken_in(&manager).await;
    }
    assert_eq!(gated.count(), 10, "a beginning and a decision each");
    begin(&manager, "U", &["a", "b"], Wait::Completed).await;
    assert_eq!(gated.count(), 13, "who waits for an end does not wait for longer");
    manager.stop(PATIENCE).await;
}

/// Fails the `nth` append, and says what recovery makes of it.
async fn check_failure(nth: u64, fault: AppendFault, expected: Option<&str>) {
    let (gated, fake) = (Gated::default(), Fake::new());
    gated.memory.fail_append(nth + FENCE, fault);
    let manager = start(&gated, &fake);
    let told = soon(manager.begin(request("T", &["a", "b"], Wait::Outcome))).await;
    assert!(failed(&told), "{told:?}");
    assert!(soon(manager.failed()).await.starts_with("journal_io"));
    assert!(!manager.is_ready());
    assert!(failed(&soon(manager.begin(request("U", &["a"], Wait::Outcome))).await));
    assert_eq!(manager.get(&id("T")).await, Err(Unavailable::ShardFailed));
    let calls = fake.calls();
    assert!(calls.iter().all(|call| call.contains("prepare")), "{calls:?}");
    manager.stop(PATIENCE).await;

    let fake = Fake::new();
    let manager = start(&gated, &fake);
    match expected {
        None => assert_eq!(manager.get(&id("T")).await, Ok(None)),
        Some(expected) => assert_eq!(short(&ended(&manager, "T").await), expected),
    }
}

#[tokio::test]
async fn a_journal_that_fails_ends_the_shard_and_recovery_repairs_it() {
    let rolled_back = Some("rollback coordinator_restarted ended");
    check_failure(1, AppendFault::Lost, None).await;
    check_failure(1, AppendFault::Durable, rolled_back).await;
    check_failure(2, AppendFault::Lost, rolled_back).await;
    check_failure(2, AppendFault::Durable, Some("commit all_yes ended")).await;
    check_failure(2, AppendFault::Unsynced, Some("commit all_yes ended")).await;
}

#[tokio::test]
async fn a_journal_thread_that_panics_ends_the_shard() {
    let (gated, fake) = (Gated::default(), Fake::new());
    gated.panic_next();
    let manager = start(&gated, &fake);
    let told = soon(manager.begin(request("T", &["a"], Wait::Outcome))).await;
    assert!(failed(&told), "{told:?}");
    assert!(soon(manager.failed()).await.contains("thread has ended"));
}

/// Runs one transaction after the other until the shard itself has done an append: sixteen quick
/// ones in a row come first, and on a busy machine one may not be quick.
async fn until_it_appends_itself(manager: &TransactionManager, gated: &Gated) {
    for number in 0..10_000 {
        if gated.elsewhere() > 0 {
            return;
        }
        begin(manager, &format!("T{number}"), &["a"], Wait::Completed).await;
    }
    panic!("it has never appended anything itself");
}

fn start_in_its_own_runtime(gated: &Gated, fake: &Arc<Fake>) -> TransactionManager {
    let config = ManagerConfig { owns_runtime: true, ..ManagerConfig::default() };
    let wire = Arc::new(Wire(Arc::clone(fake)));
    TransactionManager::start_with(config, wire, gated.internals(Bounds::default())).unwrap()
}

/// Else what comes meanwhile would wait for the sync, and could not gather.
#[tokio::test]
async fn a_shard_appends_itself_only_what_is_alone_and_only_once_appends_are_quick() {
    let (gated, fake) = (Gated::default(), Fake::new());
    let manager = start_in_its_own_runtime(&gated, &fake);
    begin(&manager, "first", &["a"], Wait::Completed).await;
    assert_eq!(gated.elsewhere(), 0, "nobody knows yet how quick they are");
    until_it_appends_itself(&manager, &gated).await;
    fake.close("b prepare");
    let waiting = ["U", "V"].map(|name| {
        let (manager, asked) = (manager.clone(), request(name, &["b"], Wait::Completed));
        tokio::spawn(async move { manager.begin(asked).await })
    });
    fake.seen("U", 1).await;
    fake.seen("V", 1).await;
    let before = (gated.count(), gated.elsewhere());
    for number in 0..20 {
        begin(&manager, &format!("W{number}"), &["a"], Wait::Completed).await;
    }
    assert!(gated.count() >= before.0 + 40);
    assert_eq!(gated.elsewhere(), before.1, "two others are waited for");
    fake.open("b prepare");
    for one in waiting {
        assert_eq!(short(&soon(one).await.unwrap().unwrap().transaction), "commit all_yes ended");
    }
}

/// Its one thread has the rest of the program to serve.
#[tokio::test]
async fn in_a_runtime_of_one_thread_that_others_use_the_journals_thread_does_all_appends() {
    let (gated, fake) = (Gated::default(), Fake::new());
    let manager = start(&gated, &fake);
    for number in 0..50 {
        begin(&manager, &format!("T{number}"), &["a"], Wait::Completed).await;
    }
    assert!(gated.count() >= 100);
    assert_eq!(gated.elsewhere(), 0);
}

/// Spoils the next append, which the shard does itself; why that ended it.
async fn spoiled_append_of_the_shard(spoil: impl Fn(&Gated)) -> String {
    // Where one has just taken long, the journal's thread does the next.
    for _ in 0..20 {
        let (gated, fake) = (Gated::default(), Fake::new());
        let manager = start_in_its_own_runtime(&gated, &fake);
        until_it_appends_itself(&manager, &gated).await;
        spoil(&gated);
        let before = gated.elsewhere();
        let told = soon(manager.begin(request("U", &["a"], Wait::Outcome))).await;
        assert!(failed(&told), "{told:?}");
        assert_eq!(fake.count("U"), 0);
        let why = soon(manager.failed()).await;
        if gated.elsewhere() == before + 1 {
            return why;
        }
    }
    panic!("its appends are never quick");
}

#[tokio::test]
async fn an_append_of_the_shard_itself_that_panics_ends_it() {
    let why = spoiled_append_of_the_shard(Gated::panic_next).await;
    assert!(why.contains("a broken invariant"), "{why}");
}

#[tokio::test]
async fn an_append_of_the_shard_itself_that_is_refused_ends_it() {
    let why = spoiled_append_of_the_shard(|gated| gated.memory.fence(0)).await;
    assert!(why.starts_with("journal_conflict"), "{why}");
}

#[tokio::test]
async fn another_coordinator_that_took_over_ends_the_shard() {
    let (gated, fake) = (Gated::default(), Fake::new());
    let manager = start(&gated, &fake);
    begin(&manager, "T", &["a"], Wait::Completed).await;
    gated.memory.fence(0);
    let told = soon(manager.begin(request("U", &["a"], Wait::Outcome))).await;
    assert!(failed(&told), "{told:?}");
    assert!(soon(manager.failed()).await.starts_with("journal_conflict"));
    assert_eq!(fake.count("U"), 0);
}

#[tokio::test]
async fn a_coordinator_that_starts_fences_an_older_one_at_once() {
    let (gated, fake) = (Gated::default(), Fake::new());
    let older = start(&gated, &fake);
    begin(&older, "T", &["a"], Wait::Completed).await;
    let newer = start(&gated, &fake);
    let told = soon(older.begin(request("U", &["a"], Wait::Outcome))).await;
    assert!(failed(&told), "{told:?}");
    assert!(soon(older.failed()).await.starts_with("journal_conflict"));
    assert_eq!(fake.count("U"), 0);
    begin(&newer, "U", &["a"], Wait::Completed).await;
}
