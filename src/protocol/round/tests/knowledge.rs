//! Rounds of knowledge: what is offered of it, and the node's own model.

use super::*;
use crate::learn::{ClassHead, LatentGenerator, Prototypes};
use crate::protocol::effect::Distils;
use crate::protocol::fixture::knowledge_plan;
use crate::protocol::knowledge::{Knowing, PackedKnowledge, pack};

/// Only class logits travel, so that no set has to be made.
fn bench() -> Bench {
    let mut bench = Bench::new(Owner::Root);
    let mut plan = Plan { class_logits: true, ..knowledge_plan(2) };
    words(&mut plan, false);
    bench.round.config.plan = plan;
    bench.round.config.distils = Some(Distils { steps: 3, learning_rate: 0.1, final_rate: None });
    bench
}

fn words(plan: &mut Plan, prototypes: bool) {
    let knowledge = plan.knowledge.as_mut().unwrap();
    (knowledge.prototypes, knowledge.reference_logits) = (prototypes, false);
    knowledge.reference = None;
}

fn work(own: Option<Vec<u8>>, knowledge: Option<PackedKnowledge>) -> Work {
    Work {
        update: None,
        class_logits: None,
        knowledge,
        num_examples: 300,
        num_devices: 3,
        steps: 4,
        loss_first: 1.0,
        loss_last: 0.5,
        risk: None,
        residual: None,
        own,
        weighed: Vec::new(),
    }
}

fn merged() -> Work {
    work(None, Some(PackedKnowledge { bytes: vec![1, 2, 3], counts: Vec::new() }))
}

/// A round up to where its contributions are merged.
fn closed(bench: &mut Bench) -> Digest {
    bench.step(Input::StartRound);
    let (offer, _) = bench.offer();
    for sender in ["a", "b", "c"] {
        let logits = [2.0_f32, -1.0, -1.0, 2.0].iter().flat_map(|z| z.to_le_bytes()).collect();
        let summary = ClassSummary { mean_logits: logits, counts: vec![50, 50] };
        let work = Contribution { delta: None, class_logits: Some(summary), ..bench.work(1) };
        let effects = bench.send(sender, &work);
        assert_eq!(verdict(&effects), Some(Verdict::Accepted), "{effects:?}");
    }
    assert_eq!(bench.phase(), "closing");
    offer
}

fn served(effects: &[Effect]) -> Option<(Version, Digest)> {
    effects.iter().find_map(|effect| match effect {
        Effect::Apply { version, adapter } => Some((*version, *adapter)),
        _ => None,
    })
}

fn result(effects: &[Effect]) -> RoundResult {
    let found = effects.iter().find_map(|effect| match effect {
        Effect::Send { body: Body::Result(result), .. } => Some(RoundResult::clone(result)),
        _ => None,
    });
    found.unwrap()
}

#[test]
fn what_is_known_is_offered_only_under_the_plan_that_it_was_said_under() {
    let mut bench = bench();
    bench.round.config.distils = None;
    let offer = closed(&mut bench);
    bench.step(Input::Combined { offer, outcome: Ok(merged()) });
    let mut other = Bench {
        round: Round::new(bench.round.config.clone(), &first_adapter(4), &[]).unwrap(),
        state: bench.state.clone(),
        now: bench.now,
    };
    words(&mut other.round.config.plan, true);
    other.restart();
    other.step(Input::StartRound);
    assert_eq!(other.offer().1.knowledge, None, "other words are asked for now");
    bench.restart();
    bench.step(Input::StartRound);
    let known = bench.offer().1.knowledge.unwrap();
    assert_eq!(known.set.sha256(), Digest::of(&[1, 2, 3]));
}

#[test]
fn an_own_model_is_served_under_one_number_also_after_a_restart() {
    let mut bench = bench();
    for version in 1..=2 {
        let offer = closed(&mut bench);
        let effects = bench.step(Input::Combined { offer, outcome: Ok(merged()) });
        assert!(matches!(effects.as_slice(), [Effect::Job(Job::Distil(_))]), "{effects:?}");
        let own = vec![9, u8::try_from(version).unwrap()];
        let learned = Ok(work(Some(own.clone()), None));
        let effects = bench.step(Input::Distilled { offer, outcome: learned });
        let expected = Some((version, Digest::of(&own)));
        assert_eq!((served(&effects), result(&effects).version), (expected, version));
        assert_eq!(served(&bench.restart()), expected);
    }
}

#[test]
fn when_its_own_model_learns_nothing_what_was_merged_goes_on() {
    let mut bench = bench();
    bench.round.config.versions = 9;
    let offer = closed(&mut bench);
    bench.step(Input::Combined { offer, outcome: Ok(merged()) });
    let effects = bench.step(Input::Distilled { offer, outcome: Err("out_of_range") });
    assert!(effects.contains(&Effect::Count("out_of_range")));
    assert_eq!(result(&effects).knowledge.unwrap().set.sha256(), Digest::of(&[1, 2, 3]));
    assert_eq!(served(&effects), None);
    assert!(effects.iter().any(Effect::frees_blobs), "what members sent is of no use any more");
    assert_eq!(bench.phase(), "idle");
}

#[test]
fn back_among_adapters_an_own_model_is_gone() {
    let mut bench = bench();
    let offer = closed(&mut bench);
    bench.step(Input::Combined { offer, outcome: Ok(merged()) });
    bench.step(Input::Distilled { offer, outcome: Ok(work(Some(vec![9]), None)) });
    bench.round.config.plan = plan(Coding::F32);
    bench.step(Input::StartRound);
    for sender in ["a", "b", "c"] {
        let work = bench.work(1);
        bench.send(sender, &work);
    }
    let adapter = Digest::of(&first_adapter(4));
    assert_eq!(served(&bench.combine()), Some((2, adapter)));
    assert_eq!(served(&bench.restart()), Some((2, adapter)), "and stays so");
}

#[test]
fn a_layer_is_taken_from_a_member_and_a_generator_or_a_count_that_lies_is_not() {
    let mut bench = bench();
    bench.round.config.plan.class_logits = false;
    let knowledge = bench.round.config.plan.knowledge.as_mut().unwrap();
    knowledge.generator_weight = Some(1.0);
    let plan = bench.round.config.plan.clone();
    bench.step(Input::StartRound);
    let rows = Prototypes { means: vec![1.0, -1.0, 0.0, -1.0, 1.0, 0.0], counts: vec![50, 50] };
    let head = ClassHead { rows, moments: vec![0.0, 0.0, 1.0, 1.0] };
    let generator = Some(LatentGenerator::train(&head, 1).unwrap());
    let layer = Knowing { head: Some(head), ..Knowing::default() };
    let mut send = |sender: &str, said: &Knowing, change: fn(&mut Knowledge)| {
        let packed = pack(&plan, said).unwrap().unwrap();
        let set = Blob::Inline(packed.bytes);
        let mut knowledge = Knowledge { set, counts: packed.counts };
        change(&mut knowledge);
        let knowledge = Some(knowledge);
        let work = Contribution { delta: None, knowledge, ..bench.work(1) };
        let effects = bench.send(sender, &work);
        match verdict(&effects) {
            Some(Verdict::Refused(reason)) => {
                let counted =
                    |effect: &Effect| matches!(effect, Effect::Count(word) if *word == reason);
                assert!(effects.iter().any(counted), "{effects:?}");
                reason
            }
            other => format!("{other:?}"),
        }
    };
    let made = Knowing { generator, ..Knowing::default() };
    assert_eq!(send("a", &made, |_| {}), "layout_mismatch");
    let more = |said: &mut Knowledge| said.counts[0] = 51;
    assert_eq!(send("b", &layer, more), "counts_exceed_examples");
    let fewer = |said: &mut Knowledge| said.counts.truncate(1);
    assert_eq!(send("b", &layer, fewer), "layout_mismatch");
    assert_eq!(send("c", &layer, |_| {}), "Some(Accepted)");
}
