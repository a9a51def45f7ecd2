//! Whole transactions as recovery wants them: what a record makes is made where it is read, so that
//! whoever takes it in has only to put it into its place. What is refused, and why, is the same as
//! in `decode_record`.

use super::{check_branches, get_branch_plan, get_observations, get_options, get_start, snapshot};
use crate::shared::Shared;
use crate::wire::Reader;
use crate::{
    BranchPlan, DecodeError, Fact, Millis, Options, Plan, RecordHead, Transaction, TransactionId,
};

/// Reads records for [`crate::Replay`], and what was packed ([`crate::PackedTransaction`]). It
/// remembers what many have in common, and keeps that once.
#[derive(Clone, Debug, Default)]
pub struct RecordReader {
    pub(super) shared: Shared,
}

/// All that a record says of a transaction, read from the one that begins it or writes it anew.
#[derive(Debug)]
pub struct Whole {
    /// Of which one; until it is taken from here, last of all.
    pub(crate) id: Option<TransactionId>,
    pub(crate) at: Millis,
    /// Whether it begins here.
    pub(crate) begins: bool,
    /// How the transaction's own id spreads: the transaction itself need not be looked at.
    pub(crate) spread: u64,
    /// The transaction, dormant; until it is taken from here.
    pub(crate) transaction: Option<Box<Transaction>>,
}

impl Whole {
    /// Of which transaction, unless it is taken in already.
    #[must_use]
    pub const fn transaction(&self) -> Option<&TransactionId> {
        self.id.as_ref()
    }
}

impl RecordReader {
    /// Reads a record that says all of a transaction; `None` for any other. Takes any bytes, as
    /// [`crate::decode_record`] does.
    ///
    /// # Errors
    /// [`DecodeError`] for bytes that no known version writes.
    pub fn whole(&mut self, bytes: &[u8]) -> Option<Result<Whole, DecodeError>> {
        RecordHead::is_whole(bytes).then(|| self.read(bytes))
    }

    fn read(&mut self, bytes: &[u8]) -> Result<Whole, DecodeError> {
        let mut reader = Reader::sharing(bytes, &mut self.shared);
        let (id, at) = get_start(&mut reader)?;
        let begins = reader.byte("fact")? == 1;
        let transaction = if begins {
            let begun = get_branches(&mut reader, snapshot::get_planned, |branch| &*branch.plan)?;
            let options = reader.common_options(begun.options);
            let branches = (begun.open, begun.branches);
            dormant(Transaction::new(id.clone(), at, begun.fingerprint, branches, options))
        } else {
            dormant(snapshot::get(&mut reader)?)
        };
        get_observations(&mut reader)?; // Of no use: the transaction holds its own.
        reader.end()?;
        let spread = transaction.id.spread();
        Ok(Whole { id: Some(id), at, begins, spread, transaction: Some(transaction) })
    }
}

/// As it is until it is taken up, in no more room than it needs.
fn dormant(mut transaction: Transaction) -> Box<Transaction> {
    transaction.branches.shrink_to_fit();
    Box::new(Transaction { dormant: true, ..transaction })
}

/// What a beginning says, with its branches as they are wanted.
struct Begun<T> {
    fingerprint: u128,
    options: Options,
    branches: Vec<T>,
    open: bool,
}

fn get_branches<T>(
    reader: &mut Reader<'_>,
    get: impl Fn(&mut Reader<'_>) -> Result<T, DecodeError>,
    plan: impl Fn(&T) -> &BranchPlan,
) -> Result<Begun<T>, DecodeError> {
    let fingerprint = u128::from_le_bytes(reader.fixed("fingerprint")?);
    let options = get_options(reader)?;
    let branches = reader.list("branches", get)?;
    let open = reader.since(2) && reader.flag("open")?;
    check_branches(branches.iter().map(plan), open)?;
    Ok(Begun { fingerprint, options, branches, open })
}

pub(super) fn get_begun(reader: &mut Reader<'_>) -> Result<Fact, DecodeError> {
    let Begun { fingerprint, options, branches, open } =
        get_branches(reader, get_branch_plan, |plan| plan)?;
    Ok(Fact::Begun { fingerprint, plan: Box::new(Plan { open, branches, options }) })
}
