//! `gaisnet cmd`: sign a command for `mosquitto_pub`, or tell its topic.

use std::io::Write;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Subcommand};

use super::exit::Misuse;
use super::trust_files::{now, path_or_setting, read_keyring, settings_if_named};
use super::{Exit, SettingsArgs};
use crate::ids::{Name, NodeId};
use crate::scada::command::parse_signed;
use crate::store::keyfile::{new_boot_id, read_signing_key};
use crate::topic::{Branch, CommandName, Prefix};
use crate::trust::keyring::{Keyring, Role};
use crate::trust::keys::SigningKey;
use crate::trust::{Sealer, To};
use crate::wire::{Body, Command};

/// Arguments of `gaisnet cmd`.
#[derive(Debug, Args)]
pub(super) struct CmdArgs {
    #[command(subcommand)]
    command: CmdCommand,
}

#[derive(Debug, Subcommand)]
enum CmdCommand {
    /// Write a signed command to standard output, and its topic to standard error
    #[command(after_help = SIGN_HELP)]
    Sign {
        #[command(flatten)]
        target: TargetArgs,
        /// The payload: {"id": .., "args": {..}, "exp": ..}
        #[arg(long, default_value = "{}")]
        json: String,
        /// Private key of the operator
        #[arg(long)]
        key: PathBuf,
        /// The keyring, which knows whose key that is; default: paths.keyring
        #[arg(long)]
        keyring: Option<PathBuf>,
    },
    /// Print a command's topic
    #[command(after_help = TOPIC_HELP)]
    Topic {
        #[command(flatten)]
        target: TargetArgs,
    },
}

#[derive(Debug, Args)]
pub(super) struct TargetArgs {
    /// Command: status, round.start, pause, resume, model.list, config.set, rollback, ...
    #[arg(value_parser = command_name)]
    pub(super) name: CommandName,
    /// The node: site/line/node
    #[arg(long, value_name = "SITE/LINE/NODE")]
    pub(super) to: Place,
    /// First levels of all topics
    #[arg(long, default_value = "gaisnet")]
    pub(super) prefix: Prefix,
}

/// A node's place in the tree.
#[derive(Debug, Clone)]
pub(super) struct Place {
    site: Name,
    line: Name,
    pub(super) node: NodeId,
}

impl FromStr for Place {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let names: Result<Vec<Name>, _> = text.split('/').map(Name::new).collect();
        match names.map_err(|error| error.to_string())?.as_slice() {
            [site, line, node] => {
                Ok(Self { site: site.clone(), line: line.clone(), node: node.clone() })
            }
            _ => Err("expected site/line/node, as in north/press/p1 or _/_/cloud".to_owned()),
        }
    }
}

impl TargetArgs {
    fn branch(&self) -> Branch {
        let Place { site, line, node } = self.to.clone();
        Branch { prefix: self.prefix.clone(), site, line, node }
    }
}

/// Runs `gaisnet cmd`.
pub(super) fn run(
    args: &CmdArgs,
    settings: &SettingsArgs,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> anyhow::Result<Exit> {
    match &args.command {
        CmdCommand::Topic { target } => {
            writeln!(out, "{}", target.branch().cmd(&target.name))?;
        }
        CmdCommand::Sign { target, json, key, keyring } => {
            let named = settings_if_named(settings)?;
            let path = path_or_setting(
                keyring.as_ref(),
                named.as_ref(),
                |named| named.paths.keyring.clone(),
                "--keyring FILE",
            )?;
            let (keyring, key) = (read_keyring(&path)?, read_signing_key(key, None)?);
            let (topic, bytes) = sign(target, json, key, &keyring)?;
            writeln!(err, "{topic}")?;
            out.write_all(&bytes)?;
        }
    }
    Ok(Exit::Ok)
}

/// Seals a command; gives its topic and its bytes.
pub(super) fn sign(
    target: &TargetArgs,
    json: &str,
    key: SigningKey,
    keyring: &Keyring,
) -> anyhow::Result<(String, Vec<u8>)> {
    let at = now();
    // What the node would refuse isn't worth a signature.
    parse_signed(target.name.as_str(), json.as_bytes(), at)
        .map_err(|error| Misuse(format!("{error}; {}", error.hint())))?;
    let id = key.public().key_id();
    let Some(entry) = keyring.by_key(id) else {
        return Err(Misuse(format!("key {id} is not in the keyring, or revoked")).into());
    };
    let approves =
        target.name.as_str() == "rollout.approve" && entry.roles.contains(&Role::Approver);
    if !(entry.roles.contains(&Role::Operator) || approves) {
        let why = format!("key {id} is that of {}, which is no operator", entry.node);
        return Err(Misuse(why).into());
    }
    let (site, line, node) = (entry.site.clone(), entry.line.clone(), entry.node.clone());
    let own = Branch { prefix: target.prefix.clone(), site, line, node };
    let mut sealer = Sealer::new(key, keyring.federation().clone(), own, new_boot_id()?);
    let to = To::Command(target.branch(), target.name.clone());
    let (name, json) = (target.name.to_string(), json.as_bytes().to_vec());
    Ok(sealer.seal(&to, &Body::Command(Command { name, json }), 0, 0, at)?)
}

fn command_name(text: &str) -> Result<CommandName, String> {
    CommandName::new(text).map_err(|error| error.to_string())
}

const SIGN_HELP: &str = "\
Example:
  gaisnet cmd sign rollback --to north/_/edge-n --json '{\"args\":{\"model\":\"bearing\",\"version\":3}}' \\
      --key op/anna.pem --keyring keyring |
    mosquitto_pub -h localhost -q 1 -s -t $(gaisnet cmd topic rollback --to north/_/edge-n)

A signed command is good for five minutes and is carried out once. Never publish it with -r.";

const TOPIC_HELP: &str = "\
Example:
  mosquitto_pub -t $(gaisnet cmd topic status --to north/press/p1) -m '{\"id\":\"1\"}'";

#[cfg(test)]
mod tests {
    use super::super::tests::{Federation, gaisnet, gaisnet_bytes};
    use super::*;
    use crate::ids::Side;
    use crate::trust::{Door, open};

    fn federation() -> Federation {
        let federation = Federation::new();
        federation.enrol("cloud", &["--role", "cloud"]);
        federation.enrol("anna", &["--role", "operator"]);
        federation
    }

    const ROLLBACK: &str = r#"{"args":{"model":"bearing","version":3}}"#;

    #[test]
    fn a_signed_command_is_opened_by_the_node_it_is_for() {
        let federation = federation();
        let (key, ring) = (federation.path("keys/anna.pem"), federation.path("keyring"));
        let line = [
            "cmd",
            "sign",
            "rollback",
            "--to",
            "_/_/cloud",
            "--json",
            ROLLBACK,
            "--key",
            &key,
            "--keyring",
            &ring,
        ];
        let (exit, bytes) = gaisnet_bytes(&line);
        assert_eq!(exit.unwrap(), Exit::Ok);
        let (_, topic) = gaisnet(&["cmd", "topic", "rollback", "--to", "_/_/cloud"]);
        assert_eq!(topic, "gaisnet/v1/_/_/cloud/cmd/rollback\n");

        let (keyring, prefix) = (federation.keyring(), Prefix::new("gaisnet").unwrap());
        let me = Name::new("cloud").unwrap();
        let door =
            Door { federation: keyring.federation(), prefix: &prefix, me: &me, keyring: &keyring };
        let verified = open(door, Side::Down, topic.trim(), &bytes, now()).unwrap();
        assert_eq!(verified.sender().as_str(), "anna");
        let Body::Command(command) = verified.body() else { panic!("expected a command") };
        assert_eq!((command.name.as_str(), &command.json[..]), ("rollback", ROLLBACK.as_bytes()));
        let (_, again) = gaisnet_bytes(&line);
        let again = open(door, Side::Down, topic.trim(), &again, now()).unwrap();
        assert_ne!(verified.sequence(), again.sequence());
    }

    #[test]
    fn what_a_node_would_refuse_is_not_signed() {
        let federation = federation();
        let ring = federation.path("keyring");
        let sign = |name: &str, json: &str, key: &str| {
            let key = federation.path(key);
            let line = [
                "cmd",
                "sign",
                name,
                "--to",
                "_/_/cloud",
                "--json",
                json,
                "--key",
                &key,
                "--keyring",
                &ring,
            ];
            gaisnet(&line).0
        };
        for (name, json, key, part) in [
            ("fly", "{}", "keys/anna.pem", "no command is called"),
            ("pause", "{", "keys/anna.pem", "JSON"),
            ("rollback", "{}", "keys/anna.pem", "model"),
            ("rollback", ROLLBACK, "keys/cloud.pem", "no operator"),
            ("rollback", ROLLBACK, "root/root.pem", "not in the keyring"),
        ] {
            let error = sign(name, json, key).unwrap_err();
            assert!(error.is::<Misuse>() && error.to_string().contains(part), "{error:#}");
        }
    }
}
