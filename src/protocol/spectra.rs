//! Mean spectra of classes on the wire: what devices say of their windows, and what owners make of it.
//!
//! ```text
//!   device --its classes--> edge --merged--> cloud --all classes--> edge --all classes--> devices
//! ```
//! An edge's devices may lack a class that another site has. For its own model it takes that class from what came from
//! above, and says upwards what its own devices said, so that nothing is counted twice. The top says again what nobody
//! speaks of in a round.
//!
//! Called by [`super::knowledge`] and `actors/workbench.rs`.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::knowledge::{Knowing, MAX_CLASSES, mismatch};
use super::update::UpdateError;
use crate::ids::NodeId;
use crate::learn::{
    LearnError, MAX_GRADES, MergeRule, Prototypes, ReferenceSet, SPECTRUM_BOUND, Tensor, TensorSet,
    Windows, merge_prototypes, physics, recolour, reference_classes,
};
use crate::wire::{KnowledgePlan, SpectraPlan};

const SPECTRA: &str = "spectra";

/// Whether spectra can be used as a plan has it: on generated inputs with labels, which nobody says logits of, since
/// each node hears other ones. Layers are left out where widths differ, and have no counts of their own.
pub(super) fn makes_sense(plan: &KnowledgePlan, spectra: SpectraPlan) -> bool {
    let generated = |name: &str| reference_classes(name).is_some();
    let reference = plan.reference.as_ref();
    !plan.reference_logits
        && plan.generator_weight.is_none()
        && reference.is_some_and(|r| generated(r.generator.as_str()) && !r.unlabelled)
        && (1..=physics::WINDOW_LEN / 2).contains(&usize::from(spectra.bands))
        && (1..=MAX_GRADES).contains(&spectra.grades)
}

/// As a tensor.
pub(super) fn tensor_of(spectra: &Prototypes) -> Tensor {
    let shape = vec![spectra.counts.len(), spectra.width()];
    Tensor { name: SPECTRA.into(), shape, data: spectra.means.clone() }
}

/// Reads them, for `known` classes where their number is known.
///
/// # Errors
/// [`UpdateError`] when they aren't there or aren't sound.
pub(super) fn read(
    set: &TensorSet,
    counts: &[u64],
    known: Option<usize>,
    plan: SpectraPlan,
) -> Result<Prototypes, UpdateError> {
    let (classes, bands) = (counts.len(), usize::from(plan.bands));
    if !(1..=MAX_CLASSES).contains(&classes) || known.is_some_and(|known| known != classes) {
        return Err(mismatch(SPECTRA, format!("{known:?} classes"), classes.to_string()));
    }
    let tensor = set
        .get(SPECTRA)
        .ok_or_else(|| mismatch(SPECTRA, format!("[{classes}, {bands}]"), "nothing".into()))?;
    if tensor.shape != [classes, bands] {
        return Err(mismatch(
            SPECTRA,
            format!("[{classes}, {bands}]"),
            format!("{:?}", tensor.shape),
        ));
    }
    let spectra = Prototypes { means: tensor.data.clone(), counts: counts.to_vec() };
    spectra.check(classes, bands)?;
    match spectra.means.iter().find(|log| log.abs() > SPECTRUM_BOUND) {
        None => Ok(spectra),
        Some(log) => Err(UpdateError::Learn(LearnError::OutOfRange {
            what: "logarithm of a band's power",
            expected: format!("within {SPECTRUM_BOUND} of 0"),
            actual: log.to_string(),
        })),
    }
}

/// Merges those of the members, which were all read under one plan.
///
/// # Errors
/// [`LearnError::NoUpdates`] without any.
pub(super) fn merge(
    rule: MergeRule,
    heard: &BTreeMap<NodeId, Knowing>,
) -> Result<Prototypes, LearnError> {
    let all = heard.iter().filter_map(|(s, said)| Some((s.clone(), said.spectra.clone()?)));
    let all: BTreeMap<NodeId, Prototypes> = all.collect();
    let first = all.values().next().ok_or(LearnError::NoUpdates)?;
    merge_prototypes(first.counts.len(), first.width(), rule, &all)
}

/// What an owner's own model is taught by: classes that its members lack are as the tiers above say.
pub fn taught(mut said: Knowing, above: Option<Knowing>) -> Knowing {
    let above = above.and_then(|above| above.spectra);
    if let Some((own, above)) = said.spectra.as_mut().zip(above) {
        fill(own, &above);
    }
    said
}

/// What the top says: a class that no member speaks of in this round is as it was said in the last one, all rows of it,
/// since one count does for all. Nobody is above who could count it twice.
pub(super) fn keep(merged: &mut Knowing, before: &Knowing) {
    let own = [merged.prototypes.as_mut(), merged.spectra.as_mut()].into_iter().flatten();
    let old = [before.prototypes.as_ref(), before.spectra.as_ref()].into_iter().flatten();
    let mut pairs: Vec<(&mut Prototypes, &Prototypes)> = own.zip(old).collect();
    let fits = |(own, old): &(&mut Prototypes, &Prototypes)| {
        (own.counts.len(), own.means.len()) == (old.counts.len(), old.means.len())
    };
    if pairs.iter().all(fits) {
        for (own, old) in &mut pairs {
            fill(own, old);
        }
    }
}

/// Takes rows of others where there are none; all or nothing unless the sizes are the same.
fn fill(own: &mut Prototypes, from: &Prototypes) {
    if (own.counts.len(), own.means.len()) != (from.counts.len(), from.means.len()) {
        return;
    }
    let width = own.width().max(1);
    let rows = own.counts.iter_mut().zip(own.means.chunks_exact_mut(width));
    let others = from.counts.iter().zip(from.means.chunks_exact(width));
    for ((count, row), (more, other)) in rows.zip(others).filter(|((count, _), _)| **count == 0) {
        *count = *more;
        row.copy_from_slice(other);
    }
}

/// The reference inputs of a lesson: filtered, where each class has a spectrum.
///
/// # Errors
/// Those of [`recolour`].
pub(super) fn windows(
    plan: &KnowledgePlan,
    set: &ReferenceSet,
    said: Option<&Knowing>,
) -> Result<Arc<Windows>, LearnError> {
    match plan.spectra.zip(said.and_then(|said| said.spectra.as_ref())) {
        Some((how, spectra)) => {
            let filtered = recolour(&set.windows, spectra, usize::from(how.grades))?;
            Ok(filtered.map_or_else(|| Arc::clone(&set.windows), Arc::new))
        }
        None => Ok(Arc::clone(&set.windows)),
    }
}

#[cfg(test)]
#[path = "spectra_tests.rs"]
mod tests;
