//! Keys that don't count: unknown, revoked, of small order, too many, or without the role.

use std::sync::Arc;

use gaisnet::ids::{BootId, Digest};
use gaisnet::topic::{Branch, Prefix};
use gaisnet::trust::keyring::Keyring;
use gaisnet::trust::keyring_document::{open_document, seal_document};
use gaisnet::trust::keys::{SigningKey, VerifyingKey, key_id};
use gaisnet::trust::{Sealer, To};
use gaisnet::wire::{Answer, Body, Envelope, Signature, decode};

use super::federation::{DAY_MS, START, key_of, name, paused, root_key};
use super::stage::{From, Stage, on_stage, seal};

#[test]
fn a_key_that_nobody_enrolled_is_refused() {
    on_stage("cloud", |mut stage| async move {
        let good = stage.contribution("edge0");
        let mut bad = good.clone();
        bad.signers = vec![name("mallory")];
        stage.refuses(From::Below, &bad, "unknown_key").await;
        stage.accepts(&good).await;
    });
}

#[test]
fn a_revoked_key_is_refused() {
    paused(async {
        let mut stage = Stage::new("cloud");
        let until = START.plus_ms(365 * DAY_MS);
        let key = key_of(&name("edge2")).public().key_id();
        let keyring = stage.plant.members.keyring.revoke(key, START, until).unwrap();
        stage.plant.members.keyring = Arc::new(keyring);
        stage.begin().await;
        // In a branch that is still listened to: nobody reads that of a node without a key.
        let good = stage.contribution("edge0");
        let mut bad = good.clone();
        bad.signers = vec![name("edge2")];
        stage.refuses(From::Below, &bad, "revoked_key").await;
        stage.accepts(&good).await;
    });
}

#[test]
fn two_signatures_are_refused_whoever_made_them() {
    for second in ["edge0", "edge1", "mallory"] {
        on_stage("cloud", move |mut stage| async move {
            let good = stage.contribution("edge0");
            let mut bad = good.clone();
            bad.signers.push(name(second));
            stage.refuses(From::Below, &bad, "signature_count").await;
            stage.accepts(&good).await;
        });
    }
}

#[test]
fn a_key_id_with_anothers_signature_is_refused() {
    on_stage("cloud", |mut stage| async move {
        let good = stage.contribution("edge0");
        let mut bad = good.clone();
        bad.signers = vec![name("mallory")];
        let mut envelope = Envelope::from_bytes(&bad.wire(), 1 << 20).unwrap();
        envelope.signatures[0].key = key_of(&name("edge0")).public().key_id();
        let (topic, bytes) = (bad.topic.clone(), envelope.to_bytes().unwrap());
        stage.refuses_bytes(From::Below, &topic, bytes, "bad_signature").await;
        stage.accepts(&good).await;
    });
}

/// The neutral element: with it as public key, one fixed signature fits every message.
const SMALL_ORDER: [u8; 32] = {
    let mut bytes = [0; 32];
    bytes[0] = 1;
    bytes
};

#[test]
fn a_small_order_key_is_no_key_and_its_signature_opens_nothing() {
    assert_eq!(VerifyingKey::new(SMALL_ORDER).unwrap_err().kind(), "key_small_order");
    assert!(VerifyingKey::new(*key_of(&name("edge0")).public().as_bytes()).is_ok());
    on_stage("cloud", |mut stage| async move {
        let good = stage.contribution("edge0");
        let mut envelope = Envelope::from_bytes(&good.wire(), 1 << 20).unwrap();
        let mut bytes = [0; 64];
        bytes[0] = 1; // R is the neutral element too, s is 0
        envelope.signatures = vec![Signature { key: key_id(&SMALL_ORDER), bytes }];
        let bytes = envelope.to_bytes().unwrap();
        stage.refuses_bytes(From::Below, &good.topic.clone(), bytes, "unknown_key").await;
        stage.accepts(&good).await;
    });
}

#[test]
fn a_keyring_with_a_small_order_key_is_refused_though_the_root_signed_it() {
    paused(async {
        let keyring = Stage::new("cloud").plant.members.keyring;
        let good = seal_document(&keyring, &[&root_key()]).unwrap();
        assert!(open_document(&good, None).is_ok());
        let envelope = Envelope::from_bytes(&good, 1 << 20).unwrap();
        let key = *key_of(&name("edge0")).public().as_bytes();
        let at = envelope.payload.windows(32).position(|window| window == key).unwrap();
        let mut payload = envelope.payload.clone();
        payload[at..at + 32].copy_from_slice(&SMALL_ORDER);
        let bad = seal(&envelope.payload_type, &payload, &[root_key()]);
        assert!(decode::<Keyring>(&payload, 1 << 20).is_err());
        assert_eq!(open_document(&bad, None).unwrap_err().kind(), "document_malformed");
    });
}

/// A device's command, which only operators may give.
fn command_of(signer: &SigningKey, sender: &str) -> (String, Vec<u8>) {
    let branch = |node: &str, site: &str, line: &str| Branch {
        prefix: Prefix::new("gaisnet").unwrap(),
        site: name(site),
        line: name(line),
        node: name(node),
    };
    let key = SigningKey::from_pem(&signer.to_pem(), None).unwrap();
    let from = branch(sender, "site0", "line");
    let mut sealer = Sealer::new(key, name("fed"), from, BootId([77; 16]));
    let to = To::Command(
        branch("cloud", "_", "_"),
        gaisnet::topic::CommandName::new("round.start").unwrap(),
    );
    let json = b"{}".to_vec();
    let body = Body::Command(gaisnet::wire::Command { name: "round.start".into(), json });
    sealer.seal(&to, &body, 0, 0, START).unwrap()
}

#[test]
fn who_signed_what_its_role_may_not_say_is_blamed_and_who_did_not_sign_is_not() {
    on_stage("cloud", |mut stage| async move {
        let device = name("dev0-0");
        let (topic, proven) = command_of(&key_of(&device), "dev0-0");
        stage.refuses_bytes(From::Below, &topic, proven.clone(), "role_not_allowed").await;
        // The same words under the device's key id, with a signature of somebody else.
        let mut smear = Envelope::from_bytes(&proven, 1 << 20).unwrap();
        smear.signatures[0].bytes = [7; 64];
        let smear = smear.to_bytes().unwrap();
        stage.refuses_bytes(From::Below, &topic, smear, "bad_signature").await;
        assert_eq!(
            stage.refusals(),
            [
                ("role_not_allowed".to_owned(), Some("dev0-0".to_owned())),
                ("bad_signature".to_owned(), None),
            ]
        );
        let good = stage.contribution("edge0");
        stage.accepts(&good).await;
    });
}

#[test]
fn a_device_that_offers_work_is_refused_and_its_answer_is_taken() {
    on_stage("edge0", |mut stage| async move {
        let outer = stage.offer_with(1, |_| {});
        stage.takes(&outer).await;
        let (digest, inner) = stage.offer();
        let offer = stage.forge("dev0-0", 1, 1, &Body::Offer(inner.clone().into()));
        stage.refuses(From::Below, &offer, "role_not_allowed").await;
        assert_eq!(stage.refusals().last().unwrap().1.as_deref(), Some("dev0-0"));
        let answer = Answer { offer: digest, accepted: true, reason: String::new() };
        let answer = stage.forge("dev0-0", inner.round, 1, &Body::Answer(answer));
        let before = stage.counted();
        stage.send(From::Below, &answer.topic, answer.wire(), false);
        let good = stage.contribution("dev0-0");
        stage.accepts(&good).await;
        assert!(stage.since(&before).is_empty());
    });
}

#[test]
fn the_digest_of_a_message_does_not_depend_on_who_signed_it() {
    // What is recorded of a refusal names the refused bytes, so that an auditor finds them.
    on_stage("cloud", |mut stage| async move {
        let mut bad = stage.contribution("edge0");
        bad.signers = vec![name("mallory")];
        let bytes = bad.wire();
        let digest = Digest::of(&bytes);
        stage.refuses(From::Below, &bad, "unknown_key").await;
        let named = stage.plant.entries("cloud").into_iter().any(|event| {
            matches!(event, gaisnet::ledger::Event::Refusal { message, .. } if message == digest)
        });
        assert!(named);
    });
}
