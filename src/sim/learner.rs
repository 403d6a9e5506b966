//! Training and data that cost nothing: a pure function of node, offer and adapter.

use crate::ids::{Digest, Name, NodeId};
use crate::learn::{Tensor, TensorSet};
use crate::protocol::{CombineJob, TrainTask, Work, update};
use crate::rng::Stream;
use crate::wire::{Coding, Plan};

/// An adapter of one LoRA pair and a bias; `width` sets its size.
pub(crate) fn first_adapter(width: usize) -> Vec<u8> {
    let mut stream = Stream::new(0, "adapter");
    let mut tensor = |name: &str, shape: [usize; 2]| Tensor {
        name: name.into(),
        shape: shape.to_vec(),
        data: (0..shape[0] * shape[1]).map(|_| small(&mut stream)).collect(),
    };
    let tensors = vec![
        tensor("q.lora_a", [2, width]),
        tensor("q.lora_b", [3, 2]),
        tensor("head.bias", [1, 3]),
    ];
    update::pack(&TensorSet::new(tensors).unwrap(), Coding::F32, 0).unwrap()
}

/// What members are asked to do.
pub(crate) fn plan(coding: Coding) -> Plan {
    Plan {
        adapter_delta: true,
        class_logits: false,
        local_steps: 4,
        batch_size: 8,
        learning_rate: 0.1,
        prox_mu: 0.0,
        distill_lambda: 0.0,
        rank: 2,
        alpha: 4.0,
        coding,
        block: if coding == Coding::F32 { 0 } else { 64 },
        min_cell: 5,
        seed: 7,
    }
}

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
    }
}

/// A combination, as a lane does it.
pub(crate) fn combine(
    job: &CombineJob,
    blob: &dyn Fn(&Digest) -> Option<Vec<u8>>,
) -> Result<Work, &'static str> {
    update::combine(job, blob).map_err(|error| error.kind())
}

/// The federation's name.
pub(crate) fn federation() -> Name {
    Name::new("test").unwrap()
}

#[expect(clippy::cast_possible_truncation, reason = "tensors are f32")]
fn small(stream: &mut Stream) -> f32 {
    stream.range(-0.1, 0.1) as f32
}
