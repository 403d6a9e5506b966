//! Which bodies may go from a site to the federation, as a type.
//!
//! A site tells the federation what it made of its examples, never one of them. [`LeavesSite`] is implemented
//! for the bodies that an edge says to its parent, and can't be implemented elsewhere; frames of a split model
//! (activations, labels, gradients) aren't among them, and for windows, tags and requests there is no body at
//! all. [`Leaving`] is the proof that a body is one of those. The link that takes nothing else is
//! `bus::Border`.

use std::sync::Arc;

use super::body::{Answer, Body, Checkpoint, Contribution, Get};
use super::failover::Promise;
use super::rollout::SiteEvidence;

/// A body that an edge says to its parent, so that leaves the site.
///
/// # Examples
/// A wish for a result may leave:
/// ```
/// use gaisnet::wire::{Get, Leaving, Wanted};
/// let leaving = Leaving::new(Get { wanted: Wanted::Latest });
/// # let _ = leaving;
/// ```
/// A frame of a split model is a body too, and may not:
/// ```compile_fail,E0277
/// use gaisnet::wire::{Frame, Leaving};
/// let leaving = Leaving::new(Frame { run: 1, step: 0, turn: 0, part: 0, parts: 1, data: Vec::new() });
/// # let _ = leaving;
/// ```
/// Nor may what comes out of one:
/// ```compile_fail,E0277
/// use gaisnet::wire::{Leaving, SplitMessage};
/// let leaving = Leaving::new(SplitMessage::Opened);
/// # let _ = leaving;
/// ```
/// Nor training examples:
/// ```compile_fail,E0277
/// use gaisnet::{learn::Windows, wire::Leaving};
/// let leaving = Leaving::new(Windows::default());
/// # let _ = leaving;
/// ```
/// Nobody else can say that something may:
/// ```compile_fail,E0277
/// struct Labels(Vec<usize>);
/// impl gaisnet::wire::LeavesSite for Labels {}
/// ```
pub trait LeavesSite: sealed::Body {}

impl LeavesSite for Answer {}
impl LeavesSite for Arc<Contribution> {}
impl LeavesSite for Get {}
/// The head of a ledger.
impl LeavesSite for Checkpoint {}
/// A number.
impl LeavesSite for Promise {}
/// Sums over a site's devices.
impl LeavesSite for SiteEvidence {}

/// A body that may leave its site.
#[derive(Debug, Clone, PartialEq)]
pub struct Leaving(Body);

impl Leaving {
    /// Takes what may leave by its type.
    pub fn new(body: impl LeavesSite) -> Self {
        Self(sealed::Body::body(body))
    }

    /// Takes a body of any kind, if it is one of those.
    ///
    /// # Errors
    /// [`StaysInSite`].
    pub fn sort(body: Body) -> Result<Self, StaysInSite> {
        match body {
            Body::Answer(body) => Ok(Self::new(body)),
            Body::Contribution(body) => Ok(Self::new(body)),
            Body::Get(body) => Ok(Self::new(body)),
            Body::Checkpoint(body) => Ok(Self::new(body)),
            Body::Promise(body) => Ok(Self::new(body)),
            Body::SiteEvidence(body) => Ok(Self::new(body)),
            // Frames by what they say, the others since no edge says them to its parent.
            Body::Frame(_)
            | Body::Offer(_)
            | Body::Receipt(_)
            | Body::Result(_)
            | Body::Keyring(_)
            | Body::Command(_)
            | Body::Base(_)
            | Body::Lease(_)
            | Body::Mirror(_)
            | Body::Assignment(_)
            | Body::Evidence(_) => Err(StaysInSite),
        }
    }

    /// The body.
    pub fn body(&self) -> &Body {
        &self.0
    }
}

/// Something was to leave its site that may not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this may not leave its site: no edge says it to its parent")]
pub struct StaysInSite;

impl StaysInSite {
    /// A short word for metrics and logs.
    pub const KIND: &'static str = "stays_in_site";
}

mod sealed {
    use super::{Answer, Arc, Checkpoint, Contribution, Get, Promise, SiteEvidence};

    /// What may leave, as the body that it is on the wire.
    pub trait Body {
        fn body(self) -> super::Body;
    }

    impl Body for Answer {
        fn body(self) -> super::Body {
            super::Body::Answer(self)
        }
    }

    impl Body for Arc<Contribution> {
        fn body(self) -> super::Body {
            super::Body::Contribution(self)
        }
    }

    impl Body for Get {
        fn body(self) -> super::Body {
            super::Body::Get(self)
        }
    }

    impl Body for Checkpoint {
        fn body(self) -> super::Body {
            super::Body::Checkpoint(self)
        }
    }

    impl Body for Promise {
        fn body(self) -> super::Body {
            super::Body::Promise(self)
        }
    }

    impl Body for SiteEvidence {
        fn body(self) -> super::Body {
            super::Body::SiteEvidence(self)
        }
    }
}
