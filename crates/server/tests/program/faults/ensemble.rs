//! A coordinator and two banks as processes, each of which a test can put a fault on; and the last
//! word on what became of everything.

use std::time::Duration;

use tokio::task::JoinHandle;
use unanimity_bank::Total;
use unanimity_sdk::api::Outcome;
use unanimity_sdk::rusqlite::{Connection, OpenFlags};
use unanimity_sdk::{Client, TransactionId};
use unanimity_server::demo::load::Acknowledged;
use unanimity_server::demo::verdict::{Verdict, judge};

use super::node::Node;
use super::styles::{Style, until_known};
use crate::ask::Ask;
use crate::setup::{Folder, until};

/// The coordinator's history, as anybody may read it at any time.
pub struct History(Connection);

impl History {
    pub fn holds(&self, id: &str) -> bool {
        let sql = "SELECT count(*) FROM history WHERE id = ?1";
        let found: u32 = self.0.query_row(sql, [id], |row| row.get(0)).unwrap();
        found == 1
    }
}

pub struct Ensemble {
    /// The coordinator, bank A and bank B.
    pub nodes: [Node; 3],
    pub folder: Folder,
    acknowledged: Acknowledged,
    money_cents: i64,
    /// Whether a participant alone has decided a transaction.
    one_phase: bool,
}

const ACCOUNTS: i64 = 2;
const BALANCE_CENTS: i64 = 100_000_000;
const FLAGS: [&str; 8] = [
    "--retry-delay-ms",
    "10",
    "--retry-delay-max-ms",
    "100",
    "--attempt-timeout-ms",
    "500",
    "--parked-retry-delay-ms",
    "200",
];

impl Ensemble {
    pub async fn start(flags: &[&str]) -> Self {
        Self::start_with(flags, &[]).await
    }

    /// The same, with flags for the banks too.
    pub async fn start_with(flags: &[&str], bank_flags: &[&str]) -> Self {
        let folder = Folder::new();
        let data = folder.path().join("data");
        let mut coordinator = Node::coordinator(&data, &[&FLAGS, flags].concat());
        // Few threads: the calls of one transaction come in nearly the same order each time.
        coordinator.set("TOKIO_WORKER_THREADS", "1");
        coordinator.start().await;
        let url = coordinator.url();
        let bank = |letter: &str, name: &'static str| {
            let database = folder.path().join(format!("{name}.db"));
            let flags = ["--in-doubt-after-ms", "1000", "--accounts", &ACCOUNTS.to_string()]
                .map(str::to_owned);
            let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
            let balance = BALANCE_CENTS.to_string();
            let files = ["bank", "--name", letter, "--database", database.to_str().unwrap()];
            let whom = ["--balance", &balance, "--coordinator", &url];
            let mut bank = Node::new(name, &[&files[..], &whom, &flags, bank_flags].concat());
            bank.set("TOKIO_WORKER_THREADS", "1");
            bank
        };
        let (mut a, mut b) = (bank("A", "bank-a"), bank("B", "bank-b"));
        a.start().await;
        b.start().await;
        let money_cents = 2 * ACCOUNTS * BALANCE_CENTS;
        let acknowledged = Acknowledged::default();
        Self { nodes: [coordinator, a, b], folder, acknowledged, money_cents, one_phase: false }
    }

    pub fn client(&self) -> Client {
        Client::new(&self.nodes[0].url(), None).unwrap()
    }

    pub fn participants(&self) -> [String; 2] {
        [1, 2].map(|bank: usize| format!("{}/transactions", self.nodes[bank].url()))
    }

    pub fn history(&self) -> History {
        let file = self.folder.path().join("data/history.db");
        History(Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap())
    }

    /// Waits until a participant whose disk failed has refused a call for that.
    pub async fn until_stopped_participant_refuses(&self, bank: usize) {
        let ask = Ask::anybody(&self.nodes[bank].url());
        until("a refusal", async || {
            let headers: [(&str, &[u8]); 3] = [
                ("unanimity-transaction", b"nobodys"),
                ("unanimity-branch", b"b"),
                ("unanimity-attempt", b"1"),
            ];
            let answer = ask.send("POST", "/transactions/rollback", &headers, "").await;
            answer.text().contains("stopped until its restart").then_some(())
        })
        .await;
    }

    fn banks(&self) -> [Client; 2] {
        [1, 2].map(|bank: usize| Client::new(&self.nodes[bank].url(), None).unwrap())
    }

    /// Asks for a transaction in the background.
    pub fn ask(&self, style: Style, id: &str) -> JoinHandle<Outcome> {
        tokio::spawn(until_known(self.client(), style.request(id, &self.participants())))
    }

    /// The same, with little time for its first phase.
    pub fn ask_briefly(&self, style: Style, id: &str, timeout_ms: u64) -> JoinHandle<Outcome> {
        let mut request = style.request(id, &self.participants());
        request.prepare_timeout_ms = Some(timeout_ms);
        request.execute_timeout_ms = Some(timeout_ms);
        tokio::spawn(until_known(self.client(), request))
    }

    /// Waits for the transaction's end, and takes down what its initiator was told.
    pub async fn ends(&mut self, style: Style, id: &str, told: Outcome) {
        let (client, name) = (self.client(), TransactionId::new(id).unwrap());
        let ended = until("the transaction to complete", async || {
            for node in &mut self.nodes {
                assert!(node.runs().await, "{} is gone", node.name);
            }
            let shown = client.get(&name, Some(Duration::from_secs(1))).await;
            shown.ok().filter(|shown| shown.completed)
        })
        .await;
        assert_eq!(ended.outcome, Some(told), "{id}: {ended:?}");
        self.one_phase |= style == Style::OnePhase;
        if told == Outcome::Commit {
            self.money_cents += style.makes_cents();
        }
        self.acknowledged.outcomes.insert(id.to_owned(), told);
    }

    /// One transaction, from its beginning to its end.
    pub async fn runs(&mut self, style: Style, id: &str) -> Outcome {
        let told = self.ask(style, id).await.unwrap();
        self.ends(style, id, told).await;
        told
    }

    /// Compares everybody's word with everybody else's: nothing may be wrong, open, reserved, in
    /// doubt or contradicted.
    pub async fn judge(&self) -> Verdict {
        let banks = self.banks();
        for bank in &banks {
            let total = until("a bank without doubts", async || {
                let total = bank.get_json::<Total>("/total").await.unwrap();
                (total.in_doubt == 0).then_some(total)
            })
            .await;
            // Who alone decides is asked to roll back when the time is over; that it has committed
            // is its answer then, and counted like a contradiction.
            assert!(total.contradictions == 0 || self.one_phase, "{total:?}");
        }
        let (known, money) = (&self.acknowledged, self.money_cents);
        let verdict = judge(&self.client(), &banks, None, known, money).await;
        let verdict = verdict.unwrap();
        assert_eq!(verdict.wrong, Vec::<String>::new());
        assert_eq!(verdict.transactions, self.acknowledged.outcomes.len());
        verdict
    }
}
