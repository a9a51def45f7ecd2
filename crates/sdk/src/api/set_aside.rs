//! How a transaction that is set aside looks in the coordinator's answers.

use serde::{Deserialize, Serialize};

/// Why a transaction is set aside: the coordinator broke on it, again and again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SetAsideStatus {
    /// During what it broke: `replaying`, `handling`, `writing_anew` or `archiving`.
    pub doing: String,
    /// How often; 0: somebody has asked to take it up again, and the next start will.
    pub panics: u32,
    /// What the last panic said.
    pub message: String,
    /// When the last one was, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// Whether its records could be read. If not, only its name is known.
    pub read: bool,
}
