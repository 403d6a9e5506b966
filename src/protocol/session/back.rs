//! The edge's end of sessions, one a device: it answers.

use std::collections::BTreeMap;

use super::super::effect::{Effect, Job, To};
use super::assembly::Assembly;
use super::{Place, SplitTerms};
use crate::ids::{Digest, Epoch, NodeId, RoundNo};
use crate::learn::{Activations, BackStep, Smashed};
use crate::trust::Verified;
use crate::wire::{ClassSummary, Frame, Plan, Settled, SplitMessage};

/// Work for the lane of the backs. Each has an end, [`BackEnd`] or a short word.
#[derive(Debug, Clone, PartialEq)]
pub enum BackTask {
    /// Make a copy of the back for a run, or let the run share the one of its offer.
    Open {
        /// The offer.
        offer: Digest,
        /// Blob of the whole adapter to start from.
        adapter: Digest,
        /// What to do.
        plan: Box<Plan>,
        /// Soft labels to learn from.
        class_targets: Option<ClassSummary>,
    },
    /// Settle the step before, then loss and gradient of a batch.
    Step {
        /// Squared length of the front's gradient, if the step before counts.
        settled: Option<f64>,
        /// The batch.
        smashed: Smashed,
        /// The device's examples a class.
        class_counts: Vec<u64>,
    },
    /// Settle the step before, then the output of a batch.
    Forward {
        /// As above.
        settled: Option<f64>,
        /// At the cut.
        activations: Activations,
    },
    /// The gradient at the cut from that at the output.
    Backward {
        /// At the output.
        gradient: Activations,
    },
    /// Settle the last step, then pack what the back has learned.
    Finish {
        /// As above.
        settled: Option<f64>,
    },
}

/// How a [`BackTask`] ended.
#[derive(Debug, Clone, PartialEq)]
pub enum BackEnd {
    /// There is a back.
    Opened,
    /// Of a batch; the back's change waits.
    Stepped(BackStep),
    /// Of a batch.
    Output(Activations),
    /// The back's delta, packed.
    Learned(Vec<u8>),
}

/// The inner round that is open.
#[derive(Debug, Clone)]
pub(in crate::protocol) struct OpenTask {
    pub(in crate::protocol) offer: Digest,
    pub(in crate::protocol) round: RoundNo,
    pub(in crate::protocol) epoch: Epoch,
    /// The adapter whose front was offered.
    pub(in crate::protocol) whole: Digest,
    pub(in crate::protocol) plan: Plan,
    pub(in crate::protocol) class_targets: Option<ClassSummary>,
}

/// What a back has learned in a run that is over; its bytes go to disk in the same step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::protocol) struct Learned {
    pub(in crate::protocol) offer: Digest,
    pub(in crate::protocol) device: NodeId,
    pub(in crate::protocol) delta: Digest,
}

/// See the module of sessions. At most one a member: their number bounds it.
#[derive(Debug)]
pub(in crate::protocol) struct BackSessions {
    terms: SplitTerms,
    sessions: BTreeMap<NodeId, BackSession>,
}

#[derive(Debug, Default)]
struct BackSession {
    assembly: Assembly,
    run: Option<Run>,
}

#[derive(Debug)]
struct Run {
    number: u64,
    offer: Digest,
    round: RoundNo,
    epoch: Epoch,
    class_counts: Vec<u64>,
    phase: Phase,
    /// Exchange that is being answered, or was last.
    step: u32,
    /// Step whose change waits until the device has taken its own.
    pending: Option<u32>,
    /// There is a back for it.
    opened: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The lane works for this turn.
    Working(u8),
    /// A question may come.
    Ready,
    /// The output was given, its gradient may come.
    OutputGiven,
    /// The run is over and on disk.
    Over,
}

impl BackSessions {
    pub(in crate::protocol) fn new(terms: SplitTerms) -> Self {
        Self { terms, sessions: BTreeMap::new() }
    }

    /// A device has said something; it is one of the members.
    pub(in crate::protocol) fn frame(
        &mut self,
        open: Option<&OpenTask>,
        message: &Verified,
        frame: &Frame,
        out: &mut Vec<Effect>,
    ) {
        let device = message.sender();
        let session = self.sessions.entry(device.clone()).or_default();
        let bytes = match session.assembly.take(frame) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return,
            Err(reason) => return out.push(Effect::Count(reason)),
        };
        let said = match SplitMessage::from_bytes(&bytes) {
            Ok(said) => said,
            Err(error) => return out.push(Effect::Count(error.kind())),
        };
        let known = session.run.as_mut().filter(|run| run.number == frame.run);
        if let SplitMessage::Open { .. } = &said {
            return match known {
                // The answer got lost: here it is again.
                Some(run) if run.phase == Phase::Ready => {
                    run.step = frame.step;
                    let place = run.place(0);
                    self.answer(device, place, &SplitMessage::Opened, out);
                }
                Some(_) => out.push(Effect::Count("frame_out_of_turn")),
                None => self.open(open, message, frame, &said, out),
            };
        }
        let Some(run) = known else {
            out.push(Effect::Count(SplitMessage::UNKNOWN_RUN));
            let said = SplitMessage::Refused { reason: SplitMessage::UNKNOWN_RUN.to_owned() };
            return self.answer(device, place_of(message, frame), &said, out);
        };
        let terms = self.terms;
        match run.take(&terms, frame, said) {
            Ok(Some(task)) => {
                let (device, run) = (device.clone(), run.number);
                out.push(Effect::Job(Job::Back { device, run, task }));
            }
            Ok(None) => {
                let place = run.place(0);
                self.answer(device, place, &SplitMessage::Finished, out);
            }
            Err(reason) => out.push(Effect::Count(reason)),
        }
    }

    fn open(
        &mut self,
        open: Option<&OpenTask>,
        message: &Verified,
        frame: &Frame,
        said: &SplitMessage,
        out: &mut Vec<Effect>,
    ) {
        let SplitMessage::Open { offer, cut, head_in_front, coding, class_counts } = said else {
            return;
        };
        let device = message.sender();
        let ours = (self.terms.cut.blocks, self.terms.cut.head_in_front, self.terms.coding);
        let refusal = match open {
            _ if (*cut, *head_in_front, *coding) != ours => "other_split",
            Some(open) if open.offer == *offer && message.round() == open.round => {
                let task = BackTask::Open {
                    offer: open.offer,
                    adapter: open.whole,
                    plan: Box::new(open.plan.clone()),
                    class_targets: open.class_targets.clone(),
                };
                let run = Run {
                    number: frame.run,
                    offer: open.offer,
                    round: open.round,
                    epoch: open.epoch,
                    class_counts: class_counts.iter().copied().take(MAX_CLASSES).collect(),
                    phase: Phase::Working(0),
                    step: frame.step,
                    pending: None,
                    opened: false,
                };
                let (device, number) = (device.clone(), frame.run);
                self.sessions.entry(device.clone()).or_default().run = Some(run);
                return out.push(Effect::Job(Job::Back { device, run: number, task }));
            }
            Some(_) | None => "unknown_offer",
        };
        out.push(Effect::Count(refusal));
        let said = SplitMessage::Refused { reason: refusal.to_owned() };
        self.answer(device, place_of(message, frame), &said, out);
    }

    /// The lane has done a task; what a back learned is to be kept, in the same step.
    pub(in crate::protocol) fn ended(
        &mut self,
        device: &NodeId,
        run: u64,
        end: Result<BackEnd, &'static str>,
        out: &mut Vec<Effect>,
    ) -> Option<Learned> {
        let terms = self.terms;
        let session = self.sessions.get_mut(device).and_then(|session| session.run.as_mut());
        let Some(active) = session.filter(|active| active.number == run) else {
            out.push(Effect::Count("back_stale"));
            return None;
        };
        let Phase::Working(turn) = active.phase else {
            out.push(Effect::Count("back_out_of_turn"));
            return None;
        };
        active.phase = Phase::Ready;
        let opened = std::mem::replace(&mut active.opened, true);
        let mut learned = None;
        let cells = |a: &Activations| terms.cells(a).map_err(|error| error.kind());
        let said = match end {
            Ok(BackEnd::Opened) => Ok(SplitMessage::Opened),
            Ok(BackEnd::Stepped(BackStep { loss, gradient, squared })) => {
                active.pending = Some(active.step);
                cells(&gradient).map(|gradient| SplitMessage::Backward { loss, squared, gradient })
            }
            Ok(BackEnd::Output(output)) => {
                active.phase = Phase::OutputGiven;
                cells(&output).map(|output| SplitMessage::Output { output })
            }
            Ok(BackEnd::Learned(bytes)) => {
                active.phase = Phase::Over;
                let (offer, delta) = (active.offer, Digest::of(&bytes));
                out.push(Effect::SaveBlob(bytes));
                learned = Some(Learned { offer, device: device.clone(), delta });
                Ok(SplitMessage::Finished)
            }
            Err(reason) => Err(reason),
        };
        let place = active.place(turn);
        match said {
            Ok(said) => self.answer(device, place, &said, out),
            Err(reason) if !opened => {
                out.push(Effect::Count(reason));
                if let Some(session) = self.sessions.get_mut(device) {
                    session.run = None;
                }
                let said = SplitMessage::Refused { reason: reason.to_owned() };
                self.answer(device, place, &said, out);
            }
            // No answer: it costs the device this step, and the run only where each step fails.
            Err(reason) => out.push(Effect::Count(reason)),
        }
        learned
    }

    fn answer(&self, device: &NodeId, place: Place, said: &SplitMessage, out: &mut Vec<Effect>) {
        self.terms.send(&To::Child(device.clone()), place, said, out);
    }
}

impl Run {
    /// What the lane has to do for this question, or nothing where the run is over on disk already.
    fn take(
        &mut self,
        terms: &SplitTerms,
        frame: &Frame,
        said: SplitMessage,
    ) -> Result<Option<BackTask>, &'static str> {
        let task = match (self.phase, said) {
            (
                Phase::Ready | Phase::OutputGiven,
                SplitMessage::Forward { settled, activations, labels },
            ) if frame.turn == 0 => {
                if labels.is_empty() != terms.cut.head_in_front {
                    return Err("split_labels");
                }
                let activations = terms.values(&activations)?;
                let settled = self.settle(settled);
                if terms.cut.head_in_front {
                    BackTask::Forward { settled, activations }
                } else {
                    let class_counts = self.class_counts.clone();
                    let smashed = Smashed { activations, labels };
                    BackTask::Step { settled, smashed, class_counts }
                }
            }
            (Phase::OutputGiven, SplitMessage::OutputGradient { gradient })
                if frame.turn == 1 && frame.step == self.step =>
            {
                BackTask::Backward { gradient: terms.values(&gradient)? }
            }
            (Phase::Ready | Phase::OutputGiven, SplitMessage::Finish { settled }) => {
                BackTask::Finish { settled: self.settle(settled) }
            }
            (Phase::Over, SplitMessage::Finish { .. }) => {
                self.step = frame.step;
                return Ok(None);
            }
            (_, _) => return Err("frame_out_of_turn"),
        };
        self.step = frame.step;
        self.phase = Phase::Working(frame.turn);
        Ok(Some(task))
    }

    /// The step that waits counts if it is the one that the device has taken its part in.
    fn settle(&mut self, settled: Option<Settled>) -> Option<f64> {
        let pending = self.pending.take();
        settled.filter(|settled| Some(settled.step) == pending).map(|settled| settled.squared)
    }

    fn place(&self, turn: u8) -> Place {
        let Self { number: run, step, round, epoch, .. } = *self;
        Place { run, step, turn, round, epoch }
    }
}

/// Where an answer to somebody without a run goes.
fn place_of(message: &Verified, frame: &Frame) -> Place {
    let (round, epoch) = (message.round(), message.epoch());
    Place { run: frame.run, step: frame.step, turn: frame.turn, round, epoch }
}

/// More classes than any model of windows has.
const MAX_CLASSES: usize = 1024;
