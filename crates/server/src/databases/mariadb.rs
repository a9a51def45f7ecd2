//! A branch in MariaDB or MySQL: XA START, the branch's row, its statements, XA END, XA PREPARE;
//! then XA COMMIT or XA ROLLBACK.
//!
//! The row in the table `unanimity_branch` is the branch's guard, as in PostgreSQL: inserted first,
//! a part of what is prepared, and in the way of a late prepare where a rollback has written it.
//!
//! Two things are particular to this server. A prepared branch belongs to the session that prepared
//! it for as long as that lives: to all others it is unknown (`XAER_NOTA`), although it is there.
//! So the session is kept for phase two, and where there is none, "unknown" means nothing until
//! `XA RECOVER` and the row have been looked at. And one session can do nothing else meanwhile: so
//! only so many are kept, and the oldest is closed for a newer one, which frees its branch for all.
//!
//! And a third (seen with 10.11): while the server takes leave of a session, there is a moment in
//! which it says "done" to the `XA COMMIT` of another one and has committed nothing. So such a
//! commit is acknowledged when the branch's row is there and nobody holds it; and a session that
//! was closed for another is waited for, so that the moment is not met.
//!
//! And a fourth: a commit is to be seen by others before the log with it is written, so what was
//! seen can be gone after a crash. An answer that rests on the branch's row alone has something
//! else committed first: the log has one order, and takes the other along.

mod holding;
mod listing;
mod session;
mod trouble;
mod values;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mysql_async::Error;
use mysql_async::prelude::Queryable as _;
use unanimity::core::Answer;
use unanimity::core::guard::{Contradiction, LATE_REASON};

use self::holding::Holding;
use self::listing::listed;
use self::session::{Session, no_session};
use self::trouble::{Trouble, is, is_broken, is_in_the_way, judge, number, said};
use super::pool::{Lease, Pool, Purpose};
use super::turn::{Turn, Turns};
use super::work::Work;
use super::{Branch, Ran, TABLE, Unusable, result};
use crate::config::DatabaseConfig;

const MAKE_TABLE: &str = "CREATE TABLE IF NOT EXISTS unanimity_branch (gid VARCHAR(199) \
    CHARACTER SET ascii COLLATE ascii_bin PRIMARY KEY, state VARCHAR(16) NOT NULL, \
    made_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP) ENGINE = InnoDB";
/// How often a branch that is not to be seen is looked for again, and after how long each time.
const LOOKS_MAX: u32 = 20;
const LOOK_INTERVAL: Duration = Duration::from_millis(25);

/// One MariaDB database.
pub(super) struct Mariadb {
    config: DatabaseConfig,
    pool: Arc<Pool<Session>>,
    /// Branches of which an earlier attempt may have been prepared: its answer never came.
    doubtful: Mutex<HashSet<String>>,
    /// Sessions that hold a prepared branch.
    holding: Mutex<Holding>,
    /// What stops a session is its number in the server.
    turns: Turns<u32>,
}

/// Counts a session that was taken out as back, however its work ends.
struct Back<'a>(&'a Mariadb);

impl Drop for Back<'_> {
    fn drop(&mut self) {
        self.0.holding().out -= 1;
    }
}

/// What a local transaction came to.
enum Done {
    /// The statements ran, and their numbers of rows are right.
    Ran(Vec<Ran>),
    /// An answer that needs no more work; the transaction is over.
    Answer(Answer),
    /// The session was dead when the first word was sent: another one may do.
    Stale,
    /// It only seemed to read.
    Writes,
}

impl Mariadb {
    pub(super) fn new(config: DatabaseConfig) -> Self {
        let quarter = (config.pool_max / 4).max(1);
        let pool = Arc::new(Pool::new(config.pool_max - 2 * quarter, quarter));
        Self {
            config,
            pool,
            doubtful: Mutex::default(),
            holding: Mutex::default(),
            turns: Turns::default(),
        }
    }

    /// Whether the database can be used, and makes the table.
    pub(super) async fn check(&self) -> Result<(), Unusable> {
        let mut session = Session::open(&self.config).await?;
        session.plain("XA RECOVER").await.map_err(|error| {
            Unusable::Refused(format!(
                "prepared branches cannot be listed ({}); MySQL needs GRANT XA_RECOVER_ADMIN for \
                 this user",
                said(&error)
            ))
        })?;
        let find = "SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = DATABASE() \
                    AND table_name = 'unanimity_branch'";
        let found: Option<u64> =
            session.connection.query_first(find).await.map_err(|error| no_session(&error))?;
        if found == Some(0) {
            session.plain(MAKE_TABLE).await.map_err(|error| {
                Unusable::Refused(format!(
                    "the table {TABLE} is missing and cannot be made ({}); let an administrator \
                     run: {MAKE_TABLE}",
                    said(&error)
                ))
            })?;
        }
        Ok(())
    }

    fn doubtful(&self) -> MutexGuard<'_, HashSet<String>> {
        self.doubtful.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn holding(&self) -> MutexGuard<'_, Holding> {
        self.holding.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a statement on the session that holds a branch, if there is one, and keeps the session
    /// for others if that goes well.
    async fn by_holder(&self, branch: &Branch, sql: &str) -> Option<Result<(), Error>> {
        let mut session = {
            let mut holding = self.holding();
            let session = holding.sessions.remove(branch.gid())?;
            holding.out += 1;
            session
        };
        let _back = Back(self);
        let ran = session.plain(sql).await;
        if ran.is_ok() {
            self.pool.add_idle(session);
        }
        Some(ran)
    }

    fn hold(&self, gid: &str, session: Session) {
        let most = (self.config.pool_max / 4).max(1);
        let let_go = self.holding().keep(gid, session, most);
        drop(let_go); // Which closes them.
    }

    /// A session, and whether it was used before.
    async fn lease(&self, purpose: Purpose) -> Result<(Lease<Session>, Session, bool), Unusable> {
        let mut lease = self.pool.lease(purpose).await;
        match lease.take() {
            Some(session) => Ok((lease, session, true)),
            None => {
                let session = Session::open(&self.config).await?;
                Ok((lease, session, false))
            }
        }
    }

    /// Does the work and promises to be able to commit it.
    pub(super) async fn prepare(&self, branch: &Branch, work: &Work, may_write: bool) -> Answer {
        let turn = self.turns.begin(branch.gid()).await;
        let mut reads = work.reads();
        // Each turn but the last ends with a session that is known to be of no use.
        for _ in 0..4 {
            let (lease, mut session, used) = match self.lease(Purpose::Work).await {
                Ok(leased) => leased,
                Err(error) => return Answer::Unsent(error.text().into()),
            };
            turn.can_be_stopped_by(session.connection.id()).await;
            let done = if reads {
                self.read(&mut session, work).await
            } else {
                self.write(&mut session, branch, work).await
            };
            let answer = match done {
                Done::Ran(ran) => {
                    let answer = result::answer(&ran, self.config.rows_max, reads);
                    if !reads {
                        return self.promise(lease, session, branch, &turn, answer).await;
                    }
                    answer
                }
                Done::Answer(answer) => answer,
                Done::Stale if used => {
                    self.pool.drop_idle();
                    continue;
                }
                Done::Writes if !may_write => Answer::Unsupported,
                Done::Writes => {
                    reads = false;
                    give_back(lease, session);
                    continue;
                }
                Done::Stale => Answer::Unknown("the connection broke".into()),
            };
            if turn.leave().await {
                // Whatever it came to: the session may be hit by what was to stop it.
                return late();
            }
            if !matches!(answer, Answer::Unknown(_)) {
                give_back(lease, session);
            }
            return answer;
        }
        Answer::Unknown("no connection could be kept".into())
    }

    /// Only reads, in one transaction with one view of the data, which ends at once.
    async fn read(&self, session: &mut Session, work: &Work) -> Done {
        let begin = "START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY";
        if let Err(error) = session.plain(begin).await {
            return broken(&error);
        }
        let ran = self.run_all(session, work).await;
        match (ran, session.plain("COMMIT").await) {
            (_, Err(error)) => Done::Answer(unknown(&error)),
            (Ok(ran), Ok(())) => Done::Ran(ran),
            (Err(Failed::Statement(_, error)), Ok(()))
                if is(&error, number::READ_ONLY_TRANSACTION) =>
            {
                Done::Writes
            }
            (Err(failed), Ok(())) => Done::Answer(failed.answer()),
        }
    }

    async fn run_all(&self, session: &mut Session, work: &Work) -> Result<Vec<Ran>, Failed> {
        let mut all = Vec::with_capacity(work.statements.len());
        for (index, one) in work.statements.iter().enumerate() {
            let ran = session.run(one, self.config.rows_max).await;
            let ran = ran.map_err(|error| Failed::Statement(index, error))?;
            work.check_rows(index, ran.affected).map_err(Failed::Rows)?;
            all.push(ran);
        }
        Ok(all)
    }

    /// Everything of a branch but the promise. The transaction stays open if it went well.
    async fn write(&self, session: &mut Session, branch: &Branch, work: &Work) -> Done {
        let xid = branch.xid();
        if self.doubtful().contains(branch.gid()) {
            match self.undo(session, branch).await {
                Ok(()) => drop(self.doubtful().remove(branch.gid())),
                Err(answer) => return Done::Answer(answer),
            }
        }
        if let Err(error) = session.plain(&format!("XA START {xid}")).await {
            return if is_in_the_way(&error) {
                self.doubtful().insert(branch.gid().to_owned());
                Done::Answer(unknown(&error))
            } else {
                broken(&error)
            };
        }
        let guard = insert(branch, "committed");
        let failed = match session.plain(&guard).await {
            Ok(()) => match self.run_all(session, work).await {
                Ok(ran) => return Done::Ran(ran),
                Err(failed) => failed.answer(),
            },
            Err(error) if is(&error, number::DUPLICATE_KEY) => {
                return Done::Answer(self.late(session, branch).await);
            }
            Err(error) => {
                if is_in_the_way(&error) {
                    self.doubtful().insert(branch.gid().to_owned());
                }
                unknown(&error)
            }
        };
        Done::Answer(match abandon(session, xid).await {
            Ok(()) => failed,
            Err(error) => unknown(&error),
        })
    }

    /// The branch's row is there already.
    async fn late(&self, session: &mut Session, branch: &Branch) -> Answer {
        if let Err(error) = abandon(session, branch.xid()).await {
            return unknown(&error);
        }
        match state(session, branch).await {
            Ok(Some(state)) if state == "committed" => Answer::Yes(None),
            Ok(Some(_)) => Answer::No(LATE_REASON.into()),
            Ok(None) => Answer::Unknown("the branch's row was there and is gone".into()),
            Err(error) => unknown(&error),
        }
    }

    /// Prepares what was done, if the answer is a yes, and keeps the session for phase two.
    async fn promise(
        &self,
        lease: Lease<Session>,
        mut session: Session,
        branch: &Branch,
        turn: &Turn<'_, u32>,
        answer: Answer,
    ) -> Answer {
        let xid = branch.xid();
        // What is prepared must not be hit by what was to stop the work before it.
        let stopped = turn.leave().await;
        let answer = if stopped { late() } else { answer };
        if !matches!(answer, Answer::Yes(_)) {
            return match abandon(&mut session, xid).await {
                Ok(()) if stopped => answer,
                Ok(()) => {
                    give_back(lease, session);
                    answer
                }
                Err(error) => unknown(&error),
            };
        }
        // If this call ends here, by its time limit too, nobody knows.
        self.doubtful().insert(branch.gid().to_owned());
        let prepared = session.plain(&format!("XA END {xid}; XA PREPARE {xid}")).await;
        match prepared {
            Ok(()) => {
                self.doubtful().remove(branch.gid());
                self.hold(branch.gid(), session);
                answer
            }
            Err(error) => match judge(&error) {
                Trouble::No(reason) => {
                    // dropped: whatever state it was in, it has said that it is not prepared, and
                    // the session is closed, which undoes what is not.
                    let _ = session.plain(&format!("XA ROLLBACK {xid}")).await;
                    self.doubtful().remove(branch.gid());
                    Answer::No(reason.into())
                }
                Trouble::Unknown(text) => Answer::Unknown(text.into()),
            },
        }
    }

    /// Rolls back what an earlier attempt may have prepared.
    async fn undo(&self, session: &mut Session, branch: &Branch) -> Result<(), Answer> {
        let sql = format!("XA ROLLBACK {}", branch.xid());
        match session.plain(&sql).await {
            Ok(()) => Ok(()),
            Err(error) if is(&error, number::UNKNOWN_XID) => {
                if listed(session, branch).await.map_err(|error| unknown(&error))? {
                    return Err(attached());
                }
                Ok(())
            }
            Err(error) => Err(unknown(&error)),
        }
    }

    /// Makes what is prepared final.
    pub(super) async fn commit(&self, branch: &Branch) -> Answer {
        let sql = format!("XA COMMIT {}", branch.xid());
        match self.by_holder(branch, &sql).await {
            Some(Ok(())) => return Answer::Acknowledged,
            Some(Err(error)) if !is_broken(&error) && !is(&error, number::UNKNOWN_XID) => {
                return unknown(&error);
            }
            // There is no such session, or it is of no use any more: look with another.
            Some(Err(_)) | None => {}
        }
        let (lease, mut session, _) = match self.lease(Purpose::Settle).await {
            Ok(leased) => leased,
            Err(error) => return Answer::Unsent(error.text().into()),
        };
        if let Err(error) = self.until_closed(&mut session, branch).await {
            return unknown(&error);
        }
        let mut answer = attached();
        for _ in 0..LOOKS_MAX {
            answer = match session.plain(&sql).await {
                Ok(()) => {
                    answer = confirmed(&mut session, branch).await;
                    break;
                }
                Err(error) if is(&error, number::UNKNOWN_XID) => {
                    match listed(&mut session, branch).await {
                        Ok(true) => {
                            tokio::time::sleep(LOOK_INTERVAL).await;
                            attached()
                        }
                        Ok(false) => committed_before(&mut session, branch).await,
                        Err(error) => unknown(&error),
                    }
                }
                Err(error) if is(&error, number::ROLLED_BACK) => {
                    Answer::Contradiction(Contradiction::AlreadyRolledBack, said(&error).into())
                }
                Err(error) => return unknown(&error),
            };
            if !matches!(answer, Answer::Unknown(_)) {
                break;
            }
        }
        self.settled(lease, session, branch, answer)
    }

    /// Waits until the server knows no more of a session that was closed for another one.
    async fn until_closed(&self, session: &mut Session, branch: &Branch) -> Result<(), Error> {
        let Some(id) = self.holding().closed.get(branch.gid()).copied() else { return Ok(()) };
        let sql = format!("SELECT COUNT(*) FROM information_schema.processlist WHERE id = {id}");
        for _ in 0..LOOKS_MAX {
            let found: Option<u64> = session.connection.query_first(&sql).await?;
            // It is off the list a little before it is quite gone.
            tokio::time::sleep(LOOK_INTERVAL).await;
            if found == Some(0) {
                break;
            }
        }
        Ok(())
    }

    /// Ends what a session is doing now. If it cannot be ended, it is waited for.
    async fn stop_session(&self, id: u32) {
        if let Ok((lease, mut session, _)) = self.lease(Purpose::Settle).await
            && session.plain(&format!("KILL QUERY {id}")).await.is_ok()
        {
            give_back(lease, session);
        }
    }

    /// Undoes what is prepared, and sees to it that nothing is prepared later.
    pub(super) async fn rollback(&self, branch: &Branch) -> Answer {
        self.turns.stop(branch.gid(), |id| self.stop_session(id)).await;
        let (lease, mut session, _) = match self.lease(Purpose::Settle).await {
            Ok(leased) => leased,
            Err(error) => return Answer::Unsent(error.text().into()),
        };
        let sql = format!("XA ROLLBACK {}", branch.xid());
        let mark = insert(branch, "rolled_back");
        for _ in 0..LOOKS_MAX {
            // A prepare that was under way may have ended meanwhile.
            let undone = match self.by_holder(branch, &sql).await {
                Some(undone) => undone,
                None => session.plain(&sql).await,
            };
            match undone {
                Ok(()) => {}
                Err(error) if is(&error, number::UNKNOWN_XID) || is_broken(&error) => {}
                // It is rolled back, and was only waiting to be told.
                Err(error)
                    if is(&error, number::ROLLED_BACK)
                        || is(&error, number::ROLLED_BACK_AFTER_DEADLOCK)
                        || is(&error, number::ROLLED_BACK_AFTER_TIMEOUT) => {}
                Err(error) => return unknown(&error),
            }
            let answer = match session.plain(&mark).await {
                Ok(()) => Answer::Acknowledged,
                Err(error) if is(&error, number::DUPLICATE_KEY) => {
                    rolled_back_before(&mut session, branch).await
                }
                // Somebody holds the key: a prepare under way, or what it has prepared.
                Err(error) if is_in_the_way(&error) => continue,
                Err(error) => return unknown(&error),
            };
            return self.settled(lease, session, branch, answer);
        }
        give_back(lease, session);
        Answer::Unknown("a prepare of this branch is still under way".into())
    }

    fn settled(
        &self,
        lease: Lease<Session>,
        session: Session,
        branch: &Branch,
        answer: Answer,
    ) -> Answer {
        give_back(lease, session);
        if answer == Answer::Acknowledged {
            self.doubtful().remove(branch.gid());
            self.holding().closed.remove(branch.gid());
        }
        answer
    }
}

/// Why a branch's statements are no yes.
enum Failed {
    Statement(usize, Error),
    Rows(String),
}

impl Failed {
    fn answer(self) -> Answer {
        match self {
            Self::Rows(reason) => Answer::No(reason.into()),
            Self::Statement(index, error) => match judge(&error) {
                Trouble::No(reason) => {
                    Answer::No(format!("{reason} in statement {}", index + 1).into())
                }
                Trouble::Unknown(text) => Answer::Unknown(text.into()),
            },
        }
    }
}

/// The answer to a prepare that comes after its rollback.
fn late() -> Answer {
    Answer::No(LATE_REASON.into())
}

fn give_back(mut lease: Lease<Session>, session: Session) {
    lease.put(session);
    lease.give_back();
}

fn unknown(error: &Error) -> Answer {
    Answer::Unknown(said(error).into())
}

fn attached() -> Answer {
    Answer::Unknown("the branch is prepared, and the session that prepared it still lives".into())
}

/// The first word on a session failed.
fn broken(error: &Error) -> Done {
    if is_broken(error) { Done::Stale } else { Done::Answer(unknown(error)) }
}

/// Writes the branch's row. A gid has neither quotes nor backslashes.
fn insert(branch: &Branch, state: &str) -> String {
    format!("INSERT INTO unanimity_branch (gid, state) VALUES ('{}', '{state}')", branch.gid())
}

/// Ends a transaction that was not prepared, whatever has become of it.
async fn abandon(session: &mut Session, xid: &str) -> Result<(), Error> {
    match session.plain(&format!("XA END {xid}")).await {
        // After a deadlock it is only to be rolled back, and XA END says so.
        Err(error) if is_broken(&error) => return Err(error),
        Ok(()) | Err(_) => {}
    }
    session.plain(&format!("XA ROLLBACK {xid}")).await
}

/// The branch's row, once nobody who has written it is undecided still: it waits for the lock.
async fn state(session: &mut Session, branch: &Branch) -> Result<Option<String>, Error> {
    let sql = format!(
        "SELECT state FROM unanimity_branch WHERE gid = '{}' LOCK IN SHARE MODE",
        branch.gid()
    );
    session.connection.query_first(sql).await
}

/// What the server's word is worth that it has committed the branch of another session. A row that
/// is there then was written with the log: nobody else can have committed what was there for us.
async fn confirmed(session: &mut Session, branch: &Branch) -> Answer {
    match state(session, branch).await {
        Ok(Some(state)) if state == "committed" => Answer::Acknowledged,
        Ok(_) => Answer::Unknown("the server says committed, and the branch's row is not".into()),
        Err(error) => {
            tracing::warn!(
                branch = branch.gid(),
                "MariaDB says committed, and still locks the row"
            );
            Answer::Unknown(format!(
                "the server says committed, and still locks what the branch has written ({}); if \
                 that stays, it has lost sight of the branch, and finds it when it is restarted",
                said(&error)
            ).into())
        }
    }
}

/// The row, if it is there, so that no crash of the server takes it away again.
async fn seen(session: &mut Session, branch: &Branch) -> Result<Option<String>, Error> {
    let state = state(session, branch).await?;
    if state.is_some() {
        session.write_the_log().await?;
    }
    Ok(state)
}

async fn committed_before(session: &mut Session, branch: &Branch) -> Answer {
    match seen(session, branch).await {
        Ok(state) => result::nothing_to_commit(state.as_deref(), &branch.name.xid().to_string()),
        Err(error) => unknown(&error),
    }
}

async fn rolled_back_before(session: &mut Session, branch: &Branch) -> Answer {
    match seen(session, branch).await {
        Ok(state) => result::row_before_rollback(state.as_deref()),
        Err(error) => unknown(&error),
    }
}
