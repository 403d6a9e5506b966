//! Rounds between models that write: what is said is packed and checked against the plan, and each text is taught by whoever
//! knows it best, whoever else says what.

use super::*;
use crate::learn::{ReferenceTexts, ReferenceTokens, Texts};
use crate::protocol::fixture::{Heard, heard, knowledge_plan};

const VOCAB: u32 = 9;

fn texts() -> Texts {
    Texts { tokens: vec![1, 2, 3, 4, 5], lengths: vec![2, 3], chars: 1 }
}

fn set() -> ReferenceSet {
    let written = ReferenceTexts {
        name: Name::new("orders-1").unwrap(),
        seed: 1,
        written_by: "a test".into(),
        labelled: true,
        classes: vec!["a".into(), "b".into()],
        texts: vec!["one".into(), "two".into()],
    };
    let tokens = ReferenceTokens { texts: texts(), vocab: VOCAB, tokenizer: Digest([7; 32]) };
    ReferenceSet::of_tokens(&written, tokens).unwrap()
}

fn plan() -> (Plan, KnowledgePlan) {
    let mut plan = knowledge_plan(2);
    let knowledge = plan.knowledge.as_mut().unwrap();
    knowledge.prototypes = false;
    let reference = knowledge.reference.as_mut().unwrap();
    (reference.generator, reference.classes) = (Name::new("orders-1").unwrap(), Some(2));
    reference.digest = set().digest;
    let (tokenizer, tokens) = (Digest([7; 32]), set().tokens.unwrap().digest());
    knowledge.top_logits = Some(TopLogitsPlan { top: 3, vocab: VOCAB, tokenizer, tokens });
    let knowledge = knowledge.clone();
    (plan, knowledge)
}

/// Shares of a model that gives the texts' tokens so much of each place, and the rest to all others alike.
fn said(knows: [f32; 2]) -> Knowing {
    let texts = texts();
    let mut said = TopLogits::silent(&texts, 3).unwrap();
    for (place, token) in texts.tokens.iter().enumerate() {
        let share = knows[usize::from(place >= 2)];
        let mut row = vec![((1.0 - share) / 8.0).ln(); VOCAB as usize];
        row[*token as usize] = share.ln();
        said.say(place, &row).unwrap();
    }
    Knowing { top_logits: Some(said), ..Knowing::default() }
}

fn table(members: &[[f32; 2]]) -> Heard {
    heard(&plan().0, &members.iter().map(|knows| said(*knows)).collect::<Vec<_>>())
}

fn outcome(table: &Heard) -> Result<TopLogits, UpdateError> {
    Ok(table.merged()?.0.top_logits.unwrap())
}

fn near(losses: &[f64], shares: [f64; 2]) -> bool {
    losses.iter().zip(shares).all(|(loss, share)| (loss + share.ln()).abs() < 2e-3)
}

#[test]
fn what_is_packed_comes_back_and_what_contradicts_the_plan_is_refused() {
    let (plan, knowledge) = plan();
    let packed = pack(&plan, &said([0.5, 0.2])).unwrap().unwrap();
    assert!(packed.counts.is_empty());
    assert_eq!(unpack(&knowledge, &packed.bytes, &[]).unwrap(), said([0.5, 0.2]));
    assert!(pack(&plan, &Knowing::default()).is_err(), "nothing was said");
    let with = |change: fn(&mut KnowledgePlan, &mut TopLogitsPlan)| {
        let mut other = knowledge.clone();
        let mut top = other.top_logits.take().unwrap();
        change(&mut other, &mut top);
        other.top_logits = Some(top);
        unpack(&other, &packed.bytes, &[]).map(drop)
    };
    assert!(with(|_, _| ()).is_ok());
    assert_eq!(with(|_, top| top.top = 4).unwrap_err().kind(), "layout_mismatch");
    assert_eq!(with(|_, top| top.vocab = 5).unwrap_err().kind(), "out_of_range");
    assert_eq!(with(|_, top| top.tokens = Digest([0; 32])).unwrap_err().kind(), "out_of_range");
    let count = |plan: &mut KnowledgePlan, _: &mut TopLogitsPlan| {
        plan.reference.as_mut().unwrap().count = 3;
    };
    assert_eq!(with(count).unwrap_err().kind(), "out_of_range");
    // Words of another kind of round, and the other way round.
    let classes = knowledge_plan(2).knowledge.unwrap();
    assert!(unpack(&classes, &packed.bytes, &[30, 30, 40]).is_err());
    assert_ne!(unpack(&knowledge, b"nonsense", &[]).map(drop).unwrap_err().kind(), "ok");
}

#[test]
fn plans_that_nobody_who_writes_can_follow_are_refused_and_their_twin_is_taken() {
    let (good, _) = plan();
    let sense = |change: fn(&mut Plan, &mut KnowledgePlan)| {
        let mut plan = good.clone();
        let mut knowledge = plan.knowledge.take().unwrap();
        change(&mut plan, &mut knowledge);
        makes_sense(&plan, &knowledge)
    };
    assert!(sense(|_, _| ()));
    let bad: [fn(&mut Plan, &mut KnowledgePlan); 8] = [
        |plan, _| plan.class_logits = true,
        |plan, _| plan.adapter_delta = true,
        |_, knowledge| knowledge.prototypes = true,
        |_, knowledge| knowledge.reference_logits = false,
        |_, knowledge| knowledge.reference = None,
        |_, knowledge| knowledge.reference.as_mut().unwrap().unlabelled = true,
        |_, knowledge| knowledge.top_logits.as_mut().unwrap().top = 0,
        |_, knowledge| knowledge.top_logits.as_mut().unwrap().vocab = 4,
    ];
    for (case, spoil) in bad.into_iter().enumerate() {
        assert!(!sense(spoil), "case {case}");
    }
}

#[test]
fn each_text_is_taught_by_whoever_knows_it_best_be_it_a_member_or_the_tier_above() {
    let mut table = table(&[[0.6, 0.2], [0.3, 0.7], [0.5, 0.5]]);
    let merged = outcome(&table).unwrap();
    assert!(near(&merged.losses(), [0.6, 0.7]), "{:?}", merged.losses());
    assert_eq!(merged.place(0), said([0.6, 0.2]).top_logits.unwrap().place(0));
    let first = outcome(&table).unwrap();
    table.job.inputs.reverse();
    assert_eq!(outcome(&table).unwrap(), first, "the order changes nothing");
    let above = pack(&table.job.plan, &said([0.1, 0.9])).unwrap().unwrap();
    let (set, reference) = (Digest::of(&above.bytes), table.job.inputs[0].knowledge.clone());
    table.blobs.insert(set, above.bytes);
    table.job.offered = Some(Said { set, ..reference.unwrap() });
    assert!(near(&outcome(&table).unwrap().losses(), [0.6, 0.9]));
}

#[test]
fn who_says_what_is_wrong_or_of_another_plan_teaches_nothing() {
    let honest = outcome(&table(&[[0.6, 0.2], [0.3, 0.7]])).unwrap();
    let mut liar = table(&[[0.6, 0.2], [0.3, 0.7], [0.001, 0.001]]);
    assert_eq!(outcome(&liar).unwrap(), honest, "nobody who is wrong teaches");
    let bytes = pack(
        &knowledge_plan(2),
        &Knowing {
            reference_logits: Some(vec![0.0; 6]),
            prototypes: Some(Prototypes { means: vec![0.0; 6], counts: vec![30, 30, 40] }),
            ..Knowing::default()
        },
    );
    let other = bytes.unwrap().unwrap().bytes;
    let set = Digest::of(&other);
    liar.job.inputs[2].knowledge.as_mut().unwrap().set = set;
    assert!(matches!(outcome(&liar), Err(UpdateError::Missing(missing)) if missing == set));
    liar.blobs.insert(set, other);
    assert_eq!(outcome(&liar).unwrap(), honest);
    liar.job.inputs.clear();
    assert_eq!(outcome(&liar).unwrap_err().kind(), LearnError::NoUpdates.kind());
}

#[test]
fn a_lesson_of_texts_needs_the_very_tokens_that_the_plan_names() {
    let (_, mut plan) = plan();
    let said = said([0.6, 0.2]);
    let taught = lesson(&plan, Some(&set()), Some(&said), None).unwrap().unwrap();
    let texts = taught.texts.unwrap();
    assert_eq!(texts.teacher.as_deref(), said.top_logits.as_ref());
    assert_eq!((texts.top, texts.alpha, taught.weight), (3, 0.5, 1.0));
    let silence = lesson(&plan, Some(&set()), None, None).unwrap().unwrap();
    assert!(silence.texts.unwrap().teacher.is_none());
    let no_tokens = ReferenceSet { tokens: None, ..set() };
    assert!(lesson(&plan, Some(&no_tokens), Some(&said), None).is_err());
    plan.top_logits.as_mut().unwrap().tokens = Digest([0; 32]);
    assert!(lesson(&plan, Some(&set()), Some(&said), None).is_err());
}
