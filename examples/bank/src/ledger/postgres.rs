//! Decides how a bank's accounts lie in PostgreSQL. What is done with them is left to `ledger`.

use unanimity_sdk::postgres::tokio_postgres::types::FromSqlOwned;
use unanimity_sdk::postgres::tokio_postgres::{Error, Row};
use unanimity_sdk::postgres::{PostgresLocal, PostgresService};
use unanimity_sdk::xa::postgres::PostgresXaService;
use unanimity_sdk::{BranchContext, ServiceResult, Vote};

use super::{Ledger, Table};
use crate::service::AccountService;

/// The name `account` first: it says that the rest is there.
const TABLES: &str = "
    CREATE TABLE account (
        id text COLLATE \"C\" PRIMARY KEY,
        balance bigint NOT NULL,
        reserved bigint NOT NULL DEFAULT 0 CHECK (reserved >= 0)
    ) WITH (fillfactor = 50);
    CREATE TABLE reservation (
        transaction_id text COLLATE \"C\" NOT NULL,
        branch text COLLATE \"C\" NOT NULL,
        account text NOT NULL,
        amount bigint NOT NULL,
        PRIMARY KEY (transaction_id, branch)
    );
    CREATE TABLE movement (LIKE reservation INCLUDING ALL);";

struct Accounts<'a>(&'a PostgresLocal);

impl Ledger for Accounts<'_> {
    async fn balances(&mut self, account: &str) -> ServiceResult<Option<(i64, i64)>> {
        let sql = "SELECT balance, reserved FROM account WHERE id = $1";
        let row = self.0.row(sql, &[&account]).await?;
        Ok(row.map(|row| pair(&row)).transpose()?)
    }

    async fn change(
        &mut self,
        account: &str,
        balance_cents: i64,
        reserved_cents: i64,
        free_cents: i64,
    ) -> ServiceResult<bool> {
        let sql = "UPDATE account SET balance = balance + $2, reserved = reserved + $3 \
                   WHERE id = $1 AND balance - reserved >= $4";
        let changed =
            self.0.run(sql, &[&account, &balance_cents, &reserved_cents, &free_cents]).await?;
        Ok(changed == 1)
    }

    async fn keep(
        &mut self,
        table: Table,
        branch: &BranchContext,
        account: &str,
        amount: i64,
    ) -> ServiceResult<()> {
        let sql = match table {
            Table::Reservation => "INSERT INTO reservation VALUES ($1, $2, $3, $4)",
            Table::Movement => "INSERT INTO movement VALUES ($1, $2, $3, $4)",
        };
        let (transaction, branch) = (branch.transaction.as_str(), &*branch.branch);
        self.0.run(sql, &[&transaction, &branch, &account, &amount]).await?;
        Ok(())
    }

    async fn take(
        &mut self,
        table: Table,
        branch: &BranchContext,
    ) -> ServiceResult<Option<(String, i64)>> {
        let sql = match table {
            Table::Reservation => {
                "DELETE FROM reservation WHERE transaction_id = $1 AND branch = $2 \
                 RETURNING account, amount"
            }
            Table::Movement => {
                "DELETE FROM movement WHERE transaction_id = $1 AND branch = $2 \
                 RETURNING account, amount"
            }
        };
        let (transaction, branch) = (branch.transaction.as_str(), &*branch.branch);
        let row = self.0.row(sql, &[&transaction, &branch]).await?;
        Ok(row.map(|row| pair(&row)).transpose()?)
    }
}

/// A row's two columns.
fn pair<A: FromSqlOwned>(row: &Row) -> Result<(A, i64), Error> {
    Ok((row.try_get(0)?, row.try_get(1)?))
}

impl AccountService {
    async fn create_in_postgres(&self, local: &PostgresLocal) -> ServiceResult<()> {
        if local.row("SELECT 1 WHERE to_regclass('account') IS NOT NULL", &[]).await?.is_some() {
            return Ok(());
        }
        local.batch_execute(TABLES).await?;
        let sql = "INSERT INTO account (id, balance) \
                   SELECT $1::text || '-' || number, $2::bigint \
                   FROM generate_series(1, $3::bigint) AS number";
        let (name, accounts) = (self.name(), i64::from(self.accounts()));
        local.run(sql, &[&name, &self.balance_cents(), &accounts]).await?;
        Ok(())
    }
}

impl PostgresService for AccountService {
    async fn migrate(&self, local: &PostgresLocal) -> ServiceResult<()> {
        self.create_in_postgres(local).await
    }

    async fn prepare(
        &self,
        local: &PostgresLocal,
        branch: &BranchContext,
        payload: &[u8],
    ) -> ServiceResult<Vote> {
        self.prepare_in(&mut Accounts(local), branch, payload).await
    }

    async fn commit(
        &self,
        local: &PostgresLocal,
        branch: &BranchContext,
        _: &[u8],
    ) -> ServiceResult<()> {
        self.commit_in(&mut Accounts(local), branch).await
    }

    async fn rollback(
        &self,
        local: &PostgresLocal,
        branch: &BranchContext,
        _: &[u8],
    ) -> ServiceResult<()> {
        self.rollback_in(&mut Accounts(local), branch).await
    }

    async fn execute(
        &self,
        local: &PostgresLocal,
        branch: &BranchContext,
        payload: &[u8],
    ) -> ServiceResult<Vote> {
        self.execute_in(&mut Accounts(local), branch, payload).await
    }

    async fn compensate(
        &self,
        local: &PostgresLocal,
        branch: &BranchContext,
        _: &[u8],
    ) -> ServiceResult<()> {
        self.compensate_in(&mut Accounts(local), branch).await
    }
}

impl PostgresXaService for AccountService {
    async fn migrate(&self, local: &PostgresLocal) -> ServiceResult<()> {
        self.create_in_postgres(local).await
    }

    async fn work(
        &self,
        local: &PostgresLocal,
        branch: &BranchContext,
        payload: &[u8],
    ) -> ServiceResult<Vote> {
        self.move_in(&mut Accounts(local), branch, payload).await
    }
}
