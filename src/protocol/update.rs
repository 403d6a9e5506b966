//! The arithmetic between wire and `learn`: packing deltas, checking them, combining them.
//!
//! Everything here is a pure function of its arguments, so that a crash in the middle of a round
//! combines to the same bytes again.

use std::collections::BTreeMap;

use super::effect::{CombineInput, CombineJob, Weighed, Work};
use super::guard::{self, Guard};
use super::knowledge;
use crate::ids::{Digest, NodeId, UpdateId};
use crate::learn::{
    ClassLogits, ErrorFeedback, LOGIT_BOUND, Layout, LearnError, LoraAverage, NormClip, Quantizer,
    Share, Tensor, TensorSet, Width, average_class_logits, effect_norm, weights_up_to,
};
use crate::wire::{
    ClassSummary, CodecError, Coding, MAX_UPDATE_BYTES, PackedSet, PackedTensor, Plan,
};

/// A relay passes its members' factors on as they are up to this rank, then truncates to it.
pub const MAX_STACKED_RANK: usize = 64;

/// Examples that one contribution may claim: more than any plant records, and sums of them fit.
pub const MAX_EXAMPLES: u64 = 1 << 40;

/// Longest delta (Euclidean): beyond any that training makes, and products of two stay finite.
const MAX_NORM: f64 = 1e6;

/// Why an update can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UpdateError {
    /// The bytes.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The numbers.
    #[error(transparent)]
    Learn(#[from] LearnError),
    /// A blob that a job names isn't there.
    #[error("blob {0} is missing")]
    Missing(Digest),
}

impl UpdateError {
    /// A short word for metrics, receipts and the ledger.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Codec(error) => error.kind(),
            Self::Learn(error) => error.kind(),
            Self::Missing(_) => "blob_missing",
        }
    }
}

/// Packs a set as it travels.
///
/// # Errors
/// [`UpdateError`] when a value isn't finite or a bound of the wire is broken.
pub fn pack(set: &TensorSet, coding: Coding, block: u16) -> Result<Vec<u8>, UpdateError> {
    set.check_finite()?;
    let data = match quantizer(coding, block)? {
        None => set.tensors().iter().flat_map(|t| &t.data).flat_map(|x| x.to_le_bytes()).collect(),
        Some(quantizer) => quantizer.encode(set)?,
    };
    Ok(packed(set, coding, block, data)?.to_bytes()?)
}

/// Unpacks what [`pack`] made; the bytes may come from an enemy.
///
/// # Errors
/// [`UpdateError`] tells what is wrong first.
pub fn unpack(bytes: &[u8]) -> Result<TensorSet, UpdateError> {
    let cap = usize::try_from(MAX_UPDATE_BYTES).unwrap_or(usize::MAX);
    let set = PackedSet::from_bytes(bytes, cap)?;
    let size = |d: &u32| usize::try_from(*d).unwrap_or(usize::MAX);
    let shape = |t: &PackedTensor| (t.name.clone(), t.shape.iter().map(size).collect());
    let layout = Layout(set.tensors.iter().map(shape).collect());
    let tensors = if let Some(quantizer) = quantizer(set.coding, set.block)? {
        quantizer.decode(&layout, &set.data)?
    } else {
        let mut floats = set.data.chunks_exact(4).map(|b| match b {
            [a, b, c, d] => f32::from_le_bytes([*a, *b, *c, *d]),
            _ => 0.0,
        });
        let mut tensors = Vec::with_capacity(layout.0.len());
        for (name, shape) in layout.0 {
            // The wire's own check has compared all lengths.
            let data = floats.by_ref().take(shape.iter().product()).collect();
            tensors.push(Tensor { name, shape, data });
        }
        TensorSet::new(tensors)?
    };
    tensors.check_finite()?;
    Ok(tensors)
}

/// Whether values can be written so: a block of a size that the coding takes.
pub fn can_code(coding: Coding, block: u16) -> bool {
    quantizer(coding, block).is_ok()
}

/// What was learned: `learned` less `start`, of one layout.
///
/// # Errors
/// [`UpdateError::Learn`] when the layouts differ.
pub fn difference(learned: &TensorSet, start: &TensorSet) -> Result<TensorSet, UpdateError> {
    learned.check_layout(&start.layout())?;
    Ok(combine_values(learned, start, |a, b| a - b))
}

/// The tensors of a packed set for whose names `keep` holds, packed in f32.
///
/// # Errors
/// [`UpdateError`].
pub fn part(bytes: &[u8], keep: impl Fn(&str) -> bool) -> Result<Vec<u8>, UpdateError> {
    pack(&unpack(bytes)?.filtered(keep), Coding::F32, 0)
}

/// Checks a contribution's delta against the layout of the model's adapter.
///
/// A relay's stack may have factors of another rank, up to a bound; all else must be equal.
///
/// # Errors
/// [`UpdateError`].
pub fn check(bytes: &[u8], layout: &Layout, stacked: bool) -> Result<(), UpdateError> {
    let set = unpack(bytes)?;
    let norm = set.norm();
    if norm > MAX_NORM {
        return Err(UpdateError::Learn(LearnError::OutOfRange {
            what: "norm of a delta",
            expected: format!("at most {MAX_NORM}"),
            actual: norm.to_string(),
        }));
    }
    if !stacked {
        return Ok(set.check_layout(layout)?);
    }
    let mut expected = layout.clone();
    for ((name, shape), tensor) in expected.0.iter_mut().zip(set.tensors()) {
        let Some(at) = rank_axis(name) else { continue };
        if let (Some(rank), Some(given)) = (shape.get_mut(at), tensor.shape.get(at))
            && (1..=MAX_STACKED_RANK).contains(given)
        {
            *rank = *given;
        }
    }
    Ok(set.check_layout(&expected)?)
}

/// Packs what a device has learned: trained less start, in the coding that the plan asks for.
///
/// Gives the bytes, and what the coding left out for the next round. The remainder of LoRA factors
/// is void there, since the server's SVD turns their basis; that of dense tensors is kept.
///
/// # Errors
/// [`UpdateError`].
pub fn pack_delta(
    start: &TensorSet,
    trained: &TensorSet,
    plan: &Plan,
    residual: Option<&[u8]>,
) -> Result<(Vec<u8>, Option<Vec<u8>>), UpdateError> {
    let delta = difference(trained, start)?;
    let Some(quantizer) = quantizer(plan.coding, plan.block)? else {
        return Ok((pack(&delta, plan.coding, plan.block)?, None));
    };
    let mut feedback = match residual.map(unpack).transpose()? {
        Some(left) if left.check_layout(&delta.layout()).is_ok() => ErrorFeedback::resume(left)?,
        _ => ErrorFeedback::new(&delta.layout()),
    };
    feedback.reset_lora();
    let data = feedback.encode(&quantizer, &delta)?;
    let bytes = packed(&delta, plan.coding, plan.block, data)?.to_bytes()?;
    Ok((bytes, Some(pack(feedback.residual(), Coding::F32, 0)?)))
}

/// Combines the contributions of a round; a pure function of the job and the blobs that it names.
///
/// The root makes the next adapter. A relay makes a stack: factors side by side with their weights
/// in them, everything else as the difference from what was offered. What a delta does is clipped to
/// the usual length first: a clipped one counts as the same step, only shorter.
///
/// # Determinism
/// f64 sums in the order of senders; sequential kernels; the same bytes on each run.
/// # Errors
/// [`UpdateError`].
/// # Source
/// Weights: arXiv:1602.05629 and, for late ones, arXiv:2106.06639; products: arXiv:2402.11505.
pub fn combine(
    job: &CombineJob,
    blob: &dyn Fn(&Digest) -> Option<Vec<u8>>,
) -> Result<Work, UpdateError> {
    if let Some(plan) = &job.plan.knowledge {
        return knowledge::combine(job, plan, blob);
    }
    let set = |digest: &Digest| unpack(&blob(digest).ok_or(UpdateError::Missing(*digest))?);
    let with_delta: Vec<(&CombineInput, Digest)> =
        job.inputs.iter().filter_map(|input| Some((input, input.delta?))).collect();
    let mut weighed = Vec::new();
    let update = if with_delta.is_empty() {
        None
    } else {
        let global = set(&job.global)?;
        let mut sum = LoraAverage::new(f64::from(job.plan.alpha), &global)?;
        let shares = with_delta.iter().map(|(input, _)| (key(input), share(input))).collect();
        let weights = weights_up_to(job.bounds.max_share, &shares)?;
        // What a member has learned, and from where unless from what was offered.
        let learned = |(input, delta): &(&CombineInput, Digest)| {
            let older = (input.base != job.global).then(|| set(&input.base)).transpose()?;
            let base = older.as_ref().unwrap_or(&global);
            let delta = match &input.back {
                Some(back) => joined(&set(delta)?, &set(back)?)?,
                None => set(delta)?,
            };
            let adapter = if input.whole {
                delta.check_layout(&base.layout())?;
                delta
            } else {
                adapter_of(delta, base, input.stacked)?
            };
            Ok::<_, UpdateError>((adapter, older))
        };
        // The bound has to be known before anything is added, so each blob is read twice.
        let mut clip = NormClip::resume(&job.norms)?;
        let mut norms = Vec::with_capacity(with_delta.len());
        for member in &with_delta {
            let (adapter, older) = learned(member)?;
            let base = older.as_ref().unwrap_or(&global);
            let norm = effect_norm(f64::from(job.plan.alpha), &adapter, base)?;
            clip.observe(norm)?;
            norms.push(norm);
        }
        for (member, norm) in with_delta.iter().zip(norms) {
            let (input, (adapter, older)) = (member.0, learned(member)?);
            let weight = weights.get(&key(input)).copied().unwrap_or(0.0);
            let clips = job.bounds.clip_norms && guard::stands(Guard::Norms);
            let factor = if clips { clip.factor(norm) } else { 1.0 };
            sum.add(weight * factor, &adapter, older.as_ref().unwrap_or(&global))?;
            let (sender, update) = key(input);
            weighed.push(Weighed { sender, update, norm, factor });
        }
        Some(if job.relay {
            let stack = sum.stack(MAX_STACKED_RANK)?.adapter;
            let coding = if job.plan.coding == Coding::F32 { Coding::F32 } else { Coding::Int8 };
            pack(&dense_differences(&stack, &global), coding, job.plan.block)?
        } else {
            let rank = usize::try_from(job.plan.rank).unwrap_or(usize::MAX);
            pack(&sum.truncate(rank)?.adapter, Coding::F32, 0)?
        })
    };
    let class_logits = combine_class_logits(&job.inputs)?.or_else(|| job.class_targets.clone());
    // What a site learned alone comes from the devices that are in the set anyway: it counts beside them only
    // where there is nothing else.
    let own: Vec<CombineInput> = job.inputs.iter().filter(|input| !input.whole).cloned().collect();
    let told = if own.is_empty() { &job.inputs } else { &own };
    let examples = told.iter().fold(0, |n: u64, input| n.saturating_add(input.num_examples));
    let devices = told.iter().fold(0, |n: u32, input| n.saturating_add(input.num_devices));
    Ok(Work {
        update,
        class_logits: class_logits.filter(|_| job.plan.class_logits),
        knowledge: None,
        num_examples: examples.min(MAX_EXAMPLES),
        num_devices: devices,
        steps: told.iter().map(|input| input.steps).min().unwrap_or(0),
        loss_first: mean_loss(told, examples, |input| input.loss_first),
        loss_last: mean_loss(told, examples, |input| input.loss_last),
        risk: highest_risk(told),
        residual: None,
        own: None,
        weighed,
    })
}

impl From<&ClassLogits> for ClassSummary {
    fn from(logits: &ClassLogits) -> Self {
        Self {
            mean_logits: logits.mean_logits.iter().flat_map(|x| x.to_le_bytes()).collect(),
            counts: logits.counts.clone(),
        }
    }
}

impl From<&ClassSummary> for ClassLogits {
    fn from(summary: &ClassSummary) -> Self {
        let float = |b: &[u8]| match b {
            [a, b, c, d] => f32::from_le_bytes([*a, *b, *c, *d]),
            _ => f32::NAN,
        };
        Self {
            mean_logits: summary.mean_logits.chunks(4).map(float).collect(),
            counts: summary.counts.clone(),
        }
    }
}

/// Checks a class summary against the number of classes that its counts claim.
///
/// # Errors
/// [`LearnError`] when sizes disagree or a value isn't finite.
pub fn check_summary(summary: &ClassSummary) -> Result<(), LearnError> {
    const MOST_CLASSES: usize = 64; // an inline adapter and 64 x 64 logits fit one message
    let classes = summary.counts.len();
    if !(1..=MOST_CLASSES).contains(&classes) || !summary.mean_logits.len().is_multiple_of(4) {
        return Err(LearnError::OutOfRange {
            what: "classes of a summary",
            expected: format!("1 to {MOST_CLASSES}"),
            actual: classes.to_string(),
        });
    }
    ClassLogits::from(summary).check(classes)
}

/// Mean over the members. Where they disagree about the number of classes, most of them are right
/// (the lower number where that is even).
fn combine_class_logits(inputs: &[CombineInput]) -> Result<Option<ClassSummary>, LearnError> {
    let mut members = newest_class_logits(inputs);
    let mut votes: BTreeMap<usize, usize> = BTreeMap::new();
    for logits in members.values() {
        *votes.entry(logits.counts.len()).or_default() += 1;
    }
    let Some((classes, _)) = votes.into_iter().rev().max_by_key(|(_, count)| *count) else {
        return Ok(None);
    };
    members.retain(|_, logits| logits.counts.len() == classes);
    let members = members.iter().map(|(sender, logits)| (sender.clone(), logits)).collect();
    let mean = average_class_logits(classes, LOGIT_BOUND, &members)?;
    Ok(Some(ClassSummary::from(&mean)))
}

/// The newest summary of each member: a late one of a member that spoke again is older news.
pub(super) fn newest_class_logits(inputs: &[CombineInput]) -> BTreeMap<NodeId, ClassLogits> {
    let mut newest: BTreeMap<NodeId, (u64, ClassLogits)> = BTreeMap::new();
    for input in inputs {
        if let Some(summary) = &input.class_logits
            && newest.get(&input.sender).is_none_or(|(known, _)| *known > input.staleness)
        {
            let logits = ClassLogits::from(summary);
            newest.insert(input.sender.clone(), (input.staleness, logits));
        }
    }
    newest.into_iter().map(|(sender, (_, logits))| (sender, logits)).collect()
}

/// A sender may have late contributions beside its own of this round.
fn key(input: &CombineInput) -> (NodeId, UpdateId) {
    (input.sender.clone(), input.update)
}

fn share(input: &CombineInput) -> Share {
    Share { num_examples: input.num_examples, staleness: input.staleness }
}

/// Two halves as one set.
fn joined(front: &TensorSet, back: &TensorSet) -> Result<TensorSet, LearnError> {
    TensorSet::new(front.tensors().iter().chain(back.tensors()).cloned().collect())
}

/// The whole adapter that a contribution speaks of, in the delta's place.
fn adapter_of(
    mut delta: TensorSet,
    base: &TensorSet,
    stacked: bool,
) -> Result<TensorSet, LearnError> {
    if !stacked {
        delta.check_layout(&base.layout())?;
    }
    for (name, values) in delta.named_values_mut() {
        let is_whole = stacked && rank_axis(name).is_some();
        let start = base.get(name).filter(|_| !is_whole);
        for (value, start) in values.iter_mut().zip(start.map_or(&[] as &[f32], |t| &t.data)) {
            *value += start;
        }
    }
    Ok(delta)
}

fn dense_differences(stack: &TensorSet, global: &TensorSet) -> TensorSet {
    let mut out = stack.clone();
    for (values, tensor) in out.values_mut().zip(stack.tensors()) {
        let start = global.get(&tensor.name).filter(|_| rank_axis(&tensor.name).is_none());
        for (value, start) in values.iter_mut().zip(start.map_or(&[] as &[f32], |t| &t.data)) {
            *value -= start;
        }
    }
    out
}

/// Value by value; both have the layout of `a`.
fn combine_values(a: &TensorSet, b: &TensorSet, f: impl Fn(f32, f32) -> f32) -> TensorSet {
    let mut out = a.clone();
    for (values, other) in out.values_mut().zip(b.tensors()) {
        for (value, other) in values.iter_mut().zip(&other.data) {
            *value = f(*value, *other);
        }
    }
    out
}

/// The axis of a LoRA factor that has the length of the rank.
fn rank_axis(name: &str) -> Option<usize> {
    match name.rsplit('.').next() {
        Some("lora_a") => Some(0),
        Some("lora_b") => Some(1),
        _ => None,
    }
}

fn packed(
    set: &TensorSet,
    coding: Coding,
    block: u16,
    data: Vec<u8>,
) -> Result<PackedSet, UpdateError> {
    let mut tensors = Vec::with_capacity(set.tensors().len());
    for tensor in set.tensors() {
        let size = |d: &usize| u32::try_from(*d).map_err(|_| too_big(&tensor.name));
        let shape = tensor.shape.iter().map(size).collect::<Result<_, _>>()?;
        tensors.push(PackedTensor { name: tensor.name.clone(), shape });
    }
    let block = if coding == Coding::F32 { 0 } else { block };
    Ok(PackedSet { tensors, coding, block, data })
}

fn too_big(name: &str) -> UpdateError {
    CodecError::Structure(format!("tensor {name:?} has a side of 2^32 or more")).into()
}

fn quantizer(coding: Coding, block: u16) -> Result<Option<Quantizer>, LearnError> {
    let width = match coding {
        Coding::F32 => return Ok(None),
        Coding::Int8 => Width::Int8,
        Coding::Int4 => Width::Int4,
    };
    Quantizer::new(width, usize::from(block)).map(Some)
}

/// The highest of what was measured; nothing if somebody hasn't measured.
pub(super) fn highest_risk(inputs: &[CombineInput]) -> Option<f32> {
    let risks: Option<Vec<f32>> = inputs.iter().map(|input| input.risk).collect();
    risks?.into_iter().reduce(f32::max)
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "a figure to show"
)]
pub(super) fn mean_loss(
    inputs: &[CombineInput],
    examples: u64,
    of: impl Fn(&CombineInput) -> f32,
) -> f32 {
    let weigh = |input: &CombineInput| f64::from(of(input)) * input.num_examples as f64;
    (inputs.iter().map(weigh).sum::<f64>() / (examples.max(1) as f64)) as f32
}

#[cfg(test)]
#[path = "clip_tests.rs"]
mod clip_tests;
