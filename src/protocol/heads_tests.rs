//! Layers up and a generator down: packed and back, refused when they can't be, merged so that one liar changes little.

use super::*;
use crate::protocol::fixture::{heard, knowledge_plan};
use crate::protocol::knowledge::{PackedKnowledge, lesson, pack, unpack};
use crate::protocol::update;
use crate::rng::Stream;
use crate::wire::{Coding, KnowledgePlan};

/// Only layers travel, of three classes.
fn plan() -> (Plan, KnowledgePlan) {
    let mut plan = knowledge_plan(3);
    let knowledge = plan.knowledge.as_mut().unwrap();
    (knowledge.prototypes, knowledge.reference_logits) = (false, false);
    (knowledge.reference, knowledge.generator_weight) = (None, Some(1.0));
    let knowledge = knowledge.clone();
    (plan, knowledge)
}

/// Three classes in two dimensions, `strength` times as sure.
fn head(strength: f32) -> ClassHead {
    let rows = [2.0, -1.0, 0.1, -1.0, 2.0, 0.1, -1.0, -1.0, -0.2];
    let means = rows.iter().map(|w| strength * w).collect();
    let rows = Prototypes { means, counts: vec![30, 30, 40] };
    ClassHead { rows, moments: vec![0.5, 0.5, 1.0, 2.0] }
}

/// That of three such members.
fn of_all() -> ClassHead {
    let mut head = head(1.0);
    head.rows.counts = vec![90, 90, 120];
    head
}

fn says(head: ClassHead) -> Knowing {
    Knowing { head: Some(head), ..Knowing::default() }
}

/// A round of members with such layers: what it came to.
fn merged(plan: &Plan, relay: bool, heads: &[ClassHead]) -> (Knowing, PackedKnowledge) {
    let all: Vec<Knowing> = heads.iter().cloned().map(says).collect();
    let mut round = heard(plan, &all);
    round.job.relay = relay;
    let (said, _, packed) = round.merged().unwrap();
    (said, packed)
}

/// Share of a generator's latents that a layer takes for their class.
fn right(generator: &LatentGenerator, head: &ClassHead) -> f64 {
    let latents = generator.latents(90, &mut Stream::new(1, "latents"));
    let says = |x: &[f32], c: usize| {
        let row = head.rows.row(c).unwrap();
        row[0] * x[0] + row[1] * x[1] + row[2]
    };
    let top = |x: &[f32]| (0..3).max_by(|a, b| says(x, *a).total_cmp(&says(x, *b))).unwrap();
    let pairs = latents.x.chunks(2).zip(&latents.labels);
    f64::from(u32::try_from(pairs.filter(|(x, y)| top(x) == **y).count()).unwrap()) / 90.0
}

#[test]
fn a_relay_passes_the_merged_layer_on_and_the_top_makes_a_generator_of_it() {
    let (mut plan, knowledge) = plan();
    let three = [head(1.0), head(1.2), head(0.8)];
    let (said, packed) = merged(&plan, true, &three);
    assert_eq!(said, says(of_all()));
    assert!(from_member(&said).is_ok() && from_above(&said).is_err());
    assert_eq!(packed.counts, [90, 90, 120]);
    for (coding, block) in [(Coding::F32, 0), (Coding::Int8, 64)] {
        (plan.coding, plan.block) = (coding, block);
        let (said, packed) = merged(&plan, false, &three);
        assert!(from_above(&said).is_ok() && from_member(&said).is_err());
        assert_eq!(merged(&plan, false, &three).1, packed, "to the same bytes again");
        let generator = said.generator.clone().unwrap();
        assert_eq!((generator.width(), generator.counts()), (2, [90, 90, 120].as_slice()));
        let share = right(&generator, &head(1.0));
        assert!(share > 0.7, "{coding:?}: {share}");
        let taught = lesson(&knowledge, None, Some(&said), None).unwrap().unwrap();
        assert!(taught.generator_for(2).is_some() && taught.check(3).is_ok());
        assert!(taught.generator_for(3).is_none(), "a model that sees inputs in another way");
    }
}

#[test]
fn a_relays_own_model_is_taught_by_a_generator_too() {
    let (plan, _) = plan();
    let said = taught(&plan, says(head(1.0))).unwrap();
    assert!(right(&said.generator.unwrap(), &head(1.0)) > 0.7);
    assert_eq!(taught(&plan, Knowing::default()), Ok(Knowing::default()));
}

#[test]
fn one_liar_of_five_changes_no_class_and_with_the_mean_it_turns_them() {
    let (mut plan, _) = plan();
    let mut liar = head(-20.0);
    liar.rows.counts = vec![u64::MAX >> 2; 3];
    let five = [head(1.0), head(1.0), liar, head(1.0), head(1.0)];
    let share = |plan: &Plan| right(&merged(plan, false, &five).0.generator.unwrap(), &head(1.0));
    assert!(share(&plan) > 0.7);
    plan.knowledge.as_mut().unwrap().merging = crate::wire::Merging::Mean;
    assert!(share(&plan) < 0.2, "{}", share(&plan));
}

#[test]
fn layers_of_another_width_than_most_are_left_out() {
    let (plan, _) = plan();
    let rows = Prototypes { means: vec![3.0; 12], counts: vec![30; 3] };
    let wide = ClassHead { rows, moments: vec![1.0; 6] };
    let (said, _) = merged(&plan, true, &[wide, head(1.0), head(1.0)]);
    assert_eq!((said.head.clone().unwrap().width(), said.head.unwrap().rows.counts[0]), (2, 60));
}

#[test]
fn sets_that_are_neither_are_refused_and_their_twin_is_taken() {
    let (plan, knowledge) = plan();
    let good = pack(&plan, &says(head(1.0))).unwrap().unwrap();
    let counts = good.counts.clone();
    let kind = |plan: &KnowledgePlan, bytes: &[u8], counts: &[u64]| {
        unpack(plan, bytes, counts).map_or_else(|e| e.kind(), |_| "ok")
    };
    assert_eq!(kind(&knowledge, &good.bytes, &counts), "ok");
    for other in [vec![], vec![30, 70], vec![1; 4], vec![0; MAX_CLASSES + 1]] {
        assert_eq!(kind(&knowledge, &good.bytes, &other), "layout_mismatch", "{other:?}");
    }
    let set = |tensors: Vec<Tensor>| {
        update::pack(&TensorSet::new(tensors).unwrap(), Coding::F32, 0).unwrap()
    };
    let layer = |shape: &[usize], value: f32| Tensor {
        name: HEAD.into(),
        shape: shape.to_vec(),
        data: vec![value; shape.iter().product()],
    };
    let places = |width: usize| Tensor {
        name: MOMENTS.into(),
        shape: vec![2, width],
        data: vec![1.0; 2 * width],
    };
    let twin = |tensors| kind(&knowledge, &set(tensors), &counts);
    assert_eq!(twin(vec![layer(&[3, 2], 1.0), places(1)]), "ok");
    assert_eq!(twin(vec![layer(&[3, 2], 1.0)]), "layout_mismatch");
    assert_eq!(twin(vec![layer(&[3, 2], 1.0), places(2)]), "layout_mismatch");
    assert_eq!(twin(vec![layer(&[9], 1.0), places(2)]), "layout_mismatch");
    assert_eq!(
        twin(vec![layer(&[3, 3], 60.0), places(2)]),
        "out_of_range",
        "longer than is believed"
    );
    assert_eq!(
        twin(vec![layer(&[3, MAX_WIDTH + 2], 0.1), places(MAX_WIDTH + 1)]),
        "layout_mismatch"
    );
    let generator = LatentGenerator::train(&head(1.0), 1).unwrap().to_tensors();
    assert_eq!(twin(generator.clone()), "ok");
    assert_eq!(
        twin([generator.clone(), vec![layer(&[3, 3], 1.0), places(2)]].concat()),
        "layout_mismatch",
        "both"
    );
    assert_eq!(twin(generator[1..].to_vec()), "layout_mismatch");
    // Beside prototypes a row of counts is about both.
    let mut both = knowledge.clone();
    both.prototypes = true;
    let points = |width: usize| Tensor {
        name: "prototypes".into(),
        shape: vec![3, width],
        data: vec![1.0; 3 * width],
    };
    assert_eq!(kind(&both, &set(vec![layer(&[3, 3], 1.0), places(2), points(2)]), &counts), "ok");
    assert_eq!(
        kind(&both, &set(vec![layer(&[3, 3], 1.0), places(2), points(3)]), &counts),
        "layout_mismatch"
    );
}

#[test]
fn plans_and_claims_about_layers_are_looked_at() {
    let (mut plan, knowledge) = plan();
    let check = |counts: &[u64]| {
        crate::protocol::knowledge::check_claims(&knowledge, 100, Some(counts), None)
    };
    assert_eq!(check(&[30, 30, 40]), Ok(()));
    assert_eq!(check(&[30, 31, 40]), Err("counts_exceed_examples"));
    assert_eq!(check(&[]), Err("wrong_class_count"));
    assert!(crate::protocol::knowledge::makes_sense(&plan, &knowledge));
    for weight in [f32::NAN, -1.0, 101.0] {
        plan.knowledge.as_mut().unwrap().generator_weight = Some(weight);
        assert!(!crate::protocol::knowledge::makes_sense(&plan, plan.knowledge.as_ref().unwrap()));
    }
}
