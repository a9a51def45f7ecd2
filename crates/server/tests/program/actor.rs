//! A participant that does what a test tells it to: vote yes or no, hold its votes back, refuse to
//! acknowledge; and that remembers who asked it for what.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// Whose answers are held back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hold {
    Nobody,
    /// Every vote.
    Everybody,
    /// One transaction's votes.
    Only(String),
    /// Every answer to a commit or rollback.
    PhaseTwo,
    /// Every answer of one operation.
    Operation(&'static str),
}

/// A call as the participant saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Under which of its names it was called.
    pub name: String,
    pub operation: String,
    pub transaction: String,
    pub branch: String,
    pub attempt: u32,
    /// What was decided, if the call says so; empty if it does not.
    pub outcome: String,
    pub body: String,
}

struct Mind {
    hold: watch::Sender<Hold>,
    held: AtomicUsize,
    vote: AtomicU16,
    phase_two: AtomicU16,
    answers: Mutex<BTreeMap<&'static str, (u16, String)>>,
    seen: Mutex<Vec<Seen>>,
}

/// The participant. It plays as many parts as a test asks for, all at one address.
#[derive(Clone)]
pub struct Actor {
    url: String,
    mind: Arc<Mind>,
}

impl Actor {
    pub async fn start() -> Self {
        let mind = Arc::new(Mind {
            hold: watch::Sender::new(Hold::Nobody),
            held: AtomicUsize::new(0),
            vote: AtomicU16::new(200),
            phase_two: AtomicU16::new(200),
            answers: Mutex::default(),
            seen: Mutex::default(),
        });
        let router =
            Router::new().route("/{name}/{operation}", post(act)).with_state(Arc::clone(&mind));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, mind }
    }

    /// The address of one of its parts.
    pub fn at(&self, name: &str) -> String {
        format!("{}/{name}", self.url)
    }

    /// The addresses of its parts a and b.
    pub fn two(&self) -> [String; 2] {
        [self.at("a"), self.at("b")]
    }

    pub fn hold(&self, hold: Hold) {
        self.mind.hold.send_replace(hold);
    }

    /// How many prepares wait for their vote now.
    pub fn held(&self) -> usize {
        self.mind.held.load(Ordering::SeqCst)
    }

    /// The status with which prepares are answered from now on.
    pub fn vote(&self, status: u16) {
        self.mind.vote.store(status, Ordering::SeqCst);
    }

    /// The status with which commits and rollbacks are answered from now on.
    pub fn phase_two(&self, status: u16) {
        self.mind.phase_two.store(status, Ordering::SeqCst);
    }

    /// The status and the body with which one operation is answered from now on.
    pub fn answer(&self, operation: &'static str, status: u16, body: &serde_json::Value) {
        self.mind.answers.lock().unwrap().insert(operation, (status, body.to_string()));
    }

    /// Every call so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.mind.seen.lock().unwrap().clone()
    }

    /// How often an operation was asked for, on a transaction.
    pub fn count(&self, operation: &str, transaction: &str) -> usize {
        let seen = self.seen();
        let these = seen.iter().filter(|seen| seen.operation == operation);
        these.filter(|seen| seen.transaction == transaction).count()
    }

    /// What was asked for on a transaction, in its order, as `branch operation`.
    pub fn course(&self, transaction: &str) -> Vec<String> {
        let seen = self.seen().into_iter().filter(|seen| seen.transaction == transaction);
        seen.map(|seen| format!("{} {}", seen.branch, seen.operation)).collect()
    }
}

const JSON: [(&str, &str); 1] = [("content-type", "application/json")];

/// A vote that is held back, counted also if the caller goes away.
struct Held(Arc<Mind>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn act(
    State(mind): State<Arc<Mind>>,
    Path((name, operation)): Path<(String, String)>,
    headers: HeaderMap,
    body: String,
) -> Response {
    let text = |name: &str| headers[name].to_str().unwrap().to_owned();
    let seen = Seen {
        name,
        operation: operation.clone(),
        transaction: text("unanimity-transaction"),
        branch: text("unanimity-branch"),
        attempt: text("unanimity-attempt").parse().unwrap(),
        outcome: headers.get("unanimity-outcome").map_or("", |v| v.to_str().unwrap()).to_owned(),
        body,
    };
    let transaction = seen.transaction.clone();
    mind.seen.lock().unwrap().push(seen);
    let prepares = operation == "prepare";
    let mine = |hold: &Hold| match hold {
        Hold::Nobody => false,
        Hold::Everybody => prepares,
        Hold::Only(only) => prepares && *only == transaction,
        Hold::PhaseTwo => !prepares,
        Hold::Operation(only) => operation == *only,
    };
    mind.held.fetch_add(usize::from(prepares), Ordering::SeqCst);
    let held = prepares.then(|| Held(Arc::clone(&mind)));
    mind.hold.subscribe().wait_for(|hold| !mine(hold)).await.unwrap();
    drop(held);
    let told = mind.answers.lock().unwrap().get(&*operation).cloned();
    if let Some((status, body)) = told {
        return (StatusCode::from_u16(status).unwrap(), JSON, body).into_response();
    }
    if !prepares {
        let status = StatusCode::from_u16(mind.phase_two.load(Ordering::SeqCst)).unwrap();
        return (status, "told so by the test").into_response();
    }
    let vote = mind.vote.load(Ordering::SeqCst);
    let answer = serde_json::json!({"result": {"seat": 7}, "reason": "not today"});
    (StatusCode::from_u16(vote).unwrap(), axum::Json(answer)).into_response()
}
