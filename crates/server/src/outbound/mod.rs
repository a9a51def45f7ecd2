//! The calls to participants over HTTP (DESIGN section 7): `POST {participant}/{operation}`.
//!
//! This file decides how one call runs: a permit, a connection, one request, one bounded answer,
//! all within one time limit. Which address may be called is [`policy`]'s and `target`'s, how a
//! connection is made `connect`'s, which are kept `pool`'s, what an answer means the SDK's, and
//! how results get into payloads [`references`]'s. Which calls go in one request is `lane`'s, and
//! how such a batch runs `batch`'s. Whether a participant that fails is called at all is
//! `breaker`'s.
//! When a call is tried again is decided in the core. Nothing here reads the environment: there
//! are no proxies, cookies, redirects or decompression to switch off, because none is there.

mod batch;
mod breaker;
mod breakers;
mod connect;
mod lane;
mod lines;
mod offers;
pub mod policy;
mod pool;
mod queue;
pub mod references;
mod target;
mod targets;
#[cfg(test)]
mod tests;
pub mod trace;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{
    ACCEPT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue,
    USER_AGENT,
};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use tokio::sync::SemaphorePermit;
use tokio::time::{Instant, timeout_at};
use tower::Service as _;
use unanimity::Owed;
use unanimity_core::{Answer, Call, Operation, TIMEOUT_MS_MAX};
use unanimity_sdk::contract::batch::BATCH_CALLS_MAX;
use unanimity_sdk::contract::{JSON, Response, clean, judge};

pub use self::breaker::BreakerConfig;
use self::breakers::{Breakers, Clock, Pass};
pub(crate) use self::connect::Connector;
pub use self::offers::Offers;
pub use self::policy::Policy;
use self::pool::{Connection, Origin, Pool};
pub use self::target::AddressError;
use self::target::Target;
pub(crate) use self::target::check as check_address;
use self::targets::Targets;

/// The most bytes of an answer's headers.
const HEADER_BYTES_MAX: usize = 16 * 1024;
/// The most headers of an answer.
const HEADERS_MAX: usize = 100;

/// As many as a call has, so that there is room for all of them at once.
const HEADERS_OF_A_CALL: usize = 12;
static PRODUCT: HeaderValue =
    HeaderValue::from_static(concat!("unanimity/", env!("CARGO_PKG_VERSION")));
static TRANSACTION: HeaderName = HeaderName::from_static("unanimity-transaction");
static BRANCH: HeaderName = HeaderName::from_static("unanimity-branch");
static ATTEMPT: HeaderName = HeaderName::from_static("unanimity-attempt");
static OUTCOME: HeaderName = HeaderName::from_static("unanimity-outcome");
static TRACE_PARENT: HeaderName = HeaderName::from_static("traceparent");

/// How calls to participants are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboundConfig {
    /// Which addresses may be called.
    pub policy: Policy,
    /// The most connections to one scheme, host and port, in use and idle together.
    pub connections_per_participant_max: usize,
    /// The most schemes, hosts and ports that connections are kept for.
    pub participants_max: usize,
    /// Within this many milliseconds a name must have resolved and a connection stand.
    pub connect_timeout_ms: u64,
    /// So many milliseconds a call may wait for a connection, or for room; when all wait longer,
    /// for four times that, the participant counts as busy. 0: it never does.
    pub queue_delay_target_ms: u64,
    /// After this many milliseconds without a call a connection is closed. Short, because many
    /// servers close theirs after 5 s, and a call that crosses with the closing is lost.
    pub idle_timeout_ms: u64,
    /// The most bytes of an answer's body.
    pub answer_bytes_max: usize,
    /// The most calls in one request, to participants that take so many. Fewer than two: each call
    /// is a request of its own.
    pub batch_calls_max: usize,
    /// The most calls that are under way in batches to one scheme, host and port; others wait.
    pub calls_in_flight_max: usize,
    /// When calls to a participant that fails are held back.
    pub breaker: BreakerConfig,
}

impl Default for OutboundConfig {
    fn default() -> Self {
        Self {
            policy: Policy::default(),
            connections_per_participant_max: 64,
            participants_max: 4_096,
            connect_timeout_ms: 2_000,
            queue_delay_target_ms: 100,
            idle_timeout_ms: 4_000,
            answer_bytes_max: 64 * 1024,
            batch_calls_max: BATCH_CALLS_MAX,
            // A quarter of what a store of the SDK lets wait (`queue_calls_max`): several
            // coordinators may call one participant.
            calls_in_flight_max: 1_024,
            breaker: BreakerConfig::default(),
        }
    }
}

/// Calls participants over HTTP/1.1. Cheap to share; calls run side by side.
#[derive(Debug)]
pub struct HttpTransport {
    config: OutboundConfig,
    pool: Arc<Pool>,
    targets: Targets,
    breakers: Arc<Breakers>,
    connector: HttpsConnector<Connector>,
    offers: Arc<Offers>,
    sweeper: OnceLock<()>,
    /// Whoever connects goes through here; a test may hold it shut.
    #[cfg(test)]
    door: tokio::sync::RwLock<()>,
}

impl HttpTransport {
    /// Makes a transport; nothing is connected yet.
    #[must_use]
    pub fn new(config: OutboundConfig) -> Self {
        Self::with_clock(config, Clock::start())
    }

    fn with_clock(config: OutboundConfig, clock: Clock) -> Self {
        let tcp = Connector::new(Arc::new(config.policy.clone()), config.connect_timeout_ms);
        let connector = HttpsConnectorBuilder::new()
            .with_webpki_roots()
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let pool = Arc::new(Pool::new(
            config.participants_max,
            config.connections_per_participant_max,
            config.calls_in_flight_max,
            Duration::from_millis(config.idle_timeout_ms),
            Duration::from_millis(config.queue_delay_target_ms),
        ));
        let breakers = Arc::new(Breakers::new(config.breaker, config.participants_max, clock));
        let targets = Targets::new(config.participants_max);
        let offers = Arc::new(Offers::new(config.participants_max, config.batch_calls_max));
        let sweeper = OnceLock::new();
        Self {
            config,
            pool,
            targets,
            breakers,
            connector,
            offers,
            sweeper,
            #[cfg(test)]
            door: tokio::sync::RwLock::default(),
        }
    }

    /// What participants have offered in their answers.
    #[must_use]
    pub fn offers(&self) -> Arc<Offers> {
        Arc::clone(&self.offers)
    }

    /// Says whether a participant's address may be called, as far as that can be known without
    /// resolving its name; the rest is checked when a connection is made.
    ///
    /// # Errors
    /// `participant_invalid` if it is not an address that can be called: http or https, a host, no
    /// user, query or fragment. `participant_not_allowed` if it is an IP literal that the policy
    /// does not allow.
    pub fn check(&self, participant: &str) -> Result<(), AddressError> {
        self.targets.get(participant, &self.config.policy)?.verdict.clone()
    }

    /// Whether calls to a participant have waited too long for a connection, for too long.
    #[must_use]
    pub fn is_busy(&self, participant: &str) -> bool {
        self.pool.has_waiting()
            && (self.targets.get(participant, &self.config.policy))
                .is_ok_and(|known| self.pool.is_busy(&known.target.origin))
    }

    /// What keeps calls from a participant now, in words; `None` if nothing does.
    #[must_use]
    pub fn held_back(&self, participant: &str) -> Option<String> {
        self.breakers.standing(&Target::parse(participant).ok()?.origin)
    }

    /// Carries one call, within the call's own time limit. Needs a tokio runtime.
    ///
    /// Every failure, and every answer that is not in the contract's closed set, is
    /// [`Answer::Unknown`] with a text that says what happened; a call that was never sent is
    /// [`Answer::Unsent`].
    pub async fn call(&self, call: Call) -> Answer {
        self.start_sweeper();
        let deadline = Instant::now() + Duration::from_millis(call.timeout_ms.min(TIMEOUT_MS_MAX));
        self.carry(&call, deadline, None).await
    }

    /// The same, within a limit that was set before, and on a connection if there is one already.
    async fn carry(
        &self,
        call: &Call,
        deadline: Instant,
        permitted: Option<(&Origin, SemaphorePermit<'_>)>,
    ) -> Answer {
        self.attempt(call, deadline, permitted).await.unwrap_or_else(Failure::answer)
    }

    async fn attempt(
        &self,
        call: &Call,
        deadline: Instant,
        permitted: Option<(&Origin, SemaphorePermit<'_>)>,
    ) -> Result<Answer, Failure> {
        let unsent = Failure::Unsent;
        let known = (self.targets.get(&call.plan.participant, &self.config.policy))
            .map_err(|error| unsent(format!("the participant's address {error}")))?;
        let target = &known.target;
        let payload = match payload(call) {
            Ok(payload) => payload,
            Err(missing) => return Ok(Answer::No(missing.into())),
        };
        let request = request(call, target, payload)
            .map_err(|error| unsent(format!("cannot be asked: {error}")))?;
        let pass = self.breakers.admit(&target.origin).map_err(unsent)?;
        let exchanged = if let Some((origin, permit)) = permitted {
            self.timed(call, origin, target, request, deadline, (pass, permit)).await
        } else {
            let origin =
                self.pool.origin(&target.origin).ok_or_else(|| self.too_many_participants())?;
            let permit = timeout_at(deadline, self.pool.permit(&origin)).await;
            let permit =
                permit.ok().flatten().ok_or_else(|| self.not_connected(call.timeout_ms))?;
            let pass = pass.again().map_err(unsent)?;
            self.timed(call, &origin, target, request, deadline, (pass, permit)).await
        };
        let (pass, (status, headers, body)) = exchanged?;
        let answer = judge(call.operation, Response::new(status, &headers, &body));
        self.offers.note(&call.plan.participant, &known, &headers);
        conclude(pass, status, &answer);
        Ok(answer)
    }

    fn too_many_participants(&self) -> Failure {
        let most = self.config.participants_max;
        Failure::Unsent(format!("{most} participants are being called already"))
    }

    fn not_connected(&self, limit_ms: u64) -> Failure {
        let most = self.config.connections_per_participant_max;
        Failure::Unsent(format!(
            "none of the {most} connections to it became free within {limit_ms} ms"
        ))
    }

    /// Exchanges within the call's time, on the connection that the permit stands for.
    async fn timed<'a>(
        &self,
        call: &Call,
        origin: &Origin,
        target: &Target,
        request: Request<Full<Bytes>>,
        deadline: Instant,
        (mut pass, permit): (Pass<'a>, SemaphorePermit<'_>),
    ) -> Result<(Pass<'a>, (StatusCode, HeaderMap, Bytes)), Failure> {
        pass.leaves();
        let exchanged =
            timeout_at(deadline, self.exchange(origin, target, request, deadline)).await;
        drop(permit);
        let exchanged = exchanged
            .unwrap_or_else(|_| Err(format!("no answer within {} ms", call.timeout_ms).into()));
        match exchanged {
            Ok(exchanged) => Ok((pass, exchanged)),
            Err(error) => {
                pass.failed(error.text());
                Err(error)
            }
        }
    }

    /// Sends a request and reads the answer to its end.
    async fn exchange(
        &self,
        origin: &Origin,
        target: &Target,
        mut request: Request<Full<Bytes>>,
        deadline: Instant,
    ) -> Result<(StatusCode, HeaderMap, Bytes), Failure> {
        loop {
            let (mut connection, reused) = timeout_at(deadline, self.connection(origin, target))
                .await
                .unwrap_or_else(|_| Err("not connected within the call's time".to_owned()))
                .map_err(Failure::Unsent)?;
            match connection.sender.try_send_request(request).await {
                Ok(response) => {
                    let (head, body) = response.into_parts();
                    let body = read(body, self.config.answer_bytes_max).await?;
                    origin.give_back(connection);
                    return Ok((head.status, head.headers, body));
                }
                // The participant closed an idle connection before any of the request was
                // written: it cannot have seen it, so another connection may carry it.
                Err(mut error) => match error.take_message() {
                    Some(unsent) if reused => request = unsent,
                    Some(_) | None => return Err(describe(error.error()).into()),
                },
            }
        }
    }

    /// A connection that can carry a request, and whether it was used before.
    async fn connection(
        &self,
        origin: &Origin,
        target: &Target,
    ) -> Result<(Connection, bool), String> {
        while let Some(mut connection) = origin.take_idle() {
            if connection.sender.ready().await.is_ok() {
                return Ok((connection, true));
            }
        }
        let mut connection = self.connect(target).await?;
        // dropped: if it is closed already, the request that is put on it finds out.
        let _ = connection.sender.ready().await;
        Ok((connection, false))
    }

    async fn connect(&self, target: &Target) -> Result<Connection, String> {
        #[cfg(test)]
        drop(self.door.read().await);
        let uri =
            target.origin.parse().map_err(|error| format!("cannot be connected to: {error}"))?;
        let stream = self
            .connector
            .clone()
            .call(uri)
            .await
            .map_err(|error| format!("cannot connect: {}", with_causes(error.as_ref())))?;
        let (sender, driver) = http1::Builder::new()
            .max_buf_size(HEADER_BYTES_MAX)
            .max_headers(HEADERS_MAX)
            .handshake(stream)
            .await
            .map_err(|error| describe(&error))?;
        // How the connection ends is told by the request that is on it.
        let driver = tokio::spawn(async move { drop(driver.await) }).abort_handle();
        Ok(Connection::new(sender, driver))
    }

    /// Starts, with the first call, the task that closes idle connections. It ends with the
    /// transport.
    fn start_sweeper(&self) {
        self.sweeper.get_or_init(|| {
            let (pool, breakers) = (Arc::downgrade(&self.pool), Arc::downgrade(&self.breakers));
            let mut interval = tokio::time::interval(self.pool.sweep_interval());
            tokio::spawn(async move {
                loop {
                    interval.tick().await;
                    let (Some(pool), Some(breakers)) = (pool.upgrade(), breakers.upgrade()) else {
                        return;
                    };
                    pool.sweep();
                    breakers.sweep();
                }
            });
        });
    }
}

/// Why there is no answer.
#[derive(Clone, Debug)]
enum Failure {
    /// Nothing of the call has left.
    Unsent(String),
    /// Some of it may have arrived.
    Unknown(String),
}

impl Failure {
    fn text(&self) -> &str {
        match self {
            Self::Unsent(text) | Self::Unknown(text) => text,
        }
    }

    fn answer(self) -> Answer {
        match self {
            Self::Unsent(text) => Answer::Unsent(clean(&text).into()),
            Self::Unknown(text) => Answer::Unknown(clean(&text).into()),
        }
    }
}

/// Ends a call that has no answer.
fn settle(owed: Owed, failure: Failure) {
    owed.settle(failure.answer());
}

/// Tells the breaker what an answer shows of the participant.
fn conclude(pass: Pass<'_>, status: StatusCode, answer: &Answer) {
    match answer {
        Answer::Unknown(error) if !shows_life(status) => pass.failed(error),
        Answer::Unknown(_)
        | Answer::Yes(_)
        | Answer::ReadOnly
        | Answer::Read(_)
        | Answer::No(_)
        | Answer::Unsupported
        | Answer::Contradiction(..)
        | Answer::Unsent(_)
        | Answer::Acknowledged => pass.answered(),
    }
}

impl From<String> for Failure {
    fn from(text: String) -> Self {
        Self::Unknown(text)
    }
}

/// What the participant is given. Before the decision a result that lacks a field is a no; after
/// it nothing can be refused any more, and the field is null.
pub(crate) fn payload(call: &Call) -> Result<Option<Bytes>, String> {
    let Some(payload) = &call.payload else { return Ok(None) };
    if call.results.is_empty() {
        return Ok(Some(Bytes::from_owner(Arc::clone(payload))));
    }
    let before = matches!(call.operation, Operation::Prepare | Operation::Execute);
    let must_be_there = before && call.outcome.is_none();
    let text = std::str::from_utf8(payload).map_err(|error| error.to_string())?;
    references::fill(text, &call.results, must_be_there).map(|filled| Some(filled.into()))
}

/// The request that carries a call.
fn request(
    call: &Call,
    target: &Target,
    payload: Option<Bytes>,
) -> Result<Request<Full<Bytes>>, http::Error> {
    let text = |text: &str| HeaderValue::from_str(text);
    let has_payload = payload.is_some();
    let mut request = post(target, target.uri(call.operation)?, payload.unwrap_or_default());
    let headers = request.headers_mut();
    headers.insert(TRANSACTION.clone(), text(call.transaction.as_str())?);
    headers.insert(BRANCH.clone(), text(&call.plan.name)?);
    headers.insert(ATTEMPT.clone(), HeaderValue::from(call.attempt));
    headers.insert(TRACE_PARENT.clone(), text(&trace::traceparent(call))?);
    if let Some(outcome) = call.outcome {
        headers.insert(OUTCOME.clone(), HeaderValue::from_static(outcome.as_str()));
    }
    if has_payload {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
    } else {
        // hyper says nothing of an empty body, and some servers insist on knowing (status 411).
        headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    }
    Ok(request)
}

/// A request to a participant, with the headers that every one has.
fn post(target: &Target, uri: Uri, body: Bytes) -> Request<Full<Bytes>> {
    let mut headers = HeaderMap::with_capacity(HEADERS_OF_A_CALL);
    headers.insert(HOST, target.host.clone());
    headers.insert(USER_AGENT, PRODUCT.clone());
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = uri;
    *request.headers_mut() = headers;
    request
}

/// Reads a body to its end, and no further than `bytes_max`.
async fn read(mut body: Incoming, bytes_max: usize) -> Result<Bytes, String> {
    let too_large = || format!("the answer has more than {bytes_max} bytes");
    let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if announced > bytes_max {
        return Err(too_large());
    }
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| format!("the answer broke off: {}", describe(&error)))?;
        let Ok(data) = frame.into_data() else { continue };
        if first.len() + all.len() + data.len() > bytes_max {
            return Err(too_large());
        }
        if first.is_empty() && all.is_empty() {
            first = data;
            continue;
        }
        if all.is_empty() {
            all.reserve(announced.max(first.len() + data.len()));
            all.extend_from_slice(&std::mem::take(&mut first));
        }
        all.extend_from_slice(&data);
    }
    Ok(if all.is_empty() { first } else { all.freeze() })
}

/// What went wrong with a request, in words that an operator knows.
fn describe(error: &hyper::Error) -> String {
    if error.is_incomplete_message() {
        return "the connection was closed without a complete answer".into();
    }
    if error.is_parse_too_large() {
        return format!("the answer's headers have more than {HEADER_BYTES_MAX} bytes");
    }
    with_causes(error)
}

/// An error and what caused it, outermost first, each once.
fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// Whether an answer that decides nothing still shows that somebody is there to answer: a refusal
/// of this one call, such as a contradiction or an unknown path, and not one for want of strength.
fn shows_life(status: StatusCode) -> bool {
    let overloaded = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS];
    status.is_client_error() && !overloaded.contains(&status)
}
