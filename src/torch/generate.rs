//! Continues token rows with one base and several adapters at once.
//!
//! Sequences of all slots go through the base's matrices together; each has keys and values of its own.

use std::collections::BTreeMap;
use std::num::NonZeroU16;

use tch::Tensor;

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
    bare: LanguageModel,
    slots: BTreeMap<u32, LanguageModel>,
    sequences: BTreeMap<u64, Sequence>,
    threads: NonZeroU16,
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
        Ok(Self { bare: base.model(None)?, base, plan, slots, sequences, threads })
    }

    /// Runs tokens through one sequence; gives the logits after the last.
    fn extend(&self, sequence: &mut Sequence, tokens: &[u32]) -> Result<Vec<f32>, LearnError> {
        let ids: Vec<i64> = tokens.iter().map(|t| i64::from(*t)).collect();
        let ids = Tensor::f_from_slice(&ids)?.f_unsqueeze(0)?.f_to(self.base.device())?;
        let model = match self.slots.get(&sequence.slot) {
            Some(model) => model,
            None if sequence.slot == 0 => &self.bare,
            // The bare base must never pass for an adapter that isn't there.
            None => {
                return Err(LearnError::OutOfRange {
                    what: "adapter slot",
                    expected: "one that was loaded".into(),
                    actual: sequence.slot.to_string(),
                });
            }
        };
        let hidden = model.extend(&ids, &mut sequence.cache)?;
        values(&model.logits(&hidden)?)
    }
}

impl Generator for LanguageGenerator {
    fn load(&mut self, slot: u32, adapter: &TensorSet) -> Result<(), LearnError> {
        let _guard = tch::no_grad_guard();
        let flat = self.plan.flatten(adapter)?.f_to(self.base.device())?;
        let model = self.base.model(Some(&self.plan.attach(&flat)?))?;
        self.slots.insert(slot, model);
        Ok(())
    }

    fn context(&self) -> u32 {
        self.base.config().context
    }

    fn start(&mut self, sequence: u64, slot: u32, prompt: &[u32]) -> Result<Vec<f32>, LearnError> {
        let _guard = tch::no_grad_guard();
        use_threads(self.threads);
        if prompt.is_empty() || self.sequences.contains_key(&sequence) {
            return Err(LearnError::OutOfRange {
                what: "new sequence",
                expected: "a number of its own and at least one token".into(),
                actual: format!("number {sequence}, {} tokens", prompt.len()),
            });
        }
        let mut new = Sequence { slot, cache: SequenceCache::default() };
        let logits = self.extend(&mut new, prompt)?;
        self.sequences.insert(sequence, new);
        Ok(logits)
    }

    fn step(&mut self, tokens: &[(u64, u32)]) -> Result<Vec<Vec<f32>>, LearnError> {
        let _guard = tch::no_grad_guard();
        use_threads(self.threads);
        let mut all = Vec::with_capacity(tokens.len());
        for (id, token) in tokens {
            let mut sequence = self.sequences.remove(id).ok_or_else(|| LearnError::OutOfRange {
                what: "sequence",
                expected: "one that was started".into(),
                actual: id.to_string(),
            })?;
            let logits = self.extend(&mut sequence, &[*token]);
            self.sequences.insert(*id, sequence);
            all.push(logits?);
        }
        Ok(all)
    }

    fn end(&mut self, sequence: u64) {
        self.sequences.remove(&sequence);
    }
}
