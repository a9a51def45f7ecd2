//! Decides how the bank takes part over streams: always where it can be dialed, and with `--dial`
//! by dialing the coordinator. It misbehaves on demand there as over HTTP, except that an answer is
//! lost together with its stream, and so with every other answer that was on its way.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use unanimity_sdk::stream::{DialOptions, dial};
use unanimity_sdk::{Answering, CallError, Doubting, OwedAnswer, Participant, Request};

use crate::faults::{Fault, Faults, Message, Struck};

/// The participant, with the faults that can be seen from outside.
pub(crate) struct Misbehaving {
    participant: Arc<dyn Doubting>,
    faults: Arc<Faults>,
    /// Told to break the stream.
    breaks: Arc<Notify>,
}

impl Misbehaving {
    pub(crate) fn new(participant: Arc<dyn Doubting>, faults: Arc<Faults>) -> Self {
        Self { participant, faults, breaks: Arc::new(Notify::new()) }
    }
}

impl Participant for Misbehaving {
    fn call(&self, request: Request) -> Answering<'_> {
        self.participant.call(request)
    }

    fn take(&self, request: Request, owed: OwedAnswer) -> Option<(Request, OwedAnswer)> {
        let message = Message {
            transaction: request.transaction.as_str(),
            branch: &request.branch,
            operation: request.operation.as_str(),
            attempt: request.attempt,
        };
        let struck = Struck::draw(&self.faults, &message);
        if struck.is_none() {
            return self.participant.take(request, owed);
        }
        let injected =
            |fault: Fault| CallError::Failed(format!("the fault {} strikes", fault.as_str()));
        if struck.error_before {
            owed.settle(Err(injected(Fault::ErrorBefore)));
            return None;
        }
        let (participant, breaks) = (Arc::clone(&self.participant), Arc::clone(&self.breaks));
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(struck.delay_ms.unwrap_or(0))).await;
            let answer = participant.call(request).await;
            if struck.lost_answer {
                breaks.notify_one();
                owed.settle(Err(injected(Fault::LostAnswer)));
            } else if struck.error_after {
                owed.settle(Err(injected(Fault::ErrorAfter)));
            } else {
                owed.settle(answer);
            }
        });
        None
    }
}

/// Dials the coordinator, and again whenever a stream has been broken on purpose.
pub(crate) async fn keep_dialing(options: DialOptions, participant: Arc<Misbehaving>) {
    loop {
        let served = Arc::clone(&participant) as Arc<dyn Participant>;
        let dialed = match dial(options.clone(), served) {
            Ok(dialed) => dialed,
            Err(error) => {
                tracing::error!(%error, "cannot dial");
                return;
            }
        };
        participant.breaks.notified().await;
        drop(dialed);
    }
}
