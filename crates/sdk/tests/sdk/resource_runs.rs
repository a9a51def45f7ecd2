//! Whole runs over the resource layer: two participants, many transfers over a few keys, every
//! interleaving of prepare, commit, rollback and restart that a seed draws. The coordinator of
//! these runs only does what the protocol demands. At the end there must be a serial order of the
//! committed transfers in which each of them reads just what it has read.

use std::collections::{BTreeMap, BTreeSet};

use unanimity_sdk::Operation::{Commit, Prepare, Rollback};
use unanimity_sdk::resource::Concurrency;
use unanimity_sdk::splitmix64;

use crate::keys::{LOCKING, OPTIMISTIC, QUEUEING, Sent, Store, Waiting};
use crate::support::Folder;

const TRANSFERS: usize = 150;
const OPEN_MAX: usize = 8;
const KEYS: [&str; 3] = ["x", "y", "z"];

/// What a branch has read: its keys with values and versions.
type Read = BTreeMap<String, (i64, i64)>;

enum Vote {
    NotAsked,
    Waits(Waiting),
    Yes(Read),
    No,
}

struct Transfer {
    name: String,
    /// For each participant: what is added to which key, and the payload that says so.
    adds: [BTreeMap<&'static str, i64>; 2],
    payloads: [String; 2],
    votes: [Vote; 2],
    decision: Option<bool>,
    told: [bool; 2],
}

struct Run {
    stores: [Option<Store>; 2],
    _folders: [Folder; 2],
    concurrency: Concurrency,
    transfers: Vec<Transfer>,
    state: u64,
    waited: usize,
    restarts: usize,
}

/// One thing that can happen next.
enum Step {
    Begin,
    Prepare(usize, usize),
    Decide(usize, bool),
    Tell(usize, usize),
}

impl Run {
    fn new(concurrency: Concurrency, seed: u64) -> Self {
        let folders = [Folder::new(), Folder::new()];
        let stores = folders.each_ref().map(|at| Some(Store::open(at.file(), concurrency)));
        let (transfers, state) = (Vec::new(), splitmix64(seed));
        Self { stores, _folders: folders, concurrency, transfers, state, waited: 0, restarts: 0 }
    }

    fn draw(&mut self, below: usize) -> usize {
        self.state = splitmix64(self.state);
        usize::try_from(self.state % u64::try_from(below).unwrap()).unwrap()
    }

    fn begin(&mut self) {
        let amount = i64::try_from(self.draw(60)).unwrap() + 1;
        let since = self.draw(1_000);
        let mut payloads = [const { String::new() }; 2];
        let mut adds = [const { BTreeMap::new() }; 2];
        for side in 0..2 {
            let (key, seen) = (KEYS[self.draw(3)], KEYS[self.draw(3)]);
            let sign = if side == 0 { '-' } else { '+' };
            payloads[side] = format!("{key}{sign}{amount},since={since}");
            if seen != key {
                payloads[side].push_str(&format!(",{seen}?"));
            }
            adds[side].insert(key, if side == 0 { -amount } else { amount });
        }
        // As often from the second to the first.
        if self.draw(2) == 0 {
            payloads.swap(0, 1);
            adds.swap(0, 1);
        }
        let votes = [Vote::NotAsked, Vote::NotAsked];
        let name = format!("t{}", self.transfers.len());
        let (decision, told) = (None, [false; 2]);
        self.transfers.push(Transfer { name, adds, payloads, votes, decision, told });
    }

    /// Everything that can happen next, but for restarts.
    fn steps(&mut self) -> Vec<Step> {
        let mut steps = Vec::new();
        let mut open = 0;
        for (number, transfer) in self.transfers.iter().enumerate() {
            if transfer.told == [true; 2] {
                continue;
            }
            open += 1;
            for side in 0..2 {
                match (transfer.decision, &transfer.votes[side]) {
                    (None, Vote::NotAsked) => steps.push(Step::Prepare(number, side)),
                    (Some(_), _) if !transfer.told[side] => steps.push(Step::Tell(number, side)),
                    _ => {}
                }
            }
            let yes = transfer.votes.iter().all(|vote| matches!(vote, Vote::Yes(_)));
            let no = transfer.votes.iter().any(|vote| matches!(vote, Vote::No));
            if transfer.decision.is_none() && (yes || no) {
                steps.push(Step::Decide(number, yes));
            }
        }
        if open < OPEN_MAX && self.transfers.len() < TRANSFERS {
            steps.push(Step::Begin);
        }
        steps
    }

    async fn take(&mut self, step: Step) {
        match step {
            Step::Begin => self.begin(),
            Step::Prepare(number, side) => self.prepare(number, side).await,
            Step::Decide(number, commit) => self.transfers[number].decision = Some(commit),
            Step::Tell(number, side) => self.tell(number, side).await,
        }
    }

    async fn prepare(&mut self, number: usize, side: usize) {
        let transfer = &mut self.transfers[number];
        let store = self.stores[side].as_mut().unwrap();
        let sent = store.send(&transfer.name, Prepare, &transfer.payloads[side]).await;
        transfer.votes[side] = match sent {
            Sent::Answered(answer) => vote(&answer),
            Sent::Waits(waiting) => {
                self.waited += 1;
                Vote::Waits(waiting)
            }
        };
    }

    /// Whatever the decision, and wherever the branch stands, it is acknowledged.
    async fn tell(&mut self, number: usize, side: usize) {
        let transfer = &mut self.transfers[number];
        let operation = if transfer.decision == Some(true) { Commit } else { Rollback };
        let store = self.stores[side].as_mut().unwrap();
        let answer = store.answered(&transfer.name, operation, "").await;
        assert_eq!(answer, "ack", "{} {operation:?}", transfer.name);
        transfer.told[side] = true;
    }

    /// Until whoever was woken waits again or has its answer.
    async fn settle(&mut self) {
        for side in 0..2 {
            loop {
                let waiting = self.collect(side).await;
                if self.stores[side].as_ref().unwrap().participant.waiting() == waiting {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
    }

    /// Takes the answers that have come, and counts the calls that wait.
    async fn collect(&mut self, side: usize) -> usize {
        let mut waiting = 0;
        for transfer in &mut self.transfers {
            let of = &mut transfer.votes[side];
            match std::mem::replace(of, Vote::NotAsked) {
                Vote::Waits(call) if call.handle.is_finished() => *of = vote(&call.answer().await),
                Vote::Waits(call) => {
                    waiting += 1;
                    *of = Vote::Waits(call);
                }
                other => *of = other,
            }
        }
        waiting
    }

    /// Whoever waits there has lost its connection, and asks again.
    async fn restart(&mut self, side: usize) {
        self.restarts += 1;
        for transfer in &mut self.transfers {
            let of = &mut transfer.votes[side];
            match std::mem::replace(of, Vote::NotAsked) {
                Vote::Waits(call) => {
                    call.handle.abort();
                    assert!(call.handle.await.unwrap_err().is_cancelled());
                }
                other => *of = other,
            }
        }
        let store = self.stores[side].take().unwrap();
        self.stores[side] = Some(store.reopen(self.concurrency));
    }

    async fn play(&mut self) {
        loop {
            self.settle().await;
            let mut steps = self.steps();
            if steps.is_empty() {
                break;
            }
            if self.draw(80) == 0 {
                let side = self.draw(2);
                self.restart(side).await;
                continue;
            }
            let chosen = self.draw(steps.len());
            let mut step = steps.swap_remove(chosen);
            // Now and then nobody waits for the votes: a rollback overtakes them.
            if let Step::Prepare(number, _) = step
                && self.draw(20) == 0
            {
                step = Step::Decide(number, false);
            }
            self.take(step).await;
        }
        let open = self.transfers.iter().filter(|transfer| transfer.told != [true; 2]).count();
        assert_eq!(open, 0, "they wait for each other");
    }
}

fn vote(answer: &str) -> Vote {
    let Some(read) = answer.strip_prefix("yes(") else {
        assert!(answer.starts_with("no("), "{answer}");
        return Vote::No;
    };
    Vote::Yes(serde_json::from_str(read.strip_suffix(')').unwrap()).unwrap())
}

/// A key of one participant.
type Place = (usize, String);

/// For each version of a key, who has only read it, and who has read it to write the next one.
type Seen = BTreeMap<i64, (Vec<usize>, Option<usize>)>;

impl Run {
    fn committed(&self) -> Vec<&Transfer> {
        self.transfers.iter().filter(|transfer| transfer.decision == Some(true)).collect()
    }

    /// The committed transfers in an order in which each comes before those that saw its work.
    fn serial(&self) -> Vec<&Transfer> {
        let committed = self.committed();
        let mut seen: BTreeMap<Place, Seen> = BTreeMap::new();
        for (number, transfer) in committed.iter().enumerate() {
            for (side, vote) in transfer.votes.iter().enumerate() {
                let Vote::Yes(read) = vote else { panic!("{} is committed", transfer.name) };
                for (key, (_, version)) in read {
                    let place = seen.entry((side, key.clone())).or_default();
                    let (readers, writer) = place.entry(*version).or_default();
                    if !transfer.adds[side].contains_key(&**key) {
                        readers.push(number);
                    } else if let Some(other) = writer.replace(number) {
                        panic!("{} and {} both follow", transfer.name, committed[other].name);
                    }
                }
            }
        }
        let mut before: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); committed.len()];
        for versions in seen.values() {
            let mut last = None;
            for (readers, writer) in versions.values() {
                for after in readers.iter().chain(writer) {
                    before[*after].extend(last);
                }
                if let Some(writer) = writer {
                    before[*writer].extend(readers);
                }
                last = writer.or(last);
            }
        }
        let mut order = Vec::new();
        let mut left: BTreeSet<usize> = (0..committed.len()).collect();
        while !left.is_empty() {
            let free = left.iter().copied().find(|number| before[*number].is_disjoint(&left));
            let free = free.expect("the committed transfers have no serial order");
            left.remove(&free);
            order.push(committed[free]);
        }
        order
    }

    /// Plays the committed transfers one after the other, and compares with what was read and with
    /// what is there.
    async fn judge(&self) {
        let mut numbers: BTreeMap<Place, (i64, i64)> = BTreeMap::new();
        for side in 0..2 {
            numbers.extend(KEYS.map(|key| ((side, key.to_owned()), (100, 0))));
        }
        for transfer in self.serial() {
            for (side, vote) in transfer.votes.iter().enumerate() {
                let Vote::Yes(read) = vote else { panic!("{} is committed", transfer.name) };
                for (key, found) in read {
                    let place = (side, key.clone());
                    assert_eq!(numbers[&place], *found, "{} reads {place:?}", transfer.name);
                }
                for (key, amount) in &transfer.adds[side] {
                    let (value, version) = numbers.get_mut(&(side, (*key).to_owned())).unwrap();
                    *value += amount;
                    *version += 1;
                }
            }
        }
        let mut sum = 0;
        for ((side, key), expected) in numbers {
            let found = self.stores[side].as_ref().unwrap().number(&key).await;
            assert_eq!(found, expected, "{key} of {side}");
            sum += found.0;
        }
        assert_eq!(sum, 600);
        for store in self.stores.iter().flatten() {
            assert_eq!(store.locks().await, 0);
            assert!(store.participant.file().in_doubt().await.unwrap().is_empty());
        }
    }
}

/// Runs some seeds; says how often a call has waited and how many transfers were committed.
async fn check(concurrency: Concurrency) -> (usize, usize) {
    let (mut waited, mut committed, mut restarts) = (0, 0, 0);
    for seed in 0..6 {
        let mut run = Run::new(concurrency, seed);
        run.play().await;
        run.judge().await;
        waited += run.waited;
        restarts += run.restarts;
        committed += run.committed().len();
    }
    assert!(restarts > 20, "{restarts}");
    (waited, committed)
}

#[tokio::test]
async fn locking_runs_are_serializable_and_never_stand_still() {
    let (waited, committed) = check(LOCKING).await;
    assert!(waited > 30 && committed > 100, "{waited} and {committed}: no use as a test");
}

#[tokio::test]
async fn queueing_runs_are_serializable_and_never_stand_still() {
    let (waited, committed) = check(QUEUEING).await;
    assert!(waited > 30 && committed > 100, "{waited} and {committed}: no use as a test");
}

#[tokio::test]
async fn optimistic_runs_are_serializable() {
    let (waited, committed) = check(OPTIMISTIC).await;
    assert!(waited == 0 && committed > 100, "{waited} and {committed}: no use as a test");
}
