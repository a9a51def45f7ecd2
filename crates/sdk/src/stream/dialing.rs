//! Decides how a service that cannot be dialed (behind a firewall, or without a port of its own)
//! dials the coordinator instead, and comes back when the connection breaks: at once the first
//! time, then after growing, jittered delays. Calls that were under way when it broke are the
//! coordinator's to ask again, and the guard's to recognise.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::metadata::{Ascii, MetadataValue};
use unanimity_core::{check_id, splitmix64};

use super::connection::Coordinator;
use super::generated::participants_client::ParticipantsClient;
use super::serving::{Outgoing, Sent, read};
use super::{MESSAGE_BYTES_MAX, PARTICIPANT_METADATA};
use crate::client::ClientError;
use crate::participant::{Participant, now_ms};

/// How a service dials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DialOptions {
    /// The coordinator's base URL, such as `http://127.0.0.1:7171`.
    pub coordinator: String,
    /// The coordinator's token, if it has one.
    pub token: Option<String>,
    /// The participant's name, by which initiators know it: as `stream:NAME`. Several services may
    /// dial under one name (replicas that share a database); a call goes to one of them.
    pub name: String,
    /// How many streams are opened.
    pub streams: usize,
    /// How long connecting, and opening a stream, may take, in milliseconds.
    pub connect_timeout_ms: u64,
    /// The longest delay before another try, in milliseconds.
    pub retry_delay_max_ms: u64,
}

impl DialOptions {
    /// One stream to the coordinator at a base URL.
    #[must_use]
    pub fn new(coordinator: &str, name: &str) -> Self {
        Self {
            coordinator: coordinator.to_owned(),
            token: None,
            name: name.to_owned(),
            streams: 1,
            connect_timeout_ms: 2_000,
            retry_delay_max_ms: 1_000,
        }
    }
}

/// The shortest delay before another try.
const RETRY_DELAY_MS: u64 = 20;
/// A stream that has stood for so long begins anew with short delays when it breaks.
const STOOD: Duration = Duration::from_secs(1);

/// A service that has dialed. Dropping it breaks its streams.
#[derive(Debug)]
pub struct Dialed {
    tasks: JoinSet<()>,
    connected: watch::Receiver<usize>,
    stop: watch::Sender<bool>,
}

impl Dialed {
    /// Ready when at least one stream stands.
    pub async fn connected(&mut self) {
        // dropped: the tasks end only when told to.
        let _ = self.connected.wait_for(|streams| *streams > 0).await;
    }

    /// How many streams stand.
    #[must_use]
    pub fn streams(&self) -> usize {
        *self.connected.borrow()
    }

    /// Asks for no more calls, answers those that were taken in, and hangs up.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        while self.tasks.join_next().await.is_some() {}
    }
}

/// Dials a coordinator and serves what it asks of `participant`, for as long as the result lives.
/// Needs a tokio runtime.
///
/// # Errors
/// [`ClientError::Unusable`] if the URL, the token or the name cannot be used. That nobody is there
/// is no error: it is tried again.
pub fn dial(
    options: DialOptions,
    participant: Arc<dyn Participant>,
) -> Result<Dialed, ClientError> {
    check_id(&options.name)
        .map_err(|error| ClientError::Unusable(format!("the participant's name {error}")))?;
    let unusable = |_| ClientError::Unusable("the participant's name cannot be sent".to_owned());
    let name: MetadataValue<Ascii> = options.name.parse().map_err(unusable)?;
    let token = options.token.as_deref();
    let (count, connected) = watch::channel(0);
    let (stop, stopping) = watch::channel(false);
    let mut tasks = JoinSet::new();
    for _ in 0..options.streams.max(1) {
        let dialer = Dialer {
            // Each stream has a connection of its own, and so a share of the machine of its own.
            coordinator: Coordinator::new(&options.coordinator, token, options.connect_timeout_ms)?,
            name: name.clone(),
            participant: Arc::clone(&participant),
            connected: count.clone(),
            stopping: stopping.clone(),
            options: options.clone(),
        };
        tasks.spawn(dialer.run());
    }
    Ok(Dialed { tasks, connected, stop })
}

struct Dialer {
    coordinator: Coordinator,
    name: MetadataValue<Ascii>,
    participant: Arc<dyn Participant>,
    connected: watch::Sender<usize>,
    stopping: watch::Receiver<bool>,
    options: DialOptions,
}

impl Dialer {
    async fn run(mut self) {
        let mut failures = 0;
        while !*self.stopping.borrow() {
            let began = Instant::now();
            match self.serve().await {
                Ok(()) => tracing::info!("the coordinator has ended the stream"),
                Err(error) => {
                    tracing::debug!(%error, "no stream to the coordinator");
                }
            }
            failures = if began.elapsed() >= STOOD { 0 } else { failures + 1 };
            let delay = delay(failures, self.options.retry_delay_max_ms);
            // Longer or not: whether it is to stop is looked at next.
            let stop = async { drop(self.stopping.wait_for(|stop| *stop).await) };
            drop(tokio::time::timeout(delay, stop).await);
        }
    }

    /// Opens one stream and serves it to its end.
    async fn serve(&mut self) -> Result<(), tonic::Status> {
        let outgoing = Arc::new(Outgoing::default());
        let (connections, origin) =
            (self.coordinator.connections.clone(), self.coordinator.origin.clone());
        let mut client = ParticipantsClient::with_origin(connections, origin)
            .max_decoding_message_size(MESSAGE_BYTES_MAX);
        let mut request = self.coordinator.request(Sent(Arc::clone(&outgoing)));
        request.metadata_mut().insert(PARTICIPANT_METADATA, self.name.clone());
        let limit = Duration::from_millis(self.options.connect_timeout_ms.saturating_mul(2));
        let opened = tokio::time::timeout(limit, client.serve(request)).await;
        let opened =
            opened.map_err(|_| tonic::Status::deadline_exceeded("not opened in time"))??;
        self.connected.send_modify(|streams| *streams += 1);
        tracing::info!(coordinator = %self.options.coordinator, "serving over a stream");
        let reading =
            read(opened.into_inner(), Arc::clone(&self.participant), Arc::clone(&outgoing));
        tokio::pin!(reading);
        let told_to_stop = async { drop(self.stopping.wait_for(|stop| *stop).await) };
        let ended = tokio::select! {
            () = &mut reading => true,
            () = told_to_stop => false,
        };
        if !ended {
            outgoing.stop();
            // The coordinator ends its half when it has every answer.
            reading.await;
        }
        self.connected.send_modify(|streams| *streams -= 1);
        Ok(())
    }
}

/// Doubles from the shortest to the longest, with a random half.
fn delay(failures: u32, longest_ms: u64) -> Duration {
    let whole = RETRY_DELAY_MS.saturating_mul(1 << failures.min(16)).min(longest_ms.max(1));
    let random = splitmix64(now_ms() ^ u64::from(failures) << 48);
    Duration::from_millis(whole / 2 + random % (whole / 2 + 1))
}
