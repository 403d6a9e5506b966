//! Classification layers and generators of latents on the wire: what members send up, what an owner makes of it.
//!
//! ```text
//!   device --layer--> edge --merged layer--> cloud: merges, trains a generator --generator--> edge --> devices
//! ```
//! An edge sends on what it has merged, as with prototypes: a layer of its own model means nothing to models that see
//! inputs in another way. The generator is a function of the merged layer and the plan's seed, so that an owner which
//! dies while it trains makes the same bytes again.
//!
//! Called by [`super::knowledge`].

use std::collections::BTreeMap;

use super::knowledge::{Knowing, MAX_CLASSES, MAX_WIDTH, agreeing, mismatch};
use super::update::UpdateError;
use crate::ids::NodeId;
use crate::learn::{
    ClassHead, LatentGenerator, LearnError, MergeRule, Prototypes, Tensor, TensorSet, merge_heads,
};
use crate::wire::Plan;

const HEAD: &str = "head";
const MOMENTS: &str = "head.moments";

/// What is known of a layer or a generator as tensors, with counts; nothing where there is neither.
pub(super) fn tensors_of(said: &Knowing) -> Option<(Vec<Tensor>, &[u64])> {
    if let Some(generator) = &said.generator {
        return Some((generator.to_tensors(), generator.counts()));
    }
    let head = said.head.as_ref()?;
    let tensor = |name: &str, rows, data: &Vec<f32>| {
        let shape = vec![rows, data.len().checked_div(rows).unwrap_or_default()];
        Tensor { name: name.into(), shape, data: data.clone() }
    };
    let rows = tensor(HEAD, head.classes(), &head.rows.means);
    Some((vec![rows, tensor(MOMENTS, 2, &head.moments)], &head.rows.counts))
}

/// Reads one or the other, for `known` classes where their number is known; gives how many tensors it is.
///
/// # Errors
/// [`UpdateError`] when neither is there, or what is there isn't sound.
pub(super) fn read(
    set: &TensorSet,
    counts: &[u64],
    known: Option<usize>,
    said: &mut Knowing,
) -> Result<usize, UpdateError> {
    let classes = counts.len();
    if !(1..=MAX_CLASSES).contains(&classes) || known.is_some_and(|known| known != classes) {
        return Err(mismatch(HEAD, format!("{known:?} classes"), classes.to_string()));
    }
    if let Some(generator) = LatentGenerator::from_tensors(set, counts)? {
        fits(said, generator.width())?;
        let tensors = generator.to_tensors().len();
        said.generator = Some(generator);
        return Ok(tensors);
    }
    let tensor = set.get(HEAD).filter(|tensor| tensor.shape.first() == Some(&classes));
    let tensor = tensor.filter(|tensor| tensor.shape.len() == 2).ok_or_else(|| {
        mismatch(HEAD, format!("[{classes}, width + 1]"), "another shape, or absent".into())
    })?;
    let rows = Prototypes { means: tensor.data.clone(), counts: counts.to_vec() };
    let width = rows.width().saturating_sub(1);
    let moments =
        set.get(MOMENTS).filter(|tensor| tensor.shape == [2, width]).ok_or_else(|| {
            mismatch(MOMENTS, format!("[2, {width}]"), "another shape, or absent".into())
        })?;
    let head = ClassHead { rows, moments: moments.data.clone() };
    head.check(classes, width)?;
    fits(said, width)?;
    said.head = Some(head);
    Ok(2)
}

/// Both kinds of a class's row are about one embedding, so that one row of counts does for both.
fn fits(said: &Knowing, width: usize) -> Result<(), UpdateError> {
    let points = said.prototypes.as_ref().map_or(width, Prototypes::width);
    if points == width && width <= MAX_WIDTH {
        return Ok(());
    }
    Err(mismatch(HEAD, format!("rows of {points} values, {MAX_WIDTH} at most"), width.to_string()))
}

/// Merges the layers of the members that see inputs as most do; at the top trains a generator against them.
///
/// # Errors
/// [`LearnError::NoUpdates`] without any.
pub(super) fn merge(
    plan: &Plan,
    relay: bool,
    rule: MergeRule,
    heard: &BTreeMap<NodeId, Knowing>,
    merged: &mut Knowing,
) -> Result<(), LearnError> {
    let all = heard.iter().filter_map(|(s, said)| Some((s.clone(), said.head.clone()?)));
    let ((classes, width), all) =
        agreeing(all.collect(), |head: &ClassHead| (head.classes(), head.width()))?;
    let head = merge_heads(classes, width, rule, &all)?;
    if relay {
        merged.head = Some(head);
    } else {
        merged.generator = Some(LatentGenerator::train(&head, plan.seed)?);
    }
    Ok(())
}

/// What an owner's own model is taught: of a merged layer a generator is made for it.
///
/// # Errors
/// Those of [`LatentGenerator::train`].
pub fn taught(plan: &Plan, mut said: Knowing) -> Result<Knowing, LearnError> {
    if let Some(head) = &said.head {
        said.generator = Some(LatentGenerator::train(head, plan.seed)?);
    }
    Ok(said)
}

/// Refuses what only owners make.
///
/// # Errors
/// [`UpdateError`] for a generator.
pub(super) fn from_member(said: &Knowing) -> Result<(), UpdateError> {
    match &said.generator {
        Some(_) => Err(mismatch(HEAD, "a layer".into(), "a generator".into())),
        None => Ok(()),
    }
}

/// Refuses what only members make.
///
/// # Errors
/// [`UpdateError`] for a layer.
pub(super) fn from_above(said: &Knowing) -> Result<(), UpdateError> {
    match &said.head {
        Some(_) => Err(mismatch(HEAD, "a generator".into(), "a layer".into())),
        None => Ok(()),
    }
}

#[cfg(test)]
#[path = "heads_tests.rs"]
mod tests;
