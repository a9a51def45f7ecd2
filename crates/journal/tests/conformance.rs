//! What every engine must do, checked on each of them, and what only the SQLite engine can get
//! wrong: files that are foreign, newer, damaged, cut short or in use. Layout and limits of a batch
//! are checked beside their code.

#![allow(clippy::unwrap_used, reason = "a test that fails should panic; helpers are tests too")]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;
use unanimity_journal::batch::{self, Damage};
use unanimity_journal::{
    AppendFault, Batch, Bounds, Engine, JournalError, MemoryEngine, ShardId, SqliteEngine,
};

/// A folder that goes away at the end of a test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("unanimity-journal-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self) -> PathBuf {
        self.0.join("shard 0%?#.journal")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

/// A storage that outlives its engines.
enum Storage {
    Sqlite(Folder),
    Memory(MemoryEngine),
}

impl Storage {
    fn all() -> [Self; 2] {
        [Self::Sqlite(Folder::new()), Self::Memory(MemoryEngine::new())]
    }

    fn open(&self) -> Box<dyn Engine> {
        match self {
            Self::Sqlite(folder) => Box::new(SqliteEngine::open(&folder.file()).unwrap()),
            Self::Memory(engine) => Box::new(engine.clone()),
        }
    }
}

fn records(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

fn read(engine: &mut dyn Engine, shard: ShardId, from: u64) -> Result<Vec<Batch>, JournalError> {
    let mut batches = Vec::new();
    engine.read(shard, from, &mut |batch| {
        batches.push(batch);
        Ok(())
    })?;
    Ok(batches)
}

type Contents = (Bounds, Vec<Batch>);

fn contents(engine: &mut dyn Engine, shard: ShardId) -> Result<Contents, JournalError> {
    let bounds = engine.bounds(shard)?;
    let batches = read(engine, shard, bounds.first)?;
    assert_eq!(batches.len() as u64, bounds.next - bounds.first, "read must agree with bounds");
    Ok((bounds, batches))
}

fn code<T: std::fmt::Debug>(outcome: Result<T, JournalError>) -> &'static str {
    outcome.err().map_or("ok", |error| error.code())
}

/// Appends one-record batches until `next` is the next free position.
fn fill(engine: &mut dyn Engine, shard: ShardId, next: u64) {
    for position in engine.bounds(shard).unwrap().next..next {
        let receipt = engine.append(shard, position, &records(&[&format!("r{position}")])).unwrap();
        assert_eq!((receipt.shard(), receipt.position()), (shard, position));
    }
}

#[test]
fn what_is_appended_is_read_and_survives_a_reopen() {
    for storage in Storage::all() {
        let mut engine = storage.open();
        assert_eq!(contents(&mut *engine, 0).unwrap(), (Bounds { first: 1, next: 1 }, Vec::new()));
        let batches = [records(&["a", "", "c"]), records(&[]), vec![vec![7; 100_000]]];
        for (position, batch) in (1..).zip(&batches) {
            engine.append(0, position, batch).unwrap();
        }
        engine.append(u16::MAX, 1, &records(&["other shard"])).unwrap();
        for _ in 0..2 {
            let (bounds, read) = contents(&mut *engine, 0).unwrap();
            assert_eq!(bounds, Bounds { first: 1, next: 4 });
            assert!(read.iter().map(|batch| &batch.records).eq(&batches));
            assert_eq!(contents(&mut *engine, u16::MAX).unwrap().0.next, 2);
            drop(engine);
            engine = storage.open();
        }
    }
}

#[test]
fn only_the_next_free_position_is_accepted() {
    for storage in Storage::all() {
        let mut engine = storage.open();
        fill(&mut *engine, 3, 4);
        let before = contents(&mut *engine, 3).unwrap();
        for position in [0, 1, 3, 5, 1 << 48, u64::MAX] {
            let error = engine.append(3, position, &records(&["x"])).unwrap_err();
            let JournalError::Conflict { position: offered, next, .. } = error else {
                panic!("{error}")
            };
            assert_eq!((offered, next), (position, 4));
        }
        assert_eq!(contents(&mut *engine, 3).unwrap(), before, "a conflict writes nothing");
        fill(&mut *engine, 3, 5);
    }
}

#[test]
fn a_refused_batch_writes_nothing_and_the_engine_goes_on() {
    for storage in Storage::all() {
        let mut engine = storage.open();
        let too_large = vec![vec![0; batch::BATCH_BYTES_MAX]];
        assert_eq!(code(engine.append(0, 1, &too_large)), "journal_too_large");
        fill(&mut *engine, 0, 2);
    }
}

#[test]
fn reading_outside_the_bounds_is_a_gap() {
    for storage in Storage::all() {
        let mut engine = storage.open();
        fill(&mut *engine, 0, 6);
        engine.truncate(0, 3).unwrap();
        for (from, expected) in
            [(0, "journal_gap"), (2, "journal_gap"), (7, "journal_gap"), (u64::MAX, "journal_gap")]
        {
            assert_eq!(code(read(&mut *engine, 0, from)), expected, "{from}");
        }
        for from in 3..=6 {
            let positions = read(&mut *engine, 0, from).unwrap();
            assert!(positions.iter().map(|batch| batch.position).eq(from..6));
        }
    }
}

#[test]
fn a_reader_that_fails_ends_the_read_and_nothing_else() {
    for storage in Storage::all() {
        let mut engine = storage.open();
        fill(&mut *engine, 0, 4);
        let mut seen = 0;
        let error = JournalError::Io { path: PathBuf::new(), message: "reader".to_owned() };
        let outcome = engine.read(0, 1, &mut |_| {
            seen += 1;
            Err(error.clone())
        });
        assert_eq!((outcome, seen), (Err(error), 1));
        fill(&mut *engine, 0, 5);
    }
}

#[test]
fn truncation_is_remembered_and_never_goes_back() {
    for storage in Storage::all() {
        let mut engine = storage.open();
        fill(&mut *engine, 0, 6);
        // (before, first afterwards, code)
        for (before, first, expected) in [
            (0, 1, "ok"),
            (1, 1, "ok"),
            (3, 3, "ok"),
            (2, 3, "ok"),
            (7, 3, "journal_gap"),
            (6, 6, "ok"),
        ] {
            assert_eq!(code(engine.truncate(0, before)), expected, "{before}");
            drop(engine);
            engine = storage.open();
            let (bounds, batches) = contents(&mut *engine, 0).unwrap();
            assert_eq!(bounds, Bounds { first, next: 6 }, "{before}");
            assert!(batches.iter().map(|batch| batch.position).eq(first..6));
        }
        fill(&mut *engine, 0, 8);
        drop(engine);
        assert_eq!(contents(&mut *storage.open(), 0).unwrap().1.len(), 2);
    }
}

#[test]
fn an_error_names_its_place_and_the_way_out() {
    for storage in Storage::all() {
        let message = storage.open().append(9, 4, &[]).unwrap_err().to_string();
        for part in ["shard 9", "position 4", "1 is the next free", "do not retry"] {
            assert!(message.contains(part), "{part}: {message}");
        }
    }
}

#[derive(Clone, Debug)]
enum Action {
    Append(Vec<Vec<u8>>),
    AppendAt(u64),
    Truncate(u64),
    ReadFrom(u64),
    Harden,
    Reopen,
}

fn action() -> impl Strategy<Value = Action> {
    let record = prop::collection::vec(any::<u8>(), 0..6000);
    prop_oneof![
        8 => prop::collection::vec(record, 0..4).prop_map(Action::Append),
        1 => (0..20u64).prop_map(Action::AppendAt),
        2 => (0..20u64).prop_map(Action::Truncate),
        2 => (0..20u64).prop_map(Action::ReadFrom),
        1 => Just(Action::Harden),
        2 => Just(Action::Reopen),
    ]
}

/// A journal as a list.
#[derive(Default)]
struct Model {
    forgotten: u64,
    batches: Vec<Batch>,
}

impl Model {
    fn bounds(&self) -> Bounds {
        let first = self.forgotten + 1;
        Bounds { first, next: first + self.batches.len() as u64 }
    }

    fn from(&self, from: u64) -> Option<Vec<Batch>> {
        let bounds = self.bounds();
        let inside = (bounds.first..=bounds.next).contains(&from);
        inside.then(|| self.batches[(from - bounds.first) as usize..].to_vec())
    }

    fn truncate(&mut self, before: u64) -> bool {
        let bounds = self.bounds();
        if before > bounds.first && before <= bounds.next {
            self.batches.drain(..(before - bounds.first) as usize);
            self.forgotten = before - 1;
        }
        before <= bounds.next
    }
}

fn play(storage: &Storage, script: &[(bool, Action)]) {
    let mut engine = storage.open();
    let mut models = [Model::default(), Model::default()];
    for (second, action) in script {
        let shard = if *second { 40_000 } else { 1 };
        let model = &mut models[usize::from(*second)];
        let next = model.bounds().next;
        match action {
            Action::Append(records) => {
                engine.append(shard, next, records).unwrap();
                model.batches.push(Batch { position: next, records: records.clone() });
            }
            Action::AppendAt(position) => {
                let expected = if *position == next { "ok" } else { "journal_conflict" };
                assert_eq!(code(engine.append(shard, *position, &[])), expected);
                if *position == next {
                    model.batches.push(Batch { position: next, records: Vec::new() });
                }
            }
            Action::Truncate(before) => {
                assert_eq!(engine.truncate(shard, *before).is_ok(), model.truncate(*before));
            }
            Action::ReadFrom(from) => {
                assert_eq!(read(&mut *engine, shard, *from).ok(), model.from(*from));
            }
            Action::Harden => engine.harden(shard).unwrap(),
            Action::Reopen => {
                drop(engine);
                engine = storage.open();
            }
        }
        assert_eq!(engine.bounds(shard).unwrap(), model.bounds());
    }
    for (shard, model) in [(1, &models[0]), (40_000, &models[1])] {
        let expected = (model.bounds(), model.batches.clone());
        assert_eq!(contents(&mut *engine, shard).unwrap(), expected);
    }
}

fn proptest_config() -> ProptestConfig {
    ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(proptest_config())]

    #[test]
    fn every_engine_behaves_like_a_list(
        script in prop::collection::vec((any::<bool>(), action()), 1..40)
    ) {
        for storage in Storage::all() {
            play(&storage, &script);
        }
    }

    #[test]
    fn a_batch_decodes_to_what_was_encoded(
        shard: u16,
        position: u64,
        previous: u32,
        records in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..9),
    ) {
        let decoded = batch::decode(&batch::encode(shard, position, previous, &records)).unwrap();
        prop_assert_eq!(
            (decoded.shard, decoded.position, decoded.previous_checksum, decoded.records),
            (shard, position, previous, records)
        );
    }

    #[test]
    fn no_bytes_make_decode_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(batch::decode(&bytes).is_err());
        // The same behind a right magic, version and checksum, where the lengths are looked at.
        bytes.splice(0..0, *b"UNJB\x01\x00");
        bytes.extend_from_slice(&crc32(&bytes).to_le_bytes());
        if let Ok(decoded) = batch::decode(&bytes) {
            let again = batch::encode(
                decoded.shard, decoded.position, decoded.previous_checksum, &decoded.records,
            );
            prop_assert_eq!(again, bytes);
        }
    }
}

fn crc32(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

#[test]
fn every_single_bit_flip_of_a_batch_is_refused() {
    let sound = batch::encode(2, 9, 0x1234_5678, &records(&["begun", "", "decided: commit"]));
    for bit in 0..sound.len() * 8 {
        let mut bytes = sound.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let expected = if bit < 32 { Damage::Magic } else { Damage::Checksum };
        assert_eq!(batch::decode(&bytes), Err(expected), "{bit}");
    }
}

#[test]
fn every_single_bit_flip_of_a_stored_batch_is_refused() {
    let engine = MemoryEngine::new();
    fill(&mut engine.clone(), 0, 4);
    for bit in 0..(24 + 4 + 2 + 4) * 8 {
        engine.damage(0, 2, bit);
        assert_eq!(code(contents(&mut engine.clone(), 0)), "journal_corrupt", "{bit}");
        engine.damage(0, 2, bit);
    }
    assert_eq!(code(contents(&mut engine.clone(), 0)), "ok");
}

#[test]
fn memory_faults_leave_what_they_say() {
    // (fault, next as reopened, next after a power loss without and with hardening)
    for (fault, reopened, lost, hardened) in [
        (AppendFault::Lost, 2, 2, 2),
        (AppendFault::Durable, 3, 3, 3),
        (AppendFault::Unsynced, 3, 2, 3),
    ] {
        for harden in [false, true] {
            let storage = MemoryEngine::new();
            let mut engine = storage.clone();
            storage.fail_append(2, fault);
            fill(&mut engine, 0, 2);
            assert_eq!(code(engine.append(0, 2, &[])), "journal_io", "{fault:?}");
            assert_eq!(code(engine.append(0, 2, &[])), "journal_poisoned");
            assert_eq!(code(read(&mut engine, 0, 1)), "journal_poisoned");
            assert_eq!(code(engine.bounds(0)), "journal_poisoned");
            assert_eq!(code(engine.truncate(0, 2)), "journal_poisoned");
            assert_eq!(code(engine.harden(0)), "journal_poisoned");

            let mut engine = storage.clone();
            assert_eq!(engine.bounds(0).unwrap().next, reopened, "{fault:?}");
            if harden {
                engine.harden(0).unwrap();
            }
            storage.lose_unsynced();
            let expected = if harden { hardened } else { lost };
            assert_eq!(engine.bounds(0).unwrap().next, expected, "{fault:?} {harden}");
        }
    }
}

#[test]
fn a_fenced_owner_meets_a_conflict() {
    let mut engine = MemoryEngine::new();
    fill(&mut engine, 5, 3);
    engine.fence(5);
    assert_eq!(code(engine.append(5, 3, &[])), "journal_conflict");
    assert_eq!(engine.bounds(5).unwrap().next, 4);
}

#[test]
fn a_second_owner_in_this_process_is_refused() {
    let folder = Folder::new();
    let mut engine = SqliteEngine::open(&folder.file()).unwrap();
    for _ in 0..2 {
        let error = SqliteEngine::open(&folder.file()).unwrap_err();
        assert_eq!(error.code(), "journal_in_use");
        assert!(error.to_string().contains("shard 0%?#.journal"), "{error}");
        fill(&mut engine, 0, 2);
    }
    // The refused one must not have taken the first one's lock with it.
    assert_eq!(ask_second_process(&folder.file()), "code=journal_in_use");
    drop(engine);
    assert_eq!(contents(&mut SqliteEngine::open(&folder.file()).unwrap(), 0).unwrap().1.len(), 1);
}

const SECOND_PROCESS: &str = "UNANIMITY_JOURNAL_SECOND_PROCESS";

/// Not a test: what the second process does. It opens the journal that the variable names, appends
/// one batch, says how that went, and then holds the journal until its input ends or it is killed.
#[test]
fn second_process() {
    let Some(path) = std::env::var_os(SECOND_PROCESS) else { return };
    let opened = SqliteEngine::open(Path::new(&path)).and_then(|mut engine| {
        let next = engine.bounds(0)?.next;
        engine.append(0, next, &records(&["second process"]))?;
        Ok(engine)
    });
    println!("\ncode={}", opened.as_ref().err().map_or("ok", JournalError::code));
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    drop(opened);
}

fn second_process_on(path: &Path) -> (std::process::Child, String) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "second_process", "--nocapture"])
        .env(SECOND_PROCESS, path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.as_mut().unwrap()).lines().map(Result::unwrap);
    let code = lines.into_iter().find(|line| line.starts_with("code=")).unwrap();
    (child, code)
}

fn ask_second_process(path: &Path) -> String {
    let (mut child, code) = second_process_on(path);
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    code
}

#[test]
fn a_second_process_is_refused_until_the_first_one_dies() {
    let folder = Folder::new();
    let (mut child, code_there) = second_process_on(&folder.file());
    assert_eq!(code_there, "code=ok");
    assert_eq!(code(SqliteEngine::open(&folder.file())), "journal_in_use");
    child.kill().unwrap();
    child.wait().unwrap();
    // What it had appended was durable, though it never closed the file.
    let mut engine = SqliteEngine::open(&folder.file()).unwrap();
    let batches = contents(&mut engine, 0).unwrap().1;
    assert_eq!(batches, [Batch { position: 1, records: records(&["second process"]) }]);
    assert_eq!(ask_second_process(&folder.file()), "code=journal_in_use");
    drop(engine);
    assert_eq!(ask_second_process(&folder.file()), "code=ok");
}

/// Every file of a folder, by name.
fn snapshot(folder: &Folder) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(&folder.0)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    files.sort();
    files
}

fn restore(folder: &Folder, files: &[(PathBuf, Vec<u8>)]) {
    for (path, _) in snapshot(folder) {
        fs::remove_file(path).unwrap();
    }
    for (path, bytes) in files {
        fs::write(path, bytes).unwrap();
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

fn sql(path: &Path, statements: &str) -> rusqlite::Connection {
    let connection = rusqlite::Connection::open(path).unwrap();
    connection.execute_batch(statements).unwrap();
    connection
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

#[test]
fn a_newer_batch_is_refused() {
    let folder = Folder::new();
    fill(&mut SqliteEngine::open(&folder.file()).unwrap(), 0, 3);
    let mut bytes = batch::encode(0, 1, batch::GENESIS, &records(&["r1"]));
    bytes[4] = 2;
    let end = bytes.len() - 4;
    let checksum = crc32(&bytes[..end]).to_le_bytes();
    bytes[end..].copy_from_slice(&checksum);
    let connection = sql(&folder.file(), "");
    connection.execute("UPDATE batches SET bytes = ?1 WHERE key = 1", [bytes]).unwrap();
    drop(connection);
    let mut engine = SqliteEngine::open(&folder.file()).unwrap();
    assert_eq!(code(contents(&mut engine, 0)), "journal_newer_version");
}

#[test]
fn a_batch_in_the_wrong_place_is_refused() {
    let copy = |from: &str| format!("bytes = (SELECT bytes FROM batches WHERE key = {from})");
    let unchained = hex(&batch::encode(0, 2, 99, &records(&["r2"])));
    // (what somebody does to the rows of shard 0, what reading it says)
    for (statement, expected) in [
        ("DELETE FROM batches WHERE key = 1", "journal_gap"),
        ("DELETE FROM batches WHERE key = 3", "journal_gap"),
        ("UPDATE batches SET key = 6 WHERE key = 5", "journal_corrupt"),
        ("UPDATE batches SET key = 0 WHERE key = 1", "journal_gap"),
        (&format!("UPDATE batches SET {} WHERE key = 2", copy("4")), "journal_corrupt"),
        (&format!("UPDATE batches SET {} WHERE key = 2", copy("(1 << 48) + 2")), "journal_corrupt"),
        (&format!("UPDATE batches SET bytes = x'{unchained}' WHERE key = 2"), "journal_corrupt"),
        ("UPDATE batches SET bytes = x'' WHERE key = 2", "journal_corrupt"),
        ("UPDATE batches SET bytes = 'text' WHERE key = 2", "journal_corrupt"),
        ("DROP TABLE batches", "journal_corrupt"),
        ("CREATE INDEX i ON batches (key)", "journal_corrupt"),
        ("INSERT INTO shards VALUES (0, 3, 0, 0)", "journal_corrupt"),
        ("INSERT INTO shards VALUES (70000, 3, 0, 0)", "journal_corrupt"),
        ("INSERT INTO shards VALUES (5, 'x', 0, 0)", "journal_corrupt"),
    ] {
        let folder = Folder::new();
        let mut engine = SqliteEngine::open(&folder.file()).unwrap();
        fill(&mut engine, 0, 6);
        fill(&mut engine, 1, 6);
        drop(engine);
        drop(sql(&folder.file(), statement));
        let outcome =
            SqliteEngine::open(&folder.file()).and_then(|mut engine| contents(&mut engine, 0));
        assert_eq!(code(outcome), expected, "{statement}");
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A journal with three kept batches, copied in the middle of its life as a crash would leave it:
/// part in the file, part in the write-ahead log, or all of it in the file.
fn crashed(in_wal: bool) -> (Folder, Vec<(PathBuf, Vec<u8>)>, Contents) {
    let folder = Folder::new();
    let mut engine = SqliteEngine::open(&folder.file()).unwrap();
    fill(&mut engine, 0, 3);
    engine.truncate(0, 2).unwrap();
    if in_wal {
        engine.harden(0).unwrap();
    }
    fill(&mut engine, 0, 4);
    engine.append(0, 4, &[vec![0x5A; 9000]]).unwrap();
    fill(&mut engine, 0, 6);
    if !in_wal {
        engine.harden(0).unwrap();
    }
    let contents = contents(&mut engine, 0).unwrap();
    let files = snapshot(&folder);
    drop(engine);
    (folder, files, contents)
}

fn reopened(folder: &Folder) -> Result<Contents, JournalError> {
    contents(&mut SqliteEngine::open(&folder.file())?, 0)
}

/// Flips every `step`th bit of file number `file`, one at a time, and counts the outcomes: refused,
/// the same, and shorter by the last batch. Anything else fails.
fn flip(in_wal: bool, file: usize, step: usize) -> [usize; 3] {
    let (folder, files, sound) = crashed(in_wal);
    restore(&folder, &files);
    assert_eq!(reopened(&folder).unwrap(), sound, "the copy itself must be sound");
    let mut counts = [0; 3];
    for bit in (0..files[file].1.len() * 8).step_by(step) {
        let mut damaged = files.clone();
        damaged[file].1[bit / 8] ^= 1 << (bit % 8);
        restore(&folder, &damaged);
        match reopened(&folder) {
            Err(_) => counts[0] += 1,
            Ok(contents) if contents == sound => counts[1] += 1,
            Ok((bounds, batches)) => {
                let shorter = Bounds { next: sound.0.next - 1, ..sound.0 };
                assert_eq!(bounds, shorter, "byte {}", bit / 8);
                assert_eq!(batches, sound.1[..sound.1.len() - 1], "byte {}", bit / 8);
                counts[2] += 1;
            }
        }
    }
    counts
}

fn check_file_flips(step: usize) {
    let [refused, same, shorter] = flip(false, 0, step);
    assert!(refused > same / 20 && same > 0, "{refused} {same}");
    assert_eq!(shorter, 0, "what a checkpoint has moved into the file is never shortened");
}

fn check_wal_flips(step: usize) {
    let [refused, _, shorter] = flip(true, 1, step);
    // Only within the last transaction's one frame can damage not be told from a crash.
    let last_frame_bits = (4096 + 24) * 8;
    assert!(refused > 0 && shorter * step <= last_frame_bits + step, "{refused} {shorter}");
}

#[test]
fn a_flipped_bit_in_the_file_is_refused_or_harmless() {
    check_file_flips(233);
}

#[test]
fn a_flipped_bit_in_the_log_is_refused_or_in_the_last_transaction() {
    check_wal_flips(251);
}

#[test]
#[ignore = "every bit; takes a few minutes"]
fn every_flipped_bit_of_file_and_log() {
    check_file_flips(1);
    check_wal_flips(1);
}

#[test]
fn a_file_cut_short_is_refused() {
    let (folder, files, _) = crashed(false);
    assert!(files[0].1.len() > 8192);
    for length in (1..files[0].1.len()).step_by(509) {
        let mut cut = files.clone();
        cut[0].1.truncate(length);
        restore(&folder, &cut);
        let found = code(reopened(&folder));
        assert!(matches!(found, "journal_corrupt" | "journal_foreign_file"), "{length}: {found}");
    }
}

#[test]
fn a_log_without_its_file_is_refused_and_kept() {
    let (folder, mut files, _) = crashed(true);
    for file_left in [true, false] {
        files[0].1.clear();
        restore(&folder, &files[usize::from(!file_left)..]);
        let before = snapshot(&folder);
        assert_eq!(code(reopened(&folder)), "journal_corrupt");
        assert_eq!(snapshot(&folder), before);
    }
}

/// A log that is cut is what a crash leaves: a prefix of the batches, and it can be appended to.
#[test]
fn a_log_cut_short_leaves_a_prefix() {
    let (folder, files, sound) = crashed(true);
    let mut lengths = std::collections::BTreeSet::new();
    for length in (0..files[1].1.len()).step_by(1021) {
        let mut cut = files.clone();
        cut[1].1.truncate(length);
        restore(&folder, &cut);
        let mut engine = SqliteEngine::open(&folder.file()).unwrap();
        let (bounds, batches) = contents(&mut engine, 0).unwrap();
        assert_eq!(batches, sound.1[..batches.len()], "{length}");
        lengths.insert(batches.len());
        fill(&mut engine, 0, bounds.next + 2);
        drop(engine);
        assert_eq!(reopened(&folder).unwrap().0.next, bounds.next + 2);
    }
    assert!(lengths.into_iter().eq(1..sound.1.len()), "each prefix must have occurred");
}

#[test]
fn a_closed_journal_is_one_file() {
    let folder = Folder::new();
    fill(&mut SqliteEngine::open(&folder.file()).unwrap(), 0, 5);
    assert_eq!(snapshot(&folder).len(), 1);
}

#[test]
fn an_unusable_path_is_told_clearly() {
    let folder = Folder::new();
    let open = |path: &Path| SqliteEngine::open(path).map(drop).unwrap_err();
    for (error, expected, part) in [
        (open(&folder.0.join("none/journal")), "journal_io", "its folder does not exist"),
        (open(&folder.0), "journal_foreign_file", "a folder"),
        (open(Path::new("/dev/null")), "journal_foreign_file", "a device"),
        (open(Path::new("")), "journal_io", "empty"),
    ] {
        assert_eq!(error.code(), expected, "{error}");
        assert!(error.to_string().contains(part), "{error}");
    }
}
