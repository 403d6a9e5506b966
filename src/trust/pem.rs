//! PEM as OpenSSL writes it: one block, one label, base64 between two lines.
//!
//! The buffers in between are wiped, as the block may hold a private key.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

/// Writes one block; lines of at most 64 characters.
pub(crate) fn encode(label: &str, der: &[u8]) -> Zeroizing<String> {
    let body = Zeroizing::new(STANDARD.encode(der));
    // Room for all of it at once: growing would leave copies behind that nobody wipes.
    let mut text = Zeroizing::new(String::with_capacity(body.len() * 2 + 2 * label.len() + 64));
    text.push_str("-----BEGIN ");
    text.push_str(label);
    text.push_str("-----\n");
    for (at, character) in body.chars().enumerate() {
        if at > 0 && at % LINE == 0 {
            text.push('\n');
        }
        text.push(character);
    }
    text.push_str("\n-----END ");
    text.push_str(label);
    text.push_str("-----\n");
    text
}

/// Reads the only block of `text`, which must have this label; `None` for anything else.
///
/// White space around the block and Windows line ends are fine, other text is not.
pub(crate) fn decode(label: &str, text: &str) -> Option<Zeroizing<Vec<u8>>> {
    if text.len() > MAX_LEN {
        return None;
    }
    let begin = format!("-----BEGIN {label}-----");
    let end = format!("-----END {label}-----");
    let inner = text.trim().strip_prefix(begin.as_str())?.strip_suffix(end.as_str())?;
    let mut body = Zeroizing::new(String::with_capacity(inner.len()));
    for line in inner.lines() {
        body.push_str(line.trim_end());
    }
    let mut der = Zeroizing::new(vec![0; body.len()]);
    let used = STANDARD.decode_slice(body.as_bytes(), &mut der).ok()?;
    der.truncate(used);
    Some(der)
}

const LINE: usize = 64;
/// Several times an Ed25519 key; certificates and bundles don't belong here.
const MAX_LEN: usize = 4096;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_was_written_is_read(der in prop::collection::vec(any::<u8>(), 0..300)) {
            let text = encode("TEST", &der);
            prop_assert_eq!(decode("TEST", &text).unwrap().to_vec(), der.clone());
            prop_assert_eq!(decode("TEST", &text.replace('\n', "\r\n")).unwrap().to_vec(), der);
            prop_assert!(decode("OTHER", &text).is_none());
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,200}") {
            let _ = decode("TEST", &text);
            let _ = decode("TEST", &format!("-----BEGIN TEST-----{text}-----END TEST-----"));
        }
    }

    #[test]
    fn a_second_block_or_text_around_is_refused() {
        let block = encode("TEST", b"abc");
        assert!(decode("TEST", &block).is_some());
        assert!(decode("TEST", &format!("{}{}", *block, *block)).is_none());
        assert!(decode("TEST", &format!("hello\n{}", *block)).is_none());
    }
}
