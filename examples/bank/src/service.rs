//! Decides what the bank does with money. A debit reserves its amount in prepare, takes it in
//! commit and gives it free in rollback; a credit checks the account in prepare and pays in commit.
//! Execute moves the money at once, and compensate moves it back.
//!
//! What a branch has prepared or executed is kept in a row of its own, so commit, rollback and
//! compensate need no payload. That each of them runs at most once is the guard's business.
//!
//! What a payload may ask for and what an account can bear is decided here for `keyed` as well,
//! where accounts are locked rather than reserved from.

use std::sync::Arc;

use anyhow::bail;
use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};
use unanimity_sdk::{BranchContext, ResourceParticipant, ServiceResult, SqliteService, Vote};

use crate::faults::{Fault, Faults, Message};
use crate::journal;

/// The largest amount that one branch may move, in cents: ten thousand million.
pub const AMOUNT_MAX_CENTS: i64 = 1_000_000_000_000;
/// The largest balance that a credit may lead to, in cents. Credits that are prepared at the same
/// time may together go over it; nine million of the largest would be needed to overflow.
pub const BALANCE_MAX_CENTS: i64 = 1_000_000_000_000_000;

/// The reason of a no that only the fault `vote_no` gives.
pub(crate) const REFUSED_BY_CHANCE: &str = "this bank refuses by chance (the fault vote_no)";

const TABLES: &str = "
    CREATE TABLE account (
        id TEXT PRIMARY KEY,
        balance INTEGER NOT NULL,
        reserved INTEGER NOT NULL DEFAULT 0 CHECK (reserved >= 0)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE reservation (
        transaction_id TEXT NOT NULL,
        branch TEXT NOT NULL,
        account TEXT NOT NULL,
        amount INTEGER NOT NULL,
        PRIMARY KEY (transaction_id, branch)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE movement (
        transaction_id TEXT NOT NULL,
        branch TEXT NOT NULL,
        account TEXT NOT NULL,
        amount INTEGER NOT NULL,
        PRIMARY KEY (transaction_id, branch)
    ) STRICT, WITHOUT ROWID;";

/// What a branch asks of the bank.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Payload {
    /// The account, such as `A-17`.
    pub account: String,
    /// In cents: below 0 a debit, above 0 a credit.
    pub amount: i64,
    /// The account's version that the initiator has read: the branch is refused if it is another
    /// one by now. Not for a bank that reserves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<i64>,
    /// When the initiator first began this transfer, in milliseconds since the Unix epoch, so that
    /// it grows older where it has to be begun anew. Nothing to a bank that reserves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_ms: Option<u64>,
}

impl Payload {
    /// Reads a payload, or says what is wrong with it.
    pub(crate) fn read(payload: &[u8]) -> Result<Self, String> {
        let payload: Self = serde_json::from_slice(payload)
            .map_err(|error| format!("the payload cannot be read: {error}"))?;
        let amount = payload.amount;
        if amount == 0 || amount.unsigned_abs() > AMOUNT_MAX_CENTS.unsigned_abs() {
            let limit = AMOUNT_MAX_CENTS;
            return Err(format!("the amount {amount} must be 1 to {limit} cents, or minus that"));
        }
        Ok(payload)
    }

    /// Says whether an account with this balance, of which so much is reserved, can bear it.
    pub(crate) fn afford(&self, balance: i64, reserved: i64) -> Result<(), String> {
        let Self { account, amount, .. } = self;
        let free = balance - reserved;
        if free + amount < 0 && *amount < 0 {
            let needed = amount.unsigned_abs();
            return Err(format!("{account} has {free} cents free; {needed} are needed"));
        }
        if *amount > 0 && balance + amount > BALANCE_MAX_CENTS {
            return Err(format!("{account} cannot hold more than {BALANCE_MAX_CENTS} cents"));
        }
        Ok(())
    }
}

/// The bank's own part, behind the guard.
#[derive(Debug)]
pub struct AccountService {
    name: String,
    accounts: u32,
    balance_cents: i64,
    faults: Arc<Faults>,
    journal: bool,
}

impl AccountService {
    /// A bank whose new file begins with `accounts` accounts of `balance_cents` each.
    ///
    /// # Errors
    /// If the name or the balance cannot be used.
    pub fn new(
        name: &str,
        accounts: u32,
        balance_cents: i64,
        faults: Arc<Faults>,
    ) -> anyhow::Result<Self> {
        if let Err(error) = unanimity_sdk::check_id(name) {
            bail!("the bank's name {name:?} {error}");
        }
        if !(0..=BALANCE_MAX_CENTS).contains(&balance_cents) {
            bail!("the balance {balance_cents} must be 0 to {BALANCE_MAX_CENTS} cents");
        }
        let name = name.to_owned();
        Ok(Self { name, accounts, balance_cents, faults, journal: false })
    }

    /// The same with a journal for audits, or without one. A file that has one keeps it.
    #[must_use]
    pub fn with_journal(self, journal: bool) -> Self {
        Self { journal, ..self }
    }

    fn check(
        &self,
        database: &Connection,
        payload: &[u8],
    ) -> ServiceResult<Result<Payload, String>> {
        let payload = match Payload::read(payload) {
            Ok(payload) => payload,
            Err(reason) => return Ok(Err(reason)),
        };
        if payload.version.is_some() {
            return Ok(Err("this bank reserves, and its accounts have no versions".to_owned()));
        }
        let sql = "SELECT balance, reserved FROM account WHERE id = ?1";
        let mut statement = database.prepare_cached(sql)?;
        let found: rusqlite::Result<(i64, i64)> =
            statement.query_row([&payload.account], |row| Ok((row.get(0)?, row.get(1)?)));
        let Some((balance, reserved)) = found.optional()? else {
            return Ok(Err(self.unknown(&payload.account)));
        };
        Ok(payload.afford(balance, reserved).map(|()| payload))
    }

    pub(crate) fn unknown(&self, account: &str) -> String {
        format!("there is no account {account:?} in bank {}", self.name)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) const fn accounts(&self) -> u32 {
        self.accounts
    }

    pub(crate) const fn balance_cents(&self) -> i64 {
        self.balance_cents
    }

    pub(crate) fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Creates the tables and the accounts of a new file, and the journal.
    pub(crate) fn create(&self, database: &Connection) -> ServiceResult<()> {
        self.create_accounts(database)?;
        if self.journal {
            journal::create(database)?;
        }
        Ok(())
    }

    fn create_accounts(&self, database: &Connection) -> ServiceResult<()> {
        let sql = "SELECT count(*) FROM sqlite_schema WHERE name = 'account'";
        if database.query_row(sql, [], |row| row.get::<_, u32>(0))? > 0 {
            return Ok(());
        }
        // All in the one transaction that the SDK has begun: a crash leaves no half of it.
        database.execute_batch(TABLES)?;
        let mut insert = database.prepare("INSERT INTO account (id, balance) VALUES (?1, ?2)")?;
        for number in 1..=self.accounts {
            insert.execute(params![format!("{}-{number}", self.name), self.balance_cents])?;
        }
        Ok(())
    }

    /// Checks the payload and votes; what a yes needs is left to `work`.
    fn vote(
        &self,
        database: &Connection,
        branch: &BranchContext,
        payload: &[u8],
        work: impl FnOnce(&Payload) -> ServiceResult<()>,
    ) -> ServiceResult<Vote> {
        let message = Message::from(branch);
        self.faults.arm(&message);
        let payload = match self.check(database, payload)? {
            Ok(payload) => payload,
            Err(reason) => return Ok(Vote::No(reason)),
        };
        if self.faults.strikes(Fault::VoteNo, &message) {
            return Ok(Vote::no(REFUSED_BY_CHANCE));
        }
        work(&payload)?;
        Ok(Vote::Yes)
    }
}

impl SqliteService for AccountService {
    fn migrate(&self, database: &Connection) -> ServiceResult<()> {
        // A branch that the other kind of bank has prepared could not be committed by this one.
        let sql = "SELECT count(*) FROM sqlite_schema WHERE name = 'unanimity_lock'";
        if database.query_row(sql, [], |row| row.get::<_, u32>(0))? > 0 {
            let locks = ResourceParticipant::count_locks(database)?;
            if locks > 0 {
                let open = "accounts are still locked: open the file with --accounts-by locking";
                return Err(format!("{locks} {open} until they are decided").into());
            }
        }
        self.create(database)
    }

    fn prepare(
        &self,
        database: &Connection,
        branch: &BranchContext,
        payload: &[u8],
    ) -> ServiceResult<Vote> {
        self.vote(database, branch, payload, |payload| {
            let Payload { account, amount, .. } = payload;
            keep(database, "reservation", branch, account, *amount)?;
            change(database, account, 0, reserved_by(*amount))
        })
    }

    fn commit(&self, database: &Connection, branch: &BranchContext, _: &[u8]) -> ServiceResult<()> {
        self.faults.arm(&Message::from(branch));
        let (account, amount) = take(database, "reservation", branch)?;
        change(database, &account, amount, -reserved_by(amount))
    }

    fn rollback(
        &self,
        database: &Connection,
        branch: &BranchContext,
        _: &[u8],
    ) -> ServiceResult<()> {
        self.faults.arm(&Message::from(branch));
        let (account, amount) = take(database, "reservation", branch)?;
        change(database, &account, 0, -reserved_by(amount))
    }

    fn execute(
        &self,
        database: &Connection,
        branch: &BranchContext,
        payload: &[u8],
    ) -> ServiceResult<Vote> {
        self.vote(database, branch, payload, |payload| {
            let Payload { account, amount, .. } = payload;
            keep(database, "movement", branch, account, *amount)?;
            change(database, account, *amount, 0)
        })
    }

    /// Takes a credit back even where the money is spent: a compensation cannot be refused, so the
    /// account goes below 0 and a person has to look at it.
    fn compensate(
        &self,
        database: &Connection,
        branch: &BranchContext,
        _: &[u8],
    ) -> ServiceResult<()> {
        self.faults.arm(&Message::from(branch));
        let (account, amount) = take(database, "movement", branch)?;
        change(database, &account, -amount, 0)
    }
}

/// What a branch holds back until its decision: the amount of a debit.
pub(crate) const fn reserved_by(amount: i64) -> i64 {
    if amount < 0 { -amount } else { 0 }
}

fn keep(
    database: &Connection,
    table: &str,
    branch: &BranchContext,
    account: &str,
    amount: i64,
) -> ServiceResult<()> {
    let sql = format!("INSERT INTO {table} VALUES (?1, ?2, ?3, ?4)");
    let row = params![branch.transaction.as_str(), &*branch.branch, account, amount];
    database.prepare_cached(&sql)?.execute(row)?;
    Ok(())
}

/// Takes out what `keep` has put in.
fn take(
    database: &Connection,
    table: &str,
    branch: &BranchContext,
) -> ServiceResult<(String, i64)> {
    let sql = format!(
        "DELETE FROM {table} WHERE transaction_id = ?1 AND branch = ?2 RETURNING account, amount"
    );
    let key = params![branch.transaction.as_str(), &*branch.branch];
    let mut statement = database.prepare_cached(&sql)?;
    Ok(statement.query_row(key, |row| Ok((row.get(0)?, row.get(1)?)))?)
}

fn change(
    database: &Connection,
    account: &str,
    balance_cents: i64,
    reserved_cents: i64,
) -> ServiceResult<()> {
    let sql = "UPDATE account SET balance = balance + ?2, reserved = reserved + ?3 WHERE id = ?1";
    let changed =
        database.prepare_cached(sql)?.execute(params![account, balance_cents, reserved_cents])?;
    if changed == 1 { Ok(()) } else { Err(format!("the account {account} has gone").into()) }
}
