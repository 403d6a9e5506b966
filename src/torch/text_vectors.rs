//! A text as one vector of a frozen base: what a softmax head classifies it by.
//!
//! An encoder gives its own kind of vector. A language model gives the mean over the text's tokens of what comes out
//! of the first third of its blocks, since later ones turn to the next word. Those vectors all point much the same
//! way, so the mean over a few fixed sentences is taken off; then each has length one like an encoder's.

use std::num::NonZeroU16;

use tch::{Device, Kind, Tensor};

use super::adopted::AdoptedBase;
use super::encoder::Encoder;
use super::language::{LanguageBase, LanguageModel, Precision, TokenBatch};
use super::parts::Parts;
use super::tokenizer::TextTokenizer;
use super::{dim, use_threads, values};
use crate::learn::{LearnError, TextFeatures};

/// A frozen base with its tokenizer.
#[derive(Debug)]
pub struct TextVectors {
    base: Base,
    tokenizer: TextTokenizer,
    width: usize,
    /// Longest text in tokens; the rest of a longer one is left out.
    context: usize,
    threads: NonZeroU16,
}

#[derive(Debug)]
enum Base {
    Encoder(Box<Encoder>),
    /// With the vector that is taken off each text's, `[d]`.
    Language(Box<LanguageModel>, Tensor),
}

impl TextVectors {
    /// Takes a base that reads texts.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`] for one of images; what is wrong with its tensors.
    pub fn new(base: AdoptedBase, threads: NonZeroU16) -> Result<Self, LearnError> {
        let _guard = tch::no_grad_guard();
        use_threads(threads);
        match base {
            AdoptedBase::Encoder(loaded) => {
                let (width, context) = (loaded.config.d_model, loaded.config.context);
                let encoder = Encoder::new(&Parts::bare(&loaded.weights), &loaded.config)?;
                let base = Base::Encoder(Box::new(encoder));
                Ok(Self::of(base, loaded.tokenizer, (width, context), threads))
            }
            AdoptedBase::Language(loaded) => {
                let (width, context) = (loaded.config.d_model, loaded.config.context);
                // On the processor, in full precision: the same vectors whatever GPU a node has.
                let base =
                    LanguageBase::new(loaded.config, loaded.weights, Precision::F32, Device::Cpu)?;
                let model = base.model(None)?;
                let ids = COMMON.iter().map(|text| loaded.tokenizer.encode(text));
                let common = means(&model, &ids.collect::<Result<Vec<_>, _>>()?)?;
                let common = common.f_mean_dim([0].as_slice(), false, Kind::Float)?;
                let base = Base::Language(Box::new(model), common);
                Ok(Self::of(base, loaded.tokenizer, (width, context), threads))
            }
            AdoptedBase::Vision(_) => Err(LearnError::OutOfRange {
                what: "base",
                expected: "a text encoder or a language model".into(),
                actual: "one of images".into(),
            }),
        }
    }

    fn of(
        base: Base,
        tokenizer: TextTokenizer,
        (width, context): (u32, u32),
        threads: NonZeroU16,
    ) -> Self {
        let context = (context as usize).min(MOST_TOKENS);
        Self { base, tokenizer, width: width as usize, context, threads }
    }
}

impl TextFeatures for TextVectors {
    fn width(&self) -> usize {
        self.width
    }

    fn features(&mut self, texts: &[&str]) -> Result<Vec<f32>, LearnError> {
        let _guard = tch::no_grad_guard();
        use_threads(self.threads);
        let mut all = Vec::with_capacity(texts.len().saturating_mul(self.width));
        for batch in texts.chunks(BATCH) {
            let mut rows = Vec::with_capacity(batch.len());
            for text in batch {
                let mut ids = self.tokenizer.encode(text)?;
                ids.truncate(self.context);
                rows.push(ids);
            }
            let vectors = match &self.base {
                Base::Encoder(encoder) => encoder.vectors(&rows)?,
                Base::Language(model, common) => {
                    let own = means(model, &rows)?.f_sub(common)?;
                    let length = own.f_norm_scalaropt_dim(2.0, [-1].as_slice(), true)?;
                    own.f_div(&length.f_clamp_min(f64::from(f32::MIN_POSITIVE))?)?
                }
            };
            all.extend(values(&vectors)?);
        }
        Ok(all)
    }
}

/// Mean of each text's hidden states behind the first third of the blocks, `[texts, d]`.
fn means(model: &LanguageModel, texts: &[Vec<u32>]) -> Result<Tensor, LearnError> {
    let longest = texts.iter().map(Vec::len).max().unwrap_or_default();
    if texts.iter().any(Vec::is_empty) {
        let (expected, actual) = ("1 or more".into(), "0".into());
        return Err(LearnError::OutOfRange { what: "tokens of a text", expected, actual });
    }
    let (mut ids, mut here) = (Vec::new(), Vec::new());
    for text in texts {
        // What fills a shorter text up stands behind it, where no token of it looks.
        let filler = longest - text.len();
        ids.extend(text.iter().map(|id| i64::from(*id)).chain(std::iter::repeat_n(0, filler)));
        here.extend(std::iter::repeat_n(1.0_f32, text.len()));
        here.extend(std::iter::repeat_n(0.0_f32, filler));
    }
    let (rows, tokens) = (dim(texts.len())?, dim(longest)?);
    let ids = Tensor::f_from_slice(&ids)?.f_reshape([rows, tokens])?;
    let here = Tensor::f_from_slice(&here)?.f_reshape([rows, tokens, 1])?;
    let way = model.enter(&TokenBatch { ids, positions: None, segments: None })?;
    let mut x = way.x.shallow_clone();
    for block in 0..model.layers().div_ceil(3) {
        x = model.block(block, &x, &way)?;
    }
    let sum = x.f_mul(&here)?.f_sum_dim_intlist([1].as_slice(), false, Kind::Float)?;
    Ok(sum.f_div(&here.f_sum_dim_intlist([1].as_slice(), false, Kind::Float)?)?)
}

/// Short sentences about nothing in particular.
const COMMON: [&str; 8] = [
    "replace the part",
    "check and repair",
    "it does not work",
    "left hand side",
    "the weather is fine today",
    "a man walks down the road",
    "low level alarm",
    "a leak was found and fixed",
];

/// Texts that go through the base together.
const BATCH: usize = 32;
/// A work order is far shorter; bounds the memory of a batch.
const MOST_TOKENS: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learn::TensorSet;
    use crate::rng::Stream;
    use crate::torch::language::LanguageConfig;
    use crate::torch::weights::Weights;

    #[expect(clippy::cast_possible_truncation, reason = "made-up weights")]
    fn model() -> LanguageModel {
        let config = LanguageConfig {
            vocab: 12,
            d_model: 16,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            d_ff: 20,
            rope_theta: 1e4,
            norm_eps: 1e-5,
            context: 16,
            tied: true,
        };
        let mut set = TensorSet::zeros(&config.layout());
        for (name, data) in set.named_values_mut() {
            let mut stream = Stream::new(1, name);
            for x in data {
                *x = 1.0 + stream.normal() as f32;
            }
        }
        let weights = Weights::from_set(&set).unwrap();
        let base = LanguageBase::new(config, weights, Precision::F32, Device::Cpu).unwrap();
        base.model(None).unwrap()
    }

    #[test]
    fn what_fills_a_row_up_changes_no_vector() {
        let _guard = tch::no_grad_guard();
        let model = model();
        let (short, long) = (vec![3, 1, 4], vec![1, 5, 9, 2, 6]);
        let both = values(&means(&model, &[short.clone(), long]).unwrap()).unwrap();
        let alone = values(&means(&model, &[short]).unwrap()).unwrap();
        for (a, b) in both.iter().zip(&alone) {
            assert!((a - b).abs() < 1e-4 * b.abs().max(1.0), "{a} {b}");
        }
        assert_eq!(means(&model, &[vec![]]).unwrap_err().kind(), "out_of_range");
    }
}
