//! What only shows with a hand on the connection; the rest is in `tests/conformance.rs`.

use super::*;

/// Runs a script on a fresh journal, whose folder goes away afterwards.
fn with_engine(name: &str, script: impl FnOnce(&mut SqliteEngine)) {
    let name = format!("unanimity-journal-unit-{name}-{}", std::process::id());
    let folder = std::env::temp_dir().join(name);
    std::fs::create_dir_all(&folder).unwrap();
    script(&mut SqliteEngine::open(&folder.join("journal")).unwrap());
    std::fs::remove_dir_all(&folder).unwrap();
}

fn code<T>(outcome: Result<T, JournalError>) -> &'static str {
    outcome.err().map_or("ok", |error| error.code())
}

#[test]
fn durability_is_set_as_promised() {
    with_engine("pragmas", |engine| {
        for (pragma, expected) in [
            ("journal_mode", "wal"),
            ("synchronous", "2"),
            ("locking_mode", "exclusive"),
            ("wal_autocheckpoint", "0"),
            ("fullfsync", "1"),
            ("busy_timeout", "0"),
            ("checkpoint_fullfsync", "1"),
        ] {
            let value = engine.connection.pragma_query_value(None, pragma, |row| {
                let value = row.get_ref(0)?;
                Ok(value
                    .as_str()
                    .map_or_else(|_| value.as_i64().unwrap().to_string(), str::to_owned))
            });
            assert_eq!(value.unwrap(), expected, "{pragma}");
        }
    });
}

#[test]
fn another_owner_is_noticed_within_the_append() {
    with_engine("owner", |engine| {
        let first = engine.append(0, 1, &[]).unwrap();
        let cached = engine.tails[&0].checksum;
        let theirs = batch::encode(0, 2, cached, &[b"theirs".to_vec()]);
        let insert = "INSERT INTO batches (key, bytes) VALUES (2, ?1)";
        engine.connection.execute(insert, [theirs]).unwrap();
        assert_eq!(code(engine.append(0, first.position() + 1, &[])), "journal_conflict");
        engine.append(0, 3, &[]).unwrap();
        engine.read(0, 1, &mut |_| Ok(())).unwrap();
    });
}

#[test]
fn a_last_batch_that_is_gone_is_noticed_within_the_append() {
    with_engine("gone", |engine| {
        engine.append(0, 1, &[]).unwrap();
        engine.append(1, 1, &[]).unwrap();
        engine.append(0, 2, &[]).unwrap();
        engine.connection.execute("DELETE FROM batches WHERE key = 2", []).unwrap();
        assert_eq!(code(engine.append(0, 3, &[])), "journal_conflict");
        assert_eq!(engine.bounds(0).unwrap(), Bounds { first: 1, next: 2 });
        engine.append(0, 2, &[]).unwrap();
        engine.append(0, 3, &[]).unwrap();
        engine.append(1, 2, &[]).unwrap();
        engine.read(0, 1, &mut |_| Ok(())).unwrap();
    });
}

#[test]
fn nothing_is_appended_within_a_transaction_that_was_left_open() {
    with_engine("left-open", |engine| {
        engine.append(0, 1, &[]).unwrap();
        engine.connection.execute_batch("BEGIN").unwrap();
        assert_eq!(code(engine.append(0, 2, &[])), "journal_corrupt");
        assert_eq!(code(engine.append(0, 2, &[])), "journal_poisoned");
    });
}

#[test]
fn a_failed_write_poisons_until_reopened() {
    with_engine("poison", |engine| {
        engine.append(0, 1, &[]).unwrap();
        engine.connection.execute_batch("PRAGMA max_page_count = 4").unwrap();
        assert_eq!(code(engine.append(0, 2, &[&[0; 100_000]])), "journal_disk_full");
        assert_eq!(code(engine.append(0, 2, &[])), "journal_poisoned");
        assert_eq!(code(engine.bounds(0)), "journal_poisoned");
        assert_eq!(code(engine.truncate(0, 1)), "journal_poisoned");
        assert_eq!(code(engine.harden(0)), "journal_poisoned");
        assert_eq!(code(engine.read(0, 1, &mut |_| Ok(()))), "journal_poisoned");
        let path = engine.path.clone();
        *engine = SqliteEngine::open(&path.with_file_name("another")).unwrap();
        *engine = SqliteEngine::open(&path).unwrap();
        engine.append(0, 2, &[]).unwrap();
    });
}

#[test]
fn an_incomplete_checkpoint_is_an_error() {
    with_engine("checkpoint", |engine| {
        engine.append(0, 1, &[]).unwrap();
        // An open statement is a reader, and TRUNCATE must not go on beneath one.
        engine.connection.execute_batch("BEGIN; SELECT * FROM batches").unwrap();
        assert_eq!(code(engine.harden(0)), "journal_in_use");
        assert_eq!(code(engine.append(0, 2, &[])), "journal_poisoned");
    });
}

#[test]
fn a_checkpoint_that_only_its_row_reports_as_failed_is_an_error() {
    with_engine("row", |engine| {
        engine.append(0, 1, &[]).unwrap();
        engine.connection.pragma_update(None, "journal_mode", "DELETE").unwrap();
        assert_eq!(code(engine.harden(0)), "journal_io");
    });
}

/// How many pages of the write-ahead log are not in the file, as SQLite itself says when asked.
fn pending(engine: &SqliteEngine) -> u64 {
    let (pages, done): (i64, i64) = engine
        .connection
        .query_row("PRAGMA wal_checkpoint(NOOP)", [], |row| Ok((row.get(1)?, row.get(2)?)))
        .unwrap();
    u64::try_from(pages - done).unwrap()
}

#[test]
fn what_is_pending_is_counted_as_sqlite_counts_it() {
    let check = |engine: &SqliteEngine, what: &str| {
        assert_eq!(engine.frames.pending(), pending(engine), "{what}");
    };
    with_engine("count", |engine| {
        // Its log has another length; both are written on one thread.
        let beside = engine.path.with_file_name("beside");
        let mut beside = SqliteEngine::open(&beside).unwrap();
        for position in 1..=300 {
            let bytes = if position % 10 == 0 { 300_000 } else { 300 };
            engine.append(0, position, &[&vec![1; bytes]]).unwrap();
            beside.append(0, position, &[]).unwrap();
            check(engine, "after an append");
            check(&beside, "after an append beside it");
        }
        assert_eq!(code(engine.append(0, 300, &[])), "journal_conflict");
        check(engine, "after a refusal");
        engine.truncate(0, 200).unwrap();
        check(engine, "after a truncation");
        engine.truncate(0, 100).unwrap();
        check(engine, "after one that had nothing to do");
        engine.harden(0).unwrap();
        check(engine, "after a checkpoint");
    });
}

/// Whatever is appended overwrites what the log has already, whether it is small or large, and
/// whether the log is new, grows or is written from its beginning again.
#[test]
fn an_append_does_not_make_the_log_longer_while_it_syncs() {
    with_engine("room", |engine| {
        let log = wal::wal_path(&engine.path);
        let length = || std::fs::metadata(&log).unwrap().len();
        engine.harden(0).unwrap();
        for position in 1..=400 {
            let bytes = if position % 7 == 0 { 300_000 } else { 300 };
            engine.settle_wal(bytes).unwrap();
            let before = length();
            engine.append_checked(0, (position, &[&vec![1; bytes]]), None).unwrap();
            assert_eq!(length(), before, "append {position}");
        }
        assert!(length() < 5200 * 4120, "it is reused: {}", length());
    });
}

#[test]
fn the_write_ahead_log_is_emptied_at_its_limit_and_keeps_its_length() {
    with_engine("limit", |engine| {
        let page: [&[u8]; 1] = [&vec![0; 4000 * 512]];
        let mut pages = Vec::new();
        for position in 1..=20 {
            engine.append(0, position, &page).unwrap();
            pages.push(pending(engine));
        }
        let emptied = pages.windows(2).filter(|pair| pair[1] < pair[0]).count();
        assert_eq!(emptied, 2, "{pages:?}");
        assert!(pages.iter().all(|pages| *pages < 4096 + 1000), "{pages:?}");
        let bytes = std::fs::metadata(wal::wal_path(&engine.path)).unwrap().len();
        assert!(bytes < 5200 * 4120, "the log must be reused: {bytes}");
        engine.read(0, 1, &mut |_| Ok(())).unwrap();
    });
}

#[test]
fn the_log_is_emptied_later_while_it_has_the_same_pages_again_and_again() {
    with_engine("same", |engine| {
        // What stays, of another shard, and is not written again.
        engine.append(1, 1, &[&vec![0; 4000 * 3000]]).unwrap();
        engine.harden(1).unwrap();
        let mut position = 0;
        let mut append = |engine: &mut SqliteEngine, truncates: bool| {
            position += 1;
            engine.append(0, position, &[&vec![0; 4000 * 128]]).unwrap();
            if truncates {
                engine.truncate(0, position).unwrap();
            }
            pending(engine)
        };
        // How many pages the log had when it was emptied.
        let mut emptied_at = |engine: &mut SqliteEngine, truncates| {
            let mut before = 0;
            loop {
                let pages = append(engine, truncates);
                if pages < before {
                    return before;
                }
                before = pages;
            }
        };
        let about = |pages: u64| pages - 300..pages + 300;
        // Nothing is known yet of a shard whose end was not known at the last checkpoint.
        emptied_at(engine, true);
        assert!(about(8192).contains(&emptied_at(engine, true)));
        assert!(about(8192).contains(&emptied_at(engine, true)));
        // What is kept is in as many pages as the log has.
        emptied_at(engine, false);
        assert!(about(4096).contains(&emptied_at(engine, false)));
        // Also where much was truncated before, and its pages are free.
        let next = engine.bounds(0).unwrap().next;
        engine.truncate(0, next).unwrap();
        assert!(about(4096).contains(&emptied_at(engine, false)));
        let file = std::fs::metadata(&engine.path).unwrap().len();
        assert!(file < (3000 + 4 * 4096) * 4096, "{file}");
        engine.read(0, next, &mut |_| Ok(())).unwrap();
    });
}

#[test]
fn an_inherited_log_is_emptied_before_the_first_write() {
    with_engine("inherited", |engine| {
        engine.append(0, 1, &[]).unwrap();
        assert!(pending(engine) > 0);
        engine.inherited = true;
        engine.truncate(0, 0).unwrap();
        assert_eq!(pending(engine), 0);
        assert!(!engine.inherited);
    });
}

/// One transaction of SQLite's, so that the log's end can be judged: [`wal`] counts on it.
#[test]
fn a_batch_and_what_is_forgotten_with_it_are_one_commit() {
    with_engine("one-commit", |engine| {
        for position in 1..5 {
            engine.append(0, position, &[]).unwrap();
        }
        let commits = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
        let seen = std::sync::Arc::clone(&commits);
        let hooked = engine.connection.commit_hook(Some(move || {
            seen.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            false
        }));
        hooked.unwrap();
        engine.append_and_truncate(0, 5, &[b"x"], Some(4)).unwrap();
        assert_eq!(commits.load(std::sync::atomic::Ordering::Relaxed), 1);
        assert_eq!(engine.bounds(0).unwrap(), crate::Bounds { first: 4, next: 6 });
    });
}

#[test]
fn harden_moves_everything_into_the_file() {
    with_engine("harden", |engine| {
        engine.append(0, 1, &[b"needle in the file"]).unwrap();
        let wal = wal::wal_path(&engine.path);
        let file = |engine: &SqliteEngine| std::fs::read(&engine.path).unwrap();
        let found = |bytes: &[u8]| bytes.windows(18).any(|part| part == b"needle in the file");
        assert!(!found(&file(engine)) && std::fs::metadata(&wal).unwrap().len() > 0);
        engine.harden(0).unwrap();
        assert!(found(&file(engine)) && std::fs::metadata(&wal).unwrap().len() == 0);
    });
}
