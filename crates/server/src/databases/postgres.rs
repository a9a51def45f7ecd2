//! A branch in PostgreSQL: BEGIN, the branch's row, its statements, PREPARE TRANSACTION; then
//! COMMIT PREPARED or ROLLBACK PREPARED.
//!
//! The row in the table [`TABLE`] is the branch's guard. It is inserted first and is part of what
//! is prepared, so it can be seen exactly when the branch is committed: that tells an acknowledged
//! commit from a branch that somebody else has rolled back. A rollback writes a row of its own, so
//! a late prepare fails on the key; a rollback that meets a prepare under way waits for it at the
//! same key. Nothing rests on knowing which process still lives.
//!
//! The rollback's row may be written without waiting for the disk: if the server loses it, the
//! server has also lost every session that a late prepare could have come from.

mod listing;
mod session;
mod trouble;
mod values;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use tokio_postgres::error::SqlState;
use tokio_postgres::{CancelToken, NoTls, Statement};
use unanimity::core::Answer;
use unanimity::core::guard::LATE_REASON;

use self::session::{NoSession, Running, Session, all_in_order};
use self::trouble::{Trouble, is, judge, said};
use super::pool::{Lease, Pool, Purpose};
use super::result;
use super::turn::{Turn, Turns};
use super::work::Work;
use super::{Branch, Ran, TABLE, Unusable};
use crate::config::DatabaseConfig;

/// What has been told is a promise, so the row of a committed branch is as durable as the branch.
const GUARD: &str = "INSERT INTO unanimity_branch (gid, state) VALUES ($1, 'committed')";
const LATE: &str = "INSERT INTO unanimity_branch (gid, state) VALUES ($1, 'rolled_back') \
                    ON CONFLICT (gid) DO NOTHING";
const STATE: &str = "SELECT state FROM unanimity_branch WHERE gid = $1";
const MAKE_TABLE: &str = "CREATE TABLE IF NOT EXISTS unanimity_branch (gid text PRIMARY KEY, \
    state text NOT NULL, made_at timestamptz NOT NULL DEFAULT now())";
/// How often a rollback looks again for a prepare that was under way.
const LOOKS_MAX: u32 = 8;

/// One PostgreSQL database.
pub(super) struct Postgres {
    config: DatabaseConfig,
    pool: Arc<Pool<Session>>,
    /// Branches of which an earlier attempt may have been prepared: its answer never came.
    doubtful: Mutex<HashSet<String>>,
    turns: Turns<CancelToken>,
}

/// What a local transaction came to.
enum Done {
    /// The statements ran, and their numbers of rows are right.
    Ran(Vec<Ran>),
    /// An answer that needs no more work.
    Answer(Answer),
    /// The session was dead when the first word was sent: another one may do.
    Stale,
    /// A statement was prepared for a table that has changed since.
    Outdated,
    /// It only seemed to read.
    Writes,
}

impl Postgres {
    pub(super) fn new(config: DatabaseConfig) -> Self {
        let settle = (config.pool_max / 4).max(1);
        let pool = Arc::new(Pool::new(config.pool_max - settle, settle));
        Self { config, pool, doubtful: Mutex::default(), turns: Turns::default() }
    }

    /// Whether the database can be used, and makes the table.
    pub(super) async fn check(&self) -> Result<(), Unusable> {
        let opened = Session::open(&self.config).await;
        let session = opened.map_err(|error| match error {
            NoSession::Down(text) => Unusable::Down(text),
            NoSession::Refused(text) => Unusable::Refused(text),
        })?;
        let down = |error: tokio_postgres::Error| Unusable::Down(said(&error));
        let row = session.client.query_one("SHOW max_prepared_transactions", &[]).await;
        let most: String = row.map_err(down)?.get(0);
        if most == "0" {
            return Err(Unusable::Refused(
                "the server prepares no transactions: set max_prepared_transactions in \
                 postgresql.conf to at least the number of its connections (max_connections), and \
                 restart it"
                    .into(),
            ));
        }
        let row = session.client.query_one("SELECT to_regclass('unanimity_branch') IS NULL", &[]);
        if row.await.map_err(down)?.get(0) {
            let make = format!("BEGIN READ WRITE; {MAKE_TABLE}; COMMIT");
            session.client.batch_execute(&make).await.map_err(|error| {
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

    /// A session, and whether it was used before.
    async fn lease(&self, purpose: Purpose) -> Result<(Lease<Session>, Session, bool), NoSession> {
        let mut lease = self.pool.lease(purpose).await;
        match lease.take() {
            Some(session) if !session.client.is_closed() => Ok((lease, session, true)),
            Some(_) | None => {
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
            turn.can_be_stopped_by(session.client.cancel_token()).await;
            let done = if reads {
                self.read(&mut session, work).await
            } else {
                self.write(&mut session, branch, work).await
            };
            let answer = match done {
                Done::Ran(ran) => {
                    let answer = result::answer(&ran, self.config.rows_max, reads);
                    self.promise(&session, branch, &turn, answer, reads).await
                }
                Done::Answer(answer) => answer,
                Done::Stale if used => {
                    self.pool.drop_idle();
                    continue;
                }
                Done::Outdated => {
                    session.forget_statements();
                    give_back(lease, session);
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
                return if matches!(answer, Answer::Yes(_)) { answer } else { late() };
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
        let statements = match self.statements(session, work).await {
            Ok(statements) => statements,
            Err(done) => return done,
        };
        let session = &*session;
        let mut running: Vec<Running<'_>> =
            vec![plain(session, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")];
        running.extend(self.running(session, &statements, work));
        running.push(plain(session, "COMMIT"));
        let mut all = all_in_order(running).await;
        all.pop();
        let mut all = all.into_iter();
        if let Some(Err(error)) = all.next() {
            return broken(&error);
        }
        match collect(all, work) {
            Err(Failed::Error(error)) if is(&error, &SqlState::READ_ONLY_SQL_TRANSACTION) => {
                Done::Writes
            }
            Err(failed) => failed.done(),
            Ok(ran) => Done::Ran(ran),
        }
    }

    /// Everything of a branch but the promise. The transaction stays open if it went well.
    async fn write(&self, session: &mut Session, branch: &Branch, work: &Work) -> Done {
        let gid = branch.gid();
        if self.doubtful().contains(gid) {
            match undo(session, branch).await {
                Ok(_) => drop(self.doubtful().remove(gid)),
                Err(error) => return Done::Answer(unknown(&error)),
            }
        }
        let statements = match self.statements(session, work).await {
            Ok(statements) => statements,
            Err(done) => return done,
        };
        let guard = match session.statement(GUARD).await {
            Ok(guard) => guard,
            Err(error) => return broken(&error),
        };
        let key = [Value::from(gid)];
        let all = {
            let session = &*session;
            let mut running: Vec<Running<'_>> = vec![plain(session, "BEGIN READ WRITE")];
            running.push(Box::pin(session.run(&guard, &key, 0)));
            running.extend(self.running(session, &statements, work));
            all_in_order(running).await
        };
        let mut all = all.into_iter();
        let failed = match (all.next(), all.next()) {
            (Some(Err(error)), _) => return broken(&error),
            (_, Some(Err(error))) => self.late(session, branch, &error).await,
            _ => match collect(all, work) {
                Ok(ran) => return Done::Ran(ran),
                Err(failed) => failed.done(),
            },
        };
        // What failed is undone at once, so that nobody waits for its locks.
        match session.client.batch_execute("ROLLBACK").await {
            Ok(()) => failed,
            Err(error) => Done::Answer(unknown(&error)),
        }
    }

    /// The branch's row could not be written: it is there already, or about to be.
    async fn late(
        &self,
        session: &mut Session,
        branch: &Branch,
        error: &tokio_postgres::Error,
    ) -> Done {
        if !is(error, &SqlState::UNIQUE_VIOLATION) {
            if is(error, &SqlState::LOCK_NOT_AVAILABLE) {
                self.doubtful().insert(branch.gid().to_owned());
            }
            return Done::Answer(unknown(error));
        }
        // The transaction has failed; looking needs another.
        if let Err(error) = session.client.batch_execute("ROLLBACK").await {
            return Done::Answer(unknown(&error));
        }
        Done::Answer(match state(session, branch).await {
            Ok(Some(state)) if state == "committed" => Answer::Yes(None),
            Ok(Some(_)) => Answer::No(LATE_REASON.into()),
            Ok(None) => Answer::Unknown("the branch's row was there and is gone".into()),
            Err(error) => unknown(&error),
        })
    }

    async fn statements(&self, session: &mut Session, work: &Work) -> Result<Vec<Statement>, Done> {
        let mut statements = Vec::with_capacity(work.statements.len());
        for (index, one) in work.statements.iter().enumerate() {
            let statement =
                session.statement(&one.sql).await.map_err(|error| at(index, judge(&error)))?;
            let (wanted, given) = (statement.params().len(), one.parameters.len());
            if wanted != given {
                let text = format!(
                    "statement_failed: statement {} takes {wanted} parameters, and has {given}",
                    index + 1
                );
                return Err(Done::Answer(Answer::No(text.into())));
            }
            statements.push(statement);
        }
        Ok(statements)
    }

    fn running<'a>(
        &self,
        session: &'a Session,
        statements: &'a [Statement],
        work: &'a Work,
    ) -> impl Iterator<Item = Running<'a>> {
        let rows_max = self.config.rows_max;
        statements.iter().zip(&work.statements).map(move |(statement, one)| {
            Box::pin(session.run(statement, &one.parameters, rows_max)) as Running<'a>
        })
    }

    /// Prepares what was done, if the answer is a yes.
    async fn promise(
        &self,
        session: &Session,
        branch: &Branch,
        turn: &Turn<'_, CancelToken>,
        answer: Answer,
        reads: bool,
    ) -> Answer {
        if reads {
            return answer;
        }
        let answer = if turn.is_stopped() { late() } else { answer };
        if !matches!(answer, Answer::Yes(_)) {
            return match session.client.batch_execute("ROLLBACK").await {
                Ok(()) => answer,
                Err(error) => unknown(&error),
            };
        }
        let gid = branch.gid();
        // If this call ends here, by its time limit too, nobody knows.
        self.doubtful().insert(gid.to_owned());
        let prepared = session.client.batch_execute(&format!("PREPARE TRANSACTION '{gid}'")).await;
        match prepared {
            Ok(()) => {
                self.doubtful().remove(gid);
                answer
            }
            Err(error) => match judge(&error) {
                Trouble::No(reason) => {
                    self.doubtful().remove(gid);
                    Answer::No(reason.into())
                }
                Trouble::Unknown(text) => Answer::Unknown(text.into()),
            },
        }
    }

    /// Makes what is prepared final.
    pub(super) async fn commit(&self, branch: &Branch) -> Answer {
        let (lease, mut session, _) = match self.lease(Purpose::Settle).await {
            Ok(leased) => leased,
            Err(error) => return Answer::Unsent(error.text().into()),
        };
        let sql = format!("COMMIT PREPARED '{}'", branch.gid());
        let answer = match session.client.batch_execute(&sql).await {
            Ok(()) => Answer::Acknowledged,
            Err(error) if is(&error, &SqlState::UNDEFINED_OBJECT) => {
                committed_before(&mut session, branch).await
            }
            Err(error) => unknown(&error),
        };
        self.settled(lease, session, branch, answer)
    }

    /// Undoes what is prepared, and sees to it that nothing is prepared later.
    pub(super) async fn rollback(&self, branch: &Branch) -> Answer {
        let cancel = |token: CancelToken| async move {
            // dropped: what cannot be stopped is waited for.
            let _ = token.cancel_query(NoTls).await;
        };
        self.turns.stop(branch.gid(), cancel).await;
        let (lease, mut session, _) = match self.lease(Purpose::Settle).await {
            Ok(leased) => leased,
            Err(error) => return Answer::Unsent(error.text().into()),
        };
        let answer = roll_back(&mut session, branch).await;
        self.settled(lease, session, branch, answer)
    }

    fn settled(
        &self,
        lease: Lease<Session>,
        session: Session,
        branch: &Branch,
        answer: Answer,
    ) -> Answer {
        if session.client.is_closed() {
            self.pool.drop_idle();
        } else {
            give_back(lease, session);
        }
        if answer == Answer::Acknowledged {
            self.doubtful().remove(branch.gid());
        }
        answer
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

fn plain<'a>(session: &'a Session, sql: &'static str) -> Running<'a> {
    Box::pin(async move { session.client.batch_execute(sql).await.map(|()| Ran::default()) })
}

fn unknown(error: &tokio_postgres::Error) -> Answer {
    Answer::Unknown(said(error).into())
}

/// The first word on a session failed.
fn broken(error: &tokio_postgres::Error) -> Done {
    if error.is_closed() { Done::Stale } else { Done::Answer(unknown(error)) }
}

/// What a branch's statements came to together, where it is no yes.
enum Failed {
    Error(tokio_postgres::Error),
    At(usize, Trouble),
    Rows(String),
}

impl Failed {
    fn done(self) -> Done {
        match self {
            Self::Error(error) => at(0, judge(&error)),
            Self::At(index, trouble) => at(index, trouble),
            Self::Rows(reason) => Done::Answer(Answer::No(reason.into())),
        }
    }
}

/// The first failure, which the later ones only follow.
fn collect(
    all: impl Iterator<Item = Result<Ran, tokio_postgres::Error>>,
    work: &Work,
) -> Result<Vec<Ran>, Failed> {
    let mut kept = Vec::new();
    for (index, one) in all.enumerate() {
        match one {
            Ok(ran) => {
                work.check_rows(index, ran.affected).map_err(Failed::Rows)?;
                kept.push(ran);
            }
            Err(error) if is(&error, &SqlState::READ_ONLY_SQL_TRANSACTION) => {
                return Err(Failed::Error(error));
            }
            Err(error) => return Err(Failed::At(index, judge(&error))),
        }
    }
    Ok(kept)
}

fn at(index: usize, trouble: Trouble) -> Done {
    match trouble {
        Trouble::No(reason) if reason.contains("cached plan must not change result type") => {
            Done::Outdated
        }
        Trouble::No(reason) => {
            Done::Answer(Answer::No(format!("{reason} in statement {}", index + 1).into()))
        }
        Trouble::Unknown(text) => Done::Answer(Answer::Unknown(text.into())),
    }
}

/// Rolls back what is prepared; whether there was anything.
async fn undo(session: &Session, branch: &Branch) -> Result<bool, tokio_postgres::Error> {
    let sql = format!("ROLLBACK PREPARED '{}'", branch.gid());
    match session.client.batch_execute(&sql).await {
        Ok(()) => Ok(true),
        Err(error) if is(&error, &SqlState::UNDEFINED_OBJECT) => Ok(false),
        Err(error) => Err(error),
    }
}

async fn state(
    session: &mut Session,
    branch: &Branch,
) -> Result<Option<String>, tokio_postgres::Error> {
    let statement = session.statement(STATE).await?;
    let row = session.client.query_opt(&statement, &[&branch.gid()]).await?;
    row.map(|row| row.try_get(0)).transpose()
}

async fn committed_before(session: &mut Session, branch: &Branch) -> Answer {
    match state(session, branch).await {
        Ok(state) => result::nothing_to_commit(state.as_deref(), branch.gid()),
        Err(error) => unknown(&error),
    }
}

async fn roll_back(session: &mut Session, branch: &Branch) -> Answer {
    let late = match session.statement(LATE).await {
        Ok(late) => late,
        Err(error) => return unknown(&error),
    };
    for look in 1..=LOOKS_MAX {
        if let Err(error) = undo(session, branch).await {
            return unknown(&error);
        }
        match remember(session, &late, branch).await {
            Ok(1) => return Answer::Acknowledged,
            Ok(_) => return rolled_back_before(session, branch).await,
            // A prepare is under way: it holds the key until it is prepared or has failed.
            Err(error) if is(&error, &SqlState::LOCK_NOT_AVAILABLE) && look < LOOKS_MAX => {}
            Err(error) => return unknown(&error),
        }
    }
    Answer::Unknown("a prepare of this branch is still under way".into())
}

/// Writes the row that a late prepare fails on.
async fn remember(
    session: &Session,
    late: &Statement,
    branch: &Branch,
) -> Result<u64, tokio_postgres::Error> {
    let begin = "BEGIN READ WRITE; SET LOCAL synchronous_commit = off";
    session.client.batch_execute(begin).await?;
    let written = session.client.execute(late, &[&branch.gid()]).await;
    session.client.batch_execute(if written.is_ok() { "COMMIT" } else { "ROLLBACK" }).await?;
    written
}

async fn rolled_back_before(session: &mut Session, branch: &Branch) -> Answer {
    match state(session, branch).await {
        Ok(state) => result::row_before_rollback(state.as_deref()),
        Err(error) => unknown(&error),
    }
}
