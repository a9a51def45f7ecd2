//! The bank that locks accounts, on the real program: what it tells, what it refuses, and that its
//! promises outlive the process and are kept by the kind of bank that has made them.

use unanimity_bank::{AccountPage, AccountView, Total};

use crate::support::{Folder, Process, payload};

const WAYS: [&str; 3] = ["locking", "queueing", "optimistic"];

async fn account(bank: &Process) -> (i64, i64, Option<i64>) {
    let account: AccountView = bank.get("/accounts/A-1").await;
    (account.balance, account.reserved, account.version)
}

/// Asks, and gives the status.
async fn ask(bank: &Process, operation: &str, transaction: &str, body: &str) -> Option<u16> {
    bank.ask(operation, transaction, 1, body).await.map(|(status, _)| status)
}

#[tokio::test]
async fn a_locked_account_is_refused_to_others_until_the_decision() {
    for (way, code) in [("locking", "lock_conflict: "), ("optimistic", "write_conflict: ")] {
        let folder = Folder::new();
        let bank = Process::start_by(&folder, "", way);
        let debit = payload("A-1", -300);
        assert_eq!(ask(&bank, "prepare", "a", &debit).await, Some(200));
        let (status, body) = bank.ask("prepare", "b", 1, &debit).await.unwrap();
        assert_eq!(status, 409, "{way}");
        assert!(body.contains(code), "{way}: {body}");
        assert_eq!(account(&bank).await, (1_000, 0, Some(0)), "{way}");
        assert_eq!(bank.get::<Total>("/total").await.in_doubt, 1, "{way}");
        assert_eq!(ask(&bank, "commit", "a", "").await, Some(200), "{way}");
        assert_eq!(account(&bank).await, (700, 0, Some(1)), "{way}");
        let page: AccountPage = bank.get("/accounts?limit=1").await;
        assert_eq!(page.accounts[0].version, Some(1), "{way}");
    }
}

#[tokio::test]
async fn a_version_read_before_is_compared() {
    let folder = Folder::new();
    let bank = Process::start_by(&folder, "", "optimistic");
    let at = |version: i64| format!(r#"{{"account":"A-1","amount":-1,"version":{version}}}"#);
    assert_eq!(ask(&bank, "prepare", "a", &at(0)).await, Some(200));
    assert_eq!(ask(&bank, "commit", "a", "").await, Some(200));
    let (status, body) = bank.ask("prepare", "b", 1, &at(0)).await.unwrap();
    assert_eq!(status, 409);
    assert!(body.contains("version_conflict: "), "{body}");
    assert_eq!(ask(&bank, "prepare", "c", &at(1)).await, Some(200));
    let folder = Folder::new();
    let bank = Process::start(&folder, "");
    assert_eq!(ask(&bank, "prepare", "a", &at(0)).await, Some(409));
}

#[tokio::test]
async fn crashes_and_faults_leave_all_or_nothing() {
    let debit = payload("A-1", -100);
    for way in WAYS {
        let folder = Folder::new();
        let bank = Process::start_by(&folder, "crash_before=1", way);
        assert_eq!(ask(&bank, "prepare", "t", &debit).await, None, "{way}");
        assert!(!bank.wait().success());
        let bank = Process::start_by(&folder, "crash_after=1", way);
        assert_eq!(bank.get::<Total>("/total").await.in_doubt, 0, "{way}");
        assert_eq!(ask(&bank, "prepare", "t", &debit).await, None, "{way}");
        assert!(!bank.wait().success());
        let bank = Process::start_by(&folder, "vote_no=1", way);
        assert_eq!(bank.get::<Total>("/total").await.in_doubt, 1, "{way}");
        let other = payload("A-2", -100);
        assert_eq!(ask(&bank, "prepare", "u", &other).await, Some(409), "{way}");
        assert_eq!(ask(&bank, "commit", "t", "").await, Some(200), "{way}");
        assert_eq!(account(&bank).await, (900, 0, Some(1)), "{way}");
        assert_eq!(bank.get::<Total>("/total").await.balance, 9_900, "{way}");
    }
}

#[tokio::test]
async fn executed_moves_can_be_moved_back() {
    for way in WAYS {
        let folder = Folder::new();
        let bank = Process::start_by(&folder, "", way);
        let credit = payload("A-1", 500);
        assert_eq!(ask(&bank, "execute", "t", &credit).await, Some(200), "{way}");
        assert_eq!(account(&bank).await, (1_500, 0, Some(1)), "{way}");
        assert_eq!(ask(&bank, "execute", "u", &payload("A-1", -1_200)).await, Some(200), "{way}");
        assert_eq!(ask(&bank, "compensate", "t", &credit).await, Some(200), "{way}");
        assert_eq!(account(&bank).await, (-200, 0, Some(3)), "{way}");
    }
}

#[tokio::test]
async fn a_file_is_refused_while_the_other_kind_of_bank_owes_decisions() {
    let folder = Folder::new();
    let debit = payload("A-1", -100);
    for (way, other) in [("reservation", "optimistic"), ("locking", "reservation")] {
        let bank = Process::start_by(&folder, "", way);
        assert_eq!(ask(&bank, "prepare", way, &debit).await, Some(200), "{way}");
        bank.signal("-TERM");
        assert!(bank.wait().success());
        let status = std::process::Command::new(env!("CARGO_BIN_EXE_bank"))
            .args(["--name", "A", "--accounts-by", other, "--database"])
            .arg(folder.file("A"))
            .output()
            .unwrap();
        assert!(!status.status.success(), "{way}");
        let said = String::from_utf8(status.stderr).unwrap();
        assert!(said.contains(&format!("--accounts-by {way}")), "{said}");
        let bank = Process::start_by(&folder, "", way);
        assert_eq!(ask(&bank, "commit", way, "").await, Some(200), "{way}");
    }
    let bank = Process::start_by(&folder, "", "optimistic");
    assert_eq!(bank.get::<Total>("/total").await.balance, 9_800);
}
