//! Each class of byte of an export is changed, and caught; the untouched twin passes.

use proptest::prelude::*;

use super::*;
use crate::ids::Name;
use crate::ledger::{Event, InclusionProof, Log, Replay};
use crate::time::Wall;
use crate::trust::keys::SigningKey;

type Files = BTreeMap<String, Vec<u8>>;

fn origin() -> Origin {
    Origin { federation: Name::new("fed").unwrap(), node: Name::new("edge").unwrap() }
}

fn key() -> SigningKey {
    SigningKey::generate(&[1; 32])
}

struct Ledger {
    entries: Vec<Vec<u8>>,
    checkpoints: Vec<Vec<u8>>,
}

/// A ledger of `size` entries and a checkpoint after each of these sizes.
fn ledger(size: u64, signed: &[u64]) -> Ledger {
    let mut log: Log = Replay::new(origin(), &[]).unwrap().finish().unwrap();
    let (mut entries, mut checkpoints) = (Vec::new(), Vec::new());
    for n in 1..=size {
        let mut config = [0; 32];
        config[..8].copy_from_slice(&n.to_be_bytes());
        entries.push(log.append(Wall(n), Event::ConfigChange { config: Digest(config) }));
        if signed.contains(&n) {
            checkpoints.push(log.checkpoint(&key()).to_text().into_bytes());
        }
    }
    Ledger { entries, checkpoints }
}

fn files(ledger: &Ledger) -> Files {
    export(&ledger.entries, &ledger.checkpoints).unwrap().into_iter().collect()
}

fn audit(files: &Files) -> Result<Report, LedgerError> {
    verify_export(files, &origin(), &[*key().public()])
}

#[test]
fn a_tree_of_70_000_has_the_tiles_of_the_specification() {
    let ledger = ledger(70_000, &[70_000]);
    let files = files(&ledger);
    let count = |level: &str, full: bool| {
        let prefix = format!("tile/{level}/");
        files.keys().filter(|n| n.starts_with(&prefix) && n.contains(".p/") != full).count()
    };
    assert_eq!((count("0", true), count("0", false)), (273, 1));
    assert_eq!((count("1", true), count("1", false)), (1, 1));
    assert_eq!((count("2", true), count("2", false)), (0, 1));
    assert_eq!(files["tile/0/273.p/112"].len(), 112 * 32);
    assert_eq!(files["tile/1/001.p/17"].len(), 17 * 32);
    assert_eq!(files["tile/2/000.p/1"].len(), 32);
    assert_eq!(files["tile/0/000"].len(), 8192);
    assert_eq!(count("entries", true), 273);
    let report = audit(&files).unwrap();
    assert_eq!((report.head.size, report.events["config_change"]), (70_000, 70_000));
}

#[test]
fn a_sound_export_passes_and_says_what_it_holds() {
    let ledger = ledger(300, &[1, 100, 256, 290]);
    let report = audit(&files(&ledger)).unwrap();
    assert_eq!((report.head.size, report.signed_entries, report.checkpoints), (290, 290, 4));
    assert_eq!((report.first_at, report.last_at), (Some(Wall(1)), Some(Wall(290))));
    // The store's own audit also sees the entries that aren't signed yet.
    let keys = [*key().public()];
    let report = verify(&origin(), &keys, &ledger.entries, &ledger.checkpoints).unwrap();
    assert_eq!((report.head.size, report.signed_entries), (300, 290));
}

#[test]
fn a_changed_entry_is_named() {
    let ledger = ledger(300, &[300]);
    let good = files(&ledger);
    audit(&good).unwrap();
    for index in [0_usize, 17, 255, 256, 299] {
        let mut bad = good.clone();
        let name = if index < 256 { "tile/entries/000" } else { "tile/entries/001.p/44" };
        let length = ledger.entries[index].len() + 2;
        let before: usize =
            ledger.entries[index / 256 * 256..index].iter().map(|entry| entry.len() + 2).sum();
        // One hexadecimal digit of the digest: still a canonical entry, but another one.
        let digest = before + length - 40;
        let byte = &mut bad.get_mut(name).unwrap()[digest];
        *byte = if *byte == b'0' { b'1' } else { b'0' };
        let refused = audit(&bad).unwrap_err();
        assert!(
            matches!(refused, LedgerError::ChangedEntry { index: i, .. } if i == index as u64),
            "{index}: {refused}"
        );
    }
}

#[test]
fn a_changed_entry_with_a_matching_tile_is_still_caught() {
    let good = ledger(300, &[100, 200, 300]);
    let mut forged = ledger(300, &[]);
    forged.entries[150] = forged.entries[151].clone();
    forged.checkpoints.clone_from(&good.checkpoints);
    let LedgerError::Forked { from, size, .. } = audit(&files(&forged)).unwrap_err() else {
        panic!("expected a fork")
    };
    assert_eq!((from, size), (100, 200));
}

#[test]
fn a_changed_tile_is_named() {
    let good = files(&ledger(300, &[300]));
    for name in ["tile/0/000", "tile/0/001.p/44", "tile/1/000.p/1"] {
        let mut bad = good.clone();
        bad.get_mut(name).unwrap()[31] ^= 1;
        let refused = audit(&bad).unwrap_err();
        assert!(
            matches!(&refused, LedgerError::BadExport { path, .. } if path == name),
            "{refused}"
        );
    }
}

#[test]
fn a_missing_or_foreign_file_is_named() {
    let good = files(&ledger(300, &[300]));
    for name in good.keys() {
        let mut bad = good.clone();
        bad.remove(name);
        let refused = audit(&bad).unwrap_err();
        assert!(
            matches!(&refused, LedgerError::BadExport { path, .. } if path == name),
            "{refused}"
        );
    }
    let mut bad = good.clone();
    bad.insert("tile/0/002".into(), Vec::new());
    assert_eq!(audit(&bad).unwrap_err().kind(), "ledger_bad_export");
    // Other files than tiles are nobody's business.
    let mut twin = good;
    twin.insert("README".into(), Vec::new());
    audit(&twin).unwrap();
}

#[test]
fn a_history_with_a_smaller_or_different_head_is_caught() {
    let good = ledger(20, &[5, 10, 20]);
    let keys = [*key().public()];
    let check = |checkpoints: &[Vec<u8>]| {
        verify(&origin(), &keys, &good.entries, checkpoints).map_err(|error| error.kind())
    };
    check(&good.checkpoints).unwrap();
    let mut smaller = good.checkpoints.clone();
    smaller.push(good.checkpoints[1].clone());
    assert_eq!(check(&smaller), Err("ledger_shrunk"));

    // The node's own key signs a second history: the signature is good, the head is not.
    let mut other = Replay::new(origin(), &[]).unwrap().finish().unwrap();
    for n in 0..20 {
        other.append(Wall(n), Event::ConfigChange { config: Digest([9; 32]) });
    }
    let second = other.checkpoint(&key()).to_text().into_bytes();
    let mut different = good.checkpoints.clone();
    different.push(second.clone());
    assert_eq!(check(&different), Err("ledger_two_heads"));
    different.remove(2);
    assert_eq!(check(&different), Err("ledger_forked"));
    // Entries cut off behind a signed head.
    let cut = verify(&origin(), &keys, &good.entries[..15], &good.checkpoints);
    assert_eq!(cut.unwrap_err().kind(), "ledger_shrunk");
}

#[test]
fn a_proof_stands_alone_and_its_tampered_twins_do_not() {
    let ledger = ledger(21, &[20]);
    let leaves: Vec<Digest> = ledger.entries.iter().map(|entry| leaf_hash(entry)).collect();
    let note = SignedCheckpoint::parse(&ledger.checkpoints[0]).unwrap();
    let proof = InclusionProof::new(&leaves, 7, note.clone()).unwrap();
    let text = proof.to_text();
    let check = |text: &str, leaf: &[u8]| {
        InclusionProof::parse(text.as_bytes())?.verify(&origin(), &[*key().public()], leaf)
    };
    let entry = check(&text, &ledger.entries[7]).unwrap();
    assert_eq!(entry.at, Wall(8));
    assert_eq!(InclusionProof::parse(text.as_bytes()).unwrap(), proof);

    assert_eq!(check(&text, &ledger.entries[8]).unwrap_err().kind(), "ledger_bad_proof");
    let other_index = text.replace("index 7\n", "index 6\n");
    assert_eq!(check(&other_index, &ledger.entries[7]).unwrap_err().kind(), "ledger_bad_proof");
    let hash = text.lines().nth(2).unwrap();
    let shorter = text.replace(&format!("{hash}\n"), "");
    assert_eq!(check(&shorter, &ledger.entries[7]).unwrap_err().kind(), "ledger_bad_proof");
    let other_index = text.replace("index 7\n", "index 07\n");
    assert_eq!(
        check(&other_index, &ledger.entries[7]).unwrap_err().kind(),
        "ledger_bad_checkpoint"
    );
    // Entry 20 exists but nobody has signed it; entry 21 doesn't exist.
    let unsigned = InclusionProof::new(&leaves, 20, note.clone()).unwrap_err();
    assert_eq!(unsigned.kind(), "ledger_out_of_range");
    assert_eq!(InclusionProof::new(&leaves[..19], 7, note).unwrap_err().kind(), "ledger_shrunk");
}

proptest! {
    #[test]
    fn a_flipped_bit_anywhere_in_an_export_is_caught(
        which: prop::sample::Index,
        at: prop::sample::Index,
        bit in 0..8_u32,
    ) {
        let mut bad = files(&ledger(270, &[3, 270]));
        let name = bad.keys().nth(which.index(bad.len())).unwrap().clone();
        let bytes = bad.get_mut(&name).unwrap();
        let at = at.index(bytes.len());
        bytes[at] ^= 1_u8 << bit;
        prop_assert!(audit(&bad).is_err(), "{} at {}", name, at);
    }

    #[test]
    fn a_flipped_bit_anywhere_in_a_proof_is_caught(at: prop::sample::Index, bit in 0..8_u32) {
        let ledger = ledger(9, &[9]);
        let leaves: Vec<Digest> = ledger.entries.iter().map(|entry| leaf_hash(entry)).collect();
        let note = SignedCheckpoint::parse(&ledger.checkpoints[0]).unwrap();
        let mut text = InclusionProof::new(&leaves, 4, note).unwrap().to_text().into_bytes();
        let at = at.index(text.len());
        text[at] ^= 1_u8 << bit;
        let caught = InclusionProof::parse(&text)
            .and_then(|proof| proof.verify(&origin(), &[*key().public()], &ledger.entries[4]));
        prop_assert!(caught.is_err(), "{}", String::from_utf8_lossy(&text));
    }

    #[test]
    fn any_bytes_are_a_proof_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = InclusionProof::parse(&bytes);
        let mut text = b"c2sp.org/tlog-proof@v1\nindex 4\n".to_vec();
        text.extend_from_slice(&bytes);
        let _ = InclusionProof::parse(&text);
    }

    #[test]
    fn any_files_are_audited_without_a_panic(
        which: prop::sample::Index,
        bytes in prop::collection::vec(any::<u8>(), 0..100),
    ) {
        let mut bad = files(&ledger(5, &[5]));
        let name = bad.keys().nth(which.index(bad.len())).unwrap().clone();
        bad.insert(name, bytes);
        prop_assert!(audit(&bad).is_err());
    }
}
