//! Remembers addresses that were taken apart: each call names one, and most name the same few.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use unanimity_core::PARTICIPANT_BYTES_MAX;

use super::policy::Policy;
use super::target::{self, AddressError, Target};

/// An address that can be called, and whether it may be.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) target: Target,
    /// What the policy says, as far as that can be known before a name is resolved.
    pub(crate) verdict: Result<(), AddressError>,
}

/// So many addresses as were used lately.
#[derive(Debug)]
pub(crate) struct Targets {
    most: usize,
    known: RwLock<HashMap<Box<str>, Arc<Known>>>,
}

impl Targets {
    pub(crate) fn new(most: usize) -> Self {
        Self { most, known: RwLock::default() }
    }

    /// Takes an address apart, or has it from before.
    ///
    /// # Errors
    /// As [`Target::parse`].
    pub(crate) fn get(
        &self,
        participant: &str,
        policy: &Policy,
    ) -> Result<Arc<Known>, AddressError> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = known.get(participant) {
            return Ok(Arc::clone(found));
        }
        drop(known);
        let target = Target::parse(participant)?;
        let found = Arc::new(Known { target, verdict: target::check(participant, policy) });
        // What no transaction can name is not worth remembering.
        if found.verdict.is_err() || participant.len() > PARTICIPANT_BYTES_MAX {
            return Ok(found);
        }
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= self.most {
            // Whose addresses are all different gains nothing here, and may not keep more.
            known.clear();
        }
        known.insert(participant.into(), Arc::clone(&found));
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_judged_the_same_from_before_and_no_more_are_kept_than_may_be() {
        let (targets, policy) = (Targets::new(2), Policy::default());
        let addresses = ["http://localhost:1/", "http://10.0.0.1/", "http://localhost:2/"];
        for participant in addresses.into_iter().cycle().take(9) {
            for _ in 0..2 {
                let known = targets.get(participant, &policy).unwrap();
                assert_eq!(known.target, Target::parse(participant).unwrap());
                assert_eq!(known.verdict, target::check(participant, &policy), "{participant}");
            }
            assert!(targets.known.read().unwrap().len() <= 2);
        }
        let long = format!("http://localhost/{}", "a".repeat(PARTICIPANT_BYTES_MAX));
        for refused in [&long, "http://10.0.0.1/"] {
            drop(targets.get(refused, &policy).unwrap());
            assert!(!targets.known.read().unwrap().contains_key(refused), "{refused}");
        }
        assert!(targets.get("nonsense", &policy).is_err());
    }
}
