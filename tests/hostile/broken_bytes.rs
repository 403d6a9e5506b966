//! Bytes that were broken on the way: cut at each offset, each bit flipped, something behind them.

use std::collections::BTreeMap;

use super::stage::{Forged, From, Stage, a_moment, on_stage};

/// Messages at once: fewer than a broker queues.
const BATCH: usize = 200;

/// Sends all of them; each must be refused under one of these reasons.
async fn all_are_refused(stage: &mut Stage, good: &Forged, bad: &[Vec<u8>], reasons: &[&str]) {
    let before = stage.counted();
    for batch in bad.chunks(BATCH) {
        for payload in batch {
            stage.send(From::Below, &good.topic, payload.clone(), false);
        }
        a_moment().await;
    }
    let mut counted = stage.since(&before);
    counted.remove("ledger_quota"); // more than a minute's worth of refusals isn't recorded
    let refused: u64 = counted.values().sum();
    assert_eq!(refused, bad.len() as u64, "{counted:?}");
    let foreign: BTreeMap<_, _> =
        counted.iter().filter(|(reason, _)| !reasons.contains(&reason.as_str())).collect();
    assert!(foreign.is_empty(), "{foreign:?}");
    for reason in reasons {
        assert!(counted.contains_key(*reason), "{reason} never came up: {counted:?}");
    }
    assert_eq!(stage.verdict(good), None);
}

#[test]
fn a_message_cut_at_any_offset_is_refused_and_the_whole_one_is_accepted() {
    on_stage("cloud", |mut stage| async move {
        let good = stage.contribution("edge0");
        let whole = good.wire();
        let cut: Vec<Vec<u8>> = (0..whole.len()).map(|end| whole[..end].to_vec()).collect();
        all_are_refused(&mut stage, &good, &cut, &["malformed_envelope"]).await;
        stage.accepts(&good).await;
    });
}

#[test]
fn a_message_with_any_bit_flipped_is_refused_and_the_sound_one_is_accepted() {
    on_stage("cloud", |mut stage| async move {
        let good = stage.contribution("edge0");
        let whole = good.wire();
        let flip = |bit: usize| {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            bytes
        };
        let flipped: Vec<Vec<u8>> = (0..whole.len() * 8).map(flip).collect();
        let reasons = ["malformed_envelope", "wrong_type", "unknown_key", "bad_signature"];
        all_are_refused(&mut stage, &good, &flipped, &reasons).await;
        stage.accepts(&good).await;
    });
}

#[test]
fn bytes_behind_the_envelope_or_behind_the_signed_pair_are_refused() {
    on_stage("cloud", |mut stage| async move {
        let good = stage.contribution("edge0");
        let behind = [good.wire(), vec![0xc0]].concat();
        let topic = good.topic.clone();
        stage.refuses_bytes(From::Below, &topic, behind, "malformed_envelope").await;
        let inside = good.wire_of(&[good.payload(), vec![0xc0]].concat());
        stage.refuses_bytes(From::Below, &topic, inside, "malformed_payload").await;
        stage.accepts(&good).await;
    });
}

#[test]
fn nothing_at_all_is_refused() {
    on_stage("cloud", |mut stage| async move {
        let good = stage.contribution("edge0");
        let topic = good.topic.clone();
        stage.refuses_bytes(From::Below, &topic, Vec::new(), "malformed_envelope").await;
        stage.accepts(&good).await;
    });
}
