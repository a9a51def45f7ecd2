//! What happens to money, wherever the accounts lie: reserved, moved, given free, refused.

use unanimity_bank::Books;
use unanimity_sdk::Operation;
use unanimity_sdk::guard::Reply;

use crate::support::{Folder, arguments, call, money, open, payload, places, xa_places};
use Operation::{Commit, Compensate, Execute, Prepare, Rollback};

async fn acknowledged(bank: &Books, transaction: &str, operation: Operation) {
    let answer = call(&*bank.participant, transaction, operation, "").await;
    assert_eq!(answer, Ok(Reply::Acknowledged), "{transaction} {operation:?}");
}

async fn yes(bank: &Books, transaction: &str, operation: Operation, amount: i64) {
    let answer = call(&*bank.participant, transaction, operation, &payload("A-1", amount)).await;
    assert_eq!(answer, Ok(Reply::Yes(None)), "{transaction}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_debit_is_reserved_and_then_taken_or_given_free() {
    for place in places() {
        let folder = Folder::new();
        let bank = open(arguments("A", &place, place.fresh(&folder).await, 2)).await;
        yes(&bank, "taken", Prepare, -300).await;
        assert_eq!(money(&bank, "A-1").await, (1_000, 300));
        acknowledged(&bank, "taken", Commit).await;
        assert_eq!(money(&bank, "A-1").await, (700, 0));
        yes(&bank, "freed", Prepare, -700).await;
        acknowledged(&bank, "freed", Rollback).await;
        assert_eq!(money(&bank, "A-1").await, (700, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credit_is_paid_by_the_commit_only() {
    for place in places() {
        let folder = Folder::new();
        let bank = open(arguments("A", &place, place.fresh(&folder).await, 2)).await;
        yes(&bank, "paid", Prepare, 300).await;
        assert_eq!(money(&bank, "A-1").await, (1_000, 0));
        acknowledged(&bank, "paid", Commit).await;
        assert_eq!(money(&bank, "A-1").await, (1_300, 0));
        yes(&bank, "not", Prepare, 300).await;
        acknowledged(&bank, "not", Rollback).await;
        assert_eq!(money(&bank, "A-1").await, (1_300, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_reserved_cannot_be_spent_twice() {
    for place in places() {
        let folder = Folder::new();
        let bank = open(arguments("A", &place, place.fresh(&folder).await, 2)).await;
        yes(&bank, "first", Prepare, -600).await;
        let second = call(&*bank.participant, "second", Prepare, &payload("A-1", -600)).await;
        let reason = "A-1 has 400 cents free; 600 are needed".to_owned();
        assert_eq!(second, Ok(Reply::No(reason)));
        acknowledged(&bank, "first", Rollback).await;
        let again = call(&*bank.participant, "second", Prepare, &payload("A-1", -600)).await;
        assert!(matches!(again, Ok(Reply::No(_))), "a no stays a no: {again:?}");
        yes(&bank, "third", Prepare, -600).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_payloads_are_refused_with_a_reason() {
    for place in places() {
        let folder = Folder::new();
        let bank = open(arguments("A", &place, place.fresh(&folder).await, 2)).await;
        for (number, (payload, part)) in [
            (payload("A-1", -1_001), "1000 cents free"),
            (payload("A-99", -1), "no account \"A-99\""),
            (payload("A-1", 0), "amount 0"),
            (payload("A-1", i64::MIN), "must be 1 to"),
            (payload("A-1", i64::MAX), "must be 1 to"),
            (payload("A-1", 1_000_000_000_001), "must be 1 to"),
            (r#"{"account":"A-1","amount":1.5}"#.to_owned(), "cannot be read"),
            (r#"{"account":"A-1","amount":99999999999999999999}"#.to_owned(), "cannot be read"),
            (r#"{"account":"A-1","amount":1,"extra":1}"#.to_owned(), "unknown field"),
            (r#"{"account":"A-1"}"#.to_owned(), "missing field"),
            ("null".to_owned(), "cannot be read"),
            (String::new(), "cannot be read"),
        ]
        .into_iter()
        .enumerate()
        {
            for operation in [Prepare, Execute] {
                let answer = call(
                    &*bank.participant,
                    &format!("{operation:?}-{number}"),
                    operation,
                    &payload,
                )
                .await;
                let Ok(Reply::No(reason)) = answer else { panic!("{payload}: {answer:?}") };
                assert!(reason.contains(part), "{payload}: {reason}");
            }
        }
        assert_eq!(money(&bank, "A-1").await, (1_000, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn executed_moves_are_visible_and_can_be_moved_back() {
    for place in places() {
        let folder = Folder::new();
        let bank = open(arguments("A", &place, place.fresh(&folder).await, 2)).await;
        yes(&bank, "t", Execute, 500).await;
        yes(&bank, "t", Execute, 500).await;
        assert_eq!(money(&bank, "A-1").await, (1_500, 0));
        yes(&bank, "spent", Execute, -1_200).await;
        acknowledged(&bank, "t", Compensate).await;
        acknowledged(&bank, "t", Compensate).await;
        assert_eq!(money(&bank, "A-1").await, (-200, 0));
        yes(&bank, "back", Prepare, 100).await;
        acknowledged(&bank, "back", Commit).await;
        assert_eq!(money(&bank, "A-1").await, (-100, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn opening_balances_are_paid_once() {
    for place in places() {
        let folder = Folder::new();
        let database = place.fresh(&folder).await;
        let bank = open(arguments("A", &place, database.clone(), 2)).await;
        yes(&bank, "t", Execute, -400).await;
        drop(bank);
        let bank = open(arguments("A", &place, database, 50)).await;
        assert_eq!(money(&bank, "A-1").await, (600, 0), "{}", place.kind);
        assert_eq!(bank.total().await.unwrap().accounts, 2, "{}", place.kind);
    }
}

/// The change is there, and seen by nobody, until the decision.
#[tokio::test(flavor = "multi_thread")]
async fn where_the_database_prepares_money_moves_with_the_decision() {
    let (_alone, xa_places) = xa_places().await;
    for place in xa_places {
        let folder = Folder::new();
        let bank = open(arguments("A", &place, place.fresh(&folder).await, 2)).await;
        yes(&bank, "taken", Prepare, -300).await;
        assert_eq!(money(&bank, "A-1").await, (1_000, 0), "{}", place.kind);
        assert_eq!(bank.total().await.unwrap().in_doubt, 1, "{}", place.kind);
        let other = call(&*bank.participant, "other", Prepare, &payload("A-1", -1)).await;
        let Ok(Reply::No(reason)) = other else { panic!("{}: {other:?}", place.kind) };
        assert!(reason.contains("the database rolled the branch back"), "{reason}");
        acknowledged(&bank, "taken", Commit).await;
        assert_eq!(money(&bank, "A-1").await, (700, 0), "{}", place.kind);
        yes(&bank, "freed", Prepare, -700).await;
        acknowledged(&bank, "freed", Rollback).await;
        let poor = call(&*bank.participant, "poor", Prepare, &payload("A-1", -701)).await;
        let reason = "A-1 has 700 cents free; 701 are needed".to_owned();
        assert_eq!(poor, Ok(Reply::No(reason)), "{}", place.kind);
        let total = bank.total().await.unwrap();
        assert_eq!((total.balance, total.in_doubt), (1_700, 0), "{}", place.kind);
        assert_eq!((total.committed, total.rolled_back, total.voted_no), (1, 1, 2));
    }
}
