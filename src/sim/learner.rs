//! Training and data that cost nothing: a pure function of node, offer and adapter.

use crate::ids::{Digest, NodeId};
use crate::learn::{Prototypes, Tensor, TensorSet};
use crate::protocol::knowledge::{self, Knowing};
use crate::protocol::{CombineJob, DistilTask, TrainTask, Work, update};
use crate::rng::Stream;
use crate::wire::{Coding, Plan};

/// Reads a blob of the node that works.
type Blobs<'a> = &'a dyn Fn(&Digest) -> Option<Vec<u8>>;

/// The adapter that a run starts with: a LoRA pair of `width` columns (none when 0) and a bias, packed.
///
/// # Errors
/// A word, when `width` is more than an update may have.
pub(crate) fn first_adapter(width: usize) -> Result<Vec<u8>, &'static str> {
    let mut stream = Stream::new(0, "adapter");
    let mut tensor = |name: &str, rows: usize, columns: usize| Tensor {
        name: name.into(),
        shape: vec![rows, columns],
        data: (0..rows * columns).map(|_| small(&mut stream)).collect(),
    };
    let mut tensors = Vec::new();
    if width > 0 {
        tensors.push(tensor("q.lora_a", 2, width));
        tensors.push(tensor("q.lora_b", 3, 2));
    }
    tensors.push(tensor("head.bias", 1, 3));
    let set = TensorSet::new(tensors).map_err(|error| error.kind())?;
    update::pack(&set, Coding::F32, 0).map_err(|error| error.kind())
}

/// A training run: moves each value a little, differently on each node and offer.
///
/// # Errors
/// A word, when a blob is missing or what is there can't be used.
pub(crate) fn train(
    node: &NodeId,
    task: &TrainTask,
    blob: Blobs<'_>,
) -> Result<Work, &'static str> {
    let start = unpacked(&task.adapter, blob)?;
    let mut trained = start.clone();
    let mut stream = Stream::new(task.plan.seed, &format!("{node} {}", task.offer));
    for values in trained.values_mut() {
        for value in values {
            *value += small(&mut stream);
        }
    }
    if task.plan.knowledge.is_some() {
        // What the tiers above say has to be there: it is learned from.
        let said = task.knowledge.as_ref().map(|said| blob(&said.set).ok_or("blob_missing"));
        let heard = said.transpose()?.map_or(Digest([0; 32]), |bytes| Digest::of(&bytes));
        let mut stream = Stream::new(task.plan.seed, &format!("{node} {} {heard}", task.offer));
        return says(&task.plan, &trained, &mut stream, num_examples(node));
    }
    let residual = task.residual.map(|digest| blob(&digest).ok_or("blob_missing")).transpose()?;
    let (delta, residual) = update::pack_delta(&start, &trained, &task.plan, residual.as_deref())
        .map_err(|error| error.kind())?;
    Ok(Work {
        knowledge: None,
        update: Some(delta),
        class_logits: None,
        num_examples: num_examples(node),
        num_devices: 1,
        steps: task.plan.local_steps,
        loss_first: 1.0,
        loss_last: 0.5,
        risk: None,
        residual,
        own: None,
        weighed: Vec::new(),
    })
}

/// An owner's own model learns what was merged: a pure function of node, adapter and what it is taught.
///
/// # Errors
/// As [`train`].
pub(crate) fn distil(
    node: &NodeId,
    task: &DistilTask,
    blob: Blobs<'_>,
) -> Result<Work, &'static str> {
    let mut model = unpacked(&task.adapter, blob)?;
    let merged = task.knowledge.as_ref().ok_or("nothing_merged")?;
    let taught = Digest::of(&merged.bytes);
    // As in `train`: where the model hears the tiers above, what they said has to be there.
    let said = task.offered.as_ref().map(|said| blob(&said.set).ok_or("blob_missing"));
    let heard = said.transpose()?.map_or(String::new(), |bytes| Digest::of(&bytes).to_string());
    let mut stream = Stream::new(task.plan.seed, &format!("{node} {taught}{heard}"));
    for values in model.values_mut() {
        for value in values {
            *value += small(&mut stream);
        }
    }
    says(&task.plan, &model, &mut stream, 0)
}

/// A combination, as a lane does it.
///
/// # Errors
/// The word that a node would count.
pub(crate) fn combine(job: &CombineJob, blob: Blobs<'_>) -> Result<Work, &'static str> {
    update::combine(job, blob).map_err(|error| error.kind())
}

/// A value as adapters have them.
#[expect(clippy::cast_possible_truncation, reason = "tensors are f32")]
fn small(stream: &mut Stream) -> f32 {
    stream.range(-0.1, 0.1) as f32
}

fn unpacked(digest: &Digest, blob: Blobs<'_>) -> Result<TensorSet, &'static str> {
    update::unpack(&blob(digest).ok_or("blob_missing")?).map_err(|error| error.kind())
}

fn num_examples(node: &NodeId) -> u64 {
    100 + u64::from(node.as_str().bytes().last().unwrap_or_default())
}

/// A model that has learned and says something; it keeps its adapter.
fn says(
    plan: &Plan,
    trained: &TensorSet,
    stream: &mut Stream,
    num_examples: u64,
) -> Result<Work, &'static str> {
    let knowledge = plan.knowledge.as_ref().ok_or("no_knowledge")?;
    let reference = knowledge.reference.as_ref().ok_or("no_reference")?;
    let logits = (0..reference.count * 3).map(|_| 20.0 * small(stream)).collect();
    let means = (0..6).map(|_| small(stream)).collect();
    let said = Knowing {
        reference_logits: Some(logits),
        prototypes: Some(Prototypes { means, counts: vec![30, 0, 40] }),
        spectra: knowledge.spectra.map(|how| {
            // Now one class is lacking, now none.
            let counts = vec![30, if small(stream) > 0.0 { 20 } else { 0 }, 40];
            let row = |count: &u64| if *count > 0 { small(stream) } else { 0.0 };
            let each = counts.iter().map(row).collect::<Vec<f32>>().into_iter();
            let means = each.flat_map(|log| vec![log; usize::from(how.bands)]).collect();
            Prototypes { means, counts }
        }),
        ..Knowing::default()
    };
    Ok(Work {
        update: None,
        class_logits: None,
        knowledge: knowledge::pack(plan, &said).map_err(|error| error.kind())?,
        num_examples,
        num_devices: 1,
        steps: plan.local_steps,
        loss_first: 1.0,
        loss_last: 0.5,
        risk: None,
        residual: None,
        own: Some(update::pack(trained, Coding::F32, 0).map_err(|error| error.kind())?),
        weighed: Vec::new(),
    })
}
