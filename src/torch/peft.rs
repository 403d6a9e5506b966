//! Which parts of a model train: every kind of parameter-efficient fine-tuning in one config.
//!
//! | kind | what trains | names in the adapter |
//! |---|---|---|
//! | LoRA (arXiv:2106.09685), rsLoRA (arXiv:2312.03732) | two thin factors beside a matrix | `<layer>.lora_a`, `.lora_b` |
//! | (IA)^3 (arXiv:2205.05638) | a scale on a layer's outputs or inputs | `<layer>.ia3_out`, `.ia3_in` |
//! | VPT-deep (arXiv:2203.12119) | tokens in front of each block | `blocks.<i>.prompts` |
//! | prompt tuning (arXiv:2104.08691) | tokens in front of the input | `embed.prompts` |
//! | prefix tuning (arXiv:2101.00190) | keys and values in front of each attention | `<attn>.prefix_k`, `.prefix_v` |
//! | bottleneck adapters (arXiv:1902.00751) | a small MLP behind attention and MLP | `<half>.bottleneck.{down,up}` |
//! | BitFit (arXiv:2106.10199), head only, everything | tensors of the base | the base's own names |
//!
//! They may be combined. Layers are chosen by pattern: a last name (`q`), a path, or either with `*`.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::learn::{Layout, LearnError};

/// What of a base trains, and how. The default is LoRA of rank 8 on `q` and `v` and the whole head.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PeftConfig {
    /// Low-rank factors.
    pub lora: Option<LoraConfig>,
    /// Layers whose outputs get a scale.
    pub ia3: Vec<String>,
    /// Layers whose inputs get a scale.
    pub ia3_inputs: Vec<String>,
    /// Tokens in front of each block.
    pub deep_prompts: u32,
    /// Tokens in front of the input.
    pub prompts: u32,
    /// Keys and values in front of each attention.
    pub prefix: u32,
    /// Width of the bottlenecks; 0: none.
    pub bottleneck: u32,
    /// Tensors that train whole: `head` (head only), `*.bias` (BitFit), `*` (everything).
    pub whole: Vec<String>,
}

/// Low-rank factors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoraConfig {
    /// Rank r of B A; at least 1.
    pub rank: u32,
    /// The product is scaled by alpha / rank.
    pub alpha: f32,
    /// Linear layers that get factors.
    pub targets: Vec<String>,
    /// Other ranks for some of them, by pattern; the longest pattern that fits counts.
    pub ranks: BTreeMap<String, u32>,
    /// Share of the inputs that a training step leaves out, 0 to below 1.
    pub dropout: f32,
    /// Scale by alpha / sqrt(rank) instead. Members of one federation must then have one rank.
    pub rank_stabilised: bool,
}

impl Default for PeftConfig {
    fn default() -> Self {
        Self { lora: Some(LoraConfig::default()), whole: vec!["head".into()], ..Self::none() }
    }
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            rank: 8,
            alpha: 16.0,
            targets: vec!["q".into(), "v".into()],
            ranks: BTreeMap::new(),
            dropout: 0.0,
            rank_stabilised: false,
        }
    }
}

impl PeftConfig {
    /// Nothing trains yet.
    pub fn none() -> Self {
        Self {
            lora: None,
            ia3: Vec::new(),
            ia3_inputs: Vec::new(),
            deep_prompts: 0,
            prompts: 0,
            prefix: 0,
            bottleneck: 0,
            whole: Vec::new(),
        }
    }

    /// LoRA alone.
    pub fn lora(lora: LoraConfig) -> Self {
        Self { lora: Some(lora), ..Self::none() }
    }

    /// These tensors alone, whole.
    pub fn whole(patterns: Vec<String>) -> Self {
        Self { whole: patterns, ..Self::none() }
    }

    /// Checks numbers that are out of range for any base.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`] names the first.
    pub fn check(&self) -> Result<(), LearnError> {
        if let Some(lora) = &self.lora {
            lora.check()?;
        }
        let counts = [
            ("deep_prompts", self.deep_prompts),
            ("prompts", self.prompts),
            ("prefix", self.prefix),
            ("bottleneck", self.bottleneck),
        ];
        for (what, count) in counts {
            if count > MAX_TOKENS {
                return Err(LearnError::OutOfRange {
                    what,
                    expected: format!("at most {MAX_TOKENS}"),
                    actual: count.to_string(),
                });
            }
        }
        Ok(())
    }
}

impl LoraConfig {
    fn check(&self) -> Result<(), LearnError> {
        let ranks = || self.ranks.values().chain([&self.rank]);
        if ranks().any(|r| *r == 0 || *r > MAX_RANK) {
            return Err(LearnError::OutOfRange {
                what: "LoRA rank",
                expected: format!("1 to {MAX_RANK}"),
                actual: format!("{:?}", ranks().collect::<Vec<_>>()),
            });
        }
        if !(self.alpha > 0.0 && self.alpha.is_finite()) {
            return Err(LearnError::OutOfRange {
                what: "LoRA alpha",
                expected: "positive".into(),
                actual: self.alpha.to_string(),
            });
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(LearnError::OutOfRange {
                what: "LoRA dropout",
                expected: "0 to below 1".into(),
                actual: self.dropout.to_string(),
            });
        }
        Ok(())
    }

    /// Rank of a layer's factors.
    pub fn rank_of(&self, layer: &str) -> u32 {
        let fitting = self.ranks.iter().filter(|(pattern, _)| fits(pattern, layer));
        fitting.max_by_key(|(pattern, _)| pattern.len()).map_or(self.rank, |(_, rank)| *rank)
    }

    /// Factor of a layer's product.
    pub fn scaling_of(&self, layer: &str) -> f64 {
        let rank = f64::from(self.rank_of(layer));
        f64::from(self.alpha) / if self.rank_stabilised { rank.sqrt() } else { rank }
    }
}

/// Whether a pattern names this path: its last name, the whole path, or either with `*`.
pub fn fits(pattern: &str, path: &str) -> bool {
    let last = path.rsplit('.').next().unwrap_or(path);
    glob(pattern.as_bytes(), path.as_bytes()) || glob(pattern.as_bytes(), last.as_bytes())
}

fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let mut pieces = pattern.split(|c| *c == b'*');
    let first = pieces.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let mut pieces: Vec<&[u8]> = pieces.collect();
    let Some(last) = pieces.pop() else { return rest.is_empty() };
    for piece in pieces {
        let Some(at) =
            rest.windows(piece.len().max(1)).position(|w| w == piece || piece.is_empty())
        else {
            return piece.is_empty() && rest.is_empty();
        };
        rest = rest.get(at + piece.len()..).unwrap_or_default();
    }
    rest.len() >= last.len() && rest.ends_with(last)
}

/// The error for a pattern that names no layer of a base, with the nearest names that do.
pub(super) fn no_such_layer(pattern: &str, base: &Layout) -> LearnError {
    let paths = base.0.iter().filter_map(|(name, _)| name.rsplit_once('.').map(|(path, _)| path));
    let words: BTreeSet<&str> = paths.filter_map(|path| path.rsplit('.').next()).collect();
    let mut near: Vec<(usize, &str)> =
        words.into_iter().map(|word| (distance(pattern, word), word)).collect();
    near.retain(|(distance, _)| *distance > 0); // the name is there, but of no linear layer
    near.sort_unstable();
    let names: Vec<&str> = near.into_iter().take(NEAR_MISSES).map(|(_, word)| word).collect();
    LearnError::OutOfRange {
        what: "layer to train",
        expected: format!("a layer of the base, say {}", names.join(", ")),
        actual: pattern.to_owned(),
    }
}

/// Edits (insert, delete, replace) that make `a` into `b`.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(MAX_NAME).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().take(MAX_NAME).enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        if let Some(first) = row.first_mut() {
            *first = left;
        }
        for (cell, y) in row.iter_mut().skip(1).zip(&b) {
            let up = *cell;
            left = (diagonal + usize::from(x != *y)).min(up + 1).min(left + 1);
            diagonal = up;
            *cell = left;
        }
    }
    row.last().copied().unwrap_or_default()
}

/// Larger ranks aren't low.
const MAX_RANK: u32 = 1_024;
/// More tokens in front are no longer few.
const MAX_TOKENS: u32 = 4_096;
/// Names in an error.
const NEAR_MISSES: usize = 4;
/// Characters of a name that are compared.
const MAX_NAME: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_last_names_paths_and_globs() {
        let q = "blocks.0.attn.q";
        for pattern in ["q", "blocks.0.attn.q", "blocks.*.q", "*", "blocks.*", "*.attn.*"] {
            assert!(fits(pattern, q), "{pattern}");
        }
        for pattern in ["", "k", "attn", "blocks.1.*", "*.k", "qq", "q*q"] {
            assert!(!fits(pattern, q), "{pattern}");
        }
        assert!(fits("*.bias", "head.bias") && !fits("*.bias", "head.weight"));
    }

    #[test]
    fn the_longest_pattern_decides_the_rank_and_with_it_the_scaling() {
        let ranks = BTreeMap::from([("v".into(), 4), ("blocks.1.attn.v".into(), 16)]);
        let lora = LoraConfig { ranks, ..LoraConfig::default() };
        assert_eq!(lora.rank_of("blocks.0.attn.q"), 8);
        assert_eq!(lora.rank_of("blocks.0.attn.v"), 4);
        assert_eq!(lora.rank_of("blocks.1.attn.v"), 16);
        assert!((lora.scaling_of("blocks.1.attn.v") - 1.0).abs() < 1e-12);
        let stable = LoraConfig { rank_stabilised: true, ..lora };
        assert!((stable.scaling_of("blocks.1.attn.v") - 4.0).abs() < 1e-12);
    }

    #[test]
    fn a_name_that_is_nearly_right_is_suggested() {
        let layer = |name: &str| (format!("blocks.0.{name}.weight"), vec![2, 2]);
        let base =
            Layout(vec![layer("attn.q"), layer("mlp.gate"), layer("mlp.down"), layer("mlp.up")]);
        let text = no_such_layer("gates", &base).to_string();
        assert!(text.contains("say gate,") && text.ends_with("got gates"), "{text}");
        assert_eq!(distance("kitten", "sitting"), 3);
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        let refused = |lora: LoraConfig| PeftConfig::lora(lora).check().is_err();
        let good = LoraConfig::default;
        assert!(!refused(good()));
        assert!(refused(LoraConfig { rank: 0, ..good() }));
        assert!(refused(LoraConfig { ranks: BTreeMap::from([("q".into(), 0)]), ..good() }));
        assert!(refused(LoraConfig { alpha: 0.0, ..good() }));
        assert!(refused(LoraConfig { alpha: f32::NAN, ..good() }));
        assert!(refused(LoraConfig { dropout: 1.0, ..good() }));
        assert!(PeftConfig { prompts: MAX_TOKENS + 1, ..PeftConfig::none() }.check().is_err());
    }
}
