//! Decides what a branch gives back: for each statement how many rows it touched, and the rows that
//! it gave back, within bounds. And what the branch's row says where nothing is prepared.

use serde_json::{Value, json};
use unanimity::core::guard::Contradiction;
use unanimity::core::{Answer, RESULT_BYTES_MAX};

use super::{Ran, TABLE};

/// The yes of statements that ran, with what they gave back; a no if that is too much.
pub(super) fn answer(ran: &[Ran], rows_max: usize, reads: bool) -> Answer {
    let rows = ran.iter().filter_map(|one| one.rows.as_ref()).map(Vec::len).sum::<usize>();
    if rows > rows_max {
        let text = format!("result_too_large: the statements give back more than {rows_max} rows");
        return Answer::No(text.into());
    }
    if !reads && ran.iter().all(|one| one.rows.is_none()) {
        return Answer::Yes(None);
    }
    let statements: Vec<Value> = ran
        .iter()
        .map(|one| match &one.rows {
            Some(rows) => json!({"rows": one.affected, "returned": rows}),
            None => json!({"rows": one.affected}),
        })
        .collect();
    let text = json!({ "statements": statements }).to_string();
    if text.len() > RESULT_BYTES_MAX {
        let text = format!("result_too_large: the rows have more than {RESULT_BYTES_MAX} bytes");
        return Answer::No(text.into());
    }
    if reads { Answer::Read(text.into()) } else { Answer::Yes(Some(text.into())) }
}

/// What a commit comes to where nothing of that name is prepared although the branch has promised,
/// by the branch's row: it was committed before, or somebody else has taken the promise back.
pub(super) fn nothing_to_commit(state: Option<&str>, name: &str) -> Answer {
    match state {
        Some("committed") => Answer::Acknowledged,
        Some(_) => Answer::Contradiction(
            Contradiction::AlreadyRolledBack,
            format!("the table {TABLE} says that it was rolled back").into(),
        ),
        None => Answer::Contradiction(
            Contradiction::NeverPrepared,
            format!(
                "nothing is prepared as {name}, and the table {TABLE} has no row of it: somebody \
                 rolled it back by hand, or the database was restored from a copy"
            )
            .into(),
        ),
    }
}

/// What a rollback comes to where the branch has a row already.
pub(super) fn row_before_rollback(state: Option<&str>) -> Answer {
    match state {
        Some("committed") => Answer::Contradiction(
            Contradiction::AlreadyCommitted,
            format!("the table {TABLE} says that it was committed").into(),
        ),
        Some(_) | None => Answer::Acknowledged,
    }
}
