//! Decides how an initiator, or a participant in doubt, speaks with the coordinator: plain HTTP/1.1
//! on kept connections, every wait and every size bounded, no redirect followed, no proxy taken
//! from the environment. What is asked and answered is in [`crate::api`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, Uri, header, response};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client as Connections;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;
use unanimity_core::{AskNext, AskPolicy, Asked, Asking, TransactionId, Unheard, splitmix64};

use crate::api::{
    DecisionAnswer, Problem, Timeline, TransactionList, TransactionRequest, TransactionStatus,
};
use crate::contract::JSON;
use crate::pace::{Line, Place};
use crate::restraint::{Restraint, Set};

/// Why the coordinator gave no answer that can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// The base URL, the token or an argument cannot be used; nothing was sent.
    #[error("{0}")]
    Unusable(String),
    /// The coordinator refused, with a problem document; or a beginning was held back here as the
    /// coordinator would have refused it ([`ClientOptions::holds_back`]). It says nothing of an
    /// earlier request of the same id that had no answer: ask for the transaction by its id.
    #[error("HTTP {status}, {code}: {detail}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// Stable, snake case; empty if the answer was not a problem document of a coordinator.
        code: String,
        /// What is wrong and what to do about it.
        detail: String,
        /// Where in the request, if the problem names a place.
        field: Option<String>,
    },
    /// No whole answer came in time. The request may or may not have been acted on: ask for the
    /// transaction by its id, or send the same request with the same id again.
    #[error("no answer: {0}")]
    NoAnswer(String),
    /// An answer came that this client does not understand.
    #[error("an answer that cannot be read: {0}")]
    Unreadable(String),
}

impl ClientError {
    /// The stable code of a refusal.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Refused { code, .. } => Some(code),
            Self::Unusable(_) | Self::NoAnswer(_) | Self::Unreadable(_) => None,
        }
    }

    /// What matters of it for asking again.
    pub(crate) fn unheard(&self) -> Unheard<'_> {
        match self {
            Self::Unusable(_) => Unheard::Unusable,
            Self::Refused { status, code, .. } => Unheard::Refused { status: *status, code },
            Self::NoAnswer(_) | Self::Unreadable(_) => Unheard::NoAnswer,
        }
    }
}

/// A client's limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientOptions {
    /// How long connecting may take, in milliseconds.
    pub connect_timeout_ms: u64,
    /// How long one request may take until its answer is read, in milliseconds. A long poll's own
    /// time comes on top.
    pub request_timeout_ms: u64,
    /// The most requests under way, and so the most connections; further ones wait their turn.
    pub requests_max: usize,
    /// The most bytes of an answer.
    pub answer_bytes_max: usize,
    /// How long a step of an interactive transaction is asked for again, in milliseconds, where no
    /// answer comes or the refusal passes (429, 503); 0: once. The other requests are made once.
    pub patience_ms: u64,
    /// Whether beginnings are refused here, unsent, as `overloaded`, of which the coordinator
    /// would refuse a good part: where it refuses many as `overloaded` or `participant_busy`,
    /// little more is sent than it accepts.
    pub holds_back: bool,
    /// How long a beginning may wait here for its turn among `requests_max`, in milliseconds. One
    /// that would wait for longer, by how fast others are sent, is refused at once, unsent, as
    /// `overloaded`. 0: as long as it takes.
    pub begin_wait_max_ms: u64,
}

/// See [`ClientOptions::begin_wait_max_ms`].
pub(crate) const BEGIN_WAIT_MAX_MS: u64 = 5_000;

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            connect_timeout_ms: 2_000,
            request_timeout_ms: 60_000,
            requests_max: 256,
            answer_bytes_max: 32 * 1024 * 1024,
            patience_ms: AskPolicy::default().patience_ms,
            holds_back: true,
            begin_wait_max_ms: BEGIN_WAIT_MAX_MS,
        }
    }
}

/// Speaks with one coordinator. Cloning is cheap, and clones share connections and limits.
#[derive(Clone, Debug)]
pub struct Client {
    connections: Connections<HttpConnector, Full<Bytes>>,
    base_url: Arc<str>,
    authorization: Option<HeaderValue>,
    permits: Arc<Semaphore>,
    /// Beginnings that wait for one of them.
    line: Arc<Line>,
    /// None: everything is sent.
    restraint: Option<Arc<Restraint>>,
    options: ClientOptions,
}

impl Client {
    /// A client with the default limits. `base_url` is such as `http://127.0.0.1:7070`; `token` is
    /// what the coordinator was configured with, if it was.
    ///
    /// # Errors
    /// [`ClientError::Unusable`] if the URL is not plain `http`, has credentials or a query, or if
    /// the token cannot be a header.
    pub fn new(base_url: &str, token: Option<&str>) -> Result<Self, ClientError> {
        Self::with_options(base_url, token, ClientOptions::default())
    }

    /// A client with limits of its own.
    ///
    /// # Errors
    /// As [`Client::new`].
    pub fn with_options(
        base_url: &str,
        token: Option<&str>,
        options: ClientOptions,
    ) -> Result<Self, ClientError> {
        let base_url = check_base_url(base_url)?;
        let authorization = token.map(bearer).transpose()?;
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(Duration::from_millis(options.connect_timeout_ms)));
        let connections = Connections::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_max_idle_per_host(options.requests_max)
            .build(connector);
        let permits = Arc::new(Semaphore::new(options.requests_max));
        let restraint = options.holds_back.then(Arc::default);
        let line = Arc::new(Line::new(options.begin_wait_max_ms));
        Ok(Self { connections, base_url, authorization, permits, line, restraint, options })
    }

    /// Begins a transaction, and waits for what the request's `wait` says. Sending the same request
    /// with the same id again is safe. While the coordinator is overloaded it may be refused here,
    /// unsent: see [`ClientOptions::holds_back`] and [`ClientOptions::begin_wait_max_ms`].
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn begin(
        &self,
        request: &TransactionRequest,
    ) -> Result<TransactionStatus, ClientError> {
        let set = Set::of(request.branches.iter().map(|branch| branch.participant.as_str()));
        if let Some(restraint) = &self.restraint {
            restraint.pass(set, Instant::now())?;
        }
        let place = self.line.enter()?;
        let body = serde_json::to_vec(request)
            .map_err(|error| ClientError::Unusable(error.to_string()))?;
        let request = self.request(Method::POST, "/v1/transactions", Some(body.into()))?;
        let begun = self.answer(request, self.request_timeout(), Some(place)).await;
        if let Some(restraint) = &self.restraint {
            restraint.hear(set, &begun, Instant::now());
        }
        begun
    }

    /// Where a transaction stands; with `wait`, after it is complete or that time has passed.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn get(
        &self,
        id: &TransactionId,
        wait: Option<Duration>,
    ) -> Result<TransactionStatus, ClientError> {
        let query = wait.map_or_else(String::new, |wait| format!("?wait={}ms", wait.as_millis()));
        let path = format!("/v1/transactions/{id}{query}");
        self.ask(Method::GET, &path, None, wait.unwrap_or_default()).await
    }

    /// One page of transactions. `query` is what stands behind the `?`, already encoded; it may be
    /// empty.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn list(&self, query: &str) -> Result<TransactionList, ClientError> {
        let path = format!("/v1/transactions?{query}");
        self.ask(Method::GET, path.trim_end_matches('?'), None, Duration::ZERO).await
    }

    /// What is known of a transaction's course.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn timeline(&self, id: &TransactionId) -> Result<Timeline, ClientError> {
        let path = format!("/v1/transactions/{id}/events");
        self.ask(Method::GET, &path, None, Duration::ZERO).await
    }

    /// What a participant in doubt is told.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn decision(&self, id: &TransactionId) -> Result<DecisionAnswer, ClientError> {
        let path = format!("/v1/transactions/{id}/decision");
        self.ask(Method::GET, &path, None, Duration::ZERO).await
    }

    /// Whatever a path answers with, as JSON: for parts of the API that have no method here.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn get_json<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.ask(Method::GET, path, None, Duration::ZERO).await
    }

    /// Whatever a path answers with, as text.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn get_text(&self, path: &str) -> Result<String, ClientError> {
        let request = self.request(Method::GET, path, None)?;
        let body = self.send(request, self.request_timeout(), None).await?;
        String::from_utf8(body.to_vec()).map_err(|error| ClientError::Unreadable(error.to_string()))
    }

    /// Sends JSON to a path, and reads the answer as JSON.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn post_json<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl serde::Serialize,
    ) -> Result<T, ClientError> {
        let body =
            serde_json::to_vec(body).map_err(|error| ClientError::Unusable(error.to_string()))?;
        self.ask(Method::POST, path, Some(body.into()), Duration::ZERO).await
    }

    pub(crate) async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Bytes>,
        poll: Duration,
    ) -> Result<T, ClientError> {
        let request = self.request(method, path, body)?;
        self.answer(request, poll.saturating_add(self.request_timeout()), None).await
    }

    /// Sends a request, and reads its answer as JSON.
    async fn answer<T: DeserializeOwned>(
        &self,
        request: Request<Full<Bytes>>,
        limit: Duration,
        place: Option<Place<'_>>,
    ) -> Result<T, ClientError> {
        let body = self.send(request, limit, place).await?;
        serde_json::from_slice(&body).map_err(|error| ClientError::Unreadable(error.to_string()))
    }

    /// Sends a request, and again as [`Asking`] decides, until it is answered: every request of
    /// [`Asked`] may be made again.
    pub(crate) async fn persist<T: DeserializeOwned>(
        &self,
        asked: Asked,
        path: &str,
        body: Option<Bytes>,
    ) -> Result<T, ClientError> {
        let patience_ms = self.options.patience_ms;
        let policy = AskPolicy { patience_ms, ..AskPolicy::default() };
        let mut asking = Asking::new(policy, splitmix64(crate::now_ms()));
        let started = tokio::time::Instant::now();
        loop {
            let body = body.clone();
            let answered = self.ask(Method::POST, path, body, Duration::ZERO).await;
            let Err(error) = answered else { return answered };
            let elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
            match asking.failed(asked, error.unheard(), elapsed_ms) {
                AskNext::Again { delay_ms } => {
                    tracing::debug!(%error, delay_ms, "asked again");
                    tokio::time::sleep(Duration::from_millis(delay_ms)).await;
                }
                AskNext::AskStatus | AskNext::GiveUp { .. } => return Err(error),
            }
        }
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<Bytes>,
    ) -> Result<Request<Full<Bytes>>, ClientError> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.base_url));
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, JSON);
        }
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        request
            .body(Full::new(body.unwrap_or_default()))
            .map_err(|error| ClientError::Unusable(error.to_string()))
    }

    /// Sends a request, and gives back what it was answered with if that is no refusal.
    async fn send(
        &self,
        request: Request<Full<Bytes>>,
        limit: Duration,
        place: Option<Place<'_>>,
    ) -> Result<Bytes, ClientError> {
        let exchange = self.exchange(request, self.options.answer_bytes_max, place);
        let (head, body) = tokio::time::timeout(limit, exchange)
            .await
            .map_err(|_| ClientError::NoAnswer(format!("not within {} ms", limit.as_millis())))??;
        if !head.status.is_success() {
            return Err(refused(head.status, &body));
        }
        Ok(body)
    }

    /// Sends a request to whomever it names, and reads the answer, of at most so many bytes.
    pub(crate) async fn exchange(
        &self,
        request: Request<Full<Bytes>>,
        answer_bytes_max: usize,
        place: Option<Place<'_>>,
    ) -> Result<(response::Parts, Bytes), ClientError> {
        let _permit = self.permits.acquire().await;
        place.into_iter().for_each(Place::leave);
        let response =
            self.connections.request(request).await.map_err(|error| no_answer(&error))?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, answer_bytes_max);
        let body = body.collect().await.map_err(|error| no_answer(&*error))?;
        Ok((head, body.to_bytes()))
    }

    /// How long one request may take.
    pub(crate) const fn request_timeout(&self) -> Duration {
        Duration::from_millis(self.options.request_timeout_ms)
    }
}

/// The error with what lies under it: "client error (Connect)" alone helps nobody.
fn no_answer(error: &(dyn std::error::Error + 'static)) -> ClientError {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    ClientError::NoAnswer(text)
}

fn refused(status: StatusCode, body: &Bytes) -> ClientError {
    let problem: Problem = serde_json::from_slice(body).unwrap_or_else(|_| Problem {
        detail: crate::contract::cut(&String::from_utf8_lossy(body), 512),
        ..Problem::default()
    });
    ClientError::Refused {
        status: status.as_u16(),
        code: problem.code,
        detail: problem.detail,
        field: problem.field,
    }
}

fn bearer(token: &str) -> Result<HeaderValue, ClientError> {
    let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
        .map_err(|_| ClientError::Unusable("the token has characters no header may have".into()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// The base URL without a trailing slash.
pub(crate) fn check_base_url(base_url: &str) -> Result<Arc<str>, ClientError> {
    let unusable = |what: &str| Err(ClientError::Unusable(format!("{base_url:?} {what}")));
    let Ok(uri) = base_url.parse::<Uri>() else { return unusable("is not a URL") };
    match uri.scheme_str() {
        Some("http") => {}
        Some("https") => {
            return unusable(
                "is https, which this client does not speak yet: use http on a network that you \
                 trust",
            );
        }
        _ => return unusable("must begin with http://"),
    }
    if uri.authority().is_none_or(|authority| authority.as_str().contains('@')) {
        return unusable("must name a host and no credentials");
    }
    if uri.query().is_some() {
        return unusable("must not have a query");
    }
    Ok(base_url.trim_end_matches('/').into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_urls_are_checked_before_anything_is_sent() {
        for good in ["http://127.0.0.1:7070", "http://localhost/prefix/", "http://[::1]:1"] {
            assert!(Client::new(good, None).is_ok(), "{good}");
        }
        for (bad, part) in [
            ("127.0.0.1:7070", "must begin"),
            ("https://x", "https"),
            ("http://user:secret@x", "credentials"),
            ("http://x?a=1", "query"),
            ("http://a b", "not a URL"),
            ("ftp://x", "must begin"),
        ] {
            let error = Client::new(bad, None).unwrap_err().to_string();
            assert!(error.contains(part), "{error} has no {part:?}");
        }
        assert!(Client::new("http://x", Some("two\nlines")).is_err());
    }

    #[test]
    fn a_refusal_keeps_code_and_detail_also_of_a_foreign_answer() {
        let body = br#"{"type":"t","code":"no_branches","detail":"none","status":422,"extra":1}"#;
        let error = refused(StatusCode::UNPROCESSABLE_ENTITY, &Bytes::from_static(body));
        assert_eq!(error.code(), Some("no_branches"));
        let error = refused(StatusCode::BAD_GATEWAY, &Bytes::from_static(b"<html>bad"));
        assert_eq!(error.to_string(), "HTTP 502, : <html>bad");
    }
}
