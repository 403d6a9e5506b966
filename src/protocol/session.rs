//! Split training between a device and its edge: two machines over frames that may get lost.
//!
//! ```text
//!   device: FrontSession                            edge: BackSessions, one a device
//!   begin ---- open (offer, cut, coding) ---------->  a copy of the back, from the offered adapter
//!         <------------------------- opened ------
//!   step  ---- forward (activations, settled) ---->  settle the step before; loss, gradient
//!         <---------- backward (gradient) --------   its own change waits until the device has taken its
//!   ...        (labels on the device: forward -> output -> output gradient -> backward)
//!   end   ---- finish (settled) ------------------>  what the back learned: on disk first
//!         <----------------------- finished ------
//!   contribute its front's delta, as any device
//! ```
//! The device drives and waits, for one answer at a time (a window of 1). Each exchange has a number that
//! only rises, also when a question is asked again; an answer that isn't the one waited for is dropped
//! and counted. A lost frame costs one step: the device goes on with the next batch, and the back forgets
//! the gradient that the device never took. A partner that stays silent ends the run: with what is learned
//! so far where it is enough, else the offer is declined. An edge that started again doesn't know the run
//! and says so; the device then starts it anew, since its front has moved away from any back there is.
//!
//! Frames are volatile: not in the outbox, not on disk. Durable are the number of the last run, and what a
//! back has learned once its run is over ([`super::Round`] joins it to the device's contribution).
//!
//! Called by [`super::SplitDevice`] and [`super::Relay`].

mod assembly;
mod back;
mod front;

pub use back::{BackEnd, BackTask};
pub(super) use back::{BackSessions, Learned, OpenTask};
pub(super) use front::FrontSession;
pub use front::{FrontConfig, FrontEnd, FrontTask};

use super::effect::{Delivery, Effect, To};
use crate::ids::{Epoch, RoundNo};
use crate::learn::{ActivationCoding, Activations, Cut, LearnError};
use crate::wire::{Body, Cells, Frame, SplitCoding, SplitMessage};

/// What both ends of a split model must agree on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SplitTerms {
    /// Where the model is cut.
    pub cut: Cut,
    /// How activations and gradients travel.
    pub coding: SplitCoding,
    /// Bytes a part, at most [`Frame::MAX_PART_BYTES`].
    pub part_bytes: u32,
}

/// Where frames of a run go, and which exchange they belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    run: u64,
    step: u32,
    turn: u8,
    round: RoundNo,
    epoch: Epoch,
}

impl SplitTerms {
    /// Cuts a message into frames and sends them, once.
    fn send(&self, to: &To, place: Place, message: &SplitMessage, out: &mut Vec<Effect>) {
        let bytes = match message.to_bytes() {
            Ok(bytes) => bytes,
            // Only numbers can be at fault: a batch that is too large, a loss that isn't finite.
            Err(error) => return out.push(Effect::Count(error.kind())),
        };
        let size = usize::try_from(self.part_bytes).unwrap_or(usize::MAX);
        let size = size.clamp(1024, Frame::MAX_PART_BYTES);
        let parts = u16::try_from(bytes.len().div_ceil(size)).unwrap_or(u16::MAX);
        if parts > Frame::MAX_PARTS {
            return out.push(Effect::Count("split_too_large"));
        }
        let Place { run, step, turn, round, epoch } = place;
        for (part, data) in (0_u16..).zip(bytes.chunks(size)) {
            let data = data.to_vec();
            out.push(Effect::Send {
                to: to.clone(),
                body: Body::Frame(Frame { run, step, turn, part, parts, data }),
                round,
                epoch,
                delivery: Delivery::Volatile,
            });
        }
    }

    fn cells(&self, activations: &Activations) -> Result<Cells, LearnError> {
        let size = |d: &usize| u32::try_from(*d).unwrap_or(u32::MAX);
        Ok(Cells {
            shape: activations.shape.iter().map(size).collect(),
            coding: self.coding,
            data: activations.encode(self.coding.into())?,
        })
    }

    /// Takes values only in the coding that was agreed on.
    fn values(&self, cells: &Cells) -> Result<Activations, &'static str> {
        if cells.coding != self.coding {
            return Err("split_coding");
        }
        let size = |d: &u32| usize::try_from(*d).unwrap_or(usize::MAX);
        let shape: Vec<usize> = cells.shape.iter().take(MAX_DIMS).map(size).collect();
        Activations::decode(cells.coding.into(), &shape, &cells.data).map_err(|error| match error {
            LearnError::NotFinite { .. } => "split_not_finite",
            _ => "split_shape",
        })
    }
}

impl From<SplitCoding> for ActivationCoding {
    fn from(coding: SplitCoding) -> Self {
        match coding {
            SplitCoding::F32 => Self::F32,
            SplitCoding::Int8 => Self::Int8,
        }
    }
}

/// One more than any has, so that a longer shape is refused and not cut short.
const MAX_DIMS: usize = Activations::MAX_DIMS + 1;

#[cfg(test)]
mod tests;
