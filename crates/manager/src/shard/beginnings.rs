//! Decides what a request to begin comes to: a new transaction, the answer of one that is there, or
//! a refusal; and has the history asked where only it can know.

use std::sync::Arc;

use unanimity_core::{Doing, Event, Plan, Refusal, TransactionId};

use super::{BeginCommand, Shard};
use crate::error::{BeginError, Unavailable};
use crate::watchers::{BeginAnswer, Wait, Watcher, WatcherReply};

/// What asking the history for a used id came to.
pub(super) struct LookedUp {
    command: BeginCommand,
    found: Result<bool, Unavailable>,
}

impl Shard {
    pub(super) fn on_begin(&mut self, command: BeginCommand) {
        let too_late = self.door.refuses(command.came_at, self.now);
        if self.stopping {
            self.refuse(command.reply, Unavailable::Stopping.into());
            return;
        }
        if too_late {
            self.refuse(command.reply, BeginError::Overloaded);
            return;
        }
        let known = |id| self.outbox.knows(id) || self.ending.contains(id);
        if !command.may_be_used || known(&command.id) {
            self.begin(command);
            return;
        }
        if let Some(waiting) = self.reserved.get_mut(&command.id) {
            waiting.push(command);
            return;
        }
        // The id is reserved before the history is asked: whoever used it before is either known
        // here, or durable in the history by now.
        self.reserved.insert(command.id.clone(), Vec::new());
        let (was_used, sender) = (Arc::clone(&self.was_used), self.looked_up_sender.clone());
        tokio::task::spawn_blocking(move || {
            let found = was_used(&command.id);
            drop(sender.send(LookedUp { command, found }));
        });
    }

    pub(super) fn on_looked_up(&mut self, looked_up: LookedUp) {
        let LookedUp { command, found } = looked_up;
        let waiting = self.reserved.remove(&command.id).unwrap_or_default();
        for command in std::iter::once(command).chain(waiting) {
            match found {
                Ok(false) => self.begin(command),
                Ok(true) => {
                    self.has_woken = true;
                    command.reply.in_history(command.id);
                }
                Err(unavailable) => self.refuse(command.reply, unavailable.into()),
            }
        }
    }

    fn begin(&mut self, command: BeginCommand) {
        let BeginCommand { id, fingerprint, plan, wait, reply, .. } = command;
        self.resume(&id);
        if let Some(ended) = self.ending.get(&id) {
            let same = ended.fingerprint == fingerprint;
            self.begin_existing(&id, same, wait, reply);
            return;
        }
        if self.ending.len() >= self.bounds.ending_max {
            self.refuse(reply, BeginError::AtCapacity);
            return;
        }
        if self.refused.contains(&id) {
            self.refuse(reply, BeginError::SetAside(id.to_string()));
            return;
        }
        if self.reserve.is_nearly_full() && !self.coordinator.knows(&id) {
            self.refuse(reply, BeginError::DiskNearlyFull);
            return;
        }
        self.turn_to(&id);
        self.on_this(Doing::Handling, |shard| {
            shard.begin_new(id, fingerprint, plan, wait, reply);
        });
    }

    fn begin_new(
        &mut self,
        id: TransactionId,
        fingerprint: u128,
        plan: Box<Plan>,
        wait: Wait,
        reply: BeginAnswer,
    ) {
        let event = Event::Begin { transaction: id.clone(), fingerprint, plan };
        let step = self.coordinator.handle(self.now_ms(), event);
        match step.refusal() {
            None => {
                let reply = WatcherReply::Begin(reply);
                self.watchers.add(id, Watcher { wait, existed: false, reply });
                self.take(step);
            }
            Some(Refusal::Exists { same }) => {
                let same = *same;
                self.begin_existing(&id, same, wait, reply);
            }
            Some(Refusal::SetAside) => self.refuse(reply, BeginError::SetAside(id.to_string())),
            Some(Refusal::AtCapacity) => self.refuse(reply, BeginError::AtCapacity),
            Some(Refusal::Plan(error)) => self.refuse(reply, error.clone().into()),
        }
    }

    fn begin_existing(&mut self, id: &TransactionId, same: bool, wait: Wait, reply: BeginAnswer) {
        if same {
            self.show(id, wait, true, WatcherReply::Begin(reply));
        } else {
            self.refuse(reply, BeginError::IdReused(id.to_string()));
        }
    }

    fn refuse(&mut self, reply: BeginAnswer, error: BeginError) {
        self.has_woken = true;
        reply.refuse(error);
    }
}
