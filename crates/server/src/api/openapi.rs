//! The API's own description, at `/openapi.json`.

use axum::Json;
use utoipa::OpenApi;

use super::transactions;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Unanimity",
        description = "A transaction coordinator: all parts of a business transaction happen, or none.",
        license(name = "MIT OR Apache-2.0")
    ),
    paths(
        transactions::begin,
        transactions::show,
        transactions::events,
        transactions::decision,
        transactions::list,
        transactions::rollback,
        transactions::retry,
    )
)]
struct ApiDescription;

pub(super) async fn document() -> Json<utoipa::openapi::OpenApi> {
    Json(ApiDescription::openapi())
}
