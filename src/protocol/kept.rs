//! Adapters of the versions that a rollout may name, kept as chunks that others can fetch.
//!
//! Bounded: the untrained one, those that are needed, and the newest four of the others. Called by [`super::Steward`] and
//! [`super::Deputy`].

use std::collections::{BTreeMap, BTreeSet};

use super::effect::{Effect, To};
use super::round::put;
use crate::ids::{Digest, NodeId, RoundNo, Side, Version};
use crate::wire::{Blob, Body, MAX_UPDATE_BYTES, Manifest, Wanted, decode};

/// See the module.
#[derive(Debug)]
pub(super) struct Kept {
    manifests: BTreeMap<Version, Manifest>,
    /// Bytes a chunk of adapters that travel inside their message otherwise.
    chunk_bytes: u32,
}

impl Kept {
    const PREFIX: &'static str = "rollout/kept/";
    const STATE_CAP: usize = 1 << 17;
    /// Versions that are kept beside those that are needed.
    const MAX: usize = 4;

    /// What `state` left, and the untrained adapter: version 0.
    ///
    /// # Errors
    /// The key whose value can't be read: the store is damaged.
    pub(super) fn new(
        untrained: Manifest,
        chunk_bytes: u32,
        state: &[(String, Vec<u8>)],
    ) -> Result<Self, String> {
        let mut manifests = BTreeMap::new();
        for (key, value) in state {
            let Some(version) = key.strip_prefix(Self::PREFIX) else { continue };
            let version = version.parse().map_err(|_| format!("{key}: no version"))?;
            let manifest = decode(value, Self::STATE_CAP);
            manifests.insert(version, manifest.map_err(|error| format!("{key}: {error}"))?);
        }
        manifests.insert(0, untrained);
        Ok(Self { manifests, chunk_bytes })
    }

    /// Chunks of a version's adapter.
    pub(super) fn get(&self, version: Version) -> Option<&Manifest> {
        self.manifests.get(&version)
    }

    /// Keeps one more, and forgets the oldest of those that aren't `needed`.
    pub(super) fn keep(
        &mut self,
        version: Version,
        adapter: &Blob,
        needed: &[Version],
        out: &mut Vec<Effect>,
    ) {
        let manifest = match adapter {
            Blob::Inline(bytes) => Manifest::of(bytes, self.chunk_bytes),
            Blob::Manifest(manifest) => manifest.clone(),
        };
        put(format!("{}{version}", Self::PREFIX), &manifest, out);
        self.manifests.insert(version, manifest);
        let needed = |version: &Version| *version == 0 || needed.contains(version);
        let mut others: Vec<Version> =
            self.manifests.keys().copied().filter(|version| !needed(version)).collect();
        others.truncate(others.len().saturating_sub(Self::MAX));
        for version in others {
            self.manifests.remove(&version);
            out.push(Effect::Delete(format!("{}{version}", Self::PREFIX).into()));
        }
    }

    /// Chunks of a kept adapter, for a node that asks for them.
    pub(super) fn chunks(&self, to: &NodeId, wanted: &Wanted) -> Option<Effect> {
        let Wanted::Chunks { sha256, indices } = wanted else { return None };
        let manifest = self.manifests.values().find(|manifest| manifest.sha256 == *sha256)?;
        Some(Effect::SendChunks {
            to: to.clone(),
            side: Side::Down,
            sha256: *sha256,
            chunk_bytes: manifest.chunk_bytes,
            indices: indices.iter().copied().take(Wanted::MAX_CHUNKS).collect(),
        })
    }

    /// Blobs that must be kept.
    pub(super) fn blobs(&self) -> BTreeSet<Digest> {
        self.manifests.values().map(|manifest| manifest.sha256).collect()
    }
}

/// The versions that an owner of rounds hands down with these effects. What a site learns alone is none, nor is the untrained
/// one, nor a round in which each has a model of its own.
pub(super) fn handed_down(effects: &[Effect]) -> impl Iterator<Item = (Version, &Blob, RoundNo)> {
    effects.iter().filter_map(|effect| {
        let Effect::Send { to: To::Children, body, round, .. } = effect else { return None };
        let (version, adapter) = match body {
            Body::Result(result) => (result.version, &result.adapter),
            Body::Offer(offer) if offer.island.is_none() => (offer.version, &offer.adapter),
            _ => return None,
        };
        let is_one = version > 0 && !adapter.is_empty() && adapter.len() <= MAX_UPDATE_BYTES;
        is_one.then_some((version, adapter, *round))
    })
}
