//! The smallest federation that messages can cross: a cloud, one edge, one device.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use gaisnet::ids::{BootId, Digest, Name, NodeId};
use gaisnet::time::Wall;
use gaisnet::topic::{Branch, Prefix};
use gaisnet::trust::keyring::{Enrolment, Keyring, NodeEntry, Role, RootRole};
use gaisnet::trust::keys::SigningKey;
use gaisnet::trust::{Door, Sealer};
use gaisnet::wire::{Blob, Body, Contribution};

pub const DEVICE: &str = "press";
pub const EDGE: &str = "hall";

/// Bytes a chunk, the default.
pub const CHUNK_BYTES: u32 = 64 << 10;

pub struct Plant {
    pub federation: Name,
    pub prefix: Prefix,
    pub keyring: Arc<Keyring>,
    pub now: Wall,
}

impl Plant {
    pub fn new() -> Self {
        let now = now();
        let until = now.plus_ms(365 * 86_400_000);
        let root = SigningKey::generate(&[9; 32]);
        let root = RootRole { threshold: NonZeroU32::MIN, keys: vec![*root.public()] };
        let federation = name("fed");
        let mut keyring = Keyring::first(federation.clone(), root, now, until).unwrap();
        let places = [
            ("cloud", None, Role::Cloud),
            (EDGE, Some("cloud"), Role::Edge),
            (DEVICE, Some(EDGE), Role::Device),
        ];
        for (node, parent, role) in places {
            let roles = BTreeSet::from([role]);
            let proof = key(node).prove_possession(&federation, &name(node), &roles);
            let entry = NodeEntry {
                node: name(node),
                site: name("_"),
                line: name("_"),
                roles,
                parent: parent.map(name),
                key: *key(node).public(),
            };
            keyring = keyring.enrol(&Enrolment { entry, proof }, now, until).unwrap();
        }
        let prefix = Prefix::new("gaisnet").unwrap();
        Self { federation, prefix, keyring: Arc::new(keyring), now }
    }

    pub fn branch(&self, node: &str) -> Branch {
        Branch { prefix: self.prefix.clone(), site: name("_"), line: name("_"), node: name(node) }
    }

    pub fn sealer(&self, node: &str) -> Sealer {
        Sealer::new(key(node), self.federation.clone(), self.branch(node), BootId([1; 16]))
    }

    /// The edge, at its link to the device.
    pub fn door<'a>(&'a self, me: &'a NodeId) -> Door<'a> {
        let Self { federation, prefix, keyring, .. } = self;
        Door { federation, prefix, me, keyring }
    }
}

/// A contribution whose body grows with `bytes`; each `number` makes another one.
pub fn contribution(bytes: usize, number: u64) -> Body {
    Body::Contribution(
        Contribution {
            offer: Digest([7; 32]),
            version: 1,
            num_examples: number + 1,
            num_devices: 1,
            steps: 32,
            loss_first: 1.0,
            loss_last: 0.5,
            risk: None,
            stacked: false,
            delta: Some(Blob::Inline(vec![0x5a; bytes])),
            class_logits: None,
            knowledge: None,
        }
        .into(),
    )
}

pub fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub fn key(node: &str) -> SigningKey {
    SigningKey::generate(&Digest::of(node.as_bytes()).0)
}

#[expect(clippy::disallowed_methods, reason = "messages of a benchmark must not have expired")]
fn now() -> Wall {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Wall(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
