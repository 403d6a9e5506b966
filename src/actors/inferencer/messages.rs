//! What an inferencer is told, by the runner and the gateway, by itself, and by its lane, and what that carries. What comes of each is in
//! `handling.rs`; `text_inferencer.rs` takes some of them.

use std::sync::Arc;

use actix::prelude::*;

use super::super::attending::Waiting;
use super::super::figures::Figures;
use crate::ids::{Digest, Name, NodeId, Version};
use crate::learn::{Activations, LearnError, Prediction, TensorSet};
use crate::protocol::cascade::Ticket;
use crate::protocol::{Watch, update};
use crate::scada::RequestId;
use crate::scada::at_cut::FrontMark;
use crate::scada::infer::Input;
use crate::time::{Mono, Now, Wall};

/// From now on answer with this adapter.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Serve {
    /// Counts what was to be served: the last word is what holds, whichever way the version went.
    pub turn: u64,
    /// Its version.
    pub version: Version,
    /// The adapter, packed.
    pub adapter: Vec<u8>,
}

impl Serve {
    /// Its adapter; nothing when another one came while this one waited for room, or when it can't be read.
    pub(in crate::actors) fn opened(
        &self,
        turn: &mut u64,
        figures: &Figures,
    ) -> Option<Arc<TensorSet>> {
        if self.turn < *turn {
            return None;
        }
        *turn = self.turn;
        match update::unpack(&self.adapter) {
            Ok(adapter) => Some(Arc::new(adapter)),
            Err(error) => {
                let version = self.version;
                tracing::error!(%error, version, "an adapter can't be served; the old one stays");
                figures.count(error.kind());
                None
            }
        }
    }
}

/// From now on count what is seen of a version that is rolled out; nothing any more without one.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Attend {
    /// What is counted.
    pub watch: Option<Watch>,
    /// The adapter that answers beside the one in use, packed.
    pub beside: Option<Vec<u8>>,
}

/// A request on `infer/{model}`.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Request {
    /// The model.
    pub model: Name,
    /// Its JSON.
    pub payload: Vec<u8>,
    /// It was stored at the broker: not executed.
    pub retained: bool,
}

/// A label on `feedback/{model}`.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct LateLabel {
    /// The model.
    pub model: Name,
    /// Its JSON.
    pub payload: Vec<u8>,
    /// It was stored at the broker: not taken.
    pub retained: bool,
}

/// A message on a topic of the plant.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct TagSample {
    /// Its topic.
    pub topic: String,
    /// Its bytes.
    pub payload: Vec<u8>,
}

/// Something on `reply/infer` of the tier above.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct AboveSaid {
    /// Its JSON.
    pub payload: Vec<u8>,
    /// It was stored at the broker: nobody waits for it.
    pub retained: bool,
}

/// The node stops: what has to be recorded is.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Leaves;

/// A question on its way.
#[derive(Debug)]
pub(in crate::actors) struct Asked {
    /// Its number.
    pub(in crate::actors) ticket: Ticket,
    pub(super) from: Source,
    /// When it came.
    pub(in crate::actors) at: Now,
    /// When it needs an answer, if it said so.
    pub(in crate::actors) deadline: Option<Mono>,
    /// Nodes that passed it on.
    pub(in crate::actors) via: Vec<NodeId>,
    /// What may have to go on to the tier above: the window again, or what a front made of it.
    pub(in crate::actors) input: Option<Input>,
    /// The window again, where another version may answer it too.
    pub(in crate::actors) window: Option<Vec<f32>>,
}

#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct Answered {
    pub(super) asked: Asked,
    pub(super) result: Result<Prediction, LearnError>,
}

/// The front has done its part.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct Passed {
    pub(super) asked: Asked,
    pub(super) result: Result<(FrontMark, Activations), LearnError>,
}

/// The back went on from where a device's front stopped; without it there is no back of that front.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct Finished {
    pub(super) id: Option<RequestId>,
    pub(super) at: Now,
    pub(super) front: FrontMark,
    pub(super) result: Result<Option<Prediction>, LearnError>,
}

/// Another version answered windows beside the one in use.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct Compared {
    pub(super) serial: u64,
    pub(super) waiting: Vec<Waiting>,
    pub(super) result: Result<Vec<Prediction>, LearnError>,
}

/// The built-in window was answered.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct Probed {
    pub(super) turn: u64,
    pub(super) result: Result<Vec<Prediction>, LearnError>,
}

/// Held-out examples were answered.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) struct Scored {
    pub(super) run: (u64, usize),
    pub(super) result: Result<Vec<Prediction>, LearnError>,
}

/// The adapter is in place from the next answer on.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(in crate::actors) struct Loaded {
    pub(in crate::actors) version: Version,
    pub(in crate::actors) adapter: Digest,
    pub(in crate::actors) result: Result<(), LearnError>,
}

impl Loaded {
    /// Puts the new version in the place of the served one, if its adapter fits.
    pub(in crate::actors) fn settle(self, served: &mut Version, figures: &Figures) {
        match self.result {
            Ok(()) => {
                tracing::info!(version = self.version, "answers come from a new version");
                *served = self.version;
            }
            Err(error) => {
                tracing::error!(%error, version = self.version, "an adapter doesn't fit; the old one stays");
                figures.count(error.kind());
            }
        }
    }
}

/// Who waits for an answer.
#[derive(Debug, Clone)]
pub(in crate::actors) enum Source {
    /// A tag.
    Tag {
        /// The label that was true of the whole window.
        label: Option<String>,
        /// Digest of its topic.
        source: Digest,
        /// When the window's first sample came.
        began: Wall,
    },
    /// A request, with its id.
    Request(Option<RequestId>),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learn::Tensor;
    use crate::wire::Coding;

    fn serve(turn: u64, version: Version) -> Serve {
        let tensor = Tensor { name: "w".into(), shape: vec![1], data: vec![1.0] };
        let set = TensorSet::new(vec![tensor]).unwrap();
        Serve { turn, version, adapter: update::pack(&set, Coding::F32, 0).unwrap() }
    }

    #[test]
    fn what_waited_for_room_does_not_come_back_over_a_later_word() {
        let (mut turn, figures) = (0, Figures::default());
        let late = serve(4, 4);
        assert!(late.opened(&mut turn, &figures).is_some());
        assert!(late.opened(&mut turn, &figures).is_some(), "the same one may try again");
        // A rollback goes to a lower version, by a later word.
        assert!(serve(5, 3).opened(&mut turn, &figures).is_some());
        assert!(late.opened(&mut turn, &figures).is_none());
        assert_eq!(turn, 5);
    }
}
