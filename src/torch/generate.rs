//! Continues token rows with one base and several adapters at once.
//!
//! Sequences of one slot go through the model together, each with keys and values of its own. Slots take
//! turns: only while one adapter is swapped for the next do several have sequences.

use std::collections::BTreeMap;
use std::num::NonZeroU16;

use tch::{Device, Tensor};

use super::adapter::AdapterPlan;
use super::language::{LanguageBase, LanguageModel, SequenceCache};
use super::peft::PeftConfig;
use super::{use_threads, values};
use crate::learn::{Generator, LearnError, TensorSet};

/// A base that writes.
#[derive(Debug)]
pub struct LanguageGenerator {
    base: LanguageBase,
    plan: AdapterPlan,
    models: Models,
    sequences: BTreeMap<u64, Sequence>,
    threads: NonZeroU16,
}

/// The base with each adapter.
#[derive(Debug)]
struct Models {
    bare: LanguageModel,
    slots: BTreeMap<u32, LanguageModel>,
    device: Device,
}

#[derive(Debug)]
struct Sequence {
    slot: u32,
    cache: SequenceCache,
}

impl LanguageGenerator {
    /// Writes with the bare base until an adapter is loaded.
    ///
    /// # Errors
    /// [`LearnError`] when base and adapter config don't fit together.
    pub fn new(
        base: LanguageBase,
        peft: &PeftConfig,
        threads: NonZeroU16,
    ) -> Result<Self, LearnError> {
        let plan = AdapterPlan::new(&base.weights().layout(), peft)?;
        let (slots, sequences) = (BTreeMap::new(), BTreeMap::new());
        let models = Models { bare: base.model(None)?, slots, device: base.device() };
        Ok(Self { base, plan, models, sequences, threads })
    }
}

impl Models {
    /// Runs tokens through sequences of a slot, the same number through each cache, row by row; gives
    /// the logits `[vocab]` after each one's last.
    fn extend(
        &self,
        slot: u32,
        tokens: &[u32],
        caches: &mut [&mut SequenceCache],
    ) -> Result<Vec<Vec<f32>>, LearnError> {
        let model = match self.slots.get(&slot) {
            Some(model) => model,
            None if slot == 0 => &self.bare,
            // The bare base must never pass for an adapter that isn't there.
            None => return Err(out_of_range("adapter slot", "one that was loaded", slot.into())),
        };
        let rows = i64::try_from(caches.len()).unwrap_or(i64::MAX);
        let ids: Vec<i64> = tokens.iter().map(|t| i64::from(*t)).collect();
        let ids = Tensor::f_from_slice(&ids)?.f_reshape([rows, -1])?.f_to(self.device)?;
        let hidden = model.extend(&ids, caches)?;
        let logits = values(&model.logits(&hidden)?)?;
        let vocab = logits.len() / caches.len().max(1);
        Ok(logits.chunks_exact(vocab.max(1)).map(<[f32]>::to_vec).collect())
    }
}

impl Generator for LanguageGenerator {
    fn load(&mut self, slot: u32, adapter: &TensorSet) -> Result<(), LearnError> {
        let _guard = tch::no_grad_guard();
        let flat = self.plan.flatten(adapter)?.f_to(self.base.device())?;
        let model = self.base.model(Some(&self.plan.attach(&flat)?))?;
        self.models.slots.insert(slot, model);
        Ok(())
    }

    fn context(&self) -> u32 {
        self.base.config().context
    }

    fn start(&mut self, sequence: u64, slot: u32, prompt: &[u32]) -> Result<Vec<f32>, LearnError> {
        let _guard = tch::no_grad_guard();
        use_threads(self.threads);
        if prompt.is_empty() || self.sequences.contains_key(&sequence) {
            return Err(out_of_range("new sequence", "an unused number and a prompt", sequence));
        }
        let mut cache = SequenceCache::default();
        let logits = self.models.extend(slot, prompt, &mut [&mut cache])?;
        self.sequences.insert(sequence, Sequence { slot, cache });
        Ok(logits.into_iter().flatten().collect())
    }

    fn step(&mut self, tokens: &[(u64, u32)]) -> Result<Vec<Vec<f32>>, LearnError> {
        let _guard = tch::no_grad_guard();
        use_threads(self.threads);
        let mut wanted = BTreeMap::new();
        for (id, token) in tokens {
            if !self.sequences.contains_key(id) || wanted.insert(*id, *token).is_some() {
                return Err(out_of_range("sequence", "one that was started, once", *id));
            }
        }
        let mut slots: BTreeMap<u32, Rows<'_>> = BTreeMap::new();
        for (id, sequence) in &mut self.sequences {
            if let Some(token) = wanted.get(id) {
                let rows = slots.entry(sequence.slot).or_default();
                rows.ids.push(*id);
                rows.tokens.push(*token);
                rows.caches.push(&mut sequence.cache);
            }
        }
        let mut logits = BTreeMap::new();
        for (slot, mut rows) in slots {
            let all = self.models.extend(slot, &rows.tokens, &mut rows.caches)?;
            logits.extend(rows.ids.into_iter().zip(all));
        }
        Ok(tokens.iter().filter_map(|(id, _)| logits.remove(id)).collect())
    }

    fn end(&mut self, sequence: u64) {
        self.sequences.remove(&sequence);
    }
}

/// Sequences that go through one slot's model together.
#[derive(Default)]
struct Rows<'a> {
    ids: Vec<u64>,
    tokens: Vec<u32>,
    caches: Vec<&'a mut SequenceCache>,
}

fn out_of_range(what: &'static str, expected: &str, actual: u64) -> LearnError {
    LearnError::OutOfRange { what, expected: expected.into(), actual: actual.to_string() }
}
