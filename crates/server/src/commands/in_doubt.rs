//! `unanimity in-doubt`: what is prepared in the databases, whose it is, and what becomes of it.

use std::process::ExitCode;

use super::{ClientArguments, Ended};
use crate::config::DatabaseConfig;
use crate::databases::listing::{DatabaseView, InDoubtView, PreparedView};
use crate::{databases, draw};

/// What `in-doubt` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct InDoubtArguments {
    /// Look into this database itself instead of asking a coordinator: postgres://... or
    /// mysql://... Give the URL in the environment to keep its password out of the list of
    /// processes.
    #[arg(long, value_name = "URL", env = "UNANIMITY_DATABASE_URL", hide_env_values = true)]
    database: Option<String>,
    #[command(flatten)]
    client: ClientArguments,
}

/// Shows what is in doubt.
pub(crate) async fn in_doubt(arguments: InDoubtArguments) -> Ended {
    let view = match &arguments.database {
        Some(url) => {
            let config = DatabaseConfig::to_look_into(url).map_err(anyhow::Error::msg)?;
            let place = config.place.clone();
            let looked = databases::look_into(&config).await;
            looked.map_err(|error| anyhow::anyhow!("{place}: {error} (code database_refused)"))?
        }
        None => {
            let client = arguments.client.client()?;
            let asked: Result<InDoubtView, _> = client.get_json("/v1/databases/in-doubt").await;
            asked.map_err(|error| arguments.client.explain(error))?
        }
    };
    let text = if arguments.client.json {
        format!("{}\n", serde_json::to_string_pretty(&view)?)
    } else {
        in_words(&view)
    };
    draw::print(&text)?;
    let failed = view.databases.iter().any(|database| database.error.is_some());
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn in_words(view: &InDoubtView) -> String {
    if view.databases.is_empty() {
        return "no database is configured\n".to_owned();
    }
    view.databases.iter().map(database).collect()
}

fn database(view: &DatabaseView) -> String {
    let DatabaseView { name, place, error, prepared } = view;
    if let Some(error) = error {
        return format!("{name} ({place}): {error}\n");
    }
    let mut text = match prepared.len() {
        0 => format!("{name} ({place}): nothing is prepared\n"),
        count => format!("{name} ({place}): {count} prepared\n"),
    };
    text.extend(prepared.iter().map(one));
    text
}

fn one(view: &PreparedView) -> String {
    let mut facts = vec![view.whose.as_str().replace('_', " ")];
    facts.extend(
        view.age_ms.map(|age_ms| format!("{}.{} s old", age_ms / 1_000, age_ms % 1_000 / 100)),
    );
    facts.extend(view.owner.as_ref().map(|owner| format!("prepared by {owner}")));
    facts.extend(view.locks.map(|locks| match view.tables.as_slice() {
        [] => format!("{locks} locks"),
        tables => format!("{locks} locks in {}", tables.join(", ")),
    }));
    format!("  {}\n    {}\n    {}\n", view.name, facts.join("; "), view.next)
}
