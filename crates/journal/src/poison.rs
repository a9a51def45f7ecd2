//! Whether an engine has stopped. After a failed write it is unknown what is stored, so nothing
//! more is done until the journal is opened anew.

use std::path::Path;

use crate::JournalError;

/// What an engine has stopped for, if it has.
#[derive(Debug, Default)]
pub(crate) struct Poison(Option<String>);

impl Poison {
    /// Refuses what is asked of an engine that has stopped.
    pub(crate) fn check(&self, path: &Path) -> Result<(), JournalError> {
        match &self.0 {
            None => Ok(()),
            Some(cause) => {
                Err(JournalError::Poisoned { path: path.to_owned(), cause: cause.clone() })
            }
        }
    }

    /// Takes in how a write went: the engine has stopped unless it succeeded, or was refused with
    /// nothing written. Says whether it has stopped by this.
    pub(crate) fn take_in<T>(&mut self, outcome: &Result<T, JournalError>) -> bool {
        let failure = outcome.as_ref().err().filter(|error| !error.is_refusal());
        if let Some(error) = failure {
            self.0 = Some(error.to_string());
        }
        failure.is_some()
    }
}
