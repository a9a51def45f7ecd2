//! Holds an answer against the API's description: its status must be listed, its type too, and a
//! JSON body must have the fields that its schema names, all of them and no others.

use serde_json::{Map, Value};

use crate::ask::Answer;

/// Panics if the description does not allow this answer.
pub fn check(description: &Value, method: &str, path: &str, answer: &Answer) {
    let place = format!("{method} {path} answered {} {}", answer.status, answer.text());
    let path = path.split('?').next().unwrap_or_default();
    let Some(item) = item(description, path) else {
        assert_eq!(answer.status, 404, "not described: {place}");
        return;
    };
    let Some(operation) = item.get(method.to_lowercase()) else {
        assert_eq!(answer.status, 405, "not described: {place}");
        assert!(!answer.header("allow").is_empty(), "which methods are allowed? {place}");
        return;
    };
    let Some(response) = operation["responses"].get(answer.status.to_string()) else {
        panic!("this status is not described: {place}");
    };
    let media = answer.header("content-type").split(';').next().unwrap_or_default().trim();
    let Some(content) = response["content"].get(media) else {
        panic!("the type {media} is not described: {place}");
    };
    if media.ends_with("json")
        && let Some(mistake) = mistake(description, &content["schema"], &answer.json(), "")
    {
        panic!("{mistake}: {place}");
    }
}

/// What the description says of a path.
fn item<'a>(description: &'a Value, path: &str) -> Option<&'a Value> {
    let fits = |template: &str| {
        let (wanted, found) = (template.split('/'), path.split('/'));
        wanted.clone().count() == found.clone().count()
            && wanted.zip(found).all(|(want, have)| want == have || is_name(want, have))
    };
    let paths = description["paths"].as_object()?;
    paths.iter().find(|(template, _)| fits(template)).map(|(_, item)| item)
}

fn is_name(template: &str, segment: &str) -> bool {
    template.starts_with('{') && !segment.is_empty()
}

/// The first thing in a value that its schema does not allow.
fn mistake(all: &Value, schema: &Value, value: &Value, place: &str) -> Option<String> {
    if let Some(name) = schema["$ref"].as_str() {
        let name = name.rsplit('/').next().unwrap_or_default();
        return match all["components"]["schemas"].get(name) {
            Some(schema) => mistake(all, schema, value, place),
            None => Some(format!("{place}: there is no schema {name}")),
        };
    }
    if let Some(choices) = schema["oneOf"].as_array() {
        let mistakes: Vec<_> =
            choices.iter().map(|choice| mistake(all, choice, value, place)).collect();
        let fits = mistakes.iter().any(Option::is_none);
        return (!fits).then(|| format!("{place}: fits none: {mistakes:?}"));
    }
    if !has_type(schema, value) {
        return Some(format!("{place}: {value} is not {}", schema["type"]));
    }
    match value {
        Value::Object(fields) => in_object(all, schema, fields, place),
        Value::Array(values) => values.iter().enumerate().find_map(|(index, value)| {
            mistake(all, &schema["items"], value, &format!("{place}[{index}]"))
        }),
        Value::String(_) => match schema["enum"].as_array() {
            Some(words) if !words.contains(value) => Some(format!("{place}: {value} is no word")),
            Some(_) | None => None,
        },
        Value::Null | Value::Bool(_) | Value::Number(_) => None,
    }
}

fn has_type(schema: &Value, value: &Value) -> bool {
    let is = |name: &str| match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => false,
    };
    match &schema["type"] {
        Value::String(name) => is(name),
        Value::Array(names) => names.iter().any(|name| name.as_str().is_some_and(is)),
        _ => true, // Anything, or put together from parts.
    }
}

fn in_object(
    all: &Value,
    schema: &Value,
    fields: &Map<String, Value>,
    place: &str,
) -> Option<String> {
    let (mut properties, mut required) = (Map::new(), Vec::new());
    gather(all, schema, &mut properties, &mut required);
    if properties.is_empty() {
        return None; // Any object.
    }
    let missing = required.iter().find(|name| !fields.contains_key(*name));
    if let Some(name) = missing {
        return Some(format!("{place}.{name} is missing"));
    }
    fields.iter().find_map(|(name, value)| match properties.get(name) {
        Some(schema) => mistake(all, schema, value, &format!("{place}.{name}")),
        None => Some(format!("{place}.{name} is not described")),
    })
}

/// Gathers what an object may have and must have, over all parts that it is put together from.
fn gather(
    all: &Value,
    schema: &Value,
    properties: &mut Map<String, Value>,
    required: &mut Vec<String>,
) {
    if let Some(name) = schema["$ref"].as_str() {
        let name = name.rsplit('/').next().unwrap_or_default();
        gather(all, &all["components"]["schemas"][name], properties, required);
    }
    for part in schema["allOf"].as_array().into_iter().flatten() {
        gather(all, part, properties, required);
    }
    properties.extend(schema["properties"].as_object().cloned().unwrap_or_default());
    let names = schema["required"].as_array().into_iter().flatten();
    required.extend(names.filter_map(|name| name.as_str().map(str::to_owned)));
}
