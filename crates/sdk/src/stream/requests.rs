//! Decides how the requests and answers of the initiators' API look as messages: the same fields
//! as in [`crate::api`], which says what they mean.

use super::generated::{
    BeginRequest, BranchRequest, Decision, Kind, NoticeRequest, Transaction, Wait,
};
use crate::api;

/// A field of a message that means nothing here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct FieldError {
    /// Whether the field is a text that should be JSON.
    pub json: bool,
    /// Which, such as `branches[1].payload`.
    pub field: String,
    /// What is wrong with it.
    pub detail: String,
}

impl FieldError {
    /// A number that names none of the known words.
    fn word(field: impl Into<String>) -> Self {
        let detail = "the number names none of the known words".to_owned();
        Self { json: false, field: field.into(), detail }
    }

    /// The same, inside of something.
    fn within(self, outer: &str) -> Self {
        Self { field: format!("{outer}.{}", self.field), ..self }
    }
}

impl TryFrom<BeginRequest> for api::TransactionRequest {
    type Error = FieldError;

    fn try_from(request: BeginRequest) -> Result<Self, FieldError> {
        let branches = request.branches.into_iter().enumerate().map(|(place, branch)| {
            let within = |error: FieldError| error.within(&format!("branches[{place}]"));
            api::BranchRequest::try_from(branch).map_err(within)
        });
        let notice = request
            .notice
            .map(|notice| api::NoticeRequest { url: notice.url, on_rollback: notice.on_rollback });
        Ok(Self {
            id: request.id,
            branches: branches.collect::<Result<_, _>>()?,
            interactive: request.interactive,
            inquiry: request.inquiry,
            notice,
            open_timeout_ms: request.open_timeout_ms,
            one_phase: request.one_phase,
            wait: wait(request.wait)?,
            prepare_timeout_ms: request.prepare_timeout_ms,
            execute_timeout_ms: request.execute_timeout_ms,
            timeout_ms: request.timeout_ms,
            attempt_timeout_ms: request.attempt_timeout_ms,
            retry_delay_ms: request.retry_delay_ms,
            retry_delay_max_ms: request.retry_delay_max_ms,
        })
    }
}

impl From<&api::TransactionRequest> for BeginRequest {
    fn from(request: &api::TransactionRequest) -> Self {
        let notice = request.notice.as_ref().map(|notice| NoticeRequest {
            url: notice.url.clone(),
            on_rollback: notice.on_rollback,
        });
        Self {
            id: request.id.clone(),
            branches: request.branches.iter().map(BranchRequest::from).collect(),
            interactive: request.interactive,
            inquiry: request.inquiry.clone(),
            notice,
            open_timeout_ms: request.open_timeout_ms,
            one_phase: request.one_phase,
            wait: request.wait.map_or(Wait::Unspecified, Wait::from) as i32,
            prepare_timeout_ms: request.prepare_timeout_ms,
            execute_timeout_ms: request.execute_timeout_ms,
            timeout_ms: request.timeout_ms,
            attempt_timeout_ms: request.attempt_timeout_ms,
            retry_delay_ms: request.retry_delay_ms,
            retry_delay_max_ms: request.retry_delay_max_ms,
        }
    }
}

impl TryFrom<BranchRequest> for api::BranchRequest {
    type Error = FieldError;

    fn try_from(branch: BranchRequest) -> Result<Self, FieldError> {
        let kind = match Kind::try_from(branch.kind).map_err(|_| FieldError::word("kind"))? {
            Kind::Unspecified | Kind::TwoPhase => api::Kind::TwoPhase,
            Kind::Compensable => api::Kind::Compensable,
            Kind::Deferred => api::Kind::Deferred,
            Kind::Local => api::Kind::Local,
        };
        let payload = match branch.payload.is_empty() {
            true => api::Json::default(),
            false => api::Json::from_text(branch.payload).map_err(|error| FieldError {
                json: true,
                field: "payload".to_owned(),
                detail: format!("the payload is no JSON: {error}"),
            })?,
        };
        let phase_one_by = match branch.phase_one_by_initiator {
            true => api::PhaseOneBy::Initiator,
            false => api::PhaseOneBy::Coordinator,
        };
        Ok(Self {
            name: branch.name,
            participant: branch.participant,
            kind,
            after: branch.after,
            payload,
            payload_in_phase_two: branch.payload_in_phase_two,
            phase_one_by,
            delay_ms: branch.delay_ms,
            also_on_rollback: branch.also_on_rollback,
        })
    }
}

impl From<&api::BranchRequest> for BranchRequest {
    fn from(branch: &api::BranchRequest) -> Self {
        let kind = match branch.kind {
            api::Kind::TwoPhase => Kind::TwoPhase,
            api::Kind::Compensable => Kind::Compensable,
            api::Kind::Deferred => Kind::Deferred,
            api::Kind::Local => Kind::Local,
        };
        Self {
            name: branch.name.clone(),
            participant: branch.participant.clone(),
            kind: kind as i32,
            after: branch.after.clone(),
            payload: branch.payload.as_str().to_owned(),
            payload_in_phase_two: branch.payload_in_phase_two,
            phase_one_by_initiator: branch.phase_one_by == api::PhaseOneBy::Initiator,
            delay_ms: branch.delay_ms,
            also_on_rollback: branch.also_on_rollback,
        }
    }
}

impl From<api::Wait> for Wait {
    fn from(wait: api::Wait) -> Self {
        match wait {
            api::Wait::Outcome => Self::Outcome,
            api::Wait::Completed => Self::Completed,
            api::Wait::Accepted => Self::Accepted,
        }
    }
}

/// What a message asks to wait for.
///
/// # Errors
/// If its number names nothing.
pub fn wait(number: i32) -> Result<Option<api::Wait>, FieldError> {
    match Wait::try_from(number).map_err(|_| FieldError::word("wait"))? {
        Wait::Unspecified => Ok(None),
        Wait::Outcome => Ok(Some(api::Wait::Outcome)),
        Wait::Completed => Ok(Some(api::Wait::Completed)),
        Wait::Accepted => Ok(Some(api::Wait::Accepted)),
    }
}

impl Transaction {
    /// The decision, once there is one.
    #[must_use]
    pub fn decided(&self) -> Option<api::Outcome> {
        match self.outcome() {
            Decision::Commit => Some(api::Outcome::Commit),
            Decision::Rollback => Some(api::Outcome::Rollback),
            Decision::Unspecified | Decision::Pending => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_comes_back_as_it_went() {
        let text = r#"{"id":"t","branches":[
            {"name":"a","participant":"http://a/","payload":{"b":[1.50]},"kind":"compensable"},
            {"name":"b","participant":"stream:b","after":["a"],"kind":"deferred","delay_ms":5,
             "payload_in_phase_two":true,"phase_one_by":"initiator","also_on_rollback":true}],
            "interactive":true,"inquiry":"http://i/",
            "notice":{"url":"http://n/","on_rollback":true},
            "open_timeout_ms":1,"one_phase":false,"wait":"completed","prepare_timeout_ms":2,
            "execute_timeout_ms":3,"timeout_ms":4,"attempt_timeout_ms":5,"retry_delay_ms":6,
            "retry_delay_max_ms":7}"#;
        let mut whole: api::TransactionRequest = serde_json::from_str(text).unwrap();
        let least = r#"{"branches":[{"name":"a","participant":"http://a/"}]}"#;
        let least: api::TransactionRequest = serde_json::from_str(least).unwrap();
        for request in [&whole, &least] {
            let message = BeginRequest::from(request);
            assert_eq!(api::TransactionRequest::try_from(message).as_ref(), Ok(request));
        }
        // What is left out is as in JSON.
        let mut message = BeginRequest::from(&least);
        message.branches[0].kind = 0;
        message.branches[0].payload = String::new();
        assert_eq!(api::TransactionRequest::try_from(message), Ok(least));
        whole.branches.clear();
        let message = BeginRequest::from(&whole);
        assert_eq!(api::TransactionRequest::try_from(message), Ok(whole));
    }

    #[test]
    fn a_field_that_means_nothing_is_named() {
        let branch = BranchRequest { name: "a".into(), ..BranchRequest::default() };
        let request = |branch| BeginRequest { branches: vec![branch], ..BeginRequest::default() };
        for (message, field) in [
            (request(BranchRequest { kind: 9, ..branch.clone() }), "branches[0].kind"),
            (request(BranchRequest { payload: "{".into(), ..branch }), "branches[0].payload"),
            (BeginRequest { wait: 9, ..BeginRequest::default() }, "wait"),
        ] {
            let error = api::TransactionRequest::try_from(message).unwrap_err();
            assert_eq!(error.field, field);
        }
    }
}
