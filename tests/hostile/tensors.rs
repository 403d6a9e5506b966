//! Deltas that are no deltas of the model: numbers, shapes, codings, names, bombs.

use gaisnet::wire::{Blob, Coding, PackedSet, PackedTensor, Verdict, encode};
use serde::Serialize;

use super::stage::{From, on_stage, packed};

/// Contributes this instead of a delta; a cloud must refuse it for this reason, say so in the receipt,
/// and take a sound one.
fn refused(delta: Vec<u8>, reason: &'static str) {
    on_stage("cloud", move |mut stage| async move {
        let blob = Some(Blob::Inline(delta));
        let bad = stage.contribution_with("edge0", |contribution| contribution.delta = blob);
        stage.refuses(From::Below, &bad, reason).await;
        assert_eq!(stage.verdict(&bad), Some(Verdict::Refused(reason.into())));
        let good = stage.contribution("edge0");
        stage.accepts(&good).await;
    });
}

fn compressed<T: Serialize>(set: &T) -> Vec<u8> {
    zstd::bulk::compress(&rmp_serde::to_vec_named(set).unwrap(), 3).unwrap()
}

/// A set of one tensor, not checked.
fn set(name: &str, shape: &[u32], values: &[f32]) -> PackedSet {
    PackedSet {
        tensors: vec![PackedTensor { name: name.into(), shape: shape.to_vec() }],
        coding: Coding::F32,
        block: 0,
        data: values.iter().flat_map(|x| x.to_le_bytes()).collect(),
    }
}

fn sound() -> PackedSet {
    set("head.weight", &[4], &[0.25; 4])
}

#[test]
fn the_sound_set_of_these_tests_is_what_members_send() {
    assert_eq!(sound().to_bytes().unwrap(), packed(0.25));
}

#[test]
fn values_that_are_no_numbers_are_refused() {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        refused(compressed(&set("head.weight", &[4], &[0.0, value, 0.0, 0.0])), "not_finite");
    }
}

#[test]
fn a_delta_longer_than_any_training_makes_is_refused() {
    refused(compressed(&set("head.weight", &[4], &[3e38; 4])), "out_of_range");
}

#[test]
fn another_shape_or_another_layout_is_refused() {
    refused(compressed(&set("head.weight", &[2, 2], &[0.0; 4])), "layout_mismatch");
    refused(compressed(&set("head.weight", &[5], &[0.0; 5])), "layout_mismatch");
    refused(compressed(&set("head.bias", &[4], &[0.0; 4])), "layout_mismatch");
    let nothing = PackedSet { tensors: Vec::new(), data: Vec::new(), ..sound() };
    refused(compressed(&nothing), "layout_mismatch");
    let mut two = sound();
    two.tensors.push(PackedTensor { name: "zz".into(), shape: vec![1] });
    two.data.extend([0; 4]);
    refused(compressed(&two), "layout_mismatch");
}

#[test]
fn shapes_that_the_bytes_do_not_bear_are_refused() {
    refused(compressed(&set("head.weight", &[5], &[0.0; 4])), "bad_tensor_shape");
    refused(compressed(&set("head.weight", &[u32::MAX; 4], &[0.0; 4])), "bad_tensor_shape");
    refused(
        compressed(&set("head.weight", &[0, u32::MAX, u32::MAX], &[0.0; 4])),
        "bad_tensor_shape",
    );
    refused(compressed(&set("head.weight", &[1; 9], &[0.0; 1])), "bad_tensor_shape");
    // As if the values were f64.
    let wide = PackedSet { data: vec![0; 32], ..sound() };
    refused(compressed(&wide), "bad_tensor_shape");
}

#[test]
fn codings_that_nobody_knows_or_that_disagree_with_their_bytes_are_refused() {
    #[derive(Serialize)]
    struct Foreign {
        tensors: Vec<PackedTensor>,
        coding: &'static str,
        block: u16,
        data: serde_bytes::ByteBuf,
    }
    let data = serde_bytes::ByteBuf::from(vec![0; 16]);
    let tensors = sound().tensors;
    let foreign = Foreign { tensors, coding: "f64", block: 0, data };
    refused(compressed(&foreign), "wrong_structure");
    refused(compressed(&PackedSet { coding: Coding::Int8, ..sound() }), "bad_tensor_shape");
    let int8 = PackedSet { coding: Coding::Int8, block: 64, ..sound() };
    refused(compressed(&int8), "wrong_length");
    let odd = PackedSet { coding: Coding::Int4, block: 3, ..sound() };
    refused(compressed(&odd), "out_of_range");
    refused(compressed(&PackedSet { block: 64, ..sound() }), "bad_tensor_shape");
}

#[test]
fn more_tensors_than_a_set_may_have_are_refused() {
    let tensor = |n: usize| PackedTensor { name: format!("t{n:05}"), shape: vec![0] };
    let tensors = (0..5_000).map(tensor).collect();
    refused(compressed(&PackedSet { tensors, data: Vec::new(), ..sound() }), "too_many_tensors");
}

#[test]
fn names_that_look_like_paths_are_refused() {
    for name in
        ["../../etc/x", "/etc/passwd", "a/b", "..", "a..b", "", "a\0b", "C:\\x", "\u{202e}x"]
    {
        refused(compressed(&set(name, &[4], &[0.0; 4])), "bad_tensor_name");
    }
}

#[test]
fn names_out_of_order_or_twice_are_refused() {
    for names in [["b", "a"], ["a", "a"]] {
        let tensors = names.map(|n| PackedTensor { name: n.into(), shape: vec![1] }).into();
        refused(compressed(&PackedSet { tensors, data: vec![0; 8], ..sound() }), "bad_tensor_name");
    }
}

#[test]
fn a_decompression_bomb_is_refused_at_the_cap() {
    let bomb = zstd::bulk::compress(&vec![0; (64 << 20) + 1], 19).unwrap();
    assert!(bomb.len() < 32 * 1024, "it fits into a message");
    refused(bomb, "decompression_bomb");
}

#[test]
fn a_frame_that_claims_a_window_of_gigabytes_is_refused() {
    // Magic, no content size, window descriptor 2^31: the rest doesn't matter.
    let frame = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa8, 0x01, 0x00, 0x00];
    refused(frame.to_vec(), "bad_compression");
}

#[test]
fn bytes_that_are_not_compressed_or_cut_are_refused() {
    refused(encode(&sound()).unwrap(), "bad_compression");
    let whole = packed(0.25);
    refused(whole[..whole.len() - 3].to_vec(), "bad_compression");
    refused([packed(0.25), vec![1, 2, 3]].concat(), "bad_compression");
    refused([packed(0.25), packed(0.25)].concat(), "trailing_bytes");
}
