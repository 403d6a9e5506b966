//! Rounds in which models that write tell each other what they would write next in reference texts.

use std::sync::Arc;

use gaisnet::actors::InlineBench;
use gaisnet::ids::{Digest, Name, NodeId};
use gaisnet::learn::{Examples, Learner, ReferenceSet, labels_digest};
use gaisnet::node::{Learning, NodeParts};
use gaisnet::protocol::{Distils, update};
use gaisnet::wire::{Coding, KnowledgePlan, Merging, Plan, Reference, TopLogitsPlan};

/// What a round asks for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lessons {
    pub(crate) steps: u32,
    pub(crate) batch: u32,
    pub(crate) rate: f32,
    /// Words that are named a place.
    pub(crate) top: u16,
    /// Share of the texts themselves in what is learned of them; the rest is what others say.
    pub(crate) alpha: f32,
    /// Weight of that beside own texts.
    pub(crate) reference_weight: f32,
}

impl Lessons {
    fn plan(&self, set: &ReferenceSet, of: &Plan) -> Plan {
        let tokens = set.tokens.as_ref().unwrap();
        Plan {
            adapter_delta: false,
            class_logits: false,
            local_steps: self.steps,
            batch_size: self.batch,
            learning_rate: self.rate,
            knowledge: Some(KnowledgePlan {
                prototypes: false,
                reference_logits: true,
                reference: Some(Reference {
                    generator: Name::new(set.name.as_str()).unwrap(),
                    seed: set.seed,
                    count: set.count(),
                    digest: set.digest,
                    classes: Some(u32::try_from(set.windows.classes).unwrap()),
                    unlabelled: false,
                }),
                labels: labels_digest(&[]),
                alpha: self.alpha,
                reference_weight: self.reference_weight,
                prototype_weight: 0.0,
                merging: Merging::Median,
                generator_weight: None,
                spectra: None,
                top_logits: Some(TopLogitsPlan {
                    top: self.top,
                    vocab: tokens.vocab,
                    tokenizer: tokens.tokenizer,
                    tokens: tokens.digest(),
                }),
            }),
            ..of.clone()
        }
    }

    /// A node with a model of its own that writes; who has no texts learns as an owner does.
    pub(crate) fn parts(
        &self,
        mut parts: NodeParts,
        node: &NodeId,
        (learner, data): (Box<dyn Learner>, Examples),
        set: &Arc<ReferenceSet>,
    ) -> NodeParts {
        let mut model = parts.learning.model.clone();
        model.labels.clear();
        let distils = Distils { steps: self.steps, learning_rate: self.rate, final_rate: None };
        parts.learning = Learning {
            model,
            base: Digest::of(node.as_str().as_bytes()),
            adapter: update::pack(&learner.initial_adapter(), Coding::F32, 0).unwrap(),
            plan: self.plan(set, &parts.learning.plan),
            reference: Some(Arc::clone(set)),
            distils: (data.num_examples() == 0).then_some(distils),
            ..parts.learning
        };
        let bench = InlineBench::new(node.clone(), Some((learner, data)));
        parts.bench = Box::new(bench.with_reference(Some(Arc::clone(set))));
        parts
    }
}
