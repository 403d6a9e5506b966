//! The file that says what was measured of members: TOML, or JSON with the same keys.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::Context;
use serde::Deserialize;

use super::super::exit::Misuse;
use crate::ids::NodeId;
use crate::settings::PrivacyProfile;

/// What was measured of one member.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    /// Its name.
    pub(super) name: NodeId,
    /// 10^9 floating-point operations a second in a matrix product.
    pub(super) gflops: f64,
    /// MiB of memory that are free.
    pub(super) free_memory_mib: f64,
    /// 1000 bits a second towards its edge; else `--uplink-kbps`.
    pub(super) uplink_kbps: Option<f64>,
    /// Examples that it has; else `--examples`.
    pub(super) examples: Option<u64>,
    /// Its privacy profile; else that of its settings.
    pub(super) profile: Option<PrivacyProfile>,
    /// Its edge; else the parent in its settings. Empty: none in its site.
    pub(super) edge: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Members {
    members: Vec<Entry>,
}

/// Reads the file; by its name it is JSON or TOML.
pub(super) fn read(path: &Path) -> anyhow::Result<Vec<Entry>> {
    let at = || format!("{}", path.display());
    let mut text = String::new();
    let mut file = File::open(path).with_context(at)?.take(MOST_BYTES + 1);
    file.read_to_string(&mut text).with_context(at)?;
    let is_json = path.extension().is_some_and(|extension| extension == "json");
    parse(&text, is_json).map_err(|problem| Misuse(format!("{}: {problem}", path.display())).into())
}

fn parse(text: &str, is_json: bool) -> Result<Vec<Entry>, String> {
    if text.len() as u64 > MOST_BYTES {
        return Err(format!("larger than {MOST_BYTES} bytes: this is no file of members"));
    }
    let members: Members = if is_json {
        serde_json::from_str(text).map_err(|error| error.to_string())?
    } else {
        toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())?
    };
    let mut names = BTreeSet::new();
    for Entry { name, gflops, free_memory_mib, uplink_kbps, .. } in &members.members {
        if !names.insert(name) {
            return Err(format!("{name} is there twice"));
        }
        let figures = [
            ("gflops", Some(*gflops)),
            ("free_memory_mib", Some(*free_memory_mib)),
            ("uplink_kbps", *uplink_kbps),
        ];
        for (key, figure) in figures {
            if let Some(bad) = figure.filter(|figure| !(*figure > 0.0 && figure.is_finite())) {
                return Err(format!("{key} of {name} is {bad}: a finite number above 0 is needed"));
            }
        }
    }
    Ok(members.members)
}

const MOST_BYTES: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "[[members]]\nname = \"press-7\"\ngflops = 2.5\nfree_memory_mib = 256\nuplink_kbps = 2000\n\
                        examples = 900\nprofile = \"strict\"\nedge = \"edge-north\"\n";

    #[test]
    fn toml_and_json_say_the_same() {
        let toml = parse(GOOD, false).unwrap();
        let json = r#"{"members":[{"name":"press-7","gflops":2.5,"free_memory_mib":256,"uplink_kbps":2000,
            "examples":900,"profile":"strict","edge":"edge-north"}]}"#;
        assert_eq!(parse(json, true).unwrap(), toml);
        assert_eq!(toml[0].profile, Some(PrivacyProfile::Strict));
        let least = "[[members]]\nname = \"a\"\ngflops = 1\nfree_memory_mib = 1";
        assert_eq!(parse(least, false).unwrap()[0].uplink_kbps, None);
    }

    #[test]
    fn what_can_not_be_is_told_by_key_and_member() {
        let with = |from: &str, to: &str| parse(&GOOD.replace(from, to), false).unwrap_err();
        for (from, to, told) in [
            ("gflops = 2.5", "gflops = nan", "gflops of press-7 is NaN"),
            ("gflops = 2.5", "gflops = 0", "gflops of press-7 is 0"),
            ("uplink_kbps = 2000", "uplink_kbps = -1", "uplink_kbps of press-7"),
            ("free_memory_mib = 256", "free_memory_mib = inf", "free_memory_mib of press-7"),
            ("gflops = 2.5\n", "", "missing field `gflops`"),
            ("examples = 900", "examples = -9", "examples"),
            ("examples", "exmples", "unknown field `exmples`"),
            ("strict", "lax", "unknown variant `lax`"),
            ("press-7", "press 7", "no valid name"),
        ] {
            let error = with(from, to);
            assert!(error.contains(told), "{error}");
        }
        assert!(parse(&GOOD.repeat(2), false).unwrap_err().contains("press-7 is there twice"));
        let long = " ".repeat(2 << 20);
        assert!(parse(&long, true).unwrap_err().contains("no file of members"));
        assert!(parse("", false).is_err());
    }
}
