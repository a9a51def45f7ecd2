//! The data folder: one owner, a fixed number of shards, and damage that is told and not touched.

use std::sync::Arc;
use std::time::Duration;

use unanimity::{Filter, ManagerConfig, StartError, Storage, TransactionManager, Wait};

use crate::fake::{Fake, Folder, PATIENCE, Wire, begin, id, short, soon, start, until};

fn refused(config: ManagerConfig) -> StartError {
    let started = TransactionManager::start(config, Arc::new(Wire(Fake::new())));
    match started {
        Ok(_) => panic!("it started"),
        Err(error) => error,
    }
}

#[tokio::test]
async fn a_folder_has_one_owner_until_it_stops() {
    let (fake, folder) = (Fake::new(), Folder::new());
    let manager = start(folder.config(), &fake);
    begin(&manager, "T", &["a"], Wait::Completed).await;
    let error = refused(folder.config());
    assert_eq!(error.code(), "data_in_use");
    assert!(error.to_string().contains(&folder.0.display().to_string()), "{error}");
    manager.stop(PATIENCE).await;
    let next = start(folder.config(), &fake);
    assert!(next.get(&id("T")).await.unwrap().is_some());
}

#[tokio::test]
async fn the_number_of_shards_is_fixed() {
    let (fake, folder) = (Fake::new(), Folder::new());
    start(folder.config(), &fake).stop(PATIENCE).await;
    let error = refused(ManagerConfig { shards: 2, ..folder.config() });
    assert_eq!(error.code(), "shards_changed");
    let expected = StartError::Shards { found: 1, wanted: 2 };
    assert_eq!(error.to_string(), expected.to_string());
    start(folder.config(), &fake).stop(PATIENCE).await;
    let other = Folder::new();
    start(ManagerConfig { shards: 2, ..other.config() }, &fake).stop(PATIENCE).await;
    start(other.config(), &fake).stop(PATIENCE).await; // Who does not say takes what it has.
    let error = refused(ManagerConfig { shards: 1, ..other.config() });
    assert_eq!(error.code(), "shards_changed");
}

#[tokio::test]
async fn a_used_folder_without_its_journal_is_refused_and_forgets_nothing() {
    let (fake, folder) = (Fake::new(), Folder::new());
    let manager = start(folder.config(), &fake);
    begin(&manager, "T", &["a"], Wait::Completed).await;
    manager.stop(PATIENCE).await;
    let journal = folder.0.join("journal-0.log");
    let kept = std::fs::read(&journal).unwrap();
    for blank in [true, false] {
        std::fs::remove_file(&journal).unwrap();
        if blank {
            std::fs::write(&journal, b"").unwrap();
        }
        assert_eq!(refused(folder.config()).code(), "journal_missing", "blank: {blank}");
        assert_eq!(journal.exists(), blank, "nothing may be made in its place");
        std::fs::write(&journal, &kept).unwrap();
    }
    let next = start(folder.config(), &fake);
    assert!(next.get(&id("T")).await.unwrap().is_some());
    next.stop(PATIENCE).await;
}

/// Earlier builds had their journals in SQLite.
#[tokio::test]
async fn a_journal_of_an_earlier_build_is_used_on_and_two_are_refused() {
    let (fake, folder) = (Fake::new(), Folder::new());
    std::fs::create_dir_all(&folder.0).unwrap();
    let (older, log) = (folder.0.join("journal-0.db"), folder.0.join("journal-0.log"));
    drop(unanimity_journal::SqliteEngine::open(&older).unwrap());
    for name in ["T-1", "T-2"] {
        let manager = start(folder.config(), &fake);
        begin(&manager, name, &["a"], Wait::Completed).await;
        assert!(manager.get(&id("T-1")).await.unwrap().is_some());
        manager.stop(PATIENCE).await;
        assert!(!log.exists());
    }
    std::fs::write(&log, b"").unwrap();
    let error = refused(folder.config());
    assert_eq!(error.code(), "data_folder");
    assert!(error.to_string().contains("two journals of shard 0"), "{error}");
    std::fs::remove_file(&log).unwrap();
    start(folder.config(), &fake).stop(PATIENCE).await;
}

/// No new journal is begun beside what is left of one.
#[tokio::test]
async fn a_write_ahead_log_without_its_journal_is_refused() {
    let folder = Folder::new();
    std::fs::create_dir_all(&folder.0).unwrap();
    std::fs::write(folder.0.join("journal-0.db-wal"), vec![1; 10_000]).unwrap();
    assert_eq!(refused(folder.config()).code(), "journal_corrupt");
    assert!(!folder.0.join("journal-0.log").exists() && !folder.0.join("journal-0.db").exists());
}

/// The numbers that the history has given its rows; one that is written again gets another.
fn numbers_in_history(folder: &Folder) -> Vec<i64> {
    let history = rusqlite::Connection::open(folder.0.join("history.db")).unwrap();
    let mut query = history.prepare("SELECT number FROM transactions ORDER BY number").unwrap();
    query.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

#[tokio::test]
async fn what_is_in_the_history_is_not_written_there_again_after_a_restart() {
    let (fake, folder) = (Fake::new(), Folder::new());
    let manager = start(folder.config(), &fake);
    fake.close("stays prepare");
    // It keeps the journal's oldest batch from being forgotten.
    begin(&manager, "stays", &["stays"], Wait::Accepted).await;
    for n in 0..5 {
        begin(&manager, &format!("T-{n}"), &["a", "b"], Wait::Completed).await;
    }
    until(|| numbers_in_history(&folder).len() == 5).await;
    manager.stop(Duration::ZERO).await;
    let before = numbers_in_history(&folder);
    let next = start(folder.config(), &fake);
    begin(&next, "T-5", &["a", "b"], Wait::Completed).await;
    until(|| numbers_in_history(&folder).len() > 5).await;
    next.stop(Duration::ZERO).await;
    assert_eq!(numbers_in_history(&folder)[..5], before);
}

/// What is asked for while a start still takes up what it found is taken up first: nothing is told
/// of it that is not on record, and its calls leave.
#[tokio::test]
async fn whoever_asks_again_right_after_a_start_is_told_what_is_on_record() {
    let (fake, folder) = (Fake::new(), Folder::new());
    let manager = start(folder.config(), &fake);
    fake.close("b prepare");
    for n in 0..300 {
        begin(&manager, &format!("T-{n}"), &["a", "b"], Wait::Accepted).await;
        fake.seen(&format!("T-{n} b prepare"), 1).await;
    }
    manager.stop(Duration::ZERO).await;
    let next = start(folder.config(), &fake);
    for n in (0..300).rev().step_by(29) {
        begin(&next, &format!("T-{n}"), &["a", "b"], Wait::Completed).await;
        let view = next.get(&id(&format!("T-{n}"))).await.unwrap().unwrap();
        assert_eq!(short(&view), "rollback coordinator_restarted ended", "T-{n}");
    }
    next.stop(PATIENCE).await;
    fake.open("b prepare");
}

#[tokio::test]
async fn a_journal_that_is_older_than_the_history_is_refused() {
    let (fake, folder) = (Fake::new(), Folder::new());
    let manager = start(folder.config(), &fake);
    begin(&manager, "T", &["a"], Wait::Completed).await;
    manager.stop(PATIENCE).await;
    let journal = folder.0.join("journal-0.log");
    let older = std::fs::read(&journal).unwrap();
    let manager = start(folder.config(), &fake);
    begin(&manager, "T-2", &["a"], Wait::Completed).await;
    manager.stop(PATIENCE).await;
    let latest = std::fs::read(&journal).unwrap();

    std::fs::write(&journal, &older).unwrap();
    let error = refused(folder.config());
    assert_eq!(error.code(), "journal_behind", "{error}");
    assert!(std::fs::read(&journal).unwrap() == older, "nothing may be changed");

    std::fs::write(&journal, &latest).unwrap();
    start(folder.config(), &fake).stop(PATIENCE).await;
}

#[tokio::test]
async fn absurd_configurations_are_refused() {
    let error = refused(ManagerConfig { shards: 65, ..ManagerConfig::default() });
    assert_eq!(error.code(), "configuration");
    let folder = Folder::new();
    std::fs::write(&folder.0, b"a file").unwrap();
    assert_eq!(refused(folder.config()).code(), "data_folder");
    std::fs::remove_file(&folder.0).unwrap();
}

#[tokio::test]
async fn a_damaged_journal_is_told_and_left_as_it_is() {
    let (fake, folder) = (Fake::new(), Folder::new());
    let manager = start(folder.config(), &fake);
    for n in 0..5 {
        begin(&manager, &format!("T-{n}"), &["a", "b"], Wait::Completed).await;
    }
    manager.stop(PATIENCE).await;
    let path = folder.0.join("journal-0.log");
    let mut bytes = std::fs::read(&path).unwrap();
    let wanted = b"payload-to-be-found";
    let place = bytes.windows(wanted.len()).position(|window| window == wanted);
    bytes[place.expect("the payload stands in the file")] ^= 1;
    std::fs::write(&path, &bytes).unwrap();

    let error = refused(folder.config());
    assert_eq!(error.code(), "journal_corrupt", "{error}");
    assert!(error.to_string().contains("journal-0.log"), "{error}");
    assert!(std::fs::read(&path).unwrap() == bytes, "the file was changed");
    assert!(Fake::new().calls().is_empty());
}

#[tokio::test]
async fn a_history_that_is_no_database_is_told_and_left_as_it_is() {
    let folder = Folder::new();
    std::fs::create_dir_all(&folder.0).unwrap();
    let path = folder.0.join("history.db");
    let text = b"this is somebody's letter and no database at all".repeat(100);
    std::fs::write(&path, &text).unwrap();
    let error = refused(folder.config());
    assert_eq!(error.code(), "history", "{error}");
    assert!(error.to_string().contains("history.db"), "{error}");
    assert!(std::fs::read(&path).unwrap() == text);
    assert!(matches!(folder.config().storage, Storage::Folder(_)));
}

#[tokio::test]
async fn a_history_that_cannot_be_written_ends_the_shard_and_a_restart_makes_up_for_it() {
    let (fake, folder) = (Fake::new(), Folder::new());
    let manager = start(folder.config(), &fake);
    let history = rusqlite::Connection::open(folder.0.join("history.db")).unwrap();
    history.execute_batch("DROP TABLE participants").unwrap();
    begin(&manager, "T", &["a"], Wait::Completed).await;
    let message = soon(manager.failed()).await;
    assert!(message.contains("history"), "{message}");
    manager.stop(PATIENCE).await;

    let manager = start(folder.config(), &fake);
    let filter = Filter { participant: Some("a".to_owned()), ..Filter::default() };
    let page = manager.list(filter, 10).await.unwrap();
    let shown: Vec<_> = page.transactions.iter().map(|(view, _)| short(view)).collect();
    assert_eq!(shown, ["commit all_yes ended"]);
}

/// What the tables of version 1 were, with one row.
const HISTORY_1: &str = r#"
    CREATE TABLE transactions (id TEXT PRIMARY KEY, begun_at_ms INTEGER NOT NULL,
        decided_at_ms INTEGER, ended_at_ms INTEGER NOT NULL, outcome TEXT NOT NULL,
        reason TEXT NOT NULL, reason_detail TEXT, fingerprint BLOB NOT NULL,
        document TEXT NOT NULL, timeline TEXT NOT NULL) STRICT;
    CREATE INDEX transactions_by_begin ON transactions (begun_at_ms DESC, id DESC);
    CREATE TABLE participants (participant TEXT NOT NULL, begun_at_ms INTEGER NOT NULL,
        transaction_id TEXT NOT NULL,
        PRIMARY KEY (participant, begun_at_ms, transaction_id)) WITHOUT ROWID, STRICT;
    CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
    INSERT INTO transactions VALUES ('old', 5, 6, 7, 'commit', 'all_yes', NULL, zeroblob(16),
        '{"id":"old","stage":"ended","outcome":"commit","completed":true,
          "reason":{"code":"all_yes"},"overdue":false,"begun_at_ms":5,"decided_at_ms":6,
          "ended_at_ms":7,"branches":[{"name":"b","participant":"a","kind":"two_phase",
          "vote":"yes","state":"done","attempt":0,"parked":false}]}',
        '{"id":"old","dropped":0,
          "events":[{"at_ms":5,"event":"begun"},{"at_ms":7,"event":"ended"}]}');
    INSERT INTO participants VALUES ('a', 5, 'old');
    PRAGMA user_version = 1;
"#;

#[tokio::test]
async fn a_history_of_version_1_is_taken_over_whole() {
    let (fake, folder) = (Fake::new(), Folder::new());
    std::fs::create_dir_all(&folder.0).unwrap();
    let path = folder.0.join("history.db");
    rusqlite::Connection::open(&path).unwrap().execute_batch(HISTORY_1).unwrap();
    for _ in 0..2 {
        let manager = start(folder.config(), &fake);
        begin(&manager, "new", &["b"], Wait::Completed).await;
        let filter = Filter { participant: Some("a".to_owned()), ..Filter::default() };
        let page = manager.list(filter, 10).await.unwrap();
        let shown: Vec<_> = page.transactions.iter().map(|(view, _)| short(view)).collect();
        assert_eq!(shown, ["commit all_yes ended"]);
        let all = manager.list(Filter::default(), 10).await.unwrap().transactions;
        assert_eq!(all.iter().map(|(view, _)| &*view.id).collect::<Vec<_>>(), ["new", "old"]);
        let events = manager.timeline(&id("old")).await.unwrap().unwrap().events;
        assert_eq!(events.iter().map(|event| event.at_ms).collect::<Vec<_>>(), [5, 7]);
        manager.stop(PATIENCE).await;
    }
}

#[tokio::test]
async fn a_participant_of_many_batches_is_found_as_one_of_few_is() {
    let (fake, folder) = (Fake::new(), Folder::new());
    let manager = start(folder.config(), &fake);
    begin(&manager, "T", &["a"], Wait::Completed).await;
    begin(&manager, "U", &["b", "a"], Wait::Completed).await;
    begin(&manager, "V", &["b"], Wait::Completed).await;
    manager.stop(PATIENCE).await;
    let found = async |rows: i64| {
        let history = rusqlite::Connection::open(folder.0.join("history.db")).unwrap();
        let sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
            INSERT OR IGNORE INTO participants SELECT 'a', 1000 + i, 1000 + i FROM n";
        history.execute(sql, [rows]).unwrap();
        drop(history);
        let manager = start(folder.config(), &fake);
        let filter = Filter { participant: Some("a".to_owned()), ..Filter::default() };
        let page = manager.list(filter, 10).await.unwrap();
        manager.stop(PATIENCE).await;
        page.transactions.into_iter().map(|(view, _)| view.id).collect::<Vec<_>>()
    };
    assert_eq!(found(1).await, ["U", "T"]);
    assert_eq!(found(2_000).await, ["U", "T"]);
}
