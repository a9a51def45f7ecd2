//! How the history's file holds what ended: courses that many share, and files of older versions.

use std::path::Path;

use unanimity::{Filter, TransactionManager, Wait};

use crate::fake::{Fake, Folder, PATIENCE, begin, id, short, start};

fn open(folder: &Path) -> rusqlite::Connection {
    rusqlite::Connection::open(folder.join("history.db")).unwrap()
}

/// What happened, by the words of a timeline.
async fn words(manager: &TransactionManager, name: &str) -> Vec<String> {
    let timeline = manager.timeline(&id(name)).await.unwrap().unwrap();
    timeline.events.iter().map(|event| format!("{} {:?}", event.event, event.branch)).collect()
}

#[tokio::test]
async fn transactions_of_one_course_share_its_document_and_are_shown_each_with_its_times() {
    let (fake, folder) = (Fake::new(), Folder::new());
    for start_of in ["first", "second"] {
        let manager = start(folder.config(), &fake);
        for n in 0..4 {
            begin(&manager, &format!("{start_of}-{n}"), &["a", "b"], Wait::Completed).await;
        }
        begin(&manager, &format!("{start_of}-other"), &["a"], Wait::Completed).await;
        manager.stop(PATIENCE).await;
    }
    let history = open(&folder.0);
    let count = |sql: &str| history.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
    let (shared, all) = (count("SELECT count(course) FROM transactions"), 10);
    assert!(shared >= 2, "{shared} of {all} rows share a course");
    assert!(count("SELECT count(*) FROM courses") < shared, "a course for many");
    let sql = "SELECT count(*) FROM history WHERE json_array_length(document, '$.branches') > 0";
    assert_eq!(count(sql), all, "each has its document");
    drop(history);

    let manager = start(folder.config(), &fake);
    let whole = words(&manager, "first-0").await;
    assert!(whole.len() > 8, "{whole:?}");
    for name in ["first-1", "first-3", "second-2"] {
        let mut sorted = words(&manager, name).await;
        let mut expected = whole.clone();
        sorted.sort();
        expected.sort();
        assert_eq!(sorted, expected, "{name}");
        let events = manager.timeline(&id(name)).await.unwrap().unwrap().events;
        assert!(events.iter().all(|event| event.at_ms >= events[0].at_ms), "{name}: {events:?}");
    }
    let filter = Filter { participant: Some("b".to_owned()), ..Filter::default() };
    let found = manager.list(filter, 100).await.unwrap().transactions;
    assert_eq!(found.len(), 8, "all but the others");
    assert!(found.iter().all(|(view, _)| short(view) == "commit all_yes ended"));
}

/// What the tables of version 2 were, with one row.
const HISTORY_2: &str = r#"
    CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
    CREATE TABLE transactions (number INTEGER PRIMARY KEY, id TEXT NOT NULL,
        begun_at_ms INTEGER NOT NULL, decided_at_ms INTEGER, ended_at_ms INTEGER NOT NULL,
        outcome TEXT NOT NULL, reason TEXT NOT NULL, reason_detail TEXT,
        fingerprint BLOB NOT NULL, document TEXT NOT NULL, timeline TEXT) STRICT;
    CREATE UNIQUE INDEX transactions_by_id ON transactions (id);
    CREATE INDEX transactions_by_begin ON transactions (begun_at_ms);
    CREATE TABLE participants (participant TEXT NOT NULL, first_number INTEGER NOT NULL,
        last_number INTEGER NOT NULL, PRIMARY KEY (participant, first_number))
        WITHOUT ROWID, STRICT;
    INSERT INTO transactions VALUES (1, 'old', 5, 6, 7, 'commit', 'all_yes', NULL, zeroblob(16),
        '{"branches":[{"name":"x","participant":"a","kind":"two_phase","vote":"yes"}],
          "events":[[1,"decided"]]}', NULL);
    INSERT INTO participants VALUES ('a', 1, 1);
    PRAGMA user_version = 2;
"#;

#[tokio::test]
async fn a_history_of_version_2_is_taken_over_as_it_is() {
    let (fake, folder) = (Fake::new(), Folder::new());
    std::fs::create_dir_all(&folder.0).unwrap();
    open(&folder.0).execute_batch(HISTORY_2).unwrap();
    for _ in 0..2 {
        let manager = start(folder.config(), &fake);
        begin(&manager, "new", &["a"], Wait::Completed).await;
        let filter = Filter { participant: Some("a".to_owned()), ..Filter::default() };
        let found = manager.list(filter, 10).await.unwrap().transactions;
        assert_eq!(found.iter().map(|(view, _)| &*view.id).collect::<Vec<_>>(), ["new", "old"]);
        let events = manager.timeline(&id("old")).await.unwrap().unwrap().events;
        assert_eq!(events.iter().map(|event| event.at_ms).collect::<Vec<_>>(), [5, 6, 7]);
        manager.stop(PATIENCE).await;
    }
}
