//! Beginning: until when one waits, ids, bounds, refusals, and who is kept waiting by whom.

use tokio::task::JoinSet;
use unanimity::core::{Outcome, Plan};
use unanimity::{BeginError, BeginRequest, CommitError, ManagerConfig, Unavailable, Wait};

use crate::fake::{
    Fake, Fault, Folder, PATIENCE, begin, ended, id, in_memory, plan, request, short, soon, start,
    until,
};

#[tokio::test]
async fn each_wait_ends_when_what_it_waits_for_has_come() {
    let fake = Fake::new();
    let manager = in_memory(&fake);
    fake.close("a prepare");
    fake.close("b commit");
    let accepted = begin(&manager, "T", &["a", "b"], Wait::Accepted).await;
    assert_eq!(short(&accepted.transaction), "undecided  preparing");
    assert!(!accepted.existed);

    let outcome = tokio::spawn({
        let manager = manager.clone();
        async move { begin(&manager, "T", &["a", "b"], Wait::Outcome).await }
    });
    fake.open("a prepare");
    let outcome = soon(outcome).await.unwrap();
    assert_eq!(short(&outcome.transaction), "commit all_yes committing");
    assert!(outcome.existed && !outcome.transaction.completed);

    fake.open("b commit");
    let completed = begin(&manager, "T", &["a", "b"], Wait::Completed).await;
    assert_eq!(short(&completed.transaction), "commit all_yes ended");
    let mut calls = fake.calls();
    calls.sort();
    assert_eq!(calls, ["T a commit 1", "T a prepare 1", "T b commit 1", "T b prepare 1"]);
}

/// One that has just ended is in the shard's memory for a moment, and then in the history only.
#[tokio::test]
async fn a_whole_transaction_that_has_ended_is_not_asked_to_commit_wherever_it_is_kept() {
    let fake = Fake::new();
    let manager = in_memory(&fake);
    for number in 0..100 {
        let name = format!("T-{number}");
        begin(&manager, &name, &["a", "b"], Wait::Completed).await;
        let asked = soon(manager.commit(&id(&name), Wait::Outcome)).await;
        assert!(matches!(asked, Err(CommitError::Whole)), "{asked:?}");
        let word = manager.resolve(&id(&name), "a", Outcome::Rollback, "ann", "").await;
        assert_eq!(word.unwrap_err().code(), "branch_settled");
    }
}

#[tokio::test]
async fn votes_decide() {
    let fake = Fake::new();
    let manager = in_memory(&fake);
    fake.fault("b prepare", Fault::No, 1);
    let no = begin(&manager, "T-no", &["a", "b"], Wait::Completed).await.transaction;
    assert_eq!(short(&no), "rollback voted_no ended");
    let reason = no.reason.unwrap();
    assert_eq!((reason.branch.as_deref(), reason.detail.as_deref()), (Some("b"), Some("refused")));
    assert_eq!((fake.count("T-no a rollback"), fake.count("T-no b rollback")), (1, 1));

    fake.fault("a prepare", Fault::ReadOnly, 1);
    let some = begin(&manager, "T-some", &["a", "b"], Wait::Completed).await.transaction;
    assert_eq!(short(&some), "commit all_yes ended");
    assert_eq!((fake.count("T-some a commit"), fake.count("T-some b commit")), (0, 1));
}

#[tokio::test]
async fn lost_answers_and_panics_are_asked_again() {
    let fake = Fake::new();
    let manager = in_memory(&fake);
    fake.fault("a prepare", Fault::Panic, 1);
    fake.fault("b prepare", Fault::Lost, 2);
    fake.fault("b commit", Fault::Panic, 3);
    let view = begin(&manager, "T", &["a", "b"], Wait::Completed).await.transaction;
    assert_eq!(short(&view), "commit all_yes ended");
    assert_eq!((fake.count("T a prepare"), fake.count("T b prepare")), (2, 3));
    assert_eq!((fake.count("T a commit"), fake.count("T b commit")), (1, 4));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_participant_that_hangs_costs_the_others_nothing() {
    let fake = Fake::new();
    let manager = in_memory(&fake);
    fake.close("hangs prepare");
    begin(&manager, "T", &["hangs", "a"], Wait::Accepted).await;
    fake.seen("T hangs prepare", 1).await;
    let mut others = JoinSet::new();
    for n in 0..1_000 {
        let manager = manager.clone();
        let name = format!("U-{n}");
        others.spawn(async move { begin(&manager, &name, &["a", "b"], Wait::Completed).await });
    }
    for other in soon(others.join_all()).await {
        assert_eq!(short(&other.transaction), "commit all_yes ended");
    }
    let hanging = manager.get(&id("T")).await.unwrap().unwrap();
    assert_eq!(short(&hanging), "undecided  preparing");

    let mut hasty = plan(&["hangs", "a"]);
    hasty.options.prepare_timeout_ms = 20;
    let request = BeginRequest::with_id(id("V"), hasty, Wait::Completed);
    let view = soon(manager.begin(request)).await.unwrap().transaction;
    assert_eq!(short(&view), "rollback prepare_timeout ended");
    let waited_ms = view.decided_at_ms.unwrap() - view.begun_at_ms;
    assert!(waited_ms >= 20, "{waited_ms}");
    assert_eq!((fake.count("V a rollback"), fake.count("V hangs rollback")), (1, 1));
}

#[tokio::test]
async fn whoever_waits_for_completion_is_released_by_the_limit_for_the_whole() {
    let fake = Fake::new();
    let manager = in_memory(&fake);
    let limited = |name: &str, participant: &str, timeout_ms: u64| {
        let mut plan = plan(&[participant]);
        plan.options.timeout_ms = timeout_ms;
        BeginRequest::with_id(id(name), plan, Wait::Completed)
    };
    fake.close("a commit");
    let mut timeout_ms = 10;
    let (name, decided) = loop {
        timeout_ms *= 2; // On a machine that is busy the limit may pass before the decision.
        let name = format!("T-{timeout_ms}");
        let begun = soon(manager.begin(limited(&name, "a", timeout_ms))).await;
        let view = begun.unwrap().transaction;
        if view.outcome.as_deref() == Some("commit") {
            break (name, view);
        }
    };
    assert_eq!(short(&decided), "commit all_yes committing");
    assert!(decided.overdue);
    let again = soon(manager.begin(limited(&name, "a", timeout_ms))).await.unwrap();
    assert!(again.existed && again.transaction.overdue);

    fake.close("b prepare");
    fake.close("b rollback");
    let undecided = soon(manager.begin(limited("U", "b", 20))).await.unwrap().transaction;
    assert_eq!(short(&undecided), "rollback timeout rolling_back");
    let again = soon(manager.begin(limited("U", "b", 20))).await.unwrap();
    assert_eq!(short(&again.transaction), "rollback timeout rolling_back");
    let shown = soon(manager.wait_for(&id("U"), Wait::Completed, PATIENCE)).await;
    assert_eq!(short(&shown.unwrap().unwrap()), "rollback timeout rolling_back");
}

async fn check_ids(manager: &unanimity::TransactionManager, completed: bool) {
    let same = begin(manager, "T", &["a", "b"], Wait::Outcome).await;
    assert!(same.existed, "{same:?}");
    assert_eq!(same.transaction.completed, completed);
    assert_eq!(same.transaction.outcome.as_deref(), Some("commit"));
    let other = soon(manager.begin(request("T", &["a", "c"], Wait::Outcome))).await;
    assert!(matches!(&other, Err(BeginError::IdReused(used)) if used == "T"), "{other:?}");
}

#[tokio::test]
async fn an_id_means_one_transaction_for_ever() {
    let (fake, folder) = (Fake::new(), Folder::new());
    fake.close("a commit");
    let manager = start(folder.config(), &fake);
    begin(&manager, "T", &["a", "b"], Wait::Outcome).await;
    check_ids(&manager, false).await;
    fake.open("a commit");
    ended(&manager, "T").await;
    check_ids(&manager, true).await;
    manager.stop(PATIENCE).await;

    let manager = start(folder.config(), &fake);
    check_ids(&manager, true).await;
    assert_eq!((fake.count("T a prepare"), fake.count("T a commit")), (1, 1));
    assert_eq!(fake.count("T c"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_that_begin_the_same_begin_one() {
    let fake = Fake::new();
    let manager = in_memory(&fake);
    let mut all = JoinSet::new();
    for _ in 0..50 {
        let manager = manager.clone();
        all.spawn(async move { begin(&manager, "T", &["a", "b"], Wait::Completed).await });
    }
    let replies = soon(all.join_all()).await;
    assert_eq!(replies.iter().filter(|reply| !reply.existed).count(), 1);
    assert!(replies.iter().all(|reply| short(&reply.transaction) == "commit all_yes ended"));
    assert_eq!(fake.calls().len(), 4);
}

/// The history in memory is asked and written at once; neither may disturb the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_history_in_memory_bears_reading_while_it_is_written() {
    let fake = Fake::new();
    let manager = in_memory(&fake);
    let mut all = JoinSet::new();
    for n in 0..2_000 {
        let manager = manager.clone();
        let name = format!("T-{n}");
        all.spawn(async move {
            begin(&manager, &name, &["a"], Wait::Completed).await;
            let shown = manager.get(&id(&name)).await;
            assert!(shown.as_ref().is_ok_and(Option::is_some), "{shown:?}");
            let again = begin(&manager, &name, &["a"], Wait::Completed).await;
            assert!(again.existed);
        });
    }
    soon(all.join_all()).await;
    assert!(manager.is_ready());
}

#[tokio::test]
async fn more_than_may_be_live_are_refused() {
    let fake = Fake::new();
    let config = ManagerConfig { live_transactions_max: 2, ..ManagerConfig::default() };
    let manager = start(config, &fake);
    fake.close("a prepare");
    begin(&manager, "T", &["a"], Wait::Accepted).await;
    begin(&manager, "U", &["a"], Wait::Accepted).await;
    let refused = soon(manager.begin(request("V", &["a"], Wait::Outcome))).await;
    assert!(matches!(refused, Err(BeginError::AtCapacity)), "{refused:?}");
    assert!(begin(&manager, "T", &["a"], Wait::Accepted).await.existed);
    fake.open("a prepare");
    ended(&manager, "T").await;
    begin(&manager, "V", &["a"], Wait::Completed).await;
}

#[tokio::test]
async fn bad_plans_are_refused_and_nothing_is_sent() {
    let fake = Fake::new();
    let manager = in_memory(&fake);
    let check = async |plan: Plan, code: &str, field: &str| {
        let chosen = BeginRequest::with_id(id("T"), plan.clone(), Wait::Outcome);
        for request in [chosen, BeginRequest::new(plan, Wait::Outcome)] {
            let refused = soon(manager.begin(request)).await;
            let Err(BeginError::Plan(error)) = refused else { panic!("{refused:?}") };
            assert_eq!((error.code, &*error.field), (code, field));
        }
    };
    check(plan(&[]), "no_branches", "branches").await;
    check(plan(&["a", "a"]), "branch_name_repeated", "branches[1].name").await;
    check(plan(&["a", "forbidden"]), "participant_not_allowed", "branches[1].participant").await;
    // Of two mistakes the plan's own is told.
    let both = plan(&["forbidden", "forbidden"]);
    check(both, "branch_name_repeated", "branches[1].name").await;
    assert_eq!(fake.calls(), Vec::<String>::new());
}

#[tokio::test]
async fn a_rollback_and_a_retry_can_be_asked_for() {
    let fake = Fake::new();
    let manager = in_memory(&fake);
    fake.close("a prepare");
    begin(&manager, "T", &["a", "b"], Wait::Accepted).await;
    let view = soon(manager.rollback(&id("T"), "by hand")).await.unwrap().unwrap();
    assert_eq!(view.outcome.as_deref(), Some("rollback"));
    assert_eq!(view.reason.unwrap().detail.as_deref(), Some("by hand"));
    ended(&manager, "T").await;

    let mut slow = plan(&["c"]);
    slow.options.retry.delay_ms = 100_000;
    slow.options.retry.delay_max_ms = 100_000;
    fake.fault("c commit", Fault::Lost, 1);
    let request = BeginRequest::with_id(id("U"), slow, Wait::Outcome);
    soon(manager.begin(request)).await.unwrap();
    let waits = async {
        while manager.get(&id("U")).await.unwrap().unwrap().branches[0].retry_at_ms.is_none() {}
    };
    soon(waits).await;
    soon(manager.retry(&id("U"))).await.unwrap();
    ended(&manager, "U").await;
    assert_eq!(soon(manager.rollback(&id("nobody"), "why")).await.unwrap(), None);
    assert_eq!(soon(manager.get(&id("nobody"))).await.unwrap(), None);
}

#[tokio::test]
async fn stopping_finishes_what_is_live_and_takes_nothing_new() {
    let (fake, folder) = (Fake::new(), Folder::new());
    let manager = start(folder.config(), &fake);
    fake.close("a prepare");
    begin(&manager, "T", &["a"], Wait::Accepted).await;
    let stopping = tokio::spawn({
        let manager = manager.clone();
        async move { manager.stop(PATIENCE).await }
    });
    until(|| !manager.is_ready()).await;
    let refused = manager.begin(request("U", &["b"], Wait::Outcome)).await;
    let stopped = BeginError::Unavailable(Unavailable::Stopping);
    assert_eq!(refused.unwrap_err().to_string(), stopped.to_string());
    assert!(!stopping.is_finished());
    fake.open("a prepare");
    soon(stopping).await.unwrap();
    assert_eq!(manager.get(&id("T")).await, Err(Unavailable::Stopping));

    let manager = start(folder.config(), &Fake::new());
    let view = manager.get(&id("T")).await.unwrap().unwrap();
    assert_eq!(short(&view), "commit all_yes ended");
    assert_eq!(manager.get(&id("U")).await, Ok(None));
}
