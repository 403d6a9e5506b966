//! Training and data that cost nothing: a pure function of node, offer and adapter.

use crate::ids::{Digest, NodeId};
use crate::learn::Prototypes;
use crate::protocol::fixture::small;
use crate::protocol::knowledge::{self, Knowing};
use crate::protocol::{CombineJob, DistilTask, TrainTask, Work, update};
use crate::rng::Stream;
use crate::wire::{Coding, Plan};

/// A training run: moves each value a little, differently on each node and offer.
pub(crate) fn train(
    node: &NodeId,
    task: &TrainTask,
    blob: &dyn Fn(&Digest) -> Option<Vec<u8>>,
) -> Work {
    let start = update::unpack(&blob(&task.adapter).expect("the adapter is on disk")).unwrap();
    let mut trained = start.clone();
    let mut stream = Stream::new(task.plan.seed, &format!("{node} {}", task.offer));
    for values in trained.values_mut() {
        for value in values {
            *value += small(&mut stream);
        }
    }
    if task.plan.knowledge.is_some() {
        // What the tiers above say has to be there: it is learned from.
        let said = task.knowledge.as_ref().map(|said| blob(&said.set).expect("it is on disk"));
        let heard = said.map_or(Digest([0; 32]), |bytes| Digest::of(&bytes));
        let mut stream = Stream::new(task.plan.seed, &format!("{node} {} {heard}", task.offer));
        return says(&task.plan, &trained, &mut stream, num_examples(node));
    }
    let residual = task.residual.map(|digest| blob(&digest).expect("the residual is on disk"));
    let (delta, residual) =
        update::pack_delta(&start, &trained, &task.plan, residual.as_deref()).unwrap();
    Work {
        knowledge: None,
        update: Some(delta),
        class_logits: None,
        num_examples: num_examples(node),
        num_devices: 1,
        steps: task.plan.local_steps,
        loss_first: 1.0,
        loss_last: 0.5,
        residual,
        own: None,
        weighed: Vec::new(),
    }
}

fn num_examples(node: &NodeId) -> u64 {
    100 + u64::from(node.as_str().as_bytes()[node.as_str().len() - 1])
}

/// A model that has learned and says something; it keeps its adapter.
fn says(
    plan: &Plan,
    trained: &crate::learn::TensorSet,
    stream: &mut Stream,
    num_examples: u64,
) -> Work {
    let reference = plan.knowledge.as_ref().and_then(|plan| plan.reference.as_ref()).unwrap();
    let logits = (0..reference.count * 3).map(|_| 20.0 * small(stream)).collect();
    let means = (0..6).map(|_| small(stream)).collect();
    let said = Knowing {
        reference_logits: Some(logits),
        prototypes: Some(Prototypes { means, counts: vec![30, 0, 40] }),
    };
    Work {
        update: None,
        class_logits: None,
        knowledge: knowledge::pack(plan, &said).unwrap(),
        num_examples,
        num_devices: 1,
        steps: plan.local_steps,
        loss_first: 1.0,
        loss_last: 0.5,
        residual: None,
        own: Some(update::pack(trained, Coding::F32, 0).unwrap()),
        weighed: Vec::new(),
    }
}

/// An owner's own model learns what was merged: a pure function of node, adapter and what it is taught.
pub(crate) fn distil(
    node: &NodeId,
    task: &DistilTask,
    blob: &dyn Fn(&Digest) -> Option<Vec<u8>>,
) -> Work {
    let mut model = update::unpack(&blob(&task.adapter).expect("its adapter is on disk")).unwrap();
    let taught = Digest::of(&task.knowledge.as_ref().expect("something was merged").bytes);
    let mut stream = Stream::new(task.plan.seed, &format!("{node} {taught}"));
    for values in model.values_mut() {
        for value in values {
            *value += small(&mut stream);
        }
    }
    says(&task.plan, &model, &mut stream, 0)
}

/// A combination, as a lane does it.
pub(crate) fn combine(
    job: &CombineJob,
    blob: &dyn Fn(&Digest) -> Option<Vec<u8>>,
) -> Result<Work, &'static str> {
    update::combine(job, blob).map_err(|error| error.kind())
}
