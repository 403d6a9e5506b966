//! A small language model on libtorch behind the lane that writes: adapters are swapped between its
//! steps, and each answer is, letter for letter, the one that its version gives alone.
#![cfg(all(feature = "runtime", feature = "torch"))]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a test"
)]

#[path = "support/toy_generator.rs"]
mod toy_generator;

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use gaisnet::actors::lanes::LaneError;
use gaisnet::actors::text_lane::{Letter, TextLane, TextRequest, Writer};
use gaisnet::learn::{
    AdapterId, Ask, BatchLimits, Finish, Generated, Generator, Sampler, Sampling, Tensor,
    TensorSet, Tokens, Told,
};
use gaisnet::node::SystemClock;
use gaisnet::rng::Stream;
use gaisnet::time::{Clock, Mono};
use gaisnet::torch::adapter::AdapterPlan;
use gaisnet::torch::generate::LanguageGenerator;
use gaisnet::torch::language::{LanguageBase, LanguageConfig, Precision};
use gaisnet::torch::weights::Weights;
use gaisnet::torch::{LoraConfig, PeftConfig};
use tokio::sync::mpsc::{Receiver, channel};
use toy_generator::ToyTokens;

const LETTERS: u32 = 12;
const VERSIONS: u64 = 200;

/// 28 tokens (the toy's letters), two blocks, random weights.
fn base() -> LanguageBase {
    let config = LanguageConfig {
        vocab: 28,
        d_model: 32,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        d_ff: 64,
        rope_theta: 10_000.0,
        norm_eps: 1e-5,
        context: 64,
        tied: false,
    };
    let mut stream = Stream::new(1, "tests/base");
    let tensors = config.layout().0.into_iter().map(|(name, shape)| {
        let size: usize = shape.iter().product();
        let is_norm = name.contains("norm");
        let draw = |_| if is_norm { 1.0 } else { 0.3 * stream.normal() as f32 };
        let data = (0..size).map(draw).collect();
        Tensor { name, shape, data }
    });
    let weights = Weights::from_set(&TensorSet::new(tensors.collect()).unwrap()).unwrap();
    LanguageBase::new(config, weights, Precision::F32, tch::Device::Cpu).unwrap()
}

fn peft() -> PeftConfig {
    PeftConfig::lora(LoraConfig { rank: 4, ..LoraConfig::default() })
}

fn generator() -> LanguageGenerator {
    LanguageGenerator::new(base(), &peft(), NonZeroU16::MIN).unwrap()
}

/// An adapter of its own for each version.
fn adapter(version: u64) -> TensorSet {
    let base = base();
    let plan = AdapterPlan::new(&base.weights().layout(), &peft()).unwrap();
    let initial = plan.initial(base.weights(), 1).unwrap();
    let mut stream = Stream::new(version, "tests/adapter");
    let drawn = initial.tensors().iter().map(|tensor| {
        let data = tensor.data.iter().map(|_| 0.5 * stream.normal() as f32).collect();
        Tensor { data, ..tensor.clone() }
    });
    TensorSet::new(drawn.collect()).unwrap()
}

/// What a version writes when nothing else runs, token by token without a scheduler.
fn alone(generator: &mut LanguageGenerator, prompt: &str) -> String {
    let mut sampler = Sampler::new(Sampling::GREEDY, 1);
    let mut logits = generator.start(0, 1, &ToyTokens.encode(prompt).unwrap()).unwrap();
    let mut ids = Vec::new();
    loop {
        let token = sampler.pick(&logits).unwrap();
        if ToyTokens.is_end(token) {
            break;
        }
        ids.push(token);
        if ids.len() == LETTERS as usize {
            break;
        }
        logits = generator.step(&[(0, token)]).unwrap().remove(0);
    }
    generator.end(0);
    ToyTokens.decode(&ids).unwrap()
}

fn ask(prompt: &str) -> Ask {
    Ask {
        prompt: prompt.into(),
        max_tokens: LETTERS,
        sampling: Sampling::GREEDY,
        seed: 1,
        stop: vec![],
        stream: false,
        adapter: None,
        deadline: Mono(u64::MAX),
    }
}

fn prompt(ticket: u64) -> String {
    let letter = |n: u64| char::from(b'a' + (n % 25) as u8);
    (0..=ticket % 4).map(|i| letter(ticket * 7 + i * 3)).collect()
}

/// Submits, and waits for room where there is none.
fn submit(lane: &TextLane, mut request: impl FnMut() -> TextRequest) {
    while let Err(error) = lane.submit(request()) {
        assert_eq!(error, LaneError::Full);
        std::thread::yield_now();
    }
}

fn ends(mut letters: Receiver<Letter>, answered: &AtomicU64) -> BTreeMap<u64, Generated> {
    let mut all = BTreeMap::new();
    while let Some((ticket, told)) = letters.blocking_recv() {
        answered.fetch_add(1, Ordering::Relaxed);
        let Told::End(end) = told else { panic!("nobody asked for pieces") };
        assert!(all.insert(ticket, end.unwrap()).is_none());
    }
    all
}

#[test]
fn two_hundred_swaps_leave_each_answer_that_of_its_version_alone() {
    let adapters: Vec<Arc<TensorSet>> = (1..=VERSIONS).map(|v| Arc::new(adapter(v))).collect();
    let writer = Writer { generator: Box::new(generator()), tokens: Arc::new(ToyTokens) };
    let limits = BatchLimits { waiting: 4_096, ..BatchLimits::default() };
    let lane = TextLane::spawn(writer, limits, Arc::new(SystemClock::new()), 4).unwrap();
    let (told, letters) = channel(8);
    let answered = Arc::new(AtomicU64::new(0));
    let reader = std::thread::spawn({
        let answered = Arc::clone(&answered);
        move || ends(letters, &answered)
    });
    let mut ticket = 0;
    for (version, adapter) in (1..).zip(&adapters) {
        // Some of the answers before are still being written when the next version comes, but not all.
        while ticket > answered.load(Ordering::Relaxed) + 12 {
            std::thread::yield_now();
        }
        submit(&lane, || TextRequest::Load {
            id: AdapterId::Version(version),
            adapter: Arc::clone(adapter),
            done: Box::new(|result| result.unwrap()),
        });
        for _ in 0..2 {
            let told = told.clone();
            submit(&lane, || TextRequest::Ask {
                ticket,
                ask: ask(&prompt(ticket)),
                told: told.clone(),
            });
            ticket += 1;
        }
    }
    drop(told);
    lane.close();
    let all = reader.join().unwrap();
    assert_eq!(all.len() as u64, 2 * VERSIONS);
    let (versions, texts) = each_is_its_versions_alone(&all, &adapters);
    assert!(versions > 20, "answers of many versions: {versions}");
    assert!(texts > 20, "versions write differently: {texts}");
}

/// Compares each answer with what its version writes when nothing else runs; gives the numbers of versions
/// and of texts.
fn each_is_its_versions_alone(
    all: &BTreeMap<u64, Generated>,
    adapters: &[Arc<TensorSet>],
) -> (usize, usize) {
    let mut single = generator();
    let (mut versions, mut texts) = (BTreeSet::new(), BTreeSet::new());
    for (ticket, end) in all {
        let Some(AdapterId::Version(version)) = end.adapter else { panic!("{end:?}") };
        assert!(matches!(end.finish, Finish::Stop | Finish::Length), "{end:?}");
        single.load(1, &adapters[version as usize - 1]).unwrap();
        assert_eq!(end.text, alone(&mut single, &prompt(*ticket)), "version {version}");
        versions.insert(version);
        texts.insert(end.text.clone());
    }
    (versions.len(), texts.len())
}

#[test]
#[ignore = "ten seconds of real time: 20 requests a second with a deadline of 2 s, a swap with each"]
#[expect(clippy::disallowed_methods, reason = "real time")]
fn two_hundred_swaps_in_real_time_leave_no_answer_late_or_mixed() {
    let adapters: Vec<Arc<TensorSet>> = (1..=VERSIONS).map(|v| Arc::new(adapter(v))).collect();
    let writer = Writer { generator: Box::new(generator()), tokens: Arc::new(ToyTokens) };
    let clock = Arc::new(SystemClock::new());
    let lane = TextLane::spawn(writer, BatchLimits::default(), clock.clone(), 64).unwrap();
    let (told, letters) = channel(8);
    let reader = std::thread::spawn(move || ends(letters, &AtomicU64::new(0)));
    for (ticket, adapter) in (0..).zip(&adapters) {
        let load = TextRequest::Load {
            id: AdapterId::Version(ticket + 1),
            adapter: Arc::clone(adapter),
            done: Box::new(|result| result.unwrap()),
        };
        lane.submit(load).unwrap();
        let deadline = Mono(clock.now().mono.0 + 2_000);
        let ask = Ask { deadline, ..ask(&prompt(ticket)) };
        lane.submit(TextRequest::Ask { ticket, ask, told: told.clone() }).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    drop(told);
    lane.close();
    let all = reader.join().unwrap();
    assert_eq!(all.len() as u64, VERSIONS);
    // One that is taken together with the next version is answered by that.
    assert!(each_is_its_versions_alone(&all, &adapters).0 as u64 > VERSIONS / 2);
}
