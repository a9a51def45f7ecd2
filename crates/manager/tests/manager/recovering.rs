//! A restart in each state of a transaction.

use std::time::Duration;

use unanimity::{DecisionReply, Filter, TransactionManager, Wait};

use crate::fake::{Fake, Fault, Folder, PATIENCE, begin, ended, id, short, start};

/// Stops as a crash would, but for what the journal's thread was just writing.
async fn abandon(manager: TransactionManager) {
    manager.stop(Duration::ZERO).await;
}

async fn in_list(manager: &TransactionManager) -> Vec<String> {
    let page = manager.list(Filter::default(), 100).await.unwrap();
    page.transactions.iter().map(|(view, _)| format!("{} {}", view.id, short(view))).collect()
}

#[tokio::test]
async fn what_was_undecided_is_rolled_back_everywhere() {
    let (fake, folder) = (Fake::new(), Folder::new());
    let manager = start(folder.config(), &fake);
    fake.close("b prepare");
    begin(&manager, "T", &["a", "b", "c"], Wait::Accepted).await;
    fake.seen("T", 3).await;
    assert_eq!(manager.decision(&id("T")).await, Ok(DecisionReply::Pending));
    abandon(manager).await;

    let fake = Fake::new();
    let manager = start(folder.config(), &fake);
    let view = ended(&manager, "T").await;
    assert_eq!(short(&view), "rollback coordinator_restarted ended");
    let mut calls = fake.calls();
    calls.sort();
    assert_eq!(calls, ["T a rollback 1", "T b rollback 1", "T c rollback 1"]);
    assert_eq!(manager.decision(&id("T")).await, Ok(DecisionReply::Rollback));
    assert_eq!(manager.decision(&id("nobody")).await, Ok(DecisionReply::Rollback));
    assert_eq!(in_list(&manager).await, ["T rollback coordinator_restarted ended"]);
}

#[tokio::test]
async fn a_decided_commit_is_sent_again_until_acknowledged() {
    let (fake, folder) = (Fake::new(), Folder::new());
    let manager = start(folder.config(), &fake);
    fake.close("b commit");
    begin(&manager, "T", &["a", "b"], Wait::Outcome).await;
    abandon(manager).await;

    let fake = Fake::new();
    fake.fault("b commit", Fault::Lost, 3);
    let manager = start(folder.config(), &fake);
    assert_eq!(manager.decision(&id("T")).await, Ok(DecisionReply::Commit));
    assert_eq!(short(&ended(&manager, "T").await), "commit all_yes ended");
    assert_eq!((fake.count("T a commit"), fake.count("T b commit")), (1, 4));
    assert_eq!(fake.calls().len(), 5);
    assert_eq!(manager.decision(&id("T")).await, Ok(DecisionReply::Commit));
}

#[tokio::test]
async fn a_decided_rollback_is_sent_again_until_acknowledged() {
    let (fake, folder) = (Fake::new(), Folder::new());
    let manager = start(folder.config(), &fake);
    fake.fault("a prepare", Fault::No, 1);
    fake.close("b rollback");
    begin(&manager, "T", &["a", "b"], Wait::Outcome).await;
    abandon(manager).await;

    let fake = Fake::new();
    let manager = start(folder.config(), &fake);
    assert_eq!(short(&ended(&manager, "T").await), "rollback voted_no ended");
    assert_eq!((fake.count("T a rollback"), fake.count("T b rollback")), (1, 1));
}

#[tokio::test]
async fn what_has_ended_is_in_the_history_once() {
    let (fake, folder) = (Fake::new(), Folder::new());
    let manager = start(folder.config(), &fake);
    begin(&manager, "T", &["a", "b"], Wait::Completed).await;
    let before = manager.timeline(&id("T")).await.unwrap().unwrap();
    abandon(manager).await;
    for _ in 0..2 {
        let fake = Fake::new();
        let manager = start(folder.config(), &fake);
        assert_eq!(in_list(&manager).await, ["T commit all_yes ended"]);
        assert_eq!(manager.timeline(&id("T")).await.unwrap().unwrap(), before);
        assert_eq!(fake.calls(), Vec::<String>::new());
        manager.stop(PATIENCE).await;
    }
}

#[tokio::test]
async fn a_crash_while_many_are_live_loses_none() {
    let (fake, folder) = (Fake::new(), Folder::new());
    let mut config = folder.config();
    config.shards = 3;
    let manager = start(config.clone(), &fake);
    fake.close("slow prepare");
    fake.close("stuck commit");
    for n in 0..60 {
        let (participant, wait) = match n % 3 {
            0 => ("slow", Wait::Accepted),
            1 => ("stuck", Wait::Outcome),
            _ => ("a", Wait::Completed),
        };
        begin(&manager, &format!("T-{n}"), &[participant], wait).await;
    }
    abandon(manager).await;

    let manager = start(config, &Fake::new());
    for n in 0..60 {
        let view = ended(&manager, &format!("T-{n}")).await;
        let outcome = if n % 3 == 0 { "rollback" } else { "commit" };
        assert_eq!(view.outcome.as_deref(), Some(outcome), "{view:?}");
    }
    assert_eq!(in_list(&manager).await.len(), 60);
}
