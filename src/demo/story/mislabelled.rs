//! A set of recordings whose labels are wrong: what makes the story's bad version. Devices read from a recording's name
//! what it is of, so in a copy of the set each bears the name of one of another class; nothing else is changed, and no node
//! has a door for it but the setting `data.cache`.

use std::path::PathBuf;

use super::super::{DemoError, DemoOptions};
use crate::data::Cache;
use crate::data::bearings::PACKAGE;

/// Makes the copy in the demo's folder; gives the cache that it is in.
pub(super) fn copy(options: &DemoOptions) -> Result<PathBuf, DemoError> {
    let cache = options.folder.join("mislabelled");
    let copy = Cache::at(&cache);
    if !PACKAGE.is_cached(&copy) {
        PACKAGE.copy_renamed(&Cache::from_env()?, &copy, exchanged)?;
    }
    Ok(cache)
}

/// The name of a recording of another class on the same rig.
fn exchanged(file: &str) -> String {
    let (folder, name) = file.rsplit_once('/').unwrap_or(("", file));
    for (prefix, other) in PAIRS {
        if let Some(rest) = name.strip_prefix(prefix) {
            return format!("{folder}/{other}{rest}");
        }
    }
    file.to_owned()
}

/// The longer prefixes come first.
const PAIRS: [(&str, &str); 4] = [
    ("InnerRaceFault_vload_", "OuterRaceFault_vload_"),
    ("OuterRaceFault_vload_", "InnerRaceFault_vload_"),
    ("OuterRaceFault_", "baseline_"),
    ("baseline_", "OuterRaceFault_"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_exchanged_in_pairs_of_two_classes() {
        for (one, other) in [
            ("real_train/baseline_1.csv", "real_train/OuterRaceFault_1.csv"),
            (
                "real_train/InnerRaceFault_vload_3_metadata.json",
                "real_train/OuterRaceFault_vload_3_metadata.json",
            ),
        ] {
            assert_eq!((exchanged(one).as_str(), exchanged(other).as_str()), (other, one));
        }
        assert_eq!(exchanged("real_train/README.md"), "real_train/README.md");
    }
}
