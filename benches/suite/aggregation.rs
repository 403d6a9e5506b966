//! Combining many adapters beside copying their bytes.
//!
//! Members come one at a time from a pool that no cache of a small machine holds; the copy reads
//! the same pool in the same order.

use gaisnet::ids::{Digest, UpdateId};
use gaisnet::learn::{Accumulator, Tensor, TensorSet};
use gaisnet::protocol::{CombineInput, CombineJob, ShareBounds, update};
use gaisnet::rng::Stream;
use gaisnet::store::{BlobCaps, SqliteStore, Store};
use gaisnet::telemetry::usage;
use gaisnet::wire::{Coding, Plan};

use super::plant::name;
use super::stats::{Effort, Row, in_turns, time};

pub fn run(effort: Effort, report: &mut dyn FnMut(Row)) {
    let dense = Pool::new(["down", "up"]);
    report(dense.memory(effort));
    report(dense.mean(effort));
    report(dense.combine(effort, Coding::F32, effort.count(MEMBERS), "dense, packed as f32"));
    report(dense.combine(effort, Coding::Int8, effort.count(MEMBERS), "dense, packed as int8"));
    report(dense.on_disk(effort));
    let lora = Pool::new(["lora_a", "lora_b"]);
    report(lora.combine(effort, Coding::Int8, effort.count(FEW), "LoRA products, int8"));
}

/// Different adapters that members are made of.
struct Pool(Vec<TensorSet>);

impl Pool {
    fn new(halves: [&str; 2]) -> Self {
        Self((0..POOL).map(|seed| adapter(seed as u64, halves)).collect())
    }

    /// The plain rule on tensors as they lie in memory: the weighted mean.
    fn mean(&self, effort: Effort) -> Row {
        let members = effort.count(MEMBERS);
        let layout = self.0[0].layout();
        let weight = 1.0 / members as f64;
        let ours = || {
            time(|| {
                let mut sum = Accumulator::new(&layout).unwrap();
                for member in 0..members {
                    sum.add(weight, &self.0[member % POOL]).unwrap();
                }
                sum.finish().unwrap()
            })
            .as_secs_f64()
        };
        let seconds = in_turns(effort, ours, || self.copy(members));
        Row::new(
            format!("mean of {members} adapters"),
            seconds,
            "s",
            "copy of their bytes; target <= 3",
        )
    }

    /// All that a round's end does: from packed contributions to the packed result.
    fn combine(&self, effort: Effort, coding: Coding, members: usize, what: &str) -> Row {
        let packed = self.packed(coding);
        let job = job(members, coding, &packed);
        let blob =
            |digest: &Digest| packed.iter().find(|(d, _)| d == digest).map(|(_, b)| b.clone());
        let ours = || time(|| update::combine(&job, &blob).unwrap()).as_secs_f64();
        let seconds = in_turns(effort, ours, || self.copy(members));
        Row::new(format!("round of {members}, {what}"), seconds, "s", "copy of their f32 bytes")
    }

    /// The same from a store, which checks the digest of each blob that it reads.
    fn on_disk(&self, effort: Effort) -> Row {
        let members = effort.count(MEMBERS);
        let folder = tempfile::tempdir().unwrap();
        let mut store = SqliteStore::open(folder.path(), BlobCaps::default()).unwrap();
        let packed = self.packed(Coding::Int8);
        for (_, bytes) in &packed {
            store.put_blob(bytes).unwrap();
        }
        let job = job(members, Coding::Int8, &packed);
        let reader = store.blob_reader();
        let blob = |digest: &Digest| reader.blob(digest).unwrap();
        let ours = || time(|| update::combine(&job, &blob).unwrap()).as_secs_f64();
        let seconds = in_turns(effort, ours, || self.copy(members));
        let name = format!("round of {members}, int8, from disk");
        Row::new(name, seconds, "s", "copy of their f32 bytes")
    }

    /// What the process needed at most, after a round of a tenth and after one of all.
    fn memory(&self, effort: Effort) -> Row {
        let packed = self.packed(Coding::Int8);
        let blob =
            |digest: &Digest| packed.iter().find(|(d, _)| d == digest).map(|(_, b)| b.clone());
        let [few, all] = [MEMBERS / 10, MEMBERS].map(|members| {
            let job = job(effort.count(members), Coding::Int8, &packed);
            update::combine(&job, &blob).unwrap();
            usage().map_or(f64::NAN, |usage| usage.peak_rss_mib())
        });
        let name = format!("peak memory, {} members", effort.count(MEMBERS));
        Row::new(name, (all, few), "MiB", "a tenth of the members; target 1")
    }

    fn packed(&self, coding: Coding) -> Vec<(Digest, Vec<u8>)> {
        let pack = |set| {
            let bytes = update::pack(set, coding, BLOCK).unwrap();
            (Digest::of(&bytes), bytes)
        };
        self.0.iter().map(pack).collect()
    }

    /// Seconds for copying as many adapters into one place.
    fn copy(&self, members: usize) -> f64 {
        let mut copy = self.0[0].clone();
        let all = || {
            for member in 0..members {
                for (to, from) in copy.values_mut().zip(self.0[member % POOL].tensors()) {
                    to.copy_from_slice(&from.data);
                }
                std::hint::black_box(&mut copy);
            }
        };
        time(all).as_secs_f64()
    }
}

/// A cloud's round over all members, each with its own weight, none late.
fn job(members: usize, coding: Coding, pool: &[(Digest, Vec<u8>)]) -> CombineJob {
    let global = pool[0].0;
    let input = |member: usize| CombineInput {
        whole: false,
        sender: name(&format!("n{member:04}")),
        update: UpdateId([0; 16]),
        num_examples: 100 + member as u64,
        num_devices: 1,
        steps: 32,
        version: 1,
        staleness: 0,
        failed: 0,
        loss_first: 1.0,
        loss_last: 0.5,
        risk: None,
        delta: Some(pool[member % pool.len()].0),
        back: None,
        stacked: false,
        base: global,
        class_logits: None,
        knowledge: None,
    };
    let plan = Plan {
        adapter_delta: true,
        class_logits: false,
        local_steps: 32,
        batch_size: 16,
        learning_rate: 0.001,
        final_rate: None,
        prox_mu: 0.0,
        distill_lambda: 0.0,
        rank: 8,
        alpha: 16.0,
        coding,
        block: BLOCK,
        min_cell: 20,
        seed: 1,
        local_epochs: None,
        knowledge: None,
        cluster_rounds: None,
    };
    let inputs = (0..members).map(input).collect();
    let offer = Digest([7; 32]);
    let norms = Vec::new();
    let bounds = ShareBounds::default();
    let (relay, offered) = (false, None);
    CombineJob { offer, global, plan, class_targets: None, inputs, relay, norms, bounds, offered }
}

/// Rank 8 on q and v of 30 layers of width 576 (as for `SmolLM2`-135M): 460,800 values in 120 tensors.
fn adapter(seed: u64, [a, b]: [&str; 2]) -> TensorSet {
    let mut stream = Stream::new(seed, "bench/adapter");
    let mut tensors = Vec::new();
    for layer in 0..30 {
        for (target, rows) in [("q", 576), ("v", 192)] {
            for (half, shape) in [(a, [8, 576]), (b, [rows, 8])] {
                let data = (0..shape[0] * shape[1]).map(|_| 0.01 * stream.normal() as f32);
                tensors.push(Tensor {
                    name: format!("blocks.{layer}.attn.{target}.{half}"),
                    shape: shape.to_vec(),
                    data: data.collect(),
                });
            }
        }
    }
    TensorSet::new(tensors).unwrap()
}

const MEMBERS: usize = 1_000;
/// Products of pairs cost an SVD each; from 65 members on, several.
const FEW: usize = 16;
const POOL: usize = 64;
const BLOCK: u16 = 128;
