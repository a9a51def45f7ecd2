//! The requests about a transaction that is open: enlist a branch, commit. And the one about a
//! branch that somebody has settled by hand.

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::Response;
use unanimity::Wait;
use unanimity::core::Outcome;
use unanimity::view::TransactionView;
use unanimity_sdk::api::{
    BranchRequest, Problem as ProblemDocument, ResolveRequest, SettledAs, TransactionStatus,
    Wait as WaitWord,
};

use super::convert::{
    self, problem_of_commit, problem_of_enlist, problem_of_resolve, problem_of_unavailable,
};
use super::extract::{Id, Parameters};
use super::transactions::{check_content_type, found, waited};
use super::{Api, WAIT_MAX};
use crate::inbound::read_body;
use crate::problem::{Problem, code, parse_json};

/// Adds a branch to an interactive transaction. Its work may begin when this is answered.
#[utoipa::path(
    post, path = "/v1/transactions/{id}/branches", 
    params(("id" = String, Path, pattern = "^[A-Za-z0-9._:-]{1,128}$")),
    request_body = BranchRequest,
    responses(
        (status = 200, description = "It is enlisted", body = TransactionStatus),
        (status = 400, description = "Not acceptable; nothing changed", body = ProblemDocument),
        (status = 401, description = "The token is missing or wrong", body = ProblemDocument),
        (status = 404, description = "There is no such live transaction", body = ProblemDocument),
        (status = 408, description = "The body came too slowly", body = ProblemDocument),
        (status = 413, description = "The body is too large", body = ProblemDocument),
        (status = 415, description = "The body is not JSON", body = ProblemDocument),
        (status = 409, description = "It is not open, or the branch is there with other \
            content", body = ProblemDocument),
        (status = 503, description = "Stopping, or a journal failed", body = ProblemDocument),
    )
)]
pub(super) async fn enlist(
    State(api): State<Api>,
    Id(id): Id,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<TransactionView>, Problem> {
    let shared = &api.shared;
    check_content_type(&headers)?;
    let body = read_body(body, shared.limits.body_bytes_max).await?;
    let enlist = api.read_enlist(&body)?;
    Ok(Json(shared.manager.enlist(&id, enlist).await.map_err(problem_of_enlist)?))
}

/// Commits an interactive transaction and, unless told otherwise, waits for its outcome. Asking
/// again is safe.
#[utoipa::path(
    post, path = "/v1/transactions/{id}/commit",
    params(("id" = String, Path, pattern = "^[A-Za-z0-9._:-]{1,128}$"),
        ("wait" = Option<WaitWord>, Query,
        description = "outcome, completed or accepted; outcome if left out")),
    responses(
        (status = 200, description = "What was waited for has come: the outcome may be a \
            rollback", body = TransactionStatus),
        (status = 202, description = "What was waited for has not come \
            yet", body = TransactionStatus),
        (status = 400, description = "Not acceptable", body = ProblemDocument),
        (status = 401, description = "The token is missing or wrong", body = ProblemDocument),
        (status = 404, description = "Nobody has a record of it", body = ProblemDocument),
        (status = 409, description = "It was rolled back before, or begun \
            whole", body = ProblemDocument),
        (status = 503, description = "Stopping, or a journal failed", body = ProblemDocument),
    )
)]
pub(super) async fn commit(
    State(api): State<Api>,
    Id(id): Id,
    mut query: Parameters,
) -> Result<Response, Problem> {
    query.only(&["wait"])?;
    let wait = match query.take("wait").as_deref() {
        None | Some("outcome") => Wait::Outcome,
        Some("completed") => Wait::Completed,
        Some("accepted") => Wait::Accepted,
        Some(other) => {
            let detail = format!("{other:?} is none of: outcome, completed, accepted");
            return Err(Problem::new(code::WAIT_INVALID, detail).with_field("wait"));
        }
    };
    let manager = &api.shared.manager;
    let transaction = match tokio::time::timeout(WAIT_MAX, manager.commit(&id, wait)).await {
        Ok(committed) => committed.map_err(problem_of_commit)?,
        Err(_) => found(manager.get(&id).await.map_err(problem_of_unavailable)?, &id)?,
    };
    Ok(waited(wait, transaction))
}

/// Takes an operator's word on how a branch was settled without the coordinator.
#[utoipa::path(
    post, path = "/v1/transactions/{id}/branches/{branch}/resolve",
    params(("id" = String, Path, pattern = "^[A-Za-z0-9._:-]{1,128}$"),
        ("branch" = String, Path)),
    request_body = ResolveRequest,
    responses(
        (status = 200, description = "It is recorded", body = TransactionStatus),
        (status = 400, description = "Not acceptable; nothing changed", body = ProblemDocument),
        (status = 401, description = "The token is missing or wrong", body = ProblemDocument),
        (status = 404, description = "There is no such live transaction or \
            branch", body = ProblemDocument),
        (status = 408, description = "The body came too slowly", body = ProblemDocument),
        (status = 413, description = "The body is too large", body = ProblemDocument),
        (status = 415, description = "The body is not JSON", body = ProblemDocument),
        (status = 409, description = "There is nothing to settle, or not by \
            hand", body = ProblemDocument),
        (status = 503, description = "Stopping, or a journal failed", body = ProblemDocument),
    )
)]
pub(super) async fn resolve(
    State(api): State<Api>,
    path: Result<Path<(String, String)>, PathRejection>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<TransactionView>, Problem> {
    let shared = &api.shared;
    let Path((id, branch)) = path.map_err(|rejection| {
        let detail = format!("the path cannot be read: {}", rejection.body_text());
        Problem::new(code::TRANSACTION_ID_INVALID, detail).with_field("id")
    })?;
    let id = convert::parse_id(&id)?;
    check_content_type(&headers)?;
    let body = read_body(body, shared.limits.body_bytes_max).await?;
    let request: ResolveRequest = parse_json(&body, shared.limits.json_depth_max)?;
    let by = request.by.trim();
    if by.is_empty() {
        let detail = "say who settles the branch: it is shown for ever";
        return Err(Problem::new(code::WRONG_TYPE, detail).with_field("by"));
    }
    let outcome = match request.settled_as {
        SettledAs::Committed => Outcome::Commit,
        SettledAs::RolledBack => Outcome::Rollback,
    };
    let reason = request.reason.trim();
    let resolved = shared.manager.resolve(&id, &branch, outcome, by, reason).await;
    Ok(Json(found(resolved.map_err(problem_of_resolve)?, &id)?))
}
