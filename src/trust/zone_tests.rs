//! Frames stay inside a site: who may send them to whom, each with its valid twin.

use std::collections::BTreeSet;
use std::num::NonZeroU32;

use super::keyring::{Enrolment, Keyring, NodeEntry, Role, RootRole};
use super::keys::SigningKey;
use super::{Door, Refusal, Sealer, To, open};
use crate::ids::{BootId, Digest, Name, NodeId, Side, UpdateId};
use crate::time::Wall;
use crate::topic::{Branch, Prefix};
use crate::wire::{Answer, Body, Frame, Get, Lease, Receipt, Verdict, Wanted};

const AT: Wall = Wall(1_000);

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn key_of(node: &str) -> SigningKey {
    SigningKey::generate(&Digest::of(node.as_bytes()).0)
}

/// cloud <- over <- edge <- d1, d2; cloud <- other <- d3.
pub(crate) fn site() -> Keyring {
    let root = RootRole { threshold: NonZeroU32::MIN, keys: vec![*key_of("root").public()] };
    let end = AT.plus_ms(1_000_000);
    let mut keyring = Keyring::first(name("fed"), root, AT, end).unwrap();
    for (node, role, parent) in [
        ("cloud", Role::Cloud, None),
        ("over", Role::Edge, Some("cloud")),
        ("edge", Role::Edge, Some("over")),
        ("other", Role::Edge, Some("cloud")),
        ("d1", Role::Device, Some("edge")),
        ("d2", Role::Device, Some("edge")),
        ("d3", Role::Device, Some("other")),
    ] {
        let roles = BTreeSet::from([role]);
        let proof = key_of(node).prove_possession(&name("fed"), &name(node), &roles);
        let entry = NodeEntry {
            node: name(node),
            site: name(if role == Role::Cloud { "_" } else { "north" }),
            line: name(if role == Role::Device { "l1" } else { "_" }),
            roles,
            parent: parent.map(name),
            key: *key_of(node).public(),
        };
        keyring = keyring.enrol(&Enrolment { entry, proof }, AT, end).unwrap();
    }
    keyring
}

/// What `to` makes of a frame of `from` that comes on this link.
fn heard(from: &str, to: &str, side: Side) -> &'static str {
    let keyring = site();
    let prefix = Prefix::new("gaisnet").unwrap();
    let entry = keyring.node(&name(from)).unwrap();
    let (site, line) = (entry.site.clone(), entry.line.clone());
    let branch = Branch { prefix: prefix.clone(), site, line, node: name(from) };
    let mut sealer = Sealer::new(key_of(from), name("fed"), branch, BootId([1; 16]));
    let frame = Frame { run: 1, step: 1, turn: 0, part: 0, parts: 1, data: vec![1] };
    let to: NodeId = name(to);
    let (topic, wire) =
        sealer.seal(&To::Directly(to.clone()), &Body::Frame(frame), 1, 1, AT).unwrap();
    let federation = name("fed");
    let door = Door { federation: &federation, prefix: &prefix, me: &to, keyring: &keyring };
    match open(door, side, &topic, &wire, AT) {
        Ok(message) => {
            assert!(matches!(message.body(), Body::Frame(_)));
            "taken"
        }
        Err(refusal) => {
            assert!(!matches!(refusal, Refusal::Malformed { .. }), "{refusal}");
            refusal.kind()
        }
    }
}

#[test]
fn a_device_and_its_own_edge_exchange_frames_and_nobody_else_does() {
    assert_eq!(heard("d1", "edge", Side::Down), "taken");
    assert_eq!(heard("edge", "d1", Side::Up), "taken");
    let refused = [
        // Up into the federation, and down from it.
        ("edge", "over", Side::Down),
        ("over", "edge", Side::Up),
        ("other", "cloud", Side::Down),
        // Another site's edge, another device, past the edge.
        ("d3", "edge", Side::Down),
        ("d1", "other", Side::Down),
        ("other", "d1", Side::Up),
        ("d1", "d2", Side::Up),
        ("d1", "cloud", Side::Down),
        ("d1", "over", Side::Down),
        // The right two on the wrong link.
        ("d1", "edge", Side::Up),
        ("edge", "d1", Side::Down),
    ];
    for (from, to, side) in refused {
        assert_eq!(heard(from, to, side), "not_our_neighbour", "{from} to {to}");
    }
    for to in ["other", "d1", "over"] {
        for side in [Side::Up, Side::Down] {
            assert_eq!(heard("cloud", to, side), "role_not_allowed", "a cloud to {to}");
        }
    }
}

/// The keyring of [`site`] with a standby of its cloud.
fn paired() -> Keyring {
    let roles = BTreeSet::from([Role::Cloud]);
    let proof = key_of("cloud-2").prove_possession(&name("fed"), &name("cloud-2"), &roles);
    let (site_of_it, line) = (name("_"), name("_"));
    let key = *key_of("cloud-2").public();
    let node = name("cloud-2");
    let entry = NodeEntry { node, site: site_of_it, line, roles, parent: None, key };
    let new = Enrolment { entry, proof };
    let end = AT.plus_ms(1_000_000);
    assert!(site().enrol(&new, AT, end).is_err(), "a second cloud that stands by for nobody");
    assert!(site().enrol_standby(&new, &name("edge"), AT, end).is_err(), "no edge has a standby");
    site().enrol_standby(&new, &name("cloud"), AT, end).unwrap()
}

/// What `to` makes of a lease of `from`, signed with the key of `signer`.
fn leased(from: &str, signer: &str, to: &str, side: Side) -> &'static str {
    let keyring = paired();
    let prefix = Prefix::new("gaisnet").unwrap();
    let entry = keyring.node(&name(from)).unwrap();
    let (site, line) = (entry.site.clone(), entry.line.clone());
    let branch = Branch { prefix: prefix.clone(), site, line, node: name(from) };
    let mut sealer = Sealer::new(key_of(signer), name("fed"), branch, BootId([1; 16]));
    let lease = Body::Lease(Lease { ms: 1_000, asks: true, alone: false, told: 0 });
    let (topic, wire) = sealer.seal(&To::Anyone, &lease, 0, 3, AT).unwrap();
    let (federation, me) = (name("fed"), name(to));
    let door = Door { federation: &federation, prefix: &prefix, me: &me, keyring: &keyring };
    open(door, side, &topic, &wire, AT).map_or_else(|refusal| refusal.kind(), |_| "taken")
}

#[test]
fn a_lease_counts_from_the_parent_and_its_standby_and_from_nobody_else() {
    assert_eq!(leased("cloud", "cloud", "over", Side::Up), "taken");
    assert_eq!(leased("cloud-2", "cloud-2", "over", Side::Up), "taken");
    assert_eq!(leased("cloud-2", "cloud-2", "cloud", Side::Down), "taken");
    assert_eq!(leased("cloud", "cloud", "cloud-2", Side::Down), "taken");
    assert_eq!(leased("cloud-2", "cloud-2", "edge", Side::Up), "not_our_neighbour");
    assert_eq!(leased("other", "other", "over", Side::Up), "not_our_neighbour");
    assert_eq!(leased("d1", "d1", "edge", Side::Down), "role_not_allowed");
    assert_eq!(leased("cloud-2", "over", "over", Side::Up), "foreign_branch");
    assert_eq!(leased("cloud", "cloud-2", "over", Side::Up), "foreign_branch");
}

#[test]
fn a_keyring_with_a_standby_survives_msgpack_and_one_without_has_the_bytes_that_it_had() {
    let keyring = paired();
    let bytes = crate::wire::encode(&keyring).unwrap();
    assert_eq!(crate::wire::decode::<Keyring>(&bytes, 1 << 20).unwrap(), keyring);
    assert_eq!(keyring.standby_of(&name("cloud")).unwrap().node, name("cloud-2"));
    let owners: Vec<_> = keyring.owners_of(&name("over")).map(|e| e.node.as_str()).collect();
    assert_eq!(owners, ["cloud", "cloud-2"]);
    let plain = String::from_utf8_lossy(&crate::wire::encode(&site()).unwrap()).into_owned();
    assert!(!plain.contains("standbys"));
}

#[test]
fn a_standby_keeps_its_members_when_the_key_of_its_owner_is_revoked() {
    let paired = paired();
    let key = paired.node(&name("cloud")).unwrap().key.key_id();
    let ring = paired.revoke(key, AT, AT.plus_ms(1_000_000)).unwrap();
    let names = |ring: &Keyring| -> Vec<NodeId> {
        ring.members_of(&name("cloud-2")).map(|entry| entry.node.clone()).collect()
    };
    assert_eq!(names(&ring), names(&paired));
    assert!(!names(&ring).is_empty());
    assert_eq!(ring.peer_of(&name("cloud-2")), Some(&name("cloud")));
    assert_eq!(ring.stands_by(&name("cloud-2")), Some(&name("cloud")));
    let owners: Vec<_> = ring.owners_of(&name("over")).map(|e| e.node.as_str()).collect();
    assert_eq!(owners, ["cloud-2"]);
    let key = paired.node(&name("cloud-2")).unwrap().key.key_id();
    let ring = paired.revoke(key, AT, AT.plus_ms(1_000_000)).unwrap();
    assert_eq!(ring.peer_of(&name("cloud")), None);
}

/// The keyring of [`site`] in which d3, of `other`, has `over` as its second edge.
fn with_second() -> Keyring {
    let end = AT.plus_ms(1_000_000);
    site().with_second_edge(&name("other"), Some(&name("over")), AT, end).unwrap()
}

/// What `to` makes of this, said by `from` to it alone.
fn said(from: &str, to: &str, side: Side, body: &Body) -> &'static str {
    let keyring = with_second();
    let prefix = Prefix::new("gaisnet").unwrap();
    let entry = keyring.node(&name(from)).unwrap();
    let (site, line) = (entry.site.clone(), entry.line.clone());
    let branch = Branch { prefix: prefix.clone(), site, line, node: name(from) };
    let mut sealer = Sealer::new(key_of(from), name("fed"), branch, BootId([1; 16]));
    let (federation, to) = (name("fed"), name(to));
    let (topic, wire) = sealer.seal(&To::Directly(to.clone()), body, 1, 1, AT).unwrap();
    let door = Door { federation: &federation, prefix: &prefix, me: &to, keyring: &keyring };
    open(door, side, &topic, &wire, AT).map_or_else(|refusal| refusal.kind(), |_| "taken")
}

#[test]
fn a_device_and_its_second_edge_have_rounds_and_nothing_else() {
    let digest = Digest([1; 32]);
    let get = Body::Get(Get { wanted: Wanted::Latest });
    let receipt = Body::Receipt(Receipt { update: UpdateId([1; 16]), verdict: Verdict::Accepted });
    let answer = Body::Answer(Answer { offer: digest, accepted: true, reason: String::new() });
    let frame = Body::Frame(Frame { run: 1, step: 1, turn: 0, part: 0, parts: 1, data: vec![1] });
    let lease = Body::Lease(Lease { ms: 1_000, asks: true, alone: false, told: 0 });
    for (from, to, side, body) in [
        ("over", "d3", Side::Up, &receipt),
        ("over", "d3", Side::Up, &get),
        ("d3", "over", Side::Down, &answer),
        ("d3", "over", Side::Down, &get),
    ] {
        assert_eq!(said(from, to, side, body), "taken", "{from} to {to}: {body:?}");
    }
    for (from, to, side, body) in [
        ("over", "d3", Side::Up, &frame),
        ("d3", "over", Side::Down, &frame),
        ("over", "d3", Side::Up, &lease),
        // The right two on the wrong link; somebody else's device, somebody else's edge.
        ("d3", "over", Side::Up, &answer),
        ("d1", "over", Side::Down, &answer),
        ("edge", "d3", Side::Up, &receipt),
    ] {
        assert_eq!(said(from, to, side, body), "not_our_neighbour", "{from} to {to}: {body:?}");
    }
}

#[test]
fn a_second_edge_is_another_edge_of_the_site_under_the_same_node() {
    let end = AT.plus_ms(1_000_000);
    let ring = with_second();
    let over = name("over");
    let guests: Vec<_> = ring.guests_of(&over).map(|entry| entry.node.as_str()).collect();
    assert_eq!((guests, ring.second_edge_of(&name("d1"))), (vec!["d3"], None));
    let bytes = crate::wire::encode(&ring).unwrap();
    assert_eq!(crate::wire::decode::<Keyring>(&bytes, 1 << 20).unwrap(), ring);
    let plain = String::from_utf8_lossy(&crate::wire::encode(&site()).unwrap()).into_owned();
    assert!(!plain.contains("second_edges"));
    for (edge, second) in [
        ("edge", "other"),
        ("other", "other"),
        ("other", "d1"),
        ("cloud", "over"),
        ("other", "nobody"),
    ] {
        let refused = site().with_second_edge(&name(edge), Some(&name(second)), AT, end);
        assert!(refused.is_err(), "{second} for devices of {edge}");
    }
    let without = ring.with_second_edge(&name("other"), None, AT, end).unwrap();
    assert_eq!(without.second_edge_of(&name("d3")), None);
    let key = ring.node(&name("over")).unwrap().key.key_id();
    let revoked = ring.revoke(key, AT, end).unwrap();
    assert_eq!(revoked.second_edge_of(&name("d3")), None, "nobody goes to a revoked key");
}
