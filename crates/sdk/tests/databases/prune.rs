//! What a guard forgets, in every make of database: only what is settled, old, and over in the
//! coordinator's words.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use unanimity_databases::Make;
use unanimity_sdk::axum::extract::Path;
use unanimity_sdk::axum::http::StatusCode;
use unanimity_sdk::axum::response::IntoResponse;
use unanimity_sdk::axum::routing::get;
use unanimity_sdk::axum::{self, Json, Router};
use unanimity_sdk::prune::{self, Prunable, PruneOptions};
use unanimity_sdk::sql::SqlOptions;
use unanimity_sdk::{Client, Participant, SqliteParticipant};

use crate::place::Place;
use crate::service::{Diary, Opened, xa};
use crate::support::{self, Folder, play};

/// A coordinator that knows transactions by their names: `ended-...`, `live-...`; no others.
async fn coordinator() -> String {
    async fn state(Path(id): Path<String>) -> axum::response::Response {
        let stage = match id.split('-').next() {
            Some("ended") => "ended",
            Some("live") => "committing",
            _ => {
                let problem =
                    serde_json::json!({ "code": "transaction_unknown", "detail": "none" });
                return (StatusCode::NOT_FOUND, Json(problem)).into_response();
            }
        };
        Json(serde_json::json!({
            "id": id, "stage": stage, "outcome": "commit", "completed": stage == "ended",
            "reason": null, "overdue": false, "begun_at_ms": 1, "decided_at_ms": 2,
            "ended_at_ms": null, "branches": [],
        }))
        .into_response()
    }
    let app = Router::new().route("/v1/transactions/{id}", get(state));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    url
}

/// Runs whole rounds, and gives the names that are left.
async fn round(participant: &Arc<dyn Prunable>, url: &str, guard_retention_ms: u64) -> Vec<String> {
    let client = Client::new(url, None).unwrap();
    let options = PruneOptions { guard_retention_ms, interval_ms: 1, rows_max: 2 };
    let pruner = prune::spawn(Arc::clone(participant), client, options);
    let mut progress = pruner.progress();
    let rounds = progress.wait_for(|progress| progress.rounds >= 2);
    tokio::time::timeout(Duration::from_secs(60), rounds).await.unwrap().unwrap();
    drop(pruner);
    let (mut names, mut after) = (Vec::new(), None);
    loop {
        let page = participant.settled_before(u64::MAX / 4, after, 2).await.unwrap();
        let Some(last) = page.last() else { return names };
        after = Some((last.transaction.to_string(), last.branch.to_string()));
        names.extend(page.iter().map(|row| row.transaction.to_string()));
    }
}

async fn check(participant: &dyn Participant, guard: Arc<dyn Prunable>, told: &str) {
    for (transaction, script) in [
        ("ended-a", "prepare commit"),
        ("ended-b", "rollback"),
        ("ended-c", "prepare:no"),
        ("ended-prepared", "prepare"),
        ("live-a", "prepare commit"),
        ("live-b", "rollback"),
        ("unheard-of", "rollback"),
    ] {
        play(participant, transaction, script).await;
    }
    let url = coordinator().await;
    let all = ["ended-a", "ended-b", "ended-c", "live-a", "live-b", "unheard-of"];
    assert_eq!(round(&guard, &url, 3_600_000).await, all, "{told}: nothing is old");
    // Nothing is forgotten on nobody's word.
    assert_eq!(round(&guard, "http://127.0.0.1:1", 0).await, all, "{told}");
    assert_eq!(round(&guard, &url, 0).await, ["live-a", "live-b"], "{told}");
    // What is prepared is still known, however old.
    assert_eq!(play(participant, "ended-prepared", "commit").await, "ack", "{told}");
    assert_eq!(round(&guard, &url, 0).await, ["live-a", "live-b"], "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_settled_and_old_and_over_is_forgotten() {
    let folder = Folder::new();
    let sqlite: Arc<SqliteParticipant> = Arc::new(support::open(&folder.file()));
    check(&*sqlite, Arc::clone(&sqlite) as _, "SQLite").await;
    for make in Make::ALL {
        let place = Place::new(make).await;
        match Opened::new(&place).await {
            Opened::Postgres(opened) => check(&*opened, Arc::clone(&opened) as _, "guard").await,
            Opened::MariaDb(opened) => check(&*opened, Arc::clone(&opened) as _, "guard").await,
        }
        let place = Place::new(make).await;
        let options = SqlOptions { lock_timeout_ms: 500, ..SqlOptions::default() };
        let (participant, guard) = xa(&place, Diary::default(), options).await.unwrap();
        check(&*participant, guard, "xa").await;
    }
}

/// A row that changes between the look and the removal stays.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_has_changed_is_not_removed() {
    for make in Make::ALL {
        let place = Place::new(make).await;
        let opened = Opened::new(&place).await;
        let (participant, guard): (_, Arc<dyn Prunable>) = match &opened {
            Opened::Postgres(opened) => (opened.clone() as Arc<dyn Participant>, opened.clone()),
            Opened::MariaDb(opened) => (opened.clone() as Arc<dyn Participant>, opened.clone()),
        };
        play(&*participant, "t", "execute:no").await;
        let seen = guard.settled_before(u64::MAX / 4, None, 10).await.unwrap();
        assert_eq!(seen.len(), 1);
        play(&*participant, "t", "execute").await;
        assert_eq!(guard.forget(seen).await.unwrap(), 0, "{make:?}");
        assert_eq!(opened.entries(10).await.len(), 1, "{make:?}");
    }
}
