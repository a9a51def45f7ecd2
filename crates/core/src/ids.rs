//! Decides which names are allowed for transactions, branches and anything else that ends up in
//! headers, logs and SQL. Who chooses them is left to the driver.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use crate::splitmix64;

/// The longest id or branch name, in bytes.
pub const ID_BYTES_MAX: usize = 128;

/// The name of a transaction: 1 to 128 characters of `A-Z a-z 0-9 . _ : -`.
///
/// Cloning is cheap, and so is comparing: ids are ordered by [`TransactionId::spread`] first, and
/// by name only where that is the same. The order means nothing but is the same everywhere.
///
/// An id that was used never gets a second life within the retention time.
///
/// ```
/// use unanimity_core::TransactionId;
/// assert!(TransactionId::new("order-4711").is_ok());
/// assert!(TransactionId::new("two words").is_err());
/// ```
#[derive(Clone, Eq, PartialOrd, Ord)]
pub struct TransactionId {
    spread: u64,
    name: Arc<str>,
}

/// The bits of the name, spread evenly: names that were made one after the other begin alike, and a
/// comparison of names would read most of both, each time.
pub(crate) fn spread(name: &str) -> u64 {
    let (words, rest) = name.as_bytes().as_chunks::<8>();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    let words = words.iter().chain(std::iter::once(&last));
    words.fold(name.len() as u64, |state, word| splitmix64(state ^ u64::from_le_bytes(*word)))
}

/// Most that are equal are in the same place, and need not be read.
impl PartialEq for TransactionId {
    fn eq(&self, other: &Self) -> bool {
        self.spread == other.spread
            && (Arc::ptr_eq(&self.name, &other.name) || self.name == other.name)
    }
}

impl Hash for TransactionId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.spread.hash(state);
    }
}

impl TransactionId {
    /// Checks and wraps a name.
    ///
    /// # Errors
    /// [`IdError`] says which character or length was wrong.
    pub fn new(name: &str) -> Result<Self, IdError> {
        Self::from_shared(Arc::from(name))
    }

    /// Checks and wraps a name that is shared already, without copying it.
    ///
    /// # Errors
    /// As [`TransactionId::new`].
    pub fn from_shared(name: Arc<str>) -> Result<Self, IdError> {
        check_id(&name)?;
        Ok(Self { spread: spread(&name), name })
    }

    /// 64 evenly spread bits that follow from the name: the same for the same name in any process,
    /// of any version that writes the same order. Nothing durable may rest on it.
    #[must_use]
    pub const fn spread(&self) -> u64 {
        self.spread
    }

    /// This name, spreading as another does: for tests of what happens then.
    #[cfg(test)]
    pub(crate) fn spreading_as(&self, other: &Self) -> Self {
        Self { spread: other.spread, name: self.to_shared() }
    }

    /// The id that spreads so and has this name. Both must come from one id.
    pub(crate) const fn from_parts(spread: u64, name: Arc<str>) -> Self {
        Self { spread, name }
    }

    /// What comes before every id that spreads so, and after every other before: no id itself.
    pub(crate) fn first_that_spreads(spread: u64) -> Self {
        Self { spread, name: Arc::default() }
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.name
    }

    /// The name, of an id that nobody else needs.
    #[must_use]
    pub fn into_shared(self) -> Arc<str> {
        self.name
    }

    /// The name, shared.
    #[must_use]
    pub fn to_shared(&self) -> Arc<str> {
        Arc::clone(&self.name)
    }
}

impl fmt::Display for TransactionId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.name)
    }
}

impl fmt::Debug for TransactionId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.name)
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

/// Which bytes may stand in a name.
const ALLOWED: [bool; 256] = {
    let mut allowed = [false; 256];
    let mut byte = 0_u8;
    while byte < 128 {
        allowed[byte as usize] =
            byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b':' | b'-');
        byte += 1;
    }
    allowed
};

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
    if name.as_bytes().iter().fold(true, |good, byte| good & ALLOWED[usize::from(*byte)]) {
        return Ok(());
    }
    match name.chars().find(|c| !c.is_ascii() || !ALLOWED[*c as usize]) {
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
