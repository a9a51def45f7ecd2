//! Decides how settings are read from each of the three places, and what a message says about a
//! setting that is unknown, of the wrong type, or out of bounds.

use std::path::{Path, PathBuf};

use super::databases;
use super::keys::Kind;
use super::{
    Config, ENV_NOT_SETTINGS, ENV_PREFIX, KEYS, Key, LogFormat, Secret, TOKEN_CHARACTERS_MIN,
};
use crate::outbound::Policy;

/// Why the configuration cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {problem}")]
pub struct ConfigError {
    /// Where it was said: a file and key, a variable of the environment, a flag.
    pub place: String,
    /// What is wrong and what to do about it.
    pub problem: String,
}

impl ConfigError {
    pub(super) fn new(place: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { place: place.into(), problem: problem.into() }
    }
}

/// A value as it was said.
enum Said {
    /// In the file, with its type.
    Typed(toml::Value),
    /// In the environment or by a flag.
    Text(String),
}

impl Config {
    pub(super) fn read_file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let file = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|error| ConfigError::new(&file, format!("cannot be read: {error}")))?;
        self.read_text(&file, &text)
    }

    /// Takes over what a file's text says.
    pub(super) fn read_text(&mut self, file: &str, text: &str) -> Result<(), ConfigError> {
        let table: toml::Table = text.parse().map_err(|error| syntax(file, text, &error))?;
        let mut said = Vec::new();
        for (section, values) in table {
            let place = format!("{file}: {section}");
            if section == "databases" {
                self.databases = databases::read(file, values, &|name| std::env::var(name).ok())?;
                continue;
            }
            if !KEYS.iter().any(|key| key.section == section) {
                return Err(unknown(&place, &section, KEYS.iter().map(|key| key.section.into())));
            }
            let toml::Value::Table(values) = values else {
                return Err(ConfigError::new(place, format!("is a section: write [{section}]")));
            };
            for (name, value) in values {
                let path = format!("{section}.{name}");
                let place = format!("{file}: {path}");
                let key = find_in_file(&path, &name)
                    .map_err(|problem| ConfigError::new(&place, problem))?;
                said.push((place, key, Said::Typed(value)));
            }
        }
        self.apply(said)
    }

    pub(super) fn read_env(
        &mut self,
        env: impl Iterator<Item = (String, String)>,
    ) -> Result<(), ConfigError> {
        let ours = env.filter(|(name, _)| {
            name.starts_with(ENV_PREFIX) && !ENV_NOT_SETTINGS.contains(&name.as_str())
        });
        let said = ours.map(|(name, value)| {
            let key = KEYS.iter().find(|key| key.env() == name);
            let key = key.ok_or_else(|| unknown(&name, &name, KEYS.iter().map(Key::env)))?;
            Ok((name, key, Said::Text(value)))
        });
        let said = said.collect::<Result<Vec<_>, ConfigError>>()?;
        self.apply(said)
    }

    pub(super) fn read_flags(&mut self, flags: Vec<(String, String)>) -> Result<(), ConfigError> {
        let said = flags.into_iter().map(|(name, value)| {
            let name = name.trim_start_matches('-').to_owned();
            let place = format!("--{name}");
            let key = KEYS.iter().find(|key| key.flag() == name);
            let key = key.ok_or_else(|| unknown(&place, &name, KEYS.iter().map(Key::flag)))?;
            Ok((place, key, Said::Text(value)))
        });
        let said = said.collect::<Result<Vec<_>, ConfigError>>()?;
        self.apply(said)
    }

    /// Takes over what was said in one place. There the token may be said once; in a place that
    /// wins it may be said again, in either way.
    fn apply(&mut self, said: Vec<(String, &Key, Said)>) -> Result<(), ConfigError> {
        let tokens: Vec<&String> = said
            .iter()
            .filter(|(_, key, _)| matches!(key.kind, Kind::Secret(_) | Kind::File(_)))
            .map(|(place, _, _)| place)
            .collect();
        if let [_, second] = tokens.as_slice() {
            let problem = "token and token_file say the same thing twice; keep one of them";
            return Err(ConfigError::new(*second, problem));
        }
        if !tokens.is_empty() {
            (self.security.token, self.security.token_file) = (None, None);
        }
        for (place, key, value) in said {
            set(self, key, value).map_err(|problem| ConfigError::new(place, problem))?;
        }
        Ok(())
    }

    /// Reads the token's file and checks what no setting can be checked for alone.
    pub(super) fn finish(&mut self) -> Result<(), ConfigError> {
        if let Some(path) = &self.security.token_file {
            self.security.token = Some(read_token(path)?);
        }
        let allow = self.participants.allow.iter().map(String::as_str);
        Policy::parse(allow).map_err(|problem| ConfigError::new("participants.allow", problem))?;
        if self.retry.retry_delay_ms > self.retry.retry_delay_max_ms {
            let problem = format!(
                "is {}, which is more than retry.retry_delay_max_ms = {}",
                self.retry.retry_delay_ms, self.retry.retry_delay_max_ms
            );
            return Err(ConfigError::new("retry.retry_delay_ms", problem));
        }
        let address = self.listen.address;
        if !address.ip().to_canonical().is_loopback() && self.security.token.is_none() {
            let problem = format!(
                "other machines can reach {address}, and no token is set: anybody there could \
                 begin transactions. Set a token (security.token_file, or UNANIMITY_TOKEN in the \
                 environment), or listen on 127.0.0.1:{}",
                address.port()
            );
            return Err(ConfigError::new("listen.address", problem));
        }
        Ok(())
    }
}

/// Gives a setting the value that was said.
fn set(config: &mut Config, key: &Key, said: Said) -> Result<(), String> {
    let wrong =
        |found: &Said| format!("must be {}, and is {}", key.expectation(), found.described());
    match (&key.kind, said) {
        (Kind::Number(least, most, field), said) => {
            let number = said.number().filter(|number| (least..=most).contains(&number));
            *field(config) = number.ok_or_else(|| wrong(&said))?;
        }
        (Kind::List(field), Said::Text(text)) => {
            let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
            *field(config) = entries.map(str::to_owned).collect();
        }
        (Kind::List(field), said) => {
            *field(config) = said.texts().ok_or_else(|| wrong(&said))?;
        }
        (Kind::Secret(field), said) => {
            // Never `wrong`, which would show it.
            let text = said.text().ok_or("must be a text")?;
            *field(config) = Some(checked_token(text)?);
        }
        (kind, said) => {
            let text = said.text().filter(|text| !text.is_empty()).ok_or_else(|| wrong(&said))?;
            set_text(config, kind, text).ok_or_else(|| wrong(&said))?;
        }
    }
    Ok(())
}

/// The settings that are texts of some form; `None` if it is not that form.
fn set_text(config: &mut Config, kind: &Kind, text: &str) -> Option<()> {
    match kind {
        Kind::Address(field) => {
            let numeric = text.replace("localhost:", "127.0.0.1:");
            *field(config) = numeric.parse().ok()?;
        }
        Kind::Text(field) => text.clone_into(field(config)),
        Kind::Folder(field) => *field(config) = PathBuf::from(text),
        Kind::File(field) => *field(config) = Some(PathBuf::from(text)),
        Kind::Format(field) => {
            let formats = [LogFormat::Text, LogFormat::Json];
            *field(config) = formats.into_iter().find(|format| format.as_str() == text)?;
        }
        Kind::Number(..) | Kind::List(_) | Kind::Secret(_) => return None,
    }
    Some(())
}

impl Said {
    fn number(&self) -> Option<u64> {
        match self {
            Self::Typed(toml::Value::Integer(number)) => u64::try_from(*number).ok(),
            Self::Typed(_) => None,
            Self::Text(text) if text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse().ok(),
            Self::Text(_) => None,
        }
    }

    fn text(&self) -> Option<&str> {
        match self {
            Self::Typed(value) => value.as_str(),
            Self::Text(text) => Some(text),
        }
    }

    fn texts(&self) -> Option<Vec<String>> {
        let Self::Typed(toml::Value::Array(values)) = self else { return None };
        values.iter().map(|value| value.as_str().map(str::to_owned)).collect()
    }

    fn described(&self) -> String {
        match self {
            Self::Typed(value @ (toml::Value::Table(_) | toml::Value::Array(_))) => {
                format!("an {}", value.type_str())
            }
            Self::Typed(value) => format!("{value} ({})", value.type_str()),
            Self::Text(text) => format!("{text:?}"),
        }
    }
}

fn read_token(path: &Path) -> Result<Secret, ConfigError> {
    let place = format!("security.token_file {}", path.display());
    let text = std::fs::read_to_string(path)
        .map_err(|error| ConfigError::new(&place, format!("cannot be read: {error}")))?;
    checked_token(text.trim()).map_err(|problem| ConfigError::new(place, problem))
}

/// A token must fit into a header and be hard to guess.
fn checked_token(text: &str) -> Result<Secret, String> {
    if text.len() < TOKEN_CHARACTERS_MIN {
        return Err(format!(
            "has fewer than {TOKEN_CHARACTERS_MIN} characters; a good one comes from: openssl \
            rand -hex 32"
        ));
    }
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("may hold only visible ASCII characters, and no space".into());
    }
    Ok(Secret::new(text))
}

/// Where the file stops being TOML. The line itself is not shown: it may hold the token.
fn syntax(file: &str, text: &str, error: &toml::de::Error) -> ConfigError {
    let before = error.span().and_then(|span| text.get(..span.start));
    let place = before.map_or_else(String::new, |before| {
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        format!(", line {line}, column {column}")
    });
    ConfigError::new(format!("{file}{place}"), format!("is not TOML: {}", error.message()))
}

/// The setting of that name; one that stands in the wrong section is told where it belongs.
fn find_in_file(path: &str, name: &str) -> Result<&'static Key, String> {
    if let Some(key) = KEYS.iter().find(|key| key.path() == path) {
        return Ok(key);
    }
    if let Some(key) = KEYS.iter().find(|key| key.name == name || key.word == name) {
        return Err(format!(
            "there is no such setting; it is {} in section [{}]",
            key.name, key.section
        ));
    }
    Err(unknown("", path, KEYS.iter().map(Key::path)).problem)
}

fn unknown(place: &str, name: &str, known: impl Iterator<Item = String>) -> ConfigError {
    let nearest = known.min_by_key(|known| distance(name, known));
    let hint = nearest.map(|nearest| format!("; did you mean {nearest}?")).unwrap_or_default();
    ConfigError::new(place, format!("there is no such setting{hint}"))
}

/// How many characters must be added, taken away or changed (Levenshtein).
fn distance(one: &str, other: &str) -> usize {
    let mut previous: Vec<usize> = (0..=other.len()).collect();
    for (row, a) in one.bytes().enumerate() {
        let mut current = vec![row + 1];
        for (column, b) in other.bytes().enumerate() {
            let changed = previous[column] + usize::from(!a.eq_ignore_ascii_case(&b));
            current.push(changed.min(previous[column + 1] + 1).min(current[column] + 1));
        }
        previous = current;
    }
    previous.last().copied().unwrap_or_default()
}
