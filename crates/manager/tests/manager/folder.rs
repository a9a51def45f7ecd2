//! The data folder: one owner, a fixed number of shards, and damage that is told and not touched.

use std::sync::Arc;

use unanimity::{Filter, ManagerConfig, StartError, Storage, TransactionManager, Wait};

use crate::fake::{Fake, Folder, PATIENCE, Wire, begin, id, short, soon, start};

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
}

#[tokio::test]
async fn a_used_folder_without_its_journal_is_refused_and_forgets_nothing() {
    let (fake, folder) = (Fake::new(), Folder::new());
    let manager = start(folder.config(), &fake);
    begin(&manager, "T", &["a"], Wait::Completed).await;
    manager.stop(PATIENCE).await;
    let journal = folder.0.join("journal-0.db");
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

#[tokio::test]
async fn absurd_configurations_are_refused() {
    for shards in [0, 65] {
        let error = refused(ManagerConfig { shards, ..ManagerConfig::default() });
        assert_eq!(error.code(), "configuration");
    }
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
    let path = folder.0.join("journal-0.db");
    let mut bytes = std::fs::read(&path).unwrap();
    let wanted = b"payload-to-be-found";
    let place = bytes.windows(wanted.len()).position(|window| window == wanted);
    bytes[place.expect("the payload stands in the file")] ^= 1;
    std::fs::write(&path, &bytes).unwrap();

    let error = refused(folder.config());
    assert_eq!(error.code(), "journal_corrupt", "{error}");
    assert!(error.to_string().contains("journal-0.db"), "{error}");
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
