//! Training and data that cost nothing: a pure function of node, offer and adapter.

use crate::ids::{Digest, NodeId};
use crate::protocol::fixture::small;
use crate::protocol::{CombineJob, TrainTask, Work, update};
use crate::rng::Stream;

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
    let residual = task.residual.map(|digest| blob(&digest).expect("the residual is on disk"));
    let (delta, residual) =
        update::pack_delta(&start, &trained, &task.plan, residual.as_deref()).unwrap();
    Work {
        update: Some(delta),
        class_logits: None,
        num_examples: 100 + u64::from(node.as_str().as_bytes()[node.as_str().len() - 1]),
        num_devices: 1,
        steps: task.plan.local_steps,
        loss_first: 1.0,
        loss_last: 0.5,
        residual,
        own: None,
        weighed: Vec::new(),
    }
}

/// A combination, as a lane does it.
pub(crate) fn combine(
    job: &CombineJob,
    blob: &dyn Fn(&Digest) -> Option<Vec<u8>>,
) -> Result<Work, &'static str> {
    update::combine(job, blob).map_err(|error| error.kind())
}
