//! Writes and syncs that fail, that never happen, or that take long, at every one of one
//! transaction, by strace: at the coordinator's journal and history, and at a participant's
//! database. A failed sync is never tried over; a restart repairs, and trusts no page cache.

use std::path::PathBuf;

use super::ensemble::Ensemble;
use super::strace::{Strace, trace_with};
use super::styles::Style;
use crate::ask::Ended;
use crate::setup::until;

/// Every way by which the journal or SQLite may bring something to the disk.
const WRITES: &str = "pwrite64,write,ftruncate,fsync,fdatasync";

struct Failing {
    ensemble: Ensemble,
    /// The process and its thread.
    victim: usize,
    thread: &'static str,
    failed: usize,
}

impl Failing {
    async fn new(victim: usize, thread: &'static str) -> Self {
        Self { ensemble: Ensemble::start(&[]).await, victim, thread, failed: 0 }
    }

    fn trace(&self) -> PathBuf {
        self.ensemble.folder.path().join("trace")
    }

    async fn attach(&self, fault: &str) -> Strace {
        let victim = &self.ensemble.nodes[self.victim];
        let trace = format!("trace={WRITES}");
        let inject = format!("inject={fault}");
        let flags = ["-y", "-s", "0", "-e", &trace, "-e", &inject];
        Strace::attach(victim.thread(self.thread).await, &flags, &self.trace()).await
    }

    /// One transaction while the n-th call fails like this. If it came to that call, the program
    /// must have ended; it is started again. Whether it came.
    async fn stops(&mut self, call: &str, error: &str, nth: usize, says: &[&str]) -> bool {
        let id = format!("{}-{call}-{error}-{nth}", self.thread);
        let strace = self.attach(&format!("{call}:error={error}:when={nth}")).await;
        let asking = self.ensemble.ask(Style::TwoPhase, &id);
        let ended = self.until_stopped_or_archived(&id).await;
        strace.detach().await;
        let stopped = ended.is_some();
        if let Some(ended) = ended {
            check_stopped(&ended, says);
            check_nothing_written_after(&std::fs::read_to_string(self.trace()).unwrap());
            self.ensemble.nodes[self.victim].start().await;
            self.failed += 1;
        }
        let told = asking.await.unwrap();
        self.ensemble.ends(Style::TwoPhase, &id, told).await;
        stopped
    }

    async fn until_stopped_or_archived(&mut self, id: &str) -> Option<Ended> {
        let history = self.ensemble.history();
        let victim = &mut self.ensemble.nodes[self.victim];
        until("an end", async || {
            let ended = victim.has_ended().await;
            (ended.is_some() || history.holds(id)).then_some(ended)
        })
        .await
    }
}

fn check_stopped(ended: &Ended, says: &[&str]) {
    assert_eq!(ended.status, 1, "{ended:?}");
    let last = ended.stderr.lines().last().unwrap_or_default();
    assert!(last.contains("error:") && last.contains("starting it recovers it"), "{ended:?}");
    assert!(says.iter().all(|part| last.contains(part)), "not all of {says:?} in {last}");
    assert!(!ended.stderr.contains("panicked"), "{ended:?}");
}

/// After the call that failed the thread must have written and synced nothing more.
fn check_nothing_written_after(trace: &str) {
    let after: Vec<&str> = trace
        .lines()
        .skip_while(|line| !line.contains("(INJECTED)"))
        .skip(1)
        // A wake-up of another thread is written to an eventfd.
        .filter(|line| line.contains(".log>") || line.contains(".db") && !line.contains("-shm"))
        .collect();
    assert!(after.is_empty(), "over a failed call: {after:#?} in\n{trace}");
    assert!(trace.contains("(INJECTED)"), "{trace}");
}

async fn every_call_fails(thread: &'static str, errors: &[(&str, &str, &[&str])]) {
    let mut failing = Failing::new(0, thread).await;
    for (call, error, says) in errors {
        let before = failing.failed;
        let mut nth = 1;
        while failing.stops(call, error, nth, says).await {
            nth += 1;
        }
        assert!(failing.failed > before, "{call} was never called");
        println!("{thread}: {error} at {} calls of {call}", failing.failed - before);
    }
    failing.ensemble.judge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_write_or_sync_of_the_journal_stops_the_coordinator_and_a_restart_repairs() {
    let io: &[&str] = &["journal_io"];
    let full: &[&str] = &["journal_disk_full"];
    let errors = [("pwrite64", "EIO", io), ("pwrite64", "ENOSPC", full), ("fdatasync", "EIO", io)];
    every_call_fails("journal", &errors).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_write_or_sync_of_the_history_stops_the_coordinator_and_a_restart_repairs() {
    let says: &[&str] = &["history"];
    let errors =
        [("pwrite64", "EIO", says), ("pwrite64", "ENOSPC", says), ("fdatasync", "EIO", says)];
    every_call_fails("history", &errors).await;
}

/// What a start finds in the page cache may never have reached the disk: it must be written anew
/// (into the database, or a log from its beginning), and synced, before the program does what
/// `leaves` says.
fn check_hardened(trace: &str, file: &str, leaves: &str) {
    let lines: Vec<&str> = trace.lines().collect();
    let on_file = format!("/{file}>");
    let written = |line: &&str| {
        let (call, rest) = line.split_once('(').unwrap_or_default();
        let from_its_beginning = !file.ends_with("-wal") || rest.contains(", 0) = ");
        call.ends_with("pwrite64") && rest.contains(&on_file) && from_its_beginning
    };
    let synced =
        |line: &&str| line.contains("sync(") && line.contains(&on_file) && line.ends_with(" = 0");
    let left = lines.iter().position(|line| line.contains(leaves));
    let left = left.unwrap_or_else(|| panic!("no {leaves} in\n{trace}"));
    let hardened = lines[..left].iter().skip_while(|line| !written(line)).any(synced);
    assert!(hardened, "{file} is not made durable before {leaves}:\n{trace}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_failed_sync_all_that_is_recovered_is_synced_before_anything_leaves() {
    let files = [("journal", "journal-0.log"), ("history", "history.db-wal")];
    for (thread, file) in files {
        let mut failing = Failing::new(0, thread).await;
        failing.ensemble.runs(Style::TwoPhase, "good").await;
        // Killed in the sync, so that nothing tidies up: what was written is in the page cache.
        let strace = failing.attach("fdatasync:signal=SIGKILL:when=1").await;
        let asking = failing.ensemble.ask(Style::TwoPhase, "bad");
        let ended = failing.until_stopped_or_archived("bad").await;
        assert_eq!(ended.expect("it is killed").status, -1);
        strace.detach().await;
        let trace = failing.ensemble.folder.path().join("start");
        let to = trace.to_str().unwrap();
        let calls = format!("trace={WRITES},connect,accept4");
        let strace = ["strace", "-D", "-f", "-y", "-s", "0", "-o", to, "-e", &calls];
        failing.ensemble.nodes[0].start_behind(&strace).await.unwrap();
        let told = asking.await.unwrap();
        failing.ensemble.ends(Style::TwoPhase, "bad", told).await;
        let trace = trace_with(&trace, "accept4(").await;
        check_hardened(&trace, file, "accept4(");
        if thread == "journal" {
            let participant = format!("htons({})", failing.ensemble.nodes[1].port);
            check_hardened(&trace, file, &participant);
        }
        failing.ensemble.judge().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_participant_whose_sync_failed_writes_nothing_more_until_its_restart() {
    let mut failing = Failing::new(1, "unanimity-write").await;
    for nth in 1.. {
        let id = format!("bank-{nth}");
        let strace = failing.attach(&format!("fdatasync:error=EIO:when={nth}")).await;
        let asking = failing.ensemble.ask(Style::TwoPhase, &id);
        let history = failing.ensemble.history();
        let path = failing.trace();
        // It fails for good only once the call is there again: the coordinator asks again.
        let came = until("a failure or an end", async || {
            let trace = std::fs::read_to_string(&path).unwrap_or_default();
            (trace.contains("(INJECTED)") || history.holds(&id))
                .then(|| trace.contains("(INJECTED)"))
        })
        .await;
        if came {
            failing.ensemble.until_stopped_participant_refuses(1).await;
            check_nothing_written_after(&std::fs::read_to_string(&path).unwrap());
            failing.ensemble.nodes[1].kill().await;
        }
        strace.detach().await;
        if came {
            let trace = failing.ensemble.folder.path().join("start");
            let calls = format!("trace={WRITES},accept4");
            let to = trace.to_str().unwrap();
            let strace = ["strace", "-D", "-f", "-y", "-s", "0", "-o", to, "-e", &calls];
            let bank = &mut failing.ensemble.nodes[1];
            bank.start_behind(&strace).await.unwrap();
            check_hardened(&trace_with(&trace, "accept4(").await, "bank-a.db", "accept4(");
            bank.kill().await;
            bank.start().await;
        }
        let told = asking.await.unwrap();
        failing.ensemble.ends(Style::TwoPhase, &id, told).await;
        if !came {
            println!("a participant's sync failed at {} calls", nth - 1);
            assert!(nth > 2, "its syncs were never reached");
            break;
        }
    }
    failing.ensemble.judge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_participant_whose_disk_is_full_for_a_moment_goes_on_by_itself() {
    let mut failing = Failing::new(1, "unanimity-write").await;
    for nth in 1..=4 {
        let id = format!("bank-{nth}");
        let strace = failing.attach(&format!("pwrite64:error=ENOSPC:when={nth}")).await;
        failing.ensemble.runs(Style::TwoPhase, &id).await;
        strace.detach().await;
        let trace = std::fs::read_to_string(failing.trace()).unwrap();
        assert!(trace.contains("ENOSPC"), "{trace}");
    }
    failing.ensemble.judge().await;
}

/// A lost write: the call is skipped, and says that it was done. One copy cannot survive that, but
/// must notice: a start ends in the very same state, or with a clear refusal.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_journal_that_lost_a_write_is_refused_and_never_taken_for_another_state() {
    let mut refused = 0;
    for nth in 1.. {
        let mut failing = Failing::new(0, "journal").await;
        let strace = failing.attach(&format!("pwrite64:retval=4096:when={nth}")).await;
        let asking = failing.ensemble.ask(Style::TwoPhase, "lost");
        let ended = failing.until_stopped_or_archived("lost").await;
        strace.detach().await;
        let trace = std::fs::read_to_string(failing.trace()).unwrap();
        let lost = trace.contains("(INJECTED)");
        if ended.is_none() {
            for more in ["more", "and-more"] {
                failing.ensemble.runs(Style::TwoPhase, more).await;
            }
            failing.ensemble.nodes[0].kill().await;
        }
        let started = failing.ensemble.nodes[0].start_behind(&[]).await;
        match started {
            Err(refusal) => {
                assert!(lost && refusal.status == 1, "{nth}: {refusal:?}");
                let code = ["journal_corrupt", "journal_gap"];
                assert!(code.iter().any(|code| refusal.stderr.contains(code)), "{refusal:?}");
                refused += 1;
                asking.abort();
            }
            Ok(()) => {
                let told = asking.await.unwrap();
                failing.ensemble.ends(Style::TwoPhase, "lost", told).await;
                failing.ensemble.judge().await;
            }
        }
        if !lost {
            println!("of {} lost writes {refused} were refused", nth - 1);
            break;
        }
    }
    assert!(refused > 0, "no lost write was noticed");
}

/// What the calls of one transaction wait for, seen from outside: with slow syncs nothing can leave
/// early by luck.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_slow_syncs_no_call_and_no_answer_leaves_before_its_record_is_durable() {
    let mut ensemble = Ensemble::start(&[]).await;
    let trace = ensemble.folder.path().join("trace");
    let slow = "inject=fsync,fdatasync:delay_enter=150000";
    let calls = "trace=fsync,fdatasync,write,writev,sendto";
    let flags = ["-f", "-y", "-s", "60", "-e", calls, "-e", slow];
    let strace = Strace::attach(ensemble.nodes[0].id(), &flags, &trace).await;
    for number in 0..3 {
        let id = format!("slow-{number}");
        ensemble.runs(Style::TwoPhase, &id).await;
    }
    strace.detach().await;
    let text = std::fs::read_to_string(&trace).unwrap();
    let journal = ensemble.nodes[0].thread("journal").await.to_string();
    let (mut synced, mut seen) = (0, Vec::new());
    for line in text.lines() {
        let by_journal = line.split_whitespace().next() == Some(&journal);
        synced += usize::from(by_journal && line.contains("sync") && line.contains("= 0"));
        let what = ["POST /transactions/prepare", "POST /transactions/commit", "HTTP/1.1 200"];
        let sent = what.iter().find(|what| line.contains(**what));
        seen.extend(sent.map(|what| (*what, synced)));
    }
    println!("{seen:?}");
    let first = |what: &str| seen.iter().find(|(seen, _)| *seen == what).unwrap().1;
    assert!(first("POST /transactions/prepare") >= 1, "{text}");
    assert!(first("POST /transactions/commit") >= 2, "{text}");
    ensemble.judge().await;
}
