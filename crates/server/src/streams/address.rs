//! Decides what the address of a participant on a stream may look like, before anything is dialed.
//! Whether the address behind a host's name may be reached is the policy's, when it is connected.

use unanimity::core::check_id;

use crate::outbound::{AddressError, Policy, check_address};

/// What the address of a service begins with that opens the stream itself.
pub(super) const DIALS: &str = "stream:";

/// Who opens the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Address {
    /// The coordinator, to `grpc://HOST:PORT/NAME`.
    Dialed {
        /// Where, as an `http` URL without a path: how the connection is asked for.
        origin: String,
        /// Whom to ask for there.
        name: String,
    },
    /// The service, under this name: `stream:NAME`.
    Dials(String),
}

fn invalid(message: impl Into<String>) -> AddressError {
    AddressError { code: "participant_invalid", message: message.into() }
}

impl Address {
    /// Takes an address apart.
    pub(super) fn parse(participant: &str) -> Result<Self, AddressError> {
        if let Some(name) = participant.strip_prefix(DIALS) {
            check_id(name).map_err(|error| invalid(format!("has a name that {error}")))?;
            return Ok(Self::Dials(name.to_owned()));
        }
        let Some(rest) = participant.strip_prefix("grpc://") else {
            return Err(invalid("must begin with http://, https://, grpc:// or stream:"));
        };
        let (authority, name) = rest.split_once('/').unwrap_or((rest, ""));
        check_id(name).map_err(|error| {
            invalid(format!("must end in a name, as in grpc://{authority}/accounts: it {error}"))
        })?;
        if !has_port(authority) {
            return Err(invalid("names no port"));
        }
        Ok(Self::Dialed { origin: format!("http://{authority}"), name: name.to_owned() })
    }

    /// Everything that can be said of it before a name is resolved.
    pub(super) fn check(&self, policy: &Policy) -> Result<(), AddressError> {
        match self {
            Self::Dialed { origin, .. } => check_address(origin, policy).map_err(|error| {
                let message = error.message.replace("http:// or https://", "grpc://");
                AddressError { message, ..error }
            }),
            Self::Dials(_) => Ok(()),
        }
    }
}

/// Whether a port is written: there is no usual one.
fn has_port(authority: &str) -> bool {
    let port = authority.rsplit_once(':').map_or("", |(_, port)| port);
    !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(participant: &str, expected: Result<(), &str>) {
        let found = Address::parse(participant).and_then(|one| one.check(&Policy::default()));
        let code = found.as_ref().map_err(|error| error.code);
        assert_eq!(code.copied(), expected, "{participant:?}: {found:?}");
    }

    #[test]
    fn addresses_are_checked_before_anything_is_dialed() {
        for good in [
            "grpc://localhost:7102/accounts",
            "grpc://127.0.0.1:7102/a.b-c_d",
            "grpc://[::1]:7102/accounts",
            "stream:accounts",
            "stream:a:b",
        ] {
            case(good, Ok(()));
        }
        for bad in [
            "grpc://localhost/accounts",
            "grpc://localhost:7102",
            "grpc://localhost:7102/",
            "grpc://localhost:7102/a/b",
            "grpc://localhost:7102/a?b",
            "grpc://localhost:7102/a#b",
            "grpc://user@localhost:7102/a",
            "grpc://localhost:0/a",
            "grpc://localhost:99999/a",
            "grpc:///a",
            "grpc://:7102/a",
            "grpc:localhost:7102/a",
            "grpc://[::1]/a",
            "grpc://local host:7102/a",
            "stream:",
            "stream:a b",
            "stream://accounts",
        ] {
            case(bad, Err("participant_invalid"));
        }
        for other in ["grpc://10.0.0.1:7102/a", "grpc://169.254.169.254:80/a"] {
            case(other, Err("participant_not_allowed"));
        }
    }
}
