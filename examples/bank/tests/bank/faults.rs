//! The faults, on the real program: what is left of the work after each, and that the guard makes
//! the next attempt harmless.

use std::time::Duration;

use unanimity_bank::{AccountView, FaultsView, Total};

use crate::support::{Folder, Process, payload};

async fn account(bank: &Process) -> (i64, i64) {
    let account: AccountView = bank.get("/accounts/A-1").await;
    (account.balance, account.reserved)
}

fn status(answer: Option<(u16, String)>) -> Option<u16> {
    answer.map(|(status, _)| status)
}

#[tokio::test]
async fn errors_and_lost_answers_leave_what_their_names_say() {
    let folder = Folder::new();
    let bank = Process::start(&folder, "");
    let debit = payload("A-1", -100);
    for (transaction, fault, expected, reserved) in [
        ("t1", "error_before=1", Some(503), 0),
        ("t2", "error_after=1", Some(500), 100),
        ("t3", "lost_answer=1", None, 200),
        ("t4", "vote_no=1", Some(409), 200),
        ("t5", "delay=1:20", Some(200), 300),
    ] {
        assert_eq!(bank.set_faults(fault).await, 200);
        assert_eq!(status(bank.ask("prepare", transaction, 1, &debit).await), expected, "{fault}");
        assert_eq!(account(&bank).await, (1_000, reserved), "{fault}");
    }
    assert_eq!(bank.set_faults("").await, 200);
    for (transaction, expected) in [("t1", 200), ("t2", 200), ("t3", 200), ("t4", 409), ("t5", 200)]
    {
        let again = bank.ask("prepare", transaction, 2, &debit).await;
        assert_eq!(status(again), Some(expected), "{transaction}");
    }
    assert_eq!(account(&bank).await, (1_000, 400));
    let faults: FaultsView = bank.get("/faults").await;
    assert_eq!(faults.struck["lost_answer"], 1);
    let total: Total = bank.get("/total").await;
    assert_eq!((total.prepared, total.voted_no, total.duplicates_absorbed), (4, 1, 4));
    assert_eq!(bank.set_faults("coffee=1").await, 400);
}

#[tokio::test]
async fn a_delayed_prepare_arrives_although_its_caller_has_gone() {
    let folder = Folder::new();
    let bank = Process::start(&folder, "delay=1:300");
    let debit = payload("A-1", -100);
    let struck = async {
        while bank.get::<FaultsView>("/faults").await.struck["delay"] == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        answer = bank.ask("prepare", "t", 1, &debit) => panic!("not delayed: {answer:?}"),
        () = struck => {} // And the caller is dropped, with its connection.
    }
    let arrived = async {
        while account(&bank).await != (1_000, 100) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), arrived).await.unwrap();
}

#[tokio::test]
async fn crashes_leave_all_or_nothing_and_the_promise_survives() {
    let folder = Folder::new();
    let debit = payload("A-1", -100);
    let bank = Process::start(&folder, "crash_before=1");
    assert_eq!(bank.ask("prepare", "t", 1, &debit).await, None);
    assert!(!bank.wait().success());
    let bank = Process::start(&folder, "crash_after=1");
    assert_eq!(account(&bank).await, (1_000, 0));
    assert_eq!(bank.ask("prepare", "t", 1, &debit).await, None);
    assert!(!bank.wait().success());
    let bank = Process::start(&folder, "");
    assert_eq!(account(&bank).await, (1_000, 100));
    let total: Total = bank.get("/total").await;
    assert_eq!((total.in_doubt, total.accounts, total.balance), (1, 10, 10_000));
    assert_eq!(status(bank.ask("prepare", "t", 2, &debit).await), Some(200));
    assert_eq!(status(bank.ask("commit", "t", 1, "").await), Some(200));
    assert_eq!(account(&bank).await, (900, 0));
}

#[tokio::test]
async fn sigkill_and_sigterm_are_both_a_way_to_stop() {
    let folder = Folder::new();
    let bank = Process::start(&folder, "");
    assert_eq!(status(bank.ask("prepare", "t", 1, &payload("A-1", -100)).await), Some(200));
    bank.signal("-KILL");
    assert!(!bank.wait().success());
    let bank = Process::start(&folder, "");
    assert_eq!(status(bank.ask("commit", "t", 1, "").await), Some(200));
    bank.signal("-TERM");
    assert!(bank.wait().success());
    let bank = Process::start(&folder, "");
    assert_eq!(account(&bank).await, (900, 0));
}

#[tokio::test]
async fn accounts_come_in_pages_and_unknown_ones_are_problems() {
    let folder = Folder::new();
    let bank = Process::start(&folder, "");
    let first: unanimity_bank::AccountPage = bank.get("/accounts?limit=6").await;
    let after = first.next.unwrap();
    let second: unanimity_bank::AccountPage =
        bank.get(&format!("/accounts?limit=6&after={after}")).await;
    assert_eq!((first.accounts.len(), second.accounts.len(), second.next), (6, 4, None));
    let url = format!("{}/accounts/nobody", bank.url);
    let request = hyper::Request::get(url).body(http_body_util::Full::default()).unwrap();
    let (status, body) = crate::support::send(request).await.unwrap();
    assert_eq!(status, 404);
    assert!(body.contains("unknown_account"), "{body}");
}
