//! Decides what the bank tells over HTTP: the participant under `/transactions`, with the faults in
//! front of it; accounts and totals for people; guard rows for audits.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Query, Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use unanimity_sdk::api::Problem;
use unanimity_sdk::contract::{
    ATTEMPT_HEADER, BODY_BYTES_MAX, BRANCH_HEADER, TRANSACTION_HEADER, write_problem,
};
use unanimity_sdk::guard::GuardState;
use unanimity_sdk::{CallError, Participant};

use crate::books::Books;
use crate::faults::{Fault, FaultSpec, Faults, Message, Struck};
use crate::listen::LoseAnswer;

/// The most accounts on one page.
const PAGE_ACCOUNTS_MAX: u32 = 10_000;
/// How many guard rows are read at a time.
const PAGE_ROWS: u32 = 10_000;

/// One account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountView {
    /// Its name, such as `A-17`.
    pub id: String,
    /// In cents; what is reserved is part of it.
    pub balance: i64,
    /// In cents: held back for debits that are prepared. Always 0 where accounts are locked.
    pub reserved: i64,
    /// How often it was changed, where accounts are locked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<i64>,
}

impl AccountView {
    pub(crate) const fn new(id: String, balance: i64, reserved: i64) -> Self {
        Self { id, balance, reserved, version: None }
    }
}

/// One page of accounts, in the order of their names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountPage {
    /// The page.
    pub accounts: Vec<AccountView>,
    /// What to give as `after` for the next page; none on the last one.
    pub next: Option<String>,
}

/// The bank as a whole, all numbers of one moment except the last two.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Total {
    /// The sum of all balances, in cents.
    pub balance: i64,
    /// The sum of all reservations, in cents.
    pub reserved: i64,
    /// How many accounts there are.
    pub accounts: u64,
    /// Branches that are prepared and whose decision is not known here.
    pub in_doubt: u64,
    /// The same number, by its name in the guard.
    pub prepared: u64,
    /// Branches that are committed.
    pub committed: u64,
    /// Branches that are rolled back, also those that were never prepared.
    pub rolled_back: u64,
    /// Branches that voted no.
    pub voted_no: u64,
    /// Branches that are executed.
    pub executed: u64,
    /// Branches that are compensated, also those that were never executed.
    pub compensated: u64,
    /// Calls answered as the first time, without work; since this process started.
    pub duplicates_absorbed: u64,
    /// Calls refused because they contradict what was done; since this process started. Anything
    /// but 0 means that somebody has broken the protocol.
    pub contradictions: u64,
    /// Rollbacks asked of branches that are committed; since this process started. Where a branch
    /// commits in one phase, its answer was lost and this is the next; otherwise the same.
    pub already_committed: u64,
}

/// One guard row, for audits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BranchLine {
    /// The transaction's id.
    pub transaction: String,
    /// The branch's name.
    pub branch: String,
    /// `prepared`, `committed`, `rolled_back`, `voted_no`, `read_only`, `executed` or
    /// `compensated`.
    pub state: String,
    /// The reason of a no.
    pub note: Option<String>,
    /// When it last changed, in milliseconds since the Unix epoch.
    pub at_ms: u64,
}

/// The faults that may strike, and how often each has struck since the process started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultsView {
    /// As in the command line.
    pub spec: String,
    /// Counts by the fault's word.
    pub struck: std::collections::BTreeMap<String, u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PageQuery {
    #[serde(default)]
    after: String,
    limit: Option<u32>,
}

#[derive(Clone)]
struct App {
    books: Books,
    faults: Arc<Faults>,
}

type Answer<T> = Result<T, Response>;

pub(crate) fn router(
    books: Books,
    faults: Arc<Faults>,
    on_streams: Arc<dyn Participant>,
) -> Router {
    let transactions = unanimity_sdk::router(Arc::clone(&books.participant) as _)
        .layer(from_fn_with_state(Arc::clone(&faults), misbehave));
    Router::new()
        .route("/accounts/{id}", get(account))
        .route("/accounts", get(accounts))
        .route("/total", get(total))
        .route("/branches", get(branches))
        .route("/journal", get(journal))
        .route("/faults", get(show_faults).post(set_faults))
        .route("/livez", get(|| async { "alive\n" }))
        .with_state(App { books, faults })
        .nest("/transactions", transactions)
        .merge(unanimity_sdk::stream::router(on_streams))
}

/// Draws the faults of a message; one without proper headers is left to be refused.
fn draw(faults: &Faults, request: &Request) -> Option<Struck> {
    let text = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    let message = Message {
        transaction: text(TRANSACTION_HEADER)?,
        branch: text(BRANCH_HEADER)?,
        operation: request.uri().path().rsplit('/').next()?,
        attempt: text(ATTEMPT_HEADER)?.parse().ok()?,
    };
    Some(Struck::draw(faults, &message))
}

async fn misbehave(State(faults): State<Arc<Faults>>, request: Request, next: Next) -> Response {
    let struck = draw(&faults, &request).unwrap_or_default();
    if struck.error_before {
        return injected(503, Fault::ErrorBefore, "nothing was done");
    }
    let mut response = match struck.delay_ms {
        Some(delay_ms) => run_late(Duration::from_millis(delay_ms), request, next).await,
        None => next.run(request).await,
    };
    if struck.error_after {
        response = injected(500, Fault::ErrorAfter, "the work was done");
    }
    if struck.lost_answer {
        response.extensions_mut().insert(LoseAnswer);
    }
    response
}

/// Does the work after a delay, also if the caller has given up by then: a message that was slow on
/// its way arrives all the same, possibly behind the rollback that its slowness has led to.
async fn run_late(delay: Duration, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = axum::body::to_bytes(body, BODY_BYTES_MAX).await else {
        return injected(503, Fault::Delay, "the body did not arrive");
    };
    let late = tokio::spawn(async move {
        tokio::time::sleep(delay).await;
        next.run(Request::from_parts(parts, body.into())).await
    });
    late.await.unwrap_or_else(|_| injected(503, Fault::Delay, "the work panicked"))
}

fn injected(status: u16, fault: Fault, what: &str) -> Response {
    let detail = format!("the fault {} strikes: {what}", fault.as_str());
    write_problem(&Problem::new(status, "fault_injected", "A fault on demand", detail))
}

fn failed(error: CallError) -> Response {
    write_problem(&Problem::new(500, "service_failed", "The bank failed", error.to_string()))
}

async fn account(State(app): State<App>, Path(id): Path<String>) -> Answer<Json<AccountView>> {
    let unknown = Problem::new(404, "unknown_account", "No such account", format!("{id:?}"));
    let found = app.books.account(id).await.map_err(failed)?;
    found.map(Json).ok_or_else(|| write_problem(&unknown))
}

async fn accounts(
    State(app): State<App>,
    Query(query): Query<PageQuery>,
) -> Answer<Json<AccountPage>> {
    let limit = query.limit.unwrap_or(1_000).clamp(1, PAGE_ACCOUNTS_MAX);
    let accounts = app.books.accounts(query.after, limit).await.map_err(failed)?;
    let full = accounts.len() == limit as usize;
    let next = accounts.last().filter(|_| full).map(|account| account.id.clone());
    Ok(Json(AccountPage { accounts, next }))
}

async fn total(State(app): State<App>) -> Answer<Json<Total>> {
    Ok(Json(app.books.total().await.map_err(failed)?))
}

/// Every guard row as one JSON line.
async fn branches(State(app): State<App>) -> Answer<Response> {
    let (mut lines, mut after) = (String::new(), None);
    loop {
        let page = app.books.guard_entries(after, PAGE_ROWS).await.map_err(failed)?;
        let Some(last) = page.last() else { break };
        after = Some((last.transaction.to_string(), last.branch.to_string()));
        for entry in page {
            let line = BranchLine {
                transaction: entry.transaction.to_string(),
                branch: entry.branch.to_string(),
                state: state_word(entry.row.state).to_owned(),
                note: entry.row.note,
                at_ms: entry.at_ms,
            };
            lines.push_str(&serde_json::to_string(&line).unwrap_or_default());
            lines.push('\n');
        }
    }
    Ok(([("content-type", "application/jsonl")], lines).into_response())
}

/// Every line of the journal as one JSON line; none if the bank keeps no journal.
async fn journal(State(app): State<App>) -> Answer<Response> {
    let (mut text, mut after) = (String::new(), 0);
    loop {
        let page = app.books.journal_lines(after).await.map_err(failed)?;
        let Some(last) = page.last() else { break };
        after = last.number;
        for line in page {
            text.push_str(&serde_json::to_string(&line).unwrap_or_default());
            text.push('\n');
        }
    }
    Ok(([("content-type", "application/jsonl")], text).into_response())
}

pub(crate) const fn state_word(state: GuardState) -> &'static str {
    match state {
        GuardState::Prepared => "prepared",
        GuardState::Committed => "committed",
        GuardState::RolledBack => "rolled_back",
        GuardState::VotedNo => "voted_no",
        GuardState::ReadOnly => "read_only",
        GuardState::Executed => "executed",
        GuardState::Compensated => "compensated",
    }
}

async fn show_faults(State(app): State<App>) -> Json<FaultsView> {
    let struck = Fault::ALL.map(|fault| (fault.as_str().to_owned(), app.faults.struck(fault)));
    Json(FaultsView { spec: app.faults.spec().to_string(), struck: struck.into() })
}

/// The body is a specification as in the command line; an empty one ends all faults.
async fn set_faults(
    State(app): State<App>,
    body: String,
) -> Answer<(StatusCode, Json<FaultsView>)> {
    let spec: FaultSpec = body.parse().map_err(|error: String| {
        write_problem(&Problem::new(400, "faults_invalid", "No such faults", error))
    })?;
    app.faults.set_spec(spec);
    Ok((StatusCode::OK, show_faults(State(app)).await))
}
