//! Nothing that is prepared is forgotten, and nothing of anybody else's is touched.

use serde_json::{Value, json};
use unanimity_databases::Make;

use super::on_both;
use super::world::{Look, World};
use crate::actor::{Actor, Hold};
use crate::ask::run;
use crate::setup::until;

on_both! {
    what_nobody_knows_is_rolled_back_and_what_is_foreign_is_only_shown
    what_is_undecided_is_left_alone
    rows_of_ended_branches_go_after_a_while
}

/// Prepares an update of an account by hand, under a name.
async fn by_hand(look: &mut Look, make: Make, name: &str, account: &str) {
    let update = format!("UPDATE account SET balance = balance + 1 WHERE id = '{account}'");
    let sql = match make {
        Make::PostgreSql => vec!["BEGIN".into(), update, format!("PREPARE TRANSACTION '{name}'")],
        Make::MariaDb => vec![
            format!("XA START {name}"),
            update,
            format!("XA END {name}"),
            format!("XA PREPARE {name}"),
        ],
    };
    for one in sql {
        look.rows(&one).await;
    }
}

/// The name of a branch of some coordinator, as the server takes it.
fn name(make: Make, coordinator: &str, transaction: &str) -> String {
    match make {
        Make::PostgreSql => format!("unanimity/{coordinator}/{transaction}/b"),
        Make::MariaDb => format!("'{transaction}','{coordinator}/b',{}", 0x554E_414E),
    }
}

async fn in_doubt(world: &World) -> Vec<Value> {
    let answer = world.coordinator.ask.get("/v1/databases/in-doubt").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let document = answer.json();
    let first = &document["databases"][0];
    assert_eq!((&first["name"], &first["error"]), (&json!("one"), &Value::Null), "{document}");
    assert!(!document.to_string().contains(&world.server.password()), "{document}");
    first["prepared"].as_array().unwrap().clone()
}

fn containing<'a>(all: &'a [Value], part: &str) -> Option<&'a Value> {
    all.iter().find(|one| one["name"].as_str().unwrap().contains(part))
}

async fn swept(world: &World, times: u64) {
    let count = async || {
        let sql = match world.server.make() {
            Make::PostgreSql => {
                "SELECT calls FROM (SELECT xact_commit AS calls FROM pg_stat_database \
                 WHERE datname = current_database()) s"
            }
            Make::MariaDb => {
                "SELECT VARIABLE_VALUE FROM information_schema.global_status WHERE VARIABLE_NAME = \
                 'COM_XA_RECOVER'"
            }
        };
        world.look(0).await.number(sql).await
    };
    let before = count().await;
    let wanted = before + i64::try_from(times).unwrap() * 2;
    until("some sweeps", async || (count().await >= wanted).then_some(())).await;
}

async fn what_nobody_knows_is_rolled_back_and_what_is_foreign_is_only_shown(make: Make) {
    let world = World::start(make).await;
    let id = world.coordinator_id();
    let mut sessions = Vec::new();
    let foreign = match make {
        Make::PostgreSql => format!("another manager''s, of {id}"),
        // Bytes that are no text, and a format of somebody else's.
        Make::MariaDb => format!("X'ff00{id}',X'80',7"),
    };
    let names = [
        (name(make, &id, &format!("orphan-{id}")), "A"),
        (name(make, "00000000000000aa", &format!("elsewhere-{id}")), "B"),
        (foreign.clone(), "C"),
    ];
    for (name, account) in &names {
        let mut look = world.look(0).await;
        by_hand(&mut look, make, name, account).await;
        sessions.push(look);
    }
    if make == Make::MariaDb {
        // While the session lives that has prepared it, it cannot be finished by anybody else.
        swept(&world, 5).await;
        assert!(containing(&in_doubt(&world).await, "orphan").is_some());
    }
    sessions.clear();
    let ours = format!("orphan-{id}");
    until("the orphan to be rolled back", async || {
        containing(&in_doubt(&world).await, &ours).is_none().then_some(())
    })
    .await;
    assert_eq!(world.balance(0, "A").await, super::world::BALANCE);
    swept(&world, 5).await;
    let all = in_doubt(&world).await;
    let other = containing(&all, &format!("elsewhere-{id}")).unwrap();
    assert_eq!(other["whose"], "other_coordinator", "{other}");
    assert_eq!(other["coordinator"], "00000000000000aa", "{other}");
    let mark = if make == Make::PostgreSql { "another manager" } else { "0xff00" };
    let stranger = containing(&all, mark).unwrap();
    assert_eq!(stranger["whose"], "foreign", "{stranger}");
    assert!(stranger["age_ms"].as_u64().is_some(), "{stranger}");
    if make == Make::PostgreSql {
        assert!(stranger["locks"].as_u64() > Some(0), "{stranger}");
        assert_eq!(stranger["tables"], json!(["account"]), "{stranger}");
        assert_eq!(stranger["owner"], "unanimity", "{stranger}");
    }
    let metrics = world.coordinator.ask.get("/metrics").await.text();
    let gauge = "unanimity_database_prepared{database=\"one\",whose=\"foreign\"}";
    assert!(
        metrics.lines().any(|line| line.starts_with(gauge) && !line.ends_with(" 0")),
        "{metrics}"
    );
    // The command says the same, of the coordinator and of the database itself.
    let (coordinator, database) =
        (["--url", &world.coordinator.url], ["--database", &world.urls[0]]);
    for place in [coordinator, database] {
        let ended = run(&["in-doubt", place[0], place[1]]).await;
        assert_eq!(ended.status, 0, "{ended:?}");
        assert!(ended.stdout.contains(mark) && ended.stdout.contains("foreign"), "{ended:?}");
        assert!(!ended.stdout.contains(&world.server.password()), "{ended:?}");
    }
    // They go with the test, so that they are in nobody's way.
    let mut look = world.look(0).await;
    for (name, _) in &names[1..] {
        look.rows(&match make {
            Make::PostgreSql => format!("ROLLBACK PREPARED '{}'", name),
            Make::MariaDb => format!("XA ROLLBACK {name}"),
        })
        .await;
    }
}

async fn what_is_undecided_is_left_alone(make: Make) {
    let world = World::start(make).await;
    let actor = Actor::start().await;
    actor.hold(Hold::Everybody);
    // A name that XA has no room for: there it is a digest.
    let id = format!("undecided-{}", "x".repeat(100));
    let mut request = world.transfer(&id, "A", 10);
    let slow = json!({"name": "slow", "participant": actor.at("slow"), "payload": {}});
    request["branches"].as_array_mut().unwrap().push(slow);
    request["wait"] = json!("accepted");
    for name in ["prepare_timeout_ms", "attempt_timeout_ms"] {
        request[name] = json!(30_000);
    }
    world.begin(&request).await;
    let ours = async || {
        let all = in_doubt(&world).await;
        all.into_iter().find(|one| one["whose"] == "ours" && one["branch"] == "from")
    };
    until("the branch to be prepared", async || ours().await).await;
    swept(&world, 8).await;
    let left = ours().await.unwrap();
    assert!(left["next"].as_str().unwrap().contains("left alone"), "{left}");
    actor.hold(Hold::Nobody);
    let shown = world.coordinator.ask.ended(&id).await;
    assert_eq!(shown["outcome"], "commit", "{shown}");
    assert_eq!(world.balance(0, "A").await, super::world::BALANCE - 10);
}

async fn rows_of_ended_branches_go_after_a_while(make: Make) {
    let settings = format!("{}keep_ms = 500\n", super::world::QUICK);
    let world = World::over(super::world::shared(make).await, &settings).await;
    let rows = async || world.look(0).await.number("SELECT COUNT(*) FROM unanimity_branch").await;
    // Another coordinator's row, and old: not ours to remove.
    let old = "INSERT INTO unanimity_branch (gid, state, made_at) VALUES \
               ('unanimity/00000000000000aa/t/b', 'committed', '2020-01-01 00:00:00')";
    world.look(0).await.rows(old).await;
    for number in 0..3 {
        let id = format!("kept-{number}");
        assert_eq!(world.begin(&world.transfer(&id, "A", 1)).await.json()["outcome"], "commit");
    }
    until("the rows to go", async || (rows().await == 1).then_some(())).await;
    let left = world.look(0).await.rows("SELECT gid FROM unanimity_branch").await;
    assert!(left[0][0].contains("00aa"), "{left:?}");
}
