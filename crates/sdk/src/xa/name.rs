//! How a branch is called inside a database: a gid for PostgreSQL's `PREPARE TRANSACTION`, and an
//! XID (format, global id, branch qualifier) for MariaDB's and MySQL's `XA`. Pure functions, there
//! and back, so that whoever sweeps a database can tell our branches from everybody else's, and a
//! branch of another coordinator from one of this. What a sweeper does with them is its affair.
//!
//! Every name carries the coordinator, the transaction and the branch. PostgreSQL's 199 bytes hold
//! any transaction's id; a branch's name that does not fit is replaced by a digest. XA has two
//! fields of 64 bytes, so there a transaction's id of more than 64 characters is a digest too.

use std::fmt;

use uuid::Uuid;

/// The format id of our XIDs: the bytes `UNAN`.
pub const FORMAT_ID: i32 = 0x554E_414E;
/// The most bytes of a gid that PostgreSQL takes.
pub const GID_BYTES_MAX: usize = 199;
/// The most bytes of each of an XID's two fields.
pub const XID_FIELD_BYTES_MAX: usize = 64;

/// What our gids begin with. A name's parts are joined by `/`, which no id and no name may hold.
const PREFIX: &str = "unanimity/";
/// What stands before a digest; no id and no name may hold it.
const DIGEST_MARK: char = '~';

/// A branch's name, as it was given or read back. Where a part is a digest, it begins with `~`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BranchName {
    /// Which coordinator; the id that it keeps in its data folder.
    pub coordinator: u64,
    /// The transaction's id.
    pub transaction: String,
    /// The branch's name.
    pub branch: String,
}

/// An XID as `XA` statements take it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Xid {
    /// Whose numbering it is.
    pub format_id: i64,
    /// The global transaction id.
    pub global: Vec<u8>,
    /// The branch qualifier.
    pub qualifier: Vec<u8>,
}

impl BranchName {
    /// Names a branch.
    #[must_use]
    pub fn new(coordinator: u64, transaction: &str, branch: &str) -> Self {
        Self { coordinator, transaction: transaction.to_owned(), branch: branch.to_owned() }
    }

    /// Whether the transaction's part, as a database holds it, stands for this id.
    #[must_use]
    pub fn is_of(&self, transaction: &str) -> bool {
        self.transaction == transaction || self.transaction == digest(transaction)
    }

    /// The name in PostgreSQL.
    #[must_use]
    pub fn gid(&self) -> String {
        let head = format!("{}{}/", Self::prefix(self.coordinator), self.transaction);
        let branch = fitting(&self.branch, GID_BYTES_MAX.saturating_sub(head.len()));
        head + &branch
    }

    /// What every gid of one coordinator begins with.
    #[must_use]
    pub fn prefix(coordinator: u64) -> String {
        format!("{PREFIX}{coordinator:016x}/")
    }

    /// The branch that a gid names; `None` if the gid is nobody's of ours.
    #[must_use]
    pub fn of_gid(gid: &str) -> Option<Self> {
        let (coordinator, rest) = gid.strip_prefix(PREFIX)?.split_once('/')?;
        let (transaction, branch) = rest.split_once('/')?;
        Self::of_parts(coordinator, transaction, branch)
    }

    /// The name in MariaDB and MySQL.
    #[must_use]
    pub fn xid(&self) -> Xid {
        let head = format!("{:016x}/", self.coordinator);
        let branch = fitting(&self.branch, XID_FIELD_BYTES_MAX - head.len());
        Xid {
            format_id: FORMAT_ID.into(),
            global: fitting(&self.transaction, XID_FIELD_BYTES_MAX).into_bytes(),
            qualifier: (head + &branch).into_bytes(),
        }
    }

    /// The branch that an XID names; `None` if it is nobody's of ours.
    #[must_use]
    pub fn of_xid(xid: &Xid) -> Option<Self> {
        if xid.format_id != i64::from(FORMAT_ID) {
            return None;
        }
        let qualifier = std::str::from_utf8(&xid.qualifier).ok()?;
        let (coordinator, branch) = qualifier.split_once('/')?;
        Self::of_parts(coordinator, std::str::from_utf8(&xid.global).ok()?, branch)
    }

    fn of_parts(coordinator: &str, transaction: &str, branch: &str) -> Option<Self> {
        let lower = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        let sound = coordinator.len() == 16 && coordinator.bytes().all(lower);
        let coordinator = u64::from_str_radix(coordinator, 16).ok().filter(|_| sound)?;
        let plain = |text: &str| !text.is_empty() && !text.contains('/');
        (plain(transaction) && plain(branch)).then(|| Self::new(coordinator, transaction, branch))
    }
}

impl Xid {
    /// The three arguments of an `XA` statement, in hexadecimal, so that nothing in them can end
    /// the statement.
    #[must_use]
    pub fn sql(&self) -> String {
        format!("X'{}',X'{}',{}", hex(&self.global), hex(&self.qualifier), self.format_id)
    }
}

impl fmt::Display for Xid {
    /// For people: text where it is text.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |bytes: &[u8]| match std::str::from_utf8(bytes) {
            Ok(text) if text.bytes().all(|byte| byte.is_ascii_graphic()) => text.to_owned(),
            Ok(_) | Err(_) => format!("0x{}", hex(bytes)),
        };
        let (global, qualifier) = (shown(&self.global), shown(&self.qualifier));
        write!(formatter, "{global},{qualifier},{}", self.format_id)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The text, or its digest if it is longer than that many bytes.
fn fitting(text: &str, bytes_max: usize) -> String {
    if text.len() <= bytes_max { text.to_owned() } else { digest(text) }
}

/// SHA-1, as UUID version 5 uses it: 33 characters for any text. Never to be changed: databases
/// hold such names.
fn digest(text: &str) -> String {
    let uuid = Uuid::new_v5(&Uuid::NAMESPACE_OID, text.as_bytes());
    format!("{DIGEST_MARK}{}", uuid.simple())
}

#[cfg(test)]
mod tests {
    use super::{BranchName, GID_BYTES_MAX, XID_FIELD_BYTES_MAX, Xid};

    fn check(transaction: &str, branch: &str, whole_in_gid: bool, whole_in_xid: bool) {
        let name = BranchName::new(0x00ab, transaction, branch);
        let (gid, xid) = (name.gid(), name.xid());
        assert!(gid.len() <= GID_BYTES_MAX, "{gid}");
        assert!(xid.global.len() <= XID_FIELD_BYTES_MAX, "{xid}");
        assert!(xid.qualifier.len() <= XID_FIELD_BYTES_MAX, "{xid}");
        let (of_gid, of_xid) = (BranchName::of_gid(&gid), BranchName::of_xid(&xid));
        assert_eq!(of_gid.as_ref() == Some(&name), whole_in_gid, "{gid}");
        assert_eq!(of_xid.as_ref() == Some(&name), whole_in_xid, "{xid}");
        for read in [of_gid, of_xid] {
            let read = read.expect("our own name");
            assert_eq!(read.coordinator, 0x00ab);
            assert!(read.is_of(transaction) && !read.is_of("another"));
        }
    }

    #[test]
    fn a_name_can_be_read_back() {
        let long = "x".repeat(128);
        check("t-1", "orders", true, true);
        check(&"t".repeat(64), &"b".repeat(47), true, true);
        check(&"t".repeat(64), &"b".repeat(48), true, false);
        check(&"t".repeat(65), "b", true, false);
        check(&long, &"b".repeat(43), true, false);
        check(&long, &long, false, false);
    }

    /// Both stand in databases: were they to change, branches of an older version would be foreign.
    #[test]
    fn names_never_change() {
        let name = BranchName::new(0xdead_beef, "order-7", "stock");
        assert_eq!(name.gid(), "unanimity/00000000deadbeef/order-7/stock");
        assert_eq!(name.xid().to_string(), "order-7,00000000deadbeef/stock,1431191886");
        assert_eq!(name.xid().sql().split(',').next(), Some("X'6f726465722d37'"));
        let long = BranchName::new(1, &"x".repeat(65), "b").xid();
        assert_eq!(long.to_string().split(',').next(), Some("~b9fa0cace1bc5b74ad48991a9dda0f9f"));
    }

    #[test]
    fn foreign_names_are_nobodys() {
        for gid in ["", "unanimity", "unanimity/1/t/b", "unanimity/00000000deadbeef/t", "x/y/z/w"] {
            assert_eq!(BranchName::of_gid(gid), None, "{gid}");
        }
        let upper = "unanimity/00000000DEADBEEF/t/b";
        assert_eq!(BranchName::of_gid(upper), None, "{upper}");
        let ours = BranchName::new(1, "t", "b").xid();
        let others = [
            Xid { format_id: 1, ..ours.clone() },
            Xid { qualifier: b"b".to_vec(), ..ours.clone() },
            Xid { global: vec![0xff], ..ours },
        ];
        for xid in others {
            assert_eq!(BranchName::of_xid(&xid), None, "{xid}");
        }
    }
}
