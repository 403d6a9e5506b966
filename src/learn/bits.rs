//! Bits per character: how well a language model foresees texts, whatever its tokens are.

use super::LearnError;

/// Negative log-likelihoods of texts and their characters, summed.
///
/// Bits per character compare models with different vocabularies: the same characters stand below
/// the line. Lower is better; 8 is what plain bytes cost.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Bits {
    nats: f64,
    chars: u64,
}

impl Bits {
    /// Nothing was judged yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds texts of `chars` characters, separators not counted, whose tokens had a summed negative
    /// log-likelihood of `nats`.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`] when `nats` is negative or not finite; nothing is added then.
    pub fn add(&mut self, nats: f64, chars: u64) -> Result<(), LearnError> {
        if !nats.is_finite() || nats < 0.0 {
            return Err(LearnError::OutOfRange {
                what: "negative log-likelihood of a text",
                expected: "a finite number, not negative".into(),
                actual: nats.to_string(),
            });
        }
        self.nats += nats;
        self.chars = self.chars.saturating_add(chars);
        Ok(())
    }

    /// Adds what was judged elsewhere.
    pub fn merge(&mut self, other: &Self) {
        self.nats += other.nats;
        self.chars = self.chars.saturating_add(other.chars);
    }

    /// Characters that were judged.
    pub fn chars(&self) -> u64 {
        self.chars
    }

    /// Bits per character; none when no character was judged.
    pub fn per_char(&self) -> Option<f64> {
        (self.chars > 0)
            .then(|| self.nats / std::f64::consts::LN_2 / super::count_weight(self.chars))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_sixteen_equally_likely_characters_costs_four_bits() {
        let mut bits = Bits::new();
        bits.add(3.0 * 16.0_f64.ln(), 3).unwrap();
        assert!((bits.per_char().unwrap() - 4.0).abs() < 1e-12);
    }

    #[test]
    fn machines_count_by_their_characters() {
        let (mut long, mut short) = (Bits::new(), Bits::new());
        long.add(30.0 * 2.0_f64.ln(), 30).unwrap();
        short.add(10.0 * 8.0_f64.ln(), 10).unwrap();
        long.merge(&short);
        assert_eq!(long.chars(), 40);
        assert!((long.per_char().unwrap() - 1.5).abs() < 1e-12, "{long:?}");
    }

    #[test]
    fn nothing_has_no_figure_and_odd_sums_are_refused() {
        let mut bits = Bits::new();
        assert_eq!(bits.per_char(), None);
        for odd in [f64::NAN, f64::INFINITY, -0.5] {
            assert_eq!(bits.add(odd, 1).unwrap_err().kind(), "out_of_range");
        }
        assert_eq!(bits, Bits::new());
    }
}
