//! The requests about transactions: begin, show, list, and the two things an operator may ask.

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use unanimity::core::{Outcome, TransactionId};
use unanimity::view::{EventView, TransactionView};
use unanimity::{BeginRequest, Cursor, DecisionReply, Filter, TransactionManager, Wait};
use unanimity_sdk::api::{
    Decision, DecisionAnswer, Problem as ProblemDocument, Timeline, TransactionList,
    TransactionRequest, TransactionStatus,
};

use super::convert::{self, parse_id, problem_of_begin, problem_of_unavailable};
use super::{Api, WAIT_MAX};
use crate::inbound::read_body;
use crate::problem::{Problem, code, parse_json};

/// How many transactions a page holds if nobody says.
const PAGE_DEFAULT: usize = 50;
/// How many it holds at most.
const PAGE_MAX: usize = 1_000;

/// Begins a transaction and, unless told otherwise, waits for its outcome.
#[utoipa::path(
    post, path = "/v1/transactions", request_body = TransactionRequest,
    params(("Idempotency-Key" = Option<String>, Header,
        description = "Names the transaction: the same key and body give the same transaction")),
    responses(
        (status = 200, description = "What was waited for has come", body = TransactionStatus),
        (status = 202, description = "Begun; what was waited for has not come yet", body = TransactionStatus),
        (status = 400, description = "Not acceptable; nothing was begun", body = ProblemDocument),
        (status = 401, description = "The token is missing or wrong", body = ProblemDocument),
        (status = 408, description = "The body came too slowly", body = ProblemDocument),
        (status = 413, description = "The body is too large", body = ProblemDocument),
        (status = 415, description = "The body is not JSON", body = ProblemDocument),
        (status = 422, description = "The id or key was used with another body", body = ProblemDocument),
        (status = 429, description = "Too many live transactions; try later", body = ProblemDocument),
        (status = 503, description = "Stopping, or a journal failed", body = ProblemDocument),
    )
)]
pub(super) async fn begin(
    State(api): State<Api>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let shared = &api.shared;
    check_content_type(&headers)?;
    let body = read_body(body, shared.limits.body_bytes_max).await?;
    let request: TransactionRequest = parse_json(&body, shared.limits.json_depth_max)?;
    let chosen = convert::chosen_id(&request, &headers)?;
    let plan = convert::plan(shared, &request)?;
    drop(body);
    let wait = convert::wait(request.wait);
    let fresh = chosen.is_none();
    let id = chosen.unwrap_or_else(TransactionManager::generate_id);
    let begin = if fresh {
        BeginRequest::fresh(id.clone(), plan, wait)
    } else {
        BeginRequest::with_id(id.clone(), plan, wait)
    };
    let begun = tokio::time::timeout(WAIT_MAX, shared.manager.begin(begin)).await;
    let transaction = match begun {
        Ok(begun) => begun.map_err(problem_of_begin)?.transaction,
        Err(_) => found(shared.manager.get(&id).await.map_err(problem_of_unavailable)?, &id)?,
    };
    let came = match wait {
        Wait::Accepted => false,
        Wait::Outcome => transaction.outcome.is_some(),
        Wait::Completed => transaction.completed,
    };
    let status = if came { StatusCode::OK } else { StatusCode::ACCEPTED };
    let location = format!("/v1/transactions/{id}");
    let mut response = (status, Json(transaction)).into_response();
    if let Ok(location) = HeaderValue::from_str(&location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ShowQuery {
    wait: Option<String>,
}

/// Shows a transaction; with `wait`, once it is complete or that time has passed.
#[utoipa::path(
    get, path = "/v1/transactions/{id}",
    params(("id" = String, Path), ("wait" = Option<String>, Query,
        description = "How long to wait for completion, such as 30s; at most 60s")),
    responses(
        (status = 200, description = "The transaction", body = TransactionStatus),
        (status = 400, description = "Not acceptable", body = ProblemDocument),
        (status = 401, description = "The token is missing or wrong", body = ProblemDocument),
        (status = 404, description = "Nobody has a record of it", body = ProblemDocument),
        (status = 503, description = "Stopping, or a journal failed", body = ProblemDocument),
    )
)]
pub(super) async fn show(
    State(api): State<Api>,
    Path(id): Path<String>,
    query: Result<Query<ShowQuery>, QueryRejection>,
) -> Result<Json<TransactionView>, Problem> {
    let id = parse_id(&id)?;
    let Query(query) = query.map_err(problem_of_query)?;
    let manager = &api.shared.manager;
    let shown = match query.wait.as_deref().map(convert::patience).transpose()? {
        None => manager.get(&id).await,
        Some(patience) => manager.wait_for(&id, Wait::Completed, patience).await,
    };
    Ok(Json(found(shown.map_err(problem_of_unavailable)?, &id)?))
}

/// Shows a transaction's course: who was asked what, when, and what they said.
#[utoipa::path(
    get, path = "/v1/transactions/{id}/events", params(("id" = String, Path)),
    responses(
        (status = 200, description = "Its events, oldest first", body = Timeline),
        (status = 400, description = "Not acceptable", body = ProblemDocument),
        (status = 401, description = "The token is missing or wrong", body = ProblemDocument),
        (status = 404, description = "Nobody has a record of it", body = ProblemDocument),
        (status = 503, description = "Stopping, or a journal failed", body = ProblemDocument),
    )
)]
pub(super) async fn events(
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let id = parse_id(&id)?;
    let timeline = api.shared.manager.timeline(&id).await.map_err(problem_of_unavailable)?;
    Ok(Json(found(timeline, &id)?).into_response())
}

/// Tells a participant in doubt what was decided. A transaction that nobody has a record of is rolled
/// back (presumed abort).
#[utoipa::path(
    get, path = "/v1/transactions/{id}/decision", params(("id" = String, Path)),
    responses(
        (status = 200, description = "commit, rollback or pending", body = DecisionAnswer),
        (status = 400, description = "Not acceptable", body = ProblemDocument),
        (status = 401, description = "The token is missing or wrong", body = ProblemDocument),
        (status = 503, description = "Stopping, or a journal failed", body = ProblemDocument),
    )
)]
pub(super) async fn decision(
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<Json<DecisionAnswer>, Problem> {
    let id = parse_id(&id)?;
    let decided = api.shared.manager.decision(&id).await.map_err(problem_of_unavailable)?;
    let decision = match decided {
        DecisionReply::Commit => Decision::Commit,
        DecisionReply::Rollback => Decision::Rollback,
        DecisionReply::Pending => Decision::Pending,
    };
    Ok(Json(DecisionAnswer { decision }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    state: Option<String>,
    outcome: Option<String>,
    participant: Option<String>,
    begun_from_ms: Option<u64>,
    begun_until_ms: Option<u64>,
    cursor: Option<String>,
    limit: Option<usize>,
    #[serde(default)]
    events: bool,
}

/// A transaction in a list, with its events if they were asked for.
#[derive(Serialize)]
struct Listed {
    #[serde(flatten)]
    transaction: TransactionView,
    #[serde(skip_serializing_if = "Option::is_none")]
    events: Option<Vec<EventView>>,
}

#[derive(Serialize)]
struct ListAnswer {
    transactions: Vec<Listed>,
    next_cursor: Option<String>,
}

/// Lists live and ended transactions, latest first.
#[utoipa::path(
    get, path = "/v1/transactions",
    params(
        ("state" = Option<String>, Query, description = "preparing, executing, committing, rolling_back or ended"),
        ("outcome" = Option<String>, Query, description = "commit or rollback"),
        ("participant" = Option<String>, Query, description = "An exact participant address"),
        ("begun_from_ms" = Option<u64>, Query, description = "Begun at or after, in ms since the Unix epoch"),
        ("begun_until_ms" = Option<u64>, Query, description = "Begun before, in ms since the Unix epoch"),
        ("cursor" = Option<String>, Query, description = "next_cursor of the page before"),
        ("limit" = Option<usize>, Query, description = "1 to 1000; 50 if left out"),
        ("events" = Option<bool>, Query, description = "Whether each comes with its events"),
    ),
    responses(
        (status = 200, description = "A page", body = TransactionList),
        (status = 400, description = "Not acceptable", body = ProblemDocument),
        (status = 401, description = "The token is missing or wrong", body = ProblemDocument),
        (status = 503, description = "Stopping, or a journal failed", body = ProblemDocument),
    )
)]
pub(super) async fn list(
    State(api): State<Api>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(query) = query.map_err(problem_of_query)?;
    let limit = query.limit.unwrap_or(PAGE_DEFAULT);
    if limit == 0 || limit > PAGE_MAX {
        let detail = format!("limit is {limit}; it must be 1 to {PAGE_MAX}");
        return Err(Problem::new(code::FILTER_INVALID, detail).with_field("limit"));
    }
    let page = api.shared.manager.list(filter(query)?, limit).await;
    let page = page.map_err(problem_of_unavailable)?;
    let transactions = page.transactions.into_iter().map(|(transaction, timeline)| Listed {
        transaction,
        events: timeline.map(|timeline| timeline.events),
    });
    let next_cursor = page.next.map(|cursor| cursor.to_string());
    Ok(Json(ListAnswer { transactions: transactions.collect(), next_cursor }).into_response())
}

fn filter(query: ListQuery) -> Result<Filter, Problem> {
    const STAGES: [&str; 5] = ["preparing", "executing", "committing", "rolling_back", "ended"];
    let outcomes = [Outcome::Commit.as_str(), Outcome::Rollback.as_str()];
    one_of("state", query.state.as_deref(), &STAGES)?;
    one_of("outcome", query.outcome.as_deref(), &outcomes)?;
    let cursor = query.cursor.as_deref().map(|text| {
        let detail = "this is no cursor; take next_cursor of the page before as it is";
        Cursor::parse(text).ok_or_else(|| Problem::new(code::CURSOR_INVALID, detail).with_field("cursor"))
    });
    Ok(Filter {
        stage: query.state,
        outcome: query.outcome,
        participant: query.participant,
        begun_from_ms: query.begun_from_ms,
        begun_until_ms: query.begun_until_ms,
        cursor: cursor.transpose()?,
        with_timeline: query.events,
    })
}

fn one_of(field: &str, given: Option<&str>, allowed: &[&str]) -> Result<(), Problem> {
    match given {
        Some(given) if !allowed.contains(&given) => {
            let detail = format!("{given:?} is none of: {}", allowed.join(", "));
            Err(Problem::new(code::FILTER_INVALID, detail).with_field(field))
        }
        _ => Ok(()),
    }
}

/// Rolls a transaction back that is not decided yet.
#[utoipa::path(
    post, path = "/v1/transactions/{id}/rollback", params(("id" = String, Path)),
    responses(
        (status = 200, description = "It is rolled back", body = TransactionStatus),
        (status = 400, description = "Not acceptable", body = ProblemDocument),
        (status = 401, description = "The token is missing or wrong", body = ProblemDocument),
        (status = 404, description = "Nobody has a record of it", body = ProblemDocument),
        (status = 409, description = "It is decided to commit", body = ProblemDocument),
        (status = 503, description = "Stopping, or a journal failed", body = ProblemDocument),
    )
)]
pub(super) async fn rollback(
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<Json<TransactionView>, Problem> {
    let id = parse_id(&id)?;
    let asked = api.shared.manager.rollback(&id, "asked for over the API").await;
    let transaction = found(asked.map_err(problem_of_unavailable)?, &id)?;
    if transaction.committed() {
        let detail = format!("transaction {id} is decided to commit; a decision never changes");
        return Err(Problem::new(code::ALREADY_DECIDED, detail));
    }
    Ok(Json(transaction))
}

/// Tries a transaction's waiting branches again now.
#[utoipa::path(
    post, path = "/v1/transactions/{id}/retry", params(("id" = String, Path)),
    responses(
        (status = 200, description = "They are called again", body = TransactionStatus),
        (status = 400, description = "Not acceptable", body = ProblemDocument),
        (status = 401, description = "The token is missing or wrong", body = ProblemDocument),
        (status = 404, description = "Nobody has a record of it", body = ProblemDocument),
        (status = 503, description = "Stopping, or a journal failed", body = ProblemDocument),
    )
)]
pub(super) async fn retry(
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<Json<TransactionView>, Problem> {
    let id = parse_id(&id)?;
    let asked = api.shared.manager.retry(&id).await.map_err(problem_of_unavailable)?;
    Ok(Json(found(asked, &id)?))
}

fn found<T>(transaction: Option<T>, id: &TransactionId) -> Result<T, Problem> {
    let detail = || format!("nobody has a record of transaction {id}");
    transaction.ok_or_else(|| Problem::new(code::TRANSACTION_UNKNOWN, detail()))
}

fn check_content_type(headers: &HeaderMap) -> Result<(), Problem> {
    let given = headers.get(header::CONTENT_TYPE).map(|value| value.to_str().unwrap_or_default());
    let essence = given.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let detail = "send JSON with the header Content-Type: application/json";
    Err(Problem::new(code::CONTENT_TYPE_INVALID, detail))
}

fn problem_of_query(rejection: QueryRejection) -> Problem {
    Problem::new(code::FILTER_INVALID, rejection.body_text()).with_field("query")
}
