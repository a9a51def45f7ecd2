//! Names, addresses, the configuration and traces: texts that people write too.

use std::net::IpAddr;

use unanimity_core::{ID_BYTES_MAX, TransactionId, check_id};
use unanimity_judge::{Judge, read_line, write_line};
use unanimity_server::config::Config;
use unanimity_server::outbound::{HttpTransport, OutboundConfig, Policy};

use crate::bytes::{Parts, text};

/// The token in the corpus.
const TOKEN: &str = "a-secret-of-the-corpus";

/// A configuration file. Whatever it says, a refusal does not show the token.
pub fn configuration(bytes: &[u8]) -> bool {
    let Some(text) = text(bytes) else { return false };
    // It names a file, and what is in files of this machine is nobody's input.
    if text.contains("token_file") {
        return false;
    }
    // Elsewhere it is no secret: an address that is none is shown.
    let is_token = |line: &str| line.split('=').next().is_some_and(|key| key.trim() == "token");
    if text.lines().any(|line| line.contains(TOKEN) && !is_token(line)) {
        return false;
    }
    match Config::parse(text) {
        Ok(config) => {
            assert!(config.outbound().is_ok(), "what was checked can be used");
            assert!(config.retry.retry_delay_ms <= config.retry.retry_delay_max_ms);
            true
        }
        Err(error) => {
            assert!(!error.to_string().contains(TOKEN), "{error}");
            false
        }
    }
}

/// A participant's address: one that is accepted means the same to other readers of addresses.
pub fn address(bytes: &[u8]) -> bool {
    let Some(address) = text(bytes) else { return false };
    let everything = ["loopback", "private", "public"];
    let policy = Policy::parse(everything).expect("a policy of words");
    let transport = HttpTransport::new(OutboundConfig { policy, ..OutboundConfig::default() });
    if let Err(error) = transport.check(address) {
        assert!(error.code.starts_with("participant_"), "{error}");
        assert!(!error.message.is_empty());
        return false;
    }
    let url = url::Url::parse(address).expect("an address that is accepted is an URL");
    assert!(matches!(url.scheme(), "http" | "https"), "{url}");
    assert!(url.username().is_empty() && url.password().is_none(), "{url}");
    assert!(url.query().is_none() && url.fragment().is_none(), "{url}");
    let host = url.host_str().expect("a host");
    // What is called is what the URL says once it is written plainly.
    let plain: http::Uri = url.as_str().parse().expect("a plain address is an URI too");
    assert_eq!(plain.host(), Some(host));
    assert!(transport.check(url.as_str()).is_ok(), "{url} is {address}, written plainly");
    true
}

/// An entry of `participants.allow`, a host, a port and an address, a line each: whoever may be
/// called in one spelling may be called in each, and a guarded address by its own entry only.
pub fn policy(bytes: &[u8]) -> bool {
    let mut parts = Parts(bytes);
    let Some(entry) = text(parts.line()) else { return false };
    let Ok(policy) = Policy::parse([entry]) else { return false };
    assert_eq!(Policy::parse([entry]).as_ref(), Ok(&policy));
    let host = text(parts.line()).unwrap_or_default();
    let port = u16::from(parts.byte()) << 8 | u16::from(parts.byte());
    let address: Option<IpAddr> = text(parts.line()).and_then(|text| text.parse().ok());
    let Some(address) = address else { return false };
    let permitted = policy.permit(host, port, address);
    let lower = policy.permit(&host.to_ascii_lowercase(), port, address);
    assert_eq!(permitted.is_ok(), lower.is_ok(), "{host}");
    if let IpAddr::V4(four) = address {
        let mapped = policy.permit(host, port, four.to_ipv6_mapped().into());
        assert_eq!(permitted.is_ok(), mapped.is_ok(), "{address}");
        let guarded = four.is_link_local() || four.is_multicast() || four.is_unspecified();
        let names_it = entry.contains('/') || entry.parse::<IpAddr>().is_ok();
        let spells_it = entry.starts_with(|first: char| first.is_ascii_digit() || first == '[');
        assert!(!guarded || permitted.is_err() || names_it || spells_it, "{entry} {address}");
    }
    permitted.is_ok()
}

/// A name of a transaction or a branch: an allowed one is safe in paths, headers, SQL and logs.
pub fn id(bytes: &[u8]) -> bool {
    let Some(name) = text(bytes) else { return false };
    let read = TransactionId::new(name);
    assert_eq!(read.is_ok(), check_id(name).is_ok());
    let Ok(id) = read else { return false };
    assert_eq!(id.as_str(), name);
    assert!((1..=ID_BYTES_MAX).contains(&name.len()));
    let safe = |byte: u8| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte);
    assert!(name.bytes().all(safe), "{name:?}");
    true
}

/// The lines of a trace: what is read is written and read again as it was, and the judge judges
/// whatever it is given.
pub fn trace(bytes: &[u8]) -> bool {
    let Some(text) = text(bytes) else { return false };
    let mut judge = Judge::new();
    let mut accepted = false;
    for (number, line) in (1..).zip(text.lines()) {
        let Ok(read) = read_line(number, line) else { continue };
        let written = write_line(&read).expect("what was read can be written");
        assert_eq!(read_line(number, &written).ok().as_ref(), Some(&read), "{written}");
        judge.take(&read);
        accepted = true;
    }
    accepted
}
