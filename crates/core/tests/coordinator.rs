//! How a coordinator behaves, as data. Each line of a script is `what happens => what follows`:
//! records in brackets, then what leaves once they are durable. After every line some promises are
//! checked that hold always; see `world.rs`.
//!
//! | happens | meaning |
//! | --- | --- |
//! | `begin a b<a c:compensable d:deferred limit=30 park=2` | begins `T` with these branches |
//! | `a yes` / `readonly` / `no` / `ack` / `lost` | the answer to the latest call to `a` |
//! | `a prepare 1 yes` | the answer to a certain attempt, late or once more |
//! | `tick` | the next timer fires at its time |
//! | `crash` / `crash losing 2` | recovery from all records, or all but the last two |
//! | `rewrite` | everything is written anew, and what was before is forgotten |
//! | `rollback` / `retry` | somebody asks |
//! | `begin open=60000 a! l:local m:deferred+50 n:deferred*` | an interactive one |
//! | `enlist b` / `commit` | its initiator asks |
//! | `resolve b committed` / `resolve b committed why` | an operator says |

#![allow(clippy::unwrap_used, reason = "a test that fails should panic; helpers are tests too")]

mod scripts;

use scripts::world::World;

/// Plays a script and compares what follows each line.
#[track_caller]
fn check(script: &str) {
    let mut world = World::default();
    let (mut expected, mut found) = (String::new(), String::new());
    for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (happens, follows) = line.split_once("=>").unwrap();
        let line = |follows: &str| format!("{} => {}\n", happens.trim(), follows.trim());
        expected += &line(follows);
        found += &line(&world.play(happens.trim()));
    }
    assert!(found == expected, "\nfound:\n{found}\nexpected:\n{expected}");
}
