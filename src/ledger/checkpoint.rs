//! Checkpoints: a signed head as text that other people's tools read.
//!
//! ```text
//! gaisnet/<federation>/<node>          origin      \
//! 17                                   size         > the note's text: what is signed
//! base64 of the root                   root        /
//!
//! — gaisnet/<federation>/<node> base64(key hash, signature)           the node itself
//! — gaisnet/<federation>/<witness> base64(key hash, time, signature)  who saw it
//! ```
//! Formats: C2SP `signed-note`, `tlog-checkpoint`, `tlog-cosignature` (the Ed25519 kinds). Parsing
//! is strict: what [`SignedCheckpoint::parse`] takes, [`SignedCheckpoint::to_text`] gives back byte
//! by byte. Extension lines, which C2SP advises against, are refused.

use std::fmt::{self, Write as _};
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{SHA256, digest};

use super::{Head, LedgerError};
use crate::ids::{Digest, Name, NodeId};
use crate::time::Wall;
use crate::trust::keys::{Signature, SigningKey, VerifyingKey};

/// Whose ledger it is; also the name of its key in a note.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Origin {
    /// The federation.
    pub federation: Name,
    /// The node.
    pub node: NodeId,
}

impl Origin {
    /// The public key in the form in which tools for signed notes are given it, for checkpoints.
    pub fn vkey(&self, key: &VerifyingKey) -> String {
        self.vkey_of(NOTE, key)
    }

    /// As [`Origin::vkey`], for this node's cosignatures under the checkpoints of others.
    pub fn cosigner_vkey(&self, key: &VerifyingKey) -> String {
        self.vkey_of(COSIGNATURE, key)
    }

    fn vkey_of(&self, kind: u8, key: &VerifyingKey) -> String {
        let name = self.to_string();
        let hash = hex::encode(key_hash(&name, kind, key));
        let material: Vec<u8> = [&[kind], key.as_bytes().as_slice()].concat();
        format!("{name}+{hash}+{}", STANDARD.encode(material))
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gaisnet/{}/{}", self.federation, self.node)
    }
}

impl FromStr for Origin {
    type Err = LedgerError;
    fn from_str(text: &str) -> Result<Self, LedgerError> {
        let bad = || LedgerError::BadCheckpoint { what: "origin isn't gaisnet/federation/node" };
        let rest = text.strip_prefix("gaisnet/").ok_or_else(bad)?;
        let (federation, node) = rest.split_once('/').ok_or_else(bad)?;
        let name = |level: &str| Name::new(level).map_err(|_| bad());
        Ok(Self { federation: name(federation)?, node: name(node)? })
    }
}

/// A head with its origin, not yet signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Whose ledger.
    pub origin: Origin,
    /// Its size and root.
    pub head: Head,
}

impl Checkpoint {
    /// The note's text, with its final line break: the bytes that are signed.
    pub fn text(&self) -> String {
        let Head { size, root } = &self.head;
        format!("{}\n{size}\n{}\n", self.origin, STANDARD.encode(root.0))
    }

    /// Signs it with the node's key. Only [`super::Log`] knows that the head may be signed.
    pub(super) fn sign(self, key: &SigningKey) -> SignedCheckpoint {
        let name = self.origin.to_string();
        let hash = key_hash(&name, NOTE, key.public());
        let blob = key.sign(self.text().as_bytes()).0.to_vec();
        SignedCheckpoint { checkpoint: self, lines: vec![SignatureLine { name, hash, blob }] }
    }
}

/// A checkpoint and the signatures under it; none of them is verified by parsing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedCheckpoint {
    checkpoint: Checkpoint,
    lines: Vec<SignatureLine>,
}

/// One signature of a note.
#[derive(Debug, Clone, PartialEq, Eq)]
struct SignatureLine {
    name: String,
    hash: [u8; 4],
    blob: Vec<u8>,
}

impl SignedCheckpoint {
    /// Longest note in bytes.
    pub const MAX_LEN: usize = 8192;
    /// Most signatures; C2SP asks for at least this many.
    pub const MAX_SIGNATURES: usize = 16;

    /// Reads a note. Call [`SignedCheckpoint::verify`] before believing it.
    ///
    /// # Errors
    /// [`LedgerError::BadCheckpoint`] with the rule that is broken.
    pub fn parse(note: &[u8]) -> Result<Self, LedgerError> {
        let refuse = |what| LedgerError::BadCheckpoint { what };
        if note.len() > Self::MAX_LEN {
            return Err(refuse("longer than 8192 bytes"));
        }
        let note = std::str::from_utf8(note).map_err(|_| refuse("not UTF-8"))?;
        let (text, signatures) =
            note.split_once("\n\n").ok_or(refuse("no empty line before the signatures"))?;
        let mut lines = text.split('\n');
        let (Some(origin), Some(size), Some(root), None) =
            (lines.next(), lines.next(), lines.next(), lines.next())
        else {
            return Err(refuse("expected the three lines origin, size and root"));
        };
        let head = Head {
            size: size.parse().map_err(|_| refuse("size isn't a number"))?,
            root: Digest(base64_array(root).ok_or(refuse("root isn't base64 of 32 bytes"))?),
        };
        let checkpoint = Checkpoint { origin: origin.parse()?, head };
        let mut parsed = Self { checkpoint, lines: Vec::new() };
        for line in signatures.split_terminator('\n') {
            if parsed.lines.len() == Self::MAX_SIGNATURES {
                return Err(refuse("more than 16 signatures"));
            }
            parsed.lines.push(SignatureLine::parse(line).ok_or(refuse("bad signature line"))?);
        }
        if parsed.lines.is_empty() {
            return Err(refuse("no signature"));
        }
        // One way to write it: no leading zeros, no line break missing or too many.
        if parsed.to_text() == note { Ok(parsed) } else { Err(refuse("not in canonical form")) }
    }

    /// The note.
    pub fn to_text(&self) -> String {
        let mut note = self.checkpoint.text();
        note.push('\n');
        for SignatureLine { name, hash, blob } in &self.lines {
            let bytes = [hash.as_slice(), blob.as_slice()].concat();
            // Writing into a string can't fail.
            let _ = writeln!(note, "\u{2014} {name} {}", STANDARD.encode(bytes));
        }
        note
    }

    /// What it claims. Unverified unless you verified it.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Checks that the ledger's node signed it with one of these keys (several, as keys rotate).
    ///
    /// # Errors
    /// [`LedgerError::WrongOrigin`] or [`LedgerError::BadSignature`]. A line that claims one of
    /// the keys and doesn't verify spoils the note.
    pub fn verify(&self, origin: &Origin, keys: &[VerifyingKey]) -> Result<(), LedgerError> {
        if self.checkpoint.origin != *origin {
            return Err(LedgerError::WrongOrigin {
                expected: origin.to_string(),
                actual: self.checkpoint.origin.to_string(),
            });
        }
        let name = origin.to_string();
        let text = self.checkpoint.text();
        let mut signed = false;
        for key in keys {
            for blob in self.blobs(&name, key_hash(&name, NOTE, key)) {
                let signature = blob.try_into().map(Signature).ok();
                let good = signature.is_some_and(|s| key.verify(text.as_bytes(), &s).is_ok());
                if !good {
                    return Err(self.bad_signature(&name));
                }
                signed = true;
            }
        }
        if signed { Ok(()) } else { Err(self.bad_signature(&name)) }
    }

    /// Adds what a witness says: "I saw this head, and it grew out of all that I saw before".
    ///
    /// Only [`super::Witness`] knows that this is true. Time has a resolution of seconds.
    pub(super) fn cosign(&mut self, witness: &Origin, key: &SigningKey, at: Wall) {
        let name = witness.to_string();
        let hash = key_hash(&name, COSIGNATURE, key.public());
        let time_s = at.0 / 1000;
        let signature = key.sign(self.cosigned(time_s).as_bytes());
        let blob = [time_s.to_be_bytes().as_slice(), &signature.0].concat();
        self.lines.retain(|line| line.name != name || line.hash != hash);
        self.lines.push(SignatureLine { name, hash, blob });
    }

    /// Checks a witness's cosignature and gives its time.
    ///
    /// # Errors
    /// [`LedgerError::BadSignature`] when there is none, or it doesn't verify.
    pub fn verify_cosignature(
        &self,
        witness: &Origin,
        key: &VerifyingKey,
    ) -> Result<Wall, LedgerError> {
        let name = witness.to_string();
        let mut seen = None;
        for blob in self.blobs(&name, key_hash(&name, COSIGNATURE, key)) {
            let time_s = blob.first_chunk().map(|time| u64::from_be_bytes(*time));
            let signature = blob.get(8..).and_then(|rest| rest.try_into().ok()).map(Signature);
            let (Some(time_s), Some(signature)) = (time_s, signature) else {
                return Err(self.bad_signature(&name));
            };
            if key.verify(self.cosigned(time_s).as_bytes(), &signature).is_err() {
                return Err(self.bad_signature(&name));
            }
            seen = Some(Wall(time_s.saturating_mul(1000)));
        }
        seen.ok_or_else(|| self.bad_signature(&name))
    }

    fn blobs(&self, name: &str, hash: [u8; 4]) -> impl Iterator<Item = &[u8]> {
        let lines = self.lines.iter().filter(move |line| line.name == name && line.hash == hash);
        lines.map(|line| line.blob.as_slice())
    }

    fn cosigned(&self, time_s: u64) -> String {
        format!("cosignature/v1\ntime {time_s}\n{}", self.checkpoint.text())
    }

    fn bad_signature(&self, name: &str) -> LedgerError {
        LedgerError::BadSignature { size: self.checkpoint.head.size, name: name.to_owned() }
    }
}

impl SignatureLine {
    fn parse(line: &str) -> Option<Self> {
        let (name, blob) = line.strip_prefix("\u{2014} ")?.split_once(' ')?;
        let plain = |c: char| !c.is_whitespace() && !c.is_control() && c != '+';
        if name.is_empty() || !name.chars().all(plain) {
            return None;
        }
        let bytes = STANDARD.decode(blob).ok()?;
        let (hash, blob) = bytes.split_first_chunk::<4>()?;
        Some(Self { name: name.to_owned(), hash: *hash, blob: blob.to_vec() })
    }
}

/// Decodes base64 of exactly `N` bytes.
pub(super) fn base64_array<const N: usize>(text: &str) -> Option<[u8; N]> {
    STANDARD.decode(text).ok()?.try_into().ok()
}

/// First 4 bytes of SHA-256 over name, line break, signature type and public key.
fn key_hash(name: &str, kind: u8, key: &VerifyingKey) -> [u8; 4] {
    let bytes = [name.as_bytes(), b"\n", &[kind], key.as_bytes()].concat();
    let mut hash = [0; 4];
    for (to, from) in hash.iter_mut().zip(digest(&SHA256, &bytes).as_ref()) {
        *to = *from;
    }
    hash
}

/// Signature type of a note signed with Ed25519.
const NOTE: u8 = 0x01;
/// Signature type of a timestamped Ed25519 cosignature.
const COSIGNATURE: u8 = 0x04;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ledger::tree::{Tree, leaf_hash};
    use crate::trust::openssl::openssl;

    fn origin(node: &str) -> Origin {
        Origin { federation: Name::new("fed").unwrap(), node: Name::new(node).unwrap() }
    }

    fn key(seed: u8) -> SigningKey {
        SigningKey::generate(&[seed; 32])
    }

    fn signed() -> SignedCheckpoint {
        let head = [b"a", b"b"].into_iter().map(|leaf| leaf_hash(leaf)).collect::<Tree>().head();
        let mut note = Checkpoint { origin: origin("edge"), head }.sign(&key(1));
        note.cosign(&origin("cloud"), &key(2), Wall(1_679_315_147_999));
        note
    }

    #[test]
    fn the_example_of_the_cosignature_specification_is_read_as_it_says() {
        // The key hashes are those of C2SP tlog-cosignature; only its origin isn't one of ours.
        let note = "gaisnet/a/b\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n\
            — example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n\
            — witness.example.com/w1 jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA==\n";
        let parsed = SignedCheckpoint::parse(note.as_bytes()).unwrap();
        assert_eq!(parsed.lines[0].hash, [0x03, 0x3d, 0xe0, 0xae]);
        let time = u64::from_be_bytes(*parsed.lines[1].blob.first_chunk().unwrap());
        assert_eq!(time, 1_679_315_147);
        assert_eq!(parsed.lines[1].blob.len(), 72);
    }

    #[test]
    fn a_note_is_read_back_and_verified() {
        let note = signed();
        let text = note.to_text();
        let parsed = SignedCheckpoint::parse(text.as_bytes()).unwrap();
        assert_eq!(parsed, note);
        parsed.verify(&origin("edge"), &[*key(1).public()]).unwrap();
        parsed.verify(&origin("edge"), &[*key(9).public(), *key(1).public()]).unwrap();
        let seen = parsed.verify_cosignature(&origin("cloud"), key(2).public()).unwrap();
        assert_eq!(seen, Wall(1_679_315_147_000));
    }

    #[test]
    fn a_key_that_did_not_sign_is_refused() {
        let note = signed();
        let refused = note.verify(&origin("edge"), &[*key(2).public()]).unwrap_err();
        assert_eq!(refused.kind(), "ledger_bad_signature");
        let refused = note.verify(&origin("edge"), &[]).unwrap_err();
        assert_eq!(refused.kind(), "ledger_bad_signature");
        let refused = note.verify(&origin("cloud"), &[*key(1).public()]).unwrap_err();
        assert_eq!(refused.kind(), "ledger_wrong_origin");
        // A signature is no cosignature, and a cosigner's key is bound to its name.
        assert!(note.verify_cosignature(&origin("edge"), key(1).public()).is_err());
        assert!(note.verify_cosignature(&origin("edge"), key(2).public()).is_err());
    }

    #[test]
    fn each_class_of_byte_is_protected() {
        let good = signed().to_text();
        let check = |text: &str| -> Result<(), LedgerError> {
            let note = SignedCheckpoint::parse(text.as_bytes())?;
            note.verify(&origin("edge"), &[*key(1).public()])?;
            note.verify_cosignature(&origin("cloud"), key(2).public()).map(|_| ())
        };
        check(&good).unwrap();
        let lines: Vec<&str> = good.lines().collect();
        let (root, signature, cosignature) = (lines[2], lines[4], lines[5]);
        let changed = [
            ("origin", good.replacen("/edge\n", "/edgf\n", 1), "ledger_wrong_origin"),
            ("size", good.replacen("\n2\n", "\n3\n", 1), "ledger_bad_signature"),
            ("root", good.replace(root, &STANDARD.encode([7; 32])), "ledger_bad_signature"),
            (
                "signer",
                good.replacen("— gaisnet/fed/edge", "— gaisnet/fed/edgf", 1),
                "ledger_bad_signature",
            ),
            ("no signature", good.replace(&format!("{signature}\n"), ""), "ledger_bad_signature"),
            (
                "no cosignature",
                good.replace(&format!("{cosignature}\n"), ""),
                "ledger_bad_signature",
            ),
        ];
        for (class, text, kind) in changed {
            assert_ne!(text, good, "{class}");
            assert_eq!(check(&text).unwrap_err().kind(), kind, "{class}");
        }
    }

    #[test]
    fn a_note_written_in_another_way_is_refused() {
        let good = signed().to_text();
        let others = [
            good.replacen("\n2\n", "\n02\n", 1),
            good.replacen("\n2\n", "\n+2\n", 1),
            good.replacen("\n2\n", "\n-2\n", 1),
            good.replacen("\n2\n", "\n99999999999999999999\n", 1),
            good.replacen("=\n\n", "=\nextension\n\n", 1),
            good.replacen("=\n\n", "\n\n", 1),
            good.replacen("\n\n", "\n", 1),
            good.replacen("\n\n", "\n\n\n", 1),
            good.replace('\n', "\r\n"),
            good.replace("— ", "- "),
            good.trim_end().to_owned(),
            format!("{good}\n"),
            format!("\n{good}"),
            good.split_inclusive("\n\n").next().unwrap().to_owned(),
            format!("{good}{}", good.lines().last().unwrap().repeat(200)),
            (0..16).fold(good.clone(), |text, _| format!("{text}— x AAAAAAA=\n")),
            good.replacen("gaisnet/fed/edge\n", "gaisnet/fed/edge/x\n", 1),
            good.replacen("gaisnet/fed/edge\n", "gaisnet/fed\n", 1),
            good.replacen("gaisnet/fed/edge\n", "fed/edge\n", 1),
        ];
        for other in others {
            assert_ne!(other, good);
            let refused = SignedCheckpoint::parse(other.as_bytes()).unwrap_err();
            assert_eq!(refused.kind(), "ledger_bad_checkpoint", "{other}");
        }
    }

    #[test]
    fn openssl_alone_checks_signature_and_cosignature() {
        let Some(ssl) = openssl("checkpoint") else { return };
        let text = signed().to_text();
        // With nothing of ours but the text: split, base64, cut the key hash off.
        let (body, signatures) = text.split_once("\n\n").unwrap();
        let blob = |at: usize| {
            let line = signatures.lines().nth(at).unwrap();
            STANDARD.decode(line.rsplit(' ').next().unwrap()).unwrap()
        };
        ssl.write("edge.pem", key(1).public().to_pem().as_bytes());
        ssl.write("cloud.pem", key(2).public().to_pem().as_bytes());
        ssl.write("sig", &blob(0)[4..]);
        ssl.write("body", format!("{body}\n").as_bytes());
        let verify = "pkeyutl -verify -pubin -rawin -sigfile sig";
        ssl.run(&format!("{verify} -inkey edge.pem -in body")).unwrap();
        assert!(ssl.run(&format!("{verify} -inkey cloud.pem -in body")).is_err());
        ssl.write("other", format!("{body}\n").replacen("\n2\n", "\n3\n", 1).as_bytes());
        assert!(ssl.run(&format!("{verify} -inkey edge.pem -in other")).is_err());

        ssl.write("sig", &blob(1)[12..]);
        ssl.write("body", format!("cosignature/v1\ntime 1679315147\n{body}\n").as_bytes());
        ssl.run(&format!("{verify} -inkey cloud.pem -in body")).unwrap();
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_checkpoint_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = SignedCheckpoint::parse(&bytes);
        }

        #[test]
        fn a_flipped_bit_is_caught(at: prop::sample::Index, bit in 0..8_u32) {
            let mut note = signed().to_text().into_bytes();
            let at = at.index(note.len());
            note[at] ^= 1_u8 << bit;
            let caught = SignedCheckpoint::parse(&note).and_then(|note| {
                note.verify(&origin("edge"), &[*key(1).public()])?;
                note.verify_cosignature(&origin("cloud"), key(2).public())
            });
            prop_assert!(caught.is_err(), "{}", String::from_utf8_lossy(&note));
        }
    }
}
