//! Decides what an answer looks like on a stream, and what it means: the same closed set as over
//! HTTP, from which nothing else counts as a vote or an acknowledgement.

use unanimity_core::Operation;
use unanimity_core::guard::{Contradiction, Reply};

use super::generated::{Answer, AnswerKind};
use crate::answer::{clean, result_of};
use crate::contract::RESULT_BYTES_MAX;
use crate::participant::CallError;

/// A participant's answer to the call of a number.
#[must_use]
pub fn write_answer(number: u64, answer: Result<Reply, CallError>) -> Answer {
    let (kind, text) = match answer {
        Ok(Reply::Yes(result)) => (AnswerKind::Yes, result.unwrap_or_default()),
        Ok(Reply::ReadOnly) => (AnswerKind::ReadOnly, String::new()),
        Ok(Reply::No(reason)) => (AnswerKind::No, reason),
        Ok(Reply::Acknowledged) => (AnswerKind::Acknowledged, String::new()),
        Err(CallError::Contradiction(contradiction)) => (kind_of(contradiction), String::new()),
        Err(CallError::Failed(message)) => (AnswerKind::Failed, message),
        Err(CallError::Busy(message)) => (AnswerKind::Busy, message),
    };
    Answer { number, kind: kind as i32, text }
}

const fn kind_of(contradiction: Contradiction) -> AnswerKind {
    match contradiction {
        Contradiction::NeverPrepared => AnswerKind::NeverPrepared,
        Contradiction::AlreadyRolledBack => AnswerKind::AlreadyRolledBack,
        Contradiction::AlreadyCommitted => AnswerKind::AlreadyCommitted,
        Contradiction::WrongKind => AnswerKind::WrongKind,
    }
}

/// What an answer means for the operation that was asked for.
#[must_use]
pub fn judge(operation: Operation, answer: &Answer) -> unanimity_core::Answer {
    use unanimity_core::Answer as Meaning;
    let text = answer.text.as_str();
    match (answer.kind(), operation) {
        (
            AnswerKind::Yes,
            Operation::Prepare
            | Operation::Execute
            | Operation::CommitOnePhase
            | Operation::Inquire,
        ) => yes(text),
        (
            AnswerKind::ReadOnly,
            Operation::Prepare
            | Operation::Execute
            | Operation::CommitOnePhase
            | Operation::Inquire,
        ) => Meaning::ReadOnly,
        (
            AnswerKind::No,
            Operation::Prepare
            | Operation::Execute
            | Operation::CommitOnePhase
            | Operation::Inquire,
        ) => {
            let given = clean(text);
            let none = "voted no and gave no reason";
            Meaning::No(if given.is_empty() { none.into() } else { given.into() })
        }
        (
            AnswerKind::Acknowledged,
            Operation::Commit | Operation::Rollback | Operation::Compensate,
        ) => Meaning::Acknowledged,
        (AnswerKind::NeverPrepared, _) => {
            contradicts(operation, Contradiction::NeverPrepared, text)
        }
        (AnswerKind::AlreadyRolledBack, _) => {
            contradicts(operation, Contradiction::AlreadyRolledBack, text)
        }
        (AnswerKind::AlreadyCommitted, _) => {
            contradicts(operation, Contradiction::AlreadyCommitted, text)
        }
        (AnswerKind::WrongKind, _) => contradicts(operation, Contradiction::WrongKind, text),
        (AnswerKind::Unsupported, Operation::CommitOnePhase | Operation::Inquire) => {
            Meaning::Unsupported
        }
        (AnswerKind::Unsupported, _) => unknown("unsupported", text),
        (AnswerKind::Failed, _) => unknown("service_failed", text),
        (AnswerKind::Busy, _) => unknown("service_busy", text),
        (AnswerKind::Unspecified, _) => unknown("an answer of no known kind", text),
        (kind @ (AnswerKind::Yes | AnswerKind::ReadOnly | AnswerKind::No), _)
        | (kind @ AnswerKind::Acknowledged, _) => {
            unknown(&format!("{} is no answer to {}", kind.as_str_name(), operation.as_str()), text)
        }
    }
}

fn yes(text: &str) -> unanimity_core::Answer {
    if text.is_empty() || text == "null" {
        return unanimity_core::Answer::Yes(None);
    }
    if text.len() > 2 * RESULT_BYTES_MAX {
        return unknown("the result is too long", "");
    }
    match result_of(text) {
        Ok(result) => unanimity_core::Answer::Yes(Some(result)),
        Err(error) => unknown(&error, ""),
    }
}

/// Before the decision a contradiction is a no; where the participant alone decides it is none.
fn contradicts(
    operation: Operation,
    contradiction: Contradiction,
    text: &str,
) -> unanimity_core::Answer {
    let words = joined(contradiction.code(), text);
    match operation {
        Operation::Prepare | Operation::Execute => unanimity_core::Answer::No(words),
        Operation::Commit
        | Operation::Rollback
        | Operation::Compensate
        | Operation::CommitOnePhase
        | Operation::Inquire => unanimity_core::Answer::Contradiction(contradiction, words),
    }
}

fn unknown(what: &str, text: &str) -> unanimity_core::Answer {
    unanimity_core::Answer::Unknown(joined(what, text))
}

fn joined(what: &str, text: &str) -> Box<str> {
    if text.is_empty() { what.into() } else { clean(&format!("{what}: {text}")).into() }
}

#[cfg(test)]
mod tests {
    use unanimity_core::Answer as Meaning;

    use super::*;

    fn case(operation: Operation, kind: AnswerKind, text: &str, expected: Meaning) {
        let answer = Answer { number: 1, kind: kind as i32, text: text.to_owned() };
        assert_eq!(judge(operation, &answer), expected, "{operation:?} {kind:?} {text:?}");
    }

    #[test]
    fn what_a_participant_writes_is_read_as_it_was_meant() {
        let words = |text: &str| text.to_owned();
        for (operation, reply, expected) in [
            (Operation::Prepare, Ok(Reply::Yes(None)), Meaning::Yes(None)),
            (
                Operation::Execute,
                Ok(Reply::Yes(Some(words(r#"{ "a": 1 }"#)))),
                Meaning::Yes(Some(r#"{"a":1}"#.into())),
            ),
            (Operation::Prepare, Ok(Reply::ReadOnly), Meaning::ReadOnly),
            (
                Operation::CommitOnePhase,
                Ok(Reply::No(words("no funds"))),
                Meaning::No("no funds".into()),
            ),
            (Operation::Commit, Ok(Reply::Acknowledged), Meaning::Acknowledged),
            (
                Operation::Commit,
                Err(CallError::Contradiction(Contradiction::NeverPrepared)),
                Meaning::Contradiction(Contradiction::NeverPrepared, "never_prepared".into()),
            ),
            (
                Operation::Prepare,
                Err(CallError::Contradiction(Contradiction::WrongKind)),
                Meaning::No("wrong_kind".into()),
            ),
            (
                Operation::Commit,
                Err(CallError::Failed(words("disk"))),
                Meaning::Unknown("service_failed: disk".into()),
            ),
            (
                Operation::Prepare,
                Err(CallError::Busy(words("locked"))),
                Meaning::Unknown("service_busy: locked".into()),
            ),
        ] {
            let written = write_answer(1, reply.clone());
            assert_eq!(judge(operation, &written), expected, "{operation:?} {reply:?}");
        }
    }

    #[test]
    fn nothing_else_counts_as_a_vote_or_an_acknowledgement() {
        for (operation, kind) in [
            (Operation::Prepare, AnswerKind::Acknowledged),
            (Operation::Commit, AnswerKind::Yes),
            (Operation::Rollback, AnswerKind::ReadOnly),
            (Operation::Compensate, AnswerKind::No),
            (Operation::Commit, AnswerKind::Unsupported),
            (Operation::Prepare, AnswerKind::Unspecified),
        ] {
            let answer = Answer { number: 1, kind: kind as i32, text: String::new() };
            assert!(
                matches!(judge(operation, &answer), Meaning::Unknown(_)),
                "{operation:?} {kind:?}"
            );
        }
        let strange = Answer { number: 1, kind: 99, text: String::new() };
        assert!(matches!(judge(Operation::Prepare, &strange), Meaning::Unknown(_)));
        let deep = "[".repeat(40) + &"]".repeat(40);
        for text in ["{", "yes", deep.as_str()] {
            let answer = Answer { number: 1, kind: AnswerKind::Yes as i32, text: text.to_owned() };
            assert!(matches!(judge(Operation::Prepare, &answer), Meaning::Unknown(_)), "{text}");
        }
    }

    #[test]
    fn who_does_not_know_the_last_word_says_so() {
        case(Operation::CommitOnePhase, AnswerKind::Unsupported, "", Meaning::Unsupported);
        case(Operation::Inquire, AnswerKind::Unsupported, "", Meaning::Unsupported);
    }

    #[test]
    fn a_reason_is_cleaned() {
        case(Operation::Prepare, AnswerKind::No, "no\u{7} funds\n", Meaning::No("no funds".into()));
        case(
            Operation::Prepare,
            AnswerKind::No,
            "",
            Meaning::No("voted no and gave no reason".into()),
        );
    }
}
