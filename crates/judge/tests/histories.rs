//! A judge that finds nothing must show that it would: for every rule there are histories, made by
//! hand, that break it (`histories.txt`). Each is found by that rule and by no other.

#![allow(clippy::unwrap_used, reason = "a test that fails should panic; helpers are tests too")]

use std::collections::BTreeSet;

use serde_json::{Value, json};
use unanimity_judge::rules::names as rules;
use unanimity_judge::{Judge, RULES, read_line};

struct History {
    title: &'static str,
    breaks: BTreeSet<&'static str>,
    lines: Vec<Value>,
}

fn histories() -> Vec<History> {
    let text = include_str!("histories.txt");
    text.split("\n= ").skip(1).map(history).collect()
}

fn history(text: &'static str) -> History {
    let mut lines = text.lines().filter(|line| !line.is_empty());
    let title = lines.next().unwrap();
    let sees = lines.next().and_then(|line| line.strip_prefix("sees: ")).unwrap();
    let breaks = lines.next().and_then(|line| line.strip_prefix("breaks: ")).unwrap();
    let sees: Vec<&str> = sees.split(' ').collect();
    let head = json!({"event": "trace", "version": 1, "source": "by hand", "sees": sees});
    let events = std::iter::once(head).chain(lines.map(event));
    let lines = (0..).zip(events).map(|(number, mut event): (i64, Value)| {
        let at = 10 * number + event["earlier"].as_i64().unwrap_or(0);
        event["at"] = json!(at);
        event
    });
    let breaks = breaks.split("; ").filter(|rule| *rule != "nothing").collect();
    History { title, breaks, lines: lines.collect() }
}

/// One line in short form as an event.
fn event(line: &str) -> Value {
    let (position, line) = match line.strip_prefix('@') {
        Some(line) => line.split_once(' ').unwrap(),
        None => ("0", line),
    };
    let words: Vec<&str> = line.split(' ').collect();
    let number = |place: usize| words[place].parse::<i64>().unwrap();
    let numbers = || words[1..].iter().map(|word| word.parse().unwrap()).collect::<Vec<u16>>();
    let mut event = match words[0] {
        "begun" => json!({"fact": "begun", "branches": words[1..].iter().map(|word| branch(word))
            .collect::<Vec<Value>>()}),
        "executing" => json!({"fact": "executing", "branches": numbers()}),
        "decided" => json!({"fact": "decided", "outcome": words[1], "reason": "because",
            "ballots": words[2..]}),
        "finished" => json!({"fact": "finished", "branch": number(1)}),
        "ended" => json!({"fact": "ended"}),
        "durable" | "lost" => json!({"event": words[0], "shard": 0, "position": number(1)}),
        "called" => json!({"event": "called", "branch": number(1), "operation": words[2],
            "attempt": 1}),
        "answered" => json!({"event": "answered", "branch": number(1), "operation": words[2],
            "attempt": 1, "answer": words[3]}),
        "worked" | "remembered" => worked(&words),
        "told" => told(&words),
        "read" => json!({"event": "read", "since": number(1), "unknown": words[2] == "unknown",
            "outcome": Some(words[2]).filter(|word| ["commit", "rollback"].contains(word))}),
        "height" => json!({"event": "height", "what": words[1], "value": number(2),
            "most": number(3)}),
        "holds" => json!({"event": "holds", "account": words[1], "before": number(2),
            "available": number(3), "reserved": number(4)}),
        "left" => json!({"event": "left", "what": words[1], "count": number(2)}),
        "cut" => json!({"event": "cut", "dropped": 3}),
        "at_rest" => json!({"event": "at_rest"}),
        "earlier" => json!({"event": "noted", "what": "the clock", "earlier": -15}),
        other => panic!("there is no event {other:?}"),
    };
    if event["fact"].is_string() {
        event["event"] = json!("recorded");
        event["position"] = json!(position.parse::<u64>().unwrap());
    }
    event["transaction"] = json!("t");
    event
}

/// A branch: its kind, and behind `<` the one that it comes after; with `!`, it comes last.
fn branch(word: &str) -> Value {
    let (word, comes_last) = word.strip_suffix('!').map_or((word, false), |word| (word, true));
    let (kind, after) = word.split_once('<').unwrap_or((word, ""));
    let after: Vec<u16> = after.parse().into_iter().collect();
    json!({"name": "b", "kind": kind, "after": after, "comes_last": comes_last})
}

fn worked(words: &[&str]) -> Value {
    let amount = |place: usize| words.get(place).map_or(0, |word| word.parse::<i64>().unwrap());
    let moved = words
        .get(4)
        .map(|account| json!({"account": account, "available": amount(5), "reserved": amount(6)}));
    json!({"event": "worked", "branch": words[1].parse::<u16>().unwrap(), "operation": words[2],
        "state": words[3], "effect": words[0] == "worked",
        "moved": moved.into_iter().collect::<Vec<Value>>()})
}

fn told(words: &[&str]) -> Value {
    let mut event = json!({"event": "told", "told": words[1]});
    match words[1] {
        "enlisted" => event["branch"] = json!(words[2].parse::<u16>().unwrap()),
        "outcome" => event["outcome"] = json!(words[2]),
        "ended" => {
            event["outcome"] = json!(words[2]);
            event["mixed"] = json!(words.get(3) == Some(&"mixed"));
        }
        _ => {} // There is nothing more to say.
    }
    event
}

#[test]
fn every_bad_history_is_found_by_the_rules_that_it_breaks_and_by_no_other() {
    for history in histories() {
        let mut judge = Judge::new();
        for (number, line) in (1..).zip(&history.lines) {
            judge.take(&read_line(number, &line.to_string()).unwrap());
        }
        let broken: BTreeSet<&str> = judge.found().iter().map(|one| one.rule).collect();
        assert_eq!(broken, history.breaks, "{}: {:#?}", history.title, judge.found());
    }
}

#[test]
fn every_rule_is_broken_by_a_history_that_breaks_no_other() {
    let implied = [rules::STABILITY]; // Of two decisions that were told, only one is durable.
    let alone = |history: &History| history.breaks.len() == 1;
    let histories = histories();
    let alone = histories.iter().filter(|history| alone(history));
    let broken: BTreeSet<&str> = alone.flat_map(|history| history.breaks.clone()).collect();
    let all: BTreeSet<&str> = RULES.into_iter().filter(|rule| !implied.contains(rule)).collect();
    assert_eq!(broken, all);
    assert!(histories.iter().any(|history| history.breaks.contains(rules::STABILITY)));
}
