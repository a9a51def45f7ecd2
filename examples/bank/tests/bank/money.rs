//! What happens to money: reserved, moved, given free, refused.

use unanimity_sdk::guard::Reply;
use unanimity_sdk::{Operation, SqliteParticipant};

use crate::support::{Folder, call, money, open, payload};
use Operation::{Commit, Compensate, Execute, Prepare, Rollback};

async fn acknowledged(bank: &SqliteParticipant, transaction: &str, operation: Operation) {
    let answer = call(bank, transaction, operation, "").await;
    assert_eq!(answer, Ok(Reply::Acknowledged), "{transaction} {operation:?}");
}

async fn yes(bank: &SqliteParticipant, transaction: &str, operation: Operation, amount: i64) {
    let answer = call(bank, transaction, operation, &payload("A-1", amount)).await;
    assert_eq!(answer, Ok(Reply::Yes(None)), "{transaction}");
}

#[tokio::test]
async fn a_debit_is_reserved_and_then_taken_or_given_free() {
    let folder = Folder::new();
    let bank = open(&folder, "A", 2, "");
    yes(&bank, "taken", Prepare, -300).await;
    assert_eq!(money(&bank, "A-1").await, (1_000, 300));
    acknowledged(&bank, "taken", Commit).await;
    assert_eq!(money(&bank, "A-1").await, (700, 0));
    yes(&bank, "freed", Prepare, -700).await;
    acknowledged(&bank, "freed", Rollback).await;
    assert_eq!(money(&bank, "A-1").await, (700, 0));
}

#[tokio::test]
async fn a_credit_is_paid_by_the_commit_only() {
    let folder = Folder::new();
    let bank = open(&folder, "A", 2, "");
    yes(&bank, "paid", Prepare, 300).await;
    assert_eq!(money(&bank, "A-1").await, (1_000, 0));
    acknowledged(&bank, "paid", Commit).await;
    assert_eq!(money(&bank, "A-1").await, (1_300, 0));
    yes(&bank, "not", Prepare, 300).await;
    acknowledged(&bank, "not", Rollback).await;
    assert_eq!(money(&bank, "A-1").await, (1_300, 0));
}

#[tokio::test]
async fn what_is_reserved_cannot_be_spent_twice() {
    let folder = Folder::new();
    let bank = open(&folder, "A", 2, "");
    yes(&bank, "first", Prepare, -600).await;
    let second = call(&bank, "second", Prepare, &payload("A-1", -600)).await;
    let reason = "A-1 has 400 cents free; 600 are needed".to_owned();
    assert_eq!(second, Ok(Reply::No(reason)));
    acknowledged(&bank, "first", Rollback).await;
    let again = call(&bank, "second", Prepare, &payload("A-1", -600)).await;
    assert!(matches!(again, Ok(Reply::No(_))), "a no stays a no: {again:?}");
    yes(&bank, "third", Prepare, -600).await;
}

#[tokio::test]
async fn bad_payloads_are_refused_with_a_reason() {
    let folder = Folder::new();
    let bank = open(&folder, "A", 2, "");
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
            let answer = call(&bank, &format!("{operation:?}-{number}"), operation, &payload).await;
            let Ok(Reply::No(reason)) = answer else { panic!("{payload}: {answer:?}") };
            assert!(reason.contains(part), "{payload}: {reason}");
        }
    }
    assert_eq!(money(&bank, "A-1").await, (1_000, 0));
}

#[tokio::test]
async fn executed_moves_are_visible_and_can_be_moved_back() {
    let folder = Folder::new();
    let bank = open(&folder, "A", 2, "");
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

#[tokio::test]
async fn opening_balances_are_paid_once() {
    let folder = Folder::new();
    let bank = open(&folder, "A", 2, "");
    yes(&bank, "t", Execute, -400).await;
    drop(bank);
    let bank = open(&folder, "A", 50, "");
    assert_eq!(money(&bank, "A-1").await, (600, 0));
    let count = |db: &rusqlite::Connection| {
        db.query_row("SELECT count(*) FROM account", [], |row| row.get::<_, u32>(0))
    };
    assert_eq!(bank.read(count).await.unwrap(), 2);
}
