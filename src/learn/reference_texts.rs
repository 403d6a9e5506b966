//! Reference texts: written once, by a language model say, and kept in a file.
//!
//! Physics can be computed anew on each node; what a language model writes can't, since two machines needn't
//! round alike. So the bytes are made once, and it is their SHA-256 that the nodes of a federation
//! compare. The file says all that a node has to know, a line each:
//! ```text
//!   gaisnet reference texts 1
//!   name excavator-orders-1          what rounds call it
//!   seed 1                           of what was drawn
//!   written_by smollm2-135m 0f1e..   whatever wrote it; nothing is decided by it
//!   labels in_turn                   text i is of class i mod C; or: none
//!   class Bucket                     C of them, in the order of the federation
//!   text bucket tooth missing        n of them
//! ```
//! There is one form: what is written back has the same bytes.

use std::fmt::Write;

use super::{LearnError, MAX_REFERENCE};
use crate::ids::{Digest, Name};

/// A set of texts that nobody owns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReferenceTexts {
    /// Name and version.
    pub name: Name,
    /// Seed of what was drawn.
    pub seed: u64,
    /// What wrote it, in words.
    pub written_by: String,
    /// Whether text i is of class i mod C; else nobody says what a text is of.
    pub labelled: bool,
    /// Names of the classes, in their order.
    pub classes: Vec<String>,
    /// The texts.
    pub texts: Vec<String>,
}

impl ReferenceTexts {
    /// Reads a file's bytes; they may come from anybody.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`] names the line that isn't as it should be.
    pub fn parse(bytes: &[u8]) -> Result<Self, LearnError> {
        if bytes.len() > MAX_BYTES {
            return Err(bad(0, &format!("at most {MAX_BYTES} bytes"), &bytes.len().to_string()));
        }
        let whole = std::str::from_utf8(bytes).map_err(|_| bad(0, "UTF-8", "other bytes"))?;
        let body = whole.strip_suffix('\n').ok_or_else(|| bad(0, "a line break at its end", ""))?;
        let mut lines = body.split('\n').enumerate().map(|(at, line)| (at + 1, line)).peekable();
        let mut word = |key: &str| {
            let (at, line) = lines.next().unwrap_or_default();
            let value = line.strip_prefix(key).and_then(|rest| rest.strip_prefix(' '));
            value.map(|value| (at, value)).ok_or_else(|| bad(at, key, line))
        };
        let (at, version) = word("gaisnet reference texts")?;
        if version != "1" {
            return Err(bad(at, "version 1", version));
        }
        let (at, name) = word("name")?;
        let name = Name::new(name).map_err(|error| bad(at, "a name", &error.to_string()))?;
        let (at, seed) = word("seed")?;
        let parsed = seed.parse().ok().filter(|number: &u64| number.to_string() == seed);
        let seed = parsed.ok_or_else(|| bad(at, "a whole number", seed))?;
        let (at, written_by) = word("written_by")?;
        check_line(at, written_by)?;
        let labelled = match word("labels")? {
            (_, "in_turn") => true,
            (_, "none") => false,
            (at, other) => return Err(bad(at, "in_turn or none", other)),
        };
        let (mut classes, mut texts) = (Vec::new(), Vec::new());
        for (at, line) in lines {
            let (to, value) = if let Some(class) = line.strip_prefix("class ") {
                if !texts.is_empty() {
                    return Err(bad(at, "a text", line));
                }
                (&mut classes, class)
            } else {
                let text = line.strip_prefix("text ").ok_or_else(|| bad(at, "text", line))?;
                (&mut texts, text)
            };
            check_line(at, value)?;
            to.push(value.to_owned());
        }
        let written_by = written_by.to_owned();
        let set = Self { name, seed, written_by, labelled, classes, texts };
        set.check()?;
        Ok(set)
    }

    /// The bytes of the file.
    ///
    /// # Errors
    /// [`LearnError::OutOfRange`] for a set that [`ReferenceTexts::parse`] would refuse.
    pub fn to_bytes(&self) -> Result<Vec<u8>, LearnError> {
        self.check()?;
        let lines = self.classes.iter().chain(&self.texts).chain([&self.written_by]);
        lines.into_iter().try_for_each(|line| check_line(0, line))?;
        let labels = if self.labelled { "in_turn" } else { "none" };
        let mut out = format!(
            "gaisnet reference texts 1\nname {}\nseed {}\nwritten_by {}\nlabels {labels}\n",
            self.name, self.seed, self.written_by
        );
        for (key, lines) in [("class", &self.classes), ("text", &self.texts)] {
            for line in lines {
                // Writing to a string can't fail.
                let _ = writeln!(out, "{key} {line}");
            }
        }
        Ok(out.into_bytes())
    }

    /// SHA-256 of the file.
    ///
    /// # Errors
    /// As [`ReferenceTexts::to_bytes`].
    pub fn digest(&self) -> Result<Digest, LearnError> {
        self.to_bytes().map(|bytes| Digest::of(&bytes))
    }

    fn check(&self) -> Result<(), LearnError> {
        let (classes, texts) = (self.classes.len(), self.texts.len());
        if !(2..=MAX_CLASSES).contains(&classes) {
            return Err(bad(0, &format!("2 to {MAX_CLASSES} classes"), &classes.to_string()));
        }
        let twice =
            |(at, class): (usize, &String)| self.classes.iter().take(at).any(|c| c == class);
        if let Some((_, class)) = self.classes.iter().enumerate().find(|(at, c)| twice((*at, c))) {
            return Err(bad(0, "each class once", class));
        }
        if !u32::try_from(texts).is_ok_and(|n| (1..=MAX_REFERENCE).contains(&n)) {
            return Err(bad(0, &format!("1 to {MAX_REFERENCE} texts"), &texts.to_string()));
        }
        Ok(())
    }
}

/// A value that has one form: no space around it, nothing that isn't printed, and no endless one.
fn check_line(at: usize, value: &str) -> Result<(), LearnError> {
    let sound = !value.is_empty() && value.trim() == value && !value.chars().any(char::is_control);
    if sound && value.len() <= MAX_LINE {
        return Ok(());
    }
    let told: String = value.chars().take(40).collect();
    Err(bad(at, &format!("1 to {MAX_LINE} bytes, no space around, no control characters"), &told))
}

fn bad(line: usize, expected: &str, actual: &str) -> LearnError {
    let actual: String = actual.chars().take(80).collect();
    let actual = if line == 0 { actual } else { format!("{actual:?} in line {line}") };
    LearnError::OutOfRange { what: "reference texts", expected: expected.to_owned(), actual }
}

/// Most bytes of a file: as many texts as there may be, each as long as it may be.
const MAX_BYTES: usize = 12 << 20;
/// Most bytes of a text.
const MAX_LINE: usize = 1_000;
/// Most classes: as many as are spoken of.
const MAX_CLASSES: usize = 64;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SMALL: &str = "gaisnet reference texts 1\nname orders-1\nseed 7\nwritten_by a test\n\
                         labels in_turn\nclass Bucket\nclass Engine\ntext tooth gone\ntext no start\n";

    #[test]
    fn a_file_is_read_and_written_back_to_its_bytes() {
        let set = ReferenceTexts::parse(SMALL.as_bytes()).unwrap();
        assert_eq!((set.name.as_str(), set.seed, set.labelled), ("orders-1", 7, true));
        assert_eq!(set.classes, ["Bucket", "Engine"]);
        assert_eq!(set.texts, ["tooth gone", "no start"]);
        assert_eq!(set.to_bytes().unwrap(), SMALL.as_bytes());
        assert_eq!(set.digest().unwrap(), Digest::of(SMALL.as_bytes()));
    }

    #[test]
    fn what_is_not_in_the_one_form_is_refused_and_its_twin_is_taken() {
        let with = |from: &str, to: &str| {
            ReferenceTexts::parse(SMALL.replacen(from, to, 1).as_bytes()).map(|_| ())
        };
        assert!(with("", "").is_ok() && with("in_turn", "none").is_ok());
        for (from, to) in [
            ("texts 1", "texts 2"),
            ("seed 7", "seed 07"),
            ("seed 7", "seed -1"),
            ("in_turn", "some"),
            ("name orders-1", "name a/b"),
            ("class Engine", "class Bucket"),
            ("class Engine\n", ""),
            ("text tooth gone\ntext no start\n", ""),
            ("text tooth", "text  tooth"),
            ("text tooth", "text \u{7}tooth"),
            ("text no start\n", "class Late\n"),
            ("text no start\n", "text no start"),
            ("text no start\n", "text no start\n\n"),
            ("text no start\n", "text no start\r\n"),
        ] {
            assert_eq!(with(from, to).unwrap_err().kind(), "out_of_range", "{from:?} -> {to:?}");
        }
        let long = format!("text {}", "x".repeat(MAX_LINE + 1));
        assert!(with("text tooth gone", &long).is_err());
        assert!(ReferenceTexts::parse(&[0xff, b'\n']).is_err());
        assert!(ReferenceTexts::parse(b"").is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_and_what_is_read_has_one_form(
            bytes in prop::collection::vec(any::<u8>(), 0..200), at in 0..200_usize, byte: u8,
        ) {
            let _ = ReferenceTexts::parse(&bytes);
            let mut near = SMALL.as_bytes().to_vec();
            if let Some(place) = near.get_mut(at) {
                *place = byte;
            }
            if let Ok(set) = ReferenceTexts::parse(&near) {
                prop_assert_eq!(set.to_bytes().unwrap(), near);
            }
        }
    }
}
