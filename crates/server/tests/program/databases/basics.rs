//! What a branch in a database does, and what is refused.

use serde_json::{Value, json};
use unanimity_databases::Make;

use super::on_both;
use super::world::{BALANCE, World, branch};

on_both! {
    a_transfer_is_all_or_nothing
    a_wrong_number_of_rows_is_a_no
    a_request_that_cannot_be_right_is_refused
    what_the_database_refuses_is_a_no
    reading_is_a_read_only_vote
    what_one_branch_reads_another_can_use
}

/// The reason of a rollback.
fn reason(shown: &Value) -> &str {
    assert_eq!(shown["outcome"], "rollback", "{shown}");
    shown["reason"]["detail"].as_str().unwrap_or_default()
}

async fn a_transfer_is_all_or_nothing(make: Make) {
    let world = World::start(make).await;
    let shown = world.begin(&world.transfer("t-1", "A", 300)).await.json();
    assert_eq!(
        (&shown["outcome"], &shown["completed"]),
        (&json!("commit"), &json!(true)),
        "{shown}"
    );
    // The second half fails: there is no such account.
    let mut request = world.transfer("t-2", "A", 300);
    request["branches"][1]["payload"]["statements"][0]["parameters"][1] = json!("nobody");
    let shown = world.begin(&request).await.json();
    assert_eq!(shown["outcome"], "rollback", "{shown}");
    // So does this one: the account would fall below zero.
    let shown = world.begin(&world.transfer("t-3", "A", 9_000)).await.json();
    assert!(reason(&shown).starts_with("statement_failed: "), "{shown}");
    assert_eq!(world.balance(0, "A").await, BALANCE - 300);
    assert_eq!(world.balance(1, "A").await, BALANCE + 300);
    for which in [0, 1] {
        let mut look = world.look(which).await;
        let ours = look.prepared().await.into_iter().filter(|name| name.contains("t-1"));
        assert_eq!(ours.count(), 0);
    }
    let again = world.begin(&world.transfer("t-1", "A", 300)).await.json();
    assert_eq!(again["outcome"], "commit");
    assert_eq!(world.balance(0, "A").await, BALANCE - 300);
}

async fn a_wrong_number_of_rows_is_a_no(make: Make) {
    let world = World::start(make).await;
    let all = "UPDATE account SET balance = balance - 1";
    for (number, (rows, fits)) in [
        (json!(4), true),
        (json!(3), false),
        (json!({"min": 4}), true),
        (json!({"min": 5}), false),
        (json!({"max": 3}), false),
        (json!({"min": 1, "max": 4}), true),
        (Value::Null, true),
    ]
    .into_iter()
    .enumerate()
    {
        let statements = vec![world.change("A", 1), world.statement(all, json!([]), rows)];
        let id = format!("rows-{number}");
        let request = json!({"id": id, "branches": [branch("b", "db:one", statements)]});
        let shown = world.begin(&request).await.json();
        assert_eq!(shown["outcome"] == "commit", fits, "{shown}");
        if !fits {
            let said = reason(&shown);
            assert!(said.starts_with("rows_unexpected: statement 2 touched 4 rows"), "{said}");
        }
    }
    // Only the four that fit.
    assert_eq!(world.balance(0, "B").await, BALANCE - 4);
    assert_eq!(world.balance(0, "A").await, BALANCE);
}

async fn a_request_that_cannot_be_right_is_refused(make: Make) {
    let world = World::start(make).await;
    let good = || vec![world.change("A", 1)];
    let refused = async |branch: Value, code: &str, field: &str| {
        let answer = world.begin(&json!({"branches": [branch]})).await;
        let (status, found) = (answer.status, answer.problem());
        assert_eq!((status, found), (400, (code.to_owned(), format!("branches[0].{field}"))));
    };
    refused(branch("b", "db:three", good()), "database_unknown", "participant").await;
    refused(branch("b", "db:", good()), "database_unknown", "participant").await;
    for kind in ["compensable", "deferred"] {
        let mut of_kind = branch("b", "db:one", good());
        of_kind["kind"] = json!(kind);
        refused(of_kind, "database_two_phase_only", "kind").await;
    }
    refused(branch("b", "db:one", vec![]), "statements_invalid", "payload").await;
    let plain = json!({"name": "b", "participant": "db:one", "payload": "UPDATE account"});
    refused(plain, "statements_invalid", "payload").await;
    for sql in ["COMMIT", "SET autocommit = 1", "CREATE TABLE x (a int)", "TRUNCATE account"] {
        let statements = vec![json!({"sql": sql})];
        refused(branch("b", "db:one", statements), "statement_not_allowed", "payload").await;
    }
    // An initiator that enlists gets the same answer.
    let opened = world.begin(&json!({"id": "open", "interactive": true, "branches": []})).await;
    assert_eq!(opened.status, 200, "{}", opened.text());
    let bad = branch("b", "db:three", good());
    let answer = world.coordinator.ask.post("/v1/transactions/open/branches", &bad).await;
    assert_eq!(answer.problem(), ("database_unknown".to_owned(), "participant".to_owned()));
}

async fn what_the_database_refuses_is_a_no(make: Make) {
    let world = World::start(make).await;
    let two_in_one = "UPDATE account SET balance = 0; DELETE FROM account";
    let few = "UPDATE account SET balance = $1 WHERE id = $2";
    for (number, statement) in [
        world.statement("UPDATE acount SET balance = 0", json!([]), Value::Null),
        world.statement("UPDATE account SET balnce = 0", json!([]), Value::Null),
        world.statement("UPDATE account SET", json!([]), Value::Null),
        world.statement(two_in_one, json!([]), Value::Null),
        world.statement(few, json!([1]), Value::Null),
        world.statement(few, json!([1, "A", 3]), Value::Null),
        world.statement("INSERT INTO account VALUES ($1, $2)", json!(["E", "much"]), Value::Null),
        world.statement("INSERT INTO account VALUES ($1, $2)", json!(["A", 1]), Value::Null),
    ]
    .into_iter()
    .enumerate()
    {
        let statements = vec![world.change("A", 1), statement];
        let id = format!("wrong-{number}");
        let branches = [
            branch("good", "db:two", vec![world.change("A", 1)]),
            branch("bad", "db:one", statements),
        ];
        let shown = world.begin(&json!({"id": id, "branches": branches})).await.json();
        let said = reason(&shown);
        assert!(said.starts_with("statement_failed: "), "{number}: {shown}");
        assert!(said.contains("statement 2"), "{number}: {said}");
    }
    for which in [0, 1] {
        assert_eq!(world.balance(which, "A").await, BALANCE);
    }
}

async fn reading_is_a_read_only_vote(make: Make) {
    let world = World::start(make).await;
    let read = |rows: Value| {
        let sql = "SELECT id, balance FROM account WHERE id = $1";
        world.statement(sql, json!(["A"]), rows)
    };
    let request = json!({"id": "read", "branches": [
        branch("look", "db:one", vec![read(json!(1))]),
        branch("work", "db:two", vec![world.change("A", 5)]),
    ], "wait": "completed"});
    let shown = world.begin(&request).await.json();
    assert_eq!(shown["outcome"], "commit", "{shown}");
    assert_eq!(shown["branches"][0]["vote"], "read_only", "{shown}");
    let rows = json!([{"id": "A", "balance": BALANCE}]);
    let read_back = &shown["branches"][0]["result"]["statements"][0];
    assert_eq!(read_back, &json!({"rows": 1, "returned": rows}), "{shown}");
    // A single one that only reads is asked in one phase.
    let request = json!({"branches": [branch("look", "db:one", vec![read(json!(2))])]});
    let shown = world.begin(&request).await.json();
    assert!(reason(&shown).starts_with("rows_unexpected: statement 1 touched 1 rows"), "{shown}");
    let request = json!({"branches": [branch("look", "db:one", vec![read(json!(1))])]});
    assert_eq!(world.begin(&request).await.json()["outcome"], "commit");
}

async fn what_one_branch_reads_another_can_use(make: Make) {
    let world = World::start(make).await;
    let set = "UPDATE account SET balance = $1 WHERE id = $2";
    let read = "SELECT balance + 7 AS wanted FROM account WHERE id = $1";
    let field = "/statements/0/returned/0/wanted";
    let wanted = json!({"$result": {"branch": "look", "field": field}});
    let mut work =
        branch("work", "db:two", vec![world.statement(set, json!([wanted, "B"]), json!(1))]);
    work["after"] = json!(["look"]);
    let look = branch("look", "db:one", vec![world.statement(read, json!(["A"]), json!(1))]);
    let request = json!({"branches": [look, work], "wait": "completed"});
    let shown = world.begin(&request).await.json();
    assert_eq!(shown["outcome"], "commit", "{shown}");
    assert_eq!(world.balance(1, "B").await, BALANCE + 7);
}
