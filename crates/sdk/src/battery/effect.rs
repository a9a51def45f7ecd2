//! Decides what an effect is, as far as it can be seen from outside: by how much every number in
//! an observation has changed. So one commit can be compared with another, whatever the service
//! counts.

use std::collections::BTreeMap;

use serde_json::Value;

/// By how much each number has changed, by its place; those that have not are left out.
pub(super) type Effect = BTreeMap<String, i128>;

/// What lies between two observations; `None` if they cannot be compared: no JSON, or another set
/// of numbers. Numbers count as thousandths.
pub(super) fn effect(before: &str, after: &str) -> Option<Effect> {
    let (before, after) = (numbers(before)?, numbers(after)?);
    if !before.keys().eq(after.keys()) {
        return None;
    }
    let changes = after.into_iter().map(|(place, number)| {
        let change = number - before.get(&place).copied().unwrap_or(0);
        (place, change)
    });
    Some(changes.filter(|(_, change)| *change != 0).collect())
}

fn numbers(text: &str) -> Option<Effect> {
    let mut found = Effect::new();
    gather(&serde_json::from_str(text).ok()?, String::new(), &mut found);
    Some(found)
}

fn gather(value: &Value, place: String, found: &mut Effect) {
    match value {
        Value::Number(number) => {
            let whole = number.as_i64().map(|number| i128::from(number) * 1_000);
            let thousandths = number.as_f64().map(|number| (number * 1_000.0).round() as i128);
            if let Some(number) = whole.or(thousandths) {
                found.insert(place, number);
            }
        }
        Value::Array(values) => {
            for (at, value) in values.iter().enumerate() {
                gather(value, format!("{place}[{at}]"), found);
            }
        }
        Value::Object(values) => {
            for (name, value) in values {
                gather(value, format!("{place}.{name}"), found);
            }
        }
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(before: &str, after: &str, expected: Option<&[(&str, i128)]>) {
        let expected = expected.map(|changes| {
            changes.iter().map(|(place, change)| ((*place).to_owned(), *change)).collect()
        });
        assert_eq!(effect(before, after), expected, "{before} {after}");
    }

    #[test]
    fn an_effect_is_what_has_changed() {
        check("7", "4", Some(&[("", -3_000)]));
        check(r#"{"a":1,"b":[2,3.5]}"#, r#"{"a":1,"b":[2,3.25]}"#, Some(&[(".b[1]", -250)]));
        check(r#"{"a":1,"at":"noon"}"#, r#"{"a":1,"at":"night"}"#, Some(&[]));
        check(r#"{"a":1}"#, r#"{"b":1}"#, None);
        check("stock: 7", "stock: 7", None);
    }
}
