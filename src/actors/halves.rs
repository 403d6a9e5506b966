//! The inferencer's side of a split model: which half this node has.
//!
//! ```text
//! device  window -> lane: Pass -> question -> Tiers -> {edge}/infer/{model}
//! edge    infer/{model} -> taken -> lane: Finish -> reply/infer
//! ```
//! What is asked and what is refused is decided in `protocol/halves.rs`, how long a device waits in
//! `protocol/cascade.rs`, and which front or back is in use is known by the lane that has it: a message that
//! gets lost can't make the two differ. Nothing of it touches the disk.

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
    asked: Asked,
}

impl Halves {
    pub(super) fn new(parts: HalfParts) -> Self {
        Self { parts, asked: Asked::default() }
    }

    pub(super) fn is_front(&self) -> bool {
        self.parts.half == HalfOf::Front
    }

    /// The front that belongs to this version of this node's adapter, packed: for the lane.
    pub(super) fn front_of(&self, version: Version, adapter: &[u8]) -> Option<FrontMark> {
        let HalfParts { terms, base, half } = &self.parts;
        match half {
            HalfOf::Front => Some(FrontMark::new(version, base, adapter)),
            HalfOf::Back => terms.front_of(version, base, adapter),
        }
    }

    /// What the edge is asked about what a front has made.
    pub(super) fn question(
        &self,
        front: FrontMark,
        at_cut: &Activations,
    ) -> Result<AtCut, LearnError> {
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
}
