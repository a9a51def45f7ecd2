//! Decides how an error looks as a problem document (RFC 9457).

use serde::{Deserialize, Serialize};

/// A problem document (RFC 9457). Fields that a foreign one lacks are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct Problem {
    /// Names the sort of problem: `urn:unanimity:error:` and the code.
    #[serde(rename = "type")]
    pub type_uri: String,
    /// The same for every problem of this sort.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What is wrong this time, and what to do about it.
    pub detail: String,
    /// Stable, snake case; each has a page in the error reference.
    pub code: String,
    /// Where in the request, such as `branches[2].after` or a header's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
}

impl Problem {
    /// A problem of the sort that `code` names.
    #[must_use]
    pub fn new(status: u16, code: &str, title: &str, detail: impl Into<String>) -> Self {
        Self {
            type_uri: format!("urn:unanimity:error:{code}"),
            title: title.to_owned(),
            status,
            detail: detail.into(),
            code: code.to_owned(),
            field: None,
        }
    }

    /// The same, with the place in the request.
    #[must_use]
    pub fn with_field(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }
}
