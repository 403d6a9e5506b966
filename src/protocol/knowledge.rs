//! The arithmetic of rounds of knowledge, between wire and `learn/`: packing what a model says, checking what
//! others say, merging it, making lessons of it.
//!
//! Everything here is a pure function of its arguments, so that a crash in the middle of a round merges
//! to the same bytes again.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::effect::{CombineInput, CombineJob, Said, Work};
use super::heads;
use super::spectra;
use super::update::{self, MAX_EXAMPLES, UpdateError};
use crate::ids::{Digest, Name, NodeId};
use crate::learn::{
    ClassHead, ClassLogits, ENTROPY_TEMPERATURE, LOGIT_BOUND, LatentGenerator, LearnError, Lesson,
    MAX_REFERENCE, MergeRule, Prototypes, ReferenceSet, Tensor, TensorSet, TextLesson, TopLogits,
    TopShape, check_reference_logits, entropy_reduction, labels_in_turn, lowest_loss,
    merge_class_logits, merge_prototypes, reference_classes, reference_targets,
};
use crate::wire::{ClassSummary, Coding, KnowledgePlan, Merging, Plan, Reference, TopLogitsPlan};

/// Most classes that are spoken of.
pub const MAX_CLASSES: usize = 64;
/// Most values of an embedding.
pub const MAX_WIDTH: usize = 4_096;

const LOGITS: &str = "reference.logits";
const PROTOTYPES: &str = "prototypes";

/// What somebody says, unpacked.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Knowing {
    /// `[samples, classes]` logits of the reference inputs.
    pub reference_logits: Option<Vec<f32>>,
    /// Mean embeddings a class.
    pub prototypes: Option<Prototypes>,
    /// Mean spectra of the classes' windows.
    pub spectra: Option<Prototypes>,
    /// A member's classification layer.
    pub head: Option<ClassHead>,
    /// What an owner made of those.
    pub generator: Option<LatentGenerator>,
    /// Likeliest tokens at each place of the reference texts.
    pub top_logits: Option<TopLogits>,
}

/// Packed knowledge with the counts that travel beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedKnowledge {
    /// A packed set.
    pub bytes: Vec<u8>,
    /// See [`crate::wire::Knowledge`].
    pub counts: Vec<u64>,
}

impl From<Merging> for MergeRule {
    fn from(merging: Merging) -> Self {
        match merging {
            Merging::Mean => Self::Mean,
            Merging::Median => Self::Median,
            Merging::Trimmed => Self::Trimmed,
        }
    }
}

/// Packs what a plan asks for of what a model says, in the plan's coding; ids of tokens travel as they are.
///
/// Logits beyond what is believed are brought back to the bound, since a model that is surer than that says
/// nothing more.
/// # Errors
/// [`UpdateError`] when something that the plan asks for isn't there, or a value isn't finite.
pub fn pack(plan: &Plan, said: &Knowing) -> Result<Option<PackedKnowledge>, UpdateError> {
    let Some(knowledge) = plan.knowledge.as_ref().filter(|plan| plan.asks_for_a_set()) else {
        return Ok(None);
    };
    let missing = |what| {
        let (expected, actual) = ("something".into(), "nothing".into());
        UpdateError::Learn(LearnError::OutOfRange { what, expected, actual })
    };
    if knowledge.top_logits.is_some() {
        let said = said.top_logits.as_ref().ok_or_else(|| missing("top logits"))?;
        let bytes = update::pack(&said.to_set()?, Coding::F32, 0)?;
        return Ok(Some(PackedKnowledge { bytes, counts: Vec::new() }));
    }
    let mut tensors = Vec::new();
    let mut counts: Vec<u64> = Vec::new();
    if knowledge.prototypes {
        let prototypes = said.prototypes.as_ref().ok_or_else(|| missing("prototypes"))?;
        let shape = vec![prototypes.counts.len(), prototypes.width()];
        counts.clone_from(&prototypes.counts);
        tensors.push(Tensor { name: PROTOTYPES.into(), shape, data: prototypes.means.clone() });
    }
    if knowledge.generator_weight.is_some() {
        let head = heads::tensors_of(said);
        let (more, of) = head.ok_or_else(|| missing("classification layer"))?;
        counts = of.to_vec();
        tensors.extend(more);
    }
    if knowledge.spectra.is_some() {
        let said = said.spectra.as_ref().ok_or_else(|| missing("spectra"))?;
        counts.clone_from(&said.counts);
        tensors.push(spectra::tensor_of(said));
    }
    if knowledge.reference_logits {
        let (rows, classes) = sizes(knowledge)?;
        let logits = said.reference_logits.as_ref().ok_or_else(|| missing("reference logits"))?;
        let bound = crate::learn::REFERENCE_LOGIT_BOUND;
        // Coding rounds, so the bound is kept with some room.
        let data = logits.iter().map(|z| z.clamp(-0.95 * bound, 0.95 * bound)).collect();
        tensors.push(Tensor { name: LOGITS.into(), shape: vec![rows, classes], data });
    }
    let set = TensorSet::new(tensors)?;
    let bytes = update::pack(&set, plan.coding, plan.block)?;
    Ok(Some(PackedKnowledge { bytes, counts }))
}

/// Unpacks and checks what [`pack`] made for the same plan; the bytes may come from an enemy.
///
/// # Errors
/// [`UpdateError`] tells what is wrong first.
pub fn unpack(plan: &KnowledgePlan, bytes: &[u8], counts: &[u64]) -> Result<Knowing, UpdateError> {
    let set = update::unpack(bytes)?;
    let mut said = Knowing::default();
    if let Some(top) = &plan.top_logits {
        said.top_logits = Some(TopLogits::from_set(&set, &shape_of(plan, top))?);
        return Ok(said);
    }
    let mut wanted = usize::from(plan.prototypes) + usize::from(plan.reference_logits);
    if plan.reference_logits {
        let (rows, classes) = sizes(plan)?;
        let logits = set.get(LOGITS).filter(|tensor| tensor.shape == [rows, classes]);
        let logits = logits.ok_or_else(|| {
            mismatch(LOGITS, format!("[{rows}, {classes}]"), "another shape, or absent".into())
        })?;
        check_reference_logits(&logits.data, rows, classes)?;
        said.reference_logits = Some(logits.data.clone());
    }
    if plan.prototypes {
        let classes = counts.len();
        let known = plan.reference.as_ref().and_then(classes_of);
        let tensor = set.get(PROTOTYPES).filter(|tensor| match tensor.shape.as_slice() {
            [rows, width] => {
                *rows == classes
                    && (1..=MAX_CLASSES).contains(rows)
                    && known.is_none_or(|known| known == *rows)
                    && (1..=MAX_WIDTH).contains(width)
            }
            _ => false,
        });
        let tensor = tensor.ok_or_else(|| {
            mismatch(PROTOTYPES, format!("[{classes}, width]"), "another shape, or absent".into())
        })?;
        let prototypes = Prototypes { means: tensor.data.clone(), counts: counts.to_vec() };
        prototypes.check(classes, prototypes.width())?;
        said.prototypes = Some(prototypes);
    }
    if let Some(how) = plan.spectra {
        let known = plan.reference.as_ref().and_then(classes_of);
        said.spectra = Some(spectra::read(&set, counts, known, how)?);
        wanted += 1;
    }
    if plan.generator_weight.is_some() {
        let known = plan.reference.as_ref().and_then(classes_of);
        wanted += heads::read(&set, counts, known, &mut said)?;
    }
    let found = set.tensors().len();
    if found != wanted {
        return Err(mismatch("a set", format!("{wanted} tensors"), found.to_string()));
    }
    Ok(said)
}

/// Whether a plan can be followed: kinds, weights and sizes.
pub(super) fn makes_sense(plan: &Plan, knowledge: &KnowledgePlan) -> bool {
    let reference = knowledge.reference.as_ref();
    !plan.adapter_delta
        && (plan.class_logits || knowledge.asks_for_a_set())
        && (!knowledge.reference_logits || reference.is_some())
        && reference.is_none_or(|reference| is_sound(reference, knowledge.reference_logits))
        && knowledge.top_logits.as_ref().is_none_or(|top| {
            let texts_alone = knowledge.reference_logits && !knowledge.prototypes;
            texts_alone
                && !plan.class_logits
                && reference.is_some_and(|reference| !reference.unlabelled)
                && shape_of(knowledge, top).is_sound()
        })
        && (0.0..=1.0).contains(&knowledge.alpha)
        && (0.0..=100.0).contains(&knowledge.reference_weight)
        && (0.0..=100.0).contains(&knowledge.prototype_weight)
        && knowledge.generator_weight.is_none_or(|weight| (0.0..=100.0).contains(&weight))
        && knowledge.spectra.is_none_or(|how| spectra::makes_sense(knowledge, how))
}

/// Checks what a contribution claims, before anything is fetched.
///
/// # Errors
/// A word for the receipt and the ledger.
pub(super) fn check_claims(
    plan: &KnowledgePlan,
    num_examples: u64,
    counts: Option<&[u64]>,
    summary: Option<&ClassSummary>,
) -> Result<(), &'static str> {
    if let Some(counts) = counts {
        let said = counts.iter().fold(0, |sum: u64, count| sum.saturating_add(*count));
        if counts.len() > MAX_CLASSES || plan.asks_for_rows() == counts.is_empty() {
            return Err("wrong_class_count");
        }
        if said > num_examples {
            return Err("counts_exceed_examples");
        }
    }
    let Some(summary) = summary else { return Ok(()) };
    let known = plan.reference.as_ref().and_then(classes_of);
    if known.is_some_and(|known| known != summary.counts.len()) {
        return Err("wrong_class_count");
    }
    ClassLogits::from(summary).check_plausible(num_examples)
}

/// Merges what the members of a round say with what the tiers above said; a pure function of the job and the
/// blobs that it names.
///
/// Where the reference inputs have labels, each is taught by whoever has the lowest loss on it: no member,
/// however loud, can spoil one that another knows. All else is merged by the plan's rule.
///
/// # Errors
/// [`UpdateError`].
pub(super) fn combine(
    job: &CombineJob,
    plan: &KnowledgePlan,
    blob: &dyn Fn(&Digest) -> Option<Vec<u8>>,
) -> Result<Work, UpdateError> {
    let rule = MergeRule::from(plan.merging);
    let merged = match plan.top_logits {
        Some(_) => Knowing { top_logits: Some(best_of(job, plan, blob)?), ..Knowing::default() },
        None => merge(job, plan, blob)?,
    };
    let class_logits = merge_summaries(job, rule)?.or_else(|| job.class_targets.clone());
    let (examples, devices) = job.inputs.iter().fold((0_u64, 0_u32), |(n, d), input| {
        (n.saturating_add(input.num_examples), d.saturating_add(input.num_devices))
    });
    Ok(Work {
        update: None,
        class_logits: class_logits.filter(|_| job.plan.class_logits),
        knowledge: pack(&job.plan, &merged)?,
        num_examples: examples.min(MAX_EXAMPLES),
        num_devices: devices,
        steps: job.inputs.iter().map(|input| input.steps).min().unwrap_or(0),
        loss_first: update::mean_loss(&job.inputs, examples, |input| input.loss_first),
        loss_last: update::mean_loss(&job.inputs, examples, |input| input.loss_last),
        risk: update::highest_risk(&job.inputs),
        residual: None,
        own: None,
        weighed: Vec::new(),
    })
}

/// On each text the words of whoever has the lowest loss on it: one member's are in memory at a time, beside the best.
fn best_of(
    job: &CombineJob,
    plan: &KnowledgePlan,
    blob: &dyn Fn(&Digest) -> Option<Vec<u8>>,
) -> Result<TopLogits, UpdateError> {
    let mut best: Option<TopLogits> = None;
    for said in latest(&job.inputs, plan).into_values().chain(&job.offered) {
        let heard = match read(plan, said, blob) {
            Ok(knowing) => knowing.top_logits,
            Err(error @ UpdateError::Missing(_)) => return Err(error),
            // As in `merge`: sound under another plan.
            Err(_) => None,
        };
        match (&mut best, heard) {
            (Some(best), Some(heard)) => best.take_better(&heard)?,
            (best, heard) => *best = best.take().or(heard),
        }
    }
    best.ok_or_else(|| LearnError::NoUpdates.into())
}

fn merge(
    job: &CombineJob,
    plan: &KnowledgePlan,
    blob: &dyn Fn(&Digest) -> Option<Vec<u8>>,
) -> Result<Knowing, UpdateError> {
    let rule = MergeRule::from(plan.merging);
    let mut heard: BTreeMap<NodeId, Knowing> = BTreeMap::new();
    for (sender, said) in latest(&job.inputs, plan) {
        match read(plan, said, blob) {
            Ok(knowing) => drop(heard.insert(sender.clone(), knowing)),
            Err(error @ UpdateError::Missing(_)) => return Err(error),
            // Sound under the plan of its own round, which asked for other words: late, and of no use now.
            Err(_) => {}
        }
    }
    let from_above = match &job.offered {
        Some(said) if plan.reference_logits || plan.spectra.is_some() && !job.relay => {
            Some(read(plan, said, blob)?)
        }
        _ => None,
    };
    let mut merged = Knowing::default();
    if plan.reference_logits {
        let (rows, classes) = sizes(plan)?;
        let mut all: BTreeMap<NodeId, Vec<f32>> = BTreeMap::new();
        for (sender, said) in &heard {
            all.extend(said.reference_logits.clone().map(|logits| (sender.clone(), logits)));
        }
        if let Some(logits) = from_above.as_ref().and_then(|said| said.reference_logits.clone())
            && let Ok(above) = Name::new(ABOVE)
        {
            all.entry(above).or_insert(logits);
        }
        merged.reference_logits = Some(match labels_of(plan) {
            Some(labels) => lowest_loss(&all, &labels, classes)?,
            None => entropy_reduction(&all, rows, classes, ENTROPY_TEMPERATURE, rule)?,
        });
    }
    if plan.prototypes {
        let all = heard.iter().filter_map(|(s, said)| Some((s.clone(), said.prototypes.clone()?)));
        let size = |p: &Prototypes| (p.counts.len(), p.width());
        let ((classes, width), all) = agreeing(all.collect(), size)?;
        merged.prototypes = Some(merge_prototypes(classes, width, rule, &all)?);
        // One count does for a class's point and spectrum, so whoever was left out here is left out there.
        heard.retain(|sender, _| all.contains_key(sender));
    }
    if plan.spectra.is_some() {
        merged.spectra = Some(spectra::merge(rule, &heard)?);
        // Read at the top only: a plan has spectra or reference logits.
        if let Some(before) = &from_above {
            spectra::keep(&mut merged, before);
        }
    }
    if plan.generator_weight.is_some() {
        heads::merge(&job.plan, job.relay, rule, &heard, &mut merged)?;
    }
    Ok(merged)
}

/// What is taught to a model: by logits of the reference inputs, or by class means where only those travel,
/// by prototypes, and by a generator.
///
/// # Errors
/// [`UpdateError`] when the set isn't the plan's or what was said doesn't fit it.
pub fn lesson(
    plan: &KnowledgePlan,
    set: Option<&ReferenceSet>,
    said: Option<&Knowing>,
    class_targets: Option<&ClassLogits>,
) -> Result<Option<Lesson>, UpdateError> {
    let without_inputs = Lesson {
        prototypes: said.and_then(|said| said.prototypes.clone()),
        prototype_weight: plan.prototype_weight,
        generator: said.and_then(|said| said.generator.clone()),
        generator_weight: plan.generator_weight.unwrap_or_default(),
        ..Lesson::default()
    };
    let Some(reference) = &plan.reference else {
        let taught = without_inputs.prototypes.is_some() || without_inputs.generator.is_some();
        return Ok(taught.then_some(without_inputs));
    };
    let set = set.filter(|set| is_of(set, reference)).ok_or_else(|| {
        mismatch("reference set", reference.digest.to_string(), "another, or none".into())
    })?;
    if let Some(top) = &plan.top_logits {
        return text_lesson(plan, top, set, said).map(Some);
    }
    let (labels, classes) = (&set.windows.labels, set.windows.classes);
    if reference.unlabelled {
        let logits = said.and_then(|said| said.reference_logits.as_deref());
        // Before anybody has said anything there is nothing to learn, but something to say.
        let silence = || vec![0.0; labels.len().saturating_mul(classes)];
        let teacher = logits.map_or_else(silence, <[f32]>::to_vec);
        return Ok(Some(Lesson {
            targets: reference_targets(Some(&teacher), labels, classes, 0.0)?,
            windows: Arc::clone(&set.windows),
            weight: if logits.is_some() { plan.reference_weight } else { 0.0 },
            ..without_inputs
        }));
    }
    let logits = match said.and_then(|said| said.reference_logits.as_ref()) {
        Some(logits) => Some(logits.clone()),
        None => class_targets.map(|targets| rows_by_label(targets, labels, classes)),
    };
    Ok(Some(Lesson {
        targets: reference_targets(logits.as_deref(), labels, classes, plan.alpha)?,
        windows: spectra::windows(plan, set, said)?,
        weight: plan.reference_weight,
        ..without_inputs
    }))
}

/// What is taught to a model that writes.
fn text_lesson(
    plan: &KnowledgePlan,
    top: &TopLogitsPlan,
    set: &ReferenceSet,
    said: Option<&Knowing>,
) -> Result<Lesson, UpdateError> {
    let tokens = set.tokens.clone().filter(|tokens| tokens.digest() == top.tokens);
    let tokens = tokens.ok_or_else(|| {
        mismatch("tokens of the reference texts", top.tokens.to_string(), "others, or none".into())
    })?;
    let teacher = said.and_then(|said| said.top_logits.clone()).map(Arc::new);
    Ok(Lesson {
        weight: plan.reference_weight,
        texts: Some(TextLesson { tokens, teacher, alpha: plan.alpha, top: top.top }),
        ..Lesson::default()
    })
}

fn shape_of(plan: &KnowledgePlan, top: &TopLogitsPlan) -> TopShape {
    let texts = plan.reference.as_ref().map_or(0, |reference| reference.count);
    TopShape { top: top.top, vocab: top.vocab, texts, tokens: top.tokens }
}

/// Whether a node's set is the one that a plan speaks of; its digest says most of it.
fn is_of(set: &ReferenceSet, reference: &Reference) -> bool {
    set.digest == reference.digest
        && set.count() == reference.count
        && classes_of(reference) == Some(set.windows.classes)
}

/// A class's mean logits as what is said of each of its samples; a class that nobody speaks of is taught
/// by its label.
fn rows_by_label(targets: &ClassLogits, labels: &[usize], classes: usize) -> Vec<f32> {
    let mut rows = Vec::with_capacity(labels.len().saturating_mul(classes));
    for label in labels {
        let known = targets.counts.get(*label).is_some_and(|count| *count > 0);
        match targets.mean_logits.chunks_exact(classes).nth(*label).filter(|_| known) {
            Some(row) => rows.extend_from_slice(row),
            None => {
                rows.extend((0..classes).map(|c| if c == *label { LOGIT_BOUND } else { 0.0 }));
            }
        }
    }
    rows
}

/// The newest word of each member about the same reference inputs.
fn latest<'a>(inputs: &'a [CombineInput], plan: &KnowledgePlan) -> BTreeMap<&'a NodeId, &'a Said> {
    let about = plan.reference.as_ref().map(|reference| reference.digest);
    let mut newest: BTreeMap<&NodeId, (u64, &Said)> = BTreeMap::new();
    for input in inputs {
        if let Some(said) = &input.knowledge
            && said.reference == about
            && newest.get(&input.sender).is_none_or(|(staleness, _)| *staleness > input.staleness)
        {
            newest.insert(&input.sender, (input.staleness, said));
        }
    }
    newest.into_iter().map(|(sender, (_, said))| (sender, said)).collect()
}

fn merge_summaries(job: &CombineJob, rule: MergeRule) -> Result<Option<ClassSummary>, LearnError> {
    let members = update::newest_class_logits(&job.inputs);
    if members.is_empty() {
        return Ok(None);
    }
    let (classes, ()) = most_common(members.values().map(|logits| (logits.counts.len(), ())))?;
    let agreeing = members.iter().filter(|(_, logits)| logits.counts.len() == classes);
    let agreeing = agreeing.map(|(sender, logits)| (sender.clone(), logits)).collect();
    let merged = merge_class_logits(classes, LOGIT_BOUND, rule, &agreeing)?;
    Ok(Some(ClassSummary::from(&merged)))
}

/// Number of classes and width, and those that say so.
type Agreeing<T> = ((usize, usize), BTreeMap<NodeId, T>);

/// Those that agree with most about classes and width, and these: others can't be merged with them.
pub(super) fn agreeing<T>(
    mut all: BTreeMap<NodeId, T>,
    size: impl Fn(&T) -> (usize, usize),
) -> Result<Agreeing<T>, LearnError> {
    let most = most_common(all.values().map(&size))?;
    all.retain(|_, one| size(one) == most);
    Ok((most, all))
}

/// What most say; the lowest where several are as common.
fn most_common<T: Ord>(all: impl Iterator<Item = T>) -> Result<T, LearnError> {
    let mut votes: BTreeMap<T, usize> = BTreeMap::new();
    for one in all {
        *votes.entry(one).or_default() += 1;
    }
    let winner = votes.into_iter().rev().max_by_key(|(_, count)| *count);
    winner.map(|(value, _)| value).ok_or(LearnError::NoUpdates)
}

fn read(
    plan: &KnowledgePlan,
    said: &Said,
    blob: &dyn Fn(&Digest) -> Option<Vec<u8>>,
) -> Result<Knowing, UpdateError> {
    let bytes = blob(&said.set).ok_or(UpdateError::Missing(said.set))?;
    unpack(plan, &bytes, &said.counts)
}

/// Whether reference inputs can be learned from: without labels only where somebody says what they are of.
fn is_sound(reference: &Reference, logits: bool) -> bool {
    let known = reference_classes(reference.generator.as_str()).is_some();
    (1..=MAX_REFERENCE).contains(&reference.count)
        && (logits || !reference.unlabelled)
        && reference.classes.is_none_or(|classes| {
            !known && usize::try_from(classes).is_ok_and(|n| (2..=MAX_CLASSES).contains(&n))
        })
}

/// Classes that the reference inputs are of, where they are known here.
fn classes_of(reference: &Reference) -> Option<usize> {
    match reference.classes {
        Some(classes) => usize::try_from(classes).ok(),
        None => reference_classes(reference.generator.as_str()),
    }
}

/// Labels of the reference inputs, where they have any.
fn labels_of(plan: &KnowledgePlan) -> Option<Vec<usize>> {
    let reference = plan.reference.as_ref().filter(|reference| !reference.unlabelled)?;
    Some(labels_in_turn(classes_of(reference)?, usize::try_from(reference.count).ok()?))
}

/// Samples and classes of the reference inputs.
fn sizes(plan: &KnowledgePlan) -> Result<(usize, usize), LearnError> {
    let sizes = plan.reference.as_ref().and_then(|reference| {
        let rows = usize::try_from(reference.count).ok()?;
        Some((rows, classes_of(reference)?))
    });
    sizes.ok_or_else(|| LearnError::OutOfRange {
        what: "reference set",
        expected: "one that is known here".into(),
        actual: "another, or none".into(),
    })
}

pub(super) fn mismatch(name: &str, expected: String, actual: String) -> UpdateError {
    LearnError::LayoutMismatch { name: name.into(), expected, actual }.into()
}

/// Stands for the tiers above among the teachers.
const ABOVE: &str = "_";

#[cfg(test)]
#[path = "knowledge_tests.rs"]
#[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "made-up members")]
mod tests;
#[cfg(test)]
#[path = "top_logits_tests.rs"]
mod top_logits_tests;
