//! What the tests share: a service that writes down every piece of work it does, a place for its
//! file, and short ways to call it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use unanimity_sdk::guard::Reply;
use unanimity_sdk::rusqlite::{Connection, params};
use unanimity_sdk::{
    BranchContext, Busy, CallError, MemoryService, Operation, Participant, Request, ServiceResult,
    SqliteParticipant, SqliteService, TransactionId, Vote,
};

/// A folder that goes away with its owner.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("unanimity-sdk-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn file(&self) -> PathBuf {
        self.0.join("participant.db")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Does what its payload says, and writes down each time that it worked.
pub struct Diary;

fn note(db: &Connection, at: &BranchContext) -> ServiceResult<()> {
    let what = at.operation.as_str();
    let row = params![at.transaction.as_str(), &*at.branch, what];
    db.execute("INSERT INTO diary VALUES (?1, ?2, ?3)", row)?;
    Ok(())
}

fn vote(payload: &[u8]) -> ServiceResult<Vote> {
    // As it stands, or as a JSON string.
    let quoted = payload.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\""));
    match quoted.unwrap_or(payload) {
        b"no" => Ok(Vote::no("said no")),
        b"read_only" => Ok(Vote::ReadOnly),
        b"result" => Ok(Vote::YesWith(serde_json::json!({"seat": 7}))),
        b"huge" => Ok(Vote::YesWith("x".repeat(100_000).into())),
        b"error" => Err("said error".into()),
        b"busy" => Err(Busy("seat 7 is held".to_owned()).into()),
        b"panic" => panic!("said panic"),
        _ => Ok(Vote::Yes),
    }
}

impl SqliteService for Diary {
    fn migrate(&self, db: &Connection) -> ServiceResult<()> {
        let table = "CREATE TABLE IF NOT EXISTS diary (id TEXT, branch TEXT, what TEXT)";
        Ok(db.execute_batch(table)?)
    }

    fn prepare(&self, db: &Connection, at: &BranchContext, payload: &[u8]) -> ServiceResult<Vote> {
        note(db, at)?;
        if payload == b"end" {
            db.execute_batch("COMMIT")?;
        }
        vote(payload)
    }

    fn commit(&self, db: &Connection, at: &BranchContext, _: &[u8]) -> ServiceResult<()> {
        note(db, at)
    }

    fn rollback(&self, db: &Connection, at: &BranchContext, _: &[u8]) -> ServiceResult<()> {
        note(db, at)
    }

    fn execute(&self, db: &Connection, at: &BranchContext, payload: &[u8]) -> ServiceResult<Vote> {
        note(db, at)?;
        vote(payload)
    }

    fn compensate(&self, db: &Connection, at: &BranchContext, _: &[u8]) -> ServiceResult<()> {
        note(db, at)
    }
}

/// The same without a database: it keeps no diary.
pub struct Plain;

impl MemoryService for Plain {
    fn prepare(&self, _: &BranchContext, payload: &[u8]) -> ServiceResult<Vote> {
        vote(payload)
    }

    fn commit(&self, _: &BranchContext, _: &[u8]) -> ServiceResult<()> {
        Ok(())
    }

    fn rollback(&self, _: &BranchContext, _: &[u8]) -> ServiceResult<()> {
        Ok(())
    }
}

pub fn id(name: &str) -> TransactionId {
    TransactionId::new(name).unwrap()
}

pub fn request(transaction: &str, operation: Operation, payload: &'static str) -> Request {
    Request {
        transaction: id(transaction),
        branch: "b".into(),
        operation,
        attempt: 1,
        payload: payload.into(),
    }
}

/// An answer as one short text.
pub fn text(answer: Result<Reply, CallError>) -> String {
    match answer {
        Ok(Reply::Yes(None)) => "yes".to_owned(),
        Ok(Reply::Yes(Some(result))) => format!("yes({result})"),
        Ok(Reply::ReadOnly) => "read_only".to_owned(),
        Ok(Reply::No(reason)) => format!("no({reason})"),
        Ok(Reply::Acknowledged) => "ack".to_owned(),
        Err(CallError::Contradiction(contradiction)) => contradiction.code().to_owned(),
        Err(CallError::Failed(error)) => format!("failed({error})"),
        Err(CallError::Busy(what)) => format!("busy({what})"),
    }
}

/// Plays a script such as `prepare:no rollback` against one branch, and gives the answers.
pub async fn play(
    participant: &dyn Participant,
    transaction: &str,
    script: &'static str,
) -> String {
    let mut answers = Vec::new();
    for step in script.split(' ') {
        let (word, payload) = step.split_once(':').unwrap_or((step, ""));
        let operation = Operation::from_word(word).unwrap();
        answers.push(text(participant.call(request(transaction, operation, payload)).await));
    }
    answers.join(" ")
}

/// What the diary says that was done for a transaction, in order, as one text.
pub async fn diary(participant: &SqliteParticipant, transaction: &'static str) -> String {
    let sql = "SELECT coalesce(group_concat(what, ' '), '') FROM diary WHERE id = ?1";
    let read = move |db: &Connection| db.query_row(sql, [transaction], |row| row.get(0));
    participant.read(read).await.unwrap()
}

pub fn open(path: &Path) -> SqliteParticipant {
    SqliteParticipant::open(path, Diary).unwrap()
}
