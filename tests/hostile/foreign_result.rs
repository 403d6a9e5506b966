//! Adapters of a parent that aren't adapters of the model: they must not be served for a moment, nor
//! passed on.

use gaisnet::learn::{Tensor, TensorSet};
use gaisnet::protocol::update;
use gaisnet::wire::{Blob, Body, Coding, PackedSet, PackedTensor};

use super::stage::{From, Stage, a_moment, on_stage, packed};

fn of(name: &str, shape: &[usize], value: f32) -> Vec<u8> {
    let data = vec![value; shape.iter().product()];
    let tensor = Tensor { name: name.into(), shape: shape.to_vec(), data };
    update::pack(&TensorSet::new(vec![tensor]).unwrap(), Coding::F32, 0).unwrap()
}

/// Whether the target told its children of a result.
fn passed_on(stage: &Stage) -> bool {
    stage.said().iter().any(|(_, body)| matches!(body, Body::Result(_)))
}

fn refused(adapter: &[u8], reason: &'static str) {
    for target in ["dev0-0", "edge0"] {
        let adapter = adapter.to_vec();
        on_stage(target, move |mut stage| async move {
            let bad = stage.result(1, Blob::Inline(adapter));
            stage.refuses(From::Above, &bad, reason).await;
            assert!(stage.served() == 0 && !passed_on(&stage));
            let blamed = Some(if target == "edge0" { "cloud" } else { "edge0" }.to_owned());
            assert_eq!(stage.refusals(), [(reason.to_owned(), blamed)]);
            // It is published again and again, and recorded once.
            stage.refuses(From::Above, &bad, reason).await;
            assert_eq!(stage.refusals().len(), 1);
            let good = stage.result(1, Blob::Inline(packed(0.5)));
            let before = stage.counted();
            stage.send(From::Above, &good.topic, good.wire(), false);
            a_moment().await;
            assert!(stage.since(&before).is_empty());
            assert_eq!(stage.served(), 1);
            assert_eq!(passed_on(&stage), target == "edge0");
        });
    }
}

#[test]
fn a_result_of_another_layout_is_refused_before_it_is_served() {
    refused(&of("head.weight", &[5], 0.5), "layout_mismatch");
    refused(&of("other", &[4], 0.5), "layout_mismatch");
}

#[test]
fn a_result_of_numbers_that_are_none_is_refused_before_it_is_served() {
    let set = PackedSet {
        tensors: vec![PackedTensor { name: "head.weight".into(), shape: vec![4] }],
        coding: Coding::F32,
        block: 0,
        data: [f32::NAN; 4].iter().flat_map(|x| x.to_le_bytes()).collect(),
    };
    refused(&set.to_bytes().unwrap(), "not_finite");
}

#[test]
fn a_result_that_is_no_set_at_all_is_refused_before_it_is_served() {
    refused(b"rm -rf /", "bad_compression");
}

#[test]
fn an_offer_of_an_adapter_of_another_layout_is_declined_and_not_served() {
    for target in ["dev0-0", "edge0"] {
        on_stage(target, |mut stage| async move {
            let adapter = Blob::Inline(of("head.weight", &[5], 0.5));
            let bad = stage.offer_with(1, |offer| offer.adapter = adapter);
            stage.refuses(From::Above, &bad, "layout_mismatch").await;
            assert_eq!(stage.answer(&bad).unwrap().reason, "layout_mismatch");
            assert_eq!(stage.served(), 0);
            let good = stage.offer_with(2, |_| {});
            stage.takes(&good).await;
        });
    }
}
