//! What each model comes to without a neighbour.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Strategy, Subject, device_name, owners};
use crate::experiment::ExperimentError;
use crate::learn::{
    Control, Examples, Learner, Lesson, TensorSet, TrainJob, Windows, reference_targets,
};
use crate::protocol::Distils;
use crate::rng::Stream;
use crate::trust::keyring::Role;

/// Devices with their own examples alone, the others as they are before they have learned anything.
pub(super) fn before(
    subject: &dyn Subject,
) -> Result<BTreeMap<String, TensorSet>, ExperimentError> {
    let mut adapters = BTreeMap::new();
    for (at, (party, _)) in subject.parties().iter().enumerate() {
        adapters.insert(device_name(party), device(subject, at, party, None)?);
    }
    for (node, role) in owners() {
        adapters.insert(node, subject.learner(role, ALONE)?.1.initial_adapter());
    }
    Ok(adapters)
}

/// The same with a lesson of the reference inputs' labels, in as many steps as the federation takes.
pub(super) fn labels(
    subject: &dyn Subject,
) -> Result<BTreeMap<String, TensorSet>, ExperimentError> {
    let mut adapters = BTreeMap::new();
    for (at, (party, _)) in subject.parties().iter().enumerate() {
        let lesson = lesson(subject, Role::Device)?;
        adapters.insert(device_name(party), device(subject, at, party, Some(&lesson))?);
    }
    for (node, role) in owners() {
        let lesson = lesson(subject, role)?;
        let windows = &lesson.windows;
        let nothing = Windows { len: windows.len, classes: windows.classes, ..Windows::default() };
        let (_, mut learner) = subject.learner(role, ALONE)?;
        let start = learner.initial_adapter();
        let data = nothing.into();
        let how = subject.how(role);
        let adapter = slices(subject, learner.as_mut(), &data, start, how, &node, Some(&lesson))?;
        adapters.insert(node, adapter);
    }
    Ok(adapters)
}

/// The labels of the reference inputs, as a node sees those.
fn lesson(subject: &dyn Subject, role: Role) -> Result<Lesson, ExperimentError> {
    let windows = &subject.reference(role)?.windows;
    Ok(Lesson {
        windows: Arc::clone(windows),
        targets: reference_targets(None, &windows.labels, windows.classes, 1.0)?,
        weight: 1.0,
        ..Lesson::default()
    })
}

#[expect(clippy::cast_possible_truncation, reason = "settings in the range of f32")]
fn device(
    subject: &dyn Subject,
    at: usize,
    party: &str,
    lesson: Option<&Lesson>,
) -> Result<TensorSet, ExperimentError> {
    let (_, mut learner) = subject.learner(Role::Device, ALONE)?;
    let start = learner.initial_adapter();
    let strategy = &subject.settings().strategy;
    let how = Distils {
        steps: strategy.local_steps,
        learning_rate: strategy.learning_rate as f32,
        final_rate: None,
    };
    let data = subject.own(at).cloned().unwrap_or_default().into();
    slices(subject, learner.as_mut(), &data, start, how, &device_name(party), lesson)
}

/// In slices as long as a round: the optimiser starts anew as often as in the federation.
fn slices(
    subject: &dyn Subject,
    learner: &mut dyn Learner,
    data: &Examples,
    start: TensorSet,
    how: Distils,
    node: &str,
    lesson: Option<&Lesson>,
) -> Result<TensorSet, ExperimentError> {
    let mut adapter = start;
    for round in 1..=subject.settings().round.rounds {
        let job = TrainJob {
            lesson: lesson.cloned(),
            final_rate: how.final_rate,
            ..TrainJob::plain(
                adapter,
                how.steps,
                subject.settings().strategy.batch_size,
                how.learning_rate,
                Stream::new(subject.seed().wrapping_add(round), node).next_u64(),
            )
        };
        adapter = learner.train(data, &job, &mut |_| Control::Continue)?.adapter;
    }
    Ok(adapter)
}

/// Without a neighbour each node has the model of its tier.
pub(super) const ALONE: Strategy = Strategy::ReferenceLogits;
