//! `unanimity check URL --payload FILE`: plays a participant's contract against a service in any
//! language, and shows what holds and what does not.

use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::Context;
use tokio::process::Command;
use unanimity_sdk::battery::{self, Options, Report, Restart, Verdict};

use super::Ended;
use crate::draw::{BAD, FAINT, GOOD, HEADING, WAITING, paint};

/// What `check` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct CheckArguments {
    /// The participant's URL, without the operation.
    participant: String,
    /// A file with a payload that the service says yes to, again and again.
    #[arg(long)]
    payload: Option<PathBuf>,
    /// Plays execute and compensate rather than prepare, commit and rollback.
    #[arg(long)]
    compensable: bool,
    /// An URL whose answer tells what the service's work has changed, such as an account's balance.
    #[arg(long)]
    observe: Option<String>,
    /// How long one call may take, in milliseconds.
    #[arg(long, default_value_t = 5_000)]
    timeout_ms: u64,
    /// A shell command that stops the service and starts it again. Also plays a restart between the
    /// phases. It must end, and not before the old process has ended.
    #[arg(long, value_name = "COMMAND")]
    restart: Option<String>,
    /// How long a restart may take until the service answers again, in milliseconds.
    #[arg(long, default_value_t = 30_000)]
    restart_timeout_ms: u64,
    /// Answer in JSON.
    #[arg(long)]
    json: bool,
}

/// Plays it. The exit status is 0 if everything holds, else 1.
pub(crate) async fn check(arguments: CheckArguments) -> Ended {
    let payload = match &arguments.payload {
        None => b"{}".to_vec(),
        Some(path) => {
            std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?
        }
    };
    let options = Options {
        compensable: arguments.compensable,
        observe: arguments.observe,
        timeout: Duration::from_millis(arguments.timeout_ms),
        restart: arguments.restart.map(|command| Restart::new(move || shell(command.clone()))),
        restart_timeout: Duration::from_millis(arguments.restart_timeout_ms),
    };
    let report = battery::play(&arguments.participant, payload, &options).await;
    if arguments.json {
        anstream::println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        anstream::print!("{}", table(&report));
    }
    Ok(if report.holds() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs a shell command to its end. What it prints is nobody's: the service that it leaves running
/// would keep our own output open.
async fn shell(command: String) -> Result<(), String> {
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(&command).kill_on_drop(true);
    shell.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    match shell.status().await {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("`{command}` ended with {status}; by hand it says why")),
        Err(error) => Err(format!("`{command}` cannot be run: {error}")),
    }
}

fn table(report: &Report) -> String {
    let mut lines = vec![paint(HEADING, &report.participant)];
    for finding in &report.findings {
        let mark = match finding.verdict {
            Verdict::Holds => paint(GOOD, "holds"),
            Verdict::Fails => paint(BAD, "fails"),
            Verdict::NotPlayed => paint(WAITING, "not played"),
        };
        lines.push(format!("  {mark}  {}", finding.rule));
        lines.extend(finding.because.iter().map(|because| format!("         {because}")));
        if finding.verdict == Verdict::Fails {
            let told = finding.exchanges.iter().map(|exchange| paint(FAINT, exchange));
            lines.extend(told.map(|exchange| format!("         {exchange}")));
        }
    }
    let count = |verdict| report.rules(verdict).len();
    let (failed, rules) = (count(Verdict::Fails), report.findings.len());
    let not_played = match count(Verdict::NotPlayed) {
        0 => String::new(),
        rules => format!(", {rules} not played"),
    };
    lines.push(match failed {
        0 if not_played.is_empty() => format!("  all {rules} rules hold"),
        0 => format!("  {} of {rules} rules hold{not_played}", count(Verdict::Holds)),
        failed => format!("  {failed} of {rules} rules fail{not_played}"),
    });
    lines.join("\n") + "\n"
}
