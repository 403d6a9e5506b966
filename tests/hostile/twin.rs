//! Heads of ledgers under a node's own name: forged, said again, and of a copy of its disk.

use std::sync::Arc;

use gaisnet::ids::BootId;
use gaisnet::ledger::{Event, Origin, Replay, Word};
use gaisnet::wire::{Body, Checkpoint};

use super::federation::{key_of, name, paused};
use super::stage::{Forged, From, Stage, on_stage};

const NODE: &str = "edge0";

/// A head of a ledger of `entries` entries that a copy of the node has signed.
fn head(stage: &mut Stage, entries: u64) -> Forged {
    let origin = Origin { federation: name("fed"), node: name(NODE) };
    let mut log = Replay::new(origin, &[]).unwrap().finish().unwrap();
    for _ in 0..entries {
        let stop = Event::NodeStop { boot: BootId([66; 16]), reason: Word::new("copy") };
        log.append(stage.now(), stop);
    }
    let document = log.checkpoint(&key_of(&name(NODE))).to_text().into_bytes();
    let mut forged = stage.forge(NODE, 0, 0, &Body::Checkpoint(Checkpoint { document }));
    forged.head.audience = None;
    forged
}

#[test]
fn nobody_else_writes_a_nodes_head_and_a_shorter_one_of_its_own_is_nothing() {
    on_stage(NODE, |mut stage| async move {
        let good = head(&mut stage, 1);
        for (signer, reason) in [("edge1", "foreign_branch"), ("mallory", "unknown_key")] {
            let mut bad = head(&mut stage, 1_000);
            bad.signers = vec![name(signer)];
            stage.refuses(From::Above, &bad, reason).await;
        }
        let before = stage.counted();
        for from in [From::Above, From::Below] {
            stage.send(from, &good.topic, good.wire(), true);
        }
        super::stage::a_moment().await;
        assert!(stage.since(&before).is_empty());
    });
}

#[test]
fn a_longer_ledger_of_before_is_told_and_one_of_a_living_copy_ends_the_node() {
    for (is_of_before, counts) in [(true, "older_than_its_word"), (false, "twin")] {
        paused(async move {
            let mut stage = Stage::new(NODE);
            let list = Arc::default();
            stage.plant.gave_up = Some(Arc::clone(&list));
            stage.begin().await;
            let mut bad = head(&mut stage, 1_000);
            if is_of_before {
                bad.head.issued_at.0 -= 60_000;
                bad.head.expires_at.0 -= 60_000;
            }
            let before = stage.counted();
            stage.send(From::Above, &bad.topic, bad.wire(), false);
            super::stage::a_moment().await;
            assert_eq!(stage.since(&before), [(counts.to_owned(), 1)].into());
            assert_eq!(list.lock().unwrap().len(), usize::from(!is_of_before));
        });
    }
}
