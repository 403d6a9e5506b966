//! Who answers a request: this node's own model, or the tier above.
//!
//! ```text
//! own answer --> sure enough? --yes--> answer, with its bound
//!                     | no
//!                     v
//!               ask the tier above --> reply: pass it on
//!                     | deadline, busy, refusal, link down
//!                     v
//!               own answer, marked -- or the safe default
//! ```
//! A device with the front of a split model has no own answer: it asks its edge each time, and without a reply
//! gives the safe default or none.
//!
//! Each request that comes in ends exactly once, whatever the tier above does: replies that are late,
//! repeated or nobody's are dropped and counted. How many may be under way is bounded.
//!
//! Here is no model, no topic and no JSON: the inferencer brings the own answer, publishes what is
//! escalated, and reads the replies (`scada/escalation.rs`). What a confidence is worth is measured by
//! `learn/calibration.rs`, for one version at a time.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::{Digest, Version};
use crate::learn::{Calibration, Prediction, at_temperature};
use crate::scada::escalation::Heard;
use crate::scada::infer::MAX_HOPS;
use crate::scada::telegram::Degraded;
use crate::time::Mono;
use crate::wire::{CodecError, decode, encode};

/// Number of a request inside this node; never used twice in one start of it.
pub type Ticket = u64;

/// How a node decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CascadeConfig {
    /// There is a tier above that may be asked.
    pub above: bool,
    /// Waits so long for a reply to a request that has no deadline of its own.
    pub wait_ms: u64,
    /// Requests that wait for the tier above at a time.
    pub in_flight: usize,
    /// What to do without a reply.
    pub on_no_reply: OnNoReply,
    /// What to do while nothing is known about the served version.
    pub uncalibrated: Uncalibrated,
}

/// What to do when the tier above didn't answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnNoReply {
    /// Give the own answer, marked.
    Own,
    /// Give none but the safe default.
    Abstain,
}

/// What to do while the served version has no calibration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Uncalibrated {
    /// Ask the tier above each time.
    Escalate,
    /// Give the own answer, marked.
    Own,
}

/// What was measured of one version, as it is kept over a restart.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Calibrated {
    /// The version.
    pub version: Version,
    /// SHA-256 of its packed adapter: a version number may come back with another one.
    pub adapter: Digest,
    /// Rate of wrong answers that was asked for.
    pub alpha: f64,
    /// Probability of being misled that was asked for.
    pub delta: f64,
    /// What came out.
    pub calibration: Calibration,
}

impl Calibrated {
    /// Its key in the store.
    pub const KEY: &'static str = "cascade/calibrated";

    const CAP: usize = 1024;

    /// As it lies in the store.
    ///
    /// # Errors
    /// [`CodecError`] when a number isn't finite.
    pub fn to_bytes(&self) -> Result<Vec<u8>, CodecError> {
        encode(self)
    }

    /// Reads what [`Self::to_bytes`] wrote.
    ///
    /// # Errors
    /// [`CodecError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CodecError> {
        decode(bytes, Self::CAP)
    }
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// The own model has answered a request.
    Answered {
        /// The request.
        ticket: Ticket,
        /// Its probabilities.
        prediction: Prediction,
        /// The version that made them.
        version: Version,
        /// When the asker needs an answer, if it said so.
        deadline: Option<Mono>,
        /// Nodes that passed the request on before.
        hops: usize,
    },
    /// The front of a split model has done its part of a request: there is no own answer, only the back
    /// of the same version has one.
    Halfway {
        /// The request.
        ticket: Ticket,
        /// The front's version.
        version: Version,
        /// When the asker needs an answer, if it said so.
        deadline: Option<Mono>,
        /// Nodes that passed the request on before.
        hops: usize,
    },
    /// The tier above answered, or said why it doesn't.
    Reply {
        /// The request.
        ticket: Ticket,
        /// What it said.
        reply: Result<Heard, Degraded>,
    },
    /// The time of [`Effect::Escalate`] or [`Effect::Wait`] has passed.
    Deadline(Ticket),
    /// The link to the tier above came up or went down.
    Link(bool),
    /// The served version was measured; nothing when another one takes its place.
    Calibrated(Option<Calibrated>),
}

/// Something to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Ask the tier above, and feed [`Input::Deadline`] after this long.
    Escalate {
        /// The request.
        ticket: Ticket,
        /// Milliseconds until it has to end.
        wait_ms: u64,
    },
    /// Feed [`Input::Deadline`] after this long: it came too early.
    Wait {
        /// The request.
        ticket: Ticket,
        /// Milliseconds.
        after_ms: u64,
    },
    /// The request ends with this answer.
    End {
        /// The request.
        ticket: Ticket,
        /// The answer.
        ending: Ending,
    },
    /// Count something that was dropped or is worth a look.
    Count(&'static str),
}

/// How a request ends.
#[derive(Debug, Clone, PartialEq)]
pub enum Ending {
    /// With the own answer.
    Own {
        /// Index of the class.
        class: usize,
        /// Its probability at the version's temperature; as the model gave it where none is known.
        confidence: f32,
        /// Version that answered.
        version: Version,
        /// Upper bound of the rate of wrong ones among answers as sure as this; none where it isn't sure
        /// enough or nothing was measured.
        bound: Option<f64>,
        /// Why the tier above didn't answer in its place.
        degraded: Option<Degraded>,
    },
    /// With the safe default.
    Abstained {
        /// Version that was unsure, or has a front only.
        version: Version,
        /// Why the tier above didn't answer.
        degraded: Degraded,
    },
    /// With the answer of the tier above.
    Above(Heard),
}

/// See the module.
#[derive(Debug)]
pub struct Cascade {
    config: CascadeConfig,
    calibrated: Option<Calibrated>,
    link_up: bool,
    waiting: BTreeMap<Ticket, Waiting>,
    /// Tickets below this one were escalated or answered.
    next: Ticket,
}

/// A request that the tier above was asked.
#[derive(Debug)]
struct Waiting {
    own: Held,
    deadline: Mono,
}

/// What there is without the tier above.
#[derive(Debug, Clone, Copy)]
enum Held {
    /// An answer.
    Answer(Own),
    /// Half of one: only a back of this version makes it whole.
    Half(Version),
}

/// The own answer.
#[derive(Debug, Clone, Copy)]
struct Own {
    class: usize,
    confidence: f32,
    version: Version,
}

impl Cascade {
    /// A machine that knows of no version and no link yet.
    pub fn new(config: CascadeConfig) -> Self {
        Self { config, calibrated: None, link_up: false, waiting: BTreeMap::new(), next: 0 }
    }

    /// One step.
    pub fn step(&mut self, now: Mono, input: Input) -> Vec<Effect> {
        match input {
            Input::Answered { ticket, prediction, version, deadline, hops } => {
                self.answered(now, ticket, &prediction, version, deadline, hops)
            }
            Input::Halfway { ticket, version, deadline, hops } => {
                if !self.is_first(ticket) {
                    return vec![Effect::Count("cascade_ticket_twice")];
                }
                let half = Held::Half(version);
                if !self.config.above || hops >= MAX_HOPS {
                    return vec![self.without_reply(ticket, half, Degraded::Refused)];
                }
                vec![self.ask(now, ticket, half, deadline)]
            }
            Input::Reply { ticket, reply } => self.reply(ticket, reply),
            Input::Deadline(ticket) => self.deadline(now, ticket),
            Input::Link(up) => self.link(up),
            Input::Calibrated(calibrated) => {
                self.calibrated = calibrated;
                Vec::new()
            }
        }
    }

    /// Requests that wait for the tier above.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// What was measured of the served version.
    pub fn calibrated(&self) -> Option<&Calibrated> {
        self.calibrated.as_ref()
    }

    fn answered(
        &mut self,
        now: Mono,
        ticket: Ticket,
        prediction: &Prediction,
        version: Version,
        deadline: Option<Mono>,
        hops: usize,
    ) -> Vec<Effect> {
        if !self.is_first(ticket) {
            return vec![Effect::Count("cascade_ticket_twice")];
        }
        let known = self.calibrated.as_ref().filter(|known| known.version == version);
        let calibration = known.map(|known| known.calibration);
        let own = own(prediction, version, calibration);
        let end =
            |bound, degraded| vec![Effect::End { ticket, ending: own.ending(bound, degraded) }];
        let threshold = calibration.and_then(|known| known.threshold);
        // NaN is never sure.
        if let Some(sure) = threshold.filter(|from| own.confidence >= from.confidence) {
            return end(Some(sure.bound), None);
        }
        if !self.config.above || hops >= MAX_HOPS {
            return end(None, None);
        }
        if calibration.is_none() && self.config.uncalibrated == Uncalibrated::Own {
            return end(None, Some(Degraded::Uncalibrated));
        }
        vec![self.ask(now, ticket, Held::Answer(own), deadline)]
    }

    fn is_first(&mut self, ticket: Ticket) -> bool {
        let first = ticket >= self.next;
        if first {
            self.next = ticket.saturating_add(1);
        }
        first
    }

    /// Asks the tier above, where that can be done.
    fn ask(&mut self, now: Mono, ticket: Ticket, own: Held, deadline: Option<Mono>) -> Effect {
        let deadline = deadline.unwrap_or(Mono(now.0.saturating_add(self.config.wait_ms)));
        let why_not = if !self.link_up {
            Some(Degraded::LinkDown)
        } else if self.waiting.len() >= self.config.in_flight {
            Some(Degraded::Busy)
        } else {
            (deadline <= now).then_some(Degraded::Deadline)
        };
        if let Some(why) = why_not {
            return self.without_reply(ticket, own, why);
        }
        self.waiting.insert(ticket, Waiting { own, deadline });
        Effect::Escalate { ticket, wait_ms: deadline.0.saturating_sub(now.0) }
    }

    fn reply(&mut self, ticket: Ticket, reply: Result<Heard, Degraded>) -> Vec<Effect> {
        let Some(Waiting { own, .. }) = self.waiting.remove(&ticket) else {
            let known = ticket < self.next;
            // Late and repeated ones look alike: nothing is remembered of what has ended.
            return vec![Effect::Count(if known {
                "cascade_late_reply"
            } else {
                "cascade_no_such_request"
            })];
        };
        vec![match (reply, own) {
            // Two halves of other versions would make an answer that no model gives.
            (Ok(heard), Held::Half(version)) if heard.model_version != version => {
                self.without_reply(ticket, own, Degraded::Version)
            }
            (Ok(heard), _) => Effect::End { ticket, ending: Ending::Above(heard) },
            (Err(why), _) => self.without_reply(ticket, own, why),
        }]
    }

    fn deadline(&mut self, now: Mono, ticket: Ticket) -> Vec<Effect> {
        let Some(waiting) = self.waiting.get(&ticket) else { return Vec::new() };
        let left = waiting.deadline.0.saturating_sub(now.0);
        if left > 0 {
            return vec![Effect::Wait { ticket, after_ms: left }];
        }
        let own = waiting.own;
        self.waiting.remove(&ticket);
        vec![self.without_reply(ticket, own, Degraded::Deadline)]
    }

    fn link(&mut self, up: bool) -> Vec<Effect> {
        self.link_up = up;
        if up {
            return Vec::new();
        }
        // Nobody knows when it comes back, and whoever asked may need what there is.
        let waiting = std::mem::take(&mut self.waiting);
        let end = |(ticket, waiting): (Ticket, Waiting)| {
            self.without_reply(ticket, waiting.own, Degraded::LinkDown)
        };
        waiting.into_iter().map(end).collect()
    }

    fn without_reply(&self, ticket: Ticket, own: Held, why: Degraded) -> Effect {
        let ending = match (own, self.config.on_no_reply) {
            (Held::Answer(own), OnNoReply::Own) => own.ending(None, Some(why)),
            (Held::Answer(Own { version, .. }), OnNoReply::Abstain) | (Held::Half(version), _) => {
                Ending::Abstained { version, degraded: why }
            }
        };
        Effect::End { ticket, ending }
    }
}

impl Own {
    fn ending(self, bound: Option<f64>, degraded: Option<Degraded>) -> Ending {
        let Self { class, confidence, version } = self;
        Ending::Own { class, confidence, version, bound, degraded }
    }
}

fn own(prediction: &Prediction, version: Version, calibration: Option<Calibration>) -> Own {
    let class = prediction.class;
    let at = |probabilities: &[f32]| probabilities.get(class).copied().unwrap_or(f32::NAN);
    let confidence = match calibration {
        Some(known) => at(&at_temperature(&prediction.probabilities, known.temperature)),
        None => at(&prediction.probabilities),
    };
    Own { class, confidence, version }
}

#[cfg(test)]
mod tests;
