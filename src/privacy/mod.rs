//! What may leave: minimum counts in front of every contribution.
//!
//! It looks at numbers only: how many examples and steps are behind an update, how many examples
//! behind each class's mean. What doesn't pass isn't sent and is recorded. It makes no claim
//! beyond that: an update that passes may still tell something about the data it was made from.
//!
//! Called by `protocol/member/offers.rs` on every offer and by `protocol/member/contributing.rs` on every finished work.

mod risk;

use serde::{Deserialize, Serialize};

pub use risk::{Membership, likelihood_ratios};

/// A named set of minimum counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// For most plants.
    #[default]
    Standard,
    /// Where people are in the data.
    Strict,
    /// For trials with data that nobody minds.
    Lab,
}

/// The minimum counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gate {
    /// Examples behind a class's mean logits.
    pub min_cell: u64,
    /// Optimiser steps behind an update.
    pub min_steps: u32,
    /// Distinct examples behind an update.
    pub min_examples: u64,
}

impl From<Profile> for Gate {
    fn from(profile: Profile) -> Self {
        match profile {
            Profile::Standard => Self { min_cell: 20, min_steps: 16, min_examples: 100 },
            Profile::Strict => Self { min_cell: 200, min_steps: 64, min_examples: 200 },
            Profile::Lab => Self { min_cell: 5, min_steps: 1, min_examples: 1 },
        }
    }
}

impl Gate {
    /// Whether a device may take part in work of this size at all.
    ///
    /// # Errors
    /// A word for the decline.
    pub fn allows_plan(&self, local_steps: u32) -> Result<(), &'static str> {
        if local_steps < self.min_steps { Err("too_few_steps") } else { Ok(()) }
    }

    /// Whether an update with this behind it may leave.
    ///
    /// # Errors
    /// The rule that it breaks, for the ledger and the KPIs.
    pub fn allows_update(&self, steps: u32, num_examples: u64) -> Result<(), &'static str> {
        if steps < self.min_steps {
            return Err("too_few_steps");
        }
        if num_examples < self.min_examples {
            return Err("too_few_examples");
        }
        Ok(())
    }

    /// Whether each class that is spoken of has enough examples (a suppressed one has 0).
    ///
    /// # Errors
    /// The rule that it breaks, for the ledger and the KPIs.
    pub fn allows_cells(&self, counts: &[u64]) -> Result<(), &'static str> {
        let enough = counts.iter().all(|count| *count == 0 || *count >= self.min_cell);
        if enough { Ok(()) } else { Err("cell_too_small") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rule_refuses_below_its_bound_and_passes_at_it() {
        let gate = Gate::from(Profile::Standard);
        assert_eq!(gate.allows_update(15, 100), Err("too_few_steps"));
        assert_eq!(gate.allows_update(16, 99), Err("too_few_examples"));
        assert_eq!(gate.allows_update(16, 100), Ok(()));
        assert_eq!(gate.allows_cells(&[20, 0, 19]), Err("cell_too_small"));
        assert_eq!(gate.allows_cells(&[20, 0, 20]), Ok(()));
        assert_eq!(gate.allows_plan(15), Err("too_few_steps"));
    }

    #[test]
    fn a_stricter_profile_asks_for_more() {
        let [lab, standard, strict] =
            [Profile::Lab, Profile::Standard, Profile::Strict].map(Gate::from);
        assert!(lab.min_cell < standard.min_cell && standard.min_cell < strict.min_cell);
    }
}
