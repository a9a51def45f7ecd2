//! Plays calls that come in one request, against a participant that offers to take them: each must
//! be answered as it would be alone, and be as good as if it had come alone.

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use serde_json::value::RawValue;
use unanimity_core::Operation;

use super::stage::{BRANCH, Held, Meaning, Scene, Stage, exchange};
use super::{Finding, Verdict};
use crate::contract::JSON;
use crate::contract::batch::{BATCH_HEADER, BATCH_PATH, Entry, Line, Writer};

const RULE: &str = "calls that come in one request are each answered as they would be alone";
const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

use Meaning::{Acknowledged, ReadOnly, Yes};

impl Stage<'_> {
    /// Plays it; none if the participant does not offer to take several calls in one request.
    pub(super) async fn together(&self, number: usize) -> Option<Finding> {
        let mut scene = self.scene(number);
        let [work, done, undone] = match self.options.compensable {
            true => [Operation::Execute, Operation::Compensate, Operation::Compensate],
            false => [Operation::Prepare, Operation::Commit, Operation::Rollback],
        };
        if !self.offers(&scene, undone).await {
            return None;
        }
        let (verdict, because) = match serde_json::from_slice::<&RawValue>(&self.payload) {
            Err(_) => (Verdict::NotPlayed, Some("its payload is no JSON".to_owned())),
            Ok(payload) => match self.played(&mut scene, work, [done, undone], payload).await {
                Ok(()) => (Verdict::Holds, None),
                Err(because) => (Verdict::Fails, Some(because)),
            },
        };
        let (rule, exchanges) = (RULE.to_owned(), scene.exchanges);
        Some(Finding { rule, verdict, because, exchanges })
    }

    /// Whether an answer offers it: one to a call that leaves nothing behind.
    async fn offers(&self, scene: &Scene, undone: Operation) -> bool {
        let asking = self.connections.request(self.request(scene, undone, 1));
        let answered = tokio::time::timeout(self.options.timeout, asking).await;
        let Ok(Ok(answer)) = answered else { return false };
        let offered = answer.headers().get(BATCH_HEADER).and_then(|calls| calls.to_str().ok());
        offered.and_then(|calls| calls.parse().ok()).is_some_and(|calls: usize| calls > 1)
    }

    async fn played(
        &self,
        scene: &mut Scene,
        work: Operation,
        ends: [Operation; 2],
        payload: &RawValue,
    ) -> Held {
        let ids = ["a", "b", "c"].map(|last| format!("{}-{last}", scene.transaction));
        let [a, b, c] = ids.each_ref().map(String::as_str);
        // The third was never prepared, and was never executed.
        let (last, refused) = match ends[0] {
            Operation::Commit => (Operation::Commit, None),
            _ => (ends[0], Some(Acknowledged)), // a compensation
        };
        // One piece of work alone: a participant may keep a second of the same kind waiting until
        // the first has ended. The other was never begun, and is undone.
        let first = [(work, a, Some(Yes)), (last, c, refused)];
        self.batch(scene, &first, Some(payload)).await?;
        let second = [(ends[0], a, Some(Acknowledged)), (ends[1], b, Some(Acknowledged))];
        self.batch(scene, &second, None).await
    }

    /// Sends calls in one request. Each must have one line that means what is expected; none: it
    /// must not be acknowledged.
    async fn batch(
        &self,
        scene: &mut Scene,
        calls: &[(Operation, &str, Option<Meaning>)],
        payload: Option<&RawValue>,
    ) -> Held {
        let mut writer = Writer::default();
        for (operation, transaction, _) in calls {
            let payload = payload.filter(|_| operation.carries_payload());
            let (operation, transaction, branch) = (*operation, *transaction, BRANCH);
            let (attempt, traceparent, outcome) = (1, TRACE, None);
            writer.push(&Entry {
                operation,
                transaction,
                branch,
                attempt,
                traceparent,
                outcome,
                payload,
            });
        }
        let base = self.participant.trim_end_matches('/');
        let request = Request::post(format!("{base}/{BATCH_PATH}"))
            .header(http::header::CONTENT_TYPE, JSON)
            .body(Full::new(Bytes::from(writer.finish())));
        let (status, answer) =
            exchange(&self.connections, request.unwrap_or_default(), self.options.timeout).await;
        if status != 200 {
            return Err(format!("a batch was answered {status}: {}", answer.trim()));
        }
        let mut lines = Vec::new();
        for line in answer.lines() {
            let read = Line::read(line.as_bytes());
            lines.push(read.ok_or_else(|| format!("{line:?} is no line of an answer"))?);
        }
        for (place, (operation, transaction, expected)) in calls.iter().enumerate() {
            let mut own = lines.iter().filter(|line| line.number == place as u64);
            let (Some(line), None) = (own.next(), own.next()) else {
                return Err(format!("call {place} of a batch has not one line: {answer}"));
            };
            let body = String::from_utf8_lossy(line.body()).into_owned();
            let found = scene.note_for(transaction, *operation, line.status().as_u16(), body);
            let fits = match expected {
                Some(Yes) => matches!(found, Yes | ReadOnly),
                Some(expected) => found == *expected,
                None => found != Acknowledged,
            };
            if !fits {
                let operation = operation.as_str();
                return Err(format!("{operation} in a batch was answered with {found:?}"));
            }
        }
        Ok(())
    }
}
