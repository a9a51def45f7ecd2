//! Decides how the HTTP API says that something is wrong: problem documents (RFC 9457) with stable
//! codes, from one table that the error reference is made from too; and how a request's JSON is
//! read so that a mistake in it is named.

use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{HeaderMap, StatusCode};
use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::error::Category;
use unanimity_core::PlanError;
use unanimity_sdk::api::Object;

/// What a code means; a row of the error reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodeDoc {
    /// The stable code.
    pub code: &'static str,
    /// The HTTP status that it comes with.
    pub status: u16,
    /// A title that is the same for every occurrence.
    pub title: &'static str,
    /// What has happened.
    pub meaning: &'static str,
    /// What to do about it.
    pub remedy: &'static str,
}

/// Makes the table, and a constant for each of its rows, so that no code can be misspelt.
macro_rules! codes {
    ($(
        $name:ident $code:literal $status:literal $title:literal $meaning:literal $remedy:literal
    )*) => {
        /// One constant for each code of the HTTP API.
        pub mod code {
            use super::CodeDoc;
            $(
                #[doc = $meaning]
                pub const $name: CodeDoc = CodeDoc {
                    code: $code, status: $status, title: $title, meaning: $meaning, remedy: $remedy,
                };
            )*
        }
        /// Every code of the HTTP API.
        pub const CODES: &[CodeDoc] = &[$(code::$name),*];
    };
}

codes! {
    MALFORMED_JSON "malformed_json" 400 "The body is not JSON"
        "The request's body is not well-formed JSON."
        "Correct the body at the line and column that the detail names."
    WRONG_TYPE "wrong_type" 400 "A value has the wrong type"
        "A field holds a value of another type, or of another form, than it must have."
        "Give the field that is named a value as the API description shows it."
    UNKNOWN_FIELD "unknown_field" 400 "There is no such field"
        "The request has a field that this version does not know. Ignoring it could leave out \
        something that was meant."
        "Correct the field's name, or leave it out."
    MISSING_FIELD "missing_field" 400 "A field is missing"
        "A field that every such request must have is not there."
        "Add the field that is named."
    REPEATED_FIELD "repeated_field" 400 "A field is given twice"
        "The same field stands twice in one object, and which was meant cannot be known."
        "Keep one of them."
    JSON_TOO_DEEP "json_too_deep" 400 "The JSON is nested too deeply"
        "Arrays and objects stand deeper inside each other than limits.json_depth_max allows."
        "Send a flatter payload, as a string if need be."
    BODY_TOO_LARGE "body_too_large" 413 "The body is too large"
        "The request's body has more bytes than limits.body_bytes_max allows."
        "Send smaller payloads, or references to them; or raise the limit."
    CONTENT_TYPE_INVALID "content_type_invalid" 415 "The body's type is not JSON"
        "The Content-Type of the request is not application/json."
        "Send the header Content-Type: application/json, and no Content-Encoding."
    NO_BRANCHES "no_branches" 400 "The transaction has no branches"
        "A transaction without a branch has nothing to decide."
        "Give at least one branch."
    TOO_MANY_BRANCHES "too_many_branches" 400 "The transaction has too many branches"
        "The transaction has more branches than limits.branches_max allows."
        "Put the work of one participant into one branch."
    BRANCH_NAME_INVALID "branch_name_invalid" 400 "A branch's name is not allowed"
        "A branch's name is empty, too long, or has characters other than letters, digits and . _ \
        : -"
        "Choose a name of 1 to 128 such characters."
    BRANCH_NAME_REPEATED "branch_name_repeated" 400 "Two branches have the same name"
        "Names of branches are unique within a transaction: participants know their branch by it."
        "Give each branch a name of its own."
    PARTICIPANT_INVALID "participant_invalid" 400 "A participant's address is not valid"
        "A participant's address is not an http or https URL (or db: and a name), or it carries a \
        user, a query or a \
        fragment."
        "Give an address such as http://accounts:8080/transfers; the operation is joined to its \
        path."
    PARTICIPANT_NOT_ALLOWED "participant_not_allowed" 400 "A participant may not be called"
        "The setting participants.allow does not allow the participant's address."
        "Correct the address, or have the operator add it to participants.allow."
    DATABASE_UNKNOWN "database_unknown" 400 "There is no such database"
        "A branch's participant is db: and a name, and the configuration has no database of that \
        name."
        "Correct the name, or have the operator add the section [databases.NAME]."
    DATABASE_TWO_PHASE_ONLY "database_two_phase_only" 400 "A database can only prepare"
        "A branch in a database is a prepared transaction: of another kind than two_phase, or done \
        by the initiator itself, it cannot be."
        "Make the branch two_phase and leave phase_one_by out; or write a service."
    STATEMENTS_INVALID "statements_invalid" 400 "The payload is no list of statements"
        "The payload of a branch in a database has another form than {\"statements\": [{\"sql\": \
        ..., \"parameters\": [...], \"rows\": 1}]}."
        "Correct what the detail names."
    STATEMENT_NOT_ALLOWED "statement_not_allowed" 400 "A statement may not be run"
        "A statement does something else than reading or changing rows (it would commit by itself, \
        or outlive the transaction), or it is none of those that the database's configuration \
        allows."
        "Use SELECT, INSERT, UPDATE, DELETE, MERGE, REPLACE, WITH, VALUES or CALL; or have the \
        operator add the statement to the database's statements."
    PAYLOAD_TOO_LARGE "payload_too_large" 400 "A branch's payload is too large"
        "A branch's payload has more than 1 MiB."
        "Send a reference to the data instead of the data."
    AFTER_UNKNOWN "after_unknown" 400 "A branch waits for one that does not exist"
        "The list after of a branch names a branch that the transaction does not have."
        "Correct the name."
    AFTER_ITSELF "after_itself" 400 "A branch waits for itself"
        "The list after of a branch names the branch itself, which could never begin."
        "Take the name out of the list."
    AFTER_CYCLE "after_cycle" 400 "Branches wait for each other"
        "The lists after lead in a circle, so that none of these branches could ever begin."
        "Break the circle that the detail names."
    AFTER_UNSAFE "after_unsafe" 400 "A branch would vote too late"
        "A branch waits for one whose work is visible, or only done after the decision, so that \
        its vote could not stop that work any more."
        "Turn the order round, or change the kind of one of the two branches."
    TIMEOUT_INVALID "timeout_invalid" 400 "A timeout is not usable"
        "A timeout, a delay or a number of attempts is zero, negative or absurdly long."
        "Give milliseconds between 1 and 30 days."
    TRANSACTION_ID_INVALID "transaction_id_invalid" 400 "The transaction's id is not allowed"
        "A transaction's id is empty, too long, has characters other than letters, digits and \
        . _ : -"
        "Choose an id of 1 to 128 such characters, or leave it out to be given one."
    IDEMPOTENCY_KEY_INVALID "idempotency_key_invalid" 400 "The idempotency key is not allowed"
        "The header Idempotency-Key is empty, too long, given twice, or has characters other than \
        visible ASCII."
        "Send one key of 1 to 255 visible characters; a UUID is a good one."
    ID_AND_KEY_BOTH "id_and_key_both" 400 "Both an id and an idempotency key are given"
        "The request has a transaction id and an Idempotency-Key, and each of them alone names \
        the transaction."
        "Send one of them."
    ID_REUSED "id_reused" 422 "The id belongs to another request"
        "A request with other content has used this id or idempotency key before. An id never \
        gets a second life."
        "Use a new id for a new transaction; repeat a request with exactly the same body."
    TRANSACTION_UNKNOWN "transaction_unknown" 404 "There is no such transaction"
        "No live transaction has this id, and the history holds none. It never began, or was \
        forgotten after its retention time."
        "Check the id. To an initiator this does not mean that the transaction was rolled back."
    ALREADY_DECIDED "already_decided" 409 "The transaction is decided already"
        "What was asked for is possible only before the decision, and a decision never changes."
        "Ask for the transaction's state to see its outcome."
    NOT_OPEN "not_open" 409 "The transaction takes no branches any more"
        "Branches can be enlisted from the beginning of an interactive transaction until its \
        initiator asks to commit. Nothing was enlisted."
        "Enlist before the request to commit. Do not do the branch's work."
    NOT_INTERACTIVE "not_interactive" 409 "The transaction was begun whole"
        "A transaction that was begun whole commits by itself when every branch agrees."
        "Ask for its state, or begin it with interactive."
    BRANCH_CONFLICT "branch_conflict" 409 "The branch is enlisted with other content"
        "A branch of this name is enlisted already, and something about it is different."
        "Use another name; to repeat a request, repeat exactly the same body."
    BRANCH_UNKNOWN "branch_unknown" 404 "The transaction has no such branch"
        "The transaction is known, and has no branch of this name."
        "Take the name from the transaction's state."
    PHASE_ONE_BY_UNSAFE "phase_one_by_unsafe" 400 "The initiator may not do this work itself"
        "Work of the initiator must be undone if the transaction rolls back, so the branch must be \
        on record first: that is possible in an interactive transaction only, and never for a \
        deferred branch."
        "Begin it with interactive, and enlist the branch before its work; or leave phase_one_by \
        out."
    DEFERRED_ONLY "deferred_only" 400 "Only a deferred branch can have this"
        "A delay after the decision, or work after a rollback, makes sense for deferred branches \
        only."
        "Make the branch deferred, or leave the field out."
    LOCAL_UNSAFE "local_unsafe" 400 "The local work could not be undone"
        "With an inquiry the initiator commits its local work before the others are asked, so none \
        of the others may say no: beside it only deferred branches are safe, in an interactive \
        transaction."
        "Make the other branches deferred; or make the local work a two-phase branch of its own."
    REFERENCE_INVALID "reference_invalid" 400 "A reference in a payload is not well formed"
        "An object with the member $result is not a reference to the result of a branch."
        "Write an object with the members branch and field, a JSON pointer."
    REFERENCE_UNKNOWN "reference_unknown" 400 "A payload refers to a branch that does not exist"
        "A payload's $result names a branch that the transaction does not have."
        "Correct the name."
    REFERENCE_UNSAFE "reference_unsafe" 400 "A result need not be there in time"
        "A payload refers to the result of a branch that may not have answered by the time that \
        the payload is sent."
        "Name that branch in after, or refer to one that votes before."
    UNDECIDED "undecided" 409 "The transaction is not decided"
        "A branch can be settled by hand once the decision is taken, or while the participant that \
        alone decides is being asked. Before that the coordinator can decide by itself."
        "Roll the transaction back instead."
    BRANCH_SETTLED "branch_settled" 409 "The branch has nothing left to settle"
        "The participant has acknowledged already, or somebody has settled the branch before, or \
        the whole transaction has ended."
        "Ask for the transaction's state to see how."
    REASON_MISSING "reason_missing" 400 "A word against the decision needs a reason"
        "Settling a branch against the decision makes the outcome mixed, for ever. Nothing was \
        changed."
        "Give the reason, for those who will ask; or correct the word."
    SET_ASIDE "set_aside" 409 "The transaction is set aside"
        "The coordinator itself broke on this transaction limits.panics_per_transaction_max times, \
        and now leaves it alone so that the others can go on. Its records are kept, and nothing \
        reaches it."
        "See unanimity explain. After an upgrade that mends the cause: unanimity retry ID."
    AT_CAPACITY "at_capacity" 429 "Too many transactions are live"
        "As many transactions are live as limits.live_transactions_max allows. Nothing was begun."
        "Try again after the seconds that Retry-After names."
    OVERLOADED "overloaded" 429 "The coordinator is overloaded"
        "More is begun than this machine carries out: for four times \
        limits.queue_delay_target_ms every beginning has waited for its turn for longer than \
        that. So many are refused, before anything is done for them, that those that are let in \
        wait for about a quarter of that. Of many that come at once those are refused too that \
        would wait for ten times as long. The SDK's clients refuse by themselves, unsent, what \
        they know would be refused, and what would wait in the client for longer than its \
        begin_wait_max_ms."
        "Try again after the seconds that Retry-After names, and later each time; if it lasts, \
        begin less, or give the coordinator more cores or a faster disk. That a repeated \
        request is refused says nothing of the one before: ask for the transaction by its id."
    PARTICIPANT_BUSY "participant_busy" 429 "A participant is asked for more than it does"
        "Calls to a participant of this transaction have waited for a free connection, or for room \
        among the calls under way to it, for longer than limits.queue_delay_target_ms, all of \
        them, for four times that. Nothing was begun; transactions over other participants are."
        "Try again after the seconds that Retry-After names, and later each time; if it lasts, \
        make that participant faster. If it could bear more at a time, raise \
        participants.calls_in_flight_max where it takes several calls in one request, or else \
        participants.connections_per_participant_max."
    DISK_NEARLY_FULL "disk_nearly_full" 503 "The coordinator's disk is nearly full"
        "The disk of the data folder has less room than data.disk_reserve_bytes. What is left is \
        for the transactions that are live, which go on; nothing was begun."
        "Make room on that disk; nothing needs a restart. Then the same request succeeds."
    STOPPING "stopping" 503 "The coordinator is stopping"
        "The coordinator has been told to stop and begins nothing new. What it has begun goes on \
        when it is back."
        "Try again with the same id or idempotency key."
    SHARD_FAILED "shard_failed" 503 "A part of the coordinator has stopped"
        "The journal of a shard could not be written. The shard has stopped, so that it tells \
        nothing that a restart could undo."
        "Restart the coordinator, which recovers it; look in its log for the disk's error."
    FILTER_INVALID "filter_invalid" 400 "The filter is not understood"
        "A parameter of the query is unknown or has a value that it cannot have."
        "Correct the parameter that is named."
    CURSOR_INVALID "cursor_invalid" 400 "The cursor is not one of ours"
        "The parameter cursor is not one that a page of this list has handed out."
        "Begin again without a cursor."
    WAIT_INVALID "wait_invalid" 400 "The wait is not understood"
        "The parameter wait is neither one of its words nor a duration such as 30s or 500ms \
        within its limit."
        "Correct the parameter, or leave it out."
    UNAUTHORIZED "unauthorized" 401 "The token is missing or wrong"
        "The coordinator asks for a token, and the request has none or another."
        "Send the header Authorization: Bearer TOKEN."
    NOT_FOUND "not_found" 404 "There is nothing here"
        "The API has no such path."
        "See /openapi.json for the paths that there are."
    METHOD_NOT_ALLOWED "method_not_allowed" 405 "The method is not possible here"
        "The path exists, and not for this method."
        "See the header Allow for the methods that are possible."
    REQUEST_TIMEOUT "request_timeout" 408 "The request came too slowly"
        "The request's body was not complete within limits.body_timeout_ms."
        "Send it again over a better connection."
    INTERNAL "internal" 500 "Something is wrong inside the coordinator"
        "The coordinator has met a state that should not exist. What was begun is in its journal \
        and goes on."
        "Repeat the request with the same id; report what the log says."
}

/// The row of a code.
#[must_use]
pub fn find(code: &str) -> Option<&'static CodeDoc> {
    CODES.iter().find(|doc| doc.code == code)
}

/// One occurrence of something wrong. As a response it is `application/problem+json`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {detail}")]
pub struct Problem {
    /// The HTTP status.
    pub status: u16,
    /// The stable code.
    pub code: &'static str,
    /// The code's title.
    pub title: &'static str,
    /// What is wrong this time.
    pub detail: String,
    /// The field at fault, such as `branches[2].after`.
    pub field: Option<String>,
    /// After how many seconds another try makes sense.
    pub retry_after_s: Option<u64>,
}

impl Problem {
    /// A problem with one of the constants of [`code`].
    #[must_use]
    pub fn new(doc: CodeDoc, detail: impl Into<String>) -> Self {
        Self {
            status: doc.status,
            code: doc.code,
            title: doc.title,
            detail: detail.into(),
            field: None,
            retry_after_s: None,
        }
    }

    /// The same, naming the field at fault.
    #[must_use]
    pub fn with_field(self, field: impl Into<String>) -> Self {
        Self { field: Some(field.into()), ..self }
    }

    /// The same, saying after how many seconds another try makes sense.
    #[must_use]
    pub fn with_retry_after_s(self, seconds: u64) -> Self {
        Self { retry_after_s: Some(seconds), ..self }
    }
}

impl From<PlanError> for Problem {
    fn from(error: PlanError) -> Self {
        Self::new(*find(error.code).unwrap_or(&code::INTERNAL), error.message)
            .with_field(error.field)
    }
}

/// The document on the wire.
#[derive(Serialize)]
struct Document<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    detail: &'a str,
    code: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<&'a str>,
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let document = Document {
            // Relative: the program serves its own error reference.
            r#type: format!("/errors/{}", self.code),
            title: self.title,
            status: self.status,
            detail: &self.detail,
            code: self.code,
            field: self.field.as_deref(),
        };
        // A document of texts and a number always serializes.
        let body = serde_json::to_vec(&document).unwrap_or_default();
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = self.retry_after_s {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        (status, headers, body).into_response()
    }
}

/// Reads a request's JSON, an object, strictly: at most `depth_max` levels, nothing after it, and
/// whatever the type demands (`deny_unknown_fields` on the type makes unknown fields a mistake).
///
/// # Errors
/// `json_too_deep`, `malformed_json` with line and column, `unknown_field`, `missing_field`,
/// `repeated_field` or `wrong_type`, the last four naming the field.
pub fn parse_json<T: DeserializeOwned>(bytes: &[u8], depth_max: usize) -> Result<T, Problem> {
    if unanimity_sdk::contract::json_depth_exceeds(bytes, depth_max) {
        let detail = format!("the body's JSON is nested deeper than {depth_max} levels");
        return Err(Problem::new(code::JSON_TOO_DEEP, detail));
    }
    // To know where a mistake is costs more than all the rest, and there hardly ever is one.
    if let Ok(Object(value)) = serde_json::from_slice(bytes) {
        return Ok(value);
    }
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let Object(value) = serde_path_to_error::deserialize(&mut deserializer)
        .map_err(|error| mistake(bytes, &error.path().to_string(), error.inner()))?;
    deserializer.end().map_err(|error| mistake(bytes, ".", &error))?;
    Ok(value)
}

/// Names a mistake. serde tells the kinds apart only in their messages, whose beginnings are fixed
/// in `serde::de::Error`; the tests below hold them to it.
fn mistake(bytes: &[u8], path: &str, error: &serde_json::Error) -> Problem {
    let detail = error.to_string();
    let syntax = matches!(error.classify(), Category::Syntax | Category::Eof | Category::Io);
    // A number where one of some words must stand is a syntax error to serde_json.
    if syntax && serde_json::from_slice::<IgnoredAny>(bytes).is_err() {
        return Problem::new(code::MALFORMED_JSON, detail);
    }
    let name = detail.split('`').nth(1).unwrap_or_default();
    let (doc, named) = match detail.split(" `").next() {
        Some("unknown field") => (code::UNKNOWN_FIELD, name),
        Some("missing field") => (code::MISSING_FIELD, name),
        Some("duplicate field") => (code::REPEATED_FIELD, name),
        Some(_) | None => (code::WRONG_TYPE, ""),
    };
    let parent = if path == "." { "" } else { path };
    let ends_so = parent == named || parent.ends_with(&format!(".{named}"));
    let field = match (parent, named) {
        ("", "") => return Problem::new(doc, detail),
        ("", named) => named.to_owned(),
        (parent, "") => parent.to_owned(),
        (parent, named) if doc != code::MISSING_FIELD && ends_so && !named.is_empty() => {
            parent.to_owned()
        }
        (parent, named) => format!("{parent}.{named}"),
    };
    Problem::new(doc, detail).with_field(field)
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;
    use serde::Deserialize;
    use serde_json::value::RawValue;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Request {
        branches: Vec<Branch>,
        #[serde(default)]
        timeout_ms: u64,
        kind: Option<Kind>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Branch {
        name: String,
        payload: Option<Box<RawValue>>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Kind {
        TwoPhase,
    }

    fn check(json: &str, code: &str, field: Option<&str>, detail: &str) {
        let found = parse_json::<Request>(json.as_bytes(), 8).unwrap_err();
        assert_eq!((found.code, found.field.as_deref()), (code, field), "{json}: {found}");
        assert!(found.detail.contains(detail), "{json}: {found}");
    }

    #[test]
    fn mistakes_are_named() {
        check("", "malformed_json", None, "line 1 column 0");
        check("{", "malformed_json", None, "line 1 column 1");
        check("{\n  'a': 1}", "malformed_json", None, "line 2 column 3");
        check(r#"{"branches":[]} x"#, "malformed_json", None, "trailing characters");
        check("\u{feff}{}", "malformed_json", None, "line 1 column 1");
        check(r#"{"branches":[{"name":"a","payload":{,}}]}"#, "malformed_json", None, "column");
        check("{}", "missing_field", Some("branches"), "missing field `branches`");
        check("5", "wrong_type", None, "invalid type: integer `5`");
        check(r#"{"branches":5}"#, "wrong_type", Some("branches"), "expected a sequence");
        check(r#"{"branches":[{}]}"#, "missing_field", Some("branches[0].name"), "missing field");
        check(
            r#"{"branches":[{"name":1}]}"#,
            "wrong_type",
            Some("branches[0].name"),
            "expected a string",
        );
        check(
            r#"{"branches":[],"timeout_ms":-1}"#,
            "wrong_type",
            Some("timeout_ms"),
            "integer `-1`",
        );
        check(r#"{"branches":[],"timeout_ms":1.5}"#, "wrong_type", Some("timeout_ms"), "1.5");
        check(
            r#"{"branches":[],"timeout_ms":1e99}"#,
            "wrong_type",
            Some("timeout_ms"),
            "expected u64",
        );
        check(r#"{"branches":[],"color":1}"#, "unknown_field", Some("color"), "expected one of");
        check(
            r#"{"branches":[{"nom":1}]}"#,
            "unknown_field",
            Some("branches[0].nom"),
            "unknown field",
        );
        check(
            r#"{"branches":[],"branches":[]}"#,
            "repeated_field",
            Some("branches"),
            "duplicate field",
        );
        check(r#"{"branches":[],"kind":"saga"}"#, "wrong_type", Some("kind"), "unknown variant");
        check(r#"{"branches":[],"kind":5}"#, "wrong_type", Some("kind"), "expected value");
        check(r#"[[{"name":"a"}]]"#, "wrong_type", None, "invalid type: sequence");
        let deep = format!(r#"{{"branches":{}"#, "[".repeat(100_000));
        check(&deep, "json_too_deep", None, "deeper than 8 levels");
    }

    #[test]
    fn good_json_is_read() {
        let json = br#" {"branches":[{"name":"a]","payload":{"x":[1.50,"\"[[[[[[[["]}}],
            "kind":"two_phase"} "#;
        let request: Request = parse_json(json, 8).unwrap();
        let payload = request.branches[0].payload.as_ref().unwrap();
        assert_eq!(payload.get(), r#"{"x":[1.50,"\"[[[[[[[["]}"#);
    }

    #[test]
    fn depth_is_counted_without_recursion() {
        for (json, depth_max, expected) in [
            ("[[]]", 2, false),
            ("[[]]", 1, true),
            ("[],[],[]", 1, false),
            (r#"["[[[["]"#, 1, false),
            (r#"["\"[[["]"#, 1, false),
            (r#"["\\",[]]"#, 1, true),
            ("]]][", 1, false),
            ("", 0, false),
        ] {
            assert_eq!(
                unanimity_sdk::contract::json_depth_exceeds(json.as_bytes(), depth_max),
                expected,
                "{json}"
            );
        }
        assert!(unanimity_sdk::contract::json_depth_exceeds(
            "[".repeat(1_000_000).as_bytes(),
            999_999
        ));
    }

    #[tokio::test]
    async fn a_problem_is_a_problem_document() {
        let problem = Problem::new(code::AT_CAPACITY, "100 are live").with_retry_after_s(2);
        let response = problem.with_field("x").into_response();
        assert_eq!(response.status(), 429);
        assert_eq!(response.headers()["retry-after"], "2");
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        let body = to_bytes(response.into_body(), 9_999).await.unwrap();
        let found: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let expected = serde_json::json!({
            "type": "/errors/at_capacity",
            "title": "Too many transactions are live",
            "status": 429,
            "detail": "100 are live",
            "code": "at_capacity",
            "field": "x",
        });
        assert_eq!(found, expected);
    }

    #[test]
    fn every_code_is_documented_once() {
        let mut codes: Vec<_> = CODES.iter().map(|doc| doc.code).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), CODES.len());
        for doc in CODES {
            assert!(StatusCode::from_u16(doc.status).is_ok_and(|s| s.as_u16() >= 400), "{doc:?}");
            assert!(doc.code.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{doc:?}");
            assert!(!doc.meaning.is_empty() && doc.remedy.ends_with('.'), "{doc:?}");
        }
    }

    #[test]
    fn every_error_of_a_plan_has_its_code() {
        for code in [
            "no_branches",
            "too_many_branches",
            "branch_name_invalid",
            "branch_name_repeated",
            "participant_invalid",
            "payload_too_large",
            "after_unknown",
            "after_itself",
            "after_cycle",
            "after_unsafe",
            "timeout_invalid",
        ] {
            let error = PlanError { code, field: "f".into(), message: "m".into() };
            let problem = Problem::from(error);
            assert_eq!((problem.code, problem.detail.as_str()), (code, "m"));
            assert_eq!((problem.status, problem.field.as_deref()), (400, Some("f")));
        }
        let unknown = PlanError { code: "new", field: String::new(), message: String::new() };
        assert_eq!(Problem::from(unknown).code, "internal");
    }
}
