//! Decides what a branch gives back: for each statement how many rows it touched, and the rows that
//! it gave back, within bounds.

use serde_json::{Value, json};
use unanimity::core::{Answer, RESULT_BYTES_MAX};

use super::Ran;

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
