//! SIGKILL at every system call of one transaction, at one thread of one process after the other,
//! by strace; in the long set for every style, and with a second kill while it recovers.
//!
//! A kill between two instructions leaves what a kill at the next system call leaves: nothing else
//! of a process outlives it. So the list of these moments is complete for a thread. strace counts
//! for each thread and for each sort of call by itself ("the third pwrite64 of the journal's
//! thread"), which is why each thread and each sort has its turn. Sorts of calls are not listed
//! here: they are taken from the traces of the transactions themselves.

use std::collections::BTreeSet;

use tokio::task::JoinHandle;
use unanimity_sdk::api::Outcome;

use super::ensemble::Ensemble;
use super::long;
use super::strace::Strace;
use super::styles::Style;
use crate::setup::until;

/// So many transactions in a row must have ended without coming to the n-th call of a sort, until
/// it counts as not there: how often a thread waits and is woken is not the same each time.
const MISSES_MAX: usize = 2;

#[derive(Debug, Default)]
struct Count {
    kills: usize,
    again: usize,
    committed: usize,
    transactions: usize,
}

/// What came of one transaction.
struct Came {
    killed: bool,
    /// The sorts of calls that the thread made.
    sorts: BTreeSet<String>,
}

struct Series {
    ensemble: Ensemble,
    style: Style,
    /// Which of the processes is killed.
    victim: usize,
    /// Whether it is killed again while it recovers.
    twice: bool,
    count: Count,
}

impl Series {
    /// Kills the victim at each call of each thread that it has when it is idle.
    async fn run(mut self) -> Count {
        let threads = self.ensemble.nodes[self.victim].threads();
        for (place, (_, name)) in threads.iter().enumerate() {
            let before = self.count.kills;
            let mut done = BTreeSet::new();
            let mut sorts = self.point(place, "all", usize::MAX).await.sorts;
            while let Some(sort) = sorts.difference(&done).next().cloned() {
                // Cold, so that the calls that make connections come too.
                self.restart().await;
                let (mut misses, mut nth) = (0, 0);
                while misses < MISSES_MAX {
                    nth += 1;
                    let came = self.point(place, &sort, nth).await;
                    misses = if came.killed { 0 } else { misses + 1 };
                    sorts.extend(came.sorts);
                }
                done.insert(sort);
            }
            let kills = self.count.kills - before;
            let victim = self.ensemble.nodes[self.victim].name;
            println!("{:?}, {victim}, {name}: {kills} kills at {done:?}", self.style);
        }
        let verdict = self.ensemble.judge().await;
        self.count.committed = verdict.committed;
        self.count.transactions = verdict.transactions;
        self.count
    }

    /// One transaction, with a kill when the thread comes to its n-th call of a sort.
    async fn point(&mut self, place: usize, sort: &str, nth: usize) -> Came {
        let victim = &self.ensemble.nodes[self.victim];
        let id = format!("{}-{place}-{sort}-{nth}", victim.name);
        let trace = self.ensemble.folder.path().join("trace");
        // strace counts in 16 bits; what is not to come is left out.
        let inject = format!("inject={sort}:signal=SIGKILL:when={nth}");
        let kill = ["-e", "trace=all", "-e", &inject];
        let flags = if nth == usize::MAX { &kill[..2] } else { &kill };
        let strace = Strace::attach(victim.threads()[place].0, flags, &trace).await;
        let asking = self.ensemble.ask(self.style, &id);
        self.until_killed_or_ended(&id).await;
        strace.detach().await;
        let killed = !self.ensemble.nodes[self.victim].answers().await;
        if killed {
            self.count.kills += 1;
            self.recover().await;
        }
        if self.twice && killed {
            self.until_told(&asking).await;
            // Nothing must trace it any more when the next point begins.
            self.restart().await;
        }
        let told = asking.await.unwrap();
        self.ensemble.ends(self.style, &id, told).await;
        Came { killed, sorts: sorts(&std::fs::read_to_string(trace).unwrap()) }
    }

    async fn restart(&mut self) {
        let victim = &mut self.ensemble.nodes[self.victim];
        victim.kill().await;
        victim.start().await;
    }

    async fn until_killed_or_ended(&mut self, id: &str) {
        let history = self.ensemble.history();
        let victim = &mut self.ensemble.nodes[self.victim];
        until("a kill or an end", async || {
            (history.holds(id) || !victim.runs().await).then_some(())
        })
        .await
    }

    /// Starts the victim again; if it is to be killed twice, the second kill falls at one of the
    /// calls by which it changes something outside of itself.
    async fn recover(&mut self) {
        let victim = &mut self.ensemble.nodes[self.victim];
        if !self.twice {
            return victim.start().await;
        }
        let calls = "pwrite64,fdatasync,fsync,ftruncate,unlink,sendto,write,writev,connect,accept4";
        // The calls of a recovery are few, and those of a whole start are some 56.
        let inject = format!("inject={calls}:signal=SIGKILL:when={}", 1 + self.count.kills % 56);
        let trace = format!("trace={calls}");
        let strace = ["strace", "-D", "-f", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject];
        if let Err(ended) = victim.start_behind(&strace).await {
            assert_eq!(ended.status, -1, "{ended:?}");
            self.count.again += 1;
            victim.start().await;
        }
    }

    /// The second kill may also fall later, at a call that the transaction makes.
    async fn until_told(&mut self, asking: &JoinHandle<Outcome>) {
        let (victim, again) = (&mut self.ensemble.nodes[self.victim], &mut self.count.again);
        until("an outcome", async || {
            if !victim.runs().await {
                *again += 1;
                victim.start().await;
            }
            asking.is_finished().then_some(())
        })
        .await;
    }
}

/// The calls in a trace, without those that end the thread or come from the kernel itself.
fn sorts(trace: &str) -> BTreeSet<String> {
    let name = |line: &str| line.split_once('(').map(|(name, _)| name.to_owned());
    let plain = |name: &String| {
        name.bytes().all(|byte| byte.is_ascii_lowercase() || matches!(byte, b'_' | b'0'..=b'9'))
    };
    trace.lines().filter_map(name).filter(plain).filter(|name| name != "restart_syscall").collect()
}

async fn kill_at_every_call(style: Style, victim: usize, twice: bool) {
    let ensemble = Ensemble::start(&[]).await;
    let series = Series { ensemble, style, victim, twice, count: Count::default() };
    let count = series.run().await;
    println!("{style:?}, process {victim}: {count:?}");
    assert!(count.kills > 20, "too few calls to mean anything: {count:?}");
    assert!(count.committed > 0, "{count:?}");
    // A coordinator that comes back rolls back what was preparing. Executes it asks for again, and
    // a participant that comes back is asked again too.
    let some_roll_back = victim == 0 && style == Style::TwoPhase;
    assert!(!some_roll_back || count.committed < count.transactions, "{count:?}");
    assert!(!twice || count.again > 0, "{count:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_killed_at_any_system_call_leaves_all_in_agreement() {
    kill_at_every_call(Style::TwoPhase, 0, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_participant_killed_at_any_system_call_leaves_all_in_agreement() {
    kill_at_every_call(Style::TwoPhase, 1, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_at_any_system_call_of_any_style_and_again_in_recovery_leave_all_in_agreement() {
    for style in Style::ALL.into_iter().filter(|_| long()) {
        for victim in [0, 1] {
            kill_at_every_call(style, victim, true).await;
        }
    }
}
