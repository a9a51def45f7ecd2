//! Decides how the program listens: how many connections, how slowly a client may speak, and how
//! the listening ends. What the requests mean is the router's.
//!
//! `axum::serve` has no limits in time. Here every connection is watched: its bytes pass through
//! `watch`, its requests are counted, and a connection that leaves its client's part undone for
//! too long is closed. hyper's own header timeout is not used: it also runs between
//! requests, so that idle connections could not live longer than a header may take.

mod body;
mod crowd;
#[cfg(test)]
mod tests;
mod watch;

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, watch as watch_channel};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tower::ServiceExt as _;

pub use self::body::{BodyTimeout, pass_over, read_body};
use self::body::{CountedBody, TimedBody};
use self::crowd::Crowd;
use self::watch::{Activity, Counted, WatchedStream};

/// The most bytes of a request's headers.
const HEADER_BYTES_MAX: usize = 32 * 1024;
/// The most headers of a request.
const HEADERS_MAX: usize = 100;
/// The most requests at once on one HTTP/2 connection.
const STREAMS_MAX: u32 = 200;
/// How many streams an HTTP/2 client may reset before it has to wait, or is cut off: the "rapid
/// reset" attack (CVE-2023-44487) opens and resets without end.
const STREAM_RESETS_MAX: usize = 20;
/// How long nothing is accepted after the system had no means for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the listening side accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboundLimits {
    /// The most connections. When another comes, those that have asked nothing for longest are
    /// closed; if each is being worked for, it waits, and others in the system's queue.
    pub connections_max: usize,
    /// For a request's headers, from the connection's or the header's beginning, in milliseconds.
    pub header_timeout_ms: u64,
    /// For a request's body, from its headers' end, in milliseconds.
    pub body_timeout_ms: u64,
    /// For a connection that carries no request, or whose client takes none of its answer, in
    /// milliseconds.
    pub idle_timeout_ms: u64,
    /// For requests under way when the listening ends, in milliseconds.
    pub stop_timeout_ms: u64,
}

impl Default for InboundLimits {
    fn default() -> Self {
        Self {
            connections_max: 4_096,
            header_timeout_ms: 5_000,
            body_timeout_ms: 10_000,
            idle_timeout_ms: 75_000,
            stop_timeout_ms: 10_000,
        }
    }
}

/// Serves a router until `shutdown` comes; then stops accepting, lets requests that are under way
/// finish, for `stop_timeout_ms` at most, and returns. Speaks HTTP/1.1 and HTTP/2 without TLS.
///
/// The client's address is in each request's extensions, as [`ConnectInfo`].
///
/// # Errors
/// If the listener can never accept again. Lack of memory or of file descriptors is waited out.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: InboundLimits,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let crowd = Arc::new(Crowd::new(limits.connections_max));
    let (stop, stopping) = watch_channel::channel(false);
    let stop_timeout = Duration::from_millis(limits.stop_timeout_ms);
    let mut server = Server {
        router,
        limits: Arc::new(limits),
        builder: Arc::new(http_builder()),
        stopping,
        connections: JoinSet::new(),
        crowd: Arc::clone(&crowd),
    };
    let mut shutdown = pin!(shutdown);
    // One that is accepted and has no place yet.
    let mut waiting = None;
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            accepted = accept(&listener), if waiting.is_none() => waiting = Some(accepted?),
            permit = crowd.room(), if waiting.is_some() => {
                if let (Some(permit), Some((stream, peer))) = (permit, waiting.take()) {
                    server.start(permit, stream, peer);
                }
            }
            Some(ended) = server.connections.join_next() => log_end(ended),
        }
    }
    // Before anything else, so that clients go elsewhere at once.
    drop(listener);
    stop.send_replace(true);
    server.finish(stop_timeout).await;
    Ok(())
}

/// What all connections share.
struct Server {
    router: Router,
    limits: Arc<InboundLimits>,
    builder: Arc<auto::Builder<TokioExecutor>>,
    stopping: watch_channel::Receiver<bool>,
    connections: JoinSet<()>,
    crowd: Arc<Crowd>,
}

impl Server {
    fn start(&mut self, permit: OwnedSemaphorePermit, stream: TcpStream, peer: SocketAddr) {
        let (router, limits) = (self.router.clone(), Arc::clone(&self.limits));
        let (builder, stopping) = (Arc::clone(&self.builder), self.stopping.clone());
        let activity = Arc::new(Activity::new());
        let place = self.crowd.enter(permit, Arc::clone(&activity));
        self.connections.spawn(async move {
            carry(&builder, stream, peer, router, &limits, stopping, activity).await;
            drop(place);
        });
    }

    async fn finish(mut self, stop_timeout: Duration) {
        let all_ended = async {
            while let Some(ended) = self.connections.join_next().await {
                log_end(ended);
            }
        };
        if tokio::time::timeout(stop_timeout, all_ended).await.is_err() {
            let open = self.connections.len();
            tracing::warn!(open, "connections are cut off: their requests took too long to finish");
            self.connections.shutdown().await;
        }
    }
}

fn log_end(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a connection's task failed");
    }
}

fn http_builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        .max_buf_size(HEADER_BYTES_MAX)
        .max_headers(HEADERS_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(u32::try_from(HEADER_BYTES_MAX).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(STREAM_RESETS_MAX)
        .max_local_error_reset_streams(STREAM_RESETS_MAX)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20));
    builder
}

/// Waits for the next connection.
async fn accept(listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    loop {
        match listener.accept().await {
            Ok(accepted) => return Ok(accepted),
            // The client has gone again, or the like: nothing to do with the next one.
            Err(error) if is_of_the_client(&error) => {}
            // Not a listener any more: EINVAL, or a descriptor that is closed.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Err(error),
            Err(error) => {
                tracing::error!(%error, "cannot accept connections for the moment");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn is_of_the_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// Carries one connection to its end.
async fn carry(
    builder: &auto::Builder<TokioExecutor>,
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    limits: &InboundLimits,
    mut stopping: watch_channel::Receiver<bool>,
    activity: Arc<Activity>,
) {
    // An answer is written at once and is not to wait for the next.
    // dropped: that the socket is gone already is found out by reading.
    let _ = stream.set_nodelay(true);
    let stream = WatchedStream { stream, activity: Arc::clone(&activity) };
    let body_timeout = Duration::from_millis(limits.body_timeout_ms);
    let service = service_fn(|request: Request<Incoming>| {
        answer(router.clone(), Arc::clone(&activity), body_timeout, peer, request)
    });
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let mut overdue = pin!(activity.overdue(limits));
    let mut told = false;
    loop {
        tokio::select! {
            // The connection first: a request that has come is answered.
            biased;
            ended = &mut connection => {
                if let Err(error) = ended {
                    tracing::debug!(%peer, error, "a connection broke off");
                }
                return;
            }
            what = &mut overdue => {
                tracing::debug!(%peer, what, "a connection is closed");
                return;
            }
            () = activity.leaves() => {
                let can_go = poll_fn(|context| {
                    Poll::Ready(activity.can_go(|| connection.as_mut().poll(context)))
                });
                if can_go.await {
                    let what = "another client needs its place";
                    tracing::debug!(%peer, what, "a connection is closed");
                    return;
                }
            }
            () = async { drop(stopping.wait_for(|stop| *stop).await) }, if !told => {
                told = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// Answers one request, counted until its answer's body has been taken.
async fn answer(
    router: Router,
    activity: Arc<Activity>,
    body_timeout: Duration,
    peer: SocketAddr,
    request: Request<Incoming>,
) -> Result<Response<CountedBody>, std::convert::Infallible> {
    let watched = Arc::clone(&activity);
    let counted = Counted::new(activity, request.version());
    let deadline = (!stays_open(&request)).then(|| Instant::now() + body_timeout);
    let takes_rest = request.version() < http::Version::HTTP_2
        && !request.headers().contains_key(http::header::EXPECT);
    let body = |inner| Body::new(TimedBody::new(inner, deadline, takes_rest, watched));
    let mut request = request.map(body);
    request.extensions_mut().insert(ConnectInfo(peer));
    let response = router.oneshot(request).await?;
    Ok(response.map(|body| CountedBody { body, _counted: counted }))
}

/// Whether a request's body goes on for as long as its client lives: the two streams over gRPC.
/// Such a connection is watched by pings, and counts as one of `connections_max`.
fn stays_open<B>(request: &Request<B>) -> bool {
    request.version() == http::Version::HTTP_2
        && matches!(
            request.uri().path(),
            "/unanimity.v1.Participants/Serve" | "/unanimity.v1.Transactions/Run"
        )
}
