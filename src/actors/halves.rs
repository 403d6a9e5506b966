//! The inferencer's side of a split model: which half this node has, and of which version.
//!
//! ```text
//! device  window -> lane: Pass -> question -> Tiers -> {edge}/infer/{model}
//! edge    infer/{model} -> taken -> lane: Finish -> reply/infer
//! ```
//! What is asked and what is refused is decided in `protocol/halves.rs`, how long a device waits in
//! `protocol/cascade.rs`; here is what must be remembered in between. Nothing of it touches the disk.

use std::collections::BTreeMap;

use crate::ids::{Digest, Version};
use crate::learn::{Activations, LearnError};
use crate::protocol::{Asked, SplitTerms};
use crate::scada::RequestId;
use crate::scada::at_cut::{AtCut, FrontMark};

/// What an inferencer of a split model works with.
#[derive(Debug, Clone)]
pub struct HalfParts {
    /// What device and edge agree on.
    pub terms: SplitTerms,
    /// Digest of the whole base.
    pub base: Digest,
    /// The untrained adapter of this node, packed: the front's part of it, or all.
    pub untrained: Vec<u8>,
    /// Which half.
    pub half: HalfOf,
}

/// Which half of the model a node answers with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HalfOf {
    /// A device: it asks its edge to go on.
    Front,
    /// An edge, beside its whole model.
    Back,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Halves {
    parts: HalfParts,
    /// The front in use.
    front: Option<FrontMark>,
    /// Fronts of adapters that are on their way into the lane.
    coming: BTreeMap<Version, FrontMark>,
    asked: Asked,
}

impl Halves {
    pub(super) fn new(parts: HalfParts) -> Self {
        let mut halves =
            Self { parts, front: None, coming: BTreeMap::new(), asked: Asked::default() };
        halves.front = halves.front_of(0, &halves.parts.untrained);
        halves
    }

    pub(super) fn is_front(&self) -> bool {
        self.parts.half == HalfOf::Front
    }

    /// A version is on its way into the lane: the front that belongs to it, if its adapter has one.
    pub(super) fn comes(&mut self, version: Version, adapter: &[u8]) -> Option<FrontMark> {
        let front = self.front_of(version, adapter)?;
        self.coming.insert(version, front);
        Some(front)
    }

    /// A version answers from now on.
    pub(super) fn serves(&mut self, version: Version) {
        self.front = self.coming.remove(&version);
        self.coming.retain(|coming, _| *coming > version);
    }

    /// What the edge is asked about these values.
    pub(super) fn question(&self, at_cut: &Activations) -> Result<AtCut, LearnError> {
        let front = self.front.ok_or_else(|| LearnError::Engine {
            engine: "split",
            message: "the front in use is of no known version".into(),
        })?;
        self.parts.terms.question(front, at_cut)
    }

    /// The values of a device's question; nothing when it was taken before.
    ///
    /// # Errors
    /// A short word: the question is refused by it.
    pub(super) fn taken(
        &mut self,
        id: Option<&RequestId>,
        question: &AtCut,
    ) -> Result<Option<Activations>, &'static str> {
        if self.is_front() {
            return Err("no_back");
        }
        let at_cut = self.parts.terms.answerable(question)?;
        Ok(id.is_none_or(|id| self.asked.is_new(id)).then_some(at_cut))
    }

    fn front_of(&self, version: Version, adapter: &[u8]) -> Option<FrontMark> {
        let HalfParts { terms, base, half, .. } = &self.parts;
        match half {
            HalfOf::Front => Some(FrontMark::new(version, base, adapter)),
            HalfOf::Back => terms.front_of(version, base, adapter),
        }
    }
}
