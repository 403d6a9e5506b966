//! `gaisnet rollback`: a stopped node serves the version before again, without any network.

use std::io::Write;

use anyhow::Context;
use clap::Args;

use super::exit::Misuse;
use super::keys::NODE_KEY;
use super::trust_files::{now, read_keyring};
use super::{Exit, SettingsArgs};
use crate::ids::Version;
use crate::node::{AtRestError, roll_back_at_rest};
use crate::store::keyfile::read_signing_key;
use crate::store::{BlobCaps, SqliteStore, StoreError};

/// Examples under the options.
pub(super) const HELP: &str = "\
Examples:
  gaisnet rollback --config ./press-7/gaisnet.toml
  gaisnet rollback --config ./press-7/gaisnet.toml --to 12

For a node that is stopped. While it runs, an operator signs the same; it needs no restart then:
  gaisnet cmd sign rollback --to north/press/press-7 --json '{\"args\":{\"model\":\"bearing\"}}' \\
    --key keys/anna.pem --keyring keyring.bin | mosquitto_pub -h localhost -q 1 -s -t TOPIC

Newer versions wait from then on until an operator signs version.release.";

/// Arguments of `gaisnet rollback`.
#[derive(Debug, Args)]
pub(super) struct RollbackArgs {
    /// Version to go back to; default: the one before
    #[arg(long, value_name = "VERSION")]
    to: Option<Version>,
}

/// Runs `gaisnet rollback`.
pub(super) fn run(
    args: &RollbackArgs,
    settings: &SettingsArgs,
    out: &mut dyn Write,
) -> anyhow::Result<Exit> {
    if settings.config.is_none() {
        return Err(Misuse("give --config with the node's file".to_owned()).into());
    }
    let settings = settings.layers().load().into_settings()?;
    let path = &settings.paths.store;
    if !path.is_dir() {
        return Err(Misuse(format!("there is no store at {}", path.display())).into());
    }
    anyhow::ensure!(
        settings.split.cut.is_none(),
        "front and back of a split model are of one version: take split.cut out on the whole site first"
    );
    let mut store = match SqliteStore::open(path, BlobCaps::default()) {
        Ok(store) => store,
        Err(error @ StoreError::Locked { .. }) => {
            return Err(anyhow::Error::from(error).context(format!(
                "{} runs: stop it first, or pipe gaisnet cmd sign rollback into mosquitto_pub -s \
                 -t {}/cmd/rollback",
                settings.node.name,
                settings.node.branch(),
            )));
        }
        Err(error) => return Err(error.into()),
    };
    let keyring = read_keyring(&settings.paths.keyring)?;
    let key = read_signing_key(&settings.paths.keys.join(NODE_KEY), None)?;
    let (federation, me) = (keyring.federation(), &settings.node.name);
    let own = keyring.node(me).is_some_and(|entry| entry.key == *key.public());
    if !own {
        let problem = format!("the key in {} isn't that of {me}", settings.paths.keys.display());
        return Err(anyhow::Error::msg(problem).context("the ledger's head can't be signed"));
    }
    match roll_back_at_rest(&mut store, &key, federation, me, args.to, now()) {
        Ok(slots) => {
            let held = slots.held_since.unwrap_or_default();
            writeln!(
                out,
                "{me} serves version {} from its next start on, in the place of {held}; newer ones \
                 wait until an operator signs version.release",
                slots.served
            )?;
            Ok(Exit::Ok)
        }
        Err(AtRestError::Refused(refusal)) => {
            writeln!(out, "refused: {refusal}; {}", refusal.hint())?;
            Ok(Exit::Refused)
        }
        Err(error) => Err(error).context("nothing was changed"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Federation, gaisnet};
    use super::*;
    use crate::protocol::{Effect, Slots, SlotsConfig};
    use crate::store::{Batch, Store};

    /// A stopped cloud that has served versions 1 and 2; gives its settings file.
    fn stopped(federation: &Federation) -> String {
        federation.enrol("cloud", &["--role", "cloud"]);
        std::fs::copy(federation.path("keys/cloud.pem"), federation.path("keys/node.pem")).unwrap();
        let (path, file) = (federation.path("store"), federation.path("cloud.toml"));
        let mut store = SqliteStore::open(path.as_ref(), BlobCaps::default()).unwrap();
        let [base, untrained, first, second] =
            [0_u8, 1, 2, 3].map(|n| store.put_blob(&[n]).unwrap());
        let config = SlotsConfig { base, untrained, checks: false, follow: false };
        let mut slots = Slots::new(config, &[]).unwrap();
        let offers = [(1, first), (2, second)];
        let offers = offers.map(|(version, adapter)| Effect::Apply { version, adapter });
        for effect in slots.take(offers.into()) {
            if let Effect::Put(key, value) = effect {
                let state = vec![(key, Some(value))];
                store.commit(&[Batch { state, ..Batch::default() }]).unwrap();
            }
        }
        let keys = federation.path("keys");
        let keyring = federation.path("keyring");
        let text = format!(
            "[node]\nname = \"cloud\"\n[paths]\nkeys = {keys:?}\nkeyring = {keyring:?}\nstore = {path:?}\n"
        );
        std::fs::write(&file, text).unwrap();
        file
    }

    #[test]
    fn a_stopped_node_goes_back_once_and_the_ledger_verifies() {
        let federation = Federation::new();
        let file = stopped(&federation);
        let line = ["rollback", "--tier", "cloud", "--config", &file];
        let (exit, text) = gaisnet(&[&line[..], &["--to", "7"]].concat());
        assert_eq!(exit.unwrap(), Exit::Refused);
        assert!(text.contains("version 7 isn't on this node; it has 1, 2"), "{text}");
        let (exit, text) = gaisnet(&line);
        assert_eq!(exit.unwrap(), Exit::Ok);
        assert!(text.starts_with("cloud serves version 1 from its next start on"), "{text}");
        assert_eq!(gaisnet(&line).0.unwrap(), Exit::Refused);
        let (store, public) = (federation.path("store"), federation.path("keys/cloud.pub.pem"));
        let audit = ["audit", "verify", "--store", &store, "--key", &public];
        assert_eq!(gaisnet(&audit).0.unwrap(), Exit::Ok);
        let (_, text) = gaisnet(&["audit", "show", "--store", &store]);
        assert!(text.contains("rollback") && text.contains("from=2 reason=local to=1"), "{text}");
    }

    #[test]
    fn a_node_that_runs_or_was_never_there_is_told_what_to_do() {
        let federation = Federation::new();
        let file = stopped(&federation);
        let line = ["rollback", "--tier", "cloud", "--config", &file];
        let path = federation.path("store");
        let held = SqliteStore::open(path.as_ref(), BlobCaps::default()).unwrap();
        let error = format!("{:#}", gaisnet(&line).0.unwrap_err());
        assert!(error.contains("gaisnet/v1/_/_/cloud/cmd/rollback"), "{error}");
        drop(held);
        let store = format!("paths.store={}", federation.path("elsewhere"));
        let error = gaisnet(&[&line[..], &["--set", &store]].concat()).0.unwrap_err();
        assert!(error.to_string().contains("no store at"), "{error}");
        assert!(gaisnet(&["rollback"]).0.is_err());
    }
}
