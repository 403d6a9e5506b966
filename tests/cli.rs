//! The real program, as a shell sees it: exit codes, streams, and processes that end when told.
#![cfg(feature = "cli")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test"
)]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

fn gaisnet(line: &[&str]) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_gaisnet")).args(line).output().unwrap()
}

#[test]
fn exit_codes_are_the_documented_ones_and_errors_go_to_standard_error() {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("keys/node.pem");
    let key = key.to_str().unwrap();
    assert_eq!(gaisnet(&["keys", "new", key]).status.code(), Some(0));
    let again = gaisnet(&["keys", "new", key]);
    assert_eq!((again.status.code(), again.stdout.len()), (Some(1), 0));
    assert!(String::from_utf8_lossy(&again.stderr).contains("never replaced"));
    assert_eq!(gaisnet(&["keys", "show"]).status.code(), Some(2));
    let no_keyring = folder.path().join("keyring");
    std::fs::write(&no_keyring, b"\x94\x01").unwrap();
    let refused = gaisnet(&["keyring", "show", no_keyring.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(3), "{refused:?}");
}

/// Ends a process as Ctrl-C does.
fn interrupt(child: &mut Child) -> Option<i32> {
    let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    child.wait().unwrap().code()
}

#[cfg(feature = "broker")]
#[test]
fn a_broker_tells_its_port_and_ends_cleanly_on_ctrl_c() {
    let mut broker = Command::new(env!("CARGO_BIN_EXE_gaisnet"))
        .args(["broker", "--listen", "127.0.0.1:0", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut told = String::new();
    BufReader::new(broker.stdout.take().unwrap()).read_line(&mut told).unwrap();
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    let port = told["port"].as_u64().unwrap();
    assert!(std::net::TcpStream::connect(("127.0.0.1", u16::try_from(port).unwrap())).is_ok());
    // A feed without its recordings says how to get them; with a broker that is there or not.
    let to = format!("127.0.0.1:{port}");
    let empty = tempfile::tempdir().unwrap();
    let feed = Command::new(env!("CARGO_BIN_EXE_gaisnet"))
        .args(["feed", "--plant", "P1", "--topic", "a/b", "--to", &to])
        .env("GAISNET_CACHE", empty.path())
        .output()
        .unwrap();
    assert_eq!(feed.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&feed.stderr).contains("gaisnet data fetch bearings"));
    assert_eq!(interrupt(&mut broker), Some(0));
}

/// Mosquitto ends at once when it can't read its access list.
#[test]
fn mosquitto_takes_the_access_list() {
    let program = Path::new("/usr/sbin/mosquitto");
    if !program.exists() {
        eprintln!("SKIPPED mosquitto_takes_the_access_list: apt install mosquitto");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (root, keyring, key, request) =
        (at("root/root.pem"), at("keyring"), at("keys/c.pem"), at("c.json"));
    let who = ["--name", "cloud", "--federation", "pilot", "--role", "cloud"];
    for line in [
        vec!["keys", "new", &root],
        vec!["keys", "new", &key],
        vec!["keyring", "new", &keyring, "--federation", "pilot", "--root", &root],
        [&["keys", "prove", "--key", &key, "--out", &request][..], &who].concat(),
        vec!["keys", "enrol", &request, "--root", &root, "--keyring", &keyring],
    ] {
        let done = gaisnet(&line);
        assert!(done.status.success(), "{line:?}: {}", String::from_utf8_lossy(&done.stderr));
    }
    let acl = gaisnet(&["acl", "--keyring", &keyring]);
    std::fs::write(at("acl"), &acl.stdout).unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config = format!(
        "user root\nlistener {port} 127.0.0.1\nallow_anonymous true\nacl_file {}\n",
        at("acl")
    );
    std::fs::write(at("mosquitto.conf"), config).unwrap();
    let mut broker = Command::new(program)
        .args(["-c", &at("mosquitto.conf")])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It says so when it runs; when it refuses the list it ends, and so do its lines.
    let lines = BufReader::new(broker.stderr.take().unwrap()).lines().map_while(Result::ok);
    let mut seen = Vec::new();
    let runs = lines.into_iter().any(|line| {
        seen.push(line.clone());
        line.ends_with(" running")
    });
    broker.kill().unwrap();
    broker.wait().unwrap();
    assert!(runs, "{seen:?}");
}

#[cfg(feature = "torch")]
#[test]
fn a_model_is_imported_signed_shown_fetched_and_verified() {
    let room = tempfile::tempdir().unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/huggingface/llama");
    let path = |name: &str| room.path().join(name).to_str().unwrap().to_owned();
    let run = |line: &[&str]| {
        let out = Command::new(env!("CARGO_BIN_EXE_gaisnet"))
            .env("GAISNET_CACHE", room.path().join("cache"))
            .args(line)
            .output()
            .unwrap();
        let said = [out.stdout.as_slice(), out.stderr.as_slice()].concat();
        (out.status.code(), String::from_utf8_lossy(&said).into_owned())
    };
    let (folder, card, key) = (golden.to_str().unwrap(), path("tiny.toml"), path("k/release.pem"));
    let about = ["--name", "tiny", "--licence", "Apache-2.0", "--made", "us", "--out", &path("")];
    let (code, said) = run(&[&["model", "import", folder], &about[..]].concat());
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(run(&[&["model", "import", folder], &about[..]].concat()).0, Some(1), "is there");
    assert_eq!(run(&["keys", "new", &key]).0, Some(0));
    let public = path("k/release.pub.pem");
    // The weights aren't beside the card and not in the cache, so it can't be signed yet.
    assert_eq!(run(&["model", "sign", &card, "--key", &key]).0, Some(3));
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        std::fs::copy(golden.join(file), path(file)).unwrap();
    }
    assert_eq!(run(&["model", "verify", &card, "--key", &public]).0, Some(3), "unsigned");
    assert_eq!(run(&["model", "sign", &card, "--key", &key]).0, Some(0));
    assert_eq!(run(&["model", "verify", &card, "--key", &public]).0, Some(0));
    assert_eq!(run(&["model", "verify", &card]).0, Some(3), "signed by somebody else");
    let (code, said) = run(&["model", "show", &card, "--json"]);
    let shown: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!((code, &shown["architecture"]["d_model"]), (Some(0), &16.into()));
    let fetch = ["model", "fetch", &card, "--from", folder, "--key", &public, "--json"];
    let (code, said) = run(&fetch);
    let fetched: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!((code, &fetched["fetched"]), (Some(0), &true.into()), "{said}");
    let cached = fetched["card"].as_str().unwrap();
    assert_eq!(run(&["model", "verify", cached, "--key", &public]).0, Some(0));
    let (_, said) = run(&["model", "list", "--json"]);
    let listed: serde_json::Value = serde_json::from_str(&said).unwrap();
    let tiny = listed.as_array().unwrap().iter().find(|base| base["name"] == "tiny").unwrap();
    assert_eq!(tiny["cached"], true);
    // A pickle's name is enough.
    std::fs::write(path("model.pkl"), b"x").unwrap();
    let about = ["--name", "p", "--licence", "MIT", "--made", "us"];
    let (code, said) = run(&[&["model", "import", &path("model.pkl")], &about[..]].concat());
    assert!(code == Some(3) && said.contains("pickle"), "{said}");
}
