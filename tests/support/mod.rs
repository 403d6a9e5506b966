//! What tests on real data share: the data if it is there, and a skip that counts if it isn't.

use std::fs::OpenOptions;
use std::io::Write;

use gaisnet::data::Cache;
use gaisnet::data::bearings::Bearings;

/// The `bearings` set from the cache; else `test` is skipped, which is printed and counted.
pub(crate) fn bearings_or_skip(test: &str) -> Option<Bearings> {
    let found = Bearings::cached(&Cache::from_env().unwrap());
    if found.is_none() {
        skip(test, "data set bearings is not in the cache (gaisnet data fetch bearings)");
    }
    found
}

/// Prints the skip, and adds a line to the file that `GAISNET_SKIP_LOG` names, for the count.
fn skip(test: &str, why: &str) {
    let line = format!("SKIPPED {test}: {why}");
    eprintln!("{line}");
    if let Some(log) = std::env::var_os("GAISNET_SKIP_LOG") {
        let mut log = OpenOptions::new().create(true).append(true).open(log).unwrap();
        writeln!(log, "{line}").unwrap();
    }
}
