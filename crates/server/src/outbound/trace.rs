//! Decides under which W3C trace a call travels (<https://www.w3.org/TR/trace-context/>).
//!
//! The trace is a pure function of the transaction's id, so that a coordinator that took over or
//! restarted carries on the same trace, and anybody who knows an id can find its trace:
//! - trace id: the id itself if it is a UUID, else its version-5 UUID in a namespace of our own;
//! - parent id: a hash of trace id, branch, operation and attempt, so that each call is a span of
//!   its own;
//! - flags: sampled, because the coordinator has recorded the call in its timeline.

use unanimity_core::{Call, splitmix64};
use uuid::Uuid;

/// The namespace of trace ids made from transaction ids. Never to be changed.
const NAMESPACE: Uuid = Uuid::from_u128(0x7d1f_5a3c_9e42_4c0b_8f6a_2b91_d0c4_73e5);

/// The trace id of a transaction.
#[must_use]
pub fn trace_id(transaction: &str) -> Uuid {
    match Uuid::try_parse(transaction) {
        // The all-zero trace id is invalid.
        Ok(id) if !id.is_nil() => id,
        Ok(_) | Err(_) => Uuid::new_v5(&NAMESPACE, transaction.as_bytes()),
    }
}

/// A call's trace id, in two halves, and its parent id.
pub(crate) fn parts(call: &Call) -> [u64; 3] {
    let (high, low) = trace_id(call.transaction.as_str()).as_u64_pair();
    let place =
        u64::from(call.branch) << 40 | (call.operation as u64) << 32 | u64::from(call.attempt);
    // The all-zero parent id is invalid.
    let parent = splitmix64(high ^ splitmix64(low ^ splitmix64(place))).max(1);
    [high, low, parent]
}

/// The value of a call's `traceparent` header.
pub(crate) fn traceparent(call: &Call) -> String {
    let [high, low, parent] = parts(call);
    format!("00-{high:016x}{low:016x}-{parent:016x}-01")
}
