//! The bench as a user runs it against a deployment of their own, and that it fails rather than
//! report figures of transactions that did not do what they should.

use serde_json::Value;

use crate::actor::Actor;
use crate::ask::{Coordinator, run};
use crate::setup::Folder;

#[tokio::test]
async fn a_users_own_deployment_is_measured_and_the_report_kept() {
    let (actor, coordinator) = (Actor::start().await, Coordinator::start(&[]).await);
    let folder = Folder::new();
    let (kept, page) = (folder.path().join("kept.json"), folder.path().join("page.html"));
    let (kept, page) = (kept.display().to_string(), page.display().to_string());
    let [first, second] = actor.two();
    let mut words =
        vec!["bench", "http", "--seconds", "1", "--concurrency", "4", "--payload", "[1]"];
    words.extend(["--coordinator", &coordinator.url, "--participant", &first]);
    words.extend(["--participant", &second, "--save", &kept, "--html", &page]);
    let measured = run(&words).await;
    assert_eq!(measured.status, 0, "{measured:?}");
    let report: Value = serde_json::from_str(&std::fs::read_to_string(&kept).unwrap()).unwrap();
    let row = &report["rows"][0];
    assert_eq!((&row["scenario"], &row["case"]), (&"http".into(), &"2 branches".into()));
    assert!(row["per_second"].as_f64().is_some_and(|rate| rate > 0.0), "{row}");
    let page = std::fs::read_to_string(&page).unwrap();
    assert!(page.starts_with("<!doctype html>") && page.contains("2 branches"), "{page}");
    let again = run(&words).await;
    assert!(again.stdout.contains("rows within"), "{again:?}");
}

#[tokio::test]
async fn a_participant_that_says_no_fails_the_bench() {
    let (actor, coordinator) = (Actor::start().await, Coordinator::start(&[]).await);
    actor.vote(409);
    let [first, second] = actor.two();
    let mut words = vec!["bench", "http", "--short", "--concurrency", "2"];
    words.extend(["--coordinator", &coordinator.url, "--participant", &first]);
    words.extend(["--participant", &second]);
    let refused = run(&words).await;
    assert_eq!(refused.status, 1, "{refused:?}");
    assert!(refused.stderr.contains("had another outcome or none"), "{refused:?}");
}
