//! Power cuts on the real files: a coordinator and a bank run under load while strace writes down
//! what they do to their files. Then, for many moments of that recording, one of the states that a
//! power cut may have left there is put into a folder of its own, opened by the real engine and the
//! real recovery, and judged by what others had been told, or had been asked to do, before.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use unanimity::core::{Answer, Call};
use unanimity::{CallFuture, Filter, ManagerConfig, Storage, TransactionManager, Transport};
use unanimity_bank::{Bank, BankArguments, JournalLine};
use unanimity_sdk::api::Outcome;
use unanimity_sdk::rusqlite::{Connection, OpenFlags};
use unanimity_sdk::{Client, TransactionId};

use super::ensemble::Ensemble;
use super::long;
use super::node::Node;
use super::recording::{CALLS, Done, Files, Random, read};
use super::styles::{Style, until_known};
use crate::setup::until;

/// By how much a clock that counts on from its start, in whole milliseconds, may be behind.
const CLOCKS_US: u64 = 3_000;

/// What is known to have been so from some moment on, in microseconds since the Unix epoch.
#[derive(Clone, Debug, Default)]
struct Known {
    /// Its initiator was told the outcome.
    told: Option<(u64, Outcome)>,
    /// Somebody was asked to prepare, so its beginning was on record.
    prepared: Option<u64>,
    /// Somebody was asked to commit, so the decision was on record.
    committed: Option<u64>,
    /// The coordinator had bank A's yes, so its row was there.
    voted: Option<u64>,
    /// The coordinator had bank A's acknowledgement of the commit.
    acknowledged: Option<u64>,
    /// How it ended.
    outcome: Option<Outcome>,
}

/// One run, written down.
struct Run {
    ensemble: Ensemble,
    known: BTreeMap<String, Known>,
    /// For the coordinator and for bank A: its files before, and what it did to them.
    recordings: [(Files, Vec<Done>); 2],
}

fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(since.as_micros()).unwrap()
}

/// The database and its log.
fn with_log(path: &Path) -> [PathBuf; 2] {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    [path.to_path_buf(), log.into()]
}

/// Starts a node again, with every call on these files written down.
async fn start_recorded(node: &mut Node, files: &[PathBuf], trace: &Path) {
    let mut before = vec!["strace", "-D", "-f", "-qq", "-ttt", "-y", "-xx", "-s", "16777216"];
    before.extend(["--seccomp-bpf", "-e", CALLS, "-o", trace.to_str().unwrap()]);
    let folder = files[0].parent().unwrap().to_str().unwrap();
    before.extend(["-P", folder]);
    before.extend(files.iter().flat_map(|file| ["-P", file.to_str().unwrap()]));
    node.start_behind(&before).await.unwrap();
}

impl Run {
    async fn record(transactions: usize, at_a_time: usize) -> Self {
        let mut ensemble = Ensemble::start_with(&[], &["--journal"]).await;
        let mut known = BTreeMap::new();
        for number in 0..5 {
            let told = ensemble.runs(Style::TwoPhase, &format!("before-{number}")).await;
            let known_at = Some((0, told));
            known.insert(format!("before-{number}"), Known { told: known_at, ..Known::default() });
        }
        let folder = ensemble.folder.path().to_path_buf();
        let data = folder.join("data");
        let (journal, history) = (data.join("journal-0.log"), data.join("history.db"));
        let files = [
            [&[journal][..], &with_log(&history)].concat(),
            with_log(&folder.join("bank-a.db")).to_vec(),
        ];
        let traces = [folder.join("coordinator.trace"), folder.join("bank.trace")];
        let mut before = Vec::new();
        for (node, (files, trace)) in files.iter().zip(&traces).enumerate() {
            ensemble.nodes[node].kill().await;
            before.push(Files::before(files));
            start_recorded(&mut ensemble.nodes[node], files, trace).await;
        }
        let told = load(&ensemble, transactions, at_a_time).await;
        for (id, told) in told {
            ensemble.ends(Style::TwoPhase, &id, told.1).await;
            known.insert(id, Known { told: Some(told), ..Known::default() });
        }
        ensemble.judge().await;
        let mut run = Self { ensemble, known, recordings: Default::default() };
        run.ask_everybody().await;
        let mut recordings = Vec::new();
        for (node, before) in before.into_iter().enumerate() {
            run.ensemble.nodes[node].kill().await;
            let trace = until("the whole recording", async || {
                let text = std::fs::read_to_string(&traces[node]).unwrap();
                text.contains("+++").then_some(text)
            })
            .await;
            recordings.push((before, read(&trace)));
        }
        run.recordings = recordings.try_into().unwrap_or_else(|_| unreachable!());
        run
    }

    /// What the banks had been asked, and what the coordinator had heard, and when.
    async fn ask_everybody(&mut self) {
        for node in [1, 2] {
            let bank = Client::new(&self.ensemble.nodes[node].url(), None).unwrap();
            for line in bank.get_text("/journal").await.unwrap().lines() {
                let line: JournalLine = serde_json::from_str(line).unwrap();
                let known = self.known.entry(line.transaction).or_default();
                let at = line.at_ms * 1_000;
                let earliest = match &*line.state {
                    "prepared" => &mut known.prepared,
                    "committed" => &mut known.committed,
                    _ => continue, // A no, or a rollback of whatever there was.
                };
                *earliest = Some(earliest.map_or(at, |known| known.min(at)));
            }
        }
        let client = self.ensemble.client();
        for (id, known) in &mut self.known {
            let id = TransactionId::new(id).unwrap();
            known.outcome = client.get(&id, None).await.unwrap().outcome;
            for event in client.timeline(&id).await.unwrap().events {
                let at = Some(event.at_ms * 1_000);
                match (&*event.event, event.branch.as_deref(), event.operation.as_deref()) {
                    ("yes", Some("debit"), _) => known.voted = at,
                    ("acknowledged", Some("debit"), Some("commit")) => {
                        known.acknowledged = at;
                    }
                    _ => {} // Of the other bank, or no word of a bank's.
                }
            }
        }
    }

    /// Puts `count` images together, and has each judged. Gives back how many had anything at
    /// stake.
    async fn images(
        &self,
        node: usize,
        count: usize,
        judge: impl AsyncFn(&Path, u64, &str),
    ) -> usize {
        let (before, acts) = &self.recordings[node];
        assert!(acts.len() > 50, "{} calls were written down", acts.len());
        let mut cuts: Vec<usize> = (0..count).map(|number| number * acts.len() / count).collect();
        cuts.dedup();
        let (mut files, mut taken, mut at_stake) = (before.clone(), 0, 0);
        let (seeds, place) = (count.div_ceil(cuts.len()), Images::new());
        for cut in cuts {
            acts[taken..=cut].iter().for_each(|done| files.take(&done.act));
            taken = cut + 1;
            at_stake += usize::from(files.unsynced() > 0);
            for seed in 0..seeds {
                let name = format!("{node}-{cut}-{seed}");
                let folder = place.0.join(&name);
                std::fs::create_dir_all(&folder).unwrap();
                let mut random = Random((cut * 1_000 + seed) as u64 * 1_000_000);
                files.left_in(&folder, &mut random);
                judge(&folder, acts[cut].from_us, &name).await;
                std::fs::remove_dir_all(&folder).unwrap();
            }
        }
        at_stake
    }
}

/// Where images are put together: where the disk is memory, if there is such a place.
struct Images(PathBuf);

impl Images {
    fn new() -> Self {
        let memory = Path::new("/dev/shm");
        let place = if memory.is_dir() { memory.to_path_buf() } else { std::env::temp_dir() };
        Self(place.join(format!("unanimity-images-{}", std::process::id())))
    }
}

impl Drop for Images {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap_or_default();
    }
}

/// Many transfers, some of them side by side; when each was told its outcome.
async fn load(
    ensemble: &Ensemble,
    transactions: usize,
    at_a_time: usize,
) -> BTreeMap<String, (u64, Outcome)> {
    let (client, participants) = (ensemble.client(), ensemble.participants());
    let gate = Arc::new(tokio::sync::Semaphore::new(at_a_time));
    let mut asked = Vec::new();
    for number in 0..transactions {
        let id = format!("t{number}");
        let request = Style::TwoPhase.request(&id, &participants);
        let (client, gate) = (client.clone(), Arc::clone(&gate));
        asked.push(tokio::spawn(async move {
            let _permit = gate.acquire().await.unwrap();
            let outcome = until_known(client, request).await;
            (id, (now_us(), outcome))
        }));
    }
    let mut told = BTreeMap::new();
    for one in asked {
        let (id, when) = one.await.unwrap();
        told.insert(id, when);
    }
    told
}

fn before(moment: Option<u64>, cut_us: u64) -> bool {
    moment.is_some_and(|moment| moment + CLOCKS_US < cut_us)
}

/// Carries nothing: nobody answers.
struct Silence;

impl Transport for Silence {
    fn call(&self, _call: Call) -> CallFuture<'_> {
        Box::pin(std::future::pending::<Answer>())
    }

    fn check(&self, _participant: &str) -> Result<(), (&'static str, String)> {
        Ok(())
    }
}

/// The coordinator's folder after a power cut: it can be recovered, and holds what it must.
async fn judge_coordinator(
    known: &BTreeMap<String, Known>,
    folder: &Path,
    cut_us: u64,
    name: &str,
) {
    let storage = Storage::Folder(folder.to_path_buf());
    let config = ManagerConfig { storage, disk_reserve_bytes: 0, ..ManagerConfig::default() };
    let manager = TransactionManager::start(config, Arc::new(Silence));
    let manager = manager.unwrap_or_else(|error| panic!("image {name} is refused: {error}"));
    let page = manager.list(Filter::default(), 100_000).await.unwrap();
    let found: BTreeMap<&str, _> = page.transactions.iter().map(|(v, _)| (&*v.id, v)).collect();
    for (id, known) in known {
        let view = found.get(&**id);
        let told = known.told.filter(|(at, _)| before(Some(*at), cut_us)).map(|(_, told)| told);
        let begun = before(known.prepared, cut_us);
        assert!(view.is_some() || told.is_none() && !begun, "image {name}: {id} is lost");
        let must = told.or(before(known.committed, cut_us).then_some(Outcome::Commit));
        let Some(view) = view else { continue };
        let has = view.outcome.as_deref().map(|word| match word {
            "commit" => Outcome::Commit,
            _ => Outcome::Rollback, // There are two.
        });
        assert!(must.is_none() || has == must, "image {name}: {id} must be {must:?}: {view:?}");
        // What is undecided after a restart is rolled back; nothing else differs from the run.
        let restarted = view.reason.as_ref().is_some_and(|why| why.code == "coordinator_restarted");
        assert!(has.is_none() || restarted || has == known.outcome, "image {name}: {view:?}");
        assert_eq!(view.branches.len(), 2, "image {name}: {view:?}");
    }
    for id in found.keys() {
        assert!(known.contains_key(*id), "image {name}: nobody has begun {id}");
    }
    manager.stop(Duration::ZERO).await;
}

/// A bank's file after a power cut: it opens, holds what it has promised, and its money is right.
async fn judge_bank(known: &BTreeMap<String, Known>, folder: &Path, cut_us: u64, name: &str) {
    let database = folder.join("bank-a.db");
    let bank = Bank::start(BankArguments {
        accounts: 2,
        balance: 100_000_000,
        journal: true,
        ..BankArguments::new("A", database.clone())
    });
    let bank = bank.await.unwrap_or_else(|error| panic!("image {name} is refused: {error:#}"));
    let file = Connection::open_with_flags(&database, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let rows = |sql: &str| -> BTreeMap<String, i64> {
        let mut query = file.prepare(sql).unwrap();
        let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        rows.map(Result::unwrap).collect()
    };
    let states = rows("SELECT transaction_id, state FROM unanimity_guard");
    let (prepared, committed) = (1, 2);
    for (id, known) in known {
        let state = states.get(id).copied();
        let promised = before(known.voted, cut_us)
            || known
                .told
                .is_some_and(|(at, told)| told == Outcome::Commit && before(Some(at), cut_us));
        assert!(state.is_some() || !promised, "image {name}: the promise for {id} is gone");
        let done = before(known.acknowledged, cut_us);
        assert!(
            !done || state == Some(committed),
            "image {name}: {id} is {state:?}, not committed"
        );
        assert!(state != Some(committed) || known.outcome == Some(Outcome::Commit), "{name}: {id}");
    }
    // Work and row are there together or not at all.
    let last = "SELECT transaction_id, state FROM journal ORDER BY number";
    assert_eq!(rows(last), states, "image {name}: a row without its work, or the reverse");
    let moved = rows("SELECT account, sum(balance) FROM journal WHERE account NOTNULL GROUP BY 1");
    let held = rows("SELECT account, sum(reserved) FROM journal WHERE account NOTNULL GROUP BY 1");
    let balances = rows("SELECT id, balance FROM account");
    let reserved = rows("SELECT id, reserved FROM account");
    for (account, balance) in balances {
        let of = |all: &BTreeMap<String, i64>| all.get(&account).copied().unwrap_or(0);
        assert_eq!(balance, 100_000_000 + of(&moved), "image {name}: {account}");
        assert_eq!(of(&reserved), of(&held), "image {name}: {account}");
    }
    let in_doubt = states.values().filter(|state| **state == prepared).count();
    let total = bank.books().total().await.unwrap();
    assert_eq!(total.in_doubt, in_doubt as u64, "image {name}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_what_was_not_synced_any_part_may_survive_and_nothing_told_is_lost() {
    let (transactions, images) = if long() { (400, 1_000) } else { (60, 60) };
    let run = Run::record(transactions, 6).await;
    let known = &run.known;
    let journal = run
        .images(0, images, async |folder, cut, name| {
            judge_coordinator(known, folder, cut, name).await;
        })
        .await;
    let guard = run
        .images(1, images, async |folder, cut, name| judge_bank(known, folder, cut, name).await)
        .await;
    println!("{images} images each; with unsynced sectors: journal {journal}, guard {guard}");
    assert!(journal > images / 4 && guard > images / 4, "{journal} and {guard} of {images}");
}
