//! A base is given to children only, by the digest of a file that the node's own card names; and a base that nobody
//! asked for changes nothing.

use gaisnet::ids::Digest;
use gaisnet::wire::{BaseChunk, BaseFile, Body, Get, Wanted};

use super::federation::name;
use super::stage::{From, Stage, on_stage};

fn wants(stage: &mut Stage, sender: &str, sha256: Digest) -> super::stage::Forged {
    let wanted = Wanted::Base { sha256, indices: vec![0, 1, u32::MAX] };
    stage.forge(sender, 0, 0, &Body::Get(Get { wanted }))
}

/// What the cloud said of bases.
fn given(stage: &Stage) -> Vec<BaseFile> {
    let said = stage.said().into_iter().filter_map(|(_, body)| match body {
        Body::Base(file) => Some(file),
        _ => None,
    });
    said.collect()
}

#[test]
fn whoever_is_no_child_is_given_nothing_and_a_child_hears_that_there_is_none() {
    on_stage("cloud", |mut stage| async move {
        let sha256 = Digest([5; 32]);
        let mut stranger = wants(&mut stage, "edge0", sha256);
        stranger.signers = vec![name("dev0-0")];
        stage.refuses(From::Below, &stranger, "foreign_branch").await;
        assert_eq!(given(&stage), []);
        let child = wants(&mut stage, "edge0", sha256);
        stage.refuses(From::Below, &child, "base_absent").await; // counted once, though three chunks were asked for
        assert_eq!(given(&stage), [BaseFile { sha256, chunk: None }]);
    });
}

#[test]
fn a_base_from_below_is_refused_and_one_from_above_that_nobody_asked_for_is_dropped() {
    on_stage("edge0", |mut stage| async move {
        let chunk = Some(BaseChunk { index: 0, chunk_bytes: 4_096, data: vec![1; 9] });
        let body = Body::Base(BaseFile { sha256: Digest([5; 32]), chunk });
        let from_device = stage.forge("dev0-0", 0, 0, &body);
        stage.refuses(From::Below, &from_device, "role_not_allowed").await;
        let from_parent = stage.forge("cloud", 0, 0, &body);
        stage.refuses(From::Above, &from_parent, "base_not_asked_for").await;
    });
}
