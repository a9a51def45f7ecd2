//! Decides how the result of one branch gets into the payload of another: where the payload's JSON
//! says `{"$result": {"branch": NAME, "field": POINTER}}`, that object is replaced by the field of
//! the result that the JSON pointer (RFC 6901) names, or by the whole result if none is named.
//! Everything else stays byte for byte as it was. Whether a result is there in time is the core's.

use std::collections::HashSet;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{MapAccess, Visitor};
use serde_json::value::RawValue;

/// The member that makes an object a reference.
const MARK: &str = "$result";
/// How deeply a payload is searched; the API refuses deeper ones.
const DEPTH_MAX: usize = 128;

/// The results that a payload may refer to, by the branch's name.
pub type Results = [(Arc<str>, Option<Arc<str>>)];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Reference {
    branch: String,
    #[serde(default)]
    field: String,
}

/// The branches that a payload refers to, each once, in their order.
///
/// # Errors
/// What is wrong with a reference.
pub fn names(payload: &str) -> Result<Vec<String>, String> {
    let (mut found, mut seen) = (Vec::new(), HashSet::new());
    if !payload.contains(MARK) {
        return Ok(found);
    }
    rewrite(payload, 0, &mut |reference| {
        // Not looked for in `found`: there may be 35,000 of them in one payload.
        if seen.insert(reference.branch.clone()) {
            found.push(reference.branch);
        }
        Ok("null".to_owned())
    })?;
    Ok(found)
}

/// The payload with every reference replaced. A field that is not there is `null`, or an error if
/// it `must_be_there`.
///
/// # Errors
/// What is missing.
pub fn fill(payload: &str, results: &Results, must_be_there: bool) -> Result<String, String> {
    rewrite(payload, 0, &mut |reference| {
        let Reference { branch, field } = reference;
        let mut known = results.iter().filter(|(name, _)| **name == *branch);
        let result = known.next().and_then(|(_, result)| result.as_deref());
        match result.and_then(|result| at_pointer(result, &field)) {
            Some(found) => Ok(found),
            None if must_be_there => {
                Err(format!("the result of {branch:?} has no field {field:?}"))
            }
            None => Ok("null".to_owned()),
        }
    })
}

type Replace<'a> = dyn FnMut(Reference) -> Result<String, String> + 'a;

fn rewrite(json: &str, depth: usize, replace: &mut Replace<'_>) -> Result<String, String> {
    let text = json.trim();
    if depth > DEPTH_MAX {
        return Err(format!("the payload is nested deeper than {DEPTH_MAX}"));
    }
    if !text.contains(MARK) {
        return Ok(text.to_owned());
    }
    let unreadable = |error: serde_json::Error| format!("the payload is not JSON: {error}");
    match text.as_bytes().first() {
        Some(b'{') => {
            let Members(members) = serde_json::from_str(text).map_err(unreadable)?;
            if let [(MARK, reference)] = &*as_texts(&members) {
                let reference = serde_json::from_str(reference.get());
                let reference = reference.map_err(|error| format!("a $result: {error}"))?;
                return replace(reference);
            }
            let mut parts = Vec::with_capacity(members.len());
            for (name, value) in &members {
                let name = serde_json::to_string(name).map_err(unreadable)?;
                parts.push(format!("{name}:{}", rewrite(value.get(), depth + 1, replace)?));
            }
            Ok(format!("{{{}}}", parts.join(",")))
        }
        Some(b'[') => {
            let items: Vec<&RawValue> = serde_json::from_str(text).map_err(unreadable)?;
            let items = items.into_iter().map(|item| rewrite(item.get(), depth + 1, replace));
            Ok(format!("[{}]", items.collect::<Result<Vec<_>, _>>()?.join(",")))
        }
        _ => Ok(text.to_owned()), // A plain value that happens to hold the mark in a text.
    }
}

fn as_texts<'a>(members: &'a [(String, &'a RawValue)]) -> Vec<(&'a str, &'a RawValue)> {
    members.iter().map(|(name, value)| (name.as_str(), *value)).collect()
}

/// What a JSON pointer names in a JSON text, as it is written there.
fn at_pointer(json: &str, pointer: &str) -> Option<String> {
    let mut here: &str = json.trim();
    let rest = pointer.strip_prefix('/').or_else(|| pointer.is_empty().then_some(""))?;
    if pointer.is_empty() {
        return Some(here.to_owned());
    }
    for token in rest.split('/') {
        let token = token.replace("~1", "/").replace("~0", "~");
        here = match here.as_bytes().first()? {
            b'{' => {
                let Members(members) = serde_json::from_str(here).ok()?;
                members.into_iter().rev().find(|(name, _)| *name == token)?.1.get()
            }
            b'[' => {
                let items: Vec<&RawValue> = serde_json::from_str(here).ok()?;
                items.get(token.parse::<usize>().ok()?)?.get()
            }
            _ => return None, // A plain value has no fields.
        };
    }
    Some(here.to_owned())
}

/// An object's members in their order, each value as it is written.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MembersVisitor(PhantomData)).map(Self)
    }
}

struct MembersVisitor<'a>(PhantomData<&'a ()>);

impl<'de: 'a, 'a> Visitor<'de> for MembersVisitor<'a> {
    type Value = Vec<(String, &'a RawValue)>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = map.next_entry()? {
            members.push(member);
        }
        Ok(members)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(payload: &str, must_be_there: bool) -> Result<String, String> {
        let result = r#"{"id":7.10,"list":[1,{"a/b":"x"}],"none":null}"#;
        let results = [("reserve".into(), Some(result.into())), ("silent".into(), None)];
        fill(payload, &results, must_be_there)
    }

    #[test]
    fn fields_take_the_place_of_references_and_nothing_else_changes() {
        let payload = r#"{"b": {"$result":{"branch":"reserve","field":"/id"}}, "a": 1.50}"#;
        assert_eq!(filled(payload, true).unwrap(), r#"{"b":7.10,"a":1.50}"#);
        let payload = r#"[{"$result":{"branch":"reserve","field":"/list/1/a~1b"}},"$result"]"#;
        assert_eq!(filled(payload, true).unwrap(), r#"["x","$result"]"#);
        let whole = r#"{"$result":{"branch":"reserve"}}"#;
        assert!(filled(whole, true).unwrap().starts_with(r#"{"id":7.10"#));
        assert_eq!(filled(r#"{"x": 1 }"#, true).unwrap(), r#"{"x": 1 }"#);
    }

    #[test]
    fn what_is_missing_is_null_or_an_error() {
        for field in ["/nothing", "/list/9", "/id/x", "id"] {
            let payload = format!(r#"{{"$result":{{"branch":"reserve","field":"{field}"}}}}"#);
            assert_eq!(filled(&payload, false).unwrap(), "null", "{field}");
            assert!(filled(&payload, true).unwrap_err().contains("reserve"), "{field}");
        }
        let silent = r#"{"$result":{"branch":"silent"}}"#;
        assert_eq!(filled(silent, false).unwrap(), "null");
    }

    #[test]
    fn names_are_found_once_and_mistakes_are_named() {
        let payload = r#"[{"$result":{"branch":"b"}},{"x":{"$result":{"branch":"a"}}},
            {"$result":{"branch":"b","field":"/x"}}]"#;
        assert_eq!(names(payload).unwrap(), ["b", "a"]);
        assert_eq!(names("{}").unwrap(), Vec::<String>::new());
        for wrong in [r#"{"$result":1}"#, r#"{"$result":{"brunch":"a"}}"#] {
            assert!(names(wrong).unwrap_err().contains("$result"), "{wrong}");
        }
    }
}
