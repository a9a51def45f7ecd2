//! Decides how a service that dials is let in: it says under which name it serves, and is one of
//! that participant's streams until its connection breaks, or it says that it stops. Who may dial
//! at all is decided before, by the token.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_core::Stream;
use tonic::{Request, Response, Status, Streaming};
use unanimity::core::check_id;
use unanimity_sdk::stream::participants_server::{Participants, ParticipantsServer};
use unanimity_sdk::stream::{Answers, Calls, MESSAGE_BYTES_MAX, PARTICIPANT_METADATA};

use super::address::DIALS;
use super::dialer::receive;
use super::lane::Lane;
use super::{Peer, StreamTransport};

/// Where services that dial are let in.
#[derive(Clone, Debug)]
pub struct Desk {
    transport: StreamTransport,
}

impl Desk {
    pub(super) const fn new(transport: StreamTransport) -> Self {
        Self { transport }
    }

    /// The service to mount.
    #[must_use]
    pub fn server(self) -> ParticipantsServer<Self> {
        ParticipantsServer::new(self).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Ends every stream that a service has opened: what it was asked and has not answered is
    /// asked again by whoever takes over.
    pub fn close(&self) {
        self.transport.close_those_that_dialed("the coordinator is stopping");
    }

    fn register(&self, name: &str) -> Result<(Arc<Peer>, Arc<Lane>), Status> {
        let config = &self.transport.shared.config;
        let address: Arc<str> = format!("{DIALS}{name}").into();
        let peer = self.transport.peer(&address).ok_or_else(|| {
            let most = config.participants_max;
            Status::resource_exhausted(format!("{most} participants have streams already"))
        })?;
        let lane = Arc::new(Lane::new(self.transport.limits()));
        let mut state = peer.lock();
        if state.lanes.len() >= config.streams_per_participant_max {
            let most = config.streams_per_participant_max;
            let text = format!("{most} streams serve {name} already");
            return Err(Status::resource_exhausted(text));
        }
        state.lanes.push(Arc::clone(&lane));
        drop(state);
        Ok((peer, lane))
    }
}

#[tonic::async_trait]
impl Participants for Desk {
    type ServeStream = Outgoing;

    async fn serve(
        &self,
        request: Request<Streaming<Answers>>,
    ) -> Result<Response<Outgoing>, Status> {
        let name = request.metadata().get(PARTICIPANT_METADATA);
        let name = name.and_then(|name| name.to_str().ok()).unwrap_or_default().to_owned();
        check_id(&name).map_err(|error| {
            let text = format!("the participant's name ({PARTICIPANT_METADATA}) {error}");
            Status::invalid_argument(text)
        })?;
        let (peer, lane) = self.register(&name)?;
        tracing::info!(participant = %name, "a service serves over a stream");
        let standing = Standing { peer, lane: Arc::clone(&lane) };
        let incoming = request.into_inner();
        tokio::spawn(async move {
            let why = receive(incoming, &standing.lane, None).await;
            tracing::info!(participant = %name, why, "its stream has ended");
        });
        Ok(Response::new(Outgoing(lane)))
    }
}

/// A stream that is one of its participant's until this is dropped.
struct Standing {
    peer: Arc<Peer>,
    lane: Arc<Lane>,
}

impl Drop for Standing {
    fn drop(&mut self) {
        self.peer.remove(&self.lane);
        self.lane.close("the participant's stream has ended");
    }
}

/// The calls of a stream that a service has opened.
pub struct Outgoing(Arc<Lane>);

impl Stream for Outgoing {
    type Item = Result<Calls, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_batch(context).map(|batch| batch.map(Ok))
    }
}

impl Drop for Outgoing {
    /// The connection is gone: whoever has calls must not wait until that is read, too.
    fn drop(&mut self) {
        self.0.close("the participant's connection has broken");
    }
}
