//! One member can't own the model by shouting: the bound on what a delta does, in a whole combination.

#![expect(clippy::float_cmp, reason = "a factor of 1 is exact")]

use std::collections::BTreeMap;

use super::super::fixture::{first_adapter, plan, small};
use super::super::guard::tests::without;
use super::*;
use crate::learn::LEAST_NORMS;
use crate::protocol::ShareBounds;
use crate::rng::Stream;

const ALPHA: f64 = 4.0;

/// The blobs of a round, and the job that names them.
struct Bench {
    blobs: BTreeMap<Digest, Vec<u8>>,
    job: CombineJob,
}

impl Bench {
    /// Members with like work; `louder` multiplies that of the first.
    fn new(members: usize, louder: f32) -> Self {
        let adapter = first_adapter(4);
        let global = unpack(&adapter).unwrap();
        let mut blobs = BTreeMap::from([(Digest::of(&adapter), adapter.clone())]);
        let mut inputs = Vec::new();
        for at in 0..members {
            let mut stream = Stream::new(at as u64, "delta");
            let mut delta = TensorSet::zeros(&global.layout());
            for value in delta.values_mut().flatten() {
                *value = small(&mut stream) * if at == 0 { louder } else { 1.0 };
            }
            let bytes = pack(&delta, Coding::F32, 0).unwrap();
            inputs.push(input(at, Digest::of(&bytes), Digest::of(&adapter)));
            blobs.insert(Digest::of(&bytes), bytes);
        }
        let job = CombineJob {
            offered: None,
            offer: Digest([1; 32]),
            global: Digest::of(&adapter),
            plan: plan(Coding::F32),
            class_targets: None,
            inputs,
            relay: false,
            norms: Vec::new(),
            bounds: ShareBounds::default(),
        };
        Self { blobs, job }
    }

    fn combine(&self) -> Work {
        combine(&self.job, &|digest| self.blobs.get(digest).cloned()).unwrap()
    }

    /// The adapter that comes out, and that which was offered.
    fn outcome(&self) -> (TensorSet, TensorSet) {
        let global = unpack(&self.blobs[&self.job.global]).unwrap();
        (unpack(&self.combine().update.unwrap()).unwrap(), global)
    }
}

fn input(at: usize, delta: Digest, base: Digest) -> CombineInput {
    CombineInput {
        whole: false,
        knowledge: None,
        sender: format!("m{at}").parse().unwrap(),
        update: UpdateId([u8::try_from(at).unwrap(); 16]),
        num_examples: 100,
        num_devices: 1,
        steps: 4,
        version: 0,
        staleness: 0,
        failed: 0,
        loss_first: 1.0,
        loss_last: 0.5,
        risk: None,
        delta: Some(delta),
        back: None,
        stacked: false,
        base,
        class_logits: None,
    }
}

/// How far the first member, a thousand times as loud, moves the model from where honest work
/// of all would have moved it.
fn harm() -> f64 {
    let (attacked, _) = Bench::new(5, 1_000.0).outcome();
    let (honest, _) = Bench::new(5, 1.0).outcome();
    effect_norm(ALPHA, &attacked, &honest).unwrap()
}

#[test]
fn a_delta_times_1000_does_not_own_the_model_and_without_clipping_it_does() {
    let (honest, global) = Bench::new(5, 1.0).outcome();
    let step = effect_norm(ALPHA, &honest, &global).unwrap();
    let usual = Bench::new(5, 1.0).combine().weighed[0].norm;
    let (with, bare) = (harm(), without(Guard::Norms, harm));
    // A fifth of the weight, of the usual length at most, against what it would have said honestly.
    assert!(with < 0.5 * usual, "{with}, one delta is {usual}, the honest step {step}");
    assert!(bare > 1_000.0 * step, "{bare}, the honest step {step}");
}

#[test]
fn everybody_is_told_how_much_of_it_counted() {
    let work = Bench::new(5, 1_000.0).combine();
    let (loud, honest) = work.weighed.split_first().unwrap();
    assert!(loud.factor < 1e-3 && loud.factor > 0.0, "{loud:?}");
    let mut norms: Vec<f64> = work.weighed.iter().map(|weighed| weighed.norm).collect();
    norms.sort_by(f64::total_cmp);
    for weighed in honest {
        let expected = (norms[2] / weighed.norm).min(1.0);
        assert!((weighed.factor - expected).abs() < 1e-12, "{weighed:?}");
        assert!(weighed.factor > 0.5, "like work keeps most of it");
    }
}

#[test]
fn combining_again_gives_the_same_bytes() {
    let mut bench = Bench::new(5, 1_000.0);
    bench.job.norms = vec![0.3; 7];
    assert_eq!(bench.combine(), bench.combine());
}

#[test]
fn two_members_are_measured_against_earlier_rounds_only() {
    let mut bench = Bench::new(2, 1_000.0);
    assert!(bench.combine().weighed.iter().all(|weighed| weighed.factor == 1.0));
    let usual = bench.combine().weighed[1].norm;
    bench.job.norms = vec![usual; LEAST_NORMS];
    let weighed = bench.combine().weighed;
    assert!((weighed[0].norm * weighed[0].factor - usual).abs() < 1e-6 * usual);
    assert!(weighed[1].factor == 1.0);
}

#[test]
fn a_relay_passes_on_what_counted() {
    let mut bench = Bench::new(4, 1_000.0);
    bench.job.plan.rank = 12; // enough for all, so that the root's outcome is exact
    let (root, global) = bench.outcome();
    bench.job.relay = true;
    let stack = unpack(&bench.combine().update.unwrap()).unwrap();
    let passed = adapter_of(stack, &global, true).unwrap();
    let step = effect_norm(ALPHA, &root, &global).unwrap();
    assert!(step > 0.01, "{step}");
    assert!(effect_norm(ALPHA, &passed, &root).unwrap() < 1e-3 * step);
}

#[test]
fn the_unclipped_mean_of_two_is_what_it_always_was() {
    let bench = Bench::new(2, 1.0);
    let (with, bare) = (bench.combine(), without(Guard::Norms, || bench.combine()));
    assert_eq!(with.update, bare.update);
}

#[test]
fn who_trusts_all_members_may_take_both_bounds_away_and_gets_the_plain_mean() {
    let mut bench = Bench::new(4, 30.0);
    bench.job.inputs[0].num_examples = 900; // of 1,200
    let (bounded, global) = bench.outcome();
    bench.job.bounds = ShareBounds { max_share: 1.0, clip_norms: false };
    let work = bench.combine();
    assert!(work.weighed.iter().all(|weighed| weighed.factor == 1.0));
    let (plain, _) = bench.outcome();
    let mut expected = 0.0;
    for input in &bench.job.inputs {
        let delta = unpack(&bench.blobs[&input.delta.unwrap()]).unwrap();
        let share = if input.num_examples == 900 { 0.75 } else { 1.0 / 12.0 };
        expected += share * f64::from(delta.get("head.bias").unwrap().data[0]);
    }
    let moved = |set: &TensorSet| {
        let value = |set: &TensorSet| f64::from(set.get("head.bias").unwrap().data[0]);
        value(set) - value(&global)
    };
    assert!((moved(&plain) - expected).abs() < 1e-6, "{} {expected}", moved(&plain));
    assert!(moved(&bounded).abs() < 0.5 * moved(&plain).abs());
}
