//! `gaisnet audit`: read a node's ledger, derive all of it again, prove an entry, export it.
//!
//! The store is opened for reading alone, also while its node runs. Whose ledger it is the
//! checkpoints say; which key may have signed them comes from elsewhere: the keyring, or key files
//! that an auditor trusts.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::exit::Misuse;
use super::keys::NODE_KEY;
use super::trust_files::{
    path_or_setting, public_path, read_keyring, read_public_key, settings_if_named, utc, write_new,
};
use super::{Exit, SettingsArgs};
use crate::ids::Name;
use crate::ledger::tree::leaf_hash;
use crate::ledger::{
    Entry, InclusionProof, LedgerError, Origin, Report, SignedCheckpoint, tiles, verify,
};
use crate::settings::Settings;
use crate::store::{SqliteStore, Store, StoreError};
use crate::trust::keyring::Keyring;
use crate::trust::keys::VerifyingKey;

/// Arguments of `gaisnet audit`.
#[derive(Debug, Args)]
pub(super) struct AuditArgs {
    #[command(subcommand)]
    command: AuditCommand,
}

#[derive(Debug, Subcommand)]
enum AuditCommand {
    /// Print the entries
    #[command(after_help = SHOW_HELP)]
    Show {
        #[command(flatten)]
        store: StoreArgs,
        /// Only this kind of event (accept, refusal, decline, ...); may be repeated
        #[arg(long)]
        event: Vec<String>,
        /// Only the last N of them
        #[arg(long, value_name = "N")]
        tail: Option<usize>,
        /// One JSON object a line, with the entry's index
        #[arg(long)]
        json: bool,
    },
    /// Derive everything again: entries, roots, every checkpoint and its signature
    #[command(after_help = VERIFY_HELP)]
    Verify {
        #[command(flatten)]
        store: StoreArgs,
        /// Every node's store anywhere under this folder
        #[arg(long, value_name = "DIR", conflicts_with_all = ["store", "tiles"])]
        all: Option<PathBuf>,
        /// A folder that `gaisnet audit export` made, in place of a store
        #[arg(long, value_name = "DIR", conflicts_with = "store")]
        tiles: Option<PathBuf>,
        #[command(flatten)]
        trust: TrustArgs,
        /// One JSON array, an object a ledger
        #[arg(long)]
        json: bool,
    },
    /// Print the proof that an entry is in the ledger (C2SP tlog-proof)
    #[command(after_help = PROVE_HELP)]
    Prove {
        /// Index of the entry, from 0
        index: u64,
        #[command(flatten)]
        store: StoreArgs,
        /// Write the entry's exact bytes, which the proof is about, to this file
        #[arg(long, value_name = "FILE")]
        leaf: Option<PathBuf>,
    },
    /// Write the ledger as files for any static server (C2SP tlog-tiles)
    #[command(after_help = EXPORT_HELP)]
    Export {
        /// Folder to make
        folder: PathBuf,
        #[command(flatten)]
        store: StoreArgs,
    },
}

#[derive(Debug, Args)]
struct StoreArgs {
    /// Folder of the node's store; default: paths.store
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
}

/// Which keys may have signed. Without any: the node's own, beside its store.
#[derive(Debug, Args)]
struct TrustArgs {
    /// Take the node's key from this keyring
    #[arg(long)]
    keyring: Option<PathBuf>,
    /// A public key of the node, also an earlier one; may be repeated
    #[arg(long)]
    key: Vec<PathBuf>,
}

/// Runs `gaisnet audit`.
pub(super) fn run(
    args: &AuditArgs,
    settings: &SettingsArgs,
    out: &mut dyn Write,
) -> anyhow::Result<Exit> {
    let named = settings_if_named(settings)?;
    let folder = |args: &StoreArgs| {
        let setting = |named: &Settings| named.paths.store.clone();
        path_or_setting(args.store.as_ref(), named.as_ref(), setting, "--store DIR")
    };
    match &args.command {
        AuditCommand::Show { store, event, tail, json } => {
            let ledger = Ledger::read(&folder(store)?)?;
            show(&ledger.entries, event, *tail, *json, out)?;
            Ok(Exit::Ok)
        }
        AuditCommand::Verify { store, all, tiles, trust, json } => {
            let trust = Trust::read(trust, named.as_ref())?;
            let findings = match (all, tiles) {
                (Some(all), _) => stores_under(all)?
                    .iter()
                    .map(|store| Finding { place: store.clone(), result: audit(store, &trust) })
                    .collect(),
                (None, Some(tiles)) => {
                    vec![Finding { place: tiles.clone(), result: audit_export(tiles, &trust) }]
                }
                (None, None) => {
                    let place = folder(store)?;
                    let result = audit(&place, &trust);
                    vec![Finding { place, result }]
                }
            };
            conclude(&findings, *json, out)
        }
        AuditCommand::Prove { index, store, leaf } => {
            let ledger = Ledger::read(&folder(store)?)?;
            let proof = ledger.prove(*index)?;
            if let (Some(file), Some(bytes)) = (leaf, at(&ledger.entries, *index)) {
                write_new(file, bytes, 0o644)?;
            }
            out.write_all(proof.to_text().as_bytes())?;
            Ok(Exit::Ok)
        }
        AuditCommand::Export { folder: target, store } => {
            let ledger = Ledger::read(&folder(store)?)?;
            let files = tiles::export(&ledger.entries, &ledger.checkpoints)?;
            export(&files, target)?;
            writeln!(out, "wrote {} files to {}", files.len(), target.display())?;
            Ok(Exit::Ok)
        }
    }
}

/// A store's ledger as its bytes.
struct Ledger {
    entries: Vec<Vec<u8>>,
    checkpoints: Vec<Vec<u8>>,
}

impl Ledger {
    fn read(folder: &Path) -> Result<Self, StoreError> {
        let store = SqliteStore::open_read_only(folder)?;
        // The node may append meanwhile: first the checkpoints, then the entries that they cover.
        let checkpoints = store.checkpoints()?;
        let entries = store.entries(0, store.num_entries()?)?;
        Ok(Self { entries, checkpoints })
    }

    fn prove(&self, index: u64) -> Result<InclusionProof, LedgerError> {
        let size = u64::try_from(self.entries.len()).unwrap_or(u64::MAX);
        let missing = LedgerError::OutOfRange { index, size };
        let last = SignedCheckpoint::parse(self.checkpoints.last().ok_or(missing)?)?;
        let leaves: Vec<_> = self.entries.iter().map(|entry| leaf_hash(entry)).collect();
        InclusionProof::new(&leaves, index, last)
    }

    /// Whose it says it is.
    fn claims(&self) -> anyhow::Result<Option<Origin>> {
        let Some(note) = self.checkpoints.last() else { return Ok(None) };
        Ok(Some(SignedCheckpoint::parse(note)?.checkpoint().origin.clone()))
    }
}

/// What the auditor believes.
struct Trust {
    keyring: Option<Keyring>,
    keys: Vec<VerifyingKey>,
}

impl Trust {
    /// The arguments; where there are none, the keyring that the settings name, if it is there.
    fn read(args: &TrustArgs, named: Option<&Settings>) -> anyhow::Result<Self> {
        let keys = args.key.iter().map(|path| read_public_key(path));
        let keys = keys.collect::<anyhow::Result<Vec<_>>>()?;
        let setting = named.map(|named| named.paths.keyring.clone()).filter(|path| path.exists());
        let path = args.keyring.clone().or(setting.filter(|_| keys.is_empty()));
        let keyring = path.map(|path| read_keyring(&path)).transpose()?;
        Ok(Self { keyring, keys })
    }

    /// Keys that may have signed for `origin`; the node's own file only where nothing was given.
    fn keys_of(&self, origin: &Origin, place: &Path) -> anyhow::Result<Vec<VerifyingKey>> {
        let mut keys = self.keys.clone();
        if let Some(keyring) = &self.keyring {
            if *keyring.federation() != origin.federation {
                let expected = keyring.federation().to_string();
                let actual = origin.federation.to_string();
                return Err(LedgerError::WrongOrigin { expected, actual }.into());
            }
            keys.extend(keyring.node(&origin.node).map(|entry| entry.key));
        }
        if keys.is_empty() && self.keyring.is_none() {
            let beside = place.with_file_name("keys").join(NODE_KEY);
            let beside = public_path(&beside);
            if beside.exists() {
                keys.push(read_public_key(&beside)?);
            }
        }
        if keys.is_empty() {
            let why = format!("no key of {} is known: give --keyring or --key", origin.node);
            return Err(Misuse(why).into());
        }
        Ok(keys)
    }
}

/// What an audit of one place found.
struct Finding {
    place: PathBuf,
    result: anyhow::Result<(Option<Origin>, Report)>,
}

fn audit(place: &Path, trust: &Trust) -> anyhow::Result<(Option<Origin>, Report)> {
    let ledger = Ledger::read(place)?;
    let Some(origin) = ledger.claims()? else {
        // Nobody signed anything yet: only the entries' form can be judged, by the name in them.
        let first = ledger.entries.first().map(|bytes| Entry::parse(bytes)).transpose();
        let index = 0;
        let first = first.map_err(|what| LedgerError::BadEntry { index, what })?;
        let node = first.map(|entry| entry.node);
        let nobody = || Name::new("_").context("the empty ledger's name");
        let origin = Origin { federation: nobody()?, node: node.map_or_else(nobody, Ok)? };
        let report = verify(&origin, &[], &ledger.entries, &ledger.checkpoints)?;
        return Ok((None, report));
    };
    let keys = trust.keys_of(&origin, place)?;
    let report = verify(&origin, &keys, &ledger.entries, &ledger.checkpoints)?;
    Ok((Some(origin), report))
}

fn audit_export(place: &Path, trust: &Trust) -> anyhow::Result<(Option<Origin>, Report)> {
    let mut files = BTreeMap::new();
    read_tree(place, "", &mut files)?;
    let note = files.get("checkpoint").context("the folder has no checkpoint")?;
    let origin = SignedCheckpoint::parse(note)?.checkpoint().origin.clone();
    let keys = trust.keys_of(&origin, place)?;
    let report = tiles::verify_export(&files, &origin, &keys)?;
    Ok((Some(origin), report))
}

/// Folders below `root` that hold a node's store, in order.
fn stores_under(root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let (mut found, mut open) = (Vec::new(), vec![root.to_owned()]);
    while let Some(folder) = open.pop() {
        let listing = folder.read_dir().with_context(|| folder.display().to_string())?;
        for item in listing {
            let item = item?;
            // Links are not followed: they could lead in a circle.
            if item.file_type()?.is_dir() {
                open.push(item.path());
            } else if item.file_name() == SqliteStore::FILE_NAME {
                found.push(folder.clone());
            }
        }
    }
    if found.is_empty() {
        bail!("no store ({}) anywhere under {}", SqliteStore::FILE_NAME, root.display());
    }
    found.sort();
    Ok(found)
}

/// Reads a folder's files by their path with `/`.
fn read_tree(
    folder: &Path,
    prefix: &str,
    files: &mut BTreeMap<String, Vec<u8>>,
) -> anyhow::Result<()> {
    for item in folder.read_dir().with_context(|| folder.display().to_string())? {
        let item = item?;
        let name = format!("{prefix}{}", item.file_name().to_string_lossy());
        let kind = item.file_type()?;
        if kind.is_dir() {
            read_tree(&item.path(), &format!("{name}/"), files)?;
        } else if kind.is_file() {
            let bytes = std::fs::read(item.path()).with_context(|| name.clone())?;
            files.insert(name, bytes);
        }
    }
    Ok(())
}

fn export(files: &[tiles::File], target: &Path) -> anyhow::Result<()> {
    if target.read_dir().is_ok_and(|mut found| found.next().is_some()) {
        bail!("{} isn't empty; nothing is overwritten", target.display());
    }
    for (name, bytes) in files {
        let path = target.join(name);
        let folder = path.parent().unwrap_or(target);
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        write_new(&path, bytes, 0o644)?;
    }
    Ok(())
}

fn show(
    entries: &[Vec<u8>],
    events: &[String],
    tail: Option<usize>,
    json: bool,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    for (bytes, index) in entries.iter().zip(0_u64..) {
        let entry = Entry::parse(bytes).map_err(|what| LedgerError::BadEntry { index, what })?;
        if events.is_empty() || events.iter().any(|wanted| wanted == entry.event.name()) {
            rows.push((index, entry));
        }
    }
    let skipped = tail.map_or(0, |tail| rows.len().saturating_sub(tail));
    for (index, entry) in rows.into_iter().skip(skipped) {
        if json {
            writeln!(out, "{}", json!({ "index": index, "entry": entry }))?;
        } else {
            let (at, event) = (utc(entry.at), entry.event.name());
            writeln!(out, "{index:>6}  {at}  {event:16}  {}", details(&entry)?)?;
        }
    }
    Ok(())
}

/// The event's fields as `key=value`, long digests shortened.
fn details(entry: &Entry) -> anyhow::Result<String> {
    let event = serde_json::to_value(&entry.event)?;
    let fields = event.get(entry.event.name()).and_then(Value::as_object);
    let shown = fields.into_iter().flatten().map(|(key, value)| {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let is_digest = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let text = if is_digest { text.chars().take(12).collect() } else { text };
        format!("{key}={text}")
    });
    Ok(shown.collect::<Vec<_>>().join(" "))
}

fn conclude(findings: &[Finding], json: bool, out: &mut dyn Write) -> anyhow::Result<Exit> {
    let mut worst = Exit::Ok;
    let mut objects = Vec::new();
    for Finding { place, result } in findings {
        let place = place.display().to_string();
        match result {
            Ok((origin, report)) => {
                let origin = origin.as_ref().map(ToString::to_string);
                if json {
                    objects.push(json!({
                        "store": place, "origin": origin, "verified": true, "report": report,
                    }));
                } else {
                    let who = origin.as_deref().unwrap_or("(not signed yet)");
                    let (size, covered) = (report.head.size, report.signed_entries);
                    let checkpoints = report.checkpoints;
                    writeln!(
                        out,
                        "ok       {who}: {size} entries, {covered} of them signed, {checkpoints} checkpoints ({place})"
                    )?;
                }
            }
            Err(error) => {
                let exit = verdict(error);
                if worst != Exit::Refused {
                    worst = exit;
                }
                let word = if exit == Exit::Refused { "DAMAGED" } else { "unread" };
                if json {
                    objects.push(json!({
                        "store": place, "verified": false, "error": format!("{error:#}"),
                    }));
                } else {
                    writeln!(out, "{word:7}  {error:#} ({place})")?;
                }
            }
        }
    }
    if json {
        writeln!(out, "{:#}", Value::from(objects))?;
    }
    Ok(worst)
}

/// What can't be read isn't damaged, and what can't be judged isn't either.
fn verdict(error: &anyhow::Error) -> Exit {
    let corrupt = matches!(error.downcast_ref::<StoreError>(), Some(StoreError::Corrupt { .. }));
    if error.is::<LedgerError>() || corrupt {
        Exit::Refused
    } else if error.is::<Misuse>() {
        Exit::Usage
    } else {
        Exit::Failed
    }
}

fn at(entries: &[Vec<u8>], index: u64) -> Option<&[u8]> {
    entries.get(usize::try_from(index).ok()?).map(Vec::as_slice)
}

const SHOW_HELP: &str = "\
Examples:
  gaisnet audit show --config gaisnet.toml --tail 20
  gaisnet audit show --store edge-north/store --event refusal --event equivocation
  gaisnet audit show --store edge-north/store --json | jq 'select(.entry.event.accept)'";

const VERIFY_HELP: &str = "\
Examples:
  gaisnet audit verify --config gaisnet.toml
  gaisnet audit verify --all demo --keyring demo/keyring
  gaisnet audit verify --tiles export --key node.pub.pem

Ends with 3 when something was damaged and names the first entry. Without --keyring and --key the
node's own key in ../keys beside its store is used: that finds damage, not a forger who has the key.";

const PROVE_HELP: &str = "\
Example:
  gaisnet audit prove 17 --store edge-north/store --leaf entry-17.json > entry-17.tlog-proof";

const EXPORT_HELP: &str = "\
Example:
  gaisnet audit export ./export --store edge-north/store";

#[cfg(test)]
mod tests {
    use super::super::tests::gaisnet;
    use super::*;
    use crate::ids::Digest;
    use crate::ledger::log::Replay;
    use crate::ledger::{Event, Word};
    use crate::store::{Batch, BlobCaps};
    use crate::time::Wall;
    use crate::trust::keys::SigningKey;

    fn key() -> SigningKey {
        SigningKey::generate(&[7; 32])
    }

    /// `{folder}/edge/{store,keys}` with five entries, four of them signed; `change` may forge.
    fn node_with(folder: &Path, change: impl Fn(usize, Vec<u8>) -> Vec<u8>) -> String {
        let home = folder.join("edge");
        std::fs::create_dir_all(home.join("keys")).unwrap();
        std::fs::write(home.join("keys/node.pub.pem"), key().public().to_pem()).unwrap();
        let name = |text: &str| Name::new(text).unwrap();
        let origin = Origin { federation: name("pilot"), node: name("edge") };
        let mut log = Replay::new(origin, &[]).unwrap().finish().unwrap();
        let mut store = SqliteStore::open(&home.join("store"), BlobCaps::default()).unwrap();
        for n in 0..5_u8 {
            let event = match n {
                3 => Event::Refusal {
                    message: Digest([3; 32]),
                    reason: Word::new("bad_signature"),
                    sender: None,
                },
                _ => Event::ConfigChange { config: Digest([n; 32]) },
            };
            let bytes = log.append(Wall(1_000 * u64::from(n)), event);
            let checkpoint =
                [1, 3].contains(&n).then(|| log.checkpoint(&key()).to_text().into_bytes());
            let entries = vec![change(n.into(), bytes)];
            store.commit(&[Batch { entries, checkpoint, ..Batch::default() }]).unwrap();
        }
        home.join("store").to_str().unwrap().to_owned()
    }

    fn node(folder: &Path) -> String {
        node_with(folder, |_, bytes| bytes)
    }

    #[test]
    fn entries_are_shown_by_kind_and_from_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let store = node(folder.path());
        let (exit, text) = gaisnet(&["audit", "show", "--store", &store, "--event", "refusal"]);
        assert_eq!(exit.unwrap(), Exit::Ok);
        let expected = "     3  1970-01-01 00:00:03.000  refusal           \
                        message=030303030303 reason=bad_signature\n";
        assert_eq!(text, expected);
        let (_, text) = gaisnet(&["audit", "show", "--store", &store, "--tail", "2", "--json"]);
        let rows: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(rows.iter().map(|row| row["index"].clone()).collect::<Vec<_>>(), [3, 4]);
        assert_eq!(rows[0]["entry"]["event"]["refusal"]["reason"], "bad_signature");
    }

    #[test]
    fn a_sound_ledger_is_verified_alone_with_all_others_and_as_an_export() {
        let folder = tempfile::tempdir().unwrap();
        let store = node(folder.path());
        let (exit, text) = gaisnet(&["audit", "verify", "--store", &store]);
        assert_eq!(exit.unwrap(), Exit::Ok, "{text}");
        let expected = "gaisnet/pilot/edge: 5 entries, 4 of them signed, 2 checkpoints";
        assert!(text.contains(expected), "{text}");
        let all = folder.path().to_str().unwrap();
        let (exit, text) = gaisnet(&["audit", "verify", "--all", all, "--json"]);
        assert_eq!(exit.unwrap(), Exit::Ok);
        let json: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (&json[0]["verified"], &json[0]["report"]["head"]["size"]),
            (&true.into(), &5.into())
        );

        let export = folder.path().join("export");
        let export = export.to_str().unwrap();
        gaisnet(&["audit", "export", export, "--store", &store]).0.unwrap();
        assert!(gaisnet(&["audit", "export", export, "--store", &store]).0.is_err());
        let public = folder.path().join("edge/keys/node.pub.pem");
        let line = ["audit", "verify", "--tiles", export, "--key", public.to_str().unwrap()];
        assert_eq!(gaisnet(&line).0.unwrap(), Exit::Ok);
        let bundle = folder.path().join("export/tile/entries/000.p/4");
        let mut bytes = std::fs::read(&bundle).unwrap();
        let last = bytes.len() - 2;
        bytes[last] ^= 1;
        std::fs::write(&bundle, bytes).unwrap();
        assert_eq!(gaisnet(&line).0.unwrap(), Exit::Refused);
    }

    #[test]
    fn a_changed_entry_is_named_and_ends_with_3() {
        let folder = tempfile::tempdir().unwrap();
        let store = node_with(folder.path(), |n, bytes| match n {
            2 => String::from_utf8(bytes).unwrap().replace("0202", "0203").into_bytes(),
            _ => bytes,
        });
        let (exit, text) = gaisnet(&["audit", "verify", "--store", &store]);
        assert_eq!(exit.unwrap(), Exit::Refused);
        assert!(text.starts_with("DAMAGED  ledger entries 2..4 were changed"), "{text}");
        let store = node_with(&folder.path().join("b"), |n, bytes| match n {
            1 => b"{}".to_vec(),
            _ => bytes,
        });
        let (exit, text) = gaisnet(&["audit", "verify", "--store", &store]);
        assert_eq!(exit.unwrap(), Exit::Refused);
        assert!(text.contains("ledger entry 1 is damaged"), "{text}");
    }

    #[test]
    fn a_ledger_signed_by_another_key_is_refused_and_one_without_a_known_key_is_not_judged() {
        let folder = tempfile::tempdir().unwrap();
        let store = node(folder.path());
        let other = folder.path().join("other.pub.pem");
        std::fs::write(&other, SigningKey::generate(&[8; 32]).public().to_pem()).unwrap();
        let key = other.to_str().unwrap();
        let (exit, text) = gaisnet(&["audit", "verify", "--store", &store, "--key", key]);
        assert_eq!(exit.unwrap(), Exit::Refused);
        assert!(text.contains("not signed by"), "{text}");
        std::fs::remove_file(folder.path().join("edge/keys/node.pub.pem")).unwrap();
        let (exit, text) = gaisnet(&["audit", "verify", "--store", &store]);
        assert_eq!(exit.unwrap(), Exit::Usage);
        assert!(text.contains("give --keyring or --key"), "{text}");
        let nowhere = folder.path().join("nowhere");
        let (exit, _) = gaisnet(&["audit", "verify", "--store", nowhere.to_str().unwrap()]);
        assert_eq!(exit.unwrap(), Exit::Failed);
    }

    #[test]
    fn an_entry_is_proven_to_whoever_has_the_key() {
        let folder = tempfile::tempdir().unwrap();
        let store = node(folder.path());
        let leaf = folder.path().join("leaf");
        let line = ["audit", "prove", "3", "--store", &store, "--leaf", leaf.to_str().unwrap()];
        let (exit, text) = gaisnet(&line);
        assert_eq!(exit.unwrap(), Exit::Ok);
        let proof = InclusionProof::parse(text.as_bytes()).unwrap();
        let name = |text: &str| Name::new(text).unwrap();
        let origin = Origin { federation: name("pilot"), node: name("edge") };
        let leaf = std::fs::read(leaf).unwrap();
        let entry = proof.verify(&origin, &[*key().public()], &leaf).unwrap();
        assert_eq!((proof.index(), entry.event.name()), (3, "refusal"));
        // Not covered by a checkpoint yet, and not there at all.
        for index in ["4", "99"] {
            let error = gaisnet(&["audit", "prove", index, "--store", &store]).0.unwrap_err();
            assert!(error.is::<LedgerError>(), "{error:#}");
        }
    }
}
