//! A generated answer as text: only whole characters, and nothing from a stop string on.
//!
//! ```text
//! token -> decoded with its neighbours -> without half a character -> without what may begin a stop
//! ```
//! Where tokens begin and end makes no difference to the text that comes out.

use super::{LearnError, Tokens};

/// Collects an answer token by token and gives its text out as it becomes certain.
#[derive(Debug, Clone, Default)]
pub struct AnswerText {
    stop: Vec<String>,
    /// The latest tokens: enough of them that the next one is decoded as in the whole answer.
    window: Vec<u32>,
    /// Bytes of the window's text that were taken over.
    taken: usize,
    /// Taken over, but a stop string may begin in it.
    held: String,
    text: String,
    escaped_bytes: usize,
}

/// What one token added.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Piece {
    /// Text that is certain now; may be empty.
    pub text: String,
    /// A stop string is complete: the answer ends before it.
    pub stopped: bool,
}

impl AnswerText {
    /// Tokens that are decoded together, and how many of them stay when it is more.
    const WINDOW: usize = 32;
    const KEPT: usize = 8;

    /// An empty answer that ends before the first of these texts; empty ones count for nothing.
    pub fn new(stop: Vec<String>) -> Self {
        Self { stop: stop.into_iter().filter(|s| !s.is_empty()).collect(), ..Self::default() }
    }

    /// Appends a token.
    ///
    /// # Errors
    /// [`LearnError`] when it can't be decoded.
    pub fn push(&mut self, token: u32, tokens: &dyn Tokens) -> Result<Piece, LearnError> {
        self.window.push(token);
        let decoded = tokens.decode(&self.window)?;
        // Bytes at the end that make no character yet come out as replacements.
        let whole = decoded.trim_end_matches(char::REPLACEMENT_CHARACTER);
        if let Some(fresh) = whole.get(self.taken..) {
            self.held.push_str(fresh);
            self.taken = whole.len();
        }
        if self.window.len() >= Self::WINDOW && whole.len() == decoded.len() {
            self.shorten(&decoded, tokens)?;
        }
        if let Some(end) = self.first_stop() {
            let text = self.held.get(..end).unwrap_or_default().to_owned();
            self.held.clear();
            return Ok(Piece { text: self.give(text), stopped: true });
        }
        let certain = self.held.len() - self.may_begin_a_stop();
        let text = self.held.drain(..certain).collect();
        Ok(Piece { text: self.give(text), stopped: false })
    }

    /// The answer ends here: gives out what was held back for a stop string. Half a character is lost.
    pub fn finish(&mut self) -> String {
        let rest = std::mem::take(&mut self.held);
        self.give(rest)
    }

    /// Everything that was given out.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Bytes of that text as JSON writes it, so that an answer can be kept below a packet's cap.
    pub fn escaped_bytes(&self) -> usize {
        self.escaped_bytes
    }

    fn give(&mut self, text: String) -> String {
        self.text.push_str(&text);
        self.escaped_bytes += text.chars().map(escaped).sum::<usize>();
        text
    }

    /// Forgets old tokens, when the later ones alone are decoded to the same end of the text.
    fn shorten(&mut self, decoded: &str, tokens: &dyn Tokens) -> Result<(), LearnError> {
        let from = self.window.len().saturating_sub(Self::KEPT);
        let Some(late) = self.window.get(from..) else { return Ok(()) };
        let end = tokens.decode(late)?;
        if decoded.ends_with(&end) && !end.starts_with(char::REPLACEMENT_CHARACTER) {
            self.taken = end.len();
            self.window.drain(..from);
        }
        Ok(())
    }

    /// Where the stop string begins that is complete first; the longer one, where two are at once.
    fn first_stop(&self) -> Option<usize> {
        let found = self.stop.iter().filter_map(|stop| {
            let start = self.held.find(stop.as_str())?;
            Some((start + stop.len(), start))
        });
        found.min().map(|(_, start)| start)
    }

    /// Bytes at the end of what is held that are the beginning of a stop string.
    fn may_begin_a_stop(&self) -> usize {
        let begins = |stop: &String| {
            let longest = stop.len().saturating_sub(1).min(self.held.len());
            (1..=longest).rev().find(|n| {
                stop.is_char_boundary(*n) && stop.get(..*n).is_some_and(|s| self.held.ends_with(s))
            })
        };
        self.stop.iter().filter_map(begins).max().unwrap_or(0)
    }
}

/// Bytes of a character in a JSON text.
fn escaped(character: char) -> usize {
    match character {
        '"' | '\\' => 2,
        control if (control as u32) < 0x20 => 6,
        other => other.len_utf8(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Tokens 0 to 255 are bytes, those above are pairs of letters.
    struct Bytes;

    impl Tokens for Bytes {
        fn encode(&self, text: &str) -> Result<Vec<u32>, LearnError> {
            Ok(text.bytes().map(u32::from).collect())
        }

        fn decode(&self, ids: &[u32]) -> Result<String, LearnError> {
            let mut bytes = Vec::new();
            for id in ids {
                match u8::try_from(*id) {
                    Ok(byte) => bytes.push(byte),
                    Err(_) => bytes.extend([b'a' + u8::try_from(*id % 3).unwrap(), b'b']),
                }
            }
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        }

        fn is_end(&self, _: u32) -> bool {
            false
        }
    }

    fn read(ids: &[u32], stop: &[&str]) -> (Vec<String>, String) {
        let mut answer = AnswerText::new(stop.iter().map(|s| (*s).to_owned()).collect());
        let mut pieces = Vec::new();
        for id in ids {
            let piece = answer.push(*id, &Bytes).unwrap();
            pieces.push(piece.text);
            if piece.stopped {
                return (pieces, answer.text().to_owned());
            }
        }
        pieces.push(answer.finish());
        (pieces, answer.text().to_owned())
    }

    #[test]
    fn a_character_comes_out_when_its_last_byte_is_there() {
        let ids = Bytes.encode("a€é").unwrap();
        assert_eq!(read(&ids, &[]).0, ["a", "", "", "€", "", "é", ""]);
        assert_eq!(
            read(&ids[..3], &[]),
            (vec!["a".into(), String::new(), String::new(), String::new()], "a".into())
        );
    }

    #[test]
    fn bytes_that_never_make_a_character_are_shown_once_text_follows() {
        let ids = [0xE2, 0x82, u32::from(b'x'), u32::from(b'y')];
        assert_eq!(read(&ids, &[]).1, "\u{FFFD}xy");
    }

    #[test]
    fn a_stop_string_may_span_tokens_and_what_only_looks_like_one_is_given_out() {
        let ids = Bytes.encode("done. END of it").unwrap();
        let (pieces, text) = read(&ids, &[" END"]);
        assert_eq!(text, "done.");
        assert!(pieces.iter().all(|piece| !piece.contains(' ')), "{pieces:?}");
        assert_eq!(read(&Bytes.encode("an EN").unwrap(), &[" END"]).1, "an EN");
        assert_eq!(read(&Bytes.encode("an ENGINE").unwrap(), &[" END"]).1, "an ENGINE");
    }

    #[test]
    fn the_stop_string_that_ends_first_wins_however_the_tokens_lie() {
        // 257 is "cb"; the two bytes say the same.
        assert_eq!(Bytes.decode(&[257]).unwrap(), "cb");
        for ids in [&[257, 100][..], &[99, 98, 100]] {
            assert_eq!(read(ids, &["cbd", "b"]).1, "c");
            assert_eq!(read(ids, &["b", "cb"]).1, "", "the longer of two that end together");
        }
        assert_eq!(read(&[257, 100], &[""]).1, "cbd", "an empty one stops nothing");
    }

    #[test]
    fn long_answers_are_whole() {
        let text = "Grease the bearing, wait ½ h — then listen. ".repeat(40);
        let ids = Bytes.encode(&text).unwrap();
        let mut answer = AnswerText::new(Vec::new());
        let given: String = ids.iter().map(|id| answer.push(*id, &Bytes).unwrap().text).collect();
        assert_eq!(given, text);
        assert!(answer.window.len() <= AnswerText::WINDOW + 4);
    }

    #[test]
    fn the_size_is_that_of_the_json() {
        let text = "a \"b\" \\ \u{1} é\u{1F600}";
        let mut answer = AnswerText::new(Vec::new());
        for id in Bytes.encode(text).unwrap() {
            answer.push(id, &Bytes).unwrap();
        }
        assert_eq!(answer.escaped_bytes(), serde_json::to_string(text).unwrap().len() - 2);
    }

    proptest! {
        #[test]
        fn pieces_are_the_text_before_the_first_stop(
            ids in prop::collection::vec(prop_oneof![Just(97), Just(98), Just(0xC3), Just(0xA9), 256_u32..262], 0..60),
            stop in prop::collection::vec("[abcé]{1,4}", 0..3),
        ) {
            let stop: Vec<&str> = stop.iter().map(String::as_str).collect();
            let whole = Bytes.decode(&ids).unwrap();
            // Character by character: the first moment at which the text so far ends with a stop.
            let ends = whole.char_indices().map(|(at, c)| at + c.len_utf8());
            let cut = ends.map(|end| &whole[..end]).find_map(|so_far| {
                let longest = stop.iter().filter(|s| so_far.ends_with(**s)).map(|s| s.len()).max()?;
                Some(&so_far[..so_far.len() - longest])
            });
            let wanted = cut.unwrap_or(whole.trim_end_matches(char::REPLACEMENT_CHARACTER));
            let (pieces, text) = read(&ids, &stop);
            prop_assert_eq!(&text, wanted);
            prop_assert_eq!(pieces.concat(), text);
        }
    }
}
