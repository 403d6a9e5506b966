//! Knowledge between models that write: what each would write next, at every token of the reference texts.
//!
//! A vocabulary has fifty thousand words, so of each place only the `top` likeliest are told, and the token that
//! really comes there:
//! ```text
//!   "bucket tooth missing"       place 2, after "bucket":   tooth 0.41  pin 0.22  teeth 0.09 ...   rest 0.06
//!   loss on the text = mean of -ln(share of the token that comes) over its places
//! ```
//! What is told is a distribution: shares of the words that are named, and one share for all others together.
//! The rest isn't given to the named ones: a model that hears its own words then would be
//! told to be surer than it is, while with a rest it is told nothing (a test says so). Each share is rounded down to
//! steps of 1/1024 nat, so what is told never sums to more than one.
//!
//! The loss that decides who teaches is reckoned from the very shares that would teach, and no member
//! says it in a word of its own: who claims to know a text well has to give the text's tokens the shares for it.
//! All that is compared is about the same tokens, so all have one tokenizer; words of another one can't be
//! aligned here.
//!
//! Called by `protocol/knowledge.rs` and the learners of models that write (`torch/text_lesson.rs`).

use super::{LearnError, Tensor, TensorSet, Texts};
use crate::ids::Digest;

/// Most words that are named a place.
pub const MAX_TOP: u16 = 512;
/// Most words that are named in all: 32 MiB before they are compressed.
pub const MAX_NAMED: usize = 1 << 22;

/// What a model says of the reference texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopLogits {
    top: usize,
    /// Tokens of each text.
    lengths: Vec<u32>,
    /// The texts' tokens, end to end: a place each.
    tokens: Vec<u32>,
    /// `[places]`: how unlikely the token of a place is, in [`STEP`]s.
    own: Vec<u16>,
    /// `[places, top]`: the words that are named, the likeliest first, of equal ones the lower id.
    ids: Vec<u32>,
    /// `[places, top]`: how unlikely each is.
    steps: Vec<u16>,
}

/// Texts as the ids of one tokenizer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReferenceTokens {
    /// The texts, each with a token at least.
    pub texts: Texts,
    /// Number of ids.
    pub vocab: u32,
    /// SHA-256 over the names of all ids.
    pub tokenizer: Digest,
}

impl ReferenceTokens {
    /// SHA-256 over lengths and ids: who reads the texts alike has the same.
    pub fn digest(&self) -> Digest {
        digest_of(&self.texts.lengths, &self.texts.tokens)
    }
}

/// What knowledge of this kind has to be like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TopShape {
    /// Words that are named a place.
    pub top: u16,
    /// Number of ids.
    pub vocab: u32,
    /// Number of texts.
    pub texts: u32,
    /// See [`ReferenceTokens::digest`].
    pub tokens: Digest,
}

impl TopShape {
    /// Whether words can be named so: some, and others left.
    pub fn is_sound(&self) -> bool {
        (1..=MAX_TOP).contains(&self.top)
            && (u32::from(self.top) + 2..=MAX_IDS).contains(&self.vocab)
    }
}

/// A place of a text as a teacher sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct TaughtPlace {
    /// `[top + 1]`: the words that are named and the token that comes; where it is named already it
    /// comes again, with a share of 0.
    pub ids: Vec<u32>,
    /// `[top + 1]`: their shares.
    pub shares: Vec<f32>,
    /// Share of all other words together.
    pub rest: f32,
}

impl TopLogits {
    /// Nothing said yet: each word is as unlikely as can be told.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`] without texts, for a text without tokens, and beyond [`MAX_TOP`] or [`MAX_NAMED`].
    pub fn silent(texts: &Texts, top: u16) -> Result<Self, LearnError> {
        let (lengths, tokens) = (texts.lengths.clone(), texts.tokens.clone());
        check_sizes(&lengths, tokens.len(), top)?;
        let places = tokens.len();
        let ids = (0..places).flat_map(|_| 0..u32::from(top)).collect();
        let top = usize::from(top);
        let (own, steps) = (vec![u16::MAX; places], vec![u16::MAX; places * top]);
        Ok(Self { top, lengths, tokens, own, ids, steps })
    }

    /// Takes down what a model foresees at a place: logarithms of its shares `[vocab]`.
    ///
    /// # Determinism
    /// Of equally likely words those with lower ids are named.
    /// # Errors
    /// [`LearnError::NotFinite`], [`LearnError::OutOfRange`] for a place that isn't there or too small a vocabulary.
    pub fn say(&mut self, place: usize, log_shares: &[f32]) -> Result<(), LearnError> {
        if let Some(index) = log_shares.iter().position(|z| !z.is_finite()) {
            return Err(LearnError::NotFinite { name: "logits of a reference text".into(), index });
        }
        let token = self.tokens.get(place).and_then(|token| usize::try_from(*token).ok());
        let own = token.and_then(|token| log_shares.get(token));
        let (Some(own), true) = (own, log_shares.len() > self.top + 1) else {
            let expected = format!("more than {} words, and a place that is there", self.top + 1);
            return Err(bad("words of a model", &expected, log_shares.len().to_string()));
        };
        let all = (0_u64..).zip(log_shares).map(|(id, z)| u64::from(steps_of(*z)) << 32 | id);
        let mut named: Vec<u64> = all.collect();
        named.select_nth_unstable(self.top);
        named.truncate(self.top);
        named.sort_unstable();
        let cells = place * self.top..(place + 1) * self.top;
        let ids = self.ids.get_mut(cells.clone()).into_iter().flatten();
        let steps = self.steps.get_mut(cells).into_iter().flatten();
        for ((id, step), word) in ids.zip(steps).zip(named) {
            *id = u32::try_from(word & u64::from(u32::MAX)).unwrap_or(u32::MAX);
            *step = u16::try_from(word >> 32).unwrap_or(u16::MAX);
        }
        if let Some(to) = self.own.get_mut(place) {
            *to = steps_of(*own);
        }
        Ok(())
    }

    /// Mean loss a token on each text, in nats.
    pub fn losses(&self) -> Vec<f64> {
        let mut rest = self.own.iter();
        let loss = |len: &u32| {
            let sum: f64 = rest.by_ref().take(*len as usize).map(|steps| nats_of(*steps)).sum();
            sum / f64::from((*len).max(1))
        };
        self.lengths.iter().map(loss).collect()
    }

    /// Takes over the other's words on each text on which its loss is lower.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`] when it speaks of other tokens, or names another number of words.
    /// # Source
    /// Fan et al. 2024, arXiv:2406.02224 (`FedMKT`): the side with the lower loss is the teacher.
    pub fn take_better(&mut self, other: &Self) -> Result<(), LearnError> {
        if (self.top, &self.lengths, &self.tokens) != (other.top, &other.lengths, &other.tokens) {
            let expected = "about the same tokens, with as many words a place";
            return Err(bad("top logits", expected, "others".into()));
        }
        let (mine, theirs) = (self.losses(), other.losses());
        let mut first = 0;
        for ((len, mine), theirs) in self.lengths.iter().zip(mine).zip(theirs) {
            let places = first..first + *len as usize;
            if theirs < mine {
                let cells = places.start * self.top..places.end * self.top;
                copy(&mut self.own, &other.own, places.clone());
                copy(&mut self.ids, &other.ids, cells.clone());
                copy(&mut self.steps, &other.steps, cells);
            }
            first = places.end;
        }
        Ok(())
    }

    /// A place as it is taught.
    pub fn place(&self, at: usize) -> Option<TaughtPlace> {
        let (token, own) = (*self.tokens.get(at)?, *self.own.get(at)?);
        let cells = at.checked_mul(self.top)?..(at + 1).checked_mul(self.top)?;
        let (named, steps) = (self.ids.get(cells.clone())?, self.steps.get(cells)?);
        let mut ids = named.to_vec();
        let mut shares: Vec<f64> = steps.iter().map(|steps| (-nats_of(*steps)).exp()).collect();
        shares.push(if named.contains(&token) { 0.0 } else { (-nats_of(own)).exp() });
        ids.push(token);
        let rest = (1.0 - shares.iter().sum::<f64>()).max(0.0);
        let shares = shares.into_iter().map(super::narrow).collect();
        Some(TaughtPlace { ids, shares, rest: super::narrow(rest) })
    }

    /// Words that are named a place.
    pub fn top(&self) -> usize {
        self.top
    }

    /// Whether it speaks of these texts.
    pub fn is_about(&self, texts: &Texts) -> bool {
        (&self.lengths, &self.tokens) == (&texts.lengths, &texts.tokens)
    }

    /// SHA-256 of all that is said.
    pub fn digest(&self) -> Digest {
        let mut bytes = digest_of(&self.lengths, &self.tokens).0.to_vec();
        bytes.extend(self.ids.iter().flat_map(|id| id.to_le_bytes()));
        bytes.extend(self.own.iter().chain(&self.steps).flat_map(|steps| steps.to_le_bytes()));
        Digest::of(&bytes)
    }

    /// As tensors of whole numbers, each of which an f32 holds exactly. Steps are told as what they are more than those of
    /// the word before: small numbers, which compress.
    ///
    /// # Errors
    /// Those of [`TensorSet::new`].
    pub fn to_set(&self) -> Result<TensorSet, LearnError> {
        let (places, top) = (self.tokens.len(), self.top);
        let gaps = self.steps.chunks(top.max(1)).flat_map(|row| {
            let before = std::iter::once(0).chain(row.iter().copied());
            row.iter().zip(before).map(|(steps, before)| steps.saturating_sub(before))
        });
        let tensor = |name: &str, shape, data| Tensor { name: name.into(), shape, data };
        TensorSet::new(vec![
            tensor(LENGTHS, vec![self.lengths.len()], floats(&self.lengths)),
            tensor(TOKENS, vec![places], floats(&self.tokens)),
            tensor(OWN, vec![places], self.own.iter().map(|steps| f32::from(*steps)).collect()),
            tensor(IDS, vec![places, top], floats(&self.ids)),
            tensor(GAPS, vec![places, top], gaps.map(f32::from).collect()),
        ])
    }

    /// Reads what [`TopLogits::to_set`] made; the numbers may come from an enemy.
    ///
    /// # Errors
    /// [`LearnError::LayoutMismatch`] for other tensors, [`LearnError::OutOfRange`] where a number isn't whole or beyond its
    /// bound, the tokens are others than the plan's, words aren't in their one order, come twice or sum to more than
    /// one, or a token's own share contradicts them.
    pub fn from_set(set: &TensorSet, shape: &TopShape) -> Result<Self, LearnError> {
        let top = usize::from(shape.top);
        let tokens = whole(set, TOKENS, shape.vocab)?;
        let places = tokens.len();
        let lengths = whole(set, LENGTHS, u32::MAX)?;
        check_sizes(&lengths, places, shape.top)?;
        if u32::try_from(lengths.len()) != Ok(shape.texts)
            || digest_of(&lengths, &tokens) != shape.tokens
        {
            return Err(bad("tokens of the reference texts", "those of the plan", "others".into()));
        }
        let matrix = |name: &str| set.get(name).is_some_and(|t| t.shape == [places, top]);
        if set.tensors().len() != 5 || !matrix(IDS) || !matrix(GAPS) {
            let (expected, actual) = (format!("[{places}, {top}]"), "another".into());
            return Err(LearnError::LayoutMismatch { name: "top".into(), expected, actual });
        }
        let ids = whole(set, IDS, shape.vocab)?;
        let most = u32::from(u16::MAX) + 1;
        let (own, gaps) = (whole(set, OWN, most)?, whole(set, GAPS, most)?);
        if own.len() != places {
            return Err(bad("own shares", &places.to_string(), own.len().to_string()));
        }
        let short = |steps: u32| u16::try_from(steps).ok();
        let mut steps = Vec::with_capacity(gaps.len());
        for row in gaps.chunks(top) {
            let mut sum = 0_u32;
            for gap in row {
                sum = sum.saturating_add(*gap);
                let told = short(sum).ok_or_else(|| {
                    bad("steps of a word", &format!("up to {}", u16::MAX), sum.to_string())
                })?;
                steps.push(told);
            }
        }
        let own = own.into_iter().filter_map(short).collect();
        let said = Self { top, lengths, tokens, own, ids, steps };
        said.check_rows()?;
        Ok(said)
    }

    fn check_rows(&self) -> Result<(), LearnError> {
        let rows = self.ids.chunks(self.top).zip(self.steps.chunks(self.top));
        let mut seen = Vec::with_capacity(self.top);
        for ((ids, steps), (token, own)) in rows.zip(self.tokens.iter().zip(&self.own)) {
            let words = || steps.iter().zip(ids);
            if !words().zip(words().skip(1)).all(|(a, b)| a < b) {
                let expected = "the likeliest first, of equal ones the lower id";
                return Err(bad("words of a place", expected, "another order".into()));
            }
            seen.clear();
            seen.extend_from_slice(ids);
            seen.sort_unstable();
            if let Some(id) = seen.iter().zip(seen.iter().skip(1)).find(|(a, b)| a == b) {
                return Err(bad("words of a place", "each once", format!("{} twice", id.0)));
            }
            let named = words().find(|(_, id)| *id == token);
            let agrees = match named {
                Some((steps, _)) => steps == own,
                None => words().next_back().is_none_or(|last| last < (own, token)),
            };
            if !agrees {
                let expected = "what the words that are named leave to it";
                return Err(bad("share of a token", expected, format!("{own} steps")));
            }
            let own = if named.is_some() { 0.0 } else { (-nats_of(*own)).exp() };
            let mass = own + steps.iter().map(|steps| (-nats_of(*steps)).exp()).sum::<f64>();
            if mass > 1.0 + SLACK {
                return Err(bad("shares of a place", "1 in all at most", mass.to_string()));
            }
        }
        Ok(())
    }
}

/// How unlikely a word is, rounded up: its share never grows by it.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a cast saturates")]
fn steps_of(log_share: f32) -> u16 {
    (-log_share / STEP).ceil() as u16
}

fn nats_of(steps: u16) -> f64 {
    f64::from(steps) * f64::from(STEP)
}

fn copy<T: Copy>(to: &mut [T], from: &[T], range: std::ops::Range<usize>) {
    if let (Some(to), Some(from)) = (to.get_mut(range.clone()), from.get(range)) {
        to.copy_from_slice(from);
    }
}

#[expect(clippy::cast_precision_loss, reason = "below 2^24: ids, and lengths of texts")]
fn floats(numbers: &[u32]) -> Vec<f32> {
    numbers.iter().map(|number| *number as f32).collect()
}

/// The values of a tensor, whole numbers below `bound`.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked before")]
#[expect(clippy::cast_precision_loss, reason = "bounds are powers of two, or below 2^24")]
fn whole(set: &TensorSet, name: &str, bound: u32) -> Result<Vec<u32>, LearnError> {
    let tensor = set.get(name).ok_or_else(|| {
        let (expected, actual) = ("a tensor".into(), "none".into());
        LearnError::LayoutMismatch { name: name.into(), expected, actual }
    })?;
    let bound = (bound as f32).min(EXACT);
    match tensor.data.iter().find(|x| !(**x >= 0.0 && **x < bound && x.fract() == 0.0)) {
        Some(x) => Err(bad("number", &format!("whole, below {bound}"), format!("{x} in {name}"))),
        None => Ok(tensor.data.iter().map(|x| *x as u32).collect()),
    }
}

fn check_sizes(lengths: &[u32], places: usize, top: u16) -> Result<(), LearnError> {
    let sum = lengths.iter().map(|len| u64::from(*len)).sum::<u64>();
    if lengths.is_empty() || lengths.contains(&0) || u64::try_from(places) != Ok(sum) {
        let actual = format!("{} texts of {places} tokens", lengths.len());
        return Err(bad("reference texts", "some, each with its tokens", actual));
    }
    if !(1..=MAX_TOP).contains(&top) {
        return Err(bad("words a place", &format!("1 to {MAX_TOP}"), top.to_string()));
    }
    let named = places.saturating_mul(usize::from(top));
    if named > MAX_NAMED {
        let expected = format!("{MAX_NAMED} in all: take fewer texts, or knowledge.top_logits");
        return Err(bad("words that are named", &expected, named.to_string()));
    }
    Ok(())
}

fn digest_of(lengths: &[u32], tokens: &[u32]) -> Digest {
    let mut bytes = format!("gaisnet reference tokens 1\n{}\n", lengths.len()).into_bytes();
    bytes.extend(lengths.iter().chain(tokens).flat_map(|number| number.to_le_bytes()));
    Digest::of(&bytes)
}

fn bad(what: &'static str, expected: &str, actual: String) -> LearnError {
    LearnError::OutOfRange { what, expected: expected.into(), actual }
}

const LENGTHS: &str = "text.lengths";
const TOKENS: &str = "text.tokens";
const OWN: &str = "text.own";
const IDS: &str = "top.ids";
const GAPS: &str = "top.gaps";

/// What a share is told to, in nats: one part in a thousand of it.
const STEP: f32 = 1.0 / 1024.0;
/// What rounding of logarithms in f32 may add to a sum of shares.
const SLACK: f64 = 1e-4;
/// Whole numbers below are exact in an f32.
const EXACT: f32 = 16_777_216.0;
/// Most ids of a vocabulary.
const MAX_IDS: u32 = 1 << 24;

#[cfg(test)]
#[path = "top_logits_tests.rs"]
mod tests;
