//! What PostgreSQL lists as prepared, and the rows of branches that are kept no longer.

use std::time::Duration;

use tokio_postgres::Row;
use unanimity_sdk::xa::name::BranchName;

use super::session::Session;
use super::trouble::said;
use super::{Postgres, Purpose, give_back};
use crate::databases::listing::Prepared;

/// Only of this database: a prepared transaction can be finished from nowhere else.
const NAMES: &str = "SELECT gid, owner::text, \
    greatest(0, extract(epoch FROM clock_timestamp() - prepared) * 1000)::bigint \
    FROM pg_prepared_xacts WHERE database = current_database() ORDER BY prepared, gid";
/// A prepared transaction's locks belong to no process, and to the virtual transaction that also
/// holds the lock on its number.
const WITH_LOCKS: &str = "WITH held AS (SELECT n.transactionid, l.locktype, l.relation FROM \
    pg_locks n JOIN pg_locks l ON l.virtualtransaction = n.virtualtransaction AND l.pid IS NULL \
    WHERE n.locktype = 'transactionid' AND n.pid IS NULL AND n.granted) \
    SELECT p.gid, p.owner::text, \
    greatest(0, extract(epoch FROM clock_timestamp() - p.prepared) * 1000)::bigint, \
    (SELECT count(*) FROM held WHERE held.transactionid = p.transaction), \
    (SELECT coalesce(array_agg(DISTINCT c.relname::text), '{}') FROM held \
     JOIN pg_class c ON c.oid = held.relation \
     WHERE held.transactionid = p.transaction AND c.relkind NOT IN ('i', 'I')) \
    FROM pg_prepared_xacts p WHERE p.database = current_database() ORDER BY p.prepared, p.gid";
/// The oldest rows of one coordinator.
const OLD: &str = "SELECT gid FROM unanimity_branch WHERE gid LIKE $1 AND made_at < \
    now() - $2::text::interval LIMIT $3";

impl Postgres {
    /// Everything that is prepared in this database.
    pub(in crate::databases) async fn list(&self, details: bool) -> Result<Vec<Prepared>, String> {
        let (lease, session, _) = self.lease(Purpose::Settle).await.map_err(|no| no.text())?;
        let sql = if details { WITH_LOCKS } else { NAMES };
        let rows = session.client.query(sql, &[]).await.map_err(|error| said(&error))?;
        give_back(lease, session);
        rows.iter().map(|row| prepared(row, details).map_err(|error| said(&error))).collect()
    }

    /// The gids of rows of one coordinator that are older than that.
    pub(in crate::databases) async fn old_rows(
        &self,
        prefix: &str,
        age: Duration,
        most: i64,
    ) -> Result<Vec<String>, String> {
        let (lease, session, _) = self.lease(Purpose::Settle).await.map_err(|no| no.text())?;
        let (like, age) = (format!("{prefix}%"), format!("{} milliseconds", age.as_millis()));
        let rows = session.client.query(OLD, &[&like, &age, &most]).await;
        let rows = rows.map_err(|error| said(&error))?;
        give_back(lease, session);
        rows.iter().map(|row| row.try_get(0).map_err(|error| said(&error))).collect()
    }

    /// Removes rows. That may be lost in a crash: they are old in any case.
    pub(in crate::databases) async fn forget_rows(&self, gids: &[String]) -> Result<(), String> {
        let (lease, session, _) = self.lease(Purpose::Settle).await.map_err(|no| no.text())?;
        remove(&session, gids).await.map_err(|error| said(&error))?;
        give_back(lease, session);
        Ok(())
    }
}

async fn remove(session: &Session, gids: &[String]) -> Result<(), tokio_postgres::Error> {
    let begin = "BEGIN READ WRITE; SET LOCAL synchronous_commit = off";
    session.client.batch_execute(begin).await?;
    session.client.execute("DELETE FROM unanimity_branch WHERE gid = ANY($1)", &[&gids]).await?;
    session.client.batch_execute("COMMIT").await
}

fn prepared(row: &Row, details: bool) -> Result<Prepared, tokio_postgres::Error> {
    let name: String = row.try_get(0)?;
    let age_ms: i64 = row.try_get(2)?;
    let locks: Option<i64> = if details { Some(row.try_get(3)?) } else { None };
    Ok(Prepared {
        branch: BranchName::of_gid(&name),
        name,
        age_ms: u64::try_from(age_ms).ok(),
        owner: row.try_get(1)?,
        locks: locks.and_then(|locks| u64::try_from(locks).ok()),
        tables: if details { row.try_get(4)? } else { Vec::new() },
    })
}
