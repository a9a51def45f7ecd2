//! The HTTP API at work: what a begin waits for, what asking shows, and what an operator may do.
//! Every answer here is also held against the API's description.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::actor::{Actor, Hold};
use crate::ask::{Answer, Ask, Coordinator, JSON, request, soon, with};
use crate::setup::until;

/// Nothing happens by itself after a failure: only a retry that is asked for.
const NO_RETRY: [&str; 4] = ["--retry-delay-ms", "600000", "--retry-delay-max-ms", "600000"];

fn check(answer: &Answer, status: u16, outcome: Value, completed: bool) -> Value {
    let shown = answer.json();
    assert_eq!(answer.status, status, "{shown}");
    assert_eq!((&shown["outcome"], &shown["completed"]), (&outcome, &json!(completed)), "{shown}");
    let location = format!("/v1/transactions/{}", shown["id"].as_str().unwrap());
    assert_eq!(answer.header("location"), location);
    shown
}

/// Asks in a task of its own, and gives the answer back when there is one.
fn meanwhile(ask: &Ask, request: &Value) -> tokio::task::JoinHandle<Answer> {
    let (ask, request) = (ask.clone(), request.clone());
    tokio::spawn(async move { ask.begin(&request).await })
}

#[tokio::test]
async fn an_accepted_transaction_is_answered_before_anybody_has_voted() {
    let (actor, coordinator) = (Actor::start().await, Coordinator::start(&[]).await);
    let ask = &coordinator.ask;
    actor.hold(Hold::Everybody);
    let accepted = with(request("t", &actor.two()), &[("wait", json!("accepted"))]);
    let begun = ask.begin(&accepted).await;
    assert_eq!(check(&begun, 202, Value::Null, false)["stage"], "preparing");
    until("both prepares", async || (actor.held() == 2).then_some(())).await;
    let (shown, decision) = (ask.shown("t").await, ask.get("/v1/transactions/t/decision").await);
    assert_eq!(shown["branches"][0]["state"], "called", "{shown}");
    assert_eq!(decision.json(), json!({"decision": "pending"}));
    let polled = ask.get("/v1/transactions/t?wait=20ms").await;
    assert_eq!((polled.status, &polled.json()["outcome"]), (200, &Value::Null));
    let location = begun.header("location").to_owned();
    let poll = {
        let (ask, path) = (ask.clone(), format!("{location}?wait=50s"));
        tokio::spawn(async move { ask.get(&path).await })
    };
    let outcome = meanwhile(ask, &with(accepted.clone(), &[("wait", json!("outcome"))]));
    actor.hold(Hold::Nobody);
    let polled = soon(poll).await.unwrap().json();
    assert_eq!((&polled["outcome"], &polled["completed"]), (&json!("commit"), &json!(true)));
    assert_eq!(soon(outcome).await.unwrap().json()["outcome"], "commit");
    let again = ask.begin(&accepted).await;
    check(&again, 202, json!("commit"), true);
}

#[tokio::test]
async fn outcome_and_completion_are_two_facts() {
    let (actor, coordinator) = (Actor::start().await, Coordinator::start(&NO_RETRY).await);
    let ask = &coordinator.ask;
    actor.phase_two(503);
    let asked = request("t", &actor.two());
    let begun = check(&ask.begin(&asked).await, 200, json!("commit"), false);
    assert_eq!(begun["reason"]["code"], "all_yes");
    until("both commits to fail", async || {
        let shown = ask.shown("t").await;
        let failed = |n: usize| shown["branches"][n]["retry_at_ms"].is_u64();
        (failed(0) && failed(1)).then_some(())
    })
    .await;
    let shown = ask.shown("t").await;
    assert_eq!(shown["stage"], "committing", "{shown}");
    let error = shown["branches"][1]["last_error"].as_str().unwrap();
    assert!(error.contains("503") && error.contains("told so by the test"), "{error}");
    assert_eq!(ask.list("state=committing").await.0, ["t"]);
    assert_eq!(ask.get("/v1/transactions/t/decision").await.json(), json!({"decision": "commit"}));
    let explained = ask.get("/v1/transactions/t/explain").await;
    assert_eq!(explained.status, 200, "{}", explained.text());
    let refused = ask.post("/v1/transactions/t/rollback", &json!({})).await;
    assert_eq!((refused.status, refused.problem().0.as_str()), (409, "already_decided"));
    let completed = meanwhile(ask, &with(asked, &[("wait", json!("completed"))]));
    actor.phase_two(200);
    // Nobody tries again for ten minutes, unless asked to.
    let retried = ask.send("POST", "/v1/transactions/t/retry", &[], "").await;
    assert_eq!(retried.status, 200, "{}", retried.text());
    let completed = check(&soon(completed).await.unwrap(), 200, json!("commit"), true);
    assert_eq!(completed["stage"], "ended");
    assert_eq!((actor.count("prepare", "t"), actor.count("commit", "t")), (2, 4));
}

#[tokio::test]
async fn a_refusal_reaches_the_initiator_with_its_reason() {
    let (actor, coordinator) = (Actor::start().await, Coordinator::start(&[]).await);
    actor.vote(409);
    let completed = with(request("t", &actor.two()), &[("wait", json!("completed"))]);
    let answer = coordinator.ask.begin(&completed).await;
    let shown = check(&answer, 200, json!("rollback"), true);
    let reason = &shown["reason"];
    assert_eq!((&reason["code"], &reason["detail"]), (&json!("voted_no"), &json!("not today")));
    assert!(reason["branch"] == "a" || reason["branch"] == "b", "{reason}");
    let decision = coordinator.ask.get("/v1/transactions/t/decision").await;
    assert_eq!(decision.json(), json!({"decision": "rollback"}));
}

#[tokio::test]
async fn participants_are_given_their_payloads_byte_for_byte_and_once() {
    let (actor, coordinator) = (Actor::start().await, Coordinator::start(&[]).await);
    let payload = r#"{"b":1.10, "a":[12345678901234567890123,"é\u0000"]}"#;
    let [a, b] = actor.two();
    let body = format!(
        r#"{{"id":"t","wait":"completed","branches":[
            {{"name":"a","participant":"{a}","payload":{payload}}},
            {{"name":"b","participant":"{b}","payload":{payload},"payload_in_phase_two":true}}]}}"#
    );
    let answer = coordinator.ask.send("POST", "/v1/transactions", &JSON, body).await;
    check(&answer, 200, json!("commit"), true);
    let mut seen: Vec<_> = actor.seen();
    seen.sort_by_key(|seen| (seen.operation != "prepare", seen.name.clone()));
    let calls: Vec<(&str, &str, &str, u32)> = seen
        .iter()
        .map(|seen| (&*seen.operation, &*seen.branch, &*seen.body, seen.attempt))
        .collect();
    let expected = [
        ("prepare", "a", payload, 1),
        ("prepare", "b", payload, 1),
        ("commit", "a", "", 1),
        ("commit", "b", payload, 1),
    ];
    assert_eq!(calls, expected);
}

#[tokio::test]
async fn an_unknown_transaction_was_rolled_back_for_participants_and_is_unknown_to_others() {
    let coordinator = Coordinator::start(&[]).await;
    let ask = &coordinator.ask;
    let decision = ask.get("/v1/transactions/nobody/decision").await;
    assert_eq!((decision.status, decision.json()), (200, json!({"decision": "rollback"})));
    for (method, rest) in [
        ("GET", ""),
        ("GET", "?wait=30s"),
        ("GET", "/events"),
        ("POST", "/rollback"),
        ("POST", "/retry"),
    ] {
        let answer = ask.send(method, &format!("/v1/transactions/nobody{rest}"), &[], "").await;
        let problem = answer.problem();
        assert_eq!((answer.status, problem.0.as_str()), (404, "transaction_unknown"), "{rest}");
    }
}

#[tokio::test]
async fn an_undecided_transaction_can_be_rolled_back() {
    let (actor, coordinator) = (Actor::start().await, Coordinator::start(&[]).await);
    let ask = &coordinator.ask;
    actor.hold(Hold::Everybody);
    let waiting =
        meanwhile(ask, &with(request("t", &actor.two()), &[("wait", json!("completed"))]));
    until("both prepares", async || (actor.held() == 2).then_some(())).await;
    for _ in 0..2 {
        let answer = ask.send("POST", "/v1/transactions/t/rollback", &[], "").await;
        let shown = answer.json();
        assert_eq!((answer.status, &shown["outcome"]), (200, &json!("rollback")), "{shown}");
        assert_eq!(shown["reason"]["code"], "requested");
    }
    let shown = check(&soon(waiting).await.unwrap(), 200, json!("rollback"), true);
    assert_eq!(shown["reason"]["code"], "requested");
    assert!(actor.count("rollback", "t") >= 2);
    actor.hold(Hold::Nobody);
    // The votes that come now change nothing.
    let ended = ask.send("POST", "/v1/transactions/t/rollback", &[], "").await;
    assert_eq!((ended.status, &ended.json()["outcome"]), (200, &json!("rollback")));
    assert_eq!(actor.count("commit", "t"), 0);
}

#[tokio::test]
async fn the_same_request_under_the_same_id_is_the_same_transaction() {
    let (actor, mut coordinator) = (Actor::start().await, Coordinator::start(&[]).await);
    let ask = coordinator.ask.clone();
    actor.hold(Hold::Everybody);
    let asked = request("t", &actor.two());
    let many: Vec<_> = (0..20).map(|_| meanwhile(&ask, &asked)).collect();
    until("both prepares", async || (actor.held() == 2).then_some(())).await;
    let other = with(asked.clone(), &[("timeout_ms", json!(60_000))]);
    reused(&ask.begin(&other).await, "id");
    actor.hold(Hold::Nobody);
    for answer in many {
        let shown = soon(answer).await.unwrap();
        assert_eq!((shown.status, &shown.json()["outcome"]), (200, &json!("commit")));
    }
    let ended = ask.ended("t").await;
    check(&ask.begin(&asked).await, 200, json!("commit"), true);
    reused(&ask.begin(&other).await, "id");
    coordinator.kill().await;
    // What the configuration fills up is no part of what was asked for.
    coordinator.add_flags(&["--prepare-timeout-ms", "7777"]);
    coordinator.start_again().await;
    let again = check(&ask.begin(&asked).await, 200, json!("commit"), true);
    assert_eq!(again, ended);
    reused(&ask.begin(&other).await, "id");
    assert_eq!((actor.count("prepare", "t"), actor.count("commit", "t")), (2, 2));
    assert_eq!(ask.list("").await.0, ["t"]);
}

fn reused(answer: &Answer, field: &str) {
    let problem = answer.problem();
    assert_eq!((answer.status, &*problem.0, &*problem.1), (422, "id_reused", field));
}

#[tokio::test]
async fn the_same_request_is_the_same_transaction_also_if_it_was_live_at_a_restart() {
    let (actor, mut coordinator) = (Actor::start().await, Coordinator::start(&[]).await);
    let ask = coordinator.ask.clone();
    actor.hold(Hold::Everybody);
    let asked = with(request("t", &actor.two()), &[("wait", json!("accepted"))]);
    check(&ask.begin(&asked).await, 202, Value::Null, false);
    coordinator.kill().await;
    actor.phase_two(503);
    coordinator.start_again().await;
    let completed = with(asked.clone(), &[("wait", json!("outcome"))]);
    let shown = check(&ask.begin(&completed).await, 200, json!("rollback"), false);
    assert_eq!(shown["reason"]["code"], "coordinator_restarted");
    reused(&ask.begin(&with(asked, &[("prepare_timeout_ms", json!(77))])).await, "id");
    actor.phase_two(200);
    ask.ended("t").await;
}

#[tokio::test]
async fn an_idempotency_key_names_its_transaction() {
    let (actor, coordinator) = (Actor::start().await, Coordinator::start(&[]).await);
    let ask = &coordinator.ask;
    let mut asked = with(request("-", &actor.two()), &[("wait", json!("completed"))]);
    asked.as_object_mut().unwrap().remove("id");
    let begin = async |key: &[u8], request: &Value| {
        let headers = [JSON[0], ("Idempotency-Key", key)];
        ask.send("POST", "/v1/transactions", &headers, request.to_string()).await
    };
    let first = check(
        &begin(b"order 1".as_slice().split_at(5).0, &asked).await,
        200,
        json!("commit"),
        true,
    );
    let again = check(&begin(b"order", &asked).await, 200, json!("commit"), true);
    assert_eq!(first, again);
    let other = check(&begin(&[b'k'; 255], &asked).await, 200, json!("commit"), true);
    assert_ne!(first["id"], other["id"]);
    let changed = with(asked.clone(), &[("timeout_ms", json!(60_000))]);
    reused(&begin(b"order", &changed).await, "Idempotency-Key");
    let both = begin(b"order", &with(asked.clone(), &[("id", json!("t"))])).await;
    assert_eq!((both.status, both.problem()), (400, ("id_and_key_both".into(), "id".into())));
    // Without either, every request is a transaction of its own.
    let one = check(&ask.begin(&asked).await, 200, json!("commit"), true);
    let two = check(&ask.begin(&asked).await, 200, json!("commit"), true);
    assert_ne!(one["id"], two["id"]);
    assert_eq!(ask.list("").await.0.len(), 4);
}

#[tokio::test]
async fn pages_have_no_gap_and_no_repeat_while_transactions_begin_and_end() {
    let (actor, coordinator) = (Actor::start().await, Coordinator::start(&[]).await);
    let ask = &coordinator.ask;
    let begin = async |id: String, wait: &str| {
        let answer = ask.begin(&with(request(&id, &actor.two()), &[("wait", json!(wait))])).await;
        assert!(matches!(answer.status, 200 | 202), "{}", answer.text());
    };
    let mut expected = BTreeSet::new();
    for number in 0..30 {
        let live = number % 3 == 0;
        actor.hold(if live { Hold::Everybody } else { Hold::Nobody });
        // Half of the live ones end before the pages are read, by the next one's release.
        begin(format!("t-{number}"), if live { "accepted" } else { "completed" }).await;
        expected.insert(format!("t-{number}"));
    }
    actor.hold(Hold::Everybody);
    for number in 30..34 {
        begin(format!("t-{number}"), "accepted").await;
        expected.insert(format!("t-{number}"));
    }
    let (mut found, mut query, mut pages) = (Vec::new(), "limit=7".to_owned(), 0);
    loop {
        let (ids, page) = ask.list(&query).await;
        assert!(ids.len() <= 7);
        found.extend(ids);
        pages += 1;
        for number in 0..3 {
            begin(format!("new-{pages}-{number}"), "accepted").await;
        }
        // What is live ends, and moves from the journal to the history, between the pages.
        actor.hold(if pages == 2 { Hold::Nobody } else { Hold::Everybody });
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        query = format!("limit=7&cursor={cursor}");
    }
    actor.hold(Hold::Nobody);
    let unique: BTreeSet<String> = found.iter().cloned().collect();
    assert_eq!(unique.len(), found.len(), "repeated: {found:?}");
    let old: BTreeSet<String> = unique.into_iter().filter(|id| id.starts_with("t-")).collect();
    assert_eq!(old, expected);
    assert!(pages >= 5, "{pages}");
}

#[tokio::test]
async fn a_list_can_be_limited_in_every_way() {
    let (actor, coordinator) = (Actor::start().await, Coordinator::start(&NO_RETRY).await);
    let ask = &coordinator.ask;
    let begin = async |id: &str, names: [&str; 2], wait: &str| {
        let asked = request(id, &names.map(|name| actor.at(name)));
        ask.begin(&with(asked, &[("wait", json!(wait))])).await.json()
    };
    begin("committed", ["a", "b"], "completed").await;
    actor.vote(409);
    let refused = begin("refused", ["a", "c"], "completed").await;
    actor.vote(200);
    actor.phase_two(503);
    let committing = begin("committing", ["b", "c"], "outcome").await;
    actor.vote(422);
    begin("rolling", ["a", "b"], "outcome").await;
    actor.hold(Hold::Everybody);
    begin("waiting", ["a", "b"], "accepted").await;
    let list = async |query: &str, expected: &[&str]| {
        let (mut found, page) = ask.list(query).await;
        found.sort();
        let mut expected = expected.to_vec();
        expected.sort_unstable();
        assert_eq!(found, expected, "{query}");
        assert_eq!(page["next_cursor"], Value::Null, "{query}");
    };
    list("", &["committed", "refused", "committing", "rolling", "waiting"]).await;
    list("state=preparing", &["waiting"]).await;
    list("state=executing", &[]).await;
    list("state=committing", &["committing"]).await;
    list("state=rolling_back", &["rolling"]).await;
    list("state=ended", &["committed", "refused"]).await;
    list("outcome=commit", &["committed", "committing"]).await;
    list("outcome=rollback", &["refused", "rolling"]).await;
    list("state=ended&outcome=rollback", &["refused"]).await;
    list(&format!("participant={}", actor.at("c")), &["refused", "committing"]).await;
    list(&format!("participant={}&state=ended", actor.at("c")), &["refused"]).await;
    list(&format!("participant={}", actor.at("")), &[]).await;
    let (from, until) = (&refused["begun_at_ms"], &committing["begun_at_ms"]);
    list(&format!("begun_from_ms={from}&begun_until_ms={from}"), &[]).await;
    let (ids, _) = ask.list(&format!("begun_from_ms={from}")).await;
    assert!(ids.contains(&"refused".to_owned()) && ids.contains(&"waiting".to_owned()));
    let (ids, _) = ask.list(&format!("begun_until_ms={until}")).await;
    assert!(!ids.contains(&"committing".to_owned()) && !ids.contains(&"waiting".to_owned()));
    list("begun_from_ms=18446744073709551615", &[]).await;
    list(
        "limit=1000&begun_from_ms=0&begun_until_ms=18446744073709551615&state=ended&events=true",
        &["committed", "refused"],
    )
    .await;
    let (ids, page) = ask.list("limit=1&events=false").await;
    // Within one millisecond the ids decide.
    assert_eq!(ids, ["waiting"], "the latest comes first");
    assert!(page["next_cursor"].is_string() && page["transactions"][0]["events"].is_null());
}

#[tokio::test]
async fn the_events_tell_the_course_in_its_order() {
    let (actor, coordinator) = (Actor::start().await, Coordinator::start(&[]).await);
    let ask = &coordinator.ask;
    let completed = [("wait", json!("completed"))];
    ask.begin(&with(request("yes", &actor.two()), &completed)).await;
    actor.vote(409);
    ask.begin(&with(request("no", &actor.two()), &completed)).await;
    for (id, expected) in [
        ("yes", "begun prepare prepare yes yes decided:commit commit commit done done ended"),
        ("no", "begun prepare prepare no no decided:rollback ended"),
    ] {
        let timeline = ask.get(&format!("/v1/transactions/{id}/events")).await.json();
        assert_eq!((&timeline["id"], &timeline["dropped"]), (&json!(id), &json!(0)));
        let events = timeline["events"].as_array().unwrap();
        let times: Vec<u64> = events.iter().map(|event| event["at_ms"].as_u64().unwrap()).collect();
        assert!(times.is_sorted(), "{times:?}");
        let words: Vec<String> = events.iter().map(word).collect();
        assert!(in_order(&words), "{words:?}");
        let mut sorted = words.clone();
        sorted.sort();
        let mut wanted: Vec<String> = expected.split(' ').map(str::to_owned).collect();
        wanted.sort();
        if id == "yes" {
            assert_eq!(sorted, wanted, "{words:?}");
        } else {
            // The second no may come after the decision that the first has led to.
            assert!(words.contains(&"decided:rollback".to_owned()), "{words:?}");
        }
        let page = ask.get("/v1/transactions?events=true").await.json();
        let listed = page["transactions"].as_array().unwrap().iter().find(|one| one["id"] == id);
        assert_eq!(listed.unwrap()["events"], timeline["events"]);
    }
}

fn word(event: &Value) -> String {
    let text = |name: &str| event[name].as_str().unwrap_or_default().to_owned();
    match &*text("event") {
        "called" => text("operation"),
        "acknowledged" => "done".to_owned(),
        "decided" => format!("decided:{}", text("detail")),
        other => other.to_owned(),
    }
}

/// Begun comes first, every vote of a commit before the decision, phase two after it, the end last.
fn in_order(words: &[String]) -> bool {
    let decided = words.iter().position(|word| word.starts_with("decided")).unwrap();
    let all = |words: &[String], allowed: &[&str]| {
        words.iter().all(|word| allowed.contains(&word.as_str()))
    };
    words[0] == "begun"
        && all(&words[1..decided], &["prepare", "yes", "no"])
        && all(&words[decided + 1..words.len() - 1], &["commit", "rollback", "done", "no", "yes"])
        && words.last().is_some_and(|word| word == "ended")
}

#[tokio::test]
async fn a_token_that_is_set_is_asked_for_everywhere_but_where_probes_look() {
    let token = "0123456789abcdef-api";
    // An environment that is not for others: the flag would be seen by them.
    let coordinator = Coordinator::start(&["--token", token]).await;
    let ask = &coordinator.ask;
    let right = format!("Bearer {token}");
    let paths = [
        ("GET", "/v1/transactions"),
        ("POST", "/v1/transactions"),
        ("GET", "/v1/transactions/t"),
        ("GET", "/v1/transactions/t/events"),
        ("GET", "/v1/transactions/t/decision"),
        ("GET", "/v1/transactions/t/explain"),
        ("POST", "/v1/transactions/t/rollback"),
        ("POST", "/v1/transactions/t/retry"),
        ("GET", "/metrics"),
    ];
    for (method, path) in paths {
        for wrong in ["", "Bearer", "Bearer ", "Bearer 0123456789abcdef-apj", "Basic x", token] {
            let header = [("authorization", wrong.as_bytes())];
            let headers = if wrong.is_empty() { &[][..] } else { &header };
            let answer = ask.send(method, path, headers, "").await;
            assert_eq!((answer.status, &*answer.problem().0), (401, "unauthorized"), "{path}");
            assert_eq!(answer.header("www-authenticate"), "Bearer");
        }
        let header = [("authorization", right.as_bytes())];
        let answer = ask.send(method, path, &header, "").await;
        assert_ne!(answer.status, 401, "{method} {path}");
    }
    for open in ["/livez", "/readyz", "/openapi.json", "/errors/at_capacity"] {
        assert_eq!(ask.get(open).await.status, 200, "{open}");
    }
    let client = unanimity_sdk::Client::new(&coordinator.url, Some(token)).unwrap();
    assert_eq!(client.list("").await.unwrap().transactions, []);
}

#[tokio::test]
async fn timeouts_of_a_request_win_over_the_configuration() {
    let flags = ["--prepare-timeout-ms", "600000"];
    let (actor, coordinator) = (Actor::start().await, Coordinator::start(&flags).await);
    actor.hold(Hold::Everybody);
    let cases =
        [("prepare", "prepare_timeout_ms", "prepare_timeout"), ("whole", "timeout_ms", "timeout")];
    for (id, field, reason) in cases {
        // The limit for the whole ends the waiting too: that answer may come before the end.
        let fields = [(field, json!(50)), ("wait", json!("completed"))];
        let begun = coordinator.ask.begin(&with(request(id, &actor.two()), &fields)).await.json();
        assert_eq!(
            (&begun["outcome"], &begun["reason"]["code"]),
            (&json!("rollback"), &json!(reason))
        );
        coordinator.ask.ended(id).await;
    }
    // A commit that is not answered is given up and sent again.
    actor.hold(Hold::PhaseTwo);
    let attempt = with(request("attempt", &actor.two()), &[("attempt_timeout_ms", json!(50))]);
    assert_eq!(coordinator.ask.begin(&attempt).await.json()["outcome"], "commit");
    until("a second attempt", async || (actor.count("commit", "attempt") >= 4).then_some(())).await;
    until("the first attempt's error", async || {
        let shown = coordinator.ask.shown("attempt").await;
        let error = shown["branches"][0]["last_error"].as_str().map(str::to_owned);
        error.filter(|error| error.contains("no answer within 50 ms"))
    })
    .await;
    actor.hold(Hold::Nobody);
    coordinator.ask.ended("attempt").await;
}

#[tokio::test]
async fn a_commit_is_never_turned_back_by_a_timeout() {
    let flags = ["--retry-delay-ms", "20", "--retry-delay-max-ms", "40"];
    let (actor, coordinator) = (Actor::start().await, Coordinator::start(&flags).await);
    let ask = &coordinator.ask;
    actor.phase_two(500);
    let fields = [("timeout_ms", json!(3_000)), ("wait", json!("completed"))];
    let asked = with(request("t", &actor.two()), &fields);
    // Its limit passes: the answer says that it is decided, and not complete.
    let shown = check(&ask.begin(&asked).await, 202, json!("commit"), false);
    assert_eq!(shown["overdue"], true);
    actor.phase_two(204);
    let ended = ask.ended("t").await;
    assert_eq!((&ended["outcome"], &ended["overdue"]), (&json!("commit"), &json!(true)));
    assert_eq!(actor.count("rollback", "t"), 0);
}
