//! The commands of the program: which there are, what they share, and how each ends. What one does
//! is in the file of its name.

mod audit;
pub(crate) use audit::{Listed, each as each_transaction};
mod bench;
mod check;
mod explain;
mod in_doubt;
mod list;
mod resolve;
mod run;
pub mod serve;
mod show;
mod verify;

use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Command, FromArgMatches};
use unanimity_sdk::{Client, ClientError, ClientOptions};

use crate::demo;

const ABOUT: &str = "Unanimity makes work that is spread over several services happen everywhere \
     or nowhere.";

const EXIT_HELP: &str = "Exit status: 0 done, 1 failed, 2 wrong usage. For `run`: 0 committed, \
     1 rolled back, 2 nothing was begun (the command line, the file or the request is wrong), \
     3 the outcome is not known (yet). For `verify`: 0 every rule holds, 1 not, 2 a file cannot be \
     read as a trace.";

/// What every command that talks to a coordinator takes.
#[derive(Clone, Debug, Args)]
pub(crate) struct ClientArguments {
    /// The coordinator's URL.
    #[arg(long, env = "UNANIMITY_URL", default_value = "http://127.0.0.1:7171")]
    url: String,
    /// The coordinator's token, if it has one set.
    #[arg(long, env = "UNANIMITY_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Answer in JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

impl ClientArguments {
    /// A client for the coordinator.
    pub(crate) fn client(&self) -> anyhow::Result<Client> {
        let options = ClientOptions { request_timeout_ms: 90_000, ..ClientOptions::default() };
        Ok(Client::with_options(&self.url, self.token.as_deref(), options)?)
    }

    /// Says what to look at when a request fails.
    pub(crate) fn explain(&self, error: ClientError) -> anyhow::Error {
        let unreachable = matches!(error, ClientError::NoAnswer(_));
        let error = anyhow::Error::from(error);
        if unreachable {
            let url = &self.url;
            return error.context(format!(
                "the coordinator at {url} does not answer; is it running (unanimity serve), and is \
                 --url or UNANIMITY_URL right?"
            ));
        }
        error
    }

    /// The same for an error of which that may be the cause.
    pub(crate) fn explain_any(&self, error: anyhow::Error) -> anyhow::Error {
        error.downcast::<ClientError>().map_or_else(|other| other, |error| self.explain(error))
    }
}

/// How a command ended.
pub(crate) type Ended = anyhow::Result<ExitCode>;

fn cli() -> Command {
    let command = Command::new("unanimity")
        .about(ABOUT)
        .version(env!("CARGO_PKG_VERSION"))
        .after_help(EXIT_HELP)
        .subcommand_required(true)
        .arg_required_else_help(true);
    let audit = about("audit", "Take the audit trail out")
        .subcommand_required(true)
        .subcommand(with::<audit::ExportArguments>("export", AUDIT_EXPORT))
        .subcommand(with::<audit::TraceArguments>("trace", AUDIT_TRACE));
    let pages = about("error-pages", "Write the error reference into a folder")
        .arg(clap::Arg::new("folder").required(true));
    command
        .subcommand(serve::command())
        .subcommand(with::<run::RunArguments>("run", RUN))
        .subcommand(with::<list::ListArguments>("list", "List transactions, latest first"))
        .subcommand(with::<show::ShowArguments>("show", "Show a transaction, its timeline drawn"))
        .subcommand(with::<explain::OneArguments>("explain", EXPLAIN))
        .subcommand(with::<explain::StuckArguments>("stuck", STUCK))
        .subcommand(with::<explain::OneArguments>("retry", RETRY))
        .subcommand(with::<explain::OneArguments>("rollback", ROLLBACK))
        .subcommand(with::<resolve::ResolveArguments>("resolve", RESOLVE))
        .subcommand(with::<in_doubt::InDoubtArguments>("in-doubt", IN_DOUBT))
        .subcommand(audit)
        .subcommand(with::<verify::VerifyArguments>("verify", VERIFY))
        .subcommand(with::<check::CheckArguments>("check", CHECK))
        .subcommand(with::<demo::DemoArguments>("demo", DEMO))
        .subcommand(with::<bench::BenchArguments>("bench", BENCH))
        .subcommand(pages.hide(true))
        .subcommand(with::<bench::ParticipantArguments>("bench-participant", "").hide(true))
        .subcommand(with::<unanimity_bank::BankArguments>("bank", "The demo's bank").hide(true))
}

const RUN: &str = "Run a transaction from a JSON file; the exit status is its outcome";
const EXPLAIN: &str =
    "Say in words what a transaction waits for, what happens next, and what you may do";
const STUCK: &str = "Show parked branches, grouped by participant and cause";
const RETRY: &str = "Try a transaction's waiting branches again now";
const ROLLBACK: &str = "Roll a transaction back that is not decided yet";
const RESOLVE: &str = "Say how a branch was settled without the coordinator, and why";
const IN_DOUBT: &str =
    "Show what is prepared in the databases, whose it is, and what becomes of it";
const AUDIT_EXPORT: &str = "Every transaction as one line of JSON, with every event";
const AUDIT_TRACE: &str = "Every event as one line of JSON, in the order of time, to be verified";
const VERIFY: &str = "Judge a history: read traces, and say which rules do not hold in them";
const CHECK: &str = "Play a participant's contract against a service, and say what holds";
const DEMO: &str =
    "Watch thousands of transfers commit or roll back as one while everything is killed";
const BENCH: &str = "Measure throughput and latency beside the ceiling of this machine";

fn about(name: &'static str, about: &'static str) -> Command {
    Command::new(name).about(about)
}

fn with<A: Args>(name: &'static str, text: &'static str) -> Command {
    // What the arguments' own type says about itself is no help to who asks for help.
    A::augment_args(Command::new(name)).about(text).long_about(None::<&str>)
}

/// Runs the program; gives back its exit status.
#[must_use]
pub fn main() -> ExitCode {
    match run_command(&cli().get_matches()) {
        Ok(status) => status,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

fn run_command(matches: &clap::ArgMatches) -> Ended {
    let Some((name, arguments)) = matches.subcommand() else {
        return Ok(ExitCode::from(2)); // clap has asked for one already.
    };
    match name {
        "serve" => match serve::configured(arguments)? {
            Some(config) => {
                let threads = usize::try_from(config.process.worker_threads).unwrap_or(0);
                runtime(threads)?.block_on(serve::serve(config))
            }
            None => Ok(ExitCode::SUCCESS),
        },
        "bench" => {
            let arguments: bench::BenchArguments = parsed(arguments)?;
            runtime(arguments.worker_threads())?.block_on(bench::bench(arguments))
        }
        "bench-participant" => {
            let arguments: bench::ParticipantArguments = parsed(arguments)?;
            runtime(arguments.worker_threads)?.block_on(bench::participant(arguments))
        }
        _ => runtime(0)?.block_on(dispatch(name, arguments)),
    }
}

/// What carries out tasks, on so many threads; 0: one for each core.
fn runtime(worker_threads: usize) -> anyhow::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if worker_threads > 0 {
        builder.worker_threads(worker_threads);
    }
    builder.enable_all().build().context("cannot start")
}

/// Says on standard error what went wrong.
pub(crate) fn complain(error: &anyhow::Error) {
    anstream::eprintln!("{}error:{} {error:#}", crate::draw::BAD, crate::draw::BAD.render_reset());
}

async fn dispatch(name: &str, arguments: &clap::ArgMatches) -> Ended {
    match name {
        "run" => run::run(parsed(arguments)?).await,
        "list" => list::list(parsed(arguments)?).await,
        "show" => show::show(parsed(arguments)?).await,
        "verify" => verify::verify(parsed(arguments)?),
        "check" => check::check(parsed(arguments)?).await,
        "explain" => explain::explain(parsed(arguments)?).await,
        "stuck" => explain::stuck(parsed(arguments)?).await,
        "retry" => explain::retry(parsed(arguments)?).await,
        "in-doubt" => in_doubt::in_doubt(parsed(arguments)?).await,
        "resolve" => resolve::resolve(parsed(arguments)?).await,
        "rollback" => explain::rollback(parsed(arguments)?).await,
        "audit" => {
            let (name, arguments) = arguments.subcommand().context("audit needs a subcommand")?;
            match name {
                "trace" => audit::trace(parsed(arguments)?).await,
                _ => audit::export(parsed(arguments)?).await, // There is no other.
            }
        }
        "demo" => demo::demo(parsed(arguments)?).await,
        "error-pages" => {
            let folder = arguments.get_one::<String>("folder").context("a folder")?;
            std::fs::create_dir_all(folder)?;
            for page in crate::error_pages::pages() {
                std::fs::write(std::path::Path::new(folder).join(page.name), page.text)?;
            }
            Ok(ExitCode::SUCCESS)
        }
        "bank" => {
            unanimity_bank::serve(parsed(arguments)?).await?;
            Ok(ExitCode::SUCCESS)
        }
        other => anyhow::bail!("there is no command {other}"),
    }
}

fn parsed<T: FromArgMatches>(matches: &clap::ArgMatches) -> anyhow::Result<T> {
    Ok(T::from_arg_matches(matches)?)
}
