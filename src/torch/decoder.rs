//! Writing text, a token or a few a sequence at a time, without libtorch: the same model on slices.
//!
//! ```text
//! ids -> embed -> [ norm -> q k v -> turn -> attention over the cache -> o -> + -> norm -> mlp -> + ] -> norm -> head
//! ```
//! A prompt goes through libtorch ([`LanguageModel`](super::language::LanguageModel)), which is made for many
//! tokens; then a [`Decoder`] goes on from its keys and values. It is made of a model's own layers and borrows
//! their matrices. Rows of one step share each matrix's way through memory; none sees another. Runs in the
//! thread pool of its caller.
//!
//! Decoders of one base hold the same matrices, so that sequences of several adapters share the base's products:
//! only what an adapter adds or replaces is computed for its rows alone (`shared_rows.rs`). Adapters with bottleneck
//! layers stay with libtorch, and so do GPUs.

use rayon::prelude::*;

use super::few_rows::{dot, times};
use super::frozen::Frozen;
use super::shared_rows::Shared;
use crate::learn::LearnError;

/// A language model for few tokens.
#[derive(Debug)]
pub struct Decoder {
    pub(super) embed: Matrix,
    pub(super) layers: Vec<DecoderLayer>,
    pub(super) norm: Gain,
    pub(super) head: Matrix,
    /// `[context, head_width]`, as in [`super::rope`].
    pub(super) cos: Matrix,
    pub(super) sin: Matrix,
}

/// A block.
#[derive(Debug)]
pub(super) struct DecoderLayer {
    pub(super) norm1: Gain,
    pub(super) attention: DecoderAttention,
    pub(super) norm2: Gain,
    pub(super) gate_up: Product,
    pub(super) down: Product,
}

/// Root mean square norm.
#[derive(Debug)]
pub(super) struct Gain {
    pub(super) weight: Vec<f32>,
    pub(super) eps: f32,
}

/// `[out, input]`
#[derive(Debug)]
pub(super) struct Matrix {
    pub(super) numbers: Frozen,
    pub(super) input: usize,
}

/// Linear layers of one input, with what an adapter changes of each.
#[derive(Debug)]
pub(super) struct Product {
    pub(super) weight: Matrix,
    pub(super) bias: Option<Vec<f32>>,
    pub(super) changes: Vec<DecoderChange>,
}

/// See [`super::linear`].
#[derive(Debug)]
pub(super) struct DecoderChange {
    /// Outputs of this layer.
    pub(super) width: usize,
    pub(super) low_rank: Option<(Matrix, Matrix, f32)>,
    pub(super) ia3_in: Option<Vec<f32>>,
    pub(super) ia3_out: Option<Vec<f32>>,
}

#[derive(Debug)]
pub(super) struct DecoderAttention {
    pub(super) qkv: Product,
    pub(super) out: Product,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_width: usize,
}

/// Keys and values of one sequence, `[tokens, head_width]` for each layer and head of keys.
#[derive(Debug, Default)]
pub struct RowCache {
    pub(super) layers: Vec<Vec<HeadCache>>,
    pub(super) tokens: usize,
}

#[derive(Debug, Default)]
pub(super) struct HeadCache {
    pub(super) keys: Vec<f32>,
    pub(super) values: Vec<f32>,
}

/// What a step adds to one sequence.
#[derive(Debug)]
pub struct Continue<'a> {
    /// The model; those of one step are made of one base.
    pub decoder: &'a Decoder,
    /// The sequence so far.
    pub cache: &'a mut RowCache,
    /// What comes next in it.
    pub tokens: &'a [u32],
}

/// Appends tokens to sequences; gives the logits `[vocab]` after each of them, sequence by sequence.
///
/// # Determinism
/// Each sequence gets the numbers that it gets alone, whatever adapters the others have.
/// # Errors
/// [`LearnError::OutOfRange`] when a sequence is at the context's end, a token isn't in the vocabulary, or two
/// models have other bases: nothing was appended then.
pub fn extend(sequences: &mut [Continue<'_>]) -> Result<Vec<Vec<f32>>, LearnError> {
    let mut x = Vec::new();
    let mut rows = Vec::new();
    let mut models = Vec::with_capacity(sequences.len());
    for (owner, sequence) in sequences.iter().enumerate() {
        let decoder = sequence.decoder;
        same_base(decoder, models.first().map_or(decoder, |(first, _)| *first))?;
        let (layers, cached) = (decoder.layers.len(), sequence.cache.layers.len());
        if layers != cached {
            return Err(out_of_range("layers of a sequence", layers.to_string(), cached));
        }
        match models.last_mut() {
            Some((last, rows)) if std::ptr::eq(*last, decoder) => *rows += sequence.tokens.len(),
            _ => models.push((decoder, sequence.tokens.len())),
        }
        for (position, token) in (sequence.cache.tokens..).zip(sequence.tokens) {
            let (embedded, turn) = decoder.enter(*token, position)?;
            x.extend(embedded);
            rows.push((owner, turn));
        }
    }
    let models = Shared::new(models);
    let layers = sequences.first().map_or(0, |sequence| sequence.decoder.layers.len());
    for at in 0..layers {
        let Some(layer) = models.of(|model: &Decoder| model.layers.get(at)) else { break };
        let caches = sequences.iter_mut().filter_map(|of| of.cache.layers.get_mut(at));
        let mut heads: Vec<&mut [HeadCache]> = caches.map(Vec::as_mut_slice).collect();
        let normed = layer.part(|layer| &layer.norm1).norm(&x);
        let attention = layer.part(|layer| &layer.attention);
        add(&mut x, &attention.attend(&normed, &rows, &mut heads));
        let normed = layer.part(|layer| &layer.norm2).norm(&x);
        let both = layer.part(|layer| &layer.gate_up).product(&normed);
        let down = layer.part(|layer| &layer.down);
        add(&mut x, &down.product(&swiglu(&both, down.first().map_or(1, |d| d.weight.input))));
    }
    for sequence in sequences.iter_mut() {
        sequence.cache.tokens += sequence.tokens.len();
    }
    let normed = models.part(|model| &model.norm).norm(&x);
    let head = models.part(|model| &model.head);
    let logits = head.times(&normed);
    let vocab = head.first().map_or(1, |head| head.rows().max(1));
    Ok(logits.chunks_exact(vocab).map(<[f32]>::to_vec).collect())
}

/// Cosines and sines of a position.
type Turn = (Vec<f32>, Vec<f32>);

impl Decoder {
    /// A token's row, and how its heads turn.
    fn enter(&self, token: u32, position: usize) -> Result<(Vec<f32>, Turn), LearnError> {
        let row = usize::try_from(token).unwrap_or(usize::MAX);
        let (embedded, cos, sin) =
            (self.embed.row(row), self.cos.row(position), self.sin.row(position));
        if embedded.is_empty() {
            return Err(out_of_range("token", format!("below {}", self.embed.rows()), row));
        }
        if cos.is_empty() {
            let expected = format!("at most {}", self.cos.rows());
            return Err(out_of_range("tokens of a sequence", expected, position + 1));
        }
        Ok((embedded, (cos, sin)))
    }
}

/// Models whose rows may stand side by side.
fn same_base(a: &Decoder, b: &Decoder) -> Result<(), LearnError> {
    let sizes = |of: &Decoder| {
        let first = of.layers.first().map(|layer| {
            let DecoderLayer { attention, gate_up, .. } = layer;
            let heads = (attention.heads, attention.kv_heads, attention.head_width);
            (heads, gate_up.weight.rows())
        });
        (of.layers.len(), of.embed.input, of.head.rows(), first)
    };
    if std::ptr::eq(a, b) || sizes(a) == sizes(b) {
        return Ok(());
    }
    Err(out_of_range(
        "layers of a model",
        format!("{}, of one base", b.layers.len()),
        a.layers.len(),
    ))
}

impl RowCache {
    /// Forgets the last tokens.
    pub fn take_back(&mut self, count: usize) {
        let kept = self.tokens.saturating_sub(count);
        for head in self.layers.iter_mut().flatten() {
            let width = head.keys.len() / self.tokens.max(1);
            head.keys.truncate(kept * width);
            head.values.truncate(kept * width);
        }
        self.tokens = kept;
    }
}

impl Matrix {
    /// Of the matrix itself.
    pub(super) fn rows(&self) -> usize {
        self.numbers.numbers().len() / self.input.max(1)
    }

    /// Empty where there is no such row.
    fn row(&self, row: usize) -> Vec<f32> {
        let start = row.saturating_mul(self.input);
        self.numbers.numbers().part(start, start.saturating_add(self.input)).to_vec()
    }

    pub(super) fn times(&self, x: &[f32]) -> Vec<f32> {
        times(x, self.numbers.numbers(), self.input)
    }
}

impl Gain {
    #[expect(clippy::cast_precision_loss, reason = "a width is small")]
    pub(super) fn forward(&self, x: &[f32]) -> Vec<f32> {
        let width = self.weight.len().max(1);
        let mut y = Vec::with_capacity(x.len());
        for row in x.chunks_exact(width) {
            let scale = 1.0 / (dot(row, row) / width as f32 + self.eps).sqrt();
            y.extend(row.iter().zip(&self.weight).map(|(x, weight)| x * scale * weight));
        }
        y
    }
}

impl Product {
    /// Makes of the matrix's product `y` with `x` what this model's layers give: `[rows, out]`, the layers'
    /// outputs side by side.
    pub(super) fn finish(&self, x: &[f32], y: &mut [f32]) {
        let out = self.weight.rows().max(1);
        if let Some(bias) = &self.bias {
            for row in y.chunks_exact_mut(out) {
                add(row, bias);
            }
        }
        let mut start = 0;
        for change in &self.changes {
            change.apply(self, x, y, start, out);
            start += change.width;
        }
    }
}

impl DecoderChange {
    /// Changes this layer's outputs, those from `start` on in each row of `y` `[rows, out]`.
    fn apply(&self, of: &Product, x: &[f32], y: &mut [f32], start: usize, out: usize) {
        let end = start + self.width;
        let mut own = None;
        if let Some(scale) = &self.ia3_in {
            // Its input isn't that of the others.
            let mut scaled = x.to_vec();
            for row in scaled.chunks_exact_mut(scale.len().max(1)) {
                multiply(row, scale);
            }
            let input = of.weight.input;
            let weight = of.weight.numbers.numbers().part(start * input, end * input);
            let bias = of.bias.as_ref().and_then(|bias| bias.get(start..end));
            let new = times(&scaled, weight, input);
            for (row, new) in y.chunks_exact_mut(out).zip(new.chunks_exact(self.width)) {
                let Some(row) = row.get_mut(start..end) else { continue };
                row.copy_from_slice(new);
                add(row, bias.unwrap_or_default());
            }
            own = Some(scaled);
        }
        if let Some((a, b, scaling)) = &self.low_rank {
            let mut hidden = a.times(own.as_deref().unwrap_or(x));
            for value in &mut hidden {
                *value *= scaling;
            }
            let more = b.times(&hidden);
            for (row, more) in y.chunks_exact_mut(out).zip(more.chunks_exact(self.width)) {
                add(row.get_mut(start..end).unwrap_or_default(), more);
            }
        }
        if let Some(scale) = &self.ia3_out {
            for row in y.chunks_exact_mut(out) {
                multiply(row.get_mut(start..end).unwrap_or_default(), scale);
            }
        }
    }
}

impl Shared<'_, DecoderAttention> {
    /// `[rows, d]` to the same shape. Each row has the place of its sequence in `caches`, and its turn.
    fn attend(
        &self,
        x: &[f32],
        rows: &[(usize, Turn)],
        caches: &mut [&mut [HeadCache]],
    ) -> Vec<f32> {
        let Some(DecoderAttention { heads, kv_heads, head_width, .. }) = self.first() else {
            return Vec::new();
        };
        let (heads, kv_heads, width) = (*heads, *kv_heads, *head_width);
        let all = self.part(|attention| &attention.qkv).product(x);
        let row_width = (heads + 2 * kv_heads) * width;
        let group = heads / kv_heads.max(1) * width;
        let mut asked = Vec::with_capacity(rows.len() * kv_heads);
        for (row, (owner, (cos, sin))) in all.chunks_exact(row_width).zip(rows) {
            let Some(cache) = caches.get_mut(*owner) else { continue };
            let turned = |head: &[f32]| turn(head, cos, sin);
            let queries: Vec<f32> = row.chunks_exact(width).take(heads).flat_map(turned).collect();
            let keys = row.chunks_exact(width).skip(heads).take(kv_heads);
            let values = row.chunks_exact(width).skip(heads + kv_heads);
            let queries = queries.chunks_exact(group);
            for (at, ((head, queries), (key, value))) in
                cache.iter_mut().zip(queries).zip(keys.zip(values)).enumerate()
            {
                head.keys.extend(turned(key));
                head.values.extend(value);
                // What later rows append isn't for this one.
                asked.push((queries.to_vec(), *owner, at, head.keys.len()));
            }
        }
        let caches: &[&mut [HeadCache]] = caches;
        let mixed = asked.par_iter().map(|(queries, owner, at, len)| {
            let head = caches.get(*owner).and_then(|heads| heads.get(*at));
            head.map(|head| head.mix(queries, width, *len)).unwrap_or_default()
        });
        let mixed = mixed.collect::<Vec<_>>().concat();
        self.part(|attention| &attention.out).product(&mixed)
    }
}

impl HeadCache {
    /// Softmax attention of the queries `[heads, width]` that share these keys, of which the first `len`
    /// numbers count; gives the same shape.
    #[expect(clippy::cast_precision_loss, reason = "a width is small")]
    fn mix(&self, queries: &[f32], width: usize, len: usize) -> Vec<f32> {
        let scale = 1.0 / (width as f32).sqrt();
        let keys = self.keys.get(..len).unwrap_or_default();
        let mut mixed = Vec::with_capacity(queries.len());
        for query in queries.chunks_exact(width) {
            let mut shares: Vec<f32> =
                keys.chunks_exact(width).map(|key| dot(query, key) * scale).collect();
            let most = shares.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let mut sum = 0.0;
            for share in &mut shares {
                *share = (*share - most).exp();
                sum += *share;
            }
            let mut out = vec![0.0_f32; width];
            for (share, value) in shares.iter().zip(self.values.chunks_exact(width)) {
                for (out, value) in out.iter_mut().zip(value) {
                    *out += share * value;
                }
            }
            mixed.extend(out.iter().map(|value| value / sum));
        }
        mixed
    }
}

/// A head's values at their position: value i turns with value i + width/2.
fn turn(head: &[f32], cos: &[f32], sin: &[f32]) -> Vec<f32> {
    let (first, second) = head.split_at(head.len() / 2);
    let swapped = second.iter().chain(first);
    let turned = head.iter().zip(swapped).zip(cos.iter().zip(sin));
    turned.map(|((value, other), (cos, sin))| value * cos + other * sin).collect()
}

/// `silu(gate) * up` of rows that hold both side by side.
fn swiglu(both: &[f32], width: usize) -> Vec<f32> {
    let mut y = Vec::with_capacity(both.len() / 2);
    for row in both.chunks_exact((2 * width).max(1)) {
        let (gate, up) = row.split_at(width);
        y.extend(gate.iter().zip(up).map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up));
    }
    y
}

fn add(to: &mut [f32], more: &[f32]) {
    for (to, more) in to.iter_mut().zip(more) {
        *to += more;
    }
}

fn multiply(to: &mut [f32], by: &[f32]) {
    for (to, by) in to.iter_mut().zip(by) {
        *to *= by;
    }
}

fn out_of_range(what: &'static str, expected: String, actual: usize) -> LearnError {
    LearnError::OutOfRange { what, expected, actual: actual.to_string() }
}
