//! A plant's own texts: a column of a table, or the lines of a file. Tables of [`super::excavators`] are
//! read with the same hands.
//!
//! Bytes that are no UTF-8 become U+FFFD, control characters and line breaks spaces: an odd byte costs a
//! character, not the text.

use std::fs;
use std::io::Read;
use std::path::Path;

use super::DataError;

/// The texts of a file, in its order; those where nothing is written are left out.
///
/// With `column`, the file is a CSV table whose first line has the titles; without, each line is a text.
///
/// # Errors
/// [`DataError::BadTable`] when there is no such column (with the titles that there are), a line has
/// another number of fields, or there are too many texts or none; a disk error.
pub fn read_texts(path: &Path, column: Option<&str>) -> Result<Vec<String>, DataError> {
    let bytes = read_capped(path)?;
    let mut texts = Vec::new();
    if let Some(column) = column {
        rows(path, &bytes, [column], |[text]| texts.push(tidy(text)))?;
    } else {
        let lines = text_of(&bytes).split(|byte| *byte == b'\n');
        texts.extend(lines.map(|line| tidy(&String::from_utf8_lossy(line))));
    }
    texts.retain(|text| !text.is_empty());
    let why = match texts.len() {
        0 => "nothing is written in it".to_owned(),
        more if more > MAX_ROWS => format!("more than {MAX_ROWS} texts"),
        _ => return Ok(texts),
    };
    Err(DataError::BadTable { path: path.to_owned(), why })
}

/// The texts of a table with what another column says of each, in their order; rows where one of the two is
/// empty are left out.
///
/// # Errors
/// As [`read_texts`].
pub fn read_labelled(
    path: &Path,
    column: &str,
    labels: &str,
) -> Result<Vec<(String, String)>, DataError> {
    let mut all = Vec::new();
    rows(path, &read_capped(path)?, [column, labels], |[text, label]| {
        let (text, label) = (tidy(text), tidy(label));
        if !text.is_empty() && !label.is_empty() {
            all.push((text, label));
        }
    })?;
    if all.is_empty() {
        let why = "no row has a text and a label".to_owned();
        return Err(DataError::BadTable { path: path.to_owned(), why });
    }
    Ok(all)
}

/// The bytes of a file of at most [`MAX_FILE_BYTES`].
///
/// # Errors
/// [`DataError::BadTable`] for a larger one; a disk error.
pub(crate) fn read_capped(path: &Path) -> Result<Vec<u8>, DataError> {
    let io = |error| DataError::io(path, error);
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(io)?;
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        let why = format!("expected at most {MAX_FILE_BYTES} bytes, got more");
        return Err(DataError::BadTable { path: path.to_owned(), why });
    }
    Ok(bytes)
}

/// Gives `take` the fields under these titles of each line of a CSV table; `path` is for the error.
///
/// # Errors
/// [`DataError::BadTable`].
pub(super) fn rows<const N: usize>(
    path: &Path,
    bytes: &[u8],
    titles: [&str; N],
    mut take: impl FnMut([&str; N]),
) -> Result<(), DataError> {
    let bad = |why: String| DataError::BadTable { path: path.to_owned(), why };
    let mut reader = csv::ReaderBuilder::new().from_reader(text_of(bytes));
    let found = reader.byte_headers().map_err(|error| bad(error.to_string()))?.clone();
    let mut places = [0; N];
    for (place, title) in places.iter_mut().zip(titles) {
        let at = found.iter().position(|name| name == title.as_bytes());
        *place = at.ok_or_else(|| {
            let there: Vec<_> = found.iter().map(String::from_utf8_lossy).collect();
            let there: String = there.join(", ").chars().take(MAX_TOLD).collect();
            bad(format!("expected a column {title}, got {there}"))
        })?;
    }
    for (row, record) in reader.byte_records().enumerate() {
        if row >= MAX_ROWS {
            return Err(bad(format!("more than {MAX_ROWS} rows")));
        }
        let record = record.map_err(|error| bad(error.to_string()))?;
        let fields = places.map(|at| String::from_utf8_lossy(record.get(at).unwrap_or_default()));
        take(std::array::from_fn(|at| fields.get(at).map_or("", AsRef::as_ref)));
    }
    Ok(())
}

/// The text on one line, without space around it and at most [`MAX_CHARS`] long. Runs of spaces stay as they
/// were typed.
pub(super) fn tidy(text: &str) -> String {
    let flat = text.replace("\r\n", "\n");
    let one = |c: char| if c.is_whitespace() || c.is_control() { ' ' } else { c };
    flat.trim().chars().map(one).collect::<String>().trim().chars().take(MAX_CHARS).collect()
}

/// Without what a spreadsheet program may put in front.
fn text_of(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)
}

/// Largest table that is read.
const MAX_FILE_BYTES: u64 = 256 << 20;
/// Most rows that are read.
const MAX_ROWS: usize = 1_000_000;
/// Longest text; the rest of a longer one is cut off.
const MAX_CHARS: usize = 4_096;
/// Characters of a table's titles that an error repeats.
const MAX_TOLD: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8], column: Option<&str>) -> Result<Vec<String>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notes");
        fs::write(&path, bytes).unwrap();
        read_texts(&path, column).map_err(|error| {
            assert_eq!(error.kind(), "bad_table");
            error.to_string().split_once(": ").unwrap().1.to_owned()
        })
    }

    #[test]
    fn a_column_or_each_line_is_a_text() {
        let table = "\u{feff}when,text\n2,\"pump, left\nhot\"\n1,  \n3,belt torn\n";
        let texts = read(table.as_bytes(), Some("text")).unwrap();
        assert_eq!(texts, ["pump, left hot", "belt torn"]);
        let lines = read(b"pump hot\r\n\n\tbelt\xb0 torn", None).unwrap();
        assert_eq!(lines, ["pump hot", "belt\u{fffd} torn"]);
    }

    #[test]
    fn labels_stand_in_another_column_of_the_row() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("orders.csv");
        fs::write(&path, "part,text\nPump,leaks\n,torn\nBelt, \n\"Belt\",torn\n").unwrap();
        let pair = |text: &str, label: &str| (text.to_owned(), label.to_owned());
        let all = read_labelled(&path, "text", "part").unwrap();
        assert_eq!(all, [pair("leaks", "Pump"), pair("torn", "Belt")]);
        assert_eq!(read_labelled(&path, "text", "system").unwrap_err().kind(), "bad_table");
        fs::write(&path, "part,text\nPump,\n").unwrap();
        assert_eq!(read_labelled(&path, "text", "part").unwrap_err().kind(), "bad_table");
    }

    #[test]
    fn what_cannot_be_read_is_said() {
        let error = read(b"when,note\n1,hot\n", Some("text")).unwrap_err();
        assert_eq!(error, "expected a column text, got when, note");
        assert!(read(b"a,text\n1\n", Some("text")).unwrap_err().contains("line: 2"));
        for empty in ["", "\n \n"] {
            assert_eq!(read(empty.as_bytes(), None).unwrap_err(), "nothing is written in it");
        }
        let lines = "x\n".repeat(MAX_ROWS + 1);
        assert_eq!(read(lines.as_bytes(), None).unwrap_err(), "more than 1000000 texts");
        let long = read("y".repeat(5_000).as_bytes(), None).unwrap();
        assert_eq!(long[0].len(), MAX_CHARS);
        let missing = read_texts(Path::new("/nowhere/notes.csv"), None).unwrap_err();
        assert!(missing.to_string().starts_with("/nowhere/notes.csv: "), "{missing}");
    }
}
