//! The device's end of a session: it drives.

use super::super::effect::{Effect, Job, Timer, To, TrainTask, Work};
use super::super::round::put;
use super::assembly::Assembly;
use super::{Place, SplitTerms};
#[cfg(test)]
use crate::ids::Digest;
use crate::learn::{Activations, FrontBegun, Smashed, loss_ends};
use crate::trust::Verified;
use crate::wire::{Frame, Settled, SplitMessage, decode};

/// What a device has to know for its sessions.
#[derive(Debug, Clone)]
pub struct FrontConfig {
    /// What it has agreed on with its edge.
    pub terms: SplitTerms,
    /// Fewest steps that a contribution needs.
    pub min_steps: u32,
    /// An answer that takes longer is lost.
    pub step_timeout_ms: u64,
}

/// Work for the lane of the front. Each has an end, [`FrontEnd`] or a short word.
#[derive(Debug, Clone, PartialEq)]
pub enum FrontTask {
    /// Begin a run.
    Begin {
        /// Which.
        run: u64,
        /// The offer's work.
        task: Box<TrainTask>,
    },
    /// The next batch, up to the cut.
    Forward {
        /// Run.
        run: u64,
    },
    /// Loss and gradient at the output that came.
    Head {
        /// Run.
        run: u64,
        /// What the back gave.
        output: Activations,
    },
    /// Change the front by the gradient at the cut.
    Backward {
        /// Run.
        run: u64,
        /// The gradient.
        gradient: Activations,
        /// Squared length of the back's.
        squared: f64,
    },
    /// Pack what the front has learned.
    Finish {
        /// Run.
        run: u64,
    },
}

/// How a [`FrontTask`] ended.
#[derive(Debug, Clone, PartialEq)]
pub enum FrontEnd {
    /// A run began.
    Begun(FrontBegun),
    /// Of a batch.
    Smashed(Smashed),
    /// Of an output.
    Headed {
        /// Mean loss of the batch in nats.
        loss: f32,
        /// At the output.
        gradient: Activations,
    },
    /// The front has changed; squared length of its gradient.
    Applied(f64),
    /// What it learned, packed, and what compression left out.
    Learned {
        /// The front's delta.
        update: Vec<u8>,
        /// For the next round.
        residual: Option<Vec<u8>>,
    },
}

impl FrontTask {
    /// The run that it is for.
    pub fn run(&self) -> u64 {
        match self {
            Self::Begin { run, .. }
            | Self::Forward { run }
            | Self::Head { run, .. }
            | Self::Backward { run, .. }
            | Self::Finish { run } => *run,
        }
    }
}

/// See the module of sessions.
#[derive(Debug)]
pub(in crate::protocol) struct FrontSession {
    config: FrontConfig,
    /// Number of the last run, durable: what was said in an older one is stale, also after a restart.
    run: u64,
    active: Option<Active>,
}

#[derive(Debug)]
struct Active {
    task: Box<TrainTask>,
    phase: Phase,
    /// Number of the last exchange.
    step: u32,
    assembly: Assembly,
    begun: FrontBegun,
    /// Batches so far, lost ones among them.
    tried: u32,
    settled: Option<Settled>,
    losses: Vec<f32>,
    /// Loss of the step that is being applied.
    loss: f32,
    /// Steps lost in a row.
    missed: u32,
    /// Times that the same question was asked.
    asked: u32,
    /// Times that the run was begun.
    begins: u32,
}

/// What it waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The lane: a run.
    Beginning,
    /// The edge: opened.
    Opening,
    /// The lane: activations.
    Forwarding,
    /// The edge: a gradient, or an output.
    Awaiting,
    /// The lane: the loss.
    Heading,
    /// The edge: a gradient, in the second turn.
    AwaitingGradient,
    /// The lane: the change.
    Applying,
    /// The edge: finished.
    Finishing,
    /// The lane: the delta.
    Packing,
}

impl FrontSession {
    /// Key prefix of its durable state.
    pub(in crate::protocol) const PREFIX: &'static str = "session/";
    const RUN: &'static str = "session/run";
    /// Steps lost in a row that end a run.
    pub(super) const MOST_MISSED: u32 = 5;
    /// Times that an opening or an end is asked for.
    pub(super) const MOST_ASKED: u32 = 5;
    /// Times that a run is begun for one offer.
    pub(super) const MOST_BEGINS: u32 = 3;

    /// A session as `state` left it: no run, whatever was under way.
    ///
    /// # Errors
    /// The key whose value can't be read: the store is damaged.
    pub(in crate::protocol) fn new(
        config: FrontConfig,
        state: &[(String, Vec<u8>)],
    ) -> Result<Self, String> {
        let mut session = Self { config, run: 0, active: None };
        if let Some((key, value)) = state.iter().find(|(key, _)| key == Self::RUN) {
            session.run = decode(value, 16).map_err(|e| format!("{key}: {e}"))?;
        }
        Ok(session)
    }

    /// Begins to work for an offer; [`Effect::Contribute`] tells the end.
    pub(in crate::protocol) fn begin(&mut self, task: Box<TrainTask>, out: &mut Vec<Effect>) {
        if !task.plan.adapter_delta {
            let work = Err("split_needs_adapter_delta");
            return out.push(Effect::Contribute { outer: task.offer, work });
        }
        self.begin_run(task, 1, out);
    }

    fn begin_run(&mut self, task: Box<TrainTask>, begins: u32, out: &mut Vec<Effect>) {
        self.run += 1;
        put(Self::RUN, &self.run, out);
        let begin = FrontTask::Begin { run: self.run, task: task.clone() };
        out.push(Effect::Job(Job::Front(begin)));
        self.active = Some(Active {
            task,
            phase: Phase::Beginning,
            step: 0,
            assembly: Assembly::default(),
            begun: FrontBegun { num_examples: 0, class_counts: Vec::new(), steps: 0 },
            tried: 0,
            settled: None,
            losses: Vec::new(),
            loss: 0.0,
            missed: 0,
            asked: 0,
            begins,
        });
    }

    /// The lane has done a task.
    pub(in crate::protocol) fn ended(
        &mut self,
        run: u64,
        end: Result<FrontEnd, &'static str>,
        out: &mut Vec<Effect>,
    ) {
        let Some(active) = self.active.as_mut().filter(|_| run == self.run) else {
            return out.push(Effect::Count("front_stale"));
        };
        match (active.phase, end) {
            (Phase::Beginning, Ok(FrontEnd::Begun(begun))) => {
                active.begun = begun;
                active.phase = Phase::Opening;
                self.ask(out);
            }
            (Phase::Forwarding, Ok(FrontEnd::Smashed(smashed))) => self.forward(&smashed, out),
            (Phase::Heading, Ok(FrontEnd::Headed { loss, gradient })) => {
                active.loss = loss;
                active.phase = Phase::AwaitingGradient;
                match self.config.terms.cells(&gradient) {
                    Ok(gradient) => self.say(1, &SplitMessage::OutputGradient { gradient }, out),
                    Err(error) => self.end(Err(error.kind()), out),
                }
            }
            (Phase::Applying, Ok(FrontEnd::Applied(squared))) => {
                active.settled = Some(Settled { step: active.step, squared });
                active.losses.push(active.loss);
                active.missed = 0;
                self.next(out);
            }
            // What came can't be used, so that the step is lost; the front hasn't changed.
            (Phase::Heading | Phase::Applying, Err(reason)) => {
                out.push(Effect::Count(reason));
                self.lost(out);
            }
            (Phase::Packing, Ok(FrontEnd::Learned { update, residual })) => {
                let work = Ok(active.work(update, residual));
                self.end(work, out);
            }
            (_, Err(reason)) => self.end(Err(reason), out),
            (_, Ok(_)) => out.push(Effect::Count("front_out_of_turn")),
        }
    }

    /// The edge has said something.
    pub(in crate::protocol) fn frame(
        &mut self,
        message: &Verified,
        frame: &Frame,
        out: &mut Vec<Effect>,
    ) {
        let run = self.run;
        let Some(active) = &mut self.active else {
            return out.push(Effect::Count("frame_stale"));
        };
        let turn = u8::from(active.phase == Phase::AwaitingGradient);
        let waited_for = (frame.run, frame.step, frame.turn) == (run, active.step, turn)
            && message.round() == active.task.round;
        if !waited_for {
            return out.push(Effect::Count("frame_stale"));
        }
        let bytes = match active.assembly.take(frame) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return,
            Err(reason) => return out.push(Effect::Count(reason)),
        };
        match SplitMessage::from_bytes(&bytes) {
            Ok(said) => self.said(said, out),
            Err(error) => out.push(Effect::Count(error.kind())),
        }
    }

    fn said(&mut self, said: SplitMessage, out: &mut Vec<Effect>) {
        let run = self.run;
        let Some(active) = &mut self.active else { return };
        let head_in_front = self.config.terms.cut.head_in_front;
        match (active.phase, said) {
            (Phase::Opening, SplitMessage::Opened) => {
                active.asked = 0;
                self.next(out);
            }
            (Phase::Awaiting, SplitMessage::Output { output }) if head_in_front => {
                match self.config.terms.values(&output) {
                    Ok(output) => {
                        active.phase = Phase::Heading;
                        out.push(Effect::Job(Job::Front(FrontTask::Head { run, output })));
                    }
                    Err(reason) => out.push(Effect::Count(reason)),
                }
            }
            (
                phase @ (Phase::Awaiting | Phase::AwaitingGradient),
                SplitMessage::Backward { loss, squared, gradient },
            ) if head_in_front == (phase == Phase::AwaitingGradient) => {
                match self.config.terms.values(&gradient) {
                    Ok(gradient) => {
                        if !head_in_front {
                            active.loss = loss;
                        }
                        active.phase = Phase::Applying;
                        let task = FrontTask::Backward { run, gradient, squared };
                        out.push(Effect::Job(Job::Front(task)));
                    }
                    Err(reason) => out.push(Effect::Count(reason)),
                }
            }
            (Phase::Finishing, SplitMessage::Finished) => {
                active.phase = Phase::Packing;
                out.push(Effect::Job(Job::Front(FrontTask::Finish { run })));
            }
            (
                Phase::Opening | Phase::Awaiting | Phase::AwaitingGradient | Phase::Finishing,
                SplitMessage::Refused { reason },
            ) => self.refused(&reason, out),
            (_, _) => out.push(Effect::Count("frame_out_of_turn")),
        }
    }

    fn refused(&mut self, reason: &str, out: &mut Vec<Effect>) {
        let Some(active) = &self.active else { return };
        if reason != SplitMessage::UNKNOWN_RUN {
            return self.end(Err("refused_by_edge"), out);
        }
        if active.begins >= Self::MOST_BEGINS {
            return self.end(Err("partner_gone"), out);
        }
        let (task, begins) = (active.task.clone(), active.begins + 1);
        out.push(Effect::Count("run_begun_again"));
        self.begin_run(task, begins, out);
    }

    /// No answer came in time.
    pub(in crate::protocol) fn timeout(&mut self, out: &mut Vec<Effect>) {
        let Some(active) = &mut self.active else { return };
        match active.phase {
            Phase::Awaiting | Phase::AwaitingGradient => self.lost(out),
            Phase::Opening | Phase::Finishing if active.asked >= Self::MOST_ASKED => {
                self.end(Err("partner_gone"), out);
            }
            Phase::Opening | Phase::Finishing => self.ask(out),
            // The lane works; it always comes to an end.
            Phase::Beginning
            | Phase::Forwarding
            | Phase::Heading
            | Phase::Applying
            | Phase::Packing => {}
        }
    }

    /// The step that is under way comes to nothing.
    fn lost(&mut self, out: &mut Vec<Effect>) {
        let min_steps = self.config.min_steps;
        let Some(active) = &mut self.active else { return };
        out.push(Effect::Count("split_step_lost"));
        active.missed += 1;
        if active.missed < Self::MOST_MISSED {
            return self.next(out);
        }
        if active.applied() < min_steps.max(1) {
            return self.end(Err("partner_gone"), out);
        }
        active.phase = Phase::Finishing;
        self.ask(out);
    }

    /// The next batch, or the end.
    fn next(&mut self, out: &mut Vec<Effect>) {
        let run = self.run;
        let Some(active) = &mut self.active else { return };
        if active.tried < active.begun.steps {
            active.tried += 1;
            active.phase = Phase::Forwarding;
            return out.push(Effect::Job(Job::Front(FrontTask::Forward { run })));
        }
        if active.applied() == 0 {
            return self.end(Err("partner_gone"), out);
        }
        active.phase = Phase::Finishing;
        self.ask(out);
    }

    fn forward(&mut self, smashed: &Smashed, out: &mut Vec<Effect>) {
        let Some(active) = &mut self.active else { return };
        let settled = active.settled;
        match self.config.terms.cells(&smashed.activations) {
            Ok(activations) => {
                active.phase = Phase::Awaiting;
                active.step += 1;
                let labels = smashed.labels.clone();
                let said = SplitMessage::Forward { settled, activations, labels };
                self.say(0, &said, out);
            }
            Err(error) => self.end(Err(error.kind()), out),
        }
    }

    /// Asks for the opening or the end, for the first time or again.
    fn ask(&mut self, out: &mut Vec<Effect>) {
        let terms = self.config.terms;
        let Some(active) = &mut self.active else { return };
        active.asked += 1;
        active.step += 1;
        let said = match active.phase {
            Phase::Opening => SplitMessage::Open {
                offer: active.task.offer,
                cut: terms.cut.blocks,
                head_in_front: terms.cut.head_in_front,
                coding: terms.coding,
                class_counts: active.begun.class_counts.clone(),
            },
            Phase::Finishing
            | Phase::Beginning
            | Phase::Forwarding
            | Phase::Awaiting
            | Phase::Heading
            | Phase::AwaitingGradient
            | Phase::Applying
            | Phase::Packing => SplitMessage::Finish { settled: active.settled },
        };
        self.say(0, &said, out);
    }

    fn say(&self, turn: u8, said: &SplitMessage, out: &mut Vec<Effect>) {
        let Some(active) = &self.active else { return };
        let (round, epoch) = (active.task.round, active.task.epoch);
        let place = Place { run: self.run, step: active.step, turn, round, epoch };
        self.config.terms.send(&To::Parent, place, said, out);
        let after_ms = self.config.step_timeout_ms;
        out.push(Effect::Timer { timer: Timer::Step, after_ms });
    }

    fn end(&mut self, work: Result<Work, &'static str>, out: &mut Vec<Effect>) {
        if let Some(active) = self.active.take() {
            out.push(Effect::Contribute { outer: active.task.offer, work });
        }
    }

    /// The offer that a run is under way for.
    #[cfg(test)]
    pub(super) fn working_on(&self) -> Option<Digest> {
        self.active.as_ref().map(|active| active.task.offer)
    }
}

impl Active {
    fn applied(&self) -> u32 {
        u32::try_from(self.losses.len()).unwrap_or(u32::MAX)
    }

    fn work(&self, update: Vec<u8>, residual: Option<Vec<u8>>) -> Work {
        let (loss_first, loss_last) = loss_ends(&self.losses);
        Work {
            update: Some(update),
            class_logits: None,
            knowledge: None,
            num_examples: self.begun.num_examples,
            num_devices: 1,
            steps: self.applied(),
            loss_first,
            loss_last,
            risk: None,
            residual,
            own: None,
            weighed: Vec::new(),
        }
    }
}
