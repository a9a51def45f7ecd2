//! Decides what the payload of a database's branch says: statements with parameters and the number
//! of rows that each must touch; and which statements are refused before anything is begun. Whether
//! the database can carry them out is for the database to say.

use serde::Deserialize;
use serde_json::Value;

use crate::config::Allowed;

/// The most statements of one branch.
pub const STATEMENTS_MAX: usize = 100;
/// The most bytes of one statement's text.
const SQL_BYTES_MAX: usize = 64 * 1024;

/// What a branch asks of its database.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Work {
    /// In their order.
    pub statements: Vec<Statement>,
}

/// One statement.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statement {
    /// Its text, with `$1`, `$2` (PostgreSQL) or `?` (MariaDB) where parameters belong.
    pub sql: String,
    /// The parameters.
    #[serde(default)]
    pub parameters: Vec<Value>,
    /// How many rows it must touch or give back; any number if it does not say.
    #[serde(default)]
    pub rows: Option<Rows>,
}

/// How many rows a statement must touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum Rows {
    /// So many.
    Exactly(u64),
    /// From one number to another.
    Between {
        /// At least.
        #[serde(default)]
        min: u64,
        /// At most.
        #[serde(default = "any_number")]
        max: u64,
    },
}

const fn any_number() -> u64 {
    u64::MAX
}

impl Rows {
    fn allows(self, found: u64) -> bool {
        match self {
            Self::Exactly(wanted) => found == wanted,
            Self::Between { min, max } => (min..=max).contains(&found),
        }
    }

    fn described(self) -> String {
        match self {
            Self::Exactly(wanted) => wanted.to_string(),
            Self::Between { min, max: u64::MAX } => format!("at least {min}"),
            Self::Between { min, max } => format!("{min} to {max}"),
        }
    }
}

/// Why a payload is refused: a stable code, and words.
pub type Refusal = (&'static str, String);

impl Work {
    /// Reads a payload and checks its statements' form.
    ///
    /// # Errors
    /// `statements_invalid` if it is not of this form, `statement_not_allowed` if a statement does
    /// something else than reading or changing rows, or is none of those that are allowed.
    pub fn read(payload: &[u8], allowed: &Allowed) -> Result<Self, Refusal> {
        let invalid = |text: String| ("statements_invalid", text);
        let work: Self = serde_json::from_slice(payload)
            .map_err(|error| invalid(format!("the payload is no list of statements: {error}")))?;
        if work.statements.is_empty() || work.statements.len() > STATEMENTS_MAX {
            let found = work.statements.len();
            let text =
                format!("the payload has {found} statements; 1 to {STATEMENTS_MAX} are fine");
            return Err(invalid(text));
        }
        for (index, statement) in work.statements.iter().enumerate() {
            statement
                .check(allowed)
                .map_err(|(code, text)| (code, format!("statement {}: {text}", index + 1)))?;
        }
        Ok(work)
    }

    /// Whether every statement begins as one that only reads does. Whether it really only reads,
    /// the database sees to.
    #[must_use]
    pub fn reads(&self) -> bool {
        self.statements.iter().all(|one| {
            matches!(first_word(&one.sql).as_deref(), Some("SELECT" | "VALUES" | "TABLE"))
        })
    }

    /// What a statement's number of rows says against a yes.
    ///
    /// # Errors
    /// The reason of the no.
    pub fn check_rows(&self, index: usize, found: u64) -> Result<(), String> {
        match self.statements.get(index).and_then(|statement| statement.rows) {
            Some(rows) if !rows.allows(found) => Err(format!(
                "rows_unexpected: statement {} touched {found} rows, and must touch {}",
                index + 1,
                rows.described(),
            )),
            Some(_) | None => Ok(()),
        }
    }
}

impl Statement {
    fn check(&self, allowed: &Allowed) -> Result<(), Refusal> {
        let invalid = |text: String| Err(("statements_invalid", text));
        if self.sql.len() > SQL_BYTES_MAX {
            return invalid(format!("it has more than {SQL_BYTES_MAX} bytes"));
        }
        if self.sql.contains('\0') {
            return invalid("it holds a zero byte".into());
        }
        if let Some(Rows::Between { min, max }) = self.rows
            && min > max
        {
            return invalid(format!("no number is at least {min} and at most {max}"));
        }
        let refused = |text: String| Err(("statement_not_allowed", text));
        match first_word(&self.sql).as_deref() {
            Some(
                "SELECT" | "VALUES" | "TABLE" | "WITH" | "INSERT" | "UPDATE" | "DELETE" | "MERGE"
                | "REPLACE" | "CALL",
            ) => {}
            Some(word) => {
                return refused(format!(
                    "begins with {word}; only statements that read or change rows can be held back \
                     until the decision"
                ));
            }
            None => return refused("begins with no word of SQL".into()),
        }
        match allowed {
            Allowed::These(list) if !list.contains(&self.sql) => {
                refused("is none of those that the database's configuration allows".into())
            }
            Allowed::These(_) | Allowed::Any => Ok(()),
        }
    }
}

/// The first word of a statement in capitals, after space, comments and opening brackets. There is
/// none where a comment stands that MariaDB executes.
fn first_word(sql: &str) -> Option<String> {
    let mut rest = sql.trim_start();
    loop {
        rest = if let Some(comment) = rest.strip_prefix("--") {
            comment.split_once('\n')?.1
        } else if let Some(comment) = rest.strip_prefix('#') {
            comment.split_once('\n')?.1
        } else if let Some(comment) = rest.strip_prefix("/*") {
            if comment.starts_with('!') || comment.starts_with("M!") {
                return None;
            }
            comment.split_once("*/")?.1
        } else if let Some(inner) = rest.strip_prefix('(') {
            inner
        } else {
            break;
        };
        rest = rest.trim_start();
    }
    let word: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    (!word.is_empty()).then(|| word.to_uppercase())
}

#[cfg(test)]
mod tests {
    use super::{Allowed, Work};

    fn check(sql: &str, expected: Option<&str>) {
        let payload = serde_json::json!({"statements": [{"sql": sql}]}).to_string();
        let code = Work::read(payload.as_bytes(), &Allowed::Any).err().map(|(code, _)| code);
        assert_eq!(code, expected, "{sql}");
    }

    #[test]
    fn only_statements_that_read_or_change_rows_are_taken() {
        for sql in [
            "update t set a = 1",
            "  -- why\n /* and\nhow */ (SELECT 1)",
            "WITH x AS (SELECT 1) INSERT INTO t SELECT * FROM x",
            "# a comment of MariaDB's\nDELETE FROM t",
        ] {
            check(sql, None);
        }
        for sql in [
            "COMMIT",
            "rollback",
            "BEGIN",
            "start transaction",
            "END",
            "ABORT",
            "SAVEPOINT a",
            "PREPARE TRANSACTION 'x'",
            "XA COMMIT 'x'",
            "SET autocommit = 1",
            "CREATE TABLE t (a int)",
            "ALTER TABLE t ADD b int",
            "DROP TABLE t",
            "TRUNCATE t",
            "LOCK TABLES t WRITE",
            "VACUUM",
            "DO $$ BEGIN COMMIT; END $$",
            "COPY t FROM STDIN",
            "LISTEN x",
            "",
            ";",
            "/* open",
            "/*! COMMIT */",
            "/*M! COMMIT */",
            "-- only a comment",
        ] {
            check(sql, Some("statement_not_allowed"));
        }
        check(&format!("SELECT '{}'", "x".repeat(65_536)), Some("statements_invalid"));
        check("SELECT '\0'", Some("statements_invalid"));
    }

    fn refused(payload: &str) {
        let code = Work::read(payload.as_bytes(), &Allowed::Any).err().map(|(code, _)| code);
        assert_eq!(code, Some("statements_invalid"), "{payload}");
    }

    #[test]
    fn a_payload_of_another_form_is_refused() {
        refused("");
        refused("[]");
        refused(r#"{"statements":[]}"#);
        refused(r#"{"statements":[{}]}"#);
        refused(r#"{"statements":[{"sql":{"$result":{"branch":"a"}}}]}"#);
        refused(r#"{"statements":[{"sql":"SELECT 1","row":1}]}"#);
        refused(r#"{"statements":[{"sql":"SELECT 1","rows":-1}]}"#);
        refused(r#"{"statements":[{"sql":"SELECT 1","rows":{"min":2,"max":1}}]}"#);
        refused(r#"{"statements":[{"sql":"SELECT 1","rows":{"least":2}}]}"#);
        let many = vec![serde_json::json!({"sql": "SELECT 1"}); 101];
        refused(&serde_json::json!({ "statements": many }).to_string());
    }

    #[test]
    fn a_list_of_statements_allows_these_alone() {
        let allowed = Allowed::These(vec!["SELECT 1".into()]);
        let read = |sql: &str| {
            let payload = serde_json::json!({"statements": [{"sql": sql}]}).to_string();
            Work::read(payload.as_bytes(), &allowed).err().map(|(code, _)| code)
        };
        assert_eq!(read("SELECT 1"), None);
        assert_eq!(read("SELECT 2"), Some("statement_not_allowed"));
    }

    #[test]
    fn rows_are_counted() {
        let payload = br#"{"statements":[{"sql":"SELECT 1","rows":1},
            {"sql":"SELECT 1","rows":{"min":2}},{"sql":"SELECT 1","rows":{"max":3}},
            {"sql":"SELECT 1"}]}"#;
        let work = Work::read(payload, &Allowed::Any).unwrap();
        let fine = |index, found| work.check_rows(index, found).is_ok();
        assert_eq!([0, 1, 2].map(|found| fine(0, found)), [false, true, false]);
        assert_eq!([1, 2, 9].map(|found| fine(1, found)), [false, true, true]);
        assert_eq!([0, 3, 4].map(|found| fine(2, found)), [true, true, false]);
        assert!(fine(3, 0) && fine(3, 999));
        let said = work.check_rows(1, 0).unwrap_err();
        assert_eq!(said, "rows_unexpected: statement 2 touched 0 rows, and must touch at least 2");
    }
}
