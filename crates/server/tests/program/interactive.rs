//! Interactive transactions as their initiators meet them: branches that come one by one, work that
//! the initiator does itself, requests that come twice or too late, results that flow, deferred
//! work, and the plans that are refused.

use std::slice;

use serde_json::{Value, json};
use unanimity_sdk::api::{BranchRequest, Json, Outcome, TransactionRequest};
use unanimity_sdk::{PhaseOneError, TransactionError};

use crate::actor::{Actor, Hold};
use crate::ask::{Answer, Ask, Coordinator, request, soon, with};
use crate::setup::until;

const QUICK: [&str; 4] = ["--retry-delay-ms", "20", "--retry-delay-max-ms", "40"];

/// A coordinator that tries again soon, and a participant that says yes to everything.
async fn start() -> (Actor, Coordinator) {
    let actor = Actor::start().await;
    actor.answer("execute", 200, &json!({}));
    (actor, Coordinator::start(&QUICK).await)
}

fn branch(actor: &Actor, name: &str) -> Value {
    json!({"name": name, "participant": actor.at(name), "payload": {"of": name}})
}

fn refused(answer: &Answer, status: u16, code: &str) {
    let found = answer.problem().0;
    assert_eq!((answer.status, &*found), (status, code), "{}", answer.text());
}

async fn enlisted(ask: &Ask, id: &str, branch: &Value) -> Value {
    let answer = ask.about(id, "branches", branch).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

async fn committed(ask: &Ask, id: &str) -> Value {
    let answer = ask.about(id, "commit?wait=completed", &json!({})).await;
    let shown = answer.json();
    assert_eq!((answer.status, &shown["outcome"]), (200, &json!("commit")), "{shown}");
    shown
}

fn sorted(mut words: Vec<String>) -> Vec<String> {
    words.sort();
    words
}

#[tokio::test]
async fn branches_come_one_by_one_and_commit_together() {
    let (actor, coordinator) = start().await;
    let ask = &coordinator.ask;
    let begun = ask.open("t", &json!({})).await;
    assert_eq!((&begun["stage"], &begun["interactive"]), (&json!("open"), &json!(true)));
    assert_eq!(begun["branches"], json!([]));
    for (count, name) in [(1, "a"), (2, "b")] {
        let shown = enlisted(ask, "t", &branch(&actor, name)).await;
        assert_eq!(shown["branches"].as_array().unwrap().len(), count);
        assert_eq!((&shown["stage"], &shown["outcome"]), (&json!("open"), &Value::Null));
    }
    assert_eq!(actor.course("t"), Vec::<String>::new(), "nobody is called while it is open");
    let shown = committed(ask, "t").await;
    assert_eq!((&shown["completed"], &shown["stage"]), (&json!(true), &json!("ended")));
    let all = ["a commit", "a prepare", "b commit", "b prepare"];
    assert_eq!(sorted(actor.course("t")), all);
    let first = actor.seen().into_iter().find(|seen| seen.operation == "prepare").unwrap();
    assert_eq!(first.body, json!({"of": first.branch}).to_string());
}

#[tokio::test]
async fn a_no_rolls_back_what_was_enlisted() {
    let (actor, coordinator) = start().await;
    let ask = &coordinator.ask;
    ask.open("t", &json!({"branches": [branch(&actor, "a"), branch(&actor, "b")]})).await;
    actor.vote(409);
    let answer = ask.about("t", "commit", &json!({})).await;
    let shown = answer.json();
    // The answer to the first request is the outcome; a rollback is no failure of that request.
    assert_eq!((answer.status, &shown["outcome"]), (200, &json!("rollback")), "{shown}");
    assert_eq!(shown["reason"]["code"], "voted_no");
    ask.ended("t").await;
    assert_eq!(actor.count("commit", "t"), 0);
}

#[tokio::test]
async fn work_of_the_initiator_is_finished_and_never_begun_by_the_coordinator() {
    let (actor, coordinator) = start().await;
    let ask = &coordinator.ask;
    let mine = with(branch(&actor, "mine"), &[("phase_one_by", json!("initiator"))]);
    let both = json!({"branches": [mine, branch(&actor, "other")]});
    ask.open("committed", &both).await;
    committed(ask, "committed").await;
    let course = ["mine commit", "other commit", "other prepare"];
    assert_eq!(sorted(actor.course("committed")), course);
    ask.open("given-up", &both).await;
    let answer = ask.about("given-up", "rollback", &json!({})).await;
    assert_eq!((answer.status, &answer.json()["outcome"]), (200, &json!("rollback")));
    ask.ended("given-up").await;
    // The other one was never called, so that it owes nothing.
    assert_eq!(actor.course("given-up"), ["mine rollback"]);
    ask.open("abandoned", &with(both, &[("open_timeout_ms", json!(30))])).await;
    let ended = ask.ended("abandoned").await;
    let end = (&ended["outcome"], &ended["reason"]["code"]);
    assert_eq!(end, (&json!("rollback"), &json!("abandoned")));
    assert_eq!(actor.course("abandoned"), ["mine rollback"]);
}

#[tokio::test]
async fn the_same_branch_again_is_one_branch_and_another_is_a_conflict() {
    let (actor, coordinator) = start().await;
    let ask = &coordinator.ask;
    ask.open("t", &json!({})).await;
    let first = enlisted(ask, "t", &branch(&actor, "a")).await;
    assert_eq!(enlisted(ask, "t", &branch(&actor, "a")).await, first);
    for (field, value) in [
        ("payload", json!({"of": "b"})),
        ("kind", json!("compensable")),
        ("participant", json!(actor.at("b"))),
        ("phase_one_by", json!("initiator")),
    ] {
        let other = with(branch(&actor, "a"), &[(field, value)]);
        refused(&ask.about("t", "branches", &other).await, 409, "branch_conflict");
    }
    assert_eq!(ask.shown("t").await, first, "a refusal changes nothing");
    // The request to begin, too, can come twice: it says what it was, not what came later.
    let again = ask.open("t", &json!({})).await;
    assert_eq!(again["branches"], first["branches"]);
}

#[tokio::test]
async fn requests_that_come_too_late_are_refused_by_their_reason() {
    let (actor, coordinator) = start().await;
    let ask = &coordinator.ask;
    let (one, two) = (branch(&actor, "a"), branch(&actor, "b"));
    let late = branch(&actor, "late");
    ask.open("asked", &json!({"branches": [one, two]})).await;
    actor.hold(Hold::Everybody);
    let accepted = ask.about("asked", "commit?wait=accepted", &json!({})).await;
    assert_eq!(accepted.status, 202, "{}", accepted.text());
    refused(&ask.about("asked", "branches", &late).await, 409, "not_open");
    actor.phase_two(503);
    actor.hold(Hold::Nobody);
    let decided = ask.about("asked", "commit", &json!({})).await;
    assert_eq!((decided.status, &decided.json()["outcome"]), (200, &json!("commit")));
    refused(&ask.about("asked", "branches", &late).await, 409, "not_open");
    refused(&ask.about("asked", "rollback", &json!({})).await, 409, "already_decided");
    actor.phase_two(200);
    let ended = ask.ended("asked").await;
    assert_eq!(committed(ask, "asked").await, ended, "asking again changes nothing");
    refused(&ask.about("asked", "branches", &late).await, 409, "not_open");

    ask.open("back", &json!({"branches": [one]})).await;
    assert_eq!(ask.about("back", "rollback", &json!({})).await.status, 200);
    ask.ended("back").await;
    refused(&ask.about("back", "commit", &json!({})).await, 409, "already_decided");
    refused(&ask.about("back", "branches", &late).await, 409, "not_open");
    assert_eq!(actor.course("back"), Vec::<String>::new());

    actor.hold(Hold::Only("whole".to_owned()));
    ask.begin(&with(request("whole", &actor.two()), &[("wait", json!("accepted"))])).await;
    for _ in ["while it is undecided", "when it has ended"] {
        refused(&ask.about("whole", "branches", &late).await, 409, "not_open");
        refused(&ask.about("whole", "commit", &json!({})).await, 409, "not_interactive");
        actor.hold(Hold::Nobody);
        ask.ended("whole").await;
    }
    refused(&ask.about("nobody", "branches", &late).await, 404, "transaction_unknown");
    refused(&ask.about("nobody", "commit", &json!({})).await, 404, "transaction_unknown");
    let answer = ask.about("nobody", "commit?wait=30s", &json!({})).await;
    refused(&answer, 400, "wait_invalid");
    assert_eq!(answer.problem().1, "wait");
    assert!(actor.seen().iter().all(|seen| seen.branch != "late"));
}

#[tokio::test]
async fn an_open_transaction_survives_a_crash_and_commits_afterwards() {
    let (actor, mut coordinator) = start().await;
    let ask = coordinator.ask.clone();
    let mine = with(branch(&actor, "mine"), &[("phase_one_by", json!("initiator"))]);
    ask.open("t", &json!({"branches": [mine]})).await;
    enlisted(&ask, "t", &branch(&actor, "a")).await;
    coordinator.kill().await;
    coordinator.start_again().await;
    let shown = ask.shown("t").await;
    assert_eq!((&shown["stage"], &shown["outcome"]), (&json!("open"), &Value::Null), "{shown}");
    // An enlistment that was answered is on record, whoever asks again or not.
    assert_eq!(shown["branches"].as_array().unwrap().len(), 2, "{shown}");
    enlisted(&ask, "t", &branch(&actor, "a")).await;
    let shown = enlisted(&ask, "t", &branch(&actor, "b")).await;
    assert_eq!(shown["branches"].as_array().unwrap().len(), 3, "{shown}");
    assert_eq!(actor.course("t"), Vec::<String>::new());
    committed(&ask, "t").await;
    let all = ["a commit", "a prepare", "b commit", "b prepare", "mine commit"];
    assert_eq!(sorted(actor.course("t")), all);
}

#[tokio::test]
async fn a_result_arrives_in_the_payload_that_refers_to_it() {
    let (actor, coordinator) = start().await;
    let ask = &coordinator.ask;
    let refers = |pointer: &str| {
        let reference = json!({"$result": {"branch": "seat", "field": pointer}});
        json!({"name": "next", "participant": actor.at("next"), "kind": "compensable",
            "payload": {"seat": reference, "for": "ada"}})
    };
    let asked = |id: &str, pointer: &str| {
        let completed = ("wait", json!("completed"));
        let branches = json!([branch(&actor, "seat"), refers(pointer)]);
        with(request(id, &[]), &[completed, ("branches", branches)])
    };
    let begun = ask.begin(&asked("whole", "/seat")).await.json();
    assert_eq!(begun["outcome"], "commit", "{begun}");
    ask.open("open", &json!({"branches": [branch(&actor, "seat")]})).await;
    enlisted(ask, "open", &refers("/seat")).await;
    committed(ask, "open").await;
    for id in ["whole", "open"] {
        let mut seen = actor.seen().into_iter().filter(|seen| seen.transaction == id);
        let execute = seen.find(|seen| seen.operation == "execute").unwrap();
        let body: Value = serde_json::from_str(&execute.body).unwrap();
        assert_eq!(body, json!({"seat": 7, "for": "ada"}));
    }
    let shown = ask.begin(&asked("missing", "/row")).await.json();
    assert_eq!((&shown["outcome"], &shown["completed"]), (&json!("rollback"), &json!(true)));
    let reason = &shown["reason"];
    assert_eq!((&reason["code"], &reason["branch"]), (&json!("voted_no"), &json!("next")));
    let detail = reason["detail"].as_str().unwrap();
    assert!(detail.contains("seat") && detail.contains("/row"), "{detail}");
    assert_eq!(actor.count("execute", "missing"), 0);
}

#[tokio::test]
async fn plans_that_could_not_be_kept_are_refused_and_nobody_is_called() {
    let (actor, coordinator) = start().await;
    let ask = &coordinator.ask;
    let a = branch(&actor, "a");
    let b = |fields: &[(&str, Value)]| with(branch(&actor, "b"), fields);
    let to = |name: &str| json!({"$result": {"branch": name}});
    let by_initiator = ("phase_one_by", json!("initiator"));
    let (deferred, also) = (("kind", json!("deferred")), ("also_on_rollback", json!(true)));
    // Each is refused in a whole transaction and where it is enlisted, but for the last.
    let cases = [
        ("reference_unsafe", b(&[("payload", to("a"))]), "payload", false),
        (
            "reference_unsafe",
            b(&[("payload", to("a")), deferred.clone(), also.clone()]),
            "payload",
            false,
        ),
        ("reference_unknown", b(&[("payload", to("z"))]), "payload", false),
        ("reference_invalid", b(&[("payload", json!({"$result": "a"}))]), "payload", false),
        (
            "phase_one_by_unsafe",
            b(&[by_initiator.clone(), deferred.clone()]),
            "phase_one_by",
            false,
        ),
        ("deferred_only", b(&[("delay_ms", json!(5))]), "delay_ms", false),
        ("deferred_only", b(slice::from_ref(&also)), "also_on_rollback", false),
        ("local_unsafe", b(&[("kind", json!("local"))]), "kind", false),
        ("phase_one_by_unsafe", b(slice::from_ref(&by_initiator)), "phase_one_by", true),
    ];
    for (number, (code, branch, field, may_be_enlisted)) in cases.into_iter().enumerate() {
        let whole = with(request("whole", &[]), &[("branches", json!([a, branch]))]);
        let answer = ask.begin(&whole).await;
        refused(&answer, 400, code);
        assert_eq!(answer.problem().1, format!("branches[1].{field}"), "{}", answer.text());
        if !may_be_enlisted {
            let id = format!("open-{number}");
            ask.open(&id, &json!({"branches": [a]})).await;
            let before = ask.shown(&id).await;
            refused(&ask.about(&id, "branches", &branch).await, 400, code);
            assert_eq!(ask.shown(&id).await, before);
        }
    }
    ask.open("inquiry", &json!({"inquiry": actor.at("me")})).await;
    refused(&ask.about("inquiry", "branches", &a).await, 400, "local_unsafe");
    assert_eq!(actor.seen(), []);
    refused(&ask.get("/v1/transactions/whole").await, 404, "transaction_unknown");
}

#[tokio::test]
async fn deferred_work_and_the_notice_wait_for_everybody_else() {
    let (actor, coordinator) = start().await;
    let ask = &coordinator.ask;
    let deferred = with(branch(&actor, "mail"), &[("kind", json!("deferred"))]);
    let branches = json!([branch(&actor, "a"), branch(&actor, "b"), deferred]);
    let notice = json!({"url": actor.at("notice")});
    let asked = with(request("t", &[]), &[("branches", branches), ("notice", notice)]);
    actor.hold(Hold::Operation("commit"));
    assert_eq!(ask.begin(&asked).await.json()["outcome"], "commit");
    until("both commits", async || (actor.count("commit", "t") == 2).then_some(())).await;
    assert_eq!(actor.count("execute", "t"), 0);
    actor.hold(Hold::Operation("execute"));
    until("the mail", async || (actor.count("execute", "t") > 0).then_some(())).await;
    assert_eq!(actor.count("execute", "t"), 1, "the notice comes last");
    actor.hold(Hold::Nobody);
    ask.ended("t").await;
    let course = actor.course("t");
    assert_eq!(course[course.len() - 1], "notice execute", "{course:?}");
    assert_eq!(course[course.len() - 2], "mail execute", "{course:?}");
    let executes = actor.seen().into_iter().filter(|seen| seen.operation == "execute");
    let outcomes: Vec<String> = executes.map(|seen| seen.outcome).collect();
    assert_eq!(outcomes, ["commit", "commit"]);
}

#[tokio::test]
async fn the_notice_waits_for_deferred_work_that_is_enlisted_later() {
    let (actor, coordinator) = start().await;
    let ask = &coordinator.ask;
    let notice = json!({"url": actor.at("notice"), "on_rollback": true});
    let deferred = |name: &str, more: (&str, Value)| {
        with(branch(&actor, name), &[("kind", json!("deferred")), more])
    };
    ask.open("t", &json!({"branches": [branch(&actor, "a")], "notice": notice})).await;
    let behind = deferred("behind", ("after", json!(["notice"])));
    refused(&ask.about("t", "branches", &behind).await, 400, "after_unsafe");
    // Late enough that a notice which does not wait comes first.
    enlisted(ask, "t", &deferred("mail", ("delay_ms", json!(60)))).await;
    committed(ask, "t").await;
    assert_eq!(actor.course("t"), ["a prepare", "a commit", "mail execute", "notice execute"]);

    ask.open("back", &json!({"branches": [], "notice": notice})).await;
    let also =
        with(deferred("also", ("also_on_rollback", json!(true))), &[("delay_ms", json!(60))]);
    enlisted(ask, "back", &also).await;
    assert_eq!(ask.about("back", "rollback", &json!({})).await.status, 200);
    ask.ended("back").await;
    assert_eq!(actor.course("back"), ["also execute", "notice execute"]);
}

#[tokio::test]
async fn after_a_rollback_only_deferred_work_that_asks_for_it_is_done() {
    let (actor, coordinator) = start().await;
    let ask = &coordinator.ask;
    let deferred = |name: &str, also: bool| {
        let fields = [("kind", json!("deferred")), ("also_on_rollback", json!(also))];
        with(branch(&actor, name), &fields)
    };
    actor.vote(409);
    for (id, told) in [("told", true), ("untold", false)] {
        let branches =
            json!([branch(&actor, "a"), deferred("only", false), deferred("also", told)]);
        let notice = json!({"url": actor.at("notice"), "on_rollback": told});
        let fields = [("branches", branches), ("notice", notice), ("wait", json!("completed"))];
        let shown = ask.begin(&with(request(id, &[]), &fields)).await.json();
        assert_eq!((&shown["outcome"], &shown["completed"]), (&json!("rollback"), &json!(true)));
        let executes: Vec<(String, String)> = actor
            .seen()
            .into_iter()
            .filter(|seen| seen.transaction == id && seen.operation == "execute")
            .map(|seen| (seen.branch, seen.outcome))
            .collect();
        let rollback = |name: &str| (name.to_owned(), "rollback".to_owned());
        let expected = if told { vec![rollback("also"), rollback("notice")] } else { Vec::new() };
        assert_eq!(executes, expected);
    }
}

#[tokio::test]
async fn deferred_work_is_not_done_before_its_delay() {
    let (actor, coordinator) = start().await;
    let ask = &coordinator.ask;
    let asked = |id: &str, delay_ms: u64| {
        let fields = [("kind", json!("deferred")), ("delay_ms", json!(delay_ms))];
        let later = with(branch(&actor, "later"), &fields);
        with(request(id, &[]), &[("branches", json!([branch(&actor, "a"), later]))])
    };
    ask.begin(&asked("tomorrow", 86_400_000)).await;
    ask.begin(&asked("soon", 150)).await;
    let ended = ask.ended("soon").await;
    let passed = ended["ended_at_ms"].as_u64().unwrap() - ended["decided_at_ms"].as_u64().unwrap();
    assert!(passed >= 150, "{ended}");
    assert_eq!(actor.count("execute", "soon"), 1);
    let shown = ask.shown("tomorrow").await;
    let state = (&shown["outcome"], &shown["completed"]);
    assert_eq!(state, (&json!("commit"), &json!(false)), "{shown}");
    assert_eq!((actor.count("commit", "tomorrow"), actor.count("execute", "tomorrow")), (1, 0));
}

fn named(actor: &Actor, name: &str) -> BranchRequest {
    let (name, participant) = (name.to_owned(), actor.at(name));
    BranchRequest { name, participant, ..BranchRequest::default() }
}

fn called(id: &str) -> TransactionRequest {
    TransactionRequest { id: Some(id.to_owned()), ..TransactionRequest::default() }
}

#[tokio::test]
async fn a_scope_commits_if_it_succeeds_and_rolls_back_if_it_fails() {
    let (actor, coordinator) = start().await;
    let client = coordinator.client();
    let scope = async |id: &str, fails: bool| {
        client
            .transaction(called(id), async |open| {
                for name in ["a", "b"] {
                    open.enlist(&named(&actor, name)).await.map_err(|error| error.to_string())?;
                }
                if fails { Err("the caller has no money".to_owned()) } else { Ok(()) }
            })
            .await
    };
    assert_eq!(scope("yes", false).await.unwrap().outcome, Some(Outcome::Commit));
    coordinator.ask.ended("yes").await;
    let all = ["a commit", "a prepare", "b commit", "b prepare"];
    assert_eq!(sorted(actor.course("yes")), all);
    let error = scope("given-up", true).await.unwrap_err();
    assert!(matches!(&error, TransactionError::GivenUp(text) if text.contains("no money")));
    let ended = coordinator.ask.ended("given-up").await;
    assert_eq!(ended["reason"]["code"], "requested", "nobody waits for the time to pass");
    assert_eq!(actor.course("given-up"), Vec::<String>::new());
    actor.vote(409);
    let error = scope("refused", false).await.unwrap_err();
    assert!(matches!(error, TransactionError::RolledBack(_)), "{error}");
    assert!(error.to_string().contains("not today"), "{error}");
    // The transaction's time is over while the function still works: whoever commits is told.
    let mut short = called("late");
    short.open_timeout_ms = Some(20);
    let late = client.transaction(short, async |_| {
        coordinator.ask.ended("late").await;
        Ok::<(), String>(())
    });
    let error = soon(late).await.unwrap_err();
    assert!(matches!(error, TransactionError::RolledBack(_)), "{error}");
}

#[tokio::test]
async fn an_initiator_does_the_phase_one_work_through_the_sdk() {
    let (actor, coordinator) = start().await;
    let client = coordinator.client();
    let scope = async |id: &str| {
        client
            .transaction(called(id), async |open| {
                let seat = open.call_phase_one(&named(&actor, "seat")).await?;
                assert_eq!(seat.as_ref().map(Json::as_str), Some(r#"{"seat":7}"#));
                Ok::<_, PhaseOneError>(())
            })
            .await
    };
    assert_eq!(scope("yes").await.unwrap().outcome, Some(Outcome::Commit));
    coordinator.ask.ended("yes").await;
    assert_eq!(actor.course("yes"), ["seat prepare", "seat commit"]);
    actor.vote(409);
    let error = scope("no").await.unwrap_err();
    assert!(
        matches!(&error, TransactionError::GivenUp(PhaseOneError::No(why)) if why == "not today"),
        "{error}"
    );
    let ended = coordinator.ask.ended("no").await;
    assert_eq!(ended["outcome"], "rollback");
    assert_eq!(actor.course("no"), ["seat prepare", "seat rollback"]);
}
