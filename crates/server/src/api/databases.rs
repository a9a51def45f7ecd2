//! The request about the configured databases: what is prepared in them.

use axum::Json;
use axum::extract::State;
use unanimity_sdk::api::Problem as ProblemDocument;

use super::Api;
use crate::databases::listing::InDoubtView;

/// Everything that is prepared in the configured databases, whose it is, and what becomes of it.
#[utoipa::path(
    get, path = "/v1/databases/in-doubt",
    responses(
        (status = 200, description = "Each database, with an error in place of what it could not \
            tell", body = InDoubtView),
        (status = 401, description = "The token is missing or wrong", body = ProblemDocument),
    )
)]
pub(super) async fn in_doubt(State(api): State<Api>) -> Json<InDoubtView> {
    Json(api.shared.databases.in_doubt(&api.shared.manager).await)
}
