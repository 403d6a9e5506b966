//! How the learning rate goes on over the rounds of a run, and over the steps of a round.
//!
//! A round's owner asks it when it offers (`protocol/round.rs`), arms of comparisons ask the same.

/// How the learning rate goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RateSchedule {
    /// As it is.
    Constant,
    /// Down to zero along a half cosine, a level a round.
    Cosine,
    /// The same curve, but within the rounds too: straight from a round's level to the next one's.
    CosineSteps,
}

/// Learning rates of one round.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    /// At the first step.
    pub first: f32,
    /// Behind the last step, where it isn't the same.
    pub last: Option<f32>,
}

impl RateSchedule {
    /// The rates of `round`, from 0, out of `rounds`; `peak` all the way where no last round is known.
    pub fn rates(self, peak: f32, round: u64, rounds: u64) -> Rates {
        let level = |round| peak * half_cosine(round, rounds);
        match self {
            Self::Constant => Rates { first: peak, last: None },
            Self::Cosine => Rates { first: level(round), last: None },
            Self::CosineSteps if rounds == 0 => Rates { first: peak, last: None },
            Self::CosineSteps => Rates { first: level(round), last: Some(level(round + 1)) },
        }
    }
}

/// Half a cosine: 1 at step 0 of `steps`, towards 0 at the last; 1 where no last one is known.
///
/// # Source
/// Loshchilov and Hutter, arXiv:1608.03983, without restarts.
#[expect(clippy::cast_precision_loss, reason = "rounds and versions are small")]
fn half_cosine(step: u64, steps: u64) -> f32 {
    if steps == 0 {
        return 1.0;
    }
    let part = (step as f32 / steps as f32).min(1.0);
    0.5 * (1.0 + (std::f32::consts::PI * part).cos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_from_one_by_a_half_to_zero() {
        let at = |step| half_cosine(step, 10);
        assert!((at(0) - 1.0).abs() < 1e-6 && (at(5) - 0.5).abs() < 1e-6);
        assert!(at(10).abs() < 1e-6 && at(99).abs() < 1e-6);
        assert!((half_cosine(7, 0) - 1.0).abs() < 1e-6);
    }

    #[test]
    fn within_a_round_it_leads_to_where_the_next_begins() {
        for round in 0..9 {
            let here = RateSchedule::CosineSteps.rates(0.3, round, 10);
            let next = RateSchedule::CosineSteps.rates(0.3, round + 1, 10);
            assert_eq!(here.last, Some(next.first));
            let level = RateSchedule::Cosine.rates(0.3, round, 10);
            assert_eq!(level, Rates { last: None, ..here });
        }
        assert!(RateSchedule::CosineSteps.rates(0.3, 9, 10).last.unwrap() < 1e-6);
        let endless = Rates { first: 0.3, last: None };
        assert_eq!(RateSchedule::CosineSteps.rates(0.3, 7, 0), endless);
        assert_eq!(RateSchedule::Constant.rates(0.3, 7, 10), endless);
    }
}
