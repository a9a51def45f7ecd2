//! Decides what the bank does with money where each account is a key that a branch has to itself
//! until its decision: a branch reads the balance, and writes it anew. Who waits and who is refused
//! is left to the SDK's resource layer; what an account can bear, to `service`.

use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, params};
use unanimity_sdk::resource::{Change, Plan, Resource, Values, Writes};
use unanimity_sdk::{BranchContext, ServiceResult};

use crate::faults::{Fault, Message};
use crate::service::{AccountService, Payload, REFUSED_BY_CHANCE};

/// The accounts of a bank, as keys.
#[derive(Debug)]
pub struct KeyedAccounts(AccountService);

impl KeyedAccounts {
    /// The same accounts as `service`'s, in the same table.
    #[must_use]
    pub const fn new(service: AccountService) -> Self {
        Self(service)
    }
}

impl Resource for KeyedAccounts {
    fn migrate(&self, database: &Connection) -> ServiceResult<()> {
        self.0.create(database)?;
        // A branch that the other kind of bank has prepared could not be committed by this one.
        let sql = "SELECT count(*) FROM reservation";
        let reservations: u32 = database.query_row(sql, [], |row| row.get(0))?;
        if reservations > 0 {
            let open = "branches still reserve: open the file with --accounts-by reservation";
            return Err(format!("{reservations} {open} until they are decided").into());
        }
        Ok(())
    }

    fn begins(&self, branch: &BranchContext) {
        self.0.faults().arm(&Message::from(branch));
    }

    fn plan(&self, _: &BranchContext, payload: &[u8]) -> ServiceResult<Result<Plan, String>> {
        Ok(Payload::read(payload).map(|payload| {
            let mut plan = Plan::new().writes(&payload.account);
            if let Some(since_ms) = payload.since_ms {
                plan = plan.since_ms(since_ms);
            }
            if let Some(version) = payload.version {
                plan = plan.expects(payload.account, version);
            }
            plan
        }))
    }

    fn change(
        &self,
        branch: &BranchContext,
        payload: &[u8],
        values: &Values,
    ) -> ServiceResult<Change> {
        let payload = Payload::read(payload)?;
        let Some(balance) = values.integer(&payload.account) else {
            return Ok(Change::No(self.0.unknown(&payload.account)));
        };
        if let Err(reason) = payload.afford(balance, 0) {
            return Ok(Change::No(reason));
        }
        if self.0.faults().strikes(Fault::VoteNo, &Message::from(branch)) {
            return Ok(Change::no(REFUSED_BY_CHANCE));
        }
        Ok(Change::Write(vec![(payload.account, Value::Integer(balance + payload.amount))]))
    }

    /// Takes a credit back even where the money is spent, as `service` does.
    fn reverse(&self, _: &BranchContext, payload: &[u8], values: &Values) -> ServiceResult<Writes> {
        let payload = Payload::read(payload)?;
        let balance = values.integer(&payload.account);
        let balance = balance.ok_or_else(|| self.0.unknown(&payload.account))?;
        Ok(vec![(payload.account, Value::Integer(balance - payload.amount))])
    }

    fn load(&self, database: &Connection, key: &str) -> ServiceResult<Value> {
        let sql = "SELECT balance FROM account WHERE id = ?1";
        let found = database.prepare_cached(sql)?.query_row([key], |row| row.get(0)).optional()?;
        Ok(found.unwrap_or(Value::Null))
    }

    fn store(&self, database: &Connection, key: &str, value: &Value) -> ServiceResult<()> {
        let sql = "UPDATE account SET balance = ?2 WHERE id = ?1";
        let changed = database.prepare_cached(sql)?.execute(params![key, value])?;
        if changed == 1 { Ok(()) } else { Err(format!("the account {key} has gone").into()) }
    }
}
