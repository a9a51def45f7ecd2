//! Decides how a connection to a participant is made: resolve, let only allowed addresses through,
//! connect to exactly the address that was judged. Judging here, and not only when a request comes
//! in, is what stops a name that changes its address in between (DNS rebinding).

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout_at};

use super::policy::{Policy, canonical};

/// How many addresses of one name are tried, of however many the answer holds.
const ADDRESSES_TRIED_MAX: usize = 4;

/// Connects by TCP to where the policy allows.
#[derive(Clone, Debug)]
pub(crate) struct Connector {
    policy: Arc<Policy>,
    connect_timeout_ms: u64,
}

impl Connector {
    /// Within `connect_timeout_ms` (milliseconds) a name must have resolved and a connection stand.
    pub(crate) const fn new(policy: Arc<Policy>, connect_timeout_ms: u64) -> Self {
        Self { policy, connect_timeout_ms }
    }

    async fn connect(self, uri: Uri) -> io::Result<TokioIo<TcpStream>> {
        let host = uri.host().unwrap_or_default();
        let port =
            uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
        let deadline = Instant::now() + Duration::from_millis(self.connect_timeout_ms);
        let addresses = timeout_at(deadline, self.allowed_addresses(host, port))
            .await
            .map_err(|_| self.too_slow("resolving its name"))??;
        let mut last = io::Error::other("its name has no address");
        let tries = addresses.len();
        for (tried, address) in addresses.into_iter().enumerate() {
            // Each address gets its share of the time that is left, so that one dead address does
            // not use up the time of a living one.
            let left = deadline.saturating_duration_since(Instant::now());
            let share = left / u32::try_from(tries - tried).unwrap_or(1);
            match tokio::time::timeout(share, connect_to(address)).await {
                Ok(Ok(stream)) => return Ok(TokioIo::new(stream)),
                Ok(Err(error)) => last = error,
                Err(_) => last = self.too_slow("connecting"),
            }
        }
        Err(last)
    }

    async fn allowed_addresses(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let literal = host.trim_start_matches('[').trim_end_matches(']');
        let found = lookup_host((literal, port)).await;
        let found = found.map_err(|error| {
            io::Error::new(error.kind(), format!("its name {host} does not resolve: {error}"))
        })?;
        let mut allowed = Vec::new();
        let mut refusal = None;
        for address in found.take(ADDRESSES_TRIED_MAX * 4) {
            match self.policy.permit(host, port, address.ip()) {
                Ok(()) => allowed.push(address),
                Err(message) => refusal = Some(message),
            }
        }
        allowed.truncate(ADDRESSES_TRIED_MAX);
        match (allowed.is_empty(), refusal) {
            (true, Some(message)) => Err(io::Error::new(io::ErrorKind::PermissionDenied, message)),
            (true, None) | (false, _) => Ok(allowed),
        }
    }

    fn too_slow(&self, what: &str) -> io::Error {
        let message = format!("{what} took longer than {} ms", self.connect_timeout_ms);
        io::Error::new(io::ErrorKind::TimedOut, message)
    }
}

async fn connect_to(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    let peer = stream.peer_addr()?;
    if canonical(peer.ip()) != canonical(address.ip()) || peer.port() != address.port() {
        let message = format!("asked for {address} and was connected to {peer}");
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
    }
    stream.set_nodelay(true)?;
    Ok(stream)
}

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}
