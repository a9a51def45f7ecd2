//! Decides nothing of its own: how a request's bytes are read, from the first to what the manager
//! would be asked, without asking it. The handlers read with these functions, and so does whoever
//! tries them with bytes of all kinds.

use axum::http::HeaderMap;
use unanimity::core::{Plan, TransactionId};
use unanimity::{EnlistRequest, Filter};
use unanimity_sdk::api::{BranchRequest, TransactionRequest};

use super::extract::Parameters;
use super::{Api, convert, transactions};
use crate::problem::{Problem, parse_json};

impl Api {
    /// Reads a request to begin: what it says, the id that it chooses, if it does, and its plan.
    ///
    /// # Errors
    /// The first thing in it that is not acceptable.
    pub fn read_begin(
        &self,
        body: &[u8],
        headers: &HeaderMap,
    ) -> Result<(TransactionRequest, Option<TransactionId>, Plan), Problem> {
        let request: TransactionRequest = parse_json(body, self.shared.limits.json_depth_max)?;
        let chosen = convert::chosen_id(&request, headers)?;
        let plan = convert::plan(&self.shared, &request)?;
        Ok((request, chosen, plan))
    }

    /// Reads a request to enlist a branch.
    ///
    /// # Errors
    /// The first thing in it that is not acceptable.
    pub fn read_enlist(&self, body: &[u8]) -> Result<EnlistRequest, Problem> {
        let request: BranchRequest = parse_json(body, self.shared.limits.json_depth_max)?;
        convert::enlist(&self.shared, &request)
    }
}

/// Reads the query of a list.
///
/// # Errors
/// The first parameter that is not acceptable.
pub fn read_query(query: &str) -> Result<Filter, Problem> {
    Ok(transactions::asked(Parameters::parse(query)?)?.0)
}
