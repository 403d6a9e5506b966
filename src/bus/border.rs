//! The border of a site: the link from an edge to the federation, which takes nothing of a sample.
//!
//! ```text
//! Leaving (wire/leaves.rs) --seal--.
//! our outbox, a blob's chunk       |
//! presence                         +--> Crossing --> Border::publish
//! ToCloud + a request -------------'
//! ```
//! A [`Border`] publishes a [`Crossing`] and nothing else, and those five ways are all there are to make one. So
//! windows, labels, tags, answers and frames can't be given to it by mistake: it doesn't compile. The one door
//! for a sample is [`ToCloud`], which `cascade.to_cloud` opens. Links inside a zone are plain buses; [`Line`] is
//! either.
//!
//! What it can't know: whether an adapter tells of the examples that it was made from. Called by the actors.

use std::sync::Arc;

use super::{Bus, BusError, Priority, Publish};
use crate::ids::{Epoch, Name, NodeId, RoundNo};
use crate::scada::telegram::Status;
use crate::time::Wall;
use crate::topic::Branch;
use crate::trust::{Sealer, To};
use crate::wire::{
    Body, Chunk, CodecError, Envelope, Kind, Leaving, MAX_MESSAGE_BYTES, StaysInSite, encode,
    split_pair,
};

/// A message that may leave its site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crossing(Publish);

impl Crossing {
    /// Seals what may leave by its type.
    ///
    /// # Errors
    /// [`CodecError`] when the body breaks a bound of the wire.
    pub fn seal(
        sealer: &mut Sealer,
        to: &To,
        leaving: &Leaving,
        round: RoundNo,
        epoch: Epoch,
        now: Wall,
    ) -> Result<Self, CodecError> {
        let (topic, payload) = sealer.seal(to, leaving.body(), round, epoch, now)?;
        Ok(Self(control(topic, payload)))
    }

    /// What was sealed before and lay in this node's outbox: looked into, since bytes have no type.
    ///
    /// # Errors
    /// [`StaysInSite`]: it isn't an envelope around a body that may leave.
    pub fn kept(message: Publish) -> Result<Self, StaysInSite> {
        let envelope = Envelope::from_bytes(&message.payload, MAX_MESSAGE_BYTES);
        let envelope = envelope.map_err(|_| StaysInSite)?;
        let kind = Kind::ALL.into_iter().find(|kind| kind.payload_type() == envelope.payload_type);
        let (_, body) =
            split_pair(&envelope.payload, MAX_MESSAGE_BYTES).map_err(|_| StaysInSite)?;
        let body = Body::from_bytes(kind.ok_or(StaysInSite)?, body).map_err(|_| StaysInSite)?;
        Leaving::sort(body)?;
        Ok(Self(message))
    }

    /// A piece of a blob that this node has offered or contributed.
    ///
    /// # Errors
    /// [`CodecError`] when it breaks a bound of the wire.
    pub fn chunk(branch: &Branch, to: &NodeId, chunk: &Chunk) -> Result<Self, CodecError> {
        let message = control(branch.to(to, "chunk"), encode(chunk)?);
        Ok(Self(Publish { priority: Priority::Bulk, ..message }))
    }

    /// That this node is there: retained.
    ///
    /// # Errors
    /// The telegram can't be written as JSON.
    pub fn presence(branch: &Branch, status: &Status) -> Result<Self, serde_json::Error> {
        let message = control(branch.status(), serde_json::to_vec(status)?);
        Ok(Self(Publish { retain: true, ..message }))
    }

    /// A request that the site's own models weren't sure of, with its window in it.
    pub fn question(_door: &ToCloud, cloud: &Branch, model: &Name, request: Vec<u8>) -> Self {
        Self(control(cloud.infer(model), request))
    }
}

/// The door for a sample: whoever has it may send a window to the cloud.
///
/// # Examples
/// ```
/// use gaisnet::bus::ToCloud;
/// assert!(ToCloud::opened(false).is_none());
/// ```
/// It doesn't open itself:
/// ```compile_fail,E0423
/// let door = gaisnet::bus::ToCloud(());
/// # let _ = door;
/// ```
#[derive(Debug, Clone)]
pub struct ToCloud(());

impl ToCloud {
    /// Opened where the setting `cascade.to_cloud` says so.
    pub fn opened(to_cloud: bool) -> Option<Self> {
        to_cloud.then_some(Self(()))
    }
}

/// The link from a site to the federation.
///
/// # Examples
/// That a node is there may be said:
/// ```
/// # use gaisnet::{bus::{Border, BusError, Crossing}, scada::telegram::Status, topic::Branch};
/// fn hello(border: &Border, branch: &Branch, status: &Status) -> Result<(), BusError> {
///     let crossing = Crossing::presence(branch, status).map_err(|_| BusError::Closed)?;
///     border.publish(crossing)
/// }
/// ```
/// Any bytes may not:
/// ```compile_fail,E0308
/// # use gaisnet::bus::{Border, BusError, Publish};
/// fn leak(border: &Border, windows: Publish) -> Result<(), BusError> {
///     border.publish(windows)
/// }
/// ```
/// A question goes with the door open:
/// ```
/// # use gaisnet::{bus::{Border, BusError, Crossing, ToCloud}, ids::Name, topic::Branch};
/// fn ask(border: &Border, door: &ToCloud, cloud: &Branch, model: &Name) -> Result<(), BusError> {
///     border.publish(Crossing::question(door, cloud, model, b"{}".to_vec()))
/// }
/// ```
/// and not without it:
/// ```compile_fail,E0061
/// # use gaisnet::{bus::{Border, BusError, Crossing, ToCloud}, ids::Name, topic::Branch};
/// fn ask(border: &Border, cloud: &Branch, model: &Name) -> Result<(), BusError> {
///     border.publish(Crossing::question(cloud, model, b"{}".to_vec()))
/// }
/// ```
/// The bus behind it can't be had:
/// ```compile_fail,E0616
/// # use gaisnet::bus::{Border, BusError, Publish};
/// fn leak(border: &Border, windows: Publish) -> Result<(), BusError> {
///     border.bus.publish(windows)
/// }
/// ```
#[derive(Clone)]
pub struct Border {
    bus: Arc<dyn Bus>,
}

impl Border {
    /// Makes a link one that leaves the site.
    pub fn new(bus: Arc<dyn Bus>) -> Self {
        Self { bus }
    }

    /// Queues a message, as [`Bus::publish`] does.
    ///
    /// # Errors
    /// [`BusError`].
    pub fn publish(&self, Crossing(message): Crossing) -> Result<(), BusError> {
        self.bus.publish(message)
    }

    /// Adds topic filters, as [`Bus::subscribe`] does.
    ///
    /// # Errors
    /// [`BusError`].
    pub fn subscribe(&self, filters: &[String]) -> Result<(), BusError> {
        self.bus.subscribe(filters)
    }
}

/// A link, by the zone that it ends in.
#[derive(Clone)]
pub enum Line {
    /// In the zone of this node.
    Inside(Arc<dyn Bus>),
    /// From a site to the federation.
    Border(Border),
}

/// A message for a [`Line`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outgoing {
    /// For a link inside the zone only.
    Stays(Publish),
    /// For any link.
    Crosses(Crossing),
}

/// Why a body wasn't sealed for a link.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// It breaks a bound of the wire.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The link leaves the site, and it may not.
    #[error(transparent)]
    Stays(#[from] StaysInSite),
}

impl Line {
    /// Seals a body for this link.
    ///
    /// # Errors
    /// [`SealError`].
    pub fn seal(
        &self,
        sealer: &mut Sealer,
        to: &To,
        body: Body,
        (round, epoch): (RoundNo, Epoch),
        now: Wall,
    ) -> Result<Outgoing, SealError> {
        Ok(match self {
            Self::Inside(_) => {
                let (topic, payload) = sealer.seal(to, &body, round, epoch, now)?;
                Outgoing::Stays(control(topic, payload))
            }
            Self::Border(_) => {
                let leaving = Leaving::sort(body)?;
                Crossing::seal(sealer, to, &leaving, round, epoch, now)?.into()
            }
        })
    }

    /// What was sealed for this link before.
    ///
    /// # Errors
    /// [`StaysInSite`].
    pub fn kept(&self, message: Publish) -> Result<Outgoing, StaysInSite> {
        match self {
            Self::Inside(_) => Ok(Outgoing::Stays(message)),
            Self::Border(_) => Crossing::kept(message).map(Outgoing::Crosses),
        }
    }

    /// Queues a message, as [`Bus::publish`] does.
    ///
    /// # Errors
    /// [`BusError`].
    pub fn publish(&self, outgoing: Outgoing) -> Result<(), BusError> {
        match (self, outgoing) {
            (
                Self::Inside(bus),
                Outgoing::Stays(message) | Outgoing::Crosses(Crossing(message)),
            ) => bus.publish(message),
            (Self::Border(border), Outgoing::Crosses(crossing)) => border.publish(crossing),
            (Self::Border(_), Outgoing::Stays(_)) => Err(BusError::StaysInSite(StaysInSite)),
        }
    }

    /// Adds topic filters; what is retained under them comes, also where they were known before.
    ///
    /// # Errors
    /// [`BusError`].
    pub fn subscribe(&self, filters: &[String]) -> Result<(), BusError> {
        match self {
            Self::Inside(bus) => bus.subscribe(filters),
            Self::Border(border) => border.subscribe(filters),
        }
    }
}

impl Outgoing {
    /// Its topic.
    pub fn topic(&self) -> &str {
        &self.message().topic
    }

    /// Its bytes.
    pub fn payload(&self) -> &[u8] {
        &self.message().payload
    }

    /// The same bytes, sent in another way.
    #[must_use]
    pub fn sent(self, at_least_once: bool, retain: bool, priority: Priority) -> Self {
        let sent = |message| Publish { at_least_once, retain, priority, ..message };
        match self {
            Self::Stays(message) => Self::Stays(sent(message)),
            Self::Crosses(Crossing(message)) => Self::Crosses(Crossing(sent(message))),
        }
    }

    fn message(&self) -> &Publish {
        match self {
            Self::Stays(message) | Self::Crosses(Crossing(message)) => message,
        }
    }
}

impl From<Crossing> for Outgoing {
    fn from(crossing: Crossing) -> Self {
        Self::Crosses(crossing)
    }
}

fn control(topic: String, payload: Vec<u8>) -> Publish {
    let (at_least_once, retain, priority) = (true, false, Priority::Control);
    Publish { topic, payload, at_least_once, retain, priority }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::ids::BootId;
    use crate::topic::Prefix;
    use crate::trust::keys::SigningKey;
    use crate::wire::{Frame, Get, Wanted};

    #[derive(Default)]
    struct Heard(Mutex<Vec<Publish>>);

    impl Bus for Heard {
        fn subscribe(&self, _: &[String]) -> Result<(), BusError> {
            Ok(())
        }

        fn publish(&self, message: Publish) -> Result<(), BusError> {
            self.0.lock().unwrap().push(message);
            Ok(())
        }

        fn close(&self, _: u64) {}
    }

    fn sealer() -> Sealer {
        let branch = Branch {
            prefix: Prefix::new("gaisnet").unwrap(),
            site: Name::new("north").unwrap(),
            line: Name::new("_").unwrap(),
            node: NodeId::new("edge").unwrap(),
        };
        let key = SigningKey::generate(&[1; 32]);
        Sealer::new(key, Name::new("pilot").unwrap(), branch, BootId([1; 16]))
    }

    fn frame() -> Body {
        Body::Frame(Frame { run: 1, step: 0, turn: 0, part: 0, parts: 1, data: vec![7; 64] })
    }

    fn get() -> Body {
        Body::Get(Get { wanted: Wanted::Latest })
    }

    fn links() -> (Arc<Heard>, Line, Arc<Heard>, Line) {
        let (inside, out) = (Arc::new(Heard::default()), Arc::new(Heard::default()));
        let border = Line::Border(Border::new(Arc::clone(&out) as Arc<dyn Bus>));
        (Arc::clone(&inside), Line::Inside(inside), out, border)
    }

    #[test]
    fn a_frame_is_sealed_for_a_link_of_the_site_and_not_for_its_border() {
        let (heard, inside, out, border) = links();
        let (mut sealer, to) = (sealer(), To::Directly(NodeId::new("cloud").unwrap()));
        let mut say = |line: &Line, body| line.seal(&mut sealer, &to, body, (1, 1), Wall(0));
        let stays = say(&inside, frame()).unwrap();
        assert_eq!(say(&border, frame()), Err(SealError::Stays(StaysInSite)));
        assert_eq!(border.publish(stays.clone()), Err(BusError::StaysInSite(StaysInSite)));
        inside.publish(stays).unwrap();
        border.publish(say(&border, get()).unwrap()).unwrap();
        assert_eq!((heard.0.lock().unwrap().len(), out.0.lock().unwrap().len()), (1, 1));
    }

    #[test]
    fn bytes_of_an_outbox_are_looked_into_before_they_cross() {
        let (_, inside, out, border) = links();
        let (mut sealer, to) = (sealer(), To::Anyone);
        let mut bytes = |body| {
            let (topic, payload) = sealer.seal(&to, &body, 1, 1, Wall(0)).unwrap();
            control(topic, payload)
        };
        let (frame, get) = (bytes(frame()), bytes(get()));
        // A frame that calls itself a wish: its bytes aren't those of one.
        let mut lie = Envelope::from_bytes(&frame.payload, MAX_MESSAGE_BYTES).unwrap();
        lie.payload_type = Kind::Get.payload_type();
        let lie = Publish { payload: lie.to_bytes().unwrap(), ..frame.clone() };
        let plain = Publish { payload: b"{\"input\":[1.0]}".to_vec(), ..frame.clone() };
        for bad in [frame, lie, plain] {
            assert_eq!(border.kept(bad.clone()), Err(StaysInSite));
            assert!(inside.kept(bad).is_ok());
        }
        border.publish(border.kept(get.clone()).unwrap()).unwrap();
        assert_eq!(*out.0.lock().unwrap(), [get]);
    }
}
