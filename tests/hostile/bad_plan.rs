//! Offers of a parent that no member can follow.

use gaisnet::ids::Digest;
use gaisnet::wire::{Blob, ClassSummary, Coding, Offer};

use super::stage::{From, on_stage};

/// Changes a good offer; a device and an edge must decline it for this reason, count it, and take the
/// good one.
fn declined(reason: &'static str, change: fn(&mut Offer)) {
    for target in ["dev0-0", "edge0"] {
        on_stage(target, move |mut stage| async move {
            let bad = stage.offer_with(1, change);
            stage.refuses(From::Above, &bad, reason).await;
            let answer = stage.answer(&bad).unwrap();
            assert_eq!((answer.accepted, answer.reason.as_str()), (false, reason));
            let good = stage.offer_with(2, |_| {});
            stage.takes(&good).await;
        });
    }
}

#[test]
fn a_plan_without_examples_steps_or_rank_is_declined() {
    declined("senseless_plan", |offer| offer.plan.batch_size = 0);
    declined("senseless_plan", |offer| offer.plan.batch_size = u32::MAX);
    declined("senseless_plan", |offer| offer.plan.local_steps = 0);
    declined("senseless_plan", |offer| offer.plan.local_steps = u32::MAX);
    declined("senseless_plan", |offer| offer.plan.rank = 0);
}

#[test]
fn a_plan_with_senseless_rates_is_declined() {
    declined("senseless_plan", |offer| offer.plan.learning_rate = -1.0);
    declined("senseless_plan", |offer| offer.plan.learning_rate = 1e30);
    declined("senseless_plan", |offer| offer.plan.prox_mu = -1.0);
    declined("senseless_plan", |offer| offer.plan.alpha = 0.0);
}

#[test]
fn a_plan_with_a_coding_that_nobody_can_write_is_declined() {
    declined("senseless_plan", |offer| {
        (offer.plan.coding, offer.plan.block) = (Coding::Int8, 0);
    });
}

#[test]
fn a_plan_that_asks_for_nothing_or_ends_at_once_is_declined() {
    declined("senseless_plan", |offer| {
        (offer.plan.adapter_delta, offer.plan.class_logits) = (false, false);
    });
    declined("senseless_plan", |offer| offer.deadline_ms = 0);
    declined("senseless_plan", |offer| offer.deadline_ms = u64::MAX);
}

#[test]
fn class_targets_that_are_no_numbers_are_declined() {
    declined("bad_class_targets", |offer| {
        let mean_logits = [f32::NAN; 4].iter().flat_map(|x| x.to_le_bytes()).collect();
        offer.class_targets = Some(ClassSummary { mean_logits, counts: vec![30, 30] });
    });
}

#[test]
fn an_adapter_that_lies_about_its_size_is_declined() {
    declined("unsound_blob", |offer| {
        let mut manifest = gaisnet::wire::Manifest::of(&vec![1; 40_000], 4096);
        manifest.bytes = 1;
        offer.adapter = Blob::Manifest(manifest);
    });
}

#[test]
fn a_learning_rate_that_is_no_number_does_not_come_through_the_door() {
    on_stage("dev0-0", |mut stage| async move {
        let good = stage.offer_with(1, |_| {});
        let mut bad = good.clone();
        let rate = [&[0xca][..], &0.1_f32.to_be_bytes()].concat();
        let at = bad.body.windows(5).position(|window| window == rate).unwrap();
        bad.body[at + 1..at + 5].copy_from_slice(&f32::NAN.to_be_bytes());
        stage.refuses(From::Above, &bad, "malformed_payload").await;
        stage.takes(&good).await;
    });
}

#[test]
fn another_model_or_another_base_is_declined_and_is_no_offence() {
    for (reason, change) in [
        ("base_mismatch", (|offer| offer.base = Digest([8; 32])) as fn(&mut Offer)),
        ("unknown_model", |offer| offer.model = super::federation::name("other")),
    ] {
        on_stage("dev0-0", move |mut stage| async move {
            let bad = stage.offer_with(1, change);
            let before = stage.counted();
            stage.send(From::Above, &bad.topic, bad.wire(), false);
            super::stage::a_moment().await;
            assert_eq!(stage.answer(&bad).unwrap().reason, reason);
            assert!(stage.since(&before).is_empty());
            let good = stage.offer_with(2, |_| {});
            stage.takes(&good).await;
        });
    }
}
