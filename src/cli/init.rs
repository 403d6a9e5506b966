//! `gaisnet init`: a folder for a new node, with commented settings, its key and an enrolment
//! request. Nothing is overwritten.

use std::fs::DirBuilder;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use clap::builder::PossibleValuesParser;

use super::settings_args::TierArg;
use super::trust_files::write_new;
use super::{Exit, keys};
use crate::ids::Name;
use crate::settings::{Layers, TEMPLATES, Tier};

/// Arguments of `gaisnet init`.
#[derive(Debug, Args)]
pub(super) struct InitArgs {
    /// Tier of the node
    #[arg(value_enum, id = "kind", value_name = "TIER")]
    tier: TierArg,
    /// Folder to make; default: the node's name
    folder: Option<PathBuf>,
    /// Name of the node, unique in the federation
    #[arg(long)]
    name: Name,
    /// Its site; a cloud has none
    #[arg(long, required_if_eq_any([("kind", "device"), ("kind", "edge")]))]
    site: Option<Name>,
    /// The node above: a device's edge, an edge's cloud
    #[arg(long, required_if_eq_any([("kind", "device"), ("kind", "edge")]))]
    parent: Option<Name>,
    /// Start from a whole pilot instead of the tier's settings
    #[arg(long, value_parser = PossibleValuesParser::new(TEMPLATES.map(|(name, _)| name)))]
    template: Option<String>,
}

/// Runs `gaisnet init`.
pub(super) fn run(args: &InitArgs, out: &mut dyn Write) -> anyhow::Result<Exit> {
    let tier = Tier::from(args.tier);
    let folder = args.folder.clone().unwrap_or_else(|| PathBuf::from(args.name.as_str()));
    let text = settings_text(tier, args);
    let mut layers = Layers::new();
    layers.text(tier.as_str(), &text);
    let settings = layers.load().into_settings()?;

    private_folder(&folder)?;
    let file = folder.join("gaisnet.toml");
    write_new(&file, text.as_bytes(), 0o600)?;
    let keys_folder = folder.join("keys");
    private_folder(&keys_folder)?;
    let (key, request) = (keys_folder.join(keys::NODE_KEY), folder.join(REQUEST));
    let id = keys::key_and_request(&settings.node, &key, &request)?;
    writeln!(out, "wrote {}", file.display())?;
    writeln!(out, "key   {id} in {}", key.display())?;
    writeln!(out, "next:  where the root key is: gaisnet keys enrol {}", request.display())?;
    writeln!(out, "       here: gaisnet keyring accept KEYRING --config {}", file.display())?;
    writeln!(out, "       gaisnet doctor --config {}", file.display())?;
    Ok(Exit::Ok)
}

/// The tier's file, or the template, with this node's names and roles filled in.
fn settings_text(tier: Tier, args: &InitArgs) -> String {
    let quoted = |name: &Name| format!("\"{name}\"");
    let mut filled = vec![("name", quoted(&args.name))];
    let site = args.site.as_ref().map(quoted);
    let parent = args.parent.as_ref().map(quoted);
    filled.extend(parent.map(|parent| ("parent", parent)));
    let chosen = args.template.as_deref();
    let template = TEMPLATES.iter().find(|(name, _)| Some(*name) == chosen);
    let text = if let Some((_, text)) = template {
        let roles = match tier {
            Tier::Device => "[\"trainer\", \"inferencer\"]",
            Tier::Edge => "[\"relay\", \"inferencer\"]",
            Tier::Cloud => "[\"aggregator\", \"inferencer\"]",
        };
        filled.push(("roles", roles.to_owned()));
        filled.push(("site", site.unwrap_or_else(|| "\"_\"".to_owned())));
        text
    } else {
        filled.extend(site.map(|site| ("site", site)));
        tier.settings()
    };
    let mut out = String::new();
    let mut in_node = false;
    for line in text.lines() {
        if line.starts_with('[') {
            in_node = line == "[node]";
        }
        let value = filled.iter().find_map(|(key, value)| {
            let bare = line.trim_start_matches("# ");
            let named = in_node && bare.starts_with(&format!("{key} = "));
            named.then(|| format!("{key} = {value}"))
        });
        out.push_str(value.as_deref().unwrap_or(line));
        out.push('\n');
    }
    out
}

/// Makes the folder with mode 0700, or accepts one that is there and as private.
fn private_folder(folder: &Path) -> anyhow::Result<()> {
    if !folder.exists() {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        return made.with_context(|| format!("can't make {}", folder.display()));
    }
    let metadata = folder.symlink_metadata().with_context(|| folder.display().to_string())?;
    if !metadata.is_dir() {
        bail!("{} is there and is no folder: choose another", folder.display());
    }
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        bail!(
            "{} is open to others (mode {mode:04o}) and will hold keys: chmod 700 {}",
            folder.display(),
            folder.display()
        );
    }
    Ok(())
}

/// What the keepers of the root need in order to enrol this node.
const REQUEST: &str = "enrolment.json";

/// Examples for `--help`.
pub(super) const HELP: &str = "\
Examples:
  gaisnet init cloud --name cloud ./cloud
  gaisnet init edge --name edge-north --site north --parent cloud ./edge-north
  gaisnet init device --name press-7 --site north --parent edge-north ./press-7
  gaisnet init device --name press-7 --site north --parent edge-north --template vibration

The folder gets mode 0700, a commented gaisnet.toml, a key in keys/ and enrolment.json for
`gaisnet keys enrol`; a file that is there is never overwritten.";

#[cfg(test)]
mod tests {
    use super::super::tests::gaisnet;
    use super::super::trust_files::read_public_key;
    use super::*;
    use crate::trust::keyring::Enrolment;

    #[test]
    fn each_tier_gets_a_private_folder_with_settings_that_are_good() {
        let folder = tempfile::tempdir().unwrap();
        for (tier, more) in [
            ("cloud", &[][..]),
            ("edge", &["--site", "north", "--parent", "cloud"]),
            ("device", &["--site", "north", "--parent", "edge-north"]),
        ] {
            let home = folder.path().join("nodes").join(tier);
            let home_text = home.to_str().unwrap();
            let line = [&["init", tier, "--name", "n-1", home_text], more].concat();
            let (exit, text) = gaisnet(&line);
            assert_eq!(exit.unwrap(), Exit::Ok);
            assert!(text.contains("gaisnet doctor --config"), "{text}");
            let request = std::fs::read(home.join(REQUEST)).unwrap();
            let request: Enrolment = serde_json::from_slice(&request).unwrap();
            assert!(request.entry.roles.contains(&tier.parse().unwrap()));
            assert_eq!(
                request.entry.key,
                read_public_key(&home.join("keys/node.pub.pem")).unwrap()
            );
            let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
            let file = home.join("gaisnet.toml");
            assert_eq!((mode(&home), mode(&home.join("keys")), mode(&file)), (0o700, 0o700, 0o600));

            let mut layers = Layers::new();
            layers.file(&file);
            let settings = layers.load().into_settings().unwrap();
            assert_eq!(settings.node.name.as_str(), "n-1");
            assert_eq!(settings.node.parent.is_some(), tier != "cloud");
            assert!(gaisnet(&line).0.unwrap_err().to_string().contains("nothing is overwritten"));
        }
    }

    #[test]
    fn each_template_makes_the_nodes_of_its_pilot() {
        let folder = tempfile::tempdir().unwrap();
        for (template, _) in TEMPLATES {
            for (tier, more) in [
                (Tier::Cloud, &[][..]),
                (Tier::Edge, &["--site", "north", "--parent", "cloud"]),
                (Tier::Device, &["--site", "north", "--parent", "edge-north"]),
            ] {
                let home = folder.path().join(template).join(tier.as_str());
                let text = home.to_str().unwrap();
                let line = ["init", tier.as_str(), "--name", "n-1", "--template", template, text];
                assert_eq!(gaisnet(&[&line[..], more].concat()).0.unwrap(), Exit::Ok);
                let mut layers = Layers::new();
                layers.file(&home.join("gaisnet.toml"));
                let settings = layers.load().into_settings().unwrap();
                assert_eq!(settings.node.name.as_str(), "n-1");
                assert_eq!(settings.paths.keyring, home.join("keys/keyring"));
                assert_eq!(settings.node.parent.is_some(), tier != Tier::Cloud);
                assert_eq!(settings.node.roles, with_tier(tier).node.roles, "{template}");
            }
        }
    }

    fn with_tier(tier: Tier) -> crate::settings::Settings {
        let mut layers = Layers::new();
        layers.tier(tier);
        layers.set("node.name=n").set("node.site=_");
        if tier != Tier::Cloud {
            layers.set("node.parent=p");
        }
        layers.load().into_settings().unwrap()
    }

    #[test]
    fn an_open_folder_and_a_file_in_its_place_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let open = folder.path().join("open");
        std::fs::create_dir(&open).unwrap();
        std::fs::set_permissions(&open, PermissionsExt::from_mode(0o750)).unwrap();
        let init =
            |path: &Path| gaisnet(&["init", "cloud", "--name", "c", path.to_str().unwrap()]).0;
        assert!(init(&open).unwrap_err().to_string().contains("chmod 700"));
        std::fs::set_permissions(&open, PermissionsExt::from_mode(0o700)).unwrap();
        assert_eq!(init(&open).unwrap(), Exit::Ok);
        assert!(init(&open.join("gaisnet.toml")).unwrap_err().to_string().contains("no folder"));
    }
}
