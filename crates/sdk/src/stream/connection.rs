//! Decides how this side connects to a coordinator for gRPC: HTTP/2 without TLS, with pings that
//! find out when nobody is there any more.

use std::time::Duration;

use http::Uri;
use hyper_util::client::legacy::Client as Connections;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tonic::metadata::{Ascii, MetadataValue};

use crate::client::{ClientError, check_base_url};

/// Connections of one client.
pub(super) type Http2 = Connections<HttpConnector, tonic::body::Body>;

/// Between two pings.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// Without an answer to a ping for so long the connection counts as broken.
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// How many bytes may be under way in one direction.
const WINDOW_BYTES: u32 = 4 * 1024 * 1024;

/// Where a coordinator is, and how it is spoken with.
#[derive(Clone)]
pub(super) struct Coordinator {
    pub(super) connections: Http2,
    pub(super) origin: Uri,
    pub(super) authorization: Option<MetadataValue<Ascii>>,
}

impl Coordinator {
    /// Checks the base URL and the token; nothing is connected yet.
    pub(super) fn new(
        base_url: &str,
        token: Option<&str>,
        connect_timeout_ms: u64,
    ) -> Result<Self, ClientError> {
        let unusable = |error: &dyn std::fmt::Display| ClientError::Unusable(error.to_string());
        let origin = check_base_url(base_url)?.parse().map_err(|error| unusable(&error))?;
        let bearer = |token: &str| {
            let value = format!("Bearer {token}").parse::<MetadataValue<Ascii>>();
            value.map_err(|_| ClientError::Unusable("the token cannot be a header".to_owned()))
        };
        let authorization = token.map(bearer).transpose()?;
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(Duration::from_millis(connect_timeout_ms)));
        let connections = Connections::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .timer(TokioTimer::new())
            .http2_only(true)
            .http2_keep_alive_interval(PING_INTERVAL)
            .http2_keep_alive_timeout(PING_TIMEOUT)
            .http2_initial_stream_window_size(WINDOW_BYTES)
            .http2_initial_connection_window_size(WINDOW_BYTES)
            .build(connector);
        Ok(Self { connections, origin, authorization })
    }

    /// A request with the token, if there is one.
    pub(super) fn request<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        if let Some(authorization) = &self.authorization {
            request.metadata_mut().insert("authorization", authorization.clone());
        }
        request
    }
}
