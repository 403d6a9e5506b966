//! The inferencer's side of a cascade: keeps what the machine's decisions are about, speaks to the tier
//! above, and keeps what was measured of the served version.
//!
//! ```text
//! own answer -> Cascade -> end:      the telegram
//!                  |    '- escalate: {parent}/infer/{model}  ---.
//!                  '------ reply:    {parent}/reply/infer   <---'
//! ```
//! Who answers is decided by [`Cascade`]; what a version is worth is measured by [`Measuring`]. Windows
//! are kept until their request ends, a bounded number, and never touch the disk.

use std::collections::BTreeMap;
use std::sync::Arc;

use actix::prelude::*;

use super::figures::Figures;
use super::inferencer::Asked;
use super::measuring::{Batch, Measure, Measuring};
use super::runner::{Run, Runner};
use crate::bus::{Ack, Border, Bus, BusError, Crossing, Priority, Publish, ToCloud};
use crate::ids::{BootId, Digest, Name, NodeId, Version};
use crate::learn::{LearnError, Prediction};
use crate::ledger::Event;
use crate::protocol::cascade::{Calibrated, Cascade, CascadeConfig, Effect, Ending, Input, Ticket};
use crate::protocol::{self, Escalations, Left};
use crate::scada::escalation::{self, Heard};
use crate::scada::infer;
use crate::scada::telegram::{Degraded, Inference, Provenance, Quality, Tier};
use crate::time::{Clock, Now};
use crate::topic::Branch;

/// What a cascade works with.
pub struct CascadeParts {
    /// How this node decides.
    pub config: CascadeConfig,
    /// This node.
    pub me: NodeId,
    /// This start of it.
    pub boot: BootId,
    /// Who may be asked; none where this node answers everything.
    pub above: Option<Above>,
    /// The label that it falls back to where it abstains.
    pub safe_default: Option<String>,
    /// What each version is measured on; none where there are no examples.
    pub measure: Option<Measure>,
    /// What was measured before the node started, as it lies in the store.
    pub stored: Option<Vec<u8>>,
    /// Keeps what is measured, and records what leaves the site.
    pub runner: Addr<Runner>,
}

/// The tier above.
pub struct Above {
    /// Its part of the topic tree.
    pub branch: Branch,
    /// The way to it.
    pub way: Way,
}

/// How a request gets to the tier above.
#[derive(Clone)]
pub enum Way {
    /// Within the site.
    Site(Arc<dyn Bus>),
    /// Out of the site's zone: it is recorded.
    Cloud(Border, ToCloud),
}

impl Way {
    fn ask(
        &self,
        above: &Branch,
        model: &Name,
        request: Vec<u8>,
        at_least_once: bool,
    ) -> Result<(), BusError> {
        match self {
            Self::Site(bus) => {
                let (topic, payload) = (above.infer(model), request);
                let (retain, priority) = (false, Priority::Control);
                bus.publish(Publish { topic, payload, at_least_once, retain, priority })
            }
            Self::Cloud(border, door) => {
                border.publish(Crossing::question(door, above, model, request))
            }
        }
    }
}

/// What the inferencer has to do.
#[expect(clippy::large_enum_variant, reason = "acts live for one step")]
pub(super) enum Act {
    /// Give this answer.
    Answer(Asked, Inference),
    /// Wake the request up after so many milliseconds.
    Wake(Ticket, u64),
}

/// See the module.
pub(super) struct Tiers {
    parts: CascadeParts,
    model: Name,
    labels: Vec<String>,
    tier: Tier,
    clock: Arc<dyn Clock>,
    figures: Arc<Figures>,
    machine: Cascade,
    /// Requests that the machine hasn't ended.
    open: BTreeMap<Ticket, Asked>,
    measuring: Option<Measuring>,
    stored: Option<Calibrated>,
    escalations: Escalations,
}

impl Tiers {
    pub(super) fn new(
        parts: CascadeParts,
        model: Name,
        labels: Vec<String>,
        tier: Tier,
        clock: Arc<dyn Clock>,
        figures: Arc<Figures>,
    ) -> Self {
        let above = parts.config.above && parts.above.is_some();
        let machine = Cascade::new(CascadeConfig { above, ..parts.config });
        // Damage here costs a new measurement, nothing else.
        let stored = parts.stored.as_deref().and_then(|bytes| Calibrated::from_bytes(bytes).ok());
        let measuring = parts.measure.clone().map(Measuring::new);
        let (open, escalations) = (BTreeMap::new(), Escalations::default());
        Self {
            parts,
            model,
            labels,
            tier,
            clock,
            figures,
            machine,
            open,
            measuring,
            stored,
            escalations,
        }
    }

    /// The own model has answered.
    pub(super) fn answered(
        &mut self,
        asked: Asked,
        prediction: Prediction,
        version: Version,
    ) -> Vec<Act> {
        let (ticket, deadline, hops) = (asked.ticket, asked.deadline, asked.via.len());
        self.open.insert(ticket, asked);
        self.feed(Input::Answered { ticket, prediction, version, deadline, hops })
    }

    /// The front of a split model has done its part: `asked.input` is what its edge goes on from.
    pub(super) fn halfway(&mut self, asked: Asked, version: Version) -> Vec<Act> {
        let (ticket, deadline, hops) = (asked.ticket, asked.deadline, asked.via.len());
        self.open.insert(ticket, asked);
        self.feed(Input::Halfway { ticket, version, deadline, hops })
    }

    /// Something came on `reply/infer` of the tier above.
    pub(super) fn said(&mut self, payload: &[u8]) -> Vec<Act> {
        let Some(above) = &self.parts.above else { return Vec::new() };
        let parent = &above.branch.node;
        match escalation::parse_reply(payload, self.parts.boot, parent, &self.labels) {
            Ok(Some((ticket, reply))) => self.feed(Input::Reply { ticket, reply }),
            Ok(None) => Vec::new(), // everybody's replies come there
            Err(fault) => {
                self.figures.count(fault.kind());
                Vec::new()
            }
        }
    }

    pub(super) fn wake(&mut self, ticket: Ticket) -> Vec<Act> {
        self.feed(Input::Deadline(ticket))
    }

    pub(super) fn link(&mut self, up: bool) -> Vec<Act> {
        self.feed(Input::Link(up))
    }

    /// A version answers from now on: what was measured of it, or the measuring begins.
    pub(super) fn serves(&mut self, version: Version, adapter: Digest) {
        let _ = self.feed(Input::Calibrated(None));
        let Some(measuring) = &mut self.measuring else { return };
        match self.stored.filter(|known| measuring.is_of(known, version, &adapter)) {
            Some(known) => self.knows(known),
            None => measuring.begin(version, adapter),
        }
    }

    /// Examples for the lane, if some are due.
    pub(super) fn examples(&mut self) -> Option<Batch> {
        let now = self.clock.now().mono;
        self.measuring.as_mut()?.next(now)
    }

    /// The lane didn't take them.
    pub(super) fn not_taken(&mut self) {
        if let Some(measuring) = &mut self.measuring {
            measuring.not_taken();
        }
    }

    /// The lane answered examples.
    pub(super) fn measured(
        &mut self,
        run: (u64, usize),
        result: Result<Vec<Prediction>, LearnError>,
    ) {
        let Some(measuring) = &mut self.measuring else { return };
        match measuring.answered(run, result) {
            Ok(None) => {}
            Ok(Some(known)) => {
                self.stored = Some(known);
                self.keep(&known);
                self.knows(known);
            }
            Err(error) => {
                tracing::warn!(%error, "the served version can't be measured: no threshold for it");
                self.figures.count(error.kind());
            }
        }
    }

    /// Records what left in the last minute, if it is time; all of it when the node `stops`.
    pub(super) fn record(&mut self, stops: bool) {
        let now = self.clock.now().mono;
        let left = if stops { self.escalations.rest(now) } else { self.escalations.due(now) };
        if let Some(left) = left {
            self.tell(left, Ack::none());
        }
    }

    /// An answer that no model of a cascade was asked for: a window that can't be one.
    pub(super) fn own(&self, inference: Inference) -> Inference {
        self.marked(inference, None, None)
    }

    fn knows(&mut self, known: Calibrated) {
        let Calibrated { version, calibration, .. } = known;
        let temperature = calibration.temperature;
        if let Some(threshold) = calibration.threshold {
            tracing::info!(
                version,
                temperature,
                confidence = threshold.confidence,
                share = threshold.share,
                bound = threshold.bound,
                "answers of this confidence on are good enough"
            );
        } else {
            tracing::warn!(
                version,
                temperature,
                alpha = known.alpha,
                "no confidence is enough for so few wrong answers: none is given as sure"
            );
        }
        let _ = self.feed(Input::Calibrated(Some(known)));
    }

    fn keep(&self, known: &Calibrated) {
        let Ok(bytes) = known.to_bytes() else { return self.figures.count("cascade_not_kept") };
        self.run(protocol::Effect::Put(Calibrated::KEY.into(), bytes), Ack::none());
    }

    /// Records it, and releases `then` behind the commit.
    fn tell(&self, Left { requests, digest }: Left, then: Ack) {
        let Some(above) = &self.parts.above else { return };
        let (model, to) = (self.model.clone(), above.branch.node.clone());
        self.run(protocol::Effect::Record(Event::Escalate { digest, model, requests, to }), then);
    }

    fn run(&self, effect: protocol::Effect, ack: Ack) {
        let run = Run { effects: vec![effect], ack };
        // At once, so that what is recorded when the node stops comes before its last entry.
        if let Err(SendError::Full(run)) = self.parts.runner.try_send(run) {
            let runner = self.parts.runner.clone();
            actix::spawn(async move { runner.send(run).await.unwrap_or(()) });
        }
    }

    fn feed(&mut self, input: Input) -> Vec<Act> {
        let now = self.clock.now();
        let mut acts = Vec::new();
        let mut effects = self.machine.step(now.mono, input);
        while !effects.is_empty() {
            let mut more = Vec::new();
            for effect in effects {
                match effect {
                    Effect::Count(reason) => self.figures.count(reason),
                    Effect::Wait { ticket, after_ms } => acts.push(Act::Wake(ticket, after_ms)),
                    Effect::Escalate { ticket, wait_ms } => match self.escalate(ticket, wait_ms) {
                        Ok(()) => acts.push(Act::Wake(ticket, wait_ms)),
                        Err(why) => {
                            let reply = Input::Reply { ticket, reply: Err(why) };
                            more.extend(self.machine.step(now.mono, reply));
                        }
                    },
                    Effect::End { ticket, ending } => {
                        let Some(asked) = self.open.remove(&ticket) else { continue };
                        let inference = self.telegram(ending, &asked, now);
                        acts.push(Act::Answer(asked, inference));
                    }
                }
            }
            effects = more;
        }
        acts
    }

    /// Asks the tier above, or says why not.
    fn escalate(&mut self, ticket: Ticket, wait_ms: u64) -> Result<(), Degraded> {
        let (Some(above), Some(asked)) = (&self.parts.above, self.open.get(&ticket)) else {
            return Err(Degraded::Refused);
        };
        let via: Vec<NodeId> = asked.via.iter().chain([&self.parts.me]).cloned().collect();
        // A part of the time is kept for the way back.
        let deadline_ms = (wait_ms - wait_ms / 8).max(1);
        let id = escalation::id_of(self.parts.boot, ticket).ok_or(Degraded::Refused)?;
        let input = asked.input.as_ref().ok_or(Degraded::Refused)?;
        let payload =
            escalation::request(&id, input, deadline_ms, &via).ok_or(Degraded::Refused)?;
        let leaves_site = matches!(above.way, Way::Cloud(..));
        // At most once: brokers keep what comes at least once for whoever is away, also on disk.
        let at_least_once = matches!(input, infer::Input::Window(_));
        if leaves_site && !at_least_once {
            return Err(Degraded::Refused); // activations stay where they are
        }
        if leaves_site && self.figures.is_stalled() {
            return Err(Degraded::Busy); // it could not be recorded
        }
        let left = leaves_site.then(|| Digest::of(&payload));
        let entry = left.and_then(|left| self.escalations.left(self.clock.now().mono, &left));
        if let Some(entry) = entry {
            // That something leaves is on disk before it does; what leaves in the minute behind it is
            // counted in the next entry.
            let (way, figures) = (above.way.clone(), Arc::clone(&self.figures));
            let (branch, model) = (above.branch.clone(), self.model.clone());
            self.tell(
                entry,
                Ack::new(move || {
                    if let Err(error) = way.ask(&branch, &model, payload, at_least_once) {
                        figures.count(error.kind()); // its asker waits no longer than its deadline
                    }
                }),
            );
        } else if let Err(error) = above.way.ask(&above.branch, &self.model, payload, at_least_once)
        {
            self.figures.count(error.kind());
            return Err(Degraded::Busy);
        }
        self.figures.update(|view| view.escalated += 1);
        Ok(())
    }

    #[expect(clippy::cast_precision_loss, reason = "a class index and milliseconds are small")]
    fn telegram(&self, ending: Ending, asked: &Asked, now: Now) -> Inference {
        let latency_ms = now.micros.saturating_sub(asked.at.micros) as f64 / 1_000.0;
        let bare =
            |version| Inference { latency_ms, ..Inference::bad(now.wall, version, self.tier) };
        match ending {
            Ending::Own { class, confidence, version, bound, degraded } => {
                let sure = version > 0 && degraded.is_none();
                let inference = Inference {
                    value: Some(class as f64),
                    label: self.labels.get(class).cloned(),
                    confidence: Some(f64::from(confidence)),
                    quality: if sure { Quality::Good } else { Quality::Uncertain },
                    ..bare(version)
                };
                self.marked(inference, bound, degraded)
            }
            Ending::Abstained { version, degraded } => {
                let label = self.parts.safe_default.clone();
                let index = self.labels.iter().position(|known| Some(known) == label.as_ref());
                let value = index.map(|index| index as f64);
                let quality = if label.is_some() { Quality::Uncertain } else { Quality::Bad };
                let inference = Inference { value, label, quality, ..bare(version) };
                self.marked(inference, None, Some(degraded))
            }
            Ending::Above(heard) => {
                let Heard { value, label, confidence, quality, tier, .. } = heard;
                let (value, confidence) = (Some(value), Some(confidence));
                let (node, bound, degraded) = (heard.node, heard.bound, heard.degraded);
                let split = matches!(asked.input, Some(infer::Input::AtCut(_)));
                let cascade = Some(Provenance { node, bound, escalated: true, degraded, split });
                let bare = bare(heard.model_version);
                Inference { value, label, confidence, quality, tier, cascade, ..bare }
            }
        }
    }

    fn marked(
        &self,
        inference: Inference,
        bound: Option<f64>,
        degraded: Option<Degraded>,
    ) -> Inference {
        if let Some(why) = degraded {
            self.figures.count(why.kind());
        }
        let node = self.parts.me.clone();
        let (escalated, split) = (false, false);
        let cascade = Some(Provenance { node, bound, escalated, degraded, split });
        Inference { cascade, ..inference }
    }
}
