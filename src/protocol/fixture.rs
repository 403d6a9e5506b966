//! What tests of the machines start from.

use std::collections::{BTreeMap, BTreeSet};

use super::effect::{CombineInput, CombineJob, Said};
use super::knowledge::{self, Knowing, PackedKnowledge};
use super::update::UpdateError;
use super::{Knows, MemberConfig, Owner, RoundConfig, ShareBounds};
use crate::ids::{BootId, Digest, Epoch, Name, NodeId, RoundNo, UpdateId, Version};
use crate::learn::{BEARING_PHYSICS, Layout, RateSchedule, Tensor, TensorSet};
use crate::privacy::{Gate, Profile};
use crate::rng::Stream;
use crate::time::Wall;
use crate::trust::Verified;
use crate::wire::{
    Blob, Body, ClassSummary, Coding, Contribution, Head, KnowledgePlan, Merging, Plan, Reference,
};

use super::update;

/// Small enough that little is needed to have two chunks.
pub(crate) const CHUNK_BYTES: u32 = 4096;

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

/// A device's work on 50 examples for this offer of `version`.
pub(crate) fn contribution(offer: Digest, version: Version, delta: &[u8]) -> Contribution {
    Contribution {
        offer,
        version,
        num_examples: 50,
        num_devices: 1,
        steps: 4,
        loss_first: 1.0,
        loss_last: 0.5,
        risk: None,
        stacked: false,
        delta: Some(Blob::of(delta, CHUNK_BYTES)),
        class_logits: None,
        knowledge: None,
    }
}

/// What members are asked to do.
pub(crate) fn plan(coding: Coding) -> Plan {
    Plan {
        adapter_delta: true,
        class_logits: false,
        local_steps: 4,
        batch_size: 8,
        learning_rate: 0.1,
        final_rate: None,
        prox_mu: 0.0,
        distill_lambda: 0.0,
        rank: 2,
        alpha: 4.0,
        coding,
        block: if coding == Coding::F32 { 0 } else { 64 },
        min_cell: 5,
        seed: 7,
        local_epochs: None,
        knowledge: None,
        cluster_rounds: None,
    }
}

/// What members are asked to do where each has a model of its own: say what they think of `samples` inputs, and
/// where their classes lie.
pub(crate) fn knowledge_plan(samples: u32) -> Plan {
    Plan {
        adapter_delta: false,
        knowledge: Some(KnowledgePlan {
            prototypes: true,
            reference_logits: true,
            reference: Some(Reference {
                generator: Name::new(BEARING_PHYSICS).unwrap(),
                seed: 1,
                count: samples,
                digest: REFERENCE,
                classes: None,
                unlabelled: false,
            }),
            labels: LABELS,
            alpha: 0.5,
            reference_weight: 1.0,
            prototype_weight: 1.0,
            merging: Merging::Median,
            generator_weight: None,
            top_logits: None,
            spectra: None,
        }),
        ..plan(Coding::F32)
    }
}

/// A relay's round of knowledge that is over, with the blobs that it speaks of.
pub(crate) struct Heard {
    pub(crate) job: CombineJob,
    pub(crate) blobs: BTreeMap<Digest, Vec<u8>>,
}

/// One whose members n0, n1, ... have said these.
pub(crate) fn heard(plan: &Plan, members: &[Knowing]) -> Heard {
    let job = CombineJob {
        offer: Digest([9; 32]),
        global: Digest([0; 32]),
        plan: plan.clone(),
        class_targets: None,
        inputs: Vec::new(),
        relay: true,
        norms: Vec::new(),
        offered: None,
        bounds: ShareBounds::default(),
    };
    let mut heard = Heard { job, blobs: BTreeMap::new() };
    for (at, said) in (0_u8..).zip(members) {
        let said = heard.say(said);
        heard.job.inputs.push(CombineInput {
            sender: NodeId::new(format!("n{at}")).unwrap(),
            update: UpdateId([at; 16]),
            num_examples: 100,
            num_devices: 1,
            steps: 4,
            version: 0,
            staleness: 0,
            failed: 0,
            loss_first: 1.0,
            loss_last: 0.5,
            risk: None,
            delta: None,
            whole: false,
            stacked: false,
            back: None,
            base: Digest([0; 32]),
            class_logits: None,
            knowledge: Some(said),
        });
    }
    heard
}

impl Heard {
    /// Packs it, and keeps the blob.
    pub(crate) fn say(&mut self, said: &Knowing) -> Said {
        let packed = knowledge::pack(&self.job.plan, said).unwrap().unwrap();
        let set = Digest::of(&packed.bytes);
        self.blobs.insert(set, packed.bytes);
        let about = self.job.plan.knowledge.as_ref().and_then(|plan| plan.reference.as_ref());
        Said { set, counts: packed.counts, reference: about.map(|reference| reference.digest) }
    }

    /// What it comes to: unpacked, class means, packed.
    pub(crate) fn merged(
        &self,
    ) -> Result<(Knowing, Option<ClassSummary>, PackedKnowledge), UpdateError> {
        let plan = self.job.plan.knowledge.as_ref().unwrap();
        let blob = |digest: &Digest| self.blobs.get(digest).cloned();
        let work = knowledge::combine(&self.job, plan, &blob)?;
        let packed = work.knowledge.unwrap();
        let said = knowledge::unpack(plan, &packed.bytes, &packed.counts)?;
        Ok((said, work.class_logits, packed))
    }
}

/// What a member has that can follow [`knowledge_plan`] with this model of its own.
pub(crate) fn knows(adapter: &[u8]) -> Knows {
    let untrained = Digest::of(adapter);
    Knows { untrained, references: [REFERENCE].into(), labels: LABELS, top_logits: None }
}

const REFERENCE: Digest = Digest([0x4e; 32]);
const LABELS: Digest = Digest([0x1a; 32]);

/// The federation's name.
pub(crate) fn federation() -> Name {
    Name::new("test").unwrap()
}

/// A message of `sender` that passed every check.
pub(crate) fn verified(sender: &NodeId, round: RoundNo, epoch: Epoch, body: Body) -> Verified {
    let head = Head {
        minor: 0,
        federation: federation(),
        sender: sender.clone(),
        audience: None,
        topic: "t".into(),
        epoch,
        round,
        seq: 1,
        boot: BootId([0; 16]),
        issued_at: Wall(0),
        expires_at: Wall(u64::MAX),
    };
    Verified::for_test(head, body)
}

/// An owner with a quorum of 60 % and 20 s.
pub(crate) fn round_config(owner: Owner, members: &BTreeSet<NodeId>, plan: Plan) -> RoundConfig {
    RoundConfig {
        owner,
        members: members.clone(),
        guests: BTreeSet::new(),
        quorum: 0.6,
        deadline_ms: 20_000,
        republish_ms: 3_000,
        pause_ms: 500,
        versions: 3,
        schedule: RateSchedule::Constant,
        max_staleness: 10,
        chunk_bytes: CHUNK_BYTES,
        model: Name::new("m").unwrap(),
        base: Digest([1; 32]),
        plan,
        bounds: ShareBounds::default(),
        split: None,
        distils: None,
        triggers: None,
    }
}

/// A member that lets everything leave and has [`first_adapter`] of 4.
pub(crate) fn member_config(me: &NodeId, parent: &NodeId, relay: bool) -> MemberConfig {
    MemberConfig {
        federation: federation(),
        me: me.clone(),
        parent: parent.clone(),
        standby: None,
        second: None,
        model: Name::new("m").unwrap(),
        base: Digest([1; 32]),
        layout: layout_of(&first_adapter(4)).into(),
        relay,
        gate: Gate::from(Profile::Lab),
        resync_ms: 5_000,
        chunk_bytes: CHUNK_BYTES,
        knows: None,
        split: false,
    }
}

/// Names and shapes of a packed set.
pub(crate) fn layout_of(packed: &[u8]) -> Layout {
    update::unpack(packed).unwrap().layout()
}

/// A value as adapters have them.
#[expect(clippy::cast_possible_truncation, reason = "tensors are f32")]
pub(crate) fn small(stream: &mut Stream) -> f32 {
    stream.range(-0.1, 0.1) as f32
}
