//! Who takes part: a cloud, an edge a site, a device a party; their keys and keyring lie beside their
//! stores, so that a later process can be them again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::num::NonZeroU32;
use std::path::Path;

use super::ExperimentError;
use crate::ids::{Name, NodeId};
#[cfg(feature = "torch")]
use crate::node::NodeError;
use crate::store::keyfile::{new_signing_key, read_signing_key, write_signing_key};
use crate::time::Wall;
use crate::trust::keyring::{Enrolment, Keyring, NodeEntry, Role, RootRole};
use crate::trust::keyring_document::{open_document, seal_document};
use crate::trust::keys::SigningKey;

/// One node.
pub(super) struct Place {
    pub(super) node: NodeId,
    pub(super) site: Name,
    pub(super) line: Name,
    pub(super) parent: Option<NodeId>,
    pub(super) role: Role,
    /// Index of its party, of devices.
    pub(super) party: Option<usize>,
}

type Keys = BTreeMap<NodeId, SigningKey>;

/// All nodes, the cloud first, and what they know each other by.
pub(super) struct Places {
    pub(super) all: Vec<Place>,
    pub(super) keys: Keys,
    pub(super) keyring: Keyring,
}

impl Places {
    /// A device for each party (its name and its site), under the edge of the site: those of `folder`, or new ones that are
    /// kept there.
    pub(super) fn open(
        folder: &Path,
        federation: &Name,
        parties: &[(&str, &str)],
        now: Wall,
    ) -> Result<Self, ExperimentError> {
        let none = name("_")?;
        let cloud = name("cloud")?;
        let mut all = vec![Place {
            node: cloud.clone(),
            site: none.clone(),
            line: none.clone(),
            parent: None,
            role: Role::Cloud,
            party: None,
        }];
        let mut sites = BTreeSet::new();
        for (at, (party, at_site)) in parties.iter().enumerate() {
            let (site, edge) = (name(at_site)?, name(&format!("edge-{at_site}"))?);
            if sites.insert(site.clone()) {
                all.push(Place {
                    node: edge.clone(),
                    site: site.clone(),
                    line: none.clone(),
                    parent: Some(cloud.clone()),
                    role: Role::Edge,
                    party: None,
                });
            }
            all.push(Place {
                node: name(&format!("machine-{party}"))?,
                site,
                line: name("machines")?,
                parent: Some(edge),
                role: Role::Device,
                party: Some(at),
            });
        }
        let document = folder.join(KEYRING);
        if !document.exists() {
            // The keyring comes last: where it lies, all keys do.
            let (keys, keyring, sealed) = enrol(federation, &all, now)?;
            fs::create_dir_all(folder)
                .map_err(|error| ExperimentError::Io(folder.to_owned(), error))?;
            for (node, key) in &keys {
                write_signing_key(&key_of(folder, node), key)?;
            }
            fs::write(&document, sealed).map_err(|e| ExperimentError::Io(document, e))?;
            return Ok(Self { all, keys, keyring });
        }
        let keyring = read_keyring(folder)?;
        let mut keys = BTreeMap::new();
        for place in &all {
            let expected = keyring.node(&place.node).map(|entry| entry.key);
            let key = read_signing_key(&key_of(folder, &place.node), expected.as_ref())?;
            keys.insert(place.node.clone(), key);
        }
        Ok(Self { all, keys, keyring })
    }
}

/// One node and what it knows, as another process has enrolled it.
#[cfg(feature = "torch")]
pub(super) struct Enrolled {
    pub(super) place: Place,
    pub(super) key: SigningKey,
    pub(super) keyring: Keyring,
}

#[cfg(feature = "torch")]
impl Enrolled {
    /// The node of this name of `folder`, with its own key and nobody else's.
    pub(super) fn read(folder: &Path, node: &NodeId) -> Result<Self, ExperimentError> {
        let keyring = read_keyring(folder)?;
        let entry = keyring.node(node).cloned();
        let entry = entry.ok_or_else(|| NodeError::NotEnrolled(node.clone()))?;
        let key = read_signing_key(&key_of(folder, node), Some(&entry.key))?;
        let NodeEntry { node, site, line, roles, parent, .. } = entry;
        let role = roles.first().copied().ok_or_else(|| NodeError::NoRole(node.clone()))?;
        Ok(Self { place: Place { node, site, line, parent, role, party: None }, key, keyring })
    }
}

fn read_keyring(folder: &Path) -> Result<Keyring, ExperimentError> {
    let document = folder.join(KEYRING);
    let bytes = fs::read(&document).map_err(|e| ExperimentError::Io(document, e))?;
    Ok(open_document(&bytes, None)?)
}

fn key_of(folder: &Path, node: &NodeId) -> std::path::PathBuf {
    folder.join("keys").join(format!("{node}.pem"))
}

fn enrol(
    federation: &Name,
    places: &[Place],
    now: Wall,
) -> Result<(Keys, Keyring, Vec<u8>), ExperimentError> {
    let root = new_signing_key()?;
    let until = now.plus_ms(YEAR_MS);
    let role = RootRole { threshold: NonZeroU32::MIN, keys: vec![*root.public()] };
    let mut keyring = Keyring::first(federation.clone(), role, now, until)?;
    let mut keys = BTreeMap::new();
    for place in places {
        let key = new_signing_key()?;
        let roles = BTreeSet::from([place.role]);
        let proof = key.prove_possession(federation, &place.node, &roles);
        let entry = NodeEntry {
            node: place.node.clone(),
            site: place.site.clone(),
            line: place.line.clone(),
            roles,
            parent: place.parent.clone(),
            key: *key.public(),
        };
        keyring = keyring.enrol(&Enrolment { entry, proof }, now, until)?;
        keys.insert(place.node.clone(), key);
    }
    let sealed = seal_document(&keyring, &[&root])?;
    Ok((keys, keyring, sealed))
}

fn name(text: &str) -> Result<Name, ExperimentError> {
    Name::new(text).map_err(|_| ExperimentError::Name(text.to_owned()))
}

const KEYRING: &str = "keyring.gk";
const YEAR_MS: u64 = 365 * 86_400_000;
