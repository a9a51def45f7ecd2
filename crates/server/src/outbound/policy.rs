//! Decides which addresses the coordinator may connect to. An address is judged by what it really
//! is, whatever its spelling; how it was found is `connect`'s business.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use url::Host;

/// Which participants may be called: the setting `participants.allow`.
///
/// An entry is one of
/// - `loopback`, `private` or `public`: every address of that class;
/// - a network such as `10.1.0.0/16` or `fd00::/8`, or one address such as `10.1.2.3`;
/// - a name such as `accounts.example.org`, or `*.example.org` for every name below it: allowed
///   whatever it resolves to, except link-local, metadata, multicast and unspecified addresses.
///
/// An address and a name may carry a port (`10.1.2.3:8080`, `[fd00::1]:8080`, `accounts:8080`),
/// and then allow that port only. Link-local, metadata, multicast and unspecified addresses are
/// allowed only by a network or address that contains them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    entries: Vec<Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    text: String,
    what: What,
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    Class(Class),
    Network(Network),
    Name(String),
    /// With its leading dot, so that `evilexample.org` is not below `example.org`.
    Below(String),
}

/// What sort of address an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Loopback,
    Private,
    Public,
    /// Documentation, benchmarks, future use: nobody's by right; a name or a network may allow it.
    Reserved,
    /// Link-local, cloud metadata, multicast, broadcast, unspecified: only a network allows it.
    Guarded,
}

impl Class {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Loopback => "loopback",
            Self::Private => "private",
            Self::Public => "public",
            Self::Reserved => "reserved",
            Self::Guarded => "link-local, metadata, multicast or unspecified",
        }
    }
}

/// A block of addresses of one family, in CIDR's terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Network {
    first: IpAddr,
    bits: u8,
}

/// IPv4 ranges by class; the first that contains an address judges it, and what is in none is
/// public. The IANA registries of special-purpose addresses, and the metadata services of the
/// large clouds.
const V4_CLASSES: &[([u8; 4], u8, Class)] = &[
    ([0, 0, 0, 0], 8, Class::Guarded),
    ([127, 0, 0, 0], 8, Class::Loopback),
    ([10, 0, 0, 0], 8, Class::Private),
    ([172, 16, 0, 0], 12, Class::Private),
    ([192, 168, 0, 0], 16, Class::Private),
    ([100, 100, 100, 200], 32, Class::Guarded), // Alibaba's metadata
    ([100, 64, 0, 0], 10, Class::Private),      // carrier-grade NAT, also used by overlay networks
    ([169, 254, 0, 0], 16, Class::Guarded),     // link-local, and nearly everybody's metadata
    ([168, 63, 129, 16], 32, Class::Guarded),   // Azure's wire server
    ([192, 0, 0, 192], 32, Class::Guarded),     // Oracle's metadata
    ([192, 0, 0, 0], 24, Class::Reserved),
    ([192, 0, 2, 0], 24, Class::Reserved),
    ([192, 88, 99, 0], 24, Class::Reserved),
    ([198, 18, 0, 0], 15, Class::Reserved),
    ([198, 51, 100, 0], 24, Class::Reserved),
    ([203, 0, 113, 0], 24, Class::Reserved),
    ([224, 0, 0, 0], 4, Class::Guarded),
    ([255, 255, 255, 255], 32, Class::Guarded),
    ([240, 0, 0, 0], 4, Class::Reserved),
    ([0, 0, 0, 0], 0, Class::Public),
];

/// The same for IPv6, where only `2000::/3` has been given out.
const V6_CLASSES: &[([u16; 8], u8, Class)] = &[
    ([0, 0, 0, 0, 0, 0, 0, 0], 128, Class::Guarded),
    ([0, 0, 0, 0, 0, 0, 0, 1], 128, Class::Loopback),
    ([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10, Class::Guarded),
    ([0xff00, 0, 0, 0, 0, 0, 0, 0], 8, Class::Guarded),
    ([0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x254], 128, Class::Guarded), // AWS's metadata
    ([0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254], 128, Class::Guarded),   // Google's metadata
    ([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7, Class::Private),
    ([0x2001, 0, 0, 0, 0, 0, 0, 0], 23, Class::Reserved), // Teredo and other experiments
    ([0x2001, 0x0db8, 0, 0, 0, 0, 0, 0], 32, Class::Reserved),
    ([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20, Class::Reserved),
    ([0x2000, 0, 0, 0, 0, 0, 0, 0], 3, Class::Public),
    ([0, 0, 0, 0, 0, 0, 0, 0], 0, Class::Reserved),
];

impl Network {
    fn contains(self, address: IpAddr) -> bool {
        match (self.first, address) {
            (IpAddr::V4(first), IpAddr::V4(address)) => {
                let shift = 32 - u32::from(self.bits);
                (u64::from(first.to_bits()) >> shift) == (u64::from(address.to_bits()) >> shift)
            }
            (IpAddr::V6(first), IpAddr::V6(address)) => {
                let differing = first.to_bits() ^ address.to_bits();
                self.bits == 0 || differing >> (128 - u32::from(self.bits)) == 0
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }

    const fn of_one(address: IpAddr) -> Self {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        Self { first: address, bits }
    }

    /// Reads `address/bits`.
    fn parse(text: &str) -> Result<Self, String> {
        let (first, bits) = text.split_once('/').unwrap_or((text, ""));
        let first: IpAddr = first.parse().map_err(|_| format!("{first:?} is not an IP address"))?;
        let most = if first.is_ipv4() { 32 } else { 128 };
        let bits = bits.parse().ok().filter(|bits| *bits <= most);
        let bits: u8 = bits.ok_or_else(|| format!("/ must be followed by 0 to {most}"))?;
        if bits >= 16 && canonical(first) != first {
            return Err(format!("is judged as IPv4: write {} instead", canonical(first)));
        }
        let network = Self { first, bits };
        match network.first_address() {
            lowest if lowest == first => Ok(network),
            lowest => Err(format!("has bits beyond its length: write {lowest}/{bits}")),
        }
    }

    fn first_address(self) -> IpAddr {
        match self.first {
            IpAddr::V4(first) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.bits)).unwrap_or(0);
                Ipv4Addr::from_bits(first.to_bits() & mask).into()
            }
            IpAddr::V6(first) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.bits)).unwrap_or(0);
                Ipv6Addr::from_bits(first.to_bits() & mask).into()
            }
        }
    }
}

/// The address that an address stands for: IPv4 inside IPv6 (mapped, compatible, NAT64 of RFC 6052,
/// 6to4) is that IPv4 address, so that no range can be dodged by spelling it differently.
pub(crate) fn canonical(address: IpAddr) -> IpAddr {
    let IpAddr::V6(six) = address else { return address };
    let segments = six.segments();
    let embedded = |high: u16, low: u16| {
        IpAddr::V4(Ipv4Addr::from_bits((u32::from(high) << 16) | u32::from(low)))
    };
    match segments {
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => address,
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] => embedded(high, low),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => embedded(high, low),
        [0x2002, high, low, _, _, _, _, _] => embedded(high, low),
        _ => address,
    }
}

/// The class of an address that is canonical already.
pub(crate) fn classify(address: IpAddr) -> Class {
    let found = match address {
        IpAddr::V4(_) => V4_CLASSES
            .iter()
            .find(|(first, bits, _)| {
                Network { first: Ipv4Addr::from(*first).into(), bits: *bits }.contains(address)
            })
            .map(|(_, _, class)| *class),
        IpAddr::V6(_) => V6_CLASSES
            .iter()
            .find(|(first, bits, _)| {
                Network { first: Ipv6Addr::from(*first).into(), bits: *bits }.contains(address)
            })
            .map(|(_, _, class)| *class),
    };
    found.unwrap_or(Class::Guarded)
}

/// A host's name as entries and addresses are compared: lower case, without the root's dot.
pub(crate) fn plain_name(host: &str) -> String {
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

impl Default for Policy {
    /// Loopback only.
    fn default() -> Self {
        let what = What::Class(Class::Loopback);
        Self { entries: vec![Entry { text: "loopback".into(), what, port: None }] }
    }
}

impl Policy {
    /// Reads the entries of `participants.allow`.
    ///
    /// # Errors
    /// Names the first entry that cannot be understood, and why.
    pub fn parse<'a>(entries: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let entries = entries.into_iter().map(|text| {
            Entry::parse(text).map_err(|problem| format!("the entry {text:?} {problem}"))
        });
        Ok(Self { entries: entries.collect::<Result<_, _>>()? })
    }

    /// Says whether a connection to this address may be made for this host and port. For an IP
    /// literal, `host` is the literal.
    ///
    /// # Errors
    /// What kind of address it is and what would allow it.
    pub fn permit(&self, host: &str, port: u16, address: IpAddr) -> Result<(), String> {
        let address = canonical(address);
        let class = classify(address);
        let name = plain_name(host);
        let allows = |entry: &Entry| {
            entry.port.is_none_or(|only| only == port)
                && match &entry.what {
                    What::Class(allowed) => *allowed == class,
                    What::Network(network) => network.contains(address),
                    What::Name(allowed) => class != Class::Guarded && *allowed == name,
                    What::Below(suffix) => class != Class::Guarded && name.ends_with(suffix),
                }
        };
        if self.entries.iter().any(allows) {
            return Ok(());
        }
        let shown = if host.trim_matches(['[', ']']) == address.to_string() {
            address.to_string()
        } else {
            format!("{host} is {address}, which")
        };
        Err(format!(
            "{shown} is a {} address, and participants.allow = {self} does not allow it on port \
            {port}",
            class.as_str()
        ))
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_list().entries(self.entries.iter().map(|entry| &entry.text)).finish()
    }
}

impl Entry {
    fn parse(text: &str) -> Result<Self, String> {
        let entry = |what, port| Ok(Self { text: text.to_owned(), what, port });
        let class = match text {
            "loopback" => Some(Class::Loopback),
            "private" => Some(Class::Private),
            "public" => Some(Class::Public),
            _ => None,
        };
        if let Some(class) = class {
            return entry(What::Class(class), None);
        }
        if text.contains('/') {
            return entry(What::Network(Network::parse(text)?), None);
        }
        let (host, port) = split_port(text)?;
        let below = host.strip_prefix("*.");
        let name = match Host::parse(below.unwrap_or(host)) {
            Ok(Host::Ipv4(address)) if below.is_none() => {
                return entry(What::Network(Network::of_one(address.into())), port);
            }
            Ok(Host::Ipv6(address)) if below.is_none() => {
                return entry(What::Network(Network::of_one(canonical(address.into()))), port);
            }
            Ok(Host::Domain(name)) => plain_name(&name),
            Ok(Host::Ipv4(_) | Host::Ipv6(_)) | Err(_) => String::new(),
        };
        if !is_host_name(&name) {
            return Err("is not loopback, private, public, a network, an address or a name".into());
        }
        match below {
            Some(_) => entry(What::Below(format!(".{name}")), port),
            None => entry(What::Name(name), port),
        }
    }
}

/// Takes `:port` off the end of an entry; a bare IPv6 address has no port and gets its brackets.
fn split_port(text: &str) -> Result<(&str, Option<u16>), String> {
    let Some((host, port)) = text.rsplit_once(':') else { return Ok((text, None)) };
    if text.ends_with(']') {
        return Ok((text, None));
    }
    if host.contains(':') && !host.ends_with(']') {
        return Err("is an IPv6 address without brackets: write [address] or address/128".into());
    }
    let number = port.parse().ok().filter(|port| *port != 0);
    number.map(|port| (host, Some(port))).ok_or_else(|| format!("has no port {port:?}"))
}

/// Whether a name (in ASCII, without the root's dot) is one that DNS could answer for.
pub(crate) fn is_host_name(name: &str) -> bool {
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    name.len() <= 253 && name.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(allow: &[&str], participant: &str, address: &str, expected: bool) {
        let policy = Policy::parse(allow.iter().copied()).unwrap();
        let (host, port) = participant.rsplit_once(':').unwrap();
        let found = policy.permit(host, port.parse().unwrap(), address.parse().unwrap());
        assert_eq!(found.is_ok(), expected, "{allow:?} {participant} {address}: {found:?}");
    }

    fn classes(class: Class, addresses: &[&str]) {
        for address in addresses {
            let found = classify(canonical(address.parse().unwrap()));
            assert_eq!(found, class, "{address}");
        }
    }

    #[test]
    fn every_address_has_its_class() {
        classes(Class::Loopback, &["127.0.0.1", "127.255.255.254", "::1", "::ffff:127.0.0.1"]);
        classes(Class::Loopback, &["::127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::5"]);
        classes(Class::Private, &["10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1"]);
        classes(Class::Private, &["100.64.0.1", "fc00::1", "fdff::1", "::ffff:10.0.0.1"]);
        classes(Class::Private, &["64:ff9b::a00:1", "2002:c0a8:101::1"]);
        classes(Class::Public, &["1.1.1.1", "172.32.0.1", "172.15.255.255", "11.0.0.0"]);
        classes(Class::Public, &["100.128.0.1", "2606:4700::1111", "64:ff9b::101:101"]);
        classes(Class::Guarded, &["0.0.0.0", "0.1.2.3", "::", "169.254.169.254", "fe80::1"]);
        classes(Class::Guarded, &["224.0.0.1", "239.1.1.1", "255.255.255.255", "ff02::1"]);
        classes(
            Class::Guarded,
            &["::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::"],
        );
        classes(Class::Guarded, &["fd00:ec2::254", "fd20:ce::254", "100.100.100.200"]);
        classes(Class::Guarded, &["168.63.129.16", "192.0.0.192", "febf::1", "::2"]);
        classes(Class::Reserved, &["240.0.0.1", "192.0.2.1", "198.18.0.1", "203.0.113.9"]);
        classes(Class::Reserved, &["2001:db8::1", "2001::1", "4000::1", "fec0::1", "100::1"]);
        classes(Class::Reserved, &["64:ff9b:1::1", "::ffff:0:7f00:1"]);
    }

    #[test]
    fn classes_allow_their_addresses_and_no_others() {
        check(&["loopback"], "h:80", "127.0.0.1", true);
        check(&["loopback"], "h:80", "::1", true);
        check(&["loopback"], "h:80", "::ffff:127.0.0.1", true);
        check(&["loopback"], "h:80", "10.0.0.1", false);
        check(&["loopback"], "h:80", "8.8.8.8", false);
        check(&["loopback"], "h:80", "0.0.0.0", false);
        check(&["private"], "h:80", "10.0.0.1", true);
        check(&["private"], "h:80", "127.0.0.1", false);
        check(&["private"], "h:80", "::ffff:7f00:1", false);
        check(&["private"], "h:80", "fd00:ec2::254", false);
        check(&["public"], "h:443", "8.8.8.8", true);
        check(&["public"], "h:443", "64:ff9b::7f00:1", false);
        check(&["public"], "h:443", "2002:a00:1::", false);
        check(&["public"], "h:443", "169.254.169.254", false);
        check(&["public"], "h:443", "192.0.2.1", false);
        check(&["loopback", "private", "public"], "h:443", "169.254.169.254", false);
        check(&[], "localhost:80", "127.0.0.1", false);
    }

    #[test]
    fn networks_and_addresses_allow_exactly_what_they_contain() {
        check(&["10.1.0.0/16"], "h:80", "10.1.255.255", true);
        check(&["10.1.0.0/16"], "h:80", "10.2.0.0", false);
        check(&["10.1.0.0/16"], "h:80", "::ffff:10.1.2.3", true);
        check(&["fd00::/8"], "h:80", "fdab::1", true);
        check(&["fd00::/8"], "h:80", "fc00::1", false);
        check(&["0.0.0.0/0"], "h:80", "8.8.8.8", true);
        check(&["0.0.0.0/0"], "h:80", "2606:4700::1", false);
        check(&["::/0"], "h:80", "2606:4700::1", true);
        check(&["::/0"], "h:80", "8.8.8.8", false);
        check(&["169.254.169.254/32"], "h:80", "169.254.169.254", true);
        check(&["fe80::/10"], "h:80", "fe80::1", true);
        check(&["10.1.2.3"], "h:80", "10.1.2.3", true);
        check(&["10.1.2.3"], "h:80", "10.1.2.4", false);
        check(&["10.1.2.3:8080"], "h:8080", "10.1.2.3", true);
        check(&["10.1.2.3:8080"], "h:80", "10.1.2.3", false);
        check(&["[::1]:8080"], "h:8080", "::1", true);
        check(&["[::ffff:10.0.0.1]"], "h:1", "10.0.0.1", true);
        check(&["0x0a.1"], "h:80", "10.0.0.1", true);
        check(&["127.0.0.1"], "h:80", "127.0.0.2", false);
    }

    #[test]
    fn names_allow_what_they_resolve_to_but_never_guarded_addresses() {
        check(&["accounts"], "accounts:80", "10.0.0.1", true);
        check(&["accounts"], "ACCOUNTS.:80", "10.0.0.1", true);
        check(&["Accounts."], "accounts:80", "203.0.113.1", true);
        check(&["accounts"], "accounts2:80", "10.0.0.1", false);
        check(&["accounts"], "accounts:80", "169.254.169.254", false);
        check(&["accounts"], "accounts:80", "::ffff:169.254.169.254", false);
        check(&["accounts"], "accounts:80", "fe80::1", false);
        check(&["accounts"], "accounts:80", "0.0.0.0", false);
        check(&["accounts"], "accounts:80", "224.0.0.1", false);
        check(&["accounts", "169.254.0.0/16"], "accounts:80", "169.254.1.1", true);
        check(&["accounts:8080"], "accounts:8080", "10.0.0.1", true);
        check(&["accounts:8080"], "accounts:80", "10.0.0.1", false);
        check(&["*.example.org"], "a.b.example.org:80", "10.0.0.1", true);
        check(&["*.example.org"], "example.org:80", "10.0.0.1", false);
        check(&["*.example.org"], "evilexample.org:80", "10.0.0.1", false);
        check(&["*.example.org:1"], "a.example.org:2", "10.0.0.1", false);
        check(&["bücher.example"], "xn--bcher-kva.example:80", "10.0.0.1", true);
    }

    #[test]
    fn entries_that_make_no_sense_are_refused() {
        let bad = [
            "",
            "10.0.0.0/33",
            "10.0.0.0/",
            "10.0.0.0/x",
            "fd00::/129",
            "10.0.0.1/8",
            "::1",
            "/8",
            "host:0",
            "host:99999",
            "host:",
            "http://host",
            "a b",
            "*",
            "*.",
            "*.10.0.0.1",
            "a..b",
            "::ffff:10.0.0.0/104",
            "2002:a00:1::/48",
            "64:ff9b::/96",
            "loopback:80/8",
            "a@b",
        ];
        for entry in bad {
            assert!(Policy::parse([entry]).is_err(), "{entry:?}");
        }
        let error = Policy::parse(["10.0.0.1/8"]).unwrap_err();
        assert!(error.contains("write 10.0.0.0/8"), "{error}");
    }
}
