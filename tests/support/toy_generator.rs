//! A model whose answers can be worked out by hand: each letter is the one before moved on by a shift,
//! `z` ends an answer, and the adapter is the shift. An answer that mixes versions shows it in its text.
//!
//! Unit tests of the library use it too.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a toy's numbers are small"
)]
#![allow(dead_code, reason = "each test uses a part")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use gaisnet::ids::Name;
use gaisnet::learn::{Generator, LearnError, Tensor, TensorSet, Tokens};

/// Letters `a` to `z` are 0 to 25, anything else is 26, and 27 ends an answer.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ToyTokens;

pub(crate) const END: u32 = 27;

impl Tokens for ToyTokens {
    fn encode(&self, text: &str) -> Result<Vec<u32>, LearnError> {
        Ok(text.chars().map(|c| if c.is_ascii_lowercase() { c as u32 - 97 } else { 26 }).collect())
    }

    fn decode(&self, ids: &[u32]) -> Result<String, LearnError> {
        Ok(ids.iter().filter(|id| **id != END).map(|id| letter(*id)).collect())
    }

    fn is_end(&self, id: u32) -> bool {
        id == END
    }
}

fn letter(id: u32) -> char {
    if id < 26 { char::from_u32(97 + id).unwrap() } else { ' ' }
}

/// The adapter of a shift.
pub(crate) fn shift_by(shift: u16) -> TensorSet {
    let data = vec![f32::from(shift); 4];
    TensorSet::new(vec![Tensor { name: "head.weight".into(), shape: vec![4], data }]).unwrap()
}

/// What a greedy answer to `prompt` is, of at most `tokens` letters.
pub(crate) fn answer(prompt: &str, shift: u64, tokens: usize) -> String {
    let mut last = ToyTokens.encode(prompt).unwrap().pop().unwrap();
    let mut text = String::new();
    while text.len() < tokens {
        last = next(last, shift as u32);
        if last == END {
            break;
        }
        text.push(letter(last));
    }
    text
}

fn next(last: u32, shift: u32) -> u32 {
    match last {
        25 => END,
        26.. => shift % 26,
        _ => (last + shift) % 26,
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct ToyGenerator {
    context: u32,
    shifts: BTreeMap<u32, u32>,
    sequences: BTreeMap<u64, Sequence>,
    /// Whatever is loaded goes over what is there, as if there were one slot.
    one_for_all: bool,
    /// Held from the start, in slots 1, 2, ..
    named: Vec<Name>,
    /// Sequences of each step.
    pub(crate) batches: Arc<Mutex<Vec<usize>>>,
    /// Guesses that it takes beyond a token.
    pub(crate) guesses: usize,
}

#[derive(Debug, Clone)]
struct Sequence {
    slot: u32,
    tokens: Vec<u32>,
}

impl Default for ToyGenerator {
    fn default() -> Self {
        Self::with_context(64)
    }
}

impl ToyGenerator {
    pub(crate) fn with_context(context: u32) -> Self {
        Self {
            context,
            shifts: BTreeMap::from([(0, 0)]),
            sequences: BTreeMap::new(),
            one_for_all: false,
            named: Vec::new(),
            batches: Arc::default(),
            guesses: 0,
        }
    }

    /// One that has no slots: for showing what they are good for.
    pub(crate) fn without_slots() -> Self {
        Self { one_for_all: true, ..Self::default() }
    }

    /// With an adapter that requests may name.
    pub(crate) fn holding(mut self, name: &str, shift: u32) -> Self {
        self.named.push(Name::new(name).unwrap());
        self.shifts.insert(self.named.len() as u32, shift);
        self
    }

    pub(crate) fn sequences(&self) -> usize {
        self.sequences.len()
    }

    fn logits(&self, sequence: &Sequence) -> Vec<f32> {
        let slot = if self.one_for_all { 0 } else { sequence.slot };
        let mut logits = vec![0.0; 28];
        let last = *sequence.tokens.last().unwrap();
        logits[next(last, self.shifts[&slot]) as usize] = 50.0;
        logits
    }
}

fn out_of_range(what: &'static str) -> LearnError {
    LearnError::OutOfRange { what, expected: "another".into(), actual: "this".into() }
}

impl Generator for ToyGenerator {
    fn load(&mut self, slot: u32, adapter: &TensorSet) -> Result<(), LearnError> {
        adapter.check_finite()?;
        let shift = adapter.tensors().first().ok_or_else(|| out_of_range("adapter"))?.data[0];
        self.shifts.insert(if self.one_for_all { 0 } else { slot }, shift as u32);
        Ok(())
    }

    fn named(&self) -> Vec<Name> {
        self.named.clone()
    }

    fn context(&self) -> u32 {
        self.context
    }

    fn start(&mut self, sequence: u64, slot: u32, prompt: &[u32]) -> Result<Vec<f32>, LearnError> {
        let known = self.one_for_all || self.shifts.contains_key(&slot);
        if !known || self.sequences.contains_key(&sequence) {
            return Err(out_of_range("sequence"));
        }
        let sequence_of = Sequence { slot, tokens: prompt.to_vec() };
        if prompt.is_empty() || prompt.len() > self.context as usize {
            return Err(out_of_range("prompt"));
        }
        let logits = self.logits(&sequence_of);
        self.sequences.insert(sequence, sequence_of);
        Ok(logits)
    }

    fn step(&mut self, tokens: &[(u64, u32)]) -> Result<Vec<Vec<f32>>, LearnError> {
        self.batches.lock().unwrap().push(tokens.len());
        let mut all = Vec::new();
        for (id, token) in tokens {
            let at = self.sequences.get_mut(id).ok_or_else(|| out_of_range("sequence"))?;
            at.tokens.push(*token);
            if at.tokens.len() > self.context as usize {
                return Err(out_of_range("context"));
            }
            let at = at.clone();
            all.push(self.logits(&at));
        }
        Ok(all)
    }

    fn guesses(&self) -> usize {
        self.guesses
    }

    fn guess(&mut self, sequence: u64, tokens: &[u32]) -> Result<Vec<Vec<f32>>, LearnError> {
        let mut all = self.step(&[(sequence, tokens[0])])?;
        for token in &tokens[1..] {
            all.extend(self.step(&[(sequence, *token)])?);
            self.batches.lock().unwrap().pop();
        }
        Ok(all)
    }

    fn take_back(&mut self, sequence: u64, count: usize) {
        let tokens = &mut self.sequences.get_mut(&sequence).unwrap().tokens;
        tokens.truncate(tokens.len() - count);
    }

    fn end(&mut self, sequence: u64) {
        self.sequences.remove(&sequence);
    }
}
