//! The resource layer's promises, in both ways: what a yes is worth, who waits, who is refused, and
//! who is woken. Ages are given in the payload, so a smaller `since` is older.

use unanimity_sdk::Operation::{Compensate, Execute, Prepare, Rollback};
use unanimity_sdk::resource::{Concurrency, Conflict, WaitOrder};

use crate::keys::{LOCKING, OPTIMISTIC, QUEUEING, Store};
use crate::support::Folder;

const LATE: &str = unanimity_sdk::guard::LATE_REASON;

fn store(concurrency: Concurrency) -> (Folder, Store) {
    let folder = Folder::new();
    let file = folder.file();
    (folder, Store::open(file, concurrency))
}

fn yes(read: &str) -> String {
    format!("yes({{{read}}})")
}

#[track_caller]
fn refused(answer: &str, conflict: Conflict) {
    let reason = answer.strip_prefix("no(").unwrap_or_else(|| panic!("{answer}"));
    assert_eq!(Conflict::of(reason), Some(conflict), "{answer}");
}

#[tokio::test]
async fn a_yes_can_always_be_committed_also_after_a_restart() {
    for before in [LOCKING, OPTIMISTIC] {
        for after in [LOCKING, OPTIMISTIC] {
            let (_folder, mut store) = store(before);
            let answer = store.prepare("t", "a-30,b+30,c?,since=1").await;
            assert_eq!(answer, yes(r#""a":[100,0],"b":[100,0],"c":[100,0]"#));
            let mut store = store.reopen(after);
            for payload in ["a-80,since=9", "a?,since=9", "d+1,b+1,since=9", "c+1,since=9"] {
                let name = format!("other-{}", payload.len());
                assert!(store.prepare(&name, payload).await.starts_with("no("), "{payload}");
            }
            assert_eq!(store.prepare("reader", "c?,since=9").await, yes(r#""c":[100,0]"#));
            store.commit("t").await;
            assert_eq!(store.number("a").await, (70, 1));
            assert_eq!(store.number("b").await, (130, 1));
            assert_eq!(store.number("c").await, (100, 0));
            assert_eq!(store.locks().await, 1);
            store.rollback("reader").await;
            assert_eq!(store.locks().await, 0);
        }
    }
}

#[tokio::test]
async fn a_rollback_drops_the_change_and_frees_the_keys() {
    for concurrency in [LOCKING, OPTIMISTIC] {
        let (_folder, mut store) = store(concurrency);
        store.prepare("t", "a-30,b+30").await;
        store.rollback("t").await;
        assert_eq!((store.number("a").await, store.locks().await), ((100, 0), 0));
        assert_eq!(store.prepare("u", "a-100").await, yes(r#""a":[100,0]"#));
        assert_eq!(store.prepare("v", "c-101").await, "no(c is too small)");
        assert_eq!(store.locks().await, 1);
    }
}

#[tokio::test]
async fn a_repeated_prepare_votes_as_the_first_did() {
    for concurrency in [LOCKING, OPTIMISTIC] {
        let (_folder, mut store) = store(concurrency);
        for _ in 0..2 {
            assert_eq!(store.prepare("t", "a-30,since=5").await, yes(r#""a":[100,0]"#));
        }
        let first = store.prepare("u", "a-30,since=6").await;
        store.commit("t").await;
        assert_eq!(store.prepare("u", "a-30,since=6").await, first);
        assert_eq!(store.number("a").await, (70, 1));
    }
}

#[tokio::test]
async fn optimistic_branches_that_conflict_are_refused_at_once() {
    let (_folder, mut store) = store(OPTIMISTIC);
    store.prepare("writer", "a+1,since=5").await;
    for (name, payload) in [("older", "a+1,since=1"), ("younger", "a+1,since=9"), ("r", "a?")] {
        refused(&store.prepare(name, payload).await, Conflict::WriteConflict);
    }
    assert_eq!(store.prepare("reader", "b?").await, yes(r#""b":[100,0]"#));
    assert_eq!(store.prepare("reader-2", "b?").await, yes(r#""b":[100,0]"#));
    refused(&store.prepare("w", "b+1").await, Conflict::WriteConflict);
    store.commit("writer").await;
    assert_eq!(store.prepare("next", "a+1").await, yes(r#""a":[101,1]"#));
}

#[tokio::test]
async fn a_version_that_is_no_longer_true_is_refused() {
    for concurrency in [LOCKING, OPTIMISTIC] {
        let (_folder, mut store) = store(concurrency);
        store.prepare("t", "a+1,a@0").await;
        store.commit("t").await;
        refused(&store.prepare("u", "a+1,a@0").await, Conflict::VersionConflict);
        refused(&store.prepare("v", "b+1,a@0").await, Conflict::VersionConflict);
        assert_eq!(store.prepare("w", "b+1,a@1").await, yes(r#""b":[100,0]"#));
        // What was validated stays true until the decision, although it is only read.
        assert!(store.prepare("x", "a+1").await.starts_with("no("));
        store.commit("w").await;
    }
}

#[tokio::test]
async fn an_older_transaction_waits_and_a_younger_one_is_refused() {
    let (_folder, mut store) = store(LOCKING);
    store.prepare("holder", "a-10,since=5").await;
    refused(&store.prepare("younger", "a-10,since=6").await, Conflict::LockConflict);
    let older = store.waits("older", Prepare, "a-10,since=4").await;
    assert_eq!(store.prepare("elsewhere", "b+1").await, yes(r#""b":[100,0]"#));
    store.commit("holder").await;
    assert_eq!(older.answer().await, yes(r#""a":[90,1]"#));
    let oldest = store.waits("oldest", Prepare, "a-10,since=3").await;
    store.rollback("older").await;
    assert_eq!(oldest.answer().await, yes(r#""a":[90,1]"#));
    store.commit("oldest").await;
    assert_eq!(store.number("a").await, (80, 2));
}

#[tokio::test]
async fn whoever_meets_both_an_older_and_a_younger_one_is_refused() {
    let (_folder, mut store) = store(LOCKING);
    store.prepare("young", "a+1,since=9").await;
    store.prepare("old", "z+1,since=1").await;
    refused(&store.prepare("t", "a+1,z+1,since=5").await, Conflict::LockConflict);
}

#[tokio::test]
async fn a_wait_ends_with_its_limit_and_the_no_is_remembered() {
    let (_folder, mut store) = store(LOCKING);
    store.prepare("holder", "a-10,since=5").await;
    let mut older = store.waits("older", Prepare, "a-10,since=4").await;
    older.ring();
    let answer = older.answer().await;
    refused(&answer, Conflict::LockTimeout);
    store.commit("holder").await;
    assert_eq!(store.prepare("older", "a-10,since=4").await, answer);
    assert_eq!((store.number("a").await, store.locks().await), ((90, 1), 0));
}

#[tokio::test]
async fn a_rollback_that_overtakes_a_waiting_prepare_keeps_it_from_the_lock() {
    let (_folder, mut store) = store(LOCKING);
    store.prepare("holder", "a-10,since=5").await;
    let older = store.waits("older", Prepare, "a-10,since=4").await;
    store.rollback("older").await;
    // Nothing was released: it is the rollback that wakes it.
    assert_eq!(older.answer().await, format!("no({LATE})"));
    store.commit("holder").await;
    assert_eq!(store.locks().await, 0);
    assert_eq!(store.prepare("older", "a-10,since=4").await, format!("no({LATE})"));
}

#[tokio::test]
async fn the_youngest_waiter_comes_first_so_that_nobody_else_must_give_way() {
    let (_folder, mut store) = store(LOCKING);
    store.prepare("holder", "a+1,since=9").await;
    let mut waiting = Vec::new();
    for (name, payload) in [("4", "a+1,since=4"), ("2", "a+1,since=2"), ("6", "a+1,since=6")] {
        waiting.push(store.waits(name, Prepare, payload).await);
    }
    let [four, two, six] = waiting.try_into().ok().unwrap();
    store.commit("holder").await;
    assert_eq!(six.answer().await, yes(r#""a":[101,1]"#));
    store.until_waiting(2).await;
    store.commit("6").await;
    assert_eq!(four.answer().await, yes(r#""a":[102,2]"#));
    store.until_waiting(1).await;
    store.rollback("4").await;
    assert_eq!(two.answer().await, yes(r#""a":[102,2]"#));
}

#[tokio::test]
async fn in_the_other_order_the_younger_wait_and_the_oldest_comes_first() {
    let (_folder, mut store) = store(QUEUEING);
    store.prepare("holder", "a+1,since=2").await;
    refused(&store.prepare("1", "a+1,since=1").await, Conflict::LockConflict);
    let six = store.waits("6", Prepare, "a+1,since=6").await;
    let four = store.waits("4", Prepare, "a+1,since=4").await;
    store.commit("holder").await;
    assert_eq!(four.answer().await, yes(r#""a":[101,1]"#));
    store.until_waiting(1).await;
    store.rollback("4").await;
    assert_eq!(six.answer().await, yes(r#""a":[101,1]"#));
    let reader = store.waits("7", Prepare, "b?,a?,since=7").await;
    assert_eq!(store.prepare("9", "b?,since=9").await, yes(r#""b":[100,0]"#));
    store.commit("6").await;
    assert_eq!(reader.answer().await, yes(r#""a":[102,2],"b":[100,0]"#));
    let writer = store.waits("10", Prepare, "b+1,since=10").await;
    assert_eq!(store.prepare("11", "b?,since=11").await, yes(r#""b":[100,0]"#));
    refused(&writer.answer().await, Conflict::LockConflict);
}

#[tokio::test]
async fn an_older_transaction_that_slips_in_sends_younger_waiters_away() {
    let (_folder, mut store) = store(LOCKING);
    store.prepare("reader", "a?,since=9").await;
    let writer = store.waits("writer", Prepare, "a+1,since=5").await;
    assert_eq!(store.prepare("oldest", "a?,since=1").await, yes(r#""a":[100,0]"#));
    refused(&writer.answer().await, Conflict::LockConflict);
}

#[tokio::test]
async fn a_key_that_its_next_holder_cannot_use_goes_to_the_one_after() {
    let (_folder, mut store) = store(LOCKING);
    store.prepare("holder-a", "a+1,since=9").await;
    store.prepare("holder-b", "b+1,since=9").await;
    let both = store.waits("both", Prepare, "a+1,b+1,since=6").await;
    let one = store.waits("one", Prepare, "a+1,since=4").await;
    store.commit("holder-a").await;
    // The younger one is offered `a`, and waits for `b` now.
    assert_eq!(one.answer().await, yes(r#""a":[101,1]"#));
    store.until_waiting(1).await;
    store.commit("holder-b").await;
    refused(&both.answer().await, Conflict::LockConflict);
}

#[tokio::test]
async fn readers_come_in_together() {
    let (_folder, mut store) = store(LOCKING);
    store.prepare("writer", "a+1,since=9").await;
    let one = store.waits("one", Prepare, "a?,since=5").await;
    let two = store.waits("two", Prepare, "a?,since=4").await;
    store.commit("writer").await;
    assert_eq!(one.answer().await, yes(r#""a":[101,1]"#));
    assert_eq!(two.answer().await, yes(r#""a":[101,1]"#));
}

#[tokio::test]
async fn a_waiter_whose_caller_has_gone_is_passed_over() {
    let (_folder, mut store) = store(LOCKING);
    store.prepare("holder", "a+1,since=9").await;
    let gone = store.waits("gone", Prepare, "a+1,since=6").await;
    let stays = store.waits("stays", Prepare, "a+1,since=4").await;
    gone.handle.abort();
    assert!(gone.handle.await.unwrap_err().is_cancelled());
    assert_eq!(store.participant.waiting(), 1);
    store.commit("holder").await;
    assert_eq!(stays.answer().await, yes(r#""a":[101,1]"#));
}

#[tokio::test]
async fn duplicates_of_a_waiting_prepare_are_answered_alike() {
    let (_folder, mut store) = store(LOCKING);
    store.prepare("holder", "a+1,since=9").await;
    let first = store.waits("t", Prepare, "a+1,since=6").await;
    let second = store.waits("t", Prepare, "a+1,since=6").await;
    assert_eq!(store.participant.waiting(), 1);
    store.commit("holder").await;
    for waiting in [first, second] {
        assert_eq!(waiting.answer().await, yes(r#""a":[101,1]"#));
    }
    store.commit("t").await;
    assert_eq!(store.number("a").await, (102, 2));
}

#[tokio::test]
async fn a_waiting_prepare_outlives_a_duplicate_whose_caller_has_gone() {
    let (_folder, mut store) = store(LOCKING);
    store.prepare("holder", "a+1,since=9").await;
    let stays = store.waits("t", Prepare, "a+1,since=6").await;
    let gone = store.waits("t", Prepare, "a+1,since=6").await;
    gone.handle.abort();
    assert!(gone.handle.await.unwrap_err().is_cancelled());
    store.until_waiting(1).await;
    store.commit("holder").await;
    assert_eq!(stays.answer().await, yes(r#""a":[101,1]"#));
}

#[tokio::test]
async fn two_participants_cannot_deadlock() {
    let ((_one, mut here), (_two, mut there)) = (store(LOCKING), store(LOCKING));
    here.prepare("old", "a+1,since=1").await;
    there.prepare("young", "a+1,since=2").await;
    let old = there.waits("old", Prepare, "a+1,since=1").await;
    refused(&here.prepare("young", "a+1,since=2").await, Conflict::LockConflict);
    here.rollback("young").await;
    there.rollback("young").await;
    assert_eq!(old.answer().await, yes(r#""a":[100,0]"#));
    here.commit("old").await;
    there.commit("old").await;
}

#[tokio::test]
async fn two_branches_of_one_transaction_do_not_wait_for_each_other() {
    for concurrency in [LOCKING, OPTIMISTIC] {
        let (_folder, mut store) = store(concurrency);
        store.prepare("t/one", "a+1").await;
        refused(&store.prepare("t/two", "a+1").await, Conflict::SameTransaction);
    }
}

#[tokio::test]
async fn no_more_wait_than_may() {
    let order = WaitOrder::OlderWaits;
    let (_folder, mut store) =
        store(Concurrency::Locking { wait_max_ms: 9, waiters_max: 1, order });
    store.prepare("holder", "a+1,since=9").await;
    let waiting = store.waits("one", Prepare, "a+1,since=6").await;
    refused(&store.prepare("two", "a+1,since=5").await, Conflict::LockConflict);
    store.rollback("holder").await;
    assert_eq!(waiting.answer().await, yes(r#""a":[100,0]"#));
}

#[tokio::test]
async fn executed_changes_are_seen_at_once_and_taken_back_from_what_is_there_then() {
    for concurrency in [LOCKING, OPTIMISTIC] {
        let (_folder, mut store) = store(concurrency);
        let answer = store.answered("saga", Execute, "a-30").await;
        assert_eq!(answer, yes(r#""a":[100,0]"#));
        assert_eq!((store.number("a").await, store.locks().await), ((70, 1), 0));
        store.prepare("t", "a-50").await;
        store.commit("t").await;
        for _ in 0..2 {
            assert_eq!(store.answered("saga", Compensate, "a-30").await, "ack");
        }
        assert_eq!(store.number("a").await, (50, 3));
    }
}

#[tokio::test]
async fn an_execute_meets_conflicts_as_a_prepare_does() {
    let (_folder, mut store) = store(OPTIMISTIC);
    store.prepare("holder", "a+1,since=5").await;
    refused(&store.answered("saga", Execute, "a-30").await, Conflict::WriteConflict);
    store.commit("holder").await;
    // A deferred branch is asked again, and succeeds then.
    assert_eq!(store.answered("saga", Execute, "a-30").await, yes(r#""a":[101,1]"#));

    let mut store = store.reopen(LOCKING);
    store.prepare("holder-2", "a+1,since=5").await;
    refused(&store.answered("young", Execute, "a+1,since=6").await, Conflict::LockConflict);
    let old = store.waits("old", Execute, "a+1,since=4").await;
    let older = store.waits("older", Execute, "a+1,since=3").await;
    store.commit("holder-2").await;
    // The first keeps no lock, so the second needs no release.
    assert_eq!(old.answer().await, yes(r#""a":[72,3]"#));
    assert_eq!(older.answer().await, yes(r#""a":[73,4]"#));
}

#[tokio::test]
async fn a_compensation_is_never_refused() {
    let (_folder, mut store) = store(OPTIMISTIC);
    store.answered("saga", Execute, "a-30").await;
    store.prepare("holder", "a+1,since=1").await;
    let busy = store.answered("saga", Compensate, "a-30").await;
    assert!(busy.starts_with("busy("), "{busy}");

    let mut store = store.reopen(LOCKING);
    let mut waiting = store.waits("saga", Compensate, "a-30").await;
    waiting.ring();
    assert_eq!(waiting.answer().await, busy);
    let waiting = store.waits("saga", Compensate, "a-30").await;
    store.commit("holder").await;
    assert_eq!(waiting.answer().await, "ack");
    assert_eq!(store.number("a").await, (101, 3));
}

#[tokio::test]
async fn a_compensation_that_overtakes_a_waiting_execute_keeps_it_from_working() {
    let (_folder, mut store) = store(LOCKING);
    store.prepare("holder", "a+1,since=5").await;
    let execute = store.waits("saga", Execute, "a-30,since=4").await;
    assert_eq!(store.answered("saga", Compensate, "a-30,since=4").await, "ack");
    assert_eq!(execute.answer().await, format!("no({LATE})"));
    store.rollback("holder").await;
    assert_eq!(store.number("a").await, (100, 0));
}

#[tokio::test]
async fn a_write_outside_the_plan_is_an_error_and_leaves_nothing() {
    let (_folder, mut store) = store(OPTIMISTIC);
    for operation in [Prepare, Execute] {
        let answer = store.answered("t", operation, "a+1,rogue").await;
        assert!(answer.contains("which its plan does not"), "{answer}");
    }
    let answer = store.answered("u", Prepare, "a+1,a+2").await;
    assert!(answer.contains("twice"), "{answer}");
    let answer = store.answered("v", Prepare, "since=4").await;
    assert!(answer.contains("names no key"), "{answer}");
    assert_eq!((store.number("a").await, store.locks().await), ((100, 0), 0));
    assert_eq!(store.answered("t", Rollback, "").await, "ack");
}

#[tokio::test]
async fn a_prepared_branch_of_another_service_is_never_taken_for_an_empty_one() {
    let folder = Folder::new();
    let other = crate::support::open(&folder.file());
    assert_eq!(crate::support::play(&other, "t", "prepare").await, "yes");
    drop(other);
    let mut store = Store::open(folder.file(), OPTIMISTIC);
    for operation in [unanimity_sdk::Operation::Commit, Rollback] {
        let answer = store.answered("t", operation, "").await;
        assert!(answer.contains("no lock is kept"), "{answer}");
    }
}
