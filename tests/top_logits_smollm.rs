//! SmolLM2 with adapters of three kinds teaches itself across a site and a cloud: real work orders at two devices, and
//! texts that it wrote for all. Real actors, machines, envelopes and ledgers over the bus in memory. Prints figures and
//! asserts that a device learns its own orders. Half an hour of training, so it is ignored.
//!
//! ```sh
//! cargo test --all-features --test top_logits_smollm -- --ignored --nocapture
//! ```
//! ```text
//!   cloud     LoRA rank 8 on q, v          no orders
//!   edge0     LoRA rank 4 on q, k, v, o    no orders
//!   dev0-0    LoRA rank 2 on q, v          orders of excavator E
//!   dev0-1    LoRA rank 8 on q, up, down   orders of excavator D
//! ```

#![cfg(all(feature = "cli", feature = "torch"))]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test"
)]

#[path = "support/federation.rs"]
mod federation;

use std::num::NonZeroU16;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use federation::{Plant, name, paused};
use gaisnet::actors::InlineBench;
use gaisnet::bus::memory::Faults;
use gaisnet::data::Cache;
use gaisnet::data::excavators::Excavators;
use gaisnet::ids::{Digest, NodeId};
use gaisnet::learn::{
    Examples, Frame, Learner, ReferenceSet, ReferenceTexts, ReferenceTokens, Texts, labels_digest,
};
use gaisnet::node::{Learning, NodeParts};
use gaisnet::protocol::{Distils, update};
use gaisnet::torch::adamw::AdamWConfig;
use gaisnet::torch::adopted::load_language;
use gaisnet::torch::language::{LanguageBase, Precision};
use gaisnet::torch::language_trainer::{LanguageLearner, LanguageTrainerConfig};
use gaisnet::torch::tokenizer::TextTokenizer;
use gaisnet::torch::{LoraConfig, PeftConfig, shipped};
use gaisnet::wire::{Coding, KnowledgePlan, Merging, Plan, Reference, TopLogitsPlan};

const ROUNDS: u64 = 3;
const STEPS: u32 = 20;
const RATE: f32 = 1e-3;

struct Arm {
    name: &'static str,
    /// Share of the texts themselves in what is learned of them; the rest is what others say.
    alpha: f32,
    /// Weight of that beside own orders.
    reference_weight: f32,
}

const ARMS: [Arm; 3] = [
    Arm { name: "own orders alone", alpha: 1.0, reference_weight: 0.0 },
    Arm { name: "texts alone", alpha: 1.0, reference_weight: 1.0 },
    Arm { name: "relay", alpha: 0.5, reference_weight: 1.0 },
];

struct Subject {
    base: LanguageBase,
    newline: u32,
    reference: Arc<ReferenceSet>,
    /// Orders to learn from and to judge by, of E and D.
    orders: [(Texts, Texts); 2],
}

fn subject() -> Subject {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let cache = Cache::from_env().unwrap();
    let card = root.join("models/smollm2-135m.toml");
    let (_, loaded) = load_language(&card, &shipped::trust().unwrap(), &cache.models()).unwrap();
    let base =
        LanguageBase::new(loaded.config, loaded.weights, Precision::F32, tch::Device::Cpu).unwrap();
    let tokenizer = loaded.tokenizer;
    let set = Excavators::cached(&cache).unwrap().load().unwrap();
    let orders = ["E", "D"].map(|machine| {
        let orders = set.machine(machine).unwrap();
        let texts = |all: &[String]| encoded(&tokenizer, all);
        (texts(&orders.train), texts(&orders.test))
    });
    let file = root.join("models/reference/excavator-orders-1.txt");
    let written = ReferenceTexts::parse(&std::fs::read(file).unwrap()).unwrap();
    let texts = encoded(&tokenizer, &written.texts);
    let (vocab, digest) = (tokenizer.vocab(), tokenizer.digest());
    let tokens = ReferenceTokens { texts, vocab, tokenizer: digest };
    let reference = Arc::new(ReferenceSet::of_tokens(&written, tokens).unwrap());
    Subject { base, newline: tokenizer.encode("\n").unwrap()[0], reference, orders }
}

fn encoded(tokenizer: &TextTokenizer, all: &[String]) -> Texts {
    Texts::encoded(all, &mut |text| tokenizer.encode(text)).unwrap()
}

impl Subject {
    fn learner(&self, node: &str) -> LanguageLearner {
        let (rank, targets): (u32, &[&str]) = match node {
            "cloud" => (8, &["q", "v"]),
            "edge0" => (4, &["q", "k", "v", "o"]),
            "dev0-0" => (2, &["q", "v"]),
            _ => (8, &["q", "up", "down"]),
        };
        let targets = targets.iter().map(|target| (*target).to_owned()).collect();
        let config = LanguageTrainerConfig {
            peft: PeftConfig::lora(LoraConfig { rank, targets, ..LoraConfig::default() }),
            adamw: AdamWConfig { weight_decay: 0.0, ..AdamWConfig::default() },
            sequence: 256,
            frame: Frame::log_book(self.newline),
            max_memory_mib: None,
            threads: NonZeroU16::new(2).unwrap(),
        };
        LanguageLearner::new(self.base.share(), config, 1).unwrap()
    }

    fn plan(&self, &Arm { alpha, reference_weight, .. }: &Arm, of: &Plan) -> Plan {
        let set = &self.reference;
        let tokens = set.tokens.as_ref().unwrap();
        Plan {
            adapter_delta: false,
            class_logits: false,
            local_steps: STEPS,
            batch_size: 1,
            learning_rate: RATE,
            knowledge: Some(KnowledgePlan {
                prototypes: false,
                reference_logits: true,
                reference: Some(Reference {
                    generator: name(&set.name),
                    seed: set.seed,
                    count: set.count(),
                    digest: set.digest,
                    classes: Some(u32::try_from(set.windows.classes).unwrap()),
                    unlabelled: false,
                }),
                labels: labels_digest(&[]),
                alpha,
                reference_weight,
                prototype_weight: 0.0,
                merging: Merging::Median,
                generator_weight: None,
                top_logits: Some(TopLogitsPlan {
                    top: 128,
                    vocab: tokens.vocab,
                    tokenizer: tokens.tokenizer,
                    tokens: tokens.digest(),
                }),
            }),
            ..of.clone()
        }
    }

    fn parts(&self, plant: &mut Plant, node: &NodeId, arm: &Arm) -> NodeParts {
        let mut parts = plant.parts(node);
        let learner = self.learner(node.as_str());
        let data: Examples = match node.as_str() {
            "dev0-0" => self.orders[0].0.clone().into(),
            "dev0-1" => self.orders[1].0.clone().into(),
            _ => Texts::default().into(),
        };
        let mut model = parts.learning.model.clone();
        model.labels.clear();
        let owner = data.num_examples() == 0;
        let rate = arm.reference_weight * RATE;
        parts.learning = Learning {
            model,
            base: Digest::of(node.as_str().as_bytes()),
            adapter: update::pack(&learner.initial_adapter(), Coding::F32, 0).unwrap(),
            plan: self.plan(arm, &parts.learning.plan),
            reference: Some(Arc::clone(&self.reference)),
            distils: (owner && rate > 0.0).then_some(Distils { steps: STEPS, learning_rate: rate }),
            ..parts.learning
        };
        let bench: InlineBench = InlineBench::new(node.clone(), Some((Box::new(learner), data)));
        parts.bench = Box::new(bench.with_reference(Some(Arc::clone(&self.reference))));
        parts
    }

    /// Bits a character of orders that nobody learned from, E's and D's.
    fn bits(&self, node: &str, adapter: &gaisnet::learn::TensorSet) -> [f64; 2] {
        let learner = self.learner(node);
        [0, 1].map(|of: usize| {
            let test = &self.orders[of].1;
            learner.nats(test, adapter).unwrap() / std::f64::consts::LN_2 / test.chars as f64
        })
    }
}

#[test]
#[ignore = "half an hour of training: prints figures"]
fn what_each_model_makes_of_the_others_orders() {
    let subject = Rc::new(subject());
    let untrained = subject.learner("cloud").initial_adapter();
    println!("{:<18}{:<8}{:>8}{:>8}", "arm", "node", "E", "D");
    let [e, d] = subject.bits("cloud", &untrained);
    println!("{:<18}{:<8}{e:>8.3}{d:>8.3}", "base", "all");
    for arm in ARMS {
        let subject = Rc::clone(&subject);
        paused(async move {
            let mut plant = Plant::new(1, 2, ROUNDS, &Faults::none(1));
            let nodes: Vec<NodeId> = plant.members.places.iter().map(|p| p.node.clone()).collect();
            for node in &nodes {
                let parts = subject.parts(&mut plant, node, &arm);
                plant.run(parts);
            }
            plant.converge(60).await;
            for node in &nodes {
                let served = plant.running[node].serving.borrow().1.clone();
                let adapter = if served.is_empty() {
                    subject.learner(node.as_str()).initial_adapter()
                } else {
                    update::unpack(&served).unwrap()
                };
                let [e_after, d_after] = subject.bits(node.as_str(), &adapter);
                println!("{:<18}{:<8}{e_after:>8.3}{d_after:>8.3}", arm.name, node.as_str());
                assert!(node.as_str() != "dev0-0" || e_after < e, "it learns its own orders");
            }
        });
    }
}
