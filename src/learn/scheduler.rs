//! Who is generated for, and with which adapter: requests wait in a bounded queue, join the running
//! batch between two steps, and leave it when they are done, cancelled or out of time.
//!
//! ```text
//! ask -> waiting (bounded) -> running (bounded): start, then a token each step -> Told
//!             |                   |
//!             '-- deadline, cancel, unknown adapter --> Told::End
//! ```
//! Every request that was taken ends with exactly one [`Told::End`]. Adapters are loaded between
//! steps; a running sequence keeps the one that it began with ([`AdapterSlots`]). Time is an argument.

use std::collections::{BTreeMap, VecDeque};

use super::{
    AdapterId, AdapterSlots, AnswerText, Ask, BatchLimits, Finish, GenerateError, Generated,
    Generator, LearnError, Sampler, TensorSet, Tokens, Told, guess,
};
use crate::ids::Name;
use crate::time::Mono;

/// See the module.
#[derive(Debug)]
pub struct Scheduler {
    limits: BatchLimits,
    slots: AdapterSlots,
    waiting: VecDeque<Waiting>,
    /// By ticket, which is also the sequence's number.
    running: BTreeMap<u64, Running>,
}

#[derive(Debug)]
struct Waiting {
    ticket: u64,
    prompt: Vec<u32>,
    ask: Ask,
}

#[derive(Debug)]
struct Running {
    slot: u32,
    adapter: AdapterId,
    sampler: Sampler,
    text: AnswerText,
    /// The prompt and all that was picked; the model hasn't read the last.
    ids: Vec<u32>,
    tokens: u32,
    prompt_tokens: u32,
    max_tokens: u32,
    stream: bool,
    deadline: Mono,
}

impl Scheduler {
    /// Nothing runs, and the bare base is served as version 0.
    pub fn new(limits: BatchLimits) -> Self {
        Self::with_named(limits, Vec::new())
    }

    /// The same for a generator that holds adapters with names from the start ([`Generator::named`]).
    pub fn with_named(limits: BatchLimits, named: Vec<Name>) -> Self {
        let adapters = limits.running.saturating_add(limits.named).saturating_add(2);
        Self {
            limits,
            slots: AdapterSlots::with_named(u32::try_from(adapters).unwrap_or(u32::MAX), named),
            waiting: VecDeque::new(),
            running: BTreeMap::new(),
        }
    }

    /// Puts an adapter in place for sequences that begin from now on; see [`AdapterSlots::load`].
    ///
    /// # Errors
    /// [`LearnError`] when it doesn't fit the base; all stays as it was then.
    pub fn load(
        &mut self,
        id: AdapterId,
        adapter: &TensorSet,
        generator: &mut dyn Generator,
    ) -> Result<(), LearnError> {
        self.slots.load(id, adapter, generator)
    }

    /// Takes a request under a new ticket.
    ///
    /// # Errors
    /// [`GenerateError`]; nothing is told of the ticket then.
    pub fn ask(
        &mut self,
        ticket: u64,
        ask: Ask,
        generator: &dyn Generator,
        tokens: &dyn Tokens,
    ) -> Result<(), GenerateError> {
        if self.waiting.len() >= self.limits.waiting {
            return Err(GenerateError::Busy { waiting: self.waiting.len() });
        }
        if let Some(wanted) = &ask.adapter
            && !self.slots.has(wanted)
        {
            return Err(self.unknown(Some(wanted)));
        }
        let prompt = tokens.encode(&ask.prompt)?;
        let context = usize::try_from(generator.context()).unwrap_or(usize::MAX);
        if prompt.is_empty() {
            return Err(GenerateError::EmptyPrompt);
        }
        if prompt.len() >= context {
            return Err(GenerateError::PromptTooLong { tokens: prompt.len(), context });
        }
        self.waiting.push_back(Waiting { ticket, prompt, ask });
        Ok(())
    }

    /// Ends a request; what it has so far is its answer. Nothing when it isn't here (any more).
    pub fn cancel(&mut self, ticket: u64, generator: &mut dyn Generator) -> Vec<(u64, Told)> {
        let mut told = Vec::new();
        if let Some(at) = self.waiting.iter().position(|waiting| waiting.ticket == ticket) {
            let waiting = self.waiting.remove(at);
            told.extend(waiting.map(|waiting| (ticket, waiting.ended(Finish::Cancelled))));
        }
        if let Some(running) = self.running.remove(&ticket) {
            self.end(ticket, running, Finish::Cancelled, generator, &mut told);
        }
        told
    }

    /// One round: ends what is out of time, lets requests join, and adds a token to each sequence.
    /// What there is to tell comes in the order of its making, with its ticket.
    pub fn step(
        &mut self,
        now: Mono,
        generator: &mut dyn Generator,
        tokens: &dyn Tokens,
    ) -> Vec<(u64, Told)> {
        let mut told = Vec::new();
        self.expire(now, generator, &mut told);
        let batch: Vec<(u64, u32)> = self.running.iter().map(|(id, at)| (*id, at.last())).collect();
        if let [(ticket, _)] = batch.as_slice() {
            self.step_alone(*ticket, generator, tokens, &mut told);
        } else if !batch.is_empty() {
            match generator.step(&batch) {
                Ok(all) if all.len() == batch.len() => {
                    for ((ticket, _), logits) in batch.into_iter().zip(all) {
                        self.advance(ticket, &logits, generator, tokens, &mut told);
                    }
                }
                failed => {
                    let error = failed.err().unwrap_or_else(wrong_count);
                    for (ticket, _) in batch {
                        self.fail(ticket, error.clone(), generator, &mut told);
                    }
                }
            }
        }
        self.join(generator, tokens, &mut told);
        told
    }

    /// A sequence that has the model to itself: guesses go through it along with its token, and as many count
    /// as the sampler would have picked one by one.
    fn step_alone(
        &mut self,
        ticket: u64,
        generator: &mut dyn Generator,
        tokens: &dyn Tokens,
        told: &mut Vec<(u64, Told)>,
    ) {
        let Some(running) = self.running.get(&ticket) else { return };
        let left = running.max_tokens.saturating_sub(running.tokens + 1);
        let most = generator.guesses().min(usize::try_from(left).unwrap_or(usize::MAX));
        let read = [&[running.last()], guess(&running.ids, most)].concat();
        let all = match generator.guess(ticket, &read) {
            Ok(all) if (1..=read.len()).contains(&all.len()) => all,
            failed => {
                let error = failed.err().unwrap_or_else(wrong_count);
                return self.fail(ticket, error, generator, told);
            }
        };
        let mut right = 0;
        for (logits, after) in all.iter().zip(read.iter().skip(1).map(Some).chain([None])) {
            right += 1;
            self.advance(ticket, logits, generator, tokens, told);
            match self.running.get(&ticket) {
                None => return,
                Some(running) if after != Some(&running.last()) => break,
                Some(_) => {}
            }
        }
        if right < all.len() {
            generator.take_back(ticket, all.len() - right);
        }
    }

    /// Whether a step would do nothing.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Requests that wait for their turn.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    fn expire(&mut self, now: Mono, generator: &mut dyn Generator, told: &mut Vec<(u64, Told)>) {
        for _ in 0..self.waiting.len() {
            match self.waiting.pop_front() {
                Some(late) if late.ask.deadline <= now => {
                    told.push((late.ticket, late.ended(Finish::Deadline)));
                }
                Some(other) => self.waiting.push_back(other),
                None => {}
            }
        }
        let late = |(ticket, at): (&u64, &Running)| (at.deadline <= now).then_some(*ticket);
        let late: Vec<u64> = self.running.iter().filter_map(late).collect();
        for ticket in late {
            if let Some(running) = self.running.remove(&ticket) {
                self.end(ticket, running, Finish::Deadline, generator, told);
            }
        }
    }

    /// Begins what waits, as far as the batch and the step have room.
    fn join(
        &mut self,
        generator: &mut dyn Generator,
        tokens: &dyn Tokens,
        told: &mut Vec<(u64, Told)>,
    ) {
        let mut prompt_tokens = 0;
        while self.running.len() < self.limits.running && prompt_tokens < self.limits.prompt_tokens
        {
            let Some(Waiting { ticket, prompt, ask }) = self.waiting.pop_front() else { return };
            let Some((slot, adapter)) = self.slots.pin(ask.adapter.as_ref()) else {
                // It went while the request waited.
                told.push((ticket, Told::End(Err(self.unknown(ask.adapter.as_ref())))));
                continue;
            };
            prompt_tokens += prompt.len();
            let started = generator.start(ticket, slot, &prompt);
            let context = usize::try_from(generator.context()).unwrap_or(usize::MAX);
            let room = u32::try_from(context.saturating_sub(prompt.len())).unwrap_or(u32::MAX);
            self.running.insert(
                ticket,
                Running {
                    slot,
                    adapter,
                    sampler: Sampler::new(ask.sampling, ask.seed),
                    text: AnswerText::new(ask.stop),
                    tokens: 0,
                    prompt_tokens: u32::try_from(prompt.len()).unwrap_or(u32::MAX),
                    ids: prompt,
                    max_tokens: ask.max_tokens.min(room),
                    stream: ask.stream,
                    deadline: ask.deadline,
                },
            );
            match started {
                Ok(logits) => self.advance(ticket, &logits, generator, tokens, told),
                Err(error) => self.fail(ticket, error, generator, told),
            }
        }
    }

    /// Picks a sequence's next token and sees whether it goes on.
    fn advance(
        &mut self,
        ticket: u64,
        logits: &[f32],
        generator: &mut dyn Generator,
        tokens: &dyn Tokens,
        told: &mut Vec<(u64, Told)>,
    ) {
        let Some(mut running) = self.running.remove(&ticket) else { return };
        match running.advance(logits, self.limits.answer_bytes, tokens) {
            Ok((piece, finish)) => {
                if running.stream && !piece.is_empty() {
                    told.push((ticket, Told::Piece(piece, running.adapter.clone())));
                }
                match finish {
                    None => drop(self.running.insert(ticket, running)),
                    Some(finish) => self.end(ticket, running, finish, generator, told),
                }
            }
            Err(error) => {
                self.running.insert(ticket, running);
                self.fail(ticket, error, generator, told);
            }
        }
    }

    fn fail(
        &mut self,
        ticket: u64,
        error: LearnError,
        generator: &mut dyn Generator,
        told: &mut Vec<(u64, Told)>,
    ) {
        if let Some(running) = self.running.remove(&ticket) {
            self.slots.release(running.slot);
            generator.end(ticket);
            told.push((ticket, Told::End(Err(error.into()))));
        }
    }

    /// Gives up a sequence's slot and memory, and tells what is left of its answer.
    fn end(
        &mut self,
        ticket: u64,
        mut running: Running,
        finish: Finish,
        generator: &mut dyn Generator,
        told: &mut Vec<(u64, Told)>,
    ) {
        generator.end(ticket);
        self.slots.release(running.slot);
        let rest = running.text.finish();
        if running.stream && !rest.is_empty() {
            told.push((ticket, Told::Piece(rest, running.adapter.clone())));
        }
        let generated = Generated {
            text: running.text.text().to_owned(),
            finish,
            adapter: Some(running.adapter),
            tokens: running.tokens,
            prompt_tokens: running.prompt_tokens,
        };
        told.push((ticket, Told::End(Ok(generated))));
    }

    fn unknown(&self, wanted: Option<&AdapterId>) -> GenerateError {
        let held: Vec<String> = self.slots.held().iter().map(ToString::to_string).collect();
        let wanted = wanted.map_or_else(|| "latest".to_owned(), ToString::to_string);
        GenerateError::UnknownAdapter { wanted, held: held.join(", ") }
    }
}

impl Waiting {
    fn ended(self, finish: Finish) -> Told {
        let prompt_tokens = u32::try_from(self.prompt.len()).unwrap_or(u32::MAX);
        let text = String::new();
        Told::End(Ok(Generated { text, finish, adapter: None, tokens: 0, prompt_tokens }))
    }
}

impl Running {
    fn last(&self) -> u32 {
        self.ids.last().copied().unwrap_or_default()
    }

    /// Takes one more token: the text that it made certain, and the end if this is it.
    fn advance(
        &mut self,
        logits: &[f32],
        answer_bytes: usize,
        tokens: &dyn Tokens,
    ) -> Result<(String, Option<Finish>), LearnError> {
        let token = self.sampler.pick(logits)?;
        if tokens.is_end(token) {
            return Ok((String::new(), Some(Finish::Stop)));
        }
        self.tokens += 1;
        self.ids.push(token);
        let piece = self.text.push(token, tokens)?;
        let finish = if piece.stopped {
            Some(Finish::Stop)
        } else if self.tokens >= self.max_tokens || self.text.escaped_bytes() >= answer_bytes {
            Some(Finish::Length)
        } else {
            None
        };
        Ok((piece.text, finish))
    }
}

fn wrong_count() -> LearnError {
    LearnError::Engine { engine: "generator", message: "not one answer for each sequence".into() }
}

#[cfg(test)]
#[path = "scheduler_tests.rs"]
mod tests;
