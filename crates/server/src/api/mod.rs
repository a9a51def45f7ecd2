//! The HTTP API: its routes, who may use them, and what every request shares. What a request means
//! is in `transactions`; how a request becomes a plan, in `convert`.

mod convert;
mod databases;
mod extract;
mod grpc;
mod interactive;
mod openapi;
mod read;
mod service;
mod transactions;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::watch;
use unanimity::TransactionManager;
use unanimity::core::Options;

use crate::config::Secret;
use crate::databases::Databases;
use crate::problem::{Problem, code};
use crate::streams::Desk;

pub use self::read::read_query;

/// The longest that an answer is held back, in seconds; after that it tells the state as it is.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// What every handler can reach.
#[derive(Clone)]
pub struct Api {
    shared: Arc<Shared>,
}

struct Shared {
    manager: TransactionManager,
    databases: Databases,
    defaults: Options,
    limits: ApiLimits,
    token: Option<Secret>,
    metrics: PrometheusHandle,
}

/// The bounds of the API.
#[derive(Clone, Copy, Debug)]
pub struct ApiLimits {
    /// The largest request body, in bytes.
    pub body_bytes_max: usize,
    /// The deepest nesting of JSON in a request.
    pub json_depth_max: usize,
    /// The most branches in one transaction.
    pub branches_max: usize,
}

impl Api {
    /// The API over a manager.
    #[must_use]
    pub fn new(
        manager: TransactionManager,
        databases: Databases,
        defaults: Options,
        limits: ApiLimits,
        token: Option<Secret>,
        metrics: PrometheusHandle,
    ) -> Self {
        Self { shared: Arc::new(Shared { manager, databases, defaults, limits, token, metrics }) }
    }

    /// Its routes, and the one where participants dial in. Streams of initiators end when
    /// `stopping` turns true.
    pub fn router(self, desk: Desk, stopping: watch::Receiver<bool>) -> Router {
        let guarded = Router::new()
            .route("/v1/transactions", post(transactions::begin).get(transactions::list))
            .route("/v1/transactions/{id}", get(transactions::show))
            .route("/v1/transactions/{id}/events", get(transactions::events))
            .route("/v1/transactions/{id}/decision", get(transactions::decision))
            .route("/v1/transactions/{id}/explain", get(transactions::explain))
            .route("/v1/transactions/{id}/rollback", post(transactions::rollback))
            .route("/v1/transactions/{id}/retry", post(transactions::retry))
            .route("/v1/transactions/{id}/branches", post(interactive::enlist))
            .route("/v1/transactions/{id}/commit", post(interactive::commit))
            .route("/v1/transactions/{id}/branches/{branch}/resolve", post(interactive::resolve))
            .route("/v1/databases/in-doubt", get(databases::in_doubt))
            .route("/metrics", get(service::metrics))
            .route_service("/unanimity.v1.Participants/{*method}", desk.server())
            .route_service("/unanimity.v1.Transactions/{*method}", grpc::server(&self, stopping))
            .route_layer(middleware::from_fn_with_state(self.clone(), authorize));
        Router::new()
            .merge(guarded)
            .route("/livez", get(service::live))
            .route("/readyz", get(service::ready))
            .route("/openapi.json", get(openapi::document))
            .route("/errors/{code}", get(service::error_page))
            .fallback(|| async { Problem::new(code::NOT_FOUND, "there is nothing at this path") })
            .method_not_allowed_fallback(|| async {
                Problem::new(code::METHOD_NOT_ALLOWED, "this path does not answer to this method")
            })
            .with_state(self)
    }
}

/// Lets a request through if no token is set, or if it carries the one that is.
async fn authorize(State(api): State<Api>, request: Request, next: Next) -> Response {
    match &api.shared.token {
        Some(token) if !carries(request.headers(), token) => {
            if grpc::asks(request.headers()) {
                let text = "send the coordinator's token as authorization: Bearer TOKEN";
                return grpc::refuse(Problem::new(code::UNAUTHORIZED, text));
            }
            let detail = "send the coordinator's token as Authorization: Bearer TOKEN";
            let mut response = Problem::new(code::UNAUTHORIZED, detail).into_response();
            let challenge = header::HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
            response
        }
        _ => next.run(request).await,
    }
}

fn carries(headers: &HeaderMap, token: &Secret) -> bool {
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let given = given.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
    token.matches(given.as_bytes())
}
