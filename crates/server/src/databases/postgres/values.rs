//! Decides how JSON becomes a parameter of PostgreSQL's, and a field that it gives back JSON.
//!
//! Parameters travel as text, which PostgreSQL reads as the type that the statement needs there, so
//! that a text that is no number of that type is PostgreSQL's error and not ours to guess. Fields
//! come in the binary format. Whole numbers, floats, booleans and JSON are JSON; exact decimals,
//! times, bytes (base64) and all else are texts, so that nothing is rounded.

use std::error::Error;
use std::fmt::Write;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::BytesMut;
use serde_json::{Map, Value};
use tokio_postgres::Row;
use tokio_postgres::types::{Format, FromSql, IsNull, Kind, ToSql, Type, to_sql_checked};

use crate::databases::calendar;

/// Days from 1970-01-01 to 2000-01-01, from which PostgreSQL counts.
const EPOCH_DAYS: i64 = 10_957;

type Failure = Box<dyn Error + Sync + Send>;

/// A parameter.
#[derive(Debug)]
pub(super) struct Parameter<'a>(pub(super) &'a Value);

impl ToSql for Parameter<'_> {
    fn to_sql(&self, wanted: &Type, out: &mut BytesMut) -> Result<IsNull, Failure> {
        let json = *wanted == Type::JSON || *wanted == Type::JSONB;
        let text = match self.0 {
            Value::Null => return Ok(IsNull::Yes),
            value if json => value.to_string(),
            Value::String(text) if *wanted == Type::BYTEA => {
                let bytes = BASE64.decode(text).map_err(|error| format!("no base64: {error}"))?;
                let mut hex = String::from("\\x");
                bytes.iter().try_for_each(|byte| write!(hex, "{byte:02x}"))?;
                hex
            }
            Value::String(text) => text.clone(),
            Value::Bool(_) | Value::Number(_) => self.0.to_string(),
            Value::Array(_) | Value::Object(_) => {
                return Err(format!("a list or an object is no value of type {wanted}").into());
            }
        };
        out.extend_from_slice(text.as_bytes());
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Text
    }

    to_sql_checked!();
}

/// A row as an object, its columns' names the members.
pub(super) fn row(row: &Row) -> Result<Value, tokio_postgres::Error> {
    let mut object = Map::new();
    for (index, column) in row.columns().iter().enumerate() {
        let Field(value) = row.try_get(index)?;
        object.insert(column.name().to_owned(), value);
    }
    Ok(Value::Object(object))
}

struct Field(Value);

impl<'a> FromSql<'a> for Field {
    fn from_sql(found: &Type, raw: &'a [u8]) -> Result<Self, Failure> {
        field(found, raw).map(Field)
    }

    fn from_sql_null(_: &Type) -> Result<Self, Failure> {
        Ok(Self(Value::Null))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

fn field(found: &Type, raw: &[u8]) -> Result<Value, Failure> {
    if let Kind::Domain(inner) = found.kind() {
        return field(inner, raw);
    }
    Ok(match *found {
        Type::BOOL => Value::Bool(raw.first().is_some_and(|byte| *byte != 0)),
        Type::INT2 | Type::INT4 | Type::INT8 => integer(raw)?.into(),
        Type::OID => u32::from_be_bytes(raw.try_into()?).into(),
        Type::FLOAT4 => float(f32::from_be_bytes(raw.try_into()?).into()),
        Type::FLOAT8 => float(f64::from_be_bytes(raw.try_into()?)),
        Type::NUMERIC => numeric(raw)?.into(),
        Type::BYTEA => BASE64.encode(raw).into(),
        Type::UUID => uuid::Uuid::from_slice(raw)?.to_string().into(),
        Type::JSON => serde_json::from_slice(raw)?,
        // One byte, the version, stands before the text.
        Type::JSONB => serde_json::from_slice(raw.get(1..).unwrap_or_default())?,
        Type::DATE => moment(integer(raw)?, i64::from(i32::MIN), i64::from(i32::MAX), |days| {
            calendar::date(days + EPOCH_DAYS)
        }),
        Type::TIME => calendar::time(integer(raw)?).into(),
        Type::TIMESTAMP => moment(integer(raw)?, i64::MIN, i64::MAX, since_epoch),
        Type::TIMESTAMPTZ => moment(integer(raw)?, i64::MIN, i64::MAX, |us| since_epoch(us) + "Z"),
        Type::TEXT | Type::VARCHAR | Type::BPCHAR | Type::NAME | Type::UNKNOWN => {
            std::str::from_utf8(raw)?.into()
        }
        _ if matches!(found.kind(), Kind::Enum(_)) => std::str::from_utf8(raw)?.into(),
        // Any other type would have to be understood from its binary form.
        _ => return Err(format!("a value of type {found}: select it as text (::text)").into()),
    })
}

fn since_epoch(us: i64) -> String {
    calendar::date_time(us.saturating_add(EPOCH_DAYS * calendar::DAY_US))
}

/// PostgreSQL's times may be infinite: its least and its greatest number.
fn moment(found: i64, least: i64, most: i64, write: impl Fn(i64) -> String) -> Value {
    if found == least {
        "-infinity".into()
    } else if found == most {
        "infinity".into()
    } else {
        write(found).into()
    }
}

fn integer(raw: &[u8]) -> Result<i64, Failure> {
    Ok(match raw.len() {
        2 => i16::from_be_bytes(raw.try_into()?).into(),
        4 => i32::from_be_bytes(raw.try_into()?).into(),
        _ => i64::from_be_bytes(raw.try_into()?),
    })
}

/// A number of JSON, or a text where JSON has no such number.
fn float(number: f64) -> Value {
    serde_json::Number::from_f64(number).map_or_else(|| number.to_string().into(), Value::Number)
}

/// An exact decimal: groups of four digits, with the place of the first group, a sign, and how many
/// digits stand after the point.
fn numeric(raw: &[u8]) -> Result<String, Failure> {
    let word = |index: usize| -> Result<i16, Failure> {
        let bytes = raw.get(index * 2..index * 2 + 2).ok_or("a numeric that is too short")?;
        Ok(i16::from_be_bytes(bytes.try_into()?))
    };
    let (groups, weight, scale) = (word(0)?, word(1)?, word(3)?);
    let sign = match word(2)?.cast_unsigned() {
        0x0000 => "",
        0x4000 => "-",
        0xD000 => return Ok("Infinity".into()),
        0xF000 => return Ok("-Infinity".into()),
        _ => return Ok("NaN".into()), // 0xC000
    };
    // The group whose first digit has the value 10000 to the power of `place`.
    let group = |place: i16| -> Result<i16, Failure> {
        let index = weight - place;
        if (0..groups).contains(&index) { word(4 + usize::try_from(index)?) } else { Ok(0) }
    };
    let mut text = String::from(sign);
    write!(text, "{}", group(weight.max(0))?)?;
    for place in (0..weight.max(0)).rev() {
        write!(text, "{:04}", group(place)?)?;
    }
    let mut fraction = String::new();
    let digits = usize::try_from(scale)?;
    for place in 1..=i16::try_from(digits.div_ceil(4))? {
        write!(fraction, "{:04}", group(-place)?)?;
    }
    fraction.truncate(digits);
    Ok(if fraction.is_empty() { text } else { format!("{text}.{fraction}") })
}
