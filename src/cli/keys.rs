//! `gaisnet keys`: make a key, ask for its enrolment, enrol it, give it a successor, void it.
//!
//! ```text
//! on the node       keys new -> keys prove  --request.json-->  keys enrol --root root.pem   root
//! on each node      keyring accept  <--keyring--                            (offline machine)
//! ```
//! A private key never leaves the machine on which it was made.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand};

use super::exit::Misuse;
use super::trust_files::{
    now, public_path, read_capped, read_keyring, read_public_key, read_root_keys,
    settings_if_named, write_keyring, write_new,
};
use super::{Exit, SettingsArgs};
use crate::ids::{KeyId, Name, NodeId};
use crate::settings::{NodeRole, NodeSettings};
use crate::store::keyfile::{new_signing_key, read_signing_key, write_signing_key};
use crate::trust::keyring::{Enrolment, Keyring, NodeEntry, Role};
use crate::trust::keys::SigningKey;

/// Arguments of `gaisnet keys`.
#[derive(Debug, Args)]
pub(super) struct KeysArgs {
    #[command(subcommand)]
    command: KeysCommand,
}

#[derive(Debug, Subcommand)]
enum KeysCommand {
    /// Make a key: FILE.pem, and FILE.pub.pem beside it
    #[command(after_help = NEW_HELP)]
    New {
        /// Private key to make, in a folder of mode 0700; default: node.pem in paths.keys
        file: Option<PathBuf>,
    },
    /// Show a key's id and public half
    #[command(after_help = SHOW_HELP)]
    Show {
        /// A private or public key; default: node.pem in paths.keys
        file: Option<PathBuf>,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Ask for enrolment: who this is, and the proof that it holds its key
    #[command(after_help = PROVE_HELP)]
    Prove(ProveArgs),
    /// Put a node's key into the keyring: version N + 1
    #[command(after_help = ENROL_HELP)]
    Enrol {
        /// What `gaisnet keys prove` wrote
        request: PathBuf,
        /// The cloud that this one takes over from when it is gone
        #[arg(long)]
        standby_of: Option<NodeId>,
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Name the edge that takes in another edge's devices while theirs is away
    #[command(after_help = SECOND_EDGE_HELP)]
    SecondEdge {
        /// The edge whose devices it is for
        edge: NodeId,
        /// The edge that takes them in: of the same site, under the same node
        #[arg(required_unless_present = "none")]
        second: Option<NodeId>,
        /// They wait for their own edge from now on
        #[arg(long, conflicts_with = "second")]
        none: bool,
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Give a node a new key and revoke its old one
    #[command(after_help = ROTATE_HELP)]
    Rotate {
        /// What `gaisnet keys prove` wrote with the new key
        request: PathBuf,
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Declare a node's key void
    #[command(after_help = REVOKE_HELP)]
    Revoke {
        /// Name of the node, or id of its key
        subject: String,
        #[command(flatten)]
        change: ChangeArgs,
    },
}

/// Who asks. Everything comes from the node's settings, or from here.
#[derive(Debug, Args)]
struct ProveArgs {
    /// Private key; default: node.pem in paths.keys
    #[arg(long)]
    key: Option<PathBuf>,
    /// Name of the node, operator or approver, if not from the settings
    #[arg(long, requires = "federation", requires = "roles")]
    name: Option<NodeId>,
    /// Federation
    #[arg(long, requires = "name")]
    federation: Option<Name>,
    /// What the key may speak for: cloud, edge, device, operator, ...; may be repeated
    #[arg(long = "role", id = "roles", requires = "name")]
    roles: Vec<Role>,
    /// Site, `_` for none
    #[arg(long, default_value = "_", requires = "name")]
    site: Name,
    /// Line, `_` for none
    #[arg(long, default_value = "_", requires = "name")]
    line: Name,
    /// The node above
    #[arg(long, requires = "name")]
    parent: Option<NodeId>,
    /// Where to write the request; default: standard output
    #[arg(long)]
    out: Option<PathBuf>,
}

/// What each change of a keyring needs.
#[derive(Debug, Args)]
struct ChangeArgs {
    /// Private root key; repeated where the threshold is above one
    #[arg(long, required = true)]
    root: Vec<PathBuf>,
    /// The keyring, which is replaced by its next version
    #[arg(long)]
    keyring: PathBuf,
    /// Days that the new version is good for
    #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u64).range(1..=3650))]
    days: u64,
}

/// Runs `gaisnet keys`.
pub(super) fn run(
    args: &KeysArgs,
    settings: &SettingsArgs,
    out: &mut dyn Write,
) -> anyhow::Result<Exit> {
    match &args.command {
        KeysCommand::New { file } => new(&key_path(file.as_ref(), settings)?, out)?,
        KeysCommand::Show { file, json } => {
            show(&key_path(file.as_ref(), settings)?, *json, out)?;
        }
        KeysCommand::Prove(args) => prove(args, settings, out)?,
        KeysCommand::Enrol { request, standby_of, change } => {
            let request = read_request(request)?;
            let what = format!("enrolled {}", request.entry.node);
            change_keyring(change, out, &what, |old, at, end| {
                Ok(match standby_of {
                    Some(owner) => old.enrol_standby(&request, owner, at, end)?,
                    None => old.enrol(&request, at, end)?,
                })
            })?;
        }
        KeysCommand::SecondEdge { edge, second, none: _, change } => {
            let what = match second {
                Some(second) => format!("{second} takes in the devices of {edge} while it is away"),
                None => format!("devices of {edge} wait for it"),
            };
            change_keyring(change, out, &what, |old, at, end| {
                Ok(old.with_second_edge(edge, second.as_ref(), at, end)?)
            })?;
        }
        KeysCommand::Rotate { request, change } => {
            let request = read_request(request)?;
            let what = format!("rotated the key of {}", request.entry.node);
            change_keyring(change, out, &what, |old, at, end| Ok(old.rotate(&request, at, end)?))?;
        }
        KeysCommand::Revoke { subject, change } => {
            let what = format!("revoked {subject}");
            change_keyring(change, out, &what, |old, at, end| {
                let key = key_of(old, subject)?;
                Ok(old.revoke(key, at, end)?)
            })?;
        }
    }
    Ok(Exit::Ok)
}

/// Makes the key of a node, or takes the one that is there, and writes its enrolment request.
///
/// For `gaisnet init`; gives the key's id.
pub(super) fn key_and_request(
    node: &NodeSettings,
    key_file: &Path,
    request_file: &Path,
) -> anyhow::Result<KeyId> {
    if !key_file.exists() {
        make_key(key_file)?;
    }
    let key = read_signing_key(key_file, None)?;
    let request = request(&node.federation, entry_of(node, &key), &key);
    write_new(request_file, request_text(&request)?.as_bytes(), 0o644)?;
    Ok(key.public().key_id())
}

/// File name of a node's own key in its keys folder.
pub(super) const NODE_KEY: &str = "node.pem";

fn key_path(file: Option<&PathBuf>, settings: &SettingsArgs) -> anyhow::Result<PathBuf> {
    let named = settings_if_named(settings)?;
    let found = file.cloned().or_else(|| named.map(|named| named.paths.keys.join(NODE_KEY)));
    found.ok_or_else(|| Misuse("give the key file, or --config with the node's file".into()).into())
}

fn make_key(file: &Path) -> anyhow::Result<SigningKey> {
    let key = new_signing_key()?;
    write_signing_key(file, &key)?;
    write_new(&public_path(file), key.public().to_pem().as_bytes(), 0o644)?;
    Ok(key)
}

fn new(file: &Path, out: &mut dyn Write) -> anyhow::Result<()> {
    let key = make_key(file)?;
    writeln!(out, "key {}", key.public().key_id())?;
    writeln!(out, "wrote {} (private: it never leaves this machine)", file.display())?;
    writeln!(out, "wrote {}", public_path(file).display())?;
    Ok(())
}

fn show(file: &Path, json: bool, out: &mut dyn Write) -> anyhow::Result<()> {
    let key = read_public_key(file)?;
    let (id, pem) = (key.key_id(), key.to_pem());
    if json {
        let shown = serde_json::json!({ "key_id": id, "public": key, "pem": pem });
        writeln!(out, "{shown}")?;
    } else {
        writeln!(out, "key id  {id}\npublic  {key:?}\n{}", pem.trim_end())?;
    }
    Ok(())
}

fn prove(args: &ProveArgs, settings: &SettingsArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let named = settings_if_named(settings)?;
    let key = read_signing_key(&key_path(args.key.as_ref(), settings)?, None)?;
    let (federation, entry) = match (&args.name, &args.federation, &named) {
        (Some(node), Some(federation), _) => {
            let entry = NodeEntry {
                node: node.clone(),
                site: args.site.clone(),
                line: args.line.clone(),
                roles: args.roles.iter().copied().collect(),
                parent: args.parent.clone(),
                key: *key.public(),
            };
            (federation.clone(), entry)
        }
        (None, _, Some(named)) => (named.node.federation.clone(), entry_of(&named.node, &key)),
        _ => {
            let why = "give --config with the node's file, or --name, --federation and --role";
            return Err(Misuse(why.into()).into());
        }
    };
    let text = request_text(&request(&federation, entry, &key))?;
    match &args.out {
        None => out.write_all(text.as_bytes())?,
        Some(file) => {
            write_new(file, text.as_bytes(), 0o644)?;
            writeln!(out, "wrote {}", file.display())?;
        }
    }
    Ok(())
}

/// A node's place and tier as its settings tell them.
fn entry_of(node: &NodeSettings, key: &SigningKey) -> NodeEntry {
    let role = if node.has(NodeRole::Aggregator) {
        Role::Cloud
    } else if node.has(NodeRole::Relay) {
        Role::Edge
    } else {
        Role::Device
    };
    NodeEntry {
        node: node.name.clone(),
        site: node.site.clone(),
        line: node.line.clone(),
        roles: BTreeSet::from([role]),
        parent: node.parent.clone(),
        key: *key.public(),
    }
}

fn request(federation: &Name, entry: NodeEntry, key: &SigningKey) -> Enrolment {
    let proof = key.prove_possession(federation, &entry.node, &entry.roles);
    Enrolment { entry, proof }
}

fn request_text(request: &Enrolment) -> anyhow::Result<String> {
    Ok(format!("{}\n", serde_json::to_string_pretty(request)?))
}

fn read_request(path: &Path) -> anyhow::Result<Enrolment> {
    let bytes = read_capped(path, MAX_REQUEST_BYTES)?;
    serde_json::from_slice(&bytes)
        .with_context(|| format!("{} is no enrolment request", path.display()))
}

fn key_of(keyring: &Keyring, subject: &str) -> anyhow::Result<KeyId> {
    let node = Name::new(subject).ok().and_then(|name| keyring.node(&name));
    if let Some(entry) = node {
        return Ok(entry.key.key_id());
    }
    let key = subject.parse::<KeyId>();
    key.map_err(|_| Misuse(format!("{subject} is neither a node's name nor a key id")).into())
}

fn change_keyring(
    change: &ChangeArgs,
    out: &mut dyn Write,
    what: &str,
    make: impl FnOnce(&Keyring, crate::time::Wall, crate::time::Wall) -> anyhow::Result<Keyring>,
) -> anyhow::Result<()> {
    let old = read_keyring(&change.keyring)?;
    let root = read_root_keys(&change.root)?;
    let at = now();
    let next = make(&old, at, at.plus_ms(change.days.saturating_mul(DAY_MS)))?;
    write_keyring(&change.keyring, &next, &root)?;
    writeln!(out, "{what}: {} is version {}", change.keyring.display(), next.version())?;
    writeln!(out, "next:  bring it to each node: gaisnet keyring accept FILE --config ...")?;
    Ok(())
}

const DAY_MS: u64 = 86_400_000;
/// Many times a request.
const MAX_REQUEST_BYTES: usize = 16 * 1024;

const NEW_HELP: &str = "\
Examples:
  gaisnet keys new root/root.pem
  gaisnet keys new --config gaisnet.toml

The files are PKCS#8 and SubjectPublicKeyInfo PEM, as openssl reads and writes them. A key that is
there is never replaced. A folder that is missing is made with mode 0700.";

const SHOW_HELP: &str = "\
Examples:
  gaisnet keys show root/root.pub.pem
  gaisnet keys show --config gaisnet.toml --json | jq -r .key_id";

const PROVE_HELP: &str = "\
Examples:
  gaisnet keys prove --config gaisnet.toml --out enrolment.json
  gaisnet keys prove --key op/anna.pem --name anna --federation pilot --role operator --out anna.json

Run it where the key is. The request holds no secret.";

const ENROL_HELP: &str = "\
Example:
  gaisnet keys enrol press-7/enrolment.json --root root/root.pem --keyring keyring
  gaisnet keys enrol cloud-2/enrolment.json --standby-of cloud --root root/root.pem --keyring keyring

A parent is enrolled before its children. Ends with 3 when the proof is wrong, the key is of small
order or known, or the node doesn't fit into the tree of cloud, edges and devices.";

const SECOND_EDGE_HELP: &str = "\
Examples:
  gaisnet keys second-edge edge-a edge-b --root root/root.pem --keyring keyring
  gaisnet keys second-edge edge-a --none --root root/root.pem --keyring keyring

Both ways need two calls. Give the new keyring to all nodes of the site and print the broker's rights anew
(gaisnet acl); round.second_edge_after_s says how long devices wait.";

const ROTATE_HELP: &str = "\
Example, with the request made by the new key:
  gaisnet keys rotate press-7/enrolment-2.json --root root/root.pem --keyring keyring";

const REVOKE_HELP: &str = "\
Examples:
  gaisnet keys revoke press-7 --root root/root.pem --keyring keyring
  gaisnet keys revoke a1b2c3d4e5f60718 --root root/root.pem --keyring keyring

The node keeps its place; its next key comes by `gaisnet keys enrol`.";

#[cfg(test)]
mod tests {
    use super::super::tests::{Federation, gaisnet};
    use super::*;

    #[test]
    fn a_key_is_made_once_and_shown_by_both_of_its_files() {
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("keys/node.pem");
        let key = key.to_str().unwrap();
        let (exit, text) = gaisnet(&["keys", "new", key]);
        assert_eq!(exit.unwrap(), Exit::Ok);
        let id = text.lines().next().unwrap().strip_prefix("key ").unwrap().to_owned();
        let public = key.replace("node.pem", "node.pub.pem");
        for file in [key, public.as_str()] {
            let (exit, text) = gaisnet(&["keys", "show", file, "--json"]);
            assert_eq!(exit.unwrap(), Exit::Ok);
            let json: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(json["key_id"], id.as_str());
        }
        assert!(gaisnet(&["keys", "new", key]).0.unwrap_err().to_string().contains("exists"));
    }

    #[test]
    fn nodes_are_enrolled_rotated_and_revoked_and_each_change_is_a_version() {
        let federation = Federation::new();
        federation.enrol("cloud", &["--role", "cloud"]);
        federation.enrol("edge", &["--role", "edge", "--site", "north", "--parent", "cloud"]);
        assert_eq!(federation.keyring().version(), 3);
        let before = federation.keyring().node(&Name::new("edge").unwrap()).unwrap().key;

        let request =
            federation.request("edge-2", "edge", &["--role", "edge", "--parent", "cloud"]);
        federation.change(&["keys", "rotate", &request]).unwrap();
        let after = federation.keyring();
        assert_eq!(after.version(), 4);
        assert!(after.revoked().contains(&before.key_id()));

        federation.change(&["keys", "revoke", "edge"]).unwrap();
        assert_eq!(federation.keyring().nodes().count(), 1);
        let again = federation.change(&["keys", "revoke", "edge"]).unwrap_err();
        assert!(again.is::<Misuse>(), "{again:#}");
    }

    #[test]
    fn a_request_that_was_changed_is_refused_and_the_keyring_stays() {
        let federation = Federation::new();
        let request = federation.request("cloud", "cloud", &["--role", "cloud"]);
        let text = std::fs::read_to_string(&request).unwrap();
        for (from, to) in
            [("\"cloud\"\n", "\"operator\"\n"), ("\"node\": \"cloud\"", "\"node\": \"k\"")]
        {
            assert!(text.contains(from), "{text}");
            std::fs::write(&request, text.replace(from, to)).unwrap();
            let refused = federation.change(&["keys", "enrol", &request]).unwrap_err();
            assert_eq!(
                refused.downcast::<crate::trust::keyring::KeyringError>().unwrap().kind(),
                "keyring_possession"
            );
        }
        // A key of small order never gets as far as the proof.
        let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
        json["entry"]["key"] = "00".repeat(32).into();
        std::fs::write(&request, json.to_string()).unwrap();
        let refused = format!("{:#}", federation.change(&["keys", "enrol", &request]).unwrap_err());
        assert!(refused.contains("small order"), "{refused}");
        assert_eq!(federation.keyring().version(), 1);
        std::fs::write(&request, &text).unwrap();
        federation.change(&["keys", "enrol", &request]).unwrap();
    }

    #[test]
    fn a_root_key_that_is_not_the_keyrings_changes_nothing() {
        let federation = Federation::new();
        let request = federation.request("cloud", "cloud", &["--role", "cloud"]);
        let other = federation.path("other/root.pem");
        gaisnet(&["keys", "new", &other]).0.unwrap();
        let keyring = federation.path("keyring");
        let line = ["keys", "enrol", &request, "--root", &other, "--keyring", &keyring];
        let refused = format!("{:#}", gaisnet(&line).0.unwrap_err());
        assert!(refused.contains("needs 1 signatures"), "{refused}");
        assert_eq!(federation.keyring().version(), 1);
    }

    #[test]
    fn without_settings_a_request_needs_name_federation_and_role() {
        let refused = gaisnet(&["keys", "prove", "--key", "k.pem"]).0.unwrap_err();
        assert!(!refused.is::<Misuse>()); // the key file isn't there
        assert!(gaisnet(&["keys", "prove"]).0.unwrap_err().is::<Misuse>());
        assert!(gaisnet(&["keys", "show"]).0.unwrap_err().is::<Misuse>());
    }
}
