//! What a transaction alone costs on this machine with nothing behind it: a process that does what
//! the coordinator does for one, and knows nothing of transactions. It takes a request, appends and
//! syncs a record on the thread that serves it, sends a payload at once to two processes that echo
//! it, appends and syncs once more, answers, and then sends both the message that a decision is. It
//! is a plain program of the coordinator's shape: the same engine, the same server, the client of
//! the SDK. What the coordinator takes beyond it is its own; not all of what this takes must be.

use std::path::Path;
use std::sync::{Arc, Mutex};

use anyhow::{anyhow, bail};
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use unanimity_journal::{Engine, LogEngine};
use unanimity_sdk::api::Json;
use unanimity_sdk::{Client, ClientOptions};

use super::http::payload;
use super::latency::RECORD_BYTES;

/// What the process is.
pub(super) struct Bare {
    participants: [Client; 2],
    /// And the next position.
    journal: Mutex<(LogEngine, u64)>,
}

impl Bare {
    /// One with a journal at this path, before two participants.
    pub(super) fn open(journal: &Path, participants: &[String]) -> anyhow::Result<Arc<Self>> {
        let client = |url: &String| Client::with_options(url, None, ClientOptions::default());
        let [first, second] = participants else { bail!("it stands before two participants") };
        let participants = [client(first)?, client(second)?];
        let mut engine = LogEngine::open(journal)?;
        engine.harden(0)?;
        let next = engine.bounds(0)?.next;
        Ok(Arc::new(Self { participants, journal: Mutex::new((engine, next)) }))
    }

    fn append(&self) -> anyhow::Result<()> {
        let mut journal = self.journal.lock().map_err(|_| anyhow!("an append has panicked"))?;
        let (engine, next) = &mut *journal;
        // What was appended before is forgotten with it, as a coordinator's is.
        engine.append_and_truncate(0, *next, &[&[0xA5; RECORD_BYTES]], Some(*next))?;
        *next += 1;
        Ok(())
    }

    async fn call_all(&self, request: &Json) -> anyhow::Result<()> {
        let [first, second] = &self.participants;
        let (first, second) =
            (first.post_json("/echo", request), second.post_json("/echo", request));
        let _told: (Json, Json) = tokio::try_join!(first, second)?;
        Ok(())
    }

    async fn run(self: Arc<Self>, request: Json) -> anyhow::Result<Json> {
        let payload = payload("pay");
        self.append()?;
        self.call_all(&payload).await?;
        self.append()?;
        let bare = Arc::clone(&self);
        tokio::spawn(async move { drop(bare.call_all(&payload).await) });
        Ok(request)
    }
}

/// What it answers to.
pub(super) fn router(bare: Arc<Bare>) -> Router {
    let run = |State(bare): State<Arc<Bare>>, axum::Json(request): axum::Json<Json>| async {
        match bare.run(request).await {
            Ok(told) => Ok(axum::Json(told)),
            Err(_) => Err(StatusCode::INTERNAL_SERVER_ERROR),
        }
    };
    Router::new().route("/echo", post(run)).with_state(bare)
}
