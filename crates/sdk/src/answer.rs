//! Decides what a participant's HTTP answer means, for the coordinator and for an initiator that
//! calls a participant itself. Only answers from a closed set count as a vote or an
//! acknowledgement; whatever else comes back means that nothing is known.

use std::sync::Arc;

use http::StatusCode;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap};
use serde::Deserialize;
use serde_json::value::RawValue;
use unanimity_core::guard::Contradiction;
use unanimity_core::{Answer, Operation, REASON_BYTES_MAX};

use crate::contract::json_depth_exceeds;

/// How deeply the JSON of a participant's result may be nested: it goes on to the initiator.
const RESULT_DEPTH_MAX: usize = 32;

/// An answer as it came over the wire, its body read to its end.
#[derive(Clone, Copy, Debug)]
pub struct Response<'a> {
    status: StatusCode,
    /// Whether the body is compressed, which nobody asked for and nobody undoes.
    encoded: bool,
    /// Whether the body says that it is HTML.
    html: bool,
    body: &'a [u8],
}

impl<'a> Response<'a> {
    /// What has come.
    #[must_use]
    pub fn new(status: StatusCode, headers: &HeaderMap, body: &'a [u8]) -> Self {
        let mut encodings = headers.get_all(CONTENT_ENCODING).iter();
        let encoded = encodings.any(|value| value != "identity");
        let html = headers.get(CONTENT_TYPE).is_some_and(|value| {
            let bytes = value.as_bytes();
            bytes.len() >= 9 && bytes[..9].eq_ignore_ascii_case(b"text/html")
        });
        Self { status, encoded, html, body }
    }
}

/// What is understood of a body; what else is in it is the service's own business.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Body {
    vote: Option<Vote>,
    result: Option<Box<RawValue>>,
    reason: Option<String>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Vote {
    Yes,
    ReadOnly,
    No,
}

/// What an answer means for the operation that was asked for.
#[must_use]
pub fn judge(operation: Operation, response: Response<'_>) -> Answer {
    match operation {
        Operation::Prepare | Operation::Execute => judge_vote(operation, response),
        Operation::CommitOnePhase | Operation::Inquire => judge_last_word(response),
        Operation::Commit | Operation::Rollback | Operation::Compensate => {
            judge_acknowledgement(response)
        }
    }
}

fn judge_vote(operation: Operation, response: Response<'_>) -> Answer {
    match (operation, response.status) {
        (_, StatusCode::OK) => vote(response),
        (Operation::Execute, StatusCode::NO_CONTENT) => Answer::Yes(None),
        (_, StatusCode::CONFLICT | StatusCode::UNPROCESSABLE_ENTITY) => {
            Answer::No(reason(response).into())
        }
        _ => judge_anything_else(response),
    }
}

/// Where the participant alone decides, a contradiction is no vote: a copy of the call that comes
/// too late must not be taken for a no.
fn judge_last_word(response: Response<'_>) -> Answer {
    match response.status {
        StatusCode::OK => vote(response),
        StatusCode::CONFLICT | StatusCode::UNPROCESSABLE_ENTITY => match contradiction(response) {
            Some(contradiction) => contradicts(response, contradiction),
            None => Answer::No(reason(response).into()),
        },
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => {
            Answer::Unsupported
        }
        _ => judge_anything_else(response),
    }
}

fn judge_acknowledgement(response: Response<'_>) -> Answer {
    match response.status {
        // A page for people is not an acknowledgement: somebody else's server, or a proxy's login
        // page, would otherwise lose a commit for good.
        StatusCode::OK if response.is_html() => unknown(response, "the answer is an HTML page"),
        StatusCode::OK | StatusCode::NO_CONTENT => Answer::Acknowledged,
        StatusCode::CONFLICT => match contradiction(response) {
            Some(contradiction) => contradicts(response, contradiction),
            None => judge_anything_else(response),
        },
        _ => judge_anything_else(response),
    }
}

fn judge_anything_else(response: Response<'_>) -> Answer {
    if response.status.is_redirection() {
        return unknown(response, "redirects are not followed");
    }
    unknown(response, &explanation(response).unwrap_or_default())
}

fn contradicts(response: Response<'_>, contradiction: Contradiction) -> Answer {
    let Answer::Unknown(text) = judge_anything_else(response) else {
        return Answer::Contradiction(contradiction, contradiction.code().into());
    };
    Answer::Contradiction(contradiction, text)
}

/// The contradiction that a problem document's code names.
fn contradiction(response: Response<'_>) -> Option<Contradiction> {
    let code = text_of(&object(response)?, "code")?;
    Contradiction::ALL.into_iter().find(|contradiction| contradiction.code() == code)
}

impl Response<'_> {
    fn is_html(self) -> bool {
        self.html || self.body.trim_ascii_start().starts_with(b"<")
    }

    /// `HTTP 503 Service Unavailable`.
    fn status_text(self) -> String {
        let phrase = self.status.canonical_reason().unwrap_or_default();
        format!("HTTP {} {phrase}", self.status.as_u16()).trim_end().to_owned()
    }
}

fn unknown(response: Response<'_>, explanation: &str) -> Answer {
    let status = response.status_text();
    if explanation.is_empty() {
        return Answer::Unknown(status.into());
    }
    Answer::Unknown(clean(&format!("{status}: {explanation}")).into())
}

/// A vote, or the success of an execute: 200 with nothing, or with a JSON object.
fn vote(response: Response<'_>) -> Answer {
    let text = response.body.trim_ascii();
    if text.is_empty() {
        return Answer::Yes(None);
    }
    if response.encoded || !text.starts_with(b"{") {
        return unknown(response, "the body is neither empty nor a JSON object");
    }
    if json_depth_exceeds(text, RESULT_DEPTH_MAX) {
        let message = format!("the body's JSON is nested deeper than {RESULT_DEPTH_MAX}");
        return unknown(response, &message);
    }
    match serde_json::from_slice::<Body>(text) {
        Err(error) => unknown(response, &format!("the body is not understood: {error}")),
        Ok(Body { vote: Some(Vote::No), reason, .. }) => {
            let text = reason.unwrap_or_else(|| "voted no and gave no reason".into());
            Answer::No(clean(&text).into())
        }
        Ok(Body { vote: Some(Vote::ReadOnly), .. }) => Answer::ReadOnly,
        Ok(Body { vote: Some(Vote::Yes) | None, result, .. }) => {
            let result = result.filter(|result| result.get() != "null");
            Answer::Yes(result.map(|result| Arc::from(compact(result.get()))))
        }
    }
}

/// A result that came without a body around it, as it is kept.
///
/// # Errors
/// Why it cannot be.
#[cfg(feature = "stream")]
pub(crate) fn result_of(text: &str) -> Result<Arc<str>, String> {
    if json_depth_exceeds(text.as_bytes(), RESULT_DEPTH_MAX) {
        return Err(format!("the result's JSON is nested deeper than {RESULT_DEPTH_MAX}"));
    }
    let raw: &RawValue =
        serde_json::from_str(text).map_err(|error| format!("the result is no JSON: {error}"))?;
    Ok(compact(raw.get()).into())
}

/// Why a participant says no.
fn reason(response: Response<'_>) -> String {
    let text = object(response).and_then(|object| {
        ["reason", "detail", "title"].into_iter().find_map(|key| text_of(&object, key))
    });
    text.or_else(|| plain_text(response)).unwrap_or_else(|| response.status_text())
}

/// What a participant says about an error: a problem document's code and detail, or plain text.
fn explanation(response: Response<'_>) -> Option<String> {
    let Some(object) = object(response) else { return plain_text(response) };
    let code = text_of(&object, "code");
    let detail = ["detail", "reason", "title"].into_iter().find_map(|key| text_of(&object, key));
    match (code, detail) {
        (Some(code), Some(detail)) => Some(format!("{code}: {detail}")),
        (code, detail) => code.or(detail),
    }
}

fn object(response: Response<'_>) -> Option<serde_json::Map<String, serde_json::Value>> {
    if response.encoded {
        return None;
    }
    serde_json::from_slice(response.body).ok()
}

fn text_of(object: &serde_json::Map<String, serde_json::Value>, key: &str) -> Option<String> {
    let text = clean(object.get(key)?.as_str()?);
    (!text.is_empty()).then_some(text)
}

fn plain_text(response: Response<'_>) -> Option<String> {
    if response.encoded || response.is_html() {
        return None;
    }
    let text = clean(std::str::from_utf8(response.body).ok()?);
    (!text.is_empty()).then_some(text)
}

/// A participant's text as it may be kept and shown: on one line, without control characters
/// (terminals obey them) and without those that turn the direction of writing, and not too long.
#[must_use]
pub fn clean(text: &str) -> String {
    let turns = |c: char| {
        let ranges = ['\u{200e}'..='\u{200f}', '\u{202a}'..='\u{202e}', '\u{2066}'..='\u{2069}'];
        ranges.iter().any(|range| range.contains(&c))
    };
    let mut cleaned = String::new();
    for word in text.split_whitespace() {
        let space = usize::from(!cleaned.is_empty());
        let mut rest = word.chars().filter(|c| !c.is_control() && !turns(*c)).peekable();
        if rest.peek().is_some() && space == 1 && cleaned.len() < REASON_BYTES_MAX {
            cleaned.push(' ');
        }
        for character in rest {
            if cleaned.len() + character.len_utf8() > REASON_BYTES_MAX {
                cleaned.truncate(cleaned.trim_end().len());
                return cleaned;
            }
            cleaned.push(character);
        }
    }
    cleaned
}

/// JSON without the white space between its parts; numbers and strings stay as they were written.
fn compact(json: &str) -> String {
    let mut in_string = false;
    let mut escaped = false;
    json.chars()
        .filter(|character| {
            if in_string {
                in_string = escaped || *character != '"';
                escaped = !escaped && *character == '\\';
                return true;
            }
            in_string = *character == '"';
            !character.is_ascii_whitespace()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(operation: Operation, status: u16, body: &str, expected: Answer) {
        let status = StatusCode::from_u16(status).unwrap();
        let html = body.contains("text/html");
        let response = Response { status, encoded: false, html, body: body.as_bytes() };
        let shown: String = body.chars().take(80).collect();
        assert_eq!(judge(operation, response), expected, "{operation:?} {status} {shown:?}");
    }

    fn yes(result: &str) -> Answer {
        Answer::Yes(Some(result.into()))
    }

    fn no(reason: &str) -> Answer {
        Answer::No(reason.into())
    }

    fn unknown(text: &str) -> Answer {
        Answer::Unknown(text.into())
    }

    #[test]
    fn votes() {
        for operation in [Operation::Prepare, Operation::Execute] {
            case(operation, 200, "", Answer::Yes(None));
            case(operation, 200, " \n", Answer::Yes(None));
            case(operation, 200, "{}", Answer::Yes(None));
            case(operation, 200, r#"{"vote":"yes"}"#, Answer::Yes(None));
            case(operation, 200, r#"{"vote":"read_only"}"#, Answer::ReadOnly);
            case(operation, 200, r#"{"result":null}"#, Answer::Yes(None));
            case(
                operation,
                200,
                r#"{"result": {"a b": [1, "c d\" e"]}}"#,
                yes(r#"{"a b":[1,"c d\" e"]}"#),
            );
            case(operation, 200, r#"{"result": 1e999, "else": 1}"#, yes("1e999"));
            case(operation, 200, r#"{"vote":"no","reason":"no\nfunds"}"#, no("no funds"));
            case(operation, 200, r#"{"vote":"no"}"#, no("voted no and gave no reason"));
            case(operation, 409, r#"{"reason":"r","detail":"d","title":"t"}"#, no("r"));
            case(operation, 409, r#"{"detail":"d","title":"t"}"#, no("d"));
            case(operation, 422, r#"{"title":"t","reason":5}"#, no("t"));
            case(operation, 409, "overdrawn", no("overdrawn"));
            case(operation, 409, "", no("HTTP 409 Conflict"));
            case(operation, 409, "<html>text/html</html>", no("HTTP 409 Conflict"));
            case(operation, 409, "\u{1b}[31mred\u{7}\u{202e}", no("[31mred"));
            case(operation, 422, &"é".repeat(9999), no(&"é".repeat(256)));
            case(operation, 422, &"a ".repeat(9999), no("a ".repeat(256).trim_end()));
        }
        case(Operation::Execute, 204, "", Answer::Yes(None));
    }

    #[test]
    fn what_is_not_a_vote_is_unknown() {
        let neither = unknown("HTTP 200 OK: the body is neither empty nor a JSON object");
        for operation in [Operation::Prepare, Operation::Execute] {
            for body in ["<html>text/html", "ok", "true", "[]", "\"yes\"", "\u{feff}{}"] {
                case(operation, 200, body, neither.clone());
            }
            case(operation, 500, "", unknown("HTTP 500 Internal Server Error"));
            case(
                operation,
                503,
                "over\x07loaded",
                unknown("HTTP 503 Service Unavailable: overloaded"),
            );
            case(operation, 404, "<p>text/html", unknown("HTTP 404 Not Found"));
            case(
                operation,
                429,
                r#"{"code":"busy","detail":"later"}"#,
                unknown("HTTP 429 Too Many Requests: busy: later"),
            );
            case(
                operation,
                307,
                "",
                unknown("HTTP 307 Temporary Redirect: redirects are not followed"),
            );
            case(operation, 201, "", unknown("HTTP 201 Created"));
            case(operation, 599, "", unknown("HTTP 599"));
        }
        case(Operation::Prepare, 204, "", unknown("HTTP 204 No Content"));
        let deep = format!(r#"{{"result":{}{}}}"#, "[".repeat(40), "]".repeat(40));
        case(
            Operation::Prepare,
            200,
            &deep,
            unknown("HTTP 200 OK: the body's JSON is nested deeper than 32"),
        );
    }

    #[test]
    fn a_body_that_contradicts_itself_is_unknown() {
        for body in [
            r#"{"vote":"maybe"}"#,
            r#"{"vote":1}"#,
            r#"{"vote":"yes","vote":"no"}"#,
            "{",
            "{} {}",
            r#"{"vote":"yes"} trailing"#,
            r#"{"vote":["yes"]}"#,
            r#"{"vote":"YES"}"#,
        ] {
            let response = Response {
                status: StatusCode::OK,
                encoded: false,
                html: false,
                body: body.as_bytes(),
            };
            let found = judge(Operation::Prepare, response);
            assert!(matches!(found, Answer::Unknown(_)), "{body}: {found:?}");
        }
    }

    #[test]
    fn the_last_word_of_who_alone_decides() {
        let unsupported = Answer::Unsupported;
        for operation in [Operation::CommitOnePhase, Operation::Inquire] {
            case(operation, 200, "", Answer::Yes(None));
            case(operation, 409, r#"{"reason":"not there"}"#, Answer::No("not there".into()));
            for status in [404, 405, 501] {
                case(operation, status, "", unsupported.clone());
            }
            case(operation, 503, "", unknown("HTTP 503 Service Unavailable"));
            let claim = Contradiction::WrongKind;
            let text = "HTTP 409 Conflict: wrong_kind".into();
            case(operation, 409, r#"{"code":"wrong_kind"}"#, Answer::Contradiction(claim, text));
        }
    }

    #[test]
    fn acknowledgements() {
        for operation in [Operation::Commit, Operation::Rollback, Operation::Compensate] {
            case(operation, 200, "", Answer::Acknowledged);
            case(operation, 204, "", Answer::Acknowledged);
            case(operation, 200, "OK", Answer::Acknowledged);
            case(operation, 200, "{}", Answer::Acknowledged);
            case(operation, 200, "<html>", unknown("HTTP 200 OK: the answer is an HTML page"));
            case(operation, 202, "", unknown("HTTP 202 Accepted"));
            case(
                operation,
                409,
                r#"{"code":"never_prepared","detail":"no such branch"}"#,
                Answer::Contradiction(
                    Contradiction::NeverPrepared,
                    "HTTP 409 Conflict: never_prepared: no such branch".into(),
                ),
            );
            case(
                operation,
                301,
                "",
                unknown("HTTP 301 Moved Permanently: redirects are not followed"),
            );
        }
    }

    #[test]
    fn a_compressed_body_is_never_read() {
        let body = br#"{"vote":"yes","reason":"r"}"#;
        let response = |status| Response { status, encoded: true, html: false, body };
        let found = judge(Operation::Prepare, response(StatusCode::OK));
        assert!(matches!(found, Answer::Unknown(_)), "{found:?}");
        assert_eq!(
            judge(Operation::Prepare, response(StatusCode::CONFLICT)),
            no("HTTP 409 Conflict")
        );
        assert_eq!(judge(Operation::Commit, response(StatusCode::OK)), Answer::Acknowledged);
    }
}
