//! What others say: packed and back, refused when it can't be, merged so that one bad member changes little.

use super::*;
use crate::learn::ReferenceSet;
use crate::protocol::fixture::{Heard, heard, knowledge_plan};
use crate::rng::Stream;
use crate::wire::Coding;

const SAMPLES: u32 = 30;

fn plan() -> (Plan, KnowledgePlan) {
    let mut plan = knowledge_plan(SAMPLES);
    plan.class_logits = true;
    let knowledge = plan.knowledge.clone().unwrap();
    (plan, knowledge)
}

fn labels() -> Vec<usize> {
    (0..3).cycle().take(30).collect()
}

/// What a member says that is right about most: logits of its own, `strength` times.
fn said(seed: u64, strength: f32) -> Knowing {
    let mut stream = Stream::new(seed, "said");
    let mut logits = Vec::new();
    for label in labels() {
        let row = (0..3).map(|class| if class == label { 2.0 } else { -1.0 });
        logits.extend(row.map(|z: f32| strength * (z + stream.range(-0.4, 0.4) as f32)));
    }
    let means = (0..6).map(|at| strength * (at as f32 - 2.5)).collect();
    Knowing {
        reference_logits: Some(logits),
        prototypes: Some(Prototypes { means, counts: vec![30, 30, 40] }),
        ..Knowing::default()
    }
}

fn summary(strength: f32) -> ClassSummary {
    let row = |class: usize| (0..3).map(move |c| if c == class { 3.0 } else { -1.5 });
    let mean_logits = (0..3).flat_map(row).map(|z: f32| z * strength).collect();
    ClassSummary::from(&ClassLogits { mean_logits, counts: vec![30, 30, 40] })
}

/// A round of members that say things so strongly; negative ones say the opposite.
fn table(plan: &Plan, strengths: &[f32]) -> Heard {
    let all = strengths.iter().enumerate().map(|(at, strength)| said(at as u64, *strength));
    let mut table = heard(plan, &all.collect::<Vec<_>>());
    for (input, strength) in table.job.inputs.iter_mut().zip(strengths) {
        input.class_logits = Some(summary(*strength));
    }
    table
}

fn outcome(table: &Heard) -> (Knowing, ClassLogits, PackedKnowledge) {
    let (said, classes, packed) = table.merged().unwrap();
    (said, ClassLogits::from(&classes.unwrap()), packed)
}

/// Share of reference samples whose largest logit is that of their label.
fn right(logits: &[f32]) -> f64 {
    let top = |row: &[f32]| (0..3).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap();
    let hits = logits.chunks(3).zip(labels()).filter(|(row, label)| top(row) == *label).count();
    hits as f64 / 30.0
}

#[test]
fn what_is_packed_comes_back_in_each_coding() {
    for coding in [Coding::F32, Coding::Int8] {
        let (mut plan, knowledge) = plan();
        (plan.coding, plan.block) = (coding, if coding == Coding::F32 { 0 } else { 64 });
        let all = said(1, 1.0);
        let packed = pack(&plan, &all).unwrap().unwrap();
        let back = unpack(&knowledge, &packed.bytes, &packed.counts).unwrap();
        let pairs = |a: &[f32], b: &[f32]| {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 0.05)
        };
        assert!(pairs(&back.reference_logits.unwrap(), &all.reference_logits.clone().unwrap()));
        let (back, sent) = (back.prototypes.unwrap(), all.prototypes.unwrap());
        assert!(pairs(&back.means, &sent.means) && back.counts == sent.counts);
    }
}

#[test]
fn sets_that_are_not_what_was_asked_for_are_refused_and_their_twin_is_taken() {
    let (plan, knowledge) = plan();
    let good = pack(&plan, &said(1, 1.0)).unwrap().unwrap();
    let kind = |bytes: &[u8], counts: &[u64]| {
        unpack(&knowledge, bytes, counts).map_or_else(|e| e.kind(), |_| "ok")
    };
    assert_eq!(kind(&good.bytes, &good.counts), "ok");
    assert_eq!(kind(&good.bytes, &[30, 30]), "layout_mismatch", "two classes of three");
    let set = |tensors: &[(&str, &[usize], f32)]| {
        let tensor = |(name, shape, value): &(&str, &[usize], f32)| Tensor {
            name: (*name).into(),
            shape: shape.to_vec(),
            data: vec![*value; shape.iter().product()],
        };
        let set = TensorSet::new(tensors.iter().map(tensor).collect()).unwrap();
        update::pack(&set, Coding::F32, 0).unwrap()
    };
    let (logits, points): (&[usize], &[usize]) = (&[30, 3], &[3, 2]);
    let twin = set(&[(PROTOTYPES, points, 1.0), (LOGITS, logits, 1.0)]);
    assert_eq!(kind(&twin, &[1, 1, 1]), "ok");
    let bad: [(Vec<u8>, &str); 6] = [
        (set(&[(PROTOTYPES, points, 1.0)]), "layout_mismatch"),
        (set(&[(PROTOTYPES, points, 1.0), (LOGITS, &[29, 3], 1.0)]), "layout_mismatch"),
        (set(&[(PROTOTYPES, points, 1.0), (LOGITS, &[30, 4], 1.0)]), "layout_mismatch"),
        (set(&[(PROTOTYPES, points, 1.0), (LOGITS, logits, 900.0)]), "out_of_range"),
        (set(&[(PROTOTYPES, points, 1e6), (LOGITS, logits, 1.0)]), "out_of_range"),
        (set(&[("samples", points, 1.0), (LOGITS, logits, 1.0)]), "layout_mismatch"),
    ];
    for (at, (bytes, expected)) in bad.iter().enumerate() {
        assert_eq!(kind(bytes, &[1, 1, 1]), *expected, "case {at}");
    }
    assert_ne!(kind(b"nonsense", &[1, 1, 1]), "ok");
}

#[test]
fn claims_that_lie_are_refused_and_their_twin_is_taken() {
    let (_, plan) = plan();
    let check = |counts: &[u64], summary: &ClassSummary| {
        check_claims(&plan, 100, Some(counts), Some(summary))
    };
    let honest = summary(1.0);
    assert_eq!(check(&[30, 30, 40], &honest), Ok(()));
    assert_eq!(check(&[30, 31, 40], &honest), Err("counts_exceed_examples"));
    assert_eq!(check(&[1 << 63, 1 << 63, 0], &honest), Err("counts_exceed_examples"));
    assert_eq!(check(&[], &honest), Err("wrong_class_count"));
    assert_eq!(check(&[0; 65], &honest), Err("wrong_class_count"));
    assert_eq!(check(&[0; 3], &summary(100.0)), Err("one_hot_cell"));
    let two = ClassLogits { mean_logits: vec![0.0; 4], counts: vec![1, 1] };
    assert_eq!(check(&[0; 3], &ClassSummary::from(&two)), Err("wrong_class_count"));
}

#[test]
fn one_bad_member_of_five_changes_little_and_with_the_mean_it_owns_the_prototypes() {
    let (plan, _) = plan();
    let (calm, calm_classes, _) = outcome(&table(&plan, &[1.0; 5]));
    for bad in [-1.0, -100.0, 100.0] {
        let (merged, classes, _) = outcome(&table(&plan, &[1.0, 1.0, bad, 1.0, 1.0]));
        let share = right(&merged.reference_logits.clone().unwrap());
        let before = right(&calm.reference_logits.clone().unwrap());
        assert!(share >= before - 0.02, "{bad}: {share} {before}");
        let gap =
            |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let points = |said: &Knowing| said.prototypes.clone().unwrap().means;
        assert!(gap(&points(&merged), &points(&calm)) < 1e-6, "{bad}");
        assert!(gap(&classes.mean_logits, &calm_classes.mean_logits) < 1e-6, "{bad}");
    }
    // The same without the rule.
    let mut trusting = plan.clone();
    trusting.knowledge.as_mut().unwrap().merging = Merging::Mean;
    let (merged, classes, _) = outcome(&table(&trusting, &[1.0, 1.0, -100.0, 1.0, 1.0]));
    let points = merged.prototypes.unwrap().means;
    assert!((points[0] - -2.5).abs() > 10.0, "{points:?}");
    assert!((classes.mean_logits[0] - 3.0).abs() > 2.0, "{classes:?}");
}

#[test]
fn merging_again_gives_the_same_bytes_and_the_order_changes_nothing() {
    let (plan, _) = plan();
    let mut table = table(&plan, &[1.0, 0.5, -1.0]);
    let first = outcome(&table).2;
    assert_eq!(outcome(&table).2, first);
    table.job.inputs.reverse();
    assert_eq!(outcome(&table).2, first);
}

#[test]
fn the_tiers_above_teach_what_no_member_knows() {
    let (mut plan, _) = plan();
    plan.knowledge.as_mut().unwrap().prototypes = false;
    let mut table = table(&plan, &[-1.0, -1.0]);
    table.job.offered = Some(table.say(&said(9, 1.5)));
    let merged = outcome(&table).0.reference_logits.unwrap();
    assert!((right(&merged) - 1.0).abs() < 1e-9);
    let row = &merged[..3];
    assert!(row[0] - row[1] < 8.0, "its own words, and not those of the label: {row:?}");
}

#[test]
fn knowledge_about_other_inputs_is_left_out() {
    let (plan, _) = plan();
    let mut table = table(&plan, &[1.0, 1.0]);
    table.job.inputs[1].knowledge.as_mut().unwrap().reference = Some(Digest([3; 32]));
    let two = outcome(&table).0;
    table.job.inputs.pop();
    assert_eq!(outcome(&table).0, two);
}

#[test]
fn a_lesson_needs_the_very_set_that_the_plan_names() {
    let (_, mut plan) = plan();
    let set = ReferenceSet::make(crate::learn::BEARING_PHYSICS, 1, SAMPLES).unwrap();
    assert!(lesson(&plan, Some(&set), None, None).is_err());
    assert!(lesson(&plan, None, None, None).is_err());
    plan.reference.as_mut().unwrap().digest = set.digest;
    let taught = lesson(&plan, Some(&set), Some(&said(1, 1.0)), None).unwrap().unwrap();
    assert!(taught.check(3).is_ok());
    // Without logits, class means teach each sample of their class; a class without one its label.
    let classes = ClassLogits { mean_logits: vec![0.0; 9], counts: vec![30, 0, 30] };
    let taught = lesson(&plan, Some(&set), None, Some(&classes)).unwrap().unwrap();
    let third = 1.0_f32 / 3.0;
    assert!((taught.targets[0] - (0.5 + 0.5 * third)).abs() < 1e-6);
    assert!(taught.targets[4] > 0.99);
}

#[test]
fn without_labels_the_median_of_what_is_said_teaches_and_a_loud_member_does_not() {
    let (mut plan, _) = plan();
    plan.knowledge.as_mut().unwrap().reference.as_mut().unwrap().unlabelled = true;
    let (merged, ..) = outcome(&table(&plan, &[1.0, 1.0, -100.0, 1.0, 1.0]));
    assert!((right(&merged.reference_logits.unwrap()) - 1.0).abs() < 1e-9);
    // Most say the opposite: with labels one that is right teaches all the same, without them nobody can know.
    let most_lie = [1.0, -1.0, -1.0, -1.0, -1.0];
    let (merged, ..) = outcome(&table(&plan, &most_lie));
    assert!(right(&merged.reference_logits.unwrap()) < 0.1);
    plan.knowledge.as_mut().unwrap().reference.as_mut().unwrap().unlabelled = false;
    let (merged, ..) = outcome(&table(&plan, &most_lie));
    assert!((right(&merged.reference_logits.unwrap()) - 1.0).abs() < 1e-9);
}

#[test]
fn a_lesson_without_labels_takes_nothing_from_them() {
    let (_, mut plan) = plan();
    let set = ReferenceSet::make(crate::learn::BEARING_PHYSICS, 1, SAMPLES).unwrap();
    let reference = plan.reference.as_mut().unwrap();
    (reference.digest, reference.unlabelled) = (set.digest, true);
    let before = lesson(&plan, Some(&set), None, None).unwrap().unwrap();
    assert!(before.check(3).is_ok() && before.weight == 0.0, "nobody has said anything");
    assert!(before.targets.iter().all(|p| (p - 1.0 / 3.0).abs() < 1e-6));
    let mut opposite = said(1, 1.0);
    opposite.reference_logits.as_mut().unwrap().iter_mut().for_each(|z| *z = -*z);
    let taught = lesson(&plan, Some(&set), Some(&opposite), None).unwrap().unwrap();
    assert!(taught.targets[0] < 0.1 && taught.weight > 0.0, "its label is class 0");
}

#[test]
fn written_sets_say_their_classes_and_a_set_that_differs_is_none() {
    let (mut plan, mut knowledge) = plan();
    let sound = |reference: &Reference, logits| is_sound(reference, logits);
    let reference = knowledge.reference.as_mut().unwrap();
    assert!(sound(reference, false));
    reference.unlabelled = true;
    assert!(sound(reference, true) && !sound(reference, false), "nothing would teach");
    reference.classes = Some(3);
    assert!(!sound(reference, true), "a known generator tells its own");
    reference.generator = Name::new("orders-1").unwrap();
    assert!(sound(reference, true));
    for classes in [0, 1, 65, u32::MAX] {
        reference.classes = Some(classes);
        assert!(!sound(reference, true), "{classes}");
    }
    // Without a word about the classes nothing can be read.
    reference.classes = None;
    let good = pack(&plan, &said(1, 1.0)).unwrap().unwrap();
    assert!(unpack(&knowledge, &good.bytes, &good.counts).is_err());
    knowledge.reference.as_mut().unwrap().classes = Some(3);
    assert!(unpack(&knowledge, &good.bytes, &good.counts).is_ok());
    plan.knowledge = Some(knowledge.clone());
    assert!(outcome(&table(&plan, &[1.0, 1.0])).0.reference_logits.is_some());
    // The digest agrees, count or classes don't.
    let set = ReferenceSet::make(crate::learn::BEARING_PHYSICS, 1, SAMPLES).unwrap();
    let reference = knowledge.reference.as_mut().unwrap();
    reference.digest = set.digest;
    assert!(lesson(&knowledge, Some(&set), None, None).is_ok());
    knowledge.reference.as_mut().unwrap().classes = Some(4);
    assert!(lesson(&knowledge, Some(&set), None, None).is_err());
    let reference = knowledge.reference.as_mut().unwrap();
    (reference.classes, reference.count) = (Some(3), SAMPLES - 1);
    assert!(lesson(&knowledge, Some(&set), None, None).is_err());
}
