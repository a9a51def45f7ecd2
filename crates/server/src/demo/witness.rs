//! What really happened in a run, as one trace for the judge: the coordinator's own history, and
//! between its lines what the banks did, by the journals in their own databases.
//!
//! How the two are put in order. Each side's own order is certain: a coordinator's timeline for one
//! transaction, a bank's numbers. Between them causes decide, as far as there are any: work comes
//! after the first call for it and before the first answer that speaks of it. Where a crash took
//! the line of the call or the answer, and among what no message orders, clocks decide (all
//! processes are on one machine), and in one millisecond the order that is right. If a cause and
//! the clocks differ by more than `CLOCKS_MS`, the clocks are believed: so much is no rounding,
//! and the judge shall see it.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use serde::Deserialize;
use unanimity::core::guard::GuardState;
use unanimity::core::{Kind, Operation, Outcome};
use unanimity_bank::{AccountPage, JournalLine};
use unanimity_judge::{
    BranchLine, Event, FactLine, Line, Move, Sight, TRACE_VERSION, ToldLine, state_word, write_line,
};
use unanimity_sdk::Client;

use super::load::Acknowledged;
use super::orders::Orders;
use crate::commands::{Listed, each_transaction};
use crate::trail;

/// By how much two clocks of one machine may differ: one of them counts on from its start.
const CLOCKS_MS: u64 = 50;
/// Where money comes from that is paid in.
const OUTSIDE: &str = "outside";

/// What a participant did in one local transaction.
#[derive(Clone, Debug)]
struct Work {
    at: u64,
    branch: u16,
    operation: Operation,
    state: GuardState,
    effect: bool,
    moved: Vec<Move>,
    /// Among what happens in one millisecond.
    rank: u8,
    /// Whether a commit rests on it without an answer of this participant's being on record.
    decides: bool,
}

/// One transaction: what the coordinator says of it, and what the banks say.
#[derive(Debug, Default)]
struct Tale {
    plan: Vec<BranchLine>,
    lines: Vec<Line>,
    /// When a coordinator first took it up again: what was called before that, but not recorded, it
    /// has forgotten.
    recovered_at: Option<u64>,
    work: Vec<Work>,
}

/// What initiators and readers were told.
#[derive(Debug)]
pub struct Told<'a> {
    /// Which outcomes, and when.
    pub acknowledged: &'a Acknowledged,
    /// What readers were, in the order of their answers.
    pub reads: Vec<Line>,
}

/// Everything that has happened, in order, and what is left of it. For a run that has come to rest.
///
/// # Errors
/// If somebody cannot be asked.
pub async fn trace(
    coordinator: &Client,
    banks: &[Client; 2],
    orders: Option<&Orders>,
    told: Told<'_>,
    left: Vec<Event>,
) -> anyhow::Result<Vec<Line>> {
    let Told { acknowledged, reads } = told;
    let mut tales = BTreeMap::new();
    each_transaction(coordinator, "", |transaction| {
        let Listed { transaction: view, events, events_dropped } =
            Listed::deserialize(transaction)?;
        let lines = trail::lines(&view, &events, events_dropped)?;
        let plan = trail::plans(&view)?;
        let mut recovered = events.iter().filter(|event| event.event == "recovered");
        let recovered_at = recovered.next().map(|event| event.at_ms);
        tales.insert(view.id, Tale { plan, lines, recovered_at, work: Vec::new() });
        Ok(())
    })
    .await?;
    let mut holds = left;
    for bank in banks {
        for line in bank.get_text("/journal").await.context("a bank's journal")?.lines() {
            let line: JournalLine = serde_json::from_str(line)?;
            take_work(&mut tales, line)?;
        }
        holds.extend(accounts(bank).await?);
    }
    for (transaction, branch, state, at) in
        orders.map(Orders::rows).transpose()?.unwrap_or_default()
    {
        take_local_work(&mut tales, transaction, &branch, state, at)?;
    }
    let mut told = told_by_id(reads);
    for (id, outcome) in &acknowledged.outcomes {
        let outcome = super::outcome(*outcome);
        let at = acknowledged.told_at_ms.get(id).copied().unwrap_or(0);
        let transaction = Arc::from(id.as_str());
        let event = Event::Told { transaction, what: ToldLine::Outcome { outcome } };
        told.entry(id.as_str().into()).or_default().push(Line { at, event });
    }
    let mut lines = Vec::new();
    for (id, mut tale) in tales {
        let adds = acknowledged.adds_cents.get(&id);
        adds.into_iter().for_each(|cents| balance(&mut tale.work, *cents));
        let woven = weave(&id, tale);
        let told = after_cause(told.remove(id.as_str()).unwrap_or_default(), &woven);
        lines.extend(woven);
        lines.extend(told);
    }
    lines.extend(told.into_values().flatten());
    Ok(whole(lines, holds))
}

fn told_by_id(reads: Vec<Line>) -> BTreeMap<Arc<str>, Vec<Line>> {
    let mut told: BTreeMap<Arc<str>, Vec<Line>> = BTreeMap::new();
    for read in reads {
        let Some(id) = read.event.transaction().map(Arc::clone) else { continue };
        told.entry(id).or_default().push(read);
    }
    told
}

/// Whoever was told an outcome was told it after the decision, by whichever clock.
fn after_cause(mut told: Vec<Line>, lines: &[Line]) -> Vec<Line> {
    let is_decided =
        |line: &&Line| matches!(line.event, Event::Recorded { fact: FactLine::Decided { .. }, .. });
    let decided_at = lines.iter().find(is_decided).map_or(0, |line| line.at);
    for line in &mut told {
        let has_outcome = matches!(
            line.event,
            Event::Told { what: ToldLine::Outcome { .. }, .. }
                | Event::Read { outcome: Some(_), .. }
        );
        if has_outcome && line.at < decided_at && line.at + CLOCKS_MS >= decided_at {
            line.at = decided_at;
        }
    }
    told
}

/// Head and end around the lines, which are put in order; those of one transaction stay in theirs.
fn whole(mut lines: Vec<Line>, holds: Vec<Event>) -> Vec<Line> {
    lines.sort_by_key(|line| line.at);
    let (first, last) = (lines.first().map_or(0, |line| line.at), lines.last().map_or(0, |l| l.at));
    let sees = vec![Sight::Coordinator, Sight::Participants, Sight::Money];
    let source = "coordinator and banks of a run".into();
    let head = Event::Trace { version: TRACE_VERSION, source, sees };
    lines.insert(0, Line { at: first, event: head });
    let end = [Event::AtRest].into_iter().chain(holds);
    lines.extend(end.map(|event| Line { at: last, event }));
    lines
}

/// Writes a trace for `unanimity verify`.
///
/// # Errors
/// If the file cannot be written.
pub(crate) fn write(path: &Path, lines: &[Line]) -> anyhow::Result<()> {
    let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
    for line in lines {
        writeln!(file, "{}", write_line(line)?)?;
    }
    Ok(file.flush()?)
}

/// What every account of a bank holds.
async fn accounts(bank: &Client) -> anyhow::Result<Vec<Event>> {
    let (mut holds, mut after) = (Vec::new(), String::new());
    loop {
        let path = format!("/accounts?after={after}");
        let page: AccountPage = bank.get_json(&path).await.context("a bank's accounts")?;
        holds.extend(page.accounts.into_iter().map(|account| Event::Holds {
            account: account.id.into(),
            before: super::BALANCE_CENTS,
            available: account.balance - account.reserved,
            reserved: account.reserved,
        }));
        let Some(next) = page.next else { return Ok(holds) };
        after = next;
    }
}

fn take_work(tales: &mut BTreeMap<String, Tale>, line: JournalLine) -> anyhow::Result<()> {
    let tale = tales.entry(line.transaction).or_default();
    let number = tale.plan.iter().position(|branch| *branch.name == line.branch);
    // Work that the coordinator has no record of is the judge's to name.
    let branch = number.and_then(|number| u16::try_from(number).ok()).unwrap_or(u16::MAX);
    let kind = tale.plan.get(usize::from(branch)).map_or(Kind::TwoPhase, |branch| branch.kind);
    let state = |word: &str| {
        let found =
            (1..=u8::MAX).map_while(GuardState::from_number).find(|s| state_word(*s) == word);
        found.with_context(|| format!("what is the state {word:?}?"))
    };
    let before = line.before.as_deref().map(state).transpose()?;
    let state = state(&line.state)?;
    let (operation, works) = done(before, state, kind);
    let by_initiator = tale.plan.get(usize::from(branch)).is_some_and(|plan| plan.by_initiator);
    let decides = by_initiator || operation == Operation::CommitOnePhase;
    let rank = match operation {
        Operation::Prepare | Operation::CommitOnePhase | Operation::Inquire => 0,
        Operation::Execute if kind == Kind::Deferred => 3,
        Operation::Execute => 1,
        Operation::Commit | Operation::Rollback | Operation::Compensate => 2,
    };
    let moved = line.account.map(|account| Move {
        account: account.into(),
        available: line.balance - line.reserved,
        reserved: line.reserved,
    });
    let effect = works || moved.is_some();
    let moved = moved.into_iter().collect();
    let at = line.at_ms;
    tale.work.push(Work { at, branch, operation, state, effect, moved, rank, decides });
    Ok(())
}

/// The work of the initiator whose own database decides, or the inquiry that found none.
fn take_local_work(
    tales: &mut BTreeMap<String, Tale>,
    transaction: String,
    branch: &str,
    state: u8,
    at: u64,
) -> anyhow::Result<()> {
    let tale = tales.entry(transaction).or_default();
    let number = tale.plan.iter().position(|known| &*known.name == branch);
    let branch = number.and_then(|number| u16::try_from(number).ok()).unwrap_or(u16::MAX);
    let state = GuardState::from_number(state).context("a state that is none")?;
    let is_there = state == GuardState::Committed;
    let operation = if is_there { Operation::CommitOnePhase } else { Operation::Inquire };
    let (effect, moved, rank) = (is_there, Vec::new(), 0);
    tale.work.push(Work { at, branch, operation, state, effect, moved, rank, decides: is_there });
    Ok(())
}

/// A transaction that was to bring money in, or to take it out: the other side is nobody's account.
fn balance(work: &mut [Work], adds_cents: i64) {
    let changes = |work: &&mut Work| {
        work.moved.iter().map(|moved| moved.available + moved.reserved).sum::<i64>() != 0
    };
    if let Some(first) = work.iter_mut().find(changes) {
        first.moved.push(Move { account: OUTSIDE.into(), available: -adds_cents, reserved: 0 });
    }
}

/// Which operation has changed a guard's row so, and whether the service's work was part of it.
const fn done(before: Option<GuardState>, state: GuardState, kind: Kind) -> (Operation, bool) {
    let asked_first = matches!(before, None | Some(GuardState::VotedNo));
    match state {
        GuardState::Prepared => (Operation::Prepare, true),
        GuardState::Committed if before.is_none() => (Operation::CommitOnePhase, true),
        GuardState::Committed => (Operation::Commit, true),
        GuardState::RolledBack => (Operation::Rollback, !asked_first),
        GuardState::VotedNo if matches!(kind, Kind::TwoPhase) => (Operation::Prepare, false),
        GuardState::VotedNo => (Operation::Execute, false),
        GuardState::ReadOnly => (Operation::Prepare, false),
        GuardState::Executed => (Operation::Execute, true),
        GuardState::Compensated => (Operation::Compensate, !asked_first),
    }
}

/// Puts what participants did between the coordinator's lines.
fn weave(id: &str, tale: Tale) -> Vec<Line> {
    let Tale { lines, recovered_at, work, .. } = tale;
    let mut slots: Vec<Vec<Work>> = vec![Vec::new(); lines.len() + 1];
    let mut earliest: BTreeMap<u16, usize> = BTreeMap::new();
    for one in work {
        let first = earliest.get(&one.branch).copied().unwrap_or(0);
        let slot = slot(&lines, recovered_at, &one).max(first);
        earliest.insert(one.branch, slot);
        slots[slot].push(one);
    }
    let (mut woven, mut at) = (Vec::new(), 0);
    let mut lines = lines.into_iter();
    for mut here in slots {
        let next = lines.next();
        here.sort_by_key(|work| (work.at, work.rank));
        for Work { at: when, branch, operation, state, effect, moved, .. } in here {
            at = next.as_ref().map_or(when, |next| when.min(next.at)).max(at);
            let transaction = Arc::from(id);
            let event = Event::Worked { transaction, branch, operation, state, effect, moved };
            woven.push(Line { at, event });
        }
        if let Some(line) = next {
            at = at.max(line.at);
            woven.push(Line { at, ..line });
        }
    }
    woven
}

/// Before which of the coordinator's lines a participant's work has its place.
fn slot(lines: &[Line], recovered_at: Option<u64>, work: &Work) -> usize {
    let by_clock = lines.partition_point(|line| line.at <= work.at);
    let place = |holds: &dyn Fn(&Event) -> bool| lines.iter().position(|line| holds(&line.event));
    let called = place(&|event| match event {
        Event::Called { branch, operation, .. } => {
            (*branch, *operation) == (work.branch, work.operation)
        }
        _ => false, // Nothing else is a call.
    });
    let is_first = |call: &usize| recovered_at.is_none_or(|at| lines[*call].at < at);
    let near = |call: &usize| work.at + CLOCKS_MS >= lines[*call].at;
    let after = called.filter(|call| is_first(call) && near(call));
    let answered = place(&|event| match event {
        Event::Answered { branch, operation, answer, .. } => {
            let says_no = work.state == GuardState::VotedNo;
            let speaks = match &**answer {
                "no" => says_no,
                "yes" | "read_only" | "acknowledged" => !says_no,
                _ => false, // Nothing else says what was done.
            };
            speaks && (*branch, *operation) == (work.branch, work.operation)
        }
        _ => false, // Nothing else is an answer.
    });
    let commits = || {
        let is_commit = |event: &Event| match event {
            Event::Recorded { fact: FactLine::Decided { outcome, .. }, .. } => {
                work.decides && *outcome == Outcome::Commit
            }
            _ => false, // Nothing else decides.
        };
        place(&is_commit)
    };
    // What it ends with rests on everything.
    let ended = || place(&|event| matches!(event, Event::Recorded { fact: FactLine::Ended, .. }));
    let before = answered
        .or_else(commits)
        .or_else(ended)
        .filter(|line| work.at <= lines[*line].at + CLOCKS_MS);
    let (after, before) = (after.map_or(1, |call| call + 1), before.unwrap_or(lines.len()));
    by_clock.max(after.min(lines.len())).min(before)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(at: u64, event: Event) -> Line {
        Line { at, event }
    }

    fn recorded(at: u64, fact: FactLine) -> Line {
        line(at, Event::Recorded { transaction: "t".into(), shard: 0, position: 0, fact })
    }

    fn called(at: u64, operation: Operation) -> Line {
        let transaction = "t".into();
        line(at, Event::Called { transaction, branch: 0, operation, attempt: 1, asks: false })
    }

    fn answered(at: u64, operation: Operation, answer: &str) -> Line {
        let (transaction, answer) = ("t".into(), answer.into());
        line(at, Event::Answered { transaction, branch: 0, operation, attempt: 1, answer })
    }

    /// A coordinator's lines: all of it in one millisecond but for the commit.
    fn lines() -> Vec<Line> {
        let plan = BranchLine {
            name: "a".into(),
            kind: Kind::TwoPhase,
            after: Vec::new(),
            by_initiator: false,
            also_on_rollback: false,
            comes_last: false,
        };
        let decided = FactLine::Decided {
            outcome: Outcome::Commit,
            reason: "all_yes".into(),
            ballots: vec!["yes".into()],
        };
        vec![
            recorded(100, FactLine::Begun { branches: vec![plan], open: false, alone: false }),
            called(100, Operation::Prepare),
            answered(100, Operation::Prepare, "yes"),
            recorded(100, decided),
            called(100, Operation::Commit),
            answered(900, Operation::Commit, "acknowledged"),
            recorded(900, FactLine::Ended),
        ]
    }

    fn work(at: u64, operation: Operation, state: GuardState) -> Work {
        Work {
            at,
            branch: 0,
            operation,
            state,
            effect: true,
            moved: Vec::new(),
            rank: 0,
            decides: false,
        }
    }

    /// The rules that a run of these is found to break.
    fn judged(work: Vec<Work>) -> Vec<&'static str> {
        let mut judge = unanimity_judge::Judge::new();
        let tale = Tale { lines: lines(), work, ..Tale::default() };
        for line in whole(weave("t", tale), Vec::new()) {
            judge.take(&line);
        }
        judge.found().iter().map(|one| one.rule).collect()
    }

    #[test]
    fn work_in_the_millisecond_of_everything_else_is_between_call_and_answer() {
        for (prepared_at, committed_at) in [(100, 100), (99, 101), (101, 99), (100, 930)] {
            let work = vec![
                work(prepared_at, Operation::Prepare, GuardState::Prepared),
                work(committed_at, Operation::Commit, GuardState::Committed),
            ];
            assert_eq!(judged(work), Vec::<&str>::new(), "{prepared_at}, {committed_at}");
        }
    }

    #[test]
    fn what_the_banks_did_otherwise_is_found() {
        let prepare = || work(100, Operation::Prepare, GuardState::Prepared);
        let commit = || work(100, Operation::Commit, GuardState::Committed);
        let forgotten = "forgotten only when settled everywhere";
        // Never committed; prepared long after its answer; committed twice; nothing at all.
        assert_eq!(judged(vec![prepare()]), [forgotten]);
        let late = vec![work(500, Operation::Prepare, GuardState::Prepared), commit()];
        assert_eq!(judged(late)[0], "AC3 commit needs every yes");
        assert!(judged(vec![prepare(), commit(), commit()]).contains(&"each effect at most once"));
        assert_eq!(judged(Vec::new()), ["AC3 commit needs every yes", forgotten]);
    }

    /// What the readers of a sound transaction, decided at 100, are found to break.
    fn read(reads: [(u64, u64, Option<Outcome>); 2]) -> Vec<&'static str> {
        let work = vec![
            work(100, Operation::Prepare, GuardState::Prepared),
            work(100, Operation::Commit, GuardState::Committed),
        ];
        let mut woven = weave("t", Tale { lines: lines(), work, ..Tale::default() });
        let reads = reads.map(|(since, at, outcome)| {
            line(at, Event::Read { transaction: "t".into(), since, unknown: false, outcome })
        });
        let told = after_cause(reads.into(), &woven);
        woven.extend(told);
        let mut judge = unanimity_judge::Judge::new();
        for line in whole(woven, Vec::new()) {
            judge.take(&line);
        }
        judge.found().iter().map(|one| one.rule).collect()
    }

    #[test]
    fn a_reader_who_is_told_less_than_another_or_too_early_is_found() {
        let commit = Some(Outcome::Commit);
        // By its own clock a reader may have been told a moment before the decision.
        assert_eq!(read([(90, 98, commit), (130, 131, commit)]), Vec::<&str>::new());
        assert_eq!(read([(90, 98, None), (130, 131, commit)]), Vec::<&str>::new());
        assert!(!read([(110, 120, commit), (130, 131, None)]).is_empty());
        assert!(!read([(1, 2, commit), (130, 131, commit)]).is_empty());
        assert!(!read([(110, 120, commit), (130, 131, Some(Outcome::Rollback))]).is_empty());
    }
}
