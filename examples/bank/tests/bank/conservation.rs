//! Money is conserved, wherever the accounts lie: two banks, hundreds of transfers, and a network
//! that delivers every message once to three times, late and out of order. The coordinator of this
//! test only does what the protocol demands: it decides on the votes, once, and tells the decision.

use std::collections::BTreeMap;

use unanimity_bank::{AccountsBy, BankArguments, Books};
use unanimity_sdk::guard::Reply;
use unanimity_sdk::splitmix64;
use unanimity_sdk::{CallError, Operation};

use crate::support::{Folder, Place, arguments, call, open, payload, places, xa_places};

const TRANSFERS: u64 = 300;
const ACCOUNTS: u32 = 5;
const OPENING: i64 = 2 * 5 * 1_000;

struct Message {
    transfer: u64,
    bank: usize,
    operation: Operation,
    payload: String,
}

#[derive(Default)]
struct Transfer {
    votes: [Option<bool>; 2],
    decision: Option<Operation>,
    /// What a commit is to move: account and amount.
    moves: [(String, i64); 2],
}

struct World {
    banks: [Books; 2],
    transfers: BTreeMap<u64, Transfer>,
    underway: Vec<Message>,
    state: u64,
    delivered: u64,
}

impl World {
    fn draw(&mut self, below: u64) -> u64 {
        self.state += 1;
        splitmix64(self.state) % below
    }

    /// Puts a message under way once to three times.
    fn send(&mut self, transfer: u64, bank: usize, operation: Operation, payload: &str) {
        for _ in 0..=self.draw(3) {
            let payload = payload.to_owned();
            self.underway.push(Message { transfer, bank, operation, payload });
        }
    }

    fn begin(&mut self, transfer: u64) {
        let amount = i64::try_from(self.draw(900)).unwrap() + 1;
        let from = usize::from(self.draw(2) == 1);
        let (debit, credit) =
            (1 + self.draw(u64::from(ACCOUNTS)), 1 + self.draw(u64::from(ACCOUNTS)));
        let name = |bank: usize, number: u64| format!("{}-{number}", ["A", "B"][bank]);
        let moves = [(name(from, debit), -amount), (name(1 - from, credit), amount)];
        let [debit, credit] = moves.each_ref().map(|(account, amount)| payload(account, *amount));
        self.transfers.insert(transfer, Transfer { moves, ..Transfer::default() });
        self.send(transfer, from, Operation::Prepare, &debit);
        self.send(transfer, 1 - from, Operation::Prepare, &credit);
        // Sometimes nobody waits for the votes: the rollback overtakes the prepares.
        if self.draw(10) == 0 {
            self.decide(transfer, Operation::Rollback);
        }
    }

    fn decide(&mut self, transfer: u64, decision: Operation) {
        self.transfers.get_mut(&transfer).unwrap().decision = Some(decision);
        for bank in [0, 1] {
            self.send(transfer, bank, decision, "");
        }
    }

    async fn deliver(&mut self) {
        let length = u64::try_from(self.underway.len()).unwrap();
        let index = usize::try_from(self.draw(length)).unwrap();
        let message = self.underway.swap_remove(index);
        let bank = &self.banks[message.bank];
        let id = format!("transfer-{}", message.transfer);
        let answer = call(&*bank.participant, &id, message.operation, &message.payload).await;
        self.delivered += 1;
        match (message.operation, answer) {
            (Operation::Prepare, Ok(Reply::Yes(_))) => self.voted(&message, true),
            (Operation::Prepare, Ok(Reply::No(_))) => self.voted(&message, false),
            (Operation::Commit | Operation::Rollback, Ok(Reply::Acknowledged)) => {}
            // Somebody holds the account, or the branch's own row: it is asked again.
            (_, Err(CallError::Busy(_))) => self.underway.push(message),
            (operation, answer) => panic!("{id} {operation:?}: {answer:?}"),
        }
    }

    fn voted(&mut self, message: &Message, yes: bool) {
        let transfer = self.transfers.get_mut(&message.transfer).unwrap();
        if transfer.decision.is_some() {
            return;
        }
        let vote = transfer.votes[message.bank].get_or_insert(yes);
        assert_eq!(*vote, yes, "a vote has changed");
        match transfer.votes {
            [Some(true), Some(true)] => self.decide(message.transfer, Operation::Commit),
            [Some(false), _] | [_, Some(false)] => {
                self.decide(message.transfer, Operation::Rollback);
            }
            _ => {}
        }
    }

    /// What every account should hold: its opening balance and the committed transfers.
    fn expected(&self) -> BTreeMap<String, i64> {
        let accounts =
            ["A", "B"].iter().flat_map(|bank| (1..=ACCOUNTS).map(move |n| format!("{bank}-{n}")));
        let mut expected: BTreeMap<_, _> = accounts.map(|account| (account, 1_000)).collect();
        let committed = |transfer: &&Transfer| transfer.decision == Some(Operation::Commit);
        for (account, amount) in
            self.transfers.values().filter(committed).flat_map(|transfer| &transfer.moves)
        {
            *expected.get_mut(account).unwrap() += amount;
        }
        expected
    }

    async fn found(&self) -> BTreeMap<String, i64> {
        let mut found = BTreeMap::new();
        for bank in &self.banks {
            let accounts = bank.accounts(String::new(), 1_000).await.unwrap();
            found.extend(accounts.into_iter().map(|account| (account.id, account.balance)));
        }
        found
    }

    async fn total(&self) -> (i64, i64, u64) {
        let mut total = (0, 0, 0);
        for bank in &self.banks {
            let found = bank.total().await.unwrap();
            total.0 += found.balance;
            total.1 += found.reserved;
            total.2 += found.in_doubt;
        }
        total
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn money_is_conserved_under_duplicates_and_disorder() {
    for place in places() {
        conserves(&place, AccountsBy::Reservation).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn money_is_conserved_where_the_database_prepares() {
    let (_alone, xa_places) = xa_places().await;
    for place in xa_places {
        conserves(&place, AccountsBy::Reservation).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn money_is_conserved_where_accounts_are_locked() {
    for accounts_by in [AccountsBy::Locking, AccountsBy::Queueing, AccountsBy::Optimistic] {
        conserves(&places()[0], accounts_by).await;
    }
}

async fn conserves(place: &Place, accounts_by: AccountsBy) {
    let folder = Folder::new();
    let mut banks = Vec::new();
    for name in ["A", "B"] {
        let arguments = arguments(name, place, place.fresh(&folder).await, ACCOUNTS);
        let faults = "vote_no=0.05".parse().unwrap();
        // Nobody waits long here, because messages are delivered one after the other.
        let wait_max_ms = 0;
        let arguments = BankArguments { faults, accounts_by, wait_max_ms, ..arguments };
        banks.push(open(arguments).await);
    }
    let banks: [Books; 2] = banks.try_into().unwrap();
    let (transfers, underway) = (BTreeMap::new(), Vec::new());
    let mut world = World { banks, transfers, underway, state: 4711, delivered: 0 };
    let mut begun = 0;
    while begun < TRANSFERS || !world.underway.is_empty() {
        if begun < TRANSFERS && (world.underway.len() < 100 || world.draw(20) == 0) {
            begun += 1;
            world.begin(begun);
        }
        if !world.underway.is_empty() {
            world.deliver().await;
        }
    }
    assert_eq!(world.total().await, (OPENING, 0, 0), "{}", place.kind);
    assert_eq!(world.found().await, world.expected(), "{}", place.kind);
    let decided = |decision| {
        let of = world.transfers.values().filter(move |transfer| transfer.decision == decision);
        of.count()
    };
    let told = format!("{} {accounts_by} {}", place.kind, place.xa);
    let committed = decided(Some(Operation::Commit));
    let rolled_back = decided(Some(Operation::Rollback));
    assert_eq!(committed + rolled_back, world.transfers.len());
    assert!(committed > 30 && rolled_back > 30, "{told}: {committed} and {rolled_back}");
    assert!(world.delivered >= 2_000, "{}", world.delivered);
    let absorbed: u64 = world.banks.iter().map(|bank| bank.counters().repeated).sum();
    assert!(absorbed > 500, "{absorbed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_nobody_prepared_moves_nothing() {
    let (_alone, xa_places) = xa_places().await;
    for place in places().into_iter().chain(xa_places) {
        let folder = Folder::new();
        let bank = open(arguments("A", &place, place.fresh(&folder).await, 1)).await;
        let payload = payload("A-1", 500);
        let answer = call(&*bank.participant, "t", Operation::Commit, &payload).await;
        assert!(matches!(answer, Err(CallError::Contradiction(_))), "{answer:?}");
        assert_eq!(crate::support::money(&bank, "A-1").await, (1_000, 0));
    }
}
