//! Bad input: each is refused with a status, a stable code and the field at fault, and nothing is
//! begun and nobody called.

use std::fmt::Write;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::actor::Actor;
use crate::ask::{Answer, Coordinator, JSON, request, with};
use crate::setup::until;

/// What an answer must be: status, code, field.
type Expected = (u16, &'static str, &'static str);

fn check(what: &str, answer: &Answer, expected: Expected) {
    let (code, field) = answer.problem();
    let found = (answer.status, code.as_str(), field.as_str());
    let shown = what.chars().take(200).collect::<String>();
    assert_eq!(found, expected, "{shown}: {}", answer.text());
}

/// Sends each body; then nothing may have been begun and nobody called.
async fn refused(flags: &[&str], cases: &[(String, Expected)]) {
    let coordinator = Coordinator::start(flags).await;
    for (body, expected) in cases {
        let answer = coordinator.ask.send("POST", "/v1/transactions", &JSON, body.clone()).await;
        check(body, &answer, *expected);
    }
    nothing_begun(&coordinator).await;
}

async fn nothing_begun(coordinator: &Coordinator) {
    let (ids, page) = coordinator.ask.list("").await;
    assert_eq!(ids, Vec::<String>::new(), "{page}");
    let metrics = coordinator.ask.get("/metrics").await.text();
    assert!(!metrics.contains("unanimity_transactions_begun_total"), "{metrics}");
}

fn texts(cases: &[(&str, Expected)]) -> Vec<(String, Expected)> {
    cases.iter().map(|(body, expected)| ((*body).to_owned(), *expected)).collect()
}

#[tokio::test]
async fn what_is_no_request_is_refused() {
    let wrong = |field| (400, "wrong_type", field);
    let malformed = (400, "malformed_json", "");
    let cases = texts(&[
        ("", malformed),
        ("{", malformed),
        ("{'branches': []}", malformed),
        (r#"{"branches":[]} x"#, malformed),
        (r#"{"branches":[],}"#, malformed),
        ("\u{feff}{}", malformed),
        ("\u{0}", malformed),
        (
            r#"{"branches":[{"name":"a","participant":"http://127.0.0.1","payload":{,}}]}"#,
            malformed,
        ),
        ("null", wrong("")),
        ("5", wrong("")),
        ("[]", wrong("")),
        // serde would take the fields in their order.
        (r#"["t",[{"name":"a","participant":"http://127.0.0.1:9"}]]"#, wrong("")),
        (r#"{"branches":[["a","http://127.0.0.1:9"]]}"#, wrong("branches[0]")),
        (r#"{"branches":5}"#, wrong("branches")),
        (r#"{"branches":null}"#, wrong("branches")),
        (r#"{"branches":{}}"#, wrong("branches")),
        (r#"{"branches":["a"]}"#, wrong("branches[0]")),
        ("{}", (400, "missing_field", "branches")),
        (r#"{"branches":[{}]}"#, (400, "missing_field", "branches[0].name")),
        (r#"{"branches":[{"name":"a"}]}"#, (400, "missing_field", "branches[0].participant")),
        (r#"{"branches":[],"color":1}"#, (400, "unknown_field", "color")),
        (r#"{"branches":[],"prepare_timeout":1}"#, (400, "unknown_field", "prepare_timeout")),
        (r#"{"branches":[{"name":"a","paylod":1}]}"#, (400, "unknown_field", "branches[0].paylod")),
        (r#"{"id":"a","branches":[],"id":"b"}"#, (400, "repeated_field", "id")),
        (r#"{"branches":[{"name":"a","name":"b"}]}"#, (400, "repeated_field", "branches[0].name")),
        (r#"{"id":5,"branches":[]}"#, wrong("id")),
        (r#"{"wait":"forever","branches":[]}"#, wrong("wait")),
        (r#"{"wait":"","branches":[]}"#, wrong("wait")),
        (r#"{"wait":30,"branches":[]}"#, wrong("wait")),
        (r#"{"wait":"Outcome","branches":[]}"#, wrong("wait")),
    ]);
    refused(&[], &cases).await;
}

/// A good branch with one field changed.
fn branch(field: &str, value: Value) -> Value {
    let mut branch = json!({"name": "a", "participant": "http://127.0.0.1:9/a", "payload": 1});
    branch[field] = value;
    branch
}

/// A request that is good but for one field of its only branch.
fn one(field: &str, value: Value, code: &'static str) -> (String, Expected) {
    let place = match field {
        "name" => "branches[0].name",
        "participant" => "branches[0].participant",
        "kind" => "branches[0].kind",
        "after" => "branches[0].after",
        "payload_in_phase_two" => "branches[0].payload_in_phase_two",
        _ => panic!("no place for {field}"),
    };
    (json!({"branches": [branch(field, value)]}).to_string(), (400, code, place))
}

#[tokio::test]
async fn branches_that_cannot_be_are_refused() {
    let mut cases = vec![
        (json!({"branches": []}).to_string(), (400, "no_branches", "branches")),
        one("name", json!(1), "wrong_type"),
        one("kind", json!("saga"), "wrong_type"),
        one("kind", json!(1), "wrong_type"),
        one("after", json!("b"), "wrong_type"),
        one("payload_in_phase_two", json!("yes"), "wrong_type"),
        one("participant", json!(null), "wrong_type"),
        one("after", json!(["b"]), "after_unknown"),
        one("after", json!(["a"]), "after_itself"),
    ];
    for name in ["", "two words", "a/b", "ä", "a\nb", &"n".repeat(129)] {
        cases.push(one("name", json!(name), "branch_name_invalid"));
    }
    let many: Vec<Value> = (0..257).map(|n| branch("name", json!(n.to_string()))).collect();
    let expected = (400, "too_many_branches", "branches");
    cases.push((json!({"branches": many}).to_string(), expected));
    let twice = json!({"branches": [branch("name", json!("a")), branch("name", json!("a"))]});
    cases.push((twice.to_string(), (400, "branch_name_repeated", "branches[1].name")));
    let linked = |first: (&str, &str), second: (&str, &str)| {
        let named = |name: &str, (kind, after): (&str, &str)| {
            let after: Vec<&str> = after.split_whitespace().collect();
            json!({"name": name, "participant": "http://127.0.0.1:9", "kind": kind, "after": after})
        };
        json!({"branches": [named("a", first), named("b", second)]}).to_string()
    };
    let cycle = linked(("compensable", "b"), ("compensable", "a"));
    cases.push((cycle, (400, "after_cycle", "branches")));
    for unsafe_order in [
        linked(("two_phase", "b"), ("compensable", "")),
        linked(("two_phase", "b"), ("deferred", "")),
        linked(("compensable", "b"), ("deferred", "")),
    ] {
        cases.push((unsafe_order, (400, "after_unsafe", "branches[0].after")));
    }
    refused(&[], &cases).await;
    let few = (400, "too_many_branches", "branches");
    let three: Vec<Value> = (0..3).map(|n| branch("name", json!(n.to_string()))).collect();
    let three = json!({"branches": three}).to_string();
    refused(&["--branches-max", "2"], &[(three, few)]).await;
}

#[tokio::test]
async fn addresses_that_may_not_be_called_are_refused() {
    let invalid = [
        "",
        " ",
        "accounts",
        "127.0.0.1:80",
        "ftp://127.0.0.1/",
        "file:///etc/passwd",
        "unix:/run/x",
        "http:127.0.0.1",
        "http://",
        "http:///a",
        "http://user@127.0.0.1/",
        "http://user:secret@127.0.0.1/",
        "http://127.0.0.1/#part",
        "http://127.0.0.1/?a=b",
        "http://127.0.0.1:0/",
        "http://127.0.0.1:99999/",
        "http://127.0.0.1 /",
        "http://127.0.0.1\\@8.8.8.8/",
        "http://[::1/",
        "http://1.2.3.4.5/",
        "http://127.0.0.1/\r\nx: y",
    ];
    let not_allowed = [
        "http://8.8.8.8/",
        "https://8.8.8.8/",
        "http://134744072/",
        "http://10.0.0.1/",
        "http://192.168.1.1/",
        "http://169.254.169.254/latest/meta-data",
        "http://0xa9fea9fe/",
        "http://2852039166/",
        "http://0251.0376.0251.0376/",
        "http://[::ffff:169.254.169.254]/",
        "http://[64:ff9b::a9fe:a9fe]/",
        "http://0.0.0.0/",
        "http://0/",
        "http://[::]/",
        "http://[fe80::1]/",
        "http://[fd00:ec2::254]/",
        "http://[2606:4700::1111]/",
    ];
    let mut cases = Vec::new();
    for (addresses, code) in
        [(&invalid[..], "participant_invalid"), (&not_allowed, "participant_not_allowed")]
    {
        cases.extend(addresses.iter().map(|address| one("participant", json!(address), code)));
    }
    let long = format!("http://127.0.0.1/{}", "x".repeat(2_048));
    cases.push(one("participant", json!(long), "participant_invalid"));
    refused(&[], &cases).await;
    let loopback: Vec<_> = ["http://127.0.0.1:9/", "http://2130706433:9/", "http://[::1]:9/"]
        .iter()
        .map(|address| one("participant", json!(address), "participant_not_allowed"))
        .collect();
    refused(&["--participants-allow", "private"], &loopback).await;
}

#[tokio::test]
async fn a_name_is_judged_by_what_it_resolves_to() {
    let actor = Actor::start().await;
    let flags = ["--participants-allow", "private", "--retry-delay-ms", "20"];
    let coordinator = Coordinator::start(&flags).await;
    let named = actor.two().map(|address| address.replace("127.0.0.1", "localhost"));
    let fields = [("prepare_timeout_ms", json!(600_000)), ("wait", json!("accepted"))];
    coordinator.ask.begin(&with(request("t", &named), &fields)).await;
    let error = until("a refusal", async || {
        let shown = coordinator.ask.shown("t").await;
        shown["branches"][0]["last_error"].as_str().map(str::to_owned)
    })
    .await;
    assert!(error.contains("participants.allow"), "{error}");
    coordinator.ask.send("POST", "/v1/transactions/t/rollback", &[], "").await;
    assert_eq!(actor.seen(), []);
}

#[tokio::test]
async fn times_that_make_no_sense_are_refused() {
    let mut cases = Vec::new();
    let fields = [
        "prepare_timeout_ms",
        "execute_timeout_ms",
        "attempt_timeout_ms",
        "retry_delay_ms",
        "retry_delay_max_ms",
        "timeout_ms",
    ];
    for field in fields {
        let body = |value: &str| {
            let branch = branch("name", json!("a"));
            format!(r#"{{"branches":[{branch}],"{field}":{value}}}"#)
        };
        for value in ["-1", "1.5", "1.0", "1e99", "\"5s\"", "true", "[]", "18446744073709551616"] {
            cases.push((body(value), (400, "wrong_type", field)));
        }
        for value in ["2592000001", "18446744073709551615"] {
            cases.push((body(value), (400, "timeout_invalid", field)));
        }
        if field != "timeout_ms" {
            cases.push((body("0"), (400, "timeout_invalid", field)));
        }
    }
    refused(&[], &cases).await;
}

#[tokio::test]
async fn ids_that_are_no_names_are_refused() {
    let long = "x".repeat(129);
    let mut cases = Vec::new();
    let controls = ["a\nb", "a\u{0}", "\u{1b}[2Ja", "a\u{7f}", "a\u{85}", "\u{202e}a", "a\u{feff}"];
    let others = ["", "a/b", "../x", "..", ".", "ä", "a b", "😀", "a%2fb", &long];
    for id in [&controls[..], &others].concat() {
        let body = json!({"id": id, "branches": [branch("name", json!("a"))]}).to_string();
        cases.push((body, (400, "transaction_id_invalid", "id")));
    }
    refused(&[], &cases).await;
    let coordinator = Coordinator::start(&[]).await;
    for id in ["%20", "a%2Fb", "..%2fx", "%2e%2e", "..", ".", "%ff", "a+b", "%00", "%C3%A4", &long]
    {
        for (method, rest) in [
            ("GET", ""),
            ("GET", "/events"),
            ("GET", "/decision"),
            ("POST", "/rollback"),
            ("POST", "/retry"),
        ] {
            let path = format!("/v1/transactions/{id}{rest}");
            let answer = coordinator.ask.send(method, &path, &[], "").await;
            check(&path, &answer, (400, "transaction_id_invalid", "id"));
        }
    }
}

#[tokio::test]
async fn keys_that_cannot_name_a_transaction_are_refused() {
    let coordinator = Coordinator::start(&[]).await;
    let body = json!({"branches": [branch("name", json!("a"))]}).to_string();
    let invalid = (400, "idempotency_key_invalid", "Idempotency-Key");
    let long = "k".repeat(256);
    for key in [&b""[..], b"two words", b"\xc3\xa4", b"a\tb", long.as_bytes()] {
        let headers = [JSON[0], ("Idempotency-Key", key)];
        let answer = coordinator.ask.send("POST", "/v1/transactions", &headers, body.clone()).await;
        check(&String::from_utf8_lossy(key), &answer, invalid);
    }
    let twice = [JSON[0], ("Idempotency-Key", &b"a"[..]), ("Idempotency-Key", &b"a"[..])];
    let answer = coordinator.ask.send("POST", "/v1/transactions", &twice, body).await;
    check("twice", &answer, invalid);
    nothing_begun(&coordinator).await;
}

#[tokio::test]
async fn what_is_too_large_or_too_deep_is_refused() {
    let padded = |bytes: usize| {
        let payload = "x".repeat(bytes);
        json!({"branches": [branch("payload", json!(payload))]}).to_string()
    };
    let deep = |levels: usize| {
        let payload = format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        let branch =
            format!(r#"{{"name":"a","participant":"http://8.8.8.8","payload":{payload}}}"#);
        format!(r#"{{"branches":[{branch}]}}"#)
    };
    let cases = [
        (padded(1024 * 1024), (413, "body_too_large", "")),
        (padded(4 * 1024 * 1024), (413, "body_too_large", "")),
        (deep(30), (400, "json_too_deep", "")),
        (deep(100_000), (400, "json_too_deep", "")),
        // Not too deep: what is refused is the address.
        (deep(29), (400, "participant_not_allowed", "branches[0].participant")),
    ];
    refused(&[], &cases).await;
    let too_large = (400, "payload_too_large", "branches[0].payload");
    let mut all = String::from(r#"{"branches":["#);
    for number in 0..17 {
        let comma = if number > 0 { "," } else { "" };
        let payload = "x".repeat(1024 * 1024 - 2);
        let name = format!(r#""name":"{number}","participant":"http://127.0.0.1:9""#);
        write!(all, r#"{comma}{{{name},"payload":"{payload}"}}"#).unwrap();
    }
    all.push_str("]}");
    let cases = [
        (padded(1024 * 1024 - 1), too_large),
        (padded(2 * 1024 * 1024), too_large),
        (all, (400, "payload_too_large", "branches")),
    ];
    refused(&["--body-bytes-max", "33554432"], &cases).await;
}

#[tokio::test]
async fn a_body_without_a_known_length_is_bounded_too() {
    let coordinator = Coordinator::start(&[]).await;
    let address = coordinator.url.trim_start_matches("http://");
    let head = format!(
        "POST /v1/transactions HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n"
    );
    let announced = format!("{head}content-length: 99999999999\r\n\r\n");
    let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x10000));
    let chunked = format!("{head}transfer-encoding: chunked\r\n\r\n{}", chunk.repeat(17));
    for sent in [announced, chunked] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        // It may close before it has taken everything.
        let _ = stream.write_all(sent.as_bytes()).await;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 413");
    }
    nothing_begun(&coordinator).await;
}

#[tokio::test]
async fn only_plain_json_is_read() {
    let coordinator = Coordinator::start(&[]).await;
    let body = json!({"branches": [branch("name", json!("a"))]}).to_string();
    let cases: [&[(&str, &[u8])]; 6] = [
        &[],
        &[("content-type", b"text/plain")],
        &[("content-type", b"application/x-www-form-urlencoded")],
        &[("content-type", b"application/jsonx")],
        &[("content-type", b"\xff")],
        &[("content-type", b"application/json"), ("content-encoding", b"gzip")],
    ];
    for headers in cases {
        let answer = coordinator.ask.send("POST", "/v1/transactions", headers, body.clone()).await;
        check(&format!("{headers:?}"), &answer, (415, "content_type_invalid", ""));
    }
    for good in ["application/json", "Application/JSON; charset=utf-8"] {
        let headers = [("content-type", good.as_bytes())];
        let answer = coordinator.ask.send("POST", "/v1/transactions", &headers, "{}").await;
        check(good, &answer, (400, "missing_field", "branches"));
    }
    nothing_begun(&coordinator).await;
}

#[tokio::test]
async fn queries_that_are_not_understood_are_refused() {
    let coordinator = Coordinator::start(&[]).await;
    let cases = [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=-1", "limit"),
        ("limit=%2B5", "limit"),
        ("limit=1.5", "limit"),
        ("limit=", "limit"),
        ("limit=99999999999999999999", "limit"),
        ("limit=5&limit=6", "limit"),
        ("state=bogus", "state"),
        ("state=", "state"),
        ("state=Ended", "state"),
        ("outcome=maybe", "outcome"),
        ("begun_from_ms=yesterday", "begun_from_ms"),
        ("begun_from_ms=-1", "begun_from_ms"),
        ("begun_until_ms=1e3", "begun_until_ms"),
        ("events=maybe", "events"),
        ("colour=red", "colour"),
        ("wait=30s", "wait"),
        ("State=ended", "State"),
    ];
    for (query, field) in cases {
        let answer = coordinator.ask.get(&format!("/v1/transactions?{query}")).await;
        check(query, &answer, (400, "filter_invalid", field));
    }
    for cursor in ["", "x", ".", "1.", ".a", "abc.id", "1.a%2Fb", "-1.a", "99999999999999999999.a"]
    {
        let answer = coordinator.ask.get(&format!("/v1/transactions?cursor={cursor}")).await;
        check(cursor, &answer, (400, "cursor_invalid", "cursor"));
    }
    for wait in ["", "forever", "-1s", "1h", "61s", "60001ms", "2m", "s", "1.5s", "30%20s", "1 s"] {
        let path = format!("/v1/transactions/t?wait={}", wait.replace(' ', "%20"));
        let answer = coordinator.ask.get(&path).await;
        check(wait, &answer, (400, "wait_invalid", "wait"));
    }
    let answer = coordinator.ask.get("/v1/transactions/t?limit=5").await;
    check("limit", &answer, (400, "filter_invalid", "limit"));
}

#[tokio::test]
async fn paths_and_methods_that_do_not_exist_are_refused() {
    let coordinator = Coordinator::start(&[]).await;
    for path in [
        "/",
        "/v1",
        "/v1/",
        "/v1/transactions/",
        "/v2/transactions",
        "/v1/transactions/a/b",
        "/v1/transactions/a/events/b",
        "/favicon.ico",
        "//v1/transactions",
        "/%2e%2e/etc/passwd",
    ] {
        let answer = coordinator.ask.get(path).await;
        check(path, &answer, (404, "not_found", ""));
    }
    for (method, path) in [
        ("PUT", "/v1/transactions"),
        ("DELETE", "/v1/transactions"),
        ("PATCH", "/v1/transactions/t"),
        ("POST", "/v1/transactions/t"),
        ("DELETE", "/v1/transactions/t"),
        ("POST", "/v1/transactions/t/events"),
        ("GET", "/v1/transactions/t/rollback"),
        ("GET", "/v1/transactions/t/retry"),
        ("POST", "/metrics"),
        ("POST", "/livez"),
    ] {
        let answer = coordinator.ask.send(method, path, &JSON, "{}").await;
        check(&format!("{method} {path}"), &answer, (405, "method_not_allowed", ""));
        assert!(!answer.header("allow").is_empty(), "{method} {path}");
    }
    nothing_begun(&coordinator).await;
}

/// Each of these made one request work for seconds, with all others behind it.
#[tokio::test]
async fn plans_that_take_long_to_check_are_checked_soon() {
    let (actor, coordinator) = (Actor::start().await, Coordinator::start(&[]).await);
    let named = |number: usize, after: Vec<String>, payload: Value| {
        json!({"name": number.to_string(), "participant": actor.at("a"), "kind": "compensable",
            "after": after, "payload": payload})
    };
    let numbers = |range: std::ops::Range<usize>| -> Vec<String> {
        range.rev().map(|number| number.to_string()).collect()
    };
    let reference = |name: String| json!({"$result": {"branch": name}});
    let references = |range| numbers(range).into_iter().map(reference).collect::<Value>();
    let dense = |number| named(number, numbers(0..number), references(0..number.min(100)));
    let backwards = |number| named(number, numbers(number + 1..256), json!(1));
    for branches in [(0..200).map(dense).collect::<Value>(), (0..256).map(backwards).collect()] {
        let fields = json!({"wait": "accepted", "branches": branches});
        let answer = coordinator.ask.begin(&fields).await;
        assert_eq!(answer.status, 202, "{}", answer.text());
    }
    // A name that is repeated says nothing new, and is not kept either.
    let repeated = vec!["0"; 100_000].iter().map(ToString::to_string).collect();
    let branches = [named(0, Vec::new(), json!(1)), named(1, repeated, json!(1))];
    let asked = json!({"id": "t", "wait": "accepted", "branches": branches});
    assert_eq!(coordinator.ask.begin(&asked).await.status, 202);
    assert_eq!(coordinator.ask.shown("t").await["branches"][1]["after"], json!(["0"]));
    let unknown: Value = (0..25_000).map(|number| reference(format!("x{number}"))).collect();
    let asked = json!({"branches": [named(0, Vec::new(), unknown)]});
    let expected = (400, "reference_unknown", "branches[0].payload");
    check("25,000 names", &coordinator.ask.begin(&asked).await, expected);
}

#[tokio::test]
async fn giants_are_refused() {
    let many: Vec<Value> = (0..100_000).map(|n| branch("name", json!(n.to_string()))).collect();
    let fields: String = (0..60_000).fold(String::new(), |all, n| all + &format!(",\"k{n}\":1"));
    let deep = format!(r#"{{"branches":{}{}}}"#, "[".repeat(10_000), "]".repeat(10_000));
    let digits = format!(r#"{{"timeout_ms":{},"branches":[]}}"#, "9".repeat(900_000));
    let word = branch("kind", json!("x".repeat(900_000)));
    let cases = [
        (json!({"branches": many}).to_string(), (400, "too_many_branches", "branches")),
        (format!(r#"{{"branches":[]{fields}}}"#), (400, "unknown_field", "k0")),
        (deep, (400, "json_too_deep", "")),
        (digits, (400, "wrong_type", "timeout_ms")),
        (json!({"branches": [word]}).to_string(), (400, "wrong_type", "branches[0].kind")),
    ];
    refused(&["--body-bytes-max", "33554432"], &cases).await;
}

/// Requests of which two readers could take the end, or the beginning, for different things.
#[tokio::test]
async fn requests_that_can_be_read_in_two_ways_are_refused() {
    let coordinator = Coordinator::start(&[]).await;
    let address = coordinator.url.trim_start_matches("http://");
    let body = json!({"branches": [branch("name", json!("a"))]}).to_string();
    let (size, chunk) = (body.len(), format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len()));
    let head = "POST /v1/transactions HTTP/1.1\r\nhost: h\r\ncontent-type: application/json\r\n";
    let cases = [
        format!("{head}content-length: {size}\r\ncontent-length: 5\r\n\r\n{body}"),
        format!("{head}content-length: -1\r\n\r\n{body}"),
        format!("{head}content-length: +{size}\r\n\r\n{body}"),
        format!("{head}content-length: {size}, {size}\r\ncontent-length: 1\r\n\r\n{body}"),
        format!("{head}content-length: 99999999999999999999999\r\n\r\n{body}"),
        format!("{head}transfer-encoding: gzip\r\n\r\n{chunk}"),
        format!("{head}transfer-encoding: chunked, gzip\r\n\r\n{chunk}"),
        format!("{head}transfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n{body}"),
        format!("{head}transfer-encoding: chunked\r\n\r\n-5\r\n{body}"),
        format!("{head}transfer-encoding: chunked\r\n\r\nx\r\n{body}"),
        format!("{head}content-length : {size}\r\n\r\n{body}"),
        format!("{head}x: a\r\n folded: b\r\ncontent-length: {size}\r\n\r\n{body}"),
        format!("{head}x: a\0b\r\ncontent-length: {size}\r\n\r\n{body}"),
        format!("POST /v1/transactions HTTP/1.1 x\r\nhost: h\r\n\r\n{body}"),
        format!("POST /v1/transactions HTTP/9.9\r\nhost: h\r\n\r\n{body}"),
        format!("POST  /v1/transactions HTTP/1.1\r\nhost: h\r\n\r\n{body}"),
        format!("\x16\x03\x01\x02\0\x01 {body}"),
    ];
    for sent in cases {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await; // A reset is a refusal too.
        let answer = String::from_utf8_lossy(&answer);
        let status = answer.split(' ').nth(1).unwrap_or("400");
        assert!(status.starts_with('4') || status.starts_with('5'), "{sent}\n{answer}");
        assert_eq!(answer.matches("HTTP/1.").count().max(1), 1, "{sent}\n{answer}");
    }
    nothing_begun(&coordinator).await;
}
