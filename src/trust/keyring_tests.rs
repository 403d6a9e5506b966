//! Tests of the keyring: each rule with a keyring that breaks it and its valid twin.

use proptest::prelude::*;

use super::*;
use crate::trust::keys::SigningKey;

const AT: Wall = Wall(1_000);
const END: Wall = Wall(2_000);

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn key(seed: u8) -> SigningKey {
    SigningKey::generate(&[seed; 32])
}

fn root_of(threshold: u32, seeds: &[u8]) -> RootRole {
    let keys = seeds.iter().map(|seed| *key(*seed).public()).collect();
    RootRole { threshold: NonZeroU32::new(threshold).unwrap(), keys }
}

fn signed_by(seeds: &[u8]) -> BTreeSet<VerifyingKey> {
    seeds.iter().map(|seed| *key(*seed).public()).collect()
}

fn enrolment(node: &str, role: Role, parent: Option<&str>, seed: u8) -> Enrolment {
    let roles = BTreeSet::from([role]);
    let proof = key(seed).prove_possession(&name("fed"), &name(node), &roles);
    let entry = NodeEntry {
        node: name(node),
        site: name(if role == Role::Cloud { "hq" } else { "north" }),
        line: name("l1"),
        roles,
        parent: parent.map(name),
        key: *key(seed).public(),
    };
    Enrolment { entry, proof }
}

fn first() -> Keyring {
    Keyring::first(name("fed"), root_of(1, &[200]), AT, END).unwrap()
}

/// cloud(1) <- edge(2) <- d1(3), d2(4); version 5.
fn plant() -> Keyring {
    let members = [
        enrolment("cloud", Role::Cloud, None, 1),
        enrolment("edge", Role::Edge, Some("cloud"), 2),
        enrolment("d1", Role::Device, Some("edge"), 3),
        enrolment("d2", Role::Device, Some("edge"), 4),
    ];
    members.iter().fold(first(), |ring, new| ring.enrol(new, AT, END).unwrap())
}

fn json_with(
    ring: &Keyring,
    change: impl FnOnce(&mut serde_json::Value),
) -> Result<Keyring, String> {
    let mut value = serde_json::to_value(ring).unwrap();
    change(&mut value);
    serde_json::from_value(value).map_err(|error| error.to_string())
}

#[test]
fn lookups_find_nodes_keys_and_children() {
    let ring = plant();
    assert_eq!(ring.version(), 5);
    assert_eq!(ring.node(&name("d1")).unwrap().key, *key(3).public());
    assert_eq!(ring.by_key(key(2).public().key_id()).unwrap().node, name("edge"));
    let children: Vec<_> = ring.children_of(&name("edge")).map(|e| e.node.as_str()).collect();
    assert_eq!(children, ["d1", "d2"]);
    assert!(ring.node(&name("nobody")).is_none());
    assert!(ring.by_key(key(9).public().key_id()).is_none());
    assert_eq!(ring.root_key(key(200).public().key_id()), Some(key(200).public()));
}

#[test]
fn a_keyring_survives_json_and_msgpack_and_is_a_named_map() {
    let ring = plant().revoke(key(4).public().key_id(), AT, END).unwrap();
    let json = serde_json::to_string(&ring).unwrap();
    assert!(json.starts_with(r#"{"federation":"fed","version":6,"#), "{json}");
    assert_eq!(serde_json::from_str::<Keyring>(&json).unwrap(), ring);
    let packed = rmp_serde::to_vec_named(&ring).unwrap();
    assert_eq!(rmp_serde::from_slice::<Keyring>(&packed).unwrap(), ring);
}

#[test]
fn roles_have_one_word_each() {
    for role in Role::ALL {
        assert_eq!(role.as_str().parse::<Role>().unwrap(), role);
        assert_eq!(serde_json::to_string(&role).unwrap(), format!("\"{role}\""));
    }
    assert_eq!("king".parse::<Role>().unwrap_err().kind(), "keyring_unknown_role");
}

#[test]
fn an_expired_keyring_still_answers_lookups() {
    let ring = plant();
    assert_eq!(ring.standing(Wall(1_999)), Standing::Valid);
    assert_eq!(ring.standing(Wall(2_000)), Standing::Expired);
    assert!(ring.node(&name("d1")).is_some());
}

#[test]
fn enrolment_without_proof_of_possession_is_refused() {
    let good = enrolment("d3", Role::Device, Some("edge"), 5);
    // Somebody else's key, somebody else's proof, a role that wasn't in the proof.
    let stolen_key = Enrolment {
        entry: NodeEntry { key: *key(6).public(), ..good.entry.clone() },
        proof: good.proof,
    };
    let stolen_proof =
        Enrolment { proof: enrolment("d4", Role::Device, Some("edge"), 5).proof, ..good.clone() };
    let mut more_roles = good.clone();
    more_roles.entry.roles.insert(Role::Operator);
    for bad in [stolen_key, stolen_proof, more_roles] {
        assert_eq!(plant().enrol(&bad, AT, END).unwrap_err().kind(), "keyring_possession");
    }
    assert_eq!(plant().enrol(&good, AT, END).unwrap().version(), 6);
}

#[test]
fn a_node_has_one_key_and_a_key_one_node() {
    let ring = plant();
    let second_key = enrolment("d1", Role::Device, Some("edge"), 5);
    assert_eq!(ring.enrol(&second_key, AT, END).unwrap_err().kind(), "keyring_node_taken");
    let second_node = enrolment("d3", Role::Device, Some("edge"), 3);
    assert_eq!(ring.enrol(&second_node, AT, END).unwrap_err().kind(), "keyring_key_taken");
    let roots_key = enrolment("d3", Role::Device, Some("edge"), 200);
    assert_eq!(ring.enrol(&roots_key, AT, END).unwrap_err().kind(), "keyring_key_taken");
    let twice = json_with(&ring, |value| {
        let copy = value["nodes"][0].clone();
        value["nodes"].as_array_mut().unwrap().push(copy);
    });
    assert!(twice.unwrap_err().contains("already in use"));
}

#[test]
fn a_node_out_of_place_is_refused() {
    let ring = plant();
    let misplaced = [
        enrolment("x", Role::Device, Some("nobody"), 5),
        enrolment("x", Role::Device, Some("cloud"), 5),
        enrolment("x", Role::Device, Some("d1"), 5),
        enrolment("x", Role::Device, None, 5),
        enrolment("x", Role::Edge, None, 5),
        enrolment("x", Role::Edge, Some("d1"), 5),
        enrolment("x", Role::Root, None, 5),
    ];
    for bad in misplaced {
        assert_eq!(ring.enrol(&bad, AT, END).unwrap_err().kind(), "keyring_misplaced", "{bad:?}");
    }
    let mut other_site = enrolment("x", Role::Device, Some("edge"), 5);
    other_site.entry.site = name("south");
    assert_eq!(ring.enrol(&other_site, AT, END).unwrap_err().kind(), "keyring_misplaced");
    let second = enrolment("cloud2", Role::Cloud, None, 5);
    assert_eq!(ring.enrol(&second, AT, END).unwrap_err().kind(), "keyring_two_clouds");
    // Five tiers are fine, and people hang nowhere.
    ring.enrol(&enrolment("x", Role::Edge, Some("edge"), 5), AT, END).unwrap();
    ring.enrol(&enrolment("x", Role::Operator, None, 5), AT, END).unwrap();
}

#[test]
fn edges_that_are_each_others_parent_are_refused() {
    let ring = plant().enrol(&enrolment("edge2", Role::Edge, Some("edge"), 5), AT, END).unwrap();
    let cycle = json_with(&ring, |value| {
        for entry in value["nodes"].as_array_mut().unwrap() {
            if entry["node"] == "edge" {
                entry["parent"] = "edge2".into();
            }
        }
    });
    assert!(cycle.unwrap_err().contains("cycle"));
    json_with(&ring, |_| {}).unwrap();
}

#[test]
fn a_revoked_key_is_found_by_no_lookup_and_stays_revoked() {
    let edge = key(2).public().key_id();
    let ring = plant().revoke(edge, AT, END).unwrap();
    assert!(ring.by_key(edge).is_none() && ring.node(&name("edge")).is_none());
    assert_eq!(ring.children_of(&name("cloud")).count(), 0);
    // Its devices keep their place, and it comes back with another key, never with the old one.
    assert_eq!(ring.children_of(&name("edge")).count(), 2);
    let same = enrolment("edge", Role::Edge, Some("cloud"), 2);
    assert_eq!(ring.enrol(&same, AT, END).unwrap_err().kind(), "keyring_key_revoked");
    let fresh = ring.enrol(&enrolment("edge", Role::Edge, Some("cloud"), 7), AT, END).unwrap();
    assert_eq!(fresh.node(&name("edge")).unwrap().key, *key(7).public());
    assert_eq!(ring.revoke(edge, AT, END).unwrap_err().kind(), "keyring_unknown_key");
}

#[test]
fn rotation_is_one_version_and_revokes_the_old_key() {
    let ring = plant();
    let new = ring.rotate(&enrolment("d1", Role::Device, Some("edge"), 8), AT, END).unwrap();
    assert_eq!(new.version(), 6);
    assert_eq!(new.node(&name("d1")).unwrap().key, *key(8).public());
    assert!(new.revoked().contains(&key(3).public().key_id()));
    ring.accept(new, &signed_by(&[200])).unwrap();
    let unknown = enrolment("d9", Role::Device, Some("edge"), 8);
    assert_eq!(ring.rotate(&unknown, AT, END).unwrap_err().kind(), "keyring_unknown_node");
}

#[test]
fn the_next_version_needs_both_roots() {
    let old = plant();
    let new = old.with_root(root_of(2, &[201, 202, 203]), AT, END).unwrap();
    assert!(new.revoked().contains(&key(200).public().key_id()));
    for too_few in [&[200][..], &[201, 202], &[200, 201], &[200, 201, 77], &[]] {
        let refused = old.accept(new.clone(), &signed_by(too_few)).unwrap_err();
        assert_eq!(refused.kind(), "keyring_too_few_signers", "{too_few:?}");
    }
    let accepted = old.accept(new, &signed_by(&[200, 201, 203])).unwrap();
    // From now on the old root counts nothing.
    let next = accepted.revoke(key(3).public().key_id(), AT, END).unwrap();
    assert!(accepted.accept(next.clone(), &signed_by(&[200, 201])).is_err());
    accepted.accept(next, &signed_by(&[202, 201])).unwrap();
}

#[test]
fn a_version_that_is_not_newer_is_refused() {
    let old = plant();
    let new = old.revoke(key(3).public().key_id(), AT, END).unwrap();
    let root = signed_by(&[200]);
    assert_eq!(new.accept(old.clone(), &root).unwrap_err().kind(), "keyring_not_newer");
    assert_eq!(new.accept(new.clone(), &root).unwrap_err().kind(), "keyring_not_newer");
    old.accept(new, &root).unwrap();
}

#[test]
fn a_key_that_vanishes_or_a_revocation_that_is_taken_back_is_refused() {
    let root = signed_by(&[200]);
    let old = plant().revoke(key(4).public().key_id(), AT, END).unwrap();
    let vanished = json_with(&old, |value| {
        value["version"] = 7.into();
        value["nodes"].as_array_mut().unwrap().retain(|entry| entry["node"] != "d1");
    });
    assert_eq!(old.accept(vanished.unwrap(), &root).unwrap_err().kind(), "keyring_not_revoked");
    let taken_back = json_with(&old, |value| {
        value["version"] = 7.into();
        value["revoked"].as_array_mut().unwrap().clear();
    });
    assert_eq!(old.accept(taken_back.unwrap(), &root).unwrap_err().kind(), "keyring_not_revoked");
    let twin = json_with(&old, |value| value["version"] = 7.into());
    old.accept(twin.unwrap(), &root).unwrap();
}

#[test]
fn a_keyring_of_another_federation_is_refused() {
    let other = json_with(&plant(), |value| {
        value["federation"] = "other".into();
        value["version"] = 9.into();
    });
    let refused = plant().accept(other.unwrap(), &signed_by(&[200])).unwrap_err();
    assert_eq!(refused.kind(), "keyring_wrong_federation");
}

#[test]
fn an_unusable_root_or_time_is_refused() {
    let make = |root, end| Keyring::first(name("fed"), root, AT, end).map_err(|e| e.kind());
    assert_eq!(make(root_of(2, &[200]), END), Err("keyring_threshold"));
    assert_eq!(make(root_of(1, &[]), END), Err("keyring_threshold"));
    assert_eq!(make(root_of(2, &[200, 200]), END), Err("keyring_key_taken"));
    assert_eq!(make(root_of(1, &[200]), AT), Err("keyring_bad_times"));
    assert_eq!(make(root_of(1, &[200; 17]), END), Err("keyring_too_many"));
    let zero = json_with(&first(), |value| value["root"]["threshold"] = 0.into());
    assert!(zero.is_err());
    let small = json_with(&first(), |value| value["root"]["keys"][0] = "00".repeat(32).into());
    assert!(small.unwrap_err().contains("small order"));
    let revoked = json_with(&first(), |value| {
        value["revoked"] = serde_json::json!([key(200).public().key_id()]);
    });
    assert!(revoked.unwrap_err().contains("is revoked"));
}

proptest! {
    #[test]
    fn any_bytes_are_a_keyring_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = serde_json::from_slice::<Keyring>(&bytes);
        let _ = rmp_serde::from_slice::<Keyring>(&bytes);
    }

    #[test]
    fn a_damaged_keyring_is_read_or_refused(at: prop::sample::Index, flip in 1..=255_u8) {
        let mut packed = rmp_serde::to_vec_named(&plant()).unwrap();
        let at = at.index(packed.len());
        packed[at] ^= flip;
        let _ = rmp_serde::from_slice::<Keyring>(&packed);
    }
}
