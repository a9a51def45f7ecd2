//! Where the coordinator may not decide alone: one participant that commits in one phase, an
//! initiator's own database that is asked, and an operator's word on a branch.

use std::slice;

use serde_json::{Value, json};

use crate::actor::{Actor, Hold};
use crate::ask::{Answer, Ask, Coordinator, Ended, request, run, with};
use crate::setup::until;

const QUICK: [&str; 4] = ["--retry-delay-ms", "20", "--retry-delay-max-ms", "40"];

/// A coordinator that tries again soon, and a participant that says yes to everything.
async fn start() -> (Actor, Coordinator) {
    let actor = Actor::start().await;
    for operation in ["execute", "commit_one_phase", "inquire"] {
        actor.answer(operation, 200, &json!({}));
    }
    (actor, Coordinator::start(&QUICK).await)
}

fn single(actor: &Actor, id: &str, fields: &[(&str, Value)]) -> Value {
    with(request(id, &[actor.at("a")]), fields)
}

/// A guard's refusal to roll back what is committed there.
fn already_committed() -> Value {
    json!({"code": "already_committed", "detail": "committed long ago"})
}

fn end(shown: &Value) -> (&str, &str) {
    (shown["outcome"].as_str().unwrap(), shown["reason"]["code"].as_str().unwrap())
}

#[tokio::test]
async fn a_single_branch_commits_in_one_call() {
    let (actor, coordinator) = start().await;
    let ask = &coordinator.ask;
    let completed = ("wait", json!("completed"));
    let shown = ask.begin(&single(&actor, "one", slice::from_ref(&completed))).await.json();
    assert_eq!((&shown["outcome"], &shown["completed"]), (&json!("commit"), &json!(true)));
    assert_eq!(actor.course("one"), ["a commit_one_phase"]);
    assert_eq!(actor.seen()[0].body, json!({"of": "one"}).to_string());
    let two = single(&actor, "two", &[completed.clone(), ("one_phase", json!(false))]);
    assert_eq!(ask.begin(&two).await.json()["outcome"], "commit");
    assert_eq!(actor.course("two"), ["a prepare", "a commit"]);
    for status in [404, 405, 501] {
        actor.answer("commit_one_phase", status, &json!({}));
        let id = format!("unknown-{status}");
        let shown = ask.begin(&single(&actor, &id, slice::from_ref(&completed))).await.json();
        assert_eq!((&shown["outcome"], &shown["completed"]), (&json!("commit"), &json!(true)));
        assert_eq!(actor.course(&id), ["a commit_one_phase", "a prepare", "a commit"]);
    }
    actor.answer("commit_one_phase", 409, &json!({"reason": "no seat"}));
    let shown = ask.begin(&single(&actor, "no", &[completed])).await.json();
    assert_eq!(end(&shown), ("rollback", "voted_no"));
    assert_eq!(shown["reason"]["detail"], "no seat");
}

/// Begins a transaction whose only participant gets the call and answers nothing, until its time is
/// over and the participant was asked to roll back, without an answer to that.
async fn settling(ask: &Ask, actor: &Actor, id: &str) {
    actor.hold(Hold::Operation("commit_one_phase"));
    actor.answer("rollback", 503, &json!({}));
    let asked = single(actor, id, &[("prepare_timeout_ms", json!(100))]);
    let answer = ask.begin(&asked).await;
    let shown = answer.json();
    assert_eq!((answer.status, &shown["stage"]), (202, &json!("settling")), "{shown}");
    assert_eq!(shown["outcome"], Value::Null);
    until("the question", async || (actor.count("rollback", id) >= 2).then_some(())).await;
    let decision = ask.get(&format!("/v1/transactions/{id}/decision")).await.json();
    assert_eq!(decision, json!({"decision": "pending"}));
}

#[tokio::test]
async fn a_lost_answer_in_one_phase_is_settled_by_the_participant() {
    let (actor, coordinator) = start().await;
    let ask = &coordinator.ask;
    settling(ask, &actor, "there").await;
    // Whoever asks again, or asks to roll back, learns no more than that.
    let again = single(&actor, "there", &[("prepare_timeout_ms", json!(100))]);
    let answer = ask.begin(&again).await;
    assert_eq!((answer.status, &answer.json()["outcome"]), (202, &Value::Null));
    let back = ask.about("there", "rollback", &json!({})).await.json();
    assert_eq!((&back["stage"], &back["outcome"]), (&json!("settling"), &Value::Null));
    actor.answer("rollback", 409, &already_committed());
    let ended = ask.ended("there").await;
    assert_eq!(end(&ended), ("commit", "settled_by_participant"));
    assert_eq!((actor.count("prepare", "there"), actor.count("commit", "there")), (0, 0));
    settling(ask, &actor, "not-there").await;
    actor.answer("rollback", 200, &json!({}));
    assert_eq!(end(&ask.ended("not-there").await), ("rollback", "prepare_timeout"));
    actor.hold(Hold::Nobody);
}

#[tokio::test]
async fn a_coordinator_that_comes_back_asks_the_participant_that_alone_knows() {
    let (actor, mut coordinator) = start().await;
    let ask = coordinator.ask.clone();
    for (id, status, expected) in [
        ("there", 409, ("commit", "settled_by_participant")),
        ("not-there", 200, ("rollback", "coordinator_restarted")),
    ] {
        actor.hold(Hold::Operation("commit_one_phase"));
        ask.begin(&single(&actor, id, &[("wait", json!("accepted"))])).await;
        let asked = async || (actor.count("commit_one_phase", id) > 0).then_some(());
        until("the call", asked).await;
        coordinator.kill().await;
        actor.answer("rollback", status, &already_committed());
        coordinator.start_again().await;
        assert_eq!(end(&ask.ended(id).await), expected);
        assert_eq!(actor.course(id), ["a commit_one_phase", "a rollback"]);
    }
    actor.hold(Hold::Nobody);
}

/// Opens a transaction with an inquiry and a mail, whose initiator falls silent at once.
async fn silent(ask: &Ask, actor: &Actor, id: &str) {
    let mail = json!({"name": "mail", "participant": actor.at("mail"), "kind": "deferred"});
    let fields = json!({"inquiry": actor.at("orders"), "branches": [mail], "open_timeout_ms": 30});
    let begun = ask.open(id, &fields).await;
    assert_eq!(begun["branches"][0]["name"], "initiator");
    assert_eq!(begun["branches"][0]["kind"], "local");
}

#[tokio::test]
async fn a_silent_initiator_is_asked_for_its_local_work() {
    let (actor, coordinator) = start().await;
    let ask = &coordinator.ask;
    silent(ask, &actor, "there").await;
    let ended = ask.ended("there").await;
    assert_eq!(end(&ended), ("commit", "settled_by_participant"));
    assert_eq!(actor.course("there"), ["initiator inquire", "mail execute"]);
    for status in [409, 422] {
        actor.answer("inquire", status, &json!({}));
        let id = format!("not-there-{status}");
        silent(ask, &actor, &id).await;
        assert_eq!(end(&ask.ended(&id).await), ("rollback", "abandoned"));
        assert_eq!(actor.course(&id), ["initiator inquire"]);
    }
    actor.answer("inquire", 500, &json!({}));
    silent(ask, &actor, "unknown").await;
    until("questions", async || (actor.count("inquire", "unknown") >= 3).then_some(())).await;
    let shown = ask.shown("unknown").await;
    let state = (&shown["stage"], &shown["outcome"]);
    assert_eq!(state, (&json!("settling"), &Value::Null), "nothing is decided by itself");
    // The initiator is back and says that it has committed: nobody else need be asked.
    let answer = ask.about("unknown", "commit?wait=completed", &json!({})).await;
    assert_eq!((answer.status, &answer.json()["outcome"]), (200, &json!("commit")));
    assert_eq!(actor.count("execute", "unknown"), 1);
}

#[tokio::test]
async fn an_initiator_that_speaks_in_time_is_not_asked() {
    let (actor, coordinator) = start().await;
    let ask = &coordinator.ask;
    ask.open("t", &json!({"inquiry": actor.at("orders")})).await;
    let mail = json!({"name": "mail", "participant": actor.at("mail"), "kind": "deferred"});
    assert_eq!(ask.about("t", "branches", &mail).await.status, 200);
    let answer = ask.about("t", "commit?wait=completed", &json!({})).await;
    assert_eq!((answer.status, &answer.json()["outcome"]), (200, &json!("commit")));
    assert_eq!(actor.course("t"), ["mail execute"]);
}

async fn resolve(ask: &Ask, id: &str, branch: &str, settled_as: &str, reason: &str) -> Answer {
    let word = json!({"as": settled_as, "by": "ada", "reason": reason});
    ask.about(id, &format!("branches/{branch}/resolve"), &word).await
}

fn refused(answer: &Answer, status: u16, code: &str) {
    let found = answer.problem().0;
    assert_eq!((answer.status, &*found), (status, code), "{}", answer.text());
}

/// Commits a transaction of two branches, of which neither acknowledges.
async fn stuck(ask: &Ask, actor: &Actor, id: &str) {
    actor.phase_two(503);
    assert_eq!(ask.begin(&request(id, &actor.two())).await.json()["outcome"], "commit");
}

#[tokio::test]
async fn a_word_that_agrees_with_the_decision_settles_the_branch() {
    let (actor, coordinator) = start().await;
    let ask = &coordinator.ask;
    stuck(ask, &actor, "t").await;
    let answer = resolve(ask, "t", "a", "committed", "").await;
    let shown = answer.json();
    assert_eq!((answer.status, &shown["heuristic"]), (200, &json!("committed")), "{shown}");
    let state = |n: usize| &shown["branches"][n]["state"];
    assert_eq!((state(0), state(1)), (&json!("done"), &json!("finishing")));
    let word = &shown["branches"][0]["resolution"];
    assert_eq!((&word["settled_as"], &word["by"]), (&json!("committed"), &json!("ada")));
    let until_now = actor.course("t").iter().filter(|call| *call == "a commit").count();
    refused(&resolve(ask, "t", "a", "committed", "").await, 409, "branch_settled");
    let later = actor.count("commit", "t") + 3;
    until("more calls", async || (actor.count("commit", "t") >= later).then_some(())).await;
    let now = actor.course("t").iter().filter(|call| *call == "a commit").count();
    assert!(now <= until_now + 1, "a settled branch is called no more, but for a call under way");
    actor.phase_two(200);
    assert_eq!(ask.ended("t").await["heuristic"], "committed");

    let mine = json!({"name": "mine", "participant": actor.at("a"), "phase_one_by": "initiator"});
    ask.open("back", &json!({"branches": [mine]})).await;
    refused(&resolve(ask, "back", "mine", "committed", "sure").await, 409, "undecided");
    actor.phase_two(503);
    assert_eq!(ask.about("back", "rollback", &json!({})).await.status, 200);
    let shown = resolve(ask, "back", "mine", "rolled_back", "").await.json();
    let told = (&shown["heuristic"], &shown["completed"], &shown["outcome"]);
    assert_eq!(told, (&json!("rolled_back"), &json!(true), &json!("rollback")), "{shown}");
}

#[tokio::test]
async fn what_cannot_be_resolved_says_why_and_changes_nothing() {
    let (actor, coordinator) = start().await;
    let ask = &coordinator.ask;
    refused(&resolve(ask, "nobody", "a", "committed", "").await, 404, "transaction_unknown");
    stuck(ask, &actor, "t").await;
    refused(&resolve(ask, "t", "z", "committed", "").await, 404, "branch_unknown");
    refused(&resolve(ask, "t", "a", "rolled_back", "").await, 400, "reason_missing");
    refused(&resolve(ask, "t", "a", "rolled_back", "  ").await, 400, "reason_missing");
    let nobody = json!({"as": "committed", "by": " ", "reason": "x"});
    refused(&ask.about("t", "branches/a/resolve", &nobody).await, 400, "wrong_type");
    let shown = ask.shown("t").await;
    assert_eq!((&shown["heuristic"], &shown["completed"]), (&Value::Null, &json!(false)));
    actor.hold(Hold::Only("asked".to_owned()));
    let asked = with(request("asked", &actor.two()), &[("wait", json!("accepted"))]);
    ask.begin(&asked).await;
    refused(&resolve(ask, "asked", "a", "committed", "sure").await, 409, "undecided");
    actor.hold(Hold::Nobody);
    actor.phase_two(200);
    let ended = ask.ended("t").await;
    assert_eq!(ended["heuristic"], Value::Null);
    for (settled_as, reason) in
        [("rolled_back", "too late"), ("rolled_back", ""), ("committed", "")]
    {
        let answer = resolve(ask, "t", "a", settled_as, reason).await;
        refused(&answer, 409, "branch_settled");
        let text = answer.text();
        assert!(text.contains("on record: commit; nobody settled the branch by hand"), "{text}");
    }
    refused(&resolve(ask, "t", "z", "committed", "").await, 404, "branch_unknown");
    assert_eq!(ask.shown("t").await, ended);
}

fn plain(ended: &Ended) -> &str {
    assert_eq!((ended.status, &*ended.stderr), (0, ""), "{ended:?}");
    &ended.stdout
}

#[tokio::test]
async fn a_word_against_the_decision_is_mixed_and_shown_for_ever() {
    let (actor, mut coordinator) = start().await;
    let ask = coordinator.ask.clone();
    let url = coordinator.url.clone();
    let command = async |arguments: &[&str]| run(&[arguments, &["--url", &url]].concat()).await;
    stuck(&ask, &actor, "t").await;
    let word = ["resolve", "t", "a", "--as", "rolled_back", "--by", "grace"];
    let unexplained = command(&word).await;
    assert_eq!(unexplained.status, 1, "{unexplained:?}");
    assert!(unexplained.stderr.contains("reason_missing"), "{unexplained:?}");
    let explained = command(&[&word[..], &["--reason", "the bank has gone"]].concat()).await;
    assert!(plain(&explained).contains("settled by hand: mixed"), "{explained:?}");
    let check = async || {
        let shown = ask.shown("t").await;
        let mixed = (&shown["heuristic"], &shown["outcome"]);
        assert_eq!(mixed, (&json!("mixed"), &json!("commit")), "{shown}");
        let word = &shown["branches"][0]["resolution"];
        let told = (&word["settled_as"], &word["by"], &word["reason"]);
        let expected = (&json!("rolled_back"), &json!("grace"), &json!("the bank has gone"));
        assert_eq!(told, expected);
        let show = command(&["show", "t"]).await;
        for part in ["settled by hand: mixed", "says grace: the bank has gone"] {
            assert!(plain(&show).contains(part), "no {part:?} in {show:?}");
        }
    };
    check().await;
    coordinator.kill().await;
    coordinator.start_again().await;
    check().await;
    actor.phase_two(200);
    ask.ended("t").await;
    check().await;
    coordinator.kill().await;
    coordinator.start_again().await;
    check().await;
    let late = ask.about("t", "branches/a/resolve", &json!({"as": "committed", "by": "ada"})).await;
    refused(&late, 409, "branch_settled");
    let text = late.text();
    assert!(text.contains("the branch was settled as rolled_back by grace"), "{text}");
    // Only the other branch was ever told.
    let restarted = ask.shown("t").await;
    assert_eq!(restarted["completed"], true);
}

#[tokio::test]
async fn a_participant_that_claims_the_opposite_makes_it_a_hazard() {
    let (actor, coordinator) = start().await;
    let ask = &coordinator.ask;
    actor.answer("commit", 409, &json!({"code": "already_rolled_back", "detail": "rolled back"}));
    ask.begin(&request("t", &actor.two())).await;
    until("its claim", async || {
        let error = ask.shown("t").await["branches"][0]["last_error"].clone();
        error.as_str().filter(|text| text.contains("409")).map(|_| ())
    })
    .await;
    let shown = resolve(ask, "t", "a", "committed", "done by hand").await.json();
    assert_eq!(shown["heuristic"], "hazard", "{shown}");
    actor.answer("commit", 200, &json!({}));
    assert_eq!(ask.ended("t").await["heuristic"], "hazard");
}

#[tokio::test]
async fn an_operator_decides_what_only_a_silent_participant_knows() {
    let (actor, coordinator) = start().await;
    let ask = &coordinator.ask;
    for (settled_as, outcome) in [("committed", "commit"), ("rolled_back", "rollback")] {
        let id = format!("one-{outcome}");
        settling(ask, &actor, &id).await;
        let answer = resolve(ask, &id, "a", settled_as, "").await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let ended = ask.ended(&id).await;
        let told = (&ended["outcome"], &ended["heuristic"]);
        assert_eq!(told, (&json!(outcome), &json!(settled_as)), "{ended}");
        actor.answer("inquire", 500, &json!({}));
        let id = format!("asked-{outcome}");
        silent(ask, &actor, &id).await;
        until("the question", async || (actor.count("inquire", &id) > 0).then_some(())).await;
        let answer = resolve(ask, &id, "initiator", settled_as, "").await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(ask.ended(&id).await["outcome"], *outcome);
        let mails = usize::from(outcome == "commit");
        assert_eq!(actor.count("execute", &id), mails);
    }
    actor.hold(Hold::Nobody);
}
