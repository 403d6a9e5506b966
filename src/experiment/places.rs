//! Who takes part: a cloud, an edge a site, a device a machine; their keys and keyring live in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;

use super::{ExperimentError, Machine};
use crate::ids::{Name, NodeId};
use crate::store::keyfile::new_signing_key;
use crate::time::Wall;
use crate::trust::keyring::{Enrolment, Keyring, NodeEntry, Role, RootRole};
use crate::trust::keys::SigningKey;

/// One node.
pub(super) struct Place {
    pub(super) node: NodeId,
    pub(super) site: Name,
    pub(super) line: Name,
    pub(super) parent: Option<NodeId>,
    pub(super) role: Role,
    /// Index of its machine, of devices.
    pub(super) machine: Option<usize>,
}

/// All nodes, the cloud first, and what they know each other by.
pub(super) struct Places {
    pub(super) all: Vec<Place>,
    pub(super) keys: BTreeMap<NodeId, SigningKey>,
    pub(super) keyring: Keyring,
}

impl Places {
    /// A device for each machine, under the edge of its site.
    pub(super) fn new(
        federation: &Name,
        machines: &[Machine],
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
            machine: None,
        }];
        let mut sites = BTreeSet::new();
        for (at, machine) in machines.iter().enumerate() {
            let (site, edge) = (name(&machine.site)?, name(&format!("edge-{}", machine.site))?);
            if sites.insert(site.clone()) {
                all.push(Place {
                    node: edge.clone(),
                    site: site.clone(),
                    line: none.clone(),
                    parent: Some(cloud.clone()),
                    role: Role::Edge,
                    machine: None,
                });
            }
            all.push(Place {
                node: name(&format!("machine-{}", machine.name))?,
                site,
                line: name("machines")?,
                parent: Some(edge),
                role: Role::Device,
                machine: Some(at),
            });
        }
        let (keys, keyring) = enrol(federation, &all, now)?;
        Ok(Self { all, keys, keyring })
    }
}

fn enrol(
    federation: &Name,
    places: &[Place],
    now: Wall,
) -> Result<(BTreeMap<NodeId, SigningKey>, Keyring), ExperimentError> {
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
    Ok((keys, keyring))
}

fn name(text: &str) -> Result<Name, ExperimentError> {
    Name::new(text).map_err(|_| ExperimentError::Name(text.to_owned()))
}

const YEAR_MS: u64 = 365 * 86_400_000;
