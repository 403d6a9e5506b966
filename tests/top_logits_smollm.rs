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
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test"
)]

#[path = "support/federation.rs"]
mod federation;
#[path = "support/written.rs"]
mod written;

use std::num::NonZeroU16;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use federation::{Plant, paused};
use gaisnet::bus::memory::Faults;
use gaisnet::data::Cache;
use gaisnet::data::excavators::Excavators;
use gaisnet::ids::NodeId;
use gaisnet::learn::{
    Examples, Frame, Learner, ReferenceSet, ReferenceTexts, ReferenceTokens, Texts,
};
use gaisnet::node::NodeParts;
use gaisnet::protocol::update;
use gaisnet::torch::adamw::AdamWConfig;
use gaisnet::torch::adopted::load_language;
use gaisnet::torch::language::{LanguageBase, Precision};
use gaisnet::torch::language_trainer::{LanguageLearner, LanguageTrainerConfig};
use gaisnet::torch::tokenizer::TextTokenizer;
use gaisnet::torch::{LoraConfig, PeftConfig, shipped};
use written::Lessons;

const ROUNDS: u64 = 3;

struct Arm {
    name: &'static str,
    /// As in [`Lessons`].
    alpha: f32,
    reference_weight: f32,
}

impl Arm {
    fn lessons(&self) -> Lessons {
        let Self { alpha, reference_weight, .. } = *self;
        Lessons { steps: 20, batch: 1, rate: 1e-3, top: 128, alpha, reference_weight }
    }
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
    let (_, loaded) = load_language(&card, &shipped::trust().unwrap(), &cache.models())
        .expect("gaisnet model fetch smollm2-135m");
    let base =
        LanguageBase::new(loaded.config, loaded.weights, Precision::F32, tch::Device::Cpu).unwrap();
    let tokenizer = loaded.tokenizer;
    let set = Excavators::cached(&cache).expect("gaisnet data fetch excavators").load().unwrap();
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

    fn parts(&self, plant: &mut Plant, node: &NodeId, arm: &Arm) -> NodeParts {
        let data: Examples = match node.as_str() {
            "dev0-0" => self.orders[0].0.clone().into(),
            "dev0-1" => self.orders[1].0.clone().into(),
            _ => Texts::default().into(),
        };
        let learner: Box<dyn Learner> = Box::new(self.learner(node.as_str()));
        arm.lessons().parts(plant.parts(node), node, (learner, data), &self.reference)
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
