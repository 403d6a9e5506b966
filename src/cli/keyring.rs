//! `gaisnet keyring`: start a federation's keyring, look at one, take a newer one over.

use std::io::Write;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand};

use super::trust_files::{
    now, path_or_setting, read_capped, read_keyring, read_root_keys, replace, settings_if_named,
    utc, write_keyring,
};
use super::{Exit, SettingsArgs};
use crate::ids::Name;
use crate::trust::keyring::{Keyring, KeyringError, RootRole, Standing};
use crate::trust::keyring_document::{
    DocumentError, MAX_DOCUMENT_BYTES, open_document, root_fingerprint,
};

/// Arguments of `gaisnet keyring`.
#[derive(Debug, Args)]
pub(super) struct KeyringArgs {
    #[command(subcommand)]
    command: KeyringCommand,
}

#[derive(Debug, Subcommand)]
enum KeyringCommand {
    /// Start a federation: version 1, with a root and nobody else
    #[command(after_help = NEW_HELP)]
    New {
        /// File to make
        file: PathBuf,
        /// Name of the federation
        #[arg(long)]
        federation: Name,
        /// Private root key; may be repeated
        #[arg(long, required = true)]
        root: Vec<PathBuf>,
        /// How many of the root keys must sign each version
        #[arg(long, default_value = "1")]
        threshold: NonZeroU32,
        /// Days that this version is good for
        #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u64).range(1..=3650))]
        days: u64,
    },
    /// Check a keyring's signatures and show who is in it
    #[command(after_help = SHOW_HELP)]
    Show {
        /// The keyring; default: paths.keyring
        file: Option<PathBuf>,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Take a newer keyring over, if it may follow the one that is there
    #[command(after_help = ACCEPT_HELP)]
    Accept {
        /// The newer keyring
        file: PathBuf,
        /// The keyring that is in use; default: paths.keyring
        #[arg(long)]
        keyring: Option<PathBuf>,
        /// Fingerprint of the root; asked for with the first keyring of a node
        #[arg(long)]
        fingerprint: Option<String>,
    },
}

/// Runs `gaisnet keyring`.
pub(super) fn run(
    args: &KeyringArgs,
    settings: &SettingsArgs,
    out: &mut dyn Write,
) -> anyhow::Result<Exit> {
    let named = settings_if_named(settings)?;
    let place = |given: Option<&PathBuf>, option: &str| {
        path_or_setting(given, named.as_ref(), |named| named.paths.keyring.clone(), option)
    };
    match &args.command {
        KeyringCommand::New { file, federation, root, threshold, days } => {
            if file.exists() {
                anyhow::bail!("{} is there; nothing is overwritten", file.display());
            }
            let keys = read_root_keys(root)?;
            let public = keys.iter().map(|key| *key.public()).collect();
            let role = RootRole { threshold: *threshold, keys: public };
            let at = now();
            let end = at.plus_ms(days.saturating_mul(86_400_000));
            let first = Keyring::first(federation.clone(), role, at, end)?;
            write_keyring(file, &first, &keys)?;
            writeln!(out, "wrote {}, version 1 of {federation}", file.display())?;
            writeln!(out, "root fingerprint  {}", root_fingerprint(first.root()))?;
            Ok(Exit::Ok)
        }
        KeyringCommand::Show { file, json } => {
            let keyring = read_keyring(&place(file.as_ref(), "the keyring's file")?)?;
            if *json {
                show_json(&keyring, out)?;
            } else {
                show(&keyring, out)?;
            }
            Ok(Exit::Ok)
        }
        KeyringCommand::Accept { file, keyring, fingerprint } => {
            accept(file, &place(keyring.as_ref(), "--keyring")?, fingerprint.as_deref(), out)
        }
    }
}

fn show_json(keyring: &Keyring, out: &mut dyn Write) -> anyhow::Result<()> {
    let mut shown = serde_json::to_value(keyring)?;
    if let Some(fields) = shown.as_object_mut() {
        let fingerprint = root_fingerprint(keyring.root()).to_string();
        fields.insert("root_fingerprint".into(), fingerprint.into());
        fields.insert("expired".into(), (keyring.standing(now()) == Standing::Expired).into());
    }
    writeln!(out, "{shown:#}")?;
    Ok(())
}

fn show(keyring: &Keyring, out: &mut dyn Write) -> anyhow::Result<()> {
    let RootRole { threshold, keys } = keyring.root();
    let expired = match keyring.standing(now()) {
        Standing::Valid => "",
        Standing::Expired => " (EXPIRED: stops every change, make a new version)",
    };
    writeln!(out, "federation        {}", keyring.federation())?;
    writeln!(out, "version           {}", keyring.version())?;
    writeln!(out, "issued            {} UTC", utc(keyring.issued_at()))?;
    writeln!(out, "expires           {} UTC{expired}", utc(keyring.expires_at()))?;
    writeln!(out, "root              {threshold} of {} keys", keys.len())?;
    writeln!(out, "root fingerprint  {}", root_fingerprint(keyring.root()))?;
    writeln!(out, "revoked keys      {}", keyring.revoked().len())?;
    let width = keyring.nodes().map(|entry| entry.node.as_str().len()).max().unwrap_or(0).max(4);
    writeln!(out, "\n{:width$}  key id            roles             place, parent", "node")?;
    for entry in keyring.nodes() {
        let roles: Vec<&str> = entry.roles.iter().map(|role| role.as_str()).collect();
        let parent = entry.parent.as_ref().map(|parent| format!(" under {parent}"));
        let owner = keyring.stands_by(&entry.node);
        let parent = parent.or(owner.map(|owner| format!(" stands by for {owner}")));
        let second = keyring.second_edge_of(&entry.node).map(|edge| &edge.node);
        let second = second.map(|edge| format!(", or {edge} while that is away"));
        writeln!(
            out,
            "{:width$}  {}  {:16}  {}/{}{}{}",
            entry.node.as_str(),
            entry.key.key_id(),
            roles.join(","),
            entry.site,
            entry.line,
            parent.unwrap_or_default(),
            second.unwrap_or_default(),
        )?;
    }
    Ok(())
}

fn accept(
    file: &Path,
    place: &Path,
    fingerprint: Option<&str>,
    out: &mut dyn Write,
) -> anyhow::Result<Exit> {
    let bytes = read_capped(file, MAX_DOCUMENT_BYTES)?;
    let trusted = if place.exists() { Some(read_keyring(place)?) } else { None };
    let opened = open_document(&bytes, trusted.as_ref());
    if let (Err(DocumentError::Keyring(KeyringError::NotNewer { have, got })), Some(trusted)) =
        (&opened, &trusted)
        && have == got
        && open_document(&bytes, None).as_ref() == Ok(trusted)
    {
        writeln!(out, "{} is version {have} already", place.display())?;
        return Ok(Exit::Ok);
    }
    let next = opened.with_context(|| file.display().to_string())?;
    let actual = root_fingerprint(next.root()).to_string();
    match fingerprint {
        Some(expected) if expected != actual => {
            writeln!(out, "REFUSED: the root's fingerprint is {actual}, not {expected}")?;
            return Ok(Exit::Refused);
        }
        None if trusted.is_none() => {
            writeln!(out, "root fingerprint  {actual}")?;
            writeln!(
                out,
                "This would be the first keyring here. Compare the fingerprint with the one that \
                 the keepers of\nthe root tell you, then run it again with --fingerprint {actual}"
            )?;
            return Ok(Exit::Refused);
        }
        _ => {}
    }
    replace(place, &bytes)?;
    writeln!(out, "{} is version {} of {}", place.display(), next.version(), next.federation())?;
    Ok(Exit::Ok)
}

const NEW_HELP: &str = "\
Examples:
  gaisnet keys new root/root.pem
  gaisnet keyring new keyring --federation pilot --root root/root.pem

The root key belongs on an offline machine: it signs each change of the keyring, nothing else.";

const SHOW_HELP: &str = "\
Examples:
  gaisnet keyring show keyring
  gaisnet keyring show --config gaisnet.toml --json | jq '.nodes[].node'";

const ACCEPT_HELP: &str = "\
Examples:
  gaisnet keyring accept /media/usb/keyring --config gaisnet.toml
  gaisnet keyring accept new-keyring --keyring keys/keyring --fingerprint 5e1f...

A node's first keyring is taken only with the fingerprint of its root, which a person has compared.
Later ones must be signed by the root before. Ends with 3 when it may not follow.";

#[cfg(test)]
mod tests {
    use super::super::tests::{Federation, gaisnet};
    use super::*;

    #[test]
    fn a_keyring_is_shown_for_people_and_programs() {
        let federation = Federation::new();
        federation.enrol("cloud", &["--role", "cloud"]);
        let file = federation.path("keyring");
        let (exit, text) = gaisnet(&["keyring", "show", &file]);
        assert_eq!(exit.unwrap(), Exit::Ok);
        for part in
            ["version           2", "root              1 of 1 keys", "cloud             _/_"]
        {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
        let (exit, text) = gaisnet(&["keyring", "show", &file, "--json"]);
        assert_eq!(exit.unwrap(), Exit::Ok);
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&json["version"], &json["expired"]), (&2.into(), &false.into()));
        assert_eq!(json["nodes"][0]["node"], "cloud");
    }

    #[test]
    fn the_first_keyring_needs_its_fingerprint_and_later_ones_the_root_before() {
        let federation = Federation::new();
        let (new, place) = (federation.path("keyring"), federation.path("in-use"));
        let accept = |more: &[&str]| {
            gaisnet(
                &[&["keyring", "accept", new.as_str(), "--keyring", place.as_str()], more].concat(),
            )
        };
        let (exit, text) = accept(&[]);
        assert_eq!(exit.unwrap(), Exit::Refused);
        assert!(!Path::new(&place).exists());
        let fingerprint = text.rsplit(' ').next().unwrap().trim().to_owned();
        assert_eq!(accept(&["--fingerprint", "00"]).0.unwrap(), Exit::Refused);
        assert_eq!(accept(&["--fingerprint", &fingerprint]).0.unwrap(), Exit::Ok);
        // The same again is nothing to complain about.
        let (exit, text) = accept(&[]);
        assert_eq!(exit.unwrap(), Exit::Ok);
        assert!(text.contains("version 1 already"), "{text}");

        let old = std::fs::read(&new).unwrap();
        federation.enrol("cloud", &["--role", "cloud"]);
        assert_eq!(accept(&[]).0.unwrap(), Exit::Ok);
        assert_eq!(read_keyring(Path::new(&place)).unwrap().version(), 2);
        std::fs::write(&new, old).unwrap();
        assert!(accept(&[]).0.unwrap_err().is::<DocumentError>());

        let stranger = Federation::new();
        stranger.enrol("cloud", &["--role", "cloud"]);
        stranger.enrol("anna", &["--role", "operator"]);
        std::fs::copy(stranger.path("keyring"), &new).unwrap();
        assert!(accept(&[]).0.unwrap_err().is::<DocumentError>());
        assert_eq!(read_keyring(Path::new(&place)).unwrap().version(), 2);
    }

    #[test]
    fn a_threshold_is_met_with_several_root_keys() {
        let federation = Federation::new();
        let (second, file) = (federation.path("root/second.pem"), federation.path("two-of-two"));
        gaisnet(&["keys", "new", &second]).0.unwrap();
        let root = federation.path("root/root.pem");
        let base = ["keyring", "new", &file, "--federation", "pilot", "--threshold", "2"];
        let few = gaisnet(&[&base[..], &["--root", &root]].concat()).0.unwrap_err();
        assert!(few.is::<KeyringError>(), "{few:#}");
        let both = [&base[..], &["--root", &root, "--root", &second]].concat();
        assert_eq!(gaisnet(&both).0.unwrap(), Exit::Ok);
        assert!(gaisnet(&both).0.unwrap_err().to_string().contains("nothing is overwritten"));
    }
}
