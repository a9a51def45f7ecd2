//! Decides which names are allowed for transactions, branches and anything else that ends up in
//! headers, logs and SQL. Who chooses them is left to the driver.

use std::fmt;
use std::sync::Arc;

/// The longest id or branch name, in bytes.
pub const ID_BYTES_MAX: usize = 128;

/// The name of a transaction: 1 to 128 characters of `A-Z a-z 0-9 . _ : -`.
///
/// Cloning is cheap. An id that was used never gets a second life within the retention time.
///
/// ```
/// use unanimity_core::TransactionId;
/// assert!(TransactionId::new("order-4711").is_ok());
/// assert!(TransactionId::new("two words").is_err());
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TransactionId(Arc<str>);

impl TransactionId {
    /// Checks and wraps a name.
    ///
    /// # Errors
    /// [`IdError`] says which character or length was wrong.
    pub fn new(name: &str) -> Result<Self, IdError> {
        check_id(name)?;
        Ok(Self(Arc::from(name)))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TransactionId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Debug for TransactionId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Why a name was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IdError {
    /// No characters at all.
    Empty,
    /// More than [`ID_BYTES_MAX`] bytes; holds the length found.
    TooLong(usize),
    /// A character outside the allowed set; holds it.
    Character(char),
}

impl fmt::Display for IdError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => formatter.write_str("must not be empty"),
            Self::TooLong(bytes) => {
                write!(formatter, "has {bytes} bytes; at most {ID_BYTES_MAX} are allowed")
            }
            Self::Character(character) => write!(
                formatter,
                "contains {character:?}; only letters, digits and . _ : - are allowed"
            ),
        }
    }
}

impl std::error::Error for IdError {}

/// Says whether a name may be used as a transaction id or a branch name.
///
/// # Errors
/// [`IdError`] names the first thing wrong.
pub fn check_id(name: &str) -> Result<(), IdError> {
    if name.is_empty() {
        return Err(IdError::Empty);
    }
    if name.len() > ID_BYTES_MAX {
        return Err(IdError::TooLong(name.len()));
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | ':' | '-');
    match name.chars().find(|c| !allowed(*c)) {
        Some(character) => Err(IdError::Character(character)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, expected: Result<(), IdError>) {
        assert_eq!(check_id(name), expected, "{name:?}");
    }

    #[test]
    fn names_are_checked() {
        check("a", Ok(()));
        check("T-1:x.y_Z", Ok(()));
        check("", Err(IdError::Empty));
        check("a b", Err(IdError::Character(' ')));
        check("a/../b", Err(IdError::Character('/')));
        check("ä", Err(IdError::Character('ä')));
        check("x\n", Err(IdError::Character('\n')));
        check(&"x".repeat(128), Ok(()));
        check(&"x".repeat(129), Err(IdError::TooLong(129)));
    }
}
