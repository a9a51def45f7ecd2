//! `unanimity verify FILE...`: judges histories in the trace format, line by line, and says which
//! rules do not hold. What is kept in memory is bounded for each transaction.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use serde_json::json;
use unanimity_judge::{Event, Finding, Judge, TraceError, read_line};

use super::{Ended, complain};
use crate::draw::{self, BAD, GOOD, HEADING, paint};

/// The longest line that is read, in bytes: a beginning with 256 branches is far below it.
const LINE_BYTES_MAX: u64 = 1 << 20;
/// A file cannot be read as a trace.
const NO_TRACE: u8 = 2;

/// What `verify` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct VerifyArguments {
    /// Traces, one JSON object a line, each judged for itself; `-` reads from standard input.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Answer in JSON, one object for each file.
    #[arg(long)]
    json: bool,
}

/// Judges them all, also behind one that cannot be read. The exit status is the worst of all.
pub(crate) fn verify(arguments: VerifyArguments) -> Ended {
    let mut status = ExitCode::SUCCESS;
    let mut unreadable = false;
    for file in &arguments.files {
        match judge(file) {
            Ok(judge) => {
                let report =
                    if arguments.json { as_json(file, &judge) } else { words(file, &judge) };
                draw::print(&report)?;
                if !judge.found().is_empty() && !unreadable {
                    status = ExitCode::FAILURE;
                }
            }
            Err(error) => {
                complain(&error.context(file.display().to_string()));
                (status, unreadable) = (ExitCode::from(NO_TRACE), true);
            }
        }
    }
    Ok(status)
}

/// Reads one trace from its first line to its last.
fn judge(file: &Path) -> anyhow::Result<Judge> {
    let mut input: Box<dyn BufRead> = if file.as_os_str() == "-" {
        Box::new(std::io::stdin().lock())
    } else {
        Box::new(BufReader::new(File::open(file).context("cannot be read")?))
    };
    let mut judge = Judge::new();
    let mut text = String::new();
    for number in 1.. {
        let invalid = |problem: &str| {
            let problem = problem.to_owned();
            anyhow::Error::from(TraceError { line: number, code: "trace_invalid", problem })
        };
        text.clear();
        let read = input.by_ref().take(LINE_BYTES_MAX).read_line(&mut text);
        match read {
            Ok(0) if number == 1 => return Err(invalid("the file is empty")),
            Ok(0) => break,
            Ok(bytes) if bytes as u64 == LINE_BYTES_MAX && !text.ends_with('\n') => {
                return Err(invalid("the line is too long"));
            }
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                return Err(invalid("the line is no UTF-8"));
            }
            Err(error) => return Err(error.into()),
        }
        let line = read_line(number, text.trim_end())?;
        if number == 1 && !matches!(line.event, Event::Trace { .. }) {
            return Err(invalid("a trace begins with the event `trace`, which says what it sees"));
        }
        judge.take(&line);
    }
    Ok(judge)
}

fn words(file: &Path, judge: &Judge) -> String {
    let (commits, rollbacks, undecided) = judge.tally();
    let mut text = format!(
        "{}: {} lines, {} transactions: {commits} committed, {rollbacks} rolled back, {undecided} \
         undecided\n",
        paint(HEADING, file.display()),
        judge.lines(),
        judge.transactions(),
    );
    for Finding { line, transaction, rule, problem, .. } in judge.found() {
        let of = transaction.as_ref().map_or(String::new(), |id| format!("transaction {id}, "));
        text.push_str(&format!("  {}: {of}line {line}: {problem}\n", paint(BAD, rule)));
    }
    text.push_str(&match judge.found().len() {
        0 => format!("  {}\n", paint(GOOD, "every rule holds")),
        1 => "  1 finding\n".to_owned(),
        count => format!("  {count} findings\n"),
    });
    text
}

fn as_json(file: &Path, judge: &Judge) -> String {
    let (commits, rollbacks, undecided) = judge.tally();
    let found: Vec<_> = judge
        .found()
        .iter()
        .map(|one| {
            let transaction = one.transaction.as_deref();
            json!({
                "rule": one.rule, "transaction": transaction, "line": one.line, "at_ms": one.at,
                "problem": one.problem,
            })
        })
        .collect();
    let report = json!({
        "file": file.display().to_string(), "lines": judge.lines(),
        "transactions": judge.transactions(), "committed": commits, "rolled_back": rollbacks,
        "undecided": undecided, "findings": found,
    });
    format!("{report}\n")
}
