//! What is recorded: one event, who saw it, and when. Digests and names only, never data.
//!
//! The canonical form is JSON with sorted keys and no spaces, not msgpack: auditors read leaves
//! with `jq` and `grep`, and a leaf that needs a decoder invites a decoder that lies. It holds no
//! floats, and every text is a name or a [`Word`], so there is exactly one way to write an entry;
//! [`Entry::parse`] refuses all others. Verification hashes the stored bytes, never a re-encoding.
//!
//! A released event never changes; a new field is a new entry version.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::ids::{BootId, Digest, Epoch, KeyId, Name, NodeId, RoundNo, UpdateId, Version};
use crate::time::Wall;

/// One leaf of the ledger.
// Fields in alphabetical order here and below: that is what sorts the keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The node's clock when it was recorded: for people, not for order.
    #[serde(rename = "at_ms")]
    pub at: Wall,
    /// What happened.
    pub event: Event,
    /// The node that records it.
    pub node: NodeId,
    v: One,
}

impl Entry {
    /// Longest leaf in bytes.
    pub const MAX_LEN: usize = 4096;

    /// An event at a node.
    pub fn new(node: NodeId, at: Wall, event: Event) -> Self {
        Self { at, event, node, v: One }
    }

    /// The canonical bytes: what is hashed, stored and exported.
    pub fn to_bytes(&self) -> Vec<u8> {
        match serde_json::to_vec(self) {
            Ok(bytes) => bytes,
            Err(_) => unreachable!("numbers, names and digests always have a JSON form"),
        }
    }

    /// Reads canonical bytes.
    ///
    /// # Errors
    /// What is wrong, when the bytes are too long or not exactly what [`Entry::to_bytes`] gives.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() > Self::MAX_LEN {
            return Err(format!("{} bytes, the limit is {}", bytes.len(), Self::MAX_LEN));
        }
        let entry: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if entry.to_bytes() == bytes { Ok(entry) } else { Err("not in canonical form".into()) }
    }
}

/// What can happen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Event {
    /// The node started.
    NodeStart {
        /// Separates this start from others.
        boot: BootId,
        /// Digest of the effective configuration.
        config: Digest,
        /// Its fencing number from now on.
        epoch: Epoch,
        /// Version of the program.
        program: Word,
    },
    /// The node stopped in order.
    NodeStop {
        /// The start that ends.
        boot: BootId,
        /// Why.
        reason: Word,
    },
    /// A round was offered.
    RoundOpen {
        /// Fencing number of its owner.
        epoch: Epoch,
        /// Digest of the offer.
        offer: Digest,
        /// The round.
        round: RoundNo,
    },
    /// The set of contributors is fixed; what comes later is late.
    RoundClose {
        /// Number of contributions in the set.
        contributions: u64,
        /// Fencing number of its owner.
        epoch: Epoch,
        /// The round.
        round: RoundNo,
        /// Digest of the sorted update ids.
        set: Digest,
    },
    /// The result is fixed.
    RoundCommit {
        /// Fencing number of its owner.
        epoch: Epoch,
        /// Digest of the result.
        result: Digest,
        /// The round.
        round: RoundNo,
        /// The adapter version that it makes.
        version: Version,
    },
    /// A round ended without a result.
    RoundAbandon {
        /// Fencing number of its owner.
        epoch: Epoch,
        /// Why.
        reason: Word,
        /// The round.
        round: RoundNo,
    },
    /// A contribution is on disk.
    Accept {
        /// Digest of its body.
        body: Digest,
        /// The round.
        round: RoundNo,
        /// Who sent it.
        sender: NodeId,
        /// Its id.
        update: UpdateId,
    },
    /// A contribution left this node.
    Contribute {
        /// Digest of its body.
        body: Digest,
        /// Bytes of what it brings, without the message around it: delta and soft labels.
        bytes: u64,
        /// The round.
        round: RoundNo,
        /// Its id.
        update: UpdateId,
    },
    /// A member doesn't take part in a round, or gave it up.
    Decline {
        /// Why.
        reason: Word,
        /// The round.
        round: RoundNo,
        /// Who.
        sender: NodeId,
    },
    /// A message was refused.
    Refusal {
        /// Digest of the refused bytes.
        message: Digest,
        /// The first check that failed.
        reason: Word,
        /// Who signed it, if that was known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sender: Option<NodeId>,
    },
    /// A contribution came after its round had closed.
    Late {
        /// The round.
        round: RoundNo,
        /// Who sent it.
        sender: NodeId,
        /// Its id.
        update: UpdateId,
    },
    /// A contribution was longer than the usual one, and counted in part.
    Clip {
        /// What was left of it, in millionths.
        kept_ppm: u32,
        /// The round.
        round: RoundNo,
        /// Who sent it.
        sender: NodeId,
        /// Its id.
        update: UpdateId,
    },
    /// One sender, one round, two bodies.
    Equivocation {
        /// The contribution that counts.
        first: UpdateId,
        /// The round.
        round: RoundNo,
        /// The one that was refused.
        second: UpdateId,
        /// Who sent both.
        sender: NodeId,
    },
    /// A key was enrolled.
    KeyAdd {
        /// The key.
        key: KeyId,
        /// Version of the keyring.
        keyring: u64,
        /// Whom it speaks for.
        subject: NodeId,
    },
    /// A key was replaced.
    KeyRotate {
        /// Version of the keyring.
        keyring: u64,
        /// The key from now on.
        new: KeyId,
        /// The key until now.
        old: KeyId,
        /// Whom it speaks for.
        subject: NodeId,
    },
    /// A key was revoked.
    KeyRevoke {
        /// The key.
        key: KeyId,
        /// Version of the keyring.
        keyring: u64,
        /// Whom it spoke for.
        subject: NodeId,
    },
    /// The configuration changed.
    ConfigChange {
        /// Digest of the effective configuration.
        config: Digest,
    },
    /// An operator's command was carried out or refused.
    Command {
        /// Digest of the command as it came.
        command: Digest,
        /// Its name.
        name: Word,
        /// Who signed it, if anybody.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        operator: Option<NodeId>,
        /// `ok`, or the reason of the refusal.
        outcome: Word,
    },
    /// The privacy gate kept something from leaving.
    PrivacyRefusal {
        /// Kind of message that wasn't sent.
        message: Word,
        /// The rule that it broke.
        reason: Word,
        /// The round, if it was for one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        round: Option<RoundNo>,
    },
    /// The receipt of a contribution came.
    ReceiptGot {
        /// Who gave it.
        from: NodeId,
        /// The round.
        round: RoundNo,
        /// The contribution.
        update: UpdateId,
        /// `accepted`, `late` or `refused`.
        verdict: Word,
    },
    /// A round's result is in use.
    ResultApplied {
        /// Digest of the result.
        result: Digest,
        /// The round.
        round: RoundNo,
        /// The adapter version.
        version: Version,
    },
    /// The node's own model has learned what its members know.
    Distil {
        /// Digest of its adapter.
        adapter: Digest,
        /// Digest of what it says since then.
        knowledge: Digest,
        /// The round.
        round: RoundNo,
        /// Optimiser steps that it took.
        steps: u32,
    },
    /// Another version is served.
    Rollout {
        /// Digest of the adapter.
        adapter: Digest,
        /// Its version.
        version: Version,
    },
    /// The version before is served again.
    Rollback {
        /// The version that is given up.
        from: Version,
        /// Why.
        reason: Word,
        /// The version from now on.
        to: Version,
    },
    /// A rollout went a step on, or ended.
    RolloutStep {
        /// Who wanted it, if anybody did.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<NodeId>,
        /// `planned`, `approved`, `entered`, `passed`, `done` or `halted`.
        outcome: Word,
        /// Digest of the plan.
        plan: Digest,
        /// The stage.
        stage: Word,
        /// The version.
        version: Version,
    },
    /// Inputs left the site: requests that the tier above was asked to answer, since the last entry of
    /// this kind.
    Escalate {
        /// Over the digests of the requests as they left, in their order.
        digest: Digest,
        /// The model.
        model: Name,
        /// Their number.
        requests: u64,
        /// Who was asked.
        to: NodeId,
    },
    /// A device takes part in the rounds of another edge from now on.
    Move {
        /// The edge that it was with.
        from: NodeId,
        /// The edge that it is with.
        to: NodeId,
    },
}

impl Event {
    /// The event's key in JSON.
    pub fn name(&self) -> &'static str {
        match self {
            Self::NodeStart { .. } => "node_start",
            Self::NodeStop { .. } => "node_stop",
            Self::RoundOpen { .. } => "round_open",
            Self::RoundClose { .. } => "round_close",
            Self::RoundCommit { .. } => "round_commit",
            Self::RoundAbandon { .. } => "round_abandon",
            Self::Accept { .. } => "accept",
            Self::Contribute { .. } => "contribute",
            Self::Decline { .. } => "decline",
            Self::Refusal { .. } => "refusal",
            Self::Late { .. } => "late",
            Self::Clip { .. } => "clip",
            Self::Equivocation { .. } => "equivocation",
            Self::KeyAdd { .. } => "key_add",
            Self::KeyRotate { .. } => "key_rotate",
            Self::KeyRevoke { .. } => "key_revoke",
            Self::ConfigChange { .. } => "config_change",
            Self::Command { .. } => "command",
            Self::PrivacyRefusal { .. } => "privacy_refusal",
            Self::ReceiptGot { .. } => "receipt_got",
            Self::ResultApplied { .. } => "result_applied",
            Self::Distil { .. } => "distil",
            Self::Rollout { .. } => "rollout",
            Self::Rollback { .. } => "rollback",
            Self::RolloutStep { .. } => "rollout_step",
            Self::Escalate { .. } => "escalate",
            Self::Move { .. } => "move",
        }
    }
}

/// A word of the program: a reason, a kind, a version. Too short and plain to carry data.
///
/// 1 to 64 characters of `[a-z0-9._-]`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Word(Cow<'static, str>);

impl Word {
    /// A word that stands in the source code, such as an error's `kind()`.
    ///
    /// Text that is no word becomes `unnamed`, so that recording never fails.
    pub fn new(text: &'static str) -> Self {
        debug_assert!(Self::fits(text), "{text:?} is no word");
        Self(Cow::Borrowed(if Self::fits(text) { text } else { "unnamed" }))
    }

    /// The word as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn fits(text: &str) -> bool {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
        (1..=64).contains(&text.len()) && text.bytes().all(plain)
    }
}

impl TryFrom<String> for Word {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        if Self::fits(&text) {
            Ok(Self(Cow::Owned(text)))
        } else {
            Err("not a word: 1 to 64 characters of a-z 0-9 . _ -".into())
        }
    }
}

impl From<Word> for String {
    fn from(word: Word) -> Self {
        word.0.into_owned()
    }
}

/// The entry version: the number 1, and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
struct One;

impl TryFrom<u64> for One {
    type Error = String;
    fn try_from(version: u64) -> Result<Self, String> {
        if version == 1 {
            Ok(Self)
        } else {
            Err(format!("entry version {version}, this gaisnet knows version 1"))
        }
    }
}

impl From<One> for u64 {
    fn from(One: One) -> Self {
        1
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One entry of each kind, as long as it can get.
    pub(crate) fn examples() -> Vec<Entry> {
        let word = || Word::try_from("w".repeat(64)).unwrap();
        let name = || Name::new("n".repeat(64)).unwrap();
        let (digest, update, key) = (Digest([0xff; 32]), UpdateId([0xff; 16]), KeyId([0xff; 8]));
        let (boot, n) = (BootId([0xff; 16]), u64::MAX);
        let events = vec![
            Event::NodeStart { boot, config: digest, epoch: n, program: word() },
            Event::NodeStop { boot, reason: word() },
            Event::RoundOpen { epoch: n, offer: digest, round: n },
            Event::RoundClose { contributions: n, epoch: n, round: n, set: digest },
            Event::RoundCommit { epoch: n, result: digest, round: n, version: n },
            Event::RoundAbandon { epoch: n, reason: word(), round: n },
            Event::Accept { body: digest, round: n, sender: name(), update },
            Event::Refusal { message: digest, reason: word(), sender: Some(name()) },
            Event::Refusal { message: digest, reason: word(), sender: None },
            Event::Late { round: n, sender: name(), update },
            Event::Clip { kept_ppm: u32::MAX, round: n, sender: name(), update },
            Event::Equivocation { first: update, round: n, second: update, sender: name() },
            Event::KeyAdd { key, keyring: n, subject: name() },
            Event::KeyRotate { keyring: n, new: key, old: key, subject: name() },
            Event::KeyRevoke { key, keyring: n, subject: name() },
            Event::ConfigChange { config: digest },
            Event::Command {
                command: digest,
                name: word(),
                operator: Some(name()),
                outcome: word(),
            },
            Event::PrivacyRefusal { message: word(), reason: word(), round: Some(n) },
            Event::ReceiptGot { from: name(), round: n, update, verdict: word() },
            Event::ResultApplied { result: digest, round: n, version: n },
            Event::Distil { adapter: digest, knowledge: digest, round: n, steps: u32::MAX },
            Event::Rollout { adapter: digest, version: n },
            Event::Rollback { from: n, reason: word(), to: n },
            Event::RolloutStep {
                by: Some(name()),
                outcome: word(),
                plan: digest,
                stage: word(),
                version: n,
            },
            Event::Escalate { digest, model: name(), requests: n, to: name() },
            Event::Move { from: name(), to: name() },
        ];
        events.into_iter().map(|event| Entry::new(name(), Wall(n), event)).collect()
    }

    fn small() -> Entry {
        let node = Name::new("edge-a").unwrap();
        let sender = Name::new("d1").unwrap();
        let update = UpdateId([1; 16]);
        Entry::new(node, Wall(17), Event::Late { round: 3, sender, update })
    }

    #[test]
    fn the_canonical_form_is_sorted_json() {
        let expected = r#"{"at_ms":17,"event":{"late":{"round":3,"sender":"d1","update":"01010101010101010101010101010101"}},"node":"edge-a","v":1}"#;
        assert_eq!(String::from_utf8(small().to_bytes()).unwrap(), expected);
    }

    fn assert_sorted(value: &serde_json::Value, text: &str) {
        if let Some(map) = value.as_object() {
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort();
            let places: Vec<_> =
                keys.iter().map(|key| text.find(&format!("\"{key}\":")).unwrap()).collect();
            assert!(places.is_sorted(), "{text}");
            map.values().for_each(|inner| assert_sorted(inner, text));
        }
    }

    #[test]
    fn each_event_is_sorted_short_named_and_read_back() {
        for entry in examples() {
            let bytes = entry.to_bytes();
            let text = std::str::from_utf8(&bytes).unwrap();
            assert!(bytes.len() < 600, "{text}");
            assert!(text.contains(&format!("\"event\":{{\"{}\":{{", entry.event.name())));
            let value: serde_json::Value = serde_json::from_str(text).unwrap();
            assert_sorted(&value["event"][entry.event.name()], text);
            assert_eq!(Entry::parse(&bytes).unwrap(), entry);
        }
    }

    #[test]
    fn any_other_way_to_write_an_entry_is_refused() {
        let good = String::from_utf8(small().to_bytes()).unwrap();
        Entry::parse(good.as_bytes()).unwrap();
        let others = [
            format!("{good} "),
            format!(" {good}"),
            format!("{good}\n"),
            good.replace(":17", ": 17"),
            good.replace(":17", ":17.0"),
            good.replace(":17", ":017"),
            good.replace("d1", "\\u00641"),
            good.replace("0101", "0A01").replace("0A0101", "0A0A01"),
            good.replace("\"v\":1", "\"v\":2"),
            good.replace("\"v\":1", "\"v\":1,\"w\":1"),
            good.replace("\"round\":3,", "\"round\":3,\"round\":3,"),
            good.replace("\"round\":3,", ""),
            good.replace("\"at_ms\":17,", "").replace("\"v\":1", "\"at_ms\":17,\"v\":1"),
            good.replace("late", "early"),
            good.replace("d1", "a b"),
            good.replace("d1", &"d".repeat(65)),
            good.replace("d1", &"d".repeat(5000)),
            String::new(),
        ];
        for other in others {
            assert!(Entry::parse(other.as_bytes()).is_err(), "{other}");
        }
    }

    #[test]
    fn a_word_is_short_and_plain() {
        assert_eq!(Word::new("bad_signature").as_str(), "bad_signature");
        for bad in ["", "two words", "Größe", "\"", &"x".repeat(65)] {
            assert!(Word::try_from(bad.to_owned()).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_entry_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Entry::parse(&bytes);
        }

        #[test]
        fn a_damaged_entry_is_refused_or_another_canonical_one(
            which in 0..examples().len(),
            at: prop::sample::Index,
            flip in 1..=255_u8,
        ) {
            let mut bytes = examples()[which].to_bytes();
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            if let Ok(entry) = Entry::parse(&bytes) {
                prop_assert_eq!(entry.to_bytes(), bytes);
            }
        }
    }
}
