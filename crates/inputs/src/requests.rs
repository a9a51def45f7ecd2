//! What clients send to the coordinator's API, up to where the manager would begin to act on it.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use http::HeaderMap;
use metrics_exporter_prometheus::PrometheusBuilder;
use serde::Serialize;
use serde::de::DeserializeOwned;
use unanimity::core::{
    Fact, Observations, Options, Record, TransactionId, decode_record, encode_record,
};
use unanimity::{ManagerConfig, Storage, TransactionManager};
use unanimity_sdk::api::{BranchRequest, ResolveRequest, TransactionRequest};
use unanimity_server::api::{Api, ApiLimits, read_query};
use unanimity_server::carriage::Carriages;
use unanimity_server::databases::Databases;
use unanimity_server::outbound::{HttpTransport, OutboundConfig};
use unanimity_server::problem::{CODES, Problem, parse_json};

use crate::bytes::{Parts, text};

const DEPTH_MAX: usize = 32;

/// An API over a manager that is never asked to begin anything.
fn api() -> &'static Api {
    static API: OnceLock<Api> = OnceLock::new();
    API.get_or_init(|| {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        // Never ends: the manager's tasks live in it.
        let runtime = Box::leak(Box::new(runtime.expect("a runtime")));
        let _inside = runtime.enter();
        let config = ManagerConfig { storage: Storage::Memory, ..ManagerConfig::default() };
        let transport = HttpTransport::new(OutboundConfig::default());
        let manager = TransactionManager::start(config, Arc::new(Carriages::over_http(transport)));
        let manager = manager.unwrap_or_else(|error| panic!("no manager in memory: {error}"));
        let limits =
            ApiLimits { body_bytes_max: 1 << 20, json_depth_max: DEPTH_MAX, branches_max: 256 };
        let metrics = PrometheusBuilder::new().build_recorder().handle();
        let databases = Databases::new(&BTreeMap::new());
        Api::new(manager, databases, Options::default(), limits, None, metrics)
    })
}

/// A refusal is one of the documented codes, and the client's mistake.
fn check_refusal(problem: &Problem) {
    assert!(CODES.iter().any(|doc| doc.code == problem.code), "{problem}");
    assert!((400..500).contains(&problem.status), "{problem}");
    assert!(!problem.detail.is_empty(), "{}", problem.code);
}

/// What the server's strict reader takes, the SDK's reads as the same; what is written of it is
/// read back, also by the strict one.
fn same_for_both<T>(bytes: &[u8]) -> Option<T>
where
    T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug,
{
    let read: T = match parse_json(bytes, DEPTH_MAX) {
        Ok(read) => read,
        Err(problem) => {
            check_refusal(&problem);
            return None;
        }
    };
    let other: T = serde_json::from_slice(bytes).expect("what the server accepts, the SDK reads");
    assert_eq!(other, read);
    let written = serde_json::to_vec(&read).expect("what was read can be written");
    let again: T = parse_json(&written, DEPTH_MAX)
        .unwrap_or_else(|problem| panic!("{problem}: {}", String::from_utf8_lossy(&written)));
    assert_eq!(again, read);
    Some(read)
}

/// A request to begin, or a file for `unanimity run`: a plan that comes of it passes its own check
/// and survives the journal.
pub fn begin(bytes: &[u8]) -> bool {
    if same_for_both::<TransactionRequest>(bytes).is_none() {
        return false;
    }
    let (_, id, plan) = match api().read_begin(bytes, &HeaderMap::new()) {
        Ok(read) => read,
        Err(problem) => {
            check_refusal(&problem);
            return false;
        }
    };
    assert!(plan.check().is_ok(), "{plan:?}");
    let some_id = || TransactionId::new("t").expect("an id");
    let transaction = id.unwrap_or_else(some_id);
    let fact = Fact::Begun { fingerprint: 1, plan: Box::new(plan) };
    let record = Record { transaction, at: 1, fact, observations: Observations::new() };
    let mut written = Vec::new();
    encode_record(&record, &mut written);
    assert_eq!(decode_record(&written).as_ref(), Ok(&record));
    true
}

/// A request to enlist a branch.
pub fn enlist(bytes: &[u8]) -> bool {
    if same_for_both::<BranchRequest>(bytes).is_none() {
        return false;
    }
    match api().read_enlist(bytes) {
        Ok(_) => true,
        Err(problem) => {
            check_refusal(&problem);
            false
        }
    }
}

/// An operator's word on a branch.
pub fn resolve(bytes: &[u8]) -> bool {
    same_for_both::<ResolveRequest>(bytes).is_some()
}

/// The query of a list, and the patience of a look.
pub fn query(bytes: &[u8]) -> bool {
    let Some(text) = text(bytes) else { return false };
    match read_query(text) {
        Ok(filter) => {
            if let Some(cursor) = &filter.cursor {
                let again = unanimity::Cursor::parse(&cursor.to_string());
                assert_eq!(again.as_ref(), Some(cursor));
            }
            true
        }
        Err(problem) => {
            check_refusal(&problem);
            false
        }
    }
}

/// Headers that may carry an idempotency key, one a line: the same key always names the same
/// transaction, by a name that is allowed.
pub fn key(bytes: &[u8]) -> bool {
    let mut headers = HeaderMap::new();
    let mut parts = Parts(bytes);
    while !parts.0.is_empty() {
        let Ok(value) = http::HeaderValue::from_bytes(parts.line()) else { return false };
        headers.append("idempotency-key", value);
    }
    let body = br#"{"branches":[{"name":"a","participant":"http://127.0.0.1:9"}]}"#;
    match (api().read_begin(body, &headers), api().read_begin(body, &headers)) {
        (Ok((_, first, _)), Ok((_, second, _))) => {
            assert_eq!(first, second);
            assert_eq!(first.is_some(), !headers.is_empty());
            first.is_some()
        }
        (Err(problem), Err(_)) => {
            check_refusal(&problem);
            false
        }
        (one, other) => panic!("{one:?} is not {other:?}"),
    }
}
