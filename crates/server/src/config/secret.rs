//! Decides how a secret is kept: it can be compared, and it cannot be shown.

use std::fmt;

/// A secret text. Neither `Debug` nor anything else shows it, so that no log and no message can.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a text.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Whether a candidate is the secret. Takes as long for a nearly right one as for a wrong one,
    /// so that nobody can find it byte by byte.
    #[must_use]
    pub fn matches(&self, candidate: &[u8]) -> bool {
        let secret = self.0.as_bytes();
        let mut difference = usize::from(secret.len() != candidate.len());
        for (index, byte) in candidate.iter().enumerate() {
            let own = secret.get(index % secret.len().max(1)).copied().unwrap_or_default();
            difference |= usize::from(std::hint::black_box(own ^ byte));
        }
        difference == 0
    }

    /// The text itself, to be sent and never to be shown.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret(...)")
    }
}
