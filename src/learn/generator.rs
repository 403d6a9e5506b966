//! The ports to whatever generates text: a model that continues token rows, and its alphabet.
//!
//! [`Scheduler`](super::Scheduler) and the generating lane (`actors/`) work with these; libtorch
//! stands behind them in `torch/`. A *slot* holds one adapter over the one base; a sequence is
//! computed with the slot that it began with until it ends.

use super::{LearnError, TensorSet};
use crate::ids::Name;

/// Continues rows of tokens with one base and an adapter for each slot.
///
/// Called by one thread. The caller picks the tokens (`Sampler`), so that a generator draws nothing.
pub trait Generator: Send {
    /// Puts an adapter into a slot; slot 0 starts as the bare base. An older one there goes, so the
    /// caller keeps slots apart that running sequences use. On an error the old one stays.
    ///
    /// # Errors
    /// [`LearnError`] when the adapter doesn't fit the base.
    fn load(&mut self, slot: u32, adapter: &TensorSet) -> Result<(), LearnError>;

    /// The adapters that it was made with, beside those that are loaded: they stay in slots 1, 2, .. in
    /// this order, and requests may name them.
    fn named(&self) -> Vec<Name> {
        Vec::new()
    }

    /// Most tokens of a prompt and its answer together.
    fn context(&self) -> u32;

    /// Begins a sequence: reads the prompt and gives the logits `[vocab]` of the token after it.
    ///
    /// `sequence` is new, `slot` was loaded (or is 0), `prompt` has 1 to `context` tokens.
    /// # Errors
    /// [`LearnError`] when one of these doesn't hold or the engine fails; then there is no sequence.
    fn start(&mut self, sequence: u64, slot: u32, prompt: &[u32]) -> Result<Vec<f32>, LearnError>;

    /// Appends one token to each of these sequences, whatever their slots: the logits `[vocab]` of the
    /// token after it, in the same order.
    ///
    /// # Errors
    /// [`LearnError`] when a sequence is unknown, at its context's end, or the engine fails; the caller
    /// ends all sequences of the call then.
    fn step(&mut self, tokens: &[(u64, u32)]) -> Result<Vec<Vec<f32>>, LearnError>;

    /// Tokens that [`Generator::guess`] may take beyond the first; 0 where it isn't worth while.
    fn guesses(&self) -> usize {
        0
    }

    /// Appends a token and guesses of those after it to one sequence: the logits `[vocab]` after each of
    /// them, at little more than the price of one. Gives fewer where it can't take them all: then it took
    /// as many. What was guessed wrong has to be taken back.
    ///
    /// # Errors
    /// As for [`Generator::step`].
    fn guess(&mut self, sequence: u64, tokens: &[u32]) -> Result<Vec<Vec<f32>>, LearnError> {
        let first = tokens.first().copied().into_iter();
        self.step(&first.map(|token| (sequence, token)).collect::<Vec<_>>())
    }

    /// Forgets the last tokens of a sequence, no more than were guessed last.
    fn take_back(&mut self, sequence: u64, count: usize) {
        let _ = (sequence, count);
    }

    /// Forgets a sequence and frees its memory; an unknown one is fine.
    fn end(&mut self, sequence: u64);
}

/// Text to token ids and back.
pub trait Tokens: Send + Sync {
    /// Token ids of a text, without special tokens at its ends unless the model wants them.
    ///
    /// # Errors
    /// [`LearnError`] when the tokenizer fails.
    fn encode(&self, text: &str) -> Result<Vec<u32>, LearnError>;

    /// Text of a row of ids. Bytes that make no whole character yet come out as U+FFFD.
    ///
    /// # Errors
    /// [`LearnError`] when an id isn't in the vocabulary.
    fn decode(&self, ids: &[u32]) -> Result<String, LearnError>;

    /// Whether this token ends an answer.
    fn is_end(&self, id: u32) -> bool;
}

impl<G: Generator + ?Sized> Generator for Box<G> {
    fn load(&mut self, slot: u32, adapter: &TensorSet) -> Result<(), LearnError> {
        (**self).load(slot, adapter)
    }

    fn named(&self) -> Vec<Name> {
        (**self).named()
    }

    fn context(&self) -> u32 {
        (**self).context()
    }

    fn start(&mut self, sequence: u64, slot: u32, prompt: &[u32]) -> Result<Vec<f32>, LearnError> {
        (**self).start(sequence, slot, prompt)
    }

    fn step(&mut self, tokens: &[(u64, u32)]) -> Result<Vec<Vec<f32>>, LearnError> {
        (**self).step(tokens)
    }

    fn guesses(&self) -> usize {
        (**self).guesses()
    }

    fn guess(&mut self, sequence: u64, tokens: &[u32]) -> Result<Vec<Vec<f32>>, LearnError> {
        (**self).guess(sequence, tokens)
    }

    fn take_back(&mut self, sequence: u64, count: usize) {
        (**self).take_back(sequence, count);
    }

    fn end(&mut self, sequence: u64) {
        (**self).end(sequence);
    }
}
