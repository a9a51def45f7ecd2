//! Decides when a participant that is addressed over HTTP is called over a stream instead: after it
//! has said in an answer where it serves one (header `Unanimity-Stream: grpc://HOST:PORT/NAME`).
//! Where that stream cannot be opened, calls go over HTTP again for a while; nothing rests on an
//! offer, and a restart forgets all of them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use http::HeaderMap;
use tokio::time::{Duration, Instant};
use unanimity_sdk::contract::STREAM_HEADER;

/// How long calls go over HTTP after the stream could not be opened.
const SUSPENDED: Duration = Duration::from_secs(30);

/// What participants have offered, by the address that initiators name.
#[derive(Debug, Default)]
pub struct Offers {
    /// Whether there is any: most coordinators have none, and look no further.
    any: AtomicBool,
    known: RwLock<HashMap<Arc<str>, Offer>>,
}

#[derive(Debug)]
struct Offer {
    stream: Arc<str>,
    suspended_until: Option<Instant>,
}

impl Offers {
    /// Takes note of what an answer offers. At most `participants_max` offers are known.
    pub(super) fn note(
        &self,
        participant: &Arc<str>,
        headers: &HeaderMap,
        participants_max: usize,
    ) {
        let Some(stream) = headers.get(STREAM_HEADER).and_then(|value| value.to_str().ok()) else {
            return;
        };
        if !stream.starts_with("grpc://") {
            return;
        }
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        if known.get(participant).is_some_and(|offer| &*offer.stream == stream) {
            return;
        }
        drop(known);
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() < participants_max || known.contains_key(participant) {
            let offer = Offer { stream: Arc::from(stream), suspended_until: None };
            known.insert(Arc::clone(participant), offer);
            self.any.store(true, Ordering::Release);
        }
    }

    /// The stream that a participant has offered, if it is to be used now.
    pub fn stream_of(&self, participant: &str) -> Option<Arc<str>> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let offer = known.get(participant)?;
        let suspended = offer.suspended_until.is_some_and(|until| Instant::now() < until);
        (!suspended).then(|| Arc::clone(&offer.stream))
    }

    /// The stream cannot be used: HTTP, for a while.
    pub fn suspend(&self, participant: &str) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(offer) = known.get_mut(participant) {
            offer.suspended_until = Some(Instant::now() + SUSPENDED);
        }
    }
}
