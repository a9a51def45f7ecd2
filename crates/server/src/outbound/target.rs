//! Decides what a participant's address may look like, before anything is resolved or sent, and
//! takes it apart for the call. Whether the address behind a name may be reached is `policy`'s.

use std::net::IpAddr;

use http::{HeaderValue, Uri};
use unanimity_core::Operation;
use unanimity_sdk::contract::batch::BATCH_PATH;
use url::{Host, Url};

use super::policy::{Policy, is_host_name, plain_name};

/// Why a participant's address cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct AddressError {
    /// `participant_invalid` or `participant_not_allowed`.
    pub code: &'static str,
    /// What is wrong and what to do about it.
    pub message: String,
}

fn invalid(message: impl Into<String>) -> AddressError {
    AddressError { code: "participant_invalid", message: message.into() }
}

/// A participant's address, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// Scheme, host and port: connections are kept per origin.
    pub(crate) origin: String,
    /// What the `Host` header says.
    pub(crate) host: HeaderValue,
    /// The path before the operation, without a slash at its end.
    path: String,
}

impl Target {
    /// Takes an address apart.
    ///
    /// # Errors
    /// [`AddressError`] with the code `participant_invalid`.
    pub(crate) fn parse(participant: &str) -> Result<Self, AddressError> {
        Self::from_url(&parse_url(participant)?)
    }

    fn from_url(url: &Url) -> Result<Self, AddressError> {
        let host = url.host_str().ok_or_else(|| invalid("names no host"))?;
        let port = port_of(url)?;
        Ok(Self {
            origin: format!("{}://{host}:{port}", url.scheme()),
            host: HeaderValue::from_str(url.authority())
                .map_err(|_| invalid("has a host that no header can carry"))?,
            path: url.path().trim_end_matches('/').to_owned(),
        })
    }

    /// What is asked for on the connection: the path and the operation, with one slash between.
    pub(crate) fn uri(&self, operation: Operation) -> Result<Uri, http::Error> {
        self.below(operation.as_str())
    }

    /// What is asked for with several calls.
    pub(crate) fn batch_uri(&self) -> Result<Uri, http::Error> {
        self.below(BATCH_PATH)
    }

    fn below(&self, name: &str) -> Result<Uri, http::Error> {
        Uri::builder().path_and_query(format!("{}/{name}", self.path)).build()
    }
}

/// Everything that can be said of an address before a name is resolved.
///
/// # Errors
/// `participant_invalid` for its form, `participant_not_allowed` for an IP literal that the policy
/// does not allow.
pub(crate) fn check(participant: &str, policy: &Policy) -> Result<(), AddressError> {
    let url = parse_url(participant)?;
    Target::from_url(&url)?
        .uri(Operation::Prepare)
        .map_err(|_| invalid("has a path that no request can carry"))?;
    let address: IpAddr = match url.host() {
        Some(Host::Ipv4(address)) => address.into(),
        Some(Host::Ipv6(address)) => address.into(),
        Some(Host::Domain(_)) | None => return Ok(()),
    };
    policy
        .permit(url.host_str().unwrap_or_default(), port_of(&url)?, address)
        .map_err(|message| AddressError { code: "participant_not_allowed", message })
}

/// The port of an address; port 0 cannot be connected to.
fn port_of(url: &Url) -> Result<u16, AddressError> {
    match url.port_or_known_default() {
        None | Some(0) => Err(invalid("has no port that can be connected to")),
        Some(port) => Ok(port),
    }
}

/// Parses an address, stricter than the `url` crate, which mends what a browser's user may have
/// meant: it drops white space, turns backslashes around and guesses missing slashes. An address
/// that needs mending may be read differently by the next program, so it is refused here.
fn parse_url(participant: &str) -> Result<Url, AddressError> {
    let odd = |c: char| c.is_control() || c.is_whitespace() || c == '\\';
    if participant.contains(odd) {
        return Err(invalid("contains white space, a control character or a backslash"));
    }
    let (scheme, rest) = participant.split_once("://").unwrap_or(("", participant));
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return Err(invalid("must begin with http:// or https://"));
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.is_empty() {
        return Err(invalid("names no host"));
    }
    if authority.contains('@') {
        return Err(invalid("must not carry a user name or password"));
    }
    if rest.contains('#') {
        return Err(invalid("must not have a fragment (#...)"));
    }
    if rest.contains('?') {
        return Err(invalid("must not have a query (?...): the operation is joined to its path"));
    }
    let url =
        Url::parse(participant).map_err(|error| invalid(format!("is not an URL: {error}")))?;
    match url.host() {
        Some(Host::Domain(name)) if !is_host_name(&plain_name(name)) => {
            Err(invalid(format!("has the host {name:?}, which is not a name")))
        }
        Some(_) => Ok(url),
        None => Err(invalid("names no host")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OK: Result<(), &str> = Ok(());
    const INVALID: Result<(), &str> = Err("participant_invalid");
    const NOT_ALLOWED: Result<(), &str> = Err("participant_not_allowed");

    fn case(participant: &str, expected: Result<(), &str>) {
        let found = check(participant, &Policy::default());
        let found_code = found.as_ref().map_err(|error| error.code);
        assert_eq!(found_code.copied(), expected, "{participant:?}: {found:?}");
    }

    #[test]
    fn addresses_are_checked_before_anything_is_sent() {
        case("http://localhost:8080", OK);
        case("https://accounts.example.org/v1/", OK);
        case("HTTP://LOCALHOST./a", OK);
        case("http://b%C3%BCcher.example/", OK);
        case("", INVALID);
        case("localhost:8080", INVALID);
        case("ftp://localhost", INVALID);
        case("file:///etc/passwd", INVALID);
        case("http:localhost", INVALID);
        case("http:/localhost", INVALID);
        case("http://", INVALID);
        case("http:///localhost", INVALID);
        case("http://user@localhost", INVALID);
        case("http://user:secret@localhost", INVALID);
        case("http://@localhost", INVALID);
        case("http://localhost/#part", INVALID);
        case("http://localhost/?a=b", INVALID);
        case("http://localhost?", INVALID);
        case("http://local host/", INVALID);
        case("http://localhost/\n", INVALID);
        case(" http://localhost/", INVALID);
        case("http://localhost\t/", INVALID);
        case("http:\\\\localhost\\", INVALID);
        case("http://evil\\@localhost/", INVALID);
        case("http://localhost:0/", INVALID);
        case("http://localhost:99999/", INVALID);
        case("http://localhost:x/", INVALID);
        case("http://./", INVALID);
        case("http://a..b/", INVALID);
        case("http://*.example.org/", INVALID);
        case("http://[::1/", INVALID);
        case("http://[fe80::1%25eth0]/", INVALID);
        case("http://1.2.3.4.5/", INVALID);
        case("http://256.1.1.1/", INVALID);
    }

    #[test]
    fn literals_in_any_spelling_are_judged_at_once() {
        for loopback in [
            "127.0.0.1",
            "127.1",
            "0x7f.1",
            "2130706433",
            "0177.0.0.1",
            "127.0.0.1.",
            "[::1]",
            "[::ffff:7f00:1]",
            "[::127.0.0.1]",
            "[64:ff9b::7f00:1]",
            "①②⑦.0.0.1",
            "%31%32%37.0.0.1",
        ] {
            case(&format!("http://{loopback}:8080/"), OK);
            let found = check(&format!("http://{loopback}/"), &Policy::parse(["public"]).unwrap());
            assert_eq!(found.unwrap_err().code, "participant_not_allowed", "{loopback}");
        }
        for other in [
            "10.0.0.1",
            "0xa.1",
            "167772161",
            "[::ffff:10.0.0.1]",
            "[2002:a00:1::]",
            "8.8.8.8",
            "0",
            "0.0.0.0",
            "[::]",
            "169.254.169.254",
            "[::ffff:a9fe:a9fe]",
            "0xa9fea9fe",
            "[fe80::1]",
        ] {
            case(&format!("http://{other}/"), NOT_ALLOWED);
        }
    }

    #[test]
    fn the_operation_is_joined_with_one_slash() {
        for (participant, origin, host, path) in [
            ("http://h", "http://h:80", "h", "/prepare"),
            ("http://H:80/", "http://h:80", "h", "/prepare"),
            ("https://h:8443/a/b", "https://h:8443", "h:8443", "/a/b/prepare"),
            ("https://h/a/b//", "https://h:443", "h", "/a/b/prepare"),
            (
                "http://[::1]:1/a b".replace(' ', "%20").as_str(),
                "http://[::1]:1",
                "[::1]:1",
                "/a%20b/prepare",
            ),
            ("http://h/a/../b", "http://h:80", "h", "/b/prepare"),
        ] {
            let target = Target::parse(participant).unwrap();
            assert_eq!(target.origin, origin);
            assert_eq!(target.host, host);
            assert_eq!(target.uri(Operation::Prepare).unwrap(), path);
        }
    }
}
