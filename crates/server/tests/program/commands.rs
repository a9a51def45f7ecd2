//! The commands, as people and scripts use them: what they print, in words and in JSON, and with
//! which status they end.

use std::process::Stdio;

use serde_json::{Value, json};
use tokio::process::Command;

use crate::actor::{Actor, Hold};
use crate::ask::{Coordinator, Ended, request, run, run_with, soon, with};
use crate::setup::{program, until};

fn json_of(ended: &Ended) -> Value {
    serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"))
}

/// Plain text without colours, and nothing on the other stream.
fn plain(ended: &Ended) -> &str {
    assert!(!ended.stdout.contains('\u{1b}') && !ended.stderr.contains('\u{1b}'), "{ended:?}");
    &ended.stdout
}

#[tokio::test]
async fn run_ends_with_the_outcome() {
    let (actor, coordinator) = (Actor::start().await, Coordinator::start(&[]).await);
    let url = ["--url", &coordinator.url];
    let file = |name: &str, wait: &str| {
        let asked = with(request(name, &actor.two()), &[("wait", json!(wait))]);
        coordinator.file(name, &asked.to_string())
    };
    let committed = run(&["run", &file("yes", "completed"), url[0], url[1]]).await;
    assert_eq!(committed.status, 0, "{committed:?}");
    for part in ["transaction yes", "committed", "--> prepare", "<-- yes", "decided: commit"] {
        assert!(plain(&committed).contains(part), "no {part:?} in {committed:?}");
    }
    let repeated = run(&["run", &file("yes", "completed"), "--json", url[0], url[1]]).await;
    assert_eq!((repeated.status, &json_of(&repeated)["outcome"]), (0, &json!("commit")));
    actor.vote(409);
    let refused = run(&["run", &file("no", "completed"), url[0], url[1]]).await;
    assert_eq!(refused.status, 1, "{refused:?}");
    let text = plain(&refused);
    assert!(text.contains("rolled back (refused by") && text.contains("not today"), "{text}");
    let refused = run(&["run", &file("no-json", "outcome"), "--json", url[0], url[1]]).await;
    assert_eq!((refused.status, &json_of(&refused)["outcome"]), (1, &json!("rollback")));
    actor.hold(Hold::Everybody);
    let accepted = run(&["run", &file("later", "accepted"), url[0], url[1]]).await;
    assert_eq!(accepted.status, 3, "{accepted:?}");
    assert!(plain(&accepted).contains("undecided"));
    actor.hold(Hold::Nobody);
}

#[tokio::test]
async fn run_of_a_bad_file_names_the_place_and_begins_nothing() {
    let coordinator = Coordinator::start(&[]).await;
    for (name, content, parts) in [
        ("syntax.json", "{\n  \"branches\": [,]\n}", ["malformed_json", "line 2 column 16"]),
        ("type.json", r#"{"branches": 5}"#, ["branches", "invalid type: integer"]),
        ("unknown.json", r#"{"branches": [{"nom": 1}]}"#, ["branches[0].nom", "unknown field"]),
        (
            "open.json",
            r#"{"interactive": true, "branches": []}"#,
            ["interactive", "leave `interactive` out"],
        ),
        // This is what the coordinator finds.
        ("none.json", r#"{"branches": []}"#, ["no_branches", "at least one branch"]),
    ] {
        let file = coordinator.file(name, content);
        let ended = run(&["run", &file, "--url", &coordinator.url]).await;
        // 1 would say that it was rolled back.
        assert_eq!((ended.status, &*ended.stdout), (2, ""), "{ended:?}");
        plain(&ended);
        for part in parts {
            assert!(ended.stderr.contains(part), "{name}: no {part:?} in {ended:?}");
        }
        let whole = name == "none.json" || ended.stderr.contains(&file);
        assert!(whole, "{ended:?}");
    }
    let absent = run(&["run", "/nowhere/t.json", "--url", &coordinator.url]).await;
    assert_eq!(absent.status, 2, "{absent:?}");
    assert!(absent.stderr.contains("cannot read /nowhere/t.json"), "{absent:?}");
    assert_eq!(coordinator.ask.list("").await.0, Vec::<String>::new());
}

#[tokio::test]
async fn a_coordinator_that_does_not_answer_leaves_the_outcome_unknown() {
    let actor = Actor::start().await;
    let mut coordinator = Coordinator::start(&[]).await;
    let mut asked = request("t", &actor.two());
    asked.as_object_mut().unwrap().remove("id");
    let file = coordinator.file("t.json", &asked.to_string());
    coordinator.kill().await;
    let ended = run(&["run", &file, "--url", &coordinator.url]).await;
    assert_eq!(ended.status, 3, "{ended:?}");
    assert!(ended.stderr.contains("unanimity show "), "it can be asked for: {ended:?}");
    assert!(ended.stderr.contains("unanimity serve"), "{ended:?}");
    for command in [&["list"][..], &["show", "t"], &["audit", "export"], &["explain", "t"]] {
        let url = &["--url", &coordinator.url];
        let ended = run(&[command, url].concat()).await;
        assert_eq!(ended.status, 1, "{ended:?}");
        assert!(ended.stderr.contains("does not answer"), "{ended:?}");
    }
}

#[tokio::test]
async fn lists_and_timelines_are_words_for_people_and_json_for_programs() {
    let (actor, coordinator) = (Actor::start().await, Coordinator::start(&[]).await);
    let ask = &coordinator.ask;
    let environment = [("UNANIMITY_URL", coordinator.url.as_str())];
    let command = async |arguments: &[&str]| run_with(arguments, &environment).await;
    assert_eq!(command(&["list"]).await.stdout, "no transactions\n");
    let completed = [("wait", json!("completed"))];
    ask.begin(&with(request("first", &actor.two()), &completed)).await;
    actor.vote(409);
    ask.begin(&with(request("second", &actor.two()), &completed)).await;
    let list = command(&["list"]).await;
    let lines: Vec<&str> = plain(&list).lines().collect();
    assert_eq!((list.status, lines.len()), (0, 2), "{list:?}");
    assert!(lines[0].starts_with("second") && lines[0].contains("rolled back"), "{list:?}");
    assert!(lines[1].starts_with("first") && lines[1].contains("committed"), "{list:?}");
    let page = command(&["list", "--limit", "1"]).await;
    let cursor = page.stdout.split("--cursor ").nth(1).expect("there is more").trim().to_owned();
    let rest = command(&["list", "--cursor", &cursor, "--json"]).await;
    assert_eq!(json_of(&rest)["transactions"][0]["id"], "first");
    let filtered = command(&["list", "--outcome", "commit", "--state", "ended", "--json"]).await;
    assert_eq!(json_of(&filtered), ask.list("outcome=commit").await.1);
    let show = command(&["show", "second"]).await;
    assert!(plain(&show).contains("no: not today"), "{show:?}");
    let show = json_of(&command(&["show", "second", "--json"]).await);
    assert_eq!(show["transaction"], ask.shown("second").await);
    assert_eq!(show["timeline"], ask.get("/v1/transactions/second/events").await.json());
    for (arguments, code) in [
        (&["show", "nobody"][..], "transaction_unknown"),
        (&["show", "two words"], "is no transaction id"),
        (&["list", "--state", "bogus"], "filter_invalid"),
        (&["list", "--limit", "0"], "filter_invalid"),
        (&["list", "--cursor", "x"], "cursor_invalid"),
    ] {
        let ended = command(arguments).await;
        assert_eq!((ended.status, &*ended.stdout), (1, ""), "{ended:?}");
        assert!(ended.stderr.contains(code), "{ended:?}");
    }
}

#[tokio::test]
async fn the_audit_trail_has_every_transaction_as_one_line() {
    let (actor, coordinator) = (Actor::start().await, Coordinator::start(&[]).await);
    let ask = &coordinator.ask;
    for number in 0..5 {
        actor.vote(if number % 2 == 0 { 200 } else { 409 });
        let completed = [("wait", json!("completed"))];
        ask.begin(&with(request(&format!("t-{number}"), &actor.two()), &completed)).await;
    }
    actor.hold(Hold::Everybody);
    ask.begin(&with(request("t-5", &actor.two()), &[("wait", json!("accepted"))])).await;
    let exported = run(&["audit", "export", "--url", &coordinator.url]).await;
    assert_eq!(exported.status, 0, "{exported:?}");
    let lines: Vec<Value> =
        exported.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let ids: Vec<&str> = lines.iter().map(|line| line["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["t-5", "t-4", "t-3", "t-2", "t-1", "t-0"]);
    let page = ask.get("/v1/transactions?events=true").await.json();
    assert_eq!(page["transactions"].as_array().unwrap()[1..], lines[1..]);
    for part in ["participant", "vote", "reason", "begun_at_ms", "decided_at_ms", "not today"] {
        assert!(lines[2].to_string().contains(part), "{}", lines[2]);
    }
    let file = coordinator.file("taken", "precious");
    let refused = run(&["audit", "export", "--output", &file, "--url", &coordinator.url]).await;
    assert_eq!(refused.status, 1, "{refused:?}");
    assert!(refused.stderr.contains("cannot create"), "{refused:?}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
    let new = format!("{file}-2");
    let arguments = ["audit", "export", "--json", "--output", &new, "--url", &coordinator.url];
    assert_eq!(json_of(&run(&arguments).await), json!({"written": 6}));
    assert_eq!(std::fs::read_to_string(&new).unwrap().lines().count(), 6);
    actor.hold(Hold::Nobody);
}

#[tokio::test]
async fn wrong_usage_is_told_apart_from_failure() {
    for arguments in [&[][..], &["lst"], &["run"], &["list", "--limits", "1"], &["audit"]] {
        let ended = run(arguments).await;
        assert_eq!((ended.status, &*ended.stdout), (2, ""), "{ended:?}");
        assert!(ended.stderr.contains("Usage"), "{ended:?}");
    }
    let help = run(&["--help"]).await;
    assert_eq!(help.status, 0);
    assert!(plain(&help).contains("Exit status"), "{help:?}");
    for url in ["https://127.0.0.1:1", "ftp://x", "http://user:secret@x"] {
        let ended = run(&["list", "--url", url]).await;
        assert_eq!(ended.status, 1, "{ended:?}");
        assert!(ended.stderr.contains("http"), "{ended:?}");
    }
}

#[tokio::test]
async fn a_reader_that_has_gone_is_no_failure() {
    let (actor, coordinator) = (Actor::start().await, Coordinator::start(&[]).await);
    let completed = [("wait", json!("completed"))];
    coordinator.ask.begin(&with(request("t", &actor.two()), &completed)).await;
    for command in ["list", "show t", "audit export", "audit trace", "list --json"] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let child = Command::new(program())
            .args(command.split(' '))
            .args(["--url", &coordinator.url])
            .stdout(writer)
            .stderr(Stdio::piped())
            .spawn();
        let ended = soon(child.unwrap().wait_with_output()).await.unwrap();
        let stderr = String::from_utf8(ended.stderr).unwrap();
        assert_eq!((ended.status.code(), &*stderr), (Some(0), ""), "{command}");
    }
}

#[tokio::test]
async fn an_operator_can_retry_and_roll_back() {
    let flags = ["--retry-delay-ms", "600000", "--retry-delay-max-ms", "600000"];
    let (actor, coordinator) = (Actor::start().await, Coordinator::start(&flags).await);
    let ask = &coordinator.ask;
    actor.phase_two(503);
    ask.begin(&request("stuck", &actor.two())).await;
    until("both commits to fail", async || {
        let shown = ask.shown("stuck").await;
        let failed = |n: usize| shown["branches"][n]["retry_at_ms"].is_u64();
        (failed(0) && failed(1)).then_some(())
    })
    .await;
    actor.phase_two(200);
    let url = coordinator.url.as_str();
    let refused = run(&["rollback", "stuck", "--url", url]).await;
    assert_eq!(refused.status, 1, "{refused:?}");
    assert!(refused.stderr.contains("already_decided"), "{refused:?}");
    let retried = run(&["retry", "stuck", "--url", url]).await;
    assert_eq!(retried.status, 0, "{retried:?}");
    plain(&retried);
    ask.ended("stuck").await;
    actor.hold(Hold::Everybody);
    ask.begin(&with(request("held", &actor.two()), &[("wait", json!("accepted"))])).await;
    let back = run(&["rollback", "held", "--json", "--url", url]).await;
    assert_eq!((back.status, &json_of(&back)["outcome"]), (0, &json!("rollback")));
    actor.hold(Hold::Nobody);
    assert_eq!(ask.ended("held").await["outcome"], "rollback");
}
