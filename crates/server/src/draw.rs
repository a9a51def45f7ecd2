//! How a transaction looks in a terminal: colours where there is one, plain text otherwise.

use std::fmt::Write;
use std::io::Write as _;

use anstyle::{AnsiColor, Style};
use unanimity_sdk::api::{Outcome, Stage, Timeline, TimelineEvent, TransactionStatus};

/// What went well.
pub(crate) const GOOD: Style = AnsiColor::Green.on_default().bold();
/// What did not.
pub(crate) const BAD: Style = AnsiColor::Red.on_default().bold();
/// What waits.
pub(crate) const WAITING: Style = AnsiColor::Yellow.on_default();
/// What is less important.
pub(crate) const FAINT: Style = Style::new().dimmed();
/// A heading.
pub(crate) const HEADING: Style = Style::new().bold();

/// Text in a style.
pub(crate) fn paint(style: Style, text: impl std::fmt::Display) -> String {
    format!("{}{text}{}", style.render(), style.render_reset())
}

/// Prints to standard output, in plain text where it is no terminal. That nobody reads any more (as
/// behind `| head`) is no mistake.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = anstream::stdout();
    let printed = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    match printed {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

/// The outcome as one word, and why.
pub(crate) fn outcome(transaction: &TransactionStatus) -> String {
    let word = match (transaction.outcome, transaction.completed) {
        (outcome, false) if transaction.stage == Stage::SetAside => {
            let known = match outcome {
                Some(Outcome::Commit) => ", decided to commit",
                Some(Outcome::Rollback) => ", decided to roll back",
                None => "",
            };
            paint(BAD, format!("set aside{known}"))
        }
        (Some(Outcome::Commit), true) => paint(GOOD, "committed"),
        (Some(Outcome::Rollback), true) => paint(BAD, "rolled back"),
        (Some(Outcome::Commit), false) => paint(WAITING, "committing"),
        (Some(Outcome::Rollback), false) => paint(WAITING, "rolling back"),
        (None, _) if transaction.stage == Stage::Open => paint(WAITING, "open"),
        (None, _) => paint(WAITING, "undecided"),
    };
    let by_hand = transaction.heuristic.as_ref().map_or(String::new(), |heuristic| {
        format!(", {}", paint(BAD, format!("settled by hand: {heuristic}")))
    });
    let because = transaction.reason.as_ref().map_or(String::new(), |reason| {
        let branch = reason.branch.as_ref().map_or(String::new(), |name| format!(" by {name}"));
        let detail = reason.detail.as_ref().map_or(String::new(), |text| format!(": {text}"));
        format!(" ({}{branch}{detail})", reason_in_words(&reason.code))
    });
    let broke = transaction.set_aside.as_ref().map_or(String::new(), |why| {
        format!(" (the coordinator broke on it {} times: {})", why.panics, why.message)
    });
    format!("{word}{by_hand}{because}{broke}")
}

/// A reason's code in words for people who have not read the manual.
pub(crate) fn reason_in_words(code: &str) -> &str {
    match code {
        "all_yes" => "every participant said yes",
        "voted_no" => "refused",
        "prepare_timeout" => "a participant did not answer in time",
        "execute_timeout" => "a participant did not finish in time",
        "timeout" => "the whole took too long",
        "coordinator_restarted" => "the coordinator was restarted before it had decided",
        "requested" => "somebody asked for it",
        "abandoned" => "its initiator fell silent",
        "settled_by_participant" => "the participant that alone decides was asked",
        other => other,
    }
}

/// A transaction with its branches and its course.
pub(crate) fn transaction(transaction: &TransactionStatus, timeline: &Timeline) -> String {
    let mut text = String::new();
    let title = paint(HEADING, format!("transaction {}", transaction.id));
    line(&mut text, format!("{title}  {}", outcome(transaction)));
    // Over a restart the clock may have been set back.
    let since_begun = |at_ms: u64| at_ms.saturating_sub(transaction.begun_at_ms);
    let decided = transaction.decided_at_ms.map(since_begun);
    let ended = transaction.ended_at_ms.map(since_begun);
    let took = |what: &str, ms: Option<u64>| {
        ms.map_or(format!("not yet {what}"), |ms| format!("{what} after {ms} ms"))
    };
    line(&mut text, format!("  {}, {}", took("decided", decided), took("complete", ended)));
    let width = transaction.branches.iter().map(|branch| branch.name.len()).max().unwrap_or(0);
    for branch in &transaction.branches {
        let vote = branch.vote.map_or("-".to_owned(), |vote| word(&vote));
        let mut state = word(&branch.state);
        if branch.parked {
            state = format!("{state}, {}", paint(BAD, "parked"));
        }
        let kind = word(&branch.kind);
        let vote = format!("vote {vote}");
        let participant = paint(FAINT, &branch.participant);
        line(
            &mut text,
            format!("  {:width$}  {kind:<11}  {vote:<14} {state}  {participant}", branch.name),
        );
        if let Some(word) = &branch.resolution {
            let how = self::word(&word.settled_as);
            let said = format!("settled by hand as {how}, says {}: {}", word.by, word.reason);
            line(&mut text, format!("  {:width$}  {}", "", paint(BAD, said)));
        }
        if let (Some(error), "finishing" | "called") = (&branch.last_error, &*word(&branch.state)) {
            line(&mut text, format!("  {:width$}  {}", "", paint(WAITING, error)));
        }
    }
    line(&mut text, String::new());
    for event in &timeline.events {
        line(&mut text, event_line(event, transaction.begun_at_ms, width));
    }
    if timeline.dropped > 0 {
        line(&mut text, format!("  ({} later events were not kept)", timeline.dropped));
    }
    text
}

fn line(text: &mut String, line: impl AsRef<str>) {
    text.push_str(line.as_ref().trim_end());
    text.push('\n');
}

/// A unit-like enum in its own words.
fn word(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        Ok(other) => other.to_string(),
        Err(_) => "?".to_owned(),
    }
}

fn event_line(event: &TimelineEvent, begun_at_ms: u64, width: usize) -> String {
    let after_ms = event.at_ms.saturating_sub(begun_at_ms);
    let branch = event.branch.as_deref().unwrap_or_default();
    let operation = event.operation.as_deref().unwrap_or_default();
    let detail = event.detail.as_deref().unwrap_or_default();
    let what = match event.event.as_str() {
        "begun" => paint(HEADING, "begun"),
        "called" => match event.attempt {
            Some(attempt) if attempt > 1 => format!("--> {operation} (attempt {attempt})"),
            _ => format!("--> {operation}"),
        },
        "yes" => format!("<-- {}", paint(GOOD, "yes")),
        "read_only" => format!("<-- {}", paint(GOOD, "yes, nothing to commit")),
        "no" => format!("<-- {} {detail}", paint(BAD, "no:")),
        "acknowledged" => format!("<-- {operation} done"),
        "unsupported" => format!("<-- it does not know {operation}"),
        "enlisted" => "enlisted".to_owned(),
        "commit_requested" => paint(HEADING, "its initiator asks to commit"),
        "resolved" => paint(BAD, format!("settled by hand: {detail}")),
        "failed" => {
            let times = event.times.filter(|times| *times > 1);
            let times = times.map_or(String::new(), |times| format!(" ({times} times)"));
            format!("<-x {}{times}", paint(WAITING, detail))
        }
        "decided" => {
            paint(if detail == "commit" { GOOD } else { BAD }, format!("decided: {detail}"))
        }
        "recovered" => paint(WAITING, "the coordinator was restarted and took this up again"),
        "parked" => paint(BAD, "parked: it keeps failing; tried rarely from now on"),
        "overdue" => paint(WAITING, "overdue: its time is over, the decision stands"),
        "ended" => paint(HEADING, "complete"),
        other => format!("{other} {detail}"),
    };
    let mut text = String::new();
    // Writing to a String cannot fail.
    write!(text, "  {:>7} ms  {branch:width$}  {what}", format!("+{after_ms}")).unwrap_or(());
    text
}
