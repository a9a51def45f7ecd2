//! One transaction of each style, between the same two accounts, and an initiator that asks for it
//! until it knows the outcome, whatever dies meanwhile.

use std::time::Duration;

use unanimity_sdk::api::{BranchRequest, Kind, Outcome, TransactionRequest};
use unanimity_sdk::{Client, ClientError, TransactionId};
use unanimity_server::demo::load::{order, transfer};

use crate::setup::PATIENCE;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    TwoPhase,
    Compensable,
    Deferred,
    /// All three kinds in one.
    Mixed,
    Interactive,
    /// One branch, which alone decides.
    OnePhase,
}

impl Style {
    pub const ALL: [Self; 6] = [
        Self::TwoPhase,
        Self::Compensable,
        Self::Deferred,
        Self::Mixed,
        Self::Interactive,
        Self::OnePhase,
    ];

    /// What one such transaction that commits brings into the world, in cents.
    pub const fn makes_cents(self) -> i64 {
        if matches!(self, Self::OnePhase) { -CENTS } else { 0 }
    }

    pub fn request(self, id: &str, participants: &[String; 2]) -> TransactionRequest {
        let mut request = transfer(id, participants, ["A-1", "B-1"], CENTS, 10_000);
        let kinds = |request: &mut TransactionRequest, kinds: [Kind; 2]| {
            for (branch, kind) in request.branches.iter_mut().zip(kinds) {
                branch.kind = kind;
            }
        };
        match self {
            Self::TwoPhase => {}
            Self::Compensable => kinds(&mut request, [Kind::Compensable, Kind::Compensable]),
            Self::Deferred => kinds(&mut request, [Kind::TwoPhase, Kind::Deferred]),
            Self::Mixed => request.branches = order(id, participants, "B-1").branches,
            Self::Interactive => request.interactive = true,
            Self::OnePhase => request.branches.truncate(1),
        }
        request
    }
}

const CENTS: i64 = 7;

/// Asks under the same id until the outcome is known.
pub async fn until_known(client: Client, request: TransactionRequest) -> Outcome {
    let mut ticks = tokio::time::interval(Duration::from_millis(10));
    let asking = async {
        loop {
            ticks.tick().await;
            let asked = match request.interactive {
                true => interactively(&client, &request).await,
                false => client.begin(&request).await.map(|begun| begun.outcome),
            };
            match asked {
                Ok(Some(outcome)) => return outcome,
                Ok(None) | Err(ClientError::NoAnswer(_)) => {}
                Err(ClientError::Refused { status: 500 | 503, .. }) => {}
                Err(error) => panic!("{:?}: {error}", request.id),
            }
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.expect("an outcome in time")
}

async fn interactively(
    client: &Client,
    request: &TransactionRequest,
) -> Result<Option<Outcome>, ClientError> {
    let id = TransactionId::new(request.id.as_deref().unwrap()).unwrap();
    let empty = TransactionRequest { branches: Vec::new(), ..request.clone() };
    let begun = client.begin(&empty).await?;
    if begun.outcome.is_some() {
        return Ok(begun.outcome);
    }
    let open = client.join(id.clone());
    for branch in &request.branches {
        if !enlisted(open.enlist(branch).await.map(drop), branch)? {
            break;
        }
    }
    match open.commit().await {
        Err(error) if error.code() == Some("already_decided") => {}
        asked => return Ok(asked?.outcome),
    }
    Ok(client.get(&id, None).await?.outcome)
}

/// Whether the next branch can be enlisted; not if the transaction went on meanwhile.
fn enlisted(asked: Result<(), ClientError>, branch: &BranchRequest) -> Result<bool, ClientError> {
    match asked {
        Err(error) if matches!(error.code(), Some("not_open" | "transaction_unknown")) => {
            println!("{}: {error}", branch.name);
            Ok(false)
        }
        asked => asked.map(|()| true),
    }
}
