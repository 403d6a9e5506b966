//! Spectra of classes: packed and back, refused when they can't be, merged so that a class that one site lacks comes from
//! another one, and heard in the reference inputs.

use super::*;
use crate::ids::Name;
use crate::learn::{BEARING_PHYSICS, class_spectra};
use crate::protocol::fixture::{Heard, heard, knowledge_plan};
use crate::protocol::knowledge::{lesson, makes_sense as plan_makes_sense, pack, unpack};
use crate::protocol::update;
use crate::wire::{Coding, Merging, Plan};

const BANDS: usize = 16;

/// Spectra travel and nothing else, of three classes.
fn plan() -> Plan {
    let mut plan = knowledge_plan(30);
    let knowledge = plan.knowledge.as_mut().unwrap();
    (knowledge.prototypes, knowledge.reference_logits) = (false, false);
    knowledge.reference.as_mut().unwrap().digest = set().digest;
    knowledge.spectra = Some(SpectraPlan { bands: 16, grades: 1 });
    plan
}

fn set() -> ReferenceSet {
    ReferenceSet::make(BEARING_PHYSICS, 1, 30).unwrap()
}

/// Each class rises by so much from the lowest band to the highest; nothing is known of those with count 0.
fn says(rise: f32, counts: [u64; 3]) -> Knowing {
    let band = |at: usize| rise * (f32::from(u8::try_from(at).unwrap()) / 15.0 - 0.5);
    let mut means = Vec::new();
    for count in counts {
        means.extend((0..BANDS).map(|at| if count > 0 { band(at) } else { 0.0 }));
    }
    Knowing { spectra: Some(Prototypes { means, counts: counts.to_vec() }), ..Knowing::default() }
}

fn spectra(said: &Knowing) -> &Prototypes {
    said.spectra.as_ref().unwrap()
}

#[test]
fn what_is_packed_comes_back_in_each_coding() {
    let said = says(3.0, [30, 0, 40]);
    for (coding, block, within) in [(Coding::F32, 0, 0.0), (Coding::Int8, 64, 0.02)] {
        let plan = Plan { coding, block, ..plan() };
        let packed = pack(&plan, &said).unwrap().unwrap();
        let back = unpack(plan.knowledge.as_ref().unwrap(), &packed.bytes, &packed.counts).unwrap();
        let (back, sent) = (spectra(&back), spectra(&said));
        assert_eq!(back.counts, [30, 0, 40]);
        assert!(back.means.iter().zip(&sent.means).all(|(a, b)| (a - b).abs() <= within));
    }
    assert!(pack(&plan(), &Knowing::default()).is_err(), "nothing was said");
}

#[test]
fn sets_that_are_not_what_was_asked_for_are_refused_and_their_twin_is_taken() {
    let plan = plan();
    let knowledge = plan.knowledge.as_ref().unwrap();
    let kind = |name: &str, shape: [usize; 2], value: f32, counts: &[u64]| {
        let data = vec![value; shape[0] * shape[1]];
        let tensor = Tensor { name: name.into(), shape: shape.to_vec(), data };
        let bytes = update::pack(&TensorSet::new(vec![tensor]).unwrap(), Coding::F32, 0).unwrap();
        unpack(knowledge, &bytes, counts).map_or_else(|e| e.kind(), |_| "ok")
    };
    let three = [30, 30, 30];
    assert_eq!(kind(SPECTRA, [3, BANDS], 1.0, &three), "ok");
    assert_eq!(kind("prototypes", [3, BANDS], 1.0, &three), "layout_mismatch");
    assert_eq!(kind(SPECTRA, [3, BANDS - 1], 1.0, &three), "layout_mismatch");
    assert_eq!(kind(SPECTRA, [2, BANDS], 1.0, &[30, 30]), "layout_mismatch", "two classes");
    assert_eq!(kind(SPECTRA, [3, BANDS], 1.0, &[30, 30]), "layout_mismatch");
    assert_eq!(kind(SPECTRA, [3, BANDS], -6.1, &three), "out_of_range");
}

#[test]
fn a_plan_about_inputs_that_nobody_can_filter_makes_no_sense() {
    let sense = |change: fn(&mut KnowledgePlan)| {
        let mut plan = plan();
        change(plan.knowledge.as_mut().unwrap());
        plan_makes_sense(&plan, plan.knowledge.as_ref().unwrap())
    };
    assert!(sense(|_| {}));
    assert!(sense(|plan| plan.prototypes = true));
    assert!(!sense(|plan| plan.reference_logits = true));
    assert!(!sense(|plan| plan.generator_weight = Some(1.0)));
    assert!(!sense(|plan| plan.reference = None));
    assert!(!sense(|plan| {
        let reference = plan.reference.as_mut().unwrap();
        (reference.generator, reference.classes) = (Name::new("orders-1").unwrap(), Some(3));
    }));
    for (bands, grades) in [(0, 1), (1_025, 1), (16, 0), (16, 101)] {
        let mut plan = plan();
        let knowledge = plan.knowledge.as_mut().unwrap();
        knowledge.spectra = Some(SpectraPlan { bands, grades });
        assert!(!plan_makes_sense(&plan, plan.knowledge.as_ref().unwrap()), "{bands} {grades}");
    }
}

#[test]
fn one_bad_member_of_five_changes_little_and_with_the_mean_it_shifts_all() {
    let mut round = heard(&plan(), &[1.0, 1.0, -12.0, 1.0, 1.0].map(|rise| says(rise, [30; 3])));
    let highest = |round: &Heard| spectra(&round.merged().unwrap().0).row(2).unwrap()[BANDS - 1];
    assert!((highest(&round) - 0.5).abs() < 1e-6);
    round.job.plan.knowledge.as_mut().unwrap().merging = Merging::Mean;
    assert!(highest(&round) < -0.7, "{}", highest(&round));
}

#[test]
fn an_owner_hears_the_class_that_its_site_lacks_from_above_and_does_not_say_it_again() {
    let round = heard(&plan(), &[says(1.0, [30, 0, 40]), says(1.0, [30, 0, 0])]);
    let (merged, _, packed) = round.merged().unwrap();
    assert_eq!((merged.clone(), packed.counts), (says(1.0, [60, 0, 40]), vec![60, 0, 40]));
    assert_eq!(taught(merged.clone(), None), merged);
    let all = spectra(&taught(merged.clone(), Some(says(2.0, [90, 70, 90])))).clone();
    assert_eq!(all.counts, [60, 70, 40], "its own where it has them");
    assert!((all.row(0).unwrap()[0] - -0.5).abs() < 1e-6);
    assert!((all.row(1).unwrap()[0] - -1.0).abs() < 1e-6);
    let mut other = says(2.0, [90, 70, 90]);
    other.spectra.as_mut().unwrap().counts.truncate(2);
    assert_eq!(taught(merged.clone(), Some(other)), merged);
}

#[test]
fn the_top_says_again_what_nobody_speaks_of_in_a_round_and_an_edge_does_not() {
    for prototypes in [false, true] {
        let mut plan = plan();
        plan.knowledge.as_mut().unwrap().prototypes = prototypes;
        let all = |rise: f32, counts: [u64; 3]| {
            let means = counts.map(|count| if count > 0 { [rise, 1.0] } else { [0.0; 2] }).concat();
            let points = Prototypes { means, counts: counts.to_vec() };
            Knowing { prototypes: prototypes.then_some(points), ..says(rise, counts) }
        };
        let mut round = heard(&plan, &[all(1.0, [30, 0, 40])]);
        round.job.offered = Some(round.say(&all(2.0, [90, 70, 90])));
        assert_eq!(round.merged().unwrap().0, all(1.0, [30, 0, 40]), "an edge's own");
        round.job.relay = false;
        let (said, _, packed) = round.merged().unwrap();
        assert_eq!(packed.counts, [30, 70, 40]);
        assert_eq!(spectra(&said).row(1), spectra(&all(2.0, [1; 3])).row(1));
        assert_eq!(spectra(&said).row(0), spectra(&all(1.0, [1; 3])).row(0));
        let point = said.prototypes.as_ref().and_then(|points| points.row(1));
        assert_eq!(point, prototypes.then_some(&[2.0, 1.0][..]));
    }
}

#[test]
fn whoever_is_left_out_of_one_kind_of_row_is_left_out_of_both() {
    let mut plan = plan();
    plan.knowledge.as_mut().unwrap().prototypes = true;
    let points = |width: usize| Prototypes { means: vec![1.0; 3 * width], counts: vec![30; 3] };
    let member = |width: usize, rise: f32| Knowing {
        prototypes: Some(points(width)),
        ..says(rise, [30; 3])
    };
    let round = heard(&plan, &[member(2, 1.0), member(5, 9.0), member(2, 1.0)]);
    let (merged, _, packed) = round.merged().unwrap();
    assert_eq!(packed.counts, [60; 3]);
    assert_eq!(merged.spectra, says(1.0, [60; 3]).spectra);
}

#[test]
fn a_lesson_is_about_inputs_that_sound_as_is_said_and_about_plain_ones_before() {
    let (mut plan, set) = (plan(), set());
    let knowledge = plan.knowledge.as_mut().unwrap();
    let windows = |plan: &KnowledgePlan, said: Option<&Knowing>| {
        lesson(plan, Some(&set), said, None).unwrap().unwrap().windows
    };
    assert!(Arc::ptr_eq(&windows(knowledge, None), &set.windows), "nobody has said anything");
    let silent = windows(knowledge, Some(&says(2.0, [30, 0, 30])));
    assert!(Arc::ptr_eq(&silent, &set.windows), "of one class nothing");
    let said = says(2.0, [30; 3]);
    let heard = class_spectra(&windows(knowledge, Some(&said)), BANDS).unwrap();
    let far = |a: &Prototypes, b: &Prototypes| {
        let far = a.means.iter().zip(&b.means).map(|(a, b)| f64::from((a - b).abs()));
        far.sum::<f64>() / 48.0
    };
    let plain = class_spectra(&set.windows, BANDS).unwrap();
    assert!(3.0 * far(&heard, spectra(&said)) < far(&plain, spectra(&said)));
    knowledge.spectra = None;
    assert!(Arc::ptr_eq(&windows(knowledge, Some(&said)), &set.windows));
}
