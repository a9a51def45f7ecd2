//! Decides what the bank does with money in a database server, as `service` does in SQLite: the
//! same reservations, the same movements, the same reasons. Many branches run here at the same
//! time, so what an account can bear is decided by the statement that changes it. Where the
//! database prepares the branch itself, there is nothing to reserve: the change waits for the
//! decision.
//!
//! The statements are left to `postgres` and `mariadb`.

mod mariadb;
mod postgres;

use unanimity_sdk::{BranchContext, ServiceResult, Vote};

use crate::faults::{Fault, Message};
use crate::service::{AccountService, Payload, REFUSED_BY_CHANCE, reserved_by};

/// The accounts of a bank, inside a local transaction.
pub(crate) trait Ledger: Send {
    /// An account's balance, and how much of it is reserved.
    fn balances(
        &mut self,
        account: &str,
    ) -> impl Future<Output = ServiceResult<Option<(i64, i64)>>> + Send;

    /// Changes an account if so much of it is free; whether it was changed.
    fn change(
        &mut self,
        account: &str,
        balance_cents: i64,
        reserved_cents: i64,
        free_cents: i64,
    ) -> impl Future<Output = ServiceResult<bool>> + Send;

    /// Keeps what a branch has prepared or executed.
    fn keep(
        &mut self,
        table: Table,
        branch: &BranchContext,
        account: &str,
        amount: i64,
    ) -> impl Future<Output = ServiceResult<()>> + Send;

    /// Takes out what `keep` has put in.
    fn take(
        &mut self,
        table: Table,
        branch: &BranchContext,
    ) -> impl Future<Output = ServiceResult<Option<(String, i64)>>> + Send;
}

/// Where a branch's move is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Table {
    Reservation,
    Movement,
}

/// Less than any account has free: nothing is asked for.
const NOTHING_NEEDED: i64 = i64::MIN;

impl AccountService {
    /// Reserves a debit; of a credit, only sees that the account can hold it.
    async fn prepare_in(
        &self,
        ledger: &mut impl Ledger,
        branch: &BranchContext,
        payload: &[u8],
    ) -> ServiceResult<Vote> {
        let payload = match self.admit(branch, payload) {
            Ok(payload) => payload,
            Err(reason) => return Ok(Vote::No(reason)),
        };
        let Payload { account, amount, .. } = &payload;
        let reserved = reserved_by(*amount);
        let fits = if reserved == 0 {
            false
        } else {
            ledger.change(account, 0, reserved, reserved).await?
        };
        if !fits && let Err(reason) = self.judge(ledger, &payload).await? {
            return Ok(Vote::No(reason));
        }
        if !fits && reserved > 0 {
            // It had too little a moment ago, and has enough now: somebody else has moved.
            return Ok(Vote::no(format!("{account} is being changed; try again")));
        }
        ledger.keep(Table::Reservation, branch, account, *amount).await?;
        Ok(Vote::Yes)
    }

    async fn commit_in(
        &self,
        ledger: &mut impl Ledger,
        branch: &BranchContext,
    ) -> ServiceResult<()> {
        self.faults().arm(&Message::from(branch));
        let (account, amount) = take(ledger, Table::Reservation, branch).await?;
        change(ledger, &account, amount, -reserved_by(amount)).await
    }

    async fn rollback_in(
        &self,
        ledger: &mut impl Ledger,
        branch: &BranchContext,
    ) -> ServiceResult<()> {
        self.faults().arm(&Message::from(branch));
        let (account, amount) = take(ledger, Table::Reservation, branch).await?;
        match reserved_by(amount) {
            0 => Ok(()),
            reserved => change(ledger, &account, 0, -reserved).await,
        }
    }

    async fn execute_in(
        &self,
        ledger: &mut impl Ledger,
        branch: &BranchContext,
        payload: &[u8],
    ) -> ServiceResult<Vote> {
        let vote = self.move_in(ledger, branch, payload).await?;
        if let (Vote::Yes, Ok(payload)) = (&vote, Payload::read(payload)) {
            ledger.keep(Table::Movement, branch, &payload.account, payload.amount).await?;
        }
        Ok(vote)
    }

    async fn compensate_in(
        &self,
        ledger: &mut impl Ledger,
        branch: &BranchContext,
    ) -> ServiceResult<()> {
        self.faults().arm(&Message::from(branch));
        let (account, amount) = take(ledger, Table::Movement, branch).await?;
        change(ledger, &account, -amount, 0).await
    }

    /// Moves the money at once; who sees it, and when, is the database's business.
    async fn move_in(
        &self,
        ledger: &mut impl Ledger,
        branch: &BranchContext,
        payload: &[u8],
    ) -> ServiceResult<Vote> {
        let payload = match self.admit(branch, payload) {
            Ok(payload) => payload,
            Err(reason) => return Ok(Vote::No(reason)),
        };
        let Payload { account, amount, .. } = &payload;
        // A credit is judged first, because what an account can hold is not what it has free.
        if *amount > 0
            && let Err(reason) = self.judge(ledger, &payload).await?
        {
            return Ok(Vote::No(reason));
        }
        let needed = if *amount < 0 { -*amount } else { NOTHING_NEEDED };
        if ledger.change(account, *amount, 0, needed).await? {
            return Ok(Vote::Yes);
        }
        let judged = self.judge(ledger, &payload).await?;
        let moved = || format!("{account} is being changed; try again");
        Ok(Vote::No(judged.err().unwrap_or_else(moved)))
    }

    /// Reads the payload, or says why the branch is refused before any account is looked at.
    fn admit(&self, branch: &BranchContext, payload: &[u8]) -> Result<Payload, String> {
        let message = Message::from(branch);
        self.faults().arm(&message);
        let payload = Payload::read(payload)?;
        if payload.version.is_some() {
            return Err("this bank reserves, and its accounts have no versions".to_owned());
        }
        if self.faults().strikes(Fault::VoteNo, &message) {
            return Err(REFUSED_BY_CHANCE.to_owned());
        }
        Ok(payload)
    }

    /// Says whether the account can bear it.
    async fn judge(
        &self,
        ledger: &mut impl Ledger,
        payload: &Payload,
    ) -> ServiceResult<Result<(), String>> {
        Ok(match ledger.balances(&payload.account).await? {
            Some((balance, reserved)) => payload.afford(balance, reserved),
            None => Err(self.unknown(&payload.account)),
        })
    }
}

async fn take(
    ledger: &mut impl Ledger,
    table: Table,
    branch: &BranchContext,
) -> ServiceResult<(String, i64)> {
    let taken = ledger.take(table, branch).await?;
    taken.ok_or_else(|| format!("the bank has lost what branch {} moves", branch.branch).into())
}

/// Changes an account whatever it has free: this was promised, or cannot be refused.
async fn change(
    ledger: &mut impl Ledger,
    account: &str,
    balance_cents: i64,
    reserved_cents: i64,
) -> ServiceResult<()> {
    if ledger.change(account, balance_cents, reserved_cents, NOTHING_NEEDED).await? {
        return Ok(());
    }
    Err(format!("the account {account} has gone").into())
}
