//! The requests about the coordinator itself: whether it lives, whether it takes requests, what it
//! has counted, and what its error codes mean.

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use unanimity_sdk::api::Problem as ProblemDocument;

use super::Api;
use crate::problem::{Problem, code, find};

/// Says that the program runs. It needs no token.
#[utoipa::path(
    get, path = "/livez",
    responses((status = 200, description = "It runs", body = String, content_type = "text/plain"))
)]
pub(super) async fn live() -> &'static str {
    "ok\n"
}

/// Says whether transactions can be begun. It needs no token.
#[utoipa::path(
    get, path = "/readyz",
    responses(
        (status = 200, description = "It takes \
            requests", body = String, content_type = "text/plain"),
        (status = 503, description = "Stopping, or a journal failed", body = ProblemDocument),
    )
)]
pub(super) async fn ready(State(api): State<Api>) -> Response {
    if api.shared.manager.is_ready() {
        "ready\n".into_response()
    } else {
        Problem::new(code::STOPPING, "the coordinator is stopping or has failed").into_response()
    }
}

/// What was counted and measured since the program started, in the text format of Prometheus.
#[utoipa::path(
    get, path = "/metrics",
    responses(
        (status = 200, description = "All metrics", body = String, content_type = "text/plain"),
        (status = 401, description = "The token is missing or wrong", body = ProblemDocument),
    )
)]
pub(super) async fn metrics(State(api): State<Api>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], api.shared.metrics.render())
}

/// What an error code means, and what to do about it. It needs no token.
#[utoipa::path(
    get, path = "/errors/{code}", params(("code" = String, Path)),
    responses(
        (status = 200, description = "The code's page", body = String, content_type = "text/plain"),
        (status = 404, description = "There is no such code", body = ProblemDocument),
    )
)]
pub(super) async fn error_page(path: Result<Path<String>, PathRejection>) -> Response {
    match path.ok().and_then(|Path(code)| find(&code)) {
        Some(doc) => format!(
            "{} ({}): {}\n\n{}\n\nWhat to do: {}\n",
            doc.code, doc.status, doc.title, doc.meaning, doc.remedy
        )
        .into_response(),
        None => Problem::new(code::NOT_FOUND, "there is no such error code").into_response(),
    }
}
