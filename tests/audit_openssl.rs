//! What gaisnet signs is checked by the `openssl` command and a shell alone: the very steps that
//! stand in docs/audit.md are run here.
#![cfg(feature = "cli")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test"
)]

use std::path::Path;
use std::process::{Command, Output};

use gaisnet::ids::{Digest, Name};
use gaisnet::ledger::log::Replay;
use gaisnet::ledger::{Event, Origin};
use gaisnet::store::{Batch, BlobCaps, SqliteStore, Store, keyfile};
use gaisnet::time::Wall;

/// Runs a script in `folder` with the real program in its path.
fn shell(folder: &Path, script: &str) -> Output {
    let program = Path::new(env!("CARGO_BIN_EXE_gaisnet")).parent().unwrap();
    let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap());
    Command::new("bash")
        .args(["-euo", "pipefail", "-c", script])
        .env("PATH", path)
        .current_dir(folder)
        .output()
        .unwrap()
}

#[track_caller]
fn good(folder: &Path, script: &str) -> String {
    let out = shell(folder, script);
    let (stdout, stderr) =
        (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{script}\n{stdout}\n{stderr}");
    stdout.into_owned()
}

/// The block of docs/audit.md below this heading.
fn steps(heading: &str) -> &'static str {
    let page = include_str!("../docs/audit.md");
    let (_, section) = page.split_once(&format!("## {heading}\n")).expect("the heading is there");
    let (_, block) = section.split_once("```sh\n").expect("a block follows");
    block.split_once("```").expect("the block ends").0
}

fn has_openssl(test: &str) -> bool {
    let version = Command::new("openssl").arg("version").output().ok();
    let version = version.map(|out| String::from_utf8_lossy(&out.stdout).into_owned());
    if version.is_some_and(|text| text.starts_with("OpenSSL 3")) {
        return true;
    }
    eprintln!("SKIPPED {test}: no OpenSSL 3 on this machine (apt-get install openssl)");
    false
}

/// A node's folder with keys, and a store with seven entries, all of them signed.
fn node(folder: &Path) {
    good(folder, "umask 077; gaisnet keys new keys/node.pem");
    let key = keyfile::read_signing_key(&folder.join("keys/node.pem"), None).unwrap();
    let name = |text: &str| Name::new(text).unwrap();
    let origin = Origin { federation: name("pilot"), node: name("edge-north") };
    let mut log = Replay::new(origin, &[]).unwrap().finish().unwrap();
    let mut store = SqliteStore::open(&folder.join("store"), BlobCaps::default()).unwrap();
    let entries =
        (0..7).map(|n| log.append(Wall(n.into()), Event::ConfigChange { config: Digest([n; 32]) }));
    let entries = entries.collect();
    let checkpoint = Some(log.checkpoint(&key).to_text().into_bytes());
    store.commit(&[Batch { entries, checkpoint, ..Batch::default() }]).unwrap();
}

#[test]
fn a_checkpoint_is_verified_by_openssl_alone_and_a_changed_one_is_not() {
    if !has_openssl("a_checkpoint_is_verified_by_openssl_alone_and_a_changed_one_is_not") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    node(folder.path());
    good(
        folder.path(),
        "gaisnet audit verify --store store && gaisnet audit export export --store store",
    );
    let text = good(folder.path(), steps("A checkpoint"));
    assert!(text.contains("Signature Verified Successfully"), "{text}");
    good(folder.path(), "sed -i 's/^7$/8/' export/checkpoint");
    let forged = shell(folder.path(), steps("A checkpoint"));
    assert!(!forged.status.success(), "{forged:?}");
}

#[test]
fn an_entry_is_found_under_the_signed_root_by_openssl_alone() {
    if !has_openssl("an_entry_is_found_under_the_signed_root_by_openssl_alone") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    node(folder.path());
    good(folder.path(), "gaisnet audit export export --store store");
    let text = good(folder.path(), steps("An entry"));
    assert!(text.contains("entry 3 is in the ledger"), "{text}");
}

#[test]
fn the_signature_of_an_envelope_is_verified_by_openssl_alone_and_a_changed_one_is_not() {
    if !has_openssl("the_signature_of_an_envelope_is_verified_by_openssl_alone") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    good(
        folder.path(),
        "umask 077
         gaisnet keys new root/root.pem
         gaisnet keyring new keyring --federation pilot --root root/root.pem
         gaisnet keys new op/anna.pem
         gaisnet keys prove --key op/anna.pem --name anna --federation pilot --role operator --out anna.json
         gaisnet keys enrol anna.json --root root/root.pem --keyring keyring
         gaisnet cmd sign pause --to north/_/edge-north --key op/anna.pem --keyring keyring > command",
    );
    for (message, key) in [("keyring", "root/root.pub.pem"), ("command", "op/anna.pub.pem")] {
        let script =
            format!("cp {message} message; cp {key} key.pub.pem\n{}", steps("An envelope"));
        let text = good(folder.path(), &script);
        assert!(text.contains("Signature Verified Successfully"), "{text}");
        let flip = "size=$(stat -c %s message); printf '\\xff' | dd of=message bs=1 seek=$((size - 90)) conv=notrunc status=none";
        let script = format!("cp {message} message; {flip}\n{}", steps("An envelope"));
        assert!(!shell(folder.path(), &script).status.success());
    }
}
