//! The last word on a run: every transaction ended, no acknowledged outcome contradicted, every
//! bank in agreement with the coordinator's history, the initiator's own database too, and not a
//! cent lost or made.

use std::collections::{BTreeMap, HashMap};

use anyhow::Context;
use serde_json::Value;
use unanimity_bank::{BranchLine, Total};
use unanimity_sdk::api::Outcome;
use unanimity_sdk::{Client, INITIATOR_BRANCH};

use super::load::Acknowledged;
use super::orders::Orders;
use crate::commands::each_transaction;

/// What a run came to.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// How many transactions the history holds.
    pub transactions: usize,
    /// How many committed.
    pub committed: usize,
    /// How many rolled back, by the code of the reason.
    pub rolled_back: BTreeMap<String, usize>,
    /// How many were taken up again by a restarted coordinator.
    pub recovered: usize,
    /// How many were asked to commit in one phase.
    pub in_one_phase: usize,
    /// How many the participant that alone decides settled with a commit.
    pub settled: usize,
    /// How many orders the initiator's own database holds.
    pub orders: usize,
    /// How often a live transaction was asked what it waits for, and had an answer.
    pub explained: usize,
    /// How many answers readers had to what a transaction's state is, from before its beginning
    /// until after its end.
    pub reads: usize,
    /// How many lines the history of everybody has, put together and judged.
    pub judged_lines: usize,
    /// How many are not complete.
    pub open: usize,
    /// The sum of all balances, in cents.
    pub money_cents: i64,
    /// The sum of all reservations, in cents; 0 when everything is complete.
    pub reserved_cents: i64,
    /// Everything that is wrong, in words. Empty: all is well.
    pub wrong: Vec<String>,
}

/// Reads everything back and compares.
///
/// # Errors
/// If something cannot be read.
pub async fn judge(
    coordinator: &Client,
    banks: &[Client; 2],
    orders: Option<&Orders>,
    acknowledged: &Acknowledged,
    money_before_cents: i64,
) -> anyhow::Result<Verdict> {
    let mut verdict = Verdict::default();
    let (mut history, mut branches) = (HashMap::new(), HashMap::new());
    each_transaction(coordinator, "", |transaction| {
        count(&mut verdict, transaction);
        let id = transaction["id"].as_str().unwrap_or_default().to_owned();
        let committed = transaction["outcome"] == "commit";
        let count = transaction["branches"].as_array().map_or(0, Vec::len);
        branches.insert(id.clone(), count);
        if history.insert(id.clone(), committed).is_some() {
            verdict.wrong.push(format!("{id} is in the history twice"));
        }
        Ok(())
    })
    .await?;
    compare_acknowledged(&mut verdict, &history, acknowledged);
    let mut seen: HashMap<String, Vec<String>> = HashMap::new();
    for bank in banks {
        let total: Total = bank.get_json("/total").await.context("a bank's totals")?;
        verdict.money_cents += total.balance;
        verdict.reserved_cents += total.reserved;
        for line in bank.get_text("/branches").await.context("a bank's guard")?.lines() {
            let line: BranchLine = serde_json::from_str(line)?;
            compare_branch(&mut verdict, &history, &line);
            seen.entry(line.transaction).or_default().push(line.state);
        }
    }
    // An order is the work of its transaction's local branch.
    for (transaction, _) in orders.map(Orders::all).transpose()?.unwrap_or_default() {
        verdict.orders += 1;
        let (branch, state) = (INITIATOR_BRANCH.to_owned(), "committed".to_owned());
        seen.entry(transaction.clone()).or_default().push(state.clone());
        let line = BranchLine { transaction, branch, state, note: None, at_ms: 0 };
        compare_branch(&mut verdict, &history, &line);
    }
    for (id, _) in history.iter().filter(|(_, committed)| **committed) {
        let committed = seen.get(id).map_or(0, |states| count_committed(states));
        let count = branches.get(id).copied().unwrap_or(0);
        if committed != count {
            let wrong = format!("{id} committed, but only {committed} of its {count} branches did");
            verdict.wrong.push(wrong);
        }
    }
    let adds = acknowledged.adds_cents.iter().filter(|(id, _)| history.get(*id) == Some(&true));
    let expected = money_before_cents + adds.map(|(_, cents)| *cents).sum::<i64>();
    if verdict.money_cents != expected {
        let after = verdict.money_cents;
        verdict.wrong.push(format!("there should be {expected} cents, and there are {after}"));
    }
    if verdict.reserved_cents != 0 {
        verdict.wrong.push(format!("{} cents are still reserved", verdict.reserved_cents));
    }
    if verdict.open != 0 {
        verdict.wrong.push(format!("{} transactions are still open", verdict.open));
    }
    Ok(verdict)
}

fn count_committed(states: &[String]) -> usize {
    states.iter().filter(|state| matches!(state.as_str(), "committed" | "executed")).count()
}

fn count(verdict: &mut Verdict, transaction: &Value) {
    verdict.transactions += 1;
    if transaction["completed"] != true {
        verdict.open += 1;
    }
    let events = transaction["events"].as_array();
    let any = |name: &str, word: &str| {
        events.is_some_and(|events| events.iter().any(|event| event[name] == word))
    };
    verdict.in_one_phase += usize::from(any("operation", "commit_one_phase"));
    verdict.recovered += usize::from(any("event", "recovered"));
    if transaction["outcome"] == "commit" {
        verdict.committed += 1;
        let settled = transaction["reason"]["code"] == "settled_by_participant";
        verdict.settled += usize::from(settled);
    } else {
        let code = transaction["reason"]["code"].as_str().unwrap_or("undecided");
        *verdict.rolled_back.entry(code.to_owned()).or_default() += 1;
    }
}

fn compare_acknowledged(
    verdict: &mut Verdict,
    history: &HashMap<String, bool>,
    acknowledged: &Acknowledged,
) {
    for (id, told) in &acknowledged.outcomes {
        let told_commit = *told == Outcome::Commit;
        match history.get(id) {
            None => verdict.wrong.push(format!("{id} was acknowledged, and nobody knows it")),
            Some(committed) if *committed != told_commit => {
                verdict.wrong.push(format!("{id} was acknowledged as {told:?}, and is the other"));
            }
            Some(_) => {}
        }
    }
    verdict.wrong.extend(acknowledged.refused.iter().map(|refused| format!("refused: {refused}")));
}

/// A branch must have followed its transaction. One that was rolled back before it was known here
/// is fine; one that is prepared still, or committed or executed alone, is not.
fn compare_branch(verdict: &mut Verdict, history: &HashMap<String, bool>, line: &BranchLine) {
    let BranchLine { transaction, branch, state, .. } = line;
    let committed = history.get(transaction).copied();
    let fits = match state.as_str() {
        "committed" | "executed" => committed == Some(true),
        "rolled_back" | "voted_no" | "compensated" => committed == Some(false),
        _ => false,
    };
    if !fits {
        let outcome =
            committed.map_or("is unknown", |yes| if yes { "committed" } else { "rolled back" });
        verdict.wrong.push(format!("{branch} of {transaction} is {state}, the whole {outcome}"));
    }
}
