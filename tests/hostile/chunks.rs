//! Blobs in chunks: chunks that nobody asked for, that are forged, that lie about their length.

use gaisnet::ids::Digest;
use gaisnet::wire::{Blob, Body, Chunk, Manifest, Verdict, Wanted, encode};

use super::stage::{Forged, From, Stage, a_moment, on_stage, packed};

/// A contribution of which the delta has to be fetched, and the delta.
fn in_chunks(
    stage: &mut Stage,
    sender: &str,
    change: impl FnOnce(&mut Manifest),
) -> (Forged, Vec<u8>) {
    let bytes = packed(0.25);
    let mut manifest = Manifest::of(&bytes, 4096);
    change(&mut manifest);
    let blob = Some(Blob::Manifest(manifest));
    (stage.contribution_with(sender, |contribution| contribution.delta = blob), bytes)
}

fn send(stage: &Stage, good: &Forged) {
    stage.send(From::Below, &good.topic, good.wire(), false);
}

/// The sender's chunks go straight to the cloud.
fn chunk(stage: &Stage, sha256: Digest, index: u32, data: &[u8]) -> (String, Vec<u8>) {
    let topic = stage.branch("edge0").to(&super::federation::name("cloud"), "chunk");
    (topic, encode(&Chunk { sha256, index, data: data.to_vec() }).unwrap())
}

/// Whether the cloud asked anybody for chunks of this blob.
fn was_asked_for(stage: &Stage, sha256: Digest) -> bool {
    stage.said().iter().any(|(_, body)| match body {
        Body::Get(get) => {
            matches!(get.wanted, Wanted::Chunks { sha256: wanted, .. } if wanted == sha256)
        }
        _ => false,
    })
}

#[test]
fn forged_foreign_and_malformed_chunks_are_refused_and_the_true_one_completes_the_blob() {
    on_stage("cloud", |mut stage| async move {
        let (good, bytes) = in_chunks(&mut stage, "edge0", |_| {});
        let blob = Digest::of(&bytes);
        let early = chunk(&stage, blob, 0, &bytes);
        stage.refuses_bytes(From::Below, &early.0, early.1, "chunk_not_asked_for").await;
        send(&stage, &good);
        a_moment().await;
        assert!(was_asked_for(&stage, blob));
        let mut forged = bytes.clone();
        forged[7] ^= 1;
        let cases = [
            (chunk(&stage, blob, 0, &forged), "chunk_digest_mismatch"),
            (chunk(&stage, blob, 0, &[]), "chunk_digest_mismatch"),
            (chunk(&stage, blob, 1, &bytes), "chunk_out_of_range"),
            (chunk(&stage, blob, u32::MAX, &bytes), "chunk_out_of_range"),
            (chunk(&stage, Digest([9; 32]), 0, &bytes), "chunk_not_asked_for"),
            (chunk(&stage, blob, 0, &vec![0; 100_000]), "malformed_chunk"),
            ((early.0.clone(), vec![0xdf, 0xff, 0xff, 0xff, 0xff]), "malformed_chunk"),
        ];
        for ((topic, payload), reason) in cases {
            stage.refuses_bytes(From::Below, &topic, payload, reason).await;
            assert_eq!(stage.verdict(&good), None);
        }
        let (topic, payload) = chunk(&stage, blob, 0, &bytes);
        stage.send(From::Below, &topic, payload, false);
        a_moment().await;
        assert_eq!(stage.verdict(&good), Some(Verdict::Accepted));
    });
}

#[test]
fn a_manifest_whose_sizes_disagree_is_refused_before_anything_is_asked_for() {
    let lies: [fn(&mut Manifest); 6] = [
        |m| m.bytes = 0,
        |m| m.bytes = 1 << 40,
        |m| m.bytes = u64::MAX,
        |m| m.chunk_bytes = 0,
        |m| m.chunk_bytes = u32::MAX,
        |m| m.chunks = vec![m.sha256; 2],
    ];
    for lie in lies {
        on_stage("cloud", move |mut stage| async move {
            let (bad, bytes) = in_chunks(&mut stage, "edge0", lie);
            stage.refuses(From::Below, &bad, "unsound_blob").await;
            assert!(!was_asked_for(&stage, Digest::of(&bytes)));
            assert_eq!(stage.verdict(&bad), Some(Verdict::Refused("unsound_blob".into())));
            let good = stage.contribution("edge0");
            stage.accepts(&good).await;
        });
    }
}

#[test]
fn a_manifest_that_lies_about_its_length_by_a_little_is_found_out_by_its_chunk() {
    on_stage("cloud", |mut stage| async move {
        let (bad, bytes) = in_chunks(&mut stage, "edge0", |m| m.bytes += 1);
        send(&stage, &bad);
        a_moment().await;
        let (topic, payload) = chunk(&stage, Digest::of(&bytes), 0, &bytes);
        stage.refuses_bytes(From::Below, &topic, payload, "chunk_length_lies").await;
        assert_eq!(stage.verdict(&bad), None);
        let good = stage.contribution("edge1");
        stage.accepts(&good).await;
    });
}

#[test]
fn a_manifest_that_names_another_blob_than_its_chunks_make_is_found_out_at_the_end() {
    on_stage("cloud", |mut stage| async move {
        let other = Digest([5; 32]);
        let (bad, bytes) = in_chunks(&mut stage, "edge0", |m| m.sha256 = other);
        send(&stage, &bad);
        a_moment().await;
        let (topic, payload) = chunk(&stage, other, 0, &bytes);
        stage.refuses_bytes(From::Below, &topic, payload, "blob_digest_mismatch").await;
        assert_eq!(stage.verdict(&bad), None);
        let good = stage.contribution("edge1");
        stage.accepts(&good).await;
    });
}

#[test]
fn a_fetched_delta_is_checked_like_one_that_came_along() {
    on_stage("cloud", |mut stage| async move {
        let bytes = packed(f32::MAX); // finite, but too long for a delta
        let blob = Some(Blob::Manifest(Manifest::of(&bytes, 4096)));
        let bad = stage.contribution_with("edge0", |contribution| contribution.delta = blob);
        send(&stage, &bad);
        a_moment().await;
        let (topic, payload) = chunk(&stage, Digest::of(&bytes), 0, &bytes);
        stage.refuses_bytes(From::Below, &topic, payload, "out_of_range").await;
        assert_eq!(stage.verdict(&bad), Some(Verdict::Refused("out_of_range".into())));
        let good = stage.contribution("edge0");
        stage.accepts(&good).await;
    });
}

#[test]
fn one_neighbour_cannot_take_all_places_for_fetches() {
    on_stage("cloud", |mut stage| async move {
        for n in 0..4 {
            let (greedy, _) = in_chunks(&mut stage, "edge0", |m| m.sha256 = Digest([n; 32]));
            send(&stage, &greedy);
            a_moment().await;
        }
        let (fifth, _) = in_chunks(&mut stage, "edge0", |m| m.sha256 = Digest([4; 32]));
        stage.refuses(From::Below, &fifth, "fetches_of_one_neighbour").await;
        let (good, bytes) = in_chunks(&mut stage, "edge1", |_| {});
        send(&stage, &good);
        a_moment().await;
        let (topic, payload) = chunk(&stage, Digest::of(&bytes), 0, &bytes);
        stage.send(From::Below, &topic, payload, false);
        a_moment().await;
        assert_eq!(stage.verdict(&good), Some(Verdict::Accepted));
    });
}

#[test]
fn what_was_never_offered_is_not_given_out() {
    on_stage("cloud", |mut stage| async move {
        let good = stage.contribution("edge0");
        let stored = Digest::of(&packed(0.0)); // the first adapter is on disk, and travels inline
        let wanted = Wanted::Chunks { sha256: stored, indices: vec![0] };
        let get = stage.forge("edge0", 0, 0, &Body::Get(gaisnet::wire::Get { wanted }));
        stage.refuses(From::Below, &get, "blob_not_offered").await;
        stage.accepts(&good).await;
    });
}
