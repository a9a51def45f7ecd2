//! Starts that cannot be: each ends with a status other than 0 and a message that names what to do,
//! and leaves every file as it was. And disks that fill up while the program runs.

use std::collections::BTreeMap;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use tokio::task::JoinSet;
use unanimity_sdk::rusqlite::Connection;
use unanimity_server::config::Config;

use crate::actor::Actor;
use crate::ask::{Coordinator, Ended, JSON, request, run, run_with, with};
use crate::setup::{Folder, until};

fn check(ended: &Ended, parts: &[&str]) {
    assert!(ended.status > 0, "{ended:?}");
    assert_eq!(ended.stdout, "", "{ended:?}");
    let last = ended.stderr.trim_end().lines().last().unwrap_or_default();
    assert!(ended.stderr.contains("error:"), "{ended:?}");
    assert!(!ended.stderr.contains("panicked") && !last.contains('\u{1b}'), "{ended:?}");
    for part in parts {
        assert!(ended.stderr.contains(part), "no {part:?} in {}", ended.stderr);
    }
}

/// Every file below a folder, with its bytes.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            found.extend(files(&entry.path()));
        } else {
            found.insert(entry.path(), std::fs::read(entry.path()).unwrap());
        }
    }
    found
}

/// The journals that there were before must be there, with the same bytes. The history's file may
/// change where SQLite keeps its own counters; what it holds is looked at by the tests.
fn unchanged(before: &BTreeMap<PathBuf, Vec<u8>>, folder: &Path) {
    let after = files(folder);
    let is_history = |path: &Path| path.display().to_string().contains("history.db");
    for (path, bytes) in before.iter().filter(|(path, _)| !is_history(path)) {
        assert!(after.get(path) == Some(bytes), "{} has changed", path.display());
    }
}

/// A coordinator that has done some work and has stopped: too little for the journal to forget any.
async fn stopped() -> (Actor, Coordinator) {
    let (actor, mut coordinator) = (Actor::start().await, Coordinator::start(&[]).await);
    for number in 0..40 {
        let mut asked = request(&format!("t-{number}"), &actor.two());
        asked["branches"][0]["payload"] = json!("p".repeat(700));
        let begun = coordinator.ask.begin(&asked).await;
        assert_eq!(begun.json()["outcome"], "commit");
    }
    let ended = coordinator.stop().await;
    assert_eq!(ended.status, 0, "{ended:?}");
    (actor, coordinator)
}

#[tokio::test]
async fn a_port_in_use_is_named_before_any_file_is_made() {
    let folder = Folder::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let data = folder.path().join("data");
    let data = data.to_str().unwrap();
    let ended = run(&["serve", "--data-folder", data, "--listen-address", &address]).await;
    check(&ended, &[&address, "is another program using it?", "listen.address"]);
    assert!(files(folder.path()).is_empty());
}

#[tokio::test]
async fn a_data_folder_has_one_coordinator_at_a_time() {
    let actor = Actor::start().await;
    let coordinator = Coordinator::start(&[]).await;
    let before = files(&coordinator.data());
    let ended = coordinator.start_in_vain(&[]).await;
    check(&ended, &["data_in_use", "in use by another coordinator", "stop it, or choose another"]);
    unchanged(&before, &coordinator.data());
    // The first goes on as if nothing had been.
    let begun = coordinator.ask.begin(&request("u", &actor.two())).await;
    assert_eq!(begun.json()["outcome"], "commit");
}

#[tokio::test]
async fn a_folder_that_cannot_be_written_is_named() {
    let folder = Folder::new();
    let file = folder.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    let below = file.join("below");
    for path in [file.as_path(), &below, Path::new("/proc/unanimity"), Path::new("/dev/null")] {
        let path = path.to_str().unwrap();
        let ended = run(&["serve", "--data-folder", path, "--listen-address", "127.0.0.1:0"]).await;
        check(&ended, &[path, "data_folder", "choose a folder that this user may write to"]);
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
}

/// Something mounted for a test; gone with it.
pub struct Mounted(PathBuf);

impl Mounted {
    /// `None`, and a word about it, where mounting is not permitted.
    pub fn new(at: PathBuf, arguments: &[&str]) -> Option<Self> {
        std::fs::create_dir_all(&at).unwrap();
        let mounted = Command::new("mount").args(arguments).arg(&at).output().unwrap();
        if !mounted.status.success() {
            println!("cannot mount here: {}", String::from_utf8_lossy(&mounted.stderr));
            return None;
        }
        Some(Self(at))
    }

    fn remount(&self, options: &str) {
        let command = ["-o", &format!("remount,{options}")].map(str::to_owned);
        assert!(Command::new("mount").args(command).arg(&self.0).status().unwrap().success());
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.0).status().unwrap();
    }
}

#[tokio::test]
async fn a_folder_that_has_become_read_only_is_named() {
    let (_actor, mut coordinator) = stopped().await;
    let data = coordinator.data();
    let source = data.to_str().unwrap().to_owned();
    if let Some(mounted) = Mounted::new(data.clone(), &["--bind", &source]) {
        mounted.remount("ro,bind");
        let before = files(&data);
        let ended = coordinator.start_in_vain(&[]).await;
        check(&ended, &["Read-only file system", "may write to", "data_folder"]);
        unchanged(&before, &data);
    } else {
        // The next best: a file that even root cannot open for writing.
        std::fs::remove_file(data.join("lock")).unwrap();
        std::fs::create_dir(data.join("lock")).unwrap();
        check(&coordinator.start_in_vain(&[]).await, &["may write to", "data_folder"]);
        std::fs::remove_dir(data.join("lock")).unwrap();
    }
    coordinator.start_again().await;
    assert_eq!(coordinator.ask.shown("t-7").await["outcome"], "commit");
}

/// Spoils a file of a coordinator that has worked; the start must name it, say why, and leave it.
/// With the file as it was, everything is there again.
async fn spoiled(name: &str, spoil: impl Fn(&Path), parts: &[&str]) {
    let (_actor, mut coordinator) = stopped().await;
    let path = coordinator.data().join(name);
    let good = std::fs::read(&path).unwrap();
    spoil(&path);
    assert_ne!(std::fs::read(&path).unwrap(), good);
    let before = files(&coordinator.data());
    for _ in 0..2 {
        let ended = coordinator.start_in_vain(&[]).await;
        check(&ended, &[&[path.to_str().unwrap()], parts].concat());
        unchanged(&before, &coordinator.data());
    }
    std::fs::write(&path, good).unwrap();
    coordinator.start_again().await;
    assert_eq!(coordinator.ask.shown("t-39").await["outcome"], "commit");
}

fn overwrite(path: &Path, at: u64, bytes: &[u8]) {
    let mut file = std::fs::File::options().write(true).open(path).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(bytes).unwrap();
}

fn length(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().len()
}

/// Where in a journal the batch at this position lies, which must be one that is kept.
fn place_of(path: &Path, position: u64) -> u64 {
    let bytes = std::fs::read(path).unwrap();
    let number = |block: &[u8], at: usize| u64::from_le_bytes(*block[at..].first_chunk().unwrap());
    let frames = || bytes.chunks(4096).enumerate().filter(|(_, block)| block.starts_with(b"UNJF"));
    let first = frames().map(|(_, block)| number(block, 16)).max().unwrap();
    assert!(first <= position, "everything before {first} is forgotten");
    let (block, _) = frames().find(|(_, block)| number(block, 24) == position + 1).unwrap();
    block as u64 * 4096
}

#[tokio::test]
async fn a_journal_that_was_overwritten_in_its_middle_is_refused() {
    let middle = |path: &Path| overwrite(path, place_of(path, 30), &[0xff; 4096]);
    spoiled("journal-0.log", middle, &["damaged", "restore", "journal_corrupt"]).await;
}

#[tokio::test]
async fn a_journal_with_one_changed_byte_is_refused() {
    let flip = |path: &Path| {
        let (bytes, frame) = (std::fs::read(path).unwrap(), place_of(path, 50));
        // After 52 bytes of header; what follows the batch in its last block means nothing.
        let length = *bytes[frame as usize + 40..].first_chunk().unwrap();
        let place = frame + 52 + u64::from(u32::from_le_bytes(length)) / 2;
        let byte = bytes[place as usize];
        overwrite(path, place, &[byte ^ 1]);
    };
    spoiled("journal-0.log", flip, &["damaged", "restore", "journal_corrupt"]).await;
}

#[tokio::test]
async fn a_journal_that_was_cut_off_is_refused() {
    for cut in [4096, 1000] {
        let cut_off = move |path: &Path| {
            let file = std::fs::File::options().write(true).open(path).unwrap();
            file.set_len(length(path) / 2 / 4096 * 4096 + cut).unwrap();
        };
        spoiled("journal-0.log", cut_off, &["damaged", "restore", "journal_corrupt"]).await;
    }
}

#[tokio::test]
async fn a_file_that_is_no_journal_is_refused() {
    for content in ["this is a letter to my aunt\n".repeat(999), "short".to_owned()] {
        let replace = move |path: &Path| std::fs::write(path, &content).unwrap();
        let parts = ["is not a journal of Unanimity", "name another file", "journal_foreign_file"];
        spoiled("journal-0.log", replace, &parts).await;
    }
}

fn set_version(path: &Path) {
    let database = Connection::open(path).unwrap();
    database.pragma_update(None, "user_version", 99).unwrap();
    database.close().unwrap();
}

/// As zip has it, a bit at a time.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |sum: u32, _| if sum & 1 == 1 { sum >> 1 ^ 0xEDB8_8320 } else { sum >> 1 };
    !bytes.iter().fold(!0, |sum, byte| (0..8).fold(sum ^ u32::from(*byte), step))
}

#[tokio::test]
async fn a_journal_of_a_newer_version_is_refused() {
    let set_version = |path: &Path| {
        for head in [0, 4096] {
            let mut bytes = std::fs::read(path).unwrap()[head..head + 40].to_vec();
            bytes[8] = 99;
            let checksum = crc32(&bytes[..36]).to_le_bytes();
            bytes[36..].copy_from_slice(&checksum);
            overwrite(path, head as u64, &bytes);
        }
    };
    let parts = ["format version 99", "use the release that wrote it", "journal_newer_version"];
    spoiled("journal-0.log", set_version, &parts).await;
}

#[tokio::test]
async fn a_history_of_a_newer_version_is_refused() {
    spoiled("history.db", set_version, &["version 99", "this program knows up to", "history"])
        .await;
}

#[tokio::test]
async fn a_file_that_is_no_history_is_refused() {
    let replace = |path: &Path| std::fs::write(path, "a letter to my aunt\n".repeat(999)).unwrap();
    spoiled("history.db", replace, &["history", "not a database"]).await;
}

#[tokio::test]
async fn the_number_of_shards_is_fixed() {
    let (_actor, mut coordinator) = stopped().await;
    let before = files(&coordinator.data());
    let ended = coordinator.start_in_vain(&["--shards", "2"]).await;
    check(&ended, &["shards_changed", "with 1 shards", "says 2", "set it back to 1"]);
    unchanged(&before, &coordinator.data());
    coordinator.start_again().await;
    assert_eq!(coordinator.ask.list("limit=1000").await.0.len(), 40);
}

#[tokio::test]
async fn mistakes_in_the_configuration_are_named_with_their_place() {
    let folder = Folder::new();
    let file = folder.path().join("unanimity.toml");
    let data = folder.path().join("data").display().to_string();
    let path = file.to_str().unwrap();
    let base = ["serve", "--data-folder", &data];
    let address = ["--listen-address", "127.0.0.1:0"];
    for (content, part) in [
        ("[timeouts]\nprepare_timout_ms = 1", "did you mean timeouts.prepare_timeout_ms?"),
        ("[timeout]\na = 1", "did you mean timeouts?"),
        ("[timeouts]\nprepare_timeout_ms = '5s'", "must be a whole number"),
        ("[timeouts]\nprepare_timeout_ms = -5", "must be a whole number"),
        ("[timeouts", "is not TOML"),
        ("[participants]\nallow = ['nonsense!']", "participants.allow"),
    ] {
        std::fs::write(&file, content).unwrap();
        let ended = run(&[&base[..], &address, &["--config", path]].concat()).await;
        let place = if part == "participants.allow" { part } else { path };
        check(&ended, &[place, part]);
    }
    let absent = run(&[&base[..], &address, &["--config", "/nowhere/u.toml"]].concat()).await;
    check(&absent, &["/nowhere/u.toml", "cannot be read"]);
    for (name, value, part) in [
        ("UNANIMITY_DATA_FOLDERS", "x", "did you mean UNANIMITY_DATA_FOLDER?"),
        ("UNANIMITY_SHARDS", "many", "UNANIMITY_SHARDS: must be a whole number from 1 to 64"),
        ("UNANIMITY_SHARDS", "65", "from 1 to 64"),
        ("UNANIMITY_LOG_LEVEL", "a=b=c", "log.level"),
    ] {
        let ended = run_with(&[&base[..], &address].concat(), &[(name, value)]).await;
        check(&ended, &[part]);
    }
    let unknown = run(&[&base[..], &address, &["--prepare-timeout", "5"]].concat()).await;
    check(&unknown, &["--prepare-timeout", "--prepare-timeout-ms"]);
    assert_eq!(unknown.status, 2);
    let wrong = run(&[&base[..], &address, &["--prepare-timeout-ms", "0"]].concat()).await;
    check(&wrong, &["--prepare-timeout-ms: must be a whole number from 1"]);
    assert!(!Path::new(&data).exists());
}

#[tokio::test]
async fn others_are_let_in_only_with_a_token() {
    let folder = Folder::new();
    let data = folder.path().join("data").display().to_string();
    let base = ["serve", "--data-folder", &data, "--listen-address"];
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:80"] {
        let ended = run(&[&base[..], &[address]].concat()).await;
        let way_out = ["listen.address", "no token is set", "UNANIMITY_TOKEN", "127.0.0.1"];
        check(&ended, &way_out);
        assert!(ended.stderr.contains(address), "{ended:?}");
    }
    let short = [("UNANIMITY_TOKEN", "canary")];
    let ended = run_with(&[&base[..], &["0.0.0.0:0"]].concat(), &short).await;
    check(&ended, &["UNANIMITY_TOKEN", "fewer than 16 characters"]);
    assert!(!ended.stderr.contains("canary"), "{ended:?}");
    assert!(!Path::new(&data).exists());
}

#[tokio::test]
async fn the_example_configuration_is_one_that_can_be_used() {
    let example = run(&["serve", "--example-config"]).await;
    assert_eq!((example.status, &*example.stderr), (0, ""));
    let folder = Folder::new();
    let file = folder.path().join("unanimity.toml");
    std::fs::write(&file, &example.stdout).unwrap();
    let loaded = Config::load(Some(&file), std::iter::empty(), Vec::new()).unwrap();
    assert_eq!(loaded, Config::default());
    let data = folder.path().join("data");
    let flags = ["--config", file.to_str().unwrap()];
    let mut coordinator = Coordinator::start_in(folder, &data, "", &flags).await;
    assert_eq!(coordinator.ask.get("/readyz").await.status, 200);
    assert_eq!(coordinator.stop().await.status, 0);
}

/// Begins transactions until the coordinator does not answer any more; gives back which of them
/// were acknowledged as committed.
async fn until_it_fails(coordinator: &Coordinator, actor: &Actor) -> Vec<String> {
    let mut initiators = JoinSet::new();
    for initiator in 0..8 {
        let (ask, participants) = (coordinator.ask.clone(), actor.two());
        initiators.spawn(async move {
            let mut acknowledged = Vec::new();
            for number in 0..20_000 {
                let id = format!("t-{initiator}-{number}");
                let mut asked = request(&id, &participants);
                asked["branches"][0]["payload"] = json!("x".repeat(50_000));
                let path = "/v1/transactions";
                let answer = ask.try_send("POST", path, &JSON, asked.to_string()).await;
                match answer {
                    Ok(answer) if answer.status == 200 => {
                        assert_eq!(answer.json()["outcome"], "commit");
                        acknowledged.push(id);
                    }
                    Ok(answer) => {
                        assert!(matches!(answer.status, 500 | 503), "{}", answer.text());
                        return acknowledged;
                    }
                    Err(_) => return acknowledged,
                }
            }
            panic!("the disk never became full")
        });
    }
    initiators.join_all().await.concat()
}

/// A coordinator whose disk becomes full stops, says so, and has lost nothing once there is room.
async fn fills_up(
    mut coordinator: Coordinator,
    says: &[&str],
    make_room: impl FnOnce(&mut String),
) {
    let actor = Actor::start().await;
    let acknowledged = until_it_fails(&coordinator, &actor).await;
    assert!(acknowledged.len() > 10, "{}", acknowledged.len());
    let ended = coordinator.take().ended().await;
    check_stopped(&ended, says);
    // Without room it must not start as if it were new, and if it starts, it has lost nothing.
    let before = coordinator.before.clone();
    make_room(&mut coordinator.before);
    assert!(before.is_empty() || before != coordinator.before);
    coordinator.start_again().await;
    for id in &acknowledged {
        let shown = coordinator.ask.ended(id).await;
        assert_eq!(shown["outcome"], "commit", "{shown}");
        assert!(actor.count("commit", id) >= 2);
    }
    until("every transaction to end", async || {
        let (_, page) = coordinator.ask.list("limit=1000").await;
        let all = page["transactions"].as_array().unwrap();
        all.iter().all(|one| one["completed"] == true).then_some(())
    })
    .await;
    let completed = with(request("afterwards", &actor.two()), &[("wait", json!("completed"))]);
    assert_eq!(coordinator.ask.begin(&completed).await.json()["outcome"], "commit");
}

fn check_stopped(ended: &Ended, says: &[&str]) {
    assert!(ended.status > 0, "{ended:?}");
    let last = ended.stderr.lines().last().unwrap_or_default();
    assert!(last.contains("error:") && !ended.stderr.contains("panicked"), "{ended:?}");
    assert!(last.contains("starting it recovers it"), "{last}");
    assert!(says.iter().any(|part| last.contains(part)), "none of {says:?} in {last}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_stops_the_coordinator_and_loses_nothing() {
    let folder = Folder::new();
    let data = folder.path().join("small");
    let Some(mounted) = Mounted::new(data.clone(), &["-t", "tmpfs", "-o", "size=3m", "tmpfs"])
    else {
        // The test below fills a file instead, which needs no right to mount.
        return file_too_large().await;
    };
    // Without the reserve, which would refuse what fills the disk.
    let flags = ["--disk-reserve-bytes", "0"];
    let coordinator = Coordinator::start_in(folder, &data, "", &flags).await;
    let says = ["disk is full", "disk_full", "No space left"];
    fills_up(coordinator, &says, |_| mounted.remount("size=200m")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_may_not_grow_stops_the_coordinator_and_loses_nothing() {
    file_too_large().await;
}

async fn file_too_large() {
    let folder = Folder::new();
    let data = folder.path().join("data");
    // 1 or 2 MiB a file, as the shell counts; the signal that would kill the program becomes an
    // error of the write.
    let limit = "trap '' XFSZ; ulimit -f 2048";
    let coordinator = Coordinator::start_in(folder, &data, limit, &[]).await;
    let says = ["disk I/O error", "disk is full", "File too large"];
    fills_up(coordinator, &says, String::clear).await;
}
