//! What many transactions have in common is kept once: their options, and the names and addresses
//! of their branches. It only saves memory; nothing is decided by it.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use crate::ids::spread;
use crate::{BranchPlan, Options};

/// How many texts are remembered, at most one of those that fall into the same place.
const TEXTS: u64 = 1_024;
/// Longer texts are nobody else's.
const TEXT_BYTES_MAX: usize = 256;

/// What was met lately. It is no part of a coordinator's state: every one equals every other, and a
/// copy starts empty.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    options: Option<Arc<Options>>,
    texts: Vec<Option<Arc<str>>>,
}

impl Shared {
    /// These options, shared with the transaction before if it had the same.
    pub(crate) fn options(&mut self, options: &Options) -> Arc<Options> {
        match &self.options {
            Some(known) if **known == *options => Arc::clone(known),
            Some(_) | None => Arc::clone(self.options.insert(Arc::new(options.clone()))),
        }
    }

    /// A copy of a branch, which shares its texts with others.
    pub(crate) fn copy_of(&mut self, branch: &BranchPlan) -> BranchPlan {
        BranchPlan {
            name: self.known_or(&branch.name, || Arc::clone(&branch.name)),
            participant: self.known_or(&branch.participant, || Arc::clone(&branch.participant)),
            after: branch.after.clone(),
            payload: Arc::clone(&branch.payload),
            refers: branch.refers.clone(),
            ..*branch
        }
    }

    /// Lets a branch share its texts with others.
    pub(crate) fn branch(&mut self, branch: &mut BranchPlan) {
        for text in [&mut branch.name, &mut branch.participant] {
            *text = self.known_or(text, || Arc::clone(text));
        }
    }

    /// This text, shared with those before if one of them was the same.
    pub(crate) fn text(&mut self, text: &str) -> Arc<str> {
        self.known_or(text, || Arc::from(text))
    }

    fn known_or(&mut self, text: &str, new: impl FnOnce() -> Arc<str>) -> Arc<str> {
        if text.len() > TEXT_BYTES_MAX {
            return new();
        }
        if self.texts.is_empty() {
            self.texts.resize(TEXTS as usize, None);
        }
        let place = &mut self.texts[(spread(text) % TEXTS) as usize];
        match place {
            Some(known) if **known == *text => Arc::clone(known),
            Some(_) | None => Arc::clone(place.insert(new())),
        }
    }
}

impl Clone for Shared {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl PartialEq for Shared {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Shared {}

impl Hash for Shared {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kind;

    #[test]
    fn equal_texts_and_options_are_kept_once_and_others_as_they_are() {
        let mut shared = Shared::default();
        let mut branch = |name: &str| {
            let mut branch = BranchPlan::new(name, "http://bank/", Kind::TwoPhase);
            shared.branch(&mut branch);
            branch
        };
        let (first, second) = (branch("debit"), branch("debit"));
        assert!(Arc::ptr_eq(&first.name, &second.name));
        assert!(Arc::ptr_eq(&first.participant, &second.participant));
        for number in 0..3 * TEXTS {
            let name = format!("n{number}");
            assert_eq!(*branch(&name).name, *name);
        }
        let long = "x".repeat(TEXT_BYTES_MAX + 1);
        assert_eq!(*branch(&long).name, *long);

        let usual = shared.options(&Options::default());
        assert!(Arc::ptr_eq(&usual, &shared.options(&Options::default())));
        let other = Options { timeout_ms: 7, ..Options::default() };
        assert_eq!(*shared.options(&other), other);
    }
}
