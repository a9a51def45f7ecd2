//! Decides which sessions keep the branch that they have prepared, and which are closed for others.

use std::collections::{HashMap, VecDeque};

use super::session::Session;

/// Sessions by the branch that they hold, and the branches in the order of their promises.
#[derive(Default)]
pub(super) struct Holding {
    pub(super) sessions: HashMap<String, Session>,
    order: VecDeque<String>,
    /// Sessions that were closed for others, by their branch: their numbers in the server.
    pub(super) closed: HashMap<String, u32>,
    /// How many sessions were taken out and are at work on their branch.
    pub(super) out: usize,
}

impl Holding {
    /// Keeps a session; gives back those that are too many.
    pub(super) fn keep(&mut self, gid: &str, session: Session, most: usize) -> Vec<Session> {
        self.sessions.insert(gid.to_owned(), session);
        self.order.push_back(gid.to_owned());
        let mut let_go = Vec::new();
        while self.sessions.len() + self.out > most || self.order.len() > 2 * most {
            let Some(oldest) = self.order.pop_front() else { break };
            let Some(session) = self.sessions.remove(&oldest) else { continue };
            self.closed.insert(oldest, session.connection.id());
            let_go.push(session);
        }
        let_go
    }
}
