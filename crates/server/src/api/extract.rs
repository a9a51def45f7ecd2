//! Decides how a request's path and query are read, so that whatever is wrong with them is a
//! problem document that names the place: axum's own extractors answer in plain text.

use std::collections::BTreeMap;

use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;
use unanimity::core::TransactionId;

use super::convert::parse_id;
use crate::problem::{Problem, code};

/// The transaction that a path names.
pub(super) struct Id(pub(super) TransactionId);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        // Refused is only what is not UTF-8 once its % signs are undone.
        let path = Path::<String>::from_request_parts(parts, state).await;
        let Path(id) = path.map_err(|rejection| {
            let detail = format!("the transaction id cannot be read: {}", rejection.body_text());
            Problem::new(code::TRANSACTION_ID_INVALID, detail).with_field("id")
        })?;
        parse_id(&id).map(Self)
    }
}

/// The parameters of a query, each given at most once.
pub(super) struct Parameters(BTreeMap<String, String>);

impl<S: Sync> FromRequestParts<S> for Parameters {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Self::parse(parts.uri.query().unwrap_or_default())
    }
}

impl Parameters {
    pub(super) fn parse(query: &str) -> Result<Self, Problem> {
        let mut found = BTreeMap::new();
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            if found.insert(name.to_string(), value.into_owned()).is_some() {
                return Err(invalid(&name, "is given twice, and which was meant is not known"));
            }
        }
        Ok(Self(found))
    }

    /// Refuses every parameter that is not one of these.
    pub(super) fn only(&self, known: &[&str]) -> Result<(), Problem> {
        let unknown = self.0.keys().find(|name| !known.contains(&name.as_str()));
        unknown.map_or(Ok(()), |name| {
            Err(invalid(name, &format!("is none of the parameters: {}", known.join(", "))))
        })
    }

    /// The value of a parameter.
    pub(super) fn take(&mut self, name: &str) -> Option<String> {
        self.0.remove(name)
    }

    /// The value of a parameter that is a whole number within bounds.
    pub(super) fn number(
        &mut self,
        name: &str,
        least: u64,
        most: u64,
    ) -> Result<Option<u64>, Problem> {
        let Some(text) = self.take(name) else { return Ok(None) };
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        let number = text.parse().ok().filter(|number| digits && (least..=most).contains(number));
        let wrong = || {
            invalid(name, &format!("is {text:?}; it must be a whole number from {least} to {most}"))
        };
        number.map(Some).ok_or_else(wrong)
    }

    /// The value of a parameter that is one of these words.
    pub(super) fn one_of(
        &mut self,
        name: &str,
        allowed: &[&str],
    ) -> Result<Option<String>, Problem> {
        match self.take(name) {
            Some(given) if !allowed.contains(&given.as_str()) => {
                Err(invalid(name, &format!("is {given:?}, none of: {}", allowed.join(", "))))
            }
            given => Ok(given),
        }
    }
}

fn invalid(name: &str, what: &str) -> Problem {
    Problem::new(code::FILTER_INVALID, format!("the parameter {name} {what}")).with_field(name)
}
