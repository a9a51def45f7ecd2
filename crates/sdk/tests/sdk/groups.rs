//! Group commit: what shares a commit, when answers leave, and what a failed commit does to them.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use tokio::task::JoinHandle;
use unanimity_sdk::rusqlite::Connection;
use unanimity_sdk::{Moment, MomentHook, Operation, Participant, SqliteOptions, SqliteParticipant};

use crate::support::{Diary, Folder, diary, play, request, text};

pub fn open(folder: &Folder, hook: MomentHook) -> Arc<SqliteParticipant> {
    let options = SqliteOptions { moment_hook: Some(hook), ..SqliteOptions::default() };
    Arc::new(SqliteParticipant::open_with(folder.file(), Diary, options).unwrap())
}

/// Calls without waiting for the answer. The call is queued before this returns.
fn call(
    participant: &Arc<SqliteParticipant>,
    name: &str,
    payload: &'static str,
) -> JoinHandle<String> {
    let request = request(name, Operation::Prepare, payload);
    let participant = Arc::clone(participant);
    let (queued, is_queued) = channel();
    let task = tokio::spawn(async move {
        let answering = participant.call(request);
        queued.send(()).unwrap();
        text(answering.await)
    });
    is_queued.recv().unwrap();
    task
}

/// A hook that reports the size of each group before its commit, and then waits to be let on.
pub fn gate() -> (MomentHook, Receiver<usize>, Sender<()>) {
    let (report, reports) = channel();
    let (open, opened) = channel();
    let opened = Mutex::new(opened);
    let hook: MomentHook = Arc::new(move |moment| {
        if let Moment::BeforeCommit { calls } = moment {
            report.send(calls).unwrap();
            opened.lock().unwrap().recv().unwrap();
        }
        Ok(())
    });
    (hook, reports, open)
}

fn rows_on_disk(folder: &Folder) -> u32 {
    let other = Connection::open(folder.file()).unwrap();
    other.query_row("SELECT count(*) FROM unanimity_guard", [], |row| row.get(0)).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_queue_up_share_one_commit_and_answer_after_it() {
    let folder = Folder::new();
    let (hook, groups, open_gate) = gate();
    let participant = open(&folder, hook);
    let first = call(&participant, "first", "");
    assert_eq!(groups.recv().unwrap(), 1);
    let rest: Vec<_> = (0..20)
        .map(|number| {
            let payload = if number % 5 == 0 { "panic" } else { "" };
            call(&participant, &format!("t{number}"), payload)
        })
        .collect();
    assert!(!first.is_finished(), "answered before its commit");
    assert_eq!(rows_on_disk(&folder), 0);
    open_gate.send(()).unwrap();
    assert_eq!(first.await.unwrap(), "yes");
    assert_eq!(groups.recv().unwrap(), 20);
    assert_eq!(rows_on_disk(&folder), 1);
    assert!(rest.iter().all(|call| !call.is_finished()), "answered before their commit");
    open_gate.send(()).unwrap();
    for (number, call) in rest.into_iter().enumerate() {
        let expected =
            if number % 5 == 0 { "failed(the service panicked: said panic)" } else { "yes" };
        assert_eq!(call.await.unwrap(), expected, "t{number}");
    }
    assert_eq!(rows_on_disk(&folder), 17);
    assert_eq!(participant.counters().groups, 2);
}

#[tokio::test]
async fn a_failed_commit_fails_every_answer_and_leaves_nothing() {
    let folder = Folder::new();
    let fail = Arc::new(Mutex::new(true));
    let failing = Arc::clone(&fail);
    let hook: MomentHook = Arc::new(move |moment| match moment {
        Moment::BeforeCommit { .. } if *failing.lock().unwrap() => Err("the disk is full".into()),
        Moment::BeforeCommit { .. } | Moment::AfterCommit { .. } => Ok(()),
    });
    let participant = open(&folder, hook);
    let failed = "failed(the disk is full)";
    assert_eq!(
        play(&*participant, "t", "prepare prepare:no rollback").await,
        [failed; 3].join(" ")
    );
    assert_eq!(rows_on_disk(&folder), 0);
    *fail.lock().unwrap() = false;
    assert_eq!(play(&*participant, "t", "prepare commit").await, "yes ack");
    assert_eq!(diary(&participant, "t").await, "prepare commit");
}

#[tokio::test]
async fn a_commit_that_sqlite_refuses_fails_every_answer() {
    let folder = Folder::new();
    let participant = open(&folder, Arc::new(|_| Ok(())));
    let other = Connection::open(folder.file()).unwrap();
    // A deferred constraint is checked by COMMIT itself, the only statement that fails here.
    other
        .execute_batch(
            "CREATE TABLE parent (id TEXT PRIMARY KEY);
             CREATE TABLE child (id TEXT REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
             CREATE TRIGGER break AFTER INSERT ON diary BEGIN INSERT INTO child VALUES ('x'); END;",
        )
        .unwrap();
    let answer = play(&*participant, "t", "prepare").await;
    assert!(answer.contains("FOREIGN KEY"), "{answer}");
    assert_eq!(rows_on_disk(&folder), 0);
    other.execute_batch("DROP TRIGGER break").unwrap();
    assert_eq!(play(&*participant, "t", "prepare commit").await, "yes ack");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_refuses_at_once() {
    let folder = Folder::new();
    let (hook, groups, open_gate) = gate();
    let options =
        SqliteOptions { moment_hook: Some(hook), queue_calls_max: 2, ..SqliteOptions::default() };
    let participant = SqliteParticipant::open_with(folder.file(), Diary, options).unwrap();
    let participant = Arc::new(participant);
    let mut waiting = vec![call(&participant, "first", "")];
    groups.recv().unwrap();
    waiting.extend(["a", "b"].map(|name| call(&participant, name, "")));
    let refused = play(&*participant, "c", "prepare").await;
    assert_eq!(refused, "failed(too many calls are waiting; try again later)");
    open_gate.send(()).unwrap();
    open_gate.send(()).unwrap();
    for call in waiting {
        assert_eq!(call.await.unwrap(), "yes");
    }
}
