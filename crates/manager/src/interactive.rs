//! The manager's face for interactive transactions, and for operators who settle a branch by hand.

use tokio::sync::oneshot;
use unanimity_core::{
    BranchPlan, EnlistRefusal, Outcome, PlanError, ResolveRefusal, Stage, TransactionId,
};

use crate::error::{CommitError, EnlistError, ResolveError};
use crate::manager::TransactionManager;
use crate::shard::{Ask, Command, Committing, EnlistCommand};
use crate::view::TransactionView;
use crate::watchers::Wait;

/// A branch to be added to an interactive transaction.
#[derive(Clone, Debug)]
pub struct EnlistRequest {
    /// What it is asked for; the numbers in it are filled in from the names here.
    pub branch: BranchPlan,
    /// The names of the branches that it comes after.
    pub after: Vec<String>,
    /// The names of the branches whose results its payload refers to.
    pub refers: Vec<String>,
    /// The most branches that the transaction may have with this one.
    pub branches_max: usize,
}

impl TransactionManager {
    /// Adds a branch to an interactive transaction, and shows the transaction with it. Work for the
    /// branch may begin when this has returned. The same branch again is one branch.
    ///
    /// # Errors
    /// [`EnlistError`] says why not; nothing has changed then.
    pub async fn enlist(
        &self,
        id: &TransactionId,
        request: EnlistRequest,
    ) -> Result<TransactionView, EnlistError> {
        let EnlistRequest { branch, after, refers, branches_max } = request;
        if let Err((code, message)) = self.check_branch(&branch) {
            let error = PlanError { code, field: "participant".to_owned(), message };
            return Err(EnlistRefusal::Plan(error).into());
        }
        let (reply, replied) = oneshot::channel();
        let id_of = id.clone();
        let command = EnlistCommand { id: id_of, branch, after, refers, branches_max, reply };
        self.send(id, Command::Ask(Box::new(Ask::Enlist(command)))).await?;
        let enlisted = replied.await.map_err(|_| self.unavailable())?;
        let unknown = matches!(enlisted, Err(EnlistError::Refused(EnlistRefusal::Unknown)));
        if unknown && self.get(id).await?.is_some_and(|known| known.completed) {
            return Err(EnlistRefusal::NotOpen(Stage::Ended).into());
        }
        let shown = enlisted?;
        Ok(TransactionView::of(&shown))
    }

    /// Asks to commit an interactive transaction, and waits as `wait` says. Asking again is safe.
    ///
    /// # Errors
    /// [`CommitError`] says why not; nothing has changed then.
    pub async fn commit(
        &self,
        id: &TransactionId,
        wait: Wait,
    ) -> Result<TransactionView, CommitError> {
        let (reply, replied) = oneshot::channel();
        let ask = Ask::Commit { id: id.clone(), wait, reply };
        self.send(id, Command::Ask(Box::new(ask))).await?;
        let (shown, rolled_back) = match replied.await.map_err(|_| self.unavailable())? {
            Committing::Whole => return Err(CommitError::Whole),
            Committing::SetAside => return Err(CommitError::SetAside),
            Committing::Unknown => (None, false),
            Committing::Awaited(shown) => (Some(shown), false),
            Committing::RolledBack(shown) => (Some(shown), true),
        };
        let Some(shown) = shown else {
            let view = self.get(id).await?.ok_or(CommitError::Unknown)?;
            return ended(view);
        };
        let shown = shown.await.map_err(|_| self.unavailable())?;
        let Some(shown) = shown else { return Err(CommitError::Unknown) };
        let view = TransactionView::of(&shown);
        if rolled_back { Err(CommitError::RolledBack(Box::new(view))) } else { Ok(view) }
    }

    /// Takes an operator's word on how a branch was settled without the coordinator. Shows the
    /// transaction afterwards.
    ///
    /// # Errors
    /// [`ResolveError`] says why not; nothing has changed then.
    pub async fn resolve(
        &self,
        id: &TransactionId,
        branch: &str,
        outcome: Outcome,
        by: &str,
        reason: &str,
    ) -> Result<Option<TransactionView>, ResolveError> {
        let (reply, replied) = oneshot::channel();
        let (name, by, reason) = (branch.to_owned(), by.into(), reason.into());
        let ask = Ask::Resolve { id: id.clone(), branch: name, outcome, by, reason, reply };
        self.send(id, Command::Ask(Box::new(ask))).await?;
        let resolved = replied.await.map_err(|_| self.unavailable())?;
        let known = self.get(id).await?;
        match (resolved, known) {
            (Err(ResolveError::Refused(ResolveRefusal::Unknown)), Some(ended)) => {
                Err(ResolveError::ended(&ended, branch))
            }
            (resolved, known) => resolved.map(|()| known),
        }
    }
}

/// What a request to commit an ended transaction comes to.
fn ended(view: TransactionView) -> Result<TransactionView, CommitError> {
    if !view.interactive {
        Err(CommitError::Whole)
    } else if view.committed() {
        Ok(view)
    } else {
        Err(CommitError::RolledBack(Box::new(view)))
    }
}
