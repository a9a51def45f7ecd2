//! Decides when a client of the listening side has been too slow: it owes a header, another
//! request, or the taking of its answer, each within a limit.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::Version;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};

use super::InboundLimits;
use super::crowd::Leaving;

/// What a connection has been doing; times are milliseconds since its beginning.
pub(super) struct Activity {
    began: Instant,
    /// Requests whose answers have not been taken.
    requests: AtomicUsize,
    /// When the last request ended, or the connection began.
    idle_since_ms: AtomicU64,
    /// When the first byte came since then; 0: none yet.
    header_since_ms: AtomicU64,
    /// When the client last took bytes.
    written_ms: AtomicU64,
    /// Whether bytes are waiting for the client to take them.
    blocked: AtomicBool,
    http2: AtomicBool,
    /// Requests whose bodies are being waited for.
    bodies: AtomicUsize,
    /// Since when there are such.
    bodies_since_ms: AtomicU64,
    leaving: Leaving,
    /// Whether it is being looked if anything has come, and that nothing had.
    looks: AtomicBool,
    nothing_came: AtomicBool,
}

/// What a client that has no answer to wait for has been doing, and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// The rest of a request, or the taking of its answer.
    Owes(Instant),
    /// Nothing; it has asked before and may ask again.
    Idle(Instant),
}

impl Activity {
    pub(super) fn new() -> Self {
        Self {
            began: Instant::now(),
            requests: AtomicUsize::new(0),
            idle_since_ms: AtomicU64::new(0),
            // A new connection owes its first header from the start.
            header_since_ms: AtomicU64::new(1),
            written_ms: AtomicU64::new(0),
            blocked: AtomicBool::new(false),
            http2: AtomicBool::new(false),
            bodies: AtomicUsize::new(0),
            bodies_since_ms: AtomicU64::new(0),
            leaving: Leaving::default(),
            looks: AtomicBool::new(false),
            nothing_came: AtomicBool::new(false),
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// What the client owes by when: a reason and a time. `None` if it owes nothing: a request is
    /// being worked on.
    fn owes(&self, limits: &InboundLimits) -> Option<(&'static str, u64)> {
        let load = |value: &AtomicU64| value.load(Ordering::Relaxed);
        if self.blocked.load(Ordering::Relaxed) {
            let by = load(&self.written_ms).saturating_add(limits.idle_timeout_ms);
            return Some(("the client does not take its answer", by));
        }
        if self.requests.load(Ordering::Relaxed) > 0 {
            return None;
        }
        let header_since = load(&self.header_since_ms);
        // On HTTP/2 bytes come between requests too, and do not mean that a header has begun.
        if header_since > 0 && !self.http2.load(Ordering::Relaxed) {
            let by = header_since.saturating_add(limits.header_timeout_ms);
            return Some(("a request's headers did not come in time", by));
        }
        Some(("no request came", load(&self.idle_since_ms).saturating_add(limits.idle_timeout_ms)))
    }

    /// Whether the connection could go without a loss, and since when. `None`: a request is being
    /// worked on.
    pub(super) fn standing(&self) -> Option<Standing> {
        let load = |value: &AtomicU64| value.load(Ordering::Relaxed);
        let at = |ms: u64| self.began + Duration::from_millis(ms);
        if self.blocked.load(Ordering::Relaxed) {
            return Some(Standing::Owes(at(load(&self.written_ms))));
        }
        let requests = self.requests.load(Ordering::Relaxed);
        if requests > 0 {
            let waits = requests <= self.bodies.load(Ordering::Relaxed);
            return waits.then(|| Standing::Owes(at(load(&self.bodies_since_ms))));
        }
        match load(&self.header_since_ms) {
            0 => Some(Standing::Idle(at(load(&self.idle_since_ms)))),
            _ if self.http2.load(Ordering::Relaxed) => {
                Some(Standing::Idle(at(load(&self.idle_since_ms))))
            }
            since => Some(Standing::Owes(at(since))),
        }
    }

    /// Tells the connection to go, if it still can.
    pub(super) fn leave(&self) {
        self.leaving.tell();
    }

    /// Ends when the connection is told to go and nothing is being worked on.
    pub(super) async fn leaves(&self) {
        loop {
            self.leaving.told().await;
            if self.standing().is_some() {
                return;
            }
        }
    }

    /// Whether the connection can go now, found out by `poll`, which polls it: it has ended; or no
    /// request is worked on, and none is on its way. One that is must not be answered with a reset
    /// because this side was too busy to read it.
    pub(super) fn can_go<T>(&self, poll: impl FnOnce() -> Poll<T>) -> bool {
        self.nothing_came.store(false, Ordering::Relaxed);
        self.looks.store(true, Ordering::Relaxed);
        let ended = poll().is_ready();
        self.looks.store(false, Ordering::Relaxed);
        let flag = |flag: &AtomicBool| flag.load(Ordering::Relaxed);
        let idle = flag(&self.nothing_came) || flag(&self.blocked);
        ended || (idle && self.standing().is_some())
    }

    /// To read the connection would be to wait. The runtime learns of bytes only between its turns,
    /// so the system itself is asked; where it cannot tell, nothing has come.
    fn would_wait(&self, stream: &TcpStream) {
        if self.looks.load(Ordering::Relaxed) {
            let none = rustix::io::ioctl_fionread(stream).unwrap_or(0) == 0;
            self.nothing_came.store(none, Ordering::Relaxed);
        }
    }

    /// A request's body is being waited for.
    pub(super) fn body_awaited(&self) {
        if self.bodies.fetch_add(1, Ordering::Relaxed) == 0 {
            self.bodies_since_ms.store(self.now_ms(), Ordering::Relaxed);
        }
    }

    /// A request's body is complete, or given up.
    pub(super) fn body_came(&self) {
        self.bodies.fetch_sub(1, Ordering::Relaxed);
    }

    /// Ends when the client has not done in time what it owes. Looks again when the debt that it
    /// saw is due; debts that come up meanwhile are no shorter than the shortest limit.
    pub(super) async fn overdue(&self, limits: &InboundLimits) -> &'static str {
        let shortest = limits.header_timeout_ms.min(limits.idle_timeout_ms).max(1);
        loop {
            let now = self.now_ms();
            let next = match self.owes(limits) {
                Some((what, by)) if by <= now => return what,
                Some((_, by)) => by.min(now.saturating_add(shortest)),
                None => now.saturating_add(shortest),
            };
            sleep_until(self.began + Duration::from_millis(next)).await;
        }
    }

    fn request_began(&self, version: Version) {
        self.http2.store(version == Version::HTTP_2, Ordering::Relaxed);
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.header_since_ms.store(0, Ordering::Relaxed);
    }

    fn request_ended(&self) {
        self.idle_since_ms.store(self.now_ms(), Ordering::Relaxed);
        self.requests.fetch_sub(1, Ordering::Relaxed);
    }

    fn bytes_came(&self) {
        let none = self.header_since_ms.load(Ordering::Relaxed) == 0;
        if none && self.requests.load(Ordering::Relaxed) == 0 {
            self.header_since_ms.store(self.now_ms().max(1), Ordering::Relaxed);
        }
    }

    fn wrote(&self, blocked: bool) {
        if !blocked {
            self.written_ms.store(self.now_ms(), Ordering::Relaxed);
        } else if !self.blocked.load(Ordering::Relaxed) {
            // The client's time begins when the first byte cannot be written.
            self.written_ms.store(self.now_ms(), Ordering::Relaxed);
        }
        self.blocked.store(blocked, Ordering::Relaxed);
    }
}

/// A request that is counted as long as this exists.
pub(super) struct Counted(Arc<Activity>);

impl Counted {
    pub(super) fn new(activity: Arc<Activity>, version: Version) -> Self {
        activity.request_began(version);
        Self(activity)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.request_ended();
    }
}

/// A connection's bytes, watched.
pub(super) struct WatchedStream {
    pub(super) stream: TcpStream,
    pub(super) activity: Arc<Activity>,
}

impl AsyncRead for WatchedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.activity.bytes_came();
        } else if polled.is_pending() {
            self.activity.would_wait(&self.stream);
        }
        polled
    }
}

impl AsyncWrite for WatchedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.activity.wrote(polled.is_pending());
        polled
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.activity.wrote(polled.is_pending());
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
