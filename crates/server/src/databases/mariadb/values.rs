//! Decides how JSON becomes a parameter of MariaDB's, and a field that it gives back JSON.
//!
//! Whole numbers, floats and booleans travel as numbers, all else as text. Of what comes back,
//! whole numbers and floats are numbers; exact decimals, times, bytes (base64) and all else are
//! texts, so that nothing is rounded.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use mysql_async::consts::ColumnType;
use mysql_async::{Column, Row, Value as Field};
use serde_json::{Map, Value};

use crate::databases::calendar;

/// The character set of columns that hold bytes and not text.
const BINARY: u16 = 63;

/// A parameter.
pub(super) fn parameter(value: &Value) -> Field {
    match value {
        Value::Null => Field::NULL,
        Value::Bool(truth) => Field::Int(i64::from(*truth)),
        Value::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
            (Some(number), ..) => Field::Int(number),
            (None, Some(number), _) => Field::UInt(number),
            (None, None, Some(number)) => Field::Double(number),
            (None, None, None) => Field::from(number.to_string()),
        },
        Value::String(text) => Field::from(text.as_str()),
        Value::Array(_) | Value::Object(_) => Field::from(value.to_string()),
    }
}

/// A row as an object, its columns' names the members.
pub(super) fn row(row: Row) -> Value {
    let columns = row.columns();
    let mut object = Map::new();
    for (column, value) in columns.iter().zip(row.unwrap_raw()) {
        let value = value.map_or(Value::Null, |value| field(column, value));
        object.insert(column.name_str().into_owned(), value);
    }
    Value::Object(object)
}

fn field(column: &Column, value: Field) -> Value {
    match value {
        Field::NULL => Value::Null,
        Field::Int(number) => number.into(),
        Field::UInt(number) => number.into(),
        Field::Float(number) => float(number.into()),
        Field::Double(number) => float(number),
        Field::Bytes(bytes) => bytes_or_text(column, bytes),
        Field::Date(year, month, day, hour, minute, second, us) => {
            let date = format!("{year:04}-{month:02}-{day:02}");
            if column.column_type() == ColumnType::MYSQL_TYPE_DATE {
                return date.into();
            }
            let seconds = (i64::from(hour) * 60 + i64::from(minute)) * 60 + i64::from(second);
            format!("{date}T{}", calendar::time(seconds * 1_000_000 + i64::from(us))).into()
        }
        Field::Time(negative, days, hours, minutes, seconds, us) => {
            let hours = i64::from(days) * 24 + i64::from(hours);
            let seconds = (hours * 60 + i64::from(minutes)) * 60 + i64::from(seconds);
            let sign = if negative { "-" } else { "" };
            format!("{sign}{}", calendar::time(seconds * 1_000_000 + i64::from(us))).into()
        }
    }
}

fn bytes_or_text(column: &Column, bytes: Vec<u8>) -> Value {
    let decimal = matches!(
        column.column_type(),
        ColumnType::MYSQL_TYPE_NEWDECIMAL | ColumnType::MYSQL_TYPE_DECIMAL
    );
    if column.character_set() == BINARY && !decimal {
        return BASE64.encode(bytes).into();
    }
    match String::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(error) => BASE64.encode(error.into_bytes()).into(),
    }
}

/// A number of JSON, or a text where JSON has no such number.
fn float(number: f64) -> Value {
    serde_json::Number::from_f64(number).map_or_else(|| number.to_string().into(), Value::Number)
}
