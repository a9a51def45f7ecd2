//! The guard's promises, through both stores: what is answered and how often the service worked.

use std::sync::Arc;

use unanimity_sdk::{Doubting, MemoryParticipant, Operation, Participant};

use crate::support::{Diary, Folder, Plain, diary, id, open, play, request, text};

const LATE: &str = unanimity_sdk::guard::LATE_REASON;

/// Plays a script against the SQLite store, and reads the diary.
async fn check(script: &'static str, expected: &str, worked: &str) {
    let folder = Folder::new();
    let participant = open(&folder.file());
    assert_eq!(play(&participant, "t", script).await, expected, "{script}");
    assert_eq!(diary(&participant, "t").await, worked, "{script}");
}

#[tokio::test]
async fn every_operation_three_times_works_once() {
    check("prepare prepare prepare", "yes yes yes", "prepare").await;
    check("prepare commit commit commit", "yes ack ack ack", "prepare commit").await;
    check("prepare rollback rollback rollback", "yes ack ack ack", "prepare rollback").await;
    check("execute execute execute", "yes yes yes", "execute").await;
    check("execute compensate compensate", "yes ack ack", "execute compensate").await;
    check("rollback rollback rollback", "ack ack ack", "").await;
    check("prepare:result prepare", r#"yes({"seat":7}) yes({"seat":7})"#, "prepare").await;
}

#[tokio::test]
async fn operations_out_of_order_are_remembered_or_refused() {
    let late = format!("ack no({LATE}) already_rolled_back");
    check("rollback prepare commit", &late, "").await;
    check("compensate execute", &format!("ack no({LATE})"), "").await;
    check("commit", "never_prepared", "").await;
    check("prepare commit rollback", "yes ack already_committed", "prepare commit").await;
    check("prepare execute", "yes wrong_kind", "prepare").await;
}

#[tokio::test]
async fn what_is_refused_or_fails_leaves_nothing_behind() {
    check("prepare:no prepare rollback", "no(said no) no(said no) ack", "").await;
    check("prepare:read_only commit", "read_only ack", "").await;
    check("prepare:error prepare", "failed(said error) yes", "prepare").await;
    check("prepare:panic prepare", "failed(the service panicked: said panic) yes", "prepare").await;
    let odd = "failed(the service said read-only to an execute) ack";
    check("execute:read_only compensate", odd, "").await;
    check("prepare:huge commit", "yes ack", "prepare commit").await;
}

#[tokio::test]
async fn a_service_that_ends_the_transaction_itself_is_never_answered_yes() {
    let folder = Folder::new();
    let participant = open(&folder.file());
    let answer = play(&participant, "t", "prepare:end").await;
    assert!(answer.contains("ended inside a call"), "{answer}");
    assert_eq!(play(&participant, "u", "prepare commit").await, "yes ack");
}

#[tokio::test]
async fn the_memory_store_answers_alike() {
    for (script, expected) in [
        ("prepare prepare commit commit", "yes yes ack ack".to_owned()),
        ("rollback prepare", format!("ack no({LATE})")),
        ("prepare:no prepare rollback", "no(said no) no(said no) ack".to_owned()),
        ("prepare:panic prepare", "failed(the service panicked: said panic) yes".to_owned()),
        ("commit", "never_prepared".to_owned()),
        ("execute", "failed(this service does not support execute)".to_owned()),
    ] {
        let participant = MemoryParticipant::new(Plain);
        assert_eq!(play(&participant, "t", script).await, expected, "{script}");
    }
}

#[tokio::test]
async fn the_memory_store_forgets_settled_branches_only() {
    let participant = MemoryParticipant::with_settled_max(Plain, 2);
    assert_eq!(play(&participant, "open", "prepare").await, "yes");
    for name in ["a", "b", "c"] {
        assert_eq!(play(&participant, name, "prepare commit").await, "yes ack");
    }
    assert_eq!(play(&participant, "a", "commit").await, "never_prepared");
    assert_eq!(play(&participant, "c", "commit").await, "ack");
    let doubts = participant.in_doubt().await.unwrap();
    assert_eq!(doubts.iter().map(|doubt| doubt.transaction.as_str()).collect::<Vec<_>>(), ["open"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_duplicates_at_once_work_once() {
    let folder = Folder::new();
    let participant = Arc::new(open(&folder.file()));
    let calls: Vec<_> = (0..50)
        .map(|_| {
            let participant = Arc::clone(&participant);
            tokio::spawn(async move {
                text(participant.call(request("t", Operation::Prepare, "")).await)
            })
        })
        .collect();
    for call in calls {
        assert_eq!(call.await.unwrap(), "yes");
    }
    assert_eq!(diary(&participant, "t").await, "prepare");
    let counters = participant.counters();
    assert_eq!((counters.applied, counters.repeated), (1, 49));
}

#[tokio::test]
async fn a_reopened_file_keeps_its_promises() {
    let folder = Folder::new();
    let first = open(&folder.file());
    assert_eq!(play(&first, "kept", "prepare").await, "yes");
    assert_eq!(play(&first, "early", "rollback").await, "ack");
    drop(first);
    let second = open(&folder.file());
    let doubts = second.in_doubt().await.unwrap();
    assert_eq!(doubts.iter().map(|doubt| &doubt.transaction).collect::<Vec<_>>(), [&id("kept")]);
    assert_eq!(play(&second, "kept", "prepare commit").await, "yes ack");
    assert_eq!(play(&second, "early", "prepare").await, format!("no({LATE})"));
    assert_eq!(diary(&second, "kept").await, "prepare commit");
    assert!(second.in_doubt().await.unwrap().is_empty());
}

#[tokio::test]
async fn two_participants_on_one_file_share_one_guard() {
    let folder = Folder::new();
    let (one, two) = (open(&folder.file()), open(&folder.file()));
    assert_eq!(play(&one, "t", "prepare").await, "yes");
    assert_eq!(play(&two, "t", "prepare commit").await, "yes ack");
    assert_eq!(play(&one, "t", "commit rollback").await, "ack already_committed");
    assert_eq!(diary(&one, "t").await, "prepare commit");
}

#[tokio::test]
async fn guard_rows_can_be_audited_page_by_page() {
    let folder = Folder::new();
    let participant = open(&folder.file());
    for name in ["a", "b", "c"] {
        play(&participant, name, "prepare:no").await;
    }
    let first = participant.guard_entries(None, 2).await.unwrap();
    let last = &first[1];
    let after = (last.transaction.to_string(), last.branch.to_string());
    let second = participant.guard_entries(Some(after), 2).await.unwrap();
    let names: Vec<_> = first.iter().chain(&second).map(|row| row.transaction.as_str()).collect();
    assert_eq!(names, ["a", "b", "c"]);
    assert_eq!(second[0].row.note.as_deref(), Some("said no"));
    let counts = participant.read(unanimity_sdk::SqliteParticipant::count_guard_rows);
    assert_eq!(counts.await.unwrap().voted_no, 3);
}

#[tokio::test]
async fn a_state_of_a_newer_version_is_an_error_and_not_a_guess() {
    let folder = Folder::new();
    let participant = open(&folder.file());
    play(&participant, "t", "prepare").await;
    let other = unanimity_sdk::rusqlite::Connection::open(folder.file()).unwrap();
    other.execute("UPDATE unanimity_guard SET state = 99", []).unwrap();
    let answer = play(&participant, "t", "commit").await;
    assert!(answer.contains("newer version"), "{answer}");
}

#[test]
fn a_file_that_is_no_database_is_refused_and_left_alone() {
    let folder = Folder::new();
    let content = b"this is a letter to my aunt and not a database".repeat(100);
    std::fs::write(folder.file(), &content).unwrap();
    let error = unanimity_sdk::SqliteParticipant::open(folder.file(), Diary).unwrap_err();
    assert!(error.to_string().contains("not a database"), "{error}");
    assert_eq!(std::fs::read(folder.file()).unwrap(), content);
}
