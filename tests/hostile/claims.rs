//! Sealed bodies of an insider that claim more than they are: lengths, depths, odd numbers.

use super::stage::{Forged, From, Stage, on_stage};

/// The position behind a text key of the body.
fn behind(body: &[u8], key: &str) -> usize {
    let at = body.windows(key.len()).position(|window| window == key.as_bytes());
    at.unwrap() + key.len()
}

/// Replaces `len` bytes behind a key of the body.
fn replaced(good: &Forged, key: &str, len: usize, with: &[u8]) -> Forged {
    let at = behind(&good.body, key);
    let mut bad = good.clone();
    bad.body = [&good.body[..at], with, &good.body[at + len..]].concat();
    bad
}

async fn refused_then_accepted(mut stage: Stage, bad: Vec<(Forged, &'static str)>, good: Forged) {
    for (bad, reason) in bad {
        stage.refuses(From::Below, &bad, reason).await;
    }
    stage.accepts(&good).await;
}

#[test]
fn lengths_that_the_bytes_do_not_bear_are_refused() {
    on_stage("cloud", |mut stage| async move {
        let good = stage.contribution("edge0");
        let with = |body: Vec<u8>| Forged { body, ..good.clone() };
        let bad = vec![
            (with(vec![0xdf, 0xff, 0xff, 0xff, 0xff]), "malformed_payload"), // map
            (with(vec![0xdd, 0xff, 0xff, 0xff, 0xff]), "malformed_payload"), // array
            (with(vec![0xc6, 0xff, 0xff, 0xff, 0xff]), "malformed_payload"), // bytes
            (with(vec![0xdb, 0xff, 0xff, 0xff, 0xff]), "malformed_payload"), // text
            (replaced(&good, "offer", 2, &[0xc6, 0xff, 0xff, 0xff, 0xff]), "malformed_payload"),
        ];
        refused_then_accepted(stage, bad, good).await;
    });
}

#[test]
fn an_envelope_that_claims_gigabytes_is_refused_before_its_signature_is_looked_at() {
    on_stage("cloud", |mut stage| async move {
        let good = stage.contribution("edge0");
        let topic = good.topic.clone();
        let text = |claim: &[u8]| [&[0x94, 1, 0xa1, b'x'], claim].concat();
        for bytes in [
            text(&[0xc6, 0xff, 0xff, 0xff, 0xff]),
            text(&[0xc4, 1, 0, 0xdd, 0xff, 0xff, 0xff, 0xff]),
            vec![0xdd, 0xff, 0xff, 0xff, 0xff],
        ] {
            stage.refuses_bytes(From::Below, &topic, bytes, "malformed_envelope").await;
        }
        stage.accepts(&good).await;
    });
}

#[test]
fn deep_nesting_is_refused() {
    on_stage("cloud", |mut stage| async move {
        let good = stage.contribution("edge0");
        let nested = [vec![0x91; 20_000], vec![0xc0]].concat();
        let bad = vec![
            (Forged { body: nested.clone(), ..good.clone() }, "malformed_payload"),
            (replaced(&good, "class_logits", 1, &nested), "malformed_payload"),
        ];
        let topic = good.topic.clone();
        stage.refuses_bytes(From::Below, &topic, nested, "malformed_envelope").await;
        refused_then_accepted(stage, bad, good).await;
    });
}

#[test]
fn numbers_that_are_not_in_their_shortest_form_are_refused() {
    on_stage("cloud", |mut stage| async move {
        let good = stage.contribution("edge0");
        let at = behind(&good.body, "num_examples");
        let examples = good.body[at];
        assert!(examples < 0x80, "a number of one byte");
        let bad = vec![
            (replaced(&good, "num_examples", 1, &[0xcc, examples]), "malformed_payload"),
            (replaced(&good, "num_examples", 1, &[0xcd, 0, examples]), "malformed_payload"),
            (replaced(&good, "num_examples", 1, &[0xd0, examples]), "malformed_payload"),
        ];
        refused_then_accepted(stage, bad, good).await;
    });
}

#[test]
fn losses_that_are_no_numbers_are_refused() {
    on_stage("cloud", |mut stage| async move {
        let good = stage.contribution("edge0");
        let float = |value: f32| [vec![0xca], value.to_be_bytes().to_vec()].concat();
        let bad = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY]
            .map(|loss| (replaced(&good, "loss_last", 5, &float(loss)), "malformed_payload"));
        refused_then_accepted(stage, bad.into(), good).await;
    });
}

#[test]
fn bodies_of_another_structure_are_refused() {
    on_stage("cloud", |mut stage| async move {
        let good = stage.contribution("edge0");
        let with = |body: Vec<u8>| Forged { body, ..good.clone() };
        let bad = vec![
            (with(vec![0x80]), "malformed_body"), // nothing in it
            (with(vec![0xc0]), "malformed_body"), // nil
            (replaced(&good, "num_devices", 1, &[0xa0]), "malformed_body"), // a text
            (replaced(&good, "num_devices", 1, &[0xff]), "malformed_body"), // -1
            (replaced(&good, "offer", 2, &[0xc4, 31]), "malformed_payload"), // a byte is left over
            (unknown_field(&good), "malformed_body"),
        ];
        refused_then_accepted(stage, bad, good).await;
    });
}

/// The same with one field more.
fn unknown_field(good: &Forged) -> Forged {
    let mut bad = good.clone();
    assert!((0x80..0x8f).contains(&bad.body[0]), "a map of fewer than 15");
    bad.body[0] += 1;
    bad.body.extend([0xa1, b'x', 1]);
    bad
}

#[test]
fn a_control_message_above_its_cap_is_refused_and_one_below_it_is_taken() {
    use gaisnet::wire::{Answer, Body, Kind};
    on_stage("cloud", |mut stage| async move {
        let (offer, task) = stage.offer();
        let mut answer = |reason: usize| {
            let reason = "x".repeat(reason);
            let body = Body::Answer(Answer { offer, accepted: false, reason });
            stage.forge("edge1", task.round, 1, &body)
        };
        let (big, small) = (answer(Kind::Answer.cap_bytes()), answer(100));
        stage.refuses(From::Below, &big, "over_cap").await;
        let before = stage.counted();
        stage.send(From::Below, &small.topic, small.wire(), false);
        let good = stage.contribution("edge0");
        stage.accepts(&good).await;
        assert!(stage.since(&before).is_empty());
    });
}
