//! A failing run as a numbered story: what happened to the transaction that went wrong, and the
//! faults around it.

use unanimity_judge::{Event, FactLine, Line, ToldLine, state_word};

use super::shrink::Script;

/// Tells a script's run.
#[must_use]
pub fn tell(script: &Script) -> String {
    let report = script.plan(true).run();
    let Some(broken) = &report.broken else { return "it does not fail any more\n".to_owned() };
    let about = broken.transaction.as_deref();
    let told = report.trace.iter().filter_map(|line| {
        let of_it = line.event.transaction().is_none_or(|one| about.is_none_or(|it| **one == *it));
        let words = if of_it { sentence(line) } else { None };
        words.map(|words| format!("{:>7} ms  {words}", line.at))
    });
    let mut story: Vec<String> =
        (1..).zip(told).map(|(number, line)| format!("  {number:>3}. {line}")).collect();
    story.push(format!("  => {broken}\n"));
    story.join("\n")
}

fn sentence(line: &Line) -> Option<String> {
    let name = |transaction: &str| transaction.to_owned();
    Some(match &line.event {
        Event::Recorded { transaction, shard, position, fact } => {
            format!("{}: {} is written (shard {shard}, {position})", name(transaction), words(fact))
        }
        Event::Durable { shard, position } => {
            format!("shard {shard} is durable up to {position}")
        }
        Event::Lost { shard, position } => {
            format!("of shard {shard}, what is found ends at {position}")
        }
        Event::Called { transaction, branch, operation, attempt, .. } => {
            format!(
                "{}: {operation:?} number {attempt} leaves for branch {branch}",
                name(transaction)
            )
        }
        Event::Answered { transaction, branch, operation, attempt, answer } => format!(
            "{}: the coordinator hears {answer} from branch {branch} to {operation:?} number \
             {attempt}",
            name(transaction)
        ),
        Event::Worked { transaction, branch, operation, state, effect, .. } => {
            let how = if *effect { "does" } else { "remembers" };
            let state = state_word(*state);
            format!("{}: branch {branch} {how} {operation:?}, and is {state}", name(transaction))
        }
        Event::Forgot { transaction, branch, .. } => {
            format!("{}: branch {branch} loses its memory", name(transaction))
        }
        Event::Told { transaction, what } => {
            let what = match what {
                ToldLine::Begun => "it has begun".to_owned(),
                ToldLine::Enlisted { branch } => format!("branch {branch} is enlisted"),
                ToldLine::Outcome { outcome } => outcome.as_str().to_owned(),
                ToldLine::Ended { outcome, .. } => format!("{}, complete", outcome.as_str()),
                ToldLine::Presumed => "nobody knows it: rolled back".to_owned(),
            };
            format!("{}: somebody is told: {what}", name(transaction))
        }
        Event::Read { transaction, since, unknown, outcome } => {
            let what = match (unknown, outcome) {
                (true, _) => "unknown",
                (_, None) => "no outcome yet",
                (_, Some(outcome)) => outcome.as_str(),
            };
            format!("{}: who asked at {since} ms is told: {what}", name(transaction))
        }
        Event::Started { process } => format!("{process} starts"),
        Event::Crashed { process } => format!("{process} dies"),
        Event::Noted { what } => format!("[{what}]"),
        Event::Height { what, value, .. } => format!("{value} {what}"),
        Event::AtRest => "everything is at rest".to_owned(),
        Event::Left { .. } | Event::Holds { .. } | Event::Trace { .. } | Event::Cut { .. } => {
            return None;
        }
    })
}

fn words(fact: &FactLine) -> String {
    match fact {
        FactLine::Begun { branches, open, .. } => {
            let kinds: Vec<&str> = branches.iter().map(|branch| branch.kind.as_str()).collect();
            let open = if *open { ", open" } else { "" };
            format!("the beginning ({}{open})", kinds.join(", "))
        }
        FactLine::Enlisted { branch } => {
            format!("enlisted {} ({})", branch.name, branch.kind.as_str())
        }
        FactLine::Executing { branches } => format!("executing {branches:?}"),
        FactLine::Decided { outcome, reason, .. } => {
            format!("the decision to {} ({reason})", outcome.as_str())
        }
        FactLine::Finished { branch } => format!("branch {branch} is finished"),
        FactLine::Resolved { branch, outcome } => {
            format!("an operator's word that branch {branch} is settled: {}", outcome.as_str())
        }
        FactLine::Ended => "the end".to_owned(),
        FactLine::Rewritten => "all of it, anew,".to_owned(),
    }
}
