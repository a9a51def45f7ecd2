//! The requests about transactions: begin, show, list, and the two things an operator may ask.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use unanimity::core::{Outcome, Stage, TransactionId};
use unanimity::view::{EventView, TransactionView};
use unanimity::{Cursor, DecisionReply, Explanation, Filter, Wait};
use unanimity_sdk::api::{
    Decision, DecisionAnswer, Outcome as OutcomeWord, Problem as ProblemDocument,
    Stage as StageWord, Timeline, TimelineEvent, TransactionRequest, TransactionStatus,
};

use super::convert::{self, problem_of_begin, problem_of_unavailable};
use super::extract::{Id, Parameters};
use super::{Api, WAIT_MAX};
use crate::inbound::{pass_over, read_body};
use crate::problem::{Problem, code, parse_json};

/// How many transactions a page holds if nobody says.
const PAGE_DEFAULT: u64 = 50;
/// How many it holds at most.
const PAGE_MAX: u64 = 1_000;
/// What a list may be asked.
const LIST_PARAMETERS: [&str; 8] = [
    "state",
    "outcome",
    "participant",
    "begun_from_ms",
    "begun_until_ms",
    "cursor",
    "limit",
    "events",
];

/// Begins a transaction and, unless told otherwise, waits for its outcome.
#[utoipa::path(
    post, path = "/v1/transactions", request_body = TransactionRequest,
    params(("Idempotency-Key" = Option<String>, Header, pattern = "^[!-~]{1,255}$",
        description = "Names the transaction: the same key and body give the same transaction")),
    responses(
        (status = 200, description = "What was waited for has come", body = TransactionStatus),
        (status = 202, description = "Begun; what was waited for has not come \
            yet", body = TransactionStatus),
        (status = 400, description = "Not acceptable; nothing was begun", body = ProblemDocument),
        (status = 401, description = "The token is missing or wrong", body = ProblemDocument),
        (status = 408, description = "The body came too slowly", body = ProblemDocument),
        (status = 409, description = "The coordinator broke on it, and leaves it \
            alone", body = ProblemDocument),
        (status = 413, description = "The body is too large", body = ProblemDocument),
        (status = 415, description = "The body is not JSON", body = ProblemDocument),
        (status = 422, description = "The id or key was used with another \
            body", body = ProblemDocument),
        (status = 429, description = "Too many are live; try later", body = ProblemDocument),
        (status = 503, description = "Stopping, or a journal failed", body = ProblemDocument),
    )
)]
pub(super) async fn begin(
    State(api): State<Api>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let shared = &api.shared;
    let admitted = match shared.manager.admit() {
        Ok(admitted) => admitted.stand_aside(),
        Err(error) => {
            // Before it is understood: a refusal must cost as little as it can.
            pass_over(body).await;
            return Err(convert::problem_of_admission(error));
        }
    };
    check_content_type(&headers)?;
    let body = read_body(body, shared.limits.body_bytes_max).await?;
    let request: TransactionRequest = parse_json(&body, shared.limits.json_depth_max)?;
    let convert::Planned { id, begin, wait } = convert::planned(shared, &request, &headers)?;
    drop(body);
    let id_field = if request.id.is_some() { "id" } else { "Idempotency-Key" };
    let begun = tokio::time::timeout(WAIT_MAX, admitted.begin(begin)).await;
    let transaction = match begun {
        Ok(begun) => begun.map_err(|error| problem_of_begin(error, id_field))?.transaction,
        Err(_) => found(shared.manager.get(&id).await.map_err(problem_of_unavailable)?, &id)?,
    };
    let location = format!("/v1/transactions/{id}");
    let mut response = waited(wait, transaction);
    if let Ok(location) = HeaderValue::from_str(&location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

/// Shows a transaction; with `wait`, once it is complete or that time has passed.
#[utoipa::path(
    get, path = "/v1/transactions/{id}",
    params(("id" = String, Path, pattern = "^[A-Za-z0-9._:-]{1,128}$"),
        ("wait" = Option<String>, Query,
        pattern = "^([1-5]?[0-9]{1,4}ms|60000ms|[1-5]?[0-9]s?|60s?|[01]m)$",
        description = "How long to wait for completion, such as 30s; at most 60s")),
    responses(
        (status = 200, description = "The transaction", body = TransactionStatus),
        (status = 400, description = "Not acceptable", body = ProblemDocument),
        (status = 401, description = "The token is missing or wrong", body = ProblemDocument),
        (status = 404, description = "Nobody has a record of it", body = ProblemDocument),
        (status = 409, description = "It is set aside, and could not be \
            read", body = ProblemDocument),
        (status = 503, description = "Stopping, or a journal failed", body = ProblemDocument),
    )
)]
pub(super) async fn show(
    State(api): State<Api>,
    Id(id): Id,
    mut query: Parameters,
) -> Result<Json<TransactionView>, Problem> {
    query.only(&["wait"])?;
    let manager = &api.shared.manager;
    let shown = match query.take("wait").as_deref().map(convert::patience).transpose()? {
        None => manager.get(&id).await,
        Some(patience) => manager.wait_for(&id, Wait::Completed, patience).await,
    };
    let shown = found(shown.map_err(problem_of_unavailable)?, &id)?;
    if_read(shown, &id).map(Json)
}

/// A transaction as it is shown to those who go by what they are told.
pub(super) fn if_read(
    shown: TransactionView,
    id: &TransactionId,
) -> Result<TransactionView, Problem> {
    let unread = shown.set_aside.as_ref().is_some_and(|why| !why.read);
    if unread { Err(not_read(id)) } else { Ok(shown) }
}

/// Nothing is said of a transaction whose records could not be read: it may have an outcome, which
/// somebody was told, and "none yet" would take that back.
pub(super) fn not_read(id: &TransactionId) -> Problem {
    let detail = format!("transaction {id} is set aside, and what its records say is not known");
    Problem::new(code::SET_ASIDE, detail).with_retry_after_s(60)
}

/// Shows a transaction's course: who was asked what, when, and what they said.
#[utoipa::path(
    get, path = "/v1/transactions/{id}/events", 
    params(("id" = String, Path, pattern = "^[A-Za-z0-9._:-]{1,128}$")),
    responses(
        (status = 200, description = "Its events, oldest first", body = Timeline),
        (status = 400, description = "Not acceptable", body = ProblemDocument),
        (status = 401, description = "The token is missing or wrong", body = ProblemDocument),
        (status = 404, description = "Nobody has a record of it", body = ProblemDocument),
        (status = 503, description = "Stopping, or a journal failed", body = ProblemDocument),
    )
)]
pub(super) async fn events(State(api): State<Api>, Id(id): Id) -> Result<Response, Problem> {
    let timeline = api.shared.manager.timeline(&id).await.map_err(problem_of_unavailable)?;
    Ok(Json(found(timeline, &id)?).into_response())
}

/// Explains a transaction in words: who is awaited, what happens next and when, and what an
/// operator may do.
#[utoipa::path(
    get, path = "/v1/transactions/{id}/explain", 
    params(("id" = String, Path, pattern = "^[A-Za-z0-9._:-]{1,128}$")),
    responses(
        (status = 200, description = "The explanation", body = Object),
        (status = 400, description = "Not acceptable", body = ProblemDocument),
        (status = 401, description = "The token is missing or wrong", body = ProblemDocument),
        (status = 404, description = "Nobody has a record of it", body = ProblemDocument),
        (status = 503, description = "Stopping, or a journal failed", body = ProblemDocument),
    )
)]
pub(super) async fn explain(
    State(api): State<Api>,
    Id(id): Id,
) -> Result<Json<Explanation>, Problem> {
    let manager = &api.shared.manager;
    if let Some(live) = manager.explain(&id).await.map_err(problem_of_unavailable)? {
        return Ok(Json(live));
    }
    let ended = found(manager.get(&id).await.map_err(problem_of_unavailable)?, &id)?;
    let word = if ended.committed() { "Committed" } else { "Rolled back" };
    Ok(Json(Explanation {
        id: ended.id,
        summary: format!("{word}, and complete everywhere."),
        next: "Nothing: it has ended.".to_owned(),
        next_at_ms: None,
        awaited: Vec::new(),
        choices: Vec::new(),
    }))
}

/// Tells a participant in doubt what was decided. A transaction that nobody has a record of is
/// rolled back (presumed abort).
#[utoipa::path(
    get, path = "/v1/transactions/{id}/decision", 
    params(("id" = String, Path, pattern = "^[A-Za-z0-9._:-]{1,128}$")),
    responses(
        (status = 200, description = "commit, rollback or pending", body = DecisionAnswer),
        (status = 400, description = "Not acceptable", body = ProblemDocument),
        (status = 401, description = "The token is missing or wrong", body = ProblemDocument),
        (status = 409, description = "It is set aside, and could not be \
            read", body = ProblemDocument),
        (status = 503, description = "Stopping, or a journal failed", body = ProblemDocument),
    )
)]
pub(super) async fn decision(
    State(api): State<Api>,
    Id(id): Id,
) -> Result<Json<DecisionAnswer>, Problem> {
    let decided = api.shared.manager.decision(&id).await.map_err(problem_of_unavailable)?;
    let decision = match decided {
        DecisionReply::Commit => Decision::Commit,
        DecisionReply::Rollback => Decision::Rollback,
        DecisionReply::Pending => Decision::Pending,
        DecisionReply::NotRead => return Err(not_read(&id)),
    };
    Ok(Json(DecisionAnswer { decision }))
}

/// A transaction in a list, with its events if they were asked for.
#[derive(Serialize)]
struct Listed {
    #[serde(flatten)]
    transaction: TransactionView,
    #[serde(skip_serializing_if = "Option::is_none")]
    events: Option<Vec<EventView>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    events_dropped: Option<u32>,
}

#[derive(Serialize)]
struct ListAnswer {
    transactions: Vec<Listed>,
    next_cursor: Option<String>,
}

/// How a page looks to the API's description.
#[derive(utoipa::ToSchema)]
#[schema(as = TransactionList)]
#[allow(dead_code)] // Never made: `ListAnswer` is what is written.
pub(super) struct ListDescription {
    /// The page, latest first.
    transactions: Vec<ListedDescription>,
    /// What to ask for the next page with; none on the last one.
    next_cursor: Option<String>,
}

#[derive(utoipa::ToSchema)]
#[schema(as = ListedTransaction)]
#[allow(dead_code)] // Never made: `Listed` is what is written.
struct ListedDescription {
    #[serde(flatten)]
    transaction: TransactionStatus,
    /// Its events, the oldest first, if they were asked for.
    events: Option<Vec<TimelineEvent>>,
    /// How many of its events were not kept because the timeline was full, with its events.
    events_dropped: Option<u32>,
}

/// Lists live and ended transactions, latest first.
#[utoipa::path(
    get, path = "/v1/transactions",
    params(
        ("state" = Option<StageWord>, Query,
            description = "open, preparing, executing, settling, \
            committing, rolling_back, set_aside or ended"),
        ("outcome" = Option<OutcomeWord>, Query, description = "commit or rollback"),
        ("participant" = Option<String>, Query, description = "An exact participant address"),
        ("begun_from_ms" = Option<u64>, Query, format = "uint64",
            description = "Begun at or after, in ms since the \
            Unix epoch"),
        ("begun_until_ms" = Option<u64>, Query, format = "uint64",
            description = "Begun before, in ms since the Unix \
            epoch"),
        ("cursor" = Option<String>, Query,
            pattern = "^[0-9]{1,19}\\.[A-Za-z0-9._:-]{1,128}$",
            description = "next_cursor of the page before"),
        ("limit" = Option<usize>, Query, minimum = 1, maximum = 1000,
            description = "1 to 1000; 50 if left out"),
        ("events" = Option<bool>, Query, description = "Whether each comes with its events"),
    ),
    responses(
        (status = 200, description = "A page", body = ListDescription),
        (status = 400, description = "Not acceptable", body = ProblemDocument),
        (status = 401, description = "The token is missing or wrong", body = ProblemDocument),
        (status = 503, description = "Stopping, or a journal failed", body = ProblemDocument),
    )
)]
pub(super) async fn list(State(api): State<Api>, query: Parameters) -> Result<Response, Problem> {
    let (filter, limit) = asked(query)?;
    let page = api.shared.manager.list(filter, limit).await;
    let page = page.map_err(problem_of_unavailable)?;
    let transactions = page.transactions.into_iter().map(|(transaction, timeline)| Listed {
        transaction,
        events_dropped: timeline.as_ref().map(|timeline| timeline.dropped),
        events: timeline.map(|timeline| timeline.events),
    });
    let next_cursor = page.next.map(|cursor| cursor.to_string());
    Ok(Json(ListAnswer { transactions: transactions.collect(), next_cursor }).into_response())
}

/// What a list is asked: a filter, and how many there may be on the page.
pub(super) fn asked(mut query: Parameters) -> Result<(Filter, usize), Problem> {
    query.only(&LIST_PARAMETERS)?;
    let limit = query.number("limit", 1, PAGE_MAX)?.unwrap_or(PAGE_DEFAULT);
    Ok((filter(query)?, usize::try_from(limit).unwrap_or(usize::MAX)))
}

fn filter(mut query: Parameters) -> Result<Filter, Problem> {
    let stages = Stage::ALL.map(Stage::as_str);
    let outcomes = [Outcome::Commit.as_str(), Outcome::Rollback.as_str()];
    let cursor = query.take("cursor").map(|text| {
        let detail = "this is no cursor; take next_cursor of the page before as it is";
        let invalid = || Problem::new(code::CURSOR_INVALID, detail).with_field("cursor");
        Cursor::parse(&text).ok_or_else(invalid)
    });
    Ok(Filter {
        stage: query.one_of("state", &stages)?,
        outcome: query.one_of("outcome", &outcomes)?,
        participant: query.take("participant"),
        begun_from_ms: query.number("begun_from_ms", 0, u64::MAX)?,
        begun_until_ms: query.number("begun_until_ms", 0, u64::MAX)?,
        cursor: cursor.transpose()?,
        with_timeline: query.one_of("events", &["true", "false"])?.is_some_and(|on| on == "true"),
    })
}

/// Rolls a transaction back that is not decided yet.
#[utoipa::path(
    post, path = "/v1/transactions/{id}/rollback", 
    params(("id" = String, Path, pattern = "^[A-Za-z0-9._:-]{1,128}$")),
    responses(
        (status = 200, description = "It is rolled back", body = TransactionStatus),
        (status = 400, description = "Not acceptable", body = ProblemDocument),
        (status = 401, description = "The token is missing or wrong", body = ProblemDocument),
        (status = 404, description = "Nobody has a record of it", body = ProblemDocument),
        (status = 409, description = "It is decided to commit, or set \
            aside", body = ProblemDocument),
        (status = 503, description = "Stopping, or a journal failed", body = ProblemDocument),
    )
)]
pub(super) async fn rollback(
    State(api): State<Api>,
    Id(id): Id,
) -> Result<Json<TransactionView>, Problem> {
    rolled_back(&api, &id).await.map(Json)
}

/// Rolls back what is undecided, whichever way it was asked for.
pub(super) async fn rolled_back(api: &Api, id: &TransactionId) -> Result<TransactionView, Problem> {
    let asked = api.shared.manager.rollback(id, "asked for over the API").await;
    let transaction = found(asked.map_err(problem_of_unavailable)?, id)?;
    if transaction.stage == Stage::SetAside.as_str() {
        let detail = format!("transaction {id} is set aside: nothing reaches it");
        return Err(Problem::new(code::SET_ASIDE, detail));
    }
    if transaction.committed() {
        let detail = format!("transaction {id} is decided to commit; a decision never changes");
        return Err(Problem::new(code::ALREADY_DECIDED, detail));
    }
    Ok(transaction)
}

/// Tries a transaction's waiting branches again now; one that is set aside is taken up again.
#[utoipa::path(
    post, path = "/v1/transactions/{id}/retry", 
    params(("id" = String, Path, pattern = "^[A-Za-z0-9._:-]{1,128}$")),
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
    Id(id): Id,
) -> Result<Json<TransactionView>, Problem> {
    let asked = api.shared.manager.retry(&id).await.map_err(problem_of_unavailable)?;
    Ok(Json(found(asked, &id)?))
}

/// 200 if what was waited for has come, else 202. Whoever waits for nothing but the beginning has
/// got it from a transaction that is open: nothing else is to come by itself.
pub(super) fn waited(wait: Wait, transaction: TransactionView) -> Response {
    let came = match wait {
        Wait::Accepted => transaction.stage == Stage::Open.as_str(),
        Wait::Outcome => transaction.outcome.is_some(),
        Wait::Completed => transaction.completed,
    };
    let status = if came { StatusCode::OK } else { StatusCode::ACCEPTED };
    (status, Json(transaction)).into_response()
}

pub(super) fn found<T>(transaction: Option<T>, id: &TransactionId) -> Result<T, Problem> {
    let detail = || format!("nobody has a record of transaction {id}");
    transaction.ok_or_else(|| Problem::new(code::TRANSACTION_UNKNOWN, detail()))
}

pub(super) fn check_content_type(headers: &HeaderMap) -> Result<(), Problem> {
    let given = headers.get(header::CONTENT_TYPE).map(|value| value.to_str().unwrap_or_default());
    let essence = given.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    let mut encodings = headers.get_all(header::CONTENT_ENCODING).iter();
    let encoded = encodings.any(|encoding| encoding != "identity");
    if essence.eq_ignore_ascii_case("application/json") && !encoded {
        return Ok(());
    }
    let detail = "send JSON with the header Content-Type: application/json, and not compressed";
    Err(Problem::new(code::CONTENT_TYPE_INVALID, detail))
}
