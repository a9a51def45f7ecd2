//! Decides how what is prepared in a database is shown: whose it is, how old, what it holds, and
//! what becomes of it. The API answers with these types, and `unanimity in-doubt` prints them.

use serde::{Deserialize, Serialize};
use unanimity_sdk::xa::name::BranchName;

/// Something that is prepared in a database, as the database lists it.
#[derive(Clone, Debug)]
pub(super) struct Prepared {
    /// Its name there.
    pub(super) name: String,
    /// The branch that the name stands for, if it is of a coordinator of this make.
    pub(super) branch: Option<BranchName>,
    /// How old it is, where the database says so.
    pub(super) age_ms: Option<u64>,
    /// Who prepared it, where the database says so.
    pub(super) owner: Option<String>,
    /// How many locks it holds, where the database says so.
    pub(super) locks: Option<u64>,
    /// In which tables.
    pub(super) tables: Vec<String>,
}

/// Whose a prepared branch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Whose {
    /// This coordinator's.
    Ours,
    /// Another coordinator's of this make.
    OtherCoordinator,
    /// Somebody else's.
    Foreign,
}

impl Whose {
    /// The word for people and for labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::OtherCoordinator => "other_coordinator",
            Self::Foreign => "foreign",
        }
    }

    /// Whose it is, seen from a coordinator; from nobody's side nothing is ours.
    pub(super) fn of(branch: Option<&BranchName>, coordinator: Option<u64>) -> Self {
        match branch {
            None => Self::Foreign,
            Some(branch) if Some(branch.coordinator) == coordinator => Self::Ours,
            Some(_) => Self::OtherCoordinator,
        }
    }
}

/// A prepared branch, as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PreparedView {
    /// Its name in the database.
    pub name: String,
    /// Whose it is.
    pub whose: Whose,
    /// The coordinator that its name carries, in hexadecimal.
    pub coordinator: Option<String>,
    /// The transaction that its name carries; a digest begins with `~`.
    pub transaction: Option<String>,
    /// The branch that its name carries; a digest begins with `~`.
    pub branch: Option<String>,
    /// How long it has been prepared, in milliseconds: as the database says, or else since it was
    /// first seen here.
    pub age_ms: Option<u64>,
    /// Who prepared it, where the database says so.
    pub owner: Option<String>,
    /// How many locks it holds, where the database says so.
    pub locks: Option<u64>,
    /// The tables in which it holds locks, where the database says so.
    pub tables: Vec<String>,
    /// What becomes of it, in words.
    pub next: String,
}

impl PreparedView {
    /// Shows one.
    pub(super) fn of(prepared: Prepared, whose: Whose, next: String) -> Self {
        let branch = prepared.branch.as_ref();
        Self {
            whose,
            coordinator: branch.map(|branch| format!("{:016x}", branch.coordinator)),
            transaction: branch.map(|branch| branch.transaction.clone()),
            branch: branch.map(|branch| branch.branch.clone()),
            age_ms: prepared.age_ms,
            owner: prepared.owner,
            locks: prepared.locks,
            tables: prepared.tables,
            next,
            name: prepared.name,
        }
    }
}

/// What is prepared in one database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DatabaseView {
    /// Its name in the configuration.
    pub name: String,
    /// Where it is, without credentials.
    pub place: String,
    /// Why it could not be looked into, if so.
    pub error: Option<String>,
    /// Everything that is prepared there. MariaDB lists all of its server's.
    pub prepared: Vec<PreparedView>,
}

/// What is prepared in all configured databases.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct InDoubtView {
    /// Each database.
    pub databases: Vec<DatabaseView>,
}
