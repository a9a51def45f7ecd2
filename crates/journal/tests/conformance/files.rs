//! Which files the engines open: not those of others, not newer ones, not one in use; and whatever
//! they refuse stays as it is.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use unanimity_journal::{Engine, JournalError, LogEngine, SqliteEngine};

use crate::{Batch, Folder, code, contents, fill, records, snapshot, sql};

/// How a journal is opened.
type Open = fn(&Path) -> Result<Box<dyn Engine>, JournalError>;

/// By the engine of a file of its own, and by that of SQLite.
const OPEN: [Open; 2] =
    [|path| Ok(Box::new(LogEngine::open(path)?)), |path| Ok(Box::new(SqliteEngine::open(path)?))];

fn refusal(open: Open, path: &Path) -> JournalError {
    open(path).err().unwrap()
}

#[test]
fn a_second_owner_in_this_process_is_refused() {
    for (which, open) in OPEN.into_iter().enumerate() {
        let folder = Folder::new();
        let mut engine = open(&folder.file()).unwrap();
        for _ in 0..2 {
            let error = refusal(open, &folder.file());
            assert_eq!(error.code(), "journal_in_use");
            assert!(error.to_string().contains("shard 0%?#.journal"), "{error}");
            fill(&mut *engine, 0, 2);
        }
        // The refused one must not have taken the first one's lock with it.
        assert_eq!(ask_second_process(which, &folder.file()), "code=journal_in_use");
        drop(engine);
        assert_eq!(contents(&mut *open(&folder.file()).unwrap(), 0).unwrap().1.len(), 1);
    }
}

const SECOND_PROCESS: &str = "UNANIMITY_JOURNAL_SECOND_PROCESS";
const SECOND_ENGINE: &str = "UNANIMITY_JOURNAL_SECOND_ENGINE";

/// Not a test: what the second process does. It opens the journal that the variable names, appends
/// one batch, says how that went, and then holds the journal until its input ends or it is killed.
#[test]
fn second_process() {
    let Some(path) = std::env::var_os(SECOND_PROCESS) else { return };
    let which: usize = std::env::var(SECOND_ENGINE).unwrap().parse().unwrap();
    let opened = OPEN[which](Path::new(&path)).and_then(|mut engine| {
        let next = engine.bounds(0)?.next;
        engine.append(0, next, &[b"second process"])?;
        Ok(engine)
    });
    println!("\ncode={}", opened.as_ref().err().map_or("ok", JournalError::code));
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    drop(opened);
}

fn second_process_on(which: usize, path: &Path) -> (std::process::Child, String) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "files::second_process", "--nocapture"])
        .env(SECOND_PROCESS, path)
        .env(SECOND_ENGINE, which.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.as_mut().unwrap()).lines().map(Result::unwrap);
    let code = lines.into_iter().find(|line| line.starts_with("code=")).unwrap();
    (child, code)
}

fn ask_second_process(which: usize, path: &Path) -> String {
    let (mut child, code) = second_process_on(which, path);
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    code
}

#[test]
fn a_second_process_is_refused_until_the_first_one_dies() {
    for (which, open) in OPEN.into_iter().enumerate() {
        let folder = Folder::new();
        let (mut child, code_there) = second_process_on(which, &folder.file());
        assert_eq!(code_there, "code=ok");
        assert_eq!(refusal(open, &folder.file()).code(), "journal_in_use");
        child.kill().unwrap();
        child.wait().unwrap();
        // What it had appended was durable, though it never closed the file.
        let mut engine = open(&folder.file()).unwrap();
        let batches = contents(&mut *engine, 0).unwrap().1;
        assert_eq!(batches, [Batch { position: 1, records: records(&["second process"]) }]);
        assert_eq!(ask_second_process(which, &folder.file()), "code=journal_in_use");
        drop(engine);
        assert_eq!(ask_second_process(which, &folder.file()), "code=ok");
    }
}

/// Opens what `prepare` has left in a folder; it must be refused with `expected` and left alone.
fn check_refused(prepare: impl Fn(&Path), expected: &str) {
    let folder = Folder::new();
    prepare(&folder.file());
    let before = snapshot(&folder);
    assert_eq!(code(SqliteEngine::open(&folder.file())), expected);
    assert_eq!(snapshot(&folder), before, "a refused file must stay as it is");
}

#[test]
fn a_file_of_something_else_is_refused_and_left_alone_by_the_log_too() {
    let journal_of_sqlite = |path: &Path| drop(SqliteEngine::open(path).unwrap());
    let written = [b"S".to_vec(), b"not a journal".to_vec(), vec![0x55; 100_000], vec![0; 100_000]];
    let write = |bytes: Vec<u8>| move |path: &Path| fs::write(path, &bytes).unwrap();
    let written = written.map(|bytes| Box::new(write(bytes)) as Box<dyn Fn(&Path)>);
    for prepare in written.into_iter().chain([Box::new(journal_of_sqlite) as Box<dyn Fn(&Path)>]) {
        let folder = Folder::new();
        prepare(&folder.file());
        let before = snapshot(&folder);
        assert_eq!(code(LogEngine::open(&folder.file())), "journal_foreign_file");
        assert_eq!(snapshot(&folder), before, "a refused file must stay as it is");
    }
    check_refused(|path| drop(LogEngine::open(path).unwrap()), "journal_foreign_file");
}

#[test]
fn a_file_that_is_not_ours_is_refused_and_left_alone() {
    let foreign = "journal_foreign_file";
    check_refused(|path| fs::write(path, "not a database").unwrap(), foreign);
    check_refused(|path| fs::write(path, "S").unwrap(), foreign);
    check_refused(|path| fs::write(path, vec![0x55; 100_000]).unwrap(), foreign);
    check_refused(|path| fs::write(path, vec![0; 100_000]).unwrap(), foreign);
    check_refused(|path| drop(sql(path, "CREATE TABLE t (a)")), foreign);
    check_refused(|path| drop(sql(path, "PRAGMA user_version = 1")), foreign);
    check_refused(|path| drop(sql(path, "PRAGMA application_id = 7")), foreign);
    check_refused(|path| drop(sql(path, "PRAGMA journal_mode = WAL; CREATE TABLE t (a)")), foreign);
}

/// A foreign database that crashed has work left beside it, which SQLite would finish on opening.
#[test]
fn a_foreign_file_with_work_left_to_recover_is_left_alone_too() {
    for mode in ["WAL", "DELETE"] {
        let crashed = |path: &Path| {
            let folder = Folder::new();
            let there = folder.0.join("there");
            let connection =
                sql(&there, &format!("PRAGMA journal_mode = {mode}; CREATE TABLE t (a)"));
            // A small cache makes rollback mode write to the file before the end.
            connection
                .execute_batch(
                    "PRAGMA cache_size = 2; BEGIN; WITH RECURSIVE n(i) AS
                     (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 400)
                     INSERT INTO t SELECT zeroblob(1000) FROM n",
                )
                .unwrap();
            for suffix in ["", "-wal", "-journal"] {
                let name = |base: &Path| PathBuf::from(format!("{}{suffix}", base.display()));
                if let Ok(bytes) = fs::read(name(&there)) {
                    fs::write(name(path), bytes).unwrap();
                }
            }
        };
        check_refused(crashed, "journal_foreign_file");
    }
}

#[test]
fn a_newer_format_is_refused() {
    let newer = |path: &Path| {
        drop(SqliteEngine::open(path).unwrap());
        drop(sql(path, "PRAGMA user_version = 2"));
    };
    check_refused(newer, "journal_newer_version");
    let folder = Folder::new();
    newer(&folder.file());
    let error = SqliteEngine::open(&folder.file()).unwrap_err();
    assert!(matches!(error, JournalError::NewerVersion { found: 2, supported: 1, .. }), "{error}");
}

/// Each state that a crash during the creation can leave. (Found by killing it at every write.)
#[test]
fn a_creation_that_was_cut_off_is_finished() {
    let mark = format!("PRAGMA application_id = {}", 0x554E_4A46);
    let empty_page = "PRAGMA user_version = 1; PRAGMA user_version = 0".to_owned();
    for statements in
        [String::new(), empty_page, mark.clone(), mark + "; PRAGMA journal_mode = WAL"]
    {
        let folder = Folder::new();
        drop(sql(&folder.file(), &statements));
        fill(&mut SqliteEngine::open(&folder.file()).unwrap(), 0, 3);
        let mut engine = SqliteEngine::open(&folder.file()).unwrap();
        assert_eq!(contents(&mut engine, 0).unwrap().0.next, 3, "{statements}");
    }
}

/// Losing the log of a fresh journal must not make it another fresh one unnoticed: its file alone
/// is whole.
#[test]
fn a_fresh_journal_is_whole_without_its_log() {
    let folder = Folder::new();
    let engine = SqliteEngine::open(&folder.file()).unwrap();
    let file = fs::read(folder.file()).unwrap();
    drop(engine);
    assert!(file.windows(7).any(|part| part == b"batches"));
    assert_eq!(file.len(), 3 * 4096);
}

#[test]
fn a_closed_journal_is_one_file() {
    for open in OPEN {
        let folder = Folder::new();
        fill(&mut *open(&folder.file()).unwrap(), 0, 5);
        assert_eq!(snapshot(&folder).len(), 1);
    }
}

#[test]
fn an_unusable_path_is_told_clearly() {
    let folder = Folder::new();
    for open in OPEN {
        for (path, expected, part) in [
            (&*folder.0.join("none/journal"), "journal_io", "its folder does not exist"),
            (&folder.0, "journal_foreign_file", "a folder"),
            (Path::new("/dev/null"), "journal_foreign_file", "a device"),
            (Path::new(""), "journal_io", "empty"),
        ] {
            let error = refusal(open, path);
            assert_eq!(error.code(), expected, "{error}");
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}
