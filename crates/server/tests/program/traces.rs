//! A history taken out of a coordinator, running or stopped, and judged; and what `verify` says of
//! histories that are wrong, or none.

use serde_json::{Value, json};

use crate::actor::Actor;
use crate::ask::{Coordinator, Ended, request, run, with};

const CALLED: &str = r#""event":"called""#;
const QUICK: [&str; 4] = ["--retry-delay-ms", "20", "--retry-delay-max-ms", "40"];

fn json_of(ended: &Ended) -> Value {
    serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"))
}

/// A transaction of each sort, ended; the actor says yes to everything unless a branch's name says
/// otherwise.
async fn history(actor: &Actor, coordinator: &Coordinator) {
    let ask = &coordinator.ask;
    for operation in ["execute", "commit_one_phase", "inquire", "compensate"] {
        actor.answer(operation, 200, &json!({}));
    }
    let completed = ("wait", json!("completed"));
    let branch = |name: &str, kind: &str, after: &[&str]| -> Value {
        json!({"name": name, "participant": actor.at(name), "kind": kind, "after": after})
    };
    let mixed = json!([
        branch("money", "two_phase", &[]),
        branch("first", "compensable", &[]),
        branch("second", "compensable", &["first"]),
        branch("mail", "deferred", &[]),
    ]);
    let begin = async |id: &str, branches: &Value| {
        let asked = json!({"id": id, "branches": branches, "wait": "completed"});
        ask.begin(&asked).await.json()
    };
    assert_eq!(begin("mixed", &mixed).await["outcome"], "commit");
    assert_eq!(begin("one", &json!([branch("a", "two_phase", &[])])).await["outcome"], "commit");
    ask.begin(&with(request("two", &actor.two()), std::slice::from_ref(&completed))).await;
    ask.open("open", &json!({"branches": [branch("a", "two_phase", &[])]})).await;
    let tried = json!({"name": "b", "participant": actor.at("b"), "phase_one_by": "initiator"});
    assert_eq!(ask.about("open", "branches", &tried).await.status, 200);
    let asked = ask.about("open", "commit?wait=completed", &json!({})).await;
    assert_eq!(asked.json()["outcome"], "commit", "{}", asked.text());
    actor.vote(409);
    ask.begin(&with(request("no", &actor.two()), &[completed])).await;
    actor.vote(200);
    actor.answer("execute", 409, &json!({"reason": "no courier"}));
    let saga = json!([branch("first", "compensable", &[]), branch("second", "compensable", &[])]);
    assert_eq!(begin("saga", &saga).await["outcome"], "rollback");
}

#[tokio::test]
async fn a_coordinators_own_history_is_exported_and_judged() {
    let (actor, mut coordinator) = (Actor::start().await, Coordinator::start(&QUICK).await);
    history(&actor, &coordinator).await;
    let asked = run(&["audit", "trace", "--url", &coordinator.url]).await;
    assert_eq!((asked.status, &*asked.stderr), (0, ""), "{asked:?}");
    let file = coordinator.file("asked.jsonl", &asked.stdout);
    let judged = run(&["verify", &file]).await;
    assert_eq!((judged.status, &*judged.stderr), (0, ""), "{judged:?}\n{}", asked.stdout);
    assert!(judged.stdout.contains("6 transactions: 4 committed, 2 rolled back"), "{judged:?}");
    assert!(judged.stdout.contains("every rule holds"), "{judged:?}");
    let report = json_of(&run(&["verify", "--json", &file]).await);
    assert_eq!(report["lines"], asked.stdout.lines().count(), "{report}");
    assert_eq!((&report["committed"], &report["findings"]), (&json!(4), &json!([])), "{report}");
    // While it runs, its folder is its own.
    let data = coordinator.data().display().to_string();
    let refused = run(&["audit", "trace", "--folder", &data]).await;
    assert_eq!(refused.status, 1, "{refused:?}");
    assert!(refused.stderr.contains("data_in_use"), "{refused:?}");
    coordinator.stop().await;
    let read = run(&["audit", "trace", "--folder", &data]).await;
    assert_eq!((read.status, &*read.stderr), (0, ""), "{read:?}");
    let sorted = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&read.stdout), sorted(&asked.stdout));
    let file = coordinator.file("read.jsonl", &read.stdout);
    assert_eq!(run(&["verify", &file]).await.status, 0);
    let none = run(&["audit", "trace", "--folder", &format!("{data}-not-there")]).await;
    assert_eq!(none.status, 1, "{none:?}");
    assert!(none.stderr.contains("data_folder"), "{none:?}");
}

#[tokio::test]
async fn a_live_transaction_is_in_the_folder_of_a_killed_coordinator() {
    let (actor, mut coordinator) = (Actor::start().await, Coordinator::start(&QUICK).await);
    actor.phase_two(503);
    coordinator.ask.begin(&request("stuck", &actor.two())).await;
    coordinator.kill().await;
    let data = coordinator.data().display().to_string();
    let read = run(&["audit", "trace", "--folder", &data]).await;
    assert_eq!((read.status, &*read.stderr), (0, ""), "{read:?}");
    let file = coordinator.file("killed.jsonl", &read.stdout);
    let report = json_of(&run(&["verify", "--json", &file]).await);
    let found = (&report["transactions"], &report["committed"], &report["findings"]);
    assert_eq!(found, (&json!(1), &json!(1), &json!([])), "{report}\n{}", read.stdout);
    assert!(!read.stdout.contains(r#""fact":"ended""#), "{read:?}");
}

#[tokio::test]
async fn a_history_that_was_changed_is_found() {
    let (actor, coordinator) = (Actor::start().await, Coordinator::start(&QUICK).await);
    history(&actor, &coordinator).await;
    let trace = run(&["audit", "trace", "--url", &coordinator.url]).await.stdout;
    let without = |part: &[&str]| {
        let keep = |line: &&str| !part.iter().all(|part| line.contains(part));
        let kept: Vec<&str> = trace.lines().filter(keep).collect();
        assert!(kept.len() < trace.lines().count(), "{part:?} is not in\n{trace}");
        kept.join("\n") + "\n"
    };
    for (gone, rule) in [
        (&[r#""transaction":"two""#, r#""answer":"yes""#][..], "commit counts every ballot"),
        (&[r#""transaction":"two""#, r#""answer":"acknowledged""#], "ended only when all"),
        (&[r#""transaction":"two""#, CALLED, r#""operation":"prepare""#], "an answer"),
        (&[r#""transaction":"no""#, r#""fact":"begun""#], "audit one-to-one"),
        (&[r#""transaction":"mixed""#, r#""fact":"decided""#], "durable before visible"),
        (&[r#""transaction":"mixed""#, r#""fact":"executing""#], "durable before visible"),
    ] {
        let file = coordinator.file("changed.jsonl", &without(gone));
        let judged = run(&["verify", &file]).await;
        assert_eq!(judged.status, 1, "{gone:?}: {judged:?}");
        assert!(judged.stdout.contains(rule), "{gone:?}: {judged:?}");
        assert!(judged.stdout.contains("transaction ") && judged.stdout.contains(", line "));
    }
}

#[tokio::test]
async fn what_is_no_trace_is_told_apart_from_a_bad_one() {
    let coordinator = Coordinator::start(&[]).await;
    let head = r#"{"at":0,"event":"trace","version":1,"source":"x","sees":["coordinator"]}"#;
    let long = format!("{head}\n{}", " ".repeat(2 << 20));
    for (content, parts) in [
        ("", &["trace_invalid", "empty"][..]),
        ("no json\n", &["trace_invalid", "line 1"]),
        (&format!("{head}\n{{\"at\":1,\"event\":\"sneezed\"}}\n"), &["trace_invalid", "line 2"]),
        (&format!("{head}\n\n"), &["trace_invalid", "line 2"]),
        ("{\"at\":1,\"event\":\"at_rest\"}\n", &["trace_invalid", "line 1", "begins with"]),
        (&head.replace("version\":1", "version\":2"), &["trace_newer_version", "version 2"]),
        (&long, &["trace_invalid", "line 2", "too long"]),
    ] {
        let file = coordinator.file("bad.jsonl", content);
        let ended = run(&["verify", &file]).await;
        assert_eq!((ended.status, &*ended.stdout), (2, ""), "{ended:?}");
        for part in parts.iter().chain([&&*file]) {
            assert!(ended.stderr.contains(part), "no {part:?} in {ended:?}");
        }
    }
    let good = coordinator.file("good.jsonl", head);
    let both = run(&["verify", "/nowhere/trace.jsonl", &good]).await;
    assert_eq!(both.status, 2, "{both:?}");
    assert!(both.stdout.contains("1 lines, 0 transactions"), "{both:?}");
    assert_eq!(run(&["verify"]).await.status, 2);
}
