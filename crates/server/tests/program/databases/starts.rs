//! Starts with databases that are down, that refuse the coordinator, or that allow little.

use std::sync::Arc;

use serde_json::{Value, json};
use unanimity_databases::{DatabaseOptions, Make};

use super::on_both;
use super::world::{BALANCE, QUICK, World, branch, change, own, shared, start_in_vain};

on_both! {
    a_database_that_refuses_the_coordinator_ends_the_start
    a_database_that_is_down_at_the_start_is_used_when_it_is_back
    only_statements_of_the_list_are_run
}

async fn a_database_that_refuses_the_coordinator_ends_the_start(make: Make) {
    let server = shared(make).await;
    let password = server.password();
    let wrong = server.url().replace(&password, "canary-of-a-password");
    let missing = server.url_of("there_is_no_such_database");
    for url in [wrong, missing] {
        let ended = start_in_vain(&url).await;
        assert!(ended.status > 0 && ended.stdout.is_empty(), "{ended:?}");
        assert!(ended.stderr.contains("database_refused"), "{ended:?}");
        assert!(ended.stderr.contains("database one (") && ended.stderr.contains("127.0.0.1"));
        assert!(!ended.stderr.contains("canary") && !ended.stderr.contains(&password), "{ended:?}");
    }
}

async fn a_database_that_is_down_at_the_start_is_used_when_it_is_back(make: Make) {
    let mut world = World::over(own(make, DatabaseOptions::default()).await, QUICK).await;
    world.coordinator.kill().await;
    let server = Arc::clone(&world.server);
    tokio::task::spawn_blocking(move || server.stop()).await.unwrap();
    world.coordinator.start_again().await;
    let mut request = world.transfer("down", "A", 10);
    request["prepare_timeout_ms"] = json!(300);
    request["wait"] = json!("outcome");
    let shown = world.begin(&request).await.json();
    assert_eq!(shown["reason"]["code"], "prepare_timeout", "{shown}");
    let view = world.coordinator.ask.get("/v1/databases/in-doubt").await.json();
    let error = view["databases"][0]["error"].as_str().unwrap_or_default();
    assert!(error.contains("cannot connect"), "{view}");
    let server = Arc::clone(&world.server);
    tokio::task::spawn_blocking(move || server.start_again()).await.unwrap().unwrap();
    let shown = world.coordinator.ask.ended("down").await;
    assert_eq!(shown["outcome"], "rollback", "{shown}");
    let shown = world.begin(&world.transfer("up", "A", 10)).await.json();
    assert_eq!(shown["outcome"], "commit", "{shown}");
    assert_eq!(world.balance(0, "A").await, BALANCE - 10);
}

async fn only_statements_of_the_list_are_run(make: Make) {
    let allowed = change(make, "A", 1);
    let settings = format!("statements = [{:?}]\n{QUICK}", allowed["sql"].as_str().unwrap());
    let world = World::over(shared(make).await, &settings).await;
    let begin = async |statement: Value| {
        world.begin(&json!({"branches": [branch("b", "db:one", vec![statement])]})).await
    };
    assert_eq!(begin(allowed.clone()).await.json()["outcome"], "commit");
    for sql in ["DELETE FROM account", "SELECT 1"] {
        let refused = begin(json!({"sql": sql})).await;
        let expected = ("statement_not_allowed".to_owned(), "branches[0].payload".to_owned());
        assert_eq!(refused.problem(), expected);
    }
}
