//! Carries JSON as it was written, and tells how deep it is. What it means is for others.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// JSON that is passed on as it was written, byte for byte: numbers keep their digits and objects
/// the order of their members.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Json(Box<RawValue>);

impl Json {
    /// JSON from its text.
    ///
    /// # Errors
    /// If the text is not JSON.
    pub fn from_text(text: String) -> Result<Self, serde_json::Error> {
        RawValue::from_string(text).map(Self)
    }

    /// JSON from anything that serializes.
    ///
    /// # Errors
    /// If `value` does not serialize, such as a map whose keys are not texts.
    pub fn from_value(value: &impl Serialize) -> Result<Self, serde_json::Error> {
        serde_json::value::to_raw_value(value).map(Self)
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.get()
    }

    /// How deeply arrays and objects are nested; 0 for a plain value. Reading JSON does not limit
    /// this, because it is not built; whoever builds it later may want to.
    #[must_use]
    pub fn depth(&self) -> usize {
        let (mut depth, mut deepest, mut quoted, mut escaped) = (0_usize, 0, false, false);
        for byte in self.as_str().bytes() {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => quoted = !quoted,
                b'[' | b'{' if !quoted => {
                    depth += 1;
                    deepest = deepest.max(depth);
                }
                b']' | b'}' if !quoted => depth = depth.saturating_sub(1),
                _ => {}
            }
        }
        deepest
    }

    /// Whether [`Self::depth`] is more than so many levels, each of which takes two bytes.
    #[must_use]
    pub fn is_deeper_than(&self, levels: usize) -> bool {
        self.as_str().len() / 2 > levels && self.depth() > levels
    }
}

impl Default for Json {
    fn default() -> Self {
        Self(RawValue::NULL.to_owned())
    }
}

impl PartialEq for Json {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

#[cfg(test)]
mod tests {
    use super::super::BranchRequest;
    use super::*;

    #[test]
    fn payloads_keep_their_bytes_and_show_their_depth() {
        let payload = r#"{"b":1.10,"a":[12345678901234567890123,"[\"{"]}"#;
        let text = format!(r#"{{"name":"a","participant":"p","payload":{payload}}}"#);
        let branch: BranchRequest = serde_json::from_str(&text).unwrap();
        assert_eq!(branch.payload.as_str(), payload);
        assert!(serde_json::to_string(&branch).unwrap().contains(payload));
        assert_eq!((branch.payload.depth(), Json::default().depth()), (2, 0));
        assert!(branch.payload.is_deeper_than(1) && !branch.payload.is_deeper_than(2));
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(Json::from_text(deep).unwrap().depth(), 100_000);
    }
}
