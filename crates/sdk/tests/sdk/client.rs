//! The initiator's client against a coordinator of a few lines.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::response::IntoResponse;
use http::{Request, StatusCode};
use unanimity_sdk::api::{
    BranchRequest, Json, Outcome, Problem, Stage, TransactionRequest, TransactionStatus,
};
use unanimity_sdk::contract::write_problem;
use unanimity_sdk::{Client, ClientError, ClientOptions, TransactionError, axum};

use crate::support::id;

/// Serves `app` on a free port for as long as the runtime lives; gives its base URL.
async fn serve(app: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    url
}

fn status() -> TransactionStatus {
    TransactionStatus {
        interactive: false,
        one_phase: false,
        heuristic: None,
        id: "t".into(),
        stage: Stage::Ended,
        outcome: Some(Outcome::Commit),
        completed: true,
        reason: None,
        overdue: false,
        set_aside: None,
        begun_at_ms: 1,
        decided_at_ms: Some(2),
        ended_at_ms: Some(3),
        branches: Vec::new(),
    }
}

#[tokio::test]
async fn requests_carry_the_token_and_the_payload_as_written() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    let app = Router::new().fallback(move |request: Request<Body>| async move {
        let (parts, body) = request.into_parts();
        let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
        let token =
            parts.headers.get("authorization").map(|value| value.to_str().unwrap().to_owned());
        log.lock().unwrap().push((parts.method.to_string(), parts.uri.to_string(), token, body));
        axum::Json(status())
    });
    let client = Client::new(&serve(app).await, Some("secret")).unwrap();
    let payload = Json::from_text(r#"{"amount": 1.10}"#.to_owned()).unwrap();
    let branch = BranchRequest {
        name: "a".into(),
        participant: "http://x".into(),
        payload,
        ..BranchRequest::default()
    };
    let request = TransactionRequest { branches: vec![branch], ..Default::default() };
    assert_eq!(client.begin(&request).await.unwrap(), status());
    assert_eq!(client.get(&id("t"), Some(Duration::from_millis(1_500))).await.unwrap(), status());
    let seen = seen.lock().unwrap();
    let token = Some("Bearer secret".to_owned());
    assert_eq!(seen[0].0, "POST");
    assert_eq!(seen[0].2, token);
    assert!(seen[0].3.windows(16).any(|part| part == br#"{"amount": 1.10}"#));
    let second = (seen[1].0.as_str(), seen[1].1.as_str(), seen[1].3.clone());
    assert_eq!(second, ("GET", "/v1/transactions/t?wait=1500ms", Bytes::new()));
}

#[tokio::test]
async fn problems_redirects_silence_and_floods_are_told_apart() {
    let app = Router::new()
        .route(
            "/v1/transactions/unknown",
            axum::routing::get(|| async {
                write_problem(&Problem::new(404, "unknown_transaction", "t", "nobody knows it"))
            }),
        )
        .route(
            "/v1/transactions/moved",
            axum::routing::get(|| async {
                (StatusCode::FOUND, [("location", "/v1/transactions/ok")]).into_response()
            }),
        )
        .route("/v1/transactions/ok", axum::routing::get(|| async { axum::Json(status()) }))
        .route("/v1/transactions/silent", axum::routing::get(std::future::pending::<()>))
        .route("/v1/transactions/flood", axum::routing::get(|| async { "x".repeat(100_000) }))
        .route("/v1/transactions/garbage", axum::routing::get(|| async { "<html>" }));
    let options = ClientOptions {
        request_timeout_ms: 200,
        answer_bytes_max: 10_000,
        ..ClientOptions::default()
    };
    let url = serve(app).await;
    let client = Client::with_options(&url, None, options).unwrap();
    let ask = async |name: &str| client.get(&id(name), None).await.unwrap_err();
    assert_eq!(ask("unknown").await.code(), Some("unknown_transaction"));
    assert!(matches!(ask("moved").await, ClientError::Refused { status: 302, .. }));
    assert!(matches!(ask("silent").await, ClientError::NoAnswer(_)));
    assert!(matches!(ask("flood").await, ClientError::NoAnswer(_)));
    assert!(matches!(ask("garbage").await, ClientError::Unreadable(_)));
    let nobody = Client::new("http://127.0.0.1:1", None).unwrap();
    let error = nobody.get(&id("t"), None).await.unwrap_err().to_string();
    assert!(error.contains("refused"), "{error}");
}

/// A coordinator that gives these answers, one after the other, and keeps the paths.
async fn answering(answers: Vec<axum::response::Response>) -> (String, Arc<Mutex<Vec<String>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (log, answers) = (Arc::clone(&seen), Arc::new(Mutex::new(answers)));
    let app = Router::new().fallback(move |request: Request<Body>| async move {
        let path = request.uri().path().trim_start_matches("/v1/transactions");
        log.lock().unwrap().push(format!("{} {path}", request.method()));
        let mut answers = answers.lock().unwrap();
        if answers.is_empty() { StatusCode::IM_A_TEAPOT.into_response() } else { answers.remove(0) }
    });
    (serve(app).await, seen)
}

fn problem(status: u16, code: &str) -> axum::response::Response {
    write_problem(&Problem::new(status, code, "t", "not now")).into_response()
}

fn shown(outcome: Option<Outcome>) -> axum::response::Response {
    axum::Json(TransactionStatus { outcome, ..status() }).into_response()
}

#[tokio::test]
async fn the_steps_of_a_scope_are_asked_for_again_until_they_are_answered() {
    let (url, seen) = answering(vec![
        problem(503, "stopping"),
        "<html>".into_response(),
        shown(None),
        problem(429, "overloaded"),
        shown(None),
        "<html>".into_response(),
        // It was acted on, and a branch said no.
        problem(409, "already_decided"),
        shown(Some(Outcome::Rollback)),
    ])
    .await;
    let client = Client::new(&url, None).unwrap();
    let named = TransactionRequest { id: Some("t".into()), ..Default::default() };
    let scope = client
        .transaction(named, async |open| open.enlist(&BranchRequest::default()).await.map(drop));
    let error = scope.await.unwrap_err();
    assert!(matches!(error, TransactionError::RolledBack(_)), "{error}");
    let steps = ["POST ", "POST /t/branches", "POST /t/commit", "GET /t"];
    let [begin, enlist, commit, get] = steps;
    let expected = [begin, begin, begin, enlist, enlist, commit, commit, get];
    assert_eq!(*seen.lock().unwrap(), expected);
}

#[tokio::test]
async fn what_stays_wrong_is_asked_once_and_so_is_everything_without_patience() {
    let named = || TransactionRequest { id: Some("t".into()), ..Default::default() };
    for (answer, patience_ms) in [(problem(422, "id_reused"), 10_000), (problem(503, "x"), 0)] {
        let (url, seen) = answering(vec![answer]).await;
        let options = ClientOptions { patience_ms, ..ClientOptions::default() };
        let client = Client::with_options(&url, None, options).unwrap();
        let error = client.open::<()>(named()).await.unwrap_err();
        assert!(matches!(error, TransactionError::Client { .. }), "{error:?}");
        assert_eq!(seen.lock().unwrap().len(), 1);
    }
    // A whole transaction is asked for once: its caller knows whether it has an id of its own.
    let (url, seen) = answering(vec![problem(503, "stopping")]).await;
    Client::new(&url, None).unwrap().begin(&named()).await.unwrap_err();
    assert_eq!(seen.lock().unwrap().len(), 1);
}

/// Asks until something does not arrive, or so many requests have.
async fn ask_too_much(holds_back: bool, arrive_max: usize) -> (usize, usize) {
    let arrived = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&arrived);
    let app = Router::new().fallback(async move || {
        counted.fetch_add(1, Ordering::Relaxed);
        problem(429, "overloaded")
    });
    let options = ClientOptions { holds_back, ..ClientOptions::default() };
    let client = Client::with_options(&serve(app).await, None, options).unwrap();
    let (mut asked, arrived) = (0, || arrived.load(Ordering::Relaxed));
    while asked == arrived() && asked < arrive_max {
        let mut together = tokio::task::JoinSet::new();
        for _ in 0..100 {
            let client = client.clone();
            together.spawn(async move { client.begin(&TransactionRequest::default()).await });
        }
        for answer in together.join_all().await {
            assert_eq!(answer.unwrap_err().code(), Some("overloaded"));
            asked += 1;
        }
    }
    (asked, arrived())
}

#[tokio::test]
async fn what_would_be_refused_is_not_even_sent_unless_that_is_asked_for() {
    let (asked, arrived) = ask_too_much(true, usize::MAX).await;
    assert!(arrived < asked);
    assert_eq!(ask_too_much(false, 1_000).await, (1_000, 1_000));
}

/// One request is under way and never answered: the others wait, and soon for too long.
#[tokio::test]
async fn a_beginning_that_would_wait_too_long_for_its_turn_is_refused_unsent() {
    let arrived = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&arrived);
    let app = Router::new().fallback(async move || {
        counted.fetch_add(1, Ordering::Relaxed);
        std::future::pending::<()>().await;
    });
    let options =
        ClientOptions { requests_max: 1, begin_wait_max_ms: 1, ..ClientOptions::default() };
    let client = Client::with_options(&serve(app).await, None, options).unwrap();
    let mut waiting = tokio::task::JoinSet::new();
    let refused = loop {
        let client = client.clone();
        waiting.spawn(async move { client.begin(&TransactionRequest::default()).await });
        tokio::task::yield_now().await;
        assert!(waiting.len() < 200_000, "all of them wait");
        if let Some(ended) = waiting.try_join_next() {
            break ended.unwrap().unwrap_err();
        }
    };
    assert!(refused.to_string().contains("begin_wait_max_ms"), "{refused}");
    assert_eq!(refused.code(), Some("overloaded"));
    assert!(waiting.len() >= 128 && arrived.load(Ordering::Relaxed) <= 1);
}
