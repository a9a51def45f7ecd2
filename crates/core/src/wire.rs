//! The few shapes that records are made of: bytes, varints, texts, lists and options. What they
//! mean is `codec`'s.

use std::sync::Arc;

use crate::branch::Branch;
use crate::shared::Shared;
use crate::{BranchPlan, DecodeError, Options, RECORD_VERSION};

/// Lists of up to so many items are allocated once.
const ITEMS_AT_ONCE: usize = 8;

/// Appends shapes to a buffer.
pub(crate) struct Writer<'a> {
    out: &'a mut Vec<u8>,
    /// The version of the shapes that are written.
    version: u8,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(out: &'a mut Vec<u8>) -> Self {
        Self::of_version(RECORD_VERSION, out)
    }

    pub(crate) const fn of_version(version: u8, out: &'a mut Vec<u8>) -> Self {
        Self { out, version }
    }

    /// Writes what version 2 added, unless version 1 is written.
    pub(crate) fn later(&mut self, put: impl FnOnce(&mut Self)) {
        if self.version >= 2 {
            put(self);
        }
    }

    pub(crate) fn byte(&mut self, byte: u8) {
        self.out.push(byte);
    }

    pub(crate) fn flag(&mut self, flag: bool) {
        self.byte(u8::from(flag));
    }

    pub(crate) fn fixed(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    /// LEB128: seven bits a byte, lowest first.
    pub(crate) fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.byte((number as u8) | 0x80);
            number >>= 7;
        }
        self.byte(number as u8);
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.fixed(bytes);
    }

    pub(crate) fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    pub(crate) fn list<T>(&mut self, items: &[T], mut put: impl FnMut(&mut Self, &T)) {
        self.number(items.len() as u64);
        for item in items {
            put(self, item);
        }
    }

    pub(crate) fn option<T>(&mut self, item: Option<&T>, put: impl FnOnce(&mut Self, &T)) {
        self.flag(item.is_some());
        if let Some(item) = item {
            put(self, item);
        }
    }
}

/// Takes shapes from bytes that may be anything.
pub(crate) struct Reader<'a> {
    left: &'a [u8],
    /// The version of the shapes that are read.
    pub(crate) version: u8,
    /// Where what many records have in common is kept once, if anywhere.
    shared: Option<&'a mut Shared>,
    /// Where it is noted what times were read, if anywhere: their names, and how many bytes were
    /// left before and behind each.
    noted: Option<&'a mut Vec<(&'static str, usize, usize)>>,
}

impl<'a> Reader<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self { left: bytes, version: 0, shared: None, noted: None }
    }

    pub(crate) const fn sharing(bytes: &'a [u8], shared: &'a mut Shared) -> Self {
        Self { left: bytes, version: 0, shared: Some(shared), noted: None }
    }

    pub(crate) const fn sharing_this_version(bytes: &'a [u8], shared: &'a mut Shared) -> Self {
        Self { left: bytes, version: crate::RECORD_VERSION, shared: Some(shared), noted: None }
    }

    pub(crate) const fn of_this_version(bytes: &'a [u8]) -> Self {
        Self { left: bytes, version: crate::RECORD_VERSION, shared: None, noted: None }
    }

    /// Of this version, noting what times it reads.
    pub(crate) const fn noting(
        bytes: &'a [u8],
        noted: &'a mut Vec<(&'static str, usize, usize)>,
    ) -> Self {
        let version = crate::RECORD_VERSION;
        Self { left: bytes, version, shared: None, noted: Some(noted) }
    }

    /// What is still to be read.
    pub(crate) const fn left(&self) -> &'a [u8] {
        self.left
    }

    /// Whether what was added with this version is there to be read.
    pub(crate) const fn since(&self, version: u8) -> bool {
        self.version >= version
    }

    fn take(&mut self, count: usize, what: &'static str) -> Result<&'a [u8], DecodeError> {
        let (taken, left) =
            self.left.split_at_checked(count).ok_or(DecodeError::Malformed(what))?;
        self.left = left;
        Ok(taken)
    }

    pub(crate) fn byte(&mut self, what: &'static str) -> Result<u8, DecodeError> {
        Ok(self.take(1, what)?[0])
    }

    pub(crate) fn flag(&mut self, what: &'static str) -> Result<bool, DecodeError> {
        match self.byte(what)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(DecodeError::Malformed(what)),
        }
    }

    pub(crate) fn fixed<const N: usize>(
        &mut self,
        what: &'static str,
    ) -> Result<[u8; N], DecodeError> {
        let bytes = self.take(N, what)?;
        bytes.try_into().map_err(|_| DecodeError::Malformed(what))
    }

    /// A number that is a moment.
    pub(crate) fn time(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        let before = self.left.len();
        let time = self.number(what)?;
        if let Some(noted) = &mut self.noted {
            noted.push((what, before, self.left.len()));
        }
        Ok(time)
    }

    pub(crate) fn number(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        // Most are small.
        if let [byte, left @ ..] = self.left
            && *byte < 0x80
        {
            self.left = left;
            return Ok(u64::from(*byte));
        }
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte(what)?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(DecodeError::Malformed(what))
    }

    pub(crate) fn small(&mut self, what: &'static str) -> Result<u16, DecodeError> {
        u16::try_from(self.number(what)?).map_err(|_| DecodeError::Malformed(what))
    }

    pub(crate) fn bytes(&mut self, what: &'static str) -> Result<&'a [u8], DecodeError> {
        let count = self.number(what)?;
        let count = usize::try_from(count).map_err(|_| DecodeError::Malformed(what))?;
        self.take(count, what)
    }

    pub(crate) fn text(&mut self, what: &'static str) -> Result<&'a str, DecodeError> {
        std::str::from_utf8(self.bytes(what)?).map_err(|_| DecodeError::Malformed(what))
    }

    /// A text that other records are likely to hold too.
    pub(crate) fn common_text(&mut self, what: &'static str) -> Result<Arc<str>, DecodeError> {
        let text = self.text(what)?;
        Ok(match &mut self.shared {
            Some(shared) => shared.text(text),
            None => Arc::from(text),
        })
    }

    /// Lets a branch share what was planned for it, if anything is shared.
    pub(crate) fn common_plan(&mut self, plan: BranchPlan) -> Branch {
        match &mut self.shared {
            Some(shared) => shared.branch(&plan),
            None => Branch::new(plan),
        }
    }

    /// Lets a transaction share its options, if anything is shared.
    pub(crate) fn common_options(&mut self, options: Options) -> Arc<Options> {
        match &mut self.shared {
            Some(shared) => shared.options(&options),
            None => Arc::new(options),
        }
    }

    /// A list never claims more items than bytes are left, so no claim can make us allocate much.
    pub(crate) fn list<T>(
        &mut self,
        what: &'static str,
        mut get: impl FnMut(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Vec<T>, DecodeError> {
        let count = self.number(what)?;
        if count > self.left.len() as u64 {
            return Err(DecodeError::Malformed(what));
        }
        let mut items = Vec::with_capacity(ITEMS_AT_ONCE.min(count as usize));
        for _ in 0..count {
            items.push(get(self)?);
        }
        Ok(items)
    }

    pub(crate) fn option<T>(
        &mut self,
        what: &'static str,
        get: impl FnOnce(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Option<T>, DecodeError> {
        if self.flag(what)? { get(self).map(Some) } else { Ok(None) }
    }

    /// Nothing may follow.
    pub(crate) const fn end(&self) -> Result<(), DecodeError> {
        if self.left.is_empty() { Ok(()) } else { Err(DecodeError::Malformed("end")) }
    }
}
