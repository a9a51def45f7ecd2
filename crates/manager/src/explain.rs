//! What is going on with a transaction, in words: who is awaited, since when, what happens next and
//! when, and what an operator may do. Decides wording only; every fact is the core's.

use serde::{Deserialize, Serialize};
use unanimity_core::{
    Ballot, Branch, Kind, Millis, Observation, Operation, Outcome, Progress, Stage, Transaction,
    What,
};

/// A transaction explained.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// Its name.
    pub id: String,
    /// Where it stands, in a sentence.
    pub summary: String,
    /// What the coordinator will do by itself, in a sentence. Never empty.
    pub next: String,
    /// When it will, in milliseconds since the Unix epoch; now, or on an answer, if there is none.
    pub next_at_ms: Option<u64>,
    /// Whom it waits for.
    pub awaited: Vec<Awaited>,
    /// What an operator may do.
    pub choices: Vec<Choice>,
}

/// A branch that is waited for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Awaited {
    /// Its name.
    pub branch: String,
    /// Where its participant is.
    pub participant: String,
    /// What it was asked, or will be.
    pub operation: String,
    /// Since when, in milliseconds since the Unix epoch, if it was asked.
    pub since_ms: Option<u64>,
    /// How often it was asked.
    pub attempts: u32,
    /// What went wrong last.
    pub last_error: Option<String>,
    /// Whether a call to it is under way.
    pub in_flight: bool,
    /// Whether it is parked.
    pub parked: bool,
    /// What happens next with it, in a sentence.
    pub next: String,
    /// When it is asked again, in milliseconds since the Unix epoch.
    pub next_at_ms: Option<u64>,
}

/// Something that an operator may do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// The command.
    pub command: String,
    /// What it does, and what it would break.
    pub effect: String,
}

impl Explanation {
    /// Explains a transaction as it is now.
    #[must_use]
    pub fn of(transaction: &Transaction) -> Self {
        let awaited: Vec<Awaited> = transaction
            .numbered()
            .filter_map(|(number, branch)| Awaited::of(transaction, number, branch))
            .collect();
        let (next, next_at_ms) = next(transaction, &awaited);
        Self {
            id: transaction.id.to_string(),
            summary: summary(transaction, awaited.len()),
            next,
            next_at_ms,
            choices: choices(transaction, &awaited),
            awaited,
        }
    }
}

fn summary(transaction: &Transaction, awaited: usize) -> String {
    let branches = transaction.branches.len();
    let overdue = if transaction.overdue { " Its time is over; the decision stands." } else { "" };
    let stage = match (transaction.stage(), transaction.outcome()) {
        (Stage::Open, _) => format!(
            "Open: its initiator has enlisted {branches} branches and not asked to commit yet."
        ),
        (Stage::Settling, _) => "Undecided, and its time is over: one participant alone knows \
            whether this is committed, and it is asked."
            .to_owned(),
        (Stage::Preparing, _) => {
            let voted = transaction.branches.iter().filter(|b| b.ballot.is_in_favour()).count();
            format!(
                "Undecided: {voted} of {branches} branches have voted yes, {awaited} are awaited."
            )
        }
        (Stage::Executing, _) => {
            format!("Undecided: every prepare has voted yes, and {awaited} branches execute.")
        }
        (Stage::Committing, _) => {
            format!(
                "Decided to commit; {awaited} of {branches} branches have not acknowledged it yet."
            )
        }
        (Stage::RollingBack, _) => {
            format!(
                "Decided to roll back; {awaited} of {branches} branches have not acknowledged it \
                 yet."
            )
        }
        (Stage::SetAside, outcome) => set_aside(transaction, outcome),
        (Stage::Ended, Some(Outcome::Commit)) => "Committed, and complete everywhere.".to_owned(),
        (Stage::Ended, _) => "Rolled back, and complete everywhere.".to_owned(),
    };
    format!("{stage}{overdue}")
}

/// What happened to one that is left alone.
fn set_aside(transaction: &Transaction, outcome: Option<Outcome>) -> String {
    let Some(why) = &transaction.set_aside else { return String::new() };
    let known = match (why.read, outcome) {
        (false, _) => "what its records say is not known",
        (true, None) => "it is undecided",
        (true, Some(Outcome::Commit)) => "it is decided to commit",
        (true, Some(Outcome::Rollback)) => "it is decided to roll back",
    };
    let (doing, times, message) = (why.doing.as_str(), why.panics, &why.message);
    format!(
        "Set aside: the coordinator itself broke {times} times while {doing} it, the last time \
         with {message:?}; {known}."
    )
}

/// What happens next by itself: the soonest of a retry, an answer and a deadline.
fn next(transaction: &Transaction, awaited: &[Awaited]) -> (String, Option<Millis>) {
    if transaction.stage() == Stage::Ended {
        return ("Nothing: it has ended.".to_owned(), None);
    }
    match &transaction.set_aside {
        Some(why) if why.panics == 0 => {
            let text = "At the next start its records are read again.";
            return (text.to_owned(), None);
        }
        Some(_) => {
            let text = "Nothing, and nothing reaches it, until somebody has it taken up again. Its \
                records are kept. Participants that hold work for it keep holding it.";
            return (text.to_owned(), None);
        }
        None => {}
    }
    let soonest = awaited.iter().filter_map(|one| Some((one.next_at_ms?, one))).min_by_key(|x| x.0);
    let asked = awaited.iter().find(|one| one.in_flight);
    if transaction.decision.is_none() && transaction.stage() != Stage::Settling {
        let deadline = transaction.phase_one_deadline();
        let whole = transaction.whole_deadline().unwrap_or(Millis::MAX);
        let local = transaction.branches.iter().any(|b| b.plan.kind == Kind::Local);
        let text = match (transaction.stage(), transaction.decides_alone()) {
            (Stage::Open, _) if local => {
                "If its initiator does not ask to commit by then, its database is asked, and \
                 decides."
            }
            (Stage::Open, _) => "If its initiator does not ask to commit by then, it rolls back.",
            (_, Some(_)) => {
                "If the answer is not there by then, the participant is asked what became of it; \
                 it alone decides."
            }
            _ => {
                "If the answers are not there by then, it rolls back; if all are yes, it commits \
                 at once."
            }
        };
        return (text.to_owned(), Some(deadline.min(whole)));
    }
    match (asked, soonest) {
        (Some(one), _) => (format!("The answer of {} is awaited.", one.branch), None),
        (None, Some((at, one))) => {
            (format!("{} is asked again to {}.", one.branch, one.operation), Some(at))
        }
        (None, None) => ("The last record becomes durable, and it ends.".to_owned(), None),
    }
}

fn choices(transaction: &Transaction, awaited: &[Awaited]) -> Vec<Choice> {
    let id = &transaction.id;
    let mut choices = Vec::new();
    if transaction.set_aside.is_some() {
        choices.push(Choice {
            command: format!("unanimity retry {id}"),
            effect: "Forgets how often the coordinator broke on it, and takes it up again: after \
                an upgrade that mends the cause. Without one it breaks again, and the whole \
                coordinator with it."
                .to_owned(),
        });
        return choices;
    }
    let undecided = transaction.decision.is_none() && transaction.stage() != Stage::Ended;
    if undecided && transaction.stage() != Stage::Settling {
        choices.push(Choice {
            command: format!("unanimity rollback {id}"),
            effect: match transaction.decides_alone() {
                None => "Rolls everything back now. Breaks nothing: it is not decided.",
                Some(_) => {
                    "Asks the participant that alone decides to roll back, and takes its answer. \
                     Breaks nothing."
                }
            }
            .to_owned(),
        });
    }
    choices.extend(awaited.iter().filter_map(|one| settle_by_hand(transaction, one)));
    if awaited.iter().any(|one| one.next_at_ms.is_some()) {
        choices.push(Choice {
            command: format!("unanimity retry {id}"),
            effect: "Asks every waiting branch again now. Breaks nothing.".to_owned(),
        });
    }
    choices
}

/// What an operator may say about a branch that keeps failing, and what each word would break.
fn settle_by_hand(transaction: &Transaction, awaited: &Awaited) -> Option<Choice> {
    awaited.last_error.as_ref()?;
    let (id, branch) = (&transaction.id, &awaited.branch);
    let (word, breaks) = match (transaction.outcome(), transaction.stage()) {
        (Some(Outcome::Commit), _) => ("committed", "rolled_back"),
        (Some(Outcome::Rollback), _) => ("rolled_back", "committed"),
        (None, Stage::Settling) => {
            return Some(Choice {
                command: format!("unanimity resolve {id} {branch} --as committed|rolled_back"),
                effect:
                    "Decides by your word, because this participant cannot be asked. Wrong, it \
                         breaks the transaction: look into the participant's data first."
                        .to_owned(),
            });
        }
        (None, _) => return None,
    };
    Some(Choice {
        command: format!("unanimity resolve {id} {branch} --as {word} --reason WHY"),
        effect: format!(
            "Gives {branch} up: it is not asked any more, and counts as {word} on your word. It \
             breaks the transaction if that is not so. With --as {breaks} the outcome is recorded \
             as mixed."
        ),
    })
}

impl Awaited {
    fn of(transaction: &Transaction, number: u16, branch: &Branch) -> Option<Self> {
        let operation = match (branch.progress, branch.ballot) {
            (Progress::Owes(operation), _) => operation,
            (Progress::Undecided, Ballot::NotCalled | Ballot::Unanswered) => {
                transaction.phase_one_operation(number)?
            }
            (Progress::Undecided | Progress::Done, _) => return None,
        };
        let parks = transaction.options.retry.parks(branch.failures);
        let settling = transaction.settling.is_some();
        let parked = parks && (settling || matches!(branch.progress, Progress::Owes(_)));
        Some(Self {
            branch: branch.plan.name.to_string(),
            participant: branch.plan.participant.to_string(),
            operation: operation.as_str().to_owned(),
            since_ms: first_called(transaction, number, operation),
            attempts: branch.attempt,
            last_error: branch.last_error.as_ref().map(ToString::to_string),
            in_flight: branch.in_flight,
            parked,
            next: match transaction.stage() {
                Stage::Open => "waits until its initiator asks to commit".to_owned(),
                Stage::SetAside => "is not asked: the transaction is set aside".to_owned(),
                _ => next_of(branch, operation, parked),
            },
            next_at_ms: branch.retry_at,
        })
    }
}

fn next_of(branch: &Branch, operation: Operation, parked: bool) -> String {
    let word = operation.as_str();
    match (branch.in_flight, branch.retry_at) {
        (true, _) => format!("its answer to {word} is awaited"),
        (false, Some(_)) if branch.attempt == 0 => "waits, as it was asked to".to_owned(),
        (false, Some(_)) if parked => format!("parked: {word} is tried again rarely"),
        (false, Some(_)) => format!("{word} is tried again"),
        (false, None) => match branch.plan.kind {
            Kind::Deferred => "waits until everything else is done, and for its turn".to_owned(),
            Kind::TwoPhase | Kind::Compensable | Kind::Local => "waits for its turn".to_owned(),
        },
    }
}

/// When the operation that is awaited was first asked for.
fn first_called(transaction: &Transaction, number: u16, operation: Operation) -> Option<Millis> {
    let called = |seen: &Observation| {
        seen.branch == Some(number)
            && matches!(seen.what, What::Called { operation: asked, .. } if asked == operation)
    };
    transaction.timeline.iter().find(called).map(|seen| seen.at)
}
