//! A kill at every labelled point of the manager, once each, and what must have become of the
//! transaction when everything has come back.

use unanimity::CRASH_POINTS;
use unanimity_bank::AccountView;
use unanimity_sdk::api::{Outcome, TransactionStatus};
use unanimity_server::demo::fleet::Fleet;
use unanimity_server::demo::load::transfer;

use crate::setup::{Folder, PATIENCE, completed, fleet, until};

async fn balance(fleet: &Fleet, bank: usize, account: &str) -> i64 {
    let banks = fleet.banks().unwrap();
    let account: AccountView = banks[bank].get_json(&format!("/accounts/{account}")).await.unwrap();
    assert_eq!(account.reserved, 0, "nothing may stay reserved");
    account.balance
}

/// Ends the coordinator at a labelled point of one transfer, starts it again, asks again under the
/// same id, and gives back what became of the transfer.
async fn crash_at(point: &str) -> TransactionStatus {
    let folder = Folder::new();
    let mut fleet = fleet(&folder).await;
    fleet.processes[0].stop().await.unwrap();
    fleet.processes[0].set_environment("UNANIMITY_CRASH_AT", point);
    fleet.processes[0].start().await.unwrap();
    let client = fleet.client().unwrap();
    let request = transfer("t", &fleet.participants(), ["A-1", "B-1"], 700, 5_000);
    // Whether this is answered depends on the point: some lie behind the answer.
    let answered = client.begin(&request).await.ok();
    assert!(fleet.processes[0].ends_within(PATIENCE).await, "{point} was not reached");
    fleet.processes[0].set_environment("UNANIMITY_CRASH_AT", "");
    fleet.processes[0].start().await.unwrap();
    let begun = until("an answer to the same request", async || {
        client.begin(&request).await.ok().filter(|begun| begun.outcome.is_some())
    })
    .await;
    let ended = completed(&client, "t").await;
    assert_eq!(ended.outcome, begun.outcome, "{point}: a decision changed");
    if let Some(answered) = answered {
        assert_eq!(ended.outcome, answered.outcome, "{point}: an answer was contradicted");
    }
    let moved = if ended.outcome == Some(Outcome::Commit) { 700 } else { 0 };
    assert_eq!(balance(&fleet, 0, "A-1").await, 100_000 - moved, "{point}: bank A");
    assert_eq!(balance(&fleet, 1, "B-1").await, 100_000 + moved, "{point}: bank B");
    fleet.stop().await.unwrap();
    ended
}

#[tokio::test]
async fn killed_between_the_durable_decision_and_the_first_commit_both_end_committed() {
    let ended = crash_at("after_decided_append").await;
    assert_eq!(ended.outcome, Some(Outcome::Commit));
    assert_eq!(ended.reason.unwrap().code, "all_yes", "the decision is the first coordinator's");
}

#[tokio::test]
async fn killed_before_the_decision_both_end_rolled_back() {
    let ended = crash_at("before_decided_append").await;
    assert_eq!(ended.outcome, Some(Outcome::Rollback));
    assert_eq!(ended.reason.unwrap().code, "coordinator_restarted");
}

#[tokio::test]
async fn killed_at_every_other_labelled_point_everybody_agrees() {
    for point in CRASH_POINTS {
        let ended = crash_at(point).await;
        println!("{point}: {:?} ({:?})", ended.outcome, ended.reason.map(|reason| reason.code));
    }
}
