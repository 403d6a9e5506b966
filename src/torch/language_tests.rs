//! Each kind of adapter on a tiny random Llama: gradients, merging, packing, caching, memory.

use std::collections::BTreeMap;

use tch::Device;

use super::*;
use crate::ids::{Digest, Name};
use crate::learn::{ClassLogits, Generator, Layout, LearnError};
use crate::torch::decoder::{Continue, HeadCache, RowCache, extend};
use crate::torch::generate::LanguageGenerator;
use crate::torch::language::{LanguageConfig, LanguageModel, Precision, SequenceCache};
use crate::torch::peft::LoraConfig;
use crate::torch::weights::Weights;
use crate::torch::{tensor, values};

const SEED: u64 = 3;

fn sizes(tied: bool) -> LanguageConfig {
    LanguageConfig {
        vocab: 24,
        d_model: 16,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        d_ff: 20,
        rope_theta: 1e4,
        norm_eps: 1e-5,
        context: 64,
        tied,
    }
}

fn noise(name: &str, n: usize) -> Vec<f32> {
    let mut stream = Stream::new(SEED, name);
    #[expect(clippy::cast_possible_truncation, reason = "test values are f32")]
    (0..n).map(|_| stream.normal() as f32).collect()
}

fn base(tied: bool) -> LanguageBase {
    use_threads(NonZeroU16::MIN);
    let mut set = TensorSet::zeros(&sizes(tied).layout());
    for (name, data) in set.named_values_mut() {
        let (middle, scale) = if name.contains("norm") { (1.0, 0.1) } else { (0.0, 0.3) };
        let drawn = noise(name, data.len());
        data.iter_mut().zip(drawn).for_each(|(x, r)| *x = middle + scale * r);
    }
    let weights = Weights::from_set(&set).unwrap();
    LanguageBase::new(sizes(tied), weights, Precision::F32, Device::Cpu).unwrap()
}

fn names(all: &[&str]) -> Vec<String> {
    all.iter().map(|name| (*name).to_owned()).collect()
}

fn lora(targets: &[&str]) -> PeftConfig {
    let ranks = BTreeMap::from([("v".into(), 2), ("blocks.1.attn.q".into(), 5)]);
    let (targets, rank) = (names(targets), 3);
    PeftConfig::lora(LoraConfig { rank, targets, ranks, ..LoraConfig::default() })
}

/// Kinds whose effect a matrix can hold.
fn mergeable() -> Vec<(&'static str, PeftConfig)> {
    let none = PeftConfig::none;
    let mut stable = lora(&["q", "o", "gate"]);
    stable.lora.as_mut().unwrap().rank_stabilised = true;
    vec![
        ("lora", lora(&["q", "v", "up", "down"])),
        ("lora, everywhere", lora(&["*"])),
        ("rslora", stable),
        ("lora of the head", lora(&["head"])),
        ("ia3", PeftConfig { ia3: names(&["k", "v", "up", "o"]), ..none() }),
        ("ia3 of inputs", PeftConfig { ia3_inputs: names(&["q", "gate", "down"]), ..none() }),
        (
            "ia3 over lora",
            PeftConfig { ia3: names(&["v"]), ia3_inputs: names(&["q"]), ..lora(&["q", "v"]) },
        ),
        ("head", PeftConfig::whole(names(&["head"]))),
        ("norms", PeftConfig::whole(names(&["norm*"]))),
        ("everything", PeftConfig::whole(names(&["*"]))),
    ]
}

/// Kinds that put something before tokens or behind layers.
fn unmergeable() -> Vec<(&'static str, PeftConfig)> {
    let none = PeftConfig::none;
    vec![
        ("deep prompts", PeftConfig { deep_prompts: 3, ..none() }),
        ("prompts", PeftConfig { prompts: 2, ..none() }),
        ("prefix", PeftConfig { prefix: 3, ..none() }),
        ("bottleneck", PeftConfig { bottleneck: 4, ..none() }),
        (
            "all of it",
            PeftConfig { deep_prompts: 1, prompts: 2, prefix: 3, bottleneck: 2, ..lora(&["q"]) },
        ),
    ]
}

fn kinds() -> Vec<(&'static str, PeftConfig)> {
    let mut all = mergeable();
    all.extend(unmergeable());
    all
}

fn learner(base: &LanguageBase, peft: &PeftConfig) -> LanguageLearner {
    let config = LanguageTrainerConfig {
        peft: peft.clone(),
        adamw: AdamWConfig::default(),
        sequence: 16,
        frame: Frame { start: 0, end: 1, together: false },
        max_memory_mib: None,
        threads: NonZeroU16::MIN,
    };
    LanguageLearner::new(base.share(), config, SEED).unwrap()
}

/// An adapter in the middle of its training: nothing of it is 0 or 1.
fn adapter(learner: &LanguageLearner) -> TensorSet {
    let mut set = learner.initial_adapter();
    for (name, data) in set.named_values_mut() {
        let drawn = noise(&format!("adapter {name}"), data.len());
        data.iter_mut().zip(drawn).for_each(|(x, r)| *x += 0.15 * r);
    }
    set
}

fn texts() -> Vec<Vec<u32>> {
    [5_usize, 3, 9, 7, 12].iter().enumerate().map(|(i, len)| text(i, *len)).collect()
}

fn text(seed: usize, len: usize) -> Vec<u32> {
    let mut stream = Stream::new(SEED, &format!("text {seed}"));
    (0..len).map(|_| u32::try_from(2 + stream.below(22)).unwrap()).collect()
}

fn packed(learner: &LanguageLearner) -> Packed {
    let texts = texts();
    let frame = learner.config.frame;
    pack(texts.iter().map(Vec::as_slice), frame, learner.config.sequence as usize).unwrap()
}

fn rows(packed: &Packed, which: &[usize]) -> Rows {
    Rows::new(packed, which, Device::Cpu).unwrap()
}

/// Mean nats, and the gradient.
fn backward(run: &LanguageRun<'_>, packed: &Packed) -> (f64, Vec<f32>) {
    let all: Vec<usize> = (0..packed.num()).collect();
    let (sum, gradient) = run.backward(&rows(packed, &all), 10.0).unwrap();
    (sum / 10.0, values(&gradient).unwrap())
}

fn ids(tokens: &[u32]) -> Tensor {
    let ids: Vec<i64> = tokens.iter().map(|t| i64::from(*t)).collect();
    Tensor::from_slice(&ids).unsqueeze(0)
}

fn logits(
    base: &LanguageBase,
    learner: &LanguageLearner,
    set: &TensorSet,
    text: &[u32],
) -> Vec<f32> {
    let attached = learner.plan.attach(&learner.plan.flatten(set).unwrap()).unwrap();
    logits_of(&base.model(Some(&attached)).unwrap(), text)
}

fn logits_of(model: &LanguageModel, text: &[u32]) -> Vec<f32> {
    let batch = TokenBatch { ids: ids(text), positions: None, segments: None };
    values(&model.logits(&model.hidden(&batch).unwrap()).unwrap()).unwrap()
}

fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn norm(a: &[f32]) -> f64 {
    a.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt()
}

/// Names of the tensors with their places in the flat buffer.
fn places(layout: &Layout) -> Vec<(&str, std::ops::Range<usize>)> {
    let mut start = 0;
    let place = |(name, shape): &'_ (String, Vec<usize>)| {
        let n = shape.iter().product::<usize>();
        start += n;
        (name.clone(), start - n..start)
    };
    let all: Vec<_> = layout.0.iter().map(place).collect();
    layout.0.iter().zip(all).map(|((name, _), (_, range))| (name.as_str(), range)).collect()
}

#[test]
fn each_kind_gets_the_gradient_that_finite_differences_give() {
    const STEP: f32 = 1.5e-3;
    for tied in [false, true] {
        let base = base(tied);
        for (kind, peft) in kinds() {
            if tied && kind != "everything" {
                continue;
            }
            let learner = learner(&base, &peft);
            let packed = packed(&learner);
            let mut run = learner.run(&adapter(&learner), packed.num()).unwrap();
            let start = values(&run.flat).unwrap();
            let (_, gradient) = backward(&run, &packed);
            let layout = learner.plan.layout();
            for (name, place) in places(&layout) {
                let own = &gradient[place.clone()];
                let length = norm(own);
                assert!(length > 1e-4, "{kind}: nothing reaches {name}");
                for direction in [own.to_vec(), noise(name, own.len())] {
                    #[expect(clippy::cast_possible_truncation, reason = "a step in f32")]
                    let scale = STEP / norm(&direction) as f32;
                    let mut at = |sign: f32| {
                        let mut moved = start.clone();
                        let changes = moved[place.clone()].iter_mut().zip(&direction);
                        changes.for_each(|(x, d)| *x += sign * scale * d);
                        run.flat = tensor(&moved, &[-1]).unwrap().set_requires_grad(true);
                        backward(&run, &packed).0
                    };
                    let measured = (at(1.0) - at(-1.0)) / (2.0 * f64::from(STEP));
                    let dots = own.iter().zip(&direction).map(|(g, d)| f64::from(g * d));
                    let expected = dots.sum::<f64>() / norm(&direction);
                    let apart = (measured - expected).abs();
                    assert!(
                        apart < 5e-3 + 1e-2 * length,
                        "{kind}, {name}: measured {measured}, expected {expected}, length {length}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_merged_adapter_answers_as_the_attached_one_and_the_base_stays_as_it_was() {
    let _guard = tch::no_grad_guard();
    let base = base(false);
    let text = text(7, 12);
    for (kind, peft) in mergeable() {
        let learner = learner(&base, &peft);
        let set = adapter(&learner);
        let attached = logits(&base, &learner, &set, &text);
        let batch = || TokenBatch { ids: ids(&text), positions: None, segments: None };
        let bare = |base: &LanguageBase| {
            let model = base.model(None).unwrap();
            values(&model.logits(&model.hidden(&batch()).unwrap()).unwrap()).unwrap()
        };
        let before = bare(&base);
        let flat = learner.plan.flatten(&set).unwrap();
        let merged = bare(&base.on(learner.plan.merge(base.weights(), &flat).unwrap()));
        let apart = distance(&merged, &attached);
        assert!(apart < 1e-5, "{kind}: {apart}");
        assert!(distance(&merged, &before) > 1e-2, "{kind} changes nothing");
        assert_eq!(bare(&base), before, "{kind}: merging changed the base");
    }
}

#[test]
fn what_no_matrix_can_hold_is_not_merged() {
    let base = base(false);
    for (kind, peft) in unmergeable() {
        let learner = learner(&base, &peft);
        let flat = learner.plan.flatten(&adapter(&learner)).unwrap();
        let error = learner.plan.merge(base.weights(), &flat).unwrap_err();
        assert!(error.to_string().contains("part of an adapter to merge"), "{kind}: {error}");
    }
}

#[test]
fn texts_of_one_sequence_are_as_far_apart_as_texts_of_their_own() {
    let _guard = tch::no_grad_guard();
    let base = base(false);
    let (a, b) = (text(1, 6), text(2, 8));
    for (kind, peft) in kinds() {
        let learner = learner(&base, &peft);
        let set = adapter(&learner);
        let frame = learner.config.frame;
        let packed = pack([a.as_slice(), b.as_slice()], frame, 16).unwrap();
        assert_eq!(packed.num(), 1);
        let attached = learner.plan.attach(&learner.plan.flatten(&set).unwrap()).unwrap();
        let model = base.model(Some(&attached)).unwrap();
        let together = model.hidden(&rows(&packed, &[0]).batch).unwrap();
        let together = values(&model.logits(&together).unwrap()).unwrap();
        let mut start = 0;
        for text in [&a, &b] {
            let mut framed = vec![frame.start];
            framed.extend(text);
            let alone = logits(&base, &learner, &set, &framed);
            let apart = distance(&together[start..start + alone.len()], &alone);
            assert!(apart < 2e-5, "{kind}: {apart}");
            start += alone.len();
        }
        // Without segments the second text sees the first.
        let mixed = logits(&base, &learner, &set, &packed.inputs);
        let apart = distance(&together[start - 24..start], &mixed[start - 24..start]);
        assert!(apart > 1e-3, "{kind}: {apart}");
    }
}

#[test]
fn tokens_one_by_one_answer_as_all_at_once() {
    let _guard = tch::no_grad_guard();
    let base = base(false);
    let text = text(3, 10);
    for (kind, peft) in kinds() {
        let learner = learner(&base, &peft);
        let set = adapter(&learner);
        let whole = logits(&base, &learner, &set, &text);
        let attached = learner.plan.attach(&learner.plan.flatten(&set).unwrap()).unwrap();
        let model = base.model(Some(&attached)).unwrap();
        // A prompt, two tokens at once, then one by one.
        for cuts in [vec![4, 6, 7, 8, 9, 10], vec![1, 2, 10]] {
            let mut cache = SequenceCache::default();
            let mut from = 0;
            for to in cuts {
                let hidden = model.extend(&ids(&text[from..to]), &mut [&mut cache]).unwrap();
                let last = values(&model.logits(&hidden).unwrap()).unwrap();
                let apart = distance(&last, &whole[(to - 1) * 24..to * 24]);
                assert!(apart < 2e-5, "{kind}, {from}..{to}: {apart}");
                from = to;
            }
        }
    }
}

#[test]
fn slots_answer_with_their_own_adapters_also_where_those_change_the_head() {
    let base = base(false);
    let text = text(4, 8);
    for (kind, peft) in kinds() {
        let learner = learner(&base, &peft);
        let set = adapter(&learner);
        let whole = logits(&base, &learner, &set, &text);
        let mut writer = LanguageGenerator::new(base.share(), &peft, NonZeroU16::MIN).unwrap();
        writer.load(1, &set).unwrap();
        let bare = writer.start(7, 0, &text[..6]).unwrap();
        let first = writer.start(8, 1, &text[..6]).unwrap();
        assert!(distance(&first, &bare) > 1e-2, "{kind}: the adapter changes nothing");
        assert!(distance(&first, &whole[5 * 24..6 * 24]) < 2e-5, "{kind}");
        let next = writer.step(&[(7, text[6]), (8, text[6])]).unwrap();
        assert!(distance(&next[1], &whole[6 * 24..7 * 24]) < 2e-5, "{kind}");
        assert!(distance(&next[0], &next[1]) > 1e-2, "{kind}");
    }
}

#[test]
fn sequences_that_are_written_together_get_what_each_gets_alone() {
    let base = base(false);
    let texts = [text(5, 9), text(6, 12), text(7, 4)];
    for (kind, peft) in kinds() {
        let learner = learner(&base, &peft);
        let set = adapter(&learner);
        let mut writer = LanguageGenerator::new(base.share(), &peft, NonZeroU16::MIN).unwrap();
        writer.load(1, &set).unwrap();
        let mut step = Vec::new();
        for (at, text) in texts.iter().enumerate() {
            let last = text.len() - 1;
            // Between two of an adapter stands one of another, which must not change their order.
            let (number, slot) = (at as u64, u32::from(at != 1));
            writer.start(number, slot, &text[..last]).unwrap();
            step.push((number, text[last]));
        }
        let together = writer.step(&step).unwrap();
        for ((at, text), next) in texts.iter().enumerate().zip(together) {
            let bare = logits_of(&base.model(None).unwrap(), text);
            let whole = if at == 1 { bare } else { logits(&base, &learner, &set, text) };
            let apart = distance(&next, &whole[(text.len() - 1) * 24..]);
            assert!(apart < 2e-5, "{kind}, text {at}: {apart}");
        }
        let again = writer.step(&[(0, 1), (0, 2)]);
        assert!(matches!(again, Err(LearnError::OutOfRange { what: "sequence", .. })), "{again:?}");
    }
}

/// One generator with an adapter of each kind, in slots 1, 2, ..; and their names.
fn all_kinds_at_once(base: &LanguageBase) -> (LanguageGenerator, Vec<&'static str>) {
    let peft = lora(&["q", "v"]);
    let mut writer = LanguageGenerator::new(base.share(), &peft, NonZeroU16::MIN).unwrap();
    let mut names = vec!["bare"];
    for (at, (kind, peft)) in kinds().into_iter().enumerate() {
        let name = Name::new(format!("kind-{at}")).unwrap();
        writer.hold(name, &peft, &adapter(&learner(base, &peft))).unwrap();
        names.push(kind);
    }
    (writer, names)
}

#[test]
fn sequences_of_all_kinds_of_adapters_in_one_step_get_bit_for_bit_what_each_gets_alone() {
    let base = base(false);
    let (mut together, names) = all_kinds_at_once(&base);
    let (mut alone, _) = all_kinds_at_once(&base);
    // Two of each kind, of other lengths, numbered so that no two of a kind stand side by side.
    let slots = u32::try_from(names.len()).unwrap();
    let all: Vec<(u64, u32, Vec<u32>)> = (0..2 * slots)
        .map(|n| (n.into(), n % slots, text(n as usize, 5 + (n as usize * 3) % 7)))
        .collect();
    for (number, slot, text) in &all {
        let prompt = &text[..text.len() - 3];
        let first = together.start(*number, *slot, prompt).unwrap();
        assert_eq!(
            first,
            alone.start(*number, *slot, prompt).unwrap(),
            "{}",
            names[*slot as usize]
        );
    }
    for back in (1..=3).rev() {
        let token = |text: &[u32]| text[text.len() - back];
        let step: Vec<(u64, u32)> =
            all.iter().map(|(number, _, text)| (*number, token(text))).collect();
        let next = together.step(&step).unwrap();
        assert_eq!(next.len(), step.len());
        for ((pair, (_, slot, text)), next) in step.iter().zip(&all).zip(next) {
            let kind = names[*slot as usize];
            let same = alone.step(&[*pair]).unwrap().remove(0);
            if kind == "bottleneck" || kind == "all of it" {
                // libtorch does these, two rows of a slot at once.
                assert!(distance(&next, &same) < 2e-5, "{kind}");
            } else {
                assert_eq!(next, same, "{kind}");
            }
            if back == 1 {
                let (_, peft) = kinds().remove((*slot as usize).saturating_sub(1));
                let whole = if *slot == 0 {
                    logits_of(&base.model(None).unwrap(), text)
                } else {
                    let learner = learner(&base, &peft);
                    logits(&base, &learner, &adapter(&learner), text)
                };
                assert!(distance(&next, &whole[(text.len() - 1) * 24..]) < 2e-5, "{kind}");
            }
        }
    }
}

#[test]
fn decoders_of_one_base_hold_its_matrices_but_those_that_an_adapter_replaces() {
    let _guard = tch::no_grad_guard();
    let base = base(false);
    let bare = base.model(None).unwrap().decoder().unwrap().unwrap();
    for (kind, peft) in kinds() {
        let learner = learner(&base, &peft);
        let flat = learner.plan.flatten(&adapter(&learner)).unwrap();
        let attached = learner.plan.attach(&flat).unwrap();
        let Some(own) = base.model(Some(&attached)).unwrap().decoder().unwrap() else {
            assert!(["bottleneck", "all of it"].contains(&kind), "{kind}");
            continue;
        };
        for (own, bare) in own.layers.iter().zip(&bare.layers) {
            let pairs = [
                (&own.attention.qkv, &bare.attention.qkv),
                (&own.attention.out, &bare.attention.out),
                (&own.gate_up, &bare.gate_up),
                (&own.down, &bare.down),
            ];
            for (own, bare) in pairs {
                let same = own.weight.numbers.is(&bare.weight.numbers);
                assert_eq!(same, kind != "everything", "{kind}");
            }
        }
        let replaced = ["lora, everywhere", "lora of the head", "head", "everything"];
        assert_eq!(own.head.numbers.is(&bare.head.numbers), !replaced.contains(&kind), "{kind}");
    }
}

#[test]
fn sequences_of_two_bases_do_not_go_into_one_step() {
    let _guard = tch::no_grad_guard();
    let decoder = |sizes: LanguageConfig| {
        let weights = Weights::from_set(&TensorSet::zeros(&sizes.layout())).unwrap();
        let base = LanguageBase::new(sizes, weights, Precision::F32, Device::Cpu).unwrap();
        base.model(None).unwrap().decoder().unwrap().unwrap()
    };
    let cache = |layers| {
        let mut cache = RowCache::default();
        cache.layers.resize_with(layers, || (0..2).map(|_| HeadCache::default()).collect());
        cache
    };
    let (two, three) = (decoder(sizes(true)), decoder(LanguageConfig { layers: 3, ..sizes(true) }));
    let (mut a, mut b) = (cache(2), cache(3));
    let mut both = [
        Continue { decoder: &two, cache: &mut a, tokens: &[3] },
        Continue { decoder: &three, cache: &mut b, tokens: &[3] },
    ];
    let error = extend(&mut both).unwrap_err().to_string();
    assert!(error.contains("of one base"), "{error}");
    assert!(extend(&mut both[..1]).is_ok() && extend(&mut both[1..]).is_ok());
    let mut short = Continue { decoder: &three, cache: &mut cache(2), tokens: &[3] };
    assert!(extend(std::slice::from_mut(&mut short)).is_err());
}

#[test]
fn an_adapter_with_a_name_has_its_slot_for_good_and_each_name_one() {
    let base = base(true);
    let peft = lora(&["q"]);
    let set = adapter(&learner(&base, &peft));
    let mut writer = LanguageGenerator::new(base.share(), &peft, NonZeroU16::MIN).unwrap();
    let name = |name| Name::new(name).unwrap();
    writer.hold(name("pumps"), &peft, &set).unwrap();
    assert!(writer.hold(name("pumps"), &peft, &set).is_err());
    assert!(writer.hold(name("belts"), &lora(&["k"]), &set).is_err(), "of another kind");
    assert_eq!(writer.named(), [name("pumps")]);
    writer.load(2, &set).unwrap();
    assert!(writer.hold(name("belts"), &peft, &set).is_err(), "slot 2 is taken");
}

#[test]
fn a_block_at_a_time_gives_the_gradient_of_all_blocks() {
    for tied in [false, true] {
        let base = base(tied);
        for (kind, peft) in kinds() {
            if tied && ["head", "lora of the head"].contains(&kind) {
                continue;
            }
            let learner = learner(&base, &peft);
            let packed = packed(&learner);
            let mut run = learner.run(&adapter(&learner), packed.num()).unwrap();
            let (loss, plain) = backward(&run, &packed);
            run.how.a_block_at_a_time = true;
            let (same, by_blocks) = backward(&run, &packed);
            assert!((loss - same).abs() < 1e-5, "{kind}: {loss} {same}");
            let apart = distance(&plain, &by_blocks);
            assert!(apart < 1e-5, "{kind}: {apart}");
        }
    }
}

#[test]
fn a_batch_in_parts_takes_the_step_of_the_whole_batch() {
    let base = base(false);
    for (kind, peft) in kinds() {
        let learner = learner(&base, &peft);
        let packed = packed(&learner);
        assert!(packed.num() > 2);
        let step = |rows: usize| {
            let mut run = learner.run(&adapter(&learner), packed.num()).unwrap();
            run.how.rows = rows;
            let loss = run.step(&packed, 1e-2, 0.1).unwrap();
            (loss, values(&run.flat).unwrap())
        };
        let ((loss, whole), (same, parts)) = (step(packed.num()), step(1));
        assert!((loss - same).abs() < 1e-5, "{kind}: {loss} {same}");
        let apart = distance(&whole, &parts);
        assert!(apart < 1e-4, "{kind}: {apart}");
    }
}

#[test]
fn training_lowers_the_loss_and_moves_nothing_of_the_base() {
    let base = base(false);
    let before = base.weights().to_set().unwrap();
    for (kind, peft) in kinds() {
        let learner = learner(&base, &peft);
        let packed = packed(&learner);
        let mut run = learner.run(&learner.initial_adapter(), packed.num()).unwrap();
        let losses: Vec<f32> = (0..6).map(|_| run.step(&packed, 2e-2, 0.0).unwrap()).collect();
        assert!(losses[5] < losses[0], "{kind}: {losses:?}");
    }
    assert_eq!(base.weights().to_set().unwrap(), before);
}

#[test]
fn a_layer_that_is_not_there_is_refused_with_names_near_it() {
    let refused = |tied: bool, target: &str| {
        AdapterPlan::new(&sizes(tied).layout(), &lora(&[target])).unwrap_err().to_string()
    };
    let text = refused(true, "q_proj");
    assert!(text.contains("got q_proj") && text.contains("say"), "{text}");
    assert!(refused(true, "gate_up").contains("say gate"), "{}", refused(true, "gate_up"));
    assert!(refused(true, "head").contains("got head"), "a tied head is no layer");
    assert!(!refused(false, "embed").contains("say embed"), "a table is no linear layer");
    let bias = PeftConfig::whole(names(&["*.bias"]));
    assert!(AdapterPlan::new(&sizes(true).layout(), &bias).is_err(), "a Llama has no biases");
    let plan = AdapterPlan::new(&sizes(false).layout(), &lora(&["*"])).unwrap();
    assert!(plan.layout().0.iter().all(|(name, _)| !name.starts_with("embed")));
}

#[test]
fn what_stands_in_front_counts_towards_the_context() {
    let base = base(true);
    let peft = PeftConfig { prompts: 3, prefix: 2, ..PeftConfig::none() };
    let learner = learner(&base, &peft);
    let flat = learner.plan.flatten(&adapter(&learner)).unwrap();
    let attached = learner.plan.attach(&flat).unwrap();
    let model = base.model(Some(&attached)).unwrap();
    let batch = |n| TokenBatch { ids: ids(&text(0, n)), positions: None, segments: None };
    assert!(model.enter(&batch(59)).is_ok());
    let error = model.enter(&batch(60)).unwrap_err();
    let expected = "at most 59".to_owned();
    let actual = "60".to_owned();
    assert_eq!(error, LearnError::OutOfRange { what: "tokens of an input", expected, actual });
}

#[test]
fn guesses_that_are_taken_back_leave_no_trace() {
    let (base, peft) = (base(false), lora(&["q", "v"]));
    let set = adapter(&learner(&base, &peft));
    let mut writer = LanguageGenerator::new(base.share(), &peft, NonZeroU16::MIN).unwrap();
    assert!(writer.guesses() > 0);
    writer.load(1, &set).unwrap();
    let text = text(8, 12);
    for number in [1, 2] {
        writer.start(number, 1, &text[..6]).unwrap();
    }
    let wrong = [text[6], text[7], 1, 1];
    let guessed = writer.guess(1, &wrong).unwrap();
    writer.take_back(1, 2);
    let whole = logits(&base, &learner(&base, &peft), &set, &text);
    for (at, logits) in guessed.iter().take(2).enumerate() {
        let apart = distance(logits, &whole[(6 + at) * 24..(7 + at) * 24]);
        assert!(apart < 2e-5, "{at}: {apart}");
    }
    for (at, token) in text.iter().enumerate().skip(6) {
        let next = writer.step(&[(2, *token)]).unwrap();
        if at >= 8 {
            let same = writer.step(&[(1, *token)]).unwrap();
            assert_eq!(same, next, "token {at}");
        }
    }
    let bottleneck = PeftConfig { bottleneck: 2, ..PeftConfig::none() };
    let mut writer = LanguageGenerator::new(base.share(), &bottleneck, NonZeroU16::MIN).unwrap();
    writer.load(1, &adapter(&learner(&base, &bottleneck))).unwrap();
    writer.start(1, 1, &text[..6]).unwrap();
    assert_eq!(writer.guess(1, &wrong).unwrap().len(), 1, "libtorch takes one token at a time");
}

#[test]
fn a_run_that_was_cut_off_goes_on_and_ends_as_one_that_was_not() {
    let folder = tempfile::tempdir().unwrap();
    let (base, peft) = (base(true), lora(&["q", "v"]));
    let texts = Examples::Texts(Texts {
        tokens: texts().concat(),
        lengths: texts().iter().map(|text| u32::try_from(text.len()).unwrap()).collect(),
        chars: 1,
    });
    let kept = |base_digest| {
        let every = std::num::NonZeroU32::new(2).unwrap();
        let kept = Checkpoints::new(folder.path().join("training"), every, base_digest);
        learner(&base, &peft).keeping(kept)
    };
    let job = TrainJob {
        prox_mu: 0.1,
        class_logits: true,
        ..TrainJob::plain(learner(&base, &peft).initial_adapter(), 7, 2, 0.01, 5)
    };
    let whole = learner(&base, &peft).train(&texts, &job, &mut |_| Control::Continue).unwrap();

    // Dies in its fifth step, when four are kept.
    let died = kept(Digest([1; 32])).train(&texts, &job, &mut |at| {
        if at.step == 5 { Control::Stop } else { Control::Continue }
    });
    assert_eq!(died.unwrap().steps, 5);
    let steps_of = |learner: &mut LanguageLearner, job: &TrainJob| {
        let mut steps = Vec::new();
        let trained = learner.train(&texts, job, &mut |at| {
            steps.push(at.step);
            Control::Continue
        });
        (trained.unwrap(), steps)
    };
    // Another base, another seed: not this run's.
    let other = TrainJob { seed: job.seed + 1, ..job.clone() };
    let copy = std::fs::read_dir(folder.path().join("training")).unwrap().next().unwrap().unwrap();
    let bytes = std::fs::read(copy.path()).unwrap();
    assert_eq!(steps_of(&mut kept(Digest([2; 32])), &job).1, [1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(steps_of(&mut kept(Digest([1; 32])), &other).1, [1, 2, 3, 4, 5, 6, 7]);
    std::fs::write(copy.path(), bytes).unwrap();

    let (resumed, steps) = steps_of(&mut kept(Digest([1; 32])), &job);
    assert_eq!(steps, [5, 6, 7]);
    assert_eq!(resumed.adapter, whole.adapter);
    assert_eq!(
        (resumed.steps, resumed.loss_first, resumed.loss_last),
        (7, whole.loss_first, whole.loss_last)
    );
}

#[test]
fn a_slot_that_was_never_loaded_does_not_answer_with_the_bare_base() {
    use crate::learn::Generator;
    let base = base(true);
    let peft = lora(&["q"]);
    let mut writer = LanguageGenerator::new(base.share(), &peft, NonZeroU16::MIN).unwrap();
    assert!(writer.start(1, 0, &[3, 4]).is_ok(), "slot 0 is the bare base");
    let refused =
        |result: Result<Vec<f32>, crate::learn::LearnError>| result.unwrap_err().to_string();
    assert!(refused(writer.start(2, 7, &[3, 4])).contains("adapter slot"));
    assert!(refused(writer.start(1, 0, &[3, 4])).contains("new sequence"), "the number is taken");
    assert!(refused(writer.start(3, 0, &[])).contains("new sequence"), "no token");
    writer.load(7, &adapter(&learner(&base, &peft))).unwrap();
    assert!(writer.start(2, 7, &[3, 4]).is_ok());
}

fn job_of(learner: &LanguageLearner) -> TrainJob {
    TrainJob { distill_lambda: 1.0, ..TrainJob::plain(learner.initial_adapter(), 7, 2, 0.01, 5) }
}

fn as_examples(texts: &[Vec<u32>]) -> Texts {
    let lengths = texts.iter().map(|text| u32::try_from(text.len()).unwrap()).collect();
    Texts { tokens: texts.concat(), lengths, chars: 1 }
}

#[test]
fn a_whole_pass_takes_each_token_once_and_ends_with_a_short_batch() {
    let (base, peft) = (base(true), lora(&["q"]));
    let mut learner = learner(&base, &peft);
    // Frames and padding count: 24 tokens of short texts fill more sequences than 24 / 16.
    let texts: Vec<Vec<u32>> = (0..8).map(|i| text(i, 3 + 5 * (i % 3))).collect();
    let texts = as_examples(&texts);
    let job = TrainJob { epochs: Some(3), ..job_of(&learner) };
    let mut sequences = Sequences::new(&texts, &learner.config, &job).unwrap();
    let pass = sequences.a_pass().unwrap();
    assert!(pass % 2 == 1 && pass > texts.tokens.len() / 16, "{pass}");
    for _ in 0..3 {
        let (mut learned, mut sizes) = (Vec::new(), Vec::new());
        for _ in 0..pass.div_ceil(2) {
            let batch = sequences.next(2).unwrap();
            sizes.push(batch.num());
            let targets = batch.targets.iter().zip(&batch.judged);
            learned.extend(targets.filter(|(_, judged)| **judged).filter_map(|(t, _)| *t));
        }
        assert_eq!((sizes.iter().sum::<usize>(), sizes.last()), (pass, Some(&1)));
        let mut all = texts.tokens.clone();
        all.sort_unstable();
        learned.sort_unstable();
        assert_eq!(learned, all);
    }
    let trained = learner.train(&texts.into(), &job, &mut |_| Control::Continue).unwrap();
    assert_eq!(trained.steps as usize, 3 * pass.div_ceil(2));
}

#[test]
fn what_a_language_model_cannot_follow_is_refused() {
    let (base, peft) = (base(true), lora(&["q"]));
    let mut learner = learner(&base, &peft);
    let good = job_of(&learner);
    let examples: Examples = as_examples(&texts()).into();
    let mut said = |job: TrainJob| {
        let result = learner.train(&examples, &job, &mut |_| Control::Stop);
        result.map_or_else(|error| error.to_string(), |_| "ok".into())
    };
    assert_eq!(said(good.clone()), "ok");
    let lesson = crate::learn::Lesson {
        windows: std::sync::Arc::default(),
        targets: Vec::new(),
        weight: 1.0,
        ..crate::learn::Lesson::default()
    };
    assert!(said(TrainJob { lesson: Some(lesson), ..good.clone() }).contains("lesson"));
    let class_targets = Some(ClassLogits { mean_logits: vec![0.5; 4], counts: vec![20; 2] });
    let taught = TrainJob { class_targets, ..good };
    assert!(said(taught.clone()).contains("class targets"));
    assert_eq!(said(TrainJob { distill_lambda: 0.0, ..taught }), "ok", "nothing is asked of it");
    let endless = TrainJob { epochs: Some(u32::MAX), ..job_of(&self::learner(&base, &peft)) };
    assert!(said(endless).contains("optimiser steps"));
}

#[path = "language_trainer/text_lesson_tests.rs"]
mod text_lessons;
