//! Cards of tiny models: imported, signed, loaded, and spoilt.

use std::fs;

use super::*;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/huggingface").join(name)
}

fn key(seed: u8) -> SigningKey {
    SigningKey::generate(&[seed; 32])
}

fn trust() -> ReleaseTrust {
    ReleaseTrust::pinned(*key(1).public())
}

fn about() -> About {
    About {
        licence: "Apache-2.0".into(),
        made: "made by \"tests\"\nof ours".into(),
        intended_use: "none".into(),
    }
}

/// A folder with a tiny Llama, its card and its seal.
fn signed(room: &Path) -> PathBuf {
    for file in FILES {
        fs::copy(golden("llama").join(file), room.join(file)).unwrap();
    }
    let card = AdoptedCard::of(room, "tiny", &about()).unwrap();
    let path = room.join("tiny.toml");
    write_card(&path, &card).unwrap();
    assert_eq!(seal_adopted(&path, &[&key(1)], room).unwrap(), room.join("tiny.sig"));
    path
}

fn kind(card: &Path) -> &'static str {
    load_adopted(card, &trust(), Path::new("/nowhere")).map_or_else(|e| e.kind(), |_| "ok")
}

#[test]
fn what_was_imported_and_signed_is_loaded_from_beside_its_card_and_from_the_cache() {
    let room = tempfile::tempdir().unwrap();
    let path = signed(room.path());
    let (card, loaded) = load_language(&path, &trust(), Path::new("/nowhere")).unwrap();
    assert_eq!(card.made, about().made, "escapes survive");
    assert_eq!((loaded.config.layers, card.files.len()), (2, 3));
    assert_eq!(Architecture::Llama(loaded.config), card.architecture);
    let cache = tempfile::tempdir().unwrap();
    let folder = cache.path().join(card.folder_name());
    fs::create_dir(&folder).unwrap();
    for file in FILES {
        fs::rename(room.path().join(file), folder.join(file)).unwrap();
    }
    let error = load_language(&path, &trust(), Path::new("/nowhere")).unwrap_err();
    assert_eq!(error.kind(), "not_fetched");
    assert!(error.to_string().contains("gaisnet model fetch tiny"), "{error}");
    assert!(load_language(&path, &trust(), cache.path()).is_ok());
}

#[test]
fn all_three_kinds_have_cards() {
    for name in ["llama", "bert", "vit"] {
        let card = AdoptedCard::of(&golden(name), name, &about()).unwrap();
        let again = AdoptedCard::parse(&card.to_toml().unwrap()).unwrap();
        assert_eq!(again, card);
        assert_eq!(card.files.len(), if name == "vit" { 2 } else { 3 });
    }
    let room = tempfile::tempdir().unwrap();
    for file in FILES {
        fs::copy(golden("bert").join(file), room.path().join(file)).unwrap();
    }
    let path = room.path().join("tiny.toml");
    write_card(&path, &AdoptedCard::of(room.path(), "tiny", &about()).unwrap()).unwrap();
    seal_adopted(&path, &[&key(1)], room.path()).unwrap();
    assert_eq!(kind(&path), "ok");
    let error = load_language(&path, &trust(), room.path()).unwrap_err();
    assert_eq!(error.kind(), "unsupported", "an encoder is no language model");
}

#[test]
fn a_base_without_a_trusted_seal_or_with_other_bytes_is_refused() {
    let room = tempfile::tempdir().unwrap();
    let path = signed(room.path());
    assert_eq!(kind(&path), "ok");
    let weights = room.path().join("model.safetensors");
    let good = fs::read(&weights).unwrap();
    let mut flipped = good.clone();
    *flipped.last_mut().unwrap() ^= 1;
    fs::write(&weights, &flipped).unwrap();
    assert_eq!(kind(&path), "bad_digest");
    fs::write(&weights, &good[..good.len() - 1]).unwrap();
    assert_eq!(kind(&path), "not_fetched", "of another size");
    fs::write(&weights, &good).unwrap();
    assert_eq!(kind(&path), "ok");
    let seal = fs::read(room.path().join("tiny.sig")).unwrap();
    fs::remove_file(room.path().join("tiny.sig")).unwrap();
    assert_eq!(kind(&path), "unsigned");
    seal_adopted(&path, &[&key(2)], room.path()).unwrap();
    assert_eq!(kind(&path), "release_foreign_key");
    fs::write(room.path().join("tiny.sig"), seal).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("Apache-2.0", "MIT")).unwrap();
    assert_eq!(kind(&path), "release_other_card");
}

#[test]
fn a_card_that_says_other_sizes_than_its_files_is_not_sealed() {
    let room = tempfile::tempdir().unwrap();
    let path = signed(room.path());
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains("context = 32\n"), "{text}");
    fs::write(&path, text.replace("context = 32\n", "context = 64\n")).unwrap();
    let error = seal_adopted(&path, &[&key(1)], room.path()).unwrap_err();
    assert_eq!(error.kind(), "bad_card");
    for spoilt in [
        text.replace("layers = 2\n", "layers = 99999\n"),
        text.replace("layers = 2\n", "layers = 2\nextra = 1\n"),
        text.replace("\"model.safetensors\"", "\"../model.safetensors\""),
        text.replace("name = \"tiny\"", "name = \"../tiny\""),
        text.replace("kind = \"llama\"", "kind = \"gpt\""),
    ] {
        assert_ne!(spoilt, text);
        assert!(AdoptedCard::parse(&spoilt).is_err());
    }
    assert!(AdoptedCard::parse(&text).is_ok(), "the valid twin");
}

#[test]
fn a_pickle_is_not_imported() {
    let room = tempfile::tempdir().unwrap();
    let path = room.path().join("model.pt");
    fs::write(&path, b"PK\x03\x04").unwrap();
    let error = AdoptedCard::of(&path, "x", &about()).unwrap_err();
    assert_eq!(error.kind(), "pickle");
    fs::rename(&path, room.path().join("model.gguf")).unwrap();
    let error = AdoptedCard::of(&room.path().join("model.gguf"), "x", &about()).unwrap_err();
    assert_eq!(error.kind(), "bad_gguf");
}
