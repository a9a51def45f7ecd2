//! What MariaDB lists as prepared, and the rows of branches that are kept no longer.

use std::time::Duration;

use mysql_async::Error;
use mysql_async::prelude::Queryable as _;
use unanimity_sdk::xa::name::{BranchName, Xid};

use super::session::Session;
use super::trouble::said;
use super::{Branch, Mariadb, Purpose, give_back};
use crate::databases::listing::Prepared;

impl Mariadb {
    /// Everything that is prepared in this server: MariaDB does not say in which database, since
    /// when, or with which locks.
    pub(in crate::databases) async fn list(&self) -> Result<Vec<Prepared>, String> {
        let leased = self.lease(Purpose::Settle).await;
        let (lease, mut session, _) = leased.map_err(|error| error.text().to_owned())?;
        let xids = recover(&mut session).await.map_err(|error| said(&error))?;
        give_back(lease, session);
        let prepared = xids.into_iter().map(|xid| Prepared {
            name: xid.to_string(),
            branch: BranchName::of_xid(&xid),
            age_ms: None,
            owner: None,
            locks: None,
            tables: Vec::new(),
        });
        Ok(prepared.collect())
    }

    /// The gids of rows of one coordinator that are older than that.
    pub(in crate::databases) async fn old_rows(
        &self,
        prefix: &str,
        age: Duration,
        most: i64,
    ) -> Result<Vec<String>, String> {
        let leased = self.lease(Purpose::Settle).await;
        let (lease, mut session, _) = leased.map_err(|error| error.text().to_owned())?;
        // The prefix has neither quotes nor wildcards.
        let sql = format!(
            "SELECT gid FROM unanimity_branch WHERE gid LIKE '{prefix}%' AND made_at < NOW() - \
             INTERVAL {} SECOND LIMIT {most}",
            age.as_secs()
        );
        let rows: Vec<String> =
            session.connection.query(sql).await.map_err(|error| said(&error))?;
        give_back(lease, session);
        Ok(rows)
    }

    /// Removes rows.
    pub(in crate::databases) async fn forget_rows(&self, gids: &[String]) -> Result<(), String> {
        let leased = self.lease(Purpose::Settle).await;
        let (lease, mut session, _) = leased.map_err(|error| error.text().to_owned())?;
        // Gids that came out of the table, and were read as names of ours: without quotes.
        let list: Vec<String> = gids.iter().map(|gid| format!("'{gid}'")).collect();
        let sql = format!("DELETE FROM unanimity_branch WHERE gid IN ({})", list.join(","));
        session.plain(&sql).await.map_err(|error| said(&error))?;
        give_back(lease, session);
        Ok(())
    }
}

/// Everything that is prepared in the server.
async fn recover(session: &mut Session) -> Result<Vec<Xid>, Error> {
    let rows: Vec<(i64, usize, usize, Vec<u8>)> = session.connection.query("XA RECOVER").await?;
    let xids = rows.into_iter().map(|(format_id, global, _, data)| {
        let (global, qualifier) = data.split_at(global.min(data.len()));
        Xid { format_id, global: global.to_vec(), qualifier: qualifier.to_vec() }
    });
    Ok(xids.collect())
}

/// Whether a branch is among the prepared ones.
pub(super) async fn listed(session: &mut Session, branch: &Branch) -> Result<bool, Error> {
    let wanted = branch.name.xid();
    Ok(recover(session).await?.contains(&wanted))
}
