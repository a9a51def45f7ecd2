//! Processes that stand still for longer than every timeout (SIGSTOP), and go on as if nothing had
//! been (SIGCONT): a machine that was suspended, a debugger, a host that swaps. Whoever wakes up
//! must believe no clock and no answer that waited for it more than its records.

use std::time::Duration;

use super::ensemble::Ensemble;
use super::let_pass;
use super::styles::Style;
use crate::setup::until;

const STYLES: [Style; 4] = [Style::TwoPhase, Style::Mixed, Style::Interactive, Style::OnePhase];
/// Of the phase before the decision; the calls after it take 500 ms at most.
const TIMEOUT_MS: u64 = 400;

/// Stops one process while transactions of every sort are under way, and lets it go on when all of
/// their time has run out.
async fn stands_still(victim: usize) {
    let mut ensemble = Ensemble::start(&[]).await;
    for bank in &mut ensemble.nodes[1..] {
        // So slow that most of them are under way when it stops.
        bank.kill().await;
        bank.add_flags(&["--faults", "delay=0.7:250"]);
        bank.start().await;
    }
    let mut running = Vec::new();
    for number in 0..10 {
        for style in STYLES {
            let id = format!("{style:?}-{number}");
            let asking = ensemble.ask_briefly(style, &id, TIMEOUT_MS);
            running.push((style, id, asking));
        }
    }
    let client = ensemble.client();
    until("transactions under way", async || {
        let page = client.get_json::<serde_json::Value>("/v1/transactions?limit=100").await.ok()?;
        (page["transactions"].as_array()?.len() >= 20).then_some(())
    })
    .await;
    ensemble.nodes[victim].signal("STOP").await;
    let_pass(Duration::from_millis(2_500)).await;
    ensemble.nodes[victim].signal("CONT").await;
    for (style, id, asking) in running {
        let told = asking.await.unwrap();
        ensemble.ends(style, &id, told).await;
    }
    let verdict = ensemble.judge().await;
    println!("{}: {verdict:?}", ensemble.nodes[victim].name);
    assert!(verdict.rolled_back.values().sum::<usize>() > 0, "nothing ran out of time");
    // And it works on.
    for style in STYLES {
        ensemble.runs(style, &format!("{style:?}-afterwards")).await;
    }
    ensemble.judge().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_that_stood_still_beyond_every_timeout_contradicts_nobody() {
    stands_still(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_participant_that_stood_still_beyond_every_timeout_follows_the_decision() {
    stands_still(1).await;
}
