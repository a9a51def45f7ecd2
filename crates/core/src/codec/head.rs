//! How every record begins, whatever fact follows: enough to know whose it is.

use super::{RECORD_VERSION, get_id};
use crate::wire::Reader;
use crate::{Millis, TransactionId};

/// What every record begins with, whatever fact follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordHead {
    /// Of which transaction.
    pub transaction: TransactionId,
    /// When it was written.
    pub at: Millis,
    /// Whether everything that is known of the transaction stands in it.
    pub whole: bool,
}

impl RecordHead {
    /// Whether a record seems to say everything that is known of its transaction.
    pub(crate) fn is_whole(bytes: &[u8]) -> bool {
        let mut reader = Reader::new(bytes);
        let number = reader.byte("version").and_then(|_| {
            reader.bytes("transaction id")?;
            reader.number("time")?;
            reader.byte("fact")
        });
        matches!(number, Ok(1 | 6))
    }
}

/// Reads only how a record begins; nothing is known of the rest. `None`: not even that.
#[must_use]
pub fn decode_head(bytes: &[u8]) -> Option<RecordHead> {
    let mut reader = Reader::new(bytes);
    let version = reader.byte("version").ok()?;
    if !(1..=RECORD_VERSION).contains(&version) {
        return None;
    }
    let transaction = get_id(&mut reader).ok()?;
    let at = reader.number("time").ok()?;
    let whole = matches!(reader.byte("fact").ok()?, 1 | 6);
    Some(RecordHead { transaction, at, whole })
}
