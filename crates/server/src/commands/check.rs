//! `unanimity check URL --payload FILE`: plays a participant's contract against a service in any
//! language, and shows what holds and what does not.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use unanimity_sdk::battery::{self, Battery, Report};

use super::Ended;
use crate::draw::{BAD, FAINT, GOOD, HEADING, paint};

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
    let report = battery::play(&Battery {
        participant: arguments.participant,
        payload: payload.into(),
        compensable: arguments.compensable,
        observe: arguments.observe,
        timeout: Duration::from_millis(arguments.timeout_ms),
    })
    .await;
    if arguments.json {
        anstream::println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        anstream::print!("{}", table(&report));
    }
    Ok(if report.holds() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn table(report: &Report) -> String {
    let mut lines = vec![paint(HEADING, &report.participant)];
    for finding in &report.findings {
        let mark = if finding.holds { paint(GOOD, "holds") } else { paint(BAD, "fails") };
        lines.push(format!("  {mark}  {}", finding.rule));
        let Some(because) = &finding.because else { continue };
        lines.push(format!("         {because}"));
        for exchange in &finding.exchanges {
            let told = format!(
                "{} (transaction {}, attempt {}) -> {} {}",
                exchange.operation,
                exchange.transaction,
                exchange.attempt,
                exchange.status,
                exchange.answer.trim()
            );
            lines.push(format!("         {}", paint(FAINT, told)));
        }
    }
    let failed = report.findings.iter().filter(|finding| !finding.holds).count();
    lines.push(match failed {
        0 => format!("  all {} rules hold", report.findings.len()),
        failed => format!("  {failed} of {} rules fail", report.findings.len()),
    });
    lines.join("\n") + "\n"
}
