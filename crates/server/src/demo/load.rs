//! The initiators of the demo: transfers between accounts of two banks, each asked for again under
//! the same id until its outcome is known.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use unanimity_sdk::api::{
    BranchRequest, Json, Kind, Outcome, TransactionRequest, TransactionStatus,
};
use unanimity_sdk::{Client, ClientError, TransactionId};

use unanimity::core::splitmix64;

use super::now_ms;
use super::orders::Orders;

/// How long an initiator waits before it asks again.
const ASK_AGAIN: Duration = Duration::from_millis(20);

/// What the transfers are like.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// How many.
    pub transfers: usize,
    /// How many at once.
    pub concurrency: usize,
    /// What they are drawn from.
    pub seed: u64,
    /// How many accounts each bank has.
    pub accounts: u32,
    /// In milliseconds, for each transaction.
    pub prepare_timeout_ms: u64,
    /// If kinds of branches and ways to commit are mixed, rather than all transfers two-phase: the
    /// database of the initiator that sends messages.
    pub orders: Option<Arc<Orders>>,
}

/// What one initiator does.
struct Work {
    request: TransactionRequest,
    /// What its commit adds to the money of both banks, in cents.
    adds_cents: i64,
    /// Whether the initiator's own database decides.
    is_message: bool,
}

/// What was acknowledged to the initiators, and how long it took.
#[derive(Debug, Default)]
pub struct Acknowledged {
    /// The outcome that each initiator was told.
    pub outcomes: HashMap<String, Outcome>,
    /// When, in milliseconds since the Unix epoch.
    pub told_at_ms: HashMap<String, u64>,
    /// What a commit adds to the money of both banks, in cents, where that is not nothing.
    pub adds_cents: HashMap<String, i64>,
    /// From the first request to the answer, in microseconds.
    pub latencies_us: Vec<u64>,
    /// How often an initiator had to ask again.
    pub asked_again: u64,
    /// What was refused for good, which should be nothing.
    pub refused: Vec<String>,
}

/// The transfers under way, for whoever shows progress.
#[derive(Debug, Default)]
pub struct Progress {
    started: AtomicUsize,
    done: AtomicUsize,
    go_on: AtomicBool,
    asked_again: AtomicU64,
    acknowledged: Mutex<Acknowledged>,
}

impl Progress {
    /// How many were begun.
    #[must_use]
    pub fn started(&self) -> usize {
        self.started.load(Ordering::Relaxed)
    }

    /// Whether more transfers than asked for are begun, for as long as this is set.
    pub fn go_on(&self, go_on: bool) {
        self.go_on.store(go_on, Ordering::Relaxed);
    }

    /// How many have their outcome.
    #[must_use]
    pub fn done(&self) -> usize {
        self.done.load(Ordering::Relaxed)
    }

    /// What was acknowledged, taken out.
    #[must_use]
    pub fn take(&self) -> Acknowledged {
        let mut acknowledged = self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner);
        acknowledged.asked_again = self.asked_again.load(Ordering::Relaxed);
        std::mem::take(&mut *acknowledged)
    }

    fn with(&self, change: impl FnOnce(&mut Acknowledged)) {
        change(&mut self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// What a branch asks of a bank.
fn branch(name: &str, participant: &str, account: &str, cents: i64) -> BranchRequest {
    let payload = serde_json::json!({ "account": account, "amount": cents });
    BranchRequest {
        name: name.to_owned(),
        participant: participant.to_owned(),
        payload: Json::from_value(&payload).unwrap_or_default(),
        ..BranchRequest::default()
    }
}

/// An order of 100.00: all three kinds of branches. The courier's account takes 60.00 of it, and
/// whoever gets the receipt 40.00.
#[must_use]
pub fn order(id: &str, participants: &[String; 2], courier: &str) -> TransactionRequest {
    let money = branch("money", &participants[0], "A-1", -10_000);
    let mut courier = branch("courier", &participants[1], courier, 6_000);
    let mut receipt = branch("receipt", &participants[1], "B-2", 4_000);
    courier.kind = Kind::Compensable;
    receipt.kind = Kind::Deferred;
    TransactionRequest {
        id: Some(id.to_owned()),
        branches: vec![money, courier, receipt],
        ..TransactionRequest::default()
    }
}

/// A transfer between two accounts, each at a bank of its own.
#[must_use]
pub fn transfer(
    id: &str,
    participants: &[String; 2],
    accounts: [&str; 2],
    cents: i64,
    prepare_timeout_ms: u64,
) -> TransactionRequest {
    TransactionRequest {
        id: Some(id.to_owned()),
        branches: vec![
            branch("debit", &participants[0], accounts[0], -cents),
            branch("credit", &participants[1], accounts[1], cents),
        ],
        prepare_timeout_ms: Some(prepare_timeout_ms),
        ..TransactionRequest::default()
    }
}

/// The id of the n-th transfer of a seed.
pub(super) fn id_of(seed: u64, n: usize) -> String {
    format!("demo-{seed}-{n}")
}

/// The n-th transfer of a seed: from A to B or back, now and then of more than there is, now and
/// then to an account that does not exist.
fn nth(options: &LoadOptions, participants: &[String; 2], n: usize) -> Work {
    let mut state = splitmix64(options.seed ^ splitmix64(n as u64));
    let mut draw = |bound: u64| {
        state = splitmix64(state);
        state % bound
    };
    let accounts = u64::from(options.accounts);
    let (from, to) = (draw(accounts) + 1, draw(accounts) + 1);
    let cents =
        if draw(50) == 0 { 10_000_000 } else { i64::try_from(draw(10_000)).unwrap_or(0) + 1 };
    let to = if draw(100) == 0 { "nobody".to_owned() } else { to.to_string() };
    let forward = draw(2) == 0;
    let (first, second) = if forward { (0, 1) } else { (1, 0) };
    let names = ["A", "B"];
    let ordered = [participants[first].clone(), participants[second].clone()];
    let from = format!("{}-{from}", names[first]);
    let to = format!("{}-{to}", names[second]);
    let id = id_of(options.seed, n);
    let request = transfer(&id, &ordered, [&from, &to], cents, options.prepare_timeout_ms);
    let work = Work { request, adds_cents: 0, is_message: false };
    match options.orders {
        None => work,
        Some(_) => mix(work, draw, cents, &format!("{}-1", names[second])),
    }
}

/// Makes of a transfer what its draw says: an eighth a single branch that commits in one phase, an
/// eighth a message whose sender's own database decides, the others branches of mixed kinds.
fn mix(mut work: Work, mut draw: impl FnMut(u64) -> u64, cents: i64, certain: &str) -> Work {
    let request = &mut work.request;
    // A deferred credit cannot be refused: the account must be one that exists.
    let make_certain = |credit: &mut BranchRequest| {
        *credit = BranchRequest {
            kind: Kind::Deferred,
            ..branch(&credit.name, &credit.participant, certain, cents)
        };
    };
    request.open_timeout_ms = request.prepare_timeout_ms;
    request.execute_timeout_ms = request.prepare_timeout_ms;
    match draw(8) {
        0 => {
            let side = usize::try_from(draw(2)).unwrap_or(0);
            request.branches.swap(0, side);
            request.branches.truncate(1);
            request.one_phase = Some(true);
            work.adds_cents = if side == 0 { -cents } else { cents };
        }
        1 => {
            request.branches.remove(0);
            request.branches.iter_mut().for_each(make_certain);
            request.interactive = true;
            (work.adds_cents, work.is_message) = (cents, true);
        }
        _ => {
            let kinds = KINDS[usize::try_from(draw(KINDS.len() as u64)).unwrap_or(0)];
            for (branch, kind) in request.branches.iter_mut().zip(kinds) {
                branch.kind = kind;
            }
            if kinds[1] == Kind::Deferred {
                make_certain(&mut request.branches[1]);
            }
            // A quarter is begun empty, and enlists its branches one by one.
            request.interactive = draw(4) == 0;
        }
    }
    work
}

/// The kinds of debit and credit in a mixed load. Every pair conserves money once it has ended.
const KINDS: [[Kind; 2]; 5] = [
    [Kind::TwoPhase, Kind::TwoPhase],
    [Kind::TwoPhase, Kind::Compensable],
    [Kind::Compensable, Kind::Compensable],
    [Kind::TwoPhase, Kind::Deferred],
    [Kind::Compensable, Kind::Deferred],
];

/// Runs all transfers; returns when each has its outcome.
pub async fn run(
    client: &Client,
    participants: &[String; 2],
    options: &LoadOptions,
    progress: &Arc<Progress>,
) {
    let next = Arc::new(AtomicUsize::new(0));
    let mut initiators = tokio::task::JoinSet::new();
    for _ in 0..options.concurrency {
        let (client, options) = (client.clone(), options.clone());
        let (participants, progress) = (participants.clone(), Arc::clone(progress));
        let next = Arc::clone(&next);
        initiators.spawn(async move {
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= options.transfers && !progress.go_on.load(Ordering::Relaxed) {
                    return;
                }
                progress.started.fetch_add(1, Ordering::Relaxed);
                let work = nth(&options, &participants, n);
                until_known(&client, options.orders.as_deref(), &work, &progress).await;
                progress.done.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    initiators.join_all().await;
}

/// One way through an interactive transaction. Every step may be taken again, so whoever lost an
/// answer begins anew. One transaction in eight is left after its branches: its time runs out.
async fn interactively(
    client: &Client,
    request: &TransactionRequest,
) -> Result<TransactionStatus, ClientError> {
    let name = request.id.clone().unwrap_or_default();
    let id = TransactionId::new(&name).map_err(|error| ClientError::Unusable(error.to_string()))?;
    let begun =
        client.begin(&TransactionRequest { branches: Vec::new(), ..request.clone() }).await?;
    if begun.outcome.is_some() {
        return Ok(begun);
    }
    let open = client.join(id.clone());
    for branch in &request.branches {
        match open.enlist(branch).await {
            Err(error) if matches!(error.code(), Some("not_open" | "transaction_unknown")) => break,
            enlisted => enlisted?,
        };
    }
    let left = name.bytes().map(u32::from).sum::<u32>() % 8 == 0;
    if left {
        return client.get(&id, Some(ASK_AGAIN)).await;
    }
    match open.commit().await {
        Err(error) if error.code() == Some("already_decided") => client.get(&id, None).await,
        committed => committed,
    }
}

/// Asks until the outcome is known: an initiator that lost its answer uses the same id again.
async fn until_known(client: &Client, orders: Option<&Orders>, work: &Work, progress: &Progress) {
    let started = Instant::now();
    let request = &work.request;
    let id = request.id.clone().unwrap_or_default();
    if work.adds_cents != 0 {
        progress.with(|known| known.adds_cents.extend([(id.clone(), work.adds_cents)]));
    }
    loop {
        let asked = match orders {
            Some(orders) if work.is_message => orders.send(client, request, work.adds_cents).await,
            _ if request.interactive => interactively(client, request).await,
            _ => client.begin(request).await, // Whole, in one request.
        };
        match asked {
            Ok(transaction) => {
                if let Some(outcome) = transaction.outcome {
                    let took = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
                    progress.with(|acknowledged| {
                        acknowledged.latencies_us.push(took);
                        acknowledged.told_at_ms.insert(id.clone(), now_ms());
                        acknowledged.outcomes.insert(id, outcome);
                    });
                    return;
                }
            }
            Err(ClientError::Refused { status, code, .. }) if !matches!(status, 429 | 503) => {
                progress.with(|acknowledged| acknowledged.refused.push(format!("{id}: {code}")));
                return;
            }
            Err(_) => {} // No answer: asked again.
        }
        tokio::time::sleep(ASK_AGAIN).await;
        progress.asked_again.fetch_add(1, Ordering::Relaxed);
    }
}
