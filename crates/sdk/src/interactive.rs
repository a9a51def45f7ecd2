//! Decides how an initiator works with an interactive transaction: a scope that commits when its
//! function succeeds and rolls back when it fails, and the single steps for those who need them. A
//! step without an answer is asked for again, as `unanimity_core::Asking` decides.

use std::future::Future;

use bytes::Bytes;
use unanimity_core::{Asked, TransactionId, asks_status};

use crate::api::{BranchRequest, Outcome, TransactionRequest, TransactionStatus};
use crate::client::{Client, ClientError};

/// An interactive transaction that is open.
#[derive(Clone, Debug)]
pub struct OpenTransaction {
    pub(crate) client: Client,
    pub(crate) id: TransactionId,
}

/// How a scope ended that did not commit.
#[derive(Debug, thiserror::Error)]
pub enum TransactionError<E> {
    /// The function failed; the transaction is rolled back, or will be when its time is over.
    #[error("the transaction was given up: {0}")]
    GivenUp(E),
    /// A branch said no, or the time was over: everything is rolled back.
    #[error("rolled back: {}", reason_of(.0))]
    RolledBack(Box<TransactionStatus>),
    /// The outcome is not known yet: one participant alone knows it, and is being asked.
    #[error("transaction {}: the outcome is not known yet", .0.id)]
    Undecided(Box<TransactionStatus>),
    /// The coordinator could not be asked, or refused. Whether the transaction commits is not known
    /// if this happened after it was asked to commit: ask for it by its id.
    #[error("transaction {id}: {error}")]
    Client {
        /// The transaction, if it had begun.
        id: TransactionId,
        /// What went wrong.
        error: ClientError,
    },
}

fn reason_of(status: &TransactionStatus) -> &str {
    status
        .reason
        .as_ref()
        .map_or("no reason is known", |reason| reason.detail.as_deref().unwrap_or(&reason.code))
}

impl Client {
    /// Begins an interactive transaction, hands it to `work`, and commits it if that succeeds; if
    /// it fails, everything is rolled back. `request` says which options it has; `interactive` is
    /// set here, and an id is chosen if it has none.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// use unanimity_sdk::api::{BranchRequest, TransactionRequest};
    /// use unanimity_sdk::{Client, ClientError};
    /// let client = Client::new("http://127.0.0.1:7171", None)?;
    /// let status = client
    ///     .transaction(TransactionRequest::default(), |open| async move {
    ///         open.enlist(&BranchRequest {
    ///             name: "stock".into(),
    ///             participant: "http://127.0.0.1:7001/stock".into(),
    ///             ..BranchRequest::default()
    ///         })
    ///         .await?;
    ///         Ok::<_, ClientError>(())
    ///     })
    ///     .await?;
    /// println!("{:?}", status.outcome);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`TransactionError`].
    pub async fn transaction<E, F>(
        &self,
        request: TransactionRequest,
        work: impl FnOnce(OpenTransaction) -> F,
    ) -> Result<TransactionStatus, TransactionError<E>>
    where
        F: Future<Output = Result<(), E>>,
    {
        let open = self.open(request).await?;
        if let Err(error) = work(open.clone()).await {
            if let Err(unheard) = open.rollback().await {
                tracing::warn!(transaction = %open.id, error = %unheard,
                    "the rollback could not be asked for; it follows when the time is over");
            }
            return Err(TransactionError::GivenUp(error));
        }
        let id = open.id.clone();
        let known = |error| TransactionError::Client { id: id.clone(), error };
        let committed = match open.commit().await {
            // What became of it is known, also where the first answer was lost.
            Err(error) if asks_status(Asked::Commit, error.unheard()) => {
                self.get(&open.id, None).await.map_err(known)?
            }
            answered => answered.map_err(known)?,
        };
        match committed.outcome {
            Some(Outcome::Rollback) => Err(TransactionError::RolledBack(Box::new(committed))),
            Some(Outcome::Commit) => Ok(committed),
            None => Err(TransactionError::Undecided(Box::new(committed))),
        }
    }

    /// Begins an interactive transaction. It is rolled back if nobody asks to commit it in time.
    ///
    /// # Errors
    /// [`TransactionError::Client`].
    pub async fn open<E>(
        &self,
        mut request: TransactionRequest,
    ) -> Result<OpenTransaction, TransactionError<E>> {
        request.interactive = true;
        let chosen = request.id.get_or_insert_with(random_id).clone();
        let id = TransactionId::new(&chosen).or_else(|_| TransactionId::new("unnamed"));
        let Ok(id) = id else { panic!("a plain word is a name") };
        let begun = async {
            let body = json_of(&request)?;
            self.persist::<TransactionStatus>(Asked::Begin, "/v1/transactions", Some(body)).await
        };
        match begun.await {
            Ok(_) => Ok(OpenTransaction { client: self.clone(), id }),
            Err(error) => Err(TransactionError::Client { id, error }),
        }
    }

    /// An interactive transaction that somebody else began: a service that was called within it
    /// enlists itself, by the id in its header.
    #[must_use]
    pub fn join(&self, id: TransactionId) -> OpenTransaction {
        OpenTransaction { client: self.clone(), id }
    }
}

fn json_of(body: &impl serde::Serialize) -> Result<Bytes, ClientError> {
    let body = serde_json::to_vec(body);
    body.map(Into::into).map_err(|error| ClientError::Unusable(error.to_string()))
}

/// A name that nobody else has chosen: the time and what the standard library hashes with.
fn random_id() -> String {
    use std::hash::{BuildHasher, RandomState};
    let random = RandomState::new().hash_one(0_u8);
    format!("{:x}-{random:016x}", crate::now_ms())
}

impl OpenTransaction {
    /// Its id: what a service needs to enlist itself, in the header `Unanimity-Transaction`.
    #[must_use]
    pub const fn id(&self) -> &TransactionId {
        &self.id
    }

    /// Adds a branch. Work for it may begin when this has returned; the same branch again is one
    /// branch.
    ///
    /// # Errors
    /// [`ClientError`]; refusals are `not_open`, `branch_conflict`, and those of a request to
    /// begin.
    pub async fn enlist(&self, branch: &BranchRequest) -> Result<TransactionStatus, ClientError> {
        let path = format!("/v1/transactions/{}/branches", self.id);
        self.client.persist(Asked::Enlist, &path, Some(json_of(branch)?)).await
    }

    /// Asks to commit, and waits for the outcome. Asking again is safe.
    ///
    /// # Errors
    /// [`ClientError`]; `already_decided` if it was rolled back before.
    pub async fn commit(&self) -> Result<TransactionStatus, ClientError> {
        let path = format!("/v1/transactions/{}/commit", self.id);
        self.client.persist(Asked::Commit, &path, None).await
    }

    /// Rolls everything back. One with an inquiry asks there first: the answer may then say
    /// `settling`, and have no outcome yet.
    ///
    /// # Errors
    /// [`ClientError`]; `already_decided` if it is committed.
    pub async fn rollback(&self) -> Result<TransactionStatus, ClientError> {
        let path = format!("/v1/transactions/{}/rollback", self.id);
        self.client.persist(Asked::Rollback, &path, None).await
    }
}
