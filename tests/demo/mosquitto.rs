//! The same pilot on unmodified mosquitto with password, access list and TLS: only the settings
//! differ. The access lists are what `gaisnet acl` prints, and two lines for the demo's listener.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::stage::Stage;
use crate::support::{Mosquitto, certificates};

const USERS: [&str; 9] =
    ["cloud", "edge-north", "edge-south", "p1", "p2", "p3", "p4", "feed", "demo"];
const LISTENER: &str = "user demo\ntopic read #\ntopic write gaisnet/v1/+/+/+/cmd/#\n";

/// A broker a section of the demo's file.
pub(crate) struct Plant {
    brokers: Vec<(&'static str, Mosquitto)>,
    folder: tempfile::TempDir,
}

impl Plant {
    pub(crate) fn start(keyring: &Path) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("passwords")).unwrap();
        for user in USERS {
            let file = folder.path().join("passwords").join(user);
            std::fs::write(file, format!("secret of {user}\n")).unwrap();
        }
        let mut brokers = Vec::new();
        for (name, scope) in [
            ("federation", &["--top"][..]),
            ("north", &["--site", "north"]),
            ("south", &["--site", "south"]),
        ] {
            let dir = tempfile::tempdir().unwrap();
            certificates(dir.path());
            std::fs::write(dir.path().join("passwd"), "").unwrap();
            for user in USERS {
                passwd(dir.path(), &["-b", "passwd", user, &format!("secret of {user}")])?;
            }
            let list = access_list(keyring, scope) + LISTENER;
            std::fs::write(dir.path().join("acl"), list).unwrap();
            brokers.push((name, Mosquitto::start_in(dir, CONFIG)?));
        }
        Some(Self { brokers, folder })
    }

    /// The demo's file.
    pub(crate) fn file(&self) -> PathBuf {
        let passwords = self.folder.path().join("passwords");
        let mut text = String::new();
        for (name, broker) in &self.brokers {
            let ca = broker.dir.path().join("ca.pem");
            let (port, ca, passwords) = (broker.port, ca.display(), passwords.display());
            writeln!(text, "[bus.{name}]\nhost = \"localhost\"\nport = {port}").unwrap();
            writeln!(text, "ca = \"{ca}\"\npasswords = \"{passwords}\"").unwrap();
        }
        let file = self.folder.path().join("brokers.toml");
        std::fs::write(&file, text).unwrap();
        file
    }

    /// Lines of the brokers' logs about what they refused.
    pub(crate) fn refusals(&self) -> Vec<String> {
        let mut all = Vec::new();
        for (_, broker) in &self.brokers {
            let log = std::fs::read_to_string(broker.dir.path().join("log")).unwrap();
            assert!(log.contains("Sending PUBLISH"), "the log doesn't tell enough");
            let denied = |line: &&str| line.contains("Denied") || line.contains("not authorised");
            all.extend(log.lines().filter(denied).map(str::to_owned));
        }
        all
    }
}

const CONFIG: &str = "cafile DIR/ca.pem\ncertfile DIR/server.pem\nkeyfile DIR/server.key\n\
                      allow_anonymous false\npassword_file DIR/passwd\nacl_file DIR/acl\nlog_type all";

fn passwd(dir: &Path, arguments: &[&str]) -> Option<()> {
    let done = Command::new("mosquitto_passwd").args(arguments).current_dir(dir).output();
    let Ok(done) = done else {
        crate::support::skip("mosquitto_passwd is not installed (apt install mosquitto)");
        return None;
    };
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    Some(())
}

fn access_list(keyring: &Path, scope: &[&str]) -> String {
    let done = Command::new(env!("CARGO_BIN_EXE_gaisnet"))
        .args(["acl", "--tags", "plant/#", "--keyring"])
        .arg(keyring)
        .args(scope)
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pilot_runs_on_mosquitto_with_passwords_access_lists_and_tls() {
    let Some(stage) = Stage::new() else { return };
    let rounds = 3;
    assert_eq!(stage.run(rounds, &["--prepare"]).await.code, Some(0));
    let Some(mut plant) = Plant::start(&stage.path("keyring")) else { return };
    let file = plant.file();
    let line = ["--json", "--broker-config", file.to_str().unwrap()];
    let ended = stage.run(rounds, &line).await;
    let report = ended.json();
    assert_eq!((report["rounds"].as_u64(), ended.code), (Some(rounds), Some(0)));
    assert_eq!((&report["refused"], &report["audit"]["verified"]), (&0.into(), &true.into()));
    assert_eq!(plant.refusals(), [""; 0]);
    eprintln!("{} entries, bytes {}", report["audit"]["entries"], report["bytes"]);

    // One line less: a broker drops without a word, but the demo says who misses which topic.
    let (_, south) = plant.brokers.last_mut().unwrap();
    let list = south.dir.path().join("acl");
    let text = std::fs::read_to_string(&list).unwrap();
    let topic = "gaisnet/v1/south/_/edge-south/m/#";
    let (before, p3) = text.split_once("user p3\n").unwrap();
    let without = p3.replacen(&format!("topic read {topic}\n"), "", 1);
    assert_ne!(without, p3);
    std::fs::write(&list, format!("{before}user p3\n{without}")).unwrap();
    south.kill();
    south.start_again();
    // New keys: what the last run has left at the brokers is nobody's any more.
    let ended = stage.run(rounds, &[&line[..], &["--patience", "20"]].concat()).await;
    let told = ended.err.join("\n");
    assert_eq!(ended.code, Some(1), "{told}");
    assert!(told.contains("p3") && told.contains(topic), "{told}");
}
