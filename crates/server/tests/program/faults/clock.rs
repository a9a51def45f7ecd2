//! A wall clock that is set forwards and backwards by hours under the running programs
//! (libfaketime; the monotonic clock goes on as it was), and between two of their runs.

use std::path::PathBuf;

use serde_json::{Value, json};
use unanimity_sdk::api::Outcome;

use super::ensemble::Ensemble;
use super::styles::Style;
use crate::ask::Ask;
use crate::setup::until;

const HOUR_MS: i64 = 3_600_000;

/// The library of the Debian package `faketime`, which `cargo xtask test` installs.
fn library() -> String {
    let folders = std::fs::read_dir("/usr/lib").unwrap().map(|entry| entry.unwrap().path());
    let found = folders.map(|folder| folder.join("faketime/libfaketimeMT.so.1"));
    let found = found.into_iter().find(|library| library.exists());
    found.expect("faketime is installed (cargo xtask test does it)").display().to_string()
}

/// The three processes, with a wall clock that a test can set.
struct Faked {
    ensemble: Ensemble,
    steps: PathBuf,
}

impl Faked {
    async fn start(flags: &[&str]) -> Self {
        let mut ensemble = Ensemble::start(flags).await;
        let steps = ensemble.folder.path().join("clock");
        let faked = [
            ("LD_PRELOAD", library()),
            ("FAKETIME_TIMESTAMP_FILE", steps.display().to_string()),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ];
        set(&steps, 0);
        for node in &mut ensemble.nodes {
            node.kill().await;
            faked.iter().for_each(|(name, value)| node.set(name, value));
            node.start().await;
        }
        Self { ensemble, steps }
    }

    async fn ask(&self) -> Ask {
        Ask::coordinator(&self.ensemble.nodes[0].url()).await
    }

    async fn restart_with(&mut self, hours: i64) {
        self.ensemble.nodes[0].kill().await;
        set(&self.steps, hours);
        self.ensemble.nodes[0].start().await;
    }

    /// An interactive transaction with both its branches, whose initiator may take so long.
    async fn open(&self, id: &str, open_timeout_ms: u64) -> Value {
        let ask = self.ask().await;
        let fields = json!({"open_timeout_ms": open_timeout_ms, "prepare_timeout_ms": 30_000});
        let opened = ask.open(id, &fields).await;
        let request = Style::TwoPhase.request(id, &self.ensemble.participants());
        for branch in request.branches {
            let branch = serde_json::to_value(branch).unwrap();
            let answer = ask.about(id, "branches", &branch).await;
            assert!(answer.status < 300, "{}", answer.text());
        }
        opened
    }
}

/// Replaced as a whole: the library reads it whenever somebody asks for the time.
fn set(steps: &PathBuf, hours: i64) {
    let new = steps.with_extension("new");
    std::fs::write(&new, format!("{:+}\n", hours * HOUR_MS / 1_000)).unwrap();
    std::fs::rename(new, steps).unwrap();
}

fn begun_at(shown: &Value) -> i64 {
    shown["begun_at_ms"].as_i64().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wall_clock_that_jumps_decides_nothing_while_the_process_lives() {
    let mut faked = Faked::start(&[]).await;
    let first = begun_at(&faked.open("first", 60_000).await);
    for hours in [2, -3, 5] {
        set(&faked.steps, hours);
        let id = format!("after {hours}").replace(' ', "");
        let shown = faked.open(&id, 60_000).await;
        let apart = begun_at(&shown) - first;
        assert!((0..HOUR_MS).contains(&apart), "its time jumped by {apart} ms");
        let ask = faked.ask().await;
        assert_eq!(ask.shown("first").await["stage"], "open", "the jump ended it");
        // A timeout is as long as ever, too.
        let ran_out = format!("timed{hours}");
        faked.open(&ran_out, 200).await;
        let ended = ask.ended(&ran_out).await;
        assert_eq!(ended["reason"]["code"], "abandoned", "{ended}");
        faked.ensemble.ends(Style::Interactive, &ran_out, Outcome::Rollback).await;
        ask.about(&id, "commit", &json!({})).await;
        assert_eq!(ask.ended(&id).await["outcome"], "commit");
        faked.ensemble.ends(Style::Interactive, &id, Outcome::Commit).await;
    }
    faked.ask().await.about("first", "commit", &json!({})).await;
    faked.ensemble.ends(Style::Interactive, "first", Outcome::Commit).await;
    faked.ensemble.judge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restart_with_another_time_every_deadline_still_makes_sense() {
    let mut faked = Faked::start(&[]).await;
    let first = begun_at(&faked.open("forwards", 600_000).await);
    // Two hours on, its ten minutes are over: nobody can know that they were not.
    faked.restart_with(2).await;
    let ask = faked.ask().await;
    let ended = ask.ended("forwards").await;
    assert_eq!(
        (&ended["outcome"], &ended["reason"]["code"]),
        (&json!("rollback"), &json!("abandoned"))
    );
    faked.ensemble.ends(Style::Interactive, "forwards", Outcome::Rollback).await;
    // The clock is faked indeed.
    let second = begun_at(&faked.open("backwards", 3_000).await);
    assert!(second - first > HOUR_MS, "{first} {second}");
    // Set back by three hours, it may be open for its three seconds at most, and not for hours.
    faked.restart_with(-1).await;
    let ask = faked.ask().await;
    let ended = until("its time to run out", async || {
        Some(ask.shown("backwards").await).filter(|shown| shown["completed"] == true)
    })
    .await;
    assert_eq!(ended["reason"]["code"], "abandoned", "{ended}");
    faked.ensemble.ends(Style::Interactive, "backwards", Outcome::Rollback).await;
    for style in Style::ALL {
        faked.ensemble.runs(style, &format!("{style:?}-afterwards")).await;
    }
    faked.ensemble.judge().await;
}
