//! Decides whether a stored batch is the one that belongs at a place: sound, of this shard, of this
//! position, and the successor of the batch before it. Both engines read through here; fetching the
//! bytes is left to them.

use std::path::Path;

use crate::batch::{BATCH_VERSION, Damage, Decoded, decode};
use crate::{Batch, JournalError, ShardId};

/// Where a shard stands in the storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tail {
    /// The first position kept.
    pub first: u64,
    /// The checksum of the batch before `first`, remembered when that one was forgotten.
    pub first_previous: u32,
    /// The next free position.
    pub next: u64,
    /// The checksum of the batch before `next`.
    pub checksum: u32,
}

impl Tail {
    /// Says whether `position` is one that a reader may start at or a truncation may end at.
    pub(crate) fn check_inside(
        &self,
        path: &Path,
        shard: ShardId,
        position: u64,
    ) -> Result<(), JournalError> {
        let found = position.clamp(self.first, self.next);
        if found == position {
            return Ok(());
        }
        Err(JournalError::Gap { path: path.to_owned(), shard, expected: position, found })
    }

    /// Says whether a batch may be appended at `position`.
    pub(crate) fn check_free(
        &self,
        path: &Path,
        shard: ShardId,
        position: u64,
    ) -> Result<(), JournalError> {
        if position == self.next {
            return Ok(());
        }
        Err(JournalError::Conflict { path: path.to_owned(), shard, position, next: self.next })
    }
}

/// Walks along a shard's batches and admits only the right next one.
pub(crate) struct Chain<'a> {
    path: &'a Path,
    shard: ShardId,
    next: u64,
    checksum: u32,
}

impl<'a> Chain<'a> {
    /// Starts before the batch at `next`, whose predecessor had `checksum`.
    pub(crate) const fn new(path: &'a Path, shard: ShardId, next: u64, checksum: u32) -> Self {
        Self { path, shard, next, checksum }
    }

    /// Takes the bytes that the storage keeps under `position`.
    pub(crate) fn admit<'b>(
        &mut self,
        position: u64,
        bytes: &'b [u8],
    ) -> Result<Batch<'b>, JournalError> {
        if position != self.next {
            return Err(JournalError::Gap {
                path: self.path.to_owned(),
                shard: self.shard,
                expected: self.next,
                found: position,
            });
        }
        let decoded = sound(self.path, self.shard, position, bytes)?;
        if decoded.previous_checksum != self.checksum {
            let detail = "it is sound, but does not follow the batch before it".to_owned();
            return Err(corrupt(self.path, self.shard, position, detail));
        }
        self.next += 1;
        self.checksum = decoded.checksum;
        Ok(Batch { position, records: decoded.records })
    }
}

/// Decodes a batch and checks that it is the one of `shard` and `position`; its neighbours are left
/// to [`Chain`].
pub(crate) fn sound<'a>(
    path: &Path,
    shard: ShardId,
    position: u64,
    bytes: &'a [u8],
) -> Result<Decoded<'a>, JournalError> {
    let decoded = decode(bytes).map_err(|damage| match damage {
        Damage::NewerVersion(found) => JournalError::NewerVersion {
            path: path.to_owned(),
            found: found.into(),
            supported: BATCH_VERSION.into(),
        },
        Damage::TooShort
        | Damage::Magic
        | Damage::Checksum
        | Damage::UnknownVersion(_)
        | Damage::Lengths => corrupt(path, shard, position, damage.to_string()),
    })?;
    if (decoded.shard, decoded.position) != (shard, position) {
        let detail = format!(
            "what is stored there belongs to shard {}, position {}",
            decoded.shard, decoded.position
        );
        return Err(corrupt(path, shard, position, detail));
    }
    Ok(decoded)
}

pub(crate) fn corrupt(path: &Path, shard: ShardId, position: u64, detail: String) -> JournalError {
    let place = format!("shard {shard}, position {position}");
    JournalError::Corrupt { path: path.to_owned(), place, detail }
}
