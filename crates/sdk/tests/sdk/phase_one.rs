//! An initiator that does a branch's phase-one work itself, against a coordinator of a few lines
//! and participants that answer as they are told.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use http::{Request, Response};
use unanimity_sdk::api::{BranchRequest, Json, Kind, Problem};
use unanimity_sdk::contract::write_problem;
use unanimity_sdk::{Client, PhaseOneError, axum};

use crate::support::id;

/// What was asked, in order: of the coordinator its path, of the participant also headers.
type Seen = Arc<Mutex<Vec<String>>>;

async fn serve(app: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    url
}

/// A coordinator that enlists everything, or nothing.
async fn coordinator(seen: &Seen, takes: bool) -> Client {
    let seen = Arc::clone(seen);
    let app = Router::new().fallback(move |request: Request<Body>| async move {
        let path = request.uri().path().to_owned();
        let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
        let branch: BranchRequest = serde_json::from_slice(&body).unwrap();
        seen.lock().unwrap().push(format!("{path} {:?}", branch.phase_one_by));
        if !takes {
            return write_problem(&Problem::new(409, "not_open", "Not open", "it is not open"));
        }
        let shown = r#"{"id":"t","stage":"open","interactive":true,"outcome":null,
            "completed":false,"reason":null,"overdue":false,"begun_at_ms":1,"decided_at_ms":null,
            "ended_at_ms":null,"branches":[]}"#;
        Response::new(Body::from(shown))
    });
    Client::new(&serve(app).await, Some("secret")).unwrap()
}

/// A participant that gives these answers, one after the other, and the last for ever.
async fn participant(seen: &Seen, answers: &'static [(u16, &'static str)]) -> String {
    let (seen, given) = (Arc::clone(seen), Arc::new(Mutex::new(0)));
    let app = Router::new().fallback(move |request: Request<Body>| async move {
        let (head, body) = request.into_parts();
        let header = |name: &str| head.headers.get(name).map_or("none", |v| v.to_str().unwrap());
        let names = ["transaction", "branch", "attempt"].map(|name| format!("unanimity-{name}"));
        let [transaction, branch, attempt] = [0, 1, 2].map(|n| header(&names[n]).to_owned());
        let token = header("authorization");
        let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
        let body = String::from_utf8(body.to_vec()).unwrap();
        let path = head.uri.path();
        let line = format!("{path} {transaction} {branch} {attempt} token {token}: {body}");
        seen.lock().unwrap().push(line);
        let mut given = given.lock().unwrap();
        let (status, text) = answers[(*given).min(answers.len() - 1)];
        *given += 1;
        Response::builder().status(status).body(Body::from(text)).unwrap()
    });
    serve(app).await
}

async fn check(
    kind: Kind,
    answers: &'static [(u16, &'static str)],
    expected: Result<Option<&str>, &str>,
    calls: usize,
) {
    let seen = Seen::default();
    let (client, address) = (coordinator(&seen, true).await, participant(&seen, answers).await);
    let branch = BranchRequest {
        name: "seat".into(),
        participant: format!("{address}/seats/"),
        kind,
        payload: Json::from_text(r#"{"row": 7}"#.to_owned()).unwrap(),
        ..BranchRequest::default()
    };
    let found = client.join(id("t")).call_phase_one(&branch).await;
    let told = match &found {
        Ok(result) => Ok(result.as_ref().map(Json::as_str)),
        Err(PhaseOneError::NotEnlisted(_)) => Err("not enlisted"),
        Err(PhaseOneError::No(reason)) => Err(&**reason),
        Err(PhaseOneError::Unknown(_)) => Err("unknown"),
    };
    assert_eq!(told, expected, "{found:?}");
    let word = if kind == Kind::TwoPhase { "prepare" } else { "execute" };
    let call = |n| format!("/seats/{word} t seat {n} token none: {{\"row\": 7}}");
    let enlisted = "/v1/transactions/t/branches Initiator".to_owned();
    let all: Vec<String> = std::iter::once(enlisted).chain((1..=calls).map(call)).collect();
    assert_eq!(*seen.lock().unwrap(), all);
}

#[tokio::test]
async fn work_is_done_after_the_branch_is_on_record_and_its_result_comes_back() {
    const SEAT: &[(u16, &str)] = &[(200, r#"{"vote":"yes","result":{"seat": 7}}"#)];
    check(Kind::TwoPhase, SEAT, Ok(Some(r#"{"seat":7}"#)), 1).await;
    check(Kind::Compensable, &[(204, "")], Ok(None), 1).await;
    check(Kind::TwoPhase, &[(200, r#"{"vote":"read_only"}"#)], Ok(None), 1).await;
    check(Kind::TwoPhase, &[(409, r#"{"reason":"sold out"}"#)], Err("sold out"), 1).await;
}

#[tokio::test]
async fn a_call_without_a_decisive_answer_is_made_again_a_few_times() {
    check(Kind::TwoPhase, &[(503, ""), (500, ""), (200, "{}")], Ok(None), 3).await;
    check(Kind::TwoPhase, &[(503, "")], Err("unknown"), 3).await;
    // A page for people is no yes.
    check(Kind::TwoPhase, &[(200, "<html>")], Err("unknown"), 3).await;
}

#[tokio::test]
async fn nobody_is_called_whose_branch_is_not_on_record() {
    let seen = Seen::default();
    let address = participant(&seen, &[(200, "")]).await;
    let branch = |kind| BranchRequest {
        name: "seat".into(),
        participant: address.clone(),
        kind,
        ..BranchRequest::default()
    };
    let open = coordinator(&seen, false).await.join(id("t"));
    let refused = open.call_phase_one(&branch(Kind::TwoPhase)).await.unwrap_err();
    let code = match &refused {
        PhaseOneError::NotEnlisted(error) => error.code(),
        other => panic!("{other}"),
    };
    assert_eq!(code, Some("not_open"));
    for kind in [Kind::Deferred, Kind::Local] {
        let refused = open.call_phase_one(&branch(kind)).await.unwrap_err();
        assert!(matches!(refused, PhaseOneError::NotEnlisted(_)), "{refused}");
    }
    let tls = BranchRequest { participant: "https://x".into(), ..branch(Kind::TwoPhase) };
    let refused = open.call_phase_one(&tls).await.unwrap_err();
    assert!(refused.to_string().contains("https"), "{refused}");
    assert_eq!(*seen.lock().unwrap(), ["/v1/transactions/t/branches Initiator"]);
}
