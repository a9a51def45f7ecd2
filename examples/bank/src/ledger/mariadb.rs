//! Decides how a bank's accounts lie in MariaDB. What is done with them is left to `ledger`.

use unanimity_sdk::mariadb::MariaDbService;
use unanimity_sdk::mariadb::mysql_async::Conn;
use unanimity_sdk::mariadb::mysql_async::prelude::Queryable;
use unanimity_sdk::xa::mariadb::MariaDbXaService;
use unanimity_sdk::{BranchContext, ServiceResult, Vote};

use super::{Ledger, Table};
use crate::service::AccountService;

/// Each by itself: here a statement that makes a table commits at once. The accounts come last and
/// all together: they say that the rest is there.
const TABLES: [&str; 3] = [
    "CREATE TABLE IF NOT EXISTS account (
        id VARCHAR(160) CHARACTER SET ascii COLLATE ascii_bin PRIMARY KEY,
        balance BIGINT NOT NULL,
        reserved BIGINT NOT NULL DEFAULT 0 CHECK (reserved >= 0)
    ) ENGINE = InnoDB",
    "CREATE TABLE IF NOT EXISTS reservation (
        transaction_id VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
        branch VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
        account VARCHAR(160) NOT NULL,
        amount BIGINT NOT NULL,
        PRIMARY KEY (transaction_id, branch)
    ) ENGINE = InnoDB",
    "CREATE TABLE IF NOT EXISTS movement LIKE reservation",
];

struct Accounts<'a>(&'a mut Conn);

impl Ledger for Accounts<'_> {
    async fn balances(&mut self, account: &str) -> ServiceResult<Option<(i64, i64)>> {
        let sql = "SELECT balance, reserved FROM account WHERE id = ?";
        Ok(self.0.exec_first(sql, (account,)).await?)
    }

    async fn change(
        &mut self,
        account: &str,
        balance_cents: i64,
        reserved_cents: i64,
        free_cents: i64,
    ) -> ServiceResult<bool> {
        let sql = "UPDATE account SET balance = balance + ?, reserved = reserved + ? \
                   WHERE id = ? AND balance - reserved >= ?";
        self.0.exec_drop(sql, (balance_cents, reserved_cents, account, free_cents)).await?;
        Ok(self.0.affected_rows() == 1)
    }

    async fn keep(
        &mut self,
        table: Table,
        branch: &BranchContext,
        account: &str,
        amount: i64,
    ) -> ServiceResult<()> {
        let sql = match table {
            Table::Reservation => "INSERT INTO reservation VALUES (?, ?, ?, ?)",
            Table::Movement => "INSERT INTO movement VALUES (?, ?, ?, ?)",
        };
        let (transaction, branch) = (branch.transaction.as_str(), &*branch.branch);
        self.0.exec_drop(sql, (transaction, branch, account, amount)).await?;
        Ok(())
    }

    async fn take(
        &mut self,
        table: Table,
        branch: &BranchContext,
    ) -> ServiceResult<Option<(String, i64)>> {
        let [select, delete] = match table {
            Table::Reservation => [
                "SELECT account, amount FROM reservation \
                 WHERE transaction_id = ? AND branch = ? FOR UPDATE",
                "DELETE FROM reservation WHERE transaction_id = ? AND branch = ?",
            ],
            Table::Movement => [
                "SELECT account, amount FROM movement \
                 WHERE transaction_id = ? AND branch = ? FOR UPDATE",
                "DELETE FROM movement WHERE transaction_id = ? AND branch = ?",
            ],
        };
        let key = (branch.transaction.as_str(), &*branch.branch);
        let taken = self.0.exec_first(select, key).await?;
        self.0.exec_drop(delete, key).await?;
        Ok(taken)
    }
}

impl AccountService {
    async fn create_in_mariadb(&self, local: &mut Conn) -> ServiceResult<()> {
        let there = "SELECT 1 FROM information_schema.tables \
                     WHERE table_schema = DATABASE() AND table_name = 'movement'";
        if local.query_first::<u8, _>(there).await?.is_none() {
            for table in TABLES {
                local.query_drop(table).await?;
            }
        }
        if local.query_first::<u8, _>("SELECT 1 FROM account LIMIT 1").await?.is_some() {
            return Ok(());
        }
        let accounts = (1..=self.accounts()).map(|number| format!("{}-{number}", self.name()));
        let rows = accounts.map(|account| (account, self.balance_cents()));
        let sql = "INSERT INTO account (id, balance) VALUES (?, ?)";
        local.exec_batch(sql, rows).await?;
        Ok(())
    }
}

impl MariaDbService for AccountService {
    async fn migrate(&self, local: &mut Conn) -> ServiceResult<()> {
        self.create_in_mariadb(local).await
    }

    async fn prepare(
        &self,
        local: &mut Conn,
        branch: &BranchContext,
        payload: &[u8],
    ) -> ServiceResult<Vote> {
        self.prepare_in(&mut Accounts(local), branch, payload).await
    }

    async fn commit(
        &self,
        local: &mut Conn,
        branch: &BranchContext,
        _: &[u8],
    ) -> ServiceResult<()> {
        self.commit_in(&mut Accounts(local), branch).await
    }

    async fn rollback(
        &self,
        local: &mut Conn,
        branch: &BranchContext,
        _: &[u8],
    ) -> ServiceResult<()> {
        self.rollback_in(&mut Accounts(local), branch).await
    }

    async fn execute(
        &self,
        local: &mut Conn,
        branch: &BranchContext,
        payload: &[u8],
    ) -> ServiceResult<Vote> {
        self.execute_in(&mut Accounts(local), branch, payload).await
    }

    async fn compensate(
        &self,
        local: &mut Conn,
        branch: &BranchContext,
        _: &[u8],
    ) -> ServiceResult<()> {
        self.compensate_in(&mut Accounts(local), branch).await
    }
}

impl MariaDbXaService for AccountService {
    async fn migrate(&self, local: &mut Conn) -> ServiceResult<()> {
        self.create_in_mariadb(local).await
    }

    async fn work(
        &self,
        local: &mut Conn,
        branch: &BranchContext,
        payload: &[u8],
    ) -> ServiceResult<Vote> {
        self.move_in(&mut Accounts(local), branch, payload).await
    }
}
