//! What comes of each message to an inferencer.

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;

use super::super::attending::Attending;
use super::super::busy::Hold;
use super::super::labels::Taken;
use super::super::lanes::ServeRequest;
use super::super::runner::Link;
use super::Inferencer;
use super::messages::{
    AboveSaid, Answered, Attend, Compared, Finished, LateLabel, Leaves, Loaded, Passed, Probed,
    Request, Scored, Serve, Source, TagSample,
};
use crate::ids::Digest;
use crate::learn::{LearnError, sound};
use crate::protocol::{Check, update};
use crate::scada::infer::{self, InferError, InferReply, Input};
use crate::scada::tags::{Binds, Reading};
use crate::scada::telegram::{Inference, Provenance};
use crate::topic::CommandName;
use crate::wire::Wishes;

impl Handler<Serve> for Inferencer {
    type Result = ();

    fn handle(&mut self, serve: Serve, ctx: &mut Self::Context) {
        let Some(adapter) = serve.opened(&mut self.turn, &self.parts.figures) else { return };
        let (version, digest) = (serve.version, Digest::of(&serve.adapter));
        let halves = self.halves.as_ref();
        let front = halves.and_then(|halves| halves.front_of(version, &serve.adapter));
        let me = ctx.address();
        // Without a bound: there are a few of them at most, and without one the version in use is mistaken.
        let done = Box::new(move |result| me.do_send(Loaded { version, adapter: digest, result }));
        if self.parts.lane.submit(ServeRequest::Load { adapter, front, done }).is_err() {
            // The queue of questions is full: try again behind it.
            self.parts.figures.count("busy");
            ctx.notify_later(serve, Duration::from_millis(50));
        }
    }
}

impl Handler<Attend> for Inferencer {
    type Result = ();

    fn handle(&mut self, Attend { watch, beside }: Attend, ctx: &mut Self::Context) {
        self.tell_seen(ctx);
        let beside = beside.and_then(|bytes| match update::unpack(&bytes) {
            Ok(adapter) => Some(Arc::new(adapter)),
            Err(error) => {
                self.parts.figures.count(error.kind());
                None
            }
        });
        let before = self.attending.take();
        self.attending = watch.map(|watch| Attending::attend(before, watch, beside));
    }
}

impl Handler<Compared> for Inferencer {
    type Result = ();

    fn handle(&mut self, compared: Compared, ctx: &mut Self::Context) {
        let Compared { serial, waiting, result } = compared;
        if let Some(attending) = &mut self.attending {
            attending.compared(serial, &waiting, result);
        }
        self.compare(false, ctx);
    }
}

impl Handler<Loaded> for Inferencer {
    type Result = ();

    fn handle(&mut self, loaded: Loaded, ctx: &mut Self::Context) {
        let (version, adapter, fits) = (loaded.version, loaded.adapter, loaded.result.is_ok());
        loaded.settle(&mut self.version, &self.parts.figures);
        if !fits {
            return self.tell(version, adapter, Check::Unfit, ctx);
        }
        if let Some(drift) = &mut self.drift
            && self.adapter != adapter
        {
            drift.begin_anew(&self.parts.figures);
        }
        self.adapter = adapter;
        self.probe.due = true;
        self.look(ctx);
        if let Some(tiers) = &mut self.tiers {
            tiers.serves(version, adapter);
            self.measure(ctx);
        }
    }
}

impl Handler<Probed> for Inferencer {
    type Result = ();

    fn handle(&mut self, probed: Probed, ctx: &mut Self::Context) {
        self.probe.running = false;
        if probed.turn != self.turn {
            return; // of the version before
        }
        let check = match probed
            .result
            .and_then(|all| all.into_iter().try_for_each(|p| sound(p).map(drop)))
        {
            Ok(()) => Check::Passed,
            Err(error) => {
                let version = self.version;
                tracing::warn!(%error, version, "the version in use can't answer its probe");
                self.parts.figures.count("failed_check");
                self.probe.due = true;
                Check::Failed
            }
        };
        self.tell(self.version, self.adapter, check, ctx);
    }
}

impl Handler<Scored> for Inferencer {
    type Result = ();

    fn handle(&mut self, Scored { run, result }: Scored, ctx: &mut Self::Context) {
        if let Some(tiers) = &mut self.tiers {
            tiers.measured(run, result);
            self.measure(ctx);
        }
    }
}

impl Handler<AboveSaid> for Inferencer {
    type Result = ();

    fn handle(&mut self, said: AboveSaid, ctx: &mut Self::Context) {
        if said.retained {
            return self.parts.figures.count("retained");
        }
        self.in_tiers(ctx, |tiers| tiers.said(&said.payload));
    }
}

impl Handler<Link> for Inferencer {
    type Result = ();

    fn handle(&mut self, link: Link, ctx: &mut Self::Context) {
        self.in_tiers(ctx, |tiers| tiers.link(link.up));
    }
}

impl Handler<Leaves> for Inferencer {
    type Result = ();

    fn handle(&mut self, _: Leaves, _: &mut Self::Context) {
        if let Some(tiers) = &mut self.tiers {
            tiers.record(true);
        }
    }
}

impl Handler<Request> for Inferencer {
    type Result = ();

    fn handle(&mut self, request: Request, ctx: &mut Self::Context) {
        let Request { model, payload, retained } = request;
        let parsed = infer::parse(&payload, retained, self.parts.window, &self.parts.policy);
        let refused = match parsed {
            Ok(asked) if model == self.parts.model => match asked.input {
                Input::AtCut(question) => return self.finish(asked.id, &question, ctx),
                Input::Window(window) => {
                    let from = Source::Request(asked.id);
                    return self.ask(window, from, asked.deadline_ms, asked.via, ctx);
                }
            },
            Ok(asked) => InferError::unknown_model(asked.id, &model),
            Err(error) => error,
        };
        self.refuse(&refused);
    }
}

impl Handler<LateLabel> for Inferencer {
    type Result = ();

    fn handle(&mut self, label: LateLabel, ctx: &mut Self::Context) {
        let LateLabel { model, payload, retained } = label;
        let now = self.parts.clock.now().wall;
        let taken = self.late.take(&model, &payload, retained, now, &self.parts.figures);
        let reply = match taken {
            Ok(Taken { labelled, class, reply }) => {
                if let Some(attending) = &mut self.attending {
                    labelled.labelled.iter().for_each(|number| attending.labelled(*number, class));
                }
                let labels = labelled.labelled.len() as u64;
                if labels > 0 {
                    self.wish(Wishes { drifts: 0, labels }, ctx);
                }
                reply
            }
            Err(error) => {
                self.parts.figures.count(error.kind());
                error.reply()
            }
        };
        if let Ok(name) = CommandName::new("feedback") {
            self.publish(self.parts.branch.reply(&name), &reply, false);
        }
    }
}

impl Handler<TagSample> for Inferencer {
    type Result = ();

    fn handle(&mut self, TagSample { topic, payload }: TagSample, ctx: &mut Self::Context) {
        let now = self.parts.clock.now().wall;
        let mut readings = Vec::new();
        for (index, tag) in self.parts.tags.of(&topic) {
            if matches!(tag.binds(), Binds::Feature { model } if *model != self.parts.model) {
                continue;
            }
            match tag.read(&payload) {
                // A label is true of the samples that come with it.
                Ok(reading @ Reading::Samples(_)) => readings.push((index, reading)),
                Ok(reading) => readings.insert(0, (index, reading)),
                Err(error) => {
                    self.parts.figures.count(error.kind());
                    let told = self.unreadable.contains(&topic);
                    // A sensor sends many a second; its topic names come from outside.
                    if !told && self.unreadable.len() < Self::MAX_STREAMS {
                        tracing::warn!(topic, %error, "a tag can't be read; told once a topic");
                        self.unreadable.insert(topic.clone());
                    }
                }
            }
        }
        for (index, reading) in readings {
            match reading {
                Reading::Samples(samples) => {
                    self.unreadable.remove(&topic);
                    self.samples((index, topic.clone()), &samples, now, ctx);
                }
                Reading::Label(label) => self.label(label),
                Reading::Idle(idle) => self.machines.said(&topic, Hold::Machine, !idle),
                Reading::Veto(forbids) => self.machines.said(&topic, Hold::Veto, forbids),
            }
        }
    }
}

impl Handler<Answered> for Inferencer {
    type Result = ();

    fn handle(&mut self, Answered { mut asked, result }: Answered, ctx: &mut Self::Context) {
        let prediction = match result.and_then(sound) {
            Ok(prediction) => {
                self.attend(&mut asked, Some(prediction.class), ctx);
                if let (Source::Tag { .. }, Some(drift)) = (&asked.from, &mut self.drift) {
                    let now = self.parts.clock.now().wall;
                    let found = drift.answered(&prediction, now, &self.parts.figures);
                    self.drifted(found, ctx);
                }
                prediction
            }
            Err(error) => {
                self.attend(&mut asked, None, ctx);
                // Whoever may ask could have sent a window that no model can answer: only the built-in one counts.
                self.probe.due = true;
                return self.unanswered(asked, &error);
            }
        };
        if let Some(tiers) = &mut self.tiers {
            let acts = tiers.answered(asked, prediction, self.version);
            return self.carry_out(acts, ctx);
        }
        let inference = self.inference(&prediction, self.version, asked.at);
        self.answer(asked, inference);
    }
}

impl Handler<Passed> for Inferencer {
    type Result = ();

    fn handle(&mut self, Passed { mut asked, result }: Passed, ctx: &mut Self::Context) {
        let nobody =
            || LearnError::Engine { engine: "split", message: "nobody has the back".into() };
        let question = match (result, &self.halves) {
            (Ok((front, at_cut)), Some(halves)) => halves.question(front, &at_cut),
            (Ok(_), None) => Err(nobody()),
            (Err(error), _) => Err(error),
        };
        match (question, &mut self.tiers) {
            (Ok(question), Some(tiers)) => {
                let version = question.front.version;
                asked.input = Some(Input::AtCut(question));
                let acts = tiers.halfway(asked, version);
                self.carry_out(acts, ctx);
            }
            (Ok(_), None) => self.unanswered(asked, &nobody()),
            (Err(error), _) => self.unanswered(asked, &error),
        }
    }
}

impl Handler<Finished> for Inferencer {
    type Result = ();

    fn handle(&mut self, finished: Finished, _: &mut Self::Context) {
        let Finished { id, at, front, result } = finished;
        match result {
            Ok(Some(prediction)) => {
                let node = self.parts.branch.node.clone();
                let (bound, escalated, degraded) = (None, false, None);
                let cascade = Some(Provenance { node, bound, escalated, degraded, split: true });
                let bare = self.inference(&prediction, front.version, at);
                let inference = Inference { cascade, ..bare };
                self.parts.figures.answered(inference.latency_ms);
                self.reply(&InferReply::answer(id, inference));
            }
            Ok(None) => self.refuse(&InferError::other_front(id, front.version, self.version)),
            Err(error) => {
                tracing::warn!(%error, "a device's activations can't be answered");
                // Activations of any device may do that: only the built-in window counts.
                self.probe.due = true;
                let kind = match error {
                    LearnError::NotFinite { .. } => "split_not_finite",
                    _ => "split_shape",
                };
                self.refuse(&InferError::no_half(id, kind));
            }
        }
    }
}
