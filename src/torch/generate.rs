//! Continues token rows with one base and several adapters at once.
//!
//! Prompts go through libtorch, one by one; what follows goes through a [`Decoder`] where there is one for the
//! model, and there the sequences of all slots share one pass over the base. Where there is none (a GPU, an adapter
//! with bottlenecks), sequences of one slot go through the model together, and slots take turns. Each sequence has
//! keys and values of its own.

use std::collections::BTreeMap;
use std::num::NonZeroU16;

use rayon::{ThreadPool, ThreadPoolBuilder};
use tch::{Device, Tensor};

use super::adapter::AdapterPlan;
use super::decoder::{Continue, Decoder, RowCache, extend};
use super::language::{LanguageBase, LanguageModel, SequenceCache};
use super::peft::PeftConfig;
use super::{use_threads, values};
use crate::ids::Name;
use crate::learn::{Generator, LearnError, TensorSet};

/// A base that writes.
#[derive(Debug)]
pub struct LanguageGenerator {
    base: LanguageBase,
    plan: AdapterPlan,
    models: Models,
    sequences: BTreeMap<u64, Sequence>,
    named: Vec<Name>,
    threads: NonZeroU16,
}

/// The base with each adapter.
#[derive(Debug)]
struct Models {
    bare: Model,
    slots: BTreeMap<u32, Model>,
    device: Device,
    /// What decoders run in.
    pool: ThreadPool,
}

#[derive(Debug)]
struct Model {
    whole: LanguageModel,
    decoder: Option<Decoder>,
}

#[derive(Debug)]
struct Sequence {
    slot: u32,
    cache: Cache,
}

#[derive(Debug)]
enum Cache {
    Tensors(SequenceCache),
    Row(RowCache),
}

impl LanguageGenerator {
    /// Writes with the bare base until an adapter is loaded.
    ///
    /// # Errors
    /// [`LearnError`] when base and adapter config don't fit together, or the system gives no threads.
    pub fn new(
        base: LanguageBase,
        peft: &PeftConfig,
        threads: NonZeroU16,
    ) -> Result<Self, LearnError> {
        let plan = AdapterPlan::new(&base.weights().layout(), peft)?;
        let (slots, sequences, named) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        let name = |at| format!("gaisnet-text-{at}");
        let pool = ThreadPoolBuilder::new().num_threads(threads.get().into()).thread_name(name);
        let pool = pool
            .build()
            .map_err(|error| LearnError::Engine { engine: "rayon", message: error.to_string() })?;
        let models =
            Models { bare: Model::new(base.model(None)?)?, slots, device: base.device(), pool };
        Ok(Self { base, plan, models, sequences, named, threads })
    }

    /// Takes an adapter along that requests may name, of whatever kind; it has the next slot for good, so
    /// this comes before anything is loaded.
    ///
    /// # Errors
    /// [`LearnError`] when it doesn't fit the base, the name is taken, or its slot is.
    pub fn hold(
        &mut self,
        name: Name,
        peft: &PeftConfig,
        adapter: &TensorSet,
    ) -> Result<(), LearnError> {
        let slot = u32::try_from(self.named.len() + 1).unwrap_or(u32::MAX);
        if self.models.slots.contains_key(&slot) || self.named.contains(&name) {
            let expected = "before others are loaded, each name once".into();
            let what = "adapter with a name";
            return Err(LearnError::OutOfRange { what, expected, actual: name.to_string() });
        }
        let plan = AdapterPlan::new(&self.base.weights().layout(), peft)?;
        self.put(slot, &plan, adapter)?;
        self.named.push(name);
        Ok(())
    }

    fn put(
        &mut self,
        slot: u32,
        plan: &AdapterPlan,
        adapter: &TensorSet,
    ) -> Result<(), LearnError> {
        let _guard = tch::no_grad_guard();
        let flat = plan.flatten(adapter)?.f_to(self.base.device())?;
        let model = self.base.model(Some(&plan.attach(&flat)?))?;
        self.models.slots.insert(slot, Model::new(model)?);
        Ok(())
    }
}

impl Model {
    fn new(whole: LanguageModel) -> Result<Self, LearnError> {
        Ok(Self { decoder: whole.decoder()?, whole })
    }
}

impl Models {
    fn of(&self, slot: u32) -> Result<&Model, LearnError> {
        match self.slots.get(&slot) {
            Some(model) => Ok(model),
            None if slot == 0 => Ok(&self.bare),
            // The bare base must never pass for an adapter that isn't there.
            None => Err(out_of_range("adapter slot", "one that was loaded", slot.into())),
        }
    }

    /// Runs a prompt through a slot's model; gives the logits `[vocab]` after it.
    fn begin(&self, slot: u32, prompt: &[u32]) -> Result<(Cache, Vec<f32>), LearnError> {
        let model = self.of(slot)?;
        let mut cache = SequenceCache::default();
        let hidden = model.whole.extend(&self.ids(1, prompt)?, &mut [&mut cache])?;
        let logits = values(&model.whole.logits(&hidden)?)?;
        let cache = match &model.decoder {
            Some(_) => Cache::Row(cache.row()?),
            None => Cache::Tensors(cache),
        };
        Ok((cache, logits))
    }

    /// Runs one token through each sequence of a slot by libtorch; gives the logits `[vocab]` after each.
    fn go_on(&self, slot: u32, rows: Vec<Row<'_>>) -> Result<Vec<Vec<f32>>, LearnError> {
        let model = self.of(slot)?;
        let (tokens, mut caches): (Vec<u32>, Vec<&mut SequenceCache>) = rows.into_iter().unzip();
        let rows = i64::try_from(caches.len()).unwrap_or(i64::MAX);
        let hidden = model.whole.extend(&self.ids(rows, &tokens)?, &mut caches)?;
        let logits = values(&model.whole.logits(&hidden)?)?;
        let vocab = logits.len() / caches.len().max(1);
        Ok(logits.chunks_exact(vocab.max(1)).map(<[f32]>::to_vec).collect())
    }

    fn decoder(&self, slot: u32) -> Result<&Decoder, LearnError> {
        let decoder = self.of(slot)?.decoder.as_ref();
        decoder.ok_or_else(|| {
            out_of_range("adapter slot", "as it was when the sequence began", slot.into())
        })
    }

    fn ids(&self, rows: i64, tokens: &[u32]) -> Result<Tensor, LearnError> {
        let ids: Vec<i64> = tokens.iter().map(|t| i64::from(*t)).collect();
        Ok(Tensor::f_from_slice(&ids)?.f_reshape([rows, -1])?.f_to(self.device)?)
    }
}

impl Generator for LanguageGenerator {
    fn load(&mut self, slot: u32, adapter: &TensorSet) -> Result<(), LearnError> {
        let plan = self.plan.clone();
        self.put(slot, &plan, adapter)
    }

    fn named(&self) -> Vec<Name> {
        self.named.clone()
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
        let (cache, logits) = self.models.begin(slot, prompt)?;
        self.sequences.insert(sequence, Sequence { slot, cache });
        Ok(logits)
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
        let mut shared = Vec::new();
        let mut slots: BTreeMap<u32, (Vec<u64>, Vec<Row<'_>>)> = BTreeMap::new();
        for (id, Sequence { slot, cache }) in &mut self.sequences {
            let Some(token) = wanted.get(id) else { continue };
            match cache {
                Cache::Row(cache) => {
                    let tokens = std::slice::from_ref(token);
                    let decoder = self.models.decoder(*slot)?;
                    shared.push((*slot, *id, Continue { decoder, cache, tokens }));
                }
                Cache::Tensors(cache) => {
                    let (ids, rows) = slots.entry(*slot).or_default();
                    ids.push(*id);
                    rows.push((*token, cache));
                }
            }
        }
        // Those of one adapter stand side by side, so that its own part is read once for them.
        shared.sort_by_key(|(slot, id, _)| (*slot, *id));
        let (ids, mut shared): (Vec<u64>, Vec<_>) =
            shared.into_iter().map(|(_, id, sequence)| (id, sequence)).unzip();
        let all = self.models.pool.install(|| extend(&mut shared))?;
        let mut logits: BTreeMap<u64, Vec<f32>> = ids.into_iter().zip(all).collect();
        for (slot, (ids, rows)) in slots {
            logits.extend(ids.into_iter().zip(self.models.go_on(slot, rows)?));
        }
        Ok(tokens.iter().filter_map(|(id, _)| logits.remove(id)).collect())
    }

    fn guesses(&self) -> usize {
        if self.models.bare.decoder.is_some() { GUESSES } else { 0 }
    }

    fn guess(&mut self, sequence: u64, tokens: &[u32]) -> Result<Vec<Vec<f32>>, LearnError> {
        use_threads(self.threads);
        if let Some(Sequence { slot, cache: Cache::Row(cache) }) = self.sequences.get_mut(&sequence)
        {
            let decoder = self.models.decoder(*slot)?;
            let mut alone = [Continue { decoder, cache, tokens }];
            return self.models.pool.install(|| extend(&mut alone));
        }
        // The first is no guess.
        let first = tokens.first().copied().into_iter();
        self.step(&first.map(|token| (sequence, token)).collect::<Vec<_>>())
    }

    fn take_back(&mut self, sequence: u64, count: usize) {
        if let Some(Sequence { cache: Cache::Row(cache), .. }) = self.sequences.get_mut(&sequence) {
            cache.take_back(count);
        }
    }

    fn end(&mut self, sequence: u64) {
        self.sequences.remove(&sequence);
    }
}

/// A token and its sequence so far, for libtorch.
type Row<'a> = (u32, &'a mut SequenceCache);

/// More at once would cost more arithmetic than the memory's speed leaves time for.
const GUESSES: usize = 4;

fn out_of_range(what: &'static str, expected: &str, actual: u64) -> LearnError {
    LearnError::OutOfRange { what, expected: expected.into(), actual: actual.to_string() }
}
