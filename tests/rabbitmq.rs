//! A network over RabbitMQ, with the shipped configuration and the permissions that `gaisnet acl`
//! prints; only ports and folders differ here.
#![cfg(feature = "cli")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    clippy::cast_precision_loss,
    reason = "a test"
)]

#[path = "support/federation.rs"]
mod federation;
mod support;

use std::collections::BTreeMap;
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use federation::{Links, Members, check_owner, events, learning, name, root_key, until};
use gaisnet::bus::Bus;
use gaisnet::bus::mqtt::{MqttBus, MqttSettings};
use gaisnet::ids::Side;
use gaisnet::node::{Learning, Node};
use gaisnet::protocol::update;
use gaisnet::store::MemoryStore;
use gaisnet::trust::keyring::Role;
use gaisnet::trust::keyring_document::seal_document;
use support::{Peer, free_port, kept, settings, skip};
use tempfile::TempDir;

/// Debian's wrapper in /usr/sbin would change the user.
const PROGRAMS: &str = "/usr/lib/rabbitmq/bin";
const ROUNDS: u64 = 3;

/// A RabbitMQ node with its own port mapper, in a folder of its own.
struct Rabbit {
    port: u16,
    folder: TempDir,
    variables: Vec<(&'static str, String)>,
    processes: Vec<Child>,
}

impl Rabbit {
    /// `None`, counted, where it isn't installed.
    fn start() -> Option<Self> {
        if !Path::new(PROGRAMS).join("rabbitmq-server").exists() {
            skip("RabbitMQ is not installed (apt install rabbitmq-server)");
            return None;
        }
        let folder = TempDir::new().unwrap();
        let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let port = free_port();
        let config = include_str!("../brokers/rabbitmq.conf");
        assert!(config.contains("127.0.0.1:1883"));
        let config = config.replace("127.0.0.1:1883", &format!("127.0.0.1:{port}"));
        std::fs::write(at("rabbitmq.conf"), config).unwrap();
        std::fs::write(at("plugins"), "[rabbitmq_mqtt].").unwrap();
        let mapper = free_port();
        let variables = vec![
            ("HOME", at("")),
            ("ERL_EPMD_PORT", mapper.to_string()),
            ("ERL_EPMD_ADDRESS", "127.0.0.1".to_owned()),
            ("RABBITMQ_NODENAME", format!("test{port}@localhost")),
            ("RABBITMQ_CONFIG_FILE", at("rabbitmq.conf")),
            ("RABBITMQ_ENABLED_PLUGINS_FILE", at("plugins")),
            ("RABBITMQ_MNESIA_BASE", at("mnesia")),
            ("RABBITMQ_LOG_BASE", at("log")),
            ("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1".to_owned()),
            ("RABBITMQ_NODE_PORT", free_port().to_string()),
            ("RABBITMQ_DIST_PORT", free_port().to_string()),
        ];
        let mut this = Self { port, folder, variables, processes: Vec::new() };
        let mut mapping = this.command("epmd");
        mapping.args(["-address", "127.0.0.1", "-port", &mapper.to_string()]);
        this.spawn(mapping);
        let server = this.command("rabbitmq-server");
        this.spawn(server);
        Some(this)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let path = format!("{PROGRAMS}:{}", std::env::var("PATH").unwrap());
        command.env("PATH", path).envs(self.variables.iter().map(|(name, value)| (name, value)));
        command.current_dir(self.folder.path());
        command
    }

    /// In a process group of its own, since the server is started by scripts.
    fn spawn(&mut self, mut command: Command) {
        let child = command.process_group(0).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        self.processes.push(child.unwrap());
    }

    /// Runs a script with rabbitmqctl on its path.
    fn script(&self, script: &str) {
        let done = self.command("bash").args(["-euc", script]).output().unwrap();
        let told = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{}{told}", String::from_utf8_lossy(&done.stdout));
    }

    fn login(&self, user: &str, side: Side) -> MqttSettings {
        let mut login = settings(self.port, &format!("{user}-{side:?}"));
        (login.username, login.password) = (Some(user.into()), Some(user.into()));
        login
    }
}

impl Drop for Rabbit {
    fn drop(&mut self) {
        for process in self.processes.iter_mut().rev() {
            let group = format!("-{}", process.id());
            let _ = Command::new("kill").args(["-9", "--", &group]).status();
            let _ = process.wait();
        }
    }
}

/// Users named like the nodes and groups, with their names as passwords and our list's rights.
fn admit(rabbit: &Rabbit, members: &Members) {
    let keyring = rabbit.folder.path().join("keyring");
    std::fs::write(&keyring, seal_document(&members.keyring, &[&root_key()]).unwrap()).unwrap();
    let list = Command::new(env!("CARGO_BIN_EXE_gaisnet"))
        .args(["acl", "--format", "rabbitmq-hint", "--keyring"])
        .arg(keyring)
        .output()
        .unwrap();
    let list = String::from_utf8(list.stdout).unwrap();
    let users = list.lines().filter_map(|line| {
        let user = line.strip_prefix("rabbitmqctl set_topic_permissions ")?.split(' ').next()?;
        Some(format!("<<\"{user}\">>"))
    });
    let users = users.collect::<Vec<_>>().join(",");
    rabbit.script(&format!(
        "rabbitmqctl await_startup >&2\n\
         rabbitmqctl eval '[rabbit_auth_backend_internal:add_user(U, U, <<\"test\">>) || U <- [{users}]].'\n\
         {list}"
    ));
}

#[test]
fn rounds_complete_over_rabbitmq_with_the_permissions_that_we_print() {
    actix::System::new().block_on(async {
        let Some(rabbit) = Rabbit::start() else { return };
        until("RabbitMQ", async || TcpStream::connect(("127.0.0.1", rabbit.port)).is_ok()).await;
        let members = Members::new(1, 1);
        admit(&rabbit, &members);
        let mut stores = BTreeMap::new();
        let mut running: Vec<Node> = Vec::new();
        for place in &members.places {
            let sides: &[Side] = match place.role {
                Role::Cloud => &[Side::Down],
                Role::Edge => &[Side::Down, Side::Up],
                _ => &[Side::Up],
            };
            let mut links = Links::new();
            for side in sides {
                let login = rabbit.login(place.node.as_str(), *side);
                let (bus, events) = MqttBus::connect(login, 1).unwrap();
                links.insert(*side, (Arc::new(bus), events));
            }
            let learning = Learning {
                republish_ms: 1_000,
                pause_ms: 10,
                resync_ms: 2_000,
                ..learning(ROUNDS)
            };
            let store = MemoryStore::new();
            stores.insert(place.node.clone(), store.clone());
            let parts = members.parts(&place.node, 1, learning, Box::new(store), links);
            running.push(gaisnet::node::start(parts).unwrap());
        }
        until("the last version everywhere", async || {
            for node in &running {
                if node.view().await.is_none_or(|view| view.version != ROUNDS) {
                    return false;
                }
            }
            true
        })
        .await;
        for owner in ["cloud", "edge0"] {
            check_owner(owner, events(&stores[&name(owner)]));
        }
        for node in &running {
            // Half the way to the device's target 2, three times.
            let adapter = update::unpack(&node.serving.borrow().1).unwrap();
            assert_eq!(adapter.tensors()[0].data, [1.75; 4], "{}", node.me);
        }

        // A device may write its own status; somebody else's costs it the connection.
        let mut device = Peer::new(rabbit.login("dev0-0", Side::Down));
        device.connected().await;
        let own = "gaisnet/v1/site0/line/dev0-0/status";
        device.bus.subscribe(&[own.into()]).unwrap();
        device.bus.publish(kept(own, "here")).unwrap();
        while device.delivery().await.1 != "here" {}
        device.bus.publish(kept("gaisnet/v1/_/_/cloud/status", "forged")).unwrap();
        device.disconnected().await;
        let mut stranger = rabbit.login("dev0-0", Side::Down);
        stranger.password = Some("wrong".into());
        let reason = Peer::new(stranger).disconnected().await;
        assert!(reason.contains("password"), "{reason}");
    });
}
