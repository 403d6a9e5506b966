//! Language models with adapters of different kinds teach each other in a whole network on the in-memory bus: what travels is
//! what each would write next in reference texts. Real actors, machines, envelopes and ledgers; a tiny random Llama.
//!
//! ```text
//!   cloud     LoRA everywhere, rank 4      no texts
//!   edge0     LoRA of attention, rank 3    no texts
//!   dev0-0    LoRA everywhere, rank 2      texts of topic 0
//!   dev0-1    LoRA of some, rank 6         texts of topic 1
//! ```

#![cfg(all(feature = "runtime", feature = "torch"))]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "a test"
)]

#[path = "support/federation.rs"]
mod federation;
#[path = "support/written.rs"]
mod written;

use std::num::NonZeroU16;
use std::sync::Arc;

use federation::{Plant, name, paused};
use gaisnet::bus::memory::Faults;
use gaisnet::ids::{Digest, NodeId};
use gaisnet::learn::{
    Examples, Frame, Learner, ReferenceSet, ReferenceTexts, ReferenceTokens, TensorSet, Texts,
};
use gaisnet::ledger::Event;
use gaisnet::node::{Learning, NodeParts};
use gaisnet::privacy::{Gate, Profile};
use gaisnet::protocol::update;
use gaisnet::rng::Stream;
use gaisnet::torch::adamw::AdamWConfig;
use gaisnet::torch::language::{LanguageBase, LanguageConfig, Precision};
use gaisnet::torch::language_trainer::{LanguageLearner, LanguageTrainerConfig};
use gaisnet::torch::weights::Weights;
use gaisnet::torch::{LoraConfig, PeftConfig};
use gaisnet::wire::TopLogitsPlan;
use written::Lessons;

const VOCAB: u32 = 24;

fn base() -> LanguageBase {
    let sizes = LanguageConfig {
        vocab: VOCAB,
        d_model: 16,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        d_ff: 20,
        rope_theta: 1e4,
        norm_eps: 1e-5,
        context: 64,
        tied: true,
    };
    let mut set = TensorSet::zeros(&sizes.layout());
    for (name, data) in set.named_values_mut() {
        let (middle, scale) = if name.contains("norm") { (1.0, 0.1) } else { (0.0, 0.3) };
        let mut stream = Stream::new(3, name);
        for x in data {
            *x = middle + scale * stream.normal() as f32;
        }
    }
    let weights = Weights::from_set(&set).unwrap();
    LanguageBase::new(sizes, weights, Precision::F32, tch::Device::Cpu).unwrap()
}

/// Each node has an adapter of its own kind.
fn learner(node: &str) -> LanguageLearner {
    let (rank, targets): (u32, &[&str]) = match node {
        "cloud" => (4, &["*"]),
        "edge0" => (3, &["q", "k", "v", "o"]),
        "dev0-0" => (2, &["*"]),
        _ => (6, &["q", "up", "down"]),
    };
    let targets = targets.iter().map(|target| (*target).to_owned()).collect();
    let config = LanguageTrainerConfig {
        peft: PeftConfig::lora(LoraConfig { rank, targets, ..LoraConfig::default() }),
        adamw: AdamWConfig::default(),
        sequence: 16,
        frame: Frame { start: 0, end: 1, together: false },
        max_memory_mib: None,
        threads: NonZeroU16::MIN,
    };
    LanguageLearner::new(base(), config, 1).unwrap()
}

/// In a topic each word is followed by the third after it.
fn of_topic(topic: u32, starts: impl Iterator<Item = u32>) -> Texts {
    let mut texts = Texts::default();
    for start in starts {
        texts.tokens.extend((0..6).map(|j| 2 + 10 * topic + (start + 3 * j) % 10));
        texts.lengths.push(6);
    }
    texts
}

/// Five texts of each topic, which nobody owns; other starts than those that are judged by.
fn reference(tokenizer: u8) -> Arc<ReferenceSet> {
    let mut texts = of_topic(0, 0..5);
    let more = of_topic(1, 0..5);
    texts.tokens.extend(more.tokens);
    texts.lengths.extend(more.lengths);
    let written = ReferenceTexts {
        name: name("orders-1"),
        seed: 1,
        written_by: "a test".into(),
        labelled: true,
        classes: vec!["a".into(), "b".into()],
        texts: (0..10).map(|at| format!("text {at}")).collect(),
    };
    let tokens = ReferenceTokens { texts, vocab: VOCAB, tokenizer: Digest([tokenizer; 32]) };
    Arc::new(ReferenceSet::of_tokens(&written, tokens).unwrap())
}

fn parts(plant: &mut Plant, node: &NodeId, set: &Arc<ReferenceSet>, weight: f32) -> NodeParts {
    let data: Examples = match node.as_str() {
        "dev0-0" => of_topic(0, (0..120).map(|at| at % 5)).into(),
        "dev0-1" => of_topic(1, (0..120).map(|at| at % 5)).into(),
        _ => Texts::default().into(),
    };
    // The texts themselves teach nothing: what is learned of them, others have said.
    let lessons =
        Lessons { steps: 40, batch: 4, rate: 0.02, top: 6, alpha: 0.0, reference_weight: weight };
    let learner: Box<dyn Learner> = Box::new(learner(node.as_str()));
    lessons.parts(plant.parts(node), node, (learner, data), set)
}

/// Nats a token that each node's model has on texts of topic 1 that nobody has seen, after so many rounds.
fn nats_on_topic_1(versions: u64, weight: f32, faults: &Faults) -> Vec<(String, f64)> {
    let (sender, receiver) = std::sync::mpsc::channel();
    let faults = faults.clone();
    paused(async move {
        let set = reference(1);
        let mut plant = Plant::new(1, 2, versions, &faults);
        let nodes: Vec<NodeId> = plant.members.places.iter().map(|p| p.node.clone()).collect();
        for node in &nodes {
            let parts = parts(&mut plant, node, &set, weight);
            plant.run(parts);
        }
        plant.converge(60).await;
        plant.check_owner("cloud");
        plant.check_owner("edge0");
        let distilled = |event: &Event| matches!(event, Event::Distil { .. });
        assert!(plant.entries("edge0").iter().any(distilled));
        let unseen = of_topic(1, 5..10);
        let nats = nodes.iter().map(|node| {
            let learner = learner(node.as_str());
            let served = plant.running[node].serving.borrow().1.clone();
            let adapter = if served.is_empty() {
                learner.initial_adapter()
            } else {
                update::unpack(&served).unwrap()
            };
            (node.to_string(), learner.nats(&unseen, &adapter).unwrap() / 30.0)
        });
        sender.send(nats.collect()).unwrap();
    });
    receiver.recv().unwrap()
}

fn of(nats: &[(String, f64)], node: &str) -> f64 {
    nats.iter().find(|(name, _)| name == node).unwrap().1
}

#[test]
fn a_device_learns_a_topic_that_its_texts_lack_from_its_neighbour_and_without_its_words_it_does_not()
 {
    let with = nats_on_topic_1(5, 2.0, &Faults::none(1));
    let without = nats_on_topic_1(5, 0.0, &Faults::none(1));
    let (better, worse) = (of(&with, "dev0-0"), of(&without, "dev0-0"));
    assert!(better < 0.7 * worse, "{with:?} {without:?}");
    // Its edge and the cloud have no texts at all.
    for owner in ["edge0", "cloud"] {
        assert!(of(&with, owner) < 0.8 * of(&without, owner), "{with:?} {without:?}");
    }
    // Its neighbour's small adapter pays for the other topic, and knows its own all the same.
    assert!(of(&with, "dev0-1") < 0.75 * worse, "{with:?} {without:?}");
}

#[test]
fn faults_on_the_way_change_nothing_but_time() {
    let faults = Faults { seed: 3, loss: 0.1, duplicate: 0.1, delay_ms: 0..=2_000, reorder: true };
    let nats = nats_on_topic_1(2, 2.0, &faults);
    assert!(nats.iter().all(|(_, nats)| nats.is_finite()), "{nats:?}");
}

/// Why a device declined, when what it reads or how it writes is another.
fn declined(change: impl FnOnce(&mut Learning) + 'static) -> Vec<String> {
    let (sender, receiver) = std::sync::mpsc::channel();
    paused(async move {
        let set = reference(1);
        let mut plant = Plant::new(1, 2, 1, &Faults::none(1));
        let nodes: Vec<NodeId> = plant.members.places.iter().map(|p| p.node.clone()).collect();
        let mut change = Some(change);
        for node in nodes {
            let mut parts = parts(&mut plant, &node, &set, 1.0);
            if node.as_str() == "dev0-1"
                && let Some(change) = change.take()
            {
                change(&mut parts.learning);
            }
            plant.run(parts);
        }
        tokio::time::sleep(std::time::Duration::from_secs(90)).await;
        let reasons = plant.entries("dev0-1").into_iter().filter_map(|event| match event {
            Event::Decline { reason, .. } => Some(reason.as_str().to_owned()),
            _ => None,
        });
        sender.send(reasons.collect()).unwrap();
    });
    receiver.recv().unwrap()
}

fn top_logits(learning: &mut Learning) -> &mut Option<TopLogitsPlan> {
    &mut learning.plan.knowledge.as_mut().unwrap().top_logits
}

#[test]
fn who_has_another_tokenizer_or_does_not_write_says_so_and_who_has_the_same_takes_part() {
    let all = |reasons: Vec<String>, word: &str| {
        assert!(!reasons.is_empty() && reasons.iter().all(|reason| reason == word), "{reasons:?}");
    };
    let other = |learning: &mut Learning| {
        top_logits(learning).as_mut().unwrap().tokenizer = Digest([2; 32]);
    };
    all(declined(other), "other_tokenizer");
    let reads_otherwise = |learning: &mut Learning| {
        top_logits(learning).as_mut().unwrap().tokens = Digest([2; 32]);
    };
    all(declined(reads_otherwise), "other_tokenizer");
    all(declined(|learning| *top_logits(learning) = None), "model_does_not_write");
    // What is said of texts passes the same gate as all else that leaves.
    let strict = |learning: &mut Learning| learning.gate = Gate::from(Profile::Strict);
    all(declined(strict), "too_few_steps");
    // How many words it would name itself is nothing that has to agree.
    let fewer = |learning: &mut Learning| top_logits(learning).as_mut().unwrap().top = 3;
    assert_eq!(declined(fewer), Vec::<String>::new());
}
