//! Sound words at the wrong time: twice and different, of an old epoch or version, for a round that
//! nobody opened, with counts that can't be.

use gaisnet::ids::Digest;
use gaisnet::ledger::Event;
use gaisnet::wire::{Blob, Contribution, Verdict};

use super::stage::{From, a_moment, on_stage, packed};

#[test]
fn two_bodies_for_one_offer_are_equivocation_and_the_first_one_counts() {
    on_stage("cloud", |mut stage| async move {
        let first = stage.contribution("edge0");
        stage.accepts(&first).await;
        let second = stage.contribution_with("edge0", |c| c.num_examples = 7_000);
        stage.refuses(From::Below, &second, "equivocation").await;
        assert_eq!(stage.verdict(&second), Some(Verdict::Refused("equivocation".into())));
        let recorded = stage.plant.entries("cloud").into_iter().any(|event| {
            matches!(event, Event::Equivocation { sender, .. } if sender.as_str() == "edge0")
        });
        assert!(recorded);
        // The same again is no offence, and another member's is not touched.
        stage.accepts(&first).await;
        let other = stage.contribution("edge1");
        stage.accepts(&other).await;
    });
}

/// Changes a good contribution; a cloud must refuse it for this reason and take the good one.
fn refused(reason: &'static str, change: fn(&mut Contribution)) {
    on_stage("cloud", move |mut stage| async move {
        let bad = stage.contribution_with("edge0", change);
        stage.refuses(From::Below, &bad, reason).await;
        assert_eq!(stage.verdict(&bad), Some(Verdict::Refused(reason.into())));
        let good = stage.contribution("edge0");
        stage.accepts(&good).await;
    });
}

#[test]
fn a_contribution_to_a_round_that_nobody_opened_is_refused() {
    refused("unknown_offer", |c| c.offer = Digest([3; 32]));
}

#[test]
fn a_contribution_that_started_from_another_version_is_refused() {
    refused("wrong_version", |c| c.version = 7);
}

#[test]
fn counts_of_examples_that_no_plant_has_are_refused() {
    refused("too_many_examples", |c| c.num_examples = u64::MAX);
    refused("no_examples", |c| c.num_examples = 0);
    refused("no_examples", |c| c.num_devices = 0);
}

#[test]
fn a_contribution_of_another_kind_than_was_asked_for_is_refused() {
    refused("wrong_contribution_kind", |c| c.delta = None);
}

#[test]
fn class_logits_that_disagree_with_their_counts_are_refused() {
    refused("out_of_range", |c| {
        c.class_logits =
            Some(gaisnet::wire::ClassSummary { mean_logits: Vec::new(), counts: Vec::new() });
    });
    refused("layout_mismatch", |c| {
        c.class_logits =
            Some(gaisnet::wire::ClassSummary { mean_logits: vec![0; 8], counts: vec![30, 30] });
    });
    refused("not_finite", |c| {
        let mean_logits = [f32::NAN; 4].iter().flat_map(|x| x.to_le_bytes()).collect();
        c.class_logits = Some(gaisnet::wire::ClassSummary { mean_logits, counts: vec![30, 30] });
    });
}

#[test]
fn a_round_number_that_is_not_the_offers_is_refused() {
    on_stage("cloud", |mut stage| async move {
        let good = stage.contribution("edge0");
        let mut bad = good.clone();
        bad.head.round += 1;
        stage.refuses(From::Below, &bad, "wrong_round").await;
        stage.accepts(&good).await;
    });
}

#[test]
fn an_owner_of_a_lower_epoch_is_fenced_off() {
    for target in ["dev0-0", "edge0"] {
        on_stage(target, move |mut stage| async move {
            let mut first = stage.offer_with(1, |_| {});
            first.head.epoch = 5;
            stage.takes(&first).await;
            let mut bad = stage.offer_with(2, |offer| offer.plan.seed = 99);
            bad.head.epoch = 4;
            stage.refuses(From::Above, &bad, "stale_epoch").await;
            assert_eq!(stage.answer(&bad), None);
            let mut good = bad.clone();
            good.head.epoch = 5;
            stage.send(From::Above, &good.topic, good.wire(), false);
            a_moment().await;
            // The first one is still being worked on by an edge's devices: it takes this one later.
            if target == "dev0-0" {
                assert!(stage.answer(&good).unwrap().accepted);
            }
        });
    }
}

#[test]
fn an_older_version_is_not_taken_back() {
    for target in ["dev0-0", "edge0"] {
        on_stage(target, |mut stage| async move {
            let good = stage.result(2, Blob::Inline(packed(0.5)));
            stage.send(From::Above, &good.topic, good.wire(), false);
            a_moment().await;
            assert_eq!(stage.served(), 2);
            let bad = stage.result(1, Blob::Inline(packed(0.125)));
            stage.refuses(From::Above, &bad, "older_version").await;
            assert_eq!(stage.served(), 2);
            let offer = stage.offer_with(1, |offer| offer.version = 1);
            stage.send(From::Above, &offer.topic, offer.wire(), false);
            a_moment().await;
            assert_eq!(stage.answer(&offer).unwrap().reason, "version_goes_back");
            let next = stage.result(3, Blob::Inline(packed(0.75)));
            stage.send(From::Above, &next.topic, next.wire(), false);
            a_moment().await;
            assert_eq!(stage.served(), 3);
        });
    }
}

#[test]
fn numbers_that_no_owner_can_have_come_to_block_no_member() {
    for target in ["dev0-0", "edge0"] {
        on_stage(target, |mut stage| async move {
            let mut far = vec![
                stage.offer_with(u64::MAX, |_| {}),
                stage.offer_with(1, |offer| offer.version = u64::MAX),
                stage.offer_with(1 << 33, |offer| offer.deadline_ms = 0),
                stage.result(u64::MAX, Blob::Inline(packed(0.5))),
                stage.offer_with(1, |offer| offer.plan.seed = 99),
            ];
            far[4].head.epoch = u64::MAX;
            for bad in far {
                stage.refuses(From::Above, &bad, "number_out_of_reach").await;
                assert_eq!(stage.answer(&bad), None);
            }
            assert_eq!(stage.served(), 0);
            let result = stage.result(1_000_000, Blob::Inline(packed(0.5)));
            stage.send(From::Above, &result.topic, result.wire(), false);
            a_moment().await;
            assert_eq!(stage.served(), 1_000_000);
            let good = stage.offer_with(1_000_001, |offer| offer.version = 1_000_000);
            stage.takes(&good).await;
        });
    }
}

#[test]
fn receipts_of_nothing_settle_nothing() {
    use gaisnet::ids::UpdateId;
    use gaisnet::wire::{Body, Receipt};
    on_stage("dev0-0", |mut stage| async move {
        let update = UpdateId([4; 16]);
        let receipt = Body::Receipt(Receipt { update, verdict: Verdict::Accepted });
        let bad = stage.forge("edge0", 1, 1, &receipt);
        stage.refuses(From::Above, &bad, "receipt_of_nothing").await;
        let good = stage.offer_with(1, |_| {});
        stage.takes(&good).await;
    });
}
