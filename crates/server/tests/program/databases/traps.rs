//! The traps that are known of prepared transactions, each on the real servers.

use serde_json::{Value, json};
use unanimity_databases::{DatabaseOptions, Make};

use super::on_both;
use super::proxy::{Cut, Proxy};
use super::world::{BALANCE, QUICK, World, branch, die_and_start_again, own};
use crate::actor::{Actor, Hold};
use crate::setup::until;

on_both! {
    prepared_work_survives_the_servers_death
    a_wire_that_breaks_in_prepare_or_commit_leaves_nothing_half
    a_lock_that_is_not_let_go_is_a_no
    a_deadlock_is_a_no
    a_statement_that_takes_too_long_is_a_no
    a_prepare_that_comes_after_the_rollback_does_nothing
    a_rollback_does_not_wait_for_the_locks_that_its_prepare_waits_for
    a_branch_committed_by_hand_is_acknowledged
    a_branch_rolled_back_by_hand_is_a_contradiction
    a_repeated_prepare_after_a_restart_is_done_anew
}

/// A transaction whose database branches are prepared, and that waits for the actor's vote.
async fn held(world: &World, actor: &Actor, id: &str, amount: i64) -> Value {
    actor.hold(Hold::Everybody);
    let mut request = world.transfer(id, "A", amount);
    let slow = json!({"name": "slow", "participant": actor.at("slow"), "payload": {}});
    request["branches"].as_array_mut().unwrap().push(slow);
    request["wait"] = json!("accepted");
    for name in ["prepare_timeout_ms", "attempt_timeout_ms"] {
        request[name] = json!(30_000);
    }
    let begun = world.begin(&request).await.json();
    assert_eq!(begun["outcome"], Value::Null, "{begun}");
    prepared(world, id, 2).await;
    request
}

/// Waits until so many branches of a transaction are prepared.
async fn prepared(world: &World, id: &str, count: usize) {
    // PostgreSQL lists all databases of the server, as MariaDB does.
    let mut look = world.look(0).await;
    until("the branches to be prepared", async || {
        let names = look.prepared().await;
        (names.iter().filter(|name| name.contains(id)).count() == count).then_some(())
    })
    .await;
}

async fn check(world: &World, id: &str, outcome: &str, moved: i64) {
    let shown = world.coordinator.ask.ended(id).await;
    assert_eq!(shown["outcome"], outcome, "{shown}");
    prepared(world, id, 0).await;
    let found = (world.balance(0, "A").await, world.balance(1, "A").await);
    assert_eq!(found, (BALANCE - moved, BALANCE + moved), "{shown}");
}

async fn prepared_work_survives_the_servers_death(make: Make) {
    let server = own(make, DatabaseOptions::default()).await;
    let mut world = World::over(server, QUICK).await;
    let actor = Actor::start().await;
    held(&world, &actor, "dies-1", 100).await;
    die_and_start_again(&world.server).await;
    prepared(&world, "dies-1", 2).await;
    actor.hold(Hold::Nobody);
    check(&world, "dies-1", "commit", 100).await;
    // The coordinator's death too: what is undecided then is rolled back.
    held(&world, &actor, "dies-2", 50).await;
    world.coordinator.kill().await;
    prepared(&world, "dies-2", 2).await;
    actor.hold(Hold::Nobody);
    world.coordinator.start_again().await;
    check(&world, "dies-2", "rollback", 100).await;
}

async fn a_wire_that_breaks_in_prepare_or_commit_leaves_nothing_half(make: Make) {
    let world = World::start(make).await;
    let proxy = Proxy::to(world.server.port()).await;
    let urls = [proxy.url(&world.urls[0]), world.urls[1].clone()];
    let world = world.with_urls(&urls, QUICK).await;
    let (prepare, commit, rollback) = match make {
        Make::PostgreSql => ("PREPARE TRANSACTION", "COMMIT PREPARED", "ROLLBACK PREPARED"),
        Make::MariaDb => ("XA PREPARE", "XA COMMIT", "XA ROLLBACK"),
    };
    let mut moved = 0;
    for (number, (word, cut)) in
        [(prepare, Cut::Before), (prepare, Cut::After), (commit, Cut::Before), (commit, Cut::After)]
            .into_iter()
            .enumerate()
    {
        proxy.cut(word, cut);
        let id = format!("cut-{number}");
        let shown = world.begin(&world.transfer(&id, "A", 10)).await.json();
        assert!(proxy.has_cut(), "{word} {cut:?}: {shown}");
        moved += 10;
        check(&world, &id, "commit", moved).await;
    }
    for (number, cut) in [Cut::Before, Cut::After].into_iter().enumerate() {
        let id = format!("cut-back-{number}");
        let mut request = world.transfer(&id, "A", 10);
        request["branches"][1]["payload"]["statements"][0]["parameters"][1] = json!("nobody");
        request["branches"][1]["after"] = json!(["from"]);
        proxy.cut(rollback, cut);
        let shown = world.begin(&request).await.json();
        assert!(proxy.has_cut(), "{rollback} {cut:?}: {shown}");
        check(&world, &id, "rollback", moved).await;
    }
}

fn reason(shown: &Value) -> &str {
    assert_eq!(shown["outcome"], "rollback", "{shown}");
    shown["reason"]["detail"].as_str().unwrap_or_default()
}

async fn a_lock_that_is_not_let_go_is_a_no(make: Make) {
    let world = World::start(make).await;
    let mut other = world.look(0).await;
    other.rows("BEGIN").await;
    other.rows("UPDATE account SET balance = balance WHERE id = 'A'").await;
    let shown = world.begin(&world.transfer("locked", "A", 10)).await.json();
    assert!(reason(&shown).starts_with("lock_timeout: "), "{shown}");
    other.rows("ROLLBACK").await;
    check(&world, "locked", "rollback", 0).await;
}

async fn a_deadlock_is_a_no(make: Make) {
    // A server of its own: nobody else's waits are counted.
    let server = own(make, DatabaseOptions::default()).await;
    let world = World::over(server, &QUICK.replace("400", "20000")).await;
    let mut other = world.look(0).await;
    // Many changes make it dear to roll back, where that decides who has to.
    other.rows("CREATE TABLE dear (a int)").await;
    other.rows("BEGIN").await;
    let many: Vec<String> = (0..200).map(|number| format!("({number})")).collect();
    other.rows(&format!("INSERT INTO dear VALUES {}", many.join(","))).await;
    other.rows("UPDATE account SET balance = balance WHERE id = 'B'").await;
    let statements = vec![world.change("A", 1), world.change("B", 1)];
    let request = json!({"id": "dead", "branches": [branch("both", "db:one", statements)],
        "prepare_timeout_ms": 20_000, "attempt_timeout_ms": 20_000});
    let deadlocked = async {
        let mut watcher = world.look(0).await;
        let waiting = match make {
            Make::PostgreSql => {
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' \
                 AND datname = current_database()"
            }
            Make::MariaDb => {
                "SELECT VARIABLE_VALUE FROM information_schema.global_status \
                 WHERE VARIABLE_NAME = 'INNODB_ROW_LOCK_CURRENT_WAITS'"
            }
        };
        until("the branch to wait", async || (watcher.number(waiting).await > 0).then_some(()))
            .await;
        other.rows("UPDATE account SET balance = balance WHERE id = 'A'").await;
        other.rows("COMMIT").await;
    };
    let (answer, ()) = tokio::join!(world.begin(&request), deadlocked);
    let shown = answer.json();
    assert!(reason(&shown).starts_with("deadlock: "), "{shown}");
    check(&world, "dead", "rollback", 0).await;
}

async fn a_statement_that_takes_too_long_is_a_no(make: Make) {
    let world = World::over(super::world::shared(make).await, &QUICK.replace("3000", "300")).await;
    let sql = match make {
        Make::PostgreSql => "UPDATE account SET balance = 0 WHERE pg_sleep(20) IS NOT NULL",
        Make::MariaDb => "UPDATE account SET balance = 0 WHERE SLEEP(20) = 0",
    };
    let statements = vec![world.statement(sql, json!([]), Value::Null)];
    let request = json!({"id": "slow", "branches": [branch("b", "db:one", statements)]});
    let shown = world.begin(&request).await.json();
    assert!(reason(&shown).starts_with("statement_timeout: "), "{shown}");
    check(&world, "slow", "rollback", 0).await;
}

async fn a_prepare_that_comes_after_the_rollback_does_nothing(make: Make) {
    let world = World::over(super::world::shared(make).await, &QUICK.replace("400", "20000")).await;
    let mut other = world.look(0).await;
    other.rows("BEGIN").await;
    other.rows("UPDATE account SET balance = balance WHERE id = 'A'").await;
    // The prepare waits for the lock until after the deadline; the rollback is decided meanwhile.
    let mut request = world.transfer("late", "A", 10);
    request["prepare_timeout_ms"] = json!(300);
    request["attempt_timeout_ms"] = json!(20_000);
    request["wait"] = json!("outcome");
    let shown = world.begin(&request).await.json();
    assert_eq!(shown["reason"]["code"], "prepare_timeout", "{shown}");
    other.rows("COMMIT").await;
    check(&world, "late", "rollback", 0).await;
}

async fn a_rollback_does_not_wait_for_the_locks_that_its_prepare_waits_for(make: Make) {
    // Longer than any test is waited for.
    let patient = QUICK.replace("= 400", "= 600000").replace("= 3000", "= 600000");
    let world = World::over(super::world::shared(make).await, &patient).await;
    let mut other = world.look(0).await;
    other.rows("BEGIN").await;
    other.rows("UPDATE account SET balance = balance WHERE id = 'A'").await;
    let mut request = world.transfer("stop", "A", 10);
    request["prepare_timeout_ms"] = json!(600_000);
    request["branches"][1]["payload"]["statements"][0]["parameters"][1] = json!("nobody");
    let shown = world.begin(&request).await.json();
    assert!(reason(&shown).starts_with("rows_unexpected: "), "{shown}");
    // The lock is held still.
    check(&world, "stop", "rollback", 0).await;
    other.rows("COMMIT").await;
}

/// What finishes a branch by hand.
fn by_hand(make: Make, names: &[String], id: &str, branch: &str, commit: bool) -> String {
    let word = if commit { "COMMIT" } else { "ROLLBACK" };
    let end = format!("/{branch}");
    match make {
        Make::PostgreSql => {
            let wanted = |name: &&String| name.contains(id) && name.ends_with(&end);
            format!("{word} PREPARED '{}'", names.iter().find(wanted).unwrap())
        }
        Make::MariaDb => {
            let wanted = |name: &&String| name.starts_with(id) && name.ends_with(&end);
            let qualifier = &names.iter().find(wanted).unwrap()[id.len()..];
            format!("XA {word} '{id}','{qualifier}',{}", 0x554E_414E)
        }
    }
}

/// Finishes the first database's branch past the coordinator, whose session must be gone for that.
async fn finish_by_hand(world: &mut World, id: &str, commit: bool) {
    world.coordinator.kill().await;
    let mut look = world.look(0).await;
    let sql = by_hand(world.server.make(), &look.prepared().await, id, "from", commit);
    until("the branch to be free", async || look.try_rows(&sql).await.ok()).await;
    world.coordinator.start_again().await;
}

/// A transaction that is decided to commit, and whose commits have not left: the coordinator dies
/// there.
async fn decided(world: &mut World, id: &str) {
    world.coordinator.kill().await;
    world.coordinator.before = "export UNANIMITY_CRASH_AT=after_decided_append".into();
    world.coordinator.start_again().await;
    let mut request = world.transfer(id, "A", 10);
    request["wait"] = json!("completed");
    let asked = world.coordinator.ask.try_send(
        "POST",
        "/v1/transactions",
        &crate::ask::JSON,
        request.to_string(),
    );
    asked.await.unwrap_err();
    world.coordinator.before = String::new();
    prepared(world, id, 2).await;
}

async fn a_branch_committed_by_hand_is_acknowledged(make: Make) {
    let mut world = World::start(make).await;
    decided(&mut world, "hand-1").await;
    finish_by_hand(&mut world, "hand-1", true).await;
    check(&world, "hand-1", "commit", 10).await;
}

/// MariaDB shows a commit to others before its log is written: whoever acknowledges a commit
/// because its row is there, and has nothing written, loses it with the server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_mariadb_only_shows_as_committed_is_made_durable_before_it_is_acknowledged() {
    let server = own(Make::MariaDb, DatabaseOptions::default()).await;
    let mut world = World::over(server, QUICK).await;
    decided(&mut world, "shown").await;
    world.coordinator.kill().await;
    let mut look = world.look(0).await;
    let names = look.prepared().await;
    // While it takes leave of a session the server may say "done", and do nothing.
    let others = "SELECT COUNT(*) FROM information_schema.processlist \
                  WHERE command <> 'Daemon' AND id <> CONNECTION_ID()";
    until("the sessions to end", async || (look.number(others).await == 0).then_some(())).await;
    // What is committed now is written when somebody else's commit is.
    let late = "SET GLOBAL innodb_flush_log_at_trx_commit = 0, innodb_flush_log_at_timeout = 2700";
    look.rows(late).await;
    for branch in ["from", "to"] {
        let sql = by_hand(Make::MariaDb, &names, "shown", branch, true);
        until("the branch to be free", async || look.try_rows(&sql).await.ok()).await;
    }
    look.rows("SET GLOBAL innodb_flush_log_at_trx_commit = 1").await;
    world.coordinator.start_again().await;
    world.coordinator.ask.ended("shown").await;
    world.coordinator.kill().await;
    die_and_start_again(&world.server).await;
    let found = (world.balance(0, "A").await, world.balance(1, "A").await);
    assert_eq!(found, (BALANCE - 10, BALANCE + 10));
}

async fn a_branch_rolled_back_by_hand_is_a_contradiction(make: Make) {
    let mut world = World::start(make).await;
    decided(&mut world, "hand-2").await;
    finish_by_hand(&mut world, "hand-2", false).await;
    let said = until("the contradiction to show", async || {
        let shown = world.coordinator.ask.shown("hand-2").await;
        let branch = &shown["branches"][0];
        branch["last_error"].as_str().map(str::to_owned).filter(|text| text.contains("no row"))
    })
    .await;
    assert!(said.contains("rolled it back by hand"), "{said}");
    let shown = world.coordinator.ask.shown("hand-2").await;
    assert_eq!((&shown["outcome"], &shown["completed"]), (&json!("commit"), &json!(false)));
}

async fn a_repeated_prepare_after_a_restart_is_done_anew(make: Make) {
    let mut world = World::start(make).await;
    let actor = Actor::start().await;
    actor.hold(Hold::Everybody);
    let mut request = world.transfer("again", "A", 10);
    let slow = json!({"name": "slow", "participant": actor.at("slow"), "payload": {}});
    request["branches"].as_array_mut().unwrap().push(slow);
    request["interactive"] = json!(true);
    request.as_object_mut().unwrap().remove("wait");
    for name in ["prepare_timeout_ms", "attempt_timeout_ms"] {
        request[name] = json!(30_000);
    }
    assert_eq!(world.begin(&request).await.status, 200);
    let ask = world.coordinator.ask.clone();
    let committing = tokio::spawn(async move {
        // dropped: the coordinator dies meanwhile.
        drop(ask.try_send("POST", "/v1/transactions/again/commit", &[], "").await);
    });
    prepared(&world, "again", 2).await;
    world.coordinator.kill().await;
    committing.await.unwrap();
    world.coordinator.start_again().await;
    actor.hold(Hold::Nobody);
    let answer = world.coordinator.ask.post("/v1/transactions/again/commit", &json!({})).await;
    assert_eq!(answer.json()["outcome"], "commit", "{}", answer.text());
    check(&world, "again", "commit", 10).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_serialization_failure_is_a_no() {
    let world = World::start(Make::PostgreSql).await;
    let options = "?options=-cdefault_transaction_isolation%3Dserializable";
    let urls = world.urls.clone().map(|url| url + options);
    let world = world.with_urls(&urls, &QUICK.replace("400", "20000")).await;
    let mut other = world.look(0).await;
    other.rows("BEGIN").await;
    other.rows("UPDATE account SET balance = balance WHERE id = 'A'").await;
    let request = world.transfer("serial", "A", 10);
    let committed = async {
        let mut watcher = world.look(0).await;
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' \
                       AND datname = current_database()";
        until("the branch to wait", async || (watcher.number(waiting).await > 0).then_some(()))
            .await;
        other.rows("COMMIT").await;
    };
    let (answer, ()) = tokio::join!(world.begin(&request), committed);
    let shown = answer.json();
    assert!(reason(&shown).starts_with("serialization_failure: "), "{shown}");
    check(&world, "serial", "rollback", 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_prepares_nothing_is_refused_with_the_setting() {
    let options = DatabaseOptions { prepared_transactions_max: 0, ..DatabaseOptions::default() };
    let server = own(Make::PostgreSql, options).await;
    let ended = super::world::start_in_vain(&server.url()).await;
    assert!(ended.status > 0 && ended.stdout.is_empty(), "{ended:?}");
    for part in ["max_prepared_transactions", "postgresql.conf", "database_refused"] {
        assert!(ended.stderr.contains(part), "no {part} in {}", ended.stderr);
    }
}
