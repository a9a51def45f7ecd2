//! Which carriage takes a call: decided by the scheme of the participant's address, so that a
//! transaction may mix them, and by what a participant over HTTP has offered beside. How each
//! carries a call is its own affair (`outbound` for http and https, one by one or in batches;
//! `streams` for grpc and stream).

use std::sync::Arc;

use unanimity::core::{BranchPlan, Call};
use unanimity::{CallFuture, Owed, Transport};

use crate::outbound::{HttpTransport, Offers};

/// All carriages of one coordinator: HTTP, and whatever else is added under a scheme of its own.
pub struct Carriages {
    http: Arc<HttpTransport>,
    offers: Arc<Offers>,
    /// By scheme; there are few.
    others: Vec<(&'static str, Arc<dyn Transport>)>,
}

impl Carriages {
    /// Calls participants over HTTP alone.
    #[must_use]
    pub fn over_http(http: HttpTransport) -> Self {
        Self { offers: http.offers(), http: Arc::new(http), others: Vec::new() }
    }

    /// Gives every address of `scheme` (what stands before the first colon, in lower case) to
    /// another carriage.
    #[must_use]
    pub fn with(mut self, scheme: &'static str, carriage: Arc<dyn Transport>) -> Self {
        self.others.retain(|(known, _)| *known != scheme);
        self.others.push((scheme, carriage));
        self
    }

    fn other(&self, participant: &str) -> Option<&Arc<dyn Transport>> {
        let is_of =
            |scheme| participant.strip_prefix(scheme).is_some_and(|rest| rest.starts_with(':'));
        let found = self.others.iter().find(|(scheme, _)| is_of(*scheme));
        found.map(|(_, carriage)| carriage)
    }

    /// The carriage of a stream that an HTTP participant has offered, if it is to be used.
    fn usable(&self, participant: &str, stream: &str) -> Option<&Arc<dyn Transport>> {
        let (_, carriage) = self.others.iter().find(|(scheme, _)| *scheme == "grpc")?;
        if carriage.check(stream).is_ok() && carriage.held_back(stream).is_none() {
            return Some(carriage);
        }
        self.offers.suspend(participant);
        None
    }

    /// Gives a call to what its participant has offered: a stream, or a batch; or gives it back.
    fn as_offered(&self, call: Call, owed: Owed) -> Option<(Call, Owed)> {
        let offered = self.offers.of(&call.plan.participant);
        if let Some(stream) = offered.stream
            && let Some(carriage) = self.usable(&call.plan.participant, &stream)
        {
            let mut call = call;
            Arc::make_mut(&mut call.plan).participant = stream;
            return carriage.submit(call, owed);
        }
        match offered.lane {
            Some(lane) => self.http.gather(&lane, call, owed),
            None => Some((call, owed)),
        }
    }
}

impl Transport for Carriages {
    fn call(&self, call: Call) -> CallFuture<'_> {
        match self.other(&call.plan.participant) {
            Some(carriage) => carriage.call(call),
            None => Box::pin(self.http.call(call)),
        }
    }

    fn submit(&self, call: Call, owed: Owed) -> Option<(Call, Owed)> {
        match self.other(&call.plan.participant) {
            Some(carriage) => carriage.submit(call, owed),
            None => self.as_offered(call, owed),
        }
    }

    fn check(&self, participant: &str) -> Result<(), (&'static str, String)> {
        match self.other(participant) {
            Some(carriage) => carriage.check(participant),
            None => self.http.check(participant).map_err(|error| (error.code, error.message)),
        }
    }

    fn check_branch(&self, branch: &BranchPlan) -> Result<(), (&'static str, String)> {
        match self.other(&branch.participant) {
            Some(carriage) => carriage.check_branch(branch),
            None => self.check(&branch.participant),
        }
    }

    fn is_busy(&self, participant: &str) -> bool {
        match self.other(participant) {
            Some(carriage) => carriage.is_busy(participant),
            None => self.http.is_busy(participant),
        }
    }

    fn held_back(&self, participant: &str) -> Option<String> {
        match self.other(participant) {
            Some(carriage) => carriage.held_back(participant),
            None => self.http.held_back(participant),
        }
    }
}

#[cfg(test)]
mod tests {
    use unanimity::core::Answer;

    use super::*;
    use crate::outbound::OutboundConfig;

    struct Refuses;

    impl Transport for Refuses {
        fn call(&self, _: Call) -> CallFuture<'_> {
            Box::pin(std::future::ready(Answer::ReadOnly))
        }

        fn check(&self, participant: &str) -> Result<(), (&'static str, String)> {
            Err(("mine", participant.to_owned()))
        }
    }

    #[test]
    fn an_address_goes_to_the_carriage_of_its_scheme() {
        let carriages = Carriages::over_http(HttpTransport::new(OutboundConfig::default()))
            .with("db", Arc::new(Refuses));
        let code = |participant| carriages.check(participant).map_err(|(code, _)| code);
        assert_eq!(code("db:orders"), Err("mine"));
        assert_eq!(code("http://localhost:1/"), Ok(()));
        assert_eq!(code("other:orders"), Err("participant_invalid"));
        assert_eq!(code("orders"), Err("participant_invalid"));
    }
}
