//! The plain face for a Rust program without any server: services are values in this process, and
//! [`LocalTransactionManager::execute_transaction`] makes their parts of the work happen everywhere
//! or nowhere. Decides what is wrong with a request before anything is sent; what a service does
//! with its operations is the service's.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use unanimity_core::{
    Answer, BranchPlan, Call, Kind, Operation as Asked, Options, Plan, TransactionId,
};

use crate::beginning::{Admitted, BeginReply, BeginRequest};
use crate::error::{BeginError, StartError, Unavailable};
use crate::manager::TransactionManager;
use crate::operation::Operation;
use crate::starting::ManagerConfig;
use crate::transport::{CallFuture, Transport};
use crate::view::TransactionView;
use crate::watchers::Wait;

/// How a service votes when it is asked to prepare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Vote {
    /// It promises that it can commit and that it can roll back.
    Yes,
    /// It refuses, for this reason; it has kept nothing of the work.
    No(String),
    /// It has nothing to commit: leave it out of phase two.
    ReadOnly,
}

/// A participant in this process.
///
/// Each method may be called again with the same transaction, and `rollback` may come without or
/// before its `prepare`: a repeated call must do nothing and answer as the first did. The rules and
/// a ready implementation of them are in [`unanimity_core::guard`]; [`crate::RecordService`] uses
/// it.
///
/// The methods run on the async runtime's threads. One that blocks for long says so in
/// [`Service::blocks`] and gets a thread for blocking work.
pub trait Service: Send + Sync + 'static {
    /// Does the operations so that they can be committed and can be undone, and votes.
    fn prepare(&self, transaction_id: &TransactionId, operations: &[Arc<dyn Operation>]) -> Vote;

    /// Makes the prepared operations final. May not refuse: an error is retried until it succeeds.
    ///
    /// # Errors
    /// A text for the timeline.
    fn commit(&self, transaction_id: &TransactionId) -> Result<(), String>;

    /// Undoes the prepared operations. May not refuse: an error is retried until it succeeds.
    ///
    /// # Errors
    /// A text for the timeline.
    fn rollback(&self, transaction_id: &TransactionId) -> Result<(), String>;

    /// Whether the methods may block a thread for more than some microseconds.
    fn blocks(&self) -> bool {
        false
    }
}

/// What became of a transaction: a plain yes or no, with the reason at hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Executed {
    transaction: TransactionView,
}

impl Executed {
    /// Whether all of it happened. If not, none of it did.
    #[must_use]
    pub fn committed(&self) -> bool {
        self.transaction.committed()
    }

    /// Why, in words: `all_yes`, or for example
    /// `voted_no by accounts: account A has 50, needs 100`.
    #[must_use]
    pub fn reason(&self) -> String {
        let Some(reason) = &self.transaction.reason else { return "undecided".to_owned() };
        let branch = reason.branch.as_ref().map_or(String::new(), |name| format!(" by {name}"));
        let detail = reason.detail.as_ref().map_or(String::new(), |text| format!(": {text}"));
        format!("{}{branch}{detail}", reason.code)
    }

    /// The transaction in full.
    #[must_use]
    pub fn transaction(&self) -> &TransactionView {
        &self.transaction
    }
}

/// Why a transaction was not begun. Nothing was sent to any service, except with `Begin` of kind
/// [`crate::Unavailable::ShardFailed`], where nobody knows.
#[derive(Debug, thiserror::Error)]
pub enum ExecuteError {
    /// No service was named.
    #[error("no services were named; a transaction needs at least one")]
    NoServices,
    /// The lists do not match.
    #[error("{services} services were named, but {lists} lists of operations were given")]
    LengthMismatch {
        /// How many services were named.
        services: usize,
        /// How many lists of operations were given.
        lists: usize,
    },
    /// A service that nobody registered.
    #[error("there is no service {0:?}; register it when the manager starts")]
    UnknownService(String),
    /// A service named twice.
    #[error("service {0:?} was named twice; give it all of its operations in one list")]
    RepeatedService(String),
    /// A service with nothing to do.
    #[error("service {0:?} was given no operations; leave it out")]
    NoOperations(String),
    /// The manager refused.
    #[error(transparent)]
    Begin(#[from] BeginError),
}

impl ExecuteError {
    /// The stable code.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NoServices => "no_services",
            Self::LengthMismatch { .. } => "length_mismatch",
            Self::UnknownService(_) => "unknown_service",
            Self::RepeatedService(_) => "repeated_service",
            Self::NoOperations(_) => "no_operations",
            Self::Begin(_) => "begin",
        }
    }
}

/// A transaction manager whose participants live in this process.
///
/// ```
#[doc = include_str!("../examples/in_process.rs")]
/// ```
#[derive(Clone)]
pub struct LocalTransactionManager {
    manager: TransactionManager,
    transport: Arc<LocalTransport>,
}

impl LocalTransactionManager {
    /// Starts a manager for these services, each under its name.
    ///
    /// # Errors
    /// [`StartError`], also for a name that is not 1 to 128 of `A-Z a-z 0-9 . _ : -`.
    pub fn start<N: Into<String>>(
        config: ManagerConfig,
        services: impl IntoIterator<Item = (N, Arc<dyn Service>)>,
    ) -> Result<Self, StartError> {
        let mut registered: BTreeMap<Arc<str>, Arc<dyn Service>> = BTreeMap::new();
        for (name, service) in services {
            let name: String = name.into();
            unanimity_core::check_id(&name).map_err(|error| {
                StartError::Configuration(format!("the service name {name:?} {error}"))
            })?;
            if registered.insert(Arc::from(name.as_str()), service).is_some() {
                let message = format!("two services are named {name:?}");
                return Err(StartError::Configuration(message));
            }
        }
        let transport =
            Arc::new(LocalTransport { services: registered, operations: Mutex::default() });
        let manager = TransactionManager::start(config, Arc::new(Arc::clone(&transport)))?;
        Ok(Self { manager, transport })
    }

    /// Has each named service do its list of operations: all of them, or none.
    ///
    /// Returns when the decision is durable; the services are told at once, and again until each
    /// has acknowledged.
    ///
    /// # Errors
    /// [`ExecuteError`] says what is wrong with the request. A service's refusal is no error: it is
    /// an outcome, see [`Executed::committed`].
    pub async fn execute_transaction(
        &self,
        services: &[&str],
        operations_per_service: Vec<Vec<Arc<dyn Operation>>>,
    ) -> Result<Executed, ExecuteError> {
        self.execute_with(services, operations_per_service, Options::default()).await
    }

    /// The same, with timeouts of one's own.
    ///
    /// # Errors
    /// As [`Self::execute_transaction`].
    pub async fn execute_with(
        &self,
        services: &[&str],
        operations_per_service: Vec<Vec<Arc<dyn Operation>>>,
        options: Options,
    ) -> Result<Executed, ExecuteError> {
        let names = self.check(services, &operations_per_service)?;
        let admitted = self.manager.admit()?;
        let id = admitted.generate_id();
        let branches = names.iter().map(branch).collect();
        let held = self.transport.hold(&id, names, operations_per_service);
        // Operations are prepared here and committed later; there is no third way for them.
        let options = Options { one_phase: false, ..options };
        let plan = Plan { open: false, branches, options };
        let request = BeginRequest::fresh(id, plan, Wait::Outcome);
        let begun = begin(admitted, request, held).await?;
        Ok(Executed { transaction: begun.transaction })
    }

    /// The manager itself: lists, timelines, retries.
    #[must_use]
    pub const fn manager(&self) -> &TransactionManager {
        &self.manager
    }

    /// Finishes what is live for at most `patience`, and closes the files.
    pub async fn stop(&self, patience: Duration) {
        self.manager.stop(patience).await;
    }

    /// What is wrong with a request, before anything is sent.
    fn check(
        &self,
        services: &[&str],
        operations: &[Vec<Arc<dyn Operation>>],
    ) -> Result<Vec<Arc<str>>, ExecuteError> {
        if services.is_empty() {
            return Err(ExecuteError::NoServices);
        }
        if services.len() != operations.len() {
            let (services, lists) = (services.len(), operations.len());
            return Err(ExecuteError::LengthMismatch { services, lists });
        }
        let (mut seen, mut names) = (BTreeSet::new(), Vec::new());
        for (name, operations) in services.iter().zip(operations) {
            let Some((known, _)) = self.transport.services.get_key_value(*name) else {
                return Err(ExecuteError::UnknownService((*name).to_owned()));
            };
            if !seen.insert(*name) {
                return Err(ExecuteError::RepeatedService((*name).to_owned()));
            }
            if operations.is_empty() {
                return Err(ExecuteError::NoOperations((*name).to_owned()));
            }
            names.push(Arc::clone(known));
        }
        Ok(names)
    }
}

/// Begins in a task of its own: a caller that gives up waiting stops neither the transaction nor
/// the release of its operations once phase one is over.
async fn begin(
    admitted: Admitted,
    request: BeginRequest,
    held: Held,
) -> Result<BeginReply, BeginError> {
    let task = tokio::spawn(async move {
        let begun = admitted.begin(request).await;
        drop(held);
        begun
    });
    match task.await {
        Ok(begun) => begun,
        Err(_) => Err(Unavailable::ShardFailed.into()), // Lost with the runtime, or a panic.
    }
}

impl fmt::Debug for LocalTransactionManager {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let services: Vec<_> = self.transport.services.keys().collect();
        formatter
            .debug_struct("LocalTransactionManager")
            .field("services", &services)
            .field("transactions_in_phase_one", &self.transport.held_count())
            .finish()
    }
}

fn branch(name: &Arc<str>) -> BranchPlan {
    BranchPlan::new(Arc::clone(name), Arc::clone(name), Kind::TwoPhase)
}

type Operations = Vec<Arc<dyn Operation>>;
type PerService = Arc<Vec<(Arc<str>, Operations)>>;

/// Carries calls to services in this process. Operations are values, not bytes: they wait here
/// until their transaction is decided, and are gone with the process, as the service's own memory
/// is.
struct LocalTransport {
    services: BTreeMap<Arc<str>, Arc<dyn Service>>,
    operations: Mutex<HashMap<TransactionId, PerService>>,
}

impl LocalTransport {
    fn hold(
        self: &Arc<Self>,
        id: &TransactionId,
        names: Vec<Arc<str>>,
        operations: Vec<Operations>,
    ) -> Held {
        let held = Arc::new(names.into_iter().zip(operations).collect());
        self.operations.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), held);
        Held { transport: Arc::clone(self), id: id.clone() }
    }

    fn release(&self, id: &TransactionId) {
        self.operations.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    fn held(&self, id: &TransactionId) -> Option<PerService> {
        self.operations.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    fn held_count(&self) -> usize {
        self.operations.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn ask(&self, service: &dyn Service, call: &Call) -> Answer {
        let id = &call.transaction;
        let acknowledged = |done: Result<(), String>| match done {
            Ok(()) => Answer::Acknowledged,
            Err(error) => Answer::Unknown(error.into()),
        };
        match call.operation {
            Asked::Prepare => {
                let Some(held) = self.held(id) else {
                    return Answer::No("its operations were lost with the process".into());
                };
                let mine = held.iter().find(|(name, _)| *name == call.plan.name);
                match service.prepare(id, mine.map_or(&[][..], |(_, operations)| operations)) {
                    Vote::Yes => Answer::Yes(None),
                    Vote::ReadOnly => Answer::ReadOnly,
                    Vote::No(reason) => Answer::No(reason.into()),
                }
            }
            Asked::Commit => acknowledged(service.commit(id)),
            Asked::Rollback => acknowledged(service.rollback(id)),
            Asked::CommitOnePhase | Asked::Inquire => Answer::Unsupported,
            Asked::Execute | Asked::Compensate => {
                Answer::Unknown("a service in this process takes two-phase branches only".into())
            }
        }
    }
}

/// A transaction's operations, held until this is dropped.
struct Held {
    transport: Arc<LocalTransport>,
    id: TransactionId,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.transport.release(&self.id);
    }
}

impl Transport for Arc<LocalTransport> {
    fn call(&self, call: Call) -> CallFuture<'_> {
        let transport = Arc::clone(self);
        Box::pin(async move {
            let Some(service) = transport.services.get(&call.plan.participant).cloned() else {
                return Answer::Unknown("no such service is registered".into());
            };
            if !service.blocks() {
                return transport.ask(&*service, &call);
            }
            let asked = tokio::task::spawn_blocking(move || transport.ask(&*service, &call));
            asked.await.unwrap_or_else(|error| Answer::Unknown(error.to_string().into()))
        })
    }

    fn check(&self, participant: &str) -> Result<(), (&'static str, String)> {
        if self.services.contains_key(participant) {
            return Ok(());
        }
        Err(("unknown_service", format!("there is no service {participant:?}")))
    }
}
